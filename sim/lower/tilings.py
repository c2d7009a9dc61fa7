"""Tilings to choose from: all that fit on chip, and a rough time of each by which the mapper ranks them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from sim.hardware import Hardware
from sim.lower.compute import whole
from sim.lower.matmul import Product, TileCosts, Tiling, footprint


def candidates(machine: Hardware, product: Product, scratchpad_bytes: int) -> Iterator[Tiling]:
    """All tilings that fit: array multiples in powers of two up to each dimension, both orders, kept or not."""
    rows = max(product.groups)
    for m in _sizes(machine.array.rows, rows):
        for n in _sizes(machine.array.columns, product.n):
            if 2 * whole(m * n * product.size.accumulator) > machine.accumulator.capacity:
                break
            for k in _sizes(machine.array.rows, product.k):
                for order in ("m", "n"):
                    for keep in (True, False):
                        tiling = Tiling(m, n, k, order, keep)
                        pad, sums = footprint(product, tiling)
                        if pad <= scratchpad_bytes and sums <= machine.accumulator.capacity:
                            yield tiling


def _sizes(unit: int, total: int) -> list[int]:
    sizes = []
    size = unit
    while size < total:
        sizes.append(size)
        size *= 2
    return [*sizes, total]


def estimate_ps(machine: Hardware, product: Product, tiling: Tiling, costs: TileCosts) -> int:
    """Rough time: the longer of compute and traffic, plus the first load and the last store. Only ranks candidates."""
    n_tiles, k_tiles = _counted(product.n, tiling.n), _counted(product.k, tiling.k)
    compute = 0
    traffic = Fraction(0)
    size = product.size
    for rows in product.groups:
        m_tiles = _counted(rows, tiling.m)
        for m, m_count in m_tiles:
            for n, n_count in n_tiles:
                for k, k_count in k_tiles:
                    compute += m_count * n_count * k_count * costs.tile(m, n, k).occupancy
        outer_m = tiling.order == "m"
        m_steps, n_steps = -(-rows // tiling.m), -(-product.n // tiling.n)
        left_times = 1 if outer_m and tiling.keep else n_steps
        right_times = 1 if not outer_m and tiling.keep else m_steps
        if product.left_in_dram:
            traffic += left_times * rows * product.k * size.left
        if product.right_in_dram:
            traffic += right_times * product.n * product.k * size.right
    if product.result_in_dram:
        traffic += sum(product.groups) * product.columns_out * size.result
    for epilogue in product.epilogues:
        traffic += sum(
            (sum(product.groups) * epilogue.columns_out * width for in_dram, width in epilogue.extra if in_dram),
            Fraction(0),
        )
    compute_ps = compute * 10**12 // int(machine.clock) // machine.cores
    bandwidth = int(machine.peak_bytes_per_s)
    memory_ps = int(traffic * 10**12 / bandwidth)
    edge = 0
    if product.left_in_dram:
        edge += whole(tiling.m * tiling.k * size.left)
    if product.right_in_dram:
        edge += whole(tiling.n * tiling.k * size.right)
    if product.result_in_dram:
        edge += whole(tiling.m * tiling.n * size.result)
    return max(compute_ps, memory_ps) + edge * 10**12 // bandwidth


def steps(product: Product, tiling: Tiling) -> int:
    """Tiles of work that the array gets."""
    m_tiles = sum(-(-rows // tiling.m) for rows in product.groups)
    return m_tiles * -(-product.n // tiling.n) * -(-product.k // tiling.k)


def _counted(total: int, step: int) -> list[tuple[int, int]]:
    """Distinct tile lengths with how often each occurs."""
    whole, rest = divmod(total, step)
    return [item for item in ((step, whole), (rest, 1 if rest else 0)) if item[1]]
