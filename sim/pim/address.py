"""Where a burst of a row (bank, row, column) is among a channel's bursts: the inverse of the address decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.errors import ConfigError

if TYPE_CHECKING:
    from sim.standards import Memory

Ints = NDArray[np.int64]


class RowAddresses:
    """Channel-local bursts of rows of one memory. Banks are numbered pseudo-channel, rank, group, bank.

    Raises ConfigError for mappings that scatter rows so that no stretch of addresses is free of a row of all banks.
    """

    def __init__(self, memory: Memory) -> None:
        self.memory = memory
        top = next(name for name, _ in memory.fields if name != "ch")
        if top != "ro" or memory.bank_hash != "none":
            raise ConfigError(
                f"is {memory.mapping!r} with bank_hash {memory.bank_hash}, but rows for processing in memory can be "
                "set apart only where the most significant field is the row and no hash is used",
                key="memory.settings.mapping",
            )
        o = memory.organisation
        self.banks = o.pseudo_channels * o.ranks * o.bank_groups * o.banks
        # Neighbours in this order are in different ranks and bank groups, so that they can be opened one after another.
        self.in_turn = np.arange(self.banks).reshape(o.pseudo_channels * o.ranks, o.bank_groups, o.banks).T.ravel()
        self.columns = o.columns
        self.rows = o.rows
        self.row_bytes = o.columns * memory.burst_bytes

    def bursts(self, bank: Ints, row: Ints, column: Ints) -> Ints:
        """Local burst of each (bank, row, column): int64 arrays that broadcast."""
        o = self.memory.organisation
        rest = {"ro": row, "co": column, "ba": bank % o.banks}
        above = bank // o.banks
        for name, count in (("bg", o.bank_groups), ("ra", o.ranks), ("pc", o.pseudo_channels)):
            rest[name] = above % count
            above = above // count
        found = np.zeros(np.broadcast_shapes(bank.shape, row.shape, column.shape), np.int64)
        shift = 0
        for name, bits in reversed(self.memory.fields):
            if name == "ch" or not bits:
                continue
            found |= (rest[name] & (2**bits - 1)) << shift
            rest[name] = rest[name] >> bits
            shift += bits
        return found

    def first_free_row(self, bursts: int) -> int:
        """The first row from which on no row of any bank has one of the channel's first `bursts` bursts."""
        banks, last = np.arange(self.banks), self.rows
        # Rows that share their most significant bits alternate in the order of addresses; whole groups of them follow.
        group = 2 ** sum(bits or 0 for name, bits in self.memory.fields[1:] if name == "ro")
        low, high = 0, last // group
        while low < high:
            middle = (low + high) // 2
            starts = self.bursts(banks, np.full(1, middle * group), np.zeros(1, np.int64))
            if int(starts.min()) >= bursts:
                high = middle
            else:
                low = middle + 1
        return int(low * group)


def runs(bursts: Ints) -> tuple[Ints, Ints]:
    """Bursts in the order in which they are accessed as runs (first, count) of consecutive ones."""
    starts = np.flatnonzero(np.concatenate(([True], np.diff(bursts) != 1)))
    return bursts[starts], np.diff(np.append(starts, len(bursts)))
