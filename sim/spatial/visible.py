"""Tiles of keys that a block of query rows sees, so that steps of attention on unseen tiles are left out."""

from __future__ import annotations

from collections.abc import Iterable

from workloads.trace import Mask, RequestSpan, visible_pairs

LOOKS_AHEAD = ("full", "block", "tree")
"""Masks under which a row may see keys of later rows, so that keys of the whole request must be there before it."""


def key_tiles(mask: Mask, first: int, end: int, total: int, tile: int) -> int:
    """Tiles of `tile` keys that the queries at positions first..end-1, of a request of `total`, see between them.

    Where the choice of keys is data (top_k, block_sparse) queries of one mask block choose alike, others never.
    """

    def touched(low: int, high: int) -> int:
        return -(-high // tile) - low // tile

    if mask.kind in ("full", "tree"):
        return touched(0, total)
    if mask.kind == "block":
        assert mask.block is not None
        return touched(0, min(-(-end // mask.block) * mask.block, total))
    if mask.kind == "window":
        assert mask.window is not None
        start = max(0, first + 1 - mask.window)
        sinks = min(-(-mask.sinks // tile), start // tile)
        return touched(start, end) + sinks
    if mask.kind == "chunk":
        assert mask.window is not None
        return touched(first // mask.window * mask.window, end)
    if mask.kind == "top_k":
        assert mask.top_k is not None
        return touched(0, min(end, (end - first) * mask.top_k))
    if mask.kind == "block_sparse":
        assert mask.block is not None
        lasts = [min(b * mask.block, end) - 1 for b in range(first // mask.block + 1, -(-end // mask.block) + 1)]
        return touched(0, min(end, sum(visible_pairs(mask, 1, last) for last in lasts)))
    return touched(0, end)


def steps_of_blocks(
    mask: Mask, spans: Iterable[RequestSpan], rows: int, tile: int, apart: bool = False
) -> tuple[list[int], int]:
    """(steps of each block of `rows` consecutive query rows of all requests, most rows of one request in a block).

    apart: no block has rows of two requests.
    """
    steps: list[int] = []
    room = most = 0
    for span in spans:
        for _ in range(span.count):
            done = 0
            room = 0 if apart else room
            while done < span.query:
                if room == 0:
                    steps.append(0)
                    room = rows
                now = min(room, span.query - done)
                first = span.past + done
                steps[-1] += key_tiles(mask, first, first + now, span.length, tile)
                most = max(most, now)
                done += now
                room -= now
    return steps, most
