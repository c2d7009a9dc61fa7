"""Runs a linked Program on the executor and reads the Schedule and the memory's counts out of its arrays."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from sim.kernels import dram_tables as at
from sim.kernels import pim_tables
from sim.kernels.dram import advance, settle, standby
from sim.kernels.machine import run, to_ps, to_tick
from sim.kernels.program import NEVER, Result
from sim.lower.link import Linked
from sim.passes import MemoryCounts, Schedule
from sim.pim.schema import PIM_COMMANDS
from sim.standards import Memory, compile_memory, new_state

COMMANDS = {
    "ACT": at.ACT, "PRE": at.PRE, "RD": at.RD, "WR": at.WR, "PREA": at.PREA, "REFab": at.REF, "REFpb": at.REFB,
    "REFsb": at.REFS,
}  # fmt: skip


_LAST: dict[tuple[str, bool], tuple[at.DramTables, at.ChannelState]] = {}
"""The memory used last, compiled, and channels with what the steady-state shortcut knows; taken out while in use."""


def execute(linked: Linked, memory: Memory, steady: bool = True) -> Schedule:
    """Run `linked` from an idle machine with a fresh memory. Raises RuntimeError that names a task if the waits form a
    cycle.
    """
    program = linked.program
    tasks = program.unit.shape[0]
    classes = program.seg_ptr.shape[0]
    key = (memory.content, steady)
    t, known = _LAST.pop(key, (None, None))
    if t is None:
        t = compile_memory(memory, steady=steady)
    period = memory.period
    num, den = period.numerator, period.denominator
    ring, done = linked.ring, -1
    while done < 0:
        result = Result(*(np.full(tasks, -1, np.int64) for _ in range(3)))
        state = new_state(t, classes, ring, jobs=max(linked.pim_ring, 1), known=known)
        done = run(program, result, t, state, num, den)
        # Too many others, of few bursts, overtook one segment; its place is free only when all of it is served.
        ring *= 4
    if done < tasks:
        stuck = int(np.flatnonzero(result.finish < 0)[0])
        raise RuntimeError(f"only {done} of {tasks} tasks could run; task {stuck} waits for one that never ends")
    end = int(result.finish.max(initial=0))
    for c in range(classes):
        advance(t, state, c, NEVER)
        end = max(end, int(to_ps(state.scalar[c, at.LAST_END], num, den)))
    counts = _counts(linked, memory, t, state, end, period)
    _LAST.clear()
    _LAST[key] = t, state
    return Schedule(
        start_ps=result.start,
        release_ps=result.release,
        finish_ps=result.finish,
        makespan_ps=end,
        memory=counts,
    )


def _counts(
    linked: Linked, memory: Memory, t: at.DramTables, state: at.ChannelState, end_ps: int, period: Fraction
) -> MemoryCounts:
    """Counters of each class, times the channels that it stands for."""
    tick = int(to_tick(end_ps, period.numerator, period.denominator))
    times = np.zeros(4, np.int64)
    for c in range(linked.weight.shape[0]):
        settle(t, state, c, tick)
        times += np.array(standby(t, state, c, tick), np.int64) * linked.weight[c]
    counts = linked.weight @ state.count
    picoseconds = [int(n) * period.numerator // period.denominator for n in times]
    # A channel whose pseudo-channels have data buses of their own is as busy as these are on average.
    share = period / memory.organisation.pseudo_channels
    busy = [int(n) * share.numerator // share.denominator for n in state.count[:, at.BUSY]]
    commands = {name: int(counts[row]) for name, row in COMMANDS.items() if counts[row]}
    in_memory: tuple[int, ...] = ()
    if memory.pim is not None:
        own = linked.weight @ state.pim[:, pim_tables.COUNTS : pim_tables.COUNTS + pim_tables.N_PIM]
        commands |= {name: int(n) for name, n in zip(PIM_COMMANDS, own, strict=True) if n}
        worked = [int(n) * period.numerator // period.denominator for n in state.pim[:, pim_tables.BUSY_TICKS]]
        in_memory = tuple(worked[c] for c in linked.channels)
    return MemoryCounts(
        commands=commands,
        standby_ps=dict(zip(memory.standby_states, picoseconds, strict=False)),
        bytes_read=int(counts[at.RD]) * memory.burst_bytes,
        bytes_written=int(counts[at.WR]) * memory.burst_bytes,
        row_hits=int(counts[at.HITS]),
        row_misses=int(counts[at.MISSES]),
        row_conflicts=int(counts[at.CONFLICTS]),
        channel_busy_ps=tuple(busy[c] for c in linked.channels),
        bytes_forwarded=int(counts[at.FORWARDED]) * memory.burst_bytes,
        bytes_merged=int(counts[at.ABSORBED]) * memory.burst_bytes,
        pim_busy_ps=in_memory,
    )
