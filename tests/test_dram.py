"""The DRAM channel kernel: against its plain-Python twin, against closed forms, and against itself in other steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_dram import Naive, Segment

from sim.config import ConfigError
from sim.dram_check import check_log
from sim.kernels import dram_tables as at
from sim.kernels.dram import NEVER, advance, push, standby
from sim.standards import compile_memory, load_memory, new_state
from tests.dram_channel import FINE_GRAINED, MEMORIES, Work, commands, finish, serve, serve_in_parts, works

pytestmark = pytest.mark.kernels


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
    _, s, parts = serve_in_parts(memory, work, cuts)
    assert parts == done
    assert commands(s) == commands(whole)


def test_no_read_waits_for_ever() -> None:
    other_rank = 1 << 11  # of the mapping's ra
    work = [(0, 1, 0, 0), (other_rank, 1, 0, 0)] + [(0, 512, 0, 0)] * 40  # row hits in the first rank
    served = []
    for limit in (500, 10**6):
        _, _, done = serve(load_memory("ddr4-3200", {"refresh": "none", "controller.age_limit": limit}), work, log=0)
        served.append(dict(done)[1])
    assert served[0] < 500 + 100
    assert served[1] > 40 * 512 * 4


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
