"""The independent checker finds every kind of planted violation, and nothing in a clean log."""

from __future__ import annotations

import numpy as np
import pytest

from sim.config import ConfigError
from sim.dram_check import check_log
from sim.standards import COMMANDS, load_memory

ACT, PRE, RD, WR, PREA, REF = (COMMANDS.index(name) for name in ("ACT", "PRE", "RD", "WR", "PREA", "REF"))
Row = tuple[int, int, int, int, int, int]

CLEAN: list[Row] = [
    (ACT, 0, 0, 0, 0, 7),
    (ACT, 4, 0, 1, 0, 8),
    (RD, 22, 0, 0, 0, 7),
    (RD, 26, 0, 1, 0, 8),
    (WR, 38, 0, 0, 0, 7),
    (PRE, 56, 0, 1, 0, 8),
    (PREA, 82, 0, -1, -1, -1),
    (REF, 104, 0, -1, -1, -1),
    (ACT, 680, 0, 0, 0, 9),
]


def count(rows: list[Row]) -> int:
    return check_log(load_memory("ddr4-3200-matched"), np.array(rows, np.int64).reshape(-1, 6)).count


def moved(index: int, tick: int) -> list[Row]:
    """The clean log with one command at another tick."""
    rows = list(CLEAN)
    kind, _, rank, group, bank, row = rows[index]
    rows[index] = (kind, tick, rank, group, bank, row)
    return rows


def test_clean() -> None:
    assert count(CLEAN) == 0
    assert count(CLEAN[:0]) == 0


@pytest.mark.parametrize(
    ("index", "tick", "why"),
    [
        (1, 3, "tRRD_S"),
        (2, 21, "tRCD"),
        (3, 25, "tCCD_S and tRCD"),
        (4, 37, "read to write"),
        (5, 55, "tRAS"),
        (6, 81, "write recovery"),
        (7, 103, "tRP"),
        (8, 679, "tRFC"),
    ],
)
def test_one_tick_early(index: int, tick: int, why: str) -> None:
    assert count(moved(index, tick)) >= 1, why


