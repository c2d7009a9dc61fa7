"""Replays the log of a memory with PIM against its rule tables, independently of the scheduler that wrote it.

It reads both tables as the YAML file states them and knows of a command only which banks it concerns. Per rule and node
of its level it walks sorted positions; rows, buses and refreshes are followed command by command in plain Python.
"""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from sim.dram_check import EXAMPLES, POSTPONED, Violations
from sim.errors import ConfigError
from sim.pim.schema import PIM_COMMANDS, LoadFrom, Mode, pim_rules, ticks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import numpy as np
    from numpy.typing import NDArray

    from sim.standards import Memory

    Ints = NDArray[np.int64]

NAMES = ("ACT", "PRE", "RD", "WR", "PREA", "REF", "REFpb", "REFsb", *PIM_COMMANDS)
COLUMNS = frozenset({"RD", "WR", "GWRITE", "COMP", "READRES", "COMPS_READRES", "PWRITE"})


class Entry(NamedTuple):
    """A command of the log: its banks by number in the channel, the row it names (-1: none) and its dots."""

    name: str
    tick: int
    banks: frozenset[int]
    row: int
    dots: int


def check_pim_log(memory: Memory, log: Ints) -> Violations:
    """Count the violations of one channel's log, in issue order: [commands, (kind, tick, rank, group, bank, row)].

    Raises ConfigError for a log that is none.
    """
    entries = list(_entries(memory, log))
    found: list[tuple[int, str]] = []

    def add(i: int, text: str) -> None:
        found.append((i, f"{entries[i].name} at tick {entries[i].tick}: {text}"))

    for i in range(1, len(entries)):
        if entries[i].tick < entries[i - 1].tick:
            add(i, "comes before its predecessor in the log")
    _check_rules(memory, entries, add)
    _check_rows(memory, entries, add)
    _check_buses(memory, entries, add)
    if memory.refresh != "none":
        _check_refreshes(memory, entries, add)
    found.sort()
    return Violations(len(found), tuple(text for _, text in found[:EXAMPLES]))


def _entries(memory: Memory, log: Ints) -> Iterator[Entry]:
    """The log with the banks of each command."""
    pim = memory.pim
    assert pim is not None
    o = memory.organisation
    in_rank = o.bank_groups * o.banks
    ranks = o.pseudo_channels * o.ranks
    everything = frozenset(range(ranks * in_rank))
    known: dict[tuple[int, int, int, int], frozenset[int]] = {}
    if log.ndim != 2 or log.shape[1] != 6:
        raise ConfigError(f"a command log has six columns (kind, tick, rank, group, bank, row), not shape {log.shape}")
    for number, (kind, tick, rank, group, bank, row) in enumerate(log.tolist(), 1):
        if not 0 <= kind < len(NAMES) or NAMES[kind] in ("REFpb", "REFsb"):
            raise ConfigError(f"entry {number} of the command log has command {kind}, which a memory with PIM has not")
        name = NAMES[kind]
        key = (kind, rank, group, bank)
        if key not in known:
            if not (-1 <= rank < ranks and -1 <= group < o.bank_groups and -1 <= bank < len(everything)):
                raise ConfigError(f"entry {number} of the command log is of no place of the memory: {key[1:]}")
            if rank < 0:
                known[key] = everything if name == "HEADER" else frozenset(range(bank, len(everything), pim.sets))
            elif group < 0:
                known[key] = frozenset(range(rank * in_rank, (rank + 1) * in_rank))
            else:
                first = rank * in_rank + group * o.banks
                known[key] = frozenset(range(first, first + o.banks)) if bank < 0 else frozenset({first + bank})
        yield Entry(name, tick, known[key], row & 0xFFFFFFFF if row >= 0 else -1, row >> 32 if row >= 0 else 0)


def _node_sizes(memory: Memory) -> dict[str, int]:
    """Banks of a node of each level."""
    o = memory.organisation
    in_rank = o.bank_groups * o.banks
    return {"buffer": 1, "bank": 1, "bank_group": o.banks, "rank": in_rank, "pseudo_channel": in_rank * o.ranks,
            "channel": in_rank * o.ranks * o.pseudo_channels}  # fmt: skip


def _buffers(memory: Memory, name: str) -> frozenset[str]:
    """Row buffers that a command works on."""
    pim = memory.pim
    assert pim is not None
    if pim.mode is Mode.BLOCKED:
        return frozenset({"only"})
    if name in ("PREA", "REF"):
        return frozenset({"ordinary", "pim"})
    own = name in PIM_COMMANDS and not (name == "GWRITE" and pim.load is LoadFrom.BANK)
    return frozenset({"pim" if own else "ordinary"})


