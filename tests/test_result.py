"""The report: exact totals, grouped operators, unions of busy time, files that other programs read."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_cases import UNITS, counts, decoder, machine, one_pass, op, report

from sim.errors import ConfigError
from sim.joins import busy_ps, density, merge, tracks
from sim.timeline import build_timeline, chrome_trace, dram_traffic

FILES = {
    "summary.json",
    "operators.csv",
    "operators.parquet",
    "energy.csv",
    "timeline.json",
    "hwconfig.yaml",
    "workload.yaml",
}


def two_layers(**changes):
    """Two layers of a matmul and a norm: 2 us a layer, compute and load overlapping by half a microsecond."""
    ops, rows = [], []
    for layer in range(2):
        t = 2_000_000 * layer
        decision = {"tile": "128x128" if layer == 0 else "64x128"}
        ops.append(op("proj", layer, flops=4000, read_bytes=640, write_bytes=64, decisions=decision))
        ops.append(op("norm", layer, kind="reduce", role="norm", vector_ops=300, read_bytes=64, write_bytes=64))
        rows.append((2, 2 * layer, t, t + 1_000_000, {"dram_read_bytes": 704}))
        rows.append((0, 2 * layer, t + 500_000, t + 1_500_000, {"macs": 2048}))
        rows.append((1, 2 * layer + 1, t + 1_500_000, t + 2_000_000, {"vector_ops": 300}))
    return one_pass(ops, rows, **changes)


def test_times_and_rates_of_a_decode_run():
    s = report(two_layers(repeat=10)).summary
    assert s["time_s"] == 40e-6
    assert s["time_per_step_s"] == s["tpot_s"] == 4e-6 and s["ttft_s"] is None
    assert s["tokens"] == 40 and s["tokens_per_s"] == pytest.approx(1e6)
    assert s["flops"] == 80_000 and s["vector_ops"] == 6000 and s["dram_bytes"] == 14_080
    assert s["power_w"] == s["energy_j"] / s["time_s"]


def test_a_token_takes_its_share_of_a_pass_that_gives_several():
    # Four requests, two passes of 4 us: with four tokens each has one from a pass, with ten two and a half.
    for generated, tpot_s in ((4, 4e-6), (10, 1.6e-6), (3, 4e-6)):
        s = report(two_layers(repeat=2, generated=generated), batch=4).summary
        assert (s["time_per_step_s"], s["tpot_s"]) == (4e-6, pytest.approx(tpot_s))


def test_times_of_prefill_then_decode():
    prefill = two_layers(name="prefill", phase="prefill", tokens=128, generated=1)
    s = report(prefill, two_layers(repeat=3)).summary
    assert s["ttft_s"] == 4e-6 and s["tpot_s"] == 4e-6 and s["time_s"] == 16e-6
    assert s["tokens"] == 13  # one from prefill, four a step


def test_an_encoder_counts_what_it_processed():
    s = report(two_layers(phase="encode", tokens=128, generated=0)).summary
    assert s["tokens"] == 128
    assert s["ttft_s"] is None and s["tpot_s"] is None and s["time_per_step_s"] is None


def test_the_keys_that_others_rely_on_are_there():
    s = report(two_layers()).summary
    for key in (
        "schema",
        "hardware",
        "workload",
        "time_s",
        "energy_j",
        "power_w",
        "flops",
        "dram_bytes",
        "tokens",
        "tokens_per_s",
        "time_per_step_s",
        "ttft_s",
        "tpot_s",
        "utilization",
        "energy_breakdown_j",
        "wall_s",
    ):
        assert key in s
    for key in ("peak_flops_per_s", "peak_bytes_per_s", "intensity_flop_per_byte", "achieved_flops_per_s", "bound"):
        assert key in s["roofline"]
    json.dumps(s, allow_nan=False)


def test_energy_rows_sum_to_the_total_to_the_last_bit():
    r = report(decoder(layers=2, tiles=20))
    assert math.fsum(r.energy["energy_j"]) == r.summary["energy_j"]
    assert math.fsum(r.energy["share"]) == pytest.approx(1.0)
    parts = r.summary["energy_breakdown_j"]
    assert math.fsum(parts.values()) == pytest.approx(r.summary["energy_j"], rel=1e-14)
    assert r.operators["energy_j"].sum() == pytest.approx(r.summary["energy_j"], rel=1e-9)


def test_utilisation_is_the_union_over_the_run():
    overlapping = one_pass([op("a")], [(0, 0, 0, 60, {}), (0, 0, 30, 80, {}), (1, 0, 90, 100, {})])
    s = report(overlapping).summary
    assert s["utilization"] == {"array": 0.8, "vector": 0.1, "dma.load": 0.0, "dma.store": 0.0}


def test_a_memory_is_as_busy_as_its_data_buses():
    memory = replace(UNITS[2], name="memory", kind="memory")
    tasks = [(0, 0, 0, 100, {})]
    busy = one_pass([op("a")], tasks, counts(channel_busy_ps=(50, 30)), units=(UNITS[0], memory))
    assert report(busy).summary["utilization"] == {"array": 1.0, "memory": 0.4}


def test_a_unit_is_free_before_its_result_has_arrived():
    late = one_pass([op("a")], [(0, 0, 0, 60, {})], late_ps=40)
    r = report(late)
    assert r.summary["utilization"]["array"] == 0.6 and r.summary["time_s"] == 100e-12
    assert r.operators["span_s"].tolist() == [100e-12] and r.operators["busy_array_s"].tolist() == [60e-12]
    assert r.timeline["end_s"].tolist() == [60e-12]


def test_waiting_is_no_unit():
    r = report(one_pass([op("a")], [(0, 0, 0, 60, {}), (4, 0, 60, 70, {})]))
    assert list(r.summary["utilization"]) == ["array", "vector", "dma.load", "dma.store"]
    assert set(r.timeline["unit"]) == {"array"}


def test_repetitions_of_a_block_are_one_row():
    table = report(two_layers(repeat=5)).operators
    assert list(table["operator"]) == ["proj", "norm"]
    proj = table.iloc[0]
    assert (proj["count"], proj["tasks"]) == (10, 20)
    assert proj["time_s"] == 10 * 1.5e-6 and proj["span_s"] == 10 * 1.5e-6
    assert (
        table["advance_s"].tolist() == pytest.approx([15e-6, 5e-6])
        and proj["busy_array_s"] == 10e-6
        and proj["busy_dma_load_s"] == 10e-6
    )
    assert proj["flops"] == 40_000 and proj["executed_macs"] == 20_480
    assert proj["compulsory_bytes"] == 7040 and proj["dram_bytes"] == 7040
    assert proj["intensity_flop_per_byte"] == 40_000 / 7040
    assert proj["achieved_flops_per_s"] == pytest.approx(40_000 / 15e-6)
    assert proj["decision_tile"] == "128x128 | 64x128"
    assert proj["bound"] == "memory" and table.iloc[1]["bound"] == "vector"


def test_time_span_and_advance_of_an_operator_that_loads_ahead():
    # b loads for 10 ps while a still computes, waits, and computes for 10 ps when a has finished.
    tasks = [(0, 0, 0, 50, {}), (2, 1, 10, 20, {}), (0, 1, 50, 60, {})]
    table = report(one_pass([op("a"), op("b")], tasks)).operators
    assert table["time_s"].tolist() == [50e-12, 20e-12]
    assert table["span_s"].tolist() == [50e-12, 50e-12]
    assert table["advance_s"].tolist() == [50e-12, 10e-12]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 3), st.integers(0, 90), st.integers(0, 30)), min_size=1, max_size=20
    )
)
def test_advances_sum_to_the_run_and_times_fit_in_spans(found):
    tasks = [(unit, which, start, start + length, {}) for unit, which, start, length in found]
    r = report(one_pass([op(name) for name in "abcd"], tasks))
    table = r.operators
    assert table["advance_s"].sum() == pytest.approx(r.summary["time_s"], abs=1e-18)
    assert (table["time_s"] <= table["span_s"]).all()


def test_an_operator_that_another_swallowed_has_no_time():
    table = report(one_pass([op("a", flops=2), op("fused")], [(0, 0, 0, 10, {"macs": 1})])).operators
    assert table["time_s"].tolist() == [1e-11, 0.0]
    assert table["bound"].tolist() == ["compute", "none"]
    assert math.isnan(table["achieved_flops_per_s"][1]) and math.isnan(table["intensity_flop_per_byte"][1])


def test_work_of_the_machine_is_that_of_the_trace_plus_named_overheads():
    r = report(two_layers(repeat=2))
    s, o = r.summary, r.summary["overheads"]
    assert o["executed_macs"] == s["flops"] // 2 + o["padding_macs"] and o["padding_macs"] == 2 * 2 * 48
    moved = o["compulsory_bytes"] + o["refetched_bytes"] - o["kept_on_chip_bytes"] + o["burst_padding_bytes"]
    assert moved - o["write_queue_hit_bytes"] == s["dram_bytes"]
    assert o["kept_on_chip_bytes"] == 2 * 2 * 128 and o["refetched_bytes"] == 0


def test_bursts_are_filled_up_and_some_need_no_command():
    # Tasks move 100 B in and 30 B out: two bursts and one, of which the write queue answers one read.
    tasks = [(2, 0, 0, 10, {"dram_read_bytes": 100}), (3, 0, 10, 20, {"dram_write_bytes": 30})]
    memory = counts(64, 64, bytes_forwarded=64)
    s = report(one_pass([op("a", read_bytes=100, write_bytes=30)], tasks, memory, repeat=3)).summary
    assert s["dram_bytes"] == 3 * 128 and s["memory"]["bytes_forwarded"] == 3 * 64
    assert s["overheads"]["burst_padding_bytes"] == 3 * (192 - 130)
    assert s["overheads"]["write_queue_hit_bytes"] == 3 * 64


def test_the_busiest_unit_is_named():
    tasks = [(0, 0, 0, 60, {}), (1, 0, 30, 100, {})]
    assert report(one_pass([op("a")], tasks)).summary["busiest_unit"] == "vector"
    memory = replace(UNITS[2], name="memory", kind="memory")
    busy = one_pass([op("a")], [(0, 0, 0, 60, {})], counts(channel_busy_ps=(80,)), units=(UNITS[0], memory), late_ps=40)
    assert report(busy).summary["busiest_unit"] == "memory"
    assert report(one_pass([op("a")], [])).summary["busiest_unit"] is None


def test_dram_traffic_over_time_sums_to_all_bytes():
    # At a peak of 1 B/ps: 40 B over [0, 100), 30 B over [50, 80), and 5 B at one moment.
    tasks = [
        (2, 0, 0, 100, {"dram_read_bytes": 40}),
        (3, 0, 50, 80, {"dram_write_bytes": 30}),
        (2, 0, 10, 10, {"dram_read_bytes": 5}),
    ]
    memory = replace(UNITS[2], name="memory", kind="memory", peak_per_s=1e12)
    shares = dram_traffic(one_pass([op("a")], tasks, units=(*UNITS, memory)), 10)
    assert shares.tolist() == pytest.approx([0.4, 0.9, 0.4, 0.4, 0.4, 1.4, 1.4, 1.4, 0.4, 0.4])
    assert dram_traffic(one_pass([op("a")], tasks)) is None


def test_a_run_in_two_formats_has_a_peak_between_theirs():
    passes = one_pass([op("a", flops=300), op("b", flops=100, format="int8")], [(0, 0, 0, 1, {}), (0, 1, 1, 2, {})])
    roof = report(passes).summary["roofline"]
    assert roof["peak_flops_per_s_by_format"] == {"bf16": 262.144e12, "int8": 524.288e12}
    assert roof["peak_flops_per_s"] == pytest.approx(400 / (300 / 262.144e12 + 100 / 524.288e12))


def test_attention_says_how_it_was_computed():
    both = [op("x", kind="attention", decisions={"attention": a}) for a in ("flash", "unfused")]
    task = [(0, 0, 0, 1, {})]
    assert report(one_pass(both[:1], task)).summary["attention"] == "flash"
    assert report(one_pass(both, task)).summary["attention"] == "mixed"
    assert report(one_pass([op("m")], task)).summary["attention"] is None


def test_a_pass_without_tasks_is_reported():
    r = report(one_pass([op("a")], []))
    assert r.summary["time_s"] == 0 and r.summary["power_w"] is None and r.summary["tokens_per_s"] is None
    assert len(r.operators) == 1 and len(r.timeline) == 0


def test_timeline_joins_what_touches_and_lays_passes_end_to_end():
    one = one_pass([op("a"), op("b")], [(0, 0, 0, 10, {}), (0, 0, 10, 20, {}), (0, 1, 20, 30, {}), (0, 0, 40, 50, {})])
    table = report(one, replace(one, name="next")).timeline
    shown = table[["unit", "operator", "start_s", "end_s", "pass"]].values.tolist()
    assert shown[:3] == [
        ["array", "a", 0.0, 20e-12, "decode"],
        ["array", "b", 20e-12, 30e-12, "decode"],
        ["array", "a", 40e-12, 50e-12, "decode"],
    ]
    assert shown[3] == ["array", "a", 50e-12, 70e-12, "next"]


def test_a_dense_timeline_is_thinned_by_bridging_the_shortest_gaps():
    tasks = [(0, 0, 10 * i, 10 * i + 9, {}) for i in range(500)] + [(0, 0, 9000, 9100, {})]
    line = build_timeline([one_pass([op("a")], tasks)], most=10)
    assert len(line.unit) == 2 and line.bridged_ps >= 1
    assert (line.start_ps.tolist(), line.end_ps.tolist()) == ([0, 9000], [4999, 9100])


def chrome_schema_holds(trace):
    """What Perfetto's JSON importer needs: known phases, numbers for times, named tracks, no overlap on a track."""
    named = {(e["pid"], e["tid"]) for e in trace["traceEvents"] if e["ph"] == "M" and e["name"] == "thread_name"}
    ends: dict[tuple[int, int], float] = {}
    for e in trace["traceEvents"]:
        assert e["ph"] in "MXC" and isinstance(e["name"], str) and isinstance(e["pid"], int)
        assert isinstance(e["ts"], (int, float)) and e["ts"] >= 0
        if e["ph"] == "X":
            track = (e["pid"], e["tid"])
            assert track in named and e["dur"] >= 0 and isinstance(e["args"], dict)
            assert e["ts"] >= ends.get(track, 0.0) - 1e-9
            ends[track] = e["ts"] + e["dur"]
        if e["ph"] == "C":
            assert e["args"]["of_peak"] >= 0 if e["name"] == "DRAM traffic" else 0 <= e["args"]["busy"] <= 1


