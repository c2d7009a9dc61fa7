"""Refreshing and sleeping ranks and banks: against the plain twin, and in closed form while a channel is idle."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_dram import Naive, Segment

from sim.dram_check import check_log
from sim.kernels import dram_tables as at
from sim.kernels.dram import NEVER, push, settle, standby
from sim.standards import Memory, compile_memory, load_memory, new_state
from tests.dram_channel import FINE_GRAINED, MEMORIES, Work, commands, finish, serve, serve_in_parts, works

pytestmark = pytest.mark.kernels
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
    assert serve_in_parts(memory, work, cuts, log=0)[2] == done


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
