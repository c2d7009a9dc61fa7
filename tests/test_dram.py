"""The DRAM channel kernel: against its plain-Python twin, against closed forms, and against itself in other steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_dram import Naive, Segment

from sim.config import ConfigError
from sim.dram_check import check_log
from sim.kernels import dram_tables as at
from sim.kernels.dram import NEVER, advance, push, settle, standby
from sim.standards import COMMANDS, Memory, compile_memory, load_memory, new_state

pytestmark = pytest.mark.kernels

MEMORIES = ("hbm2", "ddr4-3200", "hbm2-neupims", "ddr4-3200-matched", "hbm-onnxim")
FINE_GRAINED = ("hbm2", "hbm3", "ddr5-4800", "lpddr4x")  # refreshed bank by bank, or one bank of every group
Work = list[tuple[int, int, int, int]]  # first burst, bursts, is_write, visible tick


def finish(t: Any, s: Any, until: int = NEVER) -> list[tuple[int, int]]:
    """Advance class 0 to `until` and return the completions (task, tick) in order."""
    done = []
    while True:
        following = advance(t, s, 0, until)
        done += [(int(s.done_task[0, k]), int(s.done_tick[0, k])) for k in range(s.done_count[0])]
        s.done_count[0] = 0
        if following >= until:
            return done


def serve(
    memory: Memory, work: Work, log: int = 20_000, steady: bool = False
) -> tuple[Any, Any, list[tuple[int, int]]]:
    """Tables, state and completions of a channel that served all of `work`."""
    t = compile_memory(memory, steady)
    s = new_state(t, 1, len(work) + 1, log=log)
    for task, (lo, n, is_write, tick) in enumerate(work):
        assert push(t, s, 0, lo, n, is_write, task, tick)
    return t, s, finish(t, s)


def commands(s: Any, *names: str) -> list[tuple[Any, ...]]:
    """The logged commands of these names, all without names: (name, tick, rank, group, bank, row)."""
    rows = s.log[0, : s.scalar[0, at.LOGGED]]
    rows = rows[rows[:, 0] >= 0]  # the others say when ranks slept
    logged = [(COMMANDS[row[0]], *map(int, row[1:])) for row in rows]
    return [row for row in logged if not names or row[0] in names]


@st.composite
def works(draw: st.DrawFn, most: int = 14) -> Work:
    """Segments of few or many bursts, close together or far apart in address and time."""
    span = draw(st.sampled_from([200, 1 << 12, 1 << 20]))
    tick = 0
    work = []
    for _ in range(draw(st.integers(1, most))):
        tick += draw(st.sampled_from([0, 0, 0, 1, 60, 900, 6000]))
        work.append(
            (draw(st.integers(0, span)), draw(st.sampled_from([1, 1, 2, 5, 30])), draw(st.integers(0, 1)), tick)
        )
    return work


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from((*MEMORIES, *FINE_GRAINED)),
    work=works(),
    queue=st.sampled_from([1, 2, 7, 32]),
    cap=st.sampled_from([1, 2, 16]),
    age_limit=st.sampled_from([1, 40, 150, 2048]),
    page=st.sampled_from(["open", "open", "closed", "adaptive"]),
    bank_hash=st.sampled_from(["none", "xor"]),
    refresh=st.sampled_from(["none", "staggered", "together", "postponed", "", ""]),
)
def test_equals_the_plain_twin(
    name: str, work: Work, queue: int, cap: int, age_limit: int, page: str, bank_hash: str, refresh: str
) -> None:
    changes = {"queue": queue, "cap": cap, "age_limit": age_limit, "page": page, "bank_hash": bank_hash}
    memory = load_memory(name, {**changes, "refresh": refresh} if refresh else changes)
    twin = Naive(memory, [Segment(lo, n, w, task, tick, n) for task, (lo, n, w, tick) in enumerate(work)])
    twin.run()
    t, s, done = serve(memory, work)
    assert commands(s) == twin.log
    assert done == twin.done
    count = s.count[0]
    assert [count[at.HITS], count[at.MISSES], count[at.CONFLICTS]] == [
        twin.counts[key] for key in ("hits", "misses", "conflicts")
    ]
    assert count[at.READ_LATENCY] == twin.counts["read latency"]
    assert check_log(memory, s.log[0, : s.scalar[0, at.LOGGED]]).count == 0
    assert sum(standby(t, s, 0, twin.tick + 10_000)) == t.ranks * (twin.tick + 10_000)


SLEEPS = [{}, {"controller.power_down": "fast"}, {"controller.power_down": "self_refresh"}]


@settings(max_examples=30, deadline=None)
@given(
    name=st.sampled_from((*MEMORIES, *FINE_GRAINED)),
    work=works(),
    cuts=st.lists(st.integers(1, 4000), max_size=20),
    page=st.sampled_from(["open", "closed", "adaptive"]),
    refresh=st.sampled_from(["", "together", "postponed"]),
    sleep=st.sampled_from(SLEEPS[1:]),
    after=st.sampled_from([0, 5, 300, 5000]),
)
def test_ranks_that_sleep_equal_the_plain_twin(
    name: str, work: Work, cuts: list[int], page: str, refresh: str, sleep: dict[str, str], after: int
) -> None:
    changes = {"page": page, **sleep, "controller.power_down_after": after, "queue": 7}
    memory = load_memory(name, {**changes, "refresh": refresh} if refresh else changes)
    twin = Naive(memory, [Segment(lo, n, w, task, tick, n) for task, (lo, n, w, tick) in enumerate(work)])
    twin.run()
    t, s, done = serve(memory, work)
    assert commands(s) == twin.log
    assert done == twin.done
    assert check_log(memory, s.log[0, : s.scalar[0, at.LOGGED]]).examples == ()
    *_, asleep = standby(t, s, 0, twin.tick)
    assert asleep == twin.asleep_ticks
    s = new_state(t, 1, len(work) + 1)
    for task, (lo, n, is_write, tick) in enumerate(work):
        assert push(t, s, 0, lo, n, is_write, task, tick)
    parts: list[tuple[int, int]] = []
    until = 0
    for cut in cuts:
        until += cut
        parts += finish(t, s, until)
    assert parts + finish(t, s) == done


@settings(max_examples=15, deadline=None)
@given(
    name=st.sampled_from((*MEMORIES, *FINE_GRAINED)),
    work=works(),
    cuts=st.lists(st.integers(1, 400), min_size=1, max_size=40),
    page=st.sampled_from(["open", "closed", "adaptive"]),
    age_limit=st.sampled_from([70, 2048]),
)
def test_any_limits_give_the_same_commands(name: str, work: Work, cuts: list[int], page: str, age_limit: int) -> None:
    memory = load_memory(name, {"page": page, "age_limit": age_limit})
    _, whole, done = serve(memory, work)
    t = compile_memory(memory, False)
    s = new_state(t, 1, len(work) + 1, log=20_000)
    for task, (lo, n, is_write, tick) in enumerate(work):
        assert push(t, s, 0, lo, n, is_write, task, tick)
    parts: list[tuple[int, int]] = []
    until = 0
    for cut in cuts:
        until += cut
        parts += finish(t, s, until)
        assert all(row[1] < until for row in commands(s))
    parts += finish(t, s)
    assert parts == done
    assert commands(s) == commands(whole)


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


def end_of(memory: Memory, work: Work, steady: bool) -> tuple[Any, ...]:
    """All that can be seen of a channel that got each segment of `work` at its tick and was then left alone."""
    t = compile_memory(memory, steady)
    s = new_state(t, 1, len(work) + 1)
    done = []
    for task, (lo, n, is_write, tick) in enumerate(work):
        done += finish(t, s, tick)
        assert push(t, s, 0, lo, n, is_write, task, tick)
    done += finish(t, s)
    end = int(s.scalar[0, at.LAST_END]) + 1000
    settle(t, s, 0, end)
    ends = [int(s.scalar[0, k]) for k in (at.LAST_END, at.LAST_READ_END, at.LAST_WRITE, at.NEXT_AGE)]
    rows = s.bank[0, [at.ROW, at.STREAK]].tolist()
    return done, s.count[0].tolist(), ends, rows, [int(n) for n in standby(t, s, 0, end)]


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


def test_a_queue_that_fills_in_a_known_stretch() -> None:
    memory = load_memory("hbm-onnxim")
    work = [(35, 2048, 0, 0), (36, 2560, 0, 5000)]
    assert end_of(memory, work, True) == end_of(memory, work, False)
    assert end_of(memory, work, True)[0] == [(0, 2102), (1, 7614)]


def test_no_read_waits_for_ever() -> None:
    other_rank = 1 << 11  # of the mapping's ra
    work = [(0, 1, 0, 0), (other_rank, 1, 0, 0)] + [(0, 512, 0, 0)] * 40  # row hits in the first rank
    served = []
    for limit in (500, 10**6):
        _, _, done = serve(load_memory("ddr4-3200", {"refresh": "none", "controller.age_limit": limit}), work, log=0)
        served.append(dict(done)[1])
    assert served[0] < 500 + 100
    assert served[1] > 40 * 512 * 4


def test_a_refresh_begun_goes_on_while_idle() -> None:
    memory = load_memory("ddr4-3200")  # two ranks, the first refreshed from tick 6240
    other_rank = 1 << 11
    logs = []
    for cuts in ([NEVER], [6300, 9000, NEVER]):
        t = compile_memory(memory)
        s = new_state(t, 1, 4, log=1000)
        push(t, s, 0, 0, 4, 0, 0, 6100)
        push(t, s, 0, other_rank, 4, 0, 1, 6225)
        for until in cuts:
            finish(t, s, until)
        push(t, s, 0, 0, 4, 0, 2, 10_000)
        finish(t, s)
        logs.append(commands(s))
    assert logs[0] == logs[1]
    assert commands(s, "REF")[0][1] < 6300


def test_refreshes_are_put_off_while_busy() -> None:
    memory = load_memory("ddr4-3200-matched", {"refresh": "postponed"})
    work = [(k * 2048, 1, 0, 0) for k in range(1400)]  # busy for 8.3 intervals
    _, s, done = serve(memory, [*work, (0, 1, 0, 300_000)])
    ticks = [tick for _, tick, *_ in commands(s, "REF")]
    assert 8 * 12480 <= ticks[0] < 8 * 12480 + 200
    assert len([tick for tick in ticks if tick < 110_000]) == 8
    assert len(ticks) == 300_000 // 12480
    assert 1399 * 74 + 48 + 576 <= dict(done)[1399] <= 1400 * 74 + 48 + 576


def test_pages() -> None:
    rows = [(0, 1, 0, 0), (0, 1, 0, 1000), (2048, 1, 0, 2100)]  # a row, the same again, and another of the bank
    idle, row_cycle = 22 + 22 + 4, 22 + 22 + 22 + 4
    found = {}
    for page, page_idle in (("open", 0), ("closed", 0), ("adaptive", 400), ("adaptive", 990)):
        changes = {"refresh": "none", "page": page, "controller.page_idle": page_idle}
        _, s, done = serve(load_memory("ddr4-3200-matched", changes), rows)
        found[page, page_idle] = [tick - work[3] for (_, tick), work in zip(done, rows, strict=True)]
        pres = [tick for _, tick, *_ in commands(s, "PRE")]
        if page == "closed":
            assert pres == [52, 1052, 2152]  # tRAS after ACT
    assert found["open", 0] == [idle, 26, row_cycle]
    assert found["closed", 0] == [idle, idle, idle]
    assert found["adaptive", 400] == [idle, idle, idle]
    assert found["adaptive", 990] == [idle, 26, idle]
    with pytest.raises(ConfigError, match="page closed is not what policy dramsim3 does"):
        load_memory("hbm2", {"policy": "dramsim3", "page": "closed"})


def test_hash_spreads_rows_over_banks() -> None:
    work = [(k * 2048, 1, 0, 0) for k in range(400)]  # of the mapping's one bank
    ends = [
        serve(load_memory("ddr4-3200-matched", {"refresh": "none", "bank_hash": kind}), work)[2][-1][1]
        for kind in ("none", "xor")
    ]
    assert ends[0] == 399 * 74 + 48
    assert ends[1] < 400 * 34 / 4 + 100  # tFAW rules


def test_ticks_must_be_exact_times() -> None:
    assert load_memory("hbm2", {"clock": "1234567 kHz"}).clock == 1_234_567_000
    with pytest.raises(ConfigError, match="clock is 1600000001 Hz, but must be a multiple of 1 kHz"):
        load_memory("hbm2", {"clock": "1600000001 Hz"})


def test_steady_state_is_used() -> None:
    t = compile_memory(load_memory("hbm2", {"refresh": "none"}))
    s = new_state(t, 1, 2)
    push(t, s, 0, 0, 20_000, 0, 0, 0)
    finish(t, s)
    assert 0 < s.memo_count[0] < 40
    assert s.count[0, at.RD] == 20_000


@pytest.mark.parametrize(
    ("name", "idle", "row_cycle"), [("ddr4-3200-matched", 22 + 22 + 4, 74), ("hbm2", 14 + 14 + 2, 48)]
)
def test_idle_read_and_row_cycle(name: str, idle: int, row_cycle: int) -> None:
    memory = load_memory(name, {"refresh": "none"})
    o = memory.organisation
    row = memory.bursts_per_channel // o.rows
    _, s, done = serve(memory, [(k * row, 1, 0, 0) for k in range(20)])
    assert done[0] == (0, idle)
    acts = [tick for _, tick, *_ in commands(s, "ACT")]
    assert np.diff(acts).tolist() == [row_cycle] * 19
    assert s.count[0, [at.HITS, at.MISSES, at.CONFLICTS]].tolist() == [0, 1, 19]


def test_row_hits_follow_at_ccd() -> None:
    memory = load_memory("ddr4-3200-matched", {"refresh": "none"})
    _, s, done = serve(memory, [(0, 10, 0, 0)])
    assert [tick for _, tick, *_ in commands(s, "RD")] == [22 + 8 * k for k in range(10)]
    assert done == [(0, 22 + 72 + 22 + 4)]
    memory = load_memory("ddr4-3200", {"refresh": "none"})  # neighbours in other bank groups
    _, s, _ = serve(memory, [(0, 10, 0, 0)])
    assert np.diff([tick for _, tick, *_ in commands(s, "RD")]).tolist() == [4] * 9


def test_activations_at_faw() -> None:
    memory = load_memory("ddr4-3200-matched", {"refresh": "none"})
    order = [4 * ba + bg for ba in range(4) for bg in range(4)]  # of the mapping's ba, bg: all banks in turn
    work = [((k // 16 << 11) + (order[k % 16] << 7), 1, 0, 0) for k in range(160)]
    _, s, _ = serve(memory, work)
    acts = [tick for _, tick, *_ in commands(s, "ACT")]
    assert len(acts) == 160
    assert acts[4::4] == [34 * k for k in range(1, 40)]


def test_turnarounds() -> None:
    memory = load_memory("ddr4-3200-matched", {"refresh": "none"})
    _, s, _ = serve(memory, [(0, 1, 0, 0), (0, 1, 1, 100), (1, 1, 0, 107)])
    ticks = {name: tick for name, tick, *_ in commands(s)}
    rd1, rd2 = [tick for _, tick, *_ in commands(s, "RD")]
    assert ticks["ACT"] == 0
    assert rd1 == 22
    assert ticks["WR"] == 100
    assert rd2 == 100 + 16 + 4 + 12  # CWL + BL + tWTR_L
    _, s, _ = serve(memory, [(0, 2, 0, 0), (2, 1, 1, 24)])
    assert [tick for _, tick, *_ in commands(s, "WR")] == [30 + 22 + 4 + 2 - 16]


def test_writes_are_posted_and_forwarded() -> None:
    memory = load_memory("hbm2", {"refresh": "none"})
    _, s, done = serve(memory, [(0, 2, 1, 0), (0, 1, 1, 2), (1, 1, 0, 3)])
    assert done == [(0, 1), (1, 2), (2, 4)]
    assert s.count[0, [at.RD, at.WR, at.ABSORBED, at.FORWARDED]].tolist() == [0, 2, 1, 1]


IDLE = [("hbm2", "staggered"), ("ddr4-3200", "staggered"), ("hbm2-neupims", "staggered"), ("hbm2", "per_bank"),
        ("hbm2-neupims", "per_bank"), ("hbm3", "per_bank"), ("ddr5-4800", "same_bank")]  # fmt: skip


@pytest.mark.parametrize("sleep", SLEEPS, ids=["awake", "power-down", "self-refresh"])
@pytest.mark.parametrize(("name", "refresh"), IDLE)
def test_idle_refreshes_in_closed_form(name: str, refresh: str, sleep: dict[str, str]) -> None:
    after = {"controller.power_down_after": 20_000} if sleep else {}
    memory = load_memory(name, {"refresh": refresh, **sleep, **after})
    results = []
    for log in (100_000, 0):  # with a log to fill every refresh is stepped
        t = compile_memory(memory, steady=False)
        s = new_state(t, 1, 4, log=log)
        push(t, s, 0, 0, 100, 0, 0, 0)
        push(t, s, 0, 300, 50, 0, 1, 1_234_567)
        done = finish(t, s)
        settle(t, s, 0, 3_000_000)
        ranks = s.rank[0, : at.SLEPT_FROM]  # beyond is what the log still has to say
        later = [[int(n) for n in standby(t, s, 0, 3_000_000)], ranks.tolist(), s.bank[0, at.REFRESHED].tolist()]
        push(t, s, 0, 77, 300, 0, 2, 3_000_001)  # what the last refreshes still forbid
        done += finish(t, s)
        results.append((done, s.count[0].tolist(), later))
        if log:
            intervals = 3_000_000 // t.refresh_interval
            refreshes = [row for row in commands(s, memory.refresh.command) if row[1] < 3_000_000]
            assert check_log(memory, s.log[0, : s.scalar[0, at.LOGGED]]).count == 0
            if t.self_refresh:  # while they sleep, ranks need no refresh commands
                refreshed = 2 * 25_000 // t.refresh_interval * t.ranks + 40
                assert len(refreshes) < refreshed
            else:
                assert len(refreshes) in range(intervals * t.ranks - t.ranks, (intervals + 1) * t.ranks)
    assert results[0] == results[1]


def test_waking_takes_its_time() -> None:
    idle, later = 22 + 22 + 4, 205_000
    found = {}
    for choice, waking in (("none", 0), ("fast", 10), ("self_refresh", 592)):
        changes = {} if choice == "none" else {"controller.power_down": choice, "controller.power_down_after": 50_000}
        memory = load_memory("ddr4-3200-matched", changes)
        t, s, done = serve(memory, [(0, 1, 0, 0), (2048, 1, 0, later)])
        assert done == [(0, idle), (1, later + waking + idle)]
        found[choice] = [int(n) for n in standby(t, s, 0, later)]
        refreshes = [tick for _, tick, *_ in commands(s, "REF")]
        if choice == "fast":  # the first four come before the rank sleeps, closed by the first
            assert refreshes[1:5] == [2 * 12480, 3 * 12480, 4 * 12480, 5 * 12480 + 10]
        if choice == "self_refresh":
            assert len(refreshes) == 4
    # Asleep once the refresh is over that runs 50000 ticks after the read at 22: but for 12 further ones and 10 ticks
    # before each; or all the time.
    assert found["self_refresh"][3] == later - (4 * 12480 + 576)
    assert found["fast"][3] == found["self_refresh"][3] - 12 * (10 + 576)
    assert all(sum(times) == later for times in found.values())
    assert found["none"][3] == 0


def test_refresh_takes_its_share() -> None:
    memory = load_memory("ddr4-3200-matched")
    row = memory.bursts_per_channel // memory.organisation.rows
    _, s, done = serve(memory, [(k * row, 1, 0, 0) for k in range(1500)], log=0)
    assert done[-1][1] / 1500 == pytest.approx(74 / (1 - 576 / 12480), rel=3e-3)
    assert s.count[0, at.REF] == done[-1][1] // 12480


@pytest.mark.parametrize("name", MEMORIES[:3] + MEMORIES[4:])
@pytest.mark.parametrize("is_write", [0, 1])
def test_streams_run_near_peak(name: str, is_write: int) -> None:
    memory = load_memory(name)
    t = compile_memory(memory)
    s = new_state(t, 1, 2)
    n = 40_000
    push(t, s, 0, 0, n, is_write, 0, 0)
    finish(t, s)
    peak = n * t.burst_ticks
    available = 1 if memory.refresh.suffix else 1 - t.refresh_ticks / t.refresh_interval
    assert peak < s.scalar[0, at.LAST_END] < 1.12 * peak
    assert s.scalar[0, at.LAST_END] <= peak / available / 0.95


def one_bank(memory: Memory, n: int) -> Work:
    """Reads of one bank, each of another row."""
    row = memory.bursts_per_channel // memory.organisation.rows
    return [(k * row, 1, 0, 0) for k in range(n)]


@pytest.mark.parametrize(
    ("name", "refresh", "commands_a_round"),
    [("hbm2", "per_bank", 16), ("hbm3", "per_bank", 32), ("ddr5-4800", "same_bank", 4)],
)
def test_a_bank_is_refreshed_once_a_round(name: str, refresh: str, commands_a_round: int) -> None:
    memory = load_memory(name, {"refresh": refresh})
    t = memory.timings
    n = 4000
    ends = []
    for each in (memory, load_memory(name, {"refresh": "none"})):
        _, s, done = serve(each, one_bank(memory, n), log=0)
        ends.append(done[-1][1])
    single = t["tRFC" + memory.refresh.suffix]
    round_ticks = memory.refresh_interval * memory.refresh_units
    share = 1 - ends[1] / ends[0]
    # The bank gives up the time of its own refresh and up to one row cycle to get ready for it; the others' hold
    # an activation back for a moment at most.
    command = memory.refresh.command
    moment = max(r.gap for r in memory.rule_rows if (r.before, r.after) == (command, "ACT") and r.level != "bank")
    assert single / round_ticks < share < (single + t["tRC"] + moment * (memory.refresh_units - 1)) / round_ticks
    _, s, done = serve(memory, one_bank(memory, n), log=20_000)
    refreshes = commands(s, memory.refresh.command)
    places = [row[2:5] for row in refreshes]
    whole = len(places) // commands_a_round * commands_a_round
    ranks = sorted({place[0] for place in places})
    assert len(refreshes) // len(ranks) == done[-1][1] // memory.refresh_interval
    for r in ranks:
        mine = [place for place in places[:whole] if place[0] == r]
        units = memory.refresh_units
        for begin in range(0, len(mine) - units + 1, units):
            assert len(set(mine[begin : begin + units])) == units
    assert check_log(memory, s.log[0, : s.scalar[0, at.LOGGED]]).count == 0


def test_a_stream_does_not_wait_for_refreshes_of_other_banks() -> None:
    memory = load_memory("hbm3", {"refresh": "per_bank"})
    ends = []
    for refresh in ("per_bank", "none", "together"):
        _, s, _ = serve(load_memory("hbm3", {"refresh": refresh}), [(0, 60_000, 0, 0)], log=0)
        ends.append(int(s.scalar[0, at.LAST_END]))
    assert ends[1] <= ends[0] < 1.01 * ends[1]
    assert ends[2] > ends[1] / (1 - memory.timings["tRFC"] / memory.timings["tREFI"])


def test_the_refreshed_bank_is_one_that_nobody_waits_for() -> None:
    # One row of each group's bank 2 stays in use; the refreshes of the time go to other banks, except when forced to.
    memory = load_memory("hbm2", {"refresh": "per_bank"})
    _, s, _ = serve(memory, [(2 * 128, 128, 0, 0), *((2 * 128 + k % 128, 1, 0, 0) for k in range(1500))])
    places = [row[3:5] for row in commands(s, "REFpb")]
    assert len(places) >= 12
    assert not {(g, 2) for g in range(4)} & set(places[:12])


def test_ring_refuses_when_full() -> None:
    t = compile_memory(load_memory("hbm2"))
    s = new_state(t, 1, 2)
    assert push(t, s, 0, 0, 5, 0, 0, 0)
    assert push(t, s, 0, 5, 5, 0, 1, 0)
    assert not push(t, s, 0, 10, 5, 0, 2, 0)
    assert [task for task, _ in finish(t, s)] == [0, 1]
    assert push(t, s, 0, 10, 5, 0, 2, 1000)


def test_classes_are_independent() -> None:
    t = compile_memory(load_memory("hbm2"))
    s = new_state(t, 2, 2)
    push(t, s, 1, 40, 500, 0, 3, 0)
    assert advance(t, s, 0, NEVER) == NEVER
    advance(t, s, 1, NEVER)
    assert s.done_count.tolist() == [0, 1]
    assert s.count[0].sum() == 0
