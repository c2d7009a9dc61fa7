"""Row-wise reductions, elementwise functions and copies on a GPU.

Three things can bound them: the memory (or the L2, where operands wait there), the instructions that all threads issue,
and the chain of loads and reductions of one row, of which only so many run side by side.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from sim.errors import ConfigError, not_among
from sim.gpu.cost import Cost
from sim.gpu.gemm import stream_rate

if TYPE_CHECKING:
    from sim.gpu.schema import Gpu

REGISTER_BYTES = 4
HELD = 0.9
"""Part of the L2 that rows in flight, each read by one multiprocessor, may fill before what streams by evicts them."""
HIDDEN = 0.5
"""Part of a block's waiting behind the work of those beside it; assumed, between that of lockstep and of chance."""


def fits_l2(gpu: Gpu, moved_bytes: float) -> bool:
    """Whether operands of that many bytes are still in the L2 when they are used again."""
    return moved_bytes <= gpu.l2.capacity * gpu.l2.share


@lru_cache(maxsize=4096)
def reduction(
    gpu: Gpu, function: str, rows: int, columns: int, read_bytes: float, write_bytes: float, warm: bool
) -> Cost:
    """One row-wise kernel. `warm`: operands and results are in L2. Raises ConfigError for a function it lacks."""
    kernels = gpu.library.rows
    if function not in kernels:
        raise ConfigError(not_among("row-wise function", function, kernels, inside=f"library {gpu.library.name}"))
    kernel = next(
        (k for k in kernels[function] if k.most_columns is None or columns <= k.most_columns), kernels[function][-1]
    )
    sm, clock = gpu.sm, float(gpu.clock.maximum)
    per_row = kernel.threads
    if kernel.spread:
        per_row = min(per_row, max(32, 1 << (-(-columns // kernel.vector) - 1).bit_length()))
    threads = per_row * kernel.block_rows
    per_sm = max(1, min(
        sm.threads // threads, sm.blocks, sm.registers // (threads * kernel.registers * REGISTER_BYTES)
    ))  # fmt: skip
    loads = -(-columns // (per_row * kernel.vector))
    alone_s = (kernel.row + kernel.passes * loads * kernel.iteration) * 1e-12
    if not (warm or kernel.ahead):
        # A row is loaded bit by bit, and its first pass waits for the memory each time.
        alone_s += loads * max(0, gpu.sustained.latency - kernel.iteration) * 1e-12
    results = rows * (columns * kernel.instructions + per_row * kernel.row_instructions)
    blocks = -(-rows // kernel.block_rows)
    issue = results / blocks / (sm.lanes * gpu.fitted.vector)
    cycles, core = _together(gpu, blocks, per_sm, alone_s * clock, issue)
    # Rows in flight that do not fit beside each other in L1 are read again by each further pass, from L2 or beyond.
    row_bytes = read_bytes / rows
    again = read_bytes * (kernel.passes - 1) if per_sm * kernel.block_rows * row_bytes > sm.shared else 0.0
    if again:
        cycles = max(cycles, (read_bytes + again + write_bytes) / gpu.l2.bytes_per_clock)
        if min(per_sm * kernel.block_rows * sm.count, rows) * row_bytes > gpu.l2.capacity * HELD:
            read_bytes += again
    return _moved(gpu, cycles, core, results, read_bytes, write_bytes, warm, {"threads": f"{per_row} a row"})


@lru_cache(maxsize=4096)
def elementwise(gpu: Gpu, function: str, elements: int, read_bytes: float, write_bytes: float, warm: bool) -> Cost:
    """One elementwise kernel. Functions that the library lacks cost what their plain operations do."""
    from workloads.attrs import ELEMENTWISE_VECTOR_OPS

    sm, library = gpu.sm, gpu.library
    plain = library.elementwise["copy"] + 4 * ELEMENTWISE_VECTOR_OPS.get(function, 1)
    results = elements * library.elementwise.get(function, plain)
    block = library.elementwise_block
    blocks = -(-elements // block.elements)
    # A thread's own instructions follow each other, however few there are.
    alone = results / elements * block.elements / block.threads * block.wait
    issue = results / blocks / (sm.lanes * gpu.fitted.vector)
    cycles, core = _together(gpu, blocks, max(1, min(sm.blocks, sm.threads // block.threads)), alone, issue)
    started = blocks * gpu.launch.block * 1e-12 * gpu.clock.maximum
    if started > cycles:
        cycles, core = started, "block launch"
    return _moved(gpu, cycles, core, results, read_bytes, write_bytes, warm, {})


def _together(gpu: Gpu, blocks: int, per_sm: int, alone: float, issue: float) -> tuple[float, str]:
    """(clocks, what bounds them) of equal thread blocks, `per_sm` of them side by side on a multiprocessor.

    One alone takes `alone` clocks, and its instructions `issue`. Blocks beside each other wait at the same times, so
    that each other's work hides but a part of it; they start anew where no more of them fit.
    """
    each = -(-blocks // gpu.sm.count)
    chained = -(-each // per_sm) * max(alone, issue)
    cycles = max(each * issue, chained) + min(alone, (each - 1) * issue) * (1 - HIDDEN)
    return cycles, "latency" if chained > each * issue else "issue"


def _moved(
    gpu: Gpu, cycles: float, core: str, results: int, read: float, written: float, warm: bool, told: dict[str, str]
) -> Cost:
    l2 = (read + written) / gpu.l2.bytes_per_clock
    if warm:
        core, cycles = ("L2", l2) if l2 > cycles else (core, cycles)
    return Cost(
        core_cycles=cycles,
        memory_s=0.0 if warm else (read + written) / stream_rate(gpu, read, written),
        fixed_s=gpu.sustained.latency * 1e-12,
        overlap=gpu.fitted.overlap,
        core=core,
        vector_results=results,
        l2_bytes=int(read + written),
        dram_read_bytes=0 if warm else int(read),
        dram_write_bytes=0 if warm else int(written),
        decisions=told,
    )
