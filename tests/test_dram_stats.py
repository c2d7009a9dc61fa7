"""Tables of a DRAM run: against counting command by command, against the run's own counters, and by hand."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import dram_traces
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dram_unit import columns

from analysis.dram import FIGURES, read_dram_result
from analysis.figures import draw_all
from sim.config import ConfigError
from sim.dram_stats import (
    STATES,
    CommandLog,
    Geometry,
    Intervals,
    bank_activity,
    bank_table,
    channel_table,
    command_log,
    covered,
    geometry,
    open_times,
    row_hits,
    window_table,
    window_ticks,
)
from sim.dram_unit import replay_requests, run, summary
from sim.kernels import dram_tables as at
from sim.standards import COMMANDS, load_memory

ONE = Geometry(
    channels=1, pseudo_channels=1, ranks=1, bank_groups=1, banks=2, burst_bytes=64, clock_ticks=1, period_num=1000,
    period_den=1, read_latency=10, write_latency=8, burst_ticks=4, activate_ticks=5, precharge_ticks=5,
    refresh_ticks=20, bank_refresh_ticks=20, end=100,
)  # fmt: skip


def log_of(*commands: tuple[str, int, int, int]) -> CommandLog:
    """A log of one channel and rank from (command, tick, bank, row)."""
    rows = np.array([(0, COMMANDS.index(kind), tick, 0, bank, row) for kind, tick, bank, row in commands], np.int64)
    return CommandLog(*rows.reshape(-1, 6).T)


BY_HAND = log_of(
    ("ACT", 10, 0, 7), ("RD", 15, 0, 7), ("RD", 19, 0, 7), ("ACT", 20, 1, 3), ("WR", 30, 1, 3), ("PRE", 40, 0, -1),
    ("PREA", 50, -1, -1), ("REF", 55, -1, -1), ("ACT", 80, 1, 4), ("RD", 86, 1, 4),
)  # fmt: skip


def replayed(name: str, trace: list[dram_traces.Request], channels: int):
    memory, requests = load_memory(name), columns(trace)
    done = replay_requests(memory, requests, channels, log=8 * len(trace) + 4096, follow=False)
    result = summary(memory, requests, done, check=False)
    used = done.state.scalar[:, at.LOGGED]
    assert (used < done.state.log.shape[1]).all()
    log = command_log(memory, [done.state.log[c, : used[c]] for c in range(channels)])
    end = int(max(done.state.scalar[:, at.LAST_READ_END].max(), done.state.scalar[:, at.LAST_WRITE].max()))
    return result, log, geometry(memory, channels, log, end), done


def test_a_log_by_hand() -> None:
    table = bank_table(ONE, BY_HAND)
    assert {name: table[name].tolist() for name in ("activates", "reads", "writes", "row_hits", "precharges")} == {
        "activates": [1, 2], "reads": [2, 1], "writes": [0, 1], "row_hits": [1, 0], "precharges": [1, 0],
    }  # fmt: skip
    # Bank 0: 10 to 40. Bank 1: 20 to the precharge of all banks at 50, and 80 to the end at 100.
    assert table["open_ns"].tolist() == [30, 30 + 20]
    windows = window_table(ONE, BY_HAND, 25)
    assert windows["reads"].tolist() == [2, 0, 0, 1]
    assert windows["writes"].tolist() == [0, 1, 0, 0]
    assert windows["precharges"].tolist() == [0, 1, 1, 0]
    assert windows["refreshes"].tolist() == [0, 0, 1, 0]
    # Bursts: reads 25-29, 29-33, 96-100; the write 38-42. 64 B in 4 ns are 16 GB/s.
    assert (windows["read_bytes_per_s"] * 25e-9).tolist() == pytest.approx([0, 128, 0, 64])
    assert (windows["write_bytes_per_s"] * 25e-9).tolist() == pytest.approx([0, 64, 0, 0])
    assert windows["data_bus_busy"].tolist() == [0, 12 / 25, 0, 4 / 25]
    channel = channel_table(ONE, BY_HAND)
    assert (channel["bytes"][0], channel["data_bus_busy"][0], channel["mean_open_banks"][0]) == (256, 0.16, 0.8)
    assert channel["precharges"][0] == 2 and channel["row_hit_share"][0] == 1 / 4


def test_activity_by_hand() -> None:
    shares = bank_activity(ONE, BY_HAND, [0], 0, 10, 10)
    assert shares["open"][0].tolist() == [0, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    assert shares["activate"][1].tolist() == [0, 0, 0.5, 0, 0, 0, 0, 0, 0.5, 0]
    assert shares["read"][0].tolist() == [0, 0.5, 0.3, 0, 0, 0, 0, 0, 0, 0]
    for bank in (0, 1):
        assert shares["refresh"][bank].tolist() == [0, 0, 0, 0, 0, 0.5, 1, 0.5, 0, 0]
    assert shares["precharge"][1].tolist() == [0, 0, 0, 0, 0, 0.5, 0, 0, 0, 0]


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(-20, 120), st.integers(0, 60)), max_size=30),
    st.integers(-5, 40), st.integers(1, 13), st.integers(1, 9),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_covered_counts_ticks(parts: list[tuple[int, int, int]], start: int, width: int, bins: int) -> None:
    rows = np.array(parts, np.int64).reshape(-1, 3)
    intervals = Intervals(rows[:, 0], rows[:, 1], rows[:, 1] + rows[:, 2])
    want = np.zeros((3, bins), np.int64)
    for row, begin, length in parts:
        for tick in range(begin, begin + length):
            if start <= tick < start + width * bins:
                want[row, (tick - start) // width] += 1
    assert np.array_equal(covered(intervals, 3, start, width, bins), want)


@pytest.mark.parametrize(("name", "channels"), [("ddr4-3200", 2), ("hbm2", 4)])
def test_tables_agree_with_the_counters(name: str, channels: int) -> None:
    granule = load_memory(name).burst_bytes
    trace = dram_traces.mix_2r1w(1500, granule) + dram_traces.gemv(2500, granule)
    trace = [(w, a % (1 << 28)) for w, a in trace]
    result, log, g, done = replayed(name, trace, channels)
    totals = {
        "reads": at.RD, "writes": at.WR, "activates": at.ACT,
    }  # fmt: skip
    width = 7 * window_ticks(g)
    for table in (channel_table(g, log), bank_table(g, log), window_table(g, log, width)):
        for column, counter in totals.items():
            assert int(table[column].sum()) == int(done.state.count[:, counter].sum())
    windows = window_table(g, log, width)
    moved = (windows["bandwidth_bytes_per_s"] * (windows["end_ns"] - windows["start_ns"])).sum() * 1e-9
    assert moved == pytest.approx((done.state.count[:, [at.RD, at.WR]].sum()) * granule)
    assert windows["data_bus_busy"].max() <= 1
    assert windows["end_ns"].max() == pytest.approx(g.ns(g.end))
    assert int(channel_table(g, log)["refreshes"].sum()) == result["refreshes"]
    assert int(channel_table(g, log)["precharges"].sum()) == result["precharges"]


def test_row_hits_and_open_times_against_single_steps() -> None:
    _, log, g, _ = replayed("ddr4-3200", dram_traces.gemv(3000, 64), 1)
    used: dict[int, bool] = {}
    opened: dict[int, int] = {}
    hits, spans = 0, []
    for kind, tick, rank, bank in zip(log.kind, log.tick, log.rank, log.bank, strict=True):
        name = COMMANDS[kind]
        banks = range(rank * g.rank_banks, (rank + 1) * g.rank_banks) if name == "PREA" else [int(bank)]
        if name == "ACT":
            used[bank], opened[bank] = False, tick
        elif name in ("RD", "WR"):
            hits += used[bank]
            used[bank] = True
        elif name in ("PRE", "PREA"):
            spans += [(b, opened.pop(b), tick) for b in banks if b in opened]
    spans += [(b, since, g.end) for b, since in opened.items()]
    assert int(row_hits(g, log).sum()) == hits
    assert sorted(zip(*(c.tolist() for c in open_times(g, log)), strict=True)) == sorted(map(tuple, spans))


def test_activity_is_the_same_however_it_is_cut() -> None:
    trace = [(w, a % (1 << 28)) for w, a in dram_traces.mix_2r1w(2000, 32)]
    _, log, g, _ = replayed("hbm2", trace, 2)
    fine = bank_activity(g, log, [1], 0, 5, 1200)
    coarse = bank_activity(g, log, [1], 0, 50, 120)
    for state in ("open", "read", "write"):
        assert np.allclose(fine[state].reshape(g.channel_banks, 120, 10).mean(axis=2), coarse[state])
    both = bank_activity(g, log, [0, 1], 0, 50, 120)
    assert all(np.array_equal(both[state][g.channel_banks :], coarse[state]) for state in STATES)


def test_a_window_is_a_whole_number_of_clocks() -> None:
    assert window_ticks(ONE) == 1 and window_ticks(ONE, 25_999) == 25 and window_ticks(ONE, 3) == 1
    long = Geometry(**{**ONE.as_dict(), "end": 123_456, "clock_ticks": 2})
    assert window_ticks(long) == 2 * 500


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("dram")
    trace = base / "mix.trace"
    trace.write_text("".join(f"{'ST' if w else 'LD'} {a:#x}\n" for w, a in dram_traces.mix_2r1w(4000, 64)))
    run("ddr4-3200", trace, channels=2, output=base / "out")
    return base / "out"


def test_folder(folder: Path) -> None:
    pictures = {f"{name}.png" for name in FIGURES}
    tables = {f"{name}.{kind}" for name in ("banks", "channels", "windows") for kind in ("csv", "parquet")}
    names = {path.name for path in folder.iterdir()}
    assert names == {"dram.json", "memory.yaml", "commands.parquet", ".opcycle.json"} | tables | pictures
    said = json.loads((folder / "dram.json").read_text())
    assert (said["schema"], said["memory"], said["trace"]) == ("opcycle/dram-result/1", "ddr4-3200", "mix.trace")
    assert said["reads"] + said["writes"] == 4000 and "wall_s" not in said
    with (folder / "windows.csv").open() as file:
        rows = list(csv.DictReader(file))
    stored = pq.read_table(folder / "windows.parquet").to_pydict()
    assert [float(row["read_bytes_per_s"]) for row in rows] == stored["read_bytes_per_s"]
    assert len(rows) % 2 == 0 and len(rows) <= 2 * 200
    assert pq.read_metadata(folder / "commands.parquet").num_rows == said["commands"]
    assert load_memory(folder / "memory.yaml") == load_memory("ddr4-3200")


def test_pictures_come_from_the_folder_alone(folder: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder.glob("*.png")}
    assert {path.name: path.read_bytes() for path in draw_all(folder)} == before


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_leaves_the_page(folder: Path, name: str) -> None:
    drawn = FIGURES[name](read_dram_result(folder))
    drawn.canvas.draw()
    ink = drawn.get_tightbbox(drawn.canvas.get_renderer())
    wide, tall = drawn.get_size_inches()
    assert ink.x0 >= 0 and ink.y0 >= 0 and ink.x1 <= wide and ink.y1 <= tall


@pytest.mark.parametrize(("name", "channels", "n"), [("hbm2-neupims", 32, 300), ("ddr4-3200-matched", 1, 1)])
def test_few_requests_and_many_channels_are_drawn(name: str, channels: int, n: int, tmp_path: Path) -> None:
    trace = tmp_path / "t"
    trace.write_text("".join(f"LD {64 * i}\n" for i in range(n)))
    run(name, trace, channels=channels, output=tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.png"))) == len(FIGURES)


def test_pictures_change_no_result(tmp_path: Path) -> None:
    trace = tmp_path / "t"
    trace.write_text("".join(f"LD {64 * i}\n" for i in range(3000)))
    with_folder = run("hbm2", trace, output=tmp_path / "out")
    without = run("hbm2", trace)
    assert {k: v for k, v in with_folder.items() if k != "wall_s"} == {
        k: v for k, v in without.items() if k != "wall_s"
    }


def test_refusals(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "t"
    trace.write_text("LD 0\nLD 64 20000000\n")
    with pytest.raises(ConfigError, match="more than 2000000 rows; choose a longer one"):
        run("ddr4-3200", trace, output=tmp_path / "out", window_ps=625)
    assert not (tmp_path / "out").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"holds no opcycle result \(such as 'thesis.tex'\)"):
        run("ddr4-3200", trace, output=tmp_path / "mine")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "dram.json").write_text('{"schema": "opcycle/dram-result/9"}')
    with pytest.raises(ConfigError, match="opcycle/dram-result/9.*opcycle/dram-result/1"):
        draw_all(damaged)
