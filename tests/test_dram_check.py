"""The independent checker finds every kind of planted violation, and nothing in a clean log."""

from __future__ import annotations

import numpy as np
import pytest

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
    kind, _, *rest = rows[index]
    rows[index] = (kind, tick, *rest)  # type: ignore[assignment]
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
