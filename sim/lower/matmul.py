"""Lowers a matrix product: tiles, loop order, what is kept on chip, and the vector operators applied to each output
tile.

Loops are (outer, inner, k) with k innermost, so that partial sums never leave the accumulators. The operand that
depends on the outer index alone is kept on chip across the inner loop or fetched again for each of its steps.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from sim.hardware import Hardware
from sim.lower.buffers import Buffer
from sim.lower.builder import PER_CORE, Builder, Held, Space, Unit, Work
from sim.lower.compute import Bits, TileWork, tile_work, vector_task, whole
from sim.lower.ranges import Blocked, Pieces, cuts
from sim.sparse.zeros import Split, Zeros, prepare_cycles


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
    extra: tuple[tuple[bool, Fraction | int], ...]  # further operands: (in DRAM, bytes an element of the result)


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
    zeros: Zeros | None = None  # of operands whose zeros the machine makes use of

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


def layout_bytes(product: Product, tiling: Tiling, align: int) -> int:
    """Bytes of DRAM that the right operand takes in this tiling, alignment included."""
    return _right(product, tiling, align).span * (1 if product.right_shared else len(product.groups))


@lru_cache(maxsize=256)
def _left(product: Product, tiling: Tiling, rows: int, align: int) -> Blocked:
    grid = [m * k for _, m in cuts(rows, tiling.m) for _, k in cuts(product.k, tiling.k)]
    return Blocked(grid, whole(rows * product.k * product.size.left), align)


@lru_cache(maxsize=256)
def _right(product: Product, tiling: Tiling, align: int) -> Blocked:
    grid = [n * k for _, n in cuts(product.n, tiling.n) for _, k in cuts(product.k, tiling.k)]
    return Blocked(grid, whole(product.n * product.k * product.size.right), align)


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


class TileCosts:
    """Tile costs of one product, each distinct tile worked out once; the memory's peak in bytes a second."""

    def __init__(self, machine: Hardware, product: Product) -> None:
        self.machine = machine
        self.bandwidth = int(machine.peak_bytes_per_s)
        self.product = product
        self.known: dict[tuple[int, int, int], TileWork] = {}
        self._occupancy: dict[tuple[int, int, int], int] = {}

    def tile(self, m: int, n: int, k: int) -> TileWork:
        key = (m, n, k)
        if key not in self.known:
            p = self.product
            self.known[key] = tile_work(self.machine, 1, m, n, k, p.number_format, p.size, p.zeros)
        return self.known[key]

    def occupancy(self, m: int, n: int, k: int) -> int:
        """Core cycles of all tiles of the product, cut into tiles of m x n x k."""
        key = (m, n, k)
        if key not in self._occupancy:
            p = self.product
            k_tiles = counted(p.k, k)
            columns = [(n_part, k_part, a * b) for n_part, a in counted(p.n, n) for k_part, b in k_tiles]
            self._occupancy[key] = sum(
                m_times * times * self.tile(m_part, n_part, k_part).occupancy
                for rows, groups in Counter(p.groups).items()
                for m_part, each in counted(rows, m)
                for m_times in [groups * each]
                for n_part, k_part, times in columns
            )
        return self._occupancy[key]


def engine_work(machine: Hardware, product: Product, tiling: Tiling) -> tuple[int, Split]:
    """(products done, cycles by cause) of all tiles of a product with zeros."""
    costs = TileCosts(machine, product)
    macs, split = 0, Split()
    for rows in product.groups:
        for m, m_times in counted(rows, tiling.m):
            for n, n_times in counted(product.n, tiling.n):
                for k, k_times in counted(product.k, tiling.k):
                    times, tile = m_times * n_times * k_times, costs.tile(m, n, k)
                    macs, split = macs + times * tile.work.macs, split.plus(tile.split, times)
    return macs, split


def counted(total: int, step: int) -> list[tuple[int, int]]:
    """Distinct tile lengths with how often each occurs."""
    full, rest = divmod(total, step)
    return [item for item in ((step, full), (rest, 1 if rest else 0)) if item[1]]


