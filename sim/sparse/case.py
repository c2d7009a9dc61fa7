"""One sparse matmul as the engines see it: sizes, both operands with their masks and formats, and the answer's shape.

Masks are drawn or read only when an engine asks for them, so closed forms stay cheap at any size.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.errors import ConfigError
from sim.sparse.pattern import DENSE, Mask, Pattern, draw
from sim.sparse.storage import Encoding, Stored, expected_run_entries, measure, stored
from workloads.formats import FORMATS, format_bits

if TYPE_CHECKING:
    from sim.hardware import Hardware


@dataclass(frozen=True)
class Side:
    """One operand. `shape`: (M, K) of activations or (K, N) of weights; `along`: the axis of K; `given`: a mask that
    the caller has already."""

    pattern: Pattern
    shape: tuple[int, int]
    along: int
    number_format: str
    seed: int = 0
    given: Mask | None = None

    @cached_property
    def mask(self) -> Mask:
        """Which values are kept. Raises ConfigError for a file that does not fit."""
        return draw(self.pattern, self.shape, self.along, self.seed) if self.given is None else self.given

    @cached_property
    def by_line(self) -> Mask:
        """The mask with K along axis 1: rows of activations, or columns of weights."""
        if self.along == 1:
            return self.mask
        from sim.kernels.sparse_counts import transposed

        turned: Mask = transposed(self.mask)
        return turned

    @property
    def is_dense(self) -> bool:
        """Whether nothing is zero by the pattern alone."""
        return self.given is None and self.pattern.kind == "dense"

    @property
    def grouped(self) -> bool:
        """Whether the pattern keeps the same number in every group, so that counts need no mask."""
        return self.given is None and self.pattern.kind in ("dense", "n:m", "balanced")

    @cached_property
    def nonzeros(self) -> int:
        """Values kept."""
        rows, columns = self.shape
        if self.is_dense:
            return rows * columns
        if not self.grouped:
            return int(np.count_nonzero(self.mask))
        length, lines = self.shape[self.along], self.shape[1 - self.along]
        groups, rest = divmod(length, self.pattern.m)
        return lines * (groups * self.pattern.n + min(self.pattern.n, rest))

    @cached_property
    def _axis_counts(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        from sim.kernels.sparse_counts import line_counts

        counts: tuple[NDArray[np.int64], NDArray[np.int64]] = line_counts(self.mask)
        return counts

    @cached_property
    def along_counts(self) -> NDArray[np.int64]:
        """Values kept at each position of K."""
        if self.is_dense:
            return np.full(self.shape[self.along], self.shape[1 - self.along], np.int64)
        return self._axis_counts[self.along]

    @cached_property
    def line_counts(self) -> NDArray[np.int64]:
        """Values kept in each row of activations or column of weights."""
        if self.is_dense:
            return np.full(self.shape[1 - self.along], self.shape[self.along], np.int64)
        return self._axis_counts[1 - self.along]

    @property
    def bits(self) -> Fraction:
        """Bits of a stored value, its share of a block's scale included."""
        return format_bits(self.number_format)

    def stored(self, encoding: Encoding) -> Stored:
        """Bits of this operand in `encoding`; N:M groups and runs lie along K. A dense operand is stored dense."""
        if self.is_dense or encoding.name == "dense":
            return stored(Encoding("dense"), self.shape, 0, self.bits)
        if encoding.name == "n:m":
            return stored(encoding, self.shape if self.along == 0 else self.shape[::-1], self.nonzeros, self.bits)
        if encoding.name != "run_length":
            return stored(encoding, self.shape, self.nonzeros, self.bits)
        size = self.shape[0] * self.shape[1]
        if self.given is None and self.pattern.kind in ("random", "relu") and size > LARGE:
            entries = expected_run_entries(self.shape, self.nonzeros / size, encoding.run_bits)
            return stored(encoding, self.shape, self.nonzeros, self.bits, entries)
        return measure(encoding, self.by_line, self.bits)


MOST_PRODUCTS = 2**60
"""So that no sum of products leaves 64 bits."""
LARGE = 2**26
"""Elements from which a run-length code of independent zeros is sized by its mean instead of by counting."""


