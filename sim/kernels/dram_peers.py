"""The controllers of Ramulator 2.1 and DRAMsim3, restated: each turns a clock's state into the commands it would send.

Both are looked at clock by clock while they work and woken when a rule next allows something, so idle clocks cost
nothing. The rules of timing, the counters and the log are those of `dram_issue`; only the choice of commands differs.
Ramulator: one buffer a direction, the oldest request whose next command is ready, and a request whose row was opened
leaves the buffer and protects the row until served. DRAMsim3: transactions move, one a clock, into one queue a bank;
the queues are asked in turn.
"""

import numpy as np

from sim.kernels.dram_issue import account, constrain, next_due, write_log
from sim.kernels.dram_tables import (
    ABSORBED,
    ACT,
    ACTIVE,
    ADDRESS,
    AGE,
    ARRIVAL,
    BACK,
    BEST_TICK,
    BUS_COLUMN,
    BUS_ROW,
    BUSY,
    CONFLICTS,
    DEPTH,
    DRAINING,
    ENTRY_BANK,
    ENTRY_ROW,
    FORWARD,
    FORWARDED,
    FREE_R,
    HEAD_R,
    HEAD_W,
    HELD,
    HIT_R,
    HIT_W,
    HITS,
    IS_A_WRITE,
    LAST_END,
    LAST_READ_END,
    LAST_WRITE,
    LEFT,
    MERGED,
    MISS_R,
    MISSES,
    MODE,
    N_COMMANDS,
    NEVER,
    NEXT_AGE,
    NEXT_DUE,
    OPEN,
    OWNER,
    POINTER,
    PRE,
    PREA,
    QUEUED_R,
    QUEUED_W,
    RAMULATOR,
    RD,
    READ_LATENCY,
    READS_DONE,
    REF,
    ROW,
    SINCE,
    STREAK,
    TAIL_R,
    TIME_REFRESH,
    TOUCHED,
    TRANS_HEAD_R,
    TRANS_TAIL_R,
    WAITING_REFRESH,
    WAITS,
    WR,
    bank_and_row,
)
from sim.kernels.jit import inlined, leaf

COLUMN, ROWS = 1, 2  # which commands a look concerns


@inlined
def at_rest(t, x):
    """Whether the controller has nothing to do but refreshes: DRAMsim3 keeps a few writes until more come."""
    if t.policy == RAMULATOR:
        return x[QUEUED_R] + x[QUEUED_W] + x[HELD] == 0
    return x[QUEUED_R] + x[HELD] + x[DRAINING] == 0 and x[QUEUED_W] <= t.drain_low


@inlined
def take(x, entry, burst, b, row, d, owner, tick):
    """A free entry, filled in."""
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
    entry[BACK, e] = -1
    entry[MERGED, e] = -1
    entry[IS_A_WRITE, e] = d
    return e


@inlined
def release(x, entry, e):
    """Give an entry back; it stays readable until the next one is taken."""
    d = entry[IS_A_WRITE, e]
    entry[FORWARD, e] = x[FREE_R + d]
    x[FREE_R + d] = e


@inlined
def append(bank, entry, e, d, b):
    """Put an entry at the end of list `d` of bank `b`."""
    tail = bank[TAIL_R + d, b]
    entry[BACK, e] = tail
    entry[FORWARD, e] = -1
    bank[TAIL_R + d, b] = e
    if tail < 0:
        bank[HEAD_R + d, b] = e
    else:
        entry[FORWARD, tail] = e


@inlined
def unlink(bank, entry, e, d, b):
    """Take an entry out of list `d` of bank `b`."""
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


@inlined
def unlink_transaction(x, entry, e, d):
    """Take an entry out of the transaction queue of direction `d`."""
    after = entry[FORWARD, e]
    before = entry[BACK, e]
    if before < 0:
        x[TRANS_HEAD_R + d] = after
    else:
        entry[FORWARD, before] = after
    if after < 0:
        x[TRANS_TAIL_R + d] = before
    else:
        entry[BACK, after] = before


@inlined
def sort_hits(bank, entry, b, d):
    """Find the first row hit and the first other request in list `d` of an open bank."""
    row = bank[ROW, b]
    hit = np.int64(-1)
    miss = np.int64(-1)
    e = bank[HEAD_R + d, b]
    while e >= 0 and row >= 0 and (hit < 0 or miss < 0):
        if entry[ENTRY_ROW, e] == row:
            if hit < 0:
                hit = e
        elif miss < 0:
            miss = e
        e = entry[FORWARD, e]
    bank[HIT_R + d, b] = hit
    bank[MISS_R + d, b] = miss


