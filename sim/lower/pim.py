"""Lowers attention for units in the memory: queries and probabilities to rows of each request's channel, jobs for the
units there, softmax on the vector units in between; and the rows that new keys and values are written to.

The newest position of a request is not in the memory yet when its attention begins: its score and value come from the
chip, where they have just been made, and are merged on the vector units.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby

import numpy as np

from sim import cost
from sim.lower.builder import PIM_PORT, Builder, Held, Ints, Space, Work
from sim.lower.compute import vector_task, whole
from sim.pim.address import runs
from sim.pim.placement import Alike, Request
from sim.pim.plan import PimPlan, Runs
from workloads.attrs import SOFTMAX_VECTOR_OPS
from workloads.trace import AttentionAttrs

TAIL_PARTS = 8
"""Part of the scratchpad that one load of values in order of positions may take."""

WINDOW_PARTS = 4
"""Part of the DMA's window that one such load takes at most, so that other loads go on beside it."""

APPEND_RUNS = 64
"""Rows that one task writes an element of at most."""


@dataclass(frozen=True, slots=True)
class Place:
    """An operand in DRAM: its space and offset, and the tasks after which it may be read."""

    space: Space
    offset: int
    ready: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Turn:
    """A request of a group of channels: its place in the order of each, number of the group, and the request."""

    place: int
    number: int
    group: Alike
    request: Request

    @property
    def copies(self) -> int:
        """Requests that are worked on at once, one on each channel."""
        return len(self.group.channels)


