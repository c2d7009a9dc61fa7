"""Formulas of sim.cost: against published rows, against PE-by-PE simulation, and by their own properties."""

from __future__ import annotations

import csv
import doctest
from dataclasses import replace
from fractions import Fraction
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import naive_systolic as naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import cost
from sim.cost import ArraySpec, VectorSpec
from workloads import attrs

ROOT = Path(__file__).parent.parent
DATA = ROOT / "sim" / "validation" / "data"
QUICK = settings(max_examples=60, deadline=None)
SIZE = st.integers(1, 12)
SIDE = st.integers(1, 5)
FLOWS = st.sampled_from(cost.DATAFLOWS)


def rows_of(name: str) -> list[dict[str, str]]:
    with (DATA / name).open() as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def sides_of(row: dict[str, str]) -> tuple[int, int, int]:
    geometry = row["array"].split()
    rows, columns = map(int, geometry[0].split("x"))
    return rows, columns, int(geometry[1][1:]) if len(geometry) > 1 else 1


def sizes_of(row: dict[str, str]) -> tuple[int, int, int]:
    return int(row["M"]), int(row["N"]), int(row["K"])


@pytest.mark.parametrize("row", rows_of("scalesim.csv"), ids=lambda r: f"{r['array']}-{r['dataflow']}-{r['workload']}")
def test_fold_serial_equals_scale_sim(row: dict[str, str]) -> None:
    rows, columns, _ = sides_of(row)
    m, n, k = sizes_of(row)
    (dataflow,) = (known for known in get_args(cost.Dataflow) if known == row["dataflow"])
    report = cost.unit_gemm(rows, columns, dataflow, m, n, k)
    over_count = report["folds"] * (rows + columns) if row["dataflow"] == "os" else 0
    assert report["cycles"] == int(row["formula_cycles"]) == int(row["compute_cycles"]) + 1
    assert report["ifmap_reads"] == int(row["sram_if_reads"])
    assert report["filter_reads"] == int(row["sram_flt_reads"])
    assert report["ofmap_writes"] == int(row["sram_of_writes"]) - over_count
    assert report["sram_reads"] == report["ifmap_reads"] + report["filter_reads"]
    assert 100 * report["mapping_efficiency"] == pytest.approx(float(row["mapping_eff"]), abs=6e-4)
    # The tool divides by the index of the last cycle.
    scale_sim_utilization = 100 * report["utilization"] * report["cycles"] / (report["cycles"] - 1)
    assert scale_sim_utilization == pytest.approx(float(row["util"]), abs=6e-5)


@pytest.mark.parametrize("row", rows_of("onnxim.csv"), ids=lambda r: f"{r['array']}-{r['workload']}-{r['M']}")
def test_double_buffered_equals_onnxim(row: dict[str, str]) -> None:
    rows, columns, count = sides_of(row)
    spec = ArraySpec(rows, columns, "ws", "double_buffered", count, merge_row_cycles=0)
    occupancy, tail, cold = cost.tile_cost(spec, *sizes_of(row))
    assert occupancy == int(row["compute_cycles"])
    # One instruction's latency beyond its issue time, and the first weights.
    last = sizes_of(row)[0] % rows or rows
    assert (tail, cold) == (rows + columns - 2 + max(last, 4) - rows, 2 * rows - 1)


