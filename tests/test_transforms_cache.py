"""Primitives of caches and tokens against closed forms: KV cache, outputs of earlier steps, removed tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.method_cases import small
from tests.transform_cases import ATTENTION_WEIGHTS, FFN_WEIGHTS, HEAD, HEADS, HIDDEN, KV_HEADS, LAYERS, ops, traces
from workloads.trace import AttentionAttrs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


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
    moved = sum(n * op.attrs.bytes for name in ("k", "v") for op, n in ops(after, f"attention_fetch_{name}_cache"))
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
