"""Works a memory's `pim` section out to the integer tables of the kernel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.kernels import dram_tables as d
from sim.kernels import pim_tables as k
from sim.pim.schema import (
    ORDINARY,
    PIM_COMMANDS,
    LoadFrom,
    Mode,
    PimRule,
    Scope,
    max_dots,
    pim_rules,
    template_steps,
    ticks,
)

if TYPE_CHECKING:
    from sim.pim.schema import Pim
    from sim.standards import Memory

Ints = NDArray[np.int64]
Run = tuple[int, int, int, int, int, int]


def no_pim() -> Ints:
    """The tables of a memory without PIM."""
    return np.array([k.NO_PIM], np.int64)


def units_of(memory: Memory) -> dict[str, list[range]]:
    """Banks of the channel (numbers) that each unit of each command concerns, ordinary commands too."""
    pim = memory.pim
    assert pim is not None
    o = memory.organisation
    ranks = o.pseudo_channels * o.ranks
    in_rank = o.bank_groups * o.banks
    banks = ranks * in_rank
    each = [range(b, b + 1) for b in range(banks)]
    by_rank = [range(r * in_rank, (r + 1) * in_rank) for r in range(ranks)]
    scopes = {
        Scope.BANK: each,
        Scope.BANK_GROUP: [range(b, b + o.banks) for b in range(0, banks, o.banks)],
        Scope.SET: [range(s, banks, pim.sets) for s in range(pim.sets)],
        Scope.LOCKSTEP: [range(b, banks, banks // o.pseudo_channels) for b in range(banks // o.pseudo_channels)],
    }
    sets = scopes[Scope.SET]
    result = {name: by_rank if name in ("PREA", "REF") else each for name in ORDINARY}
    for name in PIM_COMMANDS:
        result[name] = sets
    result["HEADER"] = [range(banks)]
    result["G_ACT"] = scopes[pim.activate]
    result["PIM_PRE"] = scopes[pim.precharge]
    if pim.load is LoadFrom.BANK:
        result["GWRITE"] = each
    return result


def pim_tables(memory: Memory) -> Ints:
    """The tables of the memory's PIM part, laid out as `kernels.pim_tables` says; of none where it has none."""
    pim = memory.pim
    if pim is None:
        return no_pim()
    o, timings = memory.organisation, memory.timings
    ranks, in_rank = o.pseudo_channels * o.ranks, o.bank_groups * o.banks
    units = units_of(memory)
    counts = [len(units[name]) for name in PIM_COMMANDS]
    flat = [unit for name in PIM_COMMANDS for unit in units[name]]
    base = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    pointers, runs, dots_gap = _runs(memory, units, base)
    templates, steps = _templates(memory, pim)

    def value(key: str, text: int | str, dots: int = 0) -> int:
        return ticks(memory, f"pim.{key}", text, dots, negative=True)

    table = np.zeros(k.N_TABLE, np.int64)
    gap = timings["BL"] + timings.get("tCS", 0)
    two_buffers = pim.mode is Mode.DUAL
    for at, number in {
        k.MODE: k.DUAL if two_buffers else k.BLOCKED,
        k.TWO_BUFFERS: two_buffers,
        k.SIDES: pim.sets,
        k.AHEAD: pim.ahead,
        k.SPREAD: pim.spread,
        k.CLOSE_UNUSED: pim.close_unused,
        k.HEADERS: pim.header,
        k.FROM_BANK: pim.load is LoadFrom.BANK,
        k.BANKS: ranks * in_rank,
        k.RANKS: ranks,
        k.RANK_BANKS: in_rank,
        k.GROUP_BANKS: o.banks,
        k.FRONT_TICKS: memory.clock_ticks,
        k.TWO_BUSES: memory.buses == 2,
        k.READ_TICKS: timings["CL"] + timings["BL"],
        k.WRITE_TICKS: timings["CWL"] + timings["BL"],
        k.BURST_TICKS: timings["BL"],
        k.LOAD_TICKS: value("load_ticks", pim.load_ticks),
        k.READOUT_APART: gap,
        k.READOUT_TO_WRITE: timings["CL"] + gap - timings["CWL"],
        k.WRITE_TO_READOUT: max(1, timings["CWL"] + gap - timings["CL"]),
        k.REACH: max(
            (max(rule.gaps) for rule in pim_rules(memory) if rule.before in ORDINARY and rule.before != "REF"),
            default=0,
        ),
        k.SLACK_ACT: -1,
        k.SLACK_PRE: -1,
    }.items():
        table[at] = number
    table[k.UNIT_BASE : k.UNIT_BASE + k.N_PIM + 1] = base
    table[k.COMMAND_TICKS : k.COMMAND_TICKS + k.N_PIM] = [pim.command_ticks.get(name, 1) for name in PIM_COMMANDS]
    if pim.deadline is not None and memory.refresh != "none":
        table[k.DEADLINE] = 1
        for at, name in (
            (k.FOR_TILE, "fixed"), (k.FOR_PRECHARGE, "precharge"), (k.FOR_ACTIVATION, "activation"), (k.FOR_DOT, "dot"),
            (k.LEAST_DOTS, "least_dots"), (k.FOR_READOUT, "readout"), (k.FOR_LOAD, "load"),
            (k.FOR_LOAD_CLOSED, "load_open"), (k.FOR_LOAD_CONFLICT, "load_conflict"),
        ):  # fmt: skip
            table[at] = value(f"deadline.{name}", getattr(pim.deadline, name))
        # What is longer than the time between the end of a refresh and the next one would wait for ever.
        between = timings["tREFI"] // (ranks if memory.refresh == "staggered" else 1)
        table[k.LONGEST] = between - timings["tRFC"] - timings["tRP"] - in_rank
    if pim.slack is not None:
        for at, name in (
            (k.SLACK_ANY, "any"), (k.SLACK_ACT, "activate"), (k.SLACK_PRE, "precharge"),
            (k.SLACK_PRE_COST, "precharge_cost"),
        ):  # fmt: skip
            table[at] = value(f"slack.{name}", getattr(pim.slack, name))
    table[k.DOTS_WIDTH] = max_dots(memory) + 1
    parts = {
        k.TEMPLATES: templates,
        k.STEPS: steps,
        k.UNITS: np.array([(unit.start, unit.stop, unit.step) for unit in flat], np.int64),
        k.RUN_POINTERS: pointers,
        k.RUNS: runs,
        k.READOUT_AT: _ints(value("readout", pim.readout, dots) for dots in range(max_dots(memory) + 1)),
        k.DOTS_GAP: dots_gap,
    }
    where = k.N_TABLE
    for at, part in parts.items():
        table[at] = where
        where += part.size
    table[k.ROWS_AT] = k.N_STATE
    table[k.EARLIEST_AT] = k.N_STATE + ranks * in_rank
    table[k.JOBS_AT] = table[k.EARLIEST_AT] + base[-1]
    return np.concatenate([table, *(part.ravel() for part in parts.values())])


