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

from sim import cost
from sim.lower.builder import PIM_PORT, Builder, Held, Ints, Space, Work
from sim.lower.compute import vector_task, whole
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
        ready = [self.softmax(turn, done) for turn, done in zip(self.turns, scored, strict=True)]
        if barrier:
            joined = (self.builder.sync(dict.fromkeys(task for tasks in ready for task in tasks)),)
            ready = [joined] * len(ready)
        ends: list[int] = []
        for batch in self.batches():
            held = self.tails([self.turns[i] for i in batch])
            done = [self.values(self.turns[i], ready[i], held) for i in batch]
            for part in held:
                self.builder.release(0, part.buffer, done)
            ends += done
        return ends

    def tail(self, turn: Turn) -> int:
        """Positions of a request whose values are not in the units' rows yet, the newest left out."""
        return turn.request.past - self.plan.layout.settled(turn.request.past)

    def tail_bytes(self, turn: Turn) -> int:
        """Bytes of these values."""
        return turn.copies * whole(self.tail(turn) * self.plan.layout.heads * self.attrs.v_head_dim * self.element)

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
        """Load the values of `some` turns that are not in the units' rows, in parts that take a little of each."""
        loose = [turn for turn in some if self.tail(turn)]
        size = sum(map(self.tail_bytes, loose))
        parts = -(-size // max(int(self.builder.machine.dma.window) // WINDOW_PARTS, 1))
        found = []
        for part in range(parts):
            pieces = []
            amount = 0
            for turn in loose:
                tail = self.tail(turn)
                first, last = tail * part // parts, tail * (part + 1) // parts
                if first < last:
                    pieces.append((turn.number, self.plan.tail_bursts(turn.request, first, last - first)))
                    amount += self.tail_bytes(turn) * (last - first) // tail
            if pieces:
                found.append(self.builder.fetch_local(0, pieces, amount, self.start))
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

    def softmax(self, turn: Turn, ready: tuple[int, ...]) -> tuple[int, ...]:
        """The newest position's score, softmax over all, probabilities to the request's rows."""
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
        tokens = maker.chunk_tokens(past)
        if not tokens:
            return (soft,)
        sizes = [whole(count * self.element) for _ in range(a.heads) for count in tokens]
        return self.vectors(core, turn, maker.query_vectors, sizes, (soft,))

    def values(self, turn: Turn, ready: tuple[int, ...], held: Sequence[Held]) -> int:
        """Products with the values in memory; sums of their parts and of the newest value; the result to its place."""
        b, a, maker = self.builder, self.attrs, self.plan.maker
        core = self.core()
        past = turn.request.past
        elements = turn.copies * a.heads * a.v_head_dim
        if maker.token_chunks(past):
            count = maker.vector_count(past) - maker.query_vectors
            places = self.plan.vector_places(turn.request, maker.query_vectors, count)
            ready = (self.job(turn, maker.values(turn.request, places), ready),)
        size = whole(elements * self.element)
        # Values that are not in the units' rows are scaled by their probabilities; then all parts are added up.
        loose, parts = self.tail(turn) + self.newest, maker.token_chunks(past)
        scaled = int(cost.vector_cycles(b.machine.vector, "mul", 1, loose * elements))
        macs = (self.tail(turn) + 1) * elements
        ready = (*ready, *(task for item in held for task in item.ready))
        done = vector_task(
            b, core, "add", 1, (loose + parts - 1) * elements or 1, ((loose + parts) * size, size), ready, more=scaled,
            macs=macs,
        )  # fmt: skip
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
    value_bytes = whole(layout.heads * layout.value_dim * element)
    ends: list[int] = []
    read = 0
    for _, some in groupby(turns(plan, part), key=lambda turn: turn.place):
        round_ = list(some)
        copies = sum(turn.copies for turn in round_)
        held: Held | None = None
        after = ready
        if source is not None:
            size = copies * (key_bytes + value_bytes)
            held = builder.fetch(0, source.space, source.offset + read, size, source.ready)
            read += size
            after = (*ready, *held.ready)
        keys, in_order, in_rows = zip(*(plan.append_bursts(turn.request) for turn in round_), strict=True)
        numbers = [turn.number for turn in round_]
        tasks = [builder.move_local(0, True, list(zip(numbers, keys, strict=True)), copies * key_bytes, after)]
        if layout.collected > 1:
            pieces = [(number, runs) for number, runs in zip(numbers, in_order, strict=True) if runs is not None]
            tasks.append(builder.move_local(0, True, pieces, copies * value_bytes, after))
        for turn, runs in zip(round_, in_rows, strict=True):
            if runs is not None:
                tasks += _settle(builder, turn, runs, value_bytes * layout.collected, after)
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
