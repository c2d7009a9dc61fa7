"""Lowers what is no product and no attention: vector operators, gathers and scatters, custom work.

Operands that are on chip are used there; others are streamed through the scratchpad in stretches of equal length.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.links import Links
from sim.links.device import device_cost
from sim.lower.builder import INTERCONNECT, PER_CORE, Builder, Held, Space, Unit, Work
from sim.lower.compute import vector_task, whole
from sim.lower.homes import Home
from workloads.trace import CollectiveAttrs

_PARTS = 8


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor of a streamed operator: its home and its bytes."""

    home: Home
    size: int


def lower_vector(
    builder: Builder, function: str, rows: int, columns: int, ops: int, inputs: Sequence[Operand],
    outputs: Sequence[Operand], start: tuple[int, ...], keep: int = 1,
) -> list[int]:  # fmt: skip
    """`function` over rows x columns; row-wise ones are cut between rows, element-wise ones (rows = 1) anywhere."""
    align = builder.align_bytes
    units = rows if rows > 1 else columns
    parts = _parts(builder, units, inputs, outputs)
    ends = []
    for index in range(parts):
        low, high = index * units // parts, (index + 1) * units // parts
        core = index % builder.machine.cores
        held, ready, read = [], list(start), 0
        for operand in inputs:
            at, size = _share(align, operand.size, low, high, units)
            read += size
            ready.extend(operand.home.ready)
            if not operand.home.on_chip and size:
                held.append(builder.fetch(core, operand.home.space, operand.home.offset + at, size, operand.home.ready))
                ready.extend(held[-1].ready)
        shape = (high - low, columns) if rows > 1 else (1, high - low)
        done = ops * high // units - ops * low // units
        written = sum(_share(align, output.size, low, high, units)[1] for output in outputs)
        last = vector_task(builder, core, function, *shape, (read, written), ready, done, keep)
        ends.append(_hand_over(builder, core, held, outputs, (low, high, units), last))
    return ends


