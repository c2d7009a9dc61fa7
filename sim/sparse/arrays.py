"""Sparse engines on the machine's own arrays: N:M and balanced weights, and gathered positions; from a Case to work.

A fold is what an array's lanes hold at once along K. Fewer weights make fewer folds; the stream behind each fold still
carries every position that the fold covers, which is where bandwidth comes in. docs/sparse.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sim.cost import array_tile, vector_cycles
from sim.errors import ConfigError
from sim.sparse.case import Case, EngineWork, Side
from sim.sparse.pattern import check_ratio, violation
from sim.sparse.schema import Balanced, Gather, Structured, _OnArray, parse_ratio
from sim.sparse.storage import Encoding, Stored

if TYPE_CHECKING:
    from sim.hardware import Array, Hardware

Cycles = tuple[int, int, int]
"""All cycles, and of them tail and cold, as in EngineWork."""

Folds = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
"""For each panel of columns: folds, positions they read, non-zeros of their fullest columns."""


def encoding_of(case: Case, side: Side) -> Encoding:
    """How the machine stores an operand that has zeros."""
    engine = case.machine.sparse
    if engine is None or not case.skip:
        return Encoding("dense")
    name = engine.weights if side is case.weights else engine.activations
    if name == "n:m" and not side.pattern.n:
        # Without groups there is nothing to index: a mask of any other shape is kept as bits.
        name = "bitmap"
    return Encoding(name, side.pattern.n, side.pattern.m, engine.run_bits, engine.index_bits == "power_of_two")


def lanes_of(case: Case) -> int:
    """Positions along K that one fold of an array holds."""
    lanes = int(case.machine.array.rows * case.rate)
    if lanes < 1:
        raise ConfigError(f"an array of {case.machine.array.rows} rows at {case.rate} a PE holds no operand whole")
    return lanes


def all_arrays(machine: Hardware) -> Array:
    """The arrays of all cores as one set."""
    return machine.array.model_copy(update={"count": machine.array.count * machine.cores})


def dense_cycles(case: Case) -> int:
    """Cycles of the arrays without sparsity."""
    return int(sum(array_tile(all_arrays(case.machine), 1, case.m, case.n, case.k, case.rate)[:3]))


def structured(case: Case) -> EngineWork:
    """N:M weights; a mask from a file must keep at most N of every M. Raises ConfigError for a ratio without units."""
    engine = case.machine.sparse
    assert isinstance(engine, Structured)
    pattern = case.weights.pattern
    if not case.skip or case.weights.is_dense:
        return _dense(case)
    if case.weights.given is None and pattern.kind not in ("n:m", "file"):
        raise ConfigError(
            f"the arrays of {case.machine.name} take N:M weights, not {pattern}; allowed: dense, "
            f"{', '.join(engine.ratios)}, or a file with such a mask"
        )
    if pattern.kind == "n:m":
        check_ratio(pattern, engine.ratios)
        return structured_closed(case, pattern.n, pattern.m)
    n, m = ratio_of_mask(case, engine.ratios)
    return _on_folds(case, fold_mask(case, m), Encoding("n:m", n, m, engine.run_bits, _wide(engine)), m)


def ratio_of_mask(case: Case, ratios: tuple[str, ...]) -> tuple[int, int]:
    """The sparsest of `ratios` that a mask obeys. Raises ConfigError that shows where it breaks the loosest."""
    broken, n, m = None, 0, 1
    for n, m in sorted(map(parse_ratio, ratios), key=lambda r: Fraction(*r)):
        broken = violation(case.weights.mask, n, m)
        if broken is None:
            return n, m
    assert broken is not None, "a machine has at least one ratio"
    group, column, kept = broken
    raise ConfigError(
        f"the mask keeps {kept} weights at positions {group * m} to {min(case.k, group * m + m) - 1} of column "
        f"{column}, but the arrays take at most {n} of {m}; allowed: {', '.join(ratios)}"
    )


def structured_closed(
    case: Case, n: int, m: int, kept_rest: int | None = None, encoding: Encoding | None = None
) -> EngineWork:
    """N:M weights without a mask: every panel packs alike, `lanes // n` groups a fold.

    `kept_rest`: kept of the last group where K ends inside it; by default as many as fit, up to n. `encoding`: how the
    weights are stored, if not as groups of n in m.
    """
    lanes = lanes_of(case)
    if lanes < n:
        raise ConfigError(f"an array that holds {lanes} positions cannot hold the {n} kept weights of a group of {m}")
    columns = case.machine.array.columns
    panels = -(-case.n // columns)
    groups, rest = divmod(case.k, m)
    full = -(-groups // (lanes // n))
    last = n * (groups - (full - 1) * (lanes // n)) if full else 0
    kept_rest = min(n, rest) if kept_rest is None else kept_rest
    more = 1 if rest and (not full or last + kept_rest > lanes) else 0
    same = np.ones(panels, np.int64)
    folds = (same * (full + more), same * case.k, same * (groups * n + kept_rest))
    engine = case.machine.sparse
    assert isinstance(engine, _OnArray)
    encoding = encoding or Encoding("n:m", n, m, engine.run_bits, _wide(engine))
    return _on_folds(case, folds, encoding, m)


def balanced(case: Case) -> EngineWork:
    """Weights of any pattern; each block waits for the fullest column of its panel. Raises ConfigError where a matrix
    is sparser than the engine's degree."""
    engine = case.machine.sparse
    assert isinstance(engine, Balanced)
    weights = case.weights
    if not case.skip or weights.is_dense:
        return _dense(case)
    size = case.k * case.n
    # What a pattern keeps is a mean: small matrices drawn from it may keep less.
    kept = weights.nonzeros if weights.given is not None or weights.pattern.path else size * weights.pattern.density
    if kept * engine.degree < size * SLACK:
        raise ConfigError(
            f"the weights keep one value in {size / max(1, kept):.4g}, but {case.machine.name} supports up "
            f"to one in {engine.degree}"
        )
    pattern = weights.pattern
    if weights.grouped and engine.block % pattern.m == 0 and engine.block // pattern.m * pattern.n <= lanes_of(case):
        groups = engine.block // pattern.m
        whole, rest = divmod(case.k % engine.block, pattern.m)
        kept_rest = whole * pattern.n + min(pattern.n, rest)
        encoding = encoding_of(case, weights)
        return structured_closed(case, groups * pattern.n, engine.block, kept_rest, encoding)
    return _on_folds(case, fold_mask(case, engine.block), encoding_of(case, weights), engine.block)


