"""Turns the command logs of a DRAM run into tables by channel, by bank and by time window, and into bank activity.

Everything is a query over whole columns: counts are histograms, and the time that something was open or busy within a
window is the difference of two running integrals, exact in ticks however many commands there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.standards import COMMANDS, RANK_COMMANDS

if TYPE_CHECKING:
    from sim.standards import Memory

Ints = NDArray[np.int64]
Table = dict[str, NDArray[Any]]
"""Column name to values, all of one length."""

WINDOWS = 200
"""Windows that a run is cut into at most where the user names no length."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """What the tables need of a memory: sizes of one channel, times in ticks, the period of a tick in ps as a fraction.

    `ranks` are those of a pseudo-channel; `end` is the tick by which the last data has moved.
    """

    channels: int
    pseudo_channels: int
    ranks: int
    bank_groups: int
    banks: int
    burst_bytes: int
    clock_ticks: int
    period_num: int
    period_den: int
    read_latency: int
    write_latency: int
    burst_ticks: int
    activate_ticks: int
    precharge_ticks: int
    refresh_ticks: int
    bank_refresh_ticks: int
    end: int

    @property
    def all_ranks(self) -> int:
        """Ranks of a channel, those of all its pseudo-channels."""
        return self.pseudo_channels * self.ranks

    @property
    def rank_banks(self) -> int:
        """Banks of a rank."""
        return self.bank_groups * self.banks

    @property
    def channel_banks(self) -> int:
        """Banks of a channel."""
        return self.all_ranks * self.rank_banks

    @property
    def peak_bytes_per_s(self) -> float:
        """Of all data buses together."""
        bits = Fraction(self.burst_bytes * self.pseudo_channels * self.channels, self.burst_ticks)
        return float(bits * 10**12 * self.period_den / self.period_num)

    def ns(self, ticks: Any) -> Any:
        """Ticks as nanoseconds."""
        return ticks * (self.period_num / self.period_den / 1000)

    def as_dict(self) -> dict[str, int]:
        """For a file; `Geometry(**...)` reads it back."""
        return asdict(self)


class CommandLog(NamedTuple):
    """Commands of all channels as columns, in order of issue within each channel; `kind` indexes COMMANDS.

    bank: number within the channel, of a same-bank refresh that in the rank's first group, -1 for commands of a whole
    rank. rank: within the channel, pseudo-channels counted as further ranks. row: -1 where the command names none.
    """

    channel: Ints
    kind: Ints
    tick: Ints
    rank: Ints
    bank: Ints
    row: Ints


def command_log(memory: Memory, logs: Sequence[NDArray[np.int64]]) -> CommandLog:
    """The logs of all channels, each [commands, (kind, tick, rank, bank group, bank, row)], as one; without sleeps."""
    o = memory.organisation
    logs = [log[log[:, 0] >= 0] for log in logs]
    channel = np.repeat(np.arange(len(logs), dtype=np.int64), [len(log) for log in logs])
    every = np.concatenate(logs) if logs else np.zeros((0, 6), np.int64)
    kind, tick, rank, group, bank, row = (np.ascontiguousarray(column) for column in every.T)
    number = np.where(bank >= 0, (rank * o.bank_groups + np.maximum(group, 0)) * o.banks + bank, -1)
    return CommandLog(channel, kind, tick, rank, number, row)


def geometry(memory: Memory, channels: int, log: CommandLog, end: int) -> Geometry:
    """The Geometry of a run that was over at tick `end`, or at the end of its last burst if that is later."""
    o, timings = memory.organisation, memory.timings
    facts = Geometry(
        channels=channels,
        pseudo_channels=o.pseudo_channels,
        ranks=o.ranks,
        bank_groups=o.bank_groups,
        banks=o.banks,
        burst_bytes=memory.burst_bytes,
        clock_ticks=memory.clock_ticks,
        period_num=memory.period.numerator,
        period_den=memory.period.denominator,
        read_latency=timings["CL"],
        write_latency=timings["CWL"],
        burst_ticks=timings["BL"],
        activate_ticks=timings.get("tRCD", timings.get("tRCDRD", 1)),
        precharge_ticks=timings.get("tRP", 1),
        refresh_ticks=timings["tRFC"],
        bank_refresh_ticks=timings["tRFC" + memory.refresh.suffix],
        end=end,
    )
    last = _bursts(facts, log).end
    return Geometry(**{**facts.as_dict(), "end": max(end, int(last.max(initial=0)), 1)})


def each_bank(g: Geometry, log: CommandLog) -> CommandLog:
    """The log with a same-bank refresh once for each bank that it concerns."""
    same = log.kind == COMMANDS.index("REFsb")
    times = np.where(same, g.bank_groups, 1)
    at = np.repeat(np.arange(len(log.kind)), times)
    group = np.arange(len(at)) - np.repeat(np.cumsum(times) - times, times)
    wide = CommandLog(*(column[at] for column in log))
    return wide._replace(bank=wide.bank + group * g.banks)


def is_kind(log: CommandLog, *prefixes: str) -> NDArray[np.bool_]:
    """Which commands have a name that begins with one of `prefixes`: RD covers reads with their own precharge too."""
    return np.isin(log.kind, [i for i, name in enumerate(COMMANDS) if name.startswith(prefixes)])


class Intervals(NamedTuple):
    """Stretches of time [begin, end) in ticks, each belonging to one row of a table."""

    row: Ints
    begin: Ints
    end: Ints


def covered(intervals: Intervals, rows: int, start: int, width: int, bins: int) -> Ints:
    """Ticks of each bin [start + k width, start + (k + 1) width) that the intervals of each row cover.

    int64[rows, bins]; intervals that overlap count each for itself.
    """

    def integral(points: Ints) -> Ints:
        """Sum over the points before it of their distance to each right edge of a bin, less that to the left edge."""
        offset = np.clip(points - start, 0, width * bins)
        place = np.minimum(offset // width, bins - 1)
        cell = intervals.row * bins + place
        count = np.bincount(cell, minlength=rows * bins).reshape(rows, bins)
        rest = np.bincount(cell, weights=(place + 1) * width - offset, minlength=rows * bins).reshape(rows, bins)
        before: Ints = np.cumsum(count, axis=1) - count
        result: Ints = before * width + rest.astype(np.int64)
        return result

    return integral(intervals.begin) - integral(intervals.end)


def _bursts(g: Geometry, log: CommandLog) -> Intervals:
    """When each column command's burst is on the data bus; rows are log positions of the commands."""
    at = np.flatnonzero(is_kind(log, "RD", "WR"))
    latency = np.where(is_kind(log, "RD")[at], g.read_latency, g.write_latency)
    begin = log.tick[at] + latency
    return Intervals(at, begin, begin + g.burst_ticks)


