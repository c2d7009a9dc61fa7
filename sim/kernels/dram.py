"""Runs memory channels command by command: takes segments of bursts in, and gives the tick at which each is complete.

A channel keeps a ring of segments (contiguous channel-local bursts of one direction and task). Its front end takes
bursts in order, at most one a clock, while the queue has room; the controller of `dram_issue` serves them. `advance`
may be called with any sequence of limits: the commands are the same.
"""

import numpy as np

from sim.kernels.dram_issue import accept, asleep, fall_due, find_best, has_room, idle_refreshes, issue_bank, issue_rank
from sim.kernels.dram_peers import (
    accept_dramsim3,
    accept_ramulator,
    at_rest,
    fall_due_together,
    release,
    tick_dramsim3,
    tick_ramulator,
)
from sim.kernels.dram_steady import goes_on, leap
from sim.kernels.dram_tables import (
    AGE,
    BANK_BITS,
    BEST,
    BEST_TICK,
    CLASS_SHIFT,
    CLOCK,
    CURSOR,
    DATA_END,
    DRAMSIM3,
    DUE,
    FIRST_AGE,
    FRFCFS,
    FRONT,
    IS_WRITE,
    LAST_READ_END,
    LEFT,
    MARK,
    MERGED,
    NEVER,
    NEXT_AGE,
    NEXT_KIND,
    OPEN,
    OWNER,
    QUEUED_R,
    QUEUED_W,
    RAMULATOR,
    RD,
    RECHECK,
    REMAINING,
    SEGMENT,
    SEGMENTS,
    SERVED,
    SIDE,
    SINCE,
    SLEEP_FROM,
    STALE,
    TASK,
    TIME_ACTIVE,
    TIME_ASLEEP,
    TIME_PRECHARGED,
    TIME_REFRESH,
    VISIBLE,
    WAITING_REFRESH,
    WANT_R,
    WANTED,
    ChannelState,
    DramTables,
)
from sim.kernels.jit import inlined, leaf
from sim.kernels.pim import admits_requests
from sim.kernels.pim_beside import (
    after_bank,
    after_leap,
    after_rank,
    find_best_beside,
    has_work,
    limit_of_leap,
    next_pim,
    reads_out,
    run_pim,
)
from sim.kernels.pim_tables import MODE as PIM_MODE
from sim.kernels.pim_tables import NO_PIM, PLANNED

__all__ = ["NEVER", "ChannelState", "DramTables", "advance", "offer", "push", "settle", "soonest_done", "standby"]


# What `step` returns early for.
AHEAD, COMPLETION, READ_ROOM, WRITE_ROOM, NO_SEGMENTS = -2, -1, 0, 1, 2


@inlined
def push(t, s, c, lo, n, is_write, task, tick):
    """Append to class `c` a segment of `n` >= 1 bursts from `lo` that the front end sees from `tick` on.

    Ticks must not decrease from call to call. Returns False, with nothing done, if the ring is full.
    """
    x = s.scalar[c]
    segment = s.segment[c]
    size = segment.shape[1]
    p = (x[SEGMENT] + x[SEGMENTS]) % size
    if x[SEGMENTS] >= size or segment[WANTED, p] > 0:
        return False
    segment[CURSOR, p] = lo
    segment[REMAINING, p] = n
    segment[IS_WRITE, p] = is_write
    segment[TASK, p] = task
    segment[VISIBLE, p] = tick
    segment[WANTED, p] = n
    segment[DATA_END, p] = 0
    x[SEGMENTS] += 1
    return True


@inlined
def complete(s, c, p, tick):
    """One burst of segment `p` is served with its data there at `tick`; True if it was the last."""
    segment = s.segment[c]
    segment[DATA_END, p] = max(segment[DATA_END, p], tick)
    segment[WANTED, p] -= 1
    if segment[WANTED, p] > 0:
        return False
    k = s.done_count[c]
    s.done_task[c, k] = segment[TASK, p]
    s.done_tick[c, k] = segment[DATA_END, p]
    s.done_count[c] = k + 1
    return True