SLACK = 0.99
"""A mask may be this much sparser than the degree: one that was drawn has its density only on average."""


def fold_mask(case: Case, block: int) -> Folds:
    """Folds of the weights' mask, counted by the kernel in blocks of `block` positions."""
    from sim.kernels.sparse_counts import block_counts, folds

    counts = block_counts(case.weights.mask, block)
    sizes = np.minimum(block, case.k - block * np.arange(len(counts), dtype=np.int64))
    found: Folds = folds(counts, sizes, lanes_of(case), case.machine.array.columns)
    return found


def gather(case: Case) -> EngineWork:
    """Positions that a whole panel of weights or a whole chunk of tokens leaves out are never loaded nor streamed."""
    engine = case.machine.sparse
    assert isinstance(engine, Gather)
    predicted = _predictor_cycles(case)
    if not case.skip or (case.weights.is_dense and case.activations.is_dense):
        return _dense(case)
    from sim.kernels.sparse_counts import active_columns, active_rows, shared_positions

    array, lanes = all_arrays(case.machine), lanes_of(case)
    chunk = case.m if case.activations.is_dense else min(case.m, engine.chunk)
    by_panel = active_columns(case.weights.mask, array.columns, engine.block)
    by_chunk = active_rows(case.activations.mask, chunk, engine.block)
    shared = shared_positions(by_chunk, by_panel) * engine.block
    shared = np.minimum(shared, case.k)
    folds = -(-shared // lanes)
    tokens = np.minimum(chunk, case.m - chunk * np.arange(len(shared)))
    widths = np.minimum(array.columns, case.n - array.columns * np.arange(shared.shape[1]))
    single = array.model_copy(update={"count": 1})
    one = array_tile(single, 1, tokens.astype(np.int64), array.columns, lanes, Fraction(lanes, array.rows))
    loads = (folds * np.asarray(one.occupancy)[:, None]).ravel()
    busiest, mean = _spread(loads, array.count)
    last = array_tile(single, 1, chunk, array.columns, lanes, Fraction(lanes, array.rows))
    cycles = int(busiest + last.tail + last.cold) + predicted
    macs = int((shared * tokens[:, None] * widths[None, :]).sum())
    useful = macs / max(1, case.effective_macs)
    values = (
        int((shared * widths[None, :]).sum()) * case.weights.bits
        + int((shared * tokens[:, None]).sum()) * case.activations.bits
    )
    positions = -(-case.k // engine.block)
    metadata = (len(by_panel) if not case.weights.is_dense else 0) * positions
    metadata += (len(by_chunk) if not case.activations.is_dense else 0) * positions
    # Finding the positions of a chunk is a comparison of every activation.
    found = 0 if case.activations.is_dense else int(vector_cycles(case.machine.vector, "relu", case.m, case.k))
    return EngineWork(
        cycles=cycles,
        slots=_slots(case, cycles),
        macs=macs,
        imbalance=useful * busiest / mean if mean else 1.0,
        value_bits=Fraction(values),
        metadata_bits=metadata,
        entries=-(-metadata // 64),
        vector_cycles=found // case.machine.cores,
        detail={
            "positions_kept": float(shared.mean() / case.k),
            "predictor_cycles": predicted,
            "folds": int(folds.sum()),
        },
        tail=int(last.tail),
        cold=int(last.cold),
    )


def _predictor_cycles(case: Case) -> int:
    """Cycles of the predictor's two products on the arrays, before the product itself; inputs are N wide."""
    engine = case.machine.sparse
    assert engine is not None
    if engine.predictor is None or case.activations.is_dense or not case.skip:
        return 0
    arrays, rank = all_arrays(case.machine), engine.predictor.rank
    down = array_tile(arrays, 1, case.m, rank, case.n, case.rate)
    up = array_tile(arrays, 1, case.m, case.k, rank, case.rate)
    return int(sum(down[:3]) + sum(up[:3]))


def _dense(case: Case) -> EngineWork:
    """All positions, on the same arrays and through the same scratchpad."""
    lanes, columns = lanes_of(case), case.machine.array.columns
    panels, count = -(-case.n // columns), -(-case.k // lanes)
    same = np.ones(panels, np.int64)
    return _on_folds(case, (same * count, same * case.k, same * case.k), Encoding("dense"), 1)


def _on_folds(case: Case, folds: Folds, weights: Encoding, block: int) -> EngineWork:
    """Work of the arrays for weights packed into `folds`; the weights' bits follow `weights`."""
    count, span, steps = folds
    machine, lanes = case.machine, lanes_of(case)
    columns = machine.array.columns
    widths = np.minimum(columns, case.n - columns * np.arange(len(count), dtype=np.int64))
    if machine.array.dataflow.value == "os":
        (cycles, tail, cold), spread = _output_stationary(case, steps)
    elif machine.array.dataflow.value == "ws":
        (cycles, tail, cold), spread = _weight_stationary(case, count, lanes)
    else:
        raise ConfigError(
            f"arrays with dataflow is cannot skip weights; allowed on {machine.name}: os, ws", key="array.dataflow"
        )
    engine = machine.sparse
    select = engine.select_per_cycle if isinstance(engine, Structured) and case.skip else None
    if select is not None and block > 1:
        selected = -(-int(span.sum()) * case.m // (select * machine.array.count * machine.cores))
        if selected > cycles:
            cycles, tail, cold = selected, 0, 0
    kept = case.weights.stored(weights)
    held = case.weights.nonzeros if case.skip else case.k * case.n
    values, metadata, entries = _traffic(case, span, kept)
    work = int((steps * widths).sum())
    return EngineWork(
        cycles=cycles,
        slots=_slots(case, cycles),
        macs=held * case.m,
        imbalance=max(1.0, work / max(1, held)) * spread,
        value_bits=values,
        metadata_bits=metadata,
        entries=entries,
        detail={"folds": int(count.sum()), "lanes": lanes},
        tail=tail,
        cold=cold,
    )


def _weight_stationary(case: Case, count: NDArray[np.int64], lanes: int) -> tuple[Cycles, float]:
    """(cycles, how much longer the busiest array works than the mean) of panels with `count` folds each."""
    array = all_arrays(case.machine)
    rate = Fraction(lanes, array.rows)
    if len(count) and int(count.min()) == int(count.max()):
        return _cycles(array_tile(array, 1, case.m, case.n, int(count[0]) * lanes, rate)[:3]), 1.0
    single = array.model_copy(update={"count": 1})
    best: tuple[Cycles, float] | None = None
    for split in range(1, array.count + 1):
        groups = array.count // split
        if split > 1 and array.count // (split - 1) == groups:
            continue
        stream = -(-case.m // split)
        one = array_tile(single, 1, stream, array.columns, lanes, rate)
        busiest, mean = _spread(count, groups)
        cycles = _cycles((busiest * one.occupancy, one.tail, one.cold))
        if best is None or cycles[0] < best[0][0]:
            best = cycles, busiest / mean if mean else 1.0
    assert best is not None
    return best


def _output_stationary(case: Case, steps: NDArray[np.int64]) -> tuple[Cycles, float]:
    """As `_weight_stationary` where outputs stay: a panel's tiles last as long as its fullest column has weights."""
    array = all_arrays(case.machine)
    if len(steps) and int(steps.min()) == int(steps.max()):
        return _cycles(array_tile(array, 1, case.m, case.n, max(1, int(steps[0])), case.rate)[:3]), 1.0
    single = array.model_copy(update={"count": 1})
    each = array_tile(single, 1, min(case.m, array.rows), array.columns, np.maximum(1, steps), case.rate)
    tiles = -(-case.m // array.rows)
    loads = np.tile(np.asarray(each.occupancy, np.int64), tiles)
    busiest, mean = _spread(loads, array.count)
    return _cycles((busiest, np.max(each.tail), np.max(each.cold))), busiest / mean if mean else 1.0


def _cycles(parts: Sequence[Any]) -> Cycles:
    """(all cycles, tail, cold) from occupancy, tail and cold."""
    return int(sum(parts)), int(parts[1]), int(parts[2])


def _spread(loads: NDArray[np.int64], workers: int) -> tuple[int, float]:
    """(load of the busiest, mean load) of `workers` that share the tasks `loads` from one queue."""
    from sim.kernels.sparse_counts import GREEDY, assign

    shared = assign(np.ascontiguousarray(loads, np.int64), workers, GREEDY)
    return int(shared.max()), float(shared.mean())


def _traffic(case: Case, span: NDArray[np.int64], kept: Stored) -> tuple[Fraction, int, int]:
    """(value bits, metadata bits, metadata entries) between scratchpad and arrays.

    Weight-stationary: a tile of weights is read again for every `stream_tile` rows of stream, and each panel streams
    the positions that its folds cover. Output-stationary: weights once for every tile of rows.
    """
    array, engine = case.machine.array, case.machine.sparse
    moved = case.activations.stored(encoding_of(case, case.activations))
    elements = case.m * case.k
    streamed = int(span.sum()) * case.m
    if array.dataflow.value == "os":
        loads = -(-case.m // array.rows)
    else:
        tile = engine.stream_tile if isinstance(engine, _OnArray) else None
        if tile is None:
            tile = array.rows if array.reload == "chunk" and array.preload.value == "double_buffered" else case.m
        loads = -(-case.m // tile)
    values = kept.value_bits * loads + moved.value_bits * Fraction(streamed, elements)
    metadata = kept.metadata_bits * loads + -(-moved.metadata_bits * streamed // elements)
    return values, metadata, kept.entries * loads + -(-moved.entries * streamed // elements)


def _slots(case: Case, cycles: int) -> int:
    array = case.machine.array
    return int(cycles * array.rows * array.columns * array.count * case.machine.cores * case.rate)


def _wide(engine: _OnArray) -> bool:
    return engine.index_bits == "power_of_two"
