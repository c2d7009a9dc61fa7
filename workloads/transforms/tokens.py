"""Sequences that change their length from a layer on (`tokens`): tokens removed, passed around layers, or keys only."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.config import ConfigError
from workloads.formats import storage_bytes
from workloads.schema import Schema, Size
from workloads.trace import (
    CARRIED,
    AttentionAttrs,
    Block,
    MoveAttrs,
    Op,
    OpKind,
    Pass,
    ReduceAttrs,
    RequestSpan,
    Role,
    Tensor,
    Trace,
)
from workloads.transforms.conditional import shrink
from workloads.transforms.graph import Edited, Site, edit_layers, halves, is_layers, layer_count, spans_of, tokens_of
from workloads.transforms.rates import Rate, portion
from workloads.transforms.rows import with_rows
from workloads.transforms.where import Where

Depth = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^[0-9]+%$")]


def _layer(depth: Depth, layers: int) -> int:
    """The layer at a share of the depth."""
    return depth if isinstance(depth, int) else int(depth[:-1]) * layers // 100


class Tokens(Schema):
    """Of `count` positions of each request (or a `share` of its new ones) only the share `keep` goes on from the first
    selected layer.

    remove: the others are gone for good, from the cache as well (state the layers up to the last one, which is what
    leaving out where.layers' end means) · bypass: they pass around the selected layers and come back after them; they
    leave no keys there · kv_only: they give keys and values but no queries and no feed-forward work. scorer: what the
    choice computes where the first selected layer begins.
    """

    action: Literal["remove", "bypass", "kv_only"]
    count: Size | None = Field(None, description="Positions of a request at stake: its visual tokens, its prompt.")
    share: Rate | None = Field(None, description="The same as a share of the new positions of a prefill.")
    keep: Rate
    scorer: Literal["none", "norm", "attention"] = "none"
    from_layer: Depth = Field(0, description="First layer that works on fewer positions: a number, or a share: 30%.")
    to_layer: Depth | None = Field(None, description="Last such layer; default: the model's last.")
    where: Where = Where()

    @model_validator(mode="after")
    def _one_of(self) -> Tokens:
        if (self.count is None) == (self.share is None):
            raise ValueError("needs either count or share")
        if self.where.layers is not None:
            raise ValueError("layers are stated by from_layer and to_layer, not by where.layers")
        if self.action == "remove" and self.to_layer is not None:
            raise ValueError("removed tokens do not come back: to_layer has no place")
        return self

    def leaving(self, span: RequestSpan) -> tuple[int, int]:
        """(new positions, cached positions) of a request that are dropped. The ones at stake are the first ones."""
        if self.share is not None:
            at_stake = portion(span.query, self.share) if span.query > 1 else 0
            return at_stake - portion(at_stake, self.keep), 0
        assert self.count is not None
        cached = min(self.count, span.past)
        at_stake = cached + min(self.count - cached, span.query)
        dropped = at_stake - portion(at_stake, self.keep)
        old = dropped * cached // at_stake if at_stake else 0
        return dropped - old, old


def tokens(trace: Trace, params: Tokens) -> Trace:
    """Closed form: rows of the selected layers fall by the dropped positions, keys by those of the cache as well."""
    if params.keep == 1:
        return trace
    layers = max((layer_count_of(p) for p in trace.passes if params.where.takes_pass(p)), default=0)
    last = layers - 1 if params.to_layer is None else _layer(params.to_layer, layers)
    first = _layer(params.from_layer, layers)
    if first > last or last >= layers:
        raise ConfigError(
            f"layers {first} to {last} are none of the model's {layers} (0 to {layers - 1})",
            key="from_layer",
        )
    where = params.where.model_copy(update={"layers": (f"{first}-{last}",)})

    def edit(ops: tuple[Op, ...], site: Site) -> Edited:
        spans = spans_of(ops)
        if spans is None:
            raise ConfigError("finds a layer without attention, which does not tell requests apart", key="from_layer")
        kept = tuple(_without(s, params) for s in spans)
        total, rows = tokens_of(ops), sum(s.tokens for s in kept)
        lead = scorer(ops, params, site.prefix) if site.layers[0] == first else ()
        if params.action == "kv_only":
            found = ops
            idle: list[Tensor] = []
            for part in reversed(halves(ops)):
                body, unused = shrink(ops, part, rows, site.prefix, True, False)
                found = (*found[: part.start], *body, *found[part.stop :])
                idle.extend(unused)
            return Edited((*lead, *found), tuple(idle))
        new = tuple(with_rows(op, total, rows, kept if isinstance(op.attrs, AttentionAttrs) else None) for op in ops)
        if params.action == "remove":
            new = tuple(_forget(op) for op in new)
        return Edited((*lead, *new))

    result = edit_layers(trace, where, edit)
    return _short_head(result, params) if params.action == "remove" else result


def layer_count_of(p: Pass) -> int:
    """Layers that a pass runs, numbered or not."""
    return layer_count(p) or sum(
        b.repeat * len({o.name.rpartition(".")[0] for o in b.ops}) for b in p.blocks if is_layers(b)
    )


def _without(span: RequestSpan, params: Tokens) -> RequestSpan:
    fresh, old = params.leaving(span)
    if fresh >= span.query:
        raise ConfigError(f"leaves none of the {span.query} new positions of a request", key="keep")
    return replace(span, query=span.query - fresh, past=span.past - old)


def _forget(op: Op) -> Op:
    """Rows that are gone are part of no buffer any more."""
    if not any(t.name == CARRIED and t.whole for t in (*op.inputs, *op.outputs)):
        return op

    def cut(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(replace(t, whole=None) if t.name == CARRIED else t for t in tensors)

    return replace(op, inputs=cut(op.inputs), outputs=cut(op.outputs))


def _short_head(trace: Trace, params: Tokens) -> Trace:
    """What comes after the layers reads as many rows of the residual stream as are left."""
    known: dict[int, tuple[Block, Block]] = {}

    def short(block: Block, rows: int, before: int) -> Block:
        if id(block) not in known:
            ops = []
            for op in block.ops:
                inputs = tuple(
                    replace(t, shape=(rows, *t.shape[1:])) if t.name == CARRIED and t.shape[0] == before else t
                    for t in op.inputs
                )
                ops.append(op if inputs == op.inputs or op.kind is not OpKind.GATHER else replace(op, inputs=inputs))
            known[id(block)] = (block, replace(block, ops=tuple(ops)))
        return known[id(block)][1]

    passes = []
    for p in trace.passes:
        numbered = [i for i, b in enumerate(p.blocks) if b.first_layer is not None]
        if not params.where.takes_pass(p) or not numbered:
            passes.append(p)
            continue
        rows, before = tokens_of(p.blocks[numbered[-1]].ops), p.tokens
        tail = tuple(short(b, rows, before) if rows != before else b for b in p.blocks[numbered[-1] + 1 :])
        passes.append(replace(p, blocks=(*p.blocks[: numbered[-1] + 1], *tail)))
    return replace(trace, passes=tuple(passes))


def scorer(ops: tuple[Op, ...], params: Tokens, prefix: str) -> tuple[Op, ...]:
    """The operators that choose: norms of the hidden states, or the attention that tokens get, then a selection, then
    the rows that stay are put together.
    """
    if params.scorer == "none":
        return ()
    x = next(t for op in ops for t in op.inputs if t.name == CARRIED)
    rows, hidden = x.shape[0], x.shape[-1]
    score = Tensor("token_scores", (rows,), x.format, Role.ACTIVATION)
    found: list[Op] = []
    if params.scorer == "norm":
        found.append(
            Op(f"{prefix}token_score", OpKind.REDUCE, "router", (x,), (score,), ReduceAttrs("sum", rows, hidden))
        )
    else:
        attrs = next(op.attrs for op in ops if isinstance(op.attrs, AttentionAttrs))
        seen = Tensor("token_attention", (rows, attrs.heads), x.format, Role.ACTIVATION)
        found.append(
            Op(
                f"{prefix}token_score",
                OpKind.REDUCE,
                "router",
                (seen,),
                (score,),
                ReduceAttrs("sum", rows, attrs.heads),
            )
        )
    chosen = Tensor("tokens_kept", (rows,), "int32", Role.INDEX)
    found.append(
        Op(f"{prefix}token_select", OpKind.REDUCE, "router", (score,), (chosen,), ReduceAttrs("topk", 1, rows))
    )
    move = MoveAttrs("tokens", rows, storage_bytes((hidden,), x.format))
    packed = replace(x, whole=None)
    found.append(Op(f"{prefix}token_pack", OpKind.GATHER, "router", (x,), (packed,), move))
    return tuple(found)
