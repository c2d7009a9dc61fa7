"""Which keys attention sees, as structure: masks of every kind, kinds by head, linear attention, indexers (`mask`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import Literal

from pydantic import Field, model_validator

from sim.config import ConfigError
from workloads.formats import storage_bytes
from workloads.names import FormatName
from workloads.schema import Count, Schema, Size
from workloads.trace import (
    AttentionAttrs,
    CustomAttrs,
    ElementwiseAttrs,
    Mask,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    ReduceAttrs,
    RequestSpan,
    Role,
    Tensor,
    Trace,
    visible_pairs,
)
from workloads.transforms.graph import Edited, Site, edit_layers, layer_count, number_layers
from workloads.transforms.rates import Density, exact
from workloads.transforms.remask import remask
from workloads.transforms.where import Where

Kind = Literal[
    "causal", "full", "window", "chunk", "block", "top_k", "block_sparse", "lists", "pooled", "segments", "linear"
]  # fmt: skip


class Shape(Schema):
    """One kind of attention; the kinds of `docs/trace.md`, and two that are made of operators:

    segments: new positions attend within segments of `block` (and to the first `sinks`), the last `tail` of them to
    everything · linear: a state of `features` x head size takes the place of keys and values.
    """

    kind: Kind
    window: Size | None = None
    sinks: Count = 0
    block: Size | None = None
    density: Density | None = None
    top_k: Size | None = None
    lists: tuple[tuple[Count, ...], ...] | None = None
    levels: tuple[tuple[Size, float], ...] | None = None
    tail: Count = Field(0, description="New positions at the end that see everything (segments).")
    features: Size | None = Field(None, description="Width of the feature map (linear); default: the head's.")

    @model_validator(mode="after")
    def _is_one(self) -> Shape:
        if self.kind == "segments":
            if self.block is None:
                raise ValueError("segments need block, the positions of one")
        elif self.kind == "linear":
            if self.block or self.density or self.window:
                raise ValueError("linear attention has no block, density or window")
        else:
            self.mask()
        return self

    def mask(self) -> Mask:
        """As a mask of the Trace."""
        density = self.density or next(iter(getattr(self, "densities", None) or ()), None)
        return Mask(
            self.kind, self.window, self.sinks, self.block, density, self.top_k, lists=self.lists, levels=self.levels
        )


class Heads(Shape):
    """The kind of a share of the heads."""

    share: Density


class Stage(Schema):
    """One round of scores: of all entries, pooled `pool` to one, or of the best `keys` positions so far."""

    pool: Size = 1
    keys: Size | None = None


class Indexer(Schema):
    """What chooses the keys: scores of `heads` index heads of `dim`, stage by stage, and a selection by `sweeps` passes
    over them (a radix select of 32-bit scores takes four).

    own_keys: it projects queries and keys of its own and caches the keys in `format`; else it scores with the layer's.
    """

    heads: Size
    dim: Size
    stages: tuple[Stage, ...] = (Stage(),)
    own_keys: bool = True
    format: FormatName | None = None
    sweeps: Size = 4


class MaskParams(Shape):
    """The mask of the selected layers, or of a share of their heads each (`heads`, which add up to 1).

    keep_all: cached positions that are no longer seen stay in the cache. permute: keys and values are put in another
    order first, which reads and writes each new one once. linear_branch: what the mask leaves out goes through linear
    attention with so many features, and both results are added.
    """

    kind: Kind = "causal"
    heads: tuple[Heads, ...] | None = None
    densities: tuple[Density, ...] | None = Field(
        None, description="Densities (block_sparse) of as many equal groups of the selected layers, in order."
    )
    indexer: Indexer | None = None
    keep_all: bool = False
    permute: bool = False
    linear_branch: Size | None = None
    where: Where = Where()

    @model_validator(mode="after")
    def _heads_fit(self) -> MaskParams:
        if self.heads is not None and sum(exact(h.share) for h in self.heads) != 1:
            raise ValueError("the shares of heads must add up to 1")
        if self.densities is not None and self.kind != "block_sparse":
            raise ValueError("densities belong to block_sparse")
        if self.linear_branch is not None and self.kind == "linear":
            raise ValueError("linear attention leaves nothing to a linear branch")
        return self


def mask(trace: Trace, params: MaskParams) -> Trace:
    """Closed form: matrix work of attention is 2 x pairs x heads x (key + value size) of the new mask, bytes of keys
    and values follow the keys seen; indexer, permutation and linear branch add their own.
    """
    if params.densities is not None:
        trace = number_layers(trace)
        layers = sorted(params.where.numbers(max(layer_count(p) for p in trace.passes if params.where.takes_pass(p))))
        for i, density in enumerate(params.densities):
            part = layers[i * len(layers) // len(params.densities) : (i + 1) * len(layers) // len(params.densities)]
            if part:
                where = params.where.model_copy(update={"layers": tuple(part), "every": 1})
                trace = mask(trace, params.model_copy(update={"densities": None, "density": density, "where": where}))
        return trace

    def edit(ops: tuple[Op, ...], site: Site) -> Edited:
        at = next((i for i, op in enumerate(ops) if isinstance(op.attrs, AttentionAttrs)), None)
        return Edited(ops if at is None else _masked(ops, at, params))

    return edit_layers(trace, params.where, edit)


def _masked(ops: tuple[Op, ...], at: int, params: MaskParams) -> tuple[Op, ...]:
    op = ops[at]
    attrs = op.attrs
    assert isinstance(attrs, AttentionAttrs)
    before: list[Op] = []
    if params.indexer is not None:
        before.extend(index(ops, op, params.indexer))
    if params.permute:
        before.extend(_permutations(op))
    kinds = params.heads or (params,)
    if params.kind == "linear" and params.heads is None:
        rest = tuple(o for o in ops[:at] if not (isinstance(o.attrs, MoveAttrs) and o.attrs.table == "kv_append"))
        return (
            *rest,
            *before,
            *linear(ops, op, params.features or attrs.head_dim, "", any(t.role is Role.KV for t in op.inputs)),
            *ops[at + 1 :],
        )
    if len(kinds) > 1:
        split_ops, append = _by_heads(ops, op, params)
        return (*(append.get(o.name, o) for o in ops[:at]), *before, *split_ops, *ops[at + 1 :])
    changed = _shaped(op, kinds[0], params.keep_all)
    after: list[Op] = [changed]
    if params.linear_branch is not None:
        out = op.outputs[0]
        both = replace(out, name="o_linear")
        exact_part = replace(out, name="o_exact")
        after = [replace(changed, outputs=(exact_part,))]
        branch = linear(ops, replace(op, outputs=(both,)), params.linear_branch, "_branch", causal_cache=False)
        after.extend(branch)
        after.append(
            Op(
                f"{op.name}_join",
                OpKind.ELEMENTWISE,
                op.role,
                (exact_part, both),
                (out,),
                ElementwiseAttrs("add", out.elements),
            )
        )
    return (*ops[:at], *before, *after, *ops[at + 1 :])


def _shaped(op: Op, shape: Shape, keep_all: bool) -> Op:
    """The attention operator under one kind of mask."""
    attrs = op.attrs
    assert isinstance(attrs, AttentionAttrs)
    if shape.kind != "segments":
        new = shape.mask()
        looking = attrs.mask.kind == "full" or attrs.mask.both
        if looking and new.kind in ("window", "top_k", "block_sparse", "pooled"):
            new = replace(new, both=True)
        # Where each query chooses for itself, what one leaves out another may want: it stays in the cache.
        keep = keep_all or shape.kind in ("top_k", "block_sparse", "lists", "pooled")
        return op if new == attrs.mask else remask(op, new, keep=keep)
    spans = [part for span in attrs.requests for part in segments(span, shape.block or 1, shape.sinks, shape.tail)]
    changed = remask(op, attrs.mask, tuple(spans))
    # Segments read the sinks and the tail reads all again; the cache holds each position once.
    whole = {t.name: t.whole or t.shape for t in op.inputs if t.role is Role.KV}
    inputs = tuple(
        replace(t, whole=None if whole[t.name] == t.shape else whole[t.name]) if t.role is Role.KV else t
        for t in changed.inputs
    )
    return replace(changed, inputs=inputs)


def segments(span: RequestSpan, block: int, sinks: int, tail: int) -> list[RequestSpan]:
    """A request's new positions as segments that do not see each other; a decode step sees everything."""
    body = span.query - min(tail, span.query)
    if span.query == 1 or body <= 0:
        return [span]
    whole, rest = divmod(body, block)
    found = []
    first = min(block, body)
    # The first segment follows what is cached; each further one sees the sinks and itself.
    found.append(RequestSpan(span.count, first, span.past))
    if whole > 1:
        found.append(RequestSpan(span.count * (whole - 1), block, min(sinks, span.past + block)))
    if whole and rest:
        found.append(RequestSpan(span.count, rest, min(sinks, span.past + block)))
    if span.query > body:
        found.append(RequestSpan(span.count, span.query - body, span.past + body))
    return found


