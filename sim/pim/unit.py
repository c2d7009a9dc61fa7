"""Behind `opcycle unit pim`: one operator on the PIM units of a machine, alone, as cycles, counts and energy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.errors import ConfigError
from sim.passes import MemoryCounts
from sim.pim.schema import PIM_COMMANDS
from sim.pim.shapes import Kernel, check_rows, jobs_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from sim.kernels.dram_tables import ChannelState
    from sim.pim.jobs import Ints
    from sim.standards import Memory


def run(
    hardware: str | Path,
    kernel: Kernel,
    rows: int,
    cols: int,
    batch: int = 1,
    heads: int = 1,
    start: int = 0,
    overrides: dict[str, Any] | None = None,
    check: bool = True,
    plain: bool = False,
    before: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """What `opcycle unit pim --json` prints. `start`: clock at which it begins, which decides when refreshes fall due.

    plain: also the time that ordinary reads of the operands and writes of the results take. Raises ConfigError for a
    machine without PIM units, and for operands that have no layout in it.
    """
    from sim.dram_energy import dram_rows
    from sim.kinds import load_hardware

    machine = load_hardware(hardware, overrides)
    memory, channels = machine.dram, machine.memory.channels
    try:
        kinds = jobs_of(memory, channels, kernel, rows, cols, batch, heads)
        for jobs in kinds:
            check_rows(memory, jobs)
    except ConfigError as error:
        raise ConfigError(error.message, file=f"memory {memory.name} of {hardware}", key=error.key) from None
    if before is not None:
        before()
    weight = _weights(memory, kernel, channels, rows, heads, len(kinds))
    end, violations = 0, 0
    parts = []
    for jobs in kinds:
        done, state, broken = _run(memory, jobs, start, check)
        violations += broken
        end = max(end, done)
        parts.append(state)
    counts = _counts(memory, parts, weight, channels, start, end)
    ticks = end - start
    own = memory.pim
    assert own is not None
    shown = {own.name_of(name): n for name, n in counts.commands.items() if n}
    accounts = dram_rows(memory, counts)
    result: dict[str, Any] = {
        "cycles": -(-ticks // memory.clock_ticks),
        "time_ns": float(ticks * memory.period / 1000),
        "commands": shown,
        "energy_pj": {row.subcomponent: row.count * row.pj_each for row in accounts if row.count},
        "violations": violations if check else None,
        "channels": channels,
        "macs": _macs(kernel, rows, cols, batch, heads),
        "mode": own.mode.value,
    }
    if plain:
        result["plain_cycles"] = plain_cycles(memory, channels, kernel, rows, cols, batch, heads)
        result["speedup"] = result["plain_cycles"] / result["cycles"]
    return result


def _macs(kernel: Kernel, rows: int, cols: int, batch: int, heads: int) -> int:
    return {Kernel.GEMV: rows * cols * batch, Kernel.ATTENTION: 2 * rows * cols * batch * heads}.get(kernel, 0)


def _weights(memory: Memory, kernel: Kernel, channels: int, rows: int, heads: int, kinds: int) -> list[int]:
    """Channels of each kind; those without work stand still and are in none."""
    total = heads if kernel is Kernel.ATTENTION else rows
    pim = memory.pim
    assert pim is not None
    if kernel not in (Kernel.ATTENTION, Kernel.GEMV) or (kernel is Kernel.GEMV and pim.lanes > 1):
        return [channels]
    if kinds == 1:
        return [channels if total % channels == 0 else total]
    return [total % channels, channels - total % channels]


def _run(memory: Memory, jobs: Ints, start: int, check: bool) -> tuple[int, ChannelState, int]:
    """(end, state, violations) of one channel."""
    from sim.dram_check import check_log
    from sim.kernels import dram_tables as d
    from sim.kernels import pim_tables as k
    from sim.pim.jobs import run_jobs
    from sim.standards import compile_memory, new_state

    tables = compile_memory(memory, steady=False)
    state = new_state(tables, 1, ring=1, jobs=len(jobs))
    done = run_jobs(memory, jobs, start, state)
    if not check:
        return int(done.max()), state, 0
    commands = int(state.count[0, : d.N_COMMANDS].sum() + state.pim[0, k.COUNTS : k.COUNTS + k.N_PIM].sum())
    logged = new_state(tables, 1, ring=1, jobs=len(jobs), log=2 * commands + 64)
    again = run_jobs(memory, jobs, start, logged)
    assert np.array_equal(done, again)
    found = check_log(memory, logged.log[0, : logged.scalar[0, d.LOGGED]])
    return int(done.max()), state, found.count


def _counts(
    memory: Memory, states: list[ChannelState], weight: list[int], channels: int, start: int, end: int
) -> MemoryCounts:
    """Counts of all channels from `start` to `end`, or until the last rows are closed and refreshes over."""
    from sim.kernels import dram_tables as d
    from sim.kernels import pim_tables as k
    from sim.kernels.dram import settle, standby
    from sim.standards import compile_memory, new_state

    tables = compile_memory(memory, steady=False)
    before = new_state(tables, 1, ring=1)
    settle(tables, before, np.int64(0), np.int64(start))
    end = max(end, *(int(state.rank[0, d.SINCE].max()) for state in states))
    idle = new_state(tables, 1, ring=1)
    spent = np.zeros(4, np.int64)
    counts = np.zeros(d.N_COUNTS, np.int64)
    own = np.zeros(k.N_PIM, np.int64)
    for state, n in zip((*states, idle), (*weight, channels - sum(weight)), strict=True):
        settle(tables, state, np.int64(0), np.int64(end))
        now = np.array(standby(tables, state, np.int64(0), np.int64(end)), np.int64)
        spent += n * (now - np.array(standby(tables, before, np.int64(0), np.int64(start)), np.int64))
        counts += n * (state.count[0] - before.count[0])
        own += n * state.pim[0, k.COUNTS : k.COUNTS + k.N_PIM]
    names = {"ACT": d.ACT, "PRE": d.PRE, "RD": d.RD, "WR": d.WR, "PREA": d.PREA, "REFab": d.REF}
    commands = {name: int(counts[at]) for name, at in names.items()}
    commands |= {name: int(n) for name, n in zip(PIM_COMMANDS, own, strict=True)}
    period = memory.period
    return MemoryCounts(
        commands=commands,
        standby_ps={name: int(int(n) * period) for name, n in zip(memory.standby_states, spent, strict=False)},
        bytes_read=commands["RD"] * memory.burst_bytes,
        bytes_written=commands["WR"] * memory.burst_bytes,
        row_hits=int(counts[d.HITS]),
        row_misses=int(counts[d.MISSES]),
        row_conflicts=int(counts[d.CONFLICTS]),
    )


def plain_cycles(memory: Memory, channels: int, kernel: Kernel, rows: int, cols: int, batch: int, heads: int) -> int:
    """Clocks in which ordinary reads bring all operands and ordinary writes then take the results, evenly spread."""
    from sim.kernels import dram_tables as d
    from sim.kernels.dram import advance, push
    from sim.standards import compile_memory, new_state

    element = memory.pim.element if memory.pim else 2
    one = rows * cols * element
    reads, writes = {
        Kernel.GEMV: (one + batch * cols * element, batch * rows * element),
        Kernel.ATTENTION: (batch * heads * (2 * one + cols * element), batch * heads * cols * element),
        Kernel.RELU: (one * batch, one * batch),
    }.get(kernel, (2 * one * batch, one * batch))
    tables = compile_memory(memory.model_copy(update={"pim": None}))
    state = new_state(tables, 1, ring=4)
    zero, tick, first = np.int64(0), 0, 0
    for is_write, size in ((0, reads), (1, writes)):
        bursts = -(-size // (memory.burst_bytes * channels))
        if first + bursts > memory.bursts_per_channel:
            text = f"operands of {reads} B and results of {writes} B do not fit"
            raise ConfigError(text, file=f"memory {memory.name}")
        push(tables, state, zero, np.int64(first), np.int64(bursts), np.int64(is_write), zero, np.int64(tick))
        first += bursts
        while advance(tables, state, zero, np.int64(d.NEVER)) < d.NEVER:
            state.done_count[0] = 0
        state.done_count[0] = 0
        tick = int(state.scalar[0, d.LAST_END])
    return -(-tick // memory.clock_ticks)
