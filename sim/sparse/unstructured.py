"""Engines for zeros anywhere: inner products by intersection, Gustavson's row-wise products, outer products.

Each row (or K position) is a task with an exact number of steps; tasks go to processing elements by static,
round-robin or greedy assignment, and the busiest element sets the time.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sim.sparse.arrays import encoding_of
from sim.sparse.case import Case, EngineWork, Side
from sim.sparse.schema import Gustavson, Intersect, Outer, Queued
from sim.sparse.storage import index_bits
from workloads.formats import format_bits

POLICIES = {"static": 0, "round_robin": 1, "greedy": 2}


def intersect(case: Case) -> EngineWork:
    """Inner products: every stored row meets every stored column, in steps that depend on how they are intersected.

    A two-finger merge takes |row union column| steps and one to close the pair (the law of SAM's SpMM graph); where
    neither operand has a zero, one more for each further column.
    """
    engine = case.machine.sparse
    assert isinstance(engine, Intersect)
    if not case.skip:
        loads = np.full(case.m, case.n * (case.k + 1), np.int64)
        macs = case.m * case.n * case.k
        return _finish(case, engine, loads, macs, engine.start_cycles, 1, (macs, macs), {"pairs": case.m * case.n})
    rows, columns = case.activations.line_counts, case.weights.line_counts
    stored_columns = int(np.count_nonzero(columns))
    held = int(columns.sum())
    matches = _matches(case)
    present = rows > 0
    if engine.method == "two_finger":
        steps = rows * stored_columns + held - matches
    elif engine.method == "leader_follower":
        steps = rows * stored_columns
    else:
        steps = -(-case.k // engine.width) * stored_columns + matches
    loads = np.where(present, steps + stored_columns, 0)
    pairs = int(np.count_nonzero(present)) * stored_columns
    fixed = engine.start_cycles
    if case.activations.nonzeros == case.m * case.k and case.weights.nonzeros == case.k * case.n:
        fixed += case.n - 1
    detail = {"pairs": pairs, "steps": int(loads.sum()) - pairs, "matches": int(matches.sum())}
    # Each pair streams a whole row and a whole column.
    reads = int(rows.sum()) * stored_columns, held * int(np.count_nonzero(present))
    return _finish(case, engine, loads, int(matches.sum()), fixed, 1, reads, detail)


def gustavson(case: Case) -> EngineWork:
    """Row-wise products: each activation kept takes its row of weights, `lanes` of them a cycle and never under one."""
    engine = case.machine.sparse
    assert isinstance(engine, Gustavson)
    weights_at = _along(case.weights, case.skip)
    steps_at = np.maximum(np.where(weights_at > 0, 1, 0), -(-weights_at // engine.lanes))
    if case.skip and not case.activations.is_dense:
        from sim.kernels.sparse_counts import compressed, row_sums

        starts, columns = compressed(case.activations.mask)
        loads = row_sums(starts, columns, np.ascontiguousarray(steps_at))
        macs = case.effective_macs
    else:
        loads = np.full(case.m, int(steps_at.sum()), np.int64)
        macs = case.m * int(weights_at.sum())
    held = case.activations.nonzeros if case.skip else case.m * case.k
    return _finish(case, engine, loads, macs, 0, engine.lanes, (held, macs), {"steps": int(loads.sum())})


def outer(case: Case) -> EngineWork:
    """Outer products by K position, then a merge of the partial matrices, `merge_ways` at a time."""
    engine = case.machine.sparse
    assert isinstance(engine, Outer)
    products = _along(case.activations, case.skip) * _along(case.weights, case.skip)
    loads = -(-products // engine.lanes)
    total = int(products.sum())
    partial = int(np.count_nonzero(products))
    passes = 0
    while partial > 1:
        partial = -(-partial // engine.merge_ways)
        passes += 1
    merging = -(-total * passes // engine.merge_per_cycle)
    detail = {"products": total, "merge_passes": passes, "merge_cycles": merging}
    reads = (case.m * case.k, case.k * case.n)
    if case.skip:
        reads = (case.activations.nonzeros, case.weights.nonzeros)
    # Products are written with their column once, and every pass reads and writes them.
    entry_bits = int(format_bits(case.machine.array.accumulate)) + index_bits(case.n)
    return _finish(case, engine, loads, total, merging, engine.lanes, reads, detail, total * passes * entry_bits)


def _finish(
    case: Case,
    engine: Queued,
    loads: NDArray[np.int64],
    macs: int,
    fixed: int,
    lanes: int,
    reads: tuple[int, int],
    detail: dict[str, int],
    sum_bits: int = 0,
) -> EngineWork:
    """Hand out the tasks and add up; `fixed` cycles are on top of the busiest element's.

    reads: values of activations and of weights that leave the scratchpad, with their share of the metadata; sum_bits:
    partial sums that pass through it.
    """
    from sim.kernels.sparse_counts import assign

    elements = engine.elements * case.machine.cores
    shared = assign(np.ascontiguousarray(loads, np.int64), elements, POLICIES[engine.assignment])
    busiest, total = int(shared.max()), int(loads.sum())
    values, metadata, entries = Fraction(sum_bits), 0, 0
    for side, read in zip(case.sides, reads, strict=True):
        kept = side.stored(encoding_of(case, side))
        times = Fraction(read, max(1, side.nonzeros))
        values += read * side.bits
        metadata += int(kept.metadata_bits * times)
        entries += int(kept.entries * times)
    cycles = busiest + fixed
    return EngineWork(
        cycles=cycles,
        slots=cycles * elements * lanes,
        macs=macs,
        imbalance=busiest * elements / total if total else 1.0,
        value_bits=values,
        metadata_bits=metadata,
        entries=entries,
        detail=dict(detail),
    )


def _along(side: Side, skip: bool) -> NDArray[np.int64]:
    """Values at each position of K, zeros included where they are not skipped."""
    if skip:
        return side.along_counts
    return np.full(side.shape[side.along], side.shape[1 - side.along], np.int64)


def _matches(case: Case) -> NDArray[np.int64]:
    """For each row of activations, products of two kept values over all columns."""
    at = np.ascontiguousarray(case.weights.along_counts)
    if case.activations.is_dense:
        return np.full(case.m, int(at.sum()), np.int64)
    from sim.kernels.sparse_counts import compressed, row_sums

    starts, columns = compressed(case.activations.mask)
    found: NDArray[np.int64] = row_sums(starts, columns, at)
    return found
