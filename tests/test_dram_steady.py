"""The steady-state shortcut of memory channels: with it and without it a channel does the same, whatever arrives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sim.dram_phases import find_phases
from sim.kernels import dram_tables as at
from sim.kernels.dram import NEVER, advance, push, settle, standby
from sim.standards import compile_memory, load_memory, new_state
from tests.dram_channel import MEMORIES, Work, end_of, finish

REFRESHED_WHOLE = ("hbm2-neupims", "ddr4-3200", "ddr4-3200-matched", "hbm-onnxim")
REFRESHED_IN_PARTS = ("hbm2", "ddr5-4800", "gddr6", "lpddr5-6400")
REFRESHED_APART = ("hbm2e", "hbm3", "hbm3e")
"""Several ranks, bank by bank: what is known of a stretch leaves out the banks that the stream is not in."""
EVERY = (*REFRESHED_WHOLE, *REFRESHED_IN_PARTS, *REFRESHED_APART)


@st.composite
def works(draw: st.DrawFn) -> Work:
    """Segments that often go on where the one before ended, of reads and fewer writes."""
    tick = 0
    lo = 0
    work = []
    for _ in range(draw(st.integers(1, 10))):
        tick += draw(st.sampled_from([0, 0, 0, 0, 7, 300, 5000]))
        if draw(st.booleans()):
            lo = draw(st.integers(0, 63)) * draw(st.sampled_from([1, 256, 2048, 4096, 16391]))
        n = draw(st.integers(1, 8)) * draw(st.sampled_from([1, 5, 61, 64]))
        work.append((lo, n, int(draw(st.integers(0, 3)) == 0), tick))
        lo += n
    return work


# Banks with writes waiting are refreshed after those with nothing queued.
WAITING_WRITES: Work = [
    (0, 3072, 1, 0), (50, 1024, 0, 7), (1074, 1024, 0, 5007), (5376, 1024, 0, 5007), (6400, 1536, 0, 5007),
    (7936, 3584, 0, 10007), (11520, 4, 0, 10007), (104448, 384, 0, 10014), (104832, 128, 1, 10314),
]  # fmt: skip


@pytest.mark.kernels
@settings(max_examples=12, deadline=None)
@given(name=st.sampled_from(EVERY), work=works())
@example(name="ddr5-4800", work=WAITING_WRITES)
def test_any_work(name: str, work: Work) -> None:
    memory = load_memory(name)
    assert end_of(memory, work, True) == end_of(memory, work, False)


@settings(max_examples=150, deadline=None)
@given(name=st.sampled_from(EVERY), work=works(), times=st.integers(1, 12))
def test_the_same_work_again_and_again(name: str, work: Work, times: int) -> None:
    memory = load_memory(name)
    span = work[-1][3] + 1500
    again = [(lo + k * 4096, n, w, tick + k * span) for k in range(times) for lo, n, w, tick in work]
    assert end_of(memory, again, True) == end_of(memory, again, False)


def handed_over(name: str, lengths: list[int], jump: int, delay: int, steady: bool) -> tuple[Any, ...]:
    """Completions and counts where two segments are under way and the next is seen `delay` after one has completed."""
    t = compile_memory(load_memory(name), steady)
    s = new_state(t, 1, len(lengths))  # short segments may complete, and others follow them, before a long one does
    s.scalar[0, at.GRACE] = delay
    lo, tick, under_way = 0, 0, 0
    todo = list(enumerate(lengths))
    done: list[tuple[int, int]] = []
    while True:
        while todo and under_way < 2:
            task, n = todo.pop(0)
            assert push(t, s, 0, lo, n, 0, task, tick)
            lo += n + jump
            under_way += 1
        following = advance(t, s, 0, NEVER)
        finished = [(int(s.done_task[0, k]), int(s.done_tick[0, k])) for k in range(s.done_count[0])]
        s.done_count[0] = 0
        under_way -= len(finished)
        done += finished
        tick = max([tick] + [end + delay for _, end in finished])
        if following == NEVER and not todo and under_way == 0:
            return done, s.count[0].tolist(), int(s.scalar[0, at.LAST_END])


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(EVERY),
    lengths=st.lists(st.sampled_from([1, 5, 64, 960, 1408]), min_size=1, max_size=12),
    jump=st.sampled_from([0, 0, 64, 4096, 15237]),
    delay=st.sampled_from([1, 16, 50, 300]),
)
def test_work_that_waits_for_completions(name: str, lengths: list[int], jump: int, delay: int) -> None:
    assert handed_over(name, lengths, jump, delay, True) == handed_over(name, lengths, jump, delay, False)


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(REFRESHED_APART),
    parts=st.lists(st.tuples(st.integers(0, 2**18), st.integers(2_000, 60_000), st.booleans()), min_size=1, max_size=4),
    queue=st.sampled_from([8, 32, 64]),
    changes=st.sampled_from(
        [
            {},
            {"timings.tRREFD": 40},
            {"timings.tREFIpb": 430},
            {"timings.tRRD_S": 30},
            {"command_ticks": {"ACT": 5, "RD": 2, "WR": 2, "REFpb": 7, "PRE": 3}},
            {"controller.cap": 1},
        ]
    ),
)
@example(name="hbm2e", parts=[(0, 2000, False), (0, 2000, False), (2000, 2000, False)], queue=8, changes={})
@example(
    name="hbm3",
    parts=[(64, 50000, False), (50064, 300, True), (50364, 9000, False), (0, 2000, False), (2000, 20000, True)],
    queue=32,
    changes={"timings.tREFIpb": 700},
)
@example(name="hbm2e", parts=[(601, 34393, True), (1, 11648, False)], queue=64, changes={"timings.tRREFD": 40})
def test_refreshes_beside_long_streams(
    name: str, parts: list[tuple[int, int, bool]], queue: int, changes: dict[str, Any]
) -> None:
    """Also where their commands often get in the way of the stream's."""
    if name == "hbm3" and "timings.tREFIpb" in changes:
        changes = {"timings.tREFIpb": 700}
    memory = load_memory(name, {"queue": queue, **changes})
    assert compile_memory(memory).apart > 0
    work = [(lo, n, int(is_write), 0) for lo, n, is_write in parts]
    assert end_of(memory, work, True) == end_of(memory, work, False)


