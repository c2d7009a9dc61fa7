"""Collects the tasks of one block of operators: units, times, waits, buffers and memory ranges, as plain lists.

A block that repeats is lowered once. What it needs from the block before it (the carried tensor, and places in the
on-chip memories) is kept apart, so that `program.py` can join repetitions by adding numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

from sim.hardware import Hardware
from sim.lower.buffers import Buffer, Ring
from sim.passes import UnitRow, ZeroRow
from sim.units import cycles_to_ps

Ints = NDArray[np.int64]
Runs = tuple[Ints, Ints]
"""Runs of consecutive bursts: first of each, and how many."""


class Unit(IntEnum):
    """Units of one core, in the order of their numbers."""

    ARRAY = 0
    VECTOR = 1
    LOAD = 2
    STORE = 3


PER_CORE = len(Unit)


INTERCONNECT = "interconnect"
"""Name of the unit that sends to other devices."""

PIM = "pim"
"""Name of the units in the memory, as one unit that takes any number of tasks: channels work through their own."""

PIM_PORT = "pim.port"
"""Name of the unit that hands PIM instructions to all channels, one after another, where they share one."""

UNLIMITED = 1 << 30

PORT_SLOTS = 4
"""Chunks of transfers that read from DRAM, or write to it, at once."""


@dataclass(frozen=True, slots=True)
class Link:
    """Unit numbers of a tier's link by direction (the same one where the link is not duplex), and its chunk size."""

    read: int
    write: int
    chunk: int


def device_units(machine: Hardware) -> list[UnitRow]:
    """The units that all cores share, in the order of their numbers, which follow those of the cores."""
    rows = []
    if machine.links is not None:
        rows.append(UnitRow(INTERCONNECT, "interconnect", 1, float(machine.links.bandwidth), "byte"))
    if machine.pim is not None:
        rows.append(UnitRow(PIM, "pim", UNLIMITED, machine.pim_peak_flops_per_s, "flop"))
        if machine.pim.issue_port == "shared":
            rows.append(UnitRow(PIM_PORT, "port", 1, float(machine.clock), "instruction"))
    return rows


def further_units(machine: Hardware) -> list[UnitRow]:
    """All units beyond the cores' but the one that joins, in the order of their numbers."""
    return [*device_units(machine), *link_units(machine)]


def links(machine: Hardware) -> dict[str, Link]:
    """The links of the machine's further memories; their units follow those that the cores share."""
    found = {}
    number = machine.cores * PER_CORE + len(device_units(machine))
    for name, tier in machine.tier_data.items():
        last = number + 1 if tier.duplex else number
        found[name] = Link(number, last, int(machine.tiers[name].chunk))
        number = last + 1
    return found


def link_units(machine: Hardware) -> list[UnitRow]:
    """The units of links, and the two that move what links carry to and from DRAM, in the order of their numbers."""
    rows = []
    for name, tier in machine.tier_data.items():
        read, write = float(tier.read.bandwidth), float(tier.write.bandwidth)
        if tier.duplex:
            rows.append(UnitRow(f"link.{name}.read", "link", 1, read, "byte"))
            rows.append(UnitRow(f"link.{name}.write", "link", 1, write, "byte"))
        else:
            rows.append(UnitRow(f"link.{name}", "link", 1, max(read, write), "byte"))
    if rows:
        dram = machine.peak_bytes_per_s
        rows += [UnitRow(f"port.{direction}", "port", PORT_SLOTS, dram, "byte") for direction in ("read", "write")]
    return rows


class Space(IntEnum):
    """Regions of DRAM: weights and KV cache of one layer, activations of the pass, tables and weights used once."""

    WEIGHT = 0
    KV = 1
    ACTIVATION = 2


@dataclass(slots=True)
class Work:
    """What a task does, for the report; columns of `sim.passes.TaskTable`."""

    macs: int = 0
    vector_ops: int = 0
    sram_read: int = 0
    sram_write: int = 0
    accumulator: int = 0
    link: int = 0
    pim_macs: int = 0  # of units in memory, and of vector units that complete their work


NOTHING = Work()


