"""A machine known by its peak rates: times by hand, the same books as any machine, what it refuses."""

from __future__ import annotations

import pytest

from sim.engine import simulate
from sim.errors import ConfigError
from sim.kinds import load_hardware
from sim.passes import PassResult
from sim.roofline_machine import RooflineEngine, RooflineMachine
from workloads import load_workload
from workloads import single as operators
from workloads.trace import Pass


def a100(**settings: object) -> RooflineMachine:
    found = load_hardware("a100-roofline", dict(settings))
    assert isinstance(found, RooflineMachine)
    return found


def run(work: Pass, **settings: object) -> PassResult:
    return RooflineEngine(a100(**settings)).run(work)


def test_peaks_are_the_data_sheet_s() -> None:
    machine = a100()
    assert machine.peak_flops_per_s("fp16") == pytest.approx(312e12, rel=1e-3)
    assert machine.peak_bytes_per_s == pytest.approx(1555e9, rel=1e-3)
    assert machine.capacity_bytes == 40 * 2**30


def test_a_product_takes_its_arithmetic_or_its_bytes() -> None:
    large = run(operators.gemm(8192, 8192, 8192, "fp16")).schedule.makespan_ps
    assert large == -(-(8192**3) * 10**12 // (110592 * 1_410_000_000))
    one = run(operators.gemm(1, 4096, 4096, "fp16"))
    size = 2 * (4096 * 4096 + 2 * 4096)
    assert one.schedule.makespan_ps == -(-size * 10**12 // 1_555_200_000_000)
    assert one.schedule.memory.bytes_read + one.schedule.memory.bytes_written == size


def test_operators_follow_each_other_and_the_books_close() -> None:
    report = simulate(a100(), load_workload("gpt3-13b-decode-sharegpt", batch=32))
    summary = report.summary
    assert report.operators["time_s"].sum() == pytest.approx(summary["time_s"])
    assert summary["overheads"]["padding_macs"] == summary["overheads"]["refetched_bytes"] == 0
    assert summary["energy_j"] == pytest.approx(report.energy["energy_j"].sum())
    assert 0 < summary["utilization"]["memory"] <= 1
    assert summary["roofline"]["bound"] == "memory"


def test_no_machine_of_its_peaks_is_faster() -> None:
    """An NPU with this machine's rates, whatever it keeps on chip, moves its weights and does its products."""
    workload = load_workload("gpt3-7b-decode", batch=16, context=128)
    npu = simulate(load_hardware("npu-hbm2"), workload).summary
    peaks = {
        "macs_per_cycle": {"fp16": 8 * 128 * 128}, "clock": "1 GHz", "vector_ops_per_cycle": 2**30,
        "memory.channels": 64, "memory.settings.clock": "1 GHz",
    }  # fmt: skip
    bound = simulate(a100(**peaks), workload).summary
    assert bound["roofline"]["peak_bytes_per_s"] == npu["roofline"]["peak_bytes_per_s"]
    kept = npu["overheads"]["kept_on_chip_bytes"] / bound["roofline"]["peak_bytes_per_s"]
    assert bound["time_s"] - kept < npu["time_s"]


def test_what_has_no_rate_is_refused() -> None:
    with pytest.raises(ConfigError, match="number format fp32 is asked for, but a100-roofline has a rate for fp16"):
        run(operators.gemm(8, 8, 8, "fp32"))
    with pytest.raises(ConfigError, match="has no links to others"):
        simulate(a100(links=None), load_workload("gpt3-13b-decode-sharegpt", batch=32))
