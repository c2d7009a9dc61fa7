"""Turns one tile of work into a task on the arrays or the vector units: cycles from `sim.cost`, and what it reads and
writes.

A tile takes as long as its arithmetic or as the scratchpad needs to deliver its operands, whichever is longer.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import lru_cache

from sim import cost
from sim.config import ConfigError
from sim.hardware import Array, Hardware
from sim.lower.builder import PER_CORE, Builder, Unit, Work
from sim.sparse.zeros import Split, Zeros, ZeroTile, dense_tile, own_engine, zero_tile


def plain(value: Fraction | int) -> Fraction | int:
    """`value`, as an integer where it is one: sums and products are then several times faster."""
    return value.numerator if value.denominator == 1 else value


@dataclass(frozen=True, slots=True)
class Bits:
    """Bytes an element of the two operands, the result and the accumulator."""

    left: Fraction | int
    right: Fraction | int
    result: Fraction | int
    accumulator: Fraction | int

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))


NO_ENGINE = Split()


@dataclass(frozen=True, slots=True)
class TileWork:
    """Cost of `batch` products (m x k)(k x n) on the arrays of one core: core cycles and traffic."""

    occupancy: int
    tail: int
    cold: int
    work: Work
    split: Split = NO_ENGINE


@lru_cache(maxsize=1 << 16)
def _array_tile(array: Array, batch: int, m: int, n: int, k: int, macs_per_pe: Fraction) -> tuple[int, ...]:
    """As `cost.array_tile`, remembered: a mapper asks for the same few tiles again and again."""
    return tuple(int(value) for value in cost.array_tile(array, batch, m, n, k, macs_per_pe))


def unit_format(machine: Hardware, left: str, right: str) -> str:
    """The formats of a product as the arrays count them: a pair such as int8*int2 where it has a rate of its own."""
    pair = f"{left}*{right}"
    return pair if pair in machine.array.formats else left


def tile_work(
    machine: Hardware, batch: int, m: int, n: int, k: int, number_format: str, size: Bits, zeros: Zeros | None = None
) -> TileWork:
    """Cycles and traffic of a tile; see `sim.cost` for the rules, `sim.sparse` for operands with `zeros`."""
    array = machine.array
    rate = array.formats.get(number_format)
    if rate is None:
        raise ConfigError(
            f"number format {number_format} is asked for, but the arrays of {machine.name} have units for "
            f"{', '.join(array.formats)} only",
            key="array.formats",
        )
    if zeros is not None:
        return _on_engine(machine, batch, (m, n, k), rate, size, zero_tile(machine, m, n, k, zeros))
    if own_engine(machine):
        return _on_engine(machine, batch, (m, n, k), rate, size, dense_tile(machine, m, n, k, number_format))
    occupancy, tail, cold, left, right, sums = _array_tile(array, batch, m, n, k, rate)
    reads = left * size.left + right * size.right
    writes = batch * m * n * size.result
    pad = machine.scratchpad
    occupancy = max(occupancy, int(-(-reads // pad.read_bytes_per_cycle)), int(-(-writes // pad.write_bytes_per_cycle)))
    work = Work(
        macs=batch * m * n * k,
        sram_read=whole(reads),
        sram_write=whole(writes),
        accumulator=whole(sums * size.accumulator),
    )
    return TileWork(occupancy, tail, cold, work)


def _on_engine(
    machine: Hardware, batch: int, shape: tuple[int, int, int], rate: Fraction, size: Bits, tile: ZeroTile
) -> TileWork:
    """A tile as the sparse engine does it; its sums go to the accumulators as those of a product of as much depth as
    it has products of kept values."""
    m, n, k = shape
    depth = min(k, max(1, -(-tile.macs // (m * n))))
    sums = _array_tile(machine.array, 1, m, n, depth, rate)[5]
    work = Work(
        macs=batch * tile.macs,
        sram_read=batch * tile.read_bytes,
        sram_write=whole(batch * m * n * size.result),
        accumulator=whole(batch * sums * size.accumulator),
    )
    return TileWork(batch * tile.occupancy, tile.tail, tile.cold, work, tile.split)


def vector_task(
    builder: Builder, core: int, function: str, rows: int, columns: int, sizes: tuple[int, int], after: Iterable[int],
    ops: int = 0, keep: int = 1, more: int = 0, macs: int = 0,
) -> int:  # fmt: skip
    """Add `function` over rows x columns on the vector units; `sizes`: bytes read and written in the scratchpad; `ops`:
    scalar operations for the report; `more`: cycles of what is done along with it,
    `macs`: multiply-accumulates among that."""
    machine = builder.machine
    pad = machine.scratchpad
    if machine.vector.charge == "issue":
        cycles = rows if function == "softmax" else 0
    else:
        cycles = max(
            int(cost.vector_cycles(machine.vector, function, rows, columns, keep)) + more,
            -(-sizes[0] // pad.read_bytes_per_cycle),
            -(-sizes[1] // pad.write_bytes_per_cycle),
        )
    work = Work(vector_ops=ops + 2 * macs, sram_read=sizes[0], sram_write=sizes[1], pim_macs=macs)
    return builder.task(core * PER_CORE + Unit.VECTOR, cycles, after, work)


def whole(value: Fraction | int) -> int:
    """`value` rounded up."""
    return -(-value.numerator // value.denominator)
