"""Plain-Python twin of the task executor: scans instead of heaps, and every memory channel stepped tick by tick.

It says what `sim.kernels.machine.run` must do, not how: at each moment first everything that ends there, then tasks
that only join others, then units take their lowest-numbered ready tasks, until nothing more happens at that moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np

from sim.kernels.dram import advance, push
from sim.kernels.program import NEVER, Program


@dataclass
class Task:
    """One row of a Program in words. `segments`: for each channel class the (first burst, bursts) that it carries;
    `size`: bytes that they count as.
    """

    unit: int
    ticks: int
    tail: int = 0
    cold: int = 0
    after: tuple[int, ...] = ()
    write: bool = False
    segments: Sequence[Sequence[tuple[int, int]]] | None = None
    size: int = 0


def program(tasks: Sequence[Task], slots: Sequence[int], windows: Sequence[int], classes: int = 1) -> Program:
    """The Program of `tasks`; slots and windows of all units, the last of which joins tasks."""
    n = len(tasks)
    edges = sorted((before, number) for number, task in enumerate(tasks) for before in task.after)
    memory = [task for task in tasks if task.segments is not None]
    ptr = np.zeros((classes, len(memory) + 1), np.int64)
    lows: list[int] = []
    counts: list[int] = []
    for c in range(classes):
        ptr[c, 0] = len(lows)
        for j, task in enumerate(memory):
            assert task.segments is not None
            for low, bursts in task.segments[c]:
                lows.append(low)
                counts.append(bursts)
            ptr[c, j + 1] = len(lows)
    first = np.zeros(n + 1, np.int64)
    for before, _ in edges:
        first[before + 1] += 1
    is_memory = np.array([task.segments is not None for task in tasks], bool)
    return Program(
        unit=np.array([t.unit for t in tasks], np.int32),
        ticks=np.array([t.ticks for t in tasks], np.int64),
        tail=np.array([t.tail for t in tasks], np.int64),
        cold=np.array([t.cold for t in tasks], np.int64),
        waits=np.array([len(t.after) for t in tasks], np.int32),
        ptr=np.cumsum(first),
        succ=np.array([after for _, after in edges], np.int32),
        memory=np.where(is_memory, np.cumsum(is_memory) - 1, -1).astype(np.int32),
        write=np.array([int(t.write) for t in memory], np.int64),
        seg_ptr=ptr,
        seg_lo=np.array(lows, np.int64),
        seg_n=np.array(counts, np.int64),
        size=np.array([t.size for t in tasks], np.int64),
        slots=np.array(slots, np.int64),
        window=np.array(windows, np.int64),
    )


@dataclass
class Outcome:
    """Times of every task, None where it never came to it."""

    start: list[int | None]
    release: list[int | None]
    finish: list[int | None]


@dataclass
class Channels:
    """Memory channels of one clock, always stepped to the same tick, one tick at a time."""

    tables: Any
    state: Any
    period: Fraction
    clock: list[int] = field(default_factory=list)  # the next tick at which each class may do something, NEVER if idle

    def give(self, c: int, low: int, bursts: int, write: bool, task: int, tick: int) -> None:
        """Queue a segment that the channel sees from `tick` on."""
        assert push(self.tables, self.state, c, low, bursts, int(write), task, tick)
        self.clock[c] = min(self.clock[c], tick)

    def next_time(self) -> int | None:
        """Picosecond, rounded up, at which some channel does something; None if all are idle."""
        tick = min(self.clock)
        return None if tick >= NEVER else ceil(tick * self.period)

    def step(self) -> list[tuple[int, int]]:
        """Run the next tick of all channels; returns (task, time of its data) for each segment that was completed."""
        tick = min(self.clock)
        done = []
        for c, next_tick in enumerate(self.clock):
            if next_tick == tick:
                self.clock[c] = int(advance(self.tables, self.state, c, tick + 1))
                for k in range(int(self.state.done_count[c])):
                    time = ceil(int(self.state.done_tick[c, k]) * self.period)
                    done.append((int(self.state.done_task[c, k]), time))
                self.state.done_count[c] = 0
        return done


def run(
    tasks: Sequence[Task], slots: Sequence[int], windows: Sequence[int], tables: Any, state: Any, period: Fraction
) -> Outcome:
    """Times of all tasks, with the channels of `state` behind the memory tasks."""
    n = len(tasks)
    joins = len(slots) - 1
    out = Outcome([None] * n, [None] * n, [None] * n)
    channels = Channels(tables, state, period, [NEVER] * state.scalar.shape[0])
    running: dict[int, int | None] = {}  # task on its unit: when it leaves it, None where the memory decides
    pieces = [0] * n
    data_end = [0] * n
    last_release = [-1] * len(slots)
    now = 0

    def ready(unit: int) -> list[int]:
        return [
            i
            for i in range(n)
            if tasks[i].unit == unit
            and out.start[i] is None
            and all((end := out.finish[before]) is not None and end <= now for before in tasks[i].after)
        ]

    def join() -> None:
        """Joins without a delay end where they start, and may wake others of their kind."""
        while waiting := ready(joins):
            for i in waiting:
                out.start[i] = now
                if tasks[i].ticks:
                    running[i] = now + tasks[i].ticks
                else:
                    out.release[i] = out.finish[i] = now

    def may_begin(i: int) -> bool:
        unit = tasks[i].unit
        others = [tasks[j].size for j in running if tasks[j].unit == unit]
        full = windows[unit] > 0 and sum(others) + tasks[i].size > windows[unit]
        return len(others) < slots[unit] and not (len(others) >= 2 and full)

    def begin(i: int) -> None:
        task = tasks[i]
        out.start[i] = now
        if task.segments is None:
            idle = last_release[task.unit] < now
            running[i] = now + task.ticks + (task.cold if idle else 0)
            return
        # A request is seen at the first tick after its start that is not before the end of its set-up.
        tick = max(ceil((now + task.ticks) / period), floor(now / period) + 1)
        for c, segments in enumerate(task.segments):
            for low, bursts in segments:
                channels.give(c, low, bursts, task.write, i, tick)
                pieces[i] += 1
        running[i] = None if pieces[i] else now + task.ticks

    while True:
        join()
        for unit in range(joins):
            for i in ready(unit):
                if not may_begin(i):
                    break
                begin(i)
        while True:
            moments = [t for t in running.values() if t is not None]
            moments += [t for t in out.finish if t is not None and t > now]
            event = min(moments, default=None)
            memory = channels.next_time()
            if memory is None or (event is not None and event < memory):
                break
            for i, time in channels.step():
                pieces[i] -= 1
                data_end[i] = max(data_end[i], time)
                if pieces[i] == 0:
                    running[i] = data_end[i]
        if event is None:
            return out
        now = event
        for i in [i for i, t in running.items() if t == now]:
            del running[i]
            out.release[i] = now
            out.finish[i] = now + tasks[i].tail
            last_release[tasks[i].unit] = now