def test_hand_worked_costs() -> None:
    # 3 x 2 array; M, N, K = 5, 4, 7: WS 3 K folds x 2 panels, each 2*3 + 2 + 5 - 2 = 11.
    assert cost.gemm_cycles(ArraySpec(3, 2, "ws"), 5, 4, 7) == 66
    # IS: 3 x ceil(5/2) folds of 2*3 + 2 + 4 - 2 = 10.
    assert cost.gemm_cycles(ArraySpec(3, 2, "is"), 5, 4, 7) == 90
    # OS: 2 x 2 folds of 3 + 2 + 7 - 2 = 10, 3 more with the drain.
    assert cost.gemm_cycles(ArraySpec(3, 2, "os"), 5, 4, 7) == 40
    assert cost.gemm_cycles(ArraySpec(3, 2, "os", drain=True), 5, 4, 7) == 52
    # Double buffered, weights kept: 6 tiles of max(5, 3); chunked: 6 x 2 chunks of max(3, 4).
    kept = ArraySpec(3, 2, "ws", "double_buffered", reload="tile", issue_floor=1, cold_load=3)
    assert cost.tile_cost(kept, 5, 4, 7) == (30, 3, 3)
    chunked = ArraySpec(3, 2, "ws", "double_buffered")
    assert cost.tile_cost(chunked, 5, 4, 7) == (48, 3, 5)
    assert cost.sram_accesses(chunked, 5, 4, 7) == (70, 56, 60, 40)
    assert cost.sram_accesses(kept, 5, 4, 7) == (70, 28, 60, 40)
    # OS: 4 tiles of max(7, 3); the last sum leaves 2*3 + 2 - 2 after the last step.
    assert cost.tile_cost(ArraySpec(3, 2, "os", "double_buffered"), 5, 4, 7) == (28, 6, 0)
    assert cost.tile_cost(kept, 0, 4, 7) == (0, 0, 0)


def operands(m: int, n: int, k: int) -> tuple[naive.Matrix, naive.Matrix]:
    random = np.random.default_rng(m * 1009 + n * 101 + k)
    return random.integers(-9, 10, (m, k)), random.integers(-9, 10, (k, n))


@QUICK
@given(FLOWS, SIDE, SIDE, SIZE, SIZE, SIZE, st.booleans())
def test_fold_serial_equals_moving_operands(
    flow: Any, rows: int, columns: int, m: int, n: int, k: int, drain: bool
) -> None:
    left, right = operands(m, n, k)
    run = naive.fold_serial(flow, left, right, rows, columns, drain)
    assert np.array_equal(run.product, left @ right)
    assert run.cycles == cost.gemm_cycles(ArraySpec(rows, columns, flow, drain=drain), m, n, k)


def double_buffered_run(spec: ArraySpec, m: int, n: int, k: int) -> tuple[naive.Matrix, naive.Matrix, int]:
    """Product by the pipelined array, expected product, cycles; tiles start as far apart as the formula says."""
    left, right = operands(m, n, k)
    expected = left @ right
    if spec.dataflow == "is":
        left, right, m, n = right.T, left.T, n, m
    rows, columns = spec.rows, spec.columns
    tiles, places, starts, start = [], [], [], 0
    for column in range(0, n, columns):
        for row in range(0, m if spec.dataflow == "os" else k, rows):
            if spec.dataflow == "os":
                block = naive.pad(left[row : row + rows], rows, k)
                chunks = [(block, naive.pad(right[:, column : column + columns], k, columns))]
                spans = [(row, column)]
            else:
                block = naive.pad(right[row : row + rows, column : column + columns], rows, columns)
                step = rows if spec.reload == "chunk" else m
                spans = [(top, column) for top in range(0, m, step)]
                chunks = [
                    (block, naive.pad(left[top : top + step, row : row + rows], min(step, m - top), rows))
                    for top, _ in spans
                ]
            for chunk, span in zip(chunks, spans, strict=True):
                tiles.append(chunk)
                places.append(span)
                starts.append(start)
                start += max(k if spec.dataflow == "os" else chunk[1].shape[0], rows)
    run = naive.output_pipeline if spec.dataflow == "os" else naive.stationary_pipeline
    products, cycles = run(tiles, starts)
    result = np.zeros((m, n), dtype=np.int64)
    for (top, column), part in zip(places, products, strict=True):
        target = result[top : top + part.shape[0], column : column + columns]
        target += part[: target.shape[0], : target.shape[1]]
    return (result.T if spec.dataflow == "is" else result), expected, cycles


@QUICK
@given(FLOWS, st.sampled_from(["chunk", "tile"]), SIDE, SIDE, SIZE, SIZE, SIZE)
def test_double_buffered_equals_moving_operands(
    flow: Any, reload: Any, rows: int, columns: int, m: int, n: int, k: int
) -> None:
    spec = ArraySpec(rows, columns, flow, "double_buffered", reload=reload, issue_floor=1, cold_load=rows)
    result, expected, cycles = double_buffered_run(spec, m, n, k)
    assert np.array_equal(result, expected)
    assert cycles == cost.gemm_cycles(spec, m, n, k)