def test_chrome_trace_is_valid_and_overlaps_get_tracks_of_their_own():
    tasks = [(0, 0, 0, 2_000_000, {}), (0, 1, 1_000_000, 3_000_000, {}), (2, 1, 0, 3_000_000, {})]
    passes = [one_pass([op('quote "a"'), op("b")], tasks)]
    trace = json.loads("\n".join(chrome_trace(passes, build_timeline(passes))))
    chrome_schema_holds(trace)
    threads = [e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "thread_name" and e["pid"] == 3]
    assert threads == ["array", "array, overlap 1", "vector", "dma.load", "dma.store"]
    first = next(e for e in trace["traceEvents"] if e["ph"] == "X" and e["pid"] == 3)
    assert (first["name"], first["ts"], first["dur"]) == ('quote "a"', 0.0, 2.0)


def test_the_trace_of_a_decoder_is_valid():
    passes = [decoder(layers=3, tiles=10)]
    chrome_schema_holds(json.loads("\n".join(chrome_trace(passes, build_timeline(passes)))))


def test_files_read_back_and_are_the_same_bytes_again(tmp_path: Path):
    import pyarrow.parquet as pq

    passes = decoder(layers=2, tiles=10)
    a = report(passes).write(tmp_path / "a", pictures=False)
    b = replace(report(passes), wall_s=9.0).write(tmp_path / "b", pictures=False)
    assert {p.name for p in a.iterdir()} >= FILES
    for name in FILES - {"summary.json"}:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    first, second = (json.loads((f / "summary.json").read_text()) for f in (a, b))
    assert (first.pop("wall_s"), second.pop("wall_s")) == (0.25, 9.0) and first == second
    table = pq.read_table(a / "operators.parquet").to_pydict()
    expected = report(passes).operator_columns
    assert table == expected
    with (a / "energy.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["component", "subcomponent", "count", "unit", "pj_each", "energy_j", "share", "source"]
    assert math.fsum(float(r["energy_j"]) for r in rows) == first["energy_j"]


def test_counts_beyond_64_bit_do_not_break_the_files(tmp_path: Path):
    huge = one_pass([op("a", flops=2**61)], [(0, 0, 0, 10, {"macs": 1})], repeat=100)
    folder = report(huge).write(tmp_path / "r", pictures=False)
    assert json.loads((folder / "summary.json").read_text())["flops"] == 100 * 2**61


def test_a_folder_of_others_is_left_alone(tmp_path: Path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="thesis.tex"):
        report(two_layers()).write(tmp_path / "r", pictures=False)
    assert [p.name for p in (tmp_path / "r").iterdir()] == ["thesis.tex"]


intervals = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 60), st.integers(0, 20)), max_size=40)


