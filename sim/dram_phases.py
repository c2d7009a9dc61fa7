"""Works out which places of a channel's address space are alike: where a stream of bursts meets banks in equal order.

A stream that begins at one of the phases of a memory's address period names the banks by the order in which it will
come by them. Two phases are of one class if under these names the next bursts, and the names of the phase after them,
are the same; as all rules are about "the same" or "another" bank, group or rank, whatever happens at one phase then
happens at the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

NEAR_ROWS: Final = 8
"""Rows before and behind the one that a stream comes by next that its state tells apart (`dram_state`)."""

LONGEST_PERIOD: Final = 17
"""Bits of the longest address period whose phases are worked out."""


class Phases(NamedTuple):
    """By phase of the address period, in bursts `steady` apart; banks, groups and ranks are numbers in the channel."""

    kind: NDArray[np.int64]  # [phases]: class, -1: of none
    banks: NDArray[np.int64]  # [phases, banks]: the banks as the stream will come by them, by rank and group
    groups: NDArray[np.int64]  # [phases, groups]
    ranks: NDArray[np.int64]  # [phases, ranks]
    rows: NDArray[np.int64]  # [phases, banks]: by bank, the row that the stream comes by next, less that of the period
    first: NDArray[np.int64]  # [phases, banks]: by bank, the bursts until it does


def find_phases(
    bank: NDArray[np.int64],
    row: NDArray[np.int64],
    steady: int,
    row_step: int,
    shape: tuple[int, int, int, int],
    renamed: bool = True,
    in_step: bool = False,
) -> Phases:
    """The phases of an address period of n bursts, n / `steady` of them.

    bank, row: of the bursts of a period, [n]; row_step: rows by which the next period lies further. shape:
    (pseudo-channels, ranks, groups, banks), all in the channel. renamed False: banks keep their numbers. in_step:
    banks of one number in every group of a rank keep a common one.
    """
    n = len(bank)
    count = n // steady
    pseudos, ranks, groups, banks = shape
    start = np.arange(count) * steady
    first = np.empty((count, banks), np.int64)
    rows = np.empty((count, banks), np.int64)
    for b in range(banks):
        at = np.flatnonzero(bank == b)
        at = np.concatenate([at, at + n])
        first[:, b] = at[np.searchsorted(at, start)]
        rows[:, b] = row[first[:, b] % n] + first[:, b] // n * row_step
    first -= start[:, None]

    def earliest(parts: int) -> NDArray[np.int64]:
        """Of each bank, when the stream first comes by the part of the channel it is in."""
        return np.repeat(first.reshape(count, parts, -1).min(axis=2), banks // parts, axis=1)

    if renamed:
        own = first
        if in_step:
            by_number = first.reshape(count, ranks, groups // ranks, -1).min(axis=2, keepdims=True)
            own = np.repeat(by_number, groups // ranks, axis=2).reshape(count, banks)
        order = np.lexsort((own, earliest(groups), earliest(ranks), earliest(pseudos)), axis=-1)
    else:
        order = np.broadcast_to(np.arange(banks), (count, banks))
    name = np.argsort(order, axis=1)
    following = (np.arange(count) + 1) % count
    rows_then = rows[following] + (following == 0)[:, None] * row_step

    burst = start[:, None] + np.arange(steady)
    came_by = np.take_along_axis(name, bank[burst], axis=1)
    beyond = row[burst] - np.take_along_axis(rows, bank[burst], axis=1)
    then = order[following]
    renaming = np.take_along_axis(name, then, axis=1)
    moved = np.take_along_axis(rows_then - rows, then, axis=1)
    _, kind = np.unique(np.hstack([came_by, beyond, renaming, moved]), axis=0, return_inverse=True)
    usable = ((beyond >= 0) & (beyond < NEAR_ROWS)).all(axis=1) & (moved >= 0).all(axis=1)
    return Phases(
        kind=np.where(usable, kind.reshape(-1), -1).astype(np.int64),
        banks=np.ascontiguousarray(order),
        groups=np.ascontiguousarray(order[:, :: banks // groups] // (banks // groups)),
        ranks=np.ascontiguousarray(order[:, :: banks // ranks] // (banks // ranks)),
        rows=rows,
        first=first,
    )