@dataclass(frozen=True)
class Case:
    """activations (M x K) times weights (K x N) on a machine; `skip`: whether zeros may be skipped."""

    machine: Hardware
    m: int
    n: int
    k: int
    activations: Side
    weights: Side
    skip: bool

    @cached_property
    def rate(self) -> Fraction:
        """Multiply-accumulates of a PE in a cycle. Raises ConfigError for formats that have no units."""
        return mac_rate(self.machine, self.activations.number_format, self.weights.number_format)

    @property
    def sides(self) -> tuple[Side, Side]:
        """Activations and weights."""
        return self.activations, self.weights

    @cached_property
    def effective_macs(self) -> int:
        """Products of two kept values."""
        a, w = self.sides
        if a.is_dense:
            return self.m * w.nonzeros
        if w.is_dense:
            return self.n * a.nonzeros
        return int(a.along_counts @ w.along_counts)

    def dense(self) -> Case:
        """The same sizes and formats without zeros."""
        a = Side(DENSE, self.activations.shape, 1, self.activations.number_format)
        w = Side(DENSE, self.weights.shape, 0, self.weights.number_format)
        return Case(self.machine, self.m, self.n, self.k, a, w, False)


@dataclass(frozen=True)
class EngineWork:
    """What an engine does for a case.

    cycles: of the engine, operands present. slots: multiplications it could have done in them. macs: those it did,
    zeros that it could not skip included. imbalance: how much longer the fullest part works than the mean one.
    value_bits, metadata_bits: read from the scratchpad. entries: metadata entries decoded on the way. vector_cycles:
    work of the vector units beside it. detail: counts of its own for reports. tail, cold: of the cycles, those in which
    the next tile may start already, and those that it takes only on idle arrays.
    """

    cycles: int
    slots: int
    macs: int
    imbalance: float
    value_bits: Fraction
    metadata_bits: int
    entries: int
    vector_cycles: int = 0
    detail: dict[str, int | float] = field(default_factory=dict)
    tail: int = 0
    cold: int = 0


def case(
    machine: Hardware,
    m: int,
    n: int,
    k: int,
    weights: Pattern | Mask = DENSE,
    activations: Pattern | Mask = DENSE,
    weight_format: str | None = None,
    activation_format: str | None = None,
    seed: int = 0,
    check: bool = True,
) -> Case:
    """A case from patterns or masks; formats default to the first of the machine's arrays.

    `check=False` leaves open whether the arrays multiply these formats, for storage alone. Raises ConfigError for
    sizes, masks or formats that don't fit.
    """
    if min(m, n, k) < 1:
        raise ConfigError(f"M, N and K must be at least 1, not {m}, {n}, {k}")
    if m * n * k > MOST_PRODUCTS:
        raise ConfigError(f"{m} x {n} x {k} are more products than can be counted; at most {MOST_PRODUCTS}")
    activation_format = activation_format or next(iter(machine.array.formats)).partition("*")[0]
    weight_format = weight_format or activation_format
    a = _side(activations, (m, k), 1, activation_format, seed + 1)
    w = _side(weights, (k, n), 0, weight_format, seed)
    skip = machine.sparse is not None and machine.sparse.skip
    made = Case(machine, m, n, k, a, w, skip)
    if check:
        _ = made.rate
    return made


def _side(what: Pattern | Mask, shape: tuple[int, int], along: int, number_format: str, seed: int) -> Side:
    if isinstance(what, Pattern):
        return Side(what, shape, along, number_format, seed)
    if what.shape != shape:
        sizes = " x ".join(map(str, what.shape))
        raise ConfigError(f"the mask has shape {sizes}, but must be {shape[0]} x {shape[1]}")
    given = what if what.dtype == np.bool_ else what != 0
    return Side(Pattern("file", path="mask"), shape, along, number_format, seed, np.ascontiguousarray(given))


def mac_rate(machine: Hardware, activation_format: str, weight_format: str) -> Fraction:
    """Multiply-accumulates of a PE in a cycle for a pair of formats.

    `int8*int2` in the machine's formats is a rate of its own. Without one the narrower operand is widened on its way
    and the pair works at the rate of the wider format. Raises ConfigError where the machine has units for neither.
    """
    formats = machine.array.formats
    for name in (activation_format, weight_format):
        if name not in FORMATS:
            from workloads.formats import unknown_format

            raise ConfigError(unknown_format(name), key="array.formats")
    pair = f"{activation_format}*{weight_format}"
    if pair in formats:
        return formats[pair]
    wide = max((activation_format, weight_format), key=format_bits)
    if wide in formats and _widens(min((activation_format, weight_format), key=format_bits), wide):
        return formats[wide]
    raise ConfigError(
        f"{activation_format} activations times {weight_format} weights are asked for, but the arrays of "
        f"{machine.name} have units for {', '.join(formats)} only",
        key="array.formats",
    )


def _widens(narrow: str, wide: str) -> bool:
    """Whether every value of `narrow`, scales apart, is a value of `wide`."""
    if narrow == wide:
        return True
    a, b = FORMATS[narrow], FORMATS[wide]
    if b.exponent == 0:
        return a.exponent == 0 and a.element_bits <= b.element_bits
    return a.exponent <= b.exponent and (a.mantissa or int(a.element_bits) - 1) <= b.mantissa + 1
