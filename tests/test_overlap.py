"""Collectives that overlap with products on a GPU: by hand, against the same pass without, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.engine import simulate
from sim.errors import ConfigError
from sim.gpu.cost import Cost
from sim.gpu.engine import LINK, GpuEngine
from sim.gpu.halves import alternated, halved
from sim.gpu.overlap import Overlapped, pairs
from sim.gpu.schema import Gpu
from sim.kinds import load_hardware
from sim.links.collectives import Collective
from sim.passes import PassResult
from workloads import load_workload
from workloads.trace import AttentionAttrs, MatmulAttrs, Pass

RULE = {"overlap.chunks": 4, "overlap.multiprocessors": 16}


def gpu(**overrides: Any) -> Gpu:
    found = load_hardware("h200", {key.replace("__", "."): value for key, value in overrides.items()})
    assert isinstance(found, Gpu)
    return found


LARGE = {"model": "llama3-70b", "prompt": 8192, "parallel": {"tensor": 4}}


def prefill() -> Pass:
    (work,) = load_workload("llama3-8b-prefill", **LARGE).trace().passes
    return work


def both(work: Pass) -> tuple[PassResult, PassResult]:
    """Without and with the rule."""
    return GpuEngine(gpu()).run(work), GpuEngine(gpu(overlap={"chunks": 4, "multiprocessors": 16})).run(work)


def pair(product_s: float, carry_s: float, parts: int, product_first: bool) -> Overlapped:
    each = Collective("ring", "Simple", carry_s, carry_s, 8.0, "link")
    return Overlapped((Cost(fixed_s=product_s),) * parts, each, product_first)


@pytest.mark.parametrize("product_first", [True, False])
@pytest.mark.parametrize(("product_s", "carry_s", "total"), [(3.0, 1.0, 13.0), (1.0, 3.0, 13.0), (2.0, 2.0, 10.0)])
def test_all_but_one_part_of_the_shorter_is_hidden(
    product_s: float, carry_s: float, total: float, product_first: bool
) -> None:
    assert pair(product_s, carry_s, 4, product_first).time_s(1e9) == pytest.approx(total)


@given(st.floats(0.1, 10), st.floats(0.1, 10), st.integers(2, 9), st.booleans())
def test_no_unit_does_two_parts_at_once(product_s: float, carry_s: float, parts: int, product_first: bool) -> None:
    spans = np.array(list(pair(product_s, carry_s, parts, product_first).spans_s(1e9)))
    for column in (0, 2):
        assert (spans[1:, column] >= spans[:-1, column + 1] - 1e-9).all()
    ready, begins = (spans[:, 1], spans[:, 2]) if product_first else (spans[:, 3], spans[:, 0])
    assert (begins >= ready - 1e-9).all()


def test_pairs_are_products_next_to_what_they_exchange() -> None:
    ops = next(block for block in prefill().blocks if block.name == "layers").ops
    names = [op.name for op in ops]
    assert pairs(ops) == {names.index("out_proj"): True, names.index("down"): True}
    experts = load_workload("mixtral-8x7b-decode", batch=8, parallel={"expert": 4}).trace().passes[0]
    ops = next(block for block in experts.blocks if block.name == "layers").ops
    names = [op.name for op in ops]
    assert pairs(ops) == {names.index("dispatch_all_to_all"): False, names.index("expert_down"): True}


def test_a_prefill_is_faster_and_as_much_is_sent() -> None:
    plain, beside = both(prefill())
    assert beside.schedule.makespan_ps < 0.95 * plain.schedule.makespan_ps
    sent = [int(result.tasks.link_bytes.sum()) for result in (plain, beside)]
    assert sent[0] == pytest.approx(sent[1], rel=1e-6)
    # Weights are read once for each part.
    assert beside.schedule.memory.bytes_read > plain.schedule.memory.bytes_read
    told = {op.name: op.decisions.get("overlap") for op in beside.ops if op.layer == 0 and op.block == "layers"}
    assert told["out_proj"] == "4 parts beside attn_all_reduce"
    assert told["ffn_all_reduce"] == "4 parts beside down"
    assert told["qkv"] is None
    # No less than all of the links' work, and no task outside the pass or before its time.
    start, end = beside.schedule.start_ps, beside.schedule.finish_ps
    assert beside.schedule.makespan_ps > (end - start)[beside.tasks.unit == LINK].sum()
    assert (start >= 0).all()
    assert (start <= end).all()
    assert end.max() == beside.schedule.makespan_ps


def test_nothing_is_cut_where_that_does_not_pay() -> None:
    """One new token: the weights would be read four times, and a collective is all latency."""
    (step,) = load_workload("llama3-8b-decode", batch=8, parallel={"tensor": 8}).trace().passes
    plain, beside = both(step)
    assert plain.schedule.makespan_ps == beside.schedule.makespan_ps
    assert not any("overlap" in op.decisions for op in beside.ops)


def test_a_whole_run_reports_it() -> None:
    work = load_workload("llama3-8b-prefill", **LARGE)
    plain, beside = simulate(gpu(), work).summary, simulate(load_hardware("h200", RULE), work).summary
    assert beside["time_s"] < plain["time_s"]
    assert beside["flops"] == plain["flops"]
    assert beside["ttft_s"] == beside["time_s"]


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"chunks": 1, "multiprocessors": 4}, "overlap.chunks"),
        ({"chunks": 4, "multiprocessors": 132}, "overlap.multiprocessors is 132, but must leave some of 132"),
        ({"chunks": 4}, "overlap.multiprocessors"),
    ],
)
def test_refused(rule: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        gpu(overlap=rule)


def test_halves_take_turns_at_collectives() -> None:
    # 3 of products, 2 of links, 3 of products, 2 of links: the second half's products lie beside the first's links.
    first, second = alternated([(3, False), (2, True), (3, False), (2, True)])
    assert first == [0, 3, 6, 9]
    assert second == [3, 6, 9, 12]
    # A half keeps the multiprocessors until its collective.
    first, second = alternated([(1, False), (1, False), (5, True)])
    assert first == [0, 1, 2]
    assert second == [2, 3, 7]


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=12))
def test_neither_unit_serves_both_halves_at_once(steps: list[tuple[int, bool]]) -> None:
    starts = alternated(steps)
    for half in starts:
        assert all(b >= a + length for a, b, (length, _) in zip(half, half[1:], steps, strict=False))
    for linked in (False, True):
        spans = sorted(
            (begin, begin + length)
            for half in starts
            for begin, (length, of) in zip(half, steps, strict=True)
            if of is linked and length
        )
        assert all(b[0] >= a[1] for a, b in pairwise(spans))
    whole = sum(length for length, _ in steps)
    ends = [half[-1] + steps[-1][0] for half in starts]
    assert whole <= max(ends) <= 2 * whole


def requests(batch: int) -> Pass:
    (work,) = load_workload("llama3-8b-prefill", **{**LARGE, "prompt": 2048, "batch": batch}).trace().passes
    return work


def test_a_half_has_half_of_the_requests_and_all_weights() -> None:
    layers = next(block for block in requests(5).blocks if block.name == "layers").ops
    for op in layers:
        half = halved(op)
        assert half is not None
        if isinstance(op.attrs, MatmulAttrs):
            assert isinstance(half.attrs, MatmulAttrs)
            assert (half.attrs.m, half.inputs[1]) == (op.attrs.m // 2, op.inputs[1])
        if isinstance(half.attrs, AttentionAttrs):
            assert sum(span.count for span in half.attrs.requests) == 3


def test_two_halves_hide_collectives_where_there_are_requests_enough() -> None:
    rule = {"batches": 2, "multiprocessors": 16}
    many, one = requests(8), requests(1)
    plain, halves = (GpuEngine(each).run(many) for each in (gpu(), gpu(overlap=rule)))
    assert halves.schedule.makespan_ps < 0.95 * plain.schedule.makespan_ps
    assert halves.tasks.link_bytes.sum() == pytest.approx(plain.tasks.link_bytes.sum(), rel=1e-3)
    assert halves.tasks.macs.sum() == pytest.approx(plain.tasks.macs.sum(), rel=1e-3)
    assert halves.tasks.dram_read_bytes.sum() > plain.tasks.dram_read_bytes.sum()
    assert any(op.decisions.get("overlap") == "two halves of the requests" for op in halves.ops)
    # A single request cannot be halved.
    alone = [GpuEngine(each).run(one).schedule.makespan_ps for each in (gpu(), gpu(overlap=rule))]
    assert alone[0] == alone[1]


def test_a_rule_is_one_of_the_two() -> None:
    for rule in ({"multiprocessors": 16}, {"chunks": 2, "batches": 2, "multiprocessors": 16}):
        with pytest.raises(ConfigError, match="overlap needs one of chunks and batches"):
            gpu(overlap=rule)
    with pytest.raises(ConfigError, match=r"overlap\.batches"):
        gpu(overlap={"batches": 3, "multiprocessors": 16})
