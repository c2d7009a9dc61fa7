"""Joins block templates and their repetitions into one Program: numbers tasks, places DRAM spaces, groups alike
channels.

Repetition k of a block is repetition 0 with task numbers and addresses moved by constants. Channels whose segments are
the same, number for number, form one class that the executor runs once (`symmetry=False` gives every channel a class of
its own; a test shows that the results are equal).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, fields
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from sim.kernels.pim_tables import JOB_FIELDS
from sim.kernels.program import Program
from sim.lower.builder import UNLIMITED, Space, Template, Work
from sim.passes import TaskTable
from sim.standards import Memory, split_range

Ints = NDArray[np.int64]

WORK = tuple(f.name for f in fields(Work))
"""Amounts of work of a task, in the order of `Work`."""
_WORK_OF = attrgetter(*WORK)


@dataclass(frozen=True)
class Linked:
    """A Program and what the report joins to it. `op` numbers operators over all repetitions, block by block."""

    program: Program
    op: Ints
    work: dict[str, Ints]
    dram_read_bytes: Ints
    dram_write_bytes: Ints
    channels: Ints  # class of each real channel
    weight: Ints  # real channels of each class
    ring: int  # segments that one class is rarely given more of at once
    pim_ring: int = 0  # most PIM jobs

    def table(self) -> TaskTable:
        """The columns that the report joins to the schedule."""
        w = self.work
        return TaskTable(
            unit=self.program.unit.astype(np.int64),
            op=self.op,
            macs=w["macs"],
            vector_ops=w["vector_ops"],
            sram_read_bytes=w["sram_read"],
            sram_write_bytes=w["sram_write"],
            accumulator_bytes=w["accumulator"],
            link_bytes=w["link"],
            pim_macs=w["pim_macs"],
            dram_read_bytes=self.dram_read_bytes,
            dram_write_bytes=self.dram_write_bytes,
        )


def link(
    templates: Sequence[tuple[Template, int, int]],
    memory: Memory,
    channels: int,
    units: Sequence[tuple[int, int]],
    write_units: frozenset[int],
    symmetry: bool = True,
    group_of_channel: Ints | None = None,
) -> Linked:
    """Build the Program of `templates`, a list of (template, repetitions, operators in it).

    `units`: tasks at once and window in bytes of each unit; `write_units`: the units whose memory tasks write;
    `group_of_channel`: for tasks that concern groups of channels, which group each channel is in (-1: none).
    """
    before: list[Ints] = []
    after: list[Ints] = []
    columns: dict[str, list[Ints]] = {name: [] for name in ("unit", "ticks", "tail", "cold", "op", "moved")}
    work: dict[str, list[Ints]] = {name: [] for name in WORK}
    seg_task: list[Ints] = []
    seg_start: list[Ints] = []
    seg_bytes: list[Ints] = []
    local = _Local([], [], [])
    jobs = _Local([], [], [])
    align = channels * memory.interleave_bytes
    activations = max((t.sizes[Space.ACTIVATION] for t, _, _ in templates), default=0)
    base = -(-activations // align) * align
    place: dict[int, list[tuple[int, int, int]]] = {}
    tasks = ops = 0
    last = -1
    for template, repeat, op_count in templates:
        t = _Columns(template)
        numbers = np.arange(repeat, dtype=np.int64)[:, None]
        shift = tasks + numbers * t.tasks
        for name in ("unit", "ticks", "tail", "cold", "moved"):
            columns[name].append(np.tile(getattr(t, name), repeat))
        columns["op"].append((t.op[None, :] + ops + numbers * op_count).ravel())
        for name, values in work.items():
            values.append(np.tile(t.work[name], repeat))
        before.append((t.before[None, :] + shift).ravel())
        after.append((t.after[None, :] + shift).ravel())

        own = _exits(template, 0)
        entry = _resolve(template.enter, place)
        if last >= 0:
            entry.append((last, template.first))
        _append(before, after, [(p, s + tasks) for p, s in entry])
        if repeat > 1:
            again = [*_resolve(template.enter, own), (template.last, template.first)]
            pairs = np.array(again, np.int64).reshape(-1, 2)
            before.append((pairs[:, 0][None, :] + shift[:-1]).ravel())
            after.append((pairs[:, 1][None, :] + shift[1:]).ravel())
        last = tasks + (repeat - 1) * t.tasks + template.last
        for ring, spans in _exits(template, tasks + (repeat - 1) * t.tasks).items():
            place[ring] = _overlay(place.get(ring, []), spans)

        weight, kv = (-(-template.sizes[s] // align) * align for s in (Space.WEIGHT, Space.KV))
        layers = 1 if template.shared_weights else repeat
        origin = np.array([base, base + layers * weight, 0], np.int64)
        stride = np.array([0 if template.shared_weights else weight, kv, 0], np.int64)
        base += layers * weight + repeat * kv
        start = t.seg_offset + origin[t.seg_space]
        seg_task.append((t.seg_task[None, :] + shift).ravel())
        seg_start.append((start[None, :] + numbers * stride[t.seg_space][None, :]).ravel())
        seg_bytes.append(np.tile(t.seg_bytes, repeat))
        assert repeat == 1 or not (template.local_task or template.jobs), "rows of one layer have no stride"
        local.add(
            tasks, template.local_task, template.local_group, [np.stack(runs, 1) for runs in template.local_bursts]
        )
        jobs.add(tasks, template.job_task, template.job_group, template.jobs)
        tasks += repeat * t.tasks
        ops += repeat * op_count

    unit = np.concatenate(columns["unit"]).astype(np.int32)
    moved = np.concatenate(columns["moved"])
    task_of_segment = np.concatenate(seg_task)
    is_memory = np.zeros(tasks, bool)
    is_memory[task_of_segment] = True
    is_memory[local.task] = True
    is_memory[jobs.task] = True
    writes = np.isin(unit, list(write_units))
    pred, succ = np.concatenate(before), np.concatenate(after)
    order = np.argsort(pred, kind="stable")
    ptr = np.zeros(tasks + 1, np.int64)
    np.cumsum(np.bincount(pred, minlength=tasks), out=ptr[1:])
    segments = _Segments.of(
        task_of_segment, np.concatenate(seg_start), np.concatenate(seg_bytes), is_memory, memory, channels, symmetry,
        local, group_of_channel if local.task or jobs.task else None,
    )  # fmt: skip
    job_ptr, job_rows = _jobs(jobs, segments.group, is_memory)
    program = Program(
        unit=unit,
        ticks=np.concatenate(columns["ticks"]),
        tail=np.concatenate(columns["tail"]),
        cold=np.concatenate(columns["cold"]),
        waits=np.bincount(succ, minlength=tasks).astype(np.int32),
        ptr=ptr,
        succ=succ[order].astype(np.int32),
        memory=np.where(is_memory, np.cumsum(is_memory) - 1, -1).astype(np.int32),
        write=writes[is_memory].astype(np.int64),
        seg_ptr=segments.ptr,
        seg_lo=segments.low,
        seg_n=segments.bursts,
        size=moved,
        slots=np.array([s for s, _ in units], np.int64),
        window=np.array([w for _, w in units], np.int64),
        pim_ptr=job_ptr,
        pim_job=job_rows,
    )
    per_task = np.diff(segments.ptr, axis=1).max(initial=0)
    # Units without limit hand jobs, not segments, to the channels.
    movers = [units[u][0] for u in np.unique(unit[is_memory]) if units[u][0] < UNLIMITED] if is_memory.any() else []
    in_flight = sum(movers)
    return Linked(
        program=program,
        op=np.concatenate(columns["op"]),
        work={name: np.concatenate(values) for name, values in work.items()},
        dram_read_bytes=np.where(writes, 0, moved),
        dram_write_bytes=np.where(writes, moved, 0),
        channels=segments.channels,
        weight=np.bincount(segments.channels, minlength=segments.ptr.shape[0]).astype(np.int64),
        # Segments end out of order, and a place is free again only when all of its segment is served.
        ring=4 * int(per_task) * int(in_flight) + 64,
        pim_ring=int(np.diff(job_ptr[:, [0, -1]], axis=1).max(initial=0)),
    )


class _Columns:
    """A template's lists as arrays."""

    def __init__(self, t: Template) -> None:
        self.tasks = len(t.unit)
        for name in ("unit", "ticks", "tail", "cold", "op", "moved", "before", "after"):
            setattr(self, name, np.array(getattr(t, name), np.int64))
        for name in ("seg_task", "seg_space", "seg_offset", "seg_bytes"):
            setattr(self, name, np.array(getattr(t, name), np.int64))
        rows = np.array([*map(_WORK_OF, t.work)], np.int64).reshape(-1, len(WORK))
        self.work = {name: rows[:, i] for i, name in enumerate(WORK)}

    unit: Ints
    ticks: Ints
    tail: Ints
    cold: Ints
    op: Ints
    moved: Ints
    before: Ints
    after: Ints
    seg_task: Ints
    seg_space: Ints
    seg_offset: Ints
    seg_bytes: Ints


