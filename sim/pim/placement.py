"""Where requests live in a memory with PIM: which channel each is on, and which rows of it hold its keys and values.

A row number means that row in all banks of a channel, because all banks work together. Keys: bank b holds position
32 t + b (with 32 banks), a row as many heads of it as fit. Values: bank b holds element 32 t + b of a head, a row as
many positions as fit. A request is on one channel with all its heads (NeuPIMs, Heo et al., ASPLOS 2024, section 5).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from sim.errors import ConfigError

Estimate = Callable[[int], int]
"""Ticks that a request with so many cached positions keeps its channel's units busy."""


class Policy(StrEnum):
    """How requests are dealt out over channels: in turn, or the longest first to the channel with least to do."""

    ROUND_ROBIN = "round_robin"
    GREEDY = "greedy"


@dataclass(frozen=True)
class KvLayout:
    """Rows that keys and values of one layer take.

    banks: of a channel; row_elements: elements of a row of one bank; heads, head_dim, value_dim: of keys and values;
    collected: positions whose values are kept in order until so many are there, 1 for none.
    """

    banks: int
    row_elements: int
    heads: int
    head_dim: int
    value_dim: int
    collected: int = 1

    def __post_init__(self) -> None:
        if self.head_dim > self.row_elements:
            raise ConfigError(
                f"a head of {self.head_dim} elements does not fit in the {self.row_elements} of a bank's row that the "
                "units take at once, which the layout of keys needs",
                key="memory.standard",
            )

    @cached_property
    def heads_in_row(self) -> int:
        """Heads of one position that a row of keys holds."""
        return min(self.row_elements // self.head_dim, self.heads)

    @cached_property
    def key_chunks(self) -> int:
        """Rows of keys for a stretch of as many positions as there are banks."""
        return -(-self.heads // self.heads_in_row)

    @cached_property
    def value_tiles(self) -> int:
        """Rows of values of a head for a row full of positions."""
        return -(-self.value_dim // self.banks)

    def key_rows(self, length: int) -> int:
        """Rows of the keys of a request with `length` positions."""
        return -(-length // self.banks) * self.key_chunks

    def value_rows(self, length: int) -> int:
        """Rows of the values of a request with `length` positions."""
        return -(-length // self.row_elements) * self.heads * self.value_tiles

    @cached_property
    def tail_rows(self) -> int:
        """Rows of the values that are still in order of positions."""
        elements = self.collected * self.heads * self.value_dim if self.collected > 1 else 0
        return -(-elements // (self.banks * self.row_elements))

    def settled(self, length: int, head: int) -> int:
        """Positions, of `length`, whose values of a head are in the rows of their elements.

        Heads take turns: each writes its collected values `collected` positions after it did so last, none when
        another does if there are no more heads than that, so that a step's writing is spread over steps and channels.
        """
        turn = head * self.collected // self.heads
        return max(0, length - (length - turn) % self.collected)

    def rows(self, length: int) -> int:
        """Rows of a request with `length` positions."""
        return self.key_rows(length) + self.value_rows(length) + self.tail_rows


@dataclass(frozen=True, slots=True)
class Request:
    """A request on its channel: positions that were cached before the pass, first rows of its keys, of its values, of
    its values still in order of positions, and of the vectors that are loaded into the units for it.
    """

    past: int
    key_row: int
    value_row: int
    tail_row: int
    vector_row: int


@dataclass(frozen=True, slots=True)
class Alike:
    """Channels that hold requests of the same lengths in the same order, in each part of the batch, and therefore do
    the same.
    """

    channels: tuple[int, ...]
    parts: tuple[tuple[Request, ...], ...]


@dataclass(frozen=True, slots=True)
class Placement:
    """All channels, those without requests too.

    `kv_rows` and `vector_rows`: those of the fullest channel, for keys and values of one layer and for the vectors that
    all layers share; `loads`: ticks of each channel by the estimate, of each part.
    """

    groups: tuple[Alike, ...]
    kv_rows: int
    vector_rows: int
    loads: tuple[tuple[int, ...], ...]


def deal(lengths: Sequence[int], channels: int, policy: Policy, estimate: Estimate) -> list[list[int]]:
    """The lengths on each channel, in the order in which they are worked on.

    Greedy is longest processing time first: its fullest channel has at most 4/3 of the least possible load (Graham,
    SIAM J. Applied Mathematics 17, 1969).
    """
    dealt: list[list[int]] = [[] for _ in range(channels)]
    if policy is Policy.ROUND_ROBIN:
        for number, length in enumerate(lengths):
            dealt[number % channels].append(length)
        return dealt
    known = {length: estimate(length) for length in set(lengths)}
    loads = [0] * channels
    for length in sorted(lengths, key=lambda n: (known[n], n), reverse=True):
        channel = min(range(channels), key=lambda c: (loads[c], len(dealt[c]), c))
        dealt[channel].append(length)
        loads[channel] += known[length]
    return dealt


def place(
    parts: Sequence[Sequence[Sequence[int]]], layout: KvLayout, vectors: Callable[[int], int], estimate: Estimate,
    first_row: int = 0,
) -> Placement:  # fmt: skip
    """Hand out rows from `first_row` on, with room for the position that the pass appends.

    parts: lengths by part of the batch and channel; vectors: rows for the vectors of a request of that length.
    """
    found: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for channel in range(len(parts[0])):
        found.setdefault(tuple(tuple(part[channel]) for part in parts), []).append(channel)
    groups = []
    kv_rows = vector_rows = 0
    for lengths, members in found.items():
        row, vector = first_row, 0
        shares = []
        for share in lengths:
            requests = []
            for past in share:
                values = row + layout.key_rows(past + 1)
                requests.append(Request(past, row, values, values + layout.value_rows(past + 1), vector))
                row += layout.rows(past + 1)
                vector += vectors(past)
            shares.append(tuple(requests))
        kv_rows, vector_rows = max(kv_rows, row - first_row), max(vector_rows, vector)
        groups.append(Alike(tuple(members), tuple(shares)))
    loads = tuple(tuple(sum(estimate(past) for past in lengths) for lengths in part) for part in parts)
    return Placement(tuple(groups), kv_rows, vector_rows, loads)


def halves(dealt: Sequence[Sequence[int]], estimate: Estimate) -> tuple[list[list[int]], list[list[int]]]:
    """Two parts of every channel's requests with about equal loads, and about as many requests in all.

    On each channel the longest goes first, each to the lighter part. Which part is which is chosen channel by channel
    so that the parts' requests stay even, because the NPU's work goes with their number.
    """
    first: list[list[int]] = []
    second: list[list[int]] = []
    more = 0
    load_more = 0
    for lengths in dealt:
        parts: tuple[list[int], list[int]] = ([], [])
        loads = [0, 0]
        for length in sorted(lengths, key=lambda n: (estimate(n), n), reverse=True):
            lighter = 0 if (loads[0], len(parts[0])) <= (loads[1], len(parts[1])) else 1
            parts[lighter].append(length)
            loads[lighter] += estimate(length)
        count, load = len(parts[0]) - len(parts[1]), loads[0] - loads[1]
        swap = (abs(more - count), abs(load_more - load)) < (abs(more + count), abs(load_more + load))
        more += -count if swap else count
        load_more += -load if swap else load
        first.append(parts[swap])
        second.append(parts[1 - swap])
    return first, second
