"""Jobs of the PIM units as rows of integers: how many instructions they take, and how long, apart from refreshes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.kernels import dram_tables as d
from sim.kernels import pim_tables as k
from sim.pim.schema import template_steps

if TYPE_CHECKING:
    from sim.standards import Memory

Ints = NDArray[np.int64]

PACE_TILES = 4  # tiles of the job by which a pace is measured


def job(
    memory: Memory, kernel: str, *, loads: int = 0, tiles: int = 1, groups: int = 1, dots: int = 1, row: int = 0,
    step: int = 1, side: int = 0, moves_out: int = 0, moves_in: int = 0, load_bank: int = 0, load_row: int = 0,
) -> list[int]:  # fmt: skip
    """One job as a row of columns (see `kernels.pim_tables`). Raises ValueError for an unknown kernel."""
    assert memory.pim is not None
    number = memory.pim.kernel_number(kernel)
    return [number, loads, tiles, groups, dots, row, step, side, moves_out, moves_in, load_bank, load_row]


def as_table(jobs: Iterable[list[int]]) -> Ints:
    """Rows of jobs as the table that a Program carries: int64[jobs, JOB_FIELDS]."""
    return np.array(list(jobs), np.int64).reshape(-1, k.JOB_FIELDS)


def reads_out(memory: Memory) -> bool:
    """Whether tiles of the kernel gemv read their results; where they do not, moves bring them out of the units."""
    assert memory.pim is not None
    return any(step[0] in ("READRES", "COMPS_READRES") for step in memory.pim.kernels["gemv"].tile)


def moves(memory: Memory, results: int) -> int:
    """Moves that bring results out of the units' buffers, a burst of each pseudo-channel at a time."""
    assert memory.pim is not None
    per_move = memory.burst_bytes // memory.pim.element * memory.organisation.pseudo_channels
    return -(-results // per_move)


def instructions(memory: Memory, jobs: Ints) -> Ints:
    """Instructions of each job that a processor issues: headers, loads, steps, read-outs. int64[jobs]."""
    pim = memory.pim
    assert pim is not None
    result = jobs[:, k.MOVES_OUT] + jobs[:, k.MOVES_IN] + jobs[:, k.TILES] * int(pim.header)
    for number, name in enumerate(pim.kernels):
        mine = jobs[:, k.KERNEL] == number
        for steps, times in zip(
            template_steps(memory, name), (jobs[:, k.LOADS], jobs[:, k.TILES] * jobs[:, k.GROUPS]), strict=True
        ):
            for step in steps:
                composite = step.command == "COMPS_READRES"
                count = 1 if composite else jobs[:, k.DOTS] if step.times is None else step.times
                result = result + mine * times * count
    return result


def job_ticks(memory: Memory, jobs: Ints) -> Ints:
    """Ticks of each job after another like it, without refreshes and other traffic: int64[jobs].

    Found by running jobs of each kind that occurs on one channel: loads, results and dots as they are, tiles in
    proportion. Good enough for balancing; what a job takes in company only the simulation says.
    """
    key = memory.model_dump_json(by_alias=True)
    _KNOWN[key] = memory
    kinds, place = np.unique(jobs[:, [k.KERNEL, k.LOADS, k.GROUPS, k.DOTS, k.SIDE]], axis=0, return_inverse=True)
    paces = np.array([_pace(key, *(int(n) for n in kind)) for kind in kinds], np.int64).reshape(-1, 2)
    first, each = paces[:, 0], paces[:, 1]
    place = place.reshape(-1)
    further: Ints = np.maximum(0, jobs[:, k.TILES] - 1)
    ticks: Ints = first[place] + further * each[place]
    return ticks


_KNOWN: dict[str, Memory] = {}


@lru_cache(maxsize=4096)
def _pace(key: str, kernel: int, loads: int, groups: int, dots: int, side: int) -> tuple[int, int]:
    """(ticks of a job of one tile, ticks of each further tile)."""
    from sim.standards import Refresh

    memory = _KNOWN[key].model_copy(update={"refresh": Refresh.NONE})
    ends = []
    for tiles in (1, PACE_TILES):
        rows = [[kernel, loads, tiles, groups, dots, 1 + n * tiles, 1, side, 0, 0, 0, 0] for n in range(3)]
        ends.append(np.diff(run_jobs(memory, as_table(rows)))[-1])
    each = max(0, int(ends[1] - ends[0])) // (PACE_TILES - 1)
    return int(ends[0]), each


def run_jobs(memory: Memory, jobs: Ints, start: int = 0, state: d.ChannelState | None = None) -> Ints:
    """Run jobs one after another on an idle channel from tick `start` on; return when each is done: int64[jobs].

    `state` may be given to look at afterwards: of one class, with room for all jobs.
    """
    from sim.kernels.dram import advance, settle
    from sim.kernels.pim import push_pim
    from sim.standards import compile_memory, new_state

    tables = compile_memory(memory, steady=False)
    state = state or new_state(tables, 1, ring=1, jobs=len(jobs))
    if start:
        settle(tables, state, np.int64(0), np.int64(start))
    zero = np.int64(0)
    for n in range(len(jobs)):
        push_pim(tables, state, zero, jobs, np.int64(n), np.int64(n), np.int64(start))
    done = np.zeros(len(jobs), np.int64)
    while True:
        following = advance(tables, state, zero, np.int64(d.NEVER))
        count = state.done_count[0]
        done[state.done_task[0, :count]] = state.done_tick[0, :count]
        state.done_count[0] = 0
        if following >= d.NEVER:
            return done
