"""Sampled runs: what is exact in them equals the run of every layer and channel, what is not stays near it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from machines import LATENT, MACHINES, MOE, machine, model

import sim.engine
from sim.engine import Engine
from sim.joins import WORK_COLUMNS, work_by_operator
from sim.lower import lower_pass
from sim.passes import PassResult
from sim.sampling import SIMULATED_LAYERS, one_channel, shortened
from sim.sweep.point import evaluate, prepare
from sim.sweep.spec import Spec
from tests.conftest import Outcome
from workloads.build import Builder, decode_passes, encode_passes, prefill_passes
from workloads.trace import Pass

DEEP: dict[str, Callable[[], Pass]] = {
    "decode": lambda: decode_passes(Builder(model(layers=9)), [100] * 3)[0],
    "prefill": lambda: prefill_passes(Builder(model(layers=5)), [96])[0],
    "latent": lambda: decode_passes(Builder(model(layers=6, attention=LATENT)), [90, 33])[0],
    "experts": lambda: decode_passes(Builder(model(layers=7, moe=MOE)), [50, 20])[0],
    "encoder": lambda: encode_passes(Builder(model(layers=4, kind="encoder", position="learned")), [50, 21])[0],
}


def engines(name: str) -> tuple[Engine, Engine]:
    """An exact and a sampled engine that choose the same tilings."""
    exact, sampled = Engine(machine(name)), Engine(machine(name), sampled=True)
    sampled.mapper = exact.mapper
    return exact, sampled


def both(name: str, work: Pass) -> tuple[PassResult, PassResult]:
    exact, sampled = engines(name)
    return exact.run(work), sampled.run(work)


@pytest.mark.parametrize("name", ["ws", "two_arrays", "four_cores", "tight", "ddr4"])
@pytest.mark.parametrize("work", DEEP)
def test_work_is_that_of_every_layer(name: str, work: str) -> None:
    exact, sampled = both(name, DEEP[work]())
    assert sampled.ops == exact.ops
    assert np.array_equal(sampled.tasks.op, exact.tasks.op)
    assert np.array_equal(sampled.tasks.unit, exact.tasks.unit)
    ours, theirs = work_by_operator(sampled), work_by_operator(exact)
    for column in WORK_COLUMNS:
        assert np.array_equal(ours[column], theirs[column]), column
    memory, other = sampled.schedule.memory, exact.schedule.memory
    assert memory.bytes_written + memory.bytes_merged == other.bytes_written + other.bytes_merged
    # A layer's operands may begin at another burst than those of the layer that stands for it.
    read, other_read = memory.bytes_read + memory.bytes_forwarded, other.bytes_read + other.bytes_forwarded
    assert read == pytest.approx(other_read, rel=1e-3)
    assert memory.commands["RD"] * machine(name).dram.burst_bytes == memory.bytes_read


@pytest.mark.parametrize("name", ["ws", "two_arrays", "four_cores", "ddr4"])
@pytest.mark.parametrize("work", DEEP)
def test_time_and_counts_are_near(name: str, work: str) -> None:
    exact, sampled = both(name, DEEP[work]())
    ours, theirs = sampled.schedule, exact.schedule
    near = 0.1 if name == "four_cores" else 0.03  # layers of ten microseconds, of which four cores make each another
    assert ours.makespan_ps == pytest.approx(theirs.makespan_ps, rel=near)
    assert sum(ours.memory.channel_busy_ps) == pytest.approx(sum(theirs.memory.channel_busy_ps), rel=near)
    assert ours.memory.commands["ACT"] == pytest.approx(theirs.memory.commands["ACT"], rel=0.2)
    assert sum(ours.memory.standby_ps.values()) == pytest.approx(sum(theirs.memory.standby_ps.values()), rel=near)


@pytest.mark.parametrize("work", DEEP)
def test_schedule_is_one_that_units_can_keep(work: str) -> None:
    _, sampled = both("ws", DEEP[work]())
    schedule, unit = sampled.schedule, sampled.tasks.unit
    assert (schedule.start_ps >= 0).all()
    assert (schedule.start_ps <= schedule.release_ps).all()
    assert (schedule.release_ps <= schedule.finish_ps).all()
    assert schedule.finish_ps.max() <= schedule.makespan_ps
    for number, row in enumerate(sampled.units):
        if row.kind not in ("array", "vector"):
            continue
        mine = unit == number
        order = np.argsort(schedule.start_ps[mine], kind="stable")
        assert (schedule.start_ps[mine][order][1:] >= schedule.release_ps[mine][order][:-1]).all(), row.name


def test_nothing_differs_where_nothing_is_left_out() -> None:
    """Two layers, one channel: all is simulated."""
    work = decode_passes(Builder(model(layers=SIMULATED_LAYERS)), [100])[0]
    assert shortened(work, 1) is work
    exact, sampled = both("one_slot", work)
    assert sampled.schedule.makespan_ps == exact.schedule.makespan_ps
    assert np.array_equal(sampled.schedule.start_ps, exact.schedule.start_ps)
    assert sampled.schedule.memory == exact.schedule.memory


def test_the_channel_that_stands_for_all_gets_the_most_of_every_task() -> None:
    hardware = machine("two_arrays")
    linked = lower_pass(hardware, DEEP["decode"](), Engine(hardware).mapper).linked
    program = linked.program
    assert program.seg_ptr.shape[0] > 1
    alone = one_channel(linked).program
    for task in range(program.write.shape[0]):
        each = [int(program.seg_n[p[task] : p[task + 1]].sum()) for p in program.seg_ptr]
        first, last = alone.seg_ptr[0, task : task + 2]
        assert int(alone.seg_n[first:last].sum()) == max(each)
    assert one_channel(linked).weight.tolist() == [hardware.memory.channels]


def test_ranked_tilings_that_find_no_room_are_searched_after_all(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []
    lower = sim.engine.lower_pass

    def crowded(hardware, work, mapper, symmetry):
        tried.append(mapper.ranked_only)
        if mapper.ranked_only:
            raise MemoryError
        return lower(hardware, work, mapper, symmetry)

    monkeypatch.setattr(sim.engine, "lower_pass", crowded)
    result = Engine(machine("ws"), sampled=True).run(DEEP["decode"]())
    assert tried == [True, False]
    assert result.schedule.makespan_ps > 0


@pytest.mark.parametrize("name", sorted(set(MACHINES) - {"one_slot"}))
def test_ranked_tilings_are_good_ones(name: str) -> None:
    """Near the best simulated even on machines so small that ends of operators count, which a ranking leaves out."""
    work = replace(DEEP["prefill"]())
    searched, ranked = engines(name)[1], Engine(machine(name), sampled=True)
    times = [engine.run(work).schedule.makespan_ps for engine in (ranked, searched)]
    assert times[0] <= 1.2 * times[1]


def test_simulate_and_sweep_say_the_same(tmp_path: Path, opcycle: Callable[..., Outcome]) -> None:
    arguments = ("simulate", "npu-hbm2", "bert-large-encode", "--set", "workload.prompt=32", "--json")
    summary = json.loads(opcycle(*arguments, "--fidelity", "sampled").out)
    exact = json.loads(opcycle(*arguments).out)
    assert (summary["fidelity"], exact["fidelity"]) == ("sampled", "exact")
    assert summary["time_s"] == pytest.approx(exact["time_s"], rel=0.03)
    assert summary["flops"] == exact["flops"]
    axes = {"workload.prompt": [32]}
    rows = []
    for fidelity in ("sampled", "exact"):
        spec = Spec(hardware="npu-hbm2", workload="bert-large-encode", axes=axes, fidelity=fidelity)
        prepared = prepare(spec, {"workload.prompt": 32})
        rows.append((prepared.key, evaluate(prepared)))
    assert rows[0][0] != rows[1][0]  # else the cache of points would mix them up
    assert [row["time_s"] for _, row in rows] == [summary["time_s"], exact["time_s"]]


def test_machines_that_simulate_equal_layers_once_are_exact(opcycle: Callable[..., Outcome]) -> None:
    arguments = ("simulate", "h200", "llama3-8b-decode", "--set", "workload.steps=1", "--json")
    summary, exact = (json.loads(opcycle(*arguments, *more).out) for more in (("--fidelity", "sampled"), ()))
    assert summary["fidelity"] == "exact"
    assert summary["time_s"] == exact["time_s"]


def test_refused(tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "exact, sampled" in refused("simulate", "npu-hbm2", "bert-large-encode", "--fidelity", "fast")
    path = tmp_path / "sweep.yaml"
    spec = {"hardware": "npu-hbm2", "workload": "bert-large-encode", "axes": {"workload.batch": [1]}, "fidelity": "x"}
    path.write_text(yaml.safe_dump({"schema": "opcycle/sweep/1", **spec}))
    assert "fidelity" in refused("sweep", path, "-o", tmp_path / "out")
