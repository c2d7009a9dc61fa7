"""Masks, spans and the arithmetic of operators, against enumeration and numbers worked by hand."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workloads.build import distinct_positions
from workloads.formats import FORMATS, format_bits, storage_bytes
from workloads.trace import (
    CAUSAL,
    AttentionAttrs,
    Block,
    CustomAttrs,
    ElementwiseAttrs,
    Mask,
    MatmulAttrs,
    Op,
    OpKind,
    Pass,
    ReduceAttrs,
    RequestSpan,
    Role,
    Sparsity,
    Tensor,
    Trace,
    visible_keys,
    visible_pairs,
)


def seen_by(mask: Mask, position: int, past: int, total: int) -> set[int]:
    """The keys that the query at `position` sees, one by one, as the mask's definition says."""
    earlier = range(position + 1)
    if mask.kind == "full":
        return set(range(total))
    if mask.kind == "window":
        assert mask.window is not None
        return {j for j in earlier if position - j < mask.window or j < mask.sinks}
    if mask.kind == "chunk":
        assert mask.window is not None
        return {j for j in earlier if j // mask.window == position // mask.window}
    if mask.kind == "block":
        assert mask.block is not None
        return {j for j in range(total) if j // mask.block <= position // mask.block}
    if mask.kind == "tree":
        assert mask.parents is not None
        keys, node = set(range(past)), position - past
        while node >= 0:
            keys.add(past + node)
            node = mask.parents[node]
        return keys
    return set(earlier)


MASKS = st.one_of(
    st.just(Mask("causal")),
    st.just(Mask("full")),
    st.builds(Mask, st.just("window"), window=st.integers(1, 30), sinks=st.integers(0, 6)),
    st.builds(Mask, st.just("chunk"), window=st.integers(1, 30)),
    st.builds(Mask, st.just("block"), block=st.integers(1, 12)),
)


@given(mask=MASKS, query=st.integers(1, 40), past=st.integers(0, 50))
def test_pairs_and_keys_by_enumeration(mask: Mask, query: int, past: int) -> None:
    total = past + query
    rows = [seen_by(mask, position, past, total) for position in range(past, total)]
    assert visible_pairs(mask, query, past) == sum(map(len, rows))
    assert visible_keys(mask, query, past) == len(set().union(*rows))


@given(st.data(), st.integers(1, 25), st.integers(0, 30))
def test_tree_pairs_by_enumeration(data: st.DataObject, query: int, past: int) -> None:
    parents = tuple(data.draw(st.integers(-1, i - 1)) for i in range(query))
    mask = Mask("tree", parents=parents)
    rows = [seen_by(mask, position, past, past + query) for position in range(past, past + query)]
    assert visible_pairs(mask, query, past) == sum(map(len, rows))
    assert visible_keys(mask, query, past) == past + query


@given(k=st.integers(1, 40), query=st.integers(1, 30), past=st.integers(0, 40))
def test_top_k_pairs(k: int, query: int, past: int) -> None:
    pairs = sum(min(position + 1, k) for position in range(past, past + query))
    assert visible_pairs(Mask("top_k", top_k=k), query, past) == pairs
    assert visible_keys(Mask("top_k", top_k=k), query, past) == min(past + query, pairs)


@given(
    block=st.integers(1, 9),
    density=st.sampled_from([0.1, 0.25, 0.5, 1.0]),
    query=st.integers(1, 30),
    past=st.integers(0, 30),
)
def test_block_sparse_pairs(block: int, density: float, query: int, past: int) -> None:
    pairs = 0
    for position in range(past, past + query):
        own = position // block
        kept = ceil(Fraction(str(density)) * (own + 1))
        pairs += (kept - 1) * block + position - own * block + 1
    mask = Mask("block_sparse", block=block, density=density)
    assert visible_pairs(mask, query, past) == pairs
    if density == 1.0:
        assert pairs == visible_pairs(CAUSAL, query, past)


@given(mask=MASKS, spans=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(0, 20)), min_size=1))
def test_spans_count_each_request_alike(mask: Mask, spans: list[tuple[int, int, int]]) -> None:
    grouped = AttentionAttrs(8, 2, 16, 8, mask, tuple(RequestSpan(*span) for span in spans))
    one_by_one = tuple(RequestSpan(1, query, past) for count, query, past in spans for _ in range(count))
    single = AttentionAttrs(8, 2, 16, 8, mask, one_by_one)
    assert (grouped.pairs, grouped.keys, grouped.tokens) == (single.pairs, single.keys, single.tokens)
    assert grouped.macs == grouped.pairs * 8 * (16 + 8)


@given(st.lists(st.tuples(st.integers(1, 12), st.integers(0, 20)), min_size=1, max_size=6))
def test_distinct_positions_by_enumeration(spans: list[tuple[int, int]]) -> None:
    found = {p for query, past in spans for p in range(past, past + query)}
    assert distinct_positions([RequestSpan(3, query, past) for query, past in spans]) == len(found)


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        *[("int2", 2), ("int4", 4), ("fp8_e5m2", 8), ("bf16", 16), ("tf32", 32)],
        *[("mxfp8", 8.25), ("mxfp6", 6.25), ("mxfp4", 4.25), ("mxint8", 8.25), ("nvfp4", 4.5)],
    ],
)
def test_bits_of_formats(name: str, bits: float) -> None:
    assert format_bits(name) == Fraction(bits)
    assert FORMATS[name].source


@given(shape=st.lists(st.integers(1, 50), min_size=1, max_size=4), name=st.sampled_from(sorted(FORMATS)))
def test_bytes_are_exact_and_rounded_up_once(shape: list[int], name: str) -> None:
    elements = 1
    for size in shape:
        elements *= size
    assert storage_bytes(tuple(shape), name) == ceil(elements * format_bits(name) / 8)