def row_hits(g: Geometry, log: CommandLog) -> NDArray[np.bool_]:
    """Which commands are reads or writes of a row that an earlier one has used since it was opened."""
    at = np.flatnonzero(is_kind(log, "RD", "WR") | (log.kind == COMMANDS.index("ACT")))
    bank = log.channel[at] * g.channel_banks + log.bank[at]
    order = np.argsort(bank, kind="stable")
    at, bank = at[order], bank[order]
    column = log.kind[at] != COMMANDS.index("ACT")
    hit = np.zeros(len(at), bool)
    hit[1:] = column[1:] & column[:-1] & (bank[1:] == bank[:-1])
    result = np.zeros(len(log.kind), bool)
    result[at] = hit
    return result


def open_times(g: Geometry, log: CommandLog) -> Intervals:
    """When each bank has a row open; rows are channel * banks + bank. Rows open at the end are open until the end."""
    act = COMMANDS.index("ACT")
    single = np.flatnonzero((log.kind == act) | (log.kind == COMMANDS.index("PRE")))
    whole = np.flatnonzero(log.kind == COMMANDS.index("PREA"))
    closing = np.flatnonzero(np.isin(log.kind, [i for i, n in enumerate(COMMANDS) if n in ("RDA", "WRA")]))
    position = np.concatenate([single, closing, np.repeat(whole, g.rank_banks)])
    within = np.tile(np.arange(g.rank_banks), len(whole)) + np.repeat(log.rank[whole] * g.rank_banks, g.rank_banks)
    bank = np.concatenate([log.bank[single], log.bank[closing], within]) + log.channel[position] * g.channel_banks
    order = np.lexsort((position, bank))
    position, bank = position[order], bank[order]
    opens = np.flatnonzero(log.kind[position] == act)
    following = np.minimum(opens + 1, len(bank) - 1)
    closed = (following > opens) & (bank[following] == bank[opens])
    end = np.where(closed, log.tick[position[following]], g.end)
    return Intervals(bank[opens], log.tick[position[opens]], np.maximum(end, log.tick[position[opens]]))


