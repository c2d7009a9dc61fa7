"""Lowers attention: fused on chip (scores never leave it) or as scores, softmax and values through DRAM.

Fused: a step takes some query positions of one or more requests and key/value heads, and a stretch of keys; it loads
keys and values, computes scores, an online softmax, and adds the weighted values to the output tile. Masked scores
inside a step are computed and thrown away, as the array does; steps that no query can see are left out. Where data
chooses the keys, the queries of a tile are taken to choose the same ones, as many as each sees, spread evenly.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from fractions import Fraction

from sim.hardware import Hardware
from sim.lower.builder import PER_CORE, Builder, Held, Space, Unit
from sim.lower.compute import Bits, plain, tile_work, vector_task, whole
from workloads.attrs import SOFTCAP_VECTOR_OPS, SOFTMAX_VECTOR_OPS
from workloads.trace import AttentionAttrs, Mask, RequestSpan, visible_keys, visible_pairs

CHOSEN = ("top_k", "block_sparse", "lists", "pooled")
"""Masks whose keys lie scattered, so that a step gathers those of its tile."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes an element of queries, keys, values, scores and output."""

    query: Fraction | int
    key: Fraction | int
    value: Fraction | int
    score: Fraction | int
    result: Fraction | int
    accumulator: Fraction | int

    def __post_init__(self) -> None:
        for field in fields(self):
            object.__setattr__(self, field.name, plain(getattr(self, field.name)))


@dataclass(frozen=True, slots=True)
class Job:
    """One attention operator as the mapper sees it. Hashable."""

    attrs: AttentionAttrs
    number_format: str
    size: Sizes
    query_in_dram: bool
    keys_in_dram: bool
    fresh_in_dram: bool  # keys and values of the new positions too must be loaded from DRAM
    result_in_dram: bool


@dataclass(frozen=True, slots=True)
class Split:
    """Step sizes: query positions, keys, key/value heads of one request; `keep`: keys and values stay for all query
    tiles.
    """

    query: int
    keys: int
    heads: int
    keep: bool

    def __str__(self) -> str:
        kept = ", keys kept" if self.keep else ""
        return f"{self.query} queries x {self.keys} keys x {self.heads} kv heads{kept}"


@dataclass(frozen=True, slots=True)
class KeyPlace:
    """Where keys or values are; `ready`: tasks before any of them may be read; `appended`: before the new positions
    may.
    """

    space: Space
    offset: int
    ready: tuple[int, ...]
    appended: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Places:
    """DRAM offsets and the tasks after which each operand may be read."""

    query: tuple[Space, int, tuple[int, ...]]
    keys: KeyPlace
    values: KeyPlace
    result: tuple[Space, int]
    start: tuple[int, ...]


def key_ranges(mask: Mask, span: RequestSpan) -> list[tuple[int, int]]:
    """(start, length) of the key positions that some query of the request sees.

    Where the choice of keys depends on data (top_k, block_sparse) they are taken as that many positions in a row.
    """
    total = span.length
    if mask.kind == "window":
        assert mask.window is not None
        start = max(0, span.past + 1 - mask.window)
        sinks = min(mask.sinks, start)
        return [(0, sinks), (start, total - start)] if sinks else [(start, total - start)]
    if mask.kind == "chunk":
        assert mask.window is not None
        start = span.past // mask.window * mask.window
        return [(start, total - start)]
    return [(0, visible_keys(mask, span.query, span.past))]


def sees(mask: Mask, position: tuple[int, int], keys: tuple[int, int]) -> bool:
    """Whether some query in [start, start + length) `position` sees some key of [start, start + length) `keys`."""
    first, last = position[0], position[0] + position[1] - 1
    low, high = keys[0], keys[0] + keys[1] - 1
    if mask.kind == "full" or mask.both:
        return True
    if mask.kind == "block":
        assert mask.block is not None
        return low <= last // mask.block * mask.block + mask.block - 1
    if low > last:
        return False
    if mask.kind == "window":
        assert mask.window is not None
        return high > first - mask.window or low < mask.sinks
    if mask.kind == "chunk":
        assert mask.window is not None
        return high >= first // mask.window * mask.window
    return True


def _kv_bytes(job: Job) -> Fraction | int:
    a = job.attrs
    return a.head_dim * job.size.key + (0 if a.latent else a.v_head_dim * job.size.value)