def test_window_of_four() -> None:
    acts: list[Row] = [(ACT, tick, 0, k % 4, k // 4, 1) for k, tick in enumerate((0, 4, 8, 12, 34))]
    assert count(acts) == 0
    acts[4] = (ACT, 33, 0, 0, 1, 1)
    assert count(acts) == 1


@pytest.mark.parametrize(
    "rows",
    [
        [(RD, 5, 0, 0, 0, 1)],
        [(ACT, 0, 0, 0, 0, 1), (RD, 22, 0, 0, 0, 2)],
        [(ACT, 0, 0, 0, 0, 1), (ACT, 74, 0, 0, 0, 2)],
        [(ACT, 0, 0, 0, 0, 1), (REF, 200, 0, -1, -1, -1)],
        [(PREA, 0, 0, -1, -1, -1), (PRE, 0, 0, 1, 0, 0)],
        [(REF, 9 * 12480 + 1, 0, -1, -1, -1)],
    ],
    ids=["closed", "other row", "open twice", "refresh of open bank", "command bus", "late refresh"],
)
def test_state(rows: list[Row]) -> None:
    assert count(rows) == 1


def test_order() -> None:
    rows = np.array([(PRE, 50, 0, 0, 0, 1), (PRE, 10, 0, 1, 0, 1)], np.int64)
    found = check_log(load_memory("ddr4-3200-matched"), rows)
    assert "PRE at tick 10: comes before its predecessor in the log" in found.examples


def test_messages() -> None:
    found = check_log(load_memory("ddr4-3200-matched"), np.array(moved(2, 21), np.int64))
    assert found.examples[0] == "RD at tick 21: less than 22 ticks after ACT in the same bank"


PB, SB = COMMANDS.index("REFpb"), COMMANDS.index("REFsb")


def violations(name: str, rows: list[Row]) -> tuple[str, ...]:
    return check_log(load_memory(name), np.array(rows, np.int64).reshape(-1, 6)).examples


def test_refresh_of_one_bank() -> None:
    clean: list[Row] = [(PB, 0, 0, 1, 2, -1), (ACT, 8, 0, 0, 0, 5), (ACT, 160, 0, 1, 2, 5)]
    assert violations("hbm2", clean) == ()
    assert violations("hbm2", [*clean[:2], (ACT, 159, 0, 1, 2, 5)]) == (
        "ACT at tick 159: less than 160 ticks after REFpb in the same bank",
    )
    assert violations("hbm2", [(ACT, 0, 0, 1, 2, 5), (PB, 200, 0, 1, 2, -1)]) == (
        "REFpb at tick 200: bank 6 has a row open",
    )
    assert violations("hbm2", [(ACT, 0, 0, 1, 2, 5), (PB, 200, 0, 1, 3, -1)]) == ()


def test_refresh_of_one_bank_of_every_group() -> None:
    clean: list[Row] = [(SB, 0, 0, -1, 2, -1), (ACT, 72, 0, 5, 1, 9), (ACT, 312, 0, 7, 2, 5)]
    assert violations("ddr5-4800", clean) == ()
    assert violations("ddr5-4800", [*clean[:2], (ACT, 311, 0, 7, 2, 5)]) == (
        "ACT at tick 311: less than 312 ticks after REFsb in the same bank",
    )
    assert violations("ddr5-4800", [(ACT, 0, 0, 6, 2, 5), (SB, 200, 0, -1, 2, -1)]) == (
        "REFsb at tick 200: bank 26 has a row open",
    )
    early: list[Row] = [(ACT, 0, 0, 6, 2, 5), (PRE, 80, 0, 6, 2, 5), (SB, 115, 0, -1, 2, -1)]
    assert violations("ddr5-4800", early) == ("REFsb at tick 115: less than 36 ticks after PRE in the same bank",)


def test_single_banks_must_all_be_refreshed_in_time() -> None:
    limit = 9 * 3900
    rows: list[Row] = [(PB, 300 + 200 * i, 0, i % 4, i // 4, -1) for i in range(16)]
    assert violations("hbm2", rows) == ()
    late: list[Row] = [*rows, *((PB, 30_000 + 200 * i, 0, i % 4, i // 4, -1) for i in range(15))]
    assert violations("hbm2", [*late, (RD, 300 + 15 * 200 + limit + 1, 0, 0, 0, 1)])[:2] == (
        "RD at tick 38401: bank 15 was not refreshed for more than 35100 ticks",
        "RD at tick 38401: the row is not open",
    )


def test_column_commands_start_with_a_clock() -> None:
    assert violations("hbm3", [(ACT, 1, 0, 0, 0, 1), (RD, 64, 0, 0, 0, 1)]) == ()
    assert violations("hbm3", [(ACT, 1, 0, 0, 0, 1), (RD, 65, 0, 0, 0, 1)]) == (
        "RD at tick 65: column commands start with a clock",
    )


def test_commands_of_several_ticks_hold_their_bus() -> None:
    assert violations("hbm3", [(ACT, 0, 0, 0, 0, 1), (PRE, 2, 1, 0, 0, 1)]) == (
        "PRE at tick 2: the command bus is taken",
    )
    assert violations("hbm3", [(ACT, 0, 0, 0, 0, 1), (PRE, 3, 1, 0, 0, 1)]) == ()


ASLEEP, AWAKE = -1, -2
SLEEPY = {"controller.power_down": "fast", "controller.power_down_after": 50, "refresh": "none"}
SLEEP: list[Row] = [
    (ACT, 0, 0, 0, 0, 1), (RD, 22, 0, 0, 0, 1), (PRE, 60, 0, 0, 0, 1),
    (ASLEEP, 72, 0, -1, -1, -1), (AWAKE, 90, 0, -1, -1, -1), (ACT, 100, 0, 0, 0, 2),
]  # fmt: skip


def asleep(*changed: tuple[int, int], name: str = "ddr4-3200-matched", **settings: object) -> tuple[str, ...]:
    """What the checker says of the log with a sleep, entries moved to other ticks."""
    rows = [list(row) for row in SLEEP]
    for index, tick in changed:
        rows[index][1] = tick
    memory = load_memory(name, SLEEPY | settings)
    return check_log(memory, np.array(rows, np.int64)).examples


def test_sleeping_ranks() -> None:
    """tXP is 10 clocks; the rank may sleep 50 after its read."""
    assert asleep() == ()
    assert asleep((5, 99)) == ("ACT at tick 99: less than 10 ticks after rank 0 woke, or while it sleeps",)
    assert asleep((4, 91)) == ("ACT at tick 100: less than 10 ticks after rank 0 woke, or while it sleeps",)
    assert asleep((3, 71)) == ("PRE at tick 60: rank 0 sleeps less than 50 ticks after it",)
    assert (
        asleep((2, 73))
        == (
            "PRE at tick 73: less than 10 ticks after rank 0 woke, or while it sleeps",
            "RD at tick 22: rank 0 sleeps after it with a row open",
        )[::-1]
    )


def test_self_refresh_is_left_in_its_own_time() -> None:
    """tXS is 592 clocks."""
    sleep = {"controller.power_down": "self_refresh"}
    assert asleep((5, 90 + 592), **sleep) == ()
    assert asleep((5, 90 + 591), **sleep) == (
        "ACT at tick 681: less than 592 ticks after rank 0 woke, or while it sleeps",
    )


def test_sleeps_come_in_pairs() -> None:
    for rows in (SLEEP[:4], [*SLEEP[:3], *SLEEP[4:]]):
        with pytest.raises(ConfigError, match="rank 0 has sleeps without an end, or ends of none"):
            check_log(load_memory("ddr4-3200-matched", SLEEPY), np.array(rows, np.int64))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ((8, 0, 0, 0, 0, 0), "entry 2 of the command log has command 8, of which there are 8"),
        ((ACT, 0, 1, 0, 0, 0), "has rank 1, of which there are 1"),
        ((ACT, 0, 0, 4, 0, 0), "has bank group 4, of which there are 4"),
        ((RD, 0, 0, 0, -1, 0), "has bank -1, of which there are 4"),
        ((ACT, 0, 0, 0, 0, 1 << 14), "has row 16384, of which there are 16384"),
    ],
)
def test_what_is_no_log_is_refused(row: Row, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        violations("hbm2", [(ACT, 0, 0, 0, 0, 0), row])
    with pytest.raises(ConfigError, match="six columns"):
        check_log(load_memory("hbm2"), np.zeros((3, 5), np.int64))
