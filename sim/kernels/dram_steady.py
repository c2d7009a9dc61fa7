"""Jumps over periodic stretches of one stream: what a channel did from a state once, it does from that state again.

Every `t.steady` bursts of a long segment the channel's state is written relative to the clock and to the address it has
reached. States met before are found in a memo with what followed them up to the next such point, so that whole
stretches are advanced by adding differences. Nothing is approximated: a stretch is only taken over if the state is
equal in every word, no refresh falls due in it and the segment goes on beyond it.
"""

import numpy as np

from sim.kernels.dram_issue import account, choose
from sim.kernels.dram_tables import (
    ADDRESS,
    AGE,
    ARRIVAL,
    BACK,
    BUS_COLUMN,
    BUS_ROW,
    BUSY,
    CLOSE_FROM,
    CURSOR,
    DATA_END,
    DEBT,
    DUE,
    ENTRY_BANK,
    ENTRY_ROW,
    FORWARD,
    FREE_R,
    FRONT,
    HEAD_R,
    HIT_R,
    IS_WRITE,
    LAST_END,
    LAST_READ_END,
    LAST_WRITE,
    MARK,
    MARK_BURST,
    MARK_ERA,
    MARK_TICK,
    MODE,
    N_COMMANDS,
    N_COUNTS,
    NEXT_AGE,
    OPEN,
    OVERDUE,
    OWNER,
    PREA,
    QUEUED_R,
    REF,
    REMAINING,
    ROW,
    SEGMENT,
    SINCE,
    STALE,
    STREAK,
    TAIL_R,
    TIME_ACTIVE,
    TIME_PRECHARGED,
    TOUCHED,
    URGENT_FROM,
    WANTED,
    bank_and_row,
)
from sim.kernels.jit import inlined, leaf

# Words of `ChannelState.memo_after`, one row a known state: what changed up to the next point. Ticks that did not
# change are marked by UNTOUCHED.
TICKS, NEXT, AFTER_LAST_END, AFTER_LAST_READ, AFTER_LAST_WRITE, AFTER_DATA_END, SERVED, AFTER_COUNTS = range(8)
UNTOUCHED = -(2**60)
UNKNOWN = -1

# Words of `ChannelState.mark_count`: what the marked state's sequel is measured against.
BEFORE_LAST_END, BEFORE_LAST_READ, BEFORE_LAST_WRITE, BEFORE_DATA_END, BEFORE_WANTED, BEFORE_COUNTS = range(6)

SCALARS = 8
ENTRY_WORDS = 4


@inlined
def relative(tick, now, least):
    """A tick counted from `now`, but no less than `least`, below which it has no effect any more."""
    return max(tick - now, least)


@leaf
def describe(t, x, bank, ready, near, rank, ring, entry, word, burst, owner, d, now):
    """Write the state into `word`; return how many words, or 0 if requests of other segments are queued."""
    row = burst >> t.period_bits
    word[0] = burst & ((1 << t.period_bits) - 1)
    word[1] = d
    word[2] = x[MODE]
    word[3] = x[QUEUED_R + d]
    word[4] = relative(x[FRONT], now, np.int64(0))
    word[5] = relative(x[BUS_ROW], now, np.int64(0))
    word[6] = relative(x[BUS_COLUMN], now, np.int64(0))
    word[7] = x[QUEUED_R + 1 - d]
    if word[7] > 0:
        return np.int64(0)
    n = np.int64(SCALARS)
    for b in range(t.banks):
        word[n] = -1
        word[n + 1] = 0
        if bank[ROW, b] >= 0:
            word[n] = bank[ROW, b] - (row << t.period_shift) + (1 << 40)
            word[n + 1] = bank[STREAK, b]
        word[n + 2] = relative(bank[CLOSE_FROM, b], now, np.int64(0))
        n += 3
        for k in range(N_COMMANDS):
            word[n] = relative(ready[b, k], now, np.int64(0))
            n += 1
    for i in range(near.shape[0]):
        word[n] = relative(near[i], now, np.int64(0))
        n += 1
    for r in range(t.ranks):
        word[n] = rank[OPEN, r]
        word[n + 1] = relative(rank[SINCE, r], now, np.int64(0))
        word[n + 2] = min(rank[DEBT, r], 1)
        n += 3
    for w in range(ring.shape[0]):
        size = t.window_size[w]
        for node in range(t.groups):
            place = ring[w, node, size]
            for _ in range(size):
                word[n] = relative(ring[w, node, place], now, -t.window_gap[w])
                place = place + 1 if place + 1 < size else np.int64(0)
                n += 1
    for b in range(t.banks):
        e = bank[HEAD_R + d, b]
        while e >= 0:
            if entry[OWNER, e] != owner:
                return np.int64(0)
            word[n] = entry[ADDRESS, e] - burst
            word[n + 1] = x[NEXT_AGE] - entry[AGE, e]
            word[n + 2] = now - entry[ARRIVAL, e]
            word[n + 3] = entry[TOUCHED, e]
            n += ENTRY_WORDS
            e = entry[FORWARD, e]
    return n


