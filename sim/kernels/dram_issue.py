"""The controller of one channel: turns queued requests and due refreshes into the next legal command, and issues it.

All functions work on the arrays of one channel class (rows of a ChannelState). Ticks only ever grow; a rule is kept as
the earliest tick at which a command may follow, per bank and per bank group, so that the next command is a minimum over
the banks that have work.
"""

import numpy as np

from sim.kernels.dram_tables import (
    ABSORBED,
    ACT,
    ADDRESS,
    AGE,
    ARRIVAL,
    BACK,
    BANK_BITS,
    BEST,
    BEST_TICK,
    BUS_COLUMN,
    BUS_ROW,
    BUSY,
    CLASS_SHIFT,
    CLOSE_FROM,
    CONFLICTS,
    DEBT,
    DONE_BANK,
    DONE_PRE,
    DONE_TICK,
    DUE,
    EMPTIED,
    ENTRY_BANK,
    ENTRY_ROW,
    FAR,
    FORWARD,
    FORWARDED,
    FREE_R,
    FROM_R,
    HALTED,
    HEAD_R,
    HEAD_W,
    HIT_R,
    HIT_W,
    HITS,
    LAST_AGE,
    LAST_END,
    LAST_READ_END,
    LAST_WRITE,
    LOG_ASLEEP,
    LOG_AWAKE,
    LOGGED,
    MARK,
    MARK_TICK,
    MISSES,
    MODE,
    MOST_AHEAD,
    MOST_ROWS,
    N_COMMANDS,
    NEAR_R,
    NEVER,
    NEXT_AGE,
    NEXT_BANK,
    NEXT_DUE,
    NEXT_FROM,
    NEXT_KIND,
    NEXT_NEAR,
    OPEN,
    ORDER_BITS,
    ORDER_MASK,
    ORDER_R,
    OVERDUE,
    OWNER,
    PICK_R,
    PRE,
    PREA,
    QUEUED_R,
    QUEUED_W,
    RD,
    READ_LATENCY,
    READS_DONE,
    RECHECK,
    REF,
    REFRESHED,
    REFS,
    ROUND,
    ROW,
    ROW_LOG,
    ROWS_LOGGED,
    SIDE,
    SINCE,
    SLEEP_FROM,
    SLEPT_FROM,
    STALE,
    STREAK,
    TAIL_R,
    TIME_ACTIVE,
    TIME_ASLEEP,
    TIME_PRECHARGED,
    TIME_REFRESH,
    TOUCHED,
    UNIT,
    URGENT_FROM,
    WAITING_REFRESH,
    WAITS,
    WANT_R,
    WOKEN,
    WR,
    bank_and_row,
)
from sim.kernels.jit import inlined, leaf


@inlined
def choose(t, bank, ready, rank, entry, b, d):
    """Decide what bank `b` wants for direction `d`: its oldest row hit (at most `cap` past older requests) or its head.

    A row opened for the other direction and not used yet is used first: to close it again would waste the activation.
    A row that nobody waits for is closed in time, unless the pages are left open.
    """
    e = bank[HEAD_R + d, b]
    g = t.group_of[b]
    if bank[HALTED, b] > 0:
        bank[FROM_R + d, b] = FAR
    elif e < 0:
        bank[FROM_R + d, b] = FAR
        unwanted = bank[HIT_R, b] < 0 and bank[HIT_W, b] < 0 and bank[ROW, b] >= 0
        if t.page_idle >= 0 and unwanted and bank[STREAK, b] > 0:
            bank[WANT_R + d, b] = PRE
            bank[PICK_R + d, b] = -1
            bank[ORDER_R + d, b] = 3 << CLASS_SHIFT | LAST_AGE << BANK_BITS | b
            bank[FROM_R + d, b] = max(ready[b, PRE], bank[CLOSE_FROM, b])
            bank[NEAR_R + d, b] = g * N_COMMANDS + PRE
    else:
        hit = bank[HIT_R + d, b]
        other = bank[HIT_W - d, b]
        if bank[ROW, b] < 0:
            want = np.int64(ACT)
        elif hit >= 0 and (hit == e or bank[STREAK, b] < t.cap):
            want = np.int64(RD + d)
            e = hit
        elif other >= 0 and bank[STREAK, b] == 0:
            want = np.int64(WR - d)
            e = other
        else:
            want = np.int64(PRE)
        bank[WANT_R + d, b] = want
        bank[PICK_R + d, b] = e
        rank_of_kind = 1 if want == ACT else (3 if want == PRE else 2)
        bank[ORDER_R + d, b] = rank_of_kind << CLASS_SHIFT | entry[AGE, e] << BANK_BITS | b
        bank[FROM_R + d, b] = ready[b, want]
        bank[NEAR_R + d, b] = g * N_COMMANDS + want


