"""On-chip memory as a ring: buffers are handed out in program order, and a buffer's place is reused only after its last
user.

The ring is worked out while lowering. What it returns for each new buffer are the tasks that must have ended before the
place may be overwritten; the caller turns them into waits, so double buffering is an edge of the Program.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Span:
    """A stretch [low, high) of the memory and who has to end before it is free; None: in use by tasks yet to come."""

    low: int
    high: int
    releases: tuple[int, ...] | None
    external: bool = False


@dataclass(slots=True)
class Buffer:
    """A place in the ring. `waits`: tasks to wait for; `external`: stretches whose last user belongs to an earlier
    block.
    """

    span: Span
    waits: tuple[int, ...]
    external: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Ring:
    """The ring's state: stretches in order of their place, with the places apart for searching. At first every byte
    belongs to whatever ran before (`external`).
    """

    capacity: int
    head: int = 0
    spans: list[Span] = field(default_factory=list)
    lows: list[int] = field(default_factory=list)
    held: list[Span] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.capacity > 0:
            self.spans = [Span(0, self.capacity, (), external=True)]
            self.lows = [0]

    def take(self, size: int) -> Buffer:
        """Hand out `size` bytes after the last buffer, around the end and past buffers still in use.

        Raises MemoryError when no stretch of that size is free; the mapper offers only tiles that fit.
        """
        for low in self._places(size):
            high = low + size
            if high > self.capacity:
                continue
            for s in self.held:
                if s.low < high and low < s.high:
                    break
            else:
                return self._occupy(low, high)
        raise MemoryError(f"no {size} of {self.capacity} bytes are free")

    def free(self, buffer: Buffer, tasks: tuple[int, ...]) -> None:
        """The buffer may be overwritten once `tasks` have ended."""
        buffer.span.releases = tasks
        self.held.remove(buffer.span)

    def touched(self) -> list[Span]:
        """The stretches that were handed out since the start, with the tasks that release them."""
        return [s for s in self.spans if not s.external]

    def state(self) -> tuple[list[Span], list[int]]:
        """What `restore` needs to forget all that is handed out from now on; no buffer may be held."""
        assert not self.held
        return self.spans.copy(), self.lows.copy()

    def restore(self, state: tuple[list[Span], list[int]]) -> None:
        """Go back to `state`, with the next buffer at the start of the ring."""
        self.spans, self.lows = state[0].copy(), state[1].copy()
        self.held.clear()
        self.head = 0

    def _places(self, size: int) -> Iterator[int]:
        yield self.head if self.head + size <= self.capacity else 0
        ends = sorted(s.high for s in self.held)
        yield from (p for p in ends if p > self.head)
        yield 0
        yield from (p for p in ends if p <= self.head)

    def _occupy(self, low: int, high: int) -> Buffer:
        start = bisect_right(self.lows, low) - 1
        end = bisect_left(self.lows, high)
        waits: dict[int, None] = {}
        external: list[tuple[int, int]] = []
        span = Span(low, high, None)
        placed = [span]
        for s in self.spans[start:end]:
            waits.update(dict.fromkeys(s.releases or ()))
            if s.external:
                external.append((max(s.low, low), min(s.high, high)))
            if s.low < low:
                placed.insert(0, Span(s.low, low, s.releases, s.external))
            if high < s.high:
                placed.append(Span(high, s.high, s.releases, s.external))
        self.spans[start:end] = placed
        self.lows[start:end] = [s.low for s in placed]
        self.held.append(span)
        self.head = high
        return Buffer(span, tuple(waits), tuple(external))