def bank_table(g: Geometry, log: CommandLog) -> Table:
    """One row a bank: where it is, its commands, row hits, and how long it had a row open."""
    log = each_bank(g, log)
    rows = g.channels * g.channel_banks
    number = np.arange(rows, dtype=np.int64)
    rank = number // g.rank_banks % g.all_ranks
    mine = log.bank >= 0
    cell = log.channel * g.channel_banks + log.bank

    def count(which: NDArray[np.bool_]) -> Ints:
        return np.bincount(cell[which & mine], minlength=rows)

    intervals = open_times(g, log)
    open_ticks = np.bincount(intervals.row, weights=intervals.end - intervals.begin, minlength=rows)
    return {
        "channel": number // g.channel_banks,
        "pseudo_channel": rank // g.ranks,
        "rank": rank % g.ranks,
        "bank_group": number // g.banks % g.bank_groups,
        "bank": number % g.banks,
        "activates": count(is_kind(log, "ACT")),
        "precharges": count(log.kind == COMMANDS.index("PRE")),
        "reads": count(is_kind(log, "RD")),
        "writes": count(is_kind(log, "WR")),
        "row_hits": count(row_hits(g, log)),
        "refreshes": count(is_kind(log, "REF")),
        "open_ns": g.ns(open_ticks),
        "open_share": open_ticks / g.end,
    }


