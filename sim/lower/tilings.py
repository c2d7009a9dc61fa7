"""Tilings to choose from: all that fit on chip, and a rough time of each by which the mapper ranks them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

from sim.hardware import Hardware
from sim.lower.compute import whole
from sim.lower.matmul import Product, TileCosts, Tiling, footprint


def candidates(machine: Hardware, product: Product, scratchpad_bytes: int) -> list[Tiling]:
    """All tilings that fit: array multiples in powers of two up to each dimension, both orders, kept or not.

    Where even one array of rows is too many for the scratchpad, parts of it: such tiles waste the array but run.
    """
    part = machine.array.rows
    while part > 0:
        found = list(_fitting(machine, product, scratchpad_bytes, part))
        if found:
            return found
        part //= 4
    return []


def _fitting(machine: Hardware, product: Product, scratchpad_bytes: int, least_rows: int) -> Iterator[Tiling]:
    for m in _sizes(least_rows, max(product.groups)):
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


def traffic_bytes(product: Product, tiling: Tiling) -> int:
    """DRAM bytes of the product in this tiling."""
    size = product.size
    traffic: Fraction | int = 0
    for rows in product.groups:
        outer_m = tiling.order == "m"
        m_steps, n_steps = -(-rows // tiling.m), -(-product.n // tiling.n)
        if product.left_in_dram:
            traffic += (1 if outer_m and tiling.keep else n_steps) * rows * product.k * size.left
        if product.right_in_dram:
            traffic += (1 if not outer_m and tiling.keep else m_steps) * product.n * product.k * size.right
    if product.result_in_dram:
        traffic += sum(product.groups) * product.columns_out * size.result
    for epilogue in product.epilogues:
        for in_dram, width in epilogue.extra:
            if in_dram:
                traffic += sum(product.groups) * epilogue.columns_out * width
    return whole(traffic)


def estimate_ps(product: Product, tiling: Tiling, costs: TileCosts, traffic: int) -> int:
    """Rough time: the longer of compute and `traffic` bytes, plus the first load and the last store. Only ranks."""
    machine = costs.machine
    size = product.size
    edge: Fraction | int = 0
    if product.left_in_dram:
        edge += tiling.m * tiling.k * size.left
    if product.right_in_dram:
        edge += tiling.n * tiling.k * size.right
    if product.result_in_dram:
        edge += tiling.m * tiling.n * size.result
    compute_ps = costs.occupancy(tiling.m, tiling.n, tiling.k) * 10**12 // int(machine.clock) // machine.cores
    memory_ps = traffic * 10**12 // costs.bandwidth
    return max(compute_ps, memory_ps) + whole(edge) * 10**12 // costs.bandwidth


def steps(product: Product, tiling: Tiling) -> int:
    """Tiles of work that the array gets."""
    m_tiles = sum(-(-rows // tiling.m) for rows in product.groups)
    return m_tiles * -(-product.n // tiling.n) * -(-product.k // tiling.k)