def pim_state(tables: d.DramTables, classes: int, ring: int) -> Ints:
    """Idle PIM parts of `classes` channels with room for `ring` jobs each: [classes, words]."""
    table = tables.pim
    if table[k.MODE] == k.NO_PIM:
        return np.zeros((classes, 0), np.int64)
    state = np.zeros((classes, int(table[k.JOBS_AT]) + ring * k.RING_FIELDS), np.int64)
    state[:, k.RING] = ring
    state[:, k.BUSY_FROM] = -1
    state[:, k.LAST_READOUT] = -(2**40)
    state[:, k.READOUT : k.READOUT + k.READOUTS] = -(2**40)
    state[:, table[k.ROWS_AT] : table[k.EARLIEST_AT]] = -1
    return state


def _ints(values: Iterable[int]) -> Ints:
    return np.array(list(values), np.int64)


def _templates(memory: Memory, pim: Pim) -> tuple[Ints, Ints]:
    """(first load step, first tile step, end) of each template, and all steps."""
    first: list[tuple[int, int, int]] = []
    rows: list[tuple[int, ...]] = []
    for name in pim.kernels:
        load, tile = template_steps(memory, name)
        first.append((len(rows), len(rows) + len(load), len(rows) + len(load) + len(tile)))
        for step in (*load, *tile):
            place = k.NO_ROW if not step.needs_row else k.TILE_ROW if step.row is None else k.FIXED_ROW
            rows.append((
                PIM_COMMANDS.index(step.command),
                -1 if step.times is None else step.times,
                -1 if step.side is None else step.side,
                place,
                step.offset if step.row is None else step.row,
            ))  # fmt: skip
    return np.array(first, np.int64), np.array(rows, np.int64).reshape(-1, k.STEP_FIELDS)


