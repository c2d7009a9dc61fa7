"""Linear attention as operators: a state in the place of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from sim.config import ConfigError
from workloads.formats import storage_bytes
from workloads.trace import (
    AttentionAttrs,
    ElementwiseAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    Role,
    Tensor,
)


def linear(ops: Sequence[Op], op: Op, features: int, mark: str, causal_cache: bool) -> list[Op]:
    """Linear attention in the state form: state += phi(k)^T v, result = phi(q) state, for each key/value head.

    Multiply-accumulates: tokens x (kv_heads + heads) x features x value size. With features unlike the head size,
    queries and keys are projected to them first.
    """
    attrs = op.attrs
    assert isinstance(attrs, AttentionAttrs)
    if attrs.latent:
        raise ConfigError("linear attention needs keys and values of their own, not latent attention", key="kind")
    if attrs.heads % attrs.kv_heads or len({s.query for s in attrs.requests}) > 1:
        raise ConfigError("linear attention needs requests of as many new positions each", key="kind")
    requests = sum(s.count for s in attrs.requests)
    query, tokens = attrs.requests[0].query, attrs.tokens
    group, d, v_dim = attrs.heads // attrs.kv_heads, attrs.head_dim, attrs.v_head_dim
    form = op.inputs[0].format
    prefix = op.name.removesuffix("attention")
    q = replace(op.inputs[0], shape=(tokens, attrs.heads * d), whole=None)
    k_name = "k" if any(t.name == "k" for o in ops for t in o.outputs) else q.name
    v_name = "qkv" if any(t.name == "qkv" for o in ops for t in o.outputs) else "v"
    k = Tensor(k_name, (tokens, attrs.kv_heads * d), form, Role.ACTIVATION)
    v = Tensor(v_name, (tokens, attrs.kv_heads * v_dim), form, Role.ACTIVATION)
    found: list[Op] = []
    for name, x, heads in (("q", q, attrs.heads), ("k", k, attrs.kv_heads)):
        mapped = Tensor(f"{name}_features{mark}", (tokens, heads * features), form, Role.ACTIVATION)
        source = x
        if features != d:
            weight = Tensor(f"{prefix}features_{name}{mark}.weight", (d, features), form, Role.WEIGHT)
            source = Tensor(f"{name}_raw{mark}", (tokens * heads, features), form, Role.ACTIVATION)
            product = MatmulAttrs(1, tokens * heads, d, features)
            found.append(Op(f"{prefix}project_{name}{mark}", OpKind.MATMUL, op.role, (x, weight), (source,), product))
        found.append(
            Op(
                f"{prefix}map_{name}{mark}",
                OpKind.ELEMENTWISE,
                op.role,
                (source,),
                (mapped,),
                ElementwiseAttrs("relu", mapped.elements),
            )
        )
    members = requests * attrs.kv_heads
    state = Tensor(
        f"{prefix}state{mark}" if causal_cache else f"state{mark}", (members, features, v_dim), form,
        Role.KV if causal_cache else Role.ACTIVATION,
    )  # fmt: skip
    made = Tensor(f"state_new{mark}", (members, features, v_dim), form, Role.ACTIVATION)
    k_features = Tensor(f"k_features{mark}", (members, features, query), form, Role.ACTIVATION)
    values = replace(v, shape=(members, query, v_dim))
    found.append(
        Op(
            f"{prefix}state_update{mark}",
            OpKind.MATMUL,
            op.role,
            (k_features, values),
            (made,),
            MatmulAttrs(members, features, query, v_dim),
        )
    )
    if causal_cache:
        total = replace(made, name=f"state_sum{mark}")
        found.append(
            Op(
                f"{prefix}state_add{mark}",
                OpKind.ELEMENTWISE,
                op.role,
                (made, state),
                (total,),
                ElementwiseAttrs("add", made.elements),
            )
        )
        move = MoveAttrs("state", members, storage_bytes((features, v_dim), form))
        found.append(Op(f"{prefix}state_keep{mark}", OpKind.SCATTER, op.role, (total,), (state,), move))
        made = total
    q_features = Tensor(f"q_features{mark}", (members, query * group, features), form, Role.ACTIVATION)
    found.append(
        Op(
            f"{prefix}linear_attention{mark}",
            OpKind.MATMUL,
            op.role,
            (q_features, made),
            op.outputs,
            MatmulAttrs(members, query * group, features, v_dim),
        )
    )
    return found