@QUICK
@given(st.booleans(), SIDE, SIDE, st.integers(1, 8))
def test_no_array_can_take_tiles_faster(outputs_stay: bool, rows: int, columns: int, stream: int) -> None:
    if outputs_stay:
        run, shapes = naive.output_pipeline, ((rows, stream), (stream, columns))
    else:
        run, shapes = naive.stationary_pipeline, ((rows, columns), (stream, rows))
    tile = np.ones(shapes[0], dtype=np.int64), np.ones(shapes[1], dtype=np.int64)
    interval = max(stream, rows)
    run([tile] * 3, [0, interval, 2 * interval])
    with pytest.raises(naive.Hazard):
        run([tile] * 3, [0, interval - 1, 2 * interval - 2])


def test_a_single_tile_costs_the_same_in_both_preload_models() -> None:
    for flow, m, n, k in product(cost.DATAFLOWS, (1, 3, 8), (1, 3, 8), (1, 3, 8)):
        serial = ArraySpec(8, 8, flow, drain=True)
        buffered = ArraySpec(8, 8, flow, "double_buffered", reload="tile", issue_floor=1, cold_load=8)
        assert cost.gemm_cycles(serial, m, n, k) == cost.gemm_cycles(buffered, m, n, k)


SPECS = st.builds(
    ArraySpec,
    rows=SIDE,
    columns=SIDE,
    dataflow=FLOWS,
    preload=st.sampled_from(cost.PRELOADS),
    count=st.integers(1, 5),
    macs_per_pe=st.sampled_from([1, 2, 4]),
    reload=st.sampled_from(["chunk", "tile"]),
    issue_floor=st.just(1),
    merge_row_cycles=st.sampled_from([None, 0, 1, 3]),
)


@QUICK
@given(SPECS, SIZE, SIZE, SIZE)
def test_shares_partition_the_work_and_set_the_makespan(spec: ArraySpec, m: int, n: int, k: int) -> None:
    shares = cost.shares(spec, m, n, k)
    assert len(shares) <= spec.count
    done = np.zeros((m, n, k), dtype=np.int64)
    for share in shares:
        done[share.m.start : share.m.stop, share.n.start : share.n.stop, share.k.start : share.k.stop] += 1
    assert np.all(done == 1)
    assert all(len(part) for share in shares for part in share)
    alone = replace(spec, count=1)
    sizes = [tuple(map(len, share)) for share in shares]
    each_reads = [cost.sram_accesses(alone, *size) for size in sizes]
    total = cost.sram_accesses(spec, m, n, k)
    assert total[:3] == tuple(sum(column) for column in list(zip(*each_reads, strict=True))[:3])
    if cost.array_grid(spec, m, n, k).reduction == 1:
        assert max(cost.gemm_cycles(alone, *size) for size in sizes) == cost.gemm_cycles(spec, m, n, k)


@QUICK
@given(SPECS, SIZE, SIZE, SIZE, st.integers(1, 4))
def test_costs_are_monotone_and_never_beat_the_peak(spec: ArraySpec, m: int, n: int, k: int, batch: int) -> None:
    cycles = cost.gemm_cycles(spec, m, n, k, batch)
    assert cycles <= cost.gemm_cycles(spec, m + 1, n, k, batch)
    assert cycles <= cost.gemm_cycles(spec, m, n + 1, k, batch)
    assert cycles <= cost.gemm_cycles(spec, m, n, k + 1, batch)
    assert cycles <= cost.gemm_cycles(spec, m, n, k, batch + 1)
    assert cycles * spec.rows * spec.columns * spec.count * spec.macs_per_pe >= batch * m * n * k
    access = cost.sram_accesses(spec, m, n, k, batch)
    assert access.ifmap_reads >= batch * m * k
    assert access.filter_reads >= batch * k * n
    assert access.ofmap_writes - access.accumulator_reads == batch * m * n


