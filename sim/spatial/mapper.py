"""Cuts a block of operators into sections that fit the machine, as few as come from taking operators in order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from sim.errors import ConfigError
from sim.spatial.build import Builder, CutError, Plan
from sim.spatial.fabric import Fabric, TooLargeError
from sim.spatial.machine import StreamMachine
from sim.spatial.rates import up
from sim.spatial.shapes import Layout, check, common_groups, groups_of
from workloads.trace import Block, MatmulAttrs, Op, OpKind

FULL_SHARE = 4
"""A part of a product's weights takes at most (FULL_SHARE - 1) / FULL_SHARE of the memory tiles at first."""


@dataclass(frozen=True)
class Section:
    """A section of a block: its plan and its fabric."""

    plan: Plan
    fabric: Fabric


def sections_of(machine: StreamMachine, block: Block, outside: set[str]) -> list[Section]:
    """The sections of `block` in order. Raises ConfigError for an operator that fits no section, saying why."""
    check(machine, block)
    found: list[Section] = []
    first = 0
    while first < len(block.ops):
        done = _longest(machine, block, outside, first)
        if done is None:
            parts = _parts(machine, block, outside, first)
            found += parts
            first += 1
        else:
            found.append(done)
            first = done.plan.last + 1
    return _finished(found)


def sections_in_two(machine: StreamMachine, block: Block, outside: set[str]) -> list[list[Section]]:
    """Every way to have the operators of `block` in two sections that fit."""
    found = []
    for at in range(1, len(block.ops)):
        spans = ((0, at - 1), (at, len(block.ops) - 1))
        groups = [common_groups(block.ops[first : last + 1]) for first, last in spans]
        try:
            found.append([
                _fitting(machine, block, outside, first, last, own)
                for (first, last), own in zip(spans, groups, strict=True) if own is not None
            ])  # fmt: skip
        except (TooLargeError, CutError):
            continue
    return [_finished(sections) for sections in found if len(sections) == 2]


def _finished(found: list[Section]) -> list[Section]:
    for section in found:
        section.fabric.finish()
    for number, section in enumerate(found):
        for chosen in section.fabric.decisions.values():
            chosen["section"] = f"{number + 1} of {len(found)}"
    return found


def _longest(machine: StreamMachine, block: Block, outside: set[str], first: int) -> Section | None:
    """The section with the most operators from `first` on; None if not even the first fits."""
    found = None
    for last in range(first, len(block.ops)):
        ops = block.ops[first : last + 1]
        groups = common_groups(ops)
        if groups is None:
            break
        try:
            found = _fitting(machine, block, outside, first, last, groups)
        except (TooLargeError, CutError):
            break
    return found


def _fitting(
    machine: StreamMachine, block: Block, outside: set[str], first: int, last: int, groups: tuple[int, ...]
) -> Section:
    """Operators first..last as one section, with blocks as large as they may be. Raises TooLargeError, or CutError."""
    streamed = few_rows(machine, block.ops[first : last + 1])
    reason: TooLargeError | None = None
    for size in _halves(max(groups) if streamed else block_rows(machine, groups), machine.compute_tiles.stages):
        plan = Plan(first, last, Layout(groups, size), streamed)
        try:
            return Section(plan, Builder(machine, block, plan, outside).build())
        except TooLargeError as error:
            reason = error
    assert reason is not None
    raise reason


def _parts(machine: StreamMachine, block: Block, outside: set[str], number: int) -> list[Section]:
    """A product whose weights don't fit, column by column. Raises ConfigError if it can't be cut small enough."""
    op = block.ops[number]
    groups = groups_of(op)
    sizes = [*_halves(block_rows(machine, groups), machine.compute_tiles.stages)]
    plan = Plan(number, number, Layout(groups, sizes[-1]), streamed=False)
    reason: TooLargeError | None = None
    try:
        Builder(machine, block, plan, outside).build()
    except TooLargeError as error:
        reason = error
    if isinstance(op.attrs, MatmulAttrs):
        n, lanes = op.attrs.n, machine.compute_tiles.lanes
        weights = FULL_SHARE * op.inputs[1].bytes // ((FULL_SHARE - 1) * machine.sram_bytes)
        parts = max(2, weights + 1)
        while parts < 2 * up(n, lanes):
            columns = min(up(up(n, parts), lanes) * lanes, n)
            parts = 2 * parts
            for size in sizes:
                try:
                    return _cut(machine, block, outside, replace(plan, layout=Layout(groups, size), columns=columns), n)
                except TooLargeError as error:
                    reason = error
    assert reason is not None
    raise ConfigError(
        f"operator {op.name} fits no section of {machine.name}, however small its parts: it {reason}", key=reason.key
    )


def _halves(size: int, stages: int) -> Iterator[int]:
    """Rows of a token from `size` down, each about half of the one before, in whole stages."""
    while True:
        yield size
        smaller = up(up(size, 2), stages) * stages
        if smaller >= size:
            return
        size = smaller


def _cut(machine: StreamMachine, block: Block, outside: set[str], plan: Plan, n: int) -> list[Section]:
    """A section for each `columns` columns; all but the last are the same one."""
    whole = Section(plan, Builder(machine, block, plan, outside).build())
    count = up(n, plan.columns)
    last = replace(plan, at=(count - 1) * plan.columns)
    rest = whole if n % plan.columns == 0 else Section(last, Builder(machine, block, last, outside).build())
    return [whole] * (count - 1) + [rest]


def few_rows(machine: StreamMachine, ops: tuple[Op, ...]) -> bool:
    """Whether reading the weights takes longer than all tiles need for the products: then rows stay, weights stream."""
    read = compute = 0.0
    for op in ops:
        if op.kind is OpKind.MATMUL:
            read += op.inputs[1].bytes / machine.peak_bytes_per_s
            compute += op.flops / machine.peak_flops_per_s(op.inputs[0].format)
    return read > compute


def block_rows(machine: StreamMachine, groups: tuple[int, ...]) -> int:
    """Rows of a token: whole stages, and as few as the tokens that are aimed at allow."""
    stages = machine.compute_tiles.stages
    size = stages
    while sum(up(m, size) for m in groups) > machine.mapping.blocks and size < max(groups):
        size += stages
    return min(size, max(groups))
