"""Edits of operator graphs that every primitive is made of: find layers and halves of layers, cut blocks, change rows.

All of them are pure: they return new blocks and share what they leave alone. Layers are known by their number in the
model, wherever they stand.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sim.config import ConfigError
from workloads.trace import (
    CARRIED,
    AttentionAttrs,
    Block,
    Op,
    OpKind,
    Pass,
    RequestSpan,
    Role,
    Tensor,
    Trace,
)
from workloads.transforms.where import Where

HalfKind = Literal["attention", "ffn"]


@dataclass(frozen=True, slots=True)
class Half:
    """One half of a layer: the operators [start, stop) from its norm to the sum with the residual stream."""

    kind: HalfKind
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Site:
    """Where an edit works: which pass, which layers of the model (all alike), and what their names begin with.

    `order` is the place of the first of them among the selected layers of the pass, `selected` how many those are.
    """

    work: Pass
    block: Block
    prefix: str
    layers: tuple[int, ...]
    order: int
    selected: int


@dataclass(frozen=True, slots=True)
class Edited:
    """What an edit makes of a layer: its operators (none: the layer is gone) and weights that stay though unused."""

    ops: tuple[Op, ...]
    idle: tuple[Tensor, ...] = ()


Edit = Callable[[tuple[Op, ...], Site], Edited]


def number_layers(trace: Trace) -> Trace:
    """The trace with every block of layers numbered; blocks that are so already are left alone."""
    known: dict[tuple[int, int], Block] = {}

    def numbered(p: Pass) -> Pass:
        at, blocks = 0, []
        for block in p.blocks:
            if block.first_layer is None and is_layers(block):
                key = (id(block), at)
                if key not in known:
                    prefixes = tuple(dict.fromkeys(prefix_of(op) for op in block.ops))
                    known[key] = replace(block, first_layer=at, prefixes=prefixes)
                block = known[key]
            if block.first_layer is not None:
                at = block.first_layer + block.repeat * len(block.prefixes)
            blocks.append(block)
        return replace(p, blocks=tuple(blocks))

    return replace(trace, passes=tuple(numbered(p) for p in trace.passes))


def is_layers(block: Block) -> bool:
    """Whether a block consists of transformer layers: it attends, or feeds forward."""
    return any(op.kind is OpKind.ATTENTION or op.role == "ffn" for op in block.ops)


def prefix_of(op: Op) -> str:
    head, dot, _ = op.name.rpartition(".")
    return head + dot


def layer_count(p: Pass) -> int:
    """Layers of the pass's model, as far as the pass runs them."""
    ends = [b.first_layer + b.repeat * len(b.prefixes) for b in p.blocks if b.first_layer is not None]
    return max(ends, default=0)


def layers_of(block: Block) -> tuple[int, ...]:
    """The model's layers in a block, in order."""
    assert block.first_layer is not None
    return tuple(range(block.first_layer, block.first_layer + block.repeat * len(block.prefixes)))


