"""Jumps over periodic stretches of a stream: what a channel did from a state once, it does from that state again.

Every `t.steady` bursts of a stream the channel's state is written down as `dram_state` does it. States met before are
found in a memo with what followed them up to a later such point, so that whole stretches are advanced by adding
differences, also from one segment into the next where that goes on at the next burst. A stretch with a refresh in it is
remembered for the state together with the ticks at which refreshes fall due. Nothing is approximated: a stretch is only
taken over if the state is equal in every word and the stream goes on beyond it.
"""

import numpy as np

from sim.kernels.dram_issue import account, next_due
from sim.kernels.dram_state import (
    BANK_WORDS,
    FAR_ROW,
    KEPT,
    NO_ROW,
    SCALARS,
    describe,
    lies_still,
    owner_of,
    restore,
    row_code,
)
from sim.kernels.dram_tables import (
    ABSORBED,
    BUSY,
    CURSOR,
    DATA_END,
    DUE,
    FIRST_AGE,
    FORWARDED,
    GRACE,
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
    NEVER,
    NEXT_AGE,
    NEXT_DUE,
    RD,
    REMAINING,
    ROW,
    SEGMENT,
    SEGMENTS,
    SERVED,
    SINCE,
    STREAK,
    TASK,
    TIME_ACTIVE,
    TIME_PRECHARGED,
    TIME_REFRESH,
    VISIBLE,
    WANTED,
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
RANK_SINCE, RANK_ACTIVE, RANK_PRECHARGED, RANK_REFRESH, RANK_DUE, AFTER_RANK = 0, 1, 2, 3, 4, 5
UNTOUCHED = -(2**60)
UNKNOWN = -1
AGE_OFFSET = 2**20
SERVED_BITS = 24

# Words of `ChannelState.mark`: what the marked state's sequel is measured against, then the counters, MARK_RANK words
# for each rank and, of each bank, its open row, and in the lowest bits whether that is far and whether it lies still.
MARK_LAST_END, MARK_LAST_READ, MARK_LAST_WRITE, MARK_AGE, MARK_SERVED, MARK_REACH, MARK_MARKS = 0, 1, 2, 3, 4, 5, 6
MARK_COUNTS = 7
MARK_RANKS = MARK_COUNTS + N_COUNTS
MARK_ACTIVE, MARK_PRECHARGED, MARK_REFRESH, MARK_DUE, MARK_RANK = 0, 1, 2, 3, 4


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
def phase_of(t, burst):
    """The phase of the address period at a burst."""
    return (burst & (1 << t.period_bits) - 1) >> t.steady_bits


@leaf
def keep_mark(t, s, c, known, burst, now, reach, marks):
    """Remember class `c`'s counters at a state whose sequel is to be learnt."""
    x = s.scalar[c]
    x[MARK] = known
    x[MARK_TICK] = now
    x[MARK_BURST] = burst
    x[MARK_ERA] = s.memo_count[1]
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
        n += MARK_RANK
    phase = phase_of(t, burst)
    offset = burst >> t.period_bits << t.period_shift
    for b in range(t.banks):
        row = s.bank[c, ROW, b]
        code = row_code(row, t.phase_rows[phase, b] + offset) if row >= 0 else np.int64(NO_ROW)
        before[n] = row << 2 | (code == FAR_ROW) << 1 | lies_still(t, s.bank[c], b, code)
        n += 1


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
    if refreshed:
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
        after[AFTER_PHASES + i] = t.phase_kind[(begin + i) & (phases - 1)]
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
        n += AFTER_RANK
    for k in range(t.banks):
        b = t.phase_banks[phase, k]
        was = before[MARK_RANKS + t.ranks * MARK_RANK + b]
        still = far[first + k * BANK_WORDS] >> 32 == KEPT
        kept = was & 1 == 1 and was >> 2 == s.bank[c, ROW, b]
        after[n + k] = s.bank[c, STREAK, b] if still and not kept else -1
    n += t.banks
    after[OLDEST] = -AGE_OFFSET
    log = s.served[c]
    for i in range(after[AFTER_SERVED]):
        at = (before[MARK_SERVED] + i) & (log.shape[0] - 1)
        older = before[MARK_AGE] - log[at, 0]
        after[OLDEST] = max(after[OLDEST], older)
        after[n + i] = (older + AGE_OFFSET) << SERVED_BITS | (log[at, 1] - began)


@leaf
def goes_on(s, c, bursts, now):
    """Whether class `c` has, visible at `now`, more than `bursts` further bursts of one stream.

    Reads may go on in the next segments. Writes complete as they are accepted, so that these end with their segment.
    """
    x = s.scalar[c]
    segment = s.segment[c]
    p = x[SEGMENT]
    left = segment[REMAINING, p]
    end = segment[CURSOR, p] + left
    for _ in range(x[SEGMENTS] - 1):
        if left > bursts or segment[IS_WRITE, p] == 1:
            break
        p = p + 1 if p + 1 < segment.shape[1] else np.int64(0)
        if segment[IS_WRITE, p] == 1 or segment[CURSOR, p] != end or segment[VISIBLE, p] > now:
            break
        left += segment[REMAINING, p]
        end += segment[REMAINING, p]
    return left > bursts


@leaf
def serve_stretch(t, s, c, after, now, limit):
    """Account to the segments of class `c` for the reads served in a stretch from `now` on, before it is accepted.

    Returns the tick below which further stretches must end, or -1, with nothing done, if this one must not be taken: it
    would end so late after the first completion in it that work could arrive before (see GRACE). Completions are put
    on the list.
    """
    x = s.scalar[c]
    segment = s.segment[c]
    first = x[NEXT_AGE]
    reads = after[AFTER_SERVED]
    place = AFTER_RANKS + AFTER_RANK * t.ranks + t.banks
    newest = x[SEGMENT]
    left = segment[REMAINING, newest]
    if left > after[BURSTS] and first - after[OLDEST] >= segment[FIRST_AGE, newest]:
        segment[WANTED, newest] -= reads
        if reads > 0:
            tick = now + (after[place + reads - 1] & (1 << SERVED_BITS) - 1) + t.read_ticks
            segment[DATA_END, newest] = max(segment[DATA_END, newest], tick)
        return limit
    while left <= after[BURSTS]:
        newest = newest + 1 if newest + 1 < segment.shape[1] else np.int64(0)
        segment[FIRST_AGE, newest] = first + left
        left += segment[REMAINING, newest]
    done = s.done_count[c]
    for i in range(reads):
        served = after[place + i]
        p = owner_of(segment, newest, first + AGE_OFFSET - (served >> SERVED_BITS))
        segment[WANTED, p] -= 1
        if segment[WANTED, p] == 0:
            tick = max(segment[DATA_END, p], now + (served & (1 << SERVED_BITS) - 1) + t.read_ticks)
            limit = min(limit, tick + max(x[GRACE], 1))
            s.done_task[c, done] = segment[TASK, p]
            s.done_tick[c, done] = tick
            done += 1
    too_long = now + after[TICKS] >= limit
    for i in range(reads):
        served = after[place + i]
        p = owner_of(segment, newest, first + AGE_OFFSET - (served >> SERVED_BITS))
        if too_long:
            segment[WANTED, p] += 1
        else:
            tick = now + (served & (1 << SERVED_BITS) - 1) + t.read_ticks
            segment[DATA_END, p] = max(segment[DATA_END, p], tick)
    if too_long:
        return np.int64(-1)
    s.done_count[c] = done
    return limit


@leaf
def take_stretch(t, s, c, after, phase, now):
    """Advance class `c` from `now`, at a point of `phase`, by the stretch `after`, but for what describes its state."""
    x = s.scalar[c]
    segment = s.segment[c]
    p = x[SEGMENT]
    now += after[TICKS]
    left = after[BURSTS]
    if segment[IS_WRITE, p] == 1:
        segment[WANTED, p] -= left
        segment[DATA_END, p] = max(segment[DATA_END, p], now + after[AFTER_LAST_ACCEPT])
    while left >= segment[REMAINING, p]:
        left -= segment[REMAINING, p]
        segment[REMAINING, p] = 0
        x[SEGMENTS] -= 1
        p = p + 1 if p + 1 < segment.shape[1] else np.int64(0)
    x[SEGMENT] = p
    segment[CURSOR, p] += left
    segment[REMAINING, p] -= left
    x[NEXT_AGE] += after[BURSTS]
    if after[AFTER_LAST_END] != UNTOUCHED:
        x[LAST_END] = max(x[LAST_END], now + after[AFTER_LAST_END])
    if after[AFTER_LAST_READ] != UNTOUCHED:
        x[LAST_READ_END] = max(x[LAST_READ_END], now + after[AFTER_LAST_READ])
    if after[AFTER_LAST_WRITE] != UNTOUCHED:
        x[LAST_WRITE] = now + after[AFTER_LAST_WRITE]
    for i in range(N_COUNTS):
        s.count[c, i] += after[AFTER_COUNTS + i]
    n = np.int64(AFTER_RANKS)
    for k in range(t.ranks):
        r = t.phase_ranks[phase, k]
        s.rank[c, SINCE, r] = now + after[n + RANK_SINCE]
        s.rank[c, TIME_ACTIVE, r] += after[n + RANK_ACTIVE]
        s.rank[c, TIME_PRECHARGED, r] += after[n + RANK_PRECHARGED]
        s.rank[c, TIME_REFRESH, r] += after[n + RANK_REFRESH]
        s.rank[c, NEXT_DUE, r] += after[n + RANK_DUE]
        n += AFTER_RANK
    next_due(t, x, s.rank[c])
    phase = phase_of(t, segment[CURSOR, p])
    for k in range(t.banks):
        if after[n + k] >= 0:
            s.bank[c, STREAK, t.phase_banks[phase, k]] = after[n + k]


@leaf
def leap(t, s, c, now, until):
    """Class `c` is about to accept, at `now`, a burst at a multiple of `t.steady`: jump as far as the memo knows.

    Returns the tick of the jump's end (`now` if there was none), where a later such burst is about to be accepted. The
    end stays below `until`. Segments may have completed on the way (see `done_count`).
    """
    x = s.scalar[c]
    segment = s.segment[c]
    phases = t.phase_kind.shape[0]
    p = x[SEGMENT]
    d = segment[IS_WRITE, p]
    if segment[WANTED, p] == segment[REMAINING, p]:
        segment[FIRST_AGE, p] = x[NEXT_AGE]
    limit = until
    while True:
        burst = segment[CURSOR, x[SEGMENT]]
        length, reach, marks = describe(t, s, c, burst, d, now)
        if length == 0:
            x[MARK] = -1
            return now
        for r in range(t.ranks):
            account(s.rank[c], r, now)
        known = find(s, length, True)
        era = s.memo_count[1]
        if known >= 0 and x[MARK] >= 0:
            learn(t, s, c, known, burst, marks, now)
        x[MARK] = -1
        if known < 0 or era != s.memo_count[1]:
            return now
        age = x[NEXT_AGE]
        renamed = False
        while not renamed:
            phase = phase_of(t, segment[CURSOR, x[SEGMENT]])
            after = s.memo_after[known]
            if after[TICKS] < 0 or now + after[TICKS] >= x[DUE]:
                if x[DUE] - now >= t.refresh_reach:
                    break
                known_then = find_refresh(t, s, c, known, phase, now)
                if known_then < 0:
                    break
                after = s.memo_after[known_then]
            if after[TICKS] < 0 or now + after[TICKS] >= limit or x[NEXT_AGE] - age + after[BURSTS] > reach:
                break
            steps = after[BURSTS] >> t.steady_bits
            alike = True
            for i in range(1, steps):
                alike = alike and t.phase_kind[(phase + i) & (phases - 1)] == after[AFTER_PHASES + i]
            if not alike or not goes_on(s, c, after[BURSTS], now):
                break
            if d == 0:
                further = serve_stretch(t, s, c, after, now, limit)
                if further < 0:
                    break
                limit = further
            take_stretch(t, s, c, after, phase, now)
            now += after[TICKS]
            known = after[NEXT]
            # The state is known, but what follows it here is not what followed it there.
            renamed = s.memo_state[known, 0] != t.phase_kind[(phase + steps) & (phases - 1)]
        if x[NEXT_AGE] > age:
            restore(t, s, c, s.memo_state[known], d, now, age)
        if not renamed:
            if reach < NEVER:
                reach -= x[NEXT_AGE] - age
            keep_mark(t, s, c, known, segment[CURSOR, x[SEGMENT]], now, reach, marks)
            return now