@settings(max_examples=200, deadline=None)
@given(intervals, st.integers(0, 5))
def test_merge_equals_painting_moments(found, gap):
    group, start, length = (np.array([f[i] for f in found], np.int64) for i in range(3))
    union = merge(group, start, start + length, 0)
    painted = np.zeros((4, 100), bool)
    for g, s, n in found:
        painted[g, s : s + n] = True
    assert busy_ps(union, 4).tolist() == painted.sum(axis=1).tolist()
    shares = density(union, 4, 100, 10)
    assert np.allclose(shares, painted.reshape(4, 10, 10).mean(axis=2))
    joined = merge(group, start, start + length, gap)
    order = np.lexsort((joined.start_ps, joined.group))
    assert order.tolist() == list(range(len(order)))
    same = joined.group[1:] == joined.group[:-1]
    assert np.all(joined.start_ps[1:][same] - joined.end_ps[:-1][same] > gap)


@settings(max_examples=100, deadline=None)
@given(intervals)
def test_no_two_intervals_of_a_track_overlap(found):
    found = sorted(found)
    group, start, length = (np.array([f[i] for f in found], np.int64) for i in range(3))
    track = tracks(group, start, start + length)
    for g in set(group.tolist()):
        for k in set(track[group == g].tolist()):
            mine = (group == g) & (track == k)
            assert np.all(start[mine][1:] >= (start + length)[mine][:-1])
        assert track[group == g].min() == 0


def test_importing_the_report_loads_neither_pandas_nor_matplotlib():
    import subprocess
    import sys

    code = "import sim.result, analysis, sys; print({'pandas','matplotlib','numba'} & set(sys.modules))"
    root = Path(__file__).resolve().parent.parent
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert out.stdout.strip() == "set()"


def test_the_machine_is_described_in_the_summary():
    s = report(two_layers(), on=machine(table="45nm")).summary
    assert (s["preload_model"], s["dataflow"], s["energy_table"]) == ("double_buffered", "ws", "45nm")


def test_guesses_are_no_tokens_until_they_are_accepted():
    # Two drafts of four guesses each, checked in passes of five positions of which three and one are kept.
    passes = [
        replace(decoder(layers=1, tiles=2), name=f"{kind}.{i}", phase=kind, repeat=1, tokens=tokens, generated=kept)
        for i, (kind, tokens, kept) in enumerate([("draft", 4, 0), ("verify", 5, 3), ("draft", 4, 0), ("verify", 5, 1)])
    ]
    assert report(*passes).summary["tokens"] == 4
    first = replace(decoder(layers=1, tiles=2), name="prefill", phase="prefill", repeat=1, tokens=16, generated=1)
    assert report(first).summary["tokens"] == 16