def _check_rules(memory: Memory, entries: list[Entry], add: Callable[[int, str], None]) -> None:
    """Every row of both tables, at every node of its level."""
    sizes = _node_sizes(memory)
    of: dict[str, list[int]] = defaultdict(list)
    for i, entry in enumerate(entries):
        of[entry.name].append(i)
    rows: list[tuple[str, str, str, tuple[int, ...], int]] = [
        (r.level, r.before, r.after, (r.gap,), r.window) for r in memory.rule_rows
    ]
    rows += [(r.level, r.before, r.after, r.gaps, 1) for r in pim_rules(memory)]
    for level, before, after, gaps, window in rows:
        if not of[before] or not of[after]:
            continue
        if level == "buffer" and not _buffers(memory, before) & _buffers(memory, after):
            continue
        size = sizes[level.removeprefix("other_")]
        # Two ranks are of one pseudo-channel, as in the memory's own rules.
        siblings = {"other_rank": sizes["pseudo_channel"], "other_pseudo_channel": sizes["channel"]}.get(
            level, 0
        ) // size
        first, second = (
            [(n, i) for i in of[name] for n in sorted({b // size for b in entries[i].banks})]
            for name in (before, after)
        )
        for i in _too_soon(entries, first, second, gaps, window, siblings):
            span = f"the {window}th last {before}" if window > 1 else before
            add(i, f"less than {gaps[-1]} ticks after {span} in the same {level}".replace("same other", "other"))


def _too_soon(
    entries: list[Entry],
    first: list[tuple[int, int]],
    second: list[tuple[int, int]],
    gaps: tuple[int, ...],
    window: int,
    siblings: int,
) -> list[int]:
    """Positions in `second` (node, position) nearer than the gap to a command of `first` in the same node, or in
    another of a stretch of `siblings` nodes.

    Of a window the last but so many counts; otherwise every earlier command, as gaps may differ by dots.
    """
    longest = max(gaps)
    merged = [(i, 0, n) for n, i in first] + [(i, 1, n) for n, i in second]
    recent: dict[int, list[int]] = defaultdict(list)
    bad: set[int] = set()
    for i, role, node in sorted(merged, key=lambda m: (m[0], -m[1])):
        if role == 0:
            recent[node].append(i)
            continue
        nodes = [n for n in recent if n != node and n // siblings == node // siblings] if siblings else [node]
        for n in nodes:
            past = recent[n]
            if window > 1:
                past = [past[-window]] if len(past) >= window else []
            else:
                while past and entries[past[0]].tick + longest <= entries[i].tick:
                    del past[0]
            for j in past:
                gap = gaps[entries[j].dots] if len(gaps) > 1 else gaps[0]
                if j != i and entries[i].tick - entries[j].tick < gap:
                    bad.add(i)
    return sorted(bad)


def _check_rows(memory: Memory, entries: list[Entry], add: Callable[[int, str], None]) -> None:
    """Rows are open for what reads or writes them, closed before they are opened, and never open in both buffers."""
    pim = memory.pim
    assert pim is not None
    dual = pim.mode is Mode.DUAL
    ordinary: dict[int, int] = {}
    own: dict[int, int] = {} if dual else ordinary
    for i, entry in enumerate(entries):
        name, banks, row = entry.name, entry.banks, entry.row
        if name in ("ACT", "G_ACT"):
            mine, others = (ordinary, own) if name == "ACT" else (own, ordinary)
            for b in banks:
                if b in mine:
                    add(i, f"bank {b} has a row open already")
                if dual and others.get(b) == row:
                    add(i, f"row {row} of bank {b} is open in the other row buffer")
                mine[b] = row
        elif name in ("PRE", "PIM_PRE"):
            for b in banks:
                (ordinary if name == "PRE" else own).pop(b, None)
        elif name == "PREA":
            for b in banks:
                ordinary.pop(b, None)
        elif name == "REF":
            for b in banks:
                if b in ordinary or b in own:
                    add(i, f"bank {b} has a row open")
        elif name != "HEADER" and row >= 0:
            reads_own = name not in ("RD", "WR") and not (name == "GWRITE" and pim.load is LoadFrom.BANK)
            for b in banks:
                if (own if reads_own else ordinary).get(b) != row:
                    add(i, f"row {row} of bank {b} is not open")
                    break


def _check_buses(memory: Memory, entries: list[Entry], add: Callable[[int, str], None]) -> None:
    """Commands must not overlap on a command bus, nor bursts on the data bus of a pseudo-channel."""
    pim = memory.pim
    assert pim is not None
    lengths = {**memory.command_ticks, **pim.command_ticks}
    free = {True: -1, False: -1}
    bursts: dict[int, list[tuple[int, int]]] = defaultdict(list)
    per_pseudo = _node_sizes(memory)["pseudo_channel"]
    for i, entry in enumerate(entries):
        bus = memory.buses == 2 and entry.name in COLUMNS
        if entry.tick < free[bus]:
            add(i, "the command bus is taken")
        free[bus] = entry.tick + lengths.get(entry.name, 1)
        if entry.name in COLUMNS and entry.tick % memory.clock_ticks:
            add(i, "column commands start with a clock")
        if entry.name not in ("RD", "WR", "COMPS_READRES"):
            continue
        latency = memory.timings["CWL" if entry.name == "WR" else "CL"]
        if entry.name == "COMPS_READRES":
            latency += ticks(memory, "pim.readout", pim.readout, entry.dots)
        for p in {b // per_pseudo for b in entry.banks}:
            bursts[p].append((entry.tick + latency, i))
    for begins in bursts.values():
        begins.sort()
        for (before, _), (begin, i) in pairwise(begins):
            if begin - before < memory.burst_ticks:
                add(i, "its burst overlaps another on the data bus")


def _check_refreshes(memory: Memory, entries: list[Entry], add: Callable[[int, str], None]) -> None:
    """Every rank is refreshed in time."""
    o = memory.organisation
    limit = POSTPONED * memory.timings["tREFI"]
    last = dict.fromkeys(range(o.pseudo_channels * o.ranks), 0)
    in_rank = o.bank_groups * o.banks
    for i, entry in enumerate(entries):
        if entry.name == "REF":
            r = min(entry.banks) // in_rank
            if entry.tick - last[r] > limit:
                add(i, f"more than {limit} ticks after the last refresh of rank {r}")
            last[r] = entry.tick
    for r, tick in last.items():
        if entries and entries[-1].tick - tick > limit:
            add(len(entries) - 1, f"rank {r} was not refreshed for more than {limit} ticks")
