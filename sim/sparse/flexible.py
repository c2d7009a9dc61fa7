"""SIGMA's kind of engine, and STONNE's mesh as its dense partner: from a Case to rounds, reads and cycles.

The rounds follow the published rule of STONNE's sparse controller and are priced by `sim.kernels.sparse_flexible`; the
mesh follows the rule measured on STONNE's output-stationary mode. docs/sparse.md states both.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from sim.sparse.arrays import encoding_of
from sim.sparse.case import Case, EngineWork, Side
from sim.sparse.schema import Flexible, Mesh

NAMES = ("rounds", "stationary_reads", "stream_reads", "sum_reads", "sum_writes", "multiplications", "most_rows",
         "packages")  # fmt: skip


def flexible(case: Case) -> EngineWork:
    """Rounds of the stationary operand's rows against every vector of the other."""
    engine = case.machine.sparse
    assert isinstance(engine, Flexible)
    held_weights = engine.stationary == "weights"
    stationary, stream = case.sides[::-1] if held_weights else case.sides
    vectors = case.m if held_weights else case.n
    if case.skip and not stationary.is_dense:
        from sim.kernels.sparse_counts import compressed, compressed_columns

        mask = stationary.mask
        starts, positions = compressed_columns(mask) if held_weights else compressed(mask)
        cycles, counts = _rounds(engine, starts, positions, _stream(stream, case.skip, vectors), vectors)
    else:
        lines = case.n if held_weights else case.m
        cycles, counts = _dense_rounds(engine, lines, _stream(stream, case.skip, vectors), vectors)
    cores = case.machine.cores
    loads = int(counts[1])
    kept = stationary.stored(encoding_of(case, stationary))
    packages = int(counts[7])
    # Only what enters the ports leaves the scratchpad. A streamed value comes with a bit that says whether it is zero.
    flags = packages - loads if case.skip and not stream.is_dense else 0
    return EngineWork(
        cycles=cycles,
        slots=cycles * engine.multipliers * cores,
        macs=int(counts[5]),
        imbalance=max(1.0, int(counts[0]) * engine.multipliers / max(1, loads)),
        value_bits=loads * stationary.bits + (packages - loads) * stream.bits,
        metadata_bits=kept.metadata_bits + flags,
        entries=kept.entries,
        detail=dict(zip(NAMES, (int(c) for c in counts), strict=True)),
    )


def _stream(side: Side, skip: bool, vectors: int) -> NDArray[np.int64]:
    """Streaming vectors with a non-zero at each position of K."""
    if skip:
        return np.ascontiguousarray(side.along_counts)
    return np.full(side.shape[side.along], vectors, np.int64)


def _rounds(
    engine: Flexible, starts: NDArray[np.int64], positions: NDArray[np.int32], stream: NDArray[np.int64], vectors: int
) -> tuple[int, NDArray[np.int64]]:
    from sim.kernels.sparse_flexible import rounds

    cycles, counts = rounds(starts, positions, stream, vectors, engine.multipliers, engine.ports, engine.lines)
    return int(cycles), counts


def _dense_rounds(
    engine: Flexible, lines: int, stream: NDArray[np.int64], vectors: int
) -> tuple[int, NDArray[np.int64]]:
    """As `_rounds` for a stationary matrix without zeros, whose rounds repeat: one of each kind is priced."""
    depth = len(stream)
    together = max(1, engine.multipliers // depth)
    total_cycles, total = 0, np.zeros(len(NAMES), np.int64)
    for rows, times in ((together, lines // together), (lines % together, 1)):
        if not rows or not times:
            continue
        starts = np.arange(rows + 1, dtype=np.int64) * depth
        positions = np.tile(np.arange(depth, dtype=np.int32), rows)
        cycles, counts = _rounds(engine, starts, positions, stream, vectors)
        total_cycles += times * cycles
        most = max(total[6], counts[6])
        total += times * counts
        total[6] = most
    return total_cycles, total


def mesh(case: Case) -> EngineWork:
    """STONNE's output-stationary mesh: zeros are never skipped, and output tiles never overlap."""
    engine = case.machine.sparse
    assert isinstance(engine, Mesh)
    cycles = mesh_cycles(engine.rows, engine.columns, engine.ports, case.m, case.n, case.k)
    reads = case.k * (case.m * -(-case.n // engine.columns) + case.n * -(-case.m // engine.rows))
    return EngineWork(
        cycles=cycles,
        slots=cycles * engine.rows * engine.columns,
        macs=case.m * case.n * case.k,
        imbalance=1.0,
        value_bits=reads * max(case.activations.bits, case.weights.bits),
        metadata_bits=0,
        entries=0,
        detail={"tiles": -(-case.m // engine.rows) * -(-case.n // engine.columns)},
    )


def mesh_cycles(rows: int, columns: int, ports: int, m: int, n: int, k: int) -> int:
    """Cycles of an output-stationary mesh: each tile takes K (rows + columns) / ports to feed, then its skew and 3.

    A tile of one row saves a cycle. Measured on STONNE (exact where (rows + columns) / ports is 1 or 2).
    """
    feed = Fraction(k * (rows + columns), ports)
    whole = -(-feed.numerator // feed.denominator)
    total = 0
    for used_rows, row_tiles in _edges(m, rows):
        for used_columns, column_tiles in _edges(n, columns):
            each = whole + used_rows + used_columns + 3 - (1 if used_rows == 1 else 0)
            total += each * row_tiles * column_tiles
    return total


def _edges(size: int, side: int) -> list[tuple[int, int]]:
    """(extent, number) of the whole tiles and of the last one."""
    pairs = ((side, size // side), (size % side, 1))
    return [(extent, number) for extent, number in pairs if extent and number]
