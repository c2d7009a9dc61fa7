"""Attention whose keys are chosen by data costs an NPU what its visible pairs are, not the rectangle around them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim import load_hardware
from sim.engine import Engine
from sim.hardware import Hardware
from workloads.trace import AttentionAttrs, Block, Mask, Op, OpKind, Pass, RequestSpan, Role, Tensor, visible_pairs

NPU = load_hardware("npu-hbm2")
assert isinstance(NPU, Hardware)
HEADS, DIM = 2, 128
MASKS = [
    Mask("block_sparse", block=32, density=0.2),
    Mask("block_sparse", block=32, density=0.2, both=True),
    Mask("top_k", top_k=48),
    Mask("top_k", top_k=48, both=True),
    Mask("pooled", block=32, levels=((1, 0.1), (4, 0.5))),
    Mask("lists", block=64, lists=((0,), (1,), (0, 2), (0, 3), (1, 4), (0, 5))),
]


def attention(mask: Mask, queries: int, past: int) -> Pass:
    """One attention operator over a causal cache, keys and values in DRAM."""
    span = RequestSpan(1, queries, past)
    attrs = AttentionAttrs(HEADS, HEADS, DIM, DIM, mask, (span,))
    q, o = (Tensor(name, (queries, HEADS * DIM), "bf16", Role.ACTIVATION) for name in "qo")
    k, v = (Tensor(name, (span.length, HEADS, DIM), "bf16", Role.KV) for name in "kv")
    return Pass(
        "p",
        "prefill",
        (Block("b", 1, (Op("attention", OpKind.ATTENTION, "attention", (q, k, v), (o,), attrs),)),),
        queries,
    )


def executed(mask: Mask, queries: int, past: int = 0) -> int:
    return int(Engine(NPU).run(attention(mask, queries, past)).tasks.macs.sum())


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"{mask.kind}{'-both' if mask.both else ''}")
def test_products_are_those_of_the_pairs(mask: Mask) -> None:
    queries = 384
    pairs = visible_pairs(mask, queries, 0)
    found = executed(mask, queries) / (2 * HEADS * DIM)
    # A tile's queries share a number of keys, rounded up: less than one key more for each query.
    assert pairs <= found < pairs + queries
    dense = executed(Mask("causal"), queries) / (2 * HEADS * DIM)
    assert found < dense


@settings(max_examples=12, deadline=None)
@given(queries=st.integers(1, 300), past=st.integers(0, 300), top=st.integers(1, 400))
def test_chosen_keys_of_any_size(queries: int, past: int, top: int) -> None:
    mask = Mask("top_k", top_k=top)
    pairs = visible_pairs(mask, queries, past)
    found = executed(mask, queries, past) / (2 * HEADS * DIM)
    assert pairs <= found < pairs + queries


def test_choosing_all_keys_is_no_more_than_the_causal_mask() -> None:
    """Tiles of a causal mask compute what they throw away; those that choose do not."""
    everything = executed(Mask("top_k", top_k=512), 256)
    assert 256 * 257 // 2 <= everything / (2 * HEADS * DIM) <= executed(Mask("causal"), 256) / (2 * HEADS * DIM)