@inlined
def choose_mode(t, x):
    """Switch between serving reads and draining writes, with hysteresis between the two watermarks."""
    reads = x[QUEUED_R]
    writes = x[QUEUED_W]
    if x[MODE] == 0:
        if writes >= t.drain_high or (reads == 0 and writes > 0):
            x[MODE] = 1
    elif writes == 0 or (writes <= t.drain_low and reads > 0):
        x[MODE] = 0


@inlined
def has_room(t, x, d):
    """Whether the read (d = 0) or write (d = 1) queue takes another request."""
    return x[QUEUED_R + d] < (t.read_entries if d == 0 else t.write_entries) and x[FREE_R + d] >= 0


@inlined
def find_write(bank, entry, burst, b):
    """The waiting write of `burst` in bank `b`, or -1."""
    e = bank[HEAD_W, b]
    while e >= 0 and entry[ADDRESS, e] != burst:
        e = entry[FORWARD, e]
    return e


@inlined
def look_again(x):
    """Put a second look at the waiting reads before a next command that comes when one of them may be overdue."""
    if x[QUEUED_R] > 0 and x[OVERDUE] < 0:
        urgent = x[URGENT_FROM]
        if urgent < x[BEST_TICK] or (urgent == x[BEST_TICK] and x[BEST] >> CLASS_SHIFT > 0):
            x[BEST_TICK] = urgent
            x[BEST] = RECHECK


@leaf
def find_overdue(t, x, bank, entry, now):
    """Note the oldest read if it has reached the age limit, else when it will."""
    oldest = np.int64(-1)
    for b in range(t.banks):
        e = bank[HEAD_R, b]
        if e >= 0 and (oldest < 0 or entry[AGE, e] < entry[AGE, oldest]):
            oldest = e
    x[URGENT_FROM] = entry[ARRIVAL, oldest] + t.age_limit
    if x[URGENT_FROM] <= now:
        x[OVERDUE] = oldest


@leaf
def find_best_for_overdue(t, x, bank, near, rank, entry, now):
    """As `find_best`, for reads, and of the data transfers only those of the overdue read's rank.

    Within a rank no request starves, as of commands ready at once the oldest request's goes first; another rank's row
    hits are always ready sooner, by the gap between ranks.
    """
    x[SIDE] = 0
    x[BEST_TICK] = NEVER
    x[BEST] = 1 << CLASS_SHIFT
    own = t.rank_of[t.group_of[entry[ENTRY_BANK, x[OVERDUE]]]]
    for b in range(t.banks):
        order = bank[ORDER_R, b]
        column = order >> CLASS_SHIFT == 2
        if bank[FROM_R, b] < FAR and (not column or t.rank_of[t.group_of[b]] == own):
            first = max(now, x[BUS_COLUMN] if column else x[BUS_ROW])
            first = max(first, max(bank[FROM_R, b], near[bank[NEAR_R, b]]))
            if column:
                first += -first & (t.front_ticks - 1)
            if first < x[BEST_TICK] or (first == x[BEST_TICK] and order < x[BEST]):
                x[BEST_TICK] = first
                x[BEST] = order
    for r in range(t.ranks):
        if rank[WAITS, r] > 0:
            tick = max(max(now, x[BUS_ROW]), max(rank[NEXT_FROM, r], near[rank[NEXT_NEAR, r]]))
            if tick < x[BEST_TICK] or (tick == x[BEST_TICK] and r < x[BEST]):
                x[BEST_TICK] = tick
                x[BEST] = r
    x[STALE] = 0


