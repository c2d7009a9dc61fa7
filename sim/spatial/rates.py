"""Cycles that a node of a section takes for one token, from its shape and the tiles it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

from sim.cost.vector import FUNCTIONS
from sim.spatial.machine import ComputeTiles

SPLITS = 32
"""Most parts of the inner dimension that are tried, besides as many as there are tiles for each piece of the result."""


def up(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


@dataclass(frozen=True)
class Product:
    """`units` equal products (rows x inner)(inner x columns) for one token; `rate`: of the number format."""

    units: int
    rows: int
    inner: int
    columns: int
    rate: Fraction

    def groups(self, tiles: ComputeTiles) -> int:
        """Pieces of the result that fill a tile."""
        return self.units * up(self.rows, tiles.stages) * up(self.columns, tiles.lanes)

    def executed_macs(self, tiles: ComputeTiles) -> int:
        """Multiply-accumulates with the lanes and stages that are filled up."""
        return self.groups(tiles) * tiles.stages * tiles.lanes * self.inner

    def cycles(self, tiles: ComputeTiles, given: int) -> int:
        """Cycles on `given` tiles: the groups go round, and where tiles are left the inner dimension is split."""
        groups = self.groups(tiles)
        parts = {*range(1, min(given, SPLITS) + 1), max(given // groups, 1)}
        return min(
            up(groups, given // part) * self._inner_cycles(up(self.inner, part))
            for part in parts
            if part <= self.inner
        )

    def latency(self, tiles: ComputeTiles, given: int) -> int:
        """Cycles of the pipeline: the stages, and a tree over the parts of the inner dimension."""
        return tiles.stages + (max(given // self.groups(tiles), 1) - 1).bit_length()

    def _inner_cycles(self, inner: int) -> int:
        return up(inner * self.rate.denominator, self.rate.numerator)


@dataclass(frozen=True)
class Lanewise:
    """A vector function on `elements` elements for one token: `sweeps` times through a tile's pipeline."""

    elements: int
    sweeps: int
    reductions: int = 0

    def cycles(self, tiles: ComputeTiles, given: int) -> int:
        """Cycles on `given` tiles."""
        return max(up(up(self.elements, tiles.lanes), given), 1) * self.sweeps

    def latency(self, tiles: ComputeTiles, given: int) -> int:
        """Cycles of the pipeline, once for each sweep, and of the trees over lanes and tiles."""
        tree = (tiles.lanes * given - 1).bit_length()
        return tiles.stages * self.sweeps + self.reductions * tree


Rated = Product | Lanewise


def lanewise(tiles: ComputeTiles, function: str, elements: int, keep: int = 1) -> Lanewise:
    """The work of a vector function: as many sweeps as its primitives fill pipelines, and one before and after each
    reduction, whose result the next sweep needs; all of it again for each value that a topk keeps.
    """
    work = FUNCTIONS[function]
    stages = sum(n * tiles.primitives.get(name, 1) for name, n in work.element.items())
    times = keep if work.per_kept else 1
    return Lanewise(elements, max(up(stages, tiles.stages), work.reductions + 1) * times, work.reductions * times)


def fewest(cycles: Callable[[int], int], most: int, limit: int) -> int | None:
    """Fewest tiles, up to `limit`, with which `cycles` (that fall with tiles) are at most `most`."""
    if cycles(limit) > most:
        return None
    low, high = 1, limit
    while low < high:
        middle = (low + high) // 2
        if cycles(middle) <= most:
            high = middle
        else:
            low = middle + 1
    return low
