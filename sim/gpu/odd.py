"""Matrix products whose rows start at odd addresses: no bulk copies, elements come through registers one or two a load.

Such a kernel is limited by the loads that a multiprocessor issues, so that a tile costs its edges rather than its area.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.gpu.cost import Cost, chain
from sim.gpu.gemm import SPLIT_SUM, bytes_of, macs_of, stream_rate

if TYPE_CHECKING:
    from sim.gpu.gemm import Product
    from sim.gpu.library import VectorKernel
    from sim.gpu.schema import Gpu

STEP = 32
"""Elements of the reduced dimension in one stage of these kernels, which a split does not divide."""


def unaligned(gpu: Gpu, product: Product, aligned: int, size: float) -> Cost:
    """The fastest kernel for rows that start at multiples of `aligned` bytes only; `size`: bytes of an element."""
    kernels = gpu.library.unaligned
    paired = aligned >= 2 * size
    shapes = [(tile, kernels.blocks) for tile in kernels.tiles]
    shapes += [(tile, 1) for tile in kernels.pairs] if paired else []
    options = [
        _tiled(gpu, product, tile, blocks, split, paired, size)
        for tile, blocks in shapes
        for split in kernels.splits
        if split == 1 or product.k >= STEP * split
    ]
    vector = kernels.vector
    if vector is not None and min(product.m, product.n) <= vector.most_rows:
        options.append(_vector(gpu, product, vector, size))
    clock = float(gpu.clock.maximum)
    return min(options, key=lambda cost: cost.time_s(clock))


def _moved(gpu: Gpu, product: Product, size: float) -> tuple[float, float, float]:
    """Bytes read and written, and their seconds."""
    read = product.batch * (product.m + product.n) * product.k * size
    written = product.batch * product.m * product.n * bytes_of(product.out_format)
    return read, written, (read + written) / stream_rate(gpu, read, written)


def _tiled(
    gpu: Gpu, product: Product, tile: tuple[int, int], blocks: int, split: int, paired: bool, size: float
) -> Cost:
    kernels, sms = gpu.library.unaligned, gpu.sm.count
    count = -(-product.m // tile[0]) * -(-product.n // tile[1]) * product.batch
    depth = -(-product.k // split)
    loads = sum(tile) / (2 if paired else 1)
    step = max(loads / kernels.loads, tile[0] * tile[1] / (gpu.macs_per_clock(product.format) * gpu.fitted.tensor))
    resident = min(blocks, -(-count * split // sms))
    waves = -(-count * split // (sms * blocks))
    read, written, memory_s = _moved(gpu, product, size)
    width = "2 elements" if paired else "1 element"
    main = Cost(
        core_cycles=waves * resident * (depth * step + gpu.fitted.tile),
        memory_s=memory_s,
        fixed_s=gpu.fitted.start * 1e-12,
        overlap=gpu.fitted.overlap,
        core="issue",
        format=product.format,
        macs=macs_of(product),
        vector_results=int(count * loads * product.k),
        l2_bytes=int(count * sum(tile) * product.k * size),
        dram_read_bytes=int(read),
        dram_write_bytes=int(written),
        decisions={"tile": f"{tile[0]}x{tile[1]}", "split": str(split), "loads": f"{width}, unaligned rows"},
    )
    if split == 1:
        return main
    sums = 2 * SPLIT_SUM * split * product.batch * product.m * product.n
    add = Cost(
        core_cycles=sums / gpu.l2.bytes_per_clock, fixed_s=gpu.sustained.latency * 1e-12, core="L2", l2_bytes=sums
    )
    return chain([main, add])


def _vector(gpu: Gpu, product: Product, kernel: VectorKernel, size: float) -> Cost:
    few, many = sorted((product.m, product.n))
    elements = product.batch * many * product.k
    issued = elements * (kernel.instructions + kernel.row_instructions * few)
    read, written, memory_s = _moved(gpu, product, size)
    return Cost(
        core_cycles=issued / (gpu.sm.lanes * gpu.sm.count),
        memory_s=memory_s,
        fixed_s=gpu.fitted.start * 1e-12,
        overlap=gpu.fitted.overlap,
        core="issue",
        format=product.format,
        macs=macs_of(product),
        vector_results=elements * (1 + few),
        l2_bytes=int(read + written),
        dram_read_bytes=int(read),
        dram_write_bytes=int(written),
        decisions={"kernel": "matrix by vectors", "loads": "unaligned rows"},
    )
