"""Replays a command log against a memory's rule table and counts what it violates, independently of the scheduler.

It reads the table as it stands in the YAML file, not the kernel's compiled form, and works per rule over sorted arrays:
for every command, the latest earlier commands that the rule speaks of. Besides the rules it checks what they take for
granted: rows open before columns, no row opened twice, closed banks before refreshes, one command at a time on each
command bus, one burst at a time on the data bus, refreshes that come in time, and ranks that sleep closed and take no
command before they are awake. A same-bank refresh (REFsb: a rank
and a bank number, whatever the group) concerns that bank of every group; its rules at level bank each of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from sim.errors import ConfigError
from sim.standards import COMMANDS, RANK_COMMANDS, Memory, Refresh, Rule

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    Add = Callable[[NDArray[np.int64], str], None]

EXAMPLES = 10
ONE_BANK, SAME_BANK = COMMANDS.index("REFpb"), COMMANDS.index("REFsb")
ASLEEP, AWAKE = -1, -2
"""What the log of a memory whose ranks sleep has besides commands: from when to when a rank slept."""
OF_ROWS = tuple(COMMANDS.index(name) for name in ("ACT", "RD", "WR"))
POSTPONED = 9
"""Longest time between two refreshes of a rank, in intervals: JEDEC lets a controller postpone eight."""


@dataclass(frozen=True, slots=True)
class Violations:
    """How many commands break a rule, and the first of them in words."""

    count: int
    examples: tuple[str, ...]


class Log(NamedTuple):
    """A command log by column, with the numbers of what each command concerns within its channel.

    group and bank are -1 where a command concerns several; `number` is the bank's within its group.
    """

    kind: NDArray[np.int64]
    tick: NDArray[np.int64]
    rank: NDArray[np.int64]
    group: NDArray[np.int64]
    bank: NDArray[np.int64]
    row: NDArray[np.int64]
    pseudo: NDArray[np.int64]
    number: NDArray[np.int64]


def check_log(memory: Memory, log: NDArray[np.int64]) -> Violations:
    """Count the violations of one channel's log, in issue order: [commands, (kind, tick, rank, group, bank, row)].

    A command that breaks several rules counts once for each. Raises ConfigError for a log that is none: wrong columns,
    an unknown command, or a place beyond the memory.
    """
    import numpy as np

    if memory.pim is not None:
        from sim.pim.check import check_pim_log

        return check_pim_log(memory, log)
    sleeps = log[:0]
    if memory.exit_timing and log.ndim == 2 and log.shape[1] == 6:
        log, sleeps = log[log[:, 0] >= 0], log[log[:, 0] < 0]
    columns = _columns(memory, log)
    kind, tick = columns.kind, columns.tick
    found: list[tuple[int, str]] = []
    counts: list[int] = []

    def add(bad: NDArray[np.int64], text: str) -> None:
        found.extend((int(i), f"{COMMANDS[kind[i]]} at tick {int(tick[i])}: {text}") for i in bad[:EXAMPLES])
        counts.append(len(bad))

    add(np.flatnonzero(np.diff(tick, prepend=tick[:1]) < 0), "comes before its predecessor in the log")
    parts = _each_bank(memory, columns)
    ranks = memory.organisation.pseudo_channels * memory.organisation.ranks
    for rule in memory.rule_rows:
        view, place = parts if rule.level == "bank" else (columns, None)
        for broken in _broken(rule, view, ranks):
            bad = broken if place is None else np.unique(place[broken])
            span = f"the {rule.window}th last {rule.before}" if rule.window > 1 else rule.before
            add(bad, f"less than {rule.gap} ticks after {span} in the same {rule.level}".replace("same other", "other"))
    _check_rows(memory, columns, add)
    _check_buses(memory, columns, add)
    _check_sleep(memory, columns, sleeps, add)
    # What a rank does for itself while it sleeps is in no log.
    if memory.refresh is not Refresh.NONE and memory.exit_timing != "tXS":
        _check_refreshes(memory, columns, add)
    found.sort()
    return Violations(sum(counts), tuple(text for _, text in found[:EXAMPLES]))


def _columns(memory: Memory, log: NDArray[np.int64]) -> Log:
    """The log by column; every number in it must be one that the memory has."""
    import numpy as np

    o = memory.organisation
    if log.ndim != 2 or log.shape[1] != 6:
        raise ConfigError(f"a command log has six columns (kind, tick, rank, group, bank, row), not shape {log.shape}")
    kind, tick, rank, group, bank, row = (np.ascontiguousarray(column) for column in log.T.astype(np.int64))
    all_banks = np.isin(kind, [COMMANDS.index(name) for name in RANK_COMMANDS])
    least = np.where(all_banks, -1, 0)
    same_bank = kind == SAME_BANK
    for name, column, low, high in (
        ("command", kind, 0, len(COMMANDS)),
        ("rank", rank, 0, o.pseudo_channels * o.ranks),
        ("bank group", group, np.where(same_bank, -1, least), o.bank_groups),
        ("bank", bank, least, o.banks),
        ("row", row, np.where(np.isin(kind, OF_ROWS), 0, -1), o.rows),
    ):
        wrong = np.flatnonzero((column < low) | (column >= high))
        if len(wrong):
            i = int(wrong[0])
            raise ConfigError(
                f"entry {i + 1} of the command log has {name} {int(column[i])}, of which there are {high}"
            )
    group_id = np.where(all_banks | same_bank, -1, rank * o.bank_groups + group)
    bank_id = np.where(all_banks | same_bank, -1, group_id * o.banks + bank)
    return Log(kind, tick, rank, group_id, bank_id, row, rank // o.ranks, bank)


def _each_bank(memory: Memory, log: Log) -> tuple[Log, NDArray[np.int64]]:
    """The log with every same-bank refresh once for each bank group, and the position of each entry in `log`."""
    import numpy as np

    o = memory.organisation
    position = np.repeat(np.arange(len(log.kind)), np.where(log.kind == SAME_BANK, o.bank_groups, 1))
    wide = Log(*(column[position] for column in log))
    same = np.flatnonzero(wide.kind == SAME_BANK)
    group = wide.rank[same] * o.bank_groups + np.arange(len(same)) % o.bank_groups
    bank = wide.bank.copy()
    bank[same] = group * o.banks + wide.number[same]
    return wide._replace(bank=bank), position


def _broken(rule: Rule, log: Log, ranks: int) -> list[NDArray[np.int64]]:
    """Positions in the log of the commands that break `rule`; for levels between ranks, one array a rank."""
    import numpy as np

    before = log.kind == COMMANDS.index(rule.before)
    after = log.kind == COMMANDS.index(rule.after)
    if rule.level in ("other_rank", "other_pseudo_channel"):
        inner, outer = (log.rank, log.pseudo) if rule.level == "other_rank" else (log.pseudo, np.zeros_like(log.rank))
        return [
            _too_soon(rule, log, np.flatnonzero(before & (inner == r)), np.flatnonzero(after & (inner != r)), outer)
            for r in range(ranks)
        ]
    node = {"bank": log.bank, "bank_group": log.group, "rank": log.rank, "pseudo_channel": log.pseudo,
            "channel": np.zeros_like(log.rank)}[rule.level]  # fmt: skip
    return [_too_soon(rule, log, np.flatnonzero(before), np.flatnonzero(after), node)]


def _too_soon(
    rule: Rule, log: Log, first: NDArray[np.int64], second: NDArray[np.int64], node: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Those of `second` whose window-th latest predecessor in `first`, of the same node, is less than the gap away."""
    import numpy as np

    size = len(log.tick) + 1
    order = first[np.argsort(node[first] * size + first, kind="stable")]
    keys = node[order] * size + order
    place = np.searchsorted(keys, node[second] * size + second) - rule.window
    valid = place >= 0
    predecessor = order[np.maximum(place, 0)] if len(order) else np.zeros_like(second)
    valid &= (node[predecessor] == node[second]) if len(order) else False
    return second[valid & (log.tick[second] - log.tick[predecessor] < rule.gap)]