def window_table(g: Geometry, log: CommandLog, width: int) -> Table:
    """One row a channel and window of `width` ticks: commands issued in it, and what the data buses moved in it.

    A burst that crosses the edge of a window counts in both by the time that it spends there.
    """
    bins = -(-g.end // width)
    rows = g.channels * bins
    cell = log.channel * bins + np.minimum(log.tick // width, bins - 1)
    bursts = _bursts(g, log)
    of_read = is_kind(log, "RD")[bursts.row]
    channel = log.channel[bursts.row]

    def busy(which: NDArray[np.bool_]) -> Ints:
        part = Intervals(channel[which], bursts.begin[which], bursts.end[which])
        return covered(part, g.channels, 0, width, bins).ravel()

    def count(which: NDArray[np.bool_]) -> Ints:
        return np.bincount(cell[which], minlength=rows)

    begin = np.tile(np.arange(bins, dtype=np.int64) * width, g.channels)
    end = np.minimum(begin + width, g.end)
    seconds = g.ns(end - begin) * 1e-9
    read, write = busy(of_read), busy(~of_read)
    bytes_a_tick = g.burst_bytes / g.burst_ticks
    return {
        "channel": np.repeat(np.arange(g.channels, dtype=np.int64), bins),
        "start_ns": g.ns(begin),
        "end_ns": g.ns(end),
        **_counts(g, log, count),
        "data_bus_busy": (read + write) / (g.pseudo_channels * (end - begin)),
        "read_bytes_per_s": read * bytes_a_tick / seconds,
        "write_bytes_per_s": write * bytes_a_tick / seconds,
        "bandwidth_bytes_per_s": (read + write) * bytes_a_tick / seconds,
    }


def channel_table(g: Geometry, log: CommandLog) -> Table:
    """One row a channel: its commands, row hits, data moved and how busy its data buses were over the whole run."""

    def count(which: NDArray[np.bool_]) -> Ints:
        return np.bincount(log.channel[which], minlength=g.channels)

    counts = _counts(g, log, count)
    moved = (counts["reads"] + counts["writes"]) * g.burst_bytes
    open_ticks = covered(open_times(g, log), g.channels * g.channel_banks, 0, g.end, 1)
    return {
        "channel": np.arange(g.channels, dtype=np.int64),
        **counts,
        "bytes": moved,
        "data_bus_busy": moved / g.burst_bytes * g.burst_ticks / (g.pseudo_channels * g.end),
        "bandwidth_bytes_per_s": moved / (g.ns(g.end) * 1e-9),
        "mean_open_banks": open_ticks.reshape(g.channels, -1).sum(axis=1) / g.end,
    }


def _counts(g: Geometry, log: CommandLog, count: Any) -> Table:
    columns = is_kind(log, "RD", "WR")
    hits = count(row_hits(g, log))
    moved = count(columns)
    return {
        "reads": count(is_kind(log, "RD")),
        "writes": count(is_kind(log, "WR")),
        "activates": count(is_kind(log, "ACT")),
        "precharges": count(is_kind(log, "PRE")),
        "refreshes": count(is_kind(log, "REF")),
        "row_hits": hits,
        "row_hit_share": np.divide(hits, moved, out=np.zeros(len(moved)), where=moved > 0),
    }


STATES = ("open", "activate", "precharge", "read", "write", "refresh")
"""What a bank can be seen doing; `open` is a row open, whatever else happens."""


def bank_activity(g: Geometry, log: CommandLog, channels: Sequence[int], start: int, width: int, bins: int) -> Table:
    """Share of each bin in which each bank of `channels` is in each of STATES: {state: float64[banks, bins]}.

    A read or write is shown for the time of its burst from its command on, an activation for tRCD, a precharge for tRP,
    a refresh for tRFC on all banks that it stops. Rows are the banks of the channels in the order given.
    """
    log = each_bank(g, log)
    place = np.full(g.channels, -1, np.int64)
    place[list(channels)] = np.arange(len(channels))
    rows = len(channels) * g.channel_banks
    shown = place[log.channel] >= 0
    found: Table = {}
    opened = open_times(g, log)
    of = place[opened.row // g.channel_banks]
    keep = of >= 0
    row = of[keep] * g.channel_banks + opened.row[keep] % g.channel_banks
    found["open"] = covered(Intervals(row, opened.begin[keep], opened.end[keep]), rows, start, width, bins) / width
    lengths: Mapping[str, tuple[tuple[str, ...], int]] = {
        "activate": (("ACT",), g.activate_ticks),
        "precharge": (("PRE",), g.precharge_ticks),
        "read": (("RD",), g.burst_ticks),
        "write": (("WR",), g.burst_ticks),
        "refresh": (("REF",), g.bank_refresh_ticks),
    }
    whole = np.isin(log.kind, [COMMANDS.index(name) for name in RANK_COMMANDS]) | (log.bank < 0)
    for state, (names, length) in lengths.items():
        which = is_kind(log, *names) & shown
        one, every = np.flatnonzero(which & ~whole), np.flatnonzero(which & whole)
        at = np.concatenate([one, np.repeat(every, g.rank_banks)])
        within = np.tile(np.arange(g.rank_banks), len(every)) + np.repeat(log.rank[every] * g.rank_banks, g.rank_banks)
        bank = np.concatenate([log.bank[one], within])
        row = place[log.channel[at]] * g.channel_banks + bank
        ticks = np.where(whole[at], g.refresh_ticks, length) if state == "refresh" else length
        part = Intervals(row, log.tick[at], log.tick[at] + ticks)
        found[state] = np.minimum(covered(part, rows, start, width, bins) / width, 1.0)
    return found


def window_ticks(g: Geometry, length_ps: int | None = None) -> int:
    """Ticks of a window of `length_ps`, a whole number of clocks, at least one.

    Without a length: 1, 2 or 5 times a power of ten clocks, so that there are at most WINDOWS of them.
    """
    if length_ps is not None:
        ticks = length_ps * g.period_den // g.period_num
        return max(ticks // g.clock_ticks, 1) * g.clock_ticks
    clocks = -(-g.end // g.clock_ticks)
    least = -(-clocks // WINDOWS)
    sizes: Iterator[int] = (factor * 10**power for power in range(19) for factor in (1, 2, 5))
    return next(size for size in sizes if size >= least) * g.clock_ticks
