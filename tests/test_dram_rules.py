"""Every rule of every memory that ships, taken from its table: forbidden a tick early, allowed in time, by the channel
kernel and by the independent checker; and the closed forms that follow from the tables.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
from naive_dram import Naive, Segment

from sim.dram_check import check_log
from sim.kernels import dram_tables as at
from sim.kernels.dram import NEVER, advance, push, settle
from sim.kernels.dram_issue import constrain, constrain_refresh
from sim.standards import COMMANDS, LEVELS, RANK_COMMANDS, Memory, Rule, compile_memory, load_memory, new_state

pytestmark = pytest.mark.kernels

STANDARDS = (
    "ddr4-3200", "ddr5-4800", "ddr5-6400", "hbm2", "hbm2e", "hbm3", "hbm3e", "lpddr4x", "lpddr5-6400", "gddr6",
)  # fmt: skip
NUMBER = {name: i for i, name in enumerate(COMMANDS)}
Place = tuple[int, int, int]
Command = tuple[str, int, Place]  # name, tick, (rank, group, bank)


@cache
def memory_of(name: str, refresh: str = "") -> Memory:
    return load_memory(name, {"refresh": refresh} if refresh else None)


@cache
def two_ranks(name: str) -> Memory:
    """The memory, with a second rank (stack identifier) where it has only one, so that every level has two members."""
    memory = memory_of(name)
    if memory.organisation.ranks > 1:
        return memory
    mapping = ",".join(f for f in memory.mapping.split(",") if not f.startswith("ra")) + ",ra:1"
    return load_memory(name, {"organisation.ranks": 2, "mapping": mapping})


def only(memory: Memory, rule: Rule) -> Memory:
    """The memory with this rule and no other."""
    return Memory.model_construct(**{**dict(memory), "rules": (tuple(rule),)})


def places(memory: Memory, rule: Rule) -> Iterator[tuple[Place, Place]]:
    """Pairs of places, of the command before and the one after, that the rule covers: the closest and the farthest."""
    o = memory.organisation
    far = (0, o.bank_groups - 1, o.banks - 1)
    match rule.level:
        case "bank":
            yield (0, 0, 1), (0, 0, 1)
            yield far, far
            if "REFsb" in rule:
                yield (0, 0, 1), (0, o.bank_groups - 1, 1)
        case "bank_group":
            yield (0, 0, 0), (0, 0, 1)
            yield (1, 1, 0), (1, 1, o.banks - 1)
        case "other_rank":
            yield (0, 0, 0), (1, 0, 0)
            yield (1, 0, 0), far
        case level:
            yield (0, 0, 0), far
            yield (0, 0, 1), (0, 0, 1)
            if level != "rank":
                yield (0, 0, 0), (1, 0, 0)


def outside(memory: Memory, rule: Rule) -> tuple[Place, Place] | None:
    """A pair that the rule does not cover, as close as it can be."""
    o = memory.organisation
    if "REFsb" in rule and rule.level == "bank":
        return (0, 0, 0), (0, 0, 1)
    match rule.level:
        case "bank":
            return (0, 0, 0), (0, 0, 1)
        case "bank_group":
            return (0, 0, 0), (0, 1, 0)
        case "rank":
            return (0, 0, 0), (1, 0, 0)
        case "other_rank":
            return (0, 0, 0), (0, o.bank_groups - 1, o.banks - 1)
    return None


class Kernel:
    """The earliest ticks that the compiled tables give after a history of commands."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        self.t: Any = compile_memory(memory, steady=False)
        self.s: Any = new_state(self.t, 1, 1)

    def group(self, place: Place) -> int:
        return place[0] * self.memory.organisation.bank_groups + place[1]

    def issue(self, command: Command) -> None:
        name, tick, place = command
        o = self.memory.organisation
        b, g = self.group(place) * o.banks + place[2], self.group(place)
        if name in RANK_COMMANDS:
            b, g = -1, place[0] * o.bank_groups
        s = self.s
        kind = NUMBER[name]
        if name == "REFsb":
            first = np.int64(place[0] * o.bank_groups * o.banks + place[2])
            constrain_refresh(self.t, s.ready[0], s.near[0], s.ring[0], first, np.int64(tick))
            return
        constrain(self.t, s.ready[0], s.near[0], s.ring[0], np.int64(kind), np.int64(b), np.int64(g), np.int64(tick))

    def earliest(self, name: str, place: Place) -> int:
        o = self.memory.organisation
        if name in RANK_COMMANDS:
            return int(self.s.near[0, place[0] * o.bank_groups * at.N_COMMANDS + NUMBER[name]])
        groups = range(o.bank_groups) if name == "REFsb" else (place[1],)
        banks = [(place[0] * o.bank_groups + g) * o.banks + place[2] for g in groups]
        own = self.s.ready[0, banks, NUMBER[name]].max()
        return int(max(own, self.s.near[0, self.group(place) * at.N_COMMANDS + NUMBER[name]]))