def test_what_is_left_out_of_states() -> None:
    """Refreshes of single banks have no business with columns, or the stretch beside them says nothing of them."""
    assert compile_memory(load_memory("hbm3")).apart == 16 + 1  # tRREFD
    assert compile_memory(load_memory("hbm3"), steady=False).apart == 0
    for name in (*REFRESHED_WHOLE, *REFRESHED_IN_PARTS):
        assert compile_memory(load_memory(name)).apart == 0
    rules = [list(rule) for rule in load_memory("hbm3").rules]
    for more in (["rank", "REFpb", "RD", 3], ["rank", "RD", "PRE", 3], ["rank", "REFpb", "REFpb", 100, 4]):
        assert compile_memory(load_memory("hbm3", {"rules": [*rules, more]})).apart == 0


@pytest.mark.parametrize("name", ["ddr4-3200-matched", "ddr4-3200", "hbm2", "hbm2-neupims", "hbm3", "hbm3e"])
def test_streams_are_hardly_stepped(name: str) -> None:
    t = compile_memory(load_memory(name))
    s = new_state(t, 1, 2)
    n = 600_000
    push(t, s, 0, 0, n, 0, 0, 0)
    while advance(t, s, 0, NEVER) < NEVER:
        pass
    assert s.count[0, at.RD] == n
    assert s.scalar[0, at.SERVED] < n // 4


