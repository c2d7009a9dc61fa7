"""Both operands sparse on an outer-product unit: columns of A and rows of B condensed, from a Case to steps.

For every output tile and every position of K the unit takes (entries of A's column in units of its height) x (entries
of B's row in units of its width) steps, both rounded up, and a time to find out which; its accumulators take a limited
number of sums a cycle. The manner of Dual-side Sparse Tensor Core (Wang et al., ISCA 2021).
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sim.sparse.arrays import encoding_of
from sim.sparse.case import Case, EngineWork, Side
from sim.sparse.schema import Dual


def dual(case: Case) -> EngineWork:
    """Steps of all output tiles, spread over the units from one queue."""
    engine = case.machine.sparse
    assert isinstance(engine, Dual)
    units = engine.units * case.machine.cores
    sides = case.sides
    steps = [
        _steps(side, tile, quantum, case.skip)
        for side, tile, quantum in zip(sides, engine.tile, engine.quantum, strict=True)
    ]
    products = case.effective_macs if case.skip else case.m * case.n * case.k
    total = int(_at_positions(steps[0]) @ _at_positions(steps[1]))
    sought = case.skip and not all(side.is_dense for side in sides)
    beside = math.ceil(engine.position_cycles * case.k) if sought else 0
    work = busiest = total + beside * len(steps[0]) * len(steps[1])
    if units > 1:
        from sim.kernels.sparse_counts import GREEDY, assign

        # A pair of tiles takes sums of products of small integers: exact in float64, which has a fast product.
        loads = np.rint(steps[0].astype(np.float64) @ steps[1].T.astype(np.float64)).astype(np.int64).ravel() + beside
        busiest = int(assign(loads, units, GREEDY).max())
    sums = -(-products // (engine.accumulate_per_cycle * units))
    cycles = max(busiest, sums)
    slots = engine.quantum[0] * engine.quantum[1] * units
    stored = [side.stored(encoding_of(case, side)) for side in sides]
    repeats = (len(steps[1]), len(steps[0]))
    return EngineWork(
        cycles=cycles,
        slots=cycles * slots,
        macs=products,
        imbalance=busiest * units / work if work else 1.0,
        value_bits=Fraction(sum(s.value_bits * times for s, times in zip(stored, repeats, strict=True))),
        metadata_bits=sum(s.metadata_bits * times for s, times in zip(stored, repeats, strict=True)),
        entries=sum(s.entries * times for s, times in zip(stored, repeats, strict=True)),
        detail={"steps": total, "seek_cycles": work - total, "accumulate_cycles": sums},
    )


def _steps(side: Side, tile: int, quantum: int, skip: bool) -> NDArray[np.int32]:
    """For each tile of output lines and each position of K, the kept entries in units of `quantum`, rounded up."""
    from sim.kernels.sparse_counts import quanta_columns, quanta_rows

    lines, depth = side.shape[1 - side.along], side.shape[side.along]
    if side.is_dense or not skip:
        extents = np.minimum(tile, lines - tile * np.arange(-(-lines // tile)))
        return np.broadcast_to((-(-extents // quantum)).astype(np.int32)[:, None], (len(extents), depth))
    found: NDArray[np.int32]
    if side.along == 1:
        found = quanta_rows(side.mask, tile, quantum)
    else:
        found = quanta_columns(side.mask, tile, quantum)
    return found


def _at_positions(steps: NDArray[np.int32]) -> NDArray[np.int64]:
    """The sum over tiles at each position of K; a side without zeros has one column, seen `depth` times."""
    if steps.strides[1] == 0:
        return np.full(steps.shape[1], steps[:, 0].sum(dtype=np.int64))
    total: NDArray[np.int64] = steps.sum(axis=0, dtype=np.int64)
    return total


def mean_steps(tile: int, quantum: int, density: float) -> float:
    """Mean steps of one side for independent zeros: the mean of ceil(X / quantum), X binomial over `tile` entries."""
    if density >= 1:
        return float(-(-tile // quantum))
    logs = [
        math.lgamma(tile + 1) - math.lgamma(x + 1) - math.lgamma(tile - x + 1)
        + x * math.log(density) + (tile - x) * math.log1p(-density)
        for x in range(tile + 1)
    ]  # fmt: skip
    return math.fsum(math.exp(p) * -(-x // quantum) for x, p in enumerate(logs))