def _check_rows(memory: Memory, log: Log, add: Add) -> None:
    """Rows must be open for columns, closed for activations and for refreshes of their bank."""
    import numpy as np

    o = memory.organisation
    banks_a_rank = o.bank_groups * o.banks
    act, pre, rd, wr, prea, ref = (COMMANDS.index(name) for name in ("ACT", "PRE", "RD", "WR", "PREA", "REF"))
    size = len(log.tick) + 1
    for r in np.unique(log.rank):
        mine = np.flatnonzero(log.rank == r)
        all_banks = mine[log.kind[mine] == prea]
        first = int(r) * banks_a_rank
        own = mine[np.isin(log.kind[mine], (act, pre))]
        position = np.concatenate([own, np.repeat(all_banks, banks_a_rank)])
        bank = np.concatenate([log.bank[own], np.tile(np.arange(first, first + banks_a_rank), len(all_banks))])
        keys = bank * size + position
        order = np.argsort(keys)
        keys, position = keys[order], position[order]

        def state(
            at: NDArray[np.int64], of: NDArray[np.int64], keys: NDArray[np.int64] = keys,
            position: NDArray[np.int64] = position,
        ) -> NDArray[np.int64]:  # fmt: skip
            """Row open in bank `of` just before log position `at`, -1 if closed."""
            place = np.searchsorted(keys, of * size + at) - 1
            if not len(keys):
                return np.full(len(at), -1)
            event = position[np.maximum(place, 0)]
            valid = (place >= 0) & (keys[np.maximum(place, 0)] // size == of) & (log.kind[event] == act)
            return np.where(valid, log.row[event], -1)

        acts = mine[log.kind[mine] == act]
        add(acts[state(acts, log.bank[acts]) >= 0], "the bank has a row open already")
        moves = mine[np.isin(log.kind[mine], (rd, wr))]
        add(moves[state(moves, log.bank[moves]) != log.row[moves]], "the row is not open")
        for number in range(banks_a_rank):
            inside = number % o.banks
            refreshes = mine[
                (log.kind[mine] == ref)
                | (log.bank[mine] == first + number) & (log.kind[mine] == ONE_BANK)
                | (log.kind[mine] == SAME_BANK) & (log.number[mine] == inside)
            ]
            open_row = state(refreshes, np.full(len(refreshes), first + number))
            add(refreshes[open_row >= 0], f"bank {first + number} has a row open")


def _check_refreshes(memory: Memory, log: Log, add: Add) -> None:
    """Every rank, where single banks are refreshed every bank, must be refreshed in time."""
    import numpy as np

    o = memory.organisation
    limit = POSTPONED * memory.timings["tREFI"]
    banks_a_rank = o.bank_groups * o.banks
    ref = COMMANDS.index("REF")
    for r in range(o.pseudo_channels * o.ranks):
        mine = log.rank == r
        single = mine & np.isin(log.kind, (ONE_BANK, SAME_BANK))
        for number in range(banks_a_rank if single.any() else 1):
            bank = r * banks_a_rank + number
            what = f"bank {bank}" if single.any() else f"rank {r}"
            of_bank = (log.bank == bank) | (log.kind == SAME_BANK) & (log.number == number % o.banks)
            at = np.flatnonzero((mine & (log.kind == ref)) | (single & of_bank))
            late = at[np.diff(log.tick[at], prepend=0) > limit]
            add(late, f"more than {limit} ticks after the last refresh of {what}")
            if len(log.tick) and log.tick[-1] - (log.tick[at[-1]] if len(at) else 0) > limit:
                add(np.array([len(log.tick) - 1]), f"{what} was not refreshed for more than {limit} ticks")


def _check_sleep(memory: Memory, log: Log, sleeps: NDArray[np.int64], add: Add) -> None:
    """A rank sleeps closed and after its time without column commands, takes none then, and the next once it is awake.

    `sleeps`: pairs of log entries, from when to when a rank slept. Raises ConfigError where they are none.
    """
    import numpy as np

    if not memory.exit_timing:
        return
    awake = memory.timings[memory.exit_timing]
    idle = memory.controller.power_down_after or 0
    for r in range(memory.organisation.pseudo_channels * memory.organisation.ranks):
        own = sleeps[sleeps[:, 2] == r]
        since, until = own[::2, 1], own[1::2, 1]
        if len(since) != len(until) or (own[::2, 0] != ASLEEP).any() or (own[1::2, 0] != AWAKE).any():
            raise ConfigError(f"the command log of rank {r} has sleeps without an end, or ends of none")
        at = np.flatnonzero(log.rank == r)
        tick = log.tick[at]
        if not len(since) or not len(at):
            continue
        last = np.searchsorted(since, tick) - 1  # a command in the tick in which a rank falls asleep comes before
        asleep = (last >= 0) & (tick < until[last] + awake)
        add(at[asleep], f"less than {awake} ticks after rank {r} woke, or while it sleeps")
        before = np.searchsorted(tick, since, side="right") - 1  # the command after which it sleeps
        known = before >= 0
        column = np.isin(log.kind[at], (COMMANDS.index("RD"), COMMANDS.index("WR")))
        used = np.maximum.accumulate(np.where(column, tick, -idle))[before]
        add(at[before[known & (used + idle > since)]], f"rank {r} sleeps less than {idle} ticks after it")
        opened = np.zeros(len(since), np.int64)
        whole = _latest(at[log.kind[at] == COMMANDS.index("PREA")], at[before])
        for bank in np.unique(log.bank[at][log.kind[at] == COMMANDS.index("ACT")]):
            mine = at[log.bank[at] == bank]
            act = _latest(mine[log.kind[mine] == COMMANDS.index("ACT")], at[before])
            pre = _latest(mine[log.kind[mine] == COMMANDS.index("PRE")], at[before])
            opened += act > np.maximum(pre, whole)
        add(at[before[known & (opened > 0)]], f"rank {r} sleeps after it with a row open")


def _latest(of: NDArray[np.int64], at: NDArray[np.int64]) -> NDArray[np.int64]:
    """For each of `at` the last of `of` (ascending) that is not after it, or -1."""
    import numpy as np

    return np.concatenate([[-1], of])[np.searchsorted(of, at, side="right")]


def _check_buses(memory: Memory, log: Log, add: Add) -> None:
    """Commands must not overlap on a command bus, nor bursts on the data bus of a pseudo-channel."""
    import numpy as np

    ticks = np.array([memory.command_ticks.get(name, 1) for name in COMMANDS])[log.kind]
    column = np.isin(log.kind, (COMMANDS.index("RD"), COMMANDS.index("WR")))
    for bus in (column, ~column) if memory.buses == 2 else (np.ones_like(column),):
        on = np.flatnonzero(bus)
        add(on[1:][log.tick[on[1:]] < log.tick[on[:-1]] + ticks[on[:-1]]], "the command bus is taken")
    add(np.flatnonzero(column & (log.tick % memory.clock_ticks != 0)), "column commands start with a clock")
    latency = np.where(log.kind == COMMANDS.index("RD"), memory.timings["CL"], memory.timings["CWL"])
    for p in np.unique(log.pseudo):
        moves = np.flatnonzero(column & (log.pseudo == p))
        begin = log.tick[moves] + latency[moves]
        order = np.argsort(begin, kind="stable")
        begin, moves = begin[order], moves[order]
        add(moves[1:][np.diff(begin) < memory.burst_ticks], "its burst overlaps another on the data bus")