@inlined
def sort_mixed_hits(bank, entry, b):
    """Find the first read and the first write to the open row in the one queue of bank `b`."""
    row = bank[ROW, b]
    bank[HIT_R, b] = -1
    bank[HIT_W, b] = -1
    e = bank[HEAD_R, b]
    while e >= 0 and row >= 0:
        d = entry[IS_A_WRITE, e]
        if entry[ENTRY_ROW, e] == row and bank[HIT_R + d, b] < 0:
            bank[HIT_R + d, b] = e
        e = entry[FORWARD, e]


@inlined
def send(t, x, ready, near, ring, count, log, kind, b, g, row, tick):
    """Count, log and time a command of bank `b` (-1: of the rank of group `g`)."""
    count[kind] += 1
    constrain(t, ready, near, ring, kind, b, g, tick)
    if (kind == RD or kind == WR) and t.two_buses == 1:
        x[BUS_COLUMN] = tick + t.command_ticks[kind]
    else:
        x[BUS_ROW] = tick + t.command_ticks[kind]
        if t.two_buses == 0:
            x[BUS_COLUMN] = x[BUS_ROW]
    if log.shape[0] > 0:
        write_log(t, x, log, kind, tick, g, b, row)


@inlined
def open_row(t, x, bank, rank, b, row, tick):
    """The state after an ACT."""
    r = t.rank_of[t.group_of[b]]
    bank[ROW, b] = row
    bank[STREAK, b] = 0
    if rank[OPEN, r] == 0:
        account(rank, r, tick)
    rank[OPEN, r] += 1


@inlined
def close_row(t, x, bank, rank, b, tick):
    """The state after a PRE."""
    r = t.rank_of[t.group_of[b]]
    bank[ROW, b] = -1
    bank[STREAK, b] = 0
    for d in range(2):
        bank[HIT_R + d, b] = -1
        bank[MISS_R + d, b] = -1
    if rank[OPEN, r] == 1:
        account(rank, r, tick)
    rank[OPEN, r] -= 1


@inlined
def refreshed(t, x, rank, r, tick):
    """The state after a REF."""
    account(rank, r, tick)
    rank[TIME_REFRESH, r] += t.refresh_ticks
    rank[SINCE, r] = tick + t.refresh_ticks
    rank[NEXT_DUE, r] += t.refresh_interval
    rank[WAITS, r] = 0
    x[WAITING_REFRESH] -= 1
    next_due(t, x, rank)


@inlined
def serve(t, x, bank, entry, count, e, kind, hit, tick):
    """Count the request that RD or WR serves, and when its data ends."""
    touched = entry[TOUCHED, e]
    count[HITS if hit else (CONFLICTS if touched > 1 else MISSES)] += 1
    count[BUSY] += t.burst_ticks
    bank[STREAK, entry[ENTRY_BANK, e]] += 1
    if kind == RD:
        end = tick + t.read_ticks
        x[LAST_READ_END] = max(x[LAST_READ_END], end)
        m = e
        while m >= 0:
            count[READ_LATENCY] += end - entry[ARRIVAL, m]
            count[READS_DONE] += 1
            m = entry[MERGED, m]
    else:
        end = tick + t.write_ticks
        if t.policy == RAMULATOR:
            x[LAST_WRITE] = tick
    x[LAST_END] = max(x[LAST_END], end)


@leaf
def fall_due_together(t, x, rank, tick):
    """Mark the ranks whose refresh falls due at `tick`."""
    for r in range(t.ranks):
        if rank[WAITS, r] == 0 and rank[NEXT_DUE, r] <= tick:
            rank[WAITS, r] = 1
            x[WAITING_REFRESH] += 1
    next_due(t, x, rank)
    x[BEST_TICK] = min(x[BEST_TICK], tick)


