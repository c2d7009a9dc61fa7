"""Simulates a pass on a streaming machine: section after section, each from an idle fabric and an idle memory.

A section may read weights of the next one ahead. Equal sections (of equal layers, or parts of one product) have one
result and are simulated once; `reuse=False` runs every one, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.kinds import EXACT
from sim.passes import MemoryCounts, OpRow, PassResult, Schedule, TaskTable, UnitRow
from sim.sparse.plain import plain_row
from sim.spatial.fabric import COMPUTE, LOAD, STORE, STORE_TILES, VECTOR
from sim.spatial.machine import StreamMachine
from sim.spatial.mapper import Section, sections_in_two, sections_of
from sim.spatial.prefetch import Ahead, estimate, plan, reading_ahead
from sim.spatial.section import Ran, idle_memory, run_section
from sim.spatial.shapes import exposed
from workloads.trace import Block, Op, Pass, Role

CONFIGURE = "configuration"
UNITS = (COMPUTE, VECTOR, STORE_TILES, LOAD, STORE, CONFIGURE)
WORTH_A_CUT = 1.05
"""A layer is cut in two only where it takes this much longer than its slowest node works."""
CUTS_TRIED = 4
"""Cuts in two that are simulated, the best by estimate."""
COLUMNS = ("macs", "vector_ops", "sram_read", "sram_write", "dram_read", "dram_write")


class StreamEngine:
    """One streaming machine and what was found out about it."""

    fidelity = EXACT

    def __init__(self, machine: StreamMachine, *, reuse: bool = True) -> None:
        self.machine, self.reuse = machine, reuse
        self._sections: dict[tuple[Block, frozenset[str]], list[Section]] = {}
        self._ran: dict[tuple[int, tuple[Ahead, ...], int, tuple[Ahead, ...]], Ran] = {}
        self._tried: list[list[list[Section]]] = []
        self._idle: MemoryCounts | None = None

    def run(self, work: Pass) -> PassResult:
        """Simulate one pass. Raises ConfigError for what the machine has no unit for, or what fits no section."""
        tasks = _Tasks(self.machine)
        ops: list[OpRow] = []
        steps: list[tuple[Section, int]] = []
        for block in work.blocks:
            sections = self._cut(block, work)
            rows = _op_rows(block, work, sections)
            for layer in range(block.repeat):
                steps += [(section, len(ops)) for section in sections]
                ops += [replace(row, layer=layer) for row in rows]
        now = 0
        configured: Section | None = None
        counts: dict[int, tuple[MemoryCounts, int]] = {}
        swaps = 0
        there: tuple[Ahead, ...] = ()
        for (section, base), (following, next_base) in zip(steps, [*steps[1:], (None, 0)], strict=True):
            if section is not configured:
                tasks.configure(now, int(self.machine.reconfigure), base + section.plan.first)
                now += int(self.machine.reconfigure)
                configured = section
                swaps += 1
            now += int(self.machine.software.launch)
            ahead = self._ahead(section, there, following)
            ran = self._run(section, there, following if ahead else None, ahead)
            tasks.section(now, ran, base, next_base)
            now += ran.end_ps
            counts[id(ran)] = (ran.memory, counts.get(id(ran), (ran.memory, 0))[1] + 1)
            there = ahead
        memory = self._counts(counts.values(), swaps)
        table, start, release = tasks.table()
        return PassResult(
            name=work.name, phase=work.phase, tokens=work.tokens, generated=work.generated, repeat=work.repeat,
            ops=tuple(ops), units=self._units({row.format for row in ops if row.flops}), tasks=table,
            schedule=Schedule(start, release, release, now, memory),
        )  # fmt: skip

    def _cut(self, block: Block, work: Pass) -> list[Section]:
        outside = {name for other in work.blocks if other is not block or block.repeat > 1 for name in exposed(other)}
        names = {t.name for op in block.ops for t in op.outputs}
        key = (block, frozenset(outside & names))
        if key not in self._sections:
            found = sections_of(self.machine, block, outside)
            if len(found) == 1 and block.repeat > 1 and self.machine.mapping.sections == "fastest":
                found = self._faster(found, block, outside)
            self._sections[key] = found
        return self._sections[key]

    def _faster(self, whole: list[Section], block: Block, outside: set[str]) -> list[Section]:
        """The cut of a layer into two sections, or `whole`, whichever takes less time from layer to layer.

        Tried only where rows stream and the slowest node waits for a share of the time: for weights, or for all keys.
        """
        if whole[0].plan.streamed:
            return whole
        slowest_ps = 1e12 * estimate(self.machine, whole, loads=False)
        if self._period(whole) < WORTH_A_CUT * slowest_ps:
            return whole
        cuts = sections_in_two(self.machine, block, outside)
        cuts.sort(key=lambda sections: estimate(self.machine, sections))
        tried = [whole, *cuts[:CUTS_TRIED]]
        self._tried.append(tried)  # kept: results are remembered by section
        return min(tried, key=self._period)

    def _period(self, sections: list[Section]) -> int:
        """Time of a layer among others like it, in ps."""
        there: tuple[Ahead, ...] = ()
        total = 0
        for _ in range(2):
            total = int(self.machine.reconfigure) * len(sections) if len(sections) > 1 else 0
            for section, following in zip(sections, [*sections[1:], sections[0]], strict=True):
                ahead = self._ahead(section, there, following)
                total += self._run(section, there, following if ahead else None, ahead).end_ps
                there = ahead
        return total

    def _ahead(self, section: Section, there: tuple[Ahead, ...], following: Section | None) -> tuple[Ahead, ...]:
        if following is None or not self.machine.mapping.prefetch:
            return ()
        return plan(self.machine, section.fabric, there, following.fabric)

    def _run(
        self, section: Section, there: tuple[Ahead, ...], following: Section | None, ahead: tuple[Ahead, ...]
    ) -> Ran:
        key = (id(section), there, id(following), ahead)
        if self.reuse and key in self._ran:
            return self._ran[key]
        fabric = section.fabric
        if there or ahead:
            behind = following.fabric if following is not None else None
            fabric = reading_ahead(self.machine, fabric, there, behind, ahead)
        ran = self._ran[key] = run_section(self.machine, fabric)
        return ran

    def _counts(self, ran: Iterable[tuple[MemoryCounts, int]], swaps: int) -> MemoryCounts:
        """The memory's counts of all sections and of the time between them."""
        if self._idle is None:
            self._idle = idle_memory(self.machine, int(self.machine.reconfigure))
        launches = [*ran, (self._idle, swaps)]
        commands: dict[str, int] = {}
        standby: dict[str, int] = {}
        for one, times in launches:
            for into, found in ((commands, one.commands), (standby, one.standby_ps)):
                for name, n in found.items():
                    into[name] = into.get(name, 0) + times * n

        def total(name: str) -> int:
            return sum(times * int(getattr(one, name)) for one, times in launches)

        busy = sum(times * one.channel_busy_ps[0] for one, times in launches if times)
        return MemoryCounts(
            commands=commands, standby_ps=standby, bytes_read=total("bytes_read"), bytes_written=total("bytes_written"),
            row_hits=total("row_hits"), row_misses=total("row_misses"), row_conflicts=total("row_conflicts"),
            channel_busy_ps=(busy,) * self.machine.memory.channels, bytes_forwarded=total("bytes_forwarded"),
            bytes_merged=total("bytes_merged"),
        )  # fmt: skip

    def _units(self, formats: set[str]) -> tuple[UnitRow, ...]:
        machine = self.machine
        tiles = machine.compute_tiles
        flops = max((machine.peak_flops_per_s(f) for f in formats if f in machine.formats), default=0.0)
        flops = flops or machine.peak_flops_per_s(machine.formats[0])
        port = float(machine.ports.count * machine.ports.bytes_per_cycle * machine.clock)
        sram = float(machine.memory_tiles.count * (tiles.lanes + tiles.stages) * machine.clock)
        return (
            UnitRow(COMPUTE, "array", tiles.count, flops, "flop"),
            UnitRow(VECTOR, "vector", tiles.count, float(machine.lanes * machine.clock), "vector"),
            UnitRow(STORE_TILES, "scratchpad", machine.memory_tiles.count, sram, "byte"),
            UnitRow(LOAD, "dma", machine.ports.count, port, "byte"),
            UnitRow(STORE, "dma", machine.ports.count, port, "byte"),
            UnitRow(CONFIGURE, "sync", 1, 0.0, "none"),
            UnitRow("memory", "memory", machine.memory.channels, machine.peak_bytes_per_s, "byte"),
        )