@inlined
def asleep(t, bank, rank, r, tick):
    """Whether rank `r` sleeps at `tick`: closed, with no refresh to do, and nothing wanted of it for long enough."""
    if rank[OPEN, r] > 0 or rank[WAITS, r] > 0 or tick < rank[SLEEP_FROM, r]:
        return False
    each = t.banks // t.ranks
    for b in range(r * each, (r + 1) * each):
        if bank[HEAD_R, b] >= 0 or bank[HEAD_W, b] >= 0:
            return False
    return True


@leaf
def wake(t, bank, near, rank, r, tick):
    """Wake rank `r` if it sleeps; it takes commands once it is awake."""
    if asleep(t, bank, rank, r, tick):
        rank[TIME_ASLEEP, r] += tick - rank[SLEEP_FROM, r]
        rank[SLEPT_FROM, r] = rank[SLEEP_FROM, r]
        rank[WOKEN, r] = tick + 1
        rank[SLEEP_FROM, r] = tick
        each = t.groups // t.ranks * N_COMMANDS
        for i in range(r * each, (r + 1) * each):
            near[i] = max(near[i], tick + t.exit_ticks)


@inlined
def accept(t, x, bank, ready, near, rank, entry, count, burst, d, owner, tick):
    """Take a request into its queue; True, or False if the write queue already held the address.

    A write to a waiting address replaces it, a read of one is answered from it. The best command found so far is kept
    where the request cannot beat it.
    """
    b, row = bank_and_row(t, burst)
    if x[QUEUED_W] > 0 and find_write(bank, entry, burst, b) >= 0:
        count[ABSORBED if d == 1 else FORWARDED] += 1
        return False
    if t.exit_ticks > 0:
        wake(t, bank, near, rank, t.rank_of[t.group_of[b]], tick)
    e = x[FREE_R + d]
    x[FREE_R + d] = entry[FORWARD, e]
    entry[ADDRESS, e] = burst
    entry[ENTRY_ROW, e] = row
    entry[ENTRY_BANK, e] = b
    entry[AGE, e] = x[NEXT_AGE]
    x[NEXT_AGE] += 1
    entry[OWNER, e] = owner
    entry[ARRIVAL, e] = tick
    entry[TOUCHED, e] = 0
    entry[FORWARD, e] = -1
    tail = bank[TAIL_R + d, b]
    entry[BACK, e] = tail
    bank[TAIL_R + d, b] = e
    x[QUEUED_R + d] += 1
    fresh = tail < 0
    if fresh:
        bank[HEAD_R + d, b] = e
    else:
        entry[FORWARD, tail] = e
    if bank[ROW, b] == row and bank[HIT_R + d, b] < 0:
        bank[HIT_R + d, b] = e
        fresh = True
    mode = x[MODE]
    choose_mode(t, x)
    if d == 0 and x[QUEUED_R] == 1:
        x[URGENT_FROM] = tick + t.age_limit
    if fresh:
        choose(t, bank, ready, rank, entry, b, np.int64(0))
        choose(t, bank, ready, rank, entry, b, np.int64(1))
        if x[OVERDUE] >= 0 or (t.page_idle >= 0 and b == x[BEST] & (2**BANK_BITS - 1)):
            x[STALE] = 1
        elif d == mode:
            first = max(bank[FROM_R + d, b], near[bank[NEAR_R + d, b]])
            first = max(first, max(tick, x[BUS_ROW] if bank[WANT_R + d, b] <= PRE else x[BUS_COLUMN]))
            order = bank[ORDER_R + d, b]
            if b == x[BEST] & (2**BANK_BITS - 1):
                x[STALE] = 1
            elif first < x[BEST_TICK] or (first == x[BEST_TICK] and order < x[BEST]):
                x[BEST_TICK] = first
                x[BEST] = order
    if mode != x[MODE]:
        x[STALE] = 1
    look_again(x)
    return True


@inlined
def remove(x, bank, entry, e, d):
    """Take entry `e`, the oldest row hit of its bank, out of its queue and find the next hit."""
    b = entry[ENTRY_BANK, e]
    after = entry[FORWARD, e]
    before = entry[BACK, e]
    if before < 0:
        bank[HEAD_R + d, b] = after
    else:
        entry[FORWARD, before] = after
    if after < 0:
        bank[TAIL_R + d, b] = before
    else:
        entry[BACK, after] = before
    row = bank[ROW, b]
    while after >= 0 and entry[ENTRY_ROW, after] != row:
        after = entry[FORWARD, after]
    bank[HIT_R + d, b] = after
    entry[FORWARD, e] = x[FREE_R + d]
    x[FREE_R + d] = e
    x[QUEUED_R + d] -= 1