@leaf
def accept_ramulator(t, x, bank, entry, count, burst, d, owner, tick):
    """As `dram_issue.accept`: into the buffer, unless the write buffer holds the address."""
    b, row = bank_and_row(t, burst)
    if x[QUEUED_W] > 0:
        e = bank[HEAD_W, b]
        while e >= 0 and entry[ADDRESS, e] != burst:
            e = entry[FORWARD, e]
        if e >= 0:
            count[ABSORBED if d == 1 else FORWARDED] += 1
            return False
    e = take(x, entry, burst, b, row, d, owner, tick)
    append(bank, entry, e, d, b)
    x[QUEUED_R + d] += 1
    if bank[ROW, b] >= 0:
        place = HIT_R + d if bank[ROW, b] == row else MISS_R + d
        if bank[place, b] < 0:
            bank[place, b] = e
    x[BEST_TICK] = min(x[BEST_TICK], tick)
    return True


@inlined
def turn(t, x):
    """Ramulator's write mode: its marks, and with no read in the buffer always writes."""
    if x[MODE] == 0:
        if x[QUEUED_W] >= t.drain_high or x[QUEUED_R] == 0:
            x[MODE] = 1
    elif x[QUEUED_W] <= t.drain_low and x[QUEUED_R] > 0:
        x[MODE] = 0


@inlined
def column_tick(t, ready, near, b, kind, bus_from, tick):
    """Earliest tick, from `tick` on, of a column command of bank `b`: it starts with a clock."""
    first = max(max(ready[b, kind], near[t.group_of[b] * N_COMMANDS + kind]), max(bus_from, tick))
    return first + (-first & (t.front_ticks - 1))


@leaf
def oldest_ready(t, x, bank, ready, near, entry, d, concern, tick):
    """(entry, command, soonest tick of any) of the oldest buffered request whose command is ready; entry -1: none."""
    best = np.int64(-1)
    kind = np.int64(-1)
    age = NEVER
    soon = NEVER
    for b in range(t.banks):
        e = bank[HEAD_R + d, b]
        if e < 0:
            continue
        n = t.group_of[b] * N_COMMANDS
        if bank[ROW, b] < 0:
            if concern & ROWS:
                first = max(max(ready[b, ACT], near[n + ACT]), x[BUS_ROW])
                soon = min(soon, first)
                if first <= tick and entry[AGE, e] < age:
                    best = e
                    kind = np.int64(ACT)
                    age = entry[AGE, e]
            continue
        e = bank[HIT_R + d, b]
        if concern & COLUMN and e >= 0:
            first = column_tick(t, ready, near, b, RD + d, x[BUS_COLUMN], tick)
            soon = min(soon, first)
            if first <= tick and entry[AGE, e] < age:
                best = e
                kind = np.int64(RD + d)
                age = entry[AGE, e]
        e = bank[MISS_R + d, b]
        if concern & ROWS and e >= 0 and bank[ACTIVE, b] < 0:
            first = max(max(ready[b, PRE], near[n + PRE]), x[BUS_ROW])
            soon = min(soon, first)
            if first <= tick and entry[AGE, e] < age:
                best = e
                kind = np.int64(PRE)
                age = entry[AGE, e]
    return best, kind, soon


@inlined
def oldest_active(t, x, bank, ready, near, entry, tick):
    """As `oldest_ready`, of the requests whose rows were opened for them; of equal arrivals, the first opened."""
    best = np.int64(-1)
    soon = NEVER
    for b in range(t.banks):
        e = bank[ACTIVE, b]
        if e >= 0:
            kind = RD + entry[IS_A_WRITE, e]
            first = column_tick(t, ready, near, b, kind, x[BUS_COLUMN], tick)
            soon = min(soon, first)
            if first <= tick:
                if best < 0 or entry[ARRIVAL, e] < entry[ARRIVAL, best]:
                    best = e
                elif entry[ARRIVAL, e] == entry[ARRIVAL, best] and entry[AGE, e] < entry[AGE, best]:
                    best = e
    return best, soon


@inlined
def issue_ramulator(t, x, bank, ready, near, rank, ring, entry, count, log, e, kind, tick):
    """Issue ACT, PRE, RD or WR for entry `e`."""
    b = entry[ENTRY_BANK, e]
    d = entry[IS_A_WRITE, e]
    row = entry[ENTRY_ROW, e]
    if kind == ACT:
        entry[TOUCHED, e] |= 1
        open_row(t, x, bank, rank, b, row, tick)
        unlink(bank, entry, e, d, b)
        x[QUEUED_R + d] -= 1
        x[LEFT] |= 1 << d
        bank[ACTIVE, b] = e
        entry[AGE, e] = x[NEXT_AGE]
        x[NEXT_AGE] += 1
        x[HELD] += 1
        sort_hits(bank, entry, b, np.int64(0))
        sort_hits(bank, entry, b, np.int64(1))
    elif kind == PRE:
        row = bank[ROW, b]
        entry[TOUCHED, e] |= 2
        close_row(t, x, bank, rank, b, tick)
    else:
        serve(t, x, bank, entry, count, e, kind, entry[TOUCHED, e] == 0, tick)
        if bank[ACTIVE, b] == e:
            bank[ACTIVE, b] = -1
            x[HELD] -= 1
        else:
            unlink(bank, entry, e, d, b)
            x[QUEUED_R + d] -= 1
            x[LEFT] |= 1 << d
            sort_hits(bank, entry, b, d)
        release(x, entry, e)
    send(t, x, ready, near, ring, count, log, kind, b, t.group_of[b], row, tick)


