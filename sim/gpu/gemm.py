"""Matrix products on a GPU: the fastest of a catalogue of thread-block tiles, splits and rasterisation orders.

Tiles are handed to multiprocessors in waves. A tile's main loop runs at the slowest of the tensor units, shared memory
and its part of the L2; the part as a whole is bound by DRAM, whose traffic follows from how much of the operands a wave
shares and the L2 keeps.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sim.gpu.cost import Cost, chain, norm
from workloads.formats import format_bits

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from sim.gpu.schema import Gpu

SPLIT_SUM = 4
"""Bytes of a partial sum."""


class Product(NamedTuple):
    """`batch` products of (m x k) and (k x n). `weights` marks the second operand as 2:4. `shared_first`: the first
    operand is one for the whole batch. Formats: of the operands, and of the result."""

    m: int
    n: int
    k: int
    format: str
    out_format: str
    batch: int = 1
    sparse: bool = False


class _Tiles(NamedTuple):
    """The catalogue as columns, one entry a tile and split; `along_m`: matrix instructions are stacked along m.

    `edges` are the lengths that edges have; `m_edge` and `n_edge` say where in them each entry's are.
    """

    m: NDArray[np.float64]
    n: NDArray[np.float64]
    split: NDArray[np.float64]
    along_m: NDArray[np.bool_]
    edges: NDArray[np.float64]
    m_edge: NDArray[np.int64]
    n_edge: NDArray[np.int64]


@lru_cache(maxsize=16)
def _catalogue(gpu: Gpu) -> _Tiles:
    kernels = gpu.library.gemm
    rows = []
    for long in kernels.long:
        for short in kernels.short:
            fits = (long + short) * int(kernels.step) * kernels.stages <= gpu.sm.shared
            if long * short <= kernels.accumulators and fits:
                for split in kernels.splits:
                    rows += [(long, short, split, True), (short, long, split, False)]
    columns = np.array(rows, np.float64).T
    edges = np.unique(columns[:2])
    m_edge, n_edge = np.searchsorted(edges, columns[0]), np.searchsorted(edges, columns[1])
    return _Tiles(columns[0], columns[1], columns[2], columns[3] > 0, edges, m_edge, n_edge)


def bytes_of(number_format: str) -> float:
    """Bytes of an element."""
    return float(format_bits(number_format)) / 8


@lru_cache(maxsize=4096)
def gemm(gpu: Gpu, product: Product) -> Cost:
    """The cost of a product by the kernel that the library would choose. Raises ConfigError without a unit for it."""
    macs_per_clock = gpu.macs_per_clock(product.format)
    size = bytes_of(product.format)
    if product.sparse:
        return _sparse(gpu, product, macs_per_clock, size)
    aligned = alignment(product, size)
    # Kernels on the vector lanes load element by element anyhow; those for single results go with odd rows.
    odd = aligned % gpu.library.gemm.align and macs_per_clock > gpu.sm.lanes
    single = product.m == product.n == 1 and gpu.library.unaligned.vector is not None
    if odd or single:
        from sim.gpu.odd import unaligned

        return unaligned(gpu, product, aligned, size)
    return _best(gpu, product, macs_per_clock, size)


def alignment(product: Product, size: float) -> int:
    """Bytes that the start of every row divides by. A result of one column has no rows: it is one vector."""
    rows = [product.k * size] + ([product.n * bytes_of(product.out_format)] if product.n > 1 else [])
    common = int(np.gcd.reduce([int(row) or 1 for row in rows]))
    return common & -common


def _best(gpu: Gpu, product: Product, macs_per_clock: int, size: float) -> Cost:
    kernels, tiles, fitted = gpu.library.gemm, _catalogue(gpu), gpu.fitted
    step = max(int(kernels.step / size), 1)
    m_tiles, n_tiles = np.ceil(product.m / tiles.m), np.ceil(product.n / tiles.n)
    steps_all = -(-product.k // step)
    steps = np.ceil(steps_all / tiles.split)
    count = m_tiles * n_tiles * product.batch * np.minimum(tiles.split, steps_all)
    sms = gpu.sm.count
    per_sm = np.ceil(count / sms)
    mma = tiles.m * tiles.n * step / (macs_per_clock * fitted.tensor)
    long, short = np.where(tiles.along_m, tiles.m, tiles.n), np.where(tiles.along_m, tiles.n, tiles.m)
    shared = (long + np.ceil(long / kernels.issue) * short) * step * size / gpu.sm.shared_bytes_per_clock
    busy = np.minimum(count, sms)
    # Thread blocks of a cluster load the longer edge's operand once.
    l2_step = (np.maximum(tiles.m, tiles.n) / kernels.share + np.minimum(tiles.m, tiles.n)) * step * size
    l2 = l2_step * busy / gpu.l2.bytes_per_clock
    waited = kernels.wait * 1e-12 * float(gpu.clock.maximum)
    core = np.maximum(np.maximum(np.maximum(mma, shared), l2), waited)
    cycles = per_sm * (steps * core + fitted.tile)
    if kernels.stream_k:
        # The tiles of a last wave that would leave multiprocessors idle are cut along k, at the price of one more
        # tile's overhead and the exchange of partial sums through L2.
        whole, rest = np.floor(count / sms), count % sms
        exchange = tiles.m * tiles.n * SPLIT_SUM * 2 * sms / gpu.l2.bytes_per_clock
        cut = (whole + rest / sms) * steps * core + (whole + 1) * fitted.tile + exchange
        cycles = np.where((rest > 0) & (tiles.split == 1), np.minimum(cycles, cut), cycles)
    read, order = _traffic(gpu, product, tiles, size)
    written = product.batch * product.m * product.n * bytes_of(product.out_format)
    rate = stream_rate(gpu, float(read.min()), written) * np.ones_like(count)
    rate = np.minimum(rate, busy * gpu.sm.fetch_bytes_per_clock * gpu.clock.maximum)
    memory_s = (read + written) / rate
    clock = float(gpu.clock.maximum)
    sums = np.where(tiles.split > 1, product.batch * product.m * product.n * SPLIT_SUM * tiles.split, 0.0)
    reduce_s = np.where(
        tiles.split > 1,
        2 * sums / (gpu.l2.bytes_per_clock * clock) + (gpu.launch.graph + gpu.sustained.latency) * 1e-12, 0.0,
    )  # fmt: skip
    compute_s = cycles / clock
    # Some libraries split few tiles only, and all stack instructions along a dimension only if that fills one.
    if kernels.split_below is not None:
        enough = m_tiles * n_tiles * product.batch >= kernels.split_below * sms
        compute_s = np.where((tiles.split > 1) & enough, np.inf, compute_s)
    stacked = np.where(tiles.along_m, product.m, product.n)
    compute_s = np.where(stacked < min(kernels.issue, max(product.m, product.n)), np.inf, compute_s)
    high, low = np.maximum(compute_s, memory_s), np.minimum(compute_s, memory_s)
    total = high * (1 + (low / high) ** fitted.overlap) ** (1 / fitted.overlap) + reduce_s
    i = int(np.argmin(total))
    tile = (int(tiles.m[i]), int(tiles.n[i]))
    split = int(tiles.split[i])
    names = ("tensor", "shared memory", "L2", "latency")
    core_name = names[int(np.argmax([mma[i], shared[i], l2[i], waited]))]
    main = Cost(
        core_cycles=float(cycles[i]),
        memory_s=float(memory_s[i]),
        fixed_s=gpu.fitted.start * 1e-12,
        overlap=fitted.overlap,
        core=core_name,
        format=product.format,
        macs=macs_of(product),
        l2_bytes=int(count[i] * steps[i] * l2_step[i] + written),
        dram_read_bytes=int(read[i]),
        dram_write_bytes=int(written),
        decisions={
            "tile": f"{tile[0]}x{tile[1]}x{step}", "split": str(split), "waves": f"{count[i] / sms:.2f}",
            "order": f"groups of {int(order[i])}",
        },
    )  # fmt: skip
    if split == 1:
        return main
    reduce = Cost(
        core_cycles=float(2 * sums[i] / gpu.l2.bytes_per_clock),
        fixed_s=gpu.sustained.latency * 1e-12,
        core="L2",
        l2_bytes=int(2 * sums[i]),
    )
    return chain([main, reduce])


def macs_of(product: Product) -> int:
    """Multiply-accumulates but for those with the zeros that fill up tiles, which cost time and next to no energy."""
    return product.batch * product.m * product.n * product.k


def _traffic(gpu: Gpu, product: Product, tiles: _Tiles, size: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(DRAM bytes read, tile rows of a group): the rasterisation order with the least traffic for each tile.

    Tiles are taken in groups of `g` tile rows, column by column. While a group's rows of the first operand stay in L2,
    it is read once and the second operand once for each group; an operand that fits in L2 is read once anyhow.
    """
    room = gpu.l2.capacity * gpu.l2.share
    first, second = product.m * product.k * size, product.n * product.k * size
    groups = np.array(gpu.library.gemm.group, np.float64)[:, None]
    best: NDArray[np.float64] | None = None
    order = np.ones_like(tiles.m)
    for edge, extent, whole, other in (
        (tiles.m_edge, product.m, first, second), (tiles.n_edge, product.n, second, first)
    ):  # fmt: skip
        # Traffic follows from the length of this edge alone, and a catalogue has few.
        rows = np.minimum(groups * tiles.edges, extent)
        held = rows * product.k * size
        # What the waves in flight touch of the other operand has to stay beside the group.
        again = np.where(other <= room - np.minimum(held, room), 1.0, np.ceil(extent / rows))
        kept = np.where(held <= room, 1.0, np.ceil(held / room))
        moved = product.batch * (whole * kept + other * again)
        chosen = np.argmin(moved, axis=0)
        bytes_read = moved[chosen, np.arange(len(tiles.edges))][edge]
        group = groups[chosen, 0][edge]
        order = group if best is None else np.where(bytes_read < best, group, order)
        best = bytes_read if best is None else np.minimum(best, bytes_read)
    assert best is not None
    return best, order


