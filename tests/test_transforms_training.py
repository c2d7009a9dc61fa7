"""Primitives of training and of several devices against closed forms, and what machines are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.method_cases import small
from tests.transform_cases import ATTENTION_WEIGHTS, FFN_WEIGHTS, HIDDEN, LAYERS, ops, traces
from workloads.trace import OpKind, Role, Trace
from workloads.transforms.training import saved_bytes, saved_tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


# --- train


def forward_flops(trace: Trace) -> tuple[int, int]:
    """FLOPs of a forward pass in products with weights, and in attention."""
    found = trace.passes[0]
    products = sum(b.repeat * op.flops for b in found.blocks for op in b.ops if op.kind is OpKind.MATMUL)
    return products, sum(b.repeat * op.flops for b in found.blocks for op in b.ops if op.kind is OpKind.ATTENTION)


def test_backward_is_twice_the_products_and_five_halves_of_attention(folder: Path) -> None:
    trace = small(folder, "prefill", [{"train": {}}]).trace()
    products, attention_ = forward_flops(trace)
    assert [p.name for p in trace.passes] == ["forward", "backward", "update"]
    assert trace.passes[1].flops == 2 * products + attention_ * 5 // 2
    assert not any(t.role is Role.KV for p in trace.passes for b in p.blocks for op in b.ops for t in op.inputs)
    weights = trace.weight_elements
    # Adam with a master copy: gradient 2, two states and the master 4 bytes each read; all but the gradient written.
    update = trace.passes[2]
    assert (update.read_bytes, update.write_bytes) == (weights * (2 + 12), weights * (12 + 2))
    assert saved_bytes(trace) > 0


def test_recompute_sampling_and_parts(folder: Path) -> None:
    plain = small(folder, "prefill", [{"train": {}}]).trace()
    again = small(folder, "prefill", [{"train": {"recompute": "layer"}}]).trace()
    layers = sum(b.flops for b in plain.passes[0].blocks if b.first_layer is not None)
    assert again.flops - plain.flops == layers
    assert saved_bytes(again) < saved_bytes(plain)
    products, _ = forward_flops(plain)
    sampled = small(folder, "prefill", [{"train": {"sample_weight": 0.25}}]).trace()
    assert plain.flops - sampled.flops == products * 3 // 4
    part = small(folder, "prefill", [{"train": {"trainable": 0.25}}]).trace()
    assert plain.flops - part.flops == products * 3 // 4
    assert part.passes[2].read_bytes * 4 == pytest.approx(plain.passes[2].read_bytes, rel=1e-3)
    lora = {"factor": {"kind": "lora", "rank": 4}}
    adapters = small(folder, "prefill", [{"train": {"trainable": "adapters"}}, lora]).trace()
    dw = [op for p in adapters.passes for b in p.blocks for op in b.ops if op.name.endswith("_dw")]
    assert dw
    assert all("_a_dw" in op.name or "_b_dw" in op.name for op in dw)


def test_variants_without_a_backward_pass(folder: Path) -> None:
    plain = small(folder, "prefill", [{"train": {}}]).trace()
    products, attention_ = forward_flops(plain)
    zeroth = small(folder, "prefill", [{"train": {"mode": "zeroth"}}]).trace()
    assert zeroth.flops == 2 * (products + attention_)
    weights = zeroth.weight_bytes
    assert sum(p.write_bytes for p in zeroth.passes if p.phase == "update") == 3 * weights
    tangent = small(folder, "prefill", [{"train": {"mode": "tangent"}}]).trace()
    assert tangent.flops == 3 * products + 2 * attention_
    local = small(folder, "prefill", [{"train": {"mode": "local", "forwards": 2}}]).trace()
    assert local.flops == 2 * (products + attention_) + 2 * products


def test_sparse_products_of_a_training_step(folder: Path) -> None:
    method = {"wsparse": {"pattern": "2:8", "where": {"gemms": ["forward", "input_gradient"], "roles": ["ffn"]}}}
    trace = small(folder, "prefill", [{"train": {}}, method]).trace()
    marked = {op.name for p in trace.passes for b in p.blocks for op in b.ops for t in op.inputs if t.sparsity}
    assert marked == {"gate_up", "down", "gate_up_dx", "down_dx"}
    searched = {"wsparse": {**method["wsparse"], "search_every": 10}}
    trace = small(folder, "prefill", [{"train": {}}, searched]).trace()
    assert ops(trace, "mask_search")[0][0].vector_ops == LAYERS * FFN_WEIGHTS // 10 + 1


# --- memory, schedule, machine, operators of one's own


def test_weights_from_another_tier(folder: Path) -> None:
    before, after = traces(folder, "decode", {"memory": {"what": "weights", "tier": "host"}}, steps=1)
    moved = sum(b.repeat * op.attrs.bytes for b in after.passes[0].blocks for op in b.ops if op.kind is OpKind.TRANSFER)
    assert moved == 2 * LAYERS * (ATTENTION_WEIGHTS + FFN_WEIGHTS)
    assert after.weight_bytes_by_tier["host"] == moved
    assert after.flops == before.flops


def test_offloaded_and_sharded_training(folder: Path) -> None:
    plain = small(folder, "prefill", [{"train": {}}]).trace()
    away = small(folder, "prefill", [{"train": {}}, {"memory": {"what": "activations", "tier": "host"}}]).trace()
    stored, fetched = (
        sum(b.repeat * op.attrs.bytes for b in p.blocks for op in b.ops if op.kind is OpKind.TRANSFER)
        for p in away.passes[:2]
    )
    layers = sum(
        b.repeat * sum(t.bytes for t in saved_tensors(b)) for b in plain.passes[1].blocks if b.first_layer is not None
    )
    assert fetched == layers
    # What a layer takes from the one before was stored there; of its own buffers it stores as much as is read back.
    assert stored == fetched
    shard = small(folder, "prefill", [{"train": {}}, {"memory": {"what": "shard", "devices": 4}}]).trace()
    assert shard.passes[2].read_bytes == pytest.approx(plain.passes[2].read_bytes / 4, rel=1e-4)
    reduced = sum(
        b.repeat * op.attrs.bytes for b in shard.passes[1].blocks for op in b.ops
        if op.kind is OpKind.COLLECTIVE and op.attrs.algorithm_kind == "reduce_scatter"
    )  # fmt: skip
    # Gradients are as large as the weights, but that of the table holds only the 320 rows looked up.
    assert reduced == shard.weight_bytes - (4096 - 320) * HIDDEN * 2


def test_collectives_and_places(folder: Path) -> None:
    method = {"schedule": {"kind": "collective", "devices": 4, "where": {"operators": ["down", "out_proj"]}}}
    before, after = traces(folder, "decode", method, steps=1)
    added = [(op.attrs.bytes, n) for op, n in ops(after, "down_all_reduce")]
    assert added == [(3 * HIDDEN * 2, LAYERS)]
    assert after.flops == before.flops
    placed = small(
        folder, "generate", [{"schedule": {"kind": "place", "device": "b", "where": {"phases": ["decode"]}}}]
    )
    assert [p.device for p in placed.trace().passes[:2]] == ["main", "b"]


def test_hints_carry_what_a_machine_is_asked(folder: Path) -> None:
    trace = small(
        folder, "decode",
        [
            {"engine": {"kind": "pim", "settings": {"row_buffers": 2}}}, {"mac": {"format": "int8", "energy": 0.8}},
            {"dvfs": {"clock": 0.5, "where": {"phases": ["decode"]}}}, {"fault": {"structure": "array", "rate": 0.1}},
            {"serve": {"settings": {"sub_batches": 2}}}, {"schedule": {"kind": "fuse", "where": {"roles": ["ffn"]}}},
        ],
    ).trace()  # fmt: skip
    assert [(h.kind, h.required) for h in trace.hints] == [
        ("serve", False), ("fuse", False), ("engine", True), ("mac", True), ("dvfs", False), ("fault", False),
    ]  # fmt: skip
    assert dict(trace.hints[2].settings) == {"kind": "pim", "row_buffers": 2}
    assert dict(trace.hints[4].settings) == {"clock": 0.5, "phases": "decode"}
