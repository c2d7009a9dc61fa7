"""Sparse storage formats: exact bits of values and metadata, entries to decode, and what a conversion costs.

A matrix is stored by lines (rows for CSR, bitmap, run-length and coordinates, columns for CSC and the N:M groups of
weights). Values keep the bits of their number format; everything else is metadata.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from sim.errors import ConfigError, not_among
from sim.sparse.pattern import Mask

NAMES = ("dense", "bitmap", "csr", "csc", "coordinate", "run_length", "n:m")


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a format is parametrised. n, m: groups of `n:m`; run_bits: of a run; round_up: index widths 1, 2, 4, 8 ..."""

    name: str
    n: int = 0
    m: int = 0
    run_bits: int = 4
    round_up: bool = False


class Stored(NamedTuple):
    """Bits of values and of metadata, and metadata entries that a decoder goes through."""

    value_bits: Fraction
    metadata_bits: int
    entries: int

    @property
    def bits(self) -> Fraction:
        """All bits."""
        return self.value_bits + self.metadata_bits

    @property
    def metadata_bytes(self) -> int:
        """Metadata in whole bytes."""
        return -(-self.metadata_bits // 8)

    @property
    def bytes(self) -> int:
        """Everything in whole bytes."""
        return int(-(-self.bits // 8))


def index_bits(positions: int, round_up: bool = False) -> int:
    """Bits that tell `positions` apart, at least 1; rounded up to a power of two on request."""
    bits = max(1, (positions - 1).bit_length())
    return 1 << (bits - 1).bit_length() if round_up else bits


def stored(encoding: Encoding, shape: tuple[int, int], nonzeros: int, value_bits: Fraction, entries: int = 0) -> Stored:
    """Bits of a matrix of `shape` with `nonzeros`, from counts alone.

    Not for run-length, whose size depends on where the zeros are: `entries` gives its entries (see `measure`). An N:M
    matrix stores N slots a group, used or not. Raises ConfigError for an unknown format.
    """
    rows, columns = shape
    size = rows * columns
    name = encoding.name
    if name not in NAMES:
        raise ConfigError(not_among("storage format", name, NAMES))
    if name == "dense":
        return Stored(size * value_bits, 0, 0)
    if name == "bitmap":
        return Stored(nonzeros * value_bits, size, -(-size // 64))
    if name == "run_length":
        return Stored(entries * value_bits, entries * encoding.run_bits, entries)
    if name == "n:m":
        slots = -(-rows // encoding.m) * encoding.n * columns
        return Stored(slots * value_bits, slots * index_bits(encoding.m, encoding.round_up), slots)
    row_bits, column_bits = index_bits(rows, encoding.round_up), index_bits(columns, encoding.round_up)
    if name == "coordinate":
        return Stored(nonzeros * value_bits, nonzeros * (row_bits + column_bits), nonzeros)
    lines, within = (rows, column_bits) if name == "csr" else (columns, row_bits)
    pointers = (lines + 1) * index_bits(nonzeros + 1, encoding.round_up)
    return Stored(nonzeros * value_bits, pointers + nonzeros * within, nonzeros + lines)


def measure(encoding: Encoding, mask: Mask, value_bits: Fraction) -> Stored:
    """Bits of the matrix with that mask, counted; an N:M matrix has its groups along the rows' axis (axis 0)."""
    nonzeros = int(np.count_nonzero(mask))
    entries = 0
    if encoding.name == "run_length":
        from sim.kernels.sparse_counts import run_length_entries

        entries = int(run_length_entries(mask, (1 << encoding.run_bits) - 1))
    shape = (int(mask.shape[0]), int(mask.shape[1]))
    return stored(encoding, shape, nonzeros, value_bits, entries)


def expected_run_entries(shape: tuple[int, int], density: float, run_bits: int) -> int:
    """Mean entries of a run-length code of independent zeros: values, and one more for each 2^run_bits zeros in a row.

    A value has the chance (1 - density)^(j 2^run_bits) to be preceded by j overlong runs, ends of rows apart.
    """
    overlong = (1 - density) ** (1 << run_bits)
    values = shape[0] * shape[1] * density
    return round(values * (1 + overlong / (1 - overlong))) if overlong < 1 else 0


def conversion_cycles(source: Stored, target: Stored, size: int, entries_per_cycle: int, turned: bool) -> int:
    """Cycles of a converter between a producer's and a consumer's format of a matrix with `size` elements.

    It reads every entry of one while it writes every entry of the other; a dense matrix has its elements for entries.
    Where the order changes from rows to columns (`turned`) it counts the lines in a pass of its own first.
    """
    reading = (source.entries or size) * (2 if turned else 1)
    return -(-max(reading, target.entries or size) // entries_per_cycle)


BY_COLUMNS = ("csc", "n:m")


def order_changes(source: str, target: str) -> bool:
    """Whether one of two formats runs along rows and the other along columns."""
    return "dense" not in (source, target) and (source in BY_COLUMNS) != (target in BY_COLUMNS)
