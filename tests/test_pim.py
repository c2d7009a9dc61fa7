"""Processing in memory, command by command: hand-worked times, both modes beside random traffic, and the checker."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from sim.dram_check import check_log
from sim.errors import ConfigError
from sim.kernels import dram_tables as d
from sim.kernels import pim_tables as k
from sim.kernels.dram import advance, push
from sim.kernels.pim import push_pim
from sim.pim.jobs import as_table, instructions, job, job_ticks, run_jobs
from sim.pim.schema import PIM_COMMANDS
from sim.standards import COMMANDS, Memory, compile_memory, load_memory, new_state

Ints = NDArray[np.int64]
NAMES = (*COMMANDS, *PIM_COMMANDS)
ZERO, NEVER = np.int64(0), np.int64(d.NEVER)
DUAL, BLOCKED = "hbm2-neupims-pim", "hbm2-neupims-pim-blocked"


def tiles(memory: Memory, *, n: int = 1, groups: int = 4, dots: int = 8, loads: int = 0, row: int = 100) -> list[int]:
    return job(memory, "gemv", loads=loads, tiles=n, groups=groups, dots=dots, row=row)


class Channel:
    """One channel with jobs from the start and segments as they fit; `split` cuts its time at random."""

    def __init__(self, memory: Memory, jobs: list[list[int]], segments: list[tuple[int, int, int, int]], log: int = 0):
        self.memory, self.jobs, self.segments = memory, as_table(jobs), segments
        self.tables = compile_memory(memory)
        self.state = new_state(self.tables, 1, ring=16, log=log, jobs=max(1, len(jobs)))
        self.done: dict[int, int] = {}

    def run(self, split: int = 0, seed: int = 0) -> Channel:
        rng = np.random.default_rng(seed)
        for n in range(len(self.jobs)):
            assert push_pim(self.tables, self.state, ZERO, self.jobs, np.int64(n), np.int64(1000 + n), ZERO)
        pushed, until = 0, 0
        while True:
            while pushed < len(self.segments):
                tick, low, count, write = (np.int64(value) for value in self.segments[pushed])
                if not push(self.tables, self.state, ZERO, low, count, write, np.int64(pushed), tick):
                    break
                pushed += 1
            until += int(rng.integers(1, split)) if split else 0
            following = advance(self.tables, self.state, ZERO, np.int64(until) if split else NEVER)
            for n in range(self.state.done_count[0]):
                self.done[int(self.state.done_task[0, n])] = int(self.state.done_tick[0, n])
            self.state.done_count[0] = 0
            if following >= NEVER and pushed == len(self.segments):
                return self

    @property
    def log(self) -> Ints:
        found: Ints = self.state.log[0, : self.state.scalar[0, d.LOGGED]]
        return found

    def commands(self) -> list[tuple[str, int]]:
        return [(NAMES[kind], int(tick)) for kind, tick in self.log[:, :2]]


def traffic(seed: int, count: int, spread: int = 2**18) -> list[tuple[int, int, int, int]]:
    """Segments of random places, lengths and directions, all to be seen at once."""
    rng = np.random.default_rng(seed)
    return [
        (0, int(rng.integers(0, spread)), int(rng.integers(1, 50)), int(rng.random() < 0.3)) for _ in range(count)
    ]  # fmt: skip


@pytest.mark.kernels
def test_a_tile_takes_what_its_commands_take() -> None:
    memory = load_memory(DUAL)
    channel = Channel(memory, [tiles(memory, n=2, groups=2)], [], log=200).run()
    opened = [(name, tick) for name, tick in channel.commands() if name == "G_ACT"]
    # A header, then four activations in each of two ranks, tFAW apart; 14 clocks later the rows can be used.
    assert channel.commands()[0] == ("HEADER", 0)
    assert [tick for _, tick in opened[:8]] == [1, 2, 31, 32, 61, 62, 91, 92]
    results = [tick for name, tick in channel.commands() if name == "COMPS_READRES"]
    assert results[:2] == [92 + 14, 106 + 2 * (8 + 1)]
    # The last of 8 steps is 14 clocks after the second command, tRTP later the first bank may be closed, then 31 more.
    closed = [tick for name, tick in channel.commands() if name == "PIM_PRE"]
    assert closed[:32] == list(range(124 + 14 + 5, 124 + 14 + 5 + 32))
    assert opened[8][1] == closed[31] + 2
    # Results: 16 clocks of steps, CL 14, burst 2.
    assert channel.done[1000] == results[3] + 16 + 14 + 2


@pytest.mark.kernels
def test_the_artifacts_rule_answers_before_the_steps_are_over() -> None:
    ends = {}
    for rule in ("issue", "last_dot"):
        memory = load_memory(DUAL, {"pim.completion": rule})
        ends[rule] = run_jobs(memory, as_table([tiles(memory, groups=1, dots=32)]))[0]
    assert ends["issue"] == 106 + 14 + 2
    assert ends["last_dot"] == 106 + 2 * 32 + 14 + 2


@pytest.mark.kernels
def test_a_load_opens_its_row_and_holds_the_units() -> None:
    memory = load_memory(DUAL)
    channel = Channel(memory, [tiles(memory, groups=1, loads=1)], [], log=50).run()
    assert channel.commands()[:3] == [("ACT", 0), ("GWRITE", 14), ("HEADER", 14 + 96)]


@pytest.mark.kernels
@pytest.mark.parametrize("name", [DUAL, BLOCKED])
@pytest.mark.parametrize("completion", ["last_dot", "issue"])
def test_no_rule_is_broken_beside_random_traffic(name: str, completion: str) -> None:
    memory = load_memory(name, {"pim.completion": completion})
    jobs = [tiles(memory, n=3, loads=1), tiles(memory, n=2, groups=1, dots=19, row=300), tiles(memory, n=2, loads=1)]
    channel = Channel(memory, jobs, traffic(1, 40), log=20000).run()
    assert set(channel.done) == {*range(40), 1000, 1001, 1002}
    found = check_log(memory, channel.log)
    assert found.count == 0, found.examples
    # And whatever the limits up to which it is taken, with or without a log, the same happens.
    for split, log in ((200, 20000), (7, 20000), (0, 0)):
        again = Channel(memory, jobs, traffic(1, 40), log=log).run(split, seed=2)
        assert again.done == channel.done
        if log:
            assert np.array_equal(again.log, channel.log)
        assert np.array_equal(
            again.state.pim[0, k.COUNTS : k.COUNTS + 8], channel.state.pim[0, k.COUNTS : k.COUNTS + 8]
        )


@pytest.mark.parametrize("name", [DUAL, BLOCKED])
def test_streams_that_are_jumped_over_leave_pim_as_it_would_be(name: str) -> None:
    """Long streams, and jobs handed over while they run and after, with the steady-state shortcut and without."""
    memory = load_memory(name)
    jobs = as_table([tiles(memory, n=2, loads=1), tiles(memory, n=3, groups=1, dots=20, row=300)])
    ends = []
    for steady in (True, False):
        tables = compile_memory(memory, steady)
        state = new_state(tables, 1, ring=16, jobs=4)
        done: dict[int, int] = {}
        handed = iter(enumerate((2500, 3333, 7001, 9000, 14000, 14950)))
        now = np.int64(0)
        for n, low in enumerate((0, 2**16, 2**17)):
            push(tables, state, ZERO, np.int64(low), np.int64(3000), np.int64(n % 2), np.int64(n), now)
        n, at = next(handed)
        while True:
            following = advance(tables, state, ZERO, np.int64(at) if at else NEVER)
            for i in range(state.done_count[0]):
                done[int(state.done_task[0, i])] = int(state.done_tick[0, i])
            state.done_count[0] = 0
            if at and following >= at:
                push_pim(tables, state, ZERO, jobs, np.int64(n % 2), np.int64(100 + n), np.int64(at + 50))
                push(tables, state, ZERO, np.int64(n * 4096), np.int64(700), ZERO, np.int64(10 + n), np.int64(at + 60))
                n, at = next(handed, (0, 0))
            elif following >= NEVER:
                break
        assert (state.memo_count[0] > 0) == steady
        counts = state.count[0].copy(), state.pim[0, k.COUNTS : k.COUNTS + 8].copy()
        ends.append((done, counts))
    assert ends[0][0] == ends[1][0]
    for fast, slow in zip(ends[0][1], ends[1][1], strict=True):
        assert np.array_equal(fast, slow)


@pytest.mark.kernels
def test_requests_to_the_rows_of_pim_wait_for_them() -> None:
    memory = load_memory(DUAL)
    # Rows 100 and 101 of all banks, which the tiles use, are also read and written as ordinary memory.
    row = memory.bursts_per_channel // memory.organisation.rows
    segments = [(0, (100 + n % 2) * row + 32 * n, 16, n % 2) for n in range(12)]
    channel = Channel(memory, [tiles(memory, n=4)], segments, log=20000).run()
    assert len(channel.done) == 13
    assert check_log(memory, channel.log).count == 0


@pytest.mark.kernels
def test_a_blocked_channel_does_one_or_the_other() -> None:
    memory = load_memory(BLOCKED)
    channel = Channel(memory, [tiles(memory, n=2)], traffic(3, 10), log=20000).run()
    kinds = ["pim" if name in PIM_COMMANDS else "ordinary" for name, _ in channel.commands() if "REF" not in name]
    ordinary = [n for n, kind in enumerate(kinds) if kind == "ordinary"]
    own = [n for n, kind in enumerate(kinds) if kind == "pim"]
    assert not [n for n in ordinary if own[0] < n < own[-1]]
    assert ordinary
    both = Channel(load_memory(DUAL), [tiles(memory, n=2)], traffic(3, 10), log=20000).run()
    kinds = ["pim" if name in PIM_COMMANDS else "ordinary" for name, _ in both.commands()]
    assert "ordinary" in kinds[kinds.index("pim") : len(kinds) - kinds[::-1].index("pim")]


@pytest.mark.kernels
def test_ordinary_traffic_goes_on_beside_pim_but_not_for_free() -> None:
    memory = load_memory(DUAL)
    jobs = [tiles(memory, n=12)]
    segments = [(0, 4096 * n, 64, 0) for n in range(16)]
    together = Channel(memory, jobs, segments).run()
    apart = Channel(memory, jobs, []).run().done[1000]
    alone = max(Channel(memory, [], segments).run().done.values())
    end = max(together.done.values())
    assert max(apart, alone) <= end < apart + alone
    blocked = load_memory(BLOCKED)
    turns = Channel(blocked, jobs, segments).run()
    assert max(turns.done.values()) > end


@pytest.mark.kernels
def test_tiles_that_would_not_end_before_a_refresh_wait_for_it() -> None:
    memory = load_memory(DUAL)
    channel = Channel(memory, [tiles(memory, n=12)], [], log=4000).run()
    commands = channel.commands()
    refreshes = [tick for name, tick in commands if name == "REF"]
    assert refreshes
    # Between the last header before a refresh falls due (every 1950 clocks) and it, the whole tile is over.
    for due in range(1950, refreshes[-1], 1950):
        last = max(tick for name, tick in commands if name == "COMPS_READRES" and tick < due)
        heads = [tick for name, tick in commands if name == "HEADER" and tick < due]
        assert len([t for n, t in commands if n == "COMPS_READRES" and heads[-1] < t < due]) == 4
        assert last < due - 5
    free = load_memory(DUAL, {"pim.deadline": None, "pim.slack": None})
    bold = Channel(free, [tiles(free, n=12)], [], log=4000).run()
    assert bold.done[1000] < channel.done[1000]
    assert check_log(free, bold.log).count == 0


Damage = Callable[[Ints, Callable[[str], Ints]], None]


def _open_twice(log: Ints, at: Callable[[str], Ints]) -> None:
    log[at("PIM_PRE")[0], 0] = NAMES.index("HEADER")
    log[at("HEADER")[1], 2:5] = (-1, -1, 0)


def _too_early(log: Ints, at: Callable[[str], Ints]) -> None:
    first = at("COMPS_READRES")[0]
    log[first, 1] = log[first - 1, 1] + 1


def _wrong_row(log: Ints, at: Callable[[str], Ints]) -> None:
    log[at("COMPS_READRES")[0], 5] += 1


def _at_once(log: Ints, at: Callable[[str], Ints]) -> None:
    second = at("G_ACT")[1]
    log[second, 1] = log[second - 1, 1]


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_open_twice, "has a row open already"),
        (_too_early, "less than 14 ticks after G_ACT in the same bank"),
        (_wrong_row, "is not open"),
        (_at_once, "the command bus is taken"),
    ],
)
def test_the_checker_finds_a_damaged_log(damage: Damage, words: str) -> None:
    memory = load_memory(DUAL)
    log = Channel(memory, [tiles(memory, n=2)], [], log=400).run().log.copy()
    assert check_log(memory, log).count == 0
    damage(log, lambda name: np.flatnonzero(log[:, 0] == NAMES.index(name)))
    found = check_log(memory, log)
    assert found.count
    assert any(words in text for text in found.examples), found.examples


@pytest.mark.kernels
def test_the_same_row_open_in_both_buffers_is_found() -> None:
    memory = load_memory(DUAL)
    log = Channel(memory, [tiles(memory, n=1)], [(0, 0, 1, 0)], log=400).run().log.copy()
    act = np.flatnonzero(log[:, 0] == NAMES.index("ACT"))[0]
    read = np.flatnonzero(log[:, 0] == NAMES.index("RD"))[0]
    log[act, 5] = log[read, 5] = 100
    assert any("open in the other row buffer" in text for text in check_log(memory, log).examples)


@pytest.mark.kernels
def test_estimates_follow_the_kernel() -> None:
    memory = load_memory(DUAL, {"refresh": "none"})
    jobs = as_table(
        [tiles(memory, n=5, loads=1), tiles(memory, n=5, loads=1, row=200), tiles(memory, n=3, groups=1, dots=20)]
    )
    ends = run_jobs(memory, jobs)
    assert job_ticks(memory, jobs)[1] == pytest.approx(ends[1] - ends[0], abs=2)
    # A header and four results a tile, and the load; without composite commands 8 steps and a read-out a result.
    assert list(instructions(memory, jobs)) == [1 + 5 * 5, 1 + 5 * 5, 3 * 2]
    assert list(instructions(load_memory(BLOCKED), jobs)) == [1 + 5 * (1 + 4 * 9), 1 + 5 * (1 + 4 * 9), 3 * (1 + 21)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"controller.policy": "ramulator"}, "the controller's policy must be frfcfs, not ramulator"),
        ({"controller.page": "closed"}, "the controller must leave pages open, not page closed"),
        ({"refresh": "per_bank"}, "refresh must be none, together or staggered beside PIM, not per_bank"),
        ({"pim.sets": 3}, "with more than one bank set, `activate` and `precharge` must be set"),
        ({"pim.macs": 17}, "a row of 1024 B must hold whole steps of 17 elements"),
        ({"pim.readout": "tDOTS"}, "pim.readout: 'tDOTS': unknown timing"),
        ({"pim.energy.compute": "four"}, "pim.energy.compute"),
        ({"pim.deadline": None}, "slack: needs a `deadline`"),
    ],
)
def test_a_pim_section_that_cannot_be_is_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=r".") as refused:
        load_memory(DUAL, changes)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (["bank", "G_ACT", "COMP"], "must be level, before, after and gap"),
        (["lane", "G_ACT", "COMP", 1], "unknown"),
        (["bank", "ACT", "RD", 1], "it belongs in `rules`"),
        (["bank", "PREA", "G_ACT", 1], "PREA concerns a whole rank"),
        (["channel", "COMP", "COMP", "tRP - tRAS"], "must not be negative"),
    ],
)
def test_a_pim_rule_that_cannot_be_is_refused(rule: list[Any], words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_memory(DUAL, {"pim.rules": [rule]})
    assert "pim.rules.0" in str(refused.value)
    assert words in str(refused.value)
