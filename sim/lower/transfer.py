"""Lowers a transfer between the machine's DRAM and a further memory: chunks on the link, each with its DRAM requests.

A link moves one chunk at a time in each direction (in either, where it is not duplex). Two chunks are under way between
link and DRAM, so each waits for the other only where it is slower.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sim.lower.builder import Builder, Space, Work

BUFFERS = 2
"""Chunks between link and DRAM."""

Pieces = Sequence[tuple[Space, int, int]]


def lower_transfer(
    builder: Builder, name: str, towards_device: bool, size: int, pieces: Pieces | None, start: Iterable[int]
) -> list[int]:
    """Move `size` bytes over the link of tier `name`; returns the tasks that end it.

    pieces: (space, offset, bytes) in DRAM, `size` bytes in all; None where the device's side is on chip.
    """
    tier, link = builder.machine.tier_data[name], builder.links[name]
    unit = link.read if towards_device else link.write
    start = tuple(start)
    ends: list[int] = []
    busy = 0
    for low in range(0, size, link.chunk):
        high = min(low + link.chunk, size)
        until = tier.occupancy_ps(high, towards_device)
        length, busy = until - busy, until
        before = ends[-BUFFERS:][:1] if len(ends) >= BUFFERS else []
        part = [] if pieces is None else _cut(pieces, low, high)
        on_chip = 0 if part else high - low
        if towards_device:
            moved = builder.occupy(
                unit, length, (*start, *before), Work(link=high - low, sram_write=on_chip), tier.latency_ps(True)
            )
            ends.append(builder.port(True, part, (moved,)) if part else moved)
        else:
            ready = (builder.port(False, part, (*start, *before)),) if part else start
            work = Work(link=high - low, sram_read=on_chip)
            ends.append(builder.occupy(unit, length, ready, work, tier.latency_ps(False)))
    return ends or [builder.sync(start)]


def _cut(pieces: Pieces, low: int, high: int) -> list[tuple[Space, int, int]]:
    """The part [low, high) of pieces laid end to end."""
    found = []
    at = 0
    for space, offset, length in pieces:
        first, last = max(low, at), min(high, at + length)
        if first < last:
            found.append((space, offset + first - at, last - first))
        at += length
    return found