def _runs(memory: Memory, units: dict[str, list[range]], base: Ints) -> tuple[Ints, Ints, Ints]:
    """Gaps after each command of each unit as runs of places with a gap in common.

    Returns (ptr, runs, gaps by dots): the runs of command number c and unit u are ptr[c * banks + u] and on.
    """
    o = memory.organisation
    banks = o.pseudo_channels * o.ranks * o.bank_groups * o.banks
    numbers = {name: ORDINARY.index(name) for name in ORDINARY}
    numbers |= {name: d.N_COMMANDS + i for i, name in enumerate(PIM_COMMANDS)}
    by_dots: list[tuple[int, ...]] = []
    found: dict[int, dict[tuple[int, int, int], int]] = defaultdict(dict)
    for rule in pim_rules(memory):
        row = -1
        if len(rule.gaps) > 1:
            if rule.gaps not in by_dots:
                by_dots.append(rule.gaps)
            row = by_dots.index(rule.gaps)
        related = _related(memory, rule, units)
        for u, unit in enumerate(units[rule.before]):
            # A command of a rank stands at its first bank.
            place = numbers[rule.before] * banks + (unit.start if rule.before in ("PREA", "REF") else u)
            for where, at in _targets(memory, rule, related[u], units, base):
                key = (where, at, row)
                found[place][key] = max(found[place].get(key, 0), rule.gaps[0])
    ptr = np.zeros((d.N_COMMANDS + k.N_PIM) * banks + 1, np.int64)
    runs: list[Run] = []
    for place in range(len(ptr) - 1):
        runs += _compressed(found.get(place, {}))
        ptr[place + 1] = len(runs)
    dots = max_dots(memory)
    table = np.array(by_dots, np.int64).reshape(-1, dots + 1)
    return ptr, np.array(runs, np.int64).reshape(-1, 6), table


def _nodes(memory: Memory, level: str, units: list[range]) -> NDArray[np.bool_]:
    """Which nodes of a level each unit has banks in: [units, nodes]."""
    o = memory.organisation
    size = {"buffer": 1, "bank": 1, "bank_group": o.banks, "rank": o.bank_groups * o.banks}
    banks = o.pseudo_channels * o.ranks * o.bank_groups * o.banks
    each = size.get(level, banks)
    result = np.zeros((len(units), banks // each), bool)
    for u, unit in enumerate(units):
        result[u, np.unique(np.array(unit) // each)] = True
    return result


def buffers_of(memory: Memory, command: str) -> set[int]:
    """Row buffers of a bank that a command works on: 0 the ordinary one, 1 that of PIM where it has its own."""
    pim = memory.pim
    assert pim is not None
    if command in ("PREA", "REF"):
        return {0, 1}
    ordinary = command in ORDINARY or (command == "GWRITE" and pim.load is LoadFrom.BANK)
    return {0 if ordinary or pim.mode is Mode.BLOCKED else 1}


def _related(memory: Memory, rule: PimRule, units: dict[str, list[range]]) -> NDArray[np.bool_]:
    """Whether a rule relates a unit of its first command to one of its second."""
    first = _nodes(memory, rule.level, units[rule.before])
    second = _nodes(memory, rule.level, units[rule.after])
    if rule.level == "buffer" and not buffers_of(memory, rule.before) & buffers_of(memory, rule.after):
        return np.zeros((len(first), len(second)), bool)
    return (first.astype(np.int64) @ second.T.astype(np.int64)) > 0


def _targets(
    memory: Memory, rule: PimRule, related: NDArray[np.bool_], units: dict[str, list[range]], base: Ints
) -> list[tuple[int, int]]:
    """Places of the kernel's arrays that hold the earliest ticks of the related units of the second command."""
    o = memory.organisation
    hit = np.flatnonzero(related)
    if rule.after in PIM_COMMANDS:
        return [(k.ON_PIM, int(base[PIM_COMMANDS.index(rule.after)] + v)) for v in hit]
    kind = ORDINARY.index(rule.after)
    if rule.level in ("buffer", "bank"):
        return [(k.ON_READY, int(b) * d.N_COMMANDS + kind) for b in hit]
    groups = {b // o.banks for v in hit for b in units[rule.after][v]}
    return [(k.ON_NEAR, g * d.N_COMMANDS + kind) for g in sorted(groups)]


def _compressed(gaps: dict[tuple[int, int, int], int]) -> list[Run]:
    """Places with equal gaps as runs of equal distance."""
    by_gap: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for (where, at, row), gap in gaps.items():
        by_gap[(where, gap if row < 0 else 0, row)].append(at)
    runs: list[Run] = []
    for (where, gap, row), places in sorted(by_gap.items()):
        places.sort()
        while places:
            step = places[1] - places[0] if len(places) > 1 else 1
            n = 1
            while n < len(places) and places[n] == places[0] + n * step:
                n += 1
            runs.append((where, places[0], places[n - 1] + 1, step, gap, row))
            del places[:n]
    return runs
