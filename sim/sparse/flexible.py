"""SIGMA's kind of engine, and STONNE's mesh as its dense partner: from a Case to rounds, reads and cycles.

The rounds follow the published rule of STONNE's sparse controller and are priced by `sim.kernels.sparse_flexible`; the
mesh follows STONNE's output-stationary mode, cycle by cycle. docs/sparse.md states both.
"""

from __future__ import annotations

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
        if engine.order == "packed":
            starts, positions = _packed(starts, positions, engine.multipliers)
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


def _packed(
    starts: NDArray[np.int64], positions: NDArray[np.int32], multipliers: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Rows of non-zeros in the order that fills the multipliers best."""
    from sim.kernels.sparse_order import packed_order

    sizes = np.diff(starts)
    order = packed_order(sizes, multipliers)
    moved = np.concatenate(([0], np.cumsum(sizes[order])))
    source = np.repeat(starts[:-1][order] - moved[:-1], sizes[order]) + np.arange(len(positions))
    return moved, positions[source]


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
    tile_rows, tile_columns = -(-case.m // engine.rows), -(-case.n // engine.columns)
    activation_reads, weight_reads = case.k * case.m * tile_columns, case.k * case.n * tile_rows
    return EngineWork(
        cycles=cycles,
        slots=cycles * engine.rows * engine.columns,
        macs=case.m * case.n * case.k,
        imbalance=1.0,
        value_bits=activation_reads * case.activations.bits + weight_reads * case.weights.bits,
        metadata_bits=0,
        entries=0,
        detail={
            "tiles": tile_rows * tile_columns,
            "weight_reads": weight_reads,
            "activation_reads": activation_reads,
            "sum_writes": case.m * case.n,
        },
    )


def mesh_cycles(rows: int, columns: int, ports: int, m: int, n: int, k: int) -> int:
    """Cycles of an output-stationary mesh, tile after tile: STONNE's rule, derived in docs/sparse.md."""
    share = max(1, -(-(rows + columns) // ports))
    return sum(
        _tile_cycles(used_rows, used_columns, columns, share, k) * row_tiles * column_tiles
        for used_rows, row_tiles in _edges(m, rows)
        for used_columns, column_tiles in _edges(n, columns)
    )


def _tile_cycles(used_rows: int, used_columns: int, columns: int, share: int, k: int) -> int:
    """Cycles of one output tile; `share` edges of the mesh, columns before rows, are fed by one port in turn."""
    edges = np.concatenate((np.arange(used_columns), columns + np.arange(used_rows)))
    port = edges // share
    first = np.searchsorted(port, port)  # a port sends in the order of its edges, and only to those in use
    sent = np.bincount(port)[port] * (k - 1) + np.arange(len(edges)) - first
    # A multiplier hands an operand on when it has used it, so the wavefront waits for the latest edge before it.
    by_column = np.maximum.accumulate(sent[:used_columns] - np.arange(used_columns)) + np.arange(used_columns)
    by_row = np.maximum.accumulate(sent[used_columns:] - np.arange(used_rows)) + np.arange(used_rows)
    done = np.maximum(
        by_column[None, :] + np.arange(used_rows)[:, None], by_row[:, None] + np.arange(used_columns)[None, :]
    )
    waiting = 0
    last = int(done.max())
    for results in np.bincount(done.ravel() - done.min()):
        waiting = (waiting + int(results)) // 2  # half of what waits before the memory, rounded up, is written
    return BESIDE_TILE + (share > 1) + last + waiting.bit_length()


BESIDE_TILE = 5
"""Cycles of a tile beside feeding and skew: configuration, the first operand, accumulator, bus and memory."""


def _edges(size: int, side: int) -> list[tuple[int, int]]:
    """(extent, number) of the whole tiles and of the last one."""
    pairs = ((side, size // side), (size % side, 1))
    return [(extent, number) for extent, number in pairs if extent and number]