def logged(commands: list[Command]) -> Any:
    """The commands as a log; what they concern beyond a bank is not there."""
    rows = []
    for name, tick, (rank, group, bank) in commands:
        place = (-1, -1, -1) if name in RANK_COMMANDS else (-1 if name == "REFsb" else group, bank, 0)
        rows.append((NUMBER[name], tick, rank, *place))
    return np.array(rows, np.int64)


def says(memory: Memory, commands: list[Command], rule: Rule) -> bool:
    """Whether the checker finds the last of `commands` to break this rule."""
    span = f"the {rule.window}th last {rule.before}" if rule.window > 1 else rule.before
    words = f"{rule.after} at tick {commands[-1][1]}: less than {rule.gap} ticks after {span} in"
    return any(text.startswith(words) for text in check_log(memory, logged(commands)).examples)


def history(memory: Memory, rule: Rule, first: Place, tick: int) -> list[Command]:
    """As many commands as the rule's window holds, the first of them at `first`, one tick apart."""
    o = memory.organisation
    return [
        (rule.before, tick + i, (first[0], (first[1] + i) % o.bank_groups, (first[2] + i // o.bank_groups) % o.banks))
        for i in range(rule.window)
    ]


@pytest.mark.parametrize("name", STANDARDS)
def test_each_rule_forbids_a_tick_early_and_allows_in_time(name: str) -> None:
    memory = two_ranks(name)
    tick = 640
    for rule in memory.rule_rows:
        alone = only(memory, rule)
        for first, second in places(memory, rule):
            before = history(memory, rule, first, tick)
            legal = tick + rule.gap
            if rule.gap > rule.window:
                assert says(alone, [*before, (rule.after, legal - 1, second)], rule), rule
            assert not says(alone, [*before, (rule.after, max(legal, before[-1][1]), second)], rule), rule
            kernel = Kernel(alone)
            for command in before:
                kernel.issue(command)
            assert kernel.earliest(rule.after, second) == legal, (rule, first, second)
        pair = outside(memory, rule)
        if pair and not (rule.level in ("bank", "bank_group") and {rule.before, rule.after} & RANK_COMMANDS):
            before = history(memory, rule, pair[0], tick)[:1] * rule.window
            assert not says(alone, [*before, (rule.after, tick + 1, pair[1])], rule), rule
            kernel = Kernel(alone)
            for command in before:
                kernel.issue(command)
            assert kernel.earliest(rule.after, pair[1]) <= tick, rule


@pytest.mark.parametrize("name", STANDARDS)
def test_all_rules_together_give_the_latest_of_what_each_allows(name: str) -> None:
    memory = two_ranks(name)
    o = memory.organisation
    numbers = random.Random(name)
    kinds = [k for k in COMMANDS if any(k in (r.before, r.after) for r in memory.rule_rows)]
    kernel, twin, tick = Kernel(memory), Naive(memory, []), 0
    for _ in range(40):
        tick += numbers.choice((1, 2, 5, 30, 200)) * memory.clock_ticks
        place = (numbers.randrange(2), numbers.randrange(o.bank_groups), numbers.randrange(o.banks))
        kind = numbers.choice(kinds)
        kernel.issue((kind, tick, place))
        twin.tick = tick
        twin.issue(kind, place[:1] if kind in RANK_COMMANDS else place, 0)
        twin.bus = {"row": 0, "column": 0}
        for after in kinds:
            there = place if numbers.random() < 0.4 else (numbers.randrange(2), numbers.randrange(o.bank_groups), 0)
            earliest = kernel.earliest(after, there)
            wheres = [there[:1] if after in RANK_COMMANDS else there]
            if after == "REFsb":
                wheres = [(there[0], g, there[2]) for g in range(o.bank_groups)]
            assert all(twin.legal(after, where, max(earliest, tick)) for where in wheres), (after, there)
            if earliest > tick + memory.clock_ticks:
                assert not all(twin.legal(after, where, earliest - 1) for where in wheres), (after, there)


@pytest.mark.parametrize("name", STANDARDS)
def test_equals_the_plain_twin(name: str) -> None:
    memory = load_memory(name, {"queue": 7, "cap": 2})
    numbers = random.Random(name)
    for _ in range(3):
        tick, work = 0, []
        for _ in range(numbers.randint(3, 12)):
            tick += numbers.choice((0, 0, 1, 61, 900, 6001))
            span = numbers.choice((200, 1 << 12, 1 << 20))
            work.append((numbers.randrange(span), numbers.choice((1, 1, 2, 5, 30)), numbers.randint(0, 1), tick))
        twin = Naive(memory, [Segment(lo, n, w, task, when, n) for task, (lo, n, w, when) in enumerate(work)])
        twin.run()
        _, s, done = serve(memory, work, log=20_000)
        log = s.log[0, : s.scalar[0, at.LOGGED]]
        assert [(COMMANDS[row[0]], *map(int, row[1:])) for row in log] == twin.log
        assert done == twin.done
        assert check_log(memory, log).count == 0


def serve(
    memory: Memory, work: list[tuple[int, int, int, int]], log: int = 0
) -> tuple[Any, Any, list[tuple[int, int]]]:
    """Tables, state and completions (task, tick) of a channel that served (first burst, bursts, is_write, tick)."""
    t = compile_memory(memory)
    s = new_state(t, 1, len(work) + 1, log=log)
    for task, (lo, n, is_write, tick) in enumerate(work):
        assert push(t, s, 0, lo, n, is_write, task, tick)
    done = []
    following = 0
    while following < NEVER:
        following = advance(t, s, 0, NEVER)
        done += [(int(s.done_task[0, k]), int(s.done_tick[0, k])) for k in range(s.done_count[0])]
        s.done_count[0] = 0
    return t, s, done


def burst(memory: Memory, row: int = 0, group: int = 0, bank: int = 0, rank: int = 0, column: int = 0) -> int:
    """The channel-local burst at a place."""
    rest = {"ro": row, "bg": group, "ba": bank, "ra": rank, "co": column, "pc": 0}
    address = shift = 0
    for field, bits in reversed(memory.fields):
        if field != "ch" and bits is not None:
            address |= (rest[field] & ((1 << bits) - 1)) << shift
            rest[field] >>= bits
            shift += bits
    return address


def read_delay(memory: Memory) -> int:
    return memory.timings.get("tRCDRD", memory.timings.get("tRCD", 0))


def row_cycle(memory: Memory) -> int:
    """Ticks from activation to activation of a bank that reads one burst of each row."""
    t = memory.timings
    return max(t["tRC"], t["tRAS"] + t["tRP"], read_delay(memory) + t["tRTP"] + t["tRP"])


@pytest.mark.parametrize("name", STANDARDS)
def test_latencies_in_closed_form(name: str) -> None:
    memory = memory_of(name, "none")
    t = memory.timings
    later = 8000 * memory.clock_ticks
    work = [
        (burst(memory), 1, 0, 0),
        (burst(memory, column=5), 1, 0, later),
        (burst(memory, row=3), 1, 0, 2 * later),
    ]
    idle = read_delay(memory) + t["CL"] + t["BL"]
    assert [tick for _, tick in serve(memory, work)[2]] == [
        idle, later + t["CL"] + t["BL"], 2 * later + t["tRP"] + idle,
    ]  # fmt: skip


@pytest.mark.parametrize("name", STANDARDS)
@pytest.mark.parametrize("is_write", [0, 1])
def test_one_row_moves_a_burst_every_long_column_gap(name: str, is_write: int) -> None:
    memory = memory_of(name, "none")
    t, n = memory.timings, memory.organisation.columns
    gap = max(t["BL"], t.get("tCCD_L", t.get("tCCD", 0)))
    if is_write:
        gap = max(gap, t.get("tCCD_L_WR", 0))
    work = [(burst(memory, column=c), 1, is_write, 0) for c in range(n)]
    _, s, _ = serve(memory, work)
    delay = t.get("tRCDWR", read_delay(memory)) + t["CWL"] if is_write else read_delay(memory) + t["CL"]
    assert s.scalar[0, at.LAST_END] == delay + (n - 1) * gap + t["BL"]


@pytest.mark.parametrize("name", STANDARDS)
@pytest.mark.parametrize("is_write", [0, 1])
def test_a_stream_runs_at_95_per_cent_of_peak(name: str, is_write: int) -> None:
    memory = memory_of(name)
    n = 40_000
    t, s, _ = serve(memory, [(0, n, is_write, 0)])
    end = int(s.scalar[0, at.LAST_END])
    assert n * t.burst_ticks <= end <= n * t.burst_ticks / 0.95
    assert abs(s.count[0, t.refresh_command] / t.ranks - end / t.refresh_interval) <= 2
    if memory.refresh.suffix:
        whole = memory_of(name, "together")
        _, s, _ = serve(whole, [(0, n, is_write, 0)])
        available = 1 - whole.timings["tRFC"] / whole.timings["tREFI"]
        assert n * t.burst_ticks <= s.scalar[0, at.LAST_END] <= n * t.burst_ticks / available / 0.95


@pytest.mark.parametrize("name", STANDARDS)
def test_scattered_reads_are_bound_by_the_four_activation_window(name: str) -> None:
    memory = memory_of(name, "none")
    o, t, n = memory.organisation, memory.timings, 1200
    places = [(g, b) for b in range(o.banks) for g in range(o.bank_groups)]
    work = [
        (burst(memory, row=i // len(places), group=g, bank=b), 1, 0, 0)
        for i in range(n)
        for g, b in [places[i % len(places)]]
    ]
    _, s, _ = serve(memory, work, log=4 * n)
    log = s.log[0, : s.scalar[0, at.LOGGED]]
    acts = log[log[:, 0] == at.ACT, 1]
    window = max(t["tFAW"], 4 * t.get("tRRD_S", t.get("tRRD", 0)))
    assert (acts[4:] - acts[:-4]).min() >= window
    assert acts[-1] - acts[0] == pytest.approx((len(acts) - 1) / 4 * window, rel=0.03)


@pytest.mark.parametrize("name", STANDARDS)
def test_one_bank_is_bound_by_its_row_cycle(name: str) -> None:
    memory = memory_of(name, "none")
    n = 300
    _, s, _ = serve(memory, [(burst(memory, row=i), 1, 0, 0) for i in range(n)])
    first = read_delay(memory) + memory.timings["CL"] + memory.timings["BL"]
    assert s.scalar[0, at.LAST_READ_END] - first == (n - 1) * row_cycle(memory)


@pytest.mark.parametrize("name", STANDARDS)
def test_an_idle_channel_spends_its_refresh_share(name: str) -> None:
    memory = memory_of(name)
    t = compile_memory(memory)
    s = new_state(t, 1, 1)
    settle(t, s, 0, 1000 * t.refresh_interval)
    assert s.count[0, t.refresh_command] in (999 * t.ranks, 1000 * t.ranks - t.ranks // 2)
    assert s.rank[0, at.TIME_REFRESH].sum() == s.count[0, at.REF] * memory.timings["tRFC"]
    assert sum(s.count[0, k] for k in (at.REF, at.REFB, at.REFS)) == s.count[0, t.refresh_command]


@pytest.mark.parametrize("name", STANDARDS)
def test_random_traffic_breaks_no_rule(name: str) -> None:
    memory = memory_of(name)
    numbers = random.Random(7)
    span = memory.bursts_per_channel
    work = [(numbers.randrange(span), 1, int(numbers.random() < 0.3), i * 3) for i in range(3000)]
    _, s, _ = serve(memory, work, log=20_000)
    log = s.log[0, : s.scalar[0, at.LOGGED]]
    assert check_log(memory, log).count == 0
    kinds = log[:, 0]
    for name_of_kind in ("ACT", "PRE", "RD", "WR"):
        drop = np.flatnonzero(kinds == NUMBER[name_of_kind])
        if name_of_kind in ("ACT", "PRE"):
            for i in drop[:: max(1, len(drop) // 4)][:4]:
                if (kinds[i + 1 :] != at.PREA).all() or name_of_kind == "ACT":
                    assert check_log(memory, np.delete(log, i, axis=0)).count > 0
        for i in drop[:: max(1, len(drop) // 4)][:4]:
            twice = np.insert(log, i, log[i], axis=0)
            assert check_log(memory, twice).count > 0


def test_every_level_is_exercised() -> None:
    used = {rule.level for name in STANDARDS for rule in two_ranks(name).rule_rows}
    assert used == set(LEVELS) - {"channel", "other_pseudo_channel"}
