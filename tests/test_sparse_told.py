"""Zeros on machines without an engine for them: no time is saved, the books stay closed, and the report says so."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim import load_hardware, simulate
from tests.method_cases import small

MACHINES = ["h200", "a100-roofline", "npu-hbm2", "plasticine-like"]


@pytest.mark.parametrize("name", MACHINES)
def test_zeros_on_a_dense_machine_save_nothing(tmp_path: Path, name: str) -> None:
    machine = load_hardware(name)
    plain = simulate(machine, small(tmp_path, "prefill"))
    zeros = simulate(machine, small(tmp_path, "prefill", [{"wsparse": {"pattern": "random:0.5"}}]))
    assert zeros.summary["time_s"] == plain.summary["time_s"]
    assert zeros.summary["dram_bytes"] == plain.summary["dram_bytes"]
    told = zeros.summary["sparsity"]
    assert plain.summary["sparsity"] is None
    assert told["executed_macs"] == told["dense_macs"]
    assert told["useful_macs"] == pytest.approx(told["dense_macs"] / 2, rel=1e-6)
    assert any("no sparse engine" in text for text in zeros.operator_columns["decision_sparsity"])


def test_two_four_on_a_gpu_closes_the_books(tmp_path: Path) -> None:
    found = simulate(load_hardware("h200"), small(tmp_path, "prefill", [{"wsparse": {"pattern": "2:4"}}])).summary
    told = found["sparsity"]
    assert told["executed_macs"] * 2 == told["dense_macs"]
    assert 0 < told["metadata_bytes"] < told["left_out_bytes"]
    assert min(found["overheads"].values()) >= 0