@inlined
def follows(s, c, burst, d, tick):
    """Whether class `c` has a segment at its front end, visible at `tick`, of reads from `burst` on."""
    x = s.scalar[c]
    segment = s.segment[c]
    p = x[SEGMENT]
    if x[SEGMENTS] == 0 or d == 1 or segment[IS_WRITE, p] == 1:
        return False
    return segment[CURSOR, p] == burst and segment[VISIBLE, p] <= tick


@inlined
def any_open(t, rank):
    """Whether a row of the channel is open."""
    for r in range(t.ranks):
        if rank[OPEN, r] > 0:
            return True
    return False


@inlined
def take_in(t, x, bank, ready, near, rank, entry, count, burst, d, owner, tick):
    """Hand a request to the controller; False if it was answered from the write queue."""
    if t.policy == RAMULATOR:
        return accept_ramulator(t, x, bank, entry, count, burst, d, owner, tick)
    if t.policy == DRAMSIM3:
        return accept_dramsim3(t, x, bank, entry, count, burst, d, owner, tick)
    return accept(t, x, bank, ready, near, rank, entry, count, burst, d, owner, tick)


@leaf
def step(t, s, c, until, settling, awaited):
    """Simulate class `c` for all ticks below `until`, or up to the tick at which something awaited has happened.

    That is the completion of a segment, with `awaited` READ_ROOM or WRITE_ROOM also an entry leaving that queue, with
    NO_SEGMENTS not that but the front end having nothing left. AHEAD is COMPLETION, but `until` does not count as long
    as the front end has something: what is handed over meanwhile comes behind it and changes nothing before. `settling`
    1 also accounts for refreshes of an idle channel up to `until`. Returns the tick of the next thing to do, NEVER if
    idle.
    """
    x = s.scalar[c]
    bank = s.bank[c]
    ready = s.ready[c]
    near = s.near[c]
    rank = s.rank[c]
    ring = s.ring[c]
    entry = s.entry[c]
    segment = s.segment[c]
    count = s.count[c]
    log = s.log[c]
    pim_table = t.pim
    pim = pim_table[PIM_MODE] != NO_PIM
    q = s.pim[c]
    ahead = awaited == AHEAD and not pim
    bound = until
    now = x[CLOCK]
    acted = False
    stop = False
    while True:
        if ahead:
            until = bound if x[SEGMENTS] == 0 else NEVER
        arrival = NEVER
        p = x[SEGMENT]
        d = np.int64(0)
        if x[SEGMENTS] > 0:
            d = segment[IS_WRITE, p]
            if has_room(t, x, d):
                arrival = max(segment[VISIBLE, p], max(x[FRONT], now))
                if t.front_ticks > 1:
                    arrival = -(-arrival // t.front_ticks) * t.front_ticks
                if pim and not admits_requests(pim_table, q, arrival):
                    arrival = NEVER
        working = pim and has_work(q)
        if working:
            x[MARK] = -1  # what follows a state with PIM at work is not what follows it without
        if not working and (x[QUEUED_R] + x[QUEUED_W] == 0 if t.policy == FRFCFS else at_rest(t, x)):
            closing = t.page_idle >= 0 and any_open(t, rank)
            if arrival == NEVER and settling == 0 and not closing:
                if x[STALE] == 1 and x[WAITING_REFRESH] > 0 and t.policy == FRFCFS:
                    find_best(t, x, bank, near, rank, entry, now)  # keeps the tick of a refresh begun
                tick = NEVER
                break
            horizon = min(until, arrival)
            if x[DUE] < horizon and not closing:
                idle_refreshes(t, x, bank, ready, near, rank, ring, count, log, horizon)
        pim_tick = NEVER
        if working:
            pim_tick = next_pim(t, s, c, now)  # before the choice of an ordinary command, which keeps off its rows
        if t.policy != FRFCFS:
            x[STALE] = 0
        elif x[STALE] == 1:
            if working or (pim and reads_out(pim_table, q, now)):
                find_best_beside(t, pim_table, q, x, bank, near, rank, entry, now)
            else:
                find_best(t, x, bank, near, rank, entry, now)
        tick = min(min(arrival, x[BEST_TICK]), x[DUE])
        tick = min(tick, pim_tick)
        if tick >= until or (stop and tick > now and settling == 0):
            break
        now = tick
        acted = True
        if x[DUE] == tick and t.policy != FRFCFS:
            fall_due_together(t, x, rank, tick)
        elif x[DUE] == tick:
            fall_due(t, x, bank, ready, near, rank, entry, tick)
            if pim:
                q[PLANNED] = 0
        elif arrival == tick:
            burst = segment[CURSOR, p]
            if (
                t.steady > 0
                and burst & (t.steady - 1) == 0
                and x[WAITING_REFRESH] == 0
                and log.shape[0] == 0
                and not working
                and not (pim and reads_out(pim_table, q, tick))
                and goes_on(s, c, t.steady, tick)
            ):
                finished = s.done_count[c]
                if pim:
                    tick = leap(t, s, c, tick, limit_of_leap(pim_table, until))
                    after_leap(t, pim_table, q, ready, near, rank, now, tick)
                else:
                    tick = leap(t, s, c, tick, until)
                now = tick
                if s.done_count[c] > finished and settling == 0 and awaited != NO_SEGMENTS:
                    x[CLOCK] = now
                    acted = False
                    break
                p = x[SEGMENT]
                burst = segment[CURSOR, p]
            if segment[WANTED, p] == segment[REMAINING, p]:
                segment[FIRST_AGE, p] = x[NEXT_AGE]
            segment[CURSOR, p] = burst + 1
            segment[REMAINING, p] -= 1
            if segment[REMAINING, p] == 0:
                x[SEGMENTS] -= 1
                x[SEGMENT] = p + 1 if p + 1 < segment.shape[1] else 0
                stop = stop or (awaited == NO_SEGMENTS and x[SEGMENTS] == 0)
                if x[MARK] >= 0 and not follows(s, c, burst + 1, d, tick):
                    x[MARK] = -1
            x[FRONT] = tick + t.front_ticks
            queued = take_in(t, x, bank, ready, near, rank, entry, count, burst, d, p, tick)
            if pim:
                x[STALE] = 1
                q[PLANNED] = 0
            if d == 1:
                if complete(s, c, p, tick):
                    stop = stop or awaited != NO_SEGMENTS
            elif not queued:
                x[LAST_READ_END] = max(x[LAST_READ_END], tick + 1)
                if complete(s, c, p, tick + 1):
                    stop = stop or awaited != NO_SEGMENTS
        elif pim_tick == tick:
            now, done = run_pim(t, s, c, tick, min(min(arrival, x[DUE]), until))
            x[FRONT] = max(x[FRONT], now + 1)
            if done:
                stop = stop or awaited != NO_SEGMENTS
        elif x[BEST] == RECHECK and t.policy == FRFCFS:
            x[STALE] = 1
        else:
            x[FRONT] = max(x[FRONT], tick + 1)
            at = x[BEST] & (2**BANK_BITS - 1)
            e = np.int64(-1)
            kind = np.int64(-1)
            if t.policy == RAMULATOR:
                e, kind = tick_ramulator(t, x, bank, ready, near, rank, ring, entry, count, log, tick)
            elif t.policy == DRAMSIM3:
                e, kind = tick_dramsim3(t, x, bank, ready, near, rank, ring, entry, count, log, tick)
            elif x[BEST] >> CLASS_SHIFT == 0:
                refreshing = rank[NEXT_KIND, at]
                issue_rank(t, x, bank, ready, near, rank, ring, entry, count, log, at, tick)
                if pim:
                    after_rank(t, pim_table, q, x, ready, near, refreshing, at, tick)
            else:
                kind = bank[WANT_R + x[SIDE], at]
                e = issue_bank(t, x, bank, ready, near, rank, ring, entry, count, log, kind, at, tick)
                if pim:
                    after_bank(t, pim_table, q, ready, near, kind, at, tick)
            if awaited == READ_ROOM or awaited == WRITE_ROOM:
                left = kind - RD == awaited if t.policy == FRFCFS else x[LEFT] >> awaited & 1 == 1
                stop = stop or left
            while e >= 0:
                owner = entry[OWNER, e]
                if owner < 0:
                    if kind == RD:
                        s.request_done[-1 - owner] = tick + t.read_ticks
                    elif t.policy != DRAMSIM3:
                        s.request_done[-1 - owner] = tick
                elif kind == RD:
                    if t.steady > 0:
                        at_last = x[SERVED] & (s.served.shape[1] - 1)
                        s.served[c, at_last, 0] = entry[AGE, e]
                        s.served[c, at_last, 1] = tick
                        x[SERVED] += 1
                    if complete(s, c, owner, tick + t.read_ticks):
                        stop = stop or awaited != NO_SEGMENTS
                if t.policy != DRAMSIM3:
                    break
                e = entry[MERGED, e]
                if e >= 0:
                    release(x, entry, e)
    if acted:
        x[CLOCK] = now + 1
    # After an early return the caller may hand over work for any tick from now on.
    if tick >= until and until < NEVER and (settling or not stop):
        x[CLOCK] = max(x[CLOCK], until)
    return tick


def advance(t, s, c, until):
    """Simulate class `c` for all ticks below `until`; return the tick of the next thing to do, NEVER if idle.

    Returns early after the tick in which a segment completed (see `done_count`). Refreshes of an idle channel are
    accounted for when work arrives, or by `settle`. Kernels call `step`: whatever calls it is compiled with it.
    """
    return step(t, s, np.int64(c), np.int64(until), np.int64(0), np.int64(COMPLETION))


@leaf
def soonest_done(t, s, c, tick):
    """A tick before which class `c`, which does nothing before `tick`, cannot have completed a segment.

    The segment at the front end takes in one burst a clock at best; those before it need a read and its data.
    """
    if t.pim[PIM_MODE] != NO_PIM and has_work(s.pim[c]):
        return tick
    x = s.scalar[c]
    segment = s.segment[c]
    p = x[SEGMENT]
    soonest = NEVER
    queued = x[QUEUED_R]
    if x[SEGMENTS] > 0:
        soonest = tick + (segment[REMAINING, p] - 1) * t.front_ticks
        if segment[IS_WRITE, p] == 0:
            queued -= segment[WANTED, p] - segment[REMAINING, p]
    if queued > 0:
        soonest = min(soonest, tick + t.read_ticks)
    return soonest


def settle(t, s, c, tick):
    """Work off everything queued and all refreshes due before `tick`, so that the counters speak of that moment."""
    step(t, s, np.int64(c), np.int64(tick), np.int64(1), np.int64(COMPLETION))


@leaf
def standby(t, s, c, tick):
    """(active, precharged, refresh, asleep) ticks of class `c`, all its ranks, from tick 0 to `tick`, once settled."""
    rank = s.rank[c]
    sleeping = np.int64(0)
    active = np.int64(0)
    precharged = np.int64(0)
    refresh = np.int64(0)
    for r in range(t.ranks):
        active += rank[TIME_ACTIVE, r]
        precharged += rank[TIME_PRECHARGED, r]
        refresh += rank[TIME_REFRESH, r]
        rest = tick - rank[SINCE, r]
        if rest < 0:
            refresh += rest
        elif rank[OPEN, r] > 0:
            active += rest
        else:
            precharged += rest
        if t.exit_ticks > 0:
            down = rank[TIME_ASLEEP, r]
            if asleep(t, s.bank[c], rank, r, tick):
                down += tick - rank[SLEEP_FROM, r]
            sleeping += down
            precharged -= down
    return active, precharged, refresh, sleeping


@inlined
def offer(t, s, c, burst, is_write, request, tick):
    """Offer one request of a trace to class `c`, which has simulated all ticks below `tick`; False if refused.

    `s.request_done[request]` gets the tick of the last data beat (read) or of the command (write;
    under DRAMsim3's policy the clock after it was accepted).
    """
    x = s.scalar[c]
    if not has_room(t, x, is_write):
        return False
    x[CLOCK] = max(x[CLOCK], tick)
    if x[DUE] == tick and t.policy == FRFCFS:  # which bank is refreshed depends on what is queued by then
        fall_due(t, x, s.bank[c], s.ready[c], s.near[c], s.rank[c], s.entry[c], tick)
    if not take_in(
        t, x, s.bank[c], s.ready[c], s.near[c], s.rank[c], s.entry[c], s.count[c], burst, is_write, -1 - request, tick
    ):
        s.request_done[request] = tick + 1
        if is_write == 0:
            x[LAST_READ_END] = max(x[LAST_READ_END], tick + 1)
    elif is_write == 1 and t.policy == DRAMSIM3:
        s.request_done[request] = tick + 1
    return True
