"""A model cut over devices: what each holds and computes, what they tell each other, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.config import ConfigError
from sim.engine import simulate
from sim.kinds import engine_for, load_hardware
from workloads import load_workload
from workloads.scenario import Workload, make_workload
from workloads.trace import CollectiveAttrs, Op, OpKind, Role
from workloads.trace_check import check_trace

COLLECTIVE = OpKind.COLLECTIVE


def workload(**keys: Any) -> Workload:
    base = {"schema": "opcycle/workload/1", "name": "t", "model": "gpt3-13b", "phase": "decode"}
    return make_workload({**base, "lengths": [100, 200, 300, 400], **keys})


def operators(work: Workload, block: str) -> dict[str, Op]:
    (found,) = (b for b in work.trace().passes[0].blocks if b.name == block)
    return {op.name: op for op in found.ops}


def test_a_tensor_part_has_its_share_and_two_sums_a_layer() -> None:
    whole, part = operators(workload(), "layers"), operators(workload(parallel={"tensor": 4}), "layers")
    for name in ("qkv", "attention", "out_proj", "up", "down"):
        assert 4 * part[name].macs == whole[name].macs
    assert part["attn_norm"] == whole["attn_norm"]
    sums = {name: op.attrs for name, op in part.items() if op.kind is COLLECTIVE}
    # 4 requests x hidden 5120 x 2 bytes.
    assert sums == {name: CollectiveAttrs("all_reduce", 40960, 4) for name in ("attn_all_reduce", "ffn_all_reduce")}
    assert not any(op.kind is COLLECTIVE for op in whole.values())


def test_weights_and_cache_divide() -> None:
    whole, part = workload().trace(), workload(parallel={"tensor": 4}).trace()
    check_trace(part)
    assert 4 * part.kv_bytes == whole.kv_bytes
    # What is not cut: norms, the two biases after a sum, positions; and the vocabulary is filled up to a multiple of 4.
    layer = 5120 * (2 * 2 + 2)
    uncut = 40 * layer + 2 * 5120 + 2048 * 5120
    read = {t.name: t for b in whole.passes[0].blocks for op in b.ops for t in op.inputs if t.role is Role.WEIGHT}
    assert read["positions.weight"].elements == 4 * 5120
    padding = (4 * 12565 - 50257) * 5120
    assert 4 * part.weight_elements - whole.weight_elements == 3 * uncut + padding


def test_few_key_value_heads_are_held_by_several_devices() -> None:
    part = operators(workload(model="llama3-8b", parallel={"tensor": 16}), "layers")
    attrs = part["attention"].attrs
    assert (attrs.heads, attrs.kv_heads) == (2, 1)
    assert part["qkv"].attrs.n == (2 + 1 + 1) * 128


def test_a_stage_of_a_pipeline_works_on_parts_in_turn() -> None:
    trace = workload(parallel={"tensor": 4, "pipeline": 2}).trace()
    check_trace(trace)
    (step,) = trace.passes
    names = ["receive", "layers", "head"]
    assert [b.name for b in step.blocks] == [f"part{n}.{name}" for n in range(2) for name in names]
    assert [b.repeat for b in step.blocks] == [1, 20, 1] * 2
    assert (step.tokens, step.generated) == (4, 4)
    # Dealt out by length: 400 and 200 here, 300 and 100 there; both caches are resident, the weights are held once.
    spans = [op.attrs.requests for b in step.blocks for op in b.ops if op.kind is OpKind.ATTENTION]
    assert [[s.past for s in part] for part in spans] == [[400, 200], [300, 100]]
    alone = workload(parallel={"tensor": 4}).trace()
    assert 2 * trace.kv_bytes == alone.kv_bytes
    assert trace.weight_bytes < 0.6 * alone.weight_bytes
    received = step.blocks[0].ops[0].attrs
    assert received == CollectiveAttrs("send_recv", 2 * 5120 * 2, 2)


def test_a_pipeline_is_filled_once_before_its_last_stage_has_work() -> None:
    """Four requests over two stages in chunks of 160: two parts in turn, of which a part drops out when it is done."""
    cut = workload(phase="prefill", chunk=160, parallel={"pipeline": 2}).trace()
    check_trace(cut)
    whole = workload(phase="prefill", chunk=160).trace()
    assert [p.tokens for p in cut.passes] == [p.tokens for p in whole.passes] == [580, 340, 80]
    assert [p.generated for p in cut.passes] == [p.generated for p in whole.passes] == [1, 2, 1]
    # 400 and 200 are the first part, 300 and 100 the second; the last 80 positions belong to the first.
    assert [{b.name.partition(".")[0] for b in p.blocks} for p in cut.passes] == [{"part0", "part1"}] * 2 + [{"part0"}]
    # The first part's second chunk is its longest but for its heads: 200 new positions after the first chunk's 320.
    assert sorted(p.fill for p in cut.passes) == [0, 0, 1]
    assert cut.passes[0].fill == 1
    # Fewer requests than stages are that many parts.
    (alone,) = workload(phase="prefill", lengths=[64], parallel={"pipeline": 4}).trace().passes
    assert ({b.name.partition(".")[0] for b in alone.blocks}, alone.fill) == ({"part0"}, 3)


@pytest.mark.parametrize("machine", ["h200", "npu-hbm2"])
def test_the_first_token_comes_after_fill_and_all_parts(machine: str) -> None:
    """Two stages, two parts alike: the last stage waits for the one before it, which has no head to compute."""
    keys = {"phase": "prefill", "model": "llama-3.2-1b", "lengths": [16] * 2, "parallel": {"pipeline": 2}}
    work = workload(**keys)
    hardware = load_hardware(machine)
    engine = engine_for(hardware)
    report = simulate(hardware, work, engine=engine)
    (part,), (got,) = work.trace().passes, report.passes
    assert part.fill == 1
    alone = engine.run(part)
    stage = engine.run(replace(part, blocks=part.blocks[:2], fill=0)).schedule.makespan_ps
    assert [b.name for b in part.blocks[:3]] == ["part0.receive", "part0.layers", "part0.head"]
    assert got.schedule.makespan_ps == alone.schedule.makespan_ps + stage
    assert int(got.schedule.start_ps.min()) == int(alone.schedule.start_ps.min()) + stage
    assert report.summary["ttft_s"] == report.summary["time_s"] == got.schedule.makespan_ps / 1e12
    # Nothing is done while it waits, but the memory stands by.
    assert got.schedule.memory.commands == alone.schedule.memory.commands
    standby = [sum(r.schedule.memory.standby_ps.values()) / r.schedule.makespan_ps for r in (got, alone)]
    assert standby[0] == pytest.approx(standby[1], rel=1e-6)


def test_experts_are_shared_and_rows_travel() -> None:
    """Mixtral: 8 experts of which each token takes 2; four devices have 2 experts and a request each."""
    cut = workload(model="mixtral-8x7b", parallel={"expert": 4})
    whole, part = operators(workload(model="mixtral-8x7b"), "layers"), operators(cut, "layers")
    check_trace(cut.trace())
    # Four tokens choose 8 experts, each one; two of these are here.
    assert part["expert_down"].attrs.group_m == (1, 1)
    assert 4 * part["expert_down"].macs == whole["expert_down"].macs
    exchanges = {name: op.attrs for name, op in part.items() if op.kind is COLLECTIVE}
    # Two rows of 4096 x 2 bytes go and come.
    names = ("dispatch_all_to_all", "combine_all_to_all")
    assert exchanges == {name: CollectiveAttrs("all_to_all", 2 * 8192, 4) for name in names}
    # The longest request is here; the router still scores all experts; a device has a quarter of the experts' weights.
    (span,) = part["attention"].attrs.requests
    assert span.past == 400
    assert part["router"].attrs.n == 8
    assert (cut.trace().passes[0].tokens, cut.trace().generated) == (4, 4)
    experts = 32 * 8 * 3 * 4096 * 14336
    assert workload(model="mixtral-8x7b").trace().weight_elements - cut.trace().weight_elements == experts * 3 // 4


@given(st.integers(1, 40), st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2]))
def test_no_choice_of_an_expert_is_lost(requests: int, expert: int, tensor: int) -> None:
    """With as many tokens on each device, the loads of all devices are the choices of all tokens."""
    over = {"expert": expert, "tensor": tensor}
    cut = workload(model="mixtral-8x7b", lengths=[64] * requests * expert, parallel=over)
    attrs = operators(cut, "layers")["expert_down"].attrs
    choices = 2 * requests * expert
    mine = sum(attrs.group_m)
    assert choices <= mine * expert < choices + 8 + expert
    assert len(attrs.group_m) <= 8 // expert


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"parallel": {"tensor": 3}}, "parallel.tensor: is 3, but gpt3-13b has 40 heads"),
        ({"model": "llama3-8b", "parallel": {"tensor": 64}}, "32 heads"),
        ({"model": "qwen3-14b", "parallel": {"tensor": 5}}, "8 key/value heads: one must divide the other"),
        ({"parallel": {"pipeline": 3}}, "parallel.pipeline: is 3, but gpt3-13b has 40 layers"),
        ({"parallel": {"pipeline": 8}}, "a batch of 4 keeps no more than 4 stages busy"),
        ({"model": "gemma-3-27b", "parallel": {"pipeline": 2}}, "not all alike"),
        ({"model": "bert-large", "phase": "encode", "parallel": {"pipeline": 2}}, "only prefill, decode and generate"),
        ({"phase": "generate", "steps": 3, "parallel": {"pipeline": 8}}, "keeps no more than 4 stages busy"),
        ({"parallel": {"tensor": 0}}, "parallel.tensor"),
        ({"parallel": {"expert": 2}}, "parallel.expert: is 2, but gpt3-13b has no experts"),
        ({"model": "mixtral-8x7b", "parallel": {"expert": 3}}, "8 experts, which that does not divide"),
        ({"model": "mixtral-8x7b", "parallel": {"expert": 8}}, "a batch of 4 leaves some of the devices"),
        ({"model": "mixtral-8x7b", "parallel": {"expert": 2}, "methods": ["moe-plus-plus"]}, "leave out either"),
    ],
)
def test_refused(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        workload(**keys)


@pytest.mark.parametrize(("model", "devices"), [("7b", 4), ("13b", 4), ("30b", 8), ("175b", 32)])
@pytest.mark.parametrize("lengths", ["sharegpt", "alpaca"])
def test_scenarios_of_the_study(model: str, devices: int, lengths: str) -> None:
    work = load_workload(f"gpt3-{model}-decode-{lengths}")
    assert work.scenario is not None
    assert work.scenario.parallel.devices == devices
    trace = work.trace()
    check_trace(trace)
    assert trace.batch == trace.generated == 256
