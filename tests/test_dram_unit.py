"""`unit dram` as a library: against published simulators request by request, its keys, settings and refusals."""

from __future__ import annotations

import csv
from pathlib import Path

import dram_traces
import numpy as np
import pytest
from dram_traces import Request
from hypothesis import given
from hypothesis import strategies as st

from sim.config import ConfigError
from sim.dram_text import parse_plain
from sim.dram_unit import Replay, Requests, read_trace, replay_requests, run, summary
from sim.standards import load_memory

DATA = Path(__file__).parent / "data" / "dram"
SYSTEMS = {
    "ddr4_3200_1ch": ("ddr4-3200-matched", 1, 64, "ro:16,ba:2,bg:2,ra:0,co:7,ch:0", ("ds3_ddr4_1ch_m", "ram_ddr4_1ch")),
    "ddr4_3200_8ch": ("ddr4-3200-matched", 8, 64, "ro:16,ba:2,bg:2,ra:0,co:7,ch:3", ("ds3_ddr4_8ch_m", "ram_ddr4_8ch")),
    "hbm2_2000_16pc": ("hbm2-pc-matched", 16, 32, "ro:14,ba:2,bg:2,co:5,ch:4", ("ds3_hbm2pc_m", "ram_hbm2pc_m")),
}
BOTH = [(system, pattern) for system in SYSTEMS for pattern in ("stream_read", "rand_read", "mix_2r1w", "chase")]


def requests(system: str, pattern: str, n: int) -> list[Request]:
    _, _, granule, mapping, _ = SYSTEMS[system]
    match pattern:
        case "stream_read":
            return dram_traces.stream(n, granule)
        case "chase":
            return dram_traces.chase(n, granule, mapping)
        case "rand_read":
            return dram_traces.rand_read(n, granule)
    return dram_traces.mix_2r1w(n, granule)


def columns(trace: list[Request]) -> Requests:
    rows = np.array(trace, np.int64)
    return Requests(rows[:, 1].copy(), rows[:, 0].copy(), np.zeros(len(rows), np.int64))


def replay(system: str, pattern: str, n: int) -> Replay:
    name, channels, *_ = SYSTEMS[system]
    trace = columns(requests(system, pattern, n))
    return replay_requests(load_memory(name), trace, channels, in_flight=int(pattern == "chase"))


def first_requests() -> dict[tuple[str, str], list[dict[str, str]]]:
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    with (DATA / "first_requests.csv").open(encoding="ascii") as file:
        for row in csv.DictReader(file):
            found.setdefault((row["system"], row["pattern"]), []).append(row)
    return found


@pytest.mark.parametrize(("system", "pattern"), list(first_requests()))
def test_first_requests_complete_as_published(system: str, pattern: str) -> None:
    rows = first_requests()[system, pattern]
    trace = requests(system, pattern, len(rows))
    assert [address for _, address in trace] == [int(row["address_hex"], 16) for row in rows]
    done = replay(system, pattern, len(rows)).done
    assert done is not None
    for peer in ("ramulator2_done", "dramsim3_done"):
        assert len({int(row[peer]) - int(tick) for row, tick in zip(rows, done, strict=True)}) == 1


@pytest.mark.parametrize(("system", "pattern"), BOTH)
def test_never_slower_than_both_peers(system: str, pattern: str) -> None:
    name, channels, *_, peers = SYSTEMS[system]
    with (DATA / "matched_runs.csv").open(encoding="ascii") as file:
        cycles = [
            (int(row["cycles"]), int(row["requests"]))
            for row in csv.DictReader(file)
            if row["system"] in peers and row["pattern"] == pattern
        ]
    trace = columns(requests(system, pattern, cycles[0][1]))
    memory = load_memory(name)
    replayed = replay_requests(memory, trace, channels, in_flight=int(pattern == "chase"), follow=False)
    result = summary(memory, trace, replayed, check=False)
    assert result["reads"] + result["writes"] == cycles[0][1]
    assert result["cycles"] <= 1.03 * max(c for c, _ in cycles)
    assert result["cycles"] <= 1.006 * min(c for c, _ in cycles)


