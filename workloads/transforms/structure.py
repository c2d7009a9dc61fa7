"""Static edits of the model: halves of layers dropped, merged, made parallel or given one set of weights; slices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from pydantic import model_validator

from sim.config import ConfigError
from workloads.formats import storage_bytes
from workloads.schema import Schema, Size
from workloads.trace import (
    CARRIED,
    AttentionAttrs,
    Block,
    ElementwiseAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    Pass,
    ReduceAttrs,
    Role,
    Tensor,
    Trace,
)
from workloads.transforms.graph import (
    Edited,
    Half,
    HalfKind,
    Site,
    cut,
    edit_layers,
    half,
    halves,
    layer_count,
    layers_of,
    map_passes,
    number_layers,
    unique_names,
    without,
)
from workloads.transforms.rates import Density, exact
from workloads.transforms.where import Where


class Drop(Schema):
    """Remove attention halves (with their cache), feed-forward halves or whole layers for good, weights included."""

    unit: Literal["attention", "ffn", "layer"]
    where: Where = Where()


def drop(trace: Trace, params: Drop) -> Trace:
    """Closed form: the trace loses exactly the work, weights and cache of the operators of the halves named."""

    def edit(ops: tuple[Op, ...], site: Site) -> Edited:
        if params.unit == "layer":
            return Edited(())
        gone = half(ops, params.unit)
        rest = ops if gone is None else without(ops, gone)
        return Edited(rest if halves(rest) else ())

    return edit_layers(trace, params.where, edit)


class Merge(Schema):
    """wide: `group` feed-forward halves in a row (attention dropped before) become one of their widths together ·
    flatten: `group` layers become one with all their heads and neurons · parallel: both halves of a layer read the same
    input and are summed at once · share: `group` layers in a row use one set of weights.
    """

    kind: Literal["wide", "flatten", "parallel", "share"]
    group: Size = 2
    where: Where = Where()


def merge(trace: Trace, params: Merge) -> Trace:
    """Closed form: wide and flatten keep the matrix work and the weights, and spare norms and sums; parallel spares
    one norm; share keeps the work and divides the weights by `group`.
    """
    if params.kind == "parallel":
        return edit_layers(trace, params.where, _side_by_side)
    if params.group == 1:
        return trace

    def edited(p: Pass) -> Pass:
        chosen = params.where.numbers(layer_count(p))
        blocks: list[Block] = []
        for block in p.blocks:
            if block.first_layer is None:
                blocks.append(block)
                continue
            held = layers_of(block)
            marks = [n for n in held[1:] if (n in chosen) != (n - 1 in chosen)]
            for part in cut(block, marks):
                inside = [n in chosen for n in layers_of(part)]
                if not any(inside) or (params.kind == "wide" and half(_first(part), "attention") is not None):
                    blocks.append(part)
                    continue
                if not all(inside) or len(part.prefixes) > 1:
                    raise ConfigError(
                        f"layers {held[0]} to {held[-1]} come in groups of {len(block.prefixes)} different ones, which "
                        "cannot be merged",
                        key="where.layers",
                    )
                blocks.extend(_merged(part, params))
        return replace(p, blocks=unique_names(blocks))

    return map_passes(number_layers(trace), params.where, edited)


def _first(block: Block) -> tuple[Op, ...]:
    return block.ops


def _merged(block: Block, params: Merge) -> list[Block]:
    assert block.first_layer is not None
    base = block.name.partition("@")[0]
    if params.kind == "share":
        found, at = [], 0
        while at < block.repeat:
            size, first = min(params.group, block.repeat - at), block.first_layer + at
            found.append(replace(block, name=f"{base}@{first}", repeat=size, first_layer=first, weights_shared=True))
            at += size
        return found
    whole, rest = divmod(block.repeat, params.group)
    found = []
    at = block.first_layer
    for count, size in ((whole, params.group), (1 if rest else 0, rest)):
        if count:
            ops = scale_inner(block.ops, Fraction(size), ("ffn",))
            if params.kind == "flatten":
                ops = scale_inner(ops, Fraction(size), ("attention",))
            # A merged layer stands for several of the model's, whose weights it holds; it is numbered by the first.
            named = tuple(_named(op, f"x{size}") for op in ops) if size > 1 else ops
            found.append(replace(block, name=f"{base}@{at}", repeat=count, first_layer=at, ops=named))
            at += count * size
    return found


def _named(op: Op, mark: str) -> Op:
    """The operator with weights of a name of their own: merged ones are no layer's."""
    inputs = tuple(replace(t, name=f"{t.name}.{mark}") if t.role is Role.WEIGHT else t for t in op.inputs)
    return replace(op, inputs=inputs)


