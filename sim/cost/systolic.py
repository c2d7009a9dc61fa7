"""Cycles and access counts of (M x K) times (K x N) on systolic arrays, from sizes to exact integers.

Two preload models: `fold_serial` (SCALE-Sim's: nothing of one fold overlaps the next) and `double_buffered` (the
stationary operand or the finished outputs have a second register per PE, as built accelerators do). docs/systolic.md
derives every formula.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, cast, get_args

import numpy as np
import numpy.typing as npt

Dataflow = Literal["ws", "os", "is"]
Preload = Literal["fold_serial", "double_buffered"]
Reload = Literal["chunk", "tile"]
DATAFLOWS: tuple[Dataflow, ...] = get_args(Dataflow)
PRELOADS: tuple[Preload, ...] = get_args(Preload)
RELOADS: tuple[Reload, ...] = get_args(Reload)

Ints: TypeAlias = int | npt.NDArray[np.int64]
"""A size or a count: one Python int, or an int64 array for many shapes at once."""


class TileCost(NamedTuple):
    """Cycles of one GEMM tile, split as a task executor needs them.

    `occupancy`: from its first issue until the array can take the next task. `tail`: further cycles until the last
    result can be read. `cold`: further cycles in front when nothing ran before, so that no load was hidden. Alone:
    the sum of the three.
    """

    occupancy: Ints
    tail: Ints
    cold: Ints


class Grid(NamedTuple):
    """How many arrays divide the column panels, the other output dimension, and the reduction of one operator."""

    columns: Ints
    outputs: Ints
    reduction: Ints


class SramAccesses(NamedTuple):
    """Elements between arrays and scratchpad: `ifmap` is the M x K operand, `filter` K x N, `ofmap` M x N.

    `accumulator_reads` are the partial sums fetched again when more than one fold adds to an output; SCALE-Sim has no
    such count.
    """

    ifmap_reads: Ints
    filter_reads: Ints
    ofmap_writes: Ints
    accumulator_reads: Ints


class Share(NamedTuple):
    """Half-open ranges of M, N and K that one array computes."""

    m: range
    n: range
    k: range


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """`count` equal systolic arrays of `rows` x `columns` PEs that work on one operator together.

    macs_per_pe: multiplications of one PE in a cycle for the number format in use, side by side along K (so K shrinks
        to ceil(K / macs_per_pe)); an int or a Fraction.
    drain: fold-serial OS only: charge `rows` cycles to shift finished outputs out. SCALE-Sim doesn't. Double-buffered
        OS always drains.
    reload: double-buffered WS and IS: `chunk` loads the stationary tile again for every `rows` rows of stream
        (ONNXim's GEMM kernel); `tile` keeps it while the whole stream passes (TPU).
    issue_floor: fewest cycles between two chunks (ONNXim: 4).
    cold_load: cycles to fill an empty array with its first stationary tile; None: 2 * rows - 1 (ONNXim). `rows` is
        the least possible.
    merge_row_cycles: cycles to add one array-wide row of partial sums of another array; None: K is never split over
        arrays; 0: the arrays add into one shared accumulator.
    """

    rows: int
    columns: int
    dataflow: Dataflow = "ws"
    preload: Preload = "fold_serial"
    count: int = 1
    macs_per_pe: int | Fraction = 1
    drain: bool = False
    reload: Reload = "chunk"
    issue_floor: int = 4
    cold_load: int | None = None
    merge_row_cycles: int | None = None

    def __post_init__(self) -> None:
        least_of = {"rows": 1, "columns": 1, "count": 1, "issue_floor": 1, "cold_load": 0, "merge_row_cycles": 0}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be an integer >= {least}, not {value!r}")
        choices: tuple[tuple[str, tuple[str, ...]], ...] = (
            ("dataflow", DATAFLOWS),
            ("preload", PRELOADS),
            ("reload", RELOADS),
        )
        for name, allowed in choices:
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if not isinstance(self.macs_per_pe, int | Fraction) or self.macs_per_pe <= 0:
            raise ValueError(f"macs_per_pe must be a positive integer or Fraction, not {self.macs_per_pe!r}")
        if self.merge_row_cycles is not None and Fraction(self.macs_per_pe).denominator != 1:
            # A share of K would begin inside an element.
            raise ValueError(f"macs_per_pe must be a whole number where K is split over arrays, not {self.macs_per_pe}")


class _Mapping(NamedTuple):
    """A GEMM laid on the array: extents over PE rows, over PE columns, in time, and column panels of the whole
    batch."""

    row: Ints
    col: Ints
    stream: Ints
    panels: Ints


def _ceil_div(a: Ints, b: Ints) -> Ints:
    return -(-a // b)


def _larger(a: Ints, b: Ints) -> Ints:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b)
    return cast(Ints, np.maximum(a, b))


def _smaller(a: Ints, b: Ints) -> Ints:
    if isinstance(a, int) and isinstance(b, int):
        return min(a, b)
    return cast(Ints, np.minimum(a, b))


def _where(condition: Any, a: Ints, b: Ints) -> Ints:
    if isinstance(condition, bool):
        return a if condition else b
    return cast(Ints, np.where(condition, a, b))


def _mapping(spec: ArraySpec, m: Ints, n: Ints, k: Ints, batch: Ints) -> _Mapping:
    steps = _ceil_div(k * spec.macs_per_pe.denominator, spec.macs_per_pe.numerator)
    row, col, stream = {"ws": (steps, n, m), "is": (steps, m, n), "os": (m, n, steps)}[spec.dataflow]
    return _Mapping(row, col, stream, batch * _ceil_div(col, spec.columns))


def fold_count(spec: ArraySpec, m: Ints, n: Ints, k: Ints, batch: Ints = 1) -> Ints:
    """Array-sized blocks that the mapped dimensions are cut into (all arrays together)."""
    mapping = _mapping(spec, m, n, k, batch)
    return _ceil_div(mapping.row, spec.rows) * mapping.panels


def fold_cycles(spec: ArraySpec, stream: Ints) -> Ints:
    """Cycles of one fold on its own, `stream` steps long, padded to the full array.

    WS, IS: 2R + C + T - 2; OS: R + C + T - 2, plus R with `drain` (SCALE-Sim v2 and v3; counts, one more than the
    last index).
    """
    shift = spec.rows if spec.dataflow != "os" or spec.drain else 0
    return spec.rows + spec.columns - 2 + stream + shift


def _single_array(spec: ArraySpec, folds: Ints, stream: Ints) -> TileCost:
    """`folds` folds of `stream` steps each, back to back on one array."""
    if spec.preload == "fold_serial":
        return TileCost(folds * fold_cycles(spec, stream), 0, 0)
    skew = spec.rows + spec.columns - 2
    least = max(spec.rows, spec.issue_floor)
    if spec.dataflow == "os":
        step = _larger(stream, least)
        return TileCost(folds * step, skew + spec.rows + _larger(stream, spec.issue_floor) - step, 0)
    cold = 2 * spec.rows - 1 if spec.cold_load is None else spec.cold_load
    if spec.reload == "tile":
        step = _larger(stream, least)
        return TileCost(folds * step, skew + _larger(stream, spec.issue_floor) - step, cold)
    chunks = _ceil_div(stream, spec.rows)
    last = stream - (chunks - 1) * spec.rows
    return TileCost(folds * chunks * least, skew + _larger(last, spec.issue_floor) - least, cold)


def _on_grid(spec: ArraySpec, mapping: _Mapping, grid: Grid) -> TileCost:
    """Cost of the array with the largest share when the arrays are arranged as `grid`; its finish is the makespan."""
    panels = _ceil_div(mapping.panels, grid.columns)
    row_folds = _ceil_div(mapping.row, spec.rows)
    if spec.dataflow == "os":
        row_folds = _ceil_div(row_folds, grid.outputs)
        stream = _ceil_div(mapping.stream, grid.reduction)
        output_rows = panels * _smaller(mapping.row, row_folds * spec.rows)
    else:
        row_folds = _ceil_div(row_folds, grid.reduction)
        stream = _ceil_div(mapping.stream, grid.outputs)
        output_rows = panels * stream
    cost = _single_array(spec, panels * row_folds, stream)
    if spec.merge_row_cycles:
        # Each of the arrays that share an output owns an equal slice of it and adds the slices of all the others.
        merged = _ceil_div((grid.reduction - 1) * output_rows, grid.reduction)
        cost = cost._replace(tail=cost.tail + merged * spec.merge_row_cycles)
    return cost


def _grid_limits(spec: ArraySpec, mapping: _Mapping) -> Grid:
    """Most arrays that each dimension can keep busy."""
    row_folds = _ceil_div(mapping.row, spec.rows)
    if spec.dataflow == "os":
        return Grid(mapping.panels, row_folds, mapping.stream)
    return Grid(mapping.panels, mapping.stream, row_folds)


@lru_cache(maxsize=64)
def _candidates(count: int, most_reduction: int) -> tuple[tuple[int, int, int], ...]:
    """Arrangements of `count` arrays; the first of equally fast ones is kept: least split of K, then most panels.

    For each split of K and of the panels only the finest split of the outputs is worth trying: it is the fastest.
    """
    found = []
    for reduction in range(1, most_reduction + 1):
        left = count // reduction
        columns = {left // outputs for outputs in range(1, left + 1)}
        found += [(column, left // column, reduction) for column in sorted(columns, reverse=True)]
    return tuple(found)


def _arrange(spec: ArraySpec, mapping: _Mapping) -> tuple[Grid, TileCost]:
    limits = _grid_limits(spec, mapping)
    best: tuple[Grid, TileCost] | None = None
    for candidate in _candidates(spec.count, 1 if spec.merge_row_cycles is None else spec.count):
        # Arrays beyond what a dimension can use stand idle; a limit of 0 (an empty operator) must not divide by 0.
        grid = Grid(*(_larger(_smaller(limit, wanted), 1) for limit, wanted in zip(limits, candidate, strict=True)))
        cost = _on_grid(spec, mapping, grid)
        if best is None:
            best = grid, cost
            continue
        better = sum(cost) < sum(best[1])
        best = (
            Grid(*(_where(better, new, old) for new, old in zip(grid, best[0], strict=True))),
            TileCost(*(_where(better, new, old) for new, old in zip(cost, best[1], strict=True))),
        )
    assert best is not None
    return best


def array_grid(spec: ArraySpec, m: Ints, n: Ints, k: Ints, batch: Ints = 1) -> Grid:
    """Arrangement of the arrays with the shortest makespan (arrays in use: the product of the three)."""
    return _arrange(spec, _mapping(spec, m, n, k, batch))[0]


def tile_cost(spec: ArraySpec, m: Ints, n: Ints, k: Ints, batch: Ints = 1) -> TileCost:
    """Cycles of `batch` products (m x k)(k x n) on all arrays, operands always present; zero where a size is zero."""
    return _not_empty(_arrange(spec, _mapping(spec, m, n, k, batch))[1], m, n, k, batch)


def _not_empty(cost: TileCost, *sizes: Ints) -> TileCost:
    something: Any = True
    for size in sizes:
        something = something & (size > 0)
    return TileCost(*(_where(something, part, 0) for part in cost))


def gemm_cycles(spec: ArraySpec, m: Ints, n: Ints, k: Ints, batch: Ints = 1) -> Ints:
    """Cycles of `batch` products (m x k)(k x n) from an idle array to the last result: a count, not the last cycle's
    index."""
    occupancy, tail, cold = tile_cost(spec, m, n, k, batch)
    return occupancy + tail + cold


def _stationary_loads(spec: ArraySpec, stream: Ints, groups: Ints) -> Ints:
    """Times the stationary operand enters the arrays when its stream is divided evenly over `groups` arrays."""
    if spec.preload == "fold_serial" or spec.reload == "tile":
        return groups
    short = stream // groups
    longer = stream % groups
    return cast(Ints, longer * _ceil_div(short + 1, spec.rows) + (groups - longer) * _ceil_div(short, spec.rows))


def sram_accesses(spec: ArraySpec, m: Ints, n: Ints, k: Ints, batch: Ints = 1) -> SramAccesses:
    """Elements read and written by all arrays together (SCALE-Sim's counts, without its OS output over-count of F *
    (R + C)).

    Padding is never counted. With one array, fold-serial: WS reads M*K*ceil(N/C) + K*N and writes M*N*ceil(K/R); IS
    reads M*K + K*N*ceil(M/C) and writes M*N*ceil(K/R); OS reads M*K*ceil(N/C) + K*N*ceil(M/R) and writes M*N.
    """
    mapping = _mapping(spec, m, n, k, batch)
    return _accesses(spec, mapping, _arrange(spec, mapping)[0], m, n, k, batch)


def _accesses(spec: ArraySpec, mapping: _Mapping, grid: Grid, m: Ints, n: Ints, k: Ints, batch: Ints) -> SramAccesses:
    row_folds = _ceil_div(mapping.row, spec.rows)
    outputs = batch * m * n
    if spec.dataflow == "os":
        reads = m * k * mapping.panels, batch * k * n * row_folds
        return SramAccesses(*reads, outputs * grid.reduction, outputs * (grid.reduction - 1))
    loads = _stationary_loads(spec, mapping.stream, grid.outputs)
    if spec.dataflow == "ws":
        reads = m * k * mapping.panels, batch * k * n * loads
    else:
        reads = batch * m * k * loads, k * n * mapping.panels
    return SramAccesses(*reads, outputs * row_folds, outputs * (_larger(row_folds, 1) - 1))


class ArrayOptions(Protocol):
    """What a hardware description must say of its arrays; further fields of ArraySpec are taken from it where it has
    them."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def dataflow(self) -> str: ...
    @property
    def preload(self) -> str: ...


class ArrayTile(NamedTuple):
    """Cycles of a tile (as TileCost) and its scratchpad traffic in elements; `left` is the (m x k) operand.

    `partial_sums`: elements written to and fetched again from the accumulators.
    """

    occupancy: Ints
    tail: Ints
    cold: Ints
    left_reads: Ints
    right_reads: Ints
    partial_sums: Ints


_OPTIONAL = ("drain", "reload", "issue_floor", "cold_load", "merge_row_cycles")


@lru_cache(maxsize=256)
def _spec(
    rows: int, columns: int, dataflow: str, preload: str, count: int, rate: int | Fraction, *options: Any
) -> ArraySpec:
    stated = {name: value for name, value in zip(_OPTIONAL, options, strict=True) if value is not None}
    return ArraySpec(rows, columns, cast(Dataflow, str(dataflow)), cast(Preload, str(preload)), count, rate, **stated)


def array_spec(arrays: ArrayOptions, macs_per_pe: int | Fraction = 1) -> ArraySpec:
    """The ArraySpec that a hardware description's arrays amount to at `macs_per_pe` multiplications per PE and
    cycle."""
    options = (getattr(arrays, name, None) for name in _OPTIONAL)
    return _spec(arrays.rows, arrays.columns, arrays.dataflow, arrays.preload, arrays.count, macs_per_pe, *options)


def array_tile(
    arrays: ArrayOptions, batch: Ints, m: Ints, n: Ints, k: Ints, macs_per_pe: int | Fraction = 1
) -> ArrayTile:
    """Cycles and traffic of `batch` products (m x k)(k x n) on all arrays, from one search of their arrangement."""
    spec = array_spec(arrays, macs_per_pe)
    mapping = _mapping(spec, m, n, k, batch)
    grid, cost = _arrange(spec, mapping)
    access = _accesses(spec, mapping, grid, m, n, k, batch)
    cycles = _not_empty(cost, m, n, k, batch)
    return ArrayTile(*cycles, access.ifmap_reads, access.filter_reads, access.ofmap_writes + access.accumulator_reads)


def shares(spec: ArraySpec, m: int, n: int, k: int) -> list[Share]:
    """What each busy array computes: disjoint blocks that tile M x N x K exactly, the largest of which sets the
    makespan."""
    grid = array_grid(spec, m, n, k)
    column_size, column_step = (n, spec.columns) if spec.dataflow != "is" else (m, spec.columns)
    columns = _blocks(column_size, Fraction(column_step), cast(int, grid.columns))
    other_size = m if spec.dataflow != "is" else n
    others = _blocks(other_size, Fraction(spec.rows if spec.dataflow == "os" else 1), cast(int, grid.outputs))
    reduction_step = (1 if spec.dataflow == "os" else spec.rows) * Fraction(spec.macs_per_pe)
    reductions = _blocks(k, reduction_step, cast(int, grid.reduction))
    result = []
    for column in columns:
        for other in others:
            for reduction in reductions:
                rows, cols = (column, other) if spec.dataflow == "is" else (other, column)
                result.append(Share(rows, cols, reduction))
    return result


def _blocks(size: int, step: Fraction, groups: int) -> list[range]:
    """Cut `size` elements, taken in whole steps of `step`, into `groups` ranges whose step counts differ by at most
    one."""
    steps = -(-size // step)
    bounds = [min(size, int(index * steps // groups * step)) for index in range(groups)] + [size]
    return [range(low, high) for low, high in pairwise(bounds)]


def unit_gemm(
    rows: int,
    cols: int,
    dataflow: Dataflow,
    m: int,
    n: int,
    k: int,
    preload: Preload = "fold_serial",
    arrays: int = 1,
    **options: Any,
) -> dict[str, Any]:
    """Report of one GEMM on `arrays` arrays of rows x cols, for the command `unit gemm` (operands always present).

    `options` are further fields of ArraySpec. `cycles` is a count; `occupancy_cycles` of it is the steady state,
    without fill and drain; `utilization` = macs / (cycles * PEs * macs_per_pe). Raises ValueError for sizes or fields
    out of range.
    """
    for name, size in (("M", m), ("N", n), ("K", k)):
        if not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be an integer >= 1, not {size!r}")
    spec = ArraySpec(rows, cols, dataflow, preload, arrays, **options)
    cost = tile_cost(spec, m, n, k)
    access = sram_accesses(spec, m, n, k)
    grid = array_grid(spec, m, n, k)
    mapping = _mapping(spec, m, n, k, 1)
    folds = cast(int, fold_count(spec, m, n, k))
    cycles = cast(int, sum(cost))
    pes = rows * cols
    return {
        "cycles": cycles,
        "macs": m * n * k,
        "utilization": float(Fraction(m * n * k, cycles * pes * arrays) / spec.macs_per_pe),
        "sram_reads": access.ifmap_reads + access.filter_reads,
        "sram_writes": access.ofmap_writes,
        "ifmap_reads": access.ifmap_reads,
        "filter_reads": access.filter_reads,
        "ofmap_writes": access.ofmap_writes,
        "accumulator_reads": access.accumulator_reads,
        "folds": folds,
        "fold_cycles": fold_cycles(spec, mapping.stream),
        "mapping_efficiency": float(Fraction(cast(int, mapping.row * mapping.col), folds * pes)),
        "occupancy_cycles": cost.occupancy,
        "tail_cycles": cost.tail,
        "cold_cycles": cost.cold,
        "rows": rows,
        "cols": cols,
        "dataflow": dataflow,
        "preload": preload,
        "arrays": arrays,
        "array_grid": {"columns": grid.columns, "outputs": grid.outputs, "reduction": grid.reduction},
    }
