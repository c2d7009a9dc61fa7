"""Primitives against closed forms of the work and bytes that they add or remove, and at their neutral parameters:
layers, widths, factors, experts, operators of one's own. Other subjects: `test_transforms_*.py`.

The small decoder (tests.method_cases) has 8 layers of width 64, 8 heads over 4 key/value heads of 16, 256 neurons.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.config import ConfigError
from tests.method_cases import EXPERTS, small
from tests.transform_cases import (
    ATTENTION_WEIGHTS,
    FFN_WEIGHTS,
    HEAD,
    HEADS,
    HIDDEN,
    KV_HEADS,
    LAYERS,
    NEURONS,
    matrix_weights,
    ops,
    traces,
)
from workloads.trace import MatmulAttrs, RequestSpan
from workloads.transforms.experts import expert_loads


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


NEUTRAL: list[tuple[str, dict[str, Any]]] = [
    ("decode", {"skip": {"probability": 0}}),
    ("decode", {"skip": {"unit": "block", "capacity": 1}}),
    ("decode", {"width": {"of": "ffn", "share": 1}}),
    ("decode", {"merge": {"kind": "wide", "group": 1}}),
    ("decode", {"merge": {"kind": "share", "group": 1}}),
    ("decode", {"factor": {"kind": "low_rank", "rank": 8, "merged": True}}),
    ("decode", {"route": {"experts": 1, "top_k": 1}}),
    ("decode", {"asparse": {"of": "inputs", "density": 1}}),
    ("decode", {"asparse": {"of": "neurons", "density": 1}}),
    ("decode", {"wsparse": {"pattern": "dense"}}),
    ("decode", {"wsparse": {"pattern": "4:4"}}),
    ("decode", {"wsparse": {"pattern": "random:1"}}),
    ("decode", {"dtype": {"weights": "fp16", "activations": "fp16", "kv": "fp16"}}),
    ("decode", {"xform": {"kind": "rotation", "folded": True}}),
    ("decode", {"mask": {"kind": "causal"}}),
    ("decode", {"kv": {"policy": "entry", "tokens": 1}}),
    ("decode", {"kv": {"policy": "share", "group": 1}}),
    ("decode", {"kv": {"policy": "replace", "prefix": 0}}),
    ("generate", {"kv": {"policy": "prefix", "prefix": 0}}),
    ("generate", {"tokens": {"action": "remove", "count": 50, "keep": 1}}),
    ("denoise", {"cache": {"unit": "layer", "interval": 1}}),
    ("denoise", {"cache": {"unit": "ffn", "probability": 0}}),
    ("decode", {"schedule": {"kind": "collective", "devices": 1, "where": {"operators": ["down"]}}}),
    ("decode", {"dvfs": {"clock": 1}}),
    ("decode", {"fault": {"structure": "array", "rate": 0}}),
]


@pytest.mark.parametrize(("phase", "method"), NEUTRAL, ids=[f"{p}-{m}" for p, m in NEUTRAL])
def test_neutral_parameters_change_nothing(folder: Path, phase: str, method: dict[str, Any]) -> None:
    before, after = traces(folder, phase, method)
    plain = [tuple((b.name, b.repeat, b.ops, b.weights_shared, b.idle) for b in p.blocks) for p in after.passes]
    assert plain == [
        tuple((b.name, b.repeat, b.ops, b.weights_shared, b.idle) for b in p.blocks) for p in before.passes
    ]
    assert after.hints == ()


# --- skip


@pytest.mark.parametrize(("probability", "batch"), [(0.25, 1), (0.5, 3), (0.3, 7), (1.0, 2)])
def test_skipped_rows_are_counted_over_all_layers(folder: Path, probability: float, batch: int) -> None:
    before, after = traces(
        folder, "decode", {"skip": {"probability": probability, "gate": "none"}}, batch=batch, steps=1
    )
    kept = batch * LAYERS * (1 - Fraction(str(probability)))
    rows = int(kept + Fraction(1, 2))
    assert before.flops - after.flops == 2 * (batch * LAYERS - rows) * FFN_WEIGHTS
    # Skipped or not, the weights stay in memory, and so does the cache: attention runs.
    assert (after.weight_bytes, after.kv_bytes) == (before.weight_bytes, before.kv_bytes)


def test_a_skip_costs_its_gate(folder: Path) -> None:
    free, cosine, linear = (
        small(folder, "decode", [{"skip": {"probability": 0.5, "gate": g}}], batch=4, steps=1).trace()
        for g in ("none", "cosine", "linear")
    )
    assert linear.flops - free.flops == 2 * 4 * HIDDEN * LAYERS
    assert linear.weight_bytes - free.weight_bytes == 2 * HIDDEN * LAYERS
    assert cosine.vector_ops - free.vector_ops == 2 * 4 * HIDDEN * LAYERS
    assert cosine.flops == free.flops


def test_depth_routing_leaves_no_keys(folder: Path) -> None:
    skip = {"unit": "block", "capacity": 0.5, "gate": "none", "kv": "none"}
    before, after = traces(folder, "decode", {"skip": skip}, batch=4, context=100, steps=1)
    head = sum(op.flops for op, _ in ops(before, "lm_head"))
    linears = 2 * 4 * LAYERS * (ATTENTION_WEIGHTS + FFN_WEIGHTS)
    attention = LAYERS * 2 * (2 * 51) * HEADS * 2 * HEAD  # two requests see 50 cached positions and themselves
    assert after.flops == head + linears // 2 + attention
    written = skip | {"kv": "write"}
    before, after = traces(folder, "decode", {"skip": written}, batch=4, context=100, steps=1)
    # Keys and values of the two skipped requests are made all the same, and what is seen is all of it.
    extra = 2 * 2 * LAYERS * HIDDEN * 2 * KV_HEADS * HEAD
    attention = LAYERS * 2 * (2 * 101) * HEADS * 2 * HEAD
    assert after.flops == head + linears // 2 + attention + extra
    assert after.kv_bytes == before.kv_bytes


# --- drop, merge, width


def test_drop_removes_work_weights_and_cache(folder: Path) -> None:
    before, after = traces(folder, "decode", {"drop": {"unit": "attention", "where": {"layers": ["2-4"]}}}, steps=1)
    gone = [op for b in before.passes[0].blocks if b.name == "layers" for op in b.ops[:7]]
    assert [op.name for op in gone][-1] == "attn_add"
    for name in ("flops", "vector_ops", "read_bytes", "write_bytes"):
        assert getattr(before, name) - getattr(after, name) == 3 * sum(getattr(op, name) for op in gone)
    assert before.weight_bytes - after.weight_bytes == 3 * 2 * (ATTENTION_WEIGHTS + HIDDEN)
    assert after.kv_bytes * 8 == before.kv_bytes * 5
    _, layers = traces(folder, "decode", {"drop": {"unit": "layer", "where": {"layers": [7]}}}, steps=1)
    _, halves = traces(
        folder, "decode", {"drop": {"unit": "attention", "where": {"layers": [7]}}},
        {"drop": {"unit": "ffn", "where": {"layers": [7]}}}, steps=1,
    )  # fmt: skip
    assert layers.work == halves.work


@settings(deadline=None, max_examples=10)
@given(first=st.sets(st.integers(0, 7), min_size=1), second=st.sets(st.integers(0, 7), min_size=1))
def test_drops_commute(tmp_path_factory: pytest.TempPathFactory, first: set[int], second: set[int]) -> None:
    folder = tmp_path_factory.getbasetemp()
    a = {"drop": {"unit": "ffn", "where": {"layers": sorted(first)}}}
    b = {"skip": {"probability": 0.5, "where": {"layers": sorted(second)}, "unit": "attention", "gate": "none"}}
    one, other = (small(folder, "decode", m, batch=2, steps=1).trace() for m in ([a, b], [b, a]))
    assert one.work == other.work
    assert one.weight_bytes == other.weight_bytes


def test_wide_layers_keep_the_products(folder: Path) -> None:
    gone = {"drop": {"unit": "attention", "where": {"layers": ["0-5"]}}}
    _, narrow = traces(folder, "decode", gone, steps=1)
    _, wide = traces(
        folder, "decode", gone, {"merge": {"kind": "wide", "group": 3, "where": {"layers": ["0-5"]}}}, steps=1
    )
    assert wide.flops == narrow.flops
    assert matrix_weights(wide, "layers") == matrix_weights(narrow, "layers")
    assert sorted({op.attrs.n for op, _ in ops(wide, "gate_up") if isinstance(op.attrs, MatmulAttrs)}) == [512, 1536]
    assert sum(n for _, n in ops(wide, "ffn_norm")) == 2 + 2  # two wide halves, two layers as they were


def test_flattened_parallel_and_shared_layers(folder: Path) -> None:
    plain, flat = traces(folder, "decode", {"merge": {"kind": "flatten", "group": 2}}, steps=1)
    assert flat.flops == plain.flops
    assert flat.kv_bytes == plain.kv_bytes
    assert matrix_weights(flat, "layers") == matrix_weights(plain, "layers")
    plain, parallel = traces(folder, "decode", {"merge": {"kind": "parallel"}}, steps=1)
    assert parallel.flops == plain.flops
    assert plain.vector_ops - parallel.vector_ops == LAYERS * 4 * 3 * HIDDEN  # one rmsnorm of three rows a layer
    plain, shared = traces(folder, "decode", {"merge": {"kind": "share", "group": 4}}, steps=1)
    assert (shared.work, shared.kv_bytes) == (plain.work, plain.kv_bytes)
    assert matrix_weights(shared, "layers") * 4 == matrix_weights(plain, "layers")


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_width_slices_neurons_and_heads(folder: Path, share: float) -> None:
    plain, ffn = traces(folder, "decode", {"width": {"of": "ffn", "share": share}}, batch=2, steps=1)
    assert plain.flops - ffn.flops == (1 - share) * 2 * 2 * LAYERS * FFN_WEIGHTS
    assert plain.weight_bytes - ffn.weight_bytes == (1 - share) * 2 * LAYERS * FFN_WEIGHTS
    _, nested = traces(folder, "decode", {"width": {"of": "ffn", "share": share, "resident": True}}, batch=2, steps=1)
    assert (nested.flops, nested.read_bytes, nested.weight_bytes) == (ffn.flops, ffn.read_bytes, plain.weight_bytes)
    _, heads = traces(folder, "decode", {"width": {"of": "heads", "share": share}}, batch=2, steps=1)
    own = sum(n * op.flops for name in ("qkv", "attention", "out_proj") for op, n in ops(plain, name))
    assert plain.flops - heads.flops == (1 - share) * own
    assert heads.kv_bytes == share * plain.kv_bytes


# --- factor


@pytest.mark.parametrize(
    ("params", "weights"),
    [
        ({"kind": "low_rank", "rank": 8}, lambda k, n: 8 * (k + n)),
        ({"kind": "lora", "rank": 8}, lambda k, n: k * n + 8 * (k + n)),
        ({"kind": "block_diagonal", "blocks": 4}, lambda k, n: k * n // 4),
        ({"kind": "monarch", "blocks": 4, "rank": 8}, lambda k, n: 8 * (k + n)),
        ({"kind": "blast", "blocks": 4, "rank": 8}, lambda k, n: 8 * (k + n)),
        ({"kind": "wrap", "blocks": 4}, lambda k, n: k * n + (k * k + n * n) // 4),
    ],
)
def test_factors(folder: Path, params: dict[str, Any], weights: Any) -> None:
    factor = {"factor": {**params, "where": {"operators": ["gate_up", "out_proj"]}}}
    before, after = traces(folder, "decode", factor, batch=3, steps=1)
    new = sum(weights(k, n) - k * n for k, n in ((HIDDEN, 2 * NEURONS), (HEADS * HEAD, HIDDEN)))
    assert after.flops - before.flops == 2 * 3 * LAYERS * new
    couplings = 2 * 4 * 4 * 8 * LAYERS if params["kind"] == "blast" else 0  # two weights' diagonal couplings
    assert after.weight_bytes - before.weight_bytes == 2 * (LAYERS * new + couplings)


# --- route


@pytest.mark.parametrize("top_k", [1, 4, 16])
def test_moefication_keeps_the_neurons(folder: Path, top_k: int) -> None:
    before, after = traces(folder, "decode", {"route": {"experts": 16, "top_k": top_k}}, batch=3, steps=1)
    router = 2 * 3 * LAYERS * HIDDEN * 16
    assert after.flops - before.flops == router - 2 * 3 * LAYERS * FFN_WEIGHTS * (16 - top_k) // 16
    assert after.weight_bytes - before.weight_bytes == 2 * LAYERS * HIDDEN * 16
    loads = expert_loads(after)
    assert {(x.experts, x.hit, x.rows) for x in loads} == {(16, min(16, 3 * top_k), 3 * top_k)}


def test_skew_zero_experts_and_granularity(folder: Path) -> None:
    plain = small(folder, "decode", model=EXPERTS, batch=16, steps=1).trace()
    expert = 3 * HIDDEN * 64
    for params in ({"skew": 1.5}, {"skew": 1.5, "draw": "sampled"}, {"skew": 0.0}):
        moved = small(folder, "decode", [{"route": params}], model=EXPERTS, batch=16, steps=1).trace()
        assert moved.flops == plain.flops  # who computes changes, how much does not
        assert all(x.rows == 32 and x.largest <= 16 for x in expert_loads(moved))
    uneven = small(folder, "decode", [{"route": {"skew": 1.5}}], model=EXPERTS, batch=16, steps=1).trace()
    assert expert_loads(uneven)[0].imbalance > expert_loads(plain)[0].imbalance == 1
    assert dict(uneven.meta)["experts.largest_load"] == expert_loads(uneven)[0].largest
    zero = {"route": {"zero_experts": 4, "zero_share": 0.25}}
    free = small(folder, "decode", [zero], model=EXPERTS, batch=16, steps=1).trace()
    assert plain.flops - free.flops == 2 * LAYERS * (8 * expert - 16 * HIDDEN * 4)
    fine = small(folder, "decode", [{"route": {"granularity": 4}}], model=EXPERTS, batch=16, steps=1).trace()
    assert fine.flops - plain.flops == 2 * LAYERS * 16 * HIDDEN * (32 - 8)  # the router alone
    assert fine.weight_bytes - plain.weight_bytes == 2 * LAYERS * HIDDEN * 24


def test_a_router_before_attention_reads_its_norm(folder: Path) -> None:
    early = small(folder, "decode", [{"route": {"position": "before_attention"}}], model=EXPERTS, steps=1).trace()
    plain = small(folder, "decode", model=EXPERTS, steps=1).trace()
    names = [op.name for op in next(b for b in early.passes[0].blocks if b.name == "layers").ops]
    assert names.index("router") < names.index("qkv")
    assert early.work == plain.work


def test_operators_of_ones_own(folder: Path) -> None:
    own = {"name": "mine", "at": "attention", "flops": 10, "flops_per_token": 4, "read_bytes": 100, "vector_ops": 7}
    before, after = traces(folder, "decode", {"operator": own}, steps=1)
    assert after.flops - before.flops == LAYERS * (10 + 3 * 4)
    assert after.read_bytes - before.read_bytes == LAYERS * 100
    assert after.vector_ops - before.vector_ops == LAYERS * 7
    instead = {"operator": {**own, "replace": True}}
    _, after = traces(folder, "decode", instead, steps=1)
    assert not ops(after, "attention")
    with pytest.raises(ConfigError, match="no selected layer has"):
        small(folder, "decode", [{"operator": {**own, "at": "nothing"}}]).trace()


def test_layers_keep_their_numbers_through_edits(folder: Path) -> None:
    first = {"drop": {"unit": "layer", "where": {"layers": [0]}}}
    second = {"drop": {"unit": "layer", "where": {"layers": [1]}}}
    trace = small(folder, "decode", [first, second], steps=1).trace()
    layers = [b for b in trace.passes[0].blocks if b.first_layer is not None]
    assert [(b.first_layer, b.repeat) for b in layers] == [(2, 6)]
    assert RequestSpan(3, 1, 160) in next(op.attrs for op, _ in ops(trace, "attention")).requests