@leaf
def restore(t, x, bank, ready, near, rank, ring, entry, word, burst, owner, d, now):
    """Make the state what `word` describes, at tick `now` and burst `burst`; the queue lists are built anew."""
    row = burst >> t.period_bits
    x[FRONT] = now + word[4]
    x[BUS_ROW] = now + word[5]
    x[BUS_COLUMN] = now + word[6]
    x[STALE] = 1
    x[URGENT_FROM] = now
    for b in range(t.banks):
        e = bank[HEAD_R + d, b]
        while e >= 0:
            after = entry[FORWARD, e]
            entry[FORWARD, e] = x[FREE_R + d]
            x[FREE_R + d] = e
            e = after
        bank[HEAD_R + d, b] = -1
        bank[TAIL_R + d, b] = -1
        bank[HIT_R + d, b] = -1
        bank[HIT_R + 1 - d, b] = -1
    n = np.int64(SCALARS)
    for b in range(t.banks):
        bank[ROW, b] = -1 if word[n] < 0 else word[n] - (1 << 40) + (row << t.period_shift)
        bank[STREAK, b] = word[n + 1]
        bank[CLOSE_FROM, b] = now + word[n + 2]
        n += 3
        for k in range(N_COMMANDS):
            ready[b, k] = now + word[n]
            n += 1
    for i in range(near.shape[0]):
        near[i] = now + word[n]
        n += 1
    for r in range(t.ranks):
        rank[OPEN, r] = word[n]
        n += 3
    for w in range(ring.shape[0]):
        size = t.window_size[w]
        for node in range(t.groups):
            for place in range(size):
                ring[w, node, place] = now + word[n]
                n += 1
            ring[w, node, size] = 0
    x[QUEUED_R + d] = word[3]
    for _ in range(word[3]):
        e = x[FREE_R + d]
        x[FREE_R + d] = entry[FORWARD, e]
        address = burst + word[n]
        b, entry_row = bank_and_row(t, address)
        entry[ADDRESS, e] = address
        entry[ENTRY_ROW, e] = entry_row
        entry[ENTRY_BANK, e] = b
        entry[AGE, e] = x[NEXT_AGE] - word[n + 1]
        entry[ARRIVAL, e] = now - word[n + 2]
        entry[TOUCHED, e] = word[n + 3]
        entry[OWNER, e] = owner
        entry[FORWARD, e] = -1
        tail = bank[TAIL_R + d, b]
        entry[BACK, e] = tail
        if tail < 0:
            bank[HEAD_R + d, b] = e
        else:
            entry[FORWARD, tail] = e
        bank[TAIL_R + d, b] = e
        if bank[HIT_R + d, b] < 0 and bank[ROW, b] == entry_row:
            bank[HIT_R + d, b] = e
        n += ENTRY_WORDS