def write(path: Path, trace: list[Request]) -> Path:
    path.write_text("".join(f"{'ST' if w else 'LD'} {a:#x}\n" for w, a in trace), encoding="ascii")
    return path


def test_result(tmp_path: Path) -> None:
    trace = write(tmp_path / "t", dram_traces.mix_2r1w(3000, 64))
    result = run("ddr4-3200", trace, channels=2, check=True)
    assert list(result) == [
        "cycles", "time_ns", "reads", "writes", "activates", "precharges", "refreshes", "row_hits", "row_misses",
        "row_conflicts", "bandwidth_bytes_per_s", "average_read_latency_ns", "energy_pj", "violations", "wall_s",
    ]  # fmt: skip
    assert (result["reads"], result["writes"], result["violations"]) == (2000, 1000, 0)
    assert result["row_hits"] + result["row_misses"] + result["row_conflicts"] == 3000
    assert result["time_ns"] == result["cycles"] * 0.625
    assert result["bandwidth_bytes_per_s"] == pytest.approx(3000 * 64e9 / result["time_ns"])
    assert all(value >= 0 for value in result["energy_pj"].values())
    again = run("ddr4-3200", trace, channels=2)
    unchecked = result | {"violations": None}
    assert {k: v for k, v in again.items() if k != "wall_s"} == {k: v for k, v in unchecked.items() if k != "wall_s"}


@pytest.mark.parametrize("name", ["ddr4-3200", "hbm2"])
def test_runs_equal_single_requests(name: str) -> None:
    memory = load_memory(name)
    burst = memory.burst_bytes
    trace = dram_traces.stream(3000, burst) + dram_traces.stream(700, burst, 1) + dram_traces.stream(5000, burst)
    asked = columns(trace)
    results = []
    for follow, steady in ((True, True), (False, False), (False, True)):
        replayed = replay_requests(memory, asked, 1, follow=follow, steady=steady)
        assert (replayed.done is not None) == follow
        result = summary(memory, asked, replayed, check=False)
        del result["wall_s"]
        results.append(result)
    assert results[0] == results[1] == results[2]


@pytest.mark.parametrize("name", ["ddr4-3200", "hbm2", "gddr6", "hbm3"])
@pytest.mark.parametrize("writes", [0.0, 0.4])
def test_a_ring_of_runs_equals_single_requests(name: str, writes: float) -> None:
    memory = load_memory(name)
    numbers = np.random.default_rng(7)
    n = 6000
    burst = numbers.integers(0, memory.bursts_per_channel, n)
    burst[1::3] = burst[::3] + 1
    asked = Requests(
        np.minimum(burst, memory.bursts_per_channel - 1) * memory.burst_bytes,
        (numbers.random(n) < writes).astype(np.int64),
        np.zeros(n, np.int64),
    )
    results = []
    for follow in (True, False):
        replayed = replay_requests(memory, asked, 1, follow=follow)
        assert (replayed.done is not None) == follow
        result = summary(memory, asked, replayed, check=False)
        del result["wall_s"]
        results.append(result)
    assert results[0] == results[1]


