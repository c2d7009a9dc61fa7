"""Fused attention on a GPU: tiles of query rows walk over the keys, split over the keys where queries are too few.

A tile costs as much as a full one however few of its rows are used, which is what limits the decoding of single
queries by kernels with large tiles. Thread blocks are dealt out in order to the slots of the part.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from sim.errors import ConfigError, not_among
from sim.gpu.cost import Cost, chain
from sim.gpu.gemm import bytes_of, stream_rate

if TYPE_CHECKING:
    from sim.gpu.library import AttentionKernel
    from sim.gpu.schema import Gpu

ENOUGH = 0.8
"""Part of the slots that must be filled for keys not to be split; FlashAttention-2, num_splits_heuristic."""
GOOD = 0.85
"""Part of the best occupancy at which fewer splits are preferred; FlashAttention-2, num_splits_heuristic."""
MOST_SPLITS = 128


class Attend(NamedTuple):
    """Attention of `batch` requests of one kind. `causal`: query i of the last `queries` positions sees the keys up to
    its own; `visible` replaces the keys that a query sees at most (windows)."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    v_head_dim: int
    causal: bool
    format: str
    backend: str = ""
    window: int = 0
    kv_format: str = ""


@lru_cache(maxsize=4096)
def attention(gpu: Gpu, work: Attend, warm: bool = False) -> Cost:
    """The cost of one fused attention. `warm`: queries, keys and values come from L2. Raises ConfigError."""
    backends = gpu.library.attention
    name = work.backend or gpu.library.default_attention
    if name not in backends:
        raise ConfigError(not_among("attention back end", name, backends, inside=f"kernel library {gpu.library.name}"))
    alone = work.queries == 1
    for kernel in backends[name]:
        packed = alone and kernel.pack
        rows = work.heads // work.kv_heads if packed else work.queries
        if kernel.most_rows is not None and rows > kernel.most_rows:
            continue
        units = work.batch * (work.kv_heads if packed else work.heads)
        blocks = units * -(-rows // kernel.rows)
        split = _splits(blocks, gpu.sm.count * kernel.blocks, -(-work.keys // kernel.columns)) if kernel.split else 1
        if kernel.split and split == 1 and kernel is not backends[name][-1] and kernel.most_rows is None:
            continue
        return _cost(gpu, work, kernel, name, units, rows, split, warm)
    raise ConfigError(f"kernel library {gpu.library.name} has no {name} kernel for {work.queries} queries")


def _splits(blocks: int, slots: int, steps: int) -> int:
    """Parts that the keys are cut into: the fewest with nearly the best occupancy of the slots."""
    if blocks >= ENOUGH * slots:
        return 1
    efficiency: dict[int, float] = {}
    for split in range(1, min(MOST_SPLITS, slots, steps) + 1):
        if split == 1 or -(-steps // split) != -(-steps // (split - 1)):
            waves = blocks * split / slots
            efficiency[split] = waves / -(-blocks * split // slots)
    best = max(efficiency.values())
    return next(split for split, share in efficiency.items() if share >= GOOD * best)


def _cost(
    gpu: Gpu, work: Attend, kernel: AttentionKernel, name: str, units: int, rows: int, split: int, warm: bool
) -> Cost:
    macs_per_clock = gpu.macs_per_clock(work.format) * gpu.fitted.attention * kernel.rate
    step = kernel.rows * kernel.columns * (work.head_dim + work.v_head_dim) / macs_per_clock
    tiles = -(-rows // kernel.rows)
    slots = gpu.sm.count * kernel.blocks
    per_tile = _steps(work, kernel, tiles, rows)
    longest = -(-max(per_tile) // split)
    count = units * tiles * split
    resident = min(kernel.blocks, -(-count // gpu.sm.count))  # thread blocks that share a multiprocessor's rates
    if min(per_tile) == max(per_tile):
        waves = -(-count // slots)
        cycles = waves * resident * (longest * step + kernel.tile)
    else:
        # Tiles of unequal length in order: slots finish together but for part of the longest tile.
        mean = units * sum(per_tile) * step / gpu.sm.count
        tail = 0.0 if kernel.balanced else longest * step * resident / 2
        cycles = max(mean + tail, longest * step) + -(-count // slots) * resident * kernel.tile
    size, kv_size = bytes_of(work.format), bytes_of(work.kv_format or work.format)
    seen = min(work.keys, work.window + work.queries) if work.window else work.keys
    kv = work.batch * work.kv_heads * seen * (work.head_dim + work.v_head_dim) * kv_size
    queries = work.batch * work.heads * work.queries * work.head_dim * size
    results = work.batch * work.heads * work.queries * work.v_head_dim * size
    read, written = (0.0, 0.0) if warm else (kv + queries, results)
    executed = int(units * sum(per_tile) * kernel.columns * kernel.rows * (work.head_dim + work.v_head_dim))
    # The bytes in flight of few thread blocks do not fill the memory's latency.
    fetch = min(count, gpu.sm.count) * gpu.sm.fetch_bytes_per_clock * float(gpu.clock.maximum)
    main = Cost(
        core_cycles=cycles,
        memory_s=(read + written) / min(stream_rate(gpu, read, written), fetch),
        fixed_s=gpu.fitted.start * 1e-12,
        overlap=gpu.fitted.overlap,
        core="tensor",
        format=work.format,
        macs=executed,
        vector_results=units * sum(per_tile) * kernel.rows * kernel.columns * 2,
        l2_bytes=int(units * sum(per_tile) * kernel.columns * (work.head_dim + work.v_head_dim) * kv_size),
        dram_read_bytes=int(read),
        dram_write_bytes=int(written),
        decisions={"attention": name, "tile": f"{kernel.rows}x{kernel.columns}", "split": str(split)},
    )
    if split == 1:
        return main
    sums = split * work.batch * work.heads * work.queries * (work.v_head_dim + 1) * 4
    merge = Cost(
        core_cycles=2 * sums / gpu.l2.bytes_per_clock, fixed_s=kernel.merge * 1e-12, core="L2", l2_bytes=2 * sums
    )
    return chain([main, merge])


def _steps(work: Attend, kernel: AttentionKernel, tiles: int, rows: int) -> list[int]:
    """Steps of each tile of one head: all keys, or those that its last row sees less those that its first does not."""
    if not work.causal and not work.window:
        return [-(-work.keys // kernel.columns)] * tiles
    found = []
    for tile in range(tiles):
        last = min((tile + 1) * kernel.rows, rows)
        past = work.keys - work.queries
        end = min(work.keys, past + last) if work.causal and rows == work.queries else work.keys
        first = max(0, past + tile * kernel.rows - work.window) if work.window else 0
        found.append(max(1, -(-end // kernel.columns) - first // kernel.columns))
    return found
