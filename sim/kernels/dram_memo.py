"""What a channel was seen to do from a state: the memo behind the jumps of `dram_steady`, and how it is filled.

A state is the words that `dram_state` writes. What followed it up to the next such point is learnt once and kept as
differences. A stretch with a refresh in it is remembered for the state together with the ticks at which refreshes fall
due or, where banks are left out (`dram_apart`), with its context.
"""

import numpy as np

from sim.kernels.dram_apart import learn_apart, words_beside
from sim.kernels.dram_context import learn_refresh, refresh_context
from sim.kernels.dram_state import BANK_WORDS, FAR_ROW, KEPT, SCALARS, kinds_of, lies_still, phase_of, row_of_bank
from sim.kernels.dram_tables import (
    ABSORBED,
    BUSY,
    DATA_END,
    DONE_PRE,
    FORWARDED,
    IS_WRITE,
    LAST_END,
    LAST_READ_END,
    LAST_WRITE,
    MARK,
    MARK_BURST,
    MARK_ERA,
    MARK_TICK,
    MOST_SERVED,
    N_COUNTS,
    NEXT_AGE,
    NEXT_DUE,
    OPEN,
    PENDING,
    PLAN_BANK,
    RD,
    REFB,
    ROW,
    ROWS_LOGGED,
    SEGMENT,
    SERVED,
    SHADOWS,
    SINCE,
    STREAK,
    TIME_ACTIVE,
    TIME_PRECHARGED,
    TIME_REFRESH,
)
from sim.kernels.jit import inlined, leaf

# Words of `ChannelState.memo_after`, one row a known state: what changed up to the next point. Ticks count from that
# point; those that did not change are marked by UNTOUCHED. BURSTS: of the stretch. OLDEST: how much older than its
# first burst the oldest read is that was served in it. Then the classes of the phases that it went through, the
# counters, AFTER_RANK words for each rank, how often each open row was used that lies still now but did not, else -1,
# and the reads served: ages and ticks counted from the start.
TICKS, BURSTS, NEXT, AFTER_LAST_END, AFTER_LAST_READ, AFTER_LAST_WRITE, AFTER_LAST_ACCEPT = 0, 1, 2, 3, 4, 5, 6
AFTER_SERVED, OLDEST, AFTER_PHASES = 7, 8, 9
MOST_PHASES = 8
AFTER_COUNTS = AFTER_PHASES + MOST_PHASES
AFTER_RANKS = AFTER_COUNTS + N_COUNTS
RANK_SINCE, RANK_ACTIVE, RANK_PRECHARGED, RANK_REFRESH, RANK_DUE, RANK_OPEN, AFTER_RANK = 0, 1, 2, 3, 4, 5, 6
UNTOUCHED = -(2**60)
UNKNOWN = -1
AGE_OFFSET = 2**20
SERVED_BITS = 24

# Words of `ChannelState.mark`: what the marked state's sequel is measured against, then the counters, MARK_RANK words
# for each rank and, of each bank, its open row, and in the lowest bits whether that is far and whether it lies still;
# then the context of a refresh (`dram_context`): the bank that it names, how many words, and these.
MARK_LAST_END, MARK_LAST_READ, MARK_LAST_WRITE, MARK_AGE, MARK_SERVED, MARK_REACH, MARK_MARKS = 0, 1, 2, 3, 4, 5, 6
MARK_COUNTS = 7
MARK_RANKS = MARK_COUNTS + N_COUNTS
MARK_ACTIVE, MARK_PRECHARGED, MARK_REFRESH, MARK_DUE, MARK_OPEN, MARK_RANK = 0, 1, 2, 3, 4, 5


@leaf
def find(s, length, add):
    """Number of the state described in `memo_word` by `length` words, or UNKNOWN; `add`: added if it is new.

    Once the memo is half full, a new state is only added when met for the second time, so that the many states met once
    do not drive out the others. A full memo is emptied.
    """
    word = s.memo_word
    states = s.memo_state
    index = s.memo_index
    size = index.shape[0]
    code = np.int64(length)
    for i in range(length):
        code = (code ^ (word[i] & 0x7FFFFFFF)) * 0x5DEECE65
        code = (code >> 15 ^ word[i] >> 31) & 0x7FFFFFFF
    slot = (code ^ code >> 13) & (size - 1)
    while index[slot] >= 0:
        known = states[index[slot]]
        same = np.int64(0)
        if known[states.shape[1] - 1] == length:
            while same < length and known[same] == word[same]:
                same += 1
            if same == length:
                return index[slot]
        slot = (slot + 1) & (size - 1)
    if not add:
        return np.int64(UNKNOWN)
    n = s.memo_count[0]
    seen = code & (s.memo_seen.shape[0] - 1)
    if 2 * n >= states.shape[0] and s.memo_seen[seen] != code:
        s.memo_seen[seen] = code
        return np.int64(UNKNOWN)
    if n == states.shape[0]:
        index[:] = -1
        s.memo_count[1] += 1
        n = np.int64(0)
        slot = (code ^ code >> 13) & (size - 1)
    known = states[n]
    for i in range(length):
        known[i] = word[i]
    known[states.shape[1] - 1] = length
    s.memo_after[n, TICKS] = UNKNOWN
    s.memo_count[0] = n + 1
    index[slot] = n
    return n