def footprint(job: Job, split: Split) -> tuple[int, int]:
    """Most bytes of scratchpad and accumulators that two consecutive steps hold."""
    a, size = job.attrs, job.size
    rows = split.query * (a.heads // a.kv_heads)
    longest = max(sum(n for _, n in key_ranges(a.mask, span)) for span in a.requests)
    kv = (longest + split.keys if split.keep else 2 * split.keys) * split.heads * _kv_bytes(job)
    scores = split.heads * rows * split.keys * size.score
    query = split.heads * rows * a.head_dim * size.query if job.query_in_dram else 0
    sums = split.heads * rows * a.v_head_dim * size.accumulator
    return whole(kv + 2 * scores + 2 * query), whole(2 * sums)


def candidates(machine: Hardware, job: Job, scratchpad_bytes: int) -> Iterator[Split]:
    """Step sizes that fit: for each choice of queries and heads the two longest key stretches."""
    a = job.attrs
    tile = machine.array.columns
    longest = max(sum(n for _, n in key_ranges(a.mask, span)) for span in a.requests)
    queries = max(span.query for span in a.requests)
    query_sizes = sorted({min(queries, size) for size in (tile, 2 * tile, 4 * tile)})
    for query in query_sizes:
        for heads in dict.fromkeys((a.kv_heads, -(-a.kv_heads // 2), -(-a.kv_heads // 4), 1)):
            for keep in (True, False) if query < queries else (False,):
                fitting = 0
                keys = longest
                while fitting < 2:
                    split = Split(query, keys, heads, keep)
                    pad, sums = footprint(job, split)
                    if pad <= scratchpad_bytes and sums <= machine.accumulator.capacity:
                        yield split
                        fitting += 1
                    if keys <= tile:
                        break
                    keys = -(-keys // (2 * tile)) * tile


def lower_flash(builder: Builder, job: Job, split: Split, places: Places) -> list[int]:
    """Add the tasks of the fused form; returns those that end the operator."""
    a, size = job.attrs, job.size
    ends: list[int] = []
    turn = 0
    base = _Bases(0, 0, 0, 0)
    for span in a.requests:
        steps = _Steps(builder, job, split, span, places)
        for _ in range(span.count):
            for first in range(0, a.kv_heads, split.heads):
                heads = (first, min(split.heads, a.kv_heads - first))
                ends.extend(steps.run(turn % builder.machine.cores, heads, base))
                turn += 1
            base = _Bases(
                base.query + whole(span.query * a.heads * a.head_dim * size.query),
                base.result + whole(span.query * a.heads * a.v_head_dim * size.result),
                base.key + whole(span.length * a.kv_heads * a.head_dim * size.key),
                base.value + whole(span.length * a.kv_heads * a.v_head_dim * size.value),
            )
    return ends


@dataclass(frozen=True, slots=True)
class _Bases:
    """Byte offsets of one request inside the queries, the result, the keys and the values of the operator."""

    query: int
    result: int
    key: int
    value: int


@dataclass(slots=True)
class _Stretch:
    """Keys and values of one stretch on chip, and the tasks that read them."""

    key: Held | None
    value: Held | None
    users: list[int]


class _Steps:
    """The steps of the requests of one span."""

    def __init__(self, builder: Builder, job: Job, split: Split, span: RequestSpan, places: Places) -> None:
        self.builder, self.job, self.span, self.places = builder, job, span, places
        a, size = job.attrs, job.size
        self.keep = split.keep
        self.query_tiles = [(s, min(split.query, span.query - s)) for s in range(0, span.query, split.query)]
        self.key_tiles = [
            (start + s, min(split.keys, length - s))
            for start, length in key_ranges(a.mask, span)
            for s in range(0, length, split.keys)
        ]
        self.bits_scores = Bits(size.query, size.key, size.score, size.accumulator)
        self.bits_values = Bits(size.score, size.value, size.accumulator, size.accumulator)

    def run(self, core: int, heads: tuple[int, int], base: _Bases) -> list[int]:
        """Tasks of one request's `heads` (first, count); returns those that end them."""
        ends: list[int] = []
        stretches: dict[int, _Stretch] = {}
        for index, tile in enumerate(self.query_tiles):
            ends.extend(self.query_tile(core, heads, base, tile, stretches))
            later = self.query_tiles[index + 1 :] if self.keep else []
            for start, keys in self.key_tiles:
                if start in stretches and not any(self.visible(t, (start, keys)) for t in later):
                    self.drop(core, stretches.pop(start))
        return ends

    def query_tile(
        self, core: int, heads: tuple[int, int], base: _Bases, tile: tuple[int, int], stretches: dict[int, _Stretch]
    ) -> tuple[int, ...]:
        """Scores, softmax and weighted values of one tile of queries against all keys that it sees."""
        b, a, size = self.builder, self.job.attrs, self.job.size
        first_head, head_count = heads
        start, queries = tile
        group = a.heads // a.kv_heads
        rows = queries * group
        offset = (self.span.query * first_head + start * head_count) * group
        query: Held | None = None
        query_space, query_base, query_ready = self.places.query
        if self.job.query_in_dram:
            at = self.stripe(query_base + base.query + whole(offset * a.head_dim * size.query))
            query = b.fetch(core, query_space, at, whole(head_count * rows * a.head_dim * size.query), query_ready)
            query_ready = query.ready
        sums = b.reserve(core, whole(head_count * rows * a.v_head_dim * size.accumulator), accumulator=True)
        score_tasks: list[int] = []
        value_tasks: list[int] = []
        for stretch, keys in self.seen(tile):
            if stretch[0] not in stretches:
                loaded = stretch if self.keep else (stretch[0], keys)
                stretches[stretch[0]] = self.load(core, heads, base, loaded)
            held = stretches[stretch[0]]
            scores, values = self.step(core, head_count, rows, keys, held, (*self.places.start, *query_ready))
            b.claim(core, sums, scores, accumulator=True)
            score_tasks.append(scores)
            value_tasks.append(values)
            if not self.keep:
                self.drop(core, stretches.pop(stretch[0]))
        if query:
            b.release(core, query.buffer, score_tasks)
        done = tuple(value_tasks)
        if self.job.result_in_dram:
            space, result_base = self.places.result
            at = self.stripe(result_base + base.result + whole(offset * a.v_head_dim * size.result))
            amount = whole(head_count * rows * a.v_head_dim * size.result)
            done = (b.move(core, True, [(space, at, amount)], done),)
        b.release(core, sums, done, accumulator=True)
        return done

    def step(
        self, core: int, heads: int, rows: int, keys: int, held: _Stretch, after: tuple[int, ...]
    ) -> tuple[int, int]:
        """One stretch of keys: returns the score task and the task that adds the weighted values."""
        b, a, size = self.builder, self.job.attrs, self.job.size
        array = core * PER_CORE + Unit.ARRAY
        number_format = self.job.number_format
        amount = whole(heads * rows * keys * size.score)
        pad = b.reserve(core, amount)
        cost = tile_work(b.machine, heads, rows, keys, a.head_dim, number_format, self.bits_scores)
        ready = held.key.ready if held.key else ()
        scores = b.task(array, cost.occupancy, (*after, *ready), cost.work, cost.tail, cost.cold)
        b.claim(core, pad, scores)
        soft = scores
        if a.softcap:
            ops = heads * rows * keys * SOFTCAP_VECTOR_OPS
            soft = vector_task(b, core, "softcap", heads * rows, keys, (amount, amount), (soft,), ops)
        ops = heads * rows * keys * SOFTMAX_VECTOR_OPS
        soft = vector_task(b, core, "softmax", heads * rows, keys, (amount, amount), (soft,), ops)
        cost = tile_work(b.machine, heads, rows, a.v_head_dim, keys, number_format, self.bits_values)
        ready = held.value.ready if held.value else ()
        values = b.task(array, cost.occupancy, (soft, *ready), cost.work, cost.tail, cost.cold)
        b.release(core, pad, (values,))
        held.users.extend((scores, values))
        return scores, values

    def load(self, core: int, heads: tuple[int, int], base: _Bases, stretch: tuple[int, int]) -> _Stretch:
        """Load a stretch of keys and values; new positions that are still on chip are not loaded."""
        a, size, span = self.job.attrs, self.job.size, self.span
        first_head, head_count = heads
        start, keys = stretch
        amount = keys if self.job.fresh_in_dram else max(0, min(keys, span.past - start))
        amount *= self.job.keys_in_dram
        held = _Stretch(None, None, [])
        if amount == 0:
            return held
        fresh = start + amount > span.past

        def fetch(place: KeyPlace, shift: int, width: int, element: Fraction | int) -> Held:
            first = (span.length * first_head + start * head_count) * width * element
            at = self.stripe(place.offset + shift + whole(first))
            size_bytes = whole(head_count * amount * width * element)
            ready = (*place.ready, *place.appended) if fresh else place.ready
            return self.builder.fetch(core, place.space, at, size_bytes, ready)

        held.key = fetch(self.places.keys, base.key, a.head_dim, size.key)
        if not a.latent:
            held.value = fetch(self.places.values, base.value, a.v_head_dim, size.value)
        return held

    def stripe(self, offset: int) -> int:
        """Where a tile near `offset` starts: tiles are stored from the first channel on."""
        return offset // self.builder.align_bytes * self.builder.align_bytes

    def drop(self, core: int, stretch: _Stretch) -> None:
        """The stretch is free once all its readers have ended."""
        for held in (stretch.key, stretch.value):
            if held:
                self.builder.release(core, held.buffer, stretch.users)

    def seen(self, tile: tuple[int, int]) -> list[tuple[tuple[int, int], int]]:
        """Stretches that a query tile sees, each with the keys of it that a step works on.

        That is the whole stretch; where data chooses, as many keys as a query of the tile sees on average (rounded up),
        shared out over the stretches by their lengths.
        """
        mask, (start, queries) = self.job.attrs.mask, tile
        stretches = [stretch for stretch in self.key_tiles if self.visible(tile, stretch)]
        if mask.kind not in CHOSEN:
            return [(stretch, stretch[1]) for stretch in stretches]
        whole_span = (self.span.query, self.span.past) if mask.both else (queries, self.span.past + start)
        total = sum(length for _, length in stretches)
        chosen = min(total, -(-visible_pairs(mask, *whole_span) // whole_span[0]))
        found, passed = [], 0
        for stretch in stretches:
            keys = chosen * (passed + stretch[1]) // total - chosen * passed // total
            passed += stretch[1]
            if keys:
                found.append((stretch, keys))
        return found

    def visible(self, tile: tuple[int, int], stretch: tuple[int, int]) -> bool:
        """Whether a query tile sees a stretch of keys."""
        start, queries = tile
        return sees(self.job.attrs.mask, (self.span.past + start, queries), stretch)
