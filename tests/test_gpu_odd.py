"""Products whose rows start at odd addresses: by hand, and against times of an H200."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import fmean, median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.gpu.gemm import Product, alignment, gemm
from sim.gpu.odd import unaligned
from sim.gpu.schema import Gpu
from sim.kinds import load_hardware
from sim.operators.measure import Operators
from sim.operators.request import make_request

DATA = Path(__file__).parent / "data" / "h200_odd.csv"


def gpu(name: str = "h200") -> Gpu:
    found = load_hardware(name)
    assert isinstance(found, Gpu)
    return found


def seconds(part: Gpu, m: int, n: int, k: int, number_format: str = "bf16") -> float:
    return gemm(part, Product(m, n, k, number_format, number_format)).time_s(part.clock.maximum)


@pytest.mark.parametrize(
    ("m", "n", "k", "aligned"),
    [(8, 64, 64, 128), (8, 63, 64, 2), (8, 64, 63, 2), (8, 62, 64, 4), (8, 1, 64, 128), (8, 1, 63, 2), (1, 4, 64, 8)],
)
def test_alignment_is_that_of_rows(m: int, n: int, k: int, aligned: int) -> None:
    assert alignment(Product(m, n, k, "bf16", "bf16"), 2.0) == aligned


def test_a_tile_takes_the_loads_of_its_edges() -> None:
    part = gpu()
    # 132 tiles of 128 x 128, one a multiprocessor: 4097 steps of 256 loads, 2.88 a clock.
    cost = unaligned(part, Product(11 * 128, 12 * 128, 4097, "bf16", "bf16"), 2, 2.0)
    assert cost.decisions == {"tile": "128x128", "split": "1", "loads": "1 element, unaligned rows"}
    assert cost.core_cycles == pytest.approx(4097 * 256 / 2.88 + part.fitted.tile)
    # 132 tiles of 256 x 128 with two elements a load.
    pairs = unaligned(part, Product(11 * 256, 12 * 128, 4098, "bf16", "bf16"), 4, 2.0)
    assert pairs.decisions["tile"] == "256x128"
    assert pairs.core_cycles == pytest.approx(4098 * 192 / 2.88 + part.fitted.tile)


def test_a_row_by_a_matrix_runs_on_the_lanes() -> None:
    part = gpu()
    cost = unaligned(part, Product(2, 50257, 4096, "bf16", "bf16"), 2, 2.0)
    assert cost.decisions["kernel"] == "matrix by vectors"
    assert cost.core_cycles == pytest.approx(50257 * 4096 * (12 + 2 * 9) / (128 * 132))
    assert cost.dram_read_bytes == 2 * 4096 * (2 + 50257)


def test_a_single_result_and_a_single_column_need_no_alignment() -> None:
    part = gpu()
    assert seconds(part, 1, 1, 65536) < 5e-6  # measured: 3.6 us
    assert seconds(part, 4096, 1, 4096) <= seconds(part, 4096, 8, 4096)
    assert seconds(part, 512, 4095, 4096, "fp32") == pytest.approx(seconds(part, 512, 4096, 4096, "fp32"), rel=0.01)


@settings(max_examples=60, deadline=None)
@given(
    m=st.integers(1, 3000), n=st.integers(1, 3000), k=st.integers(1, 3000),
    name=st.sampled_from(["h200", "a100-80g", "rtx4090", "gaudi2"]),
)  # fmt: skip
def test_odd_rows_stay_above_the_roofs_and_below_twice_as_many(m: int, n: int, k: int, name: str) -> None:
    part = gpu(name)
    time_s = seconds(part, m, n, k)
    assert time_s >= 2 * m * n * k / part.peak_flops_per_s("bf16")
    assert time_s >= 2 * (m * k + n * k + m * n) / part.peak_bytes_per_s
    assert time_s <= seconds(part, 2 * m + 1, 2 * n + 1, 2 * k + 1) * 1.01


def test_times_of_an_h200() -> None:
    operators = Operators(load_hardware("h200", {"launch.burst": None, "launch.operands": "cold"}))
    lines = [line for line in DATA.read_text().splitlines() if not line.startswith("#")]
    errors = []
    for row in csv.DictReader(lines):
        sizes = {key: row[key] for key in "MNK"}
        found = operators.measure(make_request("gemm", {**sizes, "dtype": row["dtype"]}))["time_s"]
        errors.append(found / (float(row["time_us"]) * 1e-6) - 1)
    assert len(errors) == 80
    assert median(abs(error) for error in errors) < 0.18
    assert fmean(abs(error) for error in errors) < 0.3
    assert max(errors) < 1.7
    assert min(errors) > -0.6