@QUICK
@given(SPECS, st.lists(st.tuples(st.integers(0, 40), SIZE, SIZE, st.integers(1, 3)), min_size=1, max_size=6))
def test_arrays_of_sizes_cost_what_each_costs(spec: ArraySpec, sizes: list[tuple[int, int, int, int]]) -> None:
    columns = [np.array(column, dtype=np.int64) for column in zip(*sizes, strict=True)]
    many = np.broadcast_arrays(*cost.tile_cost(spec, *columns))
    for index, (m, n, k, batch) in enumerate(sizes):
        one = cost.tile_cost(spec, m, n, k, batch)
        assert all(isinstance(part, int) for part in one)
        assert tuple(int(part[index]) for part in many) == one
    assert all(part.dtype == np.int64 for part in many)


def test_more_arrays_split_panels_first_then_outputs_then_k() -> None:
    four = ArraySpec(8, 8, "ws", count=4)
    assert cost.array_grid(four, 32, 64, 64) == (4, 1, 1)
    assert cost.array_grid(four, 32, 16, 64) == (2, 2, 1)
    # One panel, one row of outputs: only K is left, and only where adding partial sums has a price.
    assert cost.array_grid(four, 1, 8, 64) == (1, 1, 1)
    merging = ArraySpec(8, 8, "ws", count=4, merge_row_cycles=2)
    assert cost.array_grid(merging, 1, 8, 64) == (1, 1, 4)
    # 8 folds become 2, and each array adds its slice of the one row of the other three: ceil(3 / 4) rows.
    single = cost.gemm_cycles(ArraySpec(8, 8, "ws"), 1, 8, 16)
    assert cost.gemm_cycles(merging, 1, 8, 64) == single + 2
    # Three row folds keep three of five arrays busy.
    assert cost.array_grid(ArraySpec(8, 8, "os", count=5), 20, 8, 64) == (1, 3, 1)
    # Rows 0-4 need two chunks of 4 and rows 5-8 one: three loads of the 7 x 6 weights.
    chunked = ArraySpec(4, 8, "ws", "double_buffered", count=2)
    assert cost.array_grid(chunked, 9, 6, 7) == (1, 2, 1)
    assert cost.sram_accesses(chunked, 9, 6, 7).filter_reads == 3 * 42
    # Members of a batch are panels: 4 heads on 4 arrays take as long as one on one.
    assert cost.gemm_cycles(four, 5, 8, 8, batch=4) == cost.gemm_cycles(ArraySpec(8, 8, "ws"), 5, 8, 8)


def test_faster_formats_widen_k() -> None:
    for flow, (rate, narrow) in product(cost.DATAFLOWS, ((2, 50), (4, 25), (Fraction(3, 2), 67))):
        fast = ArraySpec(8, 8, flow, macs_per_pe=rate)
        assert cost.gemm_cycles(fast, 20, 30, 100) == cost.gemm_cycles(ArraySpec(8, 8, flow), 20, 30, narrow)