def _permutations(op: Op) -> list[Op]:
    """New keys and values written once more in the order that makes blocks dense."""
    attrs = op.attrs
    assert isinstance(attrs, AttentionAttrs)
    found = []
    for tensor in op.inputs[1:3]:
        if len(tensor.shape) < 2:
            continue
        rows = (attrs.tokens, *tensor.shape[1:])
        source = Tensor(f"{tensor.name}_order", rows, tensor.format, Role.ACTIVATION)
        target = replace(source, name=f"{tensor.name}_ordered")
        move = MoveAttrs("permute", attrs.tokens, storage_bytes(rows[1:], tensor.format))
        found.append(
            Op(
                f"{op.name}_permute_{tensor.name.rpartition('.')[2]}",
                OpKind.GATHER,
                op.role,
                (source,),
                (target,),
                move,
            )
        )
    return found


def _by_heads(ops: Sequence[Op], op: Op, params: MaskParams) -> tuple[list[Op], dict[str, Op]]:
    """One attention operator for each kind of heads, and the append of their parts of the cache."""
    attrs = op.attrs
    assert isinstance(attrs, AttentionAttrs)
    assert params.heads is not None
    if attrs.latent or len(op.inputs) != 3:
        raise ConfigError(
            "kinds by head need heads with keys and values of their own, not latent attention", key="heads"
        )
    q, k, v = op.inputs
    out = op.outputs[0]
    found: list[Op] = []
    parts: dict[str, list[Tensor]] = {}
    for number, shape in enumerate(params.heads):
        share = exact(shape.share)
        heads, kv_heads = attrs.heads * share, attrs.kv_heads * share
        if kv_heads.denominator != 1 or heads.denominator != 1:
            raise ConfigError(
                f"is {shape.share}, but that is no whole number of the {attrs.kv_heads} key/value heads",
                key=f"heads.{number}.share",
            )
        if shape.kind in ("linear", "segments"):
            raise ConfigError(f"is {shape.kind!r}, which is a kind for all heads only", key=f"heads.{number}.kind")
        own = replace(attrs, heads=int(heads), kv_heads=int(kv_heads))
        cached = k.role is Role.KV

        def piece(tensor: Tensor, size: Fraction, axis: int, mark: str) -> Tensor:
            axis %= len(tensor.shape)
            cut = int(tensor.shape[axis] * size)
            return replace(
                tensor,
                name=tensor.name + mark,
                shape=(*tensor.shape[:axis], cut, *tensor.shape[axis + 1 :]),
                whole=None,
            )

        mark = f"_{number}" if cached else ""
        kk, vv = (piece(t, share, 1 if cached else -1, mark) for t in (k, v))
        part = replace(
            op, name=f"{op.name}_{number}", attrs=own, inputs=(piece(q, share, -1, ""), kk, vv),
            outputs=(replace(piece(out, share, -1, ""), whole=out.shape),),
        )  # fmt: skip
        found.append(_shaped(part, shape, params.keep_all))
        if cached:
            for tensor, cut in ((k, kk), (v, vv)):
                parts.setdefault(tensor.name, []).append(cut)
    append: dict[str, Op] = {}
    for other in ops:
        if isinstance(other.attrs, MoveAttrs) and other.attrs.table == "kv_append" and parts:
            outputs = tuple(
                replace(t, name=cut.name, shape=(t.shape[0], *cut.shape[1:]))
                for t in other.outputs
                for cut in parts[t.name]
            )
            append[other.name] = replace(other, outputs=outputs)
    return found, append


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


