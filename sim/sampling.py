"""The opt-in approximation of long runs: equal layers in a row and channels that carry nearly the same stand for each
other.

Of equal layers a few are simulated. They are not quite alike in time, as refreshes fall differently into each; what is
taken from the second for each that is left out is its length, from the end of the layer before to its own, and its
tasks, moved by it. Of the channels one is simulated, to which each task gives the most that it gives to any.
Bursts are counted exactly; rows opened and hit are taken to go with bursts, refreshes and standby with time.
docs/sweep.md says how far this is from simulating everything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from sim.lower.link import Linked
from sim.passes import MemoryCounts, OpRow, PassResult, Schedule, TaskTable
from sim.standards import Memory
from workloads.trace import Pass

Ints = NDArray[np.int64]

SIMULATED_LAYERS = 2
"""Of equal layers in a row: the first starts cold, the second shows what each further one adds. On several cores there
is one more, as the last may be slowed down by cores that load for what comes after it."""

WITH_BURSTS = ("ACT", "PRE", "PREA")
"""Commands that go with bursts; all others but reads and writes, which are counted, go with time."""


@dataclass(frozen=True, slots=True)
class Run:
    """Equal layers in a row as they were lowered: tasks and operators of one, how many there are."""

    tasks: int
    ops: int
    layers: int


def shortened(work: Pass, cores: int) -> Pass:
    """`work` with only the simulated ones of equal layers in a row; the same object where there are no more."""
    most = SIMULATED_LAYERS + (cores > 1)
    if all(block.repeat <= most for block in work.blocks):
        return work
    return replace(work, blocks=tuple(replace(block, repeat=min(block.repeat, most)) for block in work.blocks))


def one_channel(linked: Linked) -> Linked:
    """`linked` with one class of channels, of which each task concerns that of the classes which it gives the most."""
    program = linked.program
    if program.seg_ptr.shape[0] == 1:
        return linked
    most = _bursts(linked).argmax(0)
    tasks = np.arange(len(most))
    first, last = program.seg_ptr[most, tasks], program.seg_ptr[most, tasks + 1]
    count = last - first
    ptr = np.concatenate(([0], np.cumsum(count)))
    chosen = np.arange(ptr[-1]) + np.repeat(first - ptr[:-1], count)
    return replace(
        linked,
        program=program._replace(seg_ptr=ptr[None, :], seg_lo=program.seg_lo[chosen], seg_n=program.seg_n[chosen]),
        channels=np.zeros_like(linked.channels),
        weight=linked.weight.sum(keepdims=True),
    )


def _bursts(linked: Linked) -> Ints:
    """Bursts of each class of channels and memory task."""
    program = linked.program
    ends = np.concatenate(([0], np.cumsum(program.seg_n)))
    bursts: Ints = ends[program.seg_ptr[:, 1:]] - ends[program.seg_ptr[:, :-1]]
    return bursts


def extended(work: Pass, result: PassResult, runs: Sequence[Run], linked: Linked, memory: Memory) -> PassResult:
    """The result of `work` from the `result` of the shortened pass on `one_channel`.

    `runs`: how its blocks were lowered; `linked`: what all channels were to do.
    """
    index: list[Ints] = []
    shift: list[Ints] = []
    op_shift: list[Ints] = []
    ops: list[OpRow] = []
    first_task = first_op = later_ps = later_ops = 0
    finish = result.schedule.finish_ps
    for block, run in zip(work.blocks, runs, strict=True):
        for layer in range(run.layers):
            tasks = np.arange(first_task, first_task + run.tasks)
            rows = result.ops[first_op : first_op + run.ops]
            more = block.repeat - run.layers if layer == 1 else 0
            each_ps = int(finish[tasks].max() - finish[tasks - run.tasks].max()) if more else 0
            numbers = np.arange(more + 1)[:, None]
            index.append(np.tile(tasks, more + 1))
            shift.append((later_ps + numbers * each_ps + np.zeros_like(tasks)).ravel())
            op_shift.append((later_ops + numbers * run.ops + np.zeros_like(tasks)).ravel())
            before = block.repeat - run.layers if layer > 1 else 0
            ops.extend(replace(row, layer=row.layer + before + k) for k in range(more + 1) for row in rows)
            later_ps += more * each_ps
            later_ops += more * run.ops
            first_task += run.tasks
            first_op += run.ops
    at, moved = np.concatenate(index), np.concatenate(shift)
    table = {f.name: getattr(result.tasks, f.name)[at] for f in fields(TaskTable)}
    table["op"] = table["op"] + np.concatenate(op_shift)
    was = result.schedule
    end_ps = was.makespan_ps + later_ps
    times = np.bincount(at, minlength=len(finish))
    return replace(
        result,
        ops=tuple(ops),
        tasks=TaskTable(**table),
        schedule=Schedule(
            was.start_ps[at] + moved, was.release_ps[at] + moved, finish[at] + moved, end_ps,
            _counts(was.memory, linked, memory, times, was.makespan_ps, end_ps),
        ),
    )  # fmt: skip


def _counts(was: MemoryCounts, linked: Linked, memory: Memory, times: Ints, was_ps: int, end_ps: int) -> MemoryCounts:
    """Counts of the memory when task i runs times[i] times and the pass takes `end_ps`, not `was_ps`, on all channels.

    `was`: of the one channel that stood for all.
    """
    program = linked.program
    of_task = program.memory[program.memory >= 0]
    often = np.empty(len(of_task), np.int64)
    often[of_task] = times[program.memory >= 0]
    bursts, weight, size = _bursts(linked), linked.weight, memory.burst_bytes
    simulated = int(bursts.max(0).sum()) * int(weight.sum())
    carried = bursts @ often
    grown = float(weight @ carried) / max(simulated, 1)
    longer = end_ps / max(was_ps, 1)

    def scaled(number: int, factor: float) -> int:
        return round(number * factor)

    writes = program.write == 1
    forwarded, merged = scaled(was.bytes_forwarded, grown), scaled(was.bytes_merged, grown)
    forwarded, merged = forwarded // size * size, merged // size * size
    read = int(weight @ (bursts[:, ~writes] @ often[~writes])) * size - forwarded
    written = int(weight @ (bursts[:, writes] @ often[writes])) * size - merged
    counted = {"RD": read // size, "WR": written // size}
    commands = {
        name: counted[name] if name in counted else scaled(n, grown if name in WITH_BURSTS else longer)
        for name, n in was.commands.items()
    }
    share = len(linked.channels) / max(simulated, 1)
    busy = tuple(
        scaled(ps, share * int(carried[c])) for ps, c in zip(was.channel_busy_ps, linked.channels, strict=True)
    )
    return replace(
        was,
        commands=commands,
        standby_ps={state: scaled(ps, longer) for state, ps in was.standby_ps.items()},
        bytes_read=read,
        bytes_written=written,
        row_hits=scaled(was.row_hits, grown),
        row_misses=scaled(was.row_misses, grown),
        row_conflicts=scaled(was.row_conflicts, grown),
        channel_busy_ps=busy,
        bytes_forwarded=forwarded,
        bytes_merged=merged,
    )
