"""The policies of published controllers: equal to them in cycles and counts, legal, however they are advanced."""

from __future__ import annotations

import csv
from functools import cache
from pathlib import Path
from typing import Any

import dram_traces
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.dram_check import check_log
from sim.dram_unit import Replay, Requests, replay_requests, run
from sim.kernels import dram_tables as at
from sim.kernels.dram import settle, standby
from sim.standards import load_memory
from tests.dram_channel import MEMORIES, Work, commands, serve_in_parts, works

DATA = Path(__file__).parent / "data" / "dram"
PEERS = {"Ramulator 2.1": "ramulator", "DRAMsim3": "dramsim3"}
POLICIES = tuple(PEERS.values())
SYSTEMS = {
    "ddr4_3200_1ch": ("ddr4-3200-matched", 1, 64, "ro:16,ba:2,bg:2,ra:0,co:7,ch:0"),
    "ddr4_3200_8ch": ("ddr4-3200-matched", 8, 64, "ro:16,ba:2,bg:2,ra:0,co:7,ch:3"),
    "hbm2_2000_16pc": ("hbm2-pc-matched", 16, 32, "ro:14,ba:2,bg:2,co:5,ch:4"),
}
OF_CHANNELS = {row[1]: name for name, row in SYSTEMS.items()}


@cache
def requests(system: str, pattern: str, n: int) -> Requests:
    _, _, granule, mapping = SYSTEMS[system]
    match pattern:
        case "chase" | "bank_conflict":
            trace = getattr(dram_traces, pattern)(n, granule, mapping)
        case "gemv":
            trace = dram_traces.gemv(n, granule)
        case "gemv_alias":
            trace = dram_traces.gemv(n, granule, skew=0)
        case "stream_read" | "stream_write":
            trace = dram_traces.stream(n, granule, int(pattern == "stream_write"))
        case _:
            trace = getattr(dram_traces, pattern)(n, granule)
    rows = np.array(trace, np.int64)
    return Requests(rows[:, 1].copy(), rows[:, 0].copy(), np.zeros(len(rows), np.int64))


def replay(system: str, pattern: str, n: int, policy: str) -> Replay:
    name, channels, *_ = SYSTEMS[system]
    memory = load_memory(name, {"policy": policy})
    return replay_requests(memory, requests(system, pattern, n), channels, in_flight=int(pattern == "chase"))


def cycles(replayed: Replay) -> int:
    """Clocks from the first up to and with that of the last completion, as the published runs counted them."""
    scalar = replayed.state.scalar
    return int(max(scalar[:, at.LAST_READ_END].max(), scalar[:, at.LAST_WRITE].max())) + 1


def rows_of(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(encoding="ascii") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("row", rows_of("matched_runs.csv"), ids=lambda row: f"{row['system']}-{row['pattern']}")
def test_equal_to_published_runs(row: dict[str, str]) -> None:
    system = OF_CHANNELS[int(row["channels"])]
    policy = PEERS[row["simulator"]]
    replayed = replay(system, row["pattern"], int(row["requests"]), policy)
    assert cycles(replayed) == int(row["cycles"])
    later = 2000 if policy == "dramsim3" and int(row["WR"]) else 0  # those were counted that much after their end
    for c in range(int(row["channels"])):
        settle(replayed.tables, replayed.state, c, cycles(replayed) + later)
    count = replayed.state.count.sum(axis=0)
    names = ("row_hits", "ACT", "RD", "WR", "REF_all_bank")
    assert [int(row[name]) for name in names] == [int(count[k]) for k in (at.HITS, at.ACT, at.RD, at.WR, at.REF)]


@pytest.mark.parametrize(
    ("policy", "pattern", "activates", "cycles_a_request"),
    [  # totals and rates published without the other counts of their runs
        ("ramulator", "gemv_alias", 11_665, None),
        ("dramsim3", "gemv_alias", 46_227, None),
        ("ramulator", "bank_conflict", None, 77.57),
        ("dramsim3", "bank_conflict", None, 77.71),
    ],
)
def test_equal_to_published_totals(
    policy: str, pattern: str, activates: int | None, cycles_a_request: float | None
) -> None:
    n = 20_000 if pattern == "bank_conflict" else 100_000
    replayed = replay("ddr4_3200_1ch", pattern, n, policy)
    assert activates is None or int(replayed.state.count[0, at.ACT]) == activates
    assert cycles_a_request is None or round(cycles(replayed) / n, 2) == cycles_a_request


def test_longer_buffers_as_published() -> None:
    memory = load_memory("ddr4-3200-matched", {"policy": "ramulator", "queue": 160})
    for pattern, published in (("stream_read", 421_142), ("mix_2r1w", 897_986)):
        assert cycles(replay_requests(memory, requests("ddr4_3200_1ch", pattern, 100_000), 1)) == published
    memory = load_memory("hbm2-pc-matched", {"policy": "ramulator", "queue": 160})
    assert cycles(replay_requests(memory, requests("hbm2_2000_16pc", "mix_2r1w", 100_000), 16)) == 27_604


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("system", "pattern"), sorted({(row["system"], row["pattern"]) for row in rows_of("first_requests.csv")})
)
@pytest.mark.parametrize("policy", POLICIES)
def test_first_requests(system: str, pattern: str, policy: str) -> None:
    rows = [row for row in rows_of("first_requests.csv") if (row["system"], row["pattern"]) == (system, pattern)]
    replayed = replay(system, pattern, len(rows), policy)
    assert replayed.done is not None
    assert replayed.accepted is not None
    peer = "ramulator2" if policy == "ramulator" else policy
    assert replayed.done.tolist() == [int(row[f"{peer}_done"]) for row in rows]
    assert replayed.accepted.tolist() == [int(row[f"{peer}_accept"]) for row in rows]