def _side_by_side(ops: tuple[Op, ...], site: Site) -> Edited:
    attention, ffn = half(ops, "attention"), half(ops, "ffn")
    if attention is None or ffn is None or ops[attention.stop - 1].outputs[0].name != CARRIED:
        return Edited(ops)
    first, norm = ops[attention.start : attention.stop], ops[ffn.start]
    shared = first[0].outputs[0]
    fed = list(ops[ffn.start : ffn.stop])
    if norm.kind is OpKind.REDUCE and first[0].kind is OpKind.REDUCE:
        own = norm.outputs[0].name
        fed = [
            replace(op, inputs=tuple(replace(t, name=shared.name) if t.name == own else t for t in op.inputs))
            for op in fed[1:]
        ]
    return Edited((*ops[: attention.start], *first[:-1], *fed[:-1], first[-1], fed[-1], *ops[ffn.stop :]))


class Width(Schema):
    """Keep a leading slice: of the neurons of feed-forward halves, or of the heads of attention.

    `resident`: the rest of the weights stays in memory (a submodel of a nested one).
    """

    of: Literal["ffn", "heads"]
    share: Density
    resident: bool = False
    where: Where = Where()

    @model_validator(mode="after")
    def _fits(self) -> Width:
        if self.share == 1 and self.resident:
            raise ValueError("a share of 1 leaves no rest that could be resident")
        return self


def width(trace: Trace, params: Width) -> Trace:
    """Closed form: matrix work and weights of the selected halves shrink to `share`. Raises ConfigError for a share
    that cuts a neuron, a head or a key/value head.
    """
    if params.share == 1:
        return trace
    share = exact(params.share)
    kind: HalfKind = "ffn" if params.of == "ffn" else "attention"

    def edit(ops: tuple[Op, ...], site: Site) -> Edited:
        return Edited(scale_inner(ops, share, (kind,), params.resident))

    return edit_layers(trace, params.where, edit)


def scale_inner(
    ops: Sequence[Op], factor: Fraction, kinds: Sequence[HalfKind], resident: bool = False
) -> tuple[Op, ...]:
    """A layer whose halves of `kinds` have `factor` times their inner width: neurons, or heads of queries and keys.

    `resident`: weights keep their size in memory as `whole`. Raises ConfigError where a size would not be whole.
    """
    found = list(ops)
    for part in halves(ops):
        if part.kind in kinds:
            change = _Inner(factor, resident)
            body = change.ffn if part.kind == "ffn" else change.attention
            found[part.start : part.stop] = [body(op) for op in ops[part.start : part.stop]]
    return tuple(found)