def test_unknown_format_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown number format 'fp17'.*nearest: fp16"):
        format_bits("fp17")


def test_tensor_touches_a_part_of_a_whole() -> None:
    table = Tensor("embedding.weight", (3, 64), "int4", Role.WEIGHT, whole=(1000, 64))
    assert (table.elements, table.bytes) == (192, 96)
    assert (table.resident_elements, table.resident_bytes) == (64_000, 32_000)


def matmul(name: str, weight: str, k: int = 8, n: int = 4, whole: tuple[int, ...] | None = None) -> Op:
    inputs = (Tensor("x", (2, k), "fp16", Role.ACTIVATION), Tensor(weight, (k, n), "fp16", Role.WEIGHT, whole=whole))
    return Op(
        name, OpKind.MATMUL, "ffn", inputs, (Tensor("x", (2, n), "fp16", Role.ACTIVATION),), MatmulAttrs(1, 2, k, n)
    )


def test_matmul_by_hand() -> None:
    op = matmul("m", "w")
    assert (op.macs, op.flops, op.vector_ops) == (64, 128, 0)
    assert (op.read_bytes, op.write_bytes) == (2 * (16 + 32), 16)
    assert MatmulAttrs(3, 5, 2, 7).macs == 3 * 5 * 2 * 7
    assert MatmulAttrs(2, 5, 2, 7, group_m=(4, 1)).macs == 5 * 2 * 7


def test_vector_work_by_hand() -> None:
    assert ReduceAttrs("softmax", 10, 20).vector_ops == 1000
    assert ReduceAttrs("topk", 10, 20, keep=3).vector_ops == 600
    assert ElementwiseAttrs("swiglu", 7).vector_ops == 35
    attention = AttentionAttrs(4, 2, 8, 8, CAUSAL, (RequestSpan(1, 3, 0),), softcap=True)
    assert attention.vector_ops == 6 * 4 * (5 + 3)


def test_custom_work_is_what_its_user_says() -> None:
    op = Op("c", OpKind.CUSTOM, "other", (), (), CustomAttrs(10, 3, 100, 50))
    assert (op.macs, op.flops, op.vector_ops, op.read_bytes, op.write_bytes) == (5, 10, 3, 100, 50)


def test_repeats_multiply_and_weights_are_counted_once() -> None:
    layers = Block("layers", 10, (matmul("m", "layers.m.weight"), matmul("n", "layers.n.weight")))
    head = Block("head", 1, (matmul("h", "embedding.weight"),))
    embed = Block("embed", 1, (matmul("e", "embedding.weight"),))
    step = Pass("step", "decode", (embed, layers, head), tokens=2, generated=2, repeat=7)
    trace = Trace("m", 2, (step, Pass("again", "decode", (embed, layers, head), 2)))
    assert step.flops == 22 * 128
    assert trace.flops == 8 * 22 * 128
    assert trace.work.read_bytes == trace.read_bytes == 8 * 22 * 96
    assert trace.weight_bytes == (10 * 2 + 1) * 64
    assert (trace.tokens, trace.generated) == (16, 14)
    looped = Trace("m", 2, (Pass("p", "decode", (Block("layers", 10, layers.ops, weights_shared=True),), 2),))
    assert looped.weight_bytes == 2 * 64
    assert looped.flops == 20 * 128


def test_a_draft_models_weights_are_its_own() -> None:
    block = Block("layers", 2, (matmul("m", "layers.m.weight"),))
    target, draft = Pass("verify", "decode", (block,), 1), Pass("draft", "decode", (block,), 1, model="small")
    assert Trace("big", 1, (target, draft)).weight_bytes == 2 * Trace("big", 1, (target,)).weight_bytes


def test_cache_resident_is_the_largest_pass() -> None:
    def attend(keys: int) -> Pass:
        cache = tuple(Tensor(n, (keys, 2, 8), "fp16", Role.KV) for n in ("k_cache", "v_cache"))
        query = Tensor("q", (1, 32), "fp16", Role.ACTIVATION)
        attrs = AttentionAttrs(4, 2, 8, 8, CAUSAL, (RequestSpan(1, 1, keys - 1),))
        op = Op("attention", OpKind.ATTENTION, "attention", (query, *cache), (query,), attrs)
        return Pass(f"p{keys}", "decode", (Block("layers", 3, (op,)),), 1)

    assert Trace("m", 1, (attend(5), attend(6))).kv_bytes == 3 * 2 * 6 * 16 * 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: Mask("windw", window=3),
        lambda: Mask("window"),
        lambda: Mask("causal", sinks=2),
        lambda: Mask("tree", parents=(0,)),
        lambda: Mask("block_sparse", block=4, density=1.5),
        lambda: RequestSpan(0, 1, 0),
        lambda: RequestSpan(1, 1, -1),
        lambda: Sparsity("n:m", 0.5, n=5, m=4),
        lambda: Sparsity("block", 0.5),
        lambda: Sparsity("unstructured", -0.1),
        lambda: MatmulAttrs(1, 0, 4, 4),
        lambda: MatmulAttrs(2, 5, 4, 4, group_m=(3, 3)),
        lambda: AttentionAttrs(8, 3, 4, 4, CAUSAL, (RequestSpan(1, 1),)),
        lambda: ReduceAttrs("median", 1, 1),
        lambda: ElementwiseAttrs("sine", 1),
        lambda: CustomAttrs(3, 0, 0, 0),
        lambda: Op("o", OpKind.MATMUL, "ffn", (), (), ReduceAttrs("sum", 1, 1)),
        lambda: Block("b", 0, ()),
    ],
)
def test_impossible_values_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(ValueError):
        make()
