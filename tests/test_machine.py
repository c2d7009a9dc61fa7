"""The task executor against its plain-Python twin on random programs, its heaps, and cases worked by hand."""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import Any

import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import Task

from sim.kernels import heap
from sim.kernels.dram_tables import LAST_END, RD, WR
from sim.kernels.machine import next_tick, run, to_ps, to_tick
from sim.kernels.program import Result
from sim.standards import compile_memory, load_memory, new_state

pytestmark = pytest.mark.kernels

RING = 512
UNLIMITED = 1 << 30


@cache
def tables(name: str) -> Any:
    return compile_memory(load_memory(name))


def execute(
    tasks: list[Task],
    slots: tuple[int, ...] = (1, UNLIMITED),
    windows: tuple[int, ...] | None = None,
    classes: int = 1,
    period: Fraction = Fraction(1000),
    ring: int = RING,
    memory: str = "hbm2",
) -> tuple[int, naive.Outcome, Any]:
    """Run the executor: how many tasks finished, their times, the state of the channels."""
    windows = windows or (0,) * len(slots)
    program = naive.program(tasks, slots, windows, classes)
    state = new_state(tables(memory), classes, ring)
    result = Result(*(np.full(len(tasks), -1, np.int64) for _ in range(3)))
    done = run(program, result, tables(memory), state, period.numerator, period.denominator)
    times = [[None if t < 0 else int(t) for t in column] for column in result]
    return int(done), naive.Outcome(*times), state


# Heaps


@settings(deadline=None)
@given(st.lists(st.integers(0, 50)), st.integers(0, 3))
def test_numbers_leave_their_heap_in_order(numbers, first):
    store = np.full(first + len(numbers) + 1, -7, np.int32)
    for count, number in enumerate(numbers):
        heap.push_number(store, first, count, np.int32(number))
    left = [int(heap.pop_number(store, first, count)) for count in range(len(numbers), 0, -1)]
    assert left == sorted(numbers)
    assert (store[:first] == -7).all()


@settings(deadline=None)
@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(0, 5), st.integers(0, 9)))))
def test_events_leave_their_heap_by_time_then_number(actions):
    time, code = np.zeros(len(actions) + 1, np.int64), np.zeros(len(actions) + 1, np.int64)
    kept: list[tuple[int, int]] = []
    for event in actions:
        if event is not None:
            heap.push_event(time, code, len(kept), *map(np.int64, event))
            kept.append(event)
        elif kept:
            assert (time[0], code[0]) == min(kept)
            heap.drop_event(time, code, len(kept))
            kept.remove(min(kept))
    if kept:
        assert (time[0], code[0]) == min(kept)


@settings(deadline=None)
@given(st.integers(0, 10**15), st.fractions(Fraction(1, 3), 5000, max_denominator=10**6))
def test_ticks_and_picoseconds_are_rounded_up_exactly(value, period):
    num, den = period.numerator, period.denominator
    tick = int(to_tick(value, num, den))
    assert (tick - 1) * period < value <= tick * period
    assert int(next_tick(value, num, den)) == value // period + 1
    time = int(to_ps(value, num, den))
    assert time - 1 < value * period <= time


# Times worked by hand


def test_a_chain_pays_length_tail_and_cold_start():
    tasks = [
        Task(0, 100, tail=30, cold=7),  # the unit stood idle: 107, its result 30 later
        Task(0, 50, cold=9),  # right behind it: no cold start
        Task(0, 10, after=(0,), cold=5),  # must wait for the tail until 137, but the unit is busy until 157
        Task(0, 20, after=(1, 2), tail=4, cold=3),
    ]
    done, out, _ = execute(tasks)
    assert done == 4
    assert out.start == [0, 107, 157, 167]
    assert out.release == [107, 157, 167, 187]
    assert out.finish == [137, 157, 167, 191]


def test_a_tail_that_lets_the_unit_stand_idle_costs_a_cold_start():
    done, out, _ = execute([Task(0, 100, tail=30), Task(0, 50, after=(0,), cold=9)])
    assert (done, out.start, out.release) == (2, [0, 130], [100, 189])


def test_a_unit_takes_its_lowest_numbered_ready_task():
    tasks = [Task(1, 10), Task(0, 5, after=(0,)), Task(0, 10), Task(0, 10), Task(0, 10)]
    _, out, _ = execute(tasks, (1, 1, UNLIMITED))
    assert out.start == [0, 10, 0, 15, 25]


def test_slots_are_tasks_at_once():
    _, out, _ = execute([Task(0, 10), Task(0, 30), Task(0, 10), Task(0, 10)], (2, UNLIMITED))
    assert out.start == [0, 0, 10, 20]
    assert out.finish == [10, 30, 20, 30]


def test_joins_end_at_once_and_before_a_unit_chooses():
    # When task 0 ends, the joins 3 and 4 make task 1 ready; the unit takes it although 2 was ready long before.
    tasks = [Task(0, 10), Task(0, 10, after=(4,)), Task(0, 10), Task(1, 0, after=(0,)), Task(1, 0, after=(3,))]
    done, out, _ = execute(tasks)
    assert done == 5
    assert out.start == [0, 10, 20, 10, 10]
    assert out.finish[3:] == [10, 10]


def test_a_join_may_take_time():
    _, out, _ = execute([Task(1, 25), Task(1, 25), Task(0, 10, after=(0, 1))])
    assert (out.start[2], out.finish[:2]) == (25, [25, 25])


def test_a_task_of_no_length_ends_where_it_starts():
    done, out, _ = execute([Task(0, 0), Task(0, 0, after=(0,)), Task(0, 5, after=(1,))])
    assert (done, out.start, out.finish) == (3, [0, 0, 0], [0, 0, 5])


