"""A machine known by its peak rates alone: each operator takes as long as its arithmetic or its bytes need at the peak.

A lower bound of time on a device whose units are not described: nothing is launched, nothing waits within an operator,
every tensor crosses the memory's bus once an operator, and no byte is refetched or kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from fractions import Fraction
from typing import Literal

import numpy as np
from pydantic import Field

from sim.errors import ConfigError
from sim.kinds import EXACT
from sim.links import Links
from sim.links.device import device_cost
from sim.machine import Chip, Machine, Positive
from sim.passes import MemoryCounts, OpRow, PassResult, Schedule, TaskTable, UnitRow
from sim.sparse.plain import plain_row
from sim.units import Bytes, Frequency
from workloads.trace import CollectiveAttrs, Op, OpKind, Pass, Role

COMPUTE, VECTOR, LINK, MEMORY = range(4)


class RooflineMachine(Machine):
    """Peak rates of a device, and the memory that its bytes come from."""

    kind: Literal["roofline"] = "roofline"
    clock: Frequency
    macs_per_cycle: dict[str, Positive] = Field(
        description="number format: multiply-accumulates of the whole device in a cycle", min_length=1
    )
    vector_ops_per_cycle: Positive = Field(description="scalar operations of the whole device in a cycle")
    cache: Bytes = Field(description="last-level cache, which an on-chip access pays for and which leaks")
    links: Links | None = Field(default=None, description="to other devices, for models that are cut over several")

    @property
    def formats(self) -> tuple[str, ...]:
        """Number formats with a peak rate."""
        return tuple(self.macs_per_cycle)

    def peak_flops_per_s(self, number_format: str) -> float:
        """FLOP/s in `number_format`."""
        return float(2 * self.macs_per_cycle[number_format] * self.clock)

    @property
    def chip(self) -> Chip:
        """The cache, and lanes as by the fastest format's rate."""
        return Chip(
            sram_access_bytes=int(self.cache),
            sram_bytes=int(self.cache),
            lanes=max(self.macs_per_cycle.values()),
            vector_lanes=self.vector_ops_per_cycle,
        )

    @property
    def compute(self) -> str:
        """The highest peak rate."""
        return f"{max(map(self.peak_flops_per_s, self.formats)) / 1e12:.0f} TFLOP/s"

    @property
    def interconnect_pj_per_bit(self) -> float:
        """Energy of a bit on the links to other devices."""
        return self.links.energy if self.links else 0.0


