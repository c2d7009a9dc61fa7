"""Indexers: the operators that choose the keys of sparse attention, by scores of their own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil

from sim.config import ConfigError
from workloads.formats import storage_bytes
from workloads.names import FormatName
from workloads.schema import Schema, Size
from workloads.trace import (
    AttentionAttrs,
    CustomAttrs,
    Mask,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    ReduceAttrs,
    Role,
    Tensor,
    visible_pairs,
)


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