def _append(before: list[Ints], after: list[Ints], pairs: list[tuple[int, int]]) -> None:
    if pairs:
        edges = np.array(pairs, np.int64)
        before.append(edges[:, 0])
        after.append(edges[:, 1])


def _exits(template: Template, shift: int) -> dict[int, list[tuple[int, int, int]]]:
    spans: dict[int, list[tuple[int, int, int]]] = {}
    for ring, low, high, task in template.exit:
        spans.setdefault(ring, []).append((low, high, task + shift))
    return spans


def _resolve(
    enter: Sequence[tuple[int, int, int, int]], place: dict[int, list[tuple[int, int, int]]]
) -> list[tuple[int, int]]:
    """Edges from whoever last used a stretch to the task that enters it."""
    edges: dict[tuple[int, int], None] = {}
    wanted: dict[int, list[tuple[int, int, int]]] = {}
    for ring, low, high, task in enter:
        wanted.setdefault(ring, []).append((low, high, task))
    for ring, stretches in wanted.items():
        if ring not in place:
            continue
        low, high, task = np.array(stretches, np.int64).T
        start, end, before = np.array(place[ring], np.int64).reshape(-1, 3).T
        entering, used = np.nonzero((start < high[:, None]) & (low[:, None] < end))
        edges.update(dict.fromkeys(zip(before[used].tolist(), task[entering].tolist(), strict=True)))
    return list(edges)


