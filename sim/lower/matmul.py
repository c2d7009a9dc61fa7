"""Lowers a matrix product: tiles, loop order, what is kept on chip, and the vector operators applied to each output
tile.

Loops are (outer, inner, k) with k innermost, so that partial sums never leave the accumulators. The operand that
depends on the outer index alone is kept on chip across the inner loop or fetched again for each of its steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from sim.hardware import Hardware
from sim.lower.builder import PER_CORE, Builder, Held, Space, Unit
from sim.lower.compute import Bits, TileWork, tile_work, vector_task, whole


@dataclass(frozen=True, slots=True)
class Epilogue:
    """A vector operator on the output tiles: `columns_in` columns of the product become `columns_out`; `extra`
    operands.

    `elements`: results that the function works out, all tiles together (fewer than all where it changes only some
    columns).
    """

    function: str
    columns_in: int
    columns_out: int
    elements: int
    vector_ops: int
    extra: tuple[tuple[bool, Fraction], ...]  # further operands: (in DRAM, bytes an element of the result)


@dataclass(frozen=True, slots=True)
class Product:
    """A matmul as the mapper sees it: sizes, formats, which operands are in DRAM. Hashable: results are remembered."""

    groups: tuple[int, ...]  # rows of each batch member
    n: int
    k: int
    number_format: str
    size: Bits
    left_in_dram: bool
    right_in_dram: bool
    result_in_dram: bool
    right_shared: bool  # all batch members use one right operand
    epilogues: tuple[Epilogue, ...] = ()

    @property
    def columns_out(self) -> int:
        """Columns of the result after the epilogues."""
        return self.epilogues[-1].columns_out if self.epilogues else self.n


@dataclass(frozen=True, slots=True)
class Tiling:
    """Tile sizes and loop order: `order` names the outer loop, `keep` holds its operand across the inner loop."""

    m: int
    n: int
    k: int
    order: str
    keep: bool

    def __str__(self) -> str:
        return f"{self.m}x{self.n}x{self.k} {self.order}-outer{' kept' if self.keep else ''}"


@dataclass(frozen=True, slots=True)
class Places:
    """Where a product's operands are: byte offsets (if in DRAM) and the tasks after which each may be read."""

    left: int
    left_space: Space
    left_ready: tuple[int, ...]
    right: int
    right_space: Space
    right_ready: tuple[int, ...]
    result: tuple[tuple[Space, int, int], ...]  # pieces (space, offset, bytes) that make up the result
    extra: tuple[tuple[Space, int, tuple[int, ...]], ...]  # of each epilogue operand in DRAM
    start: tuple[int, ...]  # the operator may compute after these


def cuts(total: int, step: int) -> list[tuple[int, int]]:
    """(start, length) of the tiles of `total`."""
    return [(start, min(step, total - start)) for start in range(0, total, step)]