class _Inner:
    """Follows the inner width through the operators of one half."""

    def __init__(self, factor: Fraction, resident: bool) -> None:
        self.factor, self.resident = factor, resident
        self.inner: set[str] = set()

    def times(self, size: int, what: str) -> int:
        scaled = size * self.factor
        if scaled.denominator != 1 or scaled < 1:
            raise ConfigError(f"{self.factor} of {size} {what} is no whole number", key="share")
        return int(scaled)

    def tensor(self, tensor: Tensor, axis: int) -> Tensor:
        axis %= len(tensor.shape)
        shape = tensor.shape
        changed = (*shape[:axis], self.times(shape[axis], f"columns of {tensor.name}"), *shape[axis + 1 :])
        whole = tensor.whole
        if self.resident and tensor.role is Role.WEIGHT:
            whole = whole or shape
        elif whole is not None:
            at = axis - len(shape)
            whole = (
                *whole[:at],
                self.times(whole[at], f"columns of {tensor.name}"),
                *(whole[at + 1 :] if at < -1 else ()),
            )
        return replace(tensor, shape=changed, whole=whole)

    def ffn(self, op: Op) -> Op:
        attrs = op.attrs
        if isinstance(attrs, MatmulAttrs) and op.role == "ffn":
            if op.inputs[0].name in self.inner:
                inputs = (self.tensor(op.inputs[0], -1), self.tensor(op.inputs[1], -2), *op.inputs[2:])
                return replace(op, attrs=replace(attrs, k=self.times(attrs.k, "neurons")), inputs=inputs)
            self.inner.add(op.outputs[0].name)
            inputs = (op.inputs[0], *(self.tensor(t, -1) for t in op.inputs[1:]))
            widened = (self.tensor(op.outputs[0], -1),)
            return replace(op, attrs=replace(attrs, n=self.times(attrs.n, "neurons")), inputs=inputs, outputs=widened)
        if isinstance(attrs, ElementwiseAttrs) and any(t.name in self.inner for t in op.inputs):
            self.inner.update(t.name for t in op.outputs)
            inputs = tuple(self.tensor(t, -1) if t.name in self.inner else t for t in op.inputs)
            outputs = tuple(self.tensor(t, -1) for t in op.outputs)
            return replace(
                op, attrs=replace(attrs, elements=sum(t.elements for t in outputs)), inputs=inputs, outputs=outputs
            )
        return op

    def attention(self, op: Op) -> Op:
        attrs, name = op.attrs, op.name.rpartition(".")[2]
        if isinstance(attrs, AttentionAttrs):
            if attrs.latent or len(op.inputs) > 4:
                raise ConfigError(
                    "latent attention has no heads in its cache; slice its feed-forward half only", key="of"
                )
            heads, kv_heads = self.times(attrs.heads, "heads"), self.times(attrs.kv_heads, "key/value heads")
            changed = replace(attrs, heads=heads, kv_heads=kv_heads)
            inputs = [self.tensor(op.inputs[0], -1)]
            for t in op.inputs[1:]:
                inputs.append(self.tensor(t, 1 if t.role is Role.KV else -1))
            return replace(op, attrs=changed, inputs=tuple(inputs), outputs=(self.tensor(op.outputs[0], -1),))
        if isinstance(attrs, MatmulAttrs) and name == "qkv":
            inputs2 = (op.inputs[0], *(self.tensor(t, -1) for t in op.inputs[1:]))
            n = self.times(attrs.n, "columns of qkv")
            return replace(op, attrs=replace(attrs, n=n), inputs=inputs2, outputs=(self.tensor(op.outputs[0], -1),))
        if isinstance(attrs, MatmulAttrs) and name == "out_proj":
            inputs2 = (self.tensor(op.inputs[0], -1), self.tensor(op.inputs[1], -2), *op.inputs[2:])
            return replace(op, attrs=replace(attrs, k=self.times(attrs.k, "columns of o")), inputs=inputs2)
        if isinstance(attrs, ReduceAttrs) and name == "qk_norm":
            inputs2 = (self.tensor(op.inputs[0], -1), *op.inputs[1:])
            rows = self.times(attrs.rows, "rows of qk_norm")
            return replace(
                op, attrs=replace(attrs, rows=rows), inputs=inputs2, outputs=(self.tensor(op.outputs[0], -1),)
            )
        if isinstance(attrs, ElementwiseAttrs) and name == "rotary":
            inputs2, outputs = (tuple(self.tensor(t, -1) for t in ts) for ts in (op.inputs, op.outputs))
            return replace(
                op,
                attrs=replace(attrs, elements=self.times(attrs.elements, "elements")),
                inputs=inputs2,
                outputs=outputs,
            )
        if isinstance(attrs, MoveAttrs) and attrs.table == "kv_append":
            inputs2 = tuple(self.tensor(t, -1) for t in op.inputs)
            outputs = tuple(self.tensor(t, 1) for t in op.outputs)
            row_bytes = sum(storage_bytes(t.shape[1:], t.format) for t in outputs)
            return replace(op, attrs=replace(attrs, row_bytes=row_bytes), inputs=inputs2, outputs=outputs)
        return op


def inner_width(ops: Sequence[Op], part: Half) -> int:
    """Neurons of a dense feed-forward half: the columns that its last product takes. Raises ConfigError for another."""
    for op in reversed(ops[part.start : part.stop]):
        if isinstance(op.attrs, MatmulAttrs):
            if op.attrs.group_m is not None:
                break
            return op.attrs.k
    raise ConfigError("needs a dense feed-forward half, but the layer has experts", key="where.layers")
