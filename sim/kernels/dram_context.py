"""Refreshes that a stream does notice: a stretch with one in it is remembered for its state and the refresh's context.

The banks that are apart (`dram_apart`) are not in the state; of them a refresh concerns only the one it chooses. How
that is, which others it may choose, and what is under way already make up the context.
"""

import numpy as np

from sim.kernels.dram_apart import OF_BANK, OF_PRE, OF_TICK, THE_APART, last_used_apart, name_of
from sim.kernels.dram_issue import end_round, forget_row
from sim.kernels.dram_state import BUSY_BANKS, SCALARS, TICK_BITS, was_apart
from sim.kernels.dram_tables import (
    CLOSE_FROM,
    DONE_BANK,
    DONE_PRE,
    DONE_TICK,
    MARK_TICK,
    N_COMMANDS,
    NEXT_DUE,
    OPEN,
    PENDING,
    PLAN_BANK,
    PLAN_RANK,
    PRE,
    REFB,
    REFRESHED,
    ROW,
    SHADOW,
    SHADOWS,
    UNIT,
)
from sim.kernels.jit import inlined, leaf

CONTEXT = 1 << 61
"""Marks the words of a context."""

CONTEXT_BITS = 20


@leaf
def refresh_context(t, s, c, known, words, phase, now):
    """Write into `memo_word` what, besides state `known`, a stretch from `now` on with a refresh turns on; its length.

    That is how far the refresh of the next rank is, the bank apart that it would choose, the other banks that it may
    choose, and the refresh commands whose rules may still bind. 0: it turns on more. Notes rank and bank.
    """
    x = s.scalar[c]
    bank = s.bank[c]
    rank = s.rank[c]
    word = s.memo_word
    r = x[PENDING]
    due = np.int64(0)
    others = np.int64(0)
    if r >= 0:
        b = rank[UNIT, r]
        if not was_apart(t, words, phase, name_of(t.phase_banks, phase, b)):
            return np.int64(0)
    else:
        r = np.int64(0)
        for q in range(1, t.ranks):
            if rank[NEXT_DUE, q] < rank[NEXT_DUE, r]:
                r = np.int64(q)
        due = rank[NEXT_DUE, r] - now
        b = last_used_apart(t, bank, words, phase, r)
        if b < 0 or due >> CONTEXT_BITS != 0:
            return np.int64(0)
        each = t.banks // t.ranks
        for k in range(t.banks):
            other = t.phase_banks[phase, k]
            if other // each == r and bank[REFRESHED, other] == 0 and not was_apart(t, words, phase, k):
                others |= np.int64(1) << k
                busy = words[BUSY_BANKS] >> k & 1 == 1
                if not busy and bank[CLOSE_FROM, other] >= bank[CLOSE_FROM, b]:
                    return np.int64(0)
    group = name_of(t.phase_groups, phase, t.group_of[b])
    k = name_of(t.phase_ranks, phase, r)
    opened = bank[ROW, b] >= 0
    apart = min(rank[OPEN, r] - (words[SCALARS + k] & (1 << TICK_BITS) - 1), 2) if opened else 0
    closing = max(s.ready[c, b, PRE] - now, due) if opened else due
    refreshing = max(s.ready[c, b, REFB] - now, closing + t.gap_bank[PRE, REFB] if opened else due)
    if (closing | refreshing) >> CONTEXT_BITS != 0:
        return np.int64(0)
    word[0] = -1 - known
    word[1] = CONTEXT | due << 32 | k << 16 | group << 8 | apart << 2 | opened << 1 | (x[PENDING] >= 0)
    word[2] = closing | refreshing << CONTEXT_BITS
    word[3] = others
    for i in range(x[SHADOWS]):
        command = x[SHADOW + i]
        place = name_of(t.phase_groups, phase, command & 255)
        word[4 + i] = now - (command >> 16) << 16 | command & 0xFF00 | place
    x[PLAN_RANK] = r
    x[PLAN_BANK] = b
    return 4 + x[SHADOWS]


@leaf
def learn_refresh(t, s, c, beside, words, begin, steps, planned):
    """Note in `beside` the refresh of a stretch of that many `steps` from phase `begin`; False if it cannot recur.

    planned: the bank apart that its context names.
    """
    x = s.scalar[c]
    began = x[MARK_TICK]
    for k in range(t.banks):  # a second step must not come by what was apart
        b = t.phase_banks[begin, k]
        if steps > 1 and was_apart(t, words, begin, k) and t.phase_first[begin, b] < steps * t.steady:
            return False
    name = name_of(t.phase_banks, begin, x[DONE_BANK])
    if was_apart(t, words, begin, name):
        if x[DONE_BANK] != planned:
            return False
        name = np.int64(THE_APART)
    beside[OF_BANK] = name
    beside[OF_TICK] = x[DONE_TICK] - began
    beside[OF_PRE] = x[DONE_PRE] - began if x[DONE_PRE] >= began else -1
    return True


@inlined
def alone(t, rank, r, end):
    """Whether no refresh but that of rank `r` falls due up to `end`."""
    for q in range(t.ranks):
        if rank[NEXT_DUE, q] + (t.refresh_interval if q == r else 0) <= end:
            return False
    return True


@leaf
def take_refresh(t, s, c, beside, phase, now):
    """Bring the bank refreshed in a stretch from `now` on to its end, and forget what was under way before it."""
    x = s.scalar[c]
    bank = s.bank[c]
    x[SHADOWS] = 0
    x[PENDING] = -1
    r = x[PLAN_RANK]
    b = x[PLAN_BANK]
    x[PLAN_RANK] = -1
    s.rank[c, UNIT, r] = 0
    if beside[OF_BANK] < 0:
        return
    if beside[OF_BANK] != THE_APART:
        b = t.phase_banks[phase, beside[OF_BANK]]
    else:
        own = s.ready[c, b]
        for k in range(N_COMMANDS):
            if beside[OF_PRE] >= 0:
                own[k] = max(own[k], now + beside[OF_PRE] + t.gap_bank[PRE, k])
            own[k] = max(own[k], now + beside[OF_TICK] + t.gap_bank[REFB, k])
        if beside[OF_PRE] >= 0:
            forget_row(bank, b)
    end_round(t, bank, s.rank[c], r, b)
