"""Each primitive against a closed form of the work and bytes that it adds or removes, and at its neutral parameters.

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
from workloads.sparsity import parse_sparsity
from workloads.trace import (
    AttentionAttrs,
    Mask,
    MatmulAttrs,
    Op,
    OpKind,
    RequestSpan,
    Role,
    Trace,
    visible_keys,
    visible_pairs,
)
from workloads.transforms.experts import expert_loads
from workloads.transforms.sparsity import effective_flops
from workloads.transforms.training import saved_bytes, saved_tensors

HIDDEN, NEURONS, LAYERS, HEADS, KV_HEADS, HEAD = 64, 256, 8, 8, 4, 16
QKV = (HEADS + 2 * KV_HEADS) * HEAD
FFN_WEIGHTS = 3 * HIDDEN * NEURONS
ATTENTION_WEIGHTS = HIDDEN * QKV + HEADS * HEAD * HIDDEN


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def traces(folder: Path, phase: str, *methods: Any, **keys: Any) -> tuple[Trace, Trace]:
    """The small workload of a phase without and with methods."""
    return small(folder, phase, **keys).trace(), small(folder, phase, list(methods), **keys).trace()


def ops(trace: Trace, name: str) -> list[tuple[Op, int]]:
    """Operators of that name (prefixes aside) with how often they run."""
    return [
        (op, p.repeat * b.repeat)
        for p in trace.passes
        for b in p.blocks
        for op in b.ops
        if op.name.rpartition(".")[2] == name
    ]


def matrix_weights(trace: Trace, *parts: str) -> int:
    """Elements of the matrices whose names contain one of `parts`."""
    return sum(
        n * t.resident_elements
        for t, n in trace._weights().values()
        if any(part in t.name for part in parts) and len(t.shape) > 1
    )


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


# --- sparsity


def test_weight_sparsity_marks_and_saves_nothing_by_itself(folder: Path) -> None:
    before, after = traces(folder, "decode", {"wsparse": {"pattern": "2:4"}}, steps=1)
    assert after.work == before.work
    assert {op.inputs[1].sparsity for op, _ in ops(after, "down")} == {parse_sparsity("2:4")}
    assert {op.inputs[1].sparsity for op, _ in ops(after, "lm_head")} == {None}
    linears = 2 * 3 * LAYERS * (ATTENTION_WEIGHTS + FFN_WEIGHTS)
    assert before.flops - effective_flops(after) == linears // 2
    short = small(folder, "decode", sparsity="2:4", steps=1).trace()
    assert short.passes == after.passes


@pytest.mark.parametrize("batch", [1, 3])
def test_activation_sparsity_reads_the_union(folder: Path, batch: int) -> None:
    density = 0.25
    share = Fraction(1, 4) if batch == 1 else 1 - Fraction(3, 4) ** batch
    sparse = {"asparse": {"of": "neurons", "density": density}}
    before, after = traces(folder, "decode", sparse, batch=batch, steps=1)
    kept = int(NEURONS * share + Fraction(1, 2))
    assert before.flops - after.flops == 2 * batch * LAYERS * 3 * HIDDEN * (NEURONS - kept)
    assert after.weight_bytes == before.weight_bytes
    inputs = {"asparse": {"of": "inputs", "density": 0.5, "union": 0.75, "where": {"operators": ["down"]}}}
    before, after = traces(folder, "decode", inputs, batch=batch, steps=1)
    kept = NEURONS // 2 if batch == 1 else NEURONS * 3 // 4
    assert before.flops - after.flops == 2 * batch * LAYERS * HIDDEN * (NEURONS - kept)
    assert {op.inputs[0].elements for op, _ in ops(after, "down")} == {batch * kept}


def test_predictors_cost_their_products(folder: Path) -> None:
    base = {"of": "neurons", "density": 0.25, "union": 0.25}
    plain = small(folder, "decode", [{"asparse": base}], batch=2, steps=1).trace()
    for predictor, macs, weights in (
        ("linear", HIDDEN * NEURONS, HIDDEN * NEURONS),
        ("low_rank", 8 * (HIDDEN + NEURONS), 8 * (HIDDEN + NEURONS)),
        ("partial", 8 * NEURONS, 0),
    ):
        method = {"asparse": {**base, "predictor": predictor, "rank": 8}}
        after = small(folder, "decode", [method], batch=2, steps=1).trace()
        assert after.flops - plain.flops == 2 * 2 * LAYERS * macs
        assert after.weight_bytes - plain.weight_bytes == 2 * LAYERS * weights


@pytest.mark.parametrize("text", ["4:2", "0:4", "random:1.5", "random:", "block:0x4:0.5", "block:4x4:0", "half"])
def test_bad_patterns(text: str) -> None:
    with pytest.raises(ValueError, match="is '"):
        parse_sparsity(text)


# --- values


def test_formats_scale_bytes(folder: Path) -> None:
    only = {"weights": "int4", "kv": "int8", "where": {"roles": ["attention", "ffn"]}}
    before, after = traces(folder, "decode", {"dtype": only}, steps=1)
    assert before.weight_bytes - after.weight_bytes == LAYERS * (ATTENTION_WEIGHTS + FFN_WEIGHTS) * 3 // 2
    assert after.kv_bytes * 2 == before.kv_bytes
    assert after.flops == before.flops
    online = {"activations": "int8", "online": True, "where": {"operators": ["down"]}}
    before, after = traces(folder, "decode", {"dtype": online}, steps=1)
    assert after.vector_ops - before.vector_ops == 3 * 3 * NEURONS * LAYERS
    assert {op.inputs[0].format for op, _ in ops(after, "down")} == {"int8"}


def test_transforms_around_products(folder: Path) -> None:
    def change(**params: Any) -> tuple[int, int]:
        method = {"xform": {**params, "where": {"operators": ["down"]}}}
        before, after = traces(folder, "decode", method, steps=1)
        return after.flops - before.flops, after.vector_ops - before.vector_ops

    rows = 3 * LAYERS
    assert change(kind="hadamard", block=32) == (0, rows * NEURONS * (5 + 1))
    assert change(kind="hadamard") == (0, rows * NEURONS * (8 + 1))
    assert change(kind="hadamard", block=32, unit="array") == (2 * rows * NEURONS * 32, 0)
    assert change(kind="affine", block=32) == (2 * rows * NEURONS * 32, 0)
    assert change(kind="rotation") == (2 * rows * NEURONS * NEURONS, 0)
    assert change(kind="rotation", side="output") == (2 * rows * HIDDEN * HIDDEN, 0)
    assert change(kind="permutation") == (0, 0)
    with pytest.raises(ConfigError, match="does not divide"):
        change(kind="affine", block=48)


# --- masks


def attention(folder: Path, phase: str, mask: dict[str, Any], **keys: Any) -> tuple[Trace, Trace]:
    return traces(folder, phase, {"mask": mask}, **keys)


@pytest.mark.parametrize(
    ("mask", "shape"),
    [
        ({"kind": "window", "window": 20, "sinks": 4}, Mask("window", window=20, sinks=4)),
        ({"kind": "chunk", "window": 32}, Mask("chunk", window=32)),
        ({"kind": "top_k", "top_k": 40}, Mask("top_k", top_k=40)),
        ({"kind": "block_sparse", "block": 16, "density": 0.3}, Mask("block_sparse", block=16, density=0.3)),
        ({"kind": "block", "block": 32}, Mask("block", block=32)),
        (
            {"kind": "pooled", "block": 16, "levels": [[1, 0.25], [4, 0.5]]},
            Mask("pooled", block=16, levels=((1, 0.25), (4, 0.5))),
        ),
    ],
)
@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_masks_count_pairs_and_keys(folder: Path, phase: str, mask: dict[str, Any], shape: Mask) -> None:
    before, after = attention(folder, phase, mask, **({"steps": 1} if phase == "decode" else {}))
    query, past, requests = (160, 0, 2) if phase == "prefill" else (1, 160, 3)
    pairs = visible_pairs(Mask("causal"), query, past) - visible_pairs(shape, query, past)
    assert before.flops - after.flops == LAYERS * 2 * requests * pairs * HEADS * 2 * HEAD
    fewer = (query + past) - visible_keys(shape, query, past)
    assert before.read_bytes - after.read_bytes == LAYERS * requests * fewer * 2 * KV_HEADS * HEAD * 2


def test_what_leaves_the_window_leaves_the_cache(folder: Path) -> None:
    before, window = attention(folder, "decode", {"kind": "window", "window": 20}, steps=1)
    assert window.kv_bytes * 161 == before.kv_bytes * 20
    _, kept = attention(folder, "decode", {"kind": "window", "window": 20, "keep_all": True}, steps=1)
    _, chosen = attention(folder, "decode", {"kind": "top_k", "top_k": 20}, steps=1)
    assert kept.kv_bytes == chosen.kv_bytes == before.kv_bytes


def test_segments_are_requests_of_their_own(folder: Path) -> None:
    mask = {"kind": "segments", "block": 50, "sinks": 3, "tail": 30}
    before, after = attention(folder, "prefill", mask, batch=1)
    triangle = 50 * 51 // 2
    # 160 = 50 + 50 + 30 in segments, then 30 that see all 130 before them.
    pairs = triangle + (triangle + 50 * 3) + (30 * 31 // 2 + 30 * 3) + (30 * 31 // 2 + 30 * 130)
    dense = 160 * 161 // 2
    assert before.flops - after.flops == LAYERS * 2 * (dense - pairs) * HEADS * 2 * HEAD
    assert after.kv_bytes == before.kv_bytes


def test_kinds_by_head_add_up(folder: Path) -> None:
    half = {"kind": "window", "window": 20, "share": 0.5}
    before, after = attention(folder, "decode", {"heads": [half, {"kind": "causal", "share": 0.5}]}, steps=1)
    _, all_ = attention(folder, "decode", {"kind": "window", "window": 20}, steps=1)
    assert before.flops + all_.flops == 2 * after.flops
    assert before.kv_bytes + all_.kv_bytes == 2 * after.kv_bytes
    assert before.write_bytes == after.write_bytes
    with pytest.raises(ConfigError, match="no whole number"):
        attention(folder, "decode", {"heads": [{**half, "share": 0.1}, {"kind": "causal", "share": 0.9}]})


@pytest.mark.parametrize("features", [16, 8])
def test_linear_attention(folder: Path, features: int) -> None:
    mask: dict[str, Any] = {"kind": "linear"} | ({"features": features} if features != HEAD else {})
    before, after = attention(folder, "prefill", mask)
    tokens = 320
    dense = LAYERS * 2 * 2 * (160 * 161 // 2) * HEADS * 2 * HEAD
    state = LAYERS * 2 * tokens * (KV_HEADS + HEADS) * features * HEAD
    maps = LAYERS * 2 * tokens * (KV_HEADS + HEADS) * HEAD * features if features != HEAD else 0
    assert after.flops - before.flops == state + maps - dense
    assert after.kv_bytes == LAYERS * 2 * KV_HEADS * features * HEAD * 2


def test_a_linear_branch_is_added(folder: Path) -> None:
    sparse = {"kind": "block_sparse", "block": 16, "density": 0.2}
    _, without = attention(folder, "prefill", sparse)
    _, both = attention(folder, "prefill", {**sparse, "linear_branch": HEAD})
    assert both.flops - without.flops == LAYERS * 2 * 320 * (KV_HEADS + HEADS) * HEAD * HEAD
    assert both.kv_bytes == without.kv_bytes


def test_an_indexer_scores_everything_that_it_may_choose(folder: Path) -> None:
    top = {"kind": "top_k", "top_k": 20}
    plain = small(folder, "decode", [{"mask": top}], steps=1).trace()
    after = small(folder, "decode", [{"mask": {**top, "indexer": {"heads": 2, "dim": 8}}}], steps=1).trace()
    project = 3 * HIDDEN * (2 + 1) * 8
    assert after.flops - plain.flops == LAYERS * 2 * (project + 3 * 161 * 2 * 8)
    assert after.kv_bytes - plain.kv_bytes == LAYERS * 3 * 161 * 8 * 2
    stages = {"heads": 2, "dim": 8, "stages": [{"pool": 16}, {"keys": 64}]}
    staged = small(folder, "decode", [{"mask": {**top, "indexer": stages}}], steps=1).trace()
    assert staged.flops - plain.flops == LAYERS * 2 * (project + 3 * (11 + 64) * 2 * 8)
    long = small(folder, "prefill", [{"mask": {**top, "indexer": {"heads": 2, "dim": 8}}}], batch=1).trace()
    short = small(folder, "prefill", [{"mask": top}], batch=1).trace()
    assert long.flops - short.flops == LAYERS * 2 * (160 * HIDDEN * 3 * 8 + 160 * 161 // 2 * 2 * 8)


def test_densities_by_layer(folder: Path) -> None:
    mask = {"kind": "block_sparse", "block": 16, "densities": [0.1, 0.5]}
    _, both = attention(folder, "prefill", mask)
    low, high = (
        attention(folder, "prefill", {"kind": "block_sparse", "block": 16, "density": d})[1] for d in (0.1, 0.5)
    )
    assert 2 * both.flops == low.flops + high.flops


SMALL_MASKS = st.one_of(
    st.builds(Mask, st.just("window"), window=st.integers(1, 9), sinks=st.integers(0, 3), both=st.booleans()),
    st.builds(Mask, st.just("top_k"), top_k=st.integers(1, 9), both=st.booleans()),
    st.builds(
        Mask, st.just("block_sparse"), block=st.integers(1, 5), density=st.sampled_from([0.2, 0.5, 1.0]),
        both=st.booleans(),
    ),
    st.builds(
        Mask, st.just("pooled"), block=st.integers(1, 5), levels=st.just(((1, 0.5), (2, 0.25))), both=st.booleans()
    ),
)  # fmt: skip


@given(mask=SMALL_MASKS, query=st.integers(1, 20), past=st.integers(0, 20))
def test_no_mask_sees_more_than_there_is(mask: Mask, query: int, past: int) -> None:
    whole = visible_pairs(Mask("full" if mask.both else "causal"), query, past)
    assert query <= visible_pairs(mask, query, past) <= whole
    assert 1 <= visible_keys(mask, query, past) <= (past + query) * (2 if mask.kind == "pooled" else 1)


def test_block_lists_by_hand() -> None:
    mask = Mask("lists", block=4, lists=((0,), (1,), (0, 2)))
    # Positions 8 to 10 see block 0 and their own part of block 2; 4 to 7 their own block alone.
    assert visible_pairs(mask, 7, 4) == (1 + 2 + 3 + 4) + (5 + 6 + 7)
    assert visible_keys(mask, 7, 4) == 4 + 4 + 3
    assert visible_keys(mask, 3, 8) == 4 + 3
    for wrong in ((), ((0,), (0,)), ((1,),), ((0,), (1, 1))):
        with pytest.raises(ValueError, match="lists"):
            Mask("lists", block=4, lists=wrong)
    with pytest.raises(ValueError, match="cannot mask"):
        visible_pairs(mask, 10, 4)


@given(past=st.integers(4, 12), window=st.integers(1, 14))
def test_trees_under_a_window_by_enumeration(past: int, window: int) -> None:
    parents = (-1, 0, 0, 2, 1)  # the first two are cached: 3 new positions
    mask = Mask("tree", parents=parents, cached=2, window=window)
    seen = []
    for node in (2, 3, 4):
        chain, at = [], node
        while at >= 0:
            chain.append(past - 2 + at)
            at = parents[at]
        seen.append(set((chain + list(range(past - 3, -1, -1)))[:window]))
    assert visible_pairs(mask, 3, past) == sum(map(len, seen))
    assert visible_keys(mask, 3, past) == len(set().union(*seen))


# --- kv


def test_a_budget_bounds_what_is_read_and_kept(folder: Path) -> None:
    before, after = traces(folder, "decode", {"kv": {"policy": "budget", "budget": 40, "sinks": 4}}, steps=1)
    assert after.kv_bytes * 161 == before.kv_bytes * 40
    assert before.flops - after.flops == LAYERS * 2 * 3 * 121 * HEADS * 2 * HEAD
    large = small(folder, "decode", [{"kv": {"policy": "budget", "budget": 500}}], steps=1).trace()
    assert large.work == before.work


def test_entries_and_shared_layers(folder: Path) -> None:
    before, after = traces(folder, "decode", {"kv": {"policy": "entry", "tokens": 8}}, steps=1)
    assert before.flops - after.flops == LAYERS * 2 * 3 * (160 - 20) * HEADS * 2 * HEAD
    before, after = traces(folder, "decode", {"kv": {"policy": "share", "group": 4}}, steps=1)
    assert after.kv_bytes * 4 == before.kv_bytes
    assert before.flops - after.flops == 6 * 2 * 3 * HIDDEN * 2 * KV_HEADS * HEAD


def test_recomputation_trades_bytes_for_products(folder: Path) -> None:
    before, after = traces(folder, "decode", {"kv": {"policy": "recompute"}}, steps=1)
    # The 160 cached positions of three requests are projected again; the cache holds one vector of 64 for 2 x 64.
    assert after.flops - before.flops == LAYERS * 2 * 3 * 160 * HIDDEN * 2 * KV_HEADS * HEAD
    assert after.kv_bytes * 2 == before.kv_bytes
    _, far = traces(folder, "decode", {"kv": {"policy": "recompute", "interval": 8}}, steps=1)
    assert far.kv_bytes * 16 == before.kv_bytes
    # Seven layers run for all 161 positions; the last one makes its keys and values of 160 again.
    prefill = 7 * (2 * 3 * 161 * (ATTENTION_WEIGHTS + FFN_WEIGHTS) + 2 * 3 * (161 * 162 // 2) * HEADS * 2 * HEAD)
    step = 7 * (2 * 3 * (ATTENTION_WEIGHTS + FFN_WEIGHTS) + 2 * 3 * 161 * HEADS * 2 * HEAD)
    assert far.flops - before.flops == prefill - step + 2 * 3 * 160 * HIDDEN * 2 * KV_HEADS * HEAD


def test_prefixes_erasure_and_filling(folder: Path) -> None:
    before, after = traces(folder, "generate", {"kv": {"policy": "prefix", "prefix": 100}})
    assert before.tokens - after.tokens == 2 * 100
    assert after.passes[1:] == before.passes[1:]
    _, gone = traces(folder, "generate", {"kv": {"policy": "replace", "prefix": 100}})
    assert gone.kv_bytes * (160 + 11) == before.kv_bytes * (60 + 11)
    erased = small(folder, "decode", [{"kv": {"policy": "erase", "trigger": 4, "keep": 1}}], batch=1, steps=9).trace()
    spans = [op.attrs.requests[0] for op, _ in ops(erased, "attention") if isinstance(op.attrs, AttentionAttrs)]
    assert [(s.query, s.past) for s in spans] == [
        (1, 160), (1, 161), (1, 162), (1, 163), (1, 160), (1, 161), (1, 162), (1, 163), (1, 164), (1, 161), (1, 162),
    ]  # fmt: skip


def test_a_cache_in_another_tier_is_fetched(folder: Path) -> None:
    before, after = traces(folder, "decode", {"kv": {"policy": "tier", "tier": "host", "window": 60}}, steps=1)
    moved = sum(n * op.attrs.bytes for name in ("k", "v") for op, n in ops(after, f"attention_fetch_{name}_cache"))  # type: ignore[union-attr]
    assert moved == LAYERS * 3 * 100 * 2 * KV_HEADS * HEAD * 2
    assert after.flops == before.flops


# --- tokens


def test_removed_tokens_are_gone_from_the_cache(folder: Path) -> None:
    method = {"tokens": {"action": "remove", "count": 100, "keep": 0.1, "from_layer": 2}}
    before, after = traces(folder, "generate", method, batch=1, steps=2)
    rows, dense = 70, 160
    linears = 6 * 2 * (dense - rows) * (ATTENTION_WEIGHTS + FFN_WEIGHTS)
    pairs = 6 * 2 * (dense * (dense + 1) // 2 - rows * (rows + 1) // 2) * HEADS * 2 * HEAD
    later = 6 * 2 * 90 * HEADS * 2 * HEAD
    assert before.flops - after.flops == linears + pairs + later
    assert after.kv_bytes * (8 * 161) == before.kv_bytes * (2 * 161 + 6 * 71)


def test_bypass_comes_back_and_kv_only_keeps_keys(folder: Path) -> None:
    bypass = {"action": "bypass", "count": 100, "keep": 0.1, "from_layer": 2, "to_layer": 5}
    before, after = traces(folder, "prefill", {"tokens": bypass}, batch=1)
    rows, dense = 70, 160
    linears = 4 * 2 * (dense - rows) * (ATTENTION_WEIGHTS + FFN_WEIGHTS)
    pairs = 4 * 2 * (dense * (dense + 1) // 2 - rows * (rows + 1) // 2) * HEADS * 2 * HEAD
    assert before.flops - after.flops == linears + pairs
    only = {"tokens": {"action": "kv_only", "count": 100, "keep": 0.1, "from_layer": 2, "to_layer": 5}}
    before, after = traces(folder, "prefill", only, batch=1)
    keys = 4 * 2 * (dense - rows) * HIDDEN * 2 * KV_HEADS * HEAD
    pairs = 4 * 2 * (dense * (dense + 1) // 2 - (rows * 90 + rows * (rows + 1) // 2)) * HEADS * 2 * HEAD
    assert before.flops - after.flops == linears - keys + pairs
    assert after.kv_bytes == before.kv_bytes


# --- diffusion transformers, whose norms are modulated


def test_routing_and_skipping_read_the_modulated_norm(folder: Path) -> None:
    before, routed = traces(folder, "denoise", {"route": {"experts": 4, "top_k": 1}})
    (router, runs), *_ = ops(routed, "router")
    (up, _), *_ = ops(before, "up")
    assert router.inputs[0].name == up.inputs[0].name != ops(routed, "ffn_norm")[0][0].outputs[0].name
    experts = sum(op.flops * n for name in ("expert_up", "expert_down") for op, n in ops(routed, name))
    dense = sum(op.flops * n for name in ("up", "down") for op, n in ops(before, name))
    assert (experts, runs) == (dense // 4, 6 * 12)
    assert router.flops == 2 * 64 * HIDDEN * 4

    skip = {"skip": {"unit": "attention", "probability": 0.5, "gate": "none"}}
    before, skipped = traces(folder, "denoise", skip)
    (whole, times), *_ = ops(before, "qkv")
    assert sum(op.flops * n for op, n in ops(skipped, "qkv_skipped")) == whole.flops * times // 2 * 2 // 3
    assert {op.inputs[0].name for op, _ in ops(skipped, "qkv_skipped")} == {"attn_in_skipped"}


# --- cache


def test_cached_steps_read_results_instead(folder: Path) -> None:
    before, after = traces(folder, "denoise", {"cache": {"unit": "ffn", "interval": 3}})
    assert [(p.name, p.repeat) for p in after.passes] == [
        ("denoise", 1), ("denoise.cached", 2), ("denoise", 1), ("denoise.cached", 2),
    ]  # fmt: skip
    ffn = sum(op.flops for name in ("up", "down") for op, n in ops(before, name) for _ in range(n // 6))
    assert before.flops - after.flops == 4 * ffn
    one = 64 * HIDDEN * 2
    assert after.kv_bytes == 12 * one  # a result for each of 12 layers
    assert after.weight_bytes == before.weight_bytes
    _, series = traces(
        folder, "denoise", {"cache": {"unit": "ffn", "interval": 3, "action": "extrapolate", "order": 2}}
    )
    assert series.kv_bytes == 3 * after.kv_bytes
    assert series.flops == after.flops


def test_halves_are_cached_by_schedules_of_their_own(folder: Path) -> None:
    attention = {"cache": {"unit": "attention", "schedule": [0, 3]}}
    ffn = {"cache": {"unit": "ffn", "schedule": [0, 2]}}
    before, after = traces(folder, "denoise", attention, ffn, steps=4)
    assert [p.name for p in after.passes] == ["denoise", "denoise.cached.cached", "denoise.cached", "denoise.cached"]
    once = {name: sum(op.flops * n for op, n in ops(before, name)) // 4 for name in ("qkv", "up", "attention")}
    runs = {name: sum(op.flops * n for op, n in ops(after, name)) for name in once}
    assert runs == {name: 2 * flops for name, flops in once.items()}
    assert after.kv_bytes == 2 * 12 * 64 * HIDDEN * 2  # a result for each half of twelve layers


def test_a_gate_opens_by_its_probability(folder: Path) -> None:
    cache = {"unit": "stretch", "probability": 0.5, "where": {"layers": ["1-11"]}}
    after = small(folder, "denoise", [{"cache": cache}], steps=400).trace()
    cached = sum(p.repeat for p in after.passes if p.name.endswith("cached"))
    assert 0.4 < cached / 400 < 0.6
    assert not after.passes[0].name.endswith("cached")
    # Only the first of twelve layers runs in a cached step.
    layers = [b for p in after.passes if p.name.endswith("cached") for b in p.blocks if b.first_layer is not None]
    assert {(b.first_layer, b.repeat) for b in layers} == {(0, 1)}


def test_attention_to_the_outside_is_computed_once_a_block(folder: Path) -> None:
    loop = {"over": "denoise", "block": 4, "count": 3}
    _, plain = traces(folder, "decode", {"loop": loop}, batch=1, steps=8)
    _, cached = traces(
        folder, "decode", {"loop": loop}, {"cache": {"unit": "external", "interval": 3}}, batch=1, steps=8
    )
    outside = 2 * 4 * (160 + 164)  # two blocks of four positions, and two of three steps each
    assert plain.flops - cached.flops == LAYERS * 2 * outside * HEADS * 2 * HEAD


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
    moved = sum(b.repeat * op.attrs.bytes for b in after.passes[0].blocks for op in b.ops if op.kind is OpKind.TRANSFER)  # type: ignore[union-attr]
    assert moved == 2 * LAYERS * (ATTENTION_WEIGHTS + FFN_WEIGHTS)
    assert after.weight_bytes_by_tier["host"] == moved
    assert after.flops == before.flops


def test_offloaded_and_sharded_training(folder: Path) -> None:
    plain = small(folder, "prefill", [{"train": {}}]).trace()
    away = small(folder, "prefill", [{"train": {}}, {"memory": {"what": "activations", "tier": "host"}}]).trace()
    stored, fetched = (
        sum(b.repeat * op.attrs.bytes for b in p.blocks for op in b.ops if op.kind is OpKind.TRANSFER)  # type: ignore[union-attr]
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
        if op.kind is OpKind.COLLECTIVE and op.attrs.algorithm_kind == "reduce_scatter"  # type: ignore[union-attr]
    )  # fmt: skip
    # Gradients are as large as the weights, but that of the table holds only the 320 rows looked up.
    assert reduced == shard.weight_bytes - (4096 - 320) * HIDDEN * 2


def test_collectives_and_places(folder: Path) -> None:
    method = {"schedule": {"kind": "collective", "devices": 4, "where": {"operators": ["down", "out_proj"]}}}
    before, after = traces(folder, "decode", method, steps=1)
    added = [(op.attrs.bytes, n) for op, n in ops(after, "down_all_reduce")]  # type: ignore[union-attr]
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
    assert RequestSpan(3, 1, 160) in next(op.attrs for op, _ in ops(trace, "attention")).requests  # type: ignore[union-attr]