@inlined
def find_best(t, x, bank, near, rank, entry, now):
    """Find the next command: BEST_TICK and BEST, its order, whose lowest bits are the bank (of a refresh, the rank).

    One pass without branches over all banks becomes vector code, faster than any list of the busy ones.
    """
    if x[QUEUED_R] > 0 and x[OVERDUE] < 0 and now >= x[URGENT_FROM]:
        find_overdue(t, x, bank, entry, now)
    if x[OVERDUE] >= 0:
        find_best_for_overdue(t, x, bank, near, rank, entry, now)
        return
    d = x[MODE]
    x[SIDE] = d
    row_from = max(now, x[BUS_ROW])
    column_from = max(now, x[BUS_COLUMN])
    column_from += -column_from & (t.front_ticks - 1)
    own = bank[FROM_R + d]
    place = bank[NEAR_R + d]
    order = bank[ORDER_R + d]
    best = np.int64(MOST_AHEAD << ORDER_BITS)
    for b in range(t.banks):
        rest = order[b]
        tick = max(max(own[b], near[np.uintp(place[b])]), column_from if rest >> CLASS_SHIFT == 2 else row_from)
        best = min(best, (min(tick - now, MOST_AHEAD) << ORDER_BITS) + rest)
    if x[WAITING_REFRESH] > 0:
        for r in range(t.ranks):
            if rank[WAITS, r] > 0:
                tick = max(max(rank[NEXT_FROM, r], near[rank[NEXT_NEAR, r]]), row_from)
                best = min(best, (tick - now << ORDER_BITS) + r)
    ahead = best >> ORDER_BITS
    x[BEST_TICK] = now + ahead if ahead < MOST_AHEAD else NEVER
    x[BEST] = best & ORDER_MASK
    x[STALE] = 0
    look_again(x)


@inlined
def constrain(t, ready, near, ring, kind, b, g, tick):
    """Move the earliest ticks that the rules allow after command `kind` in bank `b` (-1: the rank) of group `g`."""
    if b >= 0:
        own = ready[b]
        own_gap = t.gap_bank[kind]
        for k in range(N_COMMANDS):
            own[k] = max(own[k], tick + own_gap[k])
        if kind == ACT:
            # Column commands start with a clock, of which row commands may leave a part.
            own[RD] += -own[RD] & (t.front_ticks - 1)
            own[WR] += -own[WR] & (t.front_ticks - 1)
    gap = t.gap_near[kind, g]
    for i in range(near.shape[0]):
        near[i] = max(near[i], tick + gap[i])
    for w in range(t.window_before.shape[0]):
        if t.window_before[w] == kind:
            node = t.window_groups[w, g, 0]
            size = t.window_size[w]
            place = ring[w, node, size]
            ring[w, node, place] = tick
            place += 1
            if place == size:
                place = np.int64(0)
            ring[w, node, size] = place
            limit = ring[w, node, place] + t.window_gap[w]
            after = t.window_after[w]
            for h in range(t.window_groups[w, g, 1], t.window_groups[w, g, 2]):
                near[h * N_COMMANDS + after] = max(near[h * N_COMMANDS + after], limit)


@inlined
def next_due(t, x, rank):
    """Recompute the tick at which the next refresh falls due in a rank that does not wait for one already.

    Where refreshes are put off, they are counted in any rank.
    """
    due = NEVER
    for r in range(t.ranks):
        if rank[WAITS, r] == 0 or t.postponable > 0:
            due = min(due, rank[NEXT_DUE, r])
    x[DUE] = due


@inlined
def choose_unit(t, bank, ready, rank, entry, first):
    """Decide anew for the banks that are refreshed along with bank `first`, and with that."""
    for i in range(t.unit_banks):
        b = first + i * t.unit_step
        choose(t, bank, ready, rank, entry, b, np.int64(0))
        choose(t, bank, ready, rank, entry, b, np.int64(1))