def _overlay(old: list[tuple[int, int, int]], new: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Old last users, cut where newer ones took the place, and the newer ones."""
    starts: list[int] = []
    ends: list[int] = []
    for low, high in sorted({(low, high) for low, high, _ in new}):
        if ends and low <= ends[-1]:
            ends[-1] = max(ends[-1], high)
        else:
            starts.append(low)
            ends.append(high)
    kept = []
    for low, high, task in old:
        at = low
        for i in range(bisect_right(ends, low), len(starts)):
            if starts[i] >= high:
                break
            if starts[i] > at:
                kept.append((at, starts[i], task))
            at = ends[i]
        if at < high:
            kept.append((at, high, task))
    return kept + new


class _Local:
    """Rows of integers that tasks hand to groups of channels: the task, the group, the rows of each entry."""

    def __init__(self, task: list[int], group: list[int], rows: list[Ints]) -> None:
        self.task, self.group, self.rows = task, group, rows

    def add(self, shift: int, task: Sequence[int], group: Sequence[int], rows: Sequence[Ints]) -> None:
        """Append the entries of a template whose tasks begin at `shift`."""
        self.task.extend(number + shift for number in task)
        self.group.extend(group)
        self.rows.extend(rows)

    def of(self, group: int) -> tuple[Ints, Ints]:
        """Of one group: the task of each row, and the rows."""
        chosen = [i for i, g in enumerate(self.group) if g == group]
        if not chosen:
            return np.zeros(0, np.int64), np.zeros((0, 2), np.int64)
        counts = [len(self.rows[i]) for i in chosen]
        return np.repeat([self.task[i] for i in chosen], counts), np.concatenate([self.rows[i] for i in chosen])


def _jobs(jobs: _Local, groups: Sequence[int], is_memory: NDArray[np.bool_]) -> tuple[Ints, Ints]:
    """PIM jobs by class and memory task, as in `Program`; `groups`: group of each class."""
    if not jobs.rows:
        return np.zeros((0, 1), np.int64), np.zeros((0, JOB_FIELDS), np.int64)
    number = np.cumsum(is_memory) - 1
    tasks = int(is_memory.sum())
    ptr = np.zeros((len(groups), tasks + 1), np.int64)
    rows = []
    at = 0
    for c, group in enumerate(groups):
        task, mine = jobs.of(group)
        order = np.argsort(task, kind="stable")
        ptr[c, 1:] = np.cumsum(np.bincount(number[task], minlength=tasks))
        ptr[c] += at
        at = int(ptr[c, -1])
        if len(mine):
            rows.append(mine[order])
    return ptr, np.concatenate(rows)


@dataclass(frozen=True)
class _Segments:
    ptr: Ints
    low: Ints
    bursts: Ints
    channels: Ints
    group: tuple[int, ...]  # of each class

    @staticmethod
    def of(
        task: Ints, start: Ints, size: Ints, is_memory: NDArray[np.bool_], memory: Memory, channels: int,
        symmetry: bool, local: _Local, group_of_channel: Ints | None,
    ) -> _Segments:  # fmt: skip
        burst = memory.burst_bytes
        first = start // burst
        count = -(-(start + size) // burst) - first
        order = np.argsort(task, kind="stable")
        task = task[order]
        low, n = split_range(memory, channels, first[order], count[order])
        groups = np.full(channels, -1, np.int64) if group_of_channel is None else group_of_channel
        classes = _classes(low, n, groups, symmetry)
        number = np.cumsum(is_memory) - 1
        tasks = int(is_memory.sum())
        members = [int(np.argmax(classes == c)) for c in range(int(classes.max(initial=-1)) + 1)]
        ptr = np.zeros((len(members), tasks + 1), np.int64)
        lows, counts = [], []
        at = 0
        for row, channel in enumerate(members):
            used = n[:, channel] > 0
            own, runs = local.of(int(groups[channel])) if groups[channel] >= 0 else local.of(-1)
            index = number[np.concatenate((task[used], own))]
            ptr[row, 1:] = np.cumsum(np.bincount(index, minlength=tasks))
            ptr[row] += at
            order = np.argsort(index, kind="stable")
            lows.append(np.concatenate((low[used, channel], runs[:, 0]))[order])
            counts.append(np.concatenate((n[used, channel], runs[:, 1]))[order])
            at = int(ptr[row, -1])
        return _Segments(
            ptr, np.concatenate(lows), np.concatenate(counts), classes, tuple(int(groups[c]) for c in members)
        )


def _classes(low: Ints, n: Ints, groups: Ints, symmetry: bool) -> Ints:
    channels = n.shape[1]
    if not symmetry:
        return np.arange(channels, dtype=np.int64)
    low = np.where(n > 0, low, 0)
    found = np.full(channels, -1, np.int64)
    number = 0
    for channel in range(channels):
        if found[channel] < 0:
            alike = ((n == n[:, channel : channel + 1]) & (low == low[:, channel : channel + 1])).all(axis=0)
            found[alike & (groups == groups[channel]) & (found < 0)] = number
            number += 1
    return found