@inlined
def find_refresh(t, s, c, known, phase, now):
    """Number of state `known` together with the refreshes that fall due after `now`, or UNKNOWN.

    Later ones than any stretch reaches are all alike. Ranks that fall due at once take turns by their numbers.
    """
    word = s.memo_word
    word[0] = -1 - known
    word[1] = 0
    for k in range(t.ranks):
        r = t.phase_ranks[phase, k]
        word[1] = word[1] << 4 | r
        word[2 + k] = min(s.rank[c, NEXT_DUE, r] - now, t.refresh_reach)
    return find(s, 2 + t.ranks, False)


@inlined
def changed(tick, before, now):
    """A tick counted from `now` if it is no longer what it was `before`, else UNTOUCHED."""
    return tick - now if tick != before else np.int64(UNTOUCHED)


@inlined
def beside_at(t):
    """Where in `memo_after` begins what `dram_apart` knows of a stretch."""
    return AFTER_RANKS + AFTER_RANK * t.ranks + t.banks


@inlined
def served_at(t):
    """Where in `memo_after` the reads begin that were served in a stretch."""
    return beside_at(t) + (words_beside(t) if t.apart > 0 else 0)


@leaf
def keep_mark(t, s, c, known, burst, now, reach, marks):
    """Remember class `c`'s counters at a state whose sequel is to be learnt."""
    x = s.scalar[c]
    x[MARK] = known
    x[MARK_TICK] = now
    x[MARK_BURST] = burst
    x[MARK_ERA] = s.memo_count[1]
    x[ROWS_LOGGED] = 0
    before = s.mark[c]
    before[MARK_LAST_END] = x[LAST_END]
    before[MARK_LAST_READ] = x[LAST_READ_END]
    before[MARK_LAST_WRITE] = x[LAST_WRITE]
    before[MARK_AGE] = x[NEXT_AGE]
    before[MARK_SERVED] = x[SERVED]
    before[MARK_REACH] = reach
    before[MARK_MARKS] = marks
    for i in range(N_COUNTS):
        before[MARK_COUNTS + i] = s.count[c, i]
    n = np.int64(MARK_RANKS)
    for r in range(t.ranks):
        before[n + MARK_ACTIVE] = s.rank[c, TIME_ACTIVE, r]
        before[n + MARK_PRECHARGED] = s.rank[c, TIME_PRECHARGED, r]
        before[n + MARK_REFRESH] = s.rank[c, TIME_REFRESH, r]
        before[n + MARK_DUE] = s.rank[c, NEXT_DUE, r]
        before[n + MARK_OPEN] = s.rank[c, OPEN, r]
        n += MARK_RANK
    phase = phase_of(t, burst)
    offset = burst >> t.period_bits << t.period_shift
    bank = s.bank[c]
    for b in range(t.banks):
        code = row_of_bank(t, bank, phase, b, offset)
        before[n] = bank[ROW, b] << 2 | (code == FAR_ROW) << 1 | lies_still(t, bank, b, code)
        n += 1
    if t.apart > 0:
        x[DONE_PRE] = -1
        length = refresh_context(t, s, c, known, s.memo_state[known], phase, now)
        before[n] = x[PLAN_BANK]
        before[n + 1] = length
        for i in range(length):
            before[n + 2 + i] = s.memo_word[i]


