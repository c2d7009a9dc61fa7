"""Proofs that what makes runs fast changes nothing: every shortcut on and off, compiled or not, in any process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from machines import PASSES, machine, mapper, model, small_run

import sim.execute
from sim.engine import Engine
from sim.lower.lowering import lower_pass
from sim.passes import PassResult, Schedule
from workloads.build import Builder, decode_passes

ROOT = Path(__file__).resolve().parent.parent


def same(a: Schedule, b: Schedule) -> None:
    """Equal to the picosecond and to the command."""
    for name in ("start_ps", "release_ps", "finish_ps"):
        differ = np.flatnonzero(getattr(a, name) != getattr(b, name))
        assert not len(differ), f"{name} of task {differ[0]}"
    assert a.makespan_ps == b.makespan_ps
    assert a.memory == b.memory


CASES = [
    ("ws", "gqa_decode"),
    ("ws", "window_prefill"),
    ("tight", "listed_decode"),
    ("tight", "mla_decode"),
    ("four_cores", "moe_decode"),
    ("two_arrays", "moe_prefill"),
    ("unfused", "chunked_prefill"),
    ("one_slot", "listed_prefill"),
    ("ddr4", "encoder"),
    ("no_share", "mla_prefill"),
]


@pytest.mark.parametrize(("name", "what"), CASES)
def test_channels_that_do_the_same_may_be_run_once(name, what):
    once = small_run(name, what)
    each = lower_pass(machine(name), PASSES[what](), mapper(name), symmetry=False)
    channels = machine(name).memory.channels
    assert len(each.linked.weight) == channels
    assert len(once.lowered.linked.weight) <= channels
    same(once.schedule, sim.execute.execute(each.linked, machine(name).dram))


def test_symmetry_saves_something():
    classes = [len(small_run(name, what).lowered.linked.weight) for name, what in CASES]
    channels = [machine(name).memory.channels for name, _ in CASES]
    assert any(few < many for few, many in zip(classes, channels, strict=True))


@pytest.mark.parametrize(("name", "what"), CASES)
def test_periodic_stretches_may_be_advanced_at_once(name, what):
    leaping = small_run(name, what)
    same(leaping.schedule, sim.execute.execute(leaping.lowered.linked, machine(name).dram, steady=False))


def _equal(a: PassResult, b: PassResult) -> None:
    same(a.schedule, b.schedule)
    assert (a.name, a.phase, a.tokens, a.generated, a.repeat) == (b.name, b.phase, b.tokens, b.generated, b.repeat)
    assert (a.ops, a.units) == (b.ops, b.units)
    for column in a.tasks.__dataclass_fields__:
        assert (getattr(a.tasks, column) == getattr(b.tasks, column)).all()


def test_equal_passes_may_be_simulated_once():
    builder = Builder(model())
    passes = [*decode_passes(builder, [60, 20]), *decode_passes(builder, [61, 20]), *decode_passes(builder, [60, 20])]
    shared, alone = Engine(machine("ws")), Engine(machine("ws"), reuse=False)
    for work in passes:
        _equal(shared.run(work), alone.run(work))
    assert len(shared._known) == 2
    assert not alone._known


def test_a_mapper_that_knows_much_chooses_as_a_new_one():
    """What was simulated before on the same machine has no influence."""
    old = Engine(machine("ws"))
    for what in ("gqa_prefill", "moe_decode"):
        old.run(PASSES[what]())
    _equal(old.run(PASSES["listed_decode"]()), Engine(machine("ws")).run(PASSES["listed_decode"]()))


SCRIPT = """
import json, sys
from sim.engine import Engine
from sim.kinds import load_hardware
from sim.result import Report
from workloads import load_workload
machine = load_hardware("npu-hbm2", json.loads(sys.argv[1]))
work = load_workload(sys.argv[2])
engine = Engine(machine)
report = Report(machine, work, tuple(engine.run(p) for p in work.trace().passes))
summary = dict(report.summary)
summary.pop("wall_s", None)
print(json.dumps([summary, report.operator_columns]))
"""

TINY = {
    "array.count": 1, "array.rows": 16, "array.columns": 16, "vector.count": 1, "vector.lanes": 16,
    "scratchpad.capacity": "64 KiB", "accumulator.capacity": "16 KiB", "memory.channels": 2,
}  # fmt: skip

MODEL = """
schema: opcycle/model/1
name: mite
layers: 1
hidden: 48
vocab: 64
max_position: 256
attention: {heads: 2, kv_heads: 1, head_dim: 16}
ffn: {hidden: 96, activation: swiglu}
norm: {kind: rmsnorm}
"""

SCENARIO = """
schema: opcycle/workload/1
name: mite-decode
model: mite.yaml
phase: decode
batch: 2
context: 20
"""


@pytest.fixture(scope="module")
def scenario(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mite")
    (folder / "mite.yaml").write_text(MODEL)
    (folder / "decode.yaml").write_text(SCENARIO)
    return folder / "decode.yaml"


def _run(scenario: Path, **environment: str) -> str:
    command = [sys.executable, "-c", SCRIPT, json.dumps(TINY), str(scenario)]
    inherited = {name: value for name, value in os.environ.items() if name != "NUMBA_DISABLE_JIT"}
    done = subprocess.run(
        command, cwd=ROOT, env={**inherited, **environment}, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def compiled(scenario) -> str:
    return _run(scenario, PYTHONHASHSEED="1")


def test_the_same_bytes_without_compiled_kernels(scenario, compiled):
    assert _run(scenario, NUMBA_DISABLE_JIT="1") == compiled
    assert json.loads(compiled)[0]["flops"] > 0


def test_the_same_bytes_whatever_the_hashes(scenario, compiled):
    assert _run(scenario, PYTHONHASHSEED="2") == compiled
