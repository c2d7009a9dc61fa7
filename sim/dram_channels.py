"""Idle channels of a memory: the arrays in which the channel kernel keeps what it knows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sim.kernels.dram_tables import ChannelState, DramTables

KNOWN_STATES: Final = 16384
"""States that the memo of the steady-state shortcut holds."""

MEMO: Final = ("memo_word", "memo_state", "memo_after", "memo_index", "memo_seen", "memo_count")
"""Arrays of a ChannelState that hold the memo."""

SERVED_LAST: Final = 512
"""Reads whose service a channel remembers, a power of two; more than any stretch that may be jumped over serves."""


def _new_memo(tables: DramTables, used: bool) -> dict[str, NDArray[np.int64]]:
    """The empty memo of the steady-state shortcut: a state's words, known states, what followed them, hash tables."""
    import numpy as np

    from sim.kernels import dram_tables as k
    from sim.kernels.dram_apart import words_beside

    entries = tables.read_pool + tables.write_pool
    windows = len(tables.window_size)
    size = int(tables.window_size.max()) if windows else 1
    known = KNOWN_STATES if tables.steady and used else 1
    ticks = (k.N_COMMANDS + 3) // 4
    words = 4 + tables.banks * (1 + ticks) + tables.groups * ticks + tables.ranks
    words += windows * tables.groups * ((size + 3) // 4) + entries
    beside = words_beside(tables) if tables.apart else 0
    arrays = (
        np.zeros(max(words, 3 * entries), np.int64),
        np.zeros((known, words + 1), np.int64),
        np.zeros((known, 17 + k.N_COUNTS + 6 * tables.ranks + tables.banks + k.MOST_SERVED + beside), np.int64),
        np.full(4 * known, -1, np.int64),
        np.full(16 * known, -1, np.int64),
        np.zeros(2, np.int64),
    )
    return dict(zip(MEMO, arrays, strict=True))


def new_state(
    tables: DramTables,
    classes: int,
    ring: int,
    log: int = 0,
    requests: int = 0,
    known: ChannelState | None = None,
    jobs: int = 1,
) -> ChannelState:
    """Idle channels at tick 0: `classes` of them, `ring` segments under way and `log` commands recorded in each.

    requests: length of a trace offered one by one (see `offer`). known: a former state of the same tables, whose memo
    of the steady-state shortcut goes on to be used; what it holds changes no result. jobs: PIM jobs under way in each.
    """
    import numpy as np

    from sim.kernels import dram_tables as k
    from sim.pim.tables import pim_state

    long_ago = -(2**40)
    entries = tables.read_pool + tables.write_pool
    windows = len(tables.window_size)
    size = int(tables.window_size.max()) if windows else 1
    state = k.ChannelState(
        scalar=np.zeros((classes, k.N_SCALARS), np.int64),
        bank=np.full((classes, k.N_BANK, tables.banks), -1, np.int64),
        ready=np.zeros((classes, tables.banks, k.N_COMMANDS), np.int64),
        near=np.zeros((classes, tables.groups * k.N_COMMANDS), np.int64),
        rank=np.zeros((classes, k.N_RANK, tables.ranks), np.int64),
        ring=np.full((classes, windows, tables.groups, size + 1), long_ago, np.int64),
        entry=np.full((classes, k.N_ENTRY, entries), -1, np.int64),
        segment=np.zeros((classes, k.N_SEGMENT, ring), np.int64),
        count=np.zeros((classes, k.N_COUNTS), np.int64),
        done_task=np.zeros((classes, ring + jobs), np.int64),
        done_tick=np.zeros((classes, ring + jobs), np.int64),
        done_count=np.zeros(classes, np.int64),
        log=np.zeros((classes, log, k.LOG_FIELDS), np.int64),
        request_done=np.full(requests, k.NEVER, np.int64),
        served=np.zeros((classes, SERVED_LAST, 2), np.int64),
        mark=np.zeros((classes, 19 + k.N_COUNTS + 5 * tables.ranks + tables.banks), np.int64),
        **(_new_memo(tables, not log) if known is None else {name: getattr(known, name) for name in MEMO}),
        pim=pim_state(tables, classes, jobs),
    )
    for w, window in enumerate(tables.window_size):
        state.ring[:, w, :, window] = 0
    free = np.arange(1, entries + 1)
    free[tables.read_pool - 1] = -1
    free[entries - 1] = -1
    state.entry[:, k.FORWARD, :] = free
    state.scalar[:, k.FREE_R] = 0
    state.scalar[:, k.FREE_W] = tables.read_pool
    state.bank[:, [k.STREAK, k.ORDER_R, k.ORDER_W, k.WANT_R, k.WANT_W, k.NEAR_R, k.NEAR_W], :] = 0
    state.bank[:, [k.FROM_R, k.FROM_W], :] = k.FAR
    state.scalar[:, k.STALE] = 1
    state.scalar[:, k.BEST_TICK] = k.NEVER
    state.scalar[:, [k.TRANS_HEAD_R, k.TRANS_HEAD_W, k.TRANS_TAIL_R, k.TRANS_TAIL_W]] = -1
    state.bank[:, [k.DEPTH, k.HALTED, k.REFRESHED], :] = 0
    state.scalar[:, k.MARK] = -1
    state.scalar[:, k.OVERDUE] = -1
    state.rank[:, k.NEXT_DUE, :] = tables.refresh_phase
    state.rank[:, k.SLEEP_FROM, :] = tables.sleep_after
    state.scalar[:, k.DUE] = tables.refresh_phase.min()
    return state