class _Tasks:
    """Columns of the tasks: one for each node of each section, as long as its firings take and ending with the last."""

    def __init__(self, machine: StreamMachine) -> None:
        self.machine = machine
        self.parts: list[NDArray[np.int64]] = []
        self.known: dict[int, tuple[Ran, NDArray[np.int64]]] = {}

    def configure(self, now: int, length: int, op: int) -> None:
        """The time before a section that differs from the one before."""
        self.parts.append(np.array([[now, now + length, UNITS.index(CONFIGURE), op] + [0] * len(COLUMNS)], np.int64))

    def section(self, now: int, ran: Ran, base: int, next_base: int) -> None:
        """The nodes of a section that begins at `now`; its operators, and the next one's, count from the bases."""
        found = self.known.get(id(ran))
        if found is None:
            rows = np.array(
                [
                    [end - busy, end, UNITS.index(node.unit), node.op, *(getattr(node.work, c) for c in COLUMNS)]
                    for node, end, busy in zip(ran.nodes, ran.ends_ps, ran.busy_ps, strict=True)
                ],
                np.int64,
            )
            found = self.known[id(ran)] = (ran, rows)
        moved = found[1].copy()
        moved[:, :2] += now
        moved[:, 3] += np.where([node.ahead for node in ran.nodes], next_base, base)
        self.parts.append(moved)

    def table(self) -> tuple[TaskTable, NDArray[np.int64], NDArray[np.int64]]:
        """(work of each task, its start, its end)."""
        rows = np.concatenate(self.parts) if self.parts else np.zeros((0, 4 + len(COLUMNS)), np.int64)
        start, end, unit, op, *work = (np.ascontiguousarray(column) for column in rows.T)
        by_name = dict(zip(COLUMNS, work, strict=True))
        none = np.zeros(len(rows), np.int64)
        table = TaskTable(
            unit=unit, op=op, macs=by_name["macs"], vector_ops=by_name["vector_ops"],
            sram_read_bytes=by_name["sram_read"], sram_write_bytes=by_name["sram_write"], accumulator_bytes=none,
            dram_read_bytes=by_name["dram_read"], dram_write_bytes=by_name["dram_write"], link_bytes=none,
        )  # fmt: skip
        return table, start, end


def _op_rows(block: Block, work: Pass, sections: list[Section]) -> list[OpRow]:
    decisions: dict[int, dict[str, str]] = {}
    for section in sections:
        decisions |= section.fabric.decisions
    return [_op_row(op, block.name, work, decisions.get(i, {})) for i, op in enumerate(block.ops)]


def _op_row(op: Op, block: str, work: Pass, decisions: dict[str, str]) -> OpRow:
    data = next(
        (t.format for t in op.inputs if t.role in (Role.ACTIVATION, Role.KV)), op.inputs[0].format if op.inputs else ""
    )
    zeros, told = plain_row(op)
    return OpRow(
        name=op.name, kind=op.kind.value, role=op.role, block=block, layer=0, pass_name=work.name, phase=work.phase,
        flops=op.flops, vector_ops=op.vector_ops, read_bytes=op.read_bytes, write_bytes=op.write_bytes, format=data,
        decisions={**decisions, **told}, zeros=zeros,
    )  # fmt: skip
