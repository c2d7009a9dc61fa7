"""Jumps over periodic stretches of a stream: what a channel did from a state once, it does from that state again.

Every `t.steady` bursts of a stream the channel's state is written down as `dram_state` does it. States met before are
found in a memo with what followed them up to a later such point, so that whole stretches are advanced by adding
differences, also from one segment into the next where that goes on at the next burst. A stretch with a refresh in it is
remembered for the state together with the ticks at which refreshes fall due. Nothing is approximated: a stretch is only
taken over if the state is equal in every word and the stream goes on beyond it.
"""

import numpy as np

from sim.kernels.dram_apart import describe_unparked, land_apart, plan_apart, take_apart
from sim.kernels.dram_context import alone, refresh_context, take_refresh
from sim.kernels.dram_issue import account, next_due
from sim.kernels.dram_memo import (
    AFTER_COUNTS,
    AFTER_LAST_ACCEPT,
    AFTER_LAST_END,
    AFTER_LAST_READ,
    AFTER_LAST_WRITE,
    AFTER_PHASES,
    AFTER_RANK,
    AFTER_RANKS,
    AFTER_SERVED,
    AGE_OFFSET,
    BURSTS,
    NEXT,
    OLDEST,
    RANK_ACTIVE,
    RANK_DUE,
    RANK_OPEN,
    RANK_PRECHARGED,
    RANK_REFRESH,
    RANK_SINCE,
    SERVED_BITS,
    TICKS,
    UNKNOWN,
    UNTOUCHED,
    beside_at,
    find,
    find_refresh,
    keep_mark,
    learn,
    served_at,
)
from sim.kernels.dram_state import describe, kinds_of, owner_of, phase_of, restore
from sim.kernels.dram_tables import (
    CURSOR,
    DATA_END,
    DUE,
    FIRST_AGE,
    GRACE,
    IS_WRITE,
    LAST_END,
    LAST_READ_END,
    LAST_WRITE,
    MARK,
    N_COUNTS,
    NEVER,
    NEXT_AGE,
    NEXT_DUE,
    OPEN,
    PENDING,
    PLAN_RANK,
    REMAINING,
    SEGMENT,
    SEGMENTS,
    SHADOWS,
    SINCE,
    STREAK,
    TASK,
    TIME_ACTIVE,
    TIME_PRECHARGED,
    TIME_REFRESH,
    VISIBLE,
    WANTED,
)
from sim.kernels.jit import leaf


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
    place = served_at(t)
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
        s.rank[c, OPEN, r] += after[n + RANK_OPEN]
        n += AFTER_RANK
    next_due(t, x, s.rank[c])
    phase = phase_of(t, segment[CURSOR, p])
    for k in range(t.banks):
        if after[n + k] >= 0:
            s.bank[c, STREAK, t.phase_banks[phase, k]] = after[n + k]


@leaf
def remember_turn(t, s, c, start, known, burst, now):
    """Note that the stretch of state `start`, as the banks are that it brings near, led to the state `known`."""
    beside = s.memo_after[start, beside_at(t) :]
    length, _, _ = describe_unparked(t, s, c, start, s.memo_state[known], beside, burst, now)
    turn = find(s, length, True) if length > 0 else np.int64(UNKNOWN)
    if turn >= 0:
        s.memo_after[turn, NEXT] = known


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
    came_from = np.int64(UNKNOWN)
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
        if came_from >= 0:
            remember_turn(t, s, c, came_from, known, burst, now)
            if era != s.memo_count[1]:
                return now
        age = x[NEXT_AGE]
        names = np.int64(0)
        came_from = np.int64(UNKNOWN)
        x[PENDING] = -1
        x[SHADOWS] = 0
        anew = False
        while not anew:
            phase = phase_of(t, segment[CURSOR, x[SEGMENT]])
            after = s.memo_after[known]
            start = known
            refreshes = False
            if t.apart > 0:
                words = s.memo_state[known]
                planned = after[TICKS] >= 0
                if planned:
                    planned = plan_apart(t, s, c, words, after[beside_at(t) :], phase, now, now + after[TICKS])
                if not planned:
                    length = refresh_context(t, s, c, known, words, phase, now)
                    start = find(s, length, False) if length > 0 else np.int64(UNKNOWN)
                    if start < 0:
                        break
                    after = s.memo_after[start]
                    refreshes = True
                    if after[TICKS] < 0 or not alone(t, s.rank[c], x[PLAN_RANK], now + after[TICKS]):
                        break
            elif after[TICKS] < 0 or now + after[TICKS] >= x[DUE]:
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
                alike = alike and kinds_of(t, (phase + i) & (phases - 1)) == after[AFTER_PHASES + i]
            if not alike or not goes_on(s, c, after[BURSTS], now):
                break
            if d == 0:
                further = serve_stretch(t, s, c, after, now, limit)
                if further < 0:
                    break
                limit = further
            take_stretch(t, s, c, after, phase, now)
            before = now
            now += after[TICKS]
            known = after[NEXT]
            burst = segment[CURSOR, x[SEGMENT]]
            if t.apart > 0:
                beside = after[beside_at(t) :]
                if refreshes:
                    take_refresh(t, s, c, beside, phase, before)
                take_apart(t, s, c, beside, phase, burst, before, now)
                length, equal, names = describe_unparked(t, s, c, start, s.memo_state[known], beside, burst, now)
                if equal:
                    names = np.int64(0)
                else:
                    turn = find(s, length, False) if length > 0 else np.int64(UNKNOWN)
                    if turn >= 0:
                        known = s.memo_after[turn, NEXT]
                        names = np.int64(0)
                    else:
                        anew = True
                        came_from = start if length > 0 else np.int64(UNKNOWN)
            else:
                # The state is known, but what follows it here is not what followed it there.
                anew = s.memo_state[known, 0] != t.phase_kind[(phase + steps) & (phases - 1)]
        if x[NEXT_AGE] > age:
            restore(t, s, c, s.memo_state[known], d, now, age, names)
            if x[SHADOWS] > 0 or x[PENDING] >= 0:
                land_apart(t, s, c)
                came_from = np.int64(UNKNOWN)
                if anew and x[PENDING] >= 0:
                    return now
        if not anew:
            if reach < NEVER:
                reach -= x[NEXT_AGE] - age
            keep_mark(t, s, c, known, segment[CURSOR, x[SEGMENT]], now, reach, marks)
            return now