class _Blocked:
    """Byte ranges of a tensor that is stored tile after tile; sizes add up to the tensor's own bytes exactly."""

    def __init__(self, grid: Sequence[int], total_bytes: int, align: int) -> None:
        elements = sum(grid)
        at = done = 0
        self.ranges: list[tuple[int, int]] = []
        for tile in grid:
            size = (done + tile) * total_bytes // elements - done * total_bytes // elements
            done += tile
            self.ranges.append((at, size))
            at += -(-size // align) * align if size >= align else size
        self.span = at


def layout_bytes(product: Product, tiling: Tiling, align: int) -> int:
    """Bytes of DRAM that the right operand takes in this tiling, alignment included."""
    return _right(product, tiling, align).span * (1 if product.right_shared else len(product.groups))


@lru_cache(maxsize=256)
def _left(product: Product, tiling: Tiling, rows: int, align: int) -> _Blocked:
    grid = [m * k for _, m in cuts(rows, tiling.m) for _, k in cuts(product.k, tiling.k)]
    return _Blocked(grid, whole(rows * product.k * product.size.left), align)


@lru_cache(maxsize=256)
def _right(product: Product, tiling: Tiling, align: int) -> _Blocked:
    grid = [n * k for _, n in cuts(product.n, tiling.n) for _, k in cuts(product.k, tiling.k)]
    return _Blocked(grid, whole(product.n * product.k * product.size.right), align)


def footprint(product: Product, tiling: Tiling) -> tuple[int, int]:
    """Most bytes of scratchpad and of accumulators that two consecutive steps hold."""
    size = product.size
    left = whole(tiling.m * tiling.k * size.left) if product.left_in_dram else 0
    right = whole(tiling.n * tiling.k * size.right) if product.right_in_dram else 0
    pieces = -(-product.k // tiling.k)
    kept, streamed = (left, right) if tiling.order == "m" else (right, left)
    held = kept * (pieces if tiling.keep else 1)
    slack = kept if tiling.keep and pieces > 1 else held
    extra = sum(
        whole(tiling.m * min(e.columns_out, tiling.n) * width)
        for e in product.epilogues
        for in_dram, width in e.extra
        if in_dram
    )
    return held + slack + 2 * streamed + 2 * extra, 2 * whole(tiling.m * tiling.n * size.accumulator)


def lower_product(builder: Builder, product: Product, tiling: Tiling, places: Places, ops: Sequence[int]) -> list[int]:
    """Add the tasks of `product`; returns those that end it. `ops`: numbers of the matmul and of its epilogues."""
    machine = builder.machine
    align = builder.align_bytes
    cost = _Costs(machine, product)
    n_tiles, k_tiles = cuts(product.n, tiling.n), cuts(product.k, tiling.k)
    ends: list[int] = []
    turn = 0
    left_base = places.left
    result_done = 0
    extra_done = [0] * len(places.extra)
    pieces = _Pieces(places.result)
    total_out = sum(product.groups) * product.columns_out
    for member, rows in enumerate(product.groups):
        left = _left(product, tiling, rows, align)
        right = _right(product, tiling, align)
        right_base = places.right + (0 if product.right_shared else member * right.span)
        m_tiles = cuts(rows, tiling.m)

        def load_left(core: int, mi: int, ki: int, left: _Blocked = left, base: int = left_base) -> Held | None:
            if not product.left_in_dram:
                return None
            offset, size = left.ranges[mi * len(k_tiles) + ki]
            return builder.fetch(core, places.left_space, base + offset, size, places.left_ready)

        def load_right(core: int, ni: int, ki: int, right: _Blocked = right, base: int = right_base) -> Held | None:
            if not product.right_in_dram:
                return None
            offset, size = right.ranges[ni * len(k_tiles) + ki]
            return builder.fetch(core, places.right_space, base + offset, size, places.right_ready)

        m_outer = tiling.order == "m"
        outer, inner = (m_tiles, n_tiles) if m_outer else (n_tiles, m_tiles)
        load_outer, load_inner = (load_left, load_right) if m_outer else (load_right, load_left)
        spread = machine.cores > 1 and len(outer) < machine.cores
        for oi in range(len(outer)):
            kept: dict[tuple[int, int], Held | None] = {}
            users: dict[tuple[int, int], list[int]] = {}
            for ii in range(len(inner)):
                core = turn % machine.cores
                builder.current_op = ops[0]
                mi, ni = (oi, ii) if m_outer else (ii, oi)
                m, n = m_tiles[mi][1], n_tiles[ni][1]
                sums = builder.reserve(core, whole(m * n * product.size.accumulator), accumulator=True)
                array_tasks: list[int] = []
                for ki, (_, k) in enumerate(k_tiles):
                    key = (core, ki)
                    if key not in kept or not tiling.keep:
                        kept[key] = load_outer(core, oi, ki)
                    a, w = kept[key], load_inner(core, ii, ki)
                    tile = cost.tile(m, n, k)
                    after = [
                        *places.start,
                        *(a.ready if a else ()),
                        *(w.ready if w else ()),
                    ]
                    if not product.left_in_dram:
                        after.extend(places.left_ready)
                    if not product.right_in_dram:
                        after.extend(places.right_ready)
                    number = builder.task(
                        core * PER_CORE + Unit.ARRAY, tile.occupancy, after, tile.work, tile.tail, tile.cold
                    )
                    # Pieces of a sum are added in the order in which their operands arrive.
                    builder.claim(core, sums, number, accumulator=True)
                    array_tasks.append(number)
                    if w:
                        builder.release(core, w.buffer, (number,))
                    if a:
                        users.setdefault(key, []).append(number)
                        if not tiling.keep:
                            builder.release(core, a.buffer, (number,))
                done = tuple(array_tasks)
                columns = n
                for epilogue, op in zip(product.epilogues, ops[1:], strict=True):
                    share = Fraction(m * n, sum(product.groups) * product.n)
                    out = columns * epilogue.columns_out // epilogue.columns_in
                    extra_ready: list[int] = []
                    held: list[Held] = []
                    builder.current_op = op
                    for index, (in_dram, width) in enumerate(epilogue.extra):
                        if in_dram:
                            space, base, ready = places.extra[index]
                            size = whole(m * out * width)
                            held.append(builder.fetch(core, space, base + extra_done[index], size, ready))
                            extra_done[index] += size
                            extra_ready.extend(held[-1].ready)
                    read = whole(
                        m * columns * product.size.result + sum(m * out * width for _, width in epilogue.extra)
                    )
                    task = vector_task(
                        builder, core, epilogue.function, 1, whole(epilogue.elements * share),
                        (read, whole(m * out * product.size.result)), (*done, *extra_ready, *places.start),
                        int(epilogue.vector_ops * share),
                    )  # fmt: skip
                    for item in held:
                        builder.release(core, item.buffer, (task,))
                    columns, done = out, (task,)
                if product.result_in_dram:
                    builder.current_op = ops[-1]
                    upto = result_done + m * columns
                    share_bytes = pieces.total * upto // total_out - pieces.total * result_done // total_out
                    result_done = upto
                    done = (builder.move(core, True, pieces.take(share_bytes), done),)
                builder.release(core, sums, done, accumulator=True)
                ends.extend(done)
                if spread:
                    turn += 1
            for key, held_outer in kept.items():
                if held_outer and tiling.keep:
                    builder.release(key[0], held_outer.buffer, tuple(users[key]))
            if not spread:
                turn += 1
        left_base += left.span
    builder.current_op = ops[0]
    return ends


class _Pieces:
    """Hands out consecutive byte ranges of the regions that make up a result."""

    def __init__(self, pieces: Sequence[tuple[Space, int, int]]) -> None:
        self.pieces = list(pieces)
        self.total = sum(p[2] for p in pieces)

    def take(self, size: int) -> list[tuple[Space, int, int]]:
        taken: list[tuple[Space, int, int]] = []
        while size > 0:
            space, offset, length = self.pieces[0]
            part = min(size, length)
            taken.append((space, offset, part))
            size -= part
            if part == length:
                self.pieces.pop(0)
            else:
                self.pieces[0] = (space, offset + part, length - part)
        return taken


class _Costs:
    """Tile costs of one product, each distinct tile worked out once."""

    def __init__(self, machine: Hardware, product: Product) -> None:
        self.machine = machine
        self.product = product
        self.known: dict[tuple[int, int, int], TileWork] = {}

    def tile(self, m: int, n: int, k: int) -> TileWork:
        key = (m, n, k)
        if key not in self.known:
            p = self.product
            self.known[key] = tile_work(self.machine, 1, m, n, k, p.number_format, p.size)
        return self.known[key]


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


def estimate_ps(
    machine: Hardware, product: Product, tiling: Tiling, tile_cost: Callable[[int, int, int], TileWork]
) -> int:
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
                    compute += m_count * n_count * k_count * tile_cost(m, n, k).occupancy
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