@inlined
def unit_to_refresh(t, bank, r):
    """First bank of the unit of rank `r` that is refreshed next: one not yet refreshed in this round.

    One that no queued request wants goes before others; among equals the one used last, as a stream comes back to it
    last, and of those never used the first.
    """
    begin = r * (t.banks // t.ranks)
    found = np.int64(begin)
    best = np.int64(-1)
    for first in range(begin, begin + t.banks // t.ranks // t.unit_banks):
        if bank[REFRESHED, first] == 0:
            used = np.int64(0)
            idle = np.int64(FAR)
            for i in range(t.unit_banks):
                b = first + i * t.unit_step
                used = max(used, bank[CLOSE_FROM, b] + 1)
                if bank[HEAD_R, b] >= 0 or bank[HEAD_W, b] >= 0:
                    idle = np.int64(0)
            if used + idle > best:
                found = np.int64(first)
                best = used + idle
    return found


@leaf
def plan_refresh(t, bank, ready, rank, r):
    """Work out the next command towards the refresh that rank `r` waits for: close what is open, then refresh."""
    first = rank[UNIT, r]
    kind = np.int64(t.refresh_command)
    at = np.int64(-1)
    start = np.int64(0)
    if kind == REF:
        if rank[OPEN, r] > 0:
            kind = np.int64(PREA)
    else:
        at = first
        for i in range(t.unit_banks):
            b = first + i * t.unit_step
            start = max(start, ready[b, kind])
            if bank[ROW, b] >= 0:
                kind = np.int64(PRE)
                at = b
                start = ready[b, PRE]
                break
    rank[NEXT_KIND, r] = kind
    rank[NEXT_BANK, r] = at
    rank[NEXT_FROM, r] = start
    rank[NEXT_NEAR, r] = t.group_of[max(at, first)] * N_COMMANDS + kind


@leaf
def wait_for_refresh(t, x, bank, ready, near, rank, entry, r, tick):
    """Let the banks of rank `r` that owe a refresh do no more work before it, unless it can be put off."""
    put_off = t.postponable > 0 and rank[DEBT, r] < t.postponable and x[QUEUED_R] + x[QUEUED_W] > 0
    if rank[WAITS, r] == 0 and not put_off:
        if t.exit_ticks > 0:
            wake(t, bank, near, rank, r, tick)
        rank[WAITS, r] = 1
        x[WAITING_REFRESH] += 1
        first = unit_to_refresh(t, bank, r)
        rank[UNIT, r] = first
        for i in range(t.unit_banks):
            bank[HALTED, first + i * t.unit_step] = 1
        plan_refresh(t, bank, ready, rank, r)
        choose_unit(t, bank, ready, rank, entry, first)


@leaf
def catch_up(t, x, bank, ready, near, rank, entry, tick):
    """Make the ranks do the refreshes put off, as nothing is queued any more."""
    for r in range(t.ranks):
        if rank[DEBT, r] > 0:
            wait_for_refresh(t, x, bank, ready, near, rank, entry, r, tick)


@leaf
def fall_due(t, x, bank, ready, near, rank, entry, tick):
    """Mark the ranks whose refresh falls due at `tick`: they take no further work until it is done or put off."""
    for r in range(t.ranks):
        if rank[NEXT_DUE, r] <= tick and t.self_refresh > 0 and asleep(t, bank, rank, r, tick):
            rank[NEXT_DUE, r] += t.refresh_interval
        elif rank[NEXT_DUE, r] <= tick:
            if t.postponable > 0:
                rank[DEBT, r] += 1
                rank[NEXT_DUE, r] += t.refresh_interval
            wait_for_refresh(t, x, bank, ready, near, rank, entry, r, tick)
    next_due(t, x, rank)
    x[STALE] = 1


@inlined
def account(rank, r, tick):
    """Add the standby time of rank `r` up to `tick` to its state; that of a refresh is accounted already."""
    rest = tick - rank[SINCE, r]
    if rest > 0:
        rank[TIME_ACTIVE if rank[OPEN, r] > 0 else TIME_PRECHARGED, r] += rest
        rank[SINCE, r] = tick


@inlined
def write_log(t, x, log, kind, tick, g, b, row):
    """Append a command to the log while it has room."""
    n = x[LOGGED]
    if n < log.shape[0]:
        per_rank = t.groups // t.ranks
        log[n, 0] = kind
        log[n, 1] = tick
        log[n, 2] = t.rank_of[g]
        log[n, 3] = -1
        log[n, 4] = -1
        if b >= 0:
            log[n, 3] = -1 if kind == REFS else g % per_rank
            log[n, 4] = b % (t.banks // t.groups)
        log[n, 5] = row
        x[LOGGED] = n + 1


@leaf
def log_command(t, x, log, rank, kind, tick, g, b, row):
    """As `write_log`, after the sleep from which the command's rank was woken."""
    r = t.rank_of[g]
    if rank[WOKEN, r] > 0:
        nothing = np.int64(-1)
        write_log(t, x, log, np.int64(LOG_ASLEEP), rank[SLEPT_FROM, r], g, nothing, nothing)
        write_log(t, x, log, np.int64(LOG_AWAKE), rank[WOKEN, r] - 1, g, nothing, nothing)
        rank[WOKEN, r] = 0
    write_log(t, x, log, kind, tick, g, b, row)


@inlined
def issue_bank(t, x, bank, ready, near, rank, ring, entry, count, log, kind, b, tick):
    """Issue ACT, PRE, RD or WR for the best request of bank `b`; return the entry served, or -1.

    A served entry stays readable until the next request is accepted.
    """
    d = x[SIDE]
    e = bank[PICK_R + d, b]
    g = t.group_of[b]
    r = t.rank_of[g]
    row = entry[ENTRY_ROW, e]
    served = np.int64(-1)
    if kind == ACT:
        bank[ROW, b] = row
        bank[STREAK, b] = 0
        entry[TOUCHED, e] |= 1
        if rank[OPEN, r] == 0:
            account(rank, r, tick)
        rank[OPEN, r] += 1
        for q in range(2):
            f = bank[HEAD_R + q, b]
            while f >= 0 and entry[ENTRY_ROW, f] != row:
                f = entry[FORWARD, f]
            bank[HIT_R + q, b] = f
    elif kind == PRE:
        row = bank[ROW, b]
        bank[ROW, b] = -1
        bank[STREAK, b] = 0
        bank[HIT_R, b] = -1
        bank[HIT_W, b] = -1
        if e >= 0:
            entry[TOUCHED, e] |= 2
        if rank[OPEN, r] == 1:
            account(rank, r, tick)
        rank[OPEN, r] -= 1
        rank[SLEEP_FROM, r] = max(rank[SLEEP_FROM, r], tick)
    else:
        rank[SLEEP_FROM, r] = max(rank[SLEEP_FROM, r], tick + t.sleep_after)
        served = e
        touched = entry[TOUCHED, e]
        count[HITS if touched == 0 else (MISSES if touched == 1 else CONFLICTS)] += 1
        count[BUSY] += t.burst_ticks
        bank[STREAK, b] = min(bank[STREAK, b] + 1, t.cap)  # more makes no difference
        bank[CLOSE_FROM, b] = tick + t.page_idle
        if kind == RD:
            end = tick + t.read_ticks
            count[READ_LATENCY] += end - entry[ARRIVAL, e]
            count[READS_DONE] += 1
            x[LAST_READ_END] = max(x[LAST_READ_END], end)
        else:
            end = tick + t.write_ticks
            x[LAST_WRITE] = tick
        x[LAST_END] = max(x[LAST_END], end)
        if e == x[OVERDUE]:
            x[OVERDUE] = -1
        remove(x, bank, entry, e, kind - RD)
        choose_mode(t, x)
        emptied = bank[HEAD_R, b] < 0 and bank[HEAD_W, b] < 0
        if t.apart > 0 and emptied and bank[EMPTIED, b] < x[MARK_TICK]:
            bank[EMPTIED, b] = tick
    if t.apart > 0 and kind <= PRE and x[MARK] >= 0:
        if x[ROWS_LOGGED] < MOST_ROWS:
            x[ROW_LOG + x[ROWS_LOGGED]] = tick << 16 | kind << 8 | g
        x[ROWS_LOGGED] += 1
    count[kind] += 1
    constrain(t, ready, near, ring, kind, b, g, tick)
    choose(t, bank, ready, rank, entry, b, np.int64(0))
    choose(t, bank, ready, rank, entry, b, np.int64(1))
    if t.postponable > 0 and x[QUEUED_R] + x[QUEUED_W] == 0:
        catch_up(t, x, bank, ready, near, rank, entry, tick)
    x[STALE] = 1
    if kind >= RD and t.two_buses == 1:
        x[BUS_COLUMN] = tick + t.command_ticks[kind]
    else:
        x[BUS_ROW] = tick + t.command_ticks[kind]
        if t.two_buses == 0:
            x[BUS_COLUMN] = x[BUS_ROW]
    if log.shape[0] > 0:
        log_command(t, x, log, rank, kind, tick, g, b, row)
    return served


@inlined
def forget_row(bank, b):
    """Close bank `b`."""
    bank[ROW, b] = -1
    bank[STREAK, b] = 0
    bank[HIT_R, b] = -1
    bank[HIT_W, b] = -1


@leaf
def constrain_refresh(t, ready, near, ring, first, tick):
    """As `constrain`, after a refresh of the banks that begin with `first`."""
    kind = np.int64(t.refresh_command)
    constrain(t, ready, near, ring, kind, np.int64(-1) if kind == REF else first, t.group_of[first], tick)
    if kind == REFS:
        for i in range(1, t.unit_banks):
            own = ready[first + i * t.unit_step]
            for k in range(N_COMMANDS):
                own[k] = max(own[k], tick + t.gap_bank[kind, k])


@inlined
def end_round(t, bank, rank, r, first):
    """Note that the unit of bank `first` was refreshed; once all of rank `r` were, the next round begins."""
    units = t.banks // t.ranks // t.unit_banks
    bank[REFRESHED, first] = 1
    rank[ROUND, r] += 1
    if rank[ROUND, r] == units:
        rank[ROUND, r] = 0
        begin = r * (t.banks // t.ranks)
        for b in range(begin, begin + units):
            bank[REFRESHED, b] = 0


@leaf
def issue_rank(t, x, bank, ready, near, rank, ring, entry, count, log, r, tick):
    """Bring the refresh that rank `r` waits for on: close what is open, then refresh."""
    kind = rank[NEXT_KIND, r]
    b = rank[NEXT_BANK, r]
    first = rank[UNIT, r]
    g = t.group_of[max(b, first)]
    row = np.int64(-1)
    if kind == PREA:
        account(rank, r, tick)
        for q in range(t.unit_banks):
            forget_row(bank, first + q)
        rank[OPEN, r] = 0
    elif kind == PRE:
        row = bank[ROW, b]
        forget_row(bank, b)
        if rank[OPEN, r] == 1:
            account(rank, r, tick)
        rank[OPEN, r] -= 1
    else:
        if kind == REF:
            account(rank, r, tick)
            rank[TIME_REFRESH, r] += t.refresh_ticks
            rank[SINCE, r] = tick + t.refresh_ticks
        rank[WAITS, r] = 0
        rank[SLEEP_FROM, r] = max(rank[SLEEP_FROM, r], tick + t.refresh_ticks)
        x[WAITING_REFRESH] -= 1
        for q in range(t.unit_banks):
            bank[HALTED, first + q * t.unit_step] = 0
        end_round(t, bank, rank, r, first)
    if kind == PRE or kind == PREA:
        rank[SLEEP_FROM, r] = max(rank[SLEEP_FROM, r], tick)
        x[DONE_PRE] = tick
        constrain(t, ready, near, ring, kind, b, g, tick)
        plan_refresh(t, bank, ready, rank, r)
    else:
        x[DONE_BANK] = first
        x[DONE_TICK] = tick
        constrain_refresh(t, ready, near, ring, first, tick)
        for q in range(UNIT, NEXT_NEAR + 1):
            rank[q, r] = 0
        if t.postponable == 0:
            rank[NEXT_DUE, r] += t.refresh_interval
        else:
            rank[DEBT, r] -= 1
            if rank[DEBT, r] > 0:
                wait_for_refresh(t, x, bank, ready, near, rank, entry, r, tick)
        next_due(t, x, rank)
        choose_unit(t, bank, ready, rank, entry, first)
    x[STALE] = 1
    count[kind] += 1
    x[BUS_ROW] = tick + t.command_ticks[kind]
    if t.two_buses == 0:
        x[BUS_COLUMN] = x[BUS_ROW]
    if log.shape[0] > 0:
        log_command(t, x, log, rank, kind, tick, g, b, row)


@inlined
def quiet(t, ready, near, rank, r):
    """Whether rank `r` is closed and no rule forbids any of its banks a refresh once it falls due."""
    due = rank[NEXT_DUE, r]
    if rank[OPEN, r] > 0:
        return False
    for g in range(r * (t.groups // t.ranks), (r + 1) * (t.groups // t.ranks)):
        if near[g * N_COMMANDS + t.refresh_command] > due:
            return False
    if t.refresh_command != REF:
        for b in range(r * (t.banks // t.ranks), (r + 1) * (t.banks // t.ranks)):
            if ready[b, t.refresh_command] > due:
                return False
    return True


@leaf
def idle_refreshes(t, x, bank, ready, near, rank, ring, count, log, horizon):
    """Account for all refreshes due before `horizon` of a channel with nothing to do, as stepping them would.

    Returns False, with nothing changed, where stepping could differ: an open or waiting rank, a busy command bus, ranks
    that fall due so close together that they disturb each other or are not yet asleep though they could, or a log to
    fill.
    """
    if x[WAITING_REFRESH] > 0 or x[LOGGED] < log.shape[0] or x[BUS_ROW] > x[DUE]:
        return False
    for r in range(t.ranks):
        if not quiet(t, ready, near, rank, r):
            return False
        if t.exit_ticks > 0 and not asleep(t, bank, rank, r, rank[NEXT_DUE, r]):
            return False
        for q in range(r):
            apart = abs(rank[NEXT_DUE, r] - rank[NEXT_DUE, q]) % t.refresh_interval
            if apart < t.refresh_apart or t.refresh_interval - apart < t.refresh_apart:
                return False
    units = t.banks // t.ranks // t.unit_banks
    for r in range(t.ranks):
        due = rank[NEXT_DUE, r]
        if t.self_refresh > 0:
            if due < horizon:
                rank[NEXT_DUE, r] += ((horizon - 1 - due) // t.refresh_interval + 1) * t.refresh_interval
            continue
        # A rank that sleeps is woken when the refresh falls due, and refreshed when it is awake.
        if due + t.exit_ticks >= horizon:
            continue
        n = (horizon - 1 - due - t.exit_ticks) // t.refresh_interval + 1
        if t.exit_ticks > 0:
            rest = t.refresh_interval - t.refresh_ticks - t.exit_ticks
            rank[TIME_ASLEEP, r] += due - rank[SLEEP_FROM, r] + (n - 1) * rest
        due += t.exit_ticks
        end = due + (n - 1) * t.refresh_interval
        if t.refresh_command == REF:
            rank[TIME_PRECHARGED, r] += due - rank[SINCE, r] + (n - 1) * (t.refresh_interval - t.refresh_ticks)
            rank[TIME_REFRESH, r] += n * t.refresh_ticks
            rank[SINCE, r] = end + t.refresh_ticks
        rank[SLEEP_FROM, r] = max(rank[SLEEP_FROM, r], end + t.refresh_ticks)
        i = np.int64(0)
        while i < n:
            # Of whole rounds, all but the last leave no trace: their rules are overtaken by its.
            if rank[ROUND, r] == 0 and n - i >= 2 * units:
                i += ((n - i) // units - 1) * units
            first = unit_to_refresh(t, bank, r)
            constrain_refresh(t, ready, near, ring, first, due + i * t.refresh_interval)
            end_round(t, bank, rank, r, first)
            i += 1
        rank[NEXT_DUE, r] += n * t.refresh_interval
        count[t.refresh_command] += n
        x[BUS_ROW] = max(x[BUS_ROW], end + t.command_ticks[t.refresh_command])
        if t.two_buses == 0:
            x[BUS_COLUMN] = x[BUS_ROW]
    next_due(t, x, rank)
    x[STALE] = 1
    return True