@leaf
def find(s, length):
    """Number of the described state in the memo, added if it is new, or UNKNOWN.

    Once the memo is half full, a new state is only added when met for the second time, so that the many states met once
    do not drive out the others. A full memo is emptied.
    """
    word = s.memo_word
    states = s.memo_state
    index = s.memo_index
    size = index.shape[0]
    code = np.int64(length)
    for i in range(length):
        code = (code * 31 + (word[i] & 0xFFFFFF)) & 0xFFFFFFFFFF
    code ^= code >> 20
    slot = code & (size - 1)
    while index[slot] >= 0:
        known = states[index[slot]]
        same = np.int64(0)
        while same < length and known[same] == word[same]:
            same += 1
        if same == length and known[states.shape[1] - 1] == length:
            return index[slot]
        slot = (slot + 1) & (size - 1)
    n = s.memo_count[0]
    seen = code & (s.memo_seen.shape[0] - 1)
    if 2 * n >= states.shape[0] and s.memo_seen[seen] != code:
        s.memo_seen[seen] = code
        return np.int64(UNKNOWN)
    if n == states.shape[0]:
        index[:] = -1
        s.memo_count[1] += 1
        n = np.int64(0)
        slot = code & (size - 1)
    known = states[n]
    for i in range(length):
        known[i] = word[i]
    known[states.shape[1] - 1] = length
    s.memo_after[n, TICKS] = UNKNOWN
    s.memo_count[0] = n + 1
    index[slot] = n
    return n


@inlined
def changed(tick, before, now):
    """A tick counted from `now` if it is no longer what it was `before`, else UNTOUCHED."""
    return tick - now if tick != before else np.int64(UNTOUCHED)


@leaf
def learn(s, c, p, known, now):
    """Note what followed the marked state of class `c` up to the state `known` reached at `now`."""
    x = s.scalar[c]
    before = s.mark_count[c]
    after = s.memo_after[x[MARK]]
    begin = x[MARK_TICK]
    after[TICKS] = now - begin
    after[NEXT] = known
    after[AFTER_LAST_END] = changed(x[LAST_END], before[BEFORE_LAST_END], now)
    after[AFTER_LAST_READ] = changed(x[LAST_READ_END], before[BEFORE_LAST_READ], now)
    after[AFTER_LAST_WRITE] = changed(x[LAST_WRITE], before[BEFORE_LAST_WRITE], now)
    after[AFTER_DATA_END] = changed(s.segment[c, DATA_END, p], before[BEFORE_DATA_END], now)
    after[SERVED] = before[BEFORE_WANTED] - s.segment[c, WANTED, p]
    for i in range(N_COUNTS):
        after[AFTER_COUNTS + i] = s.count[c, i] - before[BEFORE_COUNTS + i]
    n = AFTER_COUNTS + N_COUNTS
    place = BEFORE_COUNTS + N_COUNTS
    for r in range(s.rank.shape[2]):
        after[n] = s.rank[c, SINCE, r] - now
        after[n + 1] = s.rank[c, TIME_ACTIVE, r] - before[place]
        after[n + 2] = s.rank[c, TIME_PRECHARGED, r] - before[place + 1]
        n += 3
        place += 2


@leaf
def mark(s, c, p, known, burst, now):
    """Remember class `c`'s counters at a state whose sequel is not known yet."""
    x = s.scalar[c]
    x[MARK] = known
    x[MARK_TICK] = now
    x[MARK_BURST] = burst
    before = s.mark_count[c]
    before[BEFORE_LAST_END] = x[LAST_END]
    before[BEFORE_LAST_READ] = x[LAST_READ_END]
    before[BEFORE_LAST_WRITE] = x[LAST_WRITE]
    before[BEFORE_DATA_END] = s.segment[c, DATA_END, p]
    before[BEFORE_WANTED] = s.segment[c, WANTED, p]
    for i in range(N_COUNTS):
        before[BEFORE_COUNTS + i] = s.count[c, i]
    place = BEFORE_COUNTS + N_COUNTS
    for r in range(s.rank.shape[2]):
        before[place] = s.rank[c, TIME_ACTIVE, r]
        before[place + 1] = s.rank[c, TIME_PRECHARGED, r]
        place += 2


