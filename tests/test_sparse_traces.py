"""Whole traces on sparse machines: what zeros leave of time, bytes and energy, and how the report accounts for them."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.capacity import check_capacity
from sim.config import ConfigError
from sim.cost import array_tile
from sim.engine import simulate
from sim.kinds import load_hardware
from sim.result import Report
from sim.sparse.cost import matmul_cost
from sim.sparse.zeros import Zeros, stored_bytes, stored_tensor, zero_tile
from workloads import load_workload, make_workload
from workloads.sparsity import mark, parse_sparsity
from workloads.trace import AttentionAttrs, Op, Role, Sparsity, Tensor, Trace

TINY = """\
schema: opcycle/model/1
name: tiny
family: opt
kind: decoder
layers: 2
hidden: 256
vocab: 512
max_position: 512
position: rotary
attention: {heads: 4, kv_heads: 4, head_dim: 64}
ffn: {hidden: 1024, activation: relu}
norm: {kind: rmsnorm}
"""
LINEAR = ("qkv", "out_proj", "up", "down")
W2A8KV4 = "llama2-7b-w2a8kv4-decode"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.yaml"
    path.write_text(TINY)
    return path


@cache
def _run(machine: str, model: Path, **keys: Any) -> Report:
    keys = {"phase": "decode", "batch": 4, **keys}
    length = "context" if keys["phase"] == "decode" else "prompt"
    number_format = keys.pop("number_format", "int8")
    formats = dict.fromkeys(("weights", "activations", "kv"), number_format)
    data = {"schema": "opcycle/workload/1", "name": "t", "model": str(model), "formats": formats, length: 32, **keys}
    return simulate(load_hardware(machine), make_workload(data))


def column(report: Report, name: str) -> dict[str, Any]:
    columns = report.operator_columns
    return {str(op): value for op, value in zip(columns["operator"], columns[name], strict=True)}


def weights(trace: Trace) -> dict[str, Tensor]:
    return {op.name: op.inputs[1] for op in ops(trace) if len(op.inputs) > 1 and op.inputs[1].role is Role.WEIGHT}


def ops(trace: Trace) -> list[Op]:
    return [op for p in trace.passes for b in p.blocks for op in b.ops]


# ---- what a scenario says


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("2:4", Sparsity("n:m", 0.5, 2, 4)),
        ("balanced:16:64", Sparsity("n:m", 1 / 16, 4, 64)),
        ("block:16x8:0.25", Sparsity("block", 0.25, block=(16, 8))),
        ("random:.1", Sparsity("unstructured", 0.1)),
        ("dense", None),
        ("4:4", None),
        ("random:1", None),
        ("balanced:1", None),
    ],
)
def test_short_forms(text, pattern):
    assert parse_sparsity(text) == pattern


@pytest.mark.parametrize(
    "text", ["3:2", "0:4", "2:4:8", "random:0", "random:1.5", "balanced:3:64", "block:8:0.5", "rnd"]
)
def test_short_forms_that_mean_nothing(text):
    with pytest.raises(ValueError, match="must|keeps"):
        parse_sparsity(text)


def test_a_pattern_goes_to_the_linear_layers_weights():
    trace = load_workload("llama3-8b-decode", sparsity="2:4", seed=7).trace()
    found = {name: t.sparsity for name, t in weights(trace).items()}
    assert {n for n, s in found.items() if s} == {"qkv", "out_proj", "gate_up", "down"}
    assert found["qkv"] == Sparsity("n:m", 0.5, 2, 4, seed=7)
    plain = load_workload("llama3-8b-decode").trace()
    assert trace.work == plain.work
    assert trace.weight_bytes == plain.weight_bytes


def test_a_mapping_goes_by_role_or_operator_and_the_operator_wins():
    trace = load_workload("llama3-8b-decode", {"sparsity.ffn": "1:8", "sparsity.down": "2:4", "sparsity.head": "1:2"})
    found = {name: t.sparsity for name, t in weights(trace.trace()).items()}
    assert {name: f"{s.n}:{s.m}" for name, s in found.items() if s} == {
        "gate_up": "1:8",
        "down": "2:4",
        "lm_head": "1:2",
    }


def test_activations_have_zeros_where_they_are_made_and_where_they_are_read(tiny):
    data = {"schema": "opcycle/workload/1", "name": "t", "model": str(tiny), "phase": "decode", "context": 8}
    trace = make_workload({**data, "activation_sparsity": "relu:0.1"}).trace()
    marked = {(op.name, t.name) for op in ops(trace) for t in (*op.inputs, *op.outputs) if t.sparsity}
    assert marked == {("relu", "act"), ("down", "act")}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sparsity": "5:4"}, "keeps 5 of 4, but N must be at least 1 and at most M"),
        ({"sparsity.fnn": "2:4"}, "'fnn'.*ffn"),
        ({"activation_sparsity": "balanced:4"}, "must be dense, N:M"),
        ({"activation_sparsity.attention": "relu:0.5", "model": "bert-large"}, "residual stream"),
        ({"formats": "W2A8KV5"}, "nearest: W2A8KV4"),
    ],
)
def test_bad_scenarios(changes, says):
    with pytest.raises(ConfigError, match=says):
        load_workload("bert-large", changes).trace()


def test_equal_operators_stay_shared():
    trace = load_workload("llama3-8b-generate", {"steps": "4", "sparsity": "2:4"}).trace()
    decode = [p for p in trace.passes if p.phase == "decode"]
    qkv = {id(op) for p in decode for b in p.blocks for op in b.ops if op.name == "qkv"}
    assert len(qkv) == 1
    assert mark(trace, None, None, 0) == trace


def test_the_scenario_of_accllm():
    trace = load_workload(W2A8KV4).trace()
    found = {name: (t.format, t.sparsity is not None) for name, t in weights(trace).items()}
    assert found == {
        "qkv": ("int2", True), "out_proj": ("int2", True), "gate_up": ("int2", True), "down": ("int2", True),
        "lm_head": ("int8", False), "attn_norm": ("int8", False), "ffn_norm": ("int8", False),
        "final_norm": ("int8", False), "embedding": ("int8", False),
    }  # fmt: skip
    attention = next(op for op in ops(trace) if isinstance(op.attrs, AttentionAttrs))
    assert attention.attrs.keys == 2044 + 4
    assert attention.inputs[1].format == "int4"


# ---- tiles and bytes, by hand


def test_a_tile_by_hand():
    """64 x 256 by 256 x 64, one weight in four: 64 of 256 rows are one fold of the 64 x 64 array of one core."""
    machine = load_hardware("s4-antoum")
    tile = zero_tile(machine, 64, 64, 256, Zeros(None, Sparsity("n:m", 0.25, 1, 4), "int8", "int8"))
    assert tile.occupancy == 64  # rows of the stream
    assert tile.macs == 64 * 64 * 64
    assert tile.read_bytes == 64 * 64 + 64 * 64 * 2 // 8 + 64 * 256  # weights, 2 bits each of index, activations
    assert sum(tile.split) == tile.occupancy


def test_what_a_tensor_takes_by_hand():
    nm = Tensor("w", (3, 8, 16), "int4", Role.WEIGHT, Sparsity("n:m", 0.5, 2, 4))
    found = stored_tensor(load_hardware("accllm-u280"), nm)
    # three matrices of two groups of four, two kept: 4 bits each and 2 bits of place
    assert found == (3 * 2 * 2 * 16 * 4, 3 * 2 * 2 * 16 * 2, 3 * 2 * 2 * 16)
    assert stored_bytes(load_hardware("accllm-u280-dense"), nm) == nm.bytes
    assert stored_bytes(load_hardware("npu-hbm2"), nm) == nm.bytes


def test_metadata_eats_all_that_two_bit_weights_save():
    summary = simulate(load_hardware("accllm-u280"), load_workload(W2A8KV4, {"context": "128"})).summary
    assert summary["overheads"]["metadata_bytes"] == summary["overheads"]["left_out_bytes"] > 0


@settings(deadline=None, max_examples=40)
@given(m=st.integers(1, 300), n=st.integers(1, 300), k=st.integers(1, 600))
def test_a_dense_tile_costs_the_same_on_the_engine_and_on_the_arrays(m, n, k):
    machine = load_hardware("s4-antoum", {"cores": "1"})
    tile, cost = array_tile(machine.array, 1, m, n, k, 1), matmul_cost(machine, m, n, k)
    assert (cost.parts["array"], cost.tail, cost.cold) == (sum(tile[:3]), tile.tail, tile.cold)
    assert cost.macs == m * n * k
    assert cost.read_bytes == tile.left_reads + tile.right_reads


# ---- whole passes


def test_no_zeros_change_nothing(tiny):
    plain = _run("s4-antoum", tiny)
    for pattern in ("dense", "4:4", "random:1"):
        assert _run("s4-antoum", tiny, sparsity=pattern).operator_columns == plain.operator_columns
    assert plain.summary["sparsity"] is None


@pytest.mark.parametrize("machine", ["s4-antoum-dense", "npu-hbm2"])
def test_a_dense_machine_saves_nothing_and_says_so(tiny, machine):
    plain, sparse = (_run(machine, tiny, sparsity=p, number_format="bf16").summary for p in ("dense", "1:8"))
    assert {k: v for k, v in sparse.items() if k not in ("sparsity", "provenance", "wall_s")} == {
        k: v for k, v in plain.items() if k not in ("sparsity", "provenance", "wall_s")
    }
    found = sparse["sparsity"]
    assert found["skipped_macs"] == found["left_out_bytes"] == found["metadata_bytes"] == 0
    assert found["useful_macs"] * 8 == found["dense_macs"] == found["executed_macs"]
    told = column(_run(machine, tiny, sparsity="1:8", number_format="bf16"), "decision_sparsity")
    assert {n for n, text in told.items() if "multiplied as numbers" in text} == set(LINEAR)


CASES = [
    ("s4-antoum", {"sparsity": "1:8"}),
    ("s4-antoum", {"sparsity": "random:0.1"}),
    ("accllm-u280", {"sparsity": "2:4"}),
    ("edge-gather", {"activation_sparsity": "relu:0.01", "phase": "prefill"}),
    ("edge-gather", {"sparsity": "block:32x32:0.25", "phase": "prefill"}),
    ("sigma-like", {"sparsity": "random:0.2", "number_format": "bf16"}),
    ("edge-outer", {"sparsity": "random:0.2", "activation_sparsity": "relu:0.2"}),
    ("edge-gustavson", {"sparsity": "random:0.2"}),
    ("dstc-like", {"sparsity": "random:0.2", "activation_sparsity": "relu:0.3", "number_format": "fp16"}),
]


@pytest.mark.parametrize(("machine", "keys"), CASES, ids=lambda v: v if isinstance(v, str) else "-".join(v))
def test_the_books_close(tiny, machine, keys):
    plain = _run(machine, tiny, **{k: v for k, v in keys.items() if "sparsity" not in k})
    report = _run(machine, tiny, **keys)
    summary, over, zeros = report.summary, report.summary["overheads"], report.summary["sparsity"]
    assert all(value >= 0 for value in over.values())
    assert summary["flops"] == plain.summary["flops"]
    # What is padded has nothing to do with zeros: it is what the dense run pads.
    assert over["padding_macs"] == plain.summary["overheads"]["padding_macs"]
    assert over["executed_macs"] == sum(report.operator_columns["executed_macs"])
    assert over["skipped_macs"] == sum(report.operator_columns["skipped_macs"]) > 0
    assert summary["dram_bytes"] == (
        over["compulsory_bytes"] - over["left_out_bytes"] + over["metadata_bytes"] + over["refetched_bytes"]
        - over["kept_on_chip_bytes"] + over["burst_padding_bytes"] - over["write_queue_hit_bytes"]
    )  # fmt: skip
    macs = sum(row.count for row in report.energy_rows if row.unit == "MAC")
    assert macs == over["executed_macs"]
    assert sum(column(report, "energy_j").values()) == pytest.approx(summary["energy_j"])
    # Lower bounds: what is moved at the peak rate, and what is done at the peak rate.
    assert summary["memory_bandwidth_utilization"] <= 1
    assert summary["mac_utilization"] <= 1
    assert sum(zeros["time_s"].values()) == pytest.approx(summary["time_s"])
    assert zeros["executed_macs"] >= zeros["useful_macs"] * 0.9  # drawn masks keep their density on average


def test_weights_come_from_dram_once_and_compressed(tiny):
    machine = load_hardware("s4-antoum", {"cores": 1})
    report = simulate(machine, _run("s4-antoum", tiny, sparsity="1:8").workload)
    trace_weights = weights(report.workload.trace())
    read = column(report, "dram_read_bytes")
    for name in LINEAR:
        dense = 2 * trace_weights[name].bytes
        stored = 2 * stored_bytes(machine, trace_weights[name])
        assert stored == dense * (8 + 3) // (8 * 8)  # a value and three bits of place in eight
        assert read[name] == stored  # activations stay on chip


def test_the_predictor_is_paid_for(tiny):
    report = _run("edge-gather", tiny, activation_sparsity="relu:0.01", phase="prefill")
    tokens, layers, rank = 4 * 32, 2, 64
    assert report.summary["overheads"]["predictor_macs"] == layers * tokens * rank * (256 + 1024)
    free = load_hardware("edge-gather", {"sparse.predictor": None})
    found = simulate(free, report.workload).summary
    assert found["overheads"]["predictor_macs"] == 0
    assert found["time_s"] < report.summary["time_s"]


def test_unstructured_weights_pay_for_imbalance_and_follow_the_seed(tiny):
    even, uneven = (_run("s4-antoum", tiny, sparsity=p, phase="prefill") for p in ("1:8", "random:0.125"))
    assert even.summary["sparsity"]["imbalance"] == 1
    assert uneven.summary["sparsity"]["imbalance"] > 1.2
    assert uneven.summary["time_s"] >= even.summary["time_s"]
    again, other = (_run("s4-antoum", tiny, sparsity="random:0.125", phase="prefill", seed=s) for s in (0, 1))
    assert again.operator_columns == uneven.operator_columns
    assert other.summary["overheads"]["executed_macs"] != uneven.summary["overheads"]["executed_macs"]


def test_decoders_that_are_too_slow_take_the_time(tiny):
    workload = _run("s4-antoum", tiny, sparsity="1:4").workload
    slow = simulate(load_hardware("s4-antoum", {"sparse.decode_entries_per_cycle": 1}), workload).summary
    entries = 2 * (256 * 768 + 256 * 256 + 2 * 256 * 1024) // 4
    # Every entry once for each tile of rows, a cycle each, on four cores.
    assert slow["time_s"] >= entries / (4 * 900e6)
    engine = slow["sparsity"]["engine_s"]
    assert engine["metadata"] > 10 * engine["products"]


def test_a_pair_of_formats_has_its_own_rate_and_roof(tiny):
    formats = {"weights": "int2", "activations": "int8", "kv": "int4"}
    data = {"schema": "opcycle/workload/1", "name": "t", "model": str(tiny), "phase": "decode", "context": 32}
    report = simulate(load_hardware("accllm-u280"), make_workload({**data, "formats": formats, "sparsity": "2:4"}))
    assert {column(report, "format")[name] for name in LINEAR} == {"int8*int2"}
    assert column(report, "format")["attention"] == "int8*int4"
    roofs = report.summary["roofline"]["peak_flops_per_s_by_format"]
    assert roofs["int8*int2"] == 2 * roofs["int8*int4"]


def test_speedup_of_bert_large_on_s4():
    """The gain grows with sparsity and falls ever further behind the ideal: vector operators, attention and bandwidth
    stay. The time that products with zeros add shrinks, that of the rest does not."""
    keys = {"workload.prompt": "64"}
    machine = load_hardware("s4-antoum")
    series = ["dense", "1:2", "1:8", "1:32"]
    found = [simulate(machine, load_workload("bert-large", {**keys, "sparsity": s})).summary for s in series]
    times = [s["time_s"] for s in found]
    assert times == sorted(times, reverse=True)
    for degree, summary in zip((2, 8, 32), found[1:], strict=True):
        zeros = summary["sparsity"]
        assert zeros["ideal_speedup"] == degree
        assert 1 < times[0] / summary["time_s"] < zeros["ideal_speedup_of_all_products"] < zeros["ideal_speedup"]
    part = [s["sparsity"]["time_s"]["products_with_zeros"] / s["time_s"] for s in found[1:]]
    assert part[-1] < part[0]


def test_stored_weights_count_for_the_capacity():
    """Weights that fit only without their zeros are taken on the machine that leaves them out."""
    data = {"schema": "opcycle/workload/1", "name": "t", "model": "llama-2-7b", "phase": "decode", "context": 16}
    wide = {**data, "formats": dict.fromkeys(("weights", "activations", "kv"), "fp16"), "sparsity": "2:4"}
    trace = make_workload(wide).trace()
    with pytest.raises(ConfigError, match="GiB of weights"):
        check_capacity(load_hardware("accllm-u280-dense"), trace)
    check_capacity(load_hardware("accllm-u280"), trace)


# ---- the command


@pytest.mark.parametrize(
    ("machine", "workload", "setting", "says"),
    [
        ("s4-antoum", "bert-large", "sparsity=1:64", "qkv .*one value in 64, but s4-antoum supports up to one in 32"),
        ("s4-antoum", "bert-large", "sparsity=9:8", "sparsity: .*keeps 9 of 8"),
        ("accllm-u280", W2A8KV4, "sparsity=1:4", "qkv .*1:4 has no unit on this machine.*allowed: dense, 2:4"),
        ("accllm-u280", W2A8KV4, "sparsity=random:0.5", "take N:M weights, not random:0.5; allowed: dense, 2:4"),
        ("s4-antoum", "bert-large", "formats=W4A4KV4", "int4 is asked for.*units for int8, bf16, fp16 only"),
    ],
)
def test_what_a_machine_cannot_do_is_refused(opcycle, machine, workload, setting, says):
    done = opcycle("simulate", machine, workload, "--set", f"workload.{setting}")
    assert done.code == 2
    assert done.out == ""
    assert len(done.err.strip().splitlines()) == 1
    assert re.search(says, done.err), done.err


def test_the_command(opcycle):
    done = opcycle(
        "simulate", "s4-antoum", "bert-large", "--set", "workload.sparsity=1:8", "--set", "workload.prompt=32",
        "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    summary = json.loads(done.out)
    assert summary["sparsity"]["skipped_macs"] * 8 == summary["sparsity"]["dense_macs"] * 7