@dataclass(slots=True)
class Template:
    """One block as lists, one entry a task."""

    unit: list[int] = field(default_factory=list)
    ticks: list[int] = field(default_factory=list)
    tail: list[int] = field(default_factory=list)
    cold: list[int] = field(default_factory=list)
    op: list[int] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    moved: list[int] = field(default_factory=list)  # bytes to or from DRAM
    before: list[int] = field(default_factory=list)  # edges: before[i] -> after[i]
    after: list[int] = field(default_factory=list)
    seg_task: list[int] = field(default_factory=list)
    seg_space: list[int] = field(default_factory=list)
    seg_offset: list[int] = field(default_factory=list)  # bytes from the start of the space
    seg_bytes: list[int] = field(default_factory=list)
    # Of tasks that concern some channels only: the number of these channels' group, and what each of them gets.
    local_task: list[int] = field(default_factory=list)
    local_group: list[int] = field(default_factory=list)
    local_bursts: list[Runs] = field(default_factory=list)  # channel-local bursts
    job_task: list[int] = field(default_factory=list)
    job_group: list[int] = field(default_factory=list)
    jobs: list[Ints] = field(default_factory=list)  # rows of `pim_tables` columns
    enter: list[tuple[int, int, int, int]] = field(default_factory=list)  # (ring, low, high, task)
    exit: list[tuple[int, int, int, int]] = field(default_factory=list)  # (ring, low, high, task)
    sizes: list[int] = field(default_factory=lambda: [0] * len(Space))
    first: int = 0  # waits for the block before
    last: int = 0  # ends the block
    decisions: dict[int, dict[str, str]] = field(default_factory=dict)
    zeros: dict[int, ZeroRow] = field(default_factory=dict)  # of operators whose operands have zeros
    formats: dict[int, str] = field(default_factory=dict)  # of operators that the arrays do in a pair of formats
    shared_weights: bool = False  # repetitions read the same weights


@dataclass(slots=True)
class Held:
    """A tile on chip: its place and the task after which it may be read."""

    buffer: Buffer
    ready: tuple[int, ...]


