"""Joins of a pass's task columns with its schedule: work by operator, spans, unions of busy intervals, density over
time.

Everything here is exact integer arithmetic on whole columns, linear or n log n in the number of tasks. A union counts a
moment once, however many tasks of a group are under way in it.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from sim.passes import PassResult, Schedule, TaskTable

Ints = NDArray[np.int64]

WORK_COLUMNS = tuple(f.name for f in fields(TaskTable) if f.name not in ("unit", "op"))
"""The columns of a TaskTable that are amounts of work and may be summed."""


@dataclass(frozen=True, slots=True)
class Slices:
    """Disjoint busy intervals of each group, sorted by group and time: int64 arrays of one length (start and end in
    ps).
    """

    group: Ints
    start_ps: Ints
    end_ps: Ints


def work_by_operator(result: PassResult) -> dict[str, Ints]:
    """Sum of each work column over the tasks of each operator: {column: int64[operators]}, for one occurrence of the
    pass.
    """
    sums = {}
    for name in WORK_COLUMNS:
        sums[name] = np.zeros(len(result.ops), np.int64)
        np.add.at(sums[name], result.tasks.op, getattr(result.tasks, name))
    return sums


def spans_ps(group: Ints, schedule: Schedule, groups: int) -> tuple[Ints, Ints]:
    """First start and last finish of each group's tasks, int64[groups] each; both 0 for a group without tasks."""
    start = np.full(groups, np.iinfo(np.int64).max, np.int64)
    finish = np.zeros(groups, np.int64)
    np.minimum.at(start, group, schedule.start_ps)
    np.maximum.at(finish, group, schedule.finish_ps)
    return np.minimum(start, finish), finish


def advances_ps(finish_ps: Ints) -> Ints:
    """How much later the run was when each operator, in program order, had finished than when all before it had:
    int64[operators].

    What an operator prepared while others still ran costs it nothing here, so the advances sum to the last finish.
    """
    reached = np.maximum.accumulate(np.concatenate(([0], finish_ps)))
    return np.diff(reached)


def merge(group: Ints, start_ps: Ints, end_ps: Ints, gap_ps: int = 0) -> Slices:
    """The union of the intervals of each group as disjoint slices; slices at most `gap_ps` apart become one."""
    if len(group) == 0:
        none = np.zeros(0, np.int64)
        return Slices(none, none, none)
    order = np.lexsort((start_ps, group))
    group, start, end = group[order], start_ps[order], end_ps[order]
    # The running maximum of `end` must restart at each group: ranks keep the order of ends, an offset a group separates
    # them.
    by_end = np.argsort(end, kind="stable")
    rank = np.empty(len(end), np.int64)
    rank[by_end] = np.arange(len(end))
    _, dense = np.unique(group, return_inverse=True)
    reached = end[by_end[np.maximum.accumulate(rank + dense * len(end)) % len(end)]]
    first = np.ones(len(group), bool)
    first[1:] = (group[1:] != group[:-1]) | (start[1:] - reached[:-1] > gap_ps)
    begins = np.flatnonzero(first)
    last = np.append(begins[1:], len(group)) - 1
    return Slices(group[begins], start[begins], reached[last])


def busy_ps(slices: Slices, groups: int) -> Ints:
    """Length of each group's union, int64[groups]."""
    total = np.zeros(groups, np.int64)
    np.add.at(total, slices.group, slices.end_ps - slices.start_ps)
    return total


def density(slices: Slices, groups: int, makespan_ps: int, bins: int) -> NDArray[np.float64]:
    """Share of each of `bins` equal stretches of [0, makespan) in which each group is busy: float64[groups, bins].

    The slices must be disjoint within a group. A bin's busy time is the difference of the busy time before its two
    edges.
    """
    edges = np.linspace(0.0, float(makespan_ps), bins + 1)
    shares = np.zeros((groups, bins))
    if makespan_ps == 0:
        return shares
    for g in range(groups):
        mine = slices.group == g
        start, end = slices.start_ps[mine].astype(np.float64), slices.end_ps[mine].astype(np.float64)
        knots = np.stack((start, end), axis=1).ravel()
        busy = np.repeat(np.cumsum(end - start), 2)
        busy[0::2] -= end - start
        if len(knots):
            shares[g] = np.diff(np.interp(edges, knots, busy, left=0.0)) / np.diff(edges)
    return np.clip(shares, 0.0, 1.0)


def tracks(group: Ints, start_ps: Ints, end_ps: Ints) -> Ints:
    """A track for each interval so that no two of one group and track overlap, counted from 0: int64, one an interval.

    Intervals must be sorted by (group, start); each takes the lowest track that is free when it begins.
    """
    assigned = np.zeros(len(group), np.int64)
    free: list[int] = []
    current = -1
    for row, (g, start, end) in enumerate(zip(group.tolist(), start_ps.tolist(), end_ps.tolist(), strict=True)):
        if g != current:
            current, free = g, []
        for track, until in enumerate(free):
            if until <= start:
                free[track] = end
                assigned[row] = track
                break
        else:
            assigned[row] = len(free)
            free.append(end)
    return assigned