def test_phases_name_banks_alike() -> None:
    """Bits of a burst from the lowest: two of the column, two of the bank, one of the rank, then the row."""
    burst = np.arange(64)
    bank = (burst >> 2 & 3) | (burst >> 4 & 1) << 2
    row = burst >> 5
    phases = find_phases(bank, row, 4, 2, (1, 2, 2, 8))
    # Whether the next bursts lie in the last bank of a rank decides; row numbers and banks do not.
    assert len(set(phases.kind.tolist())) < 16
    for one in range(16):
        order = phases.banks[one].tolist()
        assert sorted(order) == list(range(8))
        came_by = dict.fromkeys(np.concatenate([bank, bank])[4 * one :].tolist())
        ranks = list(dict.fromkeys(b // 4 for b in came_by))
        assert phases.ranks[one].tolist() == ranks
        assert [b // 4 for b in order] == [ranks[0]] * 4 + [ranks[1]] * 4
        for other in range(16):
            if phases.kind[one] == phases.kind[other]:
                names = [
                    [phases.banks[p].tolist().index(b) for b in bank[4 * p : 4 * p + 4].tolist()] for p in (one, other)
                ]
                assert names[0] == names[1]
    kept = find_phases(bank, row, 4, 2, (1, 2, 2, 8), renamed=False)
    assert kept.banks.tolist() == [list(range(8))] * 16


@pytest.mark.kernels
@settings(max_examples=12, deadline=None)
@given(
    name=st.sampled_from((*MEMORIES, "hbm2-pc-matched", "ddr5-4800")),
    start=st.integers(0, 5000),
    lengths=st.lists(st.integers(1, 6000), min_size=1, max_size=3),
    is_write=st.integers(0, 1),
    cut=st.integers(500, 20_000),
)
def test_steady_state_changes_nothing(name: str, start: int, lengths: list[int], is_write: int, cut: int) -> None:
    memory = load_memory(name)
    results = []
    for steady in (False, True):
        t = compile_memory(memory, steady)
        s = new_state(t, 1, 8)
        lo = start
        for task, n in enumerate(lengths):
            assert push(t, s, 0, lo, n, is_write, task, 0)
            lo += n
        assert push(t, s, 0, 77, 40, 1 - is_write, 9, 0)
        done = finish(t, s, cut) + finish(t, s)
        end = int(s.scalar[0, at.LAST_END]) + 1000
        settle(t, s, 0, end)
        ends = [int(s.scalar[0, k]) for k in (at.LAST_END, at.LAST_READ_END, at.LAST_WRITE, at.NEXT_AGE)]
        rows = s.bank[0, [at.ROW, at.STREAK]].tolist()
        results.append((done, s.count[0].tolist(), ends, rows, [int(n) for n in standby(t, s, 0, end)]))
    assert results[0] == results[1]


@pytest.mark.kernels
@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from((*MEMORIES, "hbm2-pc-matched")),
    segments=st.lists(
        st.tuples(
            st.integers(0, 63), st.sampled_from([1, 256, 2048]), st.integers(1, 8), st.sampled_from([61, 64, 512]),
            st.integers(0, 1), st.sampled_from([0, 0, 7, 300, 5000, 70_000]),
        ),
        min_size=1,
        max_size=6,
    ),
    age_limit=st.sampled_from([90, 400, 2048]),
    page=st.sampled_from(["open", "open", "closed", "adaptive"]),
    bank_hash=st.sampled_from(["none", "xor"]),
    refresh=st.sampled_from(["staggered", "together", "postponed"]),
)  # fmt: skip
def test_steady_state_survives_gaps_and_turns(
    name: str,
    segments: list[tuple[int, int, int, int, int, int]],
    age_limit: int,
    page: str,
    bank_hash: str,
    refresh: str,
) -> None:
    memory = load_memory(name, {"age_limit": age_limit, "page": page, "bank_hash": bank_hash, "refresh": refresh})
    work: Work = []
    tick = 0
    for place, step, many, length, is_write, gap in segments:
        tick += gap
        work.append((place * step, many * length, is_write, tick))
    assert end_of(memory, work, True) == end_of(memory, work, False)


@pytest.mark.kernels
def test_a_queue_that_fills_in_a_known_stretch() -> None:
    memory = load_memory("hbm-onnxim")
    work = [(35, 2048, 0, 0), (36, 2560, 0, 5000)]
    assert end_of(memory, work, True) == end_of(memory, work, False)
    assert end_of(memory, work, True)[0] == [(0, 2102), (1, 7614)]


@pytest.mark.kernels
def test_steady_state_is_used() -> None:
    t = compile_memory(load_memory("hbm2", {"refresh": "none"}))
    s = new_state(t, 1, 2)
    push(t, s, 0, 0, 20_000, 0, 0, 0)
    finish(t, s)
    assert 0 < s.memo_count[0] < 40
    assert s.count[0, at.RD] == 20_000
