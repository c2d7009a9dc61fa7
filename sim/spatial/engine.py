"""Simulates a pass on a streaming machine: section after section, each from an idle fabric and an idle memory.

Equal sections (of equal layers, or parts of one product) have one result and are simulated once; `reuse=False` runs
every one, with the same result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sim.passes import MemoryCounts, OpRow, PassResult, Schedule, TaskTable, UnitRow
from sim.sparse.plain import plain_row
from sim.spatial.fabric import COMPUTE, LOAD, STORE, STORE_TILES, VECTOR
from sim.spatial.machine import StreamMachine
from sim.spatial.mapper import Section, sections_of
from sim.spatial.section import Ran, idle_memory, run_section
from sim.spatial.shapes import exposed
from workloads.trace import Block, Op, Pass, Role

CONFIGURE = "configuration"
UNITS = (COMPUTE, VECTOR, STORE_TILES, LOAD, STORE, CONFIGURE)
COLUMNS = ("macs", "vector_ops", "sram_read", "sram_write", "dram_read", "dram_write")


class StreamEngine:
    """One streaming machine and what was found out about it."""

    def __init__(self, machine: StreamMachine, *, reuse: bool = True) -> None:
        self.machine, self.reuse = machine, reuse
        self._sections: dict[tuple[Block, frozenset[str]], list[Section]] = {}
        self._ran: dict[int, Ran] = {}
        self._idle: MemoryCounts | None = None

    def run(self, work: Pass) -> PassResult:
        """Simulate one pass. Raises ConfigError for what the machine has no unit for, or what fits no section."""
        tasks = _Tasks(self.machine)
        ops: list[OpRow] = []
        now = 0
        configured: Section | None = None
        counts: dict[int, tuple[MemoryCounts, int]] = {}
        swaps = 0
        for block in work.blocks:
            sections = self._cut(block, work)
            rows = _op_rows(block, work, sections)
            for layer in range(block.repeat):
                base = len(ops)
                ops += [replace(row, layer=layer) for row in rows]
                for section in sections:
                    if section is not configured:
                        tasks.configure(now, int(self.machine.reconfigure), base + section.plan.first)
                        now += int(self.machine.reconfigure)
                        configured = section
                        swaps += 1
                    now += int(self.machine.software.launch)
                    ran = self._run(section)
                    tasks.section(now, ran, base)
                    now += ran.end_ps
                    counts[id(ran)] = (ran.memory, counts.get(id(ran), (ran.memory, 0))[1] + 1)
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
            self._sections[key] = sections_of(self.machine, block, outside)
        return self._sections[key]

    def _run(self, section: Section) -> Ran:
        if not self.reuse:
            return run_section(self.machine, section.fabric)
        if id(section) not in self._ran:
            self._ran[id(section)] = run_section(self.machine, section.fabric)
        return self._ran[id(section)]

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
        self.known: dict[int, NDArray[np.int64]] = {}

    def configure(self, now: int, length: int, op: int) -> None:
        """The time before a section that differs from the one before."""
        self.parts.append(np.array([[now, now + length, UNITS.index(CONFIGURE), op] + [0] * len(COLUMNS)], np.int64))

    def section(self, now: int, ran: Ran, base: int) -> None:
        """The nodes of a section that begins at `now`; its operators are counted from `base`."""
        rows = self.known.get(id(ran))
        if rows is None:
            rows = np.array(
                [
                    [end - busy, end, UNITS.index(node.unit), node.op, *(getattr(node.work, c) for c in COLUMNS)]
                    for node, end, busy in zip(ran.nodes, ran.ends_ps, ran.busy_ps, strict=True)
                ],
                np.int64,
            )
            self.known[id(ran)] = rows
        shift = np.zeros(rows.shape[1], np.int64)
        shift[:2], shift[3] = now, base
        self.parts.append(rows + shift)

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
