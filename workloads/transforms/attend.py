"""Which keys attention sees, as structure: masks of every kind, kinds by head, linear attention, indexers (`mask`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from pydantic import Field, model_validator

from sim.config import ConfigError
from workloads.formats import storage_bytes
from workloads.schema import Count, Schema, Size
from workloads.trace import (
    AttentionAttrs,
    ElementwiseAttrs,
    Mask,
    MoveAttrs,
    Op,
    OpKind,
    RequestSpan,
    Role,
    Tensor,
    Trace,
)
from workloads.transforms.graph import Edited, Site, edit_layers, layer_count, number_layers
from workloads.transforms.indexer import Indexer, index
from workloads.transforms.linear import linear
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