def test_array_tile_reads_a_hardware_description() -> None:
    arrays = SimpleNamespace(rows=8, columns=8, count=2, dataflow="ws", preload="double_buffered", reload="tile")
    tile = cost.array_tile(arrays, 3, 10, 20, 30, 2)
    spec = ArraySpec(8, 8, "ws", "double_buffered", 2, 2, reload="tile")
    access = cost.sram_accesses(spec, 10, 20, 30, 3)
    assert tile[:3] == cost.tile_cost(spec, 10, 20, 30, 3)
    assert tile[3:] == (access.ifmap_reads, access.filter_reads, access.ofmap_writes + access.accumulator_reads)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rows", 0), ("count", 0), ("dataflow", "xs"), ("preload", "none"), ("reload", "row"), ("macs_per_pe", 0),
     ("issue_floor", 0), ("cold_load", -1), ("merge_row_cycles", 0.5)],
)  # fmt: skip
def test_impossible_arrays_are_refused(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{field} must be"):
        ArraySpec(**{"rows": 4, "columns": 4, field: value})


def test_unit_gemm_refuses_empty_sizes() -> None:
    with pytest.raises(ValueError, match="K must be an integer >= 1, not 0"):
        cost.unit_gemm(4, 4, "ws", 1, 1, 0)


ONES = dict.fromkeys(cost.PRIMITIVES, 1)


def test_vector_cycles_by_hand() -> None:
    spec = VectorSpec(lanes=8, cycles={**ONES, "exp": 4, "reciprocal": 3}, count=2)
    # 33 elements: 5 vectors, 3 on the busier unit; exp 4 + reciprocal 3 + add 1 + mul 1.
    assert cost.vector_cycles(spec, "silu", 3, 11) == 27
    # Softmax of 5 rows of 20: 3 rows on a unit; 3 vectors x (max 1, add 2, exp 4, mul 1) + reciprocal 3
    # + 2 reductions of 3 steps of shuffle and add.
    assert cost.vector_cycles(spec, "softmax", 5, 20) == 3 * (3 * 8 + 3 + 2 * 6)
    # Four rows share a vector of 4 x 2 lanes; two simple slots beside the special pipe; reductions cost 5.
    wide = VectorSpec(8, spec.cycles, rows_per_vector=4, simple_slots=2, special_parallel=True, reduce_cycles=5)
    assert cost.vector_cycles(wide, "softmax", 5, 20) == 2 * (max(10 * 4 // 2, 10 * 4 + 3) + 2 * 5)
    assert cost.vector_cycles(wide, "topk", 4, 20, keep=3) == 3 * (10 * 3 // 2) + 3 * 2 * 5
    assert cost.vector_cycles(spec, "softmax", 0, 20) == cost.vector_cycles(spec, "add", 4, 0) == 0


@QUICK
@given(
    st.sampled_from(sorted(cost.FUNCTIONS)), st.integers(1, 40), st.integers(1, 40), st.integers(1, 5),
    st.sampled_from([1, 2, 4]), st.booleans(),
)  # fmt: skip
def test_vector_cycles_scale_and_vectorise(
    function: str, rows: int, columns: int, count: int, shared: int, parallel: bool
) -> None:
    spec = VectorSpec(8, {**ONES, "exp": 3}, count, rows_per_vector=shared, special_parallel=parallel)
    cycles = cost.vector_cycles(spec, function, rows, columns)
    assert 0 < cycles <= cost.vector_cycles(spec, function, rows + 1, columns)
    assert cycles <= cost.vector_cycles(spec, function, rows, columns + 1)
    many = cost.vector_cycles(spec, function, np.array([rows, rows + 1]), np.array([columns, columns]))
    assert many.tolist() == [cycles, cost.vector_cycles(spec, function, rows + 1, columns)]
    issued = sum(cost.primitive_counts(function, rows, columns).values())
    assert cycles * 8 * count * (2 if parallel else 1) >= issued - rows * len(cost.FUNCTIONS[function].row)


def test_functions_count_what_the_trace_counts() -> None:
    for function, each in attrs.ELEMENTWISE_VECTOR_OPS.items():
        assert cost.vector_ops(function, 3, 7) == 21 * each, function
    for function in attrs.REDUCE_VECTOR_OPS:
        attributes = attrs.ReduceAttrs(function, 3, 7, keep=4)
        assert cost.vector_ops(function, 3, 7, keep=4) == attributes.vector_ops, function


def test_impossible_vector_units_are_refused() -> None:
    with pytest.raises(ValueError, match="lacks exp"):
        VectorSpec(8, {name: 1 for name in cost.PRIMITIVES if name != "exp"})
    with pytest.raises(ValueError, match="unknown sqrt"):
        VectorSpec(8, {**ONES, "sqrt": 1})
    with pytest.raises(ValueError, match="must divide lanes"):
        VectorSpec(8, ONES, rows_per_vector=3)
    with pytest.raises(ValueError, match="function must be one of"):
        cost.vector_cycles(VectorSpec(8, ONES), "softmin", 1, 1)


def test_documented_examples() -> None:
    failures, examples = doctest.testfile(str(ROOT / "docs" / "systolic.md"), module_relative=False)
    assert (failures, examples) == (0, 6)


def test_a_fractional_rate_does_not_split_the_reduction() -> None:
    assert ArraySpec(4, 4, macs_per_pe=Fraction(3, 2)).macs_per_pe == Fraction(3, 2)
    with pytest.raises(ValueError, match="macs_per_pe must be a whole number where K is split"):
        ArraySpec(4, 4, count=2, macs_per_pe=Fraction(3, 2), merge_row_cycles=0)