def lower_move(
    builder: Builder, rows: Sequence[tuple[Space, int]] | None, row_bytes: int, ops: int, inputs: Sequence[Operand],
    output: Operand, start: tuple[int, ...],
) -> list[int]:  # fmt: skip
    """A gather: `rows` lists where each row of a table stands in DRAM (None: rows of the inputs, in any order)."""
    align = builder.align_bytes
    count = len(rows) if rows is not None else max(output.size // max(row_bytes, 1), 1)
    parts = _parts(builder, count, inputs, (output,), len(rows or ()) * row_bytes)
    ends = []
    for index in range(parts):
        low, high = index * count // parts, (index + 1) * count // parts
        core = index % builder.machine.cores
        held: list[Held] = []
        ready = list(start)
        for operand in inputs:
            ready.extend(operand.home.ready)
            at, size = _share(align, operand.size, low, high, count)
            if not operand.home.on_chip and size:
                held.append(builder.fetch(core, operand.home.space, operand.home.offset + at, size, operand.home.ready))
                ready.extend(held[-1].ready)
        if rows is not None:
            pieces = [(space, offset, row_bytes) for space, offset in rows[low:high]]
            buffer = builder.reserve(core, row_bytes * (high - low))
            load = builder.move(core, False, pieces, start)
            builder.claim(core, buffer, load)
            held.append(Held(buffer, (load,)))
            ready.append(load)
        written = _share(align, output.size, low, high, count)[1]
        share = ops * high // count - ops * low // count
        if ops:
            read = sum(_share(align, operand.size, low, high, count)[1] for operand in inputs)
            last = vector_task(builder, core, "add", 1, max(share, 1), (read, written), ready, share)
        else:
            last = builder.sync(ready)
        ends.append(_hand_over(builder, core, held, (output,), (low, high, count), last))
    return ends


def lower_scatter(
    builder: Builder, pieces: Sequence[tuple[Space, int, int]], inputs: Sequence[Operand], start: tuple[int, ...]
) -> list[int]:
    """Write `pieces` (space, offset, bytes) from tensors that are on chip or have to be loaded first."""
    align = builder.align_bytes
    total = sum(piece[2] for piece in pieces)
    streamed = sum(operand.size for operand in inputs if not operand.home.on_chip)
    step = max(builder.scratchpads[0].capacity // _PARTS, 1)
    parts = min(max(-(-streamed // step), 1), len(pieces))
    ends = []
    done = 0
    for index in range(parts):
        chosen = pieces[index * len(pieces) // parts : (index + 1) * len(pieces) // parts]
        size = sum(piece[2] for piece in chosen)
        core = index % builder.machine.cores
        ready = [*start]
        held = []
        for operand in inputs:
            ready.extend(operand.home.ready)
            home = operand.home
            at, part = _share(align, operand.size, done, done + size, total)
            if not home.on_chip and part:
                held.append(builder.fetch(core, home.space, home.offset + at, part, home.ready))
                ready.extend(held[-1].ready)
        done += size
        last = builder.move(core, True, chosen, ready)
        for item in held:
            builder.release(core, item.buffer, (last,))
        ends.append(last)
    return ends


def lower_custom(
    builder: Builder,
    cycles: dict[Unit, int],
    work: Work,
    read: int,
    write: int,
    place: tuple[Space, int],
    start: tuple[int, ...],
) -> list[int]:
    """Stated work: load `read` bytes, keep the units busy for their cycles, store `write` bytes; parts overlap."""
    align = builder.align_bytes
    space, offset = place
    step = max(builder.scratchpads[0].capacity // _PARTS, 1)
    parts = max(-(-max(read, write) // step), 1)
    ends = []
    for index in range(parts):
        core = index % builder.machine.cores
        ready = list(start)
        held = None
        at, size = _share(align, read, index, index + 1, parts)
        if size:
            held = builder.fetch(core, space, offset + at, size, start)
            ready = list(held.ready)
        last = -1
        for unit, total in cycles.items():
            part = total * (index + 1) // parts - total * index // parts
            share = Work(
                macs=work.macs * (index + 1) // parts - work.macs * index // parts if unit is Unit.ARRAY else 0,
                vector_ops=work.vector_ops * (index + 1) // parts - work.vector_ops * index // parts
                if unit is Unit.VECTOR
                else 0,
            )
            last = builder.task(core * PER_CORE + unit, part, ready, share)
            ready = [last]
        if last < 0:
            last = builder.sync(ready)
        at, size = _share(align, write, index, index + 1, parts)
        if size:
            last = builder.move(core, True, [(space, offset + at, size)], (last,))
        if held:
            builder.release(core, held.buffer, (last,))
        ends.append(last)
    return ends


def lower_collective(
    builder: Builder, links: Links, attrs: CollectiveAttrs, inputs: Sequence[Operand], outputs: Sequence[Operand],
    start: tuple[int, ...],
) -> list[int]:  # fmt: skip
    """A collective with other devices: the link sends for as long as its bytes take, and each step's latency follows.

    The others are taken to be as far as this one. What arrives is added on the way, at the rate of the link.
    """
    sent, length, tail = device_cost(links, attrs)
    units = max(attrs.bytes, 1)
    parts = _parts(builder, units, inputs, outputs)
    ends = []
    busy = 0
    for index in range(parts):
        low, high = index * units // parts, (index + 1) * units // parts
        held, ready = [], list(start)
        for operand in inputs:
            ready.extend(operand.home.ready)
            at, size = _share(builder.align_bytes, operand.size, low, high, units)
            if not operand.home.on_chip and size:
                held.append(builder.fetch(0, operand.home.space, operand.home.offset + at, size, operand.home.ready))
                ready.extend(held[-1].ready)
        until = length * high // units
        moved = whole(sent * high / units) - whole(sent * low / units)
        task = builder.occupy(
            builder.shared[INTERCONNECT], until - busy, ready, Work(link=moved, sram_read=moved, sram_write=moved),
            tail,
        )  # fmt: skip
        busy = until
        ends.append(_hand_over(builder, 0, held, outputs, (low, high, units), task))
    return ends


def _parts(builder: Builder, units: int, inputs: Sequence[Operand], outputs: Sequence[Operand], more: int = 0) -> int:
    """Stretches to cut `units` into: so that several fit on chip at once, and at least one for each core."""
    streamed = more + sum(operand.size for operand in (*inputs, *outputs) if not operand.home.on_chip)
    step = max(builder.scratchpads[0].capacity // _PARTS, 1)
    return min(max(-(-streamed // step), builder.machine.cores), units)


def _share(align: int, size: int, low: int, high: int, units: int) -> tuple[int, int]:
    """Bytes of `size` that go with the units [low, high): (start, length). Cuts lie on stripes of all channels."""
    start, end = (size if at == units else size * at // units // align * align for at in (low, high))
    return start, end - start


def _hand_over(
    builder: Builder, core: int, held: Sequence[Held], outputs: Sequence[Operand], part: tuple[int, int, int], last: int
) -> int:
    """Store a stretch of the outputs that live in DRAM; release what was loaded for it."""
    pieces = []
    for output in outputs:
        at, size = _share(builder.align_bytes, output.size, *part)
        if not output.home.on_chip and size:
            pieces.append((output.home.space, output.home.offset + at, size))
    if pieces:
        last = builder.move(core, True, pieces, (last,))
    for item in held:
        builder.release(core, item.buffer, (last,))
    return last