@leaf
def first_waiting(t, rank):
    """The rank whose refresh has waited longest, or -1."""
    found = np.int64(-1)
    for r in range(t.ranks):
        if rank[WAITS, r] > 0 and (found < 0 or rank[NEXT_DUE, r] < rank[NEXT_DUE, found]):
            found = np.int64(r)
    return found


@inlined
def protected(t, bank, r):
    """Whether a row of rank `r` was opened for a request not served yet."""
    each = t.banks // t.ranks
    for b in range(r * each, (r + 1) * each):
        if bank[ACTIVE, b] >= 0:
            return True
    return False


@leaf
def tick_ramulator(t, x, bank, ready, near, rank, ring, entry, count, log, tick):
    """One clock of Ramulator's controller: (entry served or -1, RD or WR); sets BEST_TICK to when to look again."""
    served = np.int64(-1)
    served_kind = np.int64(-1)
    acted = False
    soon = NEVER
    x[LEFT] = 0
    for slot in range(1 + t.two_buses):
        concern = COLUMN | ROWS if t.two_buses == 0 else (COLUMN if slot == 0 else ROWS)
        e = np.int64(-1)
        kind = np.int64(-1)
        if x[HELD] > 0 and concern & COLUMN:
            e, first = oldest_active(t, x, bank, ready, near, entry, tick)
            soon = min(soon, first)
            if e >= 0:
                kind = RD + entry[IS_A_WRITE, e]
        if e < 0 and x[WAITING_REFRESH] > 0:
            r = first_waiting(t, rank)
            each = t.banks // t.ranks
            g = r * (t.groups // t.ranks)
            wanted = np.int64(PREA if rank[OPEN, r] > 0 else REF)
            if concern & ROWS and not (wanted == PREA and protected(t, bank, r)):
                first = max(near[g * N_COMMANDS + wanted], x[BUS_ROW])
                soon = min(soon, first)
                if first <= tick:
                    if wanted == PREA:
                        for b in range(r * each, (r + 1) * each):
                            if bank[ROW, b] >= 0:
                                close_row(t, x, bank, rank, b, tick)
                    else:
                        refreshed(t, x, rank, r, tick)
                    send(t, x, ready, near, ring, count, log, wanted, np.int64(-1), g, np.int64(-1), tick)
                    acted = True
        elif e < 0:
            turn(t, x)
            e, kind, first = oldest_ready(t, x, bank, ready, near, entry, x[MODE], concern, tick)
            soon = min(soon, first)
        if e >= 0:
            issue_ramulator(t, x, bank, ready, near, rank, ring, entry, count, log, e, kind, tick)
            acted = True
            if kind >= RD:
                served = e
                served_kind = kind
    x[BEST_TICK] = tick + 1 if acted else max(soon, tick + 1)
    return served, served_kind


@inlined
def find_transaction(x, entry, burst, d):
    """The transaction of direction `d` on an address that no bank queue has yet, or -1."""
    e = x[TRANS_HEAD_R + d]
    while e >= 0 and entry[ADDRESS, e] != burst:
        e = entry[FORWARD, e]
    return e


@inlined
def find_queued(bank, entry, burst, b, d):
    """The request of direction `d` on an address in the queue of bank `b`, or -1."""
    e = bank[HEAD_R, b]
    while e >= 0 and (entry[ADDRESS, e] != burst or entry[IS_A_WRITE, e] != d):
        e = entry[FORWARD, e]
    return e


@inlined
def pending(x, bank, entry, burst, b, d):
    """The unserved request of direction `d` on an address, or -1."""
    e = find_transaction(x, entry, burst, d)
    if e < 0:
        e = find_queued(bank, entry, burst, b, d)
    return e


@leaf
def accept_dramsim3(t, x, bank, entry, count, burst, d, owner, tick):
    """As `dram_issue.accept`: into the transaction queue, or, a read of an address being read, along with that."""
    b, row = bank_and_row(t, burst)
    if d == 1:
        x[LAST_WRITE] = tick + 1
    if pending(x, bank, entry, burst, b, np.int64(1)) >= 0:
        count[ABSORBED if d == 1 else FORWARDED] += 1
        return False
    same = pending(x, bank, entry, burst, b, np.int64(0)) if d == 0 else np.int64(-1)
    e = take(x, entry, burst, b, row, d, owner, tick)
    if same >= 0:
        entry[MERGED, e] = entry[MERGED, same]
        entry[MERGED, same] = e
        return True
    tail = x[TRANS_TAIL_R + d]
    entry[BACK, e] = tail
    x[TRANS_TAIL_R + d] = e
    if tail < 0:
        x[TRANS_HEAD_R + d] = e
    else:
        entry[FORWARD, tail] = e
    x[QUEUED_R + d] += 1
    x[BEST_TICK] = min(x[BEST_TICK], tick)
    return True


@leaf
def next_in_turn(t, x, bank, ready, near, entry, skip, row_from, column_from, tick):
    """(entry, command, soonest tick of any) of the first bank, in turn, with a command ready; entry -1: none.

    skip: rank left out, -1: none. The turn goes on after the bank found.
    """
    soon = NEVER
    for i in range(t.banks):
        b = x[POINTER] + 1 + i
        if b >= t.banks:
            b -= t.banks
        head = bank[HEAD_R, b]
        g = t.group_of[b]
        if head < 0 or t.rank_of[g] == skip:
            continue
        n = g * N_COMMANDS
        if bank[ROW, b] < 0:
            first = max(max(ready[b, ACT], near[n + ACT]), row_from)
            soon = min(soon, first)
            if first <= tick:
                x[POINTER] = b
                return head, np.int64(ACT), soon
            continue
        read = bank[HIT_R, b]
        write = bank[HIT_W, b]
        if entry[ENTRY_ROW, head] != bank[ROW, b] and ((read < 0 and write < 0) or bank[STREAK, b] >= t.cap):
            first = max(max(ready[b, PRE], near[n + PRE]), row_from)
            soon = min(soon, first)
            if first <= tick:
                x[POINTER] = b
                return head, np.int64(PRE), soon
        if read >= 0:
            first = column_tick(t, ready, near, b, RD, column_from, tick)
            soon = min(soon, first)
            if first > tick:
                read = np.int64(-1)
        if write >= 0:
            first = column_tick(t, ready, near, b, WR, column_from, tick)
            soon = min(soon, first)
            if first > tick:
                write = np.int64(-1)
        if read >= 0 and (write < 0 or entry[AGE, read] < entry[AGE, write]):
            x[POINTER] = b
            return read, np.int64(RD), soon
        if write >= 0:
            x[POINTER] = b
            return write, np.int64(WR), soon
    return np.int64(-1), np.int64(-1), soon


@inlined
def issue_dramsim3(t, x, bank, ready, near, rank, ring, entry, count, log, e, kind, tick):
    """Issue ACT, PRE, RD or WR for entry `e`."""
    b = entry[ENTRY_BANK, e]
    row = entry[ENTRY_ROW, e]
    if kind == ACT:
        entry[TOUCHED, e] |= 1
        open_row(t, x, bank, rank, b, row, tick)
        sort_mixed_hits(bank, entry, b)
    elif kind == PRE:
        row = bank[ROW, b]
        entry[TOUCHED, e] |= 2
        close_row(t, x, bank, rank, b, tick)
    else:
        serve(t, x, bank, entry, count, e, kind, bank[STREAK, b] > 0, tick)
        unlink(bank, entry, e, np.int64(0), b)
        bank[DEPTH, b] -= 1
        x[HELD] -= 1
        sort_mixed_hits(bank, entry, b)
        release(x, entry, e)
    send(t, x, ready, near, ring, count, log, kind, b, t.group_of[b], row, tick)


@inlined
def bring_refresh_on(t, x, bank, ready, near, rank, ring, count, log, r, tick):
    """(command issued or -1, soonest tick): precharge the banks of rank `r` one by one, then refresh it."""
    each = t.banks // t.ranks
    g = r * (t.groups // t.ranks)
    if rank[OPEN, r] == 0:
        first = max(near[g * N_COMMANDS + REF], x[BUS_ROW])
        if first <= tick:
            refreshed(t, x, rank, r, tick)
            send(t, x, ready, near, ring, count, log, np.int64(REF), np.int64(-1), g, np.int64(-1), tick)
            return np.int64(REF), first
        return np.int64(-1), first
    soon = NEVER
    for b in range(r * each, (r + 1) * each):
        if bank[ROW, b] >= 0:
            first = max(max(ready[b, PRE], near[t.group_of[b] * N_COMMANDS + PRE]), x[BUS_ROW])
            soon = min(soon, first)
            if first <= tick:
                row = bank[ROW, b]
                close_row(t, x, bank, rank, b, tick)
                send(t, x, ready, near, ring, count, log, np.int64(PRE), b, t.group_of[b], row, tick)
                return np.int64(PRE), first
    return np.int64(-1), soon


@inlined
def move_transaction(t, x, bank, entry):
    """Move the first transaction whose bank queue has room; False if there is none.

    Writes are moved in batches: once the buffer is full, or holds some with all bank queues empty, as many as it holds
    then. A write of an address with a read under way ends the batch, as the read goes first.
    """
    if x[DRAINING] == 0 and (x[QUEUED_W] >= t.write_entries or (x[QUEUED_W] > t.drain_low and x[HELD] == 0)):
        x[DRAINING] = x[QUEUED_W]
    for d in range(1 if x[DRAINING] > 0 else 0, -1, -1):
        e = x[TRANS_HEAD_R + d]
        while e >= 0 and bank[DEPTH, entry[ENTRY_BANK, e]] >= t.bank_entries:
            e = entry[FORWARD, e]
        if e < 0:
            return False
        b = entry[ENTRY_BANK, e]
        if d == 1:
            if pending(x, bank, entry, entry[ADDRESS, e], b, np.int64(0)) >= 0:
                x[DRAINING] = 0
                continue
            x[DRAINING] -= 1
        unlink_transaction(x, entry, e, d)
        x[QUEUED_R + d] -= 1
        x[LEFT] |= 1 << d
        entry[AGE, e] = x[NEXT_AGE]
        x[NEXT_AGE] += 1
        append(bank, entry, e, np.int64(0), b)
        bank[DEPTH, b] += 1
        x[HELD] += 1
        if entry[ENTRY_ROW, e] == bank[ROW, b] and bank[HIT_R + d, b] < 0:
            bank[HIT_R + d, b] = e
        return True
    return False


@leaf
def tick_dramsim3(t, x, bank, ready, near, rank, ring, entry, count, log, tick):
    """One clock of DRAMsim3's controller: (entry served or -1, RD or WR); sets BEST_TICK to when to look again."""
    served = np.int64(-1)
    served_kind = np.int64(-1)
    soon = NEVER
    x[LEFT] = 0
    skip = np.int64(-1)
    kind = np.int64(-1)
    row_from = x[BUS_ROW]
    column_from = x[BUS_COLUMN]
    if x[WAITING_REFRESH] > 0:
        skip = first_waiting(t, rank)
        kind, soon = bring_refresh_on(t, x, bank, ready, near, rank, ring, count, log, skip, tick)
        if kind == REF:
            skip = np.int64(-1)
    if kind < 0:
        e, kind, first = next_in_turn(t, x, bank, ready, near, entry, skip, row_from, column_from, tick)
        soon = min(soon, first)
        if e >= 0:
            issue_dramsim3(t, x, bank, ready, near, rank, ring, entry, count, log, e, kind, tick)
            if kind == RD or kind == WR:
                served = e
                served_kind = kind
    if kind >= 0 and t.two_buses == 1:
        column = kind == RD or kind == WR
        # The other bus may still be taken by a command of several ticks, this one's own is by the command above.
        e, second, first = next_in_turn(t, x, bank, ready, near, entry, skip, row_from, column_from, tick)
        if e >= 0 and (second == RD or second == WR) != column:
            issue_dramsim3(t, x, bank, ready, near, rank, ring, entry, count, log, e, second, tick)
            if not column:
                served = e
                served_kind = second
    moved = move_transaction(t, x, bank, entry)
    x[BEST_TICK] = tick + 1 if moved or kind >= 0 else max(soon, tick + 1)
    return served, served_kind