@leaf
def leap(t, s, c, now, until):
    """Class `c` is about to accept, at `now`, a burst at a multiple of `t.steady`: jump as far as the memo knows.

    Returns the tick of the jump's end (`now` if there was none), where the next such burst is about to be accepted. The
    end stays below `until`.
    """
    x = s.scalar[c]
    segment = s.segment[c]
    p = x[SEGMENT]
    d = segment[IS_WRITE, p]
    burst = segment[CURSOR, p]
    length = describe(
        t, x, s.bank[c], s.ready[c], s.near[c], s.rank[c], s.ring[c], s.entry[c], s.memo_word, burst, p, d, now
    )
    if length == 0 or x[OVERDUE] >= 0:
        x[MARK] = -1
        return now
    era = s.memo_count[1]
    for r in range(t.ranks):
        account(s.rank[c], r, now)
    known = find(s, length)
    if (
        known >= 0
        and x[MARK] >= 0
        and era == s.memo_count[1]
        and x[MARK_ERA] == era
        and x[MARK_BURST] + t.steady == burst
        and (
            x[LAST_END] != s.mark_count[c, BEFORE_LAST_END] or s.count[c, BUSY] == s.mark_count[c, BEFORE_COUNTS + BUSY]
        )
        and s.mark_count[c, BEFORE_COUNTS + REF] == s.count[c, REF]
        and s.mark_count[c, BEFORE_COUNTS + PREA] == s.count[c, PREA]
    ):
        learn(s, c, p, known, now)
    x[MARK] = -1
    if known < 0:
        return now
    start = known
    while True:
        after = s.memo_after[known]
        if (
            after[TICKS] < 0
            or segment[REMAINING, p] <= 2 * t.steady
            or now + after[TICKS] >= until
            or now + after[TICKS] >= x[DUE]
        ):
            break
        now += after[TICKS]
        known = after[NEXT]
        burst += t.steady
        segment[CURSOR, p] = burst
        segment[REMAINING, p] -= t.steady
        segment[WANTED, p] -= after[SERVED]
        x[NEXT_AGE] += t.steady
        if after[AFTER_LAST_END] != UNTOUCHED:
            x[LAST_END] = max(x[LAST_END], now + after[AFTER_LAST_END])
        if after[AFTER_LAST_READ] != UNTOUCHED:
            x[LAST_READ_END] = max(x[LAST_READ_END], now + after[AFTER_LAST_READ])
        if after[AFTER_LAST_WRITE] != UNTOUCHED:
            x[LAST_WRITE] = now + after[AFTER_LAST_WRITE]
        if after[AFTER_DATA_END] != UNTOUCHED:
            segment[DATA_END, p] = max(segment[DATA_END, p], now + after[AFTER_DATA_END])
        for i in range(N_COUNTS):
            s.count[c, i] += after[AFTER_COUNTS + i]
        n = AFTER_COUNTS + N_COUNTS
        for r in range(t.ranks):
            s.rank[c, SINCE, r] = now + after[n]
            s.rank[c, TIME_ACTIVE, r] += after[n + 1]
            s.rank[c, TIME_PRECHARGED, r] += after[n + 2]
            n += 3
        start = np.int64(-1)
    if start < 0:
        restore(
            t,
            x,
            s.bank[c],
            s.ready[c],
            s.near[c],
            s.rank[c],
            s.ring[c],
            s.entry[c],
            s.memo_state[known],
            burst,
            p,
            d,
            now,
        )
        for b in range(t.banks):
            choose(t, s.bank[c], s.ready[c], s.rank[c], s.entry[c], b, np.int64(0))
            choose(t, s.bank[c], s.ready[c], s.rank[c], s.entry[c], b, np.int64(1))
    if s.memo_after[known, TICKS] < 0:
        mark(s, c, p, known, burst, now)
        x[MARK_ERA] = s.memo_count[1]
    return now