def test_a_window_lets_two_tasks_run_and_more_if_their_bytes_fit():
    sizes = [50, 60, 10, 5, 5, 5]
    tasks = [Task(0, 10 * (i + 1), size=size) for i, size in enumerate(sizes)]
    _, out, _ = execute(tasks, (4, UNLIMITED), (100, 0))
    # 0 and 1 at once though 110 > 100; at 10 task 0 has gone: 60 + 10 + 5 + 5 fit, and then all four slots are taken.
    assert out.start == [0, 0, 10, 10, 10, 20]


def test_a_task_that_does_not_fit_in_the_window_is_not_overtaken():
    tasks = [Task(0, 10, size=40), Task(0, 20, size=40), Task(0, 10, size=40), Task(0, 10, size=1)]
    _, out, _ = execute(tasks, (4, UNLIMITED), (100, 0))
    assert out.start == [0, 0, 10, 10]


def test_a_cycle_of_waits_leaves_tasks_undone():
    done, out, _ = execute([Task(0, 10), Task(0, 10, after=(2,)), Task(0, 10, after=(1,))])
    assert (done, out.finish) == (1, [10, None, None])


def test_a_ring_that_is_too_small_is_said():
    tasks = [Task(0, 0, segments=[[(i * 1024, 1) for i in range(9)]])]
    assert execute(tasks, ring=8)[0] == -1


def test_reads_take_activation_column_and_data():
    # hbm2, in ticks of 1 ns: ACT at 50, the first RD 14 later, the second, of the same bank group, 4 after that, and
    # its last data 14 + 2 later.
    done, out, state = execute([Task(0, 50_000, segments=[[(0, 1), (4, 1)]], tail=700)])
    assert done == 1
    assert out.release == [(50 + 14 + 4 + 14 + 2) * 1000]
    assert out.finish == [out.release[0] + 700]
    assert state.count[0, RD] == 2


def test_writes_are_posted():
    # One burst a clock is taken in from tick 50 on, the last of 8 at tick 57; its data is on the bus much later.
    done, out, state = execute([Task(0, 50_000, write=True, segments=[[(0, 8)]])])
    assert (done, out.release) == (1, [57_000])
    assert state.count[0, WR] == 8
    assert state.scalar[0, LAST_END] > 57 + 14


def test_a_request_after_a_completion_is_not_kept_waiting_for_another_unit():
    # While unit 1 computes for 10 us, unit 0 reads twice, one read after the other: each takes set-up and a row miss.
    tasks = [Task(0, 50_000, segments=[[(0, 1)]]), Task(0, 50_000, segments=[[(4, 1)]]), Task(1, 10_000_000)]
    _, out, _ = execute(tasks, (1, 1, UNLIMITED))
    assert out.release[0] == (50 + 14 + 14 + 2) * 1000
    assert out.release[1] == out.release[0] + (50 + 14 + 2) * 1000


def test_a_memory_task_waits_for_its_slowest_class():
    done, out, _ = execute([Task(0, 0, segments=[[(0, 1)], [(0, 64)], []])], classes=3)
    alone = execute([Task(0, 0, segments=[[(0, 64)]])])[1]
    assert done == 1
    assert out.release == alone.release


def test_a_memory_task_of_no_bursts_takes_its_set_up():
    _, out, _ = execute([Task(0, 50, segments=[[]], tail=3), Task(0, 10, after=(0,))])
    assert (out.finish[0], out.start[1]) == (53, 53)


# Random programs

MEMORIES = ("hbm2", "ddr4-3200", "hbm2-neupims")
PERIODS = (Fraction(1000), Fraction(625), Fraction(4000, 7), Fraction(2500, 3))


@st.composite
def programs(draw):
    """(tasks, slots, windows, classes, period, memory): units 0 and 1 compute, 2 loads, 3 stores, 4 joins."""
    classes = draw(st.integers(1, 4))
    slots = (1, draw(st.integers(1, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 3)), UNLIMITED)
    windows = (0, 0, draw(st.sampled_from([0, 512, 4096])), draw(st.sampled_from([0, 1024])), 0)
    set_up = draw(st.sampled_from([0, 1, 600, 1000, 5000, 50_000]))
    tasks: list[Task] = []
    for number in range(draw(st.integers(1, 25))):
        unit = draw(st.integers(0, 4))
        before = st.lists(st.integers(0, number - 1), max_size=3, unique=True) if number else st.just([])
        after = tuple(draw(before))
        if unit == 4:
            tasks.append(Task(4, draw(st.sampled_from([0, 0, 0, 700])), after=after))
            continue
        tail = draw(st.sampled_from([0, 0, 1, 3000]))
        if unit < 2:
            length = draw(st.one_of(st.integers(0, 3), st.integers(0, 60_000)))
            tasks.append(Task(unit, length, tail, draw(st.sampled_from([0, 2500])), after))
            continue
        burst = st.tuples(st.integers(0, 300).map(lambda x: x * 7), st.integers(1, 12))
        segments = [draw(st.lists(burst, max_size=2)) for _ in range(classes)]
        size = 64 * sum(n for part in segments for _, n in part)
        tasks.append(Task(unit, set_up, tail, 0, after, unit == 3, segments, size))
    return tasks, slots, windows, classes, draw(st.sampled_from(PERIODS)), draw(st.sampled_from(MEMORIES))


@settings(max_examples=120, deadline=None)
@given(programs())
def test_the_executor_equals_its_twin(case):
    tasks, slots, windows, classes, period, memory = case
    done, out, state = execute(tasks, slots, windows, classes, period, memory=memory)
    twin_state = new_state(tables(memory), classes, RING)
    twin = naive.run(tasks, slots, windows, tables(memory), twin_state, period)
    assert done == len(tasks)
    assert out == twin
    assert (state.count == twin_state.count).all()