def index(ops: Sequence[Op], op: Op, indexer: Indexer) -> list[Op]:
    """The operators that choose keys, before the attention operator `op` of a layer.

    Multiply-accumulates: for each stage, pairs of new positions and entries x heads x dim, and tokens x hidden x
    (heads + 1) x dim for the projections of its own keys. Decode steps score by products of their own, longer queries
    in one operator that leaves out what they cannot see.
    """
    attrs = op.attrs
    assert isinstance(attrs, AttentionAttrs)
    prefix = op.name.removesuffix("attention")
    heads, dim = indexer.heads, indexer.dim
    tokens, form = attrs.tokens, op.inputs[0].format
    key_form = indexer.format or form
    fed = next((o for o in ops if o.kind is OpKind.MATMUL and o.role == "attention"), None)
    if fed is None:
        raise ConfigError("finds no projection in the layer that an indexer could share the input of", key="indexer")
    x, weight = fed.inputs[0], fed.inputs[1]
    owner = weight.name.removesuffix(f"{fed.name.rpartition('.')[2]}.weight")
    found: list[Op] = []
    q = Tensor("index_q", (tokens, heads * dim), form, Role.ACTIVATION)
    cached = any(t.role is Role.KV for t in op.inputs)
    cache_role = Role.KV if cached else Role.ACTIVATION
    cache_name = f"{prefix}index_cache" if indexer.own_keys or not cached else op.inputs[1].name
    if indexer.own_keys:
        k = Tensor("index_k", (tokens, dim), form, Role.ACTIVATION)
        for name, width, out in (("index_q", heads * dim, q), ("index_k", dim, k)):
            w = Tensor(f"{owner}{name}.weight", (x.shape[-1], width), weight.format, Role.WEIGHT)
            found.append(
                Op(
                    f"{prefix}{name}",
                    OpKind.MATMUL,
                    "attention",
                    (x, w),
                    (out,),
                    MatmulAttrs(1, tokens, x.shape[-1], width),
                )
            )
        new = Tensor(cache_name, (tokens, dim), key_form, cache_role)
        move = MoveAttrs("index_append", tokens, storage_bytes((dim,), key_form))
        found.append(Op(f"{prefix}index_append", OpKind.SCATTER, "attention", (k,), (new,), move))
    else:
        q = replace(op.inputs[0], shape=(tokens, heads * dim)) if tokens * heads * dim <= op.inputs[0].elements else q
    for number, stage in enumerate(indexer.stages):
        for part, span in enumerate(attrs.requests):
            name = f"{prefix}index_score{number}" + (f"_{part}" if len(attrs.requests) > 1 else "")
            length = min(stage.keys or span.length, span.length)
            entries = ceil(Fraction(length, stage.pool))
            size = storage_bytes((dim,), key_form)
            chosen = Tensor(f"{name.rpartition('.')[2]}_chosen", (span.tokens,), "int32", Role.INDEX)
            if span.query > 1:
                pairs = visible_pairs(
                    Mask("causal") if attrs.mask.kind != "full" else attrs.mask, span.query, span.past
                )
                pairs = ceil(Fraction(pairs * length, span.length * stage.pool)) * span.count
                read = span.count * entries * size + storage_bytes((span.tokens, heads * dim), form)
                work = CustomAttrs(
                    2 * pairs * heads * dim, pairs * (heads + indexer.sweeps), read, 4 * span.tokens, "array"
                )
                found.append(Op(name, OpKind.CUSTOM, "attention", (q,), (chosen,), work))
                continue
            whole = (span.count, dim, span.length)
            keys = Tensor(
                cache_name,
                (span.count, dim, entries),
                key_form,
                cache_role,
                whole=None if entries == span.length else whole,
            )
            if not indexer.own_keys and cached:
                keys = replace(keys, name=f"{prefix}pooled_keys", whole=None)
            scores = Tensor(f"{name.rpartition('.')[2]}_heads", (span.count * heads, entries), form, Role.ACTIVATION)
            part_q = replace(q, shape=(span.count, heads, dim), whole=None)
            found.append(
                Op(
                    name,
                    OpKind.MATMUL,
                    "attention",
                    (part_q, keys),
                    (scores,),
                    MatmulAttrs(span.count, heads, dim, entries),
                )
            )
            total = Tensor(f"{name.rpartition('.')[2]}_sum", (span.count, entries), form, Role.ACTIVATION)
            found.append(
                Op(
                    f"{name}_sum",
                    OpKind.REDUCE,
                    "attention",
                    (scores,),
                    (total,),
                    ReduceAttrs("sum", span.count * entries, heads),
                )
            )
            found.append(
                Op(
                    f"{name}_select",
                    OpKind.REDUCE,
                    "attention",
                    (total,),
                    (chosen,),
                    ReduceAttrs("topk", span.count, entries, keep=indexer.sweeps),
                )
            )
    return found
