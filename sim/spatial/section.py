"""Runs one section: its graph on the streaming kernel, its streams on one memory channel that stands for all."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sim.execute import COMMANDS
from sim.kernels import dram_tables as at
from sim.kernels import stream_tables
from sim.kernels.dram import settle, standby
from sim.kernels.machine import to_ps, to_tick
from sim.passes import MemoryCounts
from sim.spatial.fabric import Fabric, Node
from sim.spatial.machine import StreamMachine
from sim.standards import Memory, compile_memory, new_state
from sim.stream.engine import Run
from sim.stream.memory import drain
from sim.stream.schema import read_graph
from sim.units import cycles_to_ps


@dataclass(frozen=True)
class Ran:
    """A section that has run: its length, and for each node when its last firing ended and how long all of them took
    (picoseconds from the start of the section).
    """

    nodes: tuple[Node, ...]
    end_ps: int
    ends_ps: tuple[int, ...]
    busy_ps: tuple[int, ...]
    memory: MemoryCounts
    cycles: int
    events: int


def run_section(machine: StreamMachine, fabric: Fabric) -> Ran:
    """Run a settled section from an idle fabric and an idle memory, to its last token and its last byte."""
    run = Run(read_graph(fabric.graph()))
    run.go_on()
    stuck = run.stuck()
    if stuck:
        waits = [run.wait_of(*entry) for entry in stuck]
        told = "; ".join(f"{w.node} on {w.channel}, {w.state} with {w.occupancy}" for w in waits)
        raise RuntimeError(f"a section stands still: {told}")
    times = dict(zip(run.compiled.nodes, run.compiled.streams.node[:, stream_tables.TIME].tolist(), strict=True))
    clock = int(machine.clock)
    end_ps = cycles_to_ps(max(times.values()), clock)
    nodes = tuple(fabric.nodes.values())
    assert run.attached is not None
    period = machine.dram.period
    drain(run.attached)
    last = int(run.attached.state.scalar[0, at.LAST_END])
    end_ps = max(end_ps, int(to_ps(last, period.numerator, period.denominator)))
    ends = tuple(cycles_to_ps(times[n.name], clock) for n in nodes)
    busy = tuple(min(cycles_to_ps(n.fires * n.ii, clock), end) for n, end in zip(nodes, ends, strict=True))
    counts = _counts(machine, run.attached.tables, run.attached.state, end_ps)
    events = int(run.compiled.streams.channel[:, [stream_tables.ENQ, stream_tables.DEQ]].sum())
    return Ran(nodes, end_ps, ends, busy, counts, max(times.values()), events)


def idle_memory(machine: StreamMachine, time_ps: int) -> MemoryCounts:
    """What the memory does in `time_ps` without a request: it refreshes."""
    tables = compile_memory(machine.dram)
    return _counts(machine, tables, new_state(tables, 1, 64), time_ps)


def _counts(machine: StreamMachine, tables: at.DramTables, state: at.ChannelState, end_ps: int) -> MemoryCounts:
    """Counters of the channel up to `end_ps`, times the channels of the machine."""
    memory: Memory = machine.dram
    channels = machine.memory.channels
    num, den = memory.period.numerator, memory.period.denominator
    tick = int(to_tick(end_ps, num, den))
    settle(tables, state, 0, tick)
    times = np.array(standby(tables, state, 0, tick), np.int64)
    counts = state.count[0] * channels
    return MemoryCounts(
        commands={name: int(counts[row]) for name, row in COMMANDS.items() if counts[row]},
        standby_ps={
            name: int(n) * channels * num // den for name, n in zip(memory.standby_states, times, strict=False)
        },
        bytes_read=int(counts[at.RD]) * memory.burst_bytes,
        bytes_written=int(counts[at.WR]) * memory.burst_bytes,
        row_hits=int(counts[at.HITS]),
        row_misses=int(counts[at.MISSES]),
        row_conflicts=int(counts[at.CONFLICTS]),
        channel_busy_ps=(int(state.count[0, at.BUSY]) * num // den,) * channels,
        bytes_forwarded=int(counts[at.FORWARDED]) * memory.burst_bytes,
        bytes_merged=int(counts[at.ABSORBED]) * memory.burst_bytes,
    )