class RooflineEngine:
    """Runs passes on one such machine."""

    fidelity = EXACT

    def __init__(self, machine: RooflineMachine) -> None:
        self.machine = machine

    def run(self, work: Pass) -> PassResult:
        """The operators of a pass one after another. Raises ConfigError for formats and operators without a rate."""
        rows: list[OpRow] = []
        tasks: list[dict[str, int]] = []
        times: list[tuple[int, int]] = []
        now = 0
        for block in work.blocks:
            layer = [(_row(op, block.name, 0, work), self._tasks(op, f"{block.name}.{op.name}")) for op in block.ops]
            for number in range(block.repeat):
                for row, units in layer:
                    for task, length in units:
                        tasks.append({**task, "op": len(rows)})
                        times.append((now, now + length))
                    now += max(length for _, length in units)
                    rows.append(replace(row, layer=number))
        columns = {f.name: np.array([task.get(f.name, 0) for task in tasks], np.int64) for f in fields(TaskTable)}
        start, end = (np.array(column, np.int64) for column in zip(*times, strict=True))
        return PassResult(
            name=work.name, phase=work.phase, tokens=work.tokens, generated=work.generated, repeat=work.repeat,
            ops=tuple(rows), units=self._units({row.format for row in rows if row.flops}), tasks=TaskTable(**columns),
            schedule=Schedule(start, end, end, now, self._counts(columns, now)),
        )  # fmt: skip

    def _tasks(self, op: Op, key: str) -> list[tuple[dict[str, int], int]]:
        """What each unit does for an operator, and for how many picoseconds."""
        machine = self.machine
        read, write = op.read_bytes, op.write_bytes
        if op.kind is OpKind.TRANSFER or any(t.tier != "device" for t in (*op.inputs, *op.outputs)):
            raise ConfigError(
                f"operator {op.name} needs a further memory, but {machine.name} has none (tiers)", key=key
            )
        attrs = op.attrs
        if isinstance(attrs, CollectiveAttrs):
            if attrs.group > 1 and machine.links is None:
                raise ConfigError(
                    f"operator {op.name} is a {op.kind} over {attrs.group} devices, but {machine.name} is one device "
                    "and has no links to others (links)",
                    key=key,
                )
            if machine.links is None:
                return [({"unit": LINK}, 0)]
            cost = device_cost(machine.links, attrs)
            return [({"unit": LINK, "link_bytes": -int(-cost.sent // 1)}, cost.busy_ps + cost.tail_ps)]
        found = []
        if op.flops:
            data = _format(op)
            if data not in machine.macs_per_cycle:
                raise ConfigError(
                    f"number format {data} is asked for, but {machine.name} has a rate for "
                    f"{', '.join(machine.formats)} only",
                    key="macs_per_cycle",
                )
            found.append(
                ({"unit": COMPUTE, "macs": op.macs}, self._cycles(Fraction(op.macs, machine.macs_per_cycle[data])))
            )
        if op.vector_ops:
            length = self._cycles(Fraction(op.vector_ops, machine.vector_ops_per_cycle))
            found.append(({"unit": VECTOR, "vector_ops": op.vector_ops}, length))
        moved = {"dram_read_bytes": read, "dram_write_bytes": write, "sram_write_bytes": read, "sram_read_bytes": write}
        length = -int(-(read + write) * 10**12 // int(machine.peak_bytes_per_s))
        return [*found, ({"unit": MEMORY, **moved}, length)]

    def _cycles(self, cycles: Fraction) -> int:
        return -int(-cycles * 10**12 // self.machine.clock)

    def _units(self, formats: set[str]) -> tuple[UnitRow, ...]:
        machine = self.machine
        rates = [machine.peak_flops_per_s(f) for f in formats] or [machine.peak_flops_per_s(machine.formats[0])]
        link = float(machine.links.bandwidth) if machine.links else 0.0
        return (
            UnitRow("compute", "array", 1, max(rates), "flop"),
            UnitRow("vector", "vector", 1, float(machine.vector_ops_per_cycle * machine.clock), "vector"),
            UnitRow("interconnect", "interconnect", 1, link, "byte"),
            UnitRow("memory", "memory", machine.memory.channels, machine.peak_bytes_per_s, "byte"),
        )

    def _counts(self, columns: dict[str, np.ndarray], end_ps: int) -> MemoryCounts:
        """Whole bursts; each row that they fill is opened once; all ranks stand by with rows open."""
        memory, channels = self.machine.dram, self.machine.memory.channels
        read, write = int(columns["dram_read_bytes"].sum()), int(columns["dram_write_bytes"].sum())
        reads, writes = -(-read // memory.burst_bytes), -(-write // memory.burst_bytes)
        rows = -(-(reads + writes) // memory.organisation.columns)
        busy = (reads + writes) * int(memory.burst_ticks * memory.period) // memory.organisation.pseudo_channels
        ranks = memory.organisation.ranks * memory.organisation.pseudo_channels
        return MemoryCounts(
            commands={"ACT": rows, "PRE": rows, "RD": reads, "WR": writes},
            standby_ps={"active": end_ps * channels * ranks, "precharged": 0, "refresh": 0},
            bytes_read=reads * memory.burst_bytes,
            bytes_written=writes * memory.burst_bytes,
            row_hits=reads + writes - rows,
            row_misses=rows,
            row_conflicts=0,
            channel_busy_ps=(busy // channels,) * channels,
        )


def _format(op: Op) -> str:
    data: Sequence[str] = [t.format for t in op.inputs if t.role in (Role.ACTIVATION, Role.KV)]
    return data[0] if data else (op.inputs[0].format if op.inputs else "")


def _row(op: Op, block: str, layer: int, work: Pass) -> OpRow:
    zeros, told = plain_row(op)
    return OpRow(
        name=op.name, kind=op.kind.value, role=op.role, block=block, layer=layer, pass_name=work.name, phase=work.phase,
        flops=op.flops, vector_ops=op.vector_ops, read_bytes=op.read_bytes, write_bytes=op.write_bytes,
        format=_format(op), decisions={"collective": "ring"} if op.kind is OpKind.COLLECTIVE else told, zeros=zeros,
    )  # fmt: skip