@pytest.mark.parametrize(("name", "channels"), [("hbm2", 4), ("ddr4-3200", 3), ("hbm2-neupims", 8)])
@pytest.mark.parametrize("rest", [0, 3])
def test_channels_alike_are_served_once(name: str, channels: int, rest: int) -> None:
    memory = load_memory(name)
    rest = min(rest, channels - 1)
    number = np.arange(channels * 1200 + rest)
    asked = Requests(number * memory.burst_bytes, number // (channels * 500) % 2, np.zeros(len(number), np.int64))
    found = []
    for follow in (True, False):
        replayed = replay_requests(memory, asked, channels, follow=follow, log=5000)
        assert (replayed.done is not None) == follow
        result = summary(memory, asked, replayed, check=True)
        del result["wall_s"]
        found.append((result, replayed.state.count.tolist(), replayed.state.log.tolist()))
    assert found[0] == found[1]
    assert found[0][0]["violations"] == 0


WORDS = st.sampled_from(
    ["LD 0", "ST 64", "LD 0x1F", "ST 0XabC0 7", "LD\t128  0012", "ST 72057594037927935", "LD 72057594037927936", "",
     "# LD x", "  ", "LD 64 # 1", "LD 007", "LD 1_0", "LD -1", "LD 0x", "LD 5 -1", "ld 0", "LDX 0", "LD 0 0x5", "#",
     "LD 0x123456789abcdef", "ST 00", " ST 8\r", "LD 9999999999999999 3", "LD ٣"]
)  # fmt: skip


@given(lines=st.lists(WORDS, min_size=1, max_size=6), end=st.sampled_from(["", "\n"]))
def test_columns_are_read_as_lines_are(tmp_path_factory: pytest.TempPathFactory, lines: list[str], end: str) -> None:
    path = tmp_path_factory.getbasetemp() / "columns.trace"
    path.write_bytes(("\n".join(lines) + end).encode())

    def outcome() -> list[list[int]] | str:
        try:
            return [column.tolist() for column in read_trace(path) if column is not None]
        except ConfigError as error:
            return str(error)

    by_column = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sim.dram_text.parse_plain", lambda content: None)
        assert outcome() == by_column


def test_plain_columns_need_no_lines() -> None:
    columns = parse_plain(b"LD 0x40\n\nST 128 9 \n# end")
    assert columns is not None
    assert [column.tolist() for column in columns] == [[64, 128], [0, 1], [0, 9], [1, 3]]


def test_limit_in_flight() -> None:
    memory = load_memory("hbm2", {"refresh": "none"})
    asked = columns(dram_traces.rand_read(300, 32)[:300])._replace(address=np.arange(300) * 32 * 512)
    for limit in (1, 3):
        replayed = replay_requests(memory, asked, 4 if limit == 3 else 1, in_flight=limit)
        assert replayed.accepted is not None
        assert replayed.done is not None
        for i in range(limit, 300):
            under_way = int((replayed.done[:i] >= replayed.accepted[i]).sum())
            assert under_way < limit
            begun = replayed.accepted[i] - 1
            assert begun <= replayed.accepted[i - 1] or int((replayed.done[:i] >= begun).sum()) >= limit


def test_arrival_column(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("# two reads\nLD 0 0\n\nLD 64 1000000\n", encoding="ascii")
    result = run("ddr4-3200-matched", path, overrides={"refresh": "none"})
    assert result["cycles"] == 1000000 + 22 + 4  # the row is still open
    result = run("ddr4-3200-matched", path)
    assert result["cycles"] == 1000000 + 48  # a refresh has closed it
    assert result["refreshes"] == 1000000 // 12480


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("LD 0\nXX 64\n", 2),
        ("LD\n", 1),
        ("LD 0x\n", 1),
        ("LD 64 -1\n", 1),
        ("LD 0 0\n\nST 1 2 3\n", 3),
        ("LD -64\n", 1),
    ],
)
def test_malformed_line(tmp_path: Path, text: str, line: int) -> None:
    path = tmp_path / "t.trace"
    path.write_text(text, encoding="ascii")
    with pytest.raises(ConfigError, match=f"t.trace:{line}: "):
        read_trace(path)


def test_refusals(tmp_path: Path) -> None:
    trace = write(tmp_path / "t", [(0, 1 << 40)])
    with pytest.raises(ConfigError, match=r"request 1 has address 0x1.*, but a channel of hbm2 ends at 0x10000000$"):
        run("hbm2", trace)
    with pytest.raises(ConfigError, match="holds no request"):
        run("hbm2", write(tmp_path / "e", []))
    with pytest.raises(ConfigError, match="no such file"):
        run("hbm2", tmp_path / "none")
    with pytest.raises(ConfigError, match="unknown memory 'hbm9'.*nearest is 'hbm"):
        run("hbm9", trace)
