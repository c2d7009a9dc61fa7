"""Where the tiles of a tensor are in DRAM: byte ranges that add up to the tensor's own bytes exactly."""

from __future__ import annotations

from collections.abc import Sequence

from sim.lower.builder import Space


def cuts(total: int, step: int) -> list[tuple[int, int]]:
    """(start, length) of the tiles of `total`."""
    return [(start, min(step, total - start)) for start in range(0, total, step)]


class Blocked:
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


class Pieces:
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
