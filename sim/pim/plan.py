"""Where the vectors, keys and values of a pass are whose attention runs in memory, and the jobs that follow from it.

Rows are those of one layer; the caches of the others follow and are accounted for, but layers are alike and one is
simulated. Row numbers mean a row in all banks, bank numbers count through a channel (rank, group, bank).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.kernels import pim_tables as at
from sim.pim.address import RowAddresses, runs
from sim.pim.jobs import instructions, job_ticks, moves, reads_out
from sim.pim.placement import KvLayout, Placement, Request
from sim.pim.schema import Scope
from sim.pim.use import KERNEL
from sim.standards import Memory

Ints = NDArray[np.int64]
Runs = tuple[Ints, Ints]


@dataclass(frozen=True)
class JobMaker:
    """Makes jobs of attention for one memory and layout. `queries`: heads of the query for each of keys and values."""

    memory: Memory
    layout: KvLayout
    queries: int

    @property
    def query_vectors(self) -> int:
        """Vectors that the query of a request makes: one for each row of keys and query of a head."""
        return self.layout.key_chunks * self.queries

    def vector_count(self, past: int) -> int:
        """All vectors that are loaded for a request with `past` cached positions."""
        return self.query_vectors + self.queries * sum(map(len, self.tokens(past)))

    def tokens(self, past: int) -> list[list[int]]:
        """For each head, positions in each row of its values that the units work on."""
        row = self.layout.row_elements
        settled = [self.layout.settled(past, head) for head in range(self.layout.heads)]
        return [[min(row, count - first) for first in range(0, count, row)] for count in settled]

    def chunk_heads(self) -> list[int]:
        """Heads in each row of keys."""
        layout = self.layout
        return [
            min(layout.heads_in_row, layout.heads - chunk * layout.heads_in_row) for chunk in range(layout.key_chunks)
        ]

    def keys(self, request: Request, places: Ints) -> Ints:
        """Jobs for the scores: for each row of keys and query, all stretches of positions. `places`: (bank, row) of
        each vector, in that order.
        """
        layout = self.layout
        steps = self._steps(layout.head_dim)
        heads = np.repeat(self.chunk_heads(), self.queries)
        chunk = np.repeat(np.arange(layout.key_chunks), self.queries)
        return self._jobs(
            len(heads), TILES=-(-request.past // layout.banks), GROUPS=heads, DOTS=steps, ROW=request.key_row + chunk,
            STEP=layout.key_chunks, LOAD_BANK=places[:, 0], LOAD_ROW=places[:, 1],
        )  # fmt: skip

    def values(self, request: Request, places: Ints) -> Ints:
        """Jobs for the weighted values: for each head of the query and row full of positions, all elements."""
        layout = self.layout
        work = [
            (head, chunk, self._steps(count))
            for head, counts in enumerate(self.tokens(request.past))
            for _ in range(self.queries)
            for chunk, count in enumerate(counts)
        ]
        head, chunk, dots = np.array(work, np.int64).reshape(-1, 3).T
        row = request.value_row + (chunk * layout.heads + head) * layout.value_tiles
        return self._jobs(
            len(row), TILES=layout.value_tiles, GROUPS=1, DOTS=dots, ROW=row, STEP=1, LOAD_BANK=places[:, 0],
            LOAD_ROW=places[:, 1],
        )  # fmt: skip

    def product(self, shape: ProductRows, places: Ints) -> Ints:
        """Jobs for one vector times a matrix, on each channel: for each stretch of the vector all its rows."""
        length = np.minimum(shape.row_elements, shape.k - np.arange(shape.chunks) * shape.row_elements)
        return self._jobs(
            shape.chunks, TILES=shape.tiles, GROUPS=1, DOTS=[self._steps(n) for n in length.tolist()],
            ROW=shape.row + np.arange(shape.chunks) * shape.tiles, STEP=1, LOAD_BANK=places[:, 0],
            LOAD_ROW=places[:, 1],
        )  # fmt: skip

    def macs(self, jobs: Ints) -> int:
        """Multiply-accumulates that the units of one channel do for `jobs`, padding included."""
        assert self.memory.pim is not None
        return int((jobs[:, at.TILES] * jobs[:, at.GROUPS] * jobs[:, at.DOTS]).sum()) * (
            self.layout.banks * self.memory.pim.macs
        )

    def ticks(self, jobs: Ints) -> int:
        """Ticks of `jobs` one after another on a channel that does nothing else."""
        return int(job_ticks(self.memory, jobs).sum())

    def instructions(self, jobs: Ints) -> int:
        """PIM instructions that `jobs` take through a port, the activations of each tile among them."""
        assert self.memory.pim is not None
        opened = {
            Scope.BANK: self.layout.banks,
            Scope.BANK_GROUP: self.layout.banks // self.memory.organisation.banks,
            Scope.SET: 1,
        }[self.memory.pim.activate]
        return int(instructions(self.memory, jobs).sum() + opened * jobs[:, at.TILES].sum())

    def readouts(self, jobs: Ints) -> int:
        """Read-outs of `jobs`."""
        return int((jobs[:, at.TILES] * jobs[:, at.GROUPS]).sum())

    def _steps(self, elements: int) -> int:
        assert self.memory.pim is not None
        return -(-elements // self.memory.pim.macs)

    def _jobs(self, count: int, **columns: Ints | list[int] | int) -> Ints:
        assert self.memory.pim is not None
        jobs = np.zeros((count, at.JOB_FIELDS), np.int64)
        jobs[:, at.KERNEL] = self.memory.pim.kernel_number(KERNEL)
        jobs[:, at.LOADS] = 1
        for name, values in columns.items():
            jobs[:, getattr(at, name)] = values
        if not reads_out(self.memory):
            each = moves(self.memory, self.layout.banks)
            jobs[:, at.MOVES_OUT] = jobs[:, at.TILES] * jobs[:, at.GROUPS] * each
        return jobs


@dataclass(frozen=True, slots=True)
class ProductRows:
    """Rows of a k x n matrix of weights from `row` on, on each channel: a row holds `row_elements` of one column."""

    k: int
    n: int
    channels: int
    banks: int
    row_elements: int
    row: int

    @property
    def chunks(self) -> int:
        """Stretches of the vector that a load brings."""
        return -(-self.k // self.row_elements)

    @property
    def tiles(self) -> int:
        """Rows for one stretch: columns are dealt out over channels, then over banks."""
        return -(-self.n // (self.channels * self.banks))

    @property
    def rows(self) -> int:
        """All rows."""
        return self.chunks * self.tiles


@dataclass(frozen=True)
class PimPlan:
    """Everything that the lowering asks about a pass. `vector_row`: first row of the vectors to load, behind the caches
    of all layers; `caches`: names of the tensors that are kept in this way; `products`: rows of weights by name.
    """

    maker: JobMaker
    addresses: RowAddresses
    placement: Placement
    vector_row: int
    caches: frozenset[str]
    products: Mapping[str, ProductRows]

    @property
    def layout(self) -> KvLayout:
        """Rows of keys and values."""
        return self.maker.layout

    @property
    def group_of_channel(self) -> Ints:
        """The group that each channel is in, -1 for one without requests."""
        channels = len(self.placement.loads[0])
        found = np.full(channels, -1, np.int64)
        for number, group in enumerate(self.placement.groups):
            found[list(group.channels)] = number
        return found

    def vector_places(self, request: Request, first: int, count: int) -> Ints:
        """(bank, row) of vectors `first` to `first + count` of a request: each has a row of one bank."""
        slot = np.arange(first, first + count)
        banks = self.addresses.banks
        return np.stack((slot % banks, self.vector_row + request.vector_row + slot // banks), 1)

    def vector_bursts(self, request: Request, first: int, sizes: Sequence[int]) -> Runs:
        """Bursts that hold vectors of so many bytes each, from vector `first` of a request on."""
        burst = self.addresses.memory.burst_bytes
        counts = np.array([-(-size // burst) for size in sizes], np.int64)
        places = np.repeat(self.vector_places(request, first, len(counts)), counts, axis=0)
        column = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return runs(self.addresses.bursts(places[:, 0], places[:, 1], column))

    def tail_bursts(self, request: Request) -> Ints:
        """Bursts that hold the values of a request that are not in the units' rows, in order of positions."""
        layout = self.layout
        settled = [layout.settled(request.past, head) for head in range(layout.heads)]
        heads = [
            (place % layout.collected, head)
            for place in range(min(settled), request.past)
            for head in range(layout.heads)
            if place >= settled[head]
        ]
        return self._in_order(request, heads)

    def _in_order(self, request: Request, values: Sequence[tuple[int, int]]) -> Ints:
        """Bursts of (place, head) pairs in the rows of values that are in order of positions."""
        if not values:
            return np.zeros(0, np.int64)
        layout, addresses = self.layout, self.addresses
        burst = addresses.memory.burst_bytes
        size = layout.value_dim * self._element
        place, head = np.array(values).T
        low = (place * layout.heads + head) * size
        span = -(-size // burst) + 1
        number = low[:, None] // burst + np.arange(span)
        touched = number[number * burst < (low + size)[:, None]]
        # Heads that share a burst follow each other.
        number = touched[np.concatenate(([True], np.diff(touched) != 0))]
        slot, column = np.divmod(number, addresses.columns)
        return addresses.bursts(slot % addresses.banks, request.tail_row + slot // addresses.banks, column)

    def append_bursts(self, request: Request) -> tuple[Runs, Ints, list[Ints]]:
        """Bursts that the newest position of a request changes: of its keys; of the values in order of positions, for
        heads that collect; and for each head that does not or whose turn it is, of the rows of its elements.

        A key fills a stretch of one bank's row for each row of keys; a value is an element of a row of its own.
        """
        layout, addresses = self.layout, self.addresses
        burst = addresses.memory.burst_bytes
        stretch, bank = divmod(request.past, layout.banks)
        counts = np.array([-(-heads * layout.head_dim * self._element // burst) for heads in self.maker.chunk_heads()])
        row = request.key_row + stretch * layout.key_chunks + np.repeat(np.arange(layout.key_chunks), counts)
        column = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        keys = runs(addresses.bursts(np.full(len(row), bank), row, column))

        before = [layout.settled(request.past, head) for head in range(layout.heads)]
        after = [layout.settled(request.past + 1, head) for head in range(layout.heads)]
        place = request.past % layout.collected
        waiting = [(place, head) for head in range(layout.heads) if after[head] == before[head]]
        written = [
            self._elements(request, head, before[head], after[head])
            for head in range(layout.heads)
            if after[head] > before[head]
        ]
        return keys, self._in_order(request, waiting), written

    def _elements(self, request: Request, head: int, first: int, last: int) -> Ints:
        """Bursts of the rows of a head's elements that hold positions `first` to `last`."""
        layout, addresses = self.layout, self.addresses
        each = addresses.memory.burst_bytes // self._element
        chunk, column = np.divmod(np.arange(first // each, -(-last // each)), layout.row_elements // each)
        tile, turn = (grid.ravel() for grid in np.indices((layout.value_tiles, layout.banks)))
        bank = addresses.in_turn[turn]
        real = tile * layout.banks + bank < layout.value_dim
        tile, bank = tile[real, None], bank[real, None]
        row = request.value_row + (chunk * layout.heads + head) * layout.value_tiles + tile
        return addresses.bursts(np.broadcast_to(bank, row.shape), row, np.broadcast_to(column, row.shape)).ravel()

    @property
    def _element(self) -> int:
        assert self.addresses.memory.pim is not None
        return int(self.addresses.memory.pim.element)
