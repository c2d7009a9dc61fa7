"""Request lists for DRAM tests, generated: the patterns on which published simulators were compared, at any length.

A request is (is_write, byte address); one request is one burst (`granule` bytes).
"""

from __future__ import annotations

from collections.abc import Iterator

Request = tuple[int, int]
MASK = 2**64 - 1


def splitmix64(seed: int) -> Iterator[int]:
    """The SplitMix64 sequence (S. Vigna, public domain): a portable stream of 64-bit numbers."""
    state = seed & MASK
    while True:
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        yield z ^ (z >> 31)


def stream(n: int, granule: int, is_write: int = 0) -> list[Request]:
    """Consecutive granules from address 0."""
    return [(is_write, i * granule) for i in range(n)]


def random_distinct(n: int, granule: int, footprint: int = 1 << 30, seed: int = 2024) -> list[int]:
    """Distinct granule addresses, uniform over the footprint."""
    numbers = splitmix64(seed)
    seen: dict[int, None] = {}
    while len(seen) < n:
        seen.setdefault(next(numbers) % (footprint // granule))
    return [slot * granule for slot in seen]


def rand_read(n: int, granule: int, seed: int = 2024) -> list[Request]:
    """Uniform reads."""
    return [(0, a) for a in random_distinct(n, granule, seed=seed)]


def mix_2r1w(n: int, granule: int, seed: int = 2025) -> list[Request]:
    """Uniform requests, every third a write."""
    return [(int(i % 3 == 2), a) for i, a in enumerate(random_distinct(n, granule, seed=seed))]


def _fields(mapping: str, granule: int) -> dict[str, tuple[int, int]]:
    """Field name -> (shift in bytes address, size)."""
    shift = granule.bit_length() - 1
    result = {}
    for field in reversed(mapping.split(",")):
        name, bits = field.split(":")
        result[name] = (shift, 1 << int(bits))
        shift += int(bits)
    return result


def chase(n: int, granule: int, mapping: str, seed: int = 2026) -> list[Request]:
    """One bank of one channel: a random row, never the same twice running, and a random column."""
    fields = _fields(mapping, granule)
    numbers = splitmix64(seed)
    result: list[Request] = []
    last = -1
    while len(result) < n:
        row = next(numbers) % fields["ro"][1]
        if row != last:
            last = row
            column = next(numbers) % fields["co"][1]
            result.append((0, row << fields["ro"][0] | column << fields["co"][0]))
    return result


def bank_conflict(n: int, granule: int, mapping: str) -> list[Request]:
    """One bank of one channel, the next row at every request."""
    fields = _fields(mapping, granule)
    rows = fields["ro"][1]
    return [(0, i % rows << fields["ro"][0] | i // rows << fields["co"][0]) for i in range(n)]


def gemv(n: int, granule: int, skew: int = 10240, k: int = 4096, streams: int = 8) -> list[Request]:
    """fp16 y = W x: `streams` row blocks read in turn, each displaced by `skew` bytes more; y written by granules."""
    row_bytes = 2 * k
    rows_a_write = granule // 2
    reads_a_write = rows_a_write * row_bytes // granule
    blocks = max(1, (n // streams - row_bytes // granule) // (reads_a_write + 1))
    rows = blocks * rows_a_write
    block_bytes = rows * row_bytes + skew
    x = streams * block_bytes
    y = x + row_bytes
    result: list[Request] = [(0, x + i * granule) for i in range(row_bytes // granule) for _ in range(streams)]
    for b in range(blocks):
        first = b * reads_a_write
        for i in range(first, first + reads_a_write):
            result += [(0, s * block_bytes + i * granule) for s in range(streams)]
        result += [(1, y + 2 * (s * rows + b * rows_a_write)) for s in range(streams)]
    return result