def stream_rate(gpu: Gpu, read_bytes: float, write_bytes: float) -> float:
    """Bytes per second that the memory sustains for this mix of reads and writes."""
    written = write_bytes / (read_bytes + write_bytes) if read_bytes + write_bytes else 0.0
    share = gpu.sustained.read + (gpu.sustained.mixed - gpu.sustained.read) * min(1.0, 3 * written)
    return share * gpu.peak_bytes_per_s


def _sparse(gpu: Gpu, product: Product, macs_per_clock: int, size: float) -> Cost:
    """2:4 weights as second operand (n x k): half of the values and two bits of index for each kept one."""
    from sim.errors import ConfigError

    kernel = gpu.library.sparse
    if kernel is None or gpu.sm.sparse is None:
        raise ConfigError(f"{gpu.name} has no unit for 2:4 weights", key="sm.sparse")
    if product.format == "fp32":
        raise ConfigError(f"{gpu.name} multiplies fp32 outside of the units for 2:4 weights", key="sm.sparse")
    step = max(int(gpu.library.gemm.step / size), 1)
    n_tiles, m_tiles = -(-product.n // kernel.tile[0]), -(-product.m // kernel.tile[1])
    rate = macs_per_clock * gpu.sm.sparse * gpu.fitted.sparse
    sms = gpu.sm.count
    each = kernel.tile[0] * kernel.tile[1] * step / rate
    options = [s for s in kernel.splits if s == 1 or product.k >= kernel.split_from]

    def cycles(split: int) -> float:
        waves = -(-n_tiles * m_tiles * product.batch * split // sms)
        return waves * (-(-product.k // (split * step)) * each + gpu.fitted.tile)

    split = min(options, key=cycles)
    total = cycles(split)
    weights = product.n * product.k * (size / 2 + 1 / 8)
    read = product.batch * (weights + product.m * product.k * size)
    written = product.batch * product.m * product.n * bytes_of(product.out_format)
    memory_s = (read + written) / stream_rate(gpu, read, written)
    if 2 * product.m < kernel.tile[1]:
        # Loads of the weights are what a narrow product waits for, step by step, and they do not come at full rate.
        waves = -(-n_tiles * m_tiles * product.batch * split // sms)
        waited = waves * -(-product.k // (split * step)) * kernel.narrow * 1e-12
        memory_s = norm(max(memory_s, product.batch * weights / kernel.narrow_rate), waited, gpu.fitted.overlap)
    return Cost(
        core_cycles=total,
        memory_s=memory_s,
        fixed_s=gpu.fitted.start * 1e-12,
        overlap=gpu.fitted.overlap,
        core="tensor",
        format=product.format,
        macs=macs_of(product) // 2,
        l2_bytes=int(n_tiles * m_tiles * sum(kernel.tile) * product.k * size),
        dram_read_bytes=int(read),
        dram_write_bytes=int(written),
        decisions={"tile": f"{kernel.tile[1]}x{kernel.tile[0]}x{step}", "split": str(split), "weights": "2:4"},
    )


__all__ = ["Product", "alignment", "bytes_of", "gemm", "macs_of", "norm", "stream_rate"]