class Builder:
    """Adds tasks to a Template; one scratchpad ring and one accumulator ring a core."""

    def __init__(self, machine: Hardware, scratchpad_bytes: int, align_bytes: int) -> None:
        self.machine = machine
        self.template = Template()
        self.align_bytes = align_bytes
        self.scratchpads = [Ring(scratchpad_bytes) for _ in range(machine.cores)]
        self.accumulators = [Ring(int(machine.accumulator.capacity)) for _ in range(machine.cores)]
        self.links = links(machine)
        first = machine.cores * PER_CORE
        self.shared = {row.name: first + i for i, row in enumerate(device_units(machine))}
        self.sync_unit = first + len(further_units(machine))
        self.current_op = 0
        self.setup_ps = int(machine.dma.setup)

    def region(self, space: Space, size: int) -> int:
        """Byte offset of `size` fresh bytes of a space, aligned so that tiles start on the first channel."""
        start = self.template.sizes[space]
        self.template.sizes[space] = start + -(-size // self.align_bytes) * self.align_bytes
        return start

    def task(
        self,
        unit: int,
        cycles: int = 0,
        after: Iterable[int] = (),
        work: Work = NOTHING,
        tail: int = 0,
        cold: int = 0,
    ) -> int:
        """Add a task of `cycles` core clocks on `unit`; returns its number. `tail`, `cold`: cycles as in Program."""
        clock = self.machine.clock
        return self._add(
            unit, cycles_to_ps(cycles, clock), cycles_to_ps(tail, clock), cycles_to_ps(cold, clock), after, work
        )

    def sync(self, after: Iterable[int], delay_ps: int = 0) -> int:
        """Add a task that only joins others."""
        return self._add(self.sync_unit, delay_ps, 0, 0, after, NOTHING)

    def move(
        self,
        core: int,
        write: bool,
        pieces: Sequence[tuple[Space, int, int]],
        after: Iterable[int],
        op: int | None = None,
    ) -> int:
        """Add a DMA task for `pieces` (space, byte offset, bytes)."""
        size = sum(piece[2] for piece in pieces)
        work = Work(sram_read=size) if write else Work(sram_write=size)
        unit = core * PER_CORE + (Unit.STORE if write else Unit.LOAD)
        return self._transfer(unit, work, pieces, after, op)

    def move_local(
        self, core: int, write: bool, pieces: Sequence[tuple[int, Runs]], size: int, after: Iterable[int]
    ) -> int:
        """Add a DMA task for `size` bytes on some channels only: `pieces` are (group of channels, runs of bursts on
        each of them).
        """
        work = Work(sram_read=size) if write else Work(sram_write=size)
        number = self._add(core * PER_CORE + (Unit.STORE if write else Unit.LOAD), self.setup_ps, 0, 0, after, work)
        t = self.template
        t.moved[number] = size
        for group, runs in pieces:
            t.local_task.append(number)
            t.local_group.append(group)
            t.local_bursts.append(runs)
        return number

    def pim(self, jobs: Sequence[tuple[int, Ints]], after: Iterable[int], work: Work) -> int:
        """Add a task for the units in the memory: `jobs` are (group of channels, rows of jobs of each)."""
        number = self._add(self.shared[PIM], self.setup_ps, 0, 0, after, work)
        t = self.template
        for group, rows in jobs:
            t.job_task.append(number)
            t.job_group.append(group)
            t.jobs.append(rows)
        return number

    def port(self, write: bool, pieces: Sequence[tuple[Space, int, int]], after: Iterable[int]) -> int:
        """Add a task that moves `pieces` between DRAM and a link, past the cores."""
        return self._transfer(self.sync_unit - (1 if write else 2), NOTHING, pieces, after)

    def occupy(self, unit: int, ticks_ps: int, after: Iterable[int], work: Work, tail_ps: int) -> int:
        """Add a task that keeps `unit` busy for a time in picoseconds; its result is there `tail_ps` later."""
        return self._add(unit, ticks_ps, tail_ps, 0, after, work)

    def _transfer(
        self, unit: int, work: Work, pieces: Sequence[tuple[Space, int, int]], after: Iterable[int],
        op: int | None = None,
    ) -> int:  # fmt: skip
        size = sum(piece[2] for piece in pieces)
        number = self._add(unit, self.setup_ps, 0, 0, after, work)
        t = self.template
        t.moved[number] = size
        for space, offset, length in pieces:
            if length > 0:
                t.seg_task.append(number)
                t.seg_space.append(int(space))
                t.seg_offset.append(offset)
                t.seg_bytes.append(length)
        if op is not None:
            t.op[number] = op
        return number

    def fetch(self, core: int, space: Space, offset: int, size: int, after: Iterable[int] = ()) -> Held:
        """Find a place for `size` bytes in the scratchpad and load them there."""
        buffer = self.scratchpads[core].take(size)
        number = self.move(core, False, [(space, offset, size)], (*after, *buffer.waits))
        self._enter(core, buffer, number)
        return Held(buffer, (number,))

    def fetch_local(self, core: int, pieces: Sequence[tuple[int, Runs]], size: int, after: Iterable[int] = ()) -> Held:
        """As `fetch`, of bursts on some channels only."""
        buffer = self.scratchpads[core].take(size)
        number = self.move_local(core, False, pieces, size, (*after, *buffer.waits))
        self._enter(core, buffer, number)
        return Held(buffer, (number,))

    def reserve(self, core: int, size: int, accumulator: bool = False) -> Buffer:
        """Find a place without loading anything; the first writer must wait as `claim` says."""
        return (self.accumulators if accumulator else self.scratchpads)[core].take(size)

    def claim(self, core: int, buffer: Buffer, number: int, accumulator: bool = False) -> None:
        """Task `number` is the first to write the reserved `buffer`: it waits for the last users of the place."""
        self._edges(buffer.waits, number)
        self._enter(core + (self.machine.cores if accumulator else 0), buffer, number)

    def release(self, core: int, buffer: Buffer, tasks: Iterable[int], accumulator: bool = False) -> None:
        """The buffer is free once `tasks` have ended."""
        (self.accumulators if accumulator else self.scratchpads)[core].free(buffer, tuple(tasks))

    def attempt(self, lower: Callable[..., list[int]], *arguments: object) -> list[int]:
        """Run `lower(self, ...)` from the rings' present places; if its tiles find no room between them, again from the
        start of the rings, which is how the mapper tried them. Only between operators, when no buffer is held.
        """
        t = self.template
        lists = [getattr(t, f.name) for f in fields(t) if isinstance(getattr(t, f.name), list)]
        lengths = [len(values) for values in lists if values is not t.sizes]
        lists = [values for values in lists if values is not t.sizes]
        rings = [*self.scratchpads, *self.accumulators]
        states = [ring.state() for ring in rings]
        try:
            return lower(self, *arguments)
        except MemoryError:
            for values, length in zip(lists, lengths, strict=True):
                del values[length:]
            for ring, state in zip(rings, states, strict=True):
                ring.restore(state)
            return lower(self, *arguments)

    def decide(self, **decisions: str) -> None:
        """Note what was chosen for the current operator."""
        self.template.decisions.setdefault(self.current_op, {}).update(decisions)

    def finish(self, last: int) -> Template:
        """Close the block; `last` is the task that produces the carried tensor."""
        t = self.template
        t.last = last
        for number, ring in enumerate([*self.scratchpads, *self.accumulators]):
            for span in ring.touched():
                if span.releases is None:
                    raise AssertionError(f"a buffer of ring {number} is never released")
                t.exit.extend((number, span.low, span.high, task) for task in span.releases)
        return t

    def _enter(self, ring: int, buffer: Buffer, number: int) -> None:
        self.template.enter.extend((ring, low, high, number) for low, high in buffer.external)

    def _edges(self, before: Iterable[int], number: int) -> None:
        t = self.template
        for task in dict.fromkeys(before):
            t.before.append(task)
            t.after.append(number)

    def _add(self, unit: int, ticks: int, tail: int, cold: int, after: Iterable[int], work: Work) -> int:
        t = self.template
        number = len(t.unit)
        t.unit.append(unit)
        t.ticks.append(ticks)
        t.tail.append(tail)
        t.cold.append(cold)
        t.op.append(self.current_op)
        t.work.append(work)
        t.moved.append(0)
        self._edges(after, number)
        return number
