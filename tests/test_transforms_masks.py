"""Primitives of attention against closed forms: masks, windows, segments, linear attention, indexers, trees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.config import ConfigError
from tests.method_cases import small
from tests.transform_cases import HEAD, HEADS, HIDDEN, KV_HEADS, LAYERS, traces
from workloads.trace import Mask, Trace, visible_keys, visible_pairs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


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
