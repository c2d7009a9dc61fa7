"""Cycles of softmax, norms, activations and other non-GEMM work on vector units, from (function, rows, columns).

A function is a fixed recipe of primitive operations an element, a row and a cross-lane reduction (table FUNCTIONS); a
VectorSpec says how many lanes there are and what each primitive costs. docs/systolic.md gives the reasons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, cast

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = int | npt.NDArray[np.int64]

SIMPLE = ("add", "mul", "max", "select", "convert")
SPECIAL = ("exp", "tanh", "reciprocal", "rsqrt", "shuffle")
PRIMITIVES = SIMPLE + SPECIAL
"""add also subtracts; max also takes the minimum and compares; select masks and copies; shuffle moves across lanes."""
MOVEMENT = ("select", "shuffle")


@dataclass(frozen=True, slots=True)
class VectorSpec:
    """`count` equal vector units.

    lanes: elements one instruction of one unit works on.
    cycles: cycles that one instruction of each primitive keeps the unit busy (its issue interval, not its latency).
    rows_per_vector: rows of a row-wise function that share one vector (TPU: 8 sublanes of 128 lanes); divides `lanes`.
    simple_slots: instructions of SIMPLE that are issued in one cycle.
    special_parallel: instructions of SPECIAL run beside the simple ones instead of in turn.
    reduce_cycles: what one reduction across the lanes of a row adds; None: log2(lanes of a row) steps of one shuffle
        and one add.
    """

    lanes: int
    cycles: Mapping[str, int]
    count: int = 1
    rows_per_vector: int = 1
    simple_slots: int = 1
    special_parallel: bool = False
    reduce_cycles: int | None = None

    def __post_init__(self) -> None:
        for name in ("lanes", "count", "rows_per_vector", "simple_slots"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be an integer >= 1, not {getattr(self, name)!r}")
        if self.lanes % self.rows_per_vector:
            raise ValueError(f"rows_per_vector must divide lanes ({self.lanes}), not {self.rows_per_vector}")
        missing = [name for name in PRIMITIVES if name not in self.cycles]
        unknown = [name for name in self.cycles if name not in PRIMITIVES]
        if missing or unknown:
            fault = f"lacks {', '.join(missing)}" if missing else f"has unknown {', '.join(unknown)}"
            raise ValueError(f"cycles {fault}; it must name each of {', '.join(PRIMITIVES)}")
        for name, value in self.cycles.items():
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"cycles.{name} must be an integer >= 1, not {value!r}")
        if self.reduce_cycles is not None and self.reduce_cycles < 0:
            raise ValueError(f"reduce_cycles must be >= 0, not {self.reduce_cycles!r}")

    @property
    def row_lanes(self) -> int:
        """Lanes that work on one row."""
        return self.lanes // self.rows_per_vector

    @property
    def lane_reduction_cycles(self) -> int:
        """Cycles that one cross-lane reduction adds for each group of rows."""
        if self.reduce_cycles is not None:
            return self.reduce_cycles
        steps = (self.row_lanes - 1).bit_length()
        return steps * (self.cycles["shuffle"] + self.cycles["add"])


@dataclass(frozen=True, slots=True)
class FunctionWork:
    """Primitives that one output element and one row need, and the cross-lane reductions of one row.

    `per_kept`: the element work and the reductions are needed once for each value kept (top-k).
    """

    element: Mapping[str, int]
    row: Mapping[str, int] = field(default_factory=dict)
    reductions: int = 0
    per_kept: bool = False


FUNCTIONS: Mapping[str, FunctionWork] = {
    "add": FunctionWork({"add": 1}),
    "sub": FunctionWork({"add": 1}),
    "bias": FunctionWork({"add": 1}),
    "mul": FunctionWork({"mul": 1}),
    "scale": FunctionWork({"mul": 1}),
    "relu": FunctionWork({"max": 1}),
    "copy": FunctionWork({"select": 1}),
    "cast": FunctionWork({"convert": 1}),
    # times 1 / scale, clamp below, rounding conversion that saturates above
    "quantize": FunctionWork({"mul": 1, "max": 1, "convert": 1}),
    "dequantize": FunctionWork({"mul": 1}),
    "exp": FunctionWork({"exp": 1}),
    "tanh": FunctionWork({"tanh": 1}),
    # 1 / (1 + exp(-x)); the sign is part of the exponential's constant
    "sigmoid": FunctionWork({"exp": 1, "add": 1, "reciprocal": 1}),
    "silu": FunctionWork({"mul": 1, "exp": 1, "add": 1, "reciprocal": 1}),
    "swiglu": FunctionWork({"mul": 2, "exp": 1, "add": 1, "reciprocal": 1}),
    # both halves clamped; gate * sigmoid(a gate) * (up + 1)
    "swiglu_clamped": FunctionWork({"max": 2, "mul": 3, "exp": 1, "add": 2, "reciprocal": 1}),
    # 0.5 x (1 + tanh(x (a + b x^2)))
    "gelu": FunctionWork({"mul": 5, "add": 2, "tanh": 1}),
    "geglu": FunctionWork({"mul": 6, "add": 2, "tanh": 1}),
    # cap * tanh(x / cap)
    "softcap": FunctionWork({"mul": 2, "tanh": 1}),
    # x cos + partner(x) sin
    "rotary": FunctionWork({"mul": 2, "add": 1, "shuffle": 1}),
    # x * (1 + scale) + shift, 1 + scale made once for all rows
    "modulate": FunctionWork({"mul": 1, "add": 1}),
    "gate_add": FunctionWork({"mul": 1, "add": 1}),
    # running max; x - max; exp; running sum; times 1 / sum
    "softmax": FunctionWork({"max": 1, "add": 2, "exp": 1, "mul": 1}, {"reciprocal": 1}, 2),
    # x^2; running sum; times 1 / rms; times gain. Row: mean, plus epsilon, rsqrt
    "rmsnorm": FunctionWork({"mul": 3, "add": 1}, {"mul": 1, "add": 1, "rsqrt": 1}, 1),
    # running sum; x - mean; square; running sum; times 1 / deviation; times gain; plus offset
    # Row: two means, plus epsilon, rsqrt
    "layernorm": FunctionWork({"add": 4, "mul": 3}, {"mul": 2, "add": 1, "rsqrt": 1}, 2),
    "sum": FunctionWork({"add": 1}, {}, 1),
    "mean": FunctionWork({"add": 1}, {"mul": 1}, 1),
    "max": FunctionWork({"max": 1}, {}, 1),
    # value and index, each reduced
    "argmax": FunctionWork({"max": 1, "select": 1}, {}, 2),
    # `keep` rounds of argmax, each masking the winner of the one before
    "topk": FunctionWork({"max": 1, "select": 2}, {}, 2, per_kept=True),
}


class VectorOptions(Protocol):
    """What a hardware description must say of its vector units; further fields of VectorSpec are taken from it where
    it has them."""

    @property
    def lanes(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def cycles(self) -> Mapping[str, int]: ...


_OPTIONAL = ("rows_per_vector", "simple_slots", "special_parallel", "reduce_cycles")


def vector_spec(units: VectorOptions) -> VectorSpec:
    """The VectorSpec that a hardware description's vector units amount to."""
    if isinstance(units, VectorSpec):
        return units
    stated = {name: getattr(units, name) for name in _OPTIONAL if getattr(units, name, None) is not None}
    return VectorSpec(units.lanes, units.cycles, units.count, **stated)