def lower_product(builder: Builder, product: Product, tiling: Tiling, places: Places, ops: Sequence[int]) -> list[int]:
    """Add the tasks of `product`; returns those that end it. `ops`: numbers of the matmul and of its epilogues."""
    loops = _Loops(builder, product, tiling, places, ops)
    for member, rows in enumerate(product.groups):
        loops.member(member, rows)
    builder.current_op = ops[0]
    return loops.ends


class _Loops:
    """The loops of one product, from batch member to tile; keeps what runs on from tile to tile."""

    def __init__(self, builder: Builder, product: Product, tiling: Tiling, places: Places, ops: Sequence[int]) -> None:
        self.builder, self.product, self.tiling, self.places, self.ops = builder, product, tiling, places, ops
        self.cost = TileCosts(builder.machine, product)
        self.n_tiles, self.k_tiles = cuts(product.n, tiling.n), cuts(product.k, tiling.k)
        self.ends: list[int] = []
        self.turn = 0
        self.left_base = places.left
        self.results = Pieces(places.result)
        self.elements = sum(product.groups) * product.n
        self.done = 0  # elements of the product, before epilogues
        self.extra_done = [0] * len(places.extra)
        self.prepared: dict[int, tuple[int, ...]] = {}  # by rows of the batch member: what makes their zeros usable

    def member(self, number: int, rows: int) -> None:
        """All tiles of one batch member. Cores take turns by outer step, or by inner step where those are too few."""
        cores = self.builder.machine.cores
        align = self.builder.align_bytes
        right = _right(self.product, self.tiling, align)
        base = self.places.right + (0 if self.product.right_shared else number * right.span)
        self.left, self.right, self.right_base = _left(self.product, self.tiling, rows, align), right, base
        self.m_tiles = cuts(rows, self.tiling.m)
        self.prepared = {}
        m_outer = self.tiling.order == "m"
        outer, inner = (self.m_tiles, self.n_tiles) if m_outer else (self.n_tiles, self.m_tiles)
        spread = len(outer) < cores
        for oi in range(len(outer)):
            kept: dict[tuple[int, int], Held | None] = {}
            users: dict[tuple[int, int], list[int]] = {}
            for ii in range(len(inner)):
                mi, ni = (oi, ii) if m_outer else (ii, oi)
                self.output_tile(self.turn % cores, mi, ni, kept, users)
                self.turn += spread
            for key, held in kept.items():
                if held and self.tiling.keep:
                    self.builder.release(key[0], held.buffer, tuple(users[key]))
            self.turn += not spread
        self.left_base += self.left.span

    def output_tile(
        self,
        core: int,
        mi: int,
        ni: int,
        kept: dict[tuple[int, int], Held | None],
        users: dict[tuple[int, int], list[int]],
    ) -> None:
        """One tile of the result: its pieces along k, its epilogues, its store."""
        b, product = self.builder, self.product
        m, n = self.m_tiles[mi][1], self.n_tiles[ni][1]
        sums = b.reserve(core, whole(m * n * product.size.accumulator), accumulator=True)
        done = tuple(
            self.piece(core, mi, ni, ki, sums, kept, users.setdefault((core, ki), []))
            for ki in range(len(self.k_tiles))
        )
        before, self.done = self.done, self.done + m * n
        columns = n
        first_extra = 0
        for number, epilogue in enumerate(product.epilogues):
            done = (self.epilogue(core, epilogue, self.ops[1 + number], m, columns, first_extra, before, done),)
            first_extra += len(epilogue.extra)
            columns = columns * epilogue.columns_out // epilogue.columns_in
        if product.result_in_dram:
            b.current_op = self.ops[-1]
            size = _share(self.results.total, before, self.done, self.elements)
            done = (b.move(core, True, self.results.take(size), done),)
        b.release(core, sums, done, accumulator=True)
        self.ends.extend(done)

    def piece(
        self,
        core: int,
        mi: int,
        ni: int,
        ki: int,
        sums: Buffer,
        kept: dict[tuple[int, int], Held | None],
        users: list[int],
    ) -> int:
        """One step along k of an output tile; pieces of a sum are added in the order in which their operands arrive."""
        b, product, places = self.builder, self.product, self.places
        b.current_op = self.ops[0]
        if (core, ki) not in kept or not self.tiling.keep:
            kept[core, ki] = self.load_left(core, mi, ki) if self.tiling.order == "m" else self.load_right(core, ni, ki)
        stays = kept[core, ki]
        goes = self.load_right(core, ni, ki) if self.tiling.order == "m" else self.load_left(core, mi, ki)
        after = [*places.start, *(stays.ready if stays else ()), *(goes.ready if goes else ())]
        if not product.left_in_dram:
            after.extend(places.left_ready)
        after.extend(self.prepare(core, mi))
        if not product.right_in_dram:
            after.extend(places.right_ready)
        tile = self.cost.tile(self.m_tiles[mi][1], self.n_tiles[ni][1], self.k_tiles[ki][1])
        number = b.task(core * PER_CORE + Unit.ARRAY, tile.occupancy, after, tile.work, tile.tail, tile.cold)
        b.claim(core, sums, number, accumulator=True)
        if goes:
            b.release(core, goes.buffer, (number,))
        users.append(number)
        if stays and not self.tiling.keep:
            b.release(core, stays.buffer, (number,))
        return number

    def prepare(self, core: int, mi: int) -> tuple[int, ...]:
        """The task, once for rows of activations with zeros, that finds or converts what is kept of them."""
        b, product = self.builder, self.product
        if product.zeros is None or product.zeros.left is None:
            return ()
        if mi not in self.prepared:
            rows = self.m_tiles[mi][1]
            cycles = prepare_cycles(b.machine, rows, product.k, product.zeros)
            after = (*self.places.start, *self.places.left_ready)
            moved = whole(rows * product.k * product.size.left)
            task = b.task(core * PER_CORE + Unit.VECTOR, cycles, after, Work(sram_read=moved)) if cycles else None
            self.prepared[mi] = () if task is None else (task,)
        return self.prepared[mi]

    def epilogue(
        self,
        core: int,
        epilogue: Epilogue,
        op: int,
        m: int,
        columns: int,
        first_extra: int,
        before: int,
        after: tuple[int, ...],
    ) -> int:
        """Apply a vector operator to an output tile of m x columns; loads its further operands if they are in DRAM."""
        b, size = self.builder, self.product.size
        b.current_op = op
        out = columns * epilogue.columns_out // epilogue.columns_in
        held: list[Held] = []
        for index, (in_dram, width) in enumerate(epilogue.extra, first_extra):
            if in_dram:
                space, base, ready = self.places.extra[index]
                amount = whole(m * out * width)
                held.append(b.fetch(core, space, base + self.extra_done[index], amount, ready))
                self.extra_done[index] += amount
        read = whole(m * columns * size.result + sum(m * out * width for _, width in epilogue.extra))
        ready = (*after, *self.places.start, *(task for item in held for task in item.ready))
        task = vector_task(
            b, core, epilogue.function, 1, max(_share(epilogue.elements, before, self.done, self.elements), 1),
            (read, whole(m * out * size.result)), ready,
            _share(epilogue.vector_ops, before, self.done, self.elements),
        )  # fmt: skip
        for item in held:
            b.release(core, item.buffer, (task,))
        return task

    def load_left(self, core: int, mi: int, ki: int) -> Held | None:
        """Load a tile of the left operand, unless it is on chip."""
        if not self.product.left_in_dram:
            return None
        offset, size = self.left.ranges[mi * len(self.k_tiles) + ki]
        places = self.places
        return self.builder.fetch(core, places.left_space, self.left_base + offset, size, places.left_ready)

    def load_right(self, core: int, ni: int, ki: int) -> Held | None:
        """Load a tile of the right operand, unless it is on chip."""
        if not self.product.right_in_dram:
            return None
        offset, size = self.right.ranges[ni * len(self.k_tiles) + ki]
        places = self.places
        return self.builder.fetch(core, places.right_space, self.right_base + offset, size, places.right_ready)


def _share(total: int, low: int, high: int, elements: int) -> int:
    """The part of `total` that goes with elements [low, high); parts add up exactly."""
    return total * high // elements - total * low // elements
