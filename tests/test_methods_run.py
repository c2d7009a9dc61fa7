"""Every preset of relevance 3 and 2 runs on two machines or more; one that lacks a unit refuses and says which."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sim import load_hardware
from sim.config import ConfigError
from sim.engine import simulate
from sim.kinds import engine_for
from sim.machine import Machine
from tests.method_cases import small_preset
from workloads.methods import load_method, method_names

USUAL = ("a100-roofline", "h200")
MACHINES: dict[tuple[str, ...], tuple[str, ...]] = {
    ("batquant", "block-rotation", "fp4-all-the-way", "fp4-design-space", "mxfp4-hadamard", "sixbit-diffusion"): (
        "a100-roofline", "b200", "rtx5090",
    ),
    ("fp8-across-accelerators", "fp8-gaudi", "halo", "step-3", "zeroquant-fp"): ("a100-roofline", "h200", "gaudi2"),
    ("mxint8",): ("h200", "npu-mx", "edge-npu-mx"),
    ("quarot",): ("h200", "npu-mx", "edge-npu-mx"),
    ("distzo2", "memo", "smallthinker", "specexec", "zo2"): ("h200", "rtx4090-offload", "npu-hbm2-offload"),
    ("neupims",): ("h200", "neupims-blocked", "neupims-artifact"),
    ("s4",): ("h200", "s4-antoum", "edge-gather"),
    ("sat-bdwp",): ("a100-roofline", "h200", "sat-vcu1525"),
    ("streaming-attention",): ("h200", "plasticine-like", "fpga-u280"),
}  # fmt: skip
"""Machines for presets that the usual pair cannot run, of which the first refuses."""
FURTHER = {
    "speculative-sampling": ("npu-hbm2",), "lightningrl": ("npu-hbm2",), "ffn-skipllm": ("npu-hbm2", "streaming-hbm"),
    "moe-plus-plus": ("npu-hbm2",), "eight-bit-optimizers": ("npu-hbm2",), "raas": ("npu-hbm2",), "s2o": ("npu-hbm2",),
    "two-four-pretraining": ("npu-hbm2",), "ffn-fusion": ("npu-hbm2", "streaming-hbm"), "fora": ("npu-hbm2",),
    "block-low-rank": ("npu-hbm2",), "flowcut": ("npu-hbm2", "streaming-hbm"), "zero-bubble": ("npu-hbm2",),
    "forward-forward": ("npu-hbm2",), "perseus": ("npu-hbm2",), "blockllm": ("npu-hbm2",), "parscale": ("npu-hbm2",),
    "accllm": ("edge-npu-ddr4",), "fp8-gaudi": ("npu-hbm2",),
}  # fmt: skip
"""One preset of each family on an NPU as well, and some on a streaming machine."""
PRESETS = [name for name in method_names() if load_method(name).method.relevance >= 2]
LOADED: dict[str, Machine] = {}


def machine(name: str) -> Machine:
    if name not in LOADED:
        LOADED[name] = load_hardware(name)
    return LOADED[name]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def test_there_are_as_many_as_papers() -> None:
    assert len(PRESETS) == 168
    assert {name for names in MACHINES for name in names} | set(FURTHER) <= set(PRESETS)
    families = {load_method(name).method.family for name in FURTHER}
    assert families == {load_method(name).method.family for name in PRESETS}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_runs_on_two_machines(folder: Path, name: str) -> None:
    special = next((machines for names, machines in MACHINES.items() if name in names), None)
    refusing, running = ((), USUAL) if special is None else (special[:1], special[1:])
    work = small_preset(folder, name, load_method(name).method.phases[0])
    trace = work.trace()
    for each in (*running, *FURTHER.get(name, ())):
        report = simulate(machine(each), work, engine=engine_for(machine(each)))
        summary = report.summary
        assert summary["methods"] == [name]
        assert summary["time_s"] > 0 and summary["energy_j"] > 0
        assert summary["flops"] == trace.flops, "work is lost or added on the way to the machine"
        honoured = {hint["kind"] for hint in summary["hints"]}
        assert honoured == {hint.kind for hint in trace.hints}, "the report tells of every hint"
    assert len(running) >= 2
    for each in refusing:
        with pytest.raises(ConfigError) as error:
            simulate(machine(each), work)
        assert re.search(rf"\b{each}\b", str(error.value)), "the refusal names the machine"
        assert len(str(error.value)) < 400