@leaf
def learn(t, s, c, known, burst, marks, now):
    """Note what followed the marked state of class `c` up to the state `known` reached at `now`, if that may recur."""
    x = s.scalar[c]
    count = s.count[c]
    before = s.mark[c]
    began = x[MARK_TICK]
    bursts = burst - x[MARK_BURST]
    d = s.segment[c, IS_WRITE, x[SEGMENT]]
    steps = bursts >> t.steady_bits
    served = x[SERVED] - before[MARK_SERVED]
    if (
        x[MARK_ERA] != s.memo_count[1]
        or bursts != x[NEXT_AGE] - before[MARK_AGE]
        or bursts > before[MARK_REACH]
        or bursts == 0
        or steps > MOST_PHASES
        or served > MOST_SERVED
        or marks != before[MARK_MARKS]
        or now - began >> SERVED_BITS != 0
        or count[RD + 1 - d] != before[MARK_COUNTS + RD + 1 - d]
        or count[FORWARDED] != before[MARK_COUNTS + FORWARDED]
        or count[ABSORBED] != before[MARK_COUNTS + ABSORBED]
        or (x[LAST_END] == before[MARK_LAST_END] and count[BUSY] != before[MARK_COUNTS + BUSY])
    ):
        return
    refreshed = False
    for r in range(t.ranks):
        if s.rank[c, NEXT_DUE, r] != before[MARK_RANKS + r * MARK_RANK + MARK_DUE]:
            refreshed = True
    place = np.int64(MARK_RANKS + t.ranks * MARK_RANK)
    far = s.memo_state[known]
    first = SCALARS + t.ranks
    phase = phase_of(t, burst)
    for k in range(t.banks):
        b = t.phase_banks[phase, k]
        same_row = before[place + b] >> 2 == s.bank[c, ROW, b]
        if far[first + k * BANK_WORDS] & 255 == FAR_ROW and not (same_row and before[place + b] & 2 == 2):
            return
    start = x[MARK]
    begin = phase_of(t, x[MARK_BURST])
    if t.apart > 0:
        context = before[place + t.banks :]
        words = s.memo_state[start]
        done = count[REFB] - before[MARK_COUNTS + REFB]
        if done > 1 or steps > 2 or (done == 0 and steps > 1):
            return
        if done == 1 or context[1] > 4 or (context[1] > 0 and context[2 + 1] & 1 == 1):
            if context[1] == 0:
                return
            for i in range(context[1]):
                s.memo_word[i] = context[2 + i]
            start = find(s, context[1], True)
            if start < 0 or x[MARK_ERA] != s.memo_count[1]:
                return
        elif x[PENDING] >= 0 or x[SHADOWS] > 0:
            return
        beside = s.memo_after[start, beside_at(t) :]
        offset = burst >> t.period_bits << t.period_shift
        s.memo_after[start, TICKS] = UNKNOWN
        if not learn_apart(t, s, c, beside, words, far, begin, phase, offset, before[place:], now):
            return
        if done == 1 and not learn_refresh(t, s, c, beside, words, begin, steps, context[0]):
            return
    elif refreshed:
        if t.postponable > 0 or now - began >= t.refresh_reach:
            return
        word = s.memo_word
        word[0] = -1 - start
        word[1] = 0
        for k in range(t.ranks):
            r = t.phase_ranks[begin, k]
            word[1] = word[1] << 4 | r
            word[2 + k] = min(before[MARK_RANKS + r * MARK_RANK + MARK_DUE] - began, t.refresh_reach)
        start = find(s, 2 + t.ranks, True)
        if start < 0 or x[MARK_ERA] != s.memo_count[1]:
            return
    after = s.memo_after[start]
    after[TICKS] = now - began
    after[BURSTS] = bursts
    after[NEXT] = known
    after[AFTER_LAST_END] = changed(x[LAST_END], before[MARK_LAST_END], now)
    after[AFTER_LAST_READ] = changed(x[LAST_READ_END], before[MARK_LAST_READ], now)
    after[AFTER_LAST_WRITE] = changed(x[LAST_WRITE], before[MARK_LAST_WRITE], now)
    after[AFTER_LAST_ACCEPT] = s.segment[c, DATA_END, x[SEGMENT]] - now if d == 1 else UNTOUCHED
    after[AFTER_SERVED] = served if d == 0 else 0
    phases = t.phase_kind.shape[0]
    for i in range(steps):
        after[AFTER_PHASES + i] = kinds_of(t, (begin + i) & (phases - 1))
    for i in range(N_COUNTS):
        after[AFTER_COUNTS + i] = count[i] - before[MARK_COUNTS + i]
    n = np.int64(AFTER_RANKS)
    for k in range(t.ranks):
        r = t.phase_ranks[begin, k]
        place = MARK_RANKS + r * MARK_RANK
        after[n + RANK_SINCE] = s.rank[c, SINCE, r] - now
        after[n + RANK_ACTIVE] = s.rank[c, TIME_ACTIVE, r] - before[place + MARK_ACTIVE]
        after[n + RANK_PRECHARGED] = s.rank[c, TIME_PRECHARGED, r] - before[place + MARK_PRECHARGED]
        after[n + RANK_REFRESH] = s.rank[c, TIME_REFRESH, r] - before[place + MARK_REFRESH]
        after[n + RANK_DUE] = s.rank[c, NEXT_DUE, r] - before[place + MARK_DUE]
        after[n + RANK_OPEN] = s.rank[c, OPEN, r] - before[place + MARK_OPEN]
        n += AFTER_RANK
    for k in range(t.banks):
        b = t.phase_banks[phase, k]
        was = before[MARK_RANKS + t.ranks * MARK_RANK + b]
        still = far[first + k * BANK_WORDS] >> 32 == KEPT
        kept = was & 1 == 1 and was >> 2 == s.bank[c, ROW, b]
        after[n + k] = s.bank[c, STREAK, b] if still and not kept else -1
    n = served_at(t)
    after[OLDEST] = -AGE_OFFSET
    log = s.served[c]
    for i in range(after[AFTER_SERVED]):
        at = (before[MARK_SERVED] + i) & (log.shape[0] - 1)
        older = before[MARK_AGE] - log[at, 0]
        after[OLDEST] = max(after[OLDEST], older)
        after[n + i] = (older + AGE_OFFSET) << SERVED_BITS | (log[at, 1] - began)