def cut(block: Block, boundaries: Iterable[int]) -> list[Block]:
    """The block in parts, cut before each layer in `boundaries` (numbers of the model) that begins a repetition."""
    assert block.first_layer is not None
    period, first = len(block.prefixes), block.first_layer
    inner = {(b - first) // period for b in boundaries if b > first and (b - first) % period == 0}
    marks = [0, *sorted(m for m in inner if m < block.repeat), block.repeat]
    if len(marks) == 2:
        return [block]
    base = block.name.partition("@")[0]
    return [
        replace(block, name=f"{base}@{first + low * period}", repeat=high - low, first_layer=first + low * period)
        for low, high in itertools.pairwise(marks)
    ]


def unique_names(blocks: Iterable[Block]) -> tuple[Block, ...]:
    """The blocks, those whose name is taken already with a number after it: blocks of a pass are known by name."""
    taken: dict[str, int] = {}
    found = []
    for block in blocks:
        taken[block.name] = taken.get(block.name, 0) + 1
        count = taken[block.name]
        found.append(block if count == 1 else replace(block, name=f"{block.name}+{count - 1}"))
    return tuple(found)


def edit_layers(
    trace: Trace, where: Where, edit: Edit, per_pass: bool = False, together: Callable[[Pass, int], int] | None = None
) -> Trace:
    """Apply `edit` to every selected layer of every selected pass.

    An edit sees the operators of one layer and stands for all layers alike in its block; layers that are not selected
    are cut off. `per_pass`: the result depends on more of the pass than its blocks, so equal blocks are edited anew.
    `together(pass, selected)`: cut the selected layers once more, after so many of them (an edit may treat the rest
    differently, by `Site.order`). Raises ConfigError for layers that the model lacks.
    """
    trace = number_layers(trace)
    known: dict[tuple[int, int, int], tuple[Block, ...]] = {}
    keep: list[object] = []
    chosen_of: dict[int, frozenset[int]] = {}

    def edited(p: Pass) -> Pass:
        count = layer_count(p)
        if not count:
            return p
        if count not in chosen_of:
            chosen_of[count] = where.numbers(count)
        chosen = chosen_of[count]
        here = sorted(n for b in p.blocks if b.first_layer is not None for n in layers_of(b) if n in chosen)
        blocks: list[Block] = []
        order = 0
        mark = together(p, len(here)) if together and here else 0
        for block in p.blocks:
            if block.first_layer is None:
                blocks.append(block)
                continue
            key = (id(block), order, len(here))
            if per_pass or key not in known:
                known[key] = tuple(_edit_block(block, p, chosen, edit, order, len(here), mark))
                keep.append(block)
            blocks.extend(known[key])
            order += sum(n in chosen for n in layers_of(block))
        if not blocks:
            raise ConfigError(f"leaves nothing of pass {p.name}", key="where")
        return replace(p, blocks=unique_names(blocks))

    return map_passes(trace, where, edited)


def _edit_block(
    block: Block, p: Pass, chosen: frozenset[int], edit: Edit, order: int, selected: int, together: int
) -> Iterable[Block]:
    assert block.first_layer is not None
    period, first = len(block.prefixes), block.first_layer
    marks: list[int] = []
    previous: tuple[bool, ...] | None = None
    at = order
    for turn in range(block.repeat):
        layers = range(first + turn * period, first + (turn + 1) * period)
        signature = tuple(n in chosen for n in layers)
        if (previous is not None and signature != previous) or (order < together == at):
            marks.append(layers[0])
        previous = signature
        at += sum(signature)
    for part in cut(block, marks):
        assert part.first_layer is not None
        held = layers_of(part)
        ops: list[Op] = []
        idle = list(part.idle)
        for place, prefix in enumerate(part.prefixes):
            own = tuple(op for op in part.ops if prefix_of(op) == prefix)
            numbers = held[place::period]
            if numbers[0] in chosen and own:
                result = edit(own, Site(p, part, prefix, numbers, order, selected))
                ops.extend(result.ops)
                idle.extend(result.idle)
            else:
                ops.extend(own)
            order += sum(n in chosen for n in numbers)
        if ops:
            yield replace(part, ops=tuple(ops), idle=tuple(dict.fromkeys(idle)))


def edit_ops(trace: Trace, where: Where, edit: Callable[[Op, Pass], Sequence[Op]]) -> Trace:
    """Put `edit(op, pass)` in the place of every selected operator; blocks that hold no layers are looked at too.

    With `where.layers` only layers are. Equal operators are edited once. Raises ConfigError if a named operator is in
    no selected pass.
    """
    if where.operators is not None:
        where.check_operators(
            op.name for p in trace.passes if where.takes_pass(p) for block in p.blocks for op in block.ops
        )
    known: dict[int, tuple[Op, tuple[Op, ...]]] = {}

    def one(op: Op, p: Pass) -> tuple[Op, ...]:
        if not where.takes_op(op):
            return (op,)
        if id(op) not in known:
            known[id(op)] = (op, tuple(edit(op, p)))
        return known[id(op)][1]

    if where.layers is not None or where.every > 1:
        return edit_layers(trace, where, lambda ops, site: Edited(tuple(o for op in ops for o in one(op, site.work))))
    blocks: dict[int, tuple[Block, Block]] = {}

    def edited(p: Pass) -> Pass:
        found = []
        for block in p.blocks:
            if id(block) not in blocks:
                blocks[id(block)] = (block, replace(block, ops=tuple(o for op in block.ops for o in one(op, p))))
            found.append(blocks[id(block)][1])
        return replace(p, blocks=tuple(found))

    return map_passes(trace, where, edited)


def map_passes(trace: Trace, where: Where, edit: Callable[[Pass], Pass]) -> Trace:
    """Apply `edit` to every selected pass; a pass that repeats is cut where `where.steps` begins and ends."""
    passes: list[Pass] = []
    at = 0
    selected = False
    for p in trace.passes:
        low, high = (0, p.repeat) if where.steps is None else (where.steps[0] - at, where.steps[1] + 1 - at)
        at += p.repeat
        low, high = max(low, 0), min(high, p.repeat)
        if not where.takes_pass(p) or low >= high:
            passes.append(p)
            continue
        selected = True
        for count, change in ((low, False), (high - low, True), (p.repeat - high, False)):
            if count:
                part = replace(p, repeat=count)
                passes.append(edit(part) if change else part)
    if not selected:
        raise ConfigError(
            f"selects no pass; the passes are {', '.join(dict.fromkeys(p.name for p in trace.passes[:8]))} "
            f"(phases {', '.join(dict.fromkeys(p.phase for p in trace.passes))})",
            key="where",
        )
    return replace(trace, passes=tuple(passes))


def halves(ops: Sequence[Op]) -> tuple[Half, ...]:
    """The halves of one layer, found by their sums with the residual stream (and the norm after it, if it is one).

    What stands before the first half (the shift and gate of adaptive norms) belongs to none.
    """
    found: list[Half] = []
    start = 0
    while start < len(ops) and ops[start].role == "conditioning":
        start += 1
    number = start
    while number < len(ops):
        if ops[number].role == "residual":
            stop = number + 1
            total = ops[number].outputs[0].name
            if total != CARRIED and stop < len(ops) and any(t.name == total for t in ops[stop].inputs):
                stop += 1
            roles = {op.role for op in ops[start:stop]}
            # Of a half that a cached result replaces only its sum is left, which says by its name whose it is.
            alone = roles == {"residual"} and ops[number].name.rpartition(".")[2].startswith("attn")
            found.append(Half("attention" if alone or "attention" in roles else "ffn", start, stop))
            start = number = stop
        else:
            number += 1
    return tuple(found)


def half(ops: Sequence[Op], kind: HalfKind) -> Half | None:
    """The half of that kind, None where the layer has none."""
    return next((h for h in halves(ops) if h.kind == kind), None)


def weights_of(ops: Iterable[Op]) -> tuple[Tensor, ...]:
    """The weights that operators read, whole, each once."""
    found = {}
    for op in ops:
        for tensor in op.inputs:
            if tensor.role is Role.WEIGHT:
                found[tensor.name] = replace(tensor, shape=tensor.whole or tensor.shape, whole=None)
    return tuple(found.values())


def without(ops: Sequence[Op], gone: Half) -> tuple[Op, ...]:
    """A layer without one of its halves; what read the half's result reads the residual stream instead."""
    made = {t.name for op in ops[gone.start : gone.stop] for t in op.outputs} - {CARRIED}
    rest = (*ops[: gone.start], *ops[gone.stop :])
    produced: set[str] = set()
    found = []
    for op in rest:
        if any(t.name in made and t.name not in produced and t.role is Role.ACTIVATION for t in op.inputs):
            inputs = tuple(
                replace(t, name=CARRIED) if t.name in made and t.name not in produced else t for t in op.inputs
            )
            op = replace(op, inputs=inputs)
        produced.update(t.name for t in op.outputs)
        found.append(op)
    if found and not any(t.name == CARRIED for op in found for t in op.outputs):
        last = found[-1]
        found[-1] = replace(last, outputs=(replace(last.outputs[0], name=CARRIED), *last.outputs[1:]))
    return tuple(found)


def tokens_of(ops: Iterable[Op]) -> int:
    """Rows of the residual stream that operators of a layer work on."""
    for op in ops:
        for tensor in (*op.inputs, *op.outputs):
            if tensor.name == CARRIED:
                return tensor.shape[0]
    for op in ops:
        if isinstance(op.attrs, AttentionAttrs):
            return op.attrs.tokens
    raise ConfigError("holds layers whose operators neither read nor write the residual stream")


def spans_of(ops: Iterable[Op]) -> tuple[RequestSpan, ...] | None:
    """The requests that the attention of a layer works on, None where there is none."""
    return next((op.attrs.requests for op in ops if isinstance(op.attrs, AttentionAttrs)), None)