@pytest.mark.parametrize("system", list(SYSTEMS))
@pytest.mark.parametrize("pattern", ["stream_write", "bank_conflict", "gemv", "gemv_alias"])
def test_default_is_not_slower_than_both(system: str, pattern: str) -> None:
    n = 4000 if pattern == "bank_conflict" else 60_000
    took = {policy: cycles(replay(system, pattern, n, policy)) for policy in (*POLICIES, "frfcfs")}
    assert took["frfcfs"] <= 1.03 * max(took["ramulator"], took["dramsim3"])


def served(name: str, policy: str, work: Work, cuts: list[int], settings_: dict[str, Any]) -> tuple[Any, ...]:
    memory = load_memory(name, {"policy": policy, **settings_})
    return memory, *serve_in_parts(memory, work, cuts, steady=True)


@settings(max_examples=40, deadline=None)
@given(
    name=st.sampled_from(
        (*MEMORIES, "hbm3", "hbm3e", "ddr5-4800", "lpddr4x")
    ),  # half clocks, commands of several ticks
    policy=st.sampled_from(POLICIES),
    work=works(),
    queue=st.sampled_from([2, 9, 32]),
    refresh=st.sampled_from(["none", "staggered", "together"]),
    cuts=st.lists(st.integers(1, 400), max_size=30),
)
def test_legal_complete_and_resumable(
    name: str, policy: str, work: Work, queue: int, refresh: str, cuts: list[int]
) -> None:
    changes = {"queue": queue, "refresh": refresh}
    memory, t, s, done = served(name, policy, work, [], changes)
    assert check_log(memory, s.log[0, : s.scalar[0, at.LOGGED]]).count == 0
    assert sorted(task for task, _ in done) == list(range(len(work)))
    count = s.count[0]
    reads = sum(n for _, n, is_write, _ in work if not is_write)
    assert count[at.READS_DONE] + count[at.FORWARDED] == reads
    assert count[at.RD] <= reads if policy == "dramsim3" else count[at.RD] == count[at.READS_DONE]
    left = count[at.WR] + count[at.ABSORBED] + s.scalar[0, at.QUEUED_W]
    assert left == sum(n for _, n, is_write, _ in work if is_write)
    assert count[at.HITS] + count[at.MISSES] + count[at.CONFLICTS] == count[at.RD] + count[at.WR]
    end = int(s.scalar[0, at.LAST_END]) + 100_000
    _, _, other, parts = served(name, policy, work, cuts, changes)
    assert parts == done
    assert commands(other) == commands(s)
    settle(t, s, 0, end)
    assert sum(standby(t, s, 0, end)) == t.ranks * end


@pytest.mark.kernels
def test_reads_of_one_address_are_served_together() -> None:
    _, _, s, done = served("ddr4-3200-matched", "dramsim3", [(5, 1, 0, 0)] * 3, [], {"refresh": "none"})
    assert s.count[0, [at.RD, at.READS_DONE]].tolist() == [1, 3]
    assert [tick for _, tick in done] == [1 + 22 + 22 + 4] * 3
    _, _, s, _ = served("ddr4-3200-matched", "ramulator", [(5, 1, 0, 0)] * 3, [], {"refresh": "none"})
    assert s.count[0, at.RD] == 3


@pytest.mark.kernels
def test_a_write_after_a_read_of_its_address_does_not_block() -> None:
    work = [(k * 2048, 1, 0, 0) for k in range(40)] + [(k * 2048, 1, 1, 0) for k in range(39, -1, -1)]
    _, _, s, done = served("ddr4-3200-matched", "dramsim3", work, [], {"refresh": "none"})
    assert len(done) == 80
    assert s.scalar[0, at.QUEUED_W] <= 8


@pytest.mark.kernels
def test_few_writes_stay_in_the_buffer() -> None:
    _, t, s, _ = served("ddr4-3200-matched", "dramsim3", [(0, 8, 1, 0)], [], {})
    assert (s.count[0, at.WR], s.scalar[0, at.QUEUED_W]) == (0, 8)
    settle(t, s, 0, 10**6)
    assert s.count[0, at.REF] == 10**6 // 12480
    _, _, s, _ = served("ddr4-3200-matched", "dramsim3", [(0, 9, 1, 0)], [], {})
    assert s.count[0, at.WR] == 9


def test_settings_of_a_policy() -> None:
    memory = load_memory("ddr4-3200", {"policy": "ramulator"})
    c = memory.controller
    assert (c.read_queue, c.write_queue, c.drain_high, c.drain_low, memory.refresh) == (32, 32, 26, 6, "together")
    c = load_memory("ddr4-3200", {"policy": "ramulator", "queue": 160}).controller
    assert (c.read_queue, c.drain_high, c.drain_low) == (160, 129, 31)
    c = load_memory("ddr4-3200", {"policy": "dramsim3", "cap": 7}).controller
    assert (c.read_queue, c.bank_queue, c.drain_high, c.drain_low, c.cap) == (32, 8, 32, 8, 7)


def test_run_with_a_policy(tmp_path: Path) -> None:
    path = tmp_path / "t"
    trace = dram_traces.mix_2r1w(2000, 64)
    path.write_text("".join(f"{'ST' if w else 'LD'} {a:#x}\n" for w, a in trace), encoding="ascii")
    for policy in POLICIES:
        result = run("ddr4-3200-matched", path, channels=8, overrides={"policy": policy}, check=True)
        assert result["violations"] == 0
        assert result["reads"] + result["writes"] == 2000