def _ceil_div(a: Ints, b: int) -> Ints:
    return -(-a // b)


def _function(name: str) -> FunctionWork:
    if name not in FUNCTIONS:
        raise ValueError(f"function must be one of {', '.join(sorted(FUNCTIONS))}, not {name!r}")
    return FUNCTIONS[name]


def _busy(spec: VectorSpec, kinds: tuple[str, ...], counts: Mapping[str, int]) -> int:
    return sum(count * spec.cycles[name] for name, count in counts.items() if name in kinds)


def vector_cycles(units: VectorOptions, function: str, rows: Ints, columns: Ints, keep: int = 1) -> Ints:
    """Cycles of `function` over rows x columns elements on all units, operands in the scratchpad; 0 for empty sizes.

    Element-wise functions fill vectors across row ends. Row-wise ones give a unit groups of `rows_per_vector` rows;
    each group costs its element work, its row work and its cross-lane reductions, one after another. `keep`: values
    that a topk keeps of a row. Raises ValueError for an unknown function, or units that don't price every primitive.
    """
    spec = vector_spec(units)
    work = _function(function)
    if not work.reductions:
        vectors = _ceil_div(_ceil_div(rows * columns, spec.lanes), spec.count)
        return _issue(spec, vectors, work.element, 0, {})
    repeat = keep if work.per_kept else 1
    groups = _ceil_div(_ceil_div(rows, spec.rows_per_vector), spec.count)
    vectors = _ceil_div(columns, spec.row_lanes) * repeat
    group = _issue(spec, vectors, work.element, 1, work.row) + work.reductions * repeat * spec.lane_reduction_cycles
    return cast(Ints, groups * group * (columns > 0))


def _issue(spec: VectorSpec, vectors: Ints, element: Mapping[str, int], groups: int, row: Mapping[str, int]) -> Ints:
    """Cycles to issue the element work of `vectors` vectors and the row work of `groups` groups on one unit."""
    simple = _ceil_div(vectors * _busy(spec, SIMPLE, element) + groups * _busy(spec, SIMPLE, row), spec.simple_slots)
    special = vectors * _busy(spec, SPECIAL, element) + groups * _busy(spec, SPECIAL, row)
    if not spec.special_parallel:
        return simple + special
    return max(simple, special) if isinstance(vectors, int) else cast(Ints, np.maximum(simple, special))


def primitive_counts(function: str, rows: Ints, columns: Ints, keep: int = 1) -> dict[str, Ints]:
    """Scalar operations of each primitive that the function needs, row work included, whatever the hardware."""
    work = _function(function)
    repeat = keep if work.per_kept else 1
    return {
        name: rows * columns * (work.element.get(name, 0) * repeat) + rows * work.row.get(name, 0)
        for name in PRIMITIVES
        if name in work.element or name in work.row
    }


def vector_ops(function: str, rows: Ints, columns: Ints, keep: int = 1) -> Ints:
    """Scalar vector operations of the function for reports: arithmetic on elements.

    Data movement (select, shuffle) and the few scalars of a row are not counted, so that it equals the count of a
    Trace.
    """
    work = _function(function)
    each = sum(count for name, count in work.element.items() if name not in MOVEMENT)
    return rows * columns * (each * (keep if work.per_kept else 1))