class PimAttention:
    """The tasks of one attention operator over one part of the batch.

    query, result: None on chip. start: tasks before the operator may begin; element: bytes of a number.
    """

    def __init__(
        self, builder: Builder, plan: PimPlan, part: int, attrs: AttentionAttrs, element: Fraction,
        query: Place | None, result: Place | None, start: tuple[int, ...],
    ) -> None:  # fmt: skip
        self.builder, self.plan, self.attrs, self.element = builder, plan, attrs, element
        self.query, self.result, self.start = query, result, start
        self.turns = list(turns(plan, part))
        assert builder.machine.pim is not None
        # Where nothing is appended, the newest position has no key and no value, as if it were among the cached ones.
        self.newest = builder.machine.pim.append != "none"
        self.served = 0
        self.query_read = self.result_written = 0  # bytes so far: requests follow each other

    def lower(self, barrier: bool) -> list[int]:
        """Add all tasks; returns those that end the operator. `barrier`: all probabilities are there before the first
        is used.
        """
        scored = [self.scores(turn) for turn in self.turns]
        ready: list[tuple[int, ...]] = []
        loose: list[tuple[int, ...]] = []
        for batch in self.batches():
            held = self.tails([self.turns[i] for i in batch])
            for i in batch:
                soft, written = self.softmax(self.turns[i], scored[i])
                ready.append(written)
                loose.append(self.loose(self.turns[i], soft, held))
            for part in held:
                self.builder.release(0, part.buffer, [task for i in batch for task in loose[i]])
        if barrier:
            joined = (self.builder.sync(dict.fromkeys(task for tasks in ready for task in tasks)),)
            ready = [joined] * len(ready)
        return [self.values(*one) for one in zip(self.turns, ready, loose, strict=True)]

    def tail(self, turn: Turn) -> int:
        """Values (a head of a position each) of a request that are not in the units' rows yet, the newest left out."""
        layout, past = self.plan.layout, turn.request.past
        return sum(past - layout.settled(past, head) for head in range(layout.heads))

    def tail_bytes(self, turn: Turn) -> int:
        """Bytes of these values."""
        return turn.copies * whole(self.tail(turn) * self.attrs.v_head_dim * self.element)

    def batches(self) -> Iterator[list[int]]:
        """Numbers of turns whose remaining values are loaded together: many channels at once, as far as fits."""
        limit = self.builder.scratchpads[0].capacity // TAIL_PARTS
        batch: list[int] = []
        size = 0
        for number, turn in enumerate(self.turns):
            more = self.tail_bytes(turn)
            if batch and size + more > limit:
                yield batch
                batch, size = [], 0
            batch.append(number)
            size += more
        if batch:
            yield batch

    def tails(self, some: Sequence[Turn]) -> list[Held]:
        """Load the values of `some` turns that are not in the units' rows, in parts that take a like share of every
        channel's, one request after another.

        They were there before the step began, so nothing but room for them is waited for.
        """
        loose: dict[int, list[Turn]] = {}
        for turn in some:
            if self.tail(turn):
                loose.setdefault(turn.number, []).append(turn)
        sizes = {number: sum(map(self.tail_bytes, mine)) for number, mine in loose.items()}
        bursts = {
            number: np.concatenate([self.plan.tail_bursts(turn.request) for turn in mine])
            for number, mine in loose.items()
        }
        parts = -(-sum(sizes.values()) // max(int(self.builder.machine.dma.window) // WINDOW_PARTS, 1))
        found = []
        for part in range(parts):
            pieces = []
            amount = 0
            for number, mine in bursts.items():
                first, last = len(mine) * part // parts, len(mine) * (part + 1) // parts
                if first < last:
                    pieces.append((number, runs(mine[first:last])))
                    amount += sizes[number] * last // len(mine) - sizes[number] * first // len(mine)
            if pieces:
                found.append(self.builder.fetch_local(0, pieces, amount))
        return found

    def scores(self, turn: Turn) -> tuple[int, ...]:
        """Query to the request's rows, its products with the keys in memory."""
        b, a, maker = self.builder, self.attrs, self.plan.maker
        core = self.core()
        size = turn.copies * whole(a.heads * a.head_dim * self.element)
        ready: tuple[int, ...] = self.start
        held: Held | None = None
        if self.query is not None:
            held = b.fetch(core, self.query.space, self.query.offset + self.query_read, size, self.query.ready)
            self.query_read += size
            ready = (*ready, *held.ready)
        if turn.request.past:
            heads = maker.chunk_heads()
            sizes = [whole(n * a.head_dim * self.element) for n in heads for _ in range(maker.queries)]
            ready = self.vectors(core, turn, 0, sizes, ready)
        if held is not None:
            b.release(core, held.buffer, ready if turn.request.past else held.ready)
        if not turn.request.past:
            return ready
        places = self.plan.vector_places(turn.request, 0, maker.query_vectors)
        return (self.job(turn, maker.keys(turn.request, places), ready),)

    def softmax(self, turn: Turn, ready: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """The newest position's score, softmax over all, probabilities to the rows: (softmax, all written)."""
        b, a, maker = self.builder, self.attrs, self.plan.maker
        core = self.core()
        past, rows = turn.request.past, turn.copies * a.heads
        columns = past + self.newest or 1
        amount = whole(rows * columns * self.element)
        vector = b.machine.vector
        more = int(cost.vector_cycles(vector, "mul", 1, rows * a.head_dim)) * self.newest
        more += int(cost.vector_cycles(vector, "sum", rows, a.head_dim)) * self.newest
        ops = rows * (past + 1) * SOFTMAX_VECTOR_OPS
        soft = vector_task(
            b, core, "softmax", rows, columns, (amount, amount), ready, ops, more=more, macs=rows * a.head_dim
        )
        tokens = [count for counts in maker.tokens(past) for _ in range(maker.queries) for count in counts]
        sizes = [whole(count * self.element) for count in tokens]
        if not sizes:
            return soft, (soft,)
        return soft, self.vectors(core, turn, maker.query_vectors, sizes, (soft,))

    def loose(self, turn: Turn, soft: int, held: Sequence[Held]) -> tuple[int, ...]:
        """Values that are not in the units' rows, and the newest, scaled by their probabilities and added up."""
        b, a = self.builder, self.attrs
        each = turn.copies * a.v_head_dim
        elements = each * a.heads
        values = self.tail(turn) * self.plan.maker.queries * each + self.newest * elements
        if not values:
            return (soft,)
        scaled = int(cost.vector_cycles(b.machine.vector, "mul", 1, values))
        moved = (whole(values * self.element), whole(elements * self.element))
        ready = (soft, *(task for item in held for task in item.ready))
        macs = self.tail(turn) * self.plan.maker.queries * each + elements
        adds = max(values - elements, 1)
        return (vector_task(b, self.core(), "add", 1, adds, moved, ready, more=scaled, macs=macs),)

    def values(self, turn: Turn, ready: tuple[int, ...], loose: tuple[int, ...]) -> int:
        """Products with the values in memory, their sum with the loose values; the result to its place."""
        b, a, maker = self.builder, self.attrs, self.plan.maker
        core = self.core()
        past = turn.request.past
        elements = turn.copies * a.heads * a.v_head_dim
        count = maker.vector_count(past) - maker.query_vectors
        if count:
            places = self.plan.vector_places(turn.request, maker.query_vectors, count)
            ready = (self.job(turn, maker.values(turn.request, places), ready),)
        size = whole(elements * self.element)
        adds = count * turn.copies * a.v_head_dim
        read = whole(adds * self.element) + size
        done = vector_task(b, core, "add", 1, max(adds, 1), (read, size), (*ready, *loose))
        if self.result is not None:
            done = b.move(core, True, [(self.result.space, self.result.offset + self.result_written, size)], (done,))
            self.result_written += size
        return done

    def vectors(
        self, core: int, turn: Turn, first: int, sizes: Sequence[int], ready: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Write vectors to where the units load them from; on the way with the load where they take it off the bus."""
        pim = self.plan.addresses.memory.pim
        assert pim is not None
        if pim.load != "bank":
            return ready
        bursts = self.plan.vector_bursts(turn.request, first, sizes)
        return (self.builder.move_local(core, True, [(turn.number, bursts)], turn.copies * sum(sizes), ready),)

    def job(self, turn: Turn, jobs: Ints, ready: tuple[int, ...]) -> int:
        """Hand jobs to the units of a group of channels, through the shared port where there is one."""
        b, maker = self.builder, self.plan.maker
        if PIM_PORT in b.shared:
            cycles = turn.copies * maker.instructions(jobs)
            ready = (b.task(b.shared[PIM_PORT], cycles, ready),)
        results = turn.copies * maker.readouts(jobs) * whole(self.plan.layout.banks * self.element)
        return b.pim([(turn.number, jobs)], ready, Work(sram_write=results, pim_macs=turn.copies * maker.macs(jobs)))

    def core(self) -> int:
        """The core that serves the next step; they take turns."""
        self.served += 1
        return self.served % self.builder.machine.cores


def lower_append(
    builder: Builder, plan: PimPlan, part: int, source: Place | None, ready: tuple[int, ...], element: Fraction
) -> list[int]:
    """Write the newest key and value of every request to where they are kept (see `PimPlan.append_bursts`).

    A burst that is changed in part is written with the other bytes masked. Values that leave their order of positions
    were read for the attention. source: keys and values if in DRAM.
    """
    layout = plan.layout
    key_bytes = whole(layout.heads * layout.head_dim * element)
    head_bytes = whole(layout.value_dim * element)
    ends: list[int] = []
    read = 0
    for _, some in groupby(turns(plan, part), key=lambda turn: turn.place):
        round_ = list(some)
        copies = sum(turn.copies for turn in round_)
        held: Held | None = None
        after = ready
        if source is not None:
            size = copies * (key_bytes + layout.heads * head_bytes)
            held = builder.fetch(0, source.space, source.offset + read, size, source.ready)
            read += size
            after = (*ready, *held.ready)
        keys, in_order, in_rows = zip(*(plan.append_bursts(turn.request) for turn in round_), strict=True)
        numbers = [turn.number for turn in round_]
        tasks = [builder.move_local(0, True, list(zip(numbers, keys, strict=True)), copies * key_bytes, after)]
        waiting = [(turn, bursts) for turn, bursts in zip(round_, in_order, strict=True) if len(bursts)]
        if waiting:
            heads = sum(turn.copies * (layout.heads - len(heads)) for turn, heads in zip(round_, in_rows, strict=True))
            pieces = [(turn.number, runs(bursts)) for turn, bursts in waiting]
            tasks.append(builder.move_local(0, True, pieces, heads * head_bytes, after))
        for turn, written in zip(round_, in_rows, strict=True):
            for bursts in written:
                tasks += _settle(builder, turn, runs(bursts), head_bytes * layout.collected, after)
        if held is not None:
            builder.release(0, held.buffer, tasks)
        ends.extend(tasks)
    return ends


def _settle(builder: Builder, turn: Turn, runs: Runs, size: int, after: Sequence[int]) -> list[int]:
    """Write `size` bytes of values on each channel to a burst of every element's row.

    One part after another: each burst opens a row, and what else the channel has to do comes in between.
    """
    first, count = runs
    tasks: list[int] = []
    for low in range(0, len(first), APPEND_RUNS):
        high = min(low + APPEND_RUNS, len(first))
        share = size * high // len(first) - size * low // len(first)
        pieces = [(turn.number, (first[low:high], count[low:high]))]
        after = (builder.move_local(0, True, pieces, turn.copies * share, after),)
        tasks += after
    return tasks


def turns(plan: PimPlan, part: int) -> Iterator[Turn]:
    """The first request of every group of channels, then the second of each, so that all channels have work."""
    groups = plan.placement.groups
    longest = max((len(group.parts[part]) for group in groups), default=0)
    for place in range(longest):
        for number, group in enumerate(groups):
            if place < len(group.parts[part]):
                yield Turn(place, number, group, group.parts[part][place])
