"""Where PIM and ordinary commands of a channel meet: who must keep clear of whom, and what fills the slack of PIM.

The functions here see both parts: what follows from an ordinary command for PIM, ordinary commands that PIM itself
needs, and the choice of an ordinary command while PIM has work.
"""

import numpy as np

from sim.kernels.dram_issue import choose, constrain, find_overdue, look_again, plan_refresh, write_log
from sim.kernels.dram_tables import (
    ACT,
    BEST,
    BEST_TICK,
    BUS_COLUMN,
    BUS_ROW,
    CLASS_SHIFT,
    ENTRY_BANK,
    ENTRY_ROW,
    FAR,
    FORWARD,
    FROM_R,
    HEAD_R,
    HIT_R,
    LOGGED,
    MODE,
    N_COMMANDS,
    NEAR_R,
    NEVER,
    NEXT_FROM,
    NEXT_NEAR,
    ORDER_R,
    OVERDUE,
    PICK_R,
    PRE,
    QUEUED_R,
    RD,
    REF,
    ROW,
    SIDE,
    SINCE,
    STALE,
    STREAK,
    URGENT_FROM,
    WAITING_REFRESH,
    WAITS,
    WANT_R,
)
from sim.kernels.jit import inlined, leaf
from sim.kernels.pim import (
    JOB_DONE,
    MADE_WAIT,
    apply_gaps,
    count_open,
    end_job,
    plan,
    row_of,
    row_to_open,
    step_at,
    step_row,
    take_bus,
    under_way,
    work,
)
from sim.kernels.pim_tables import (
    ADMITTED,
    BLOCKED,
    BUSY_FROM,
    COMPS_READRES,
    DEADLINE,
    DOTS,
    FROM_BANK,
    FRONT_TICKS,
    FROZEN,
    G_ACT,
    GWRITE,
    HEADER,
    JOBS,
    LAST_READOUT,
    LOAD_BANK,
    LOAD_ROW,
    LOADED,
    LOADS,
    NEXT_COMMAND,
    NEXT_TICK,
    NEXT_UNIT,
    NO_ROW,
    NOT_BEFORE,
    OPEN_ROWS,
    OPENED,
    ORDINARY,
    PIM_PRE,
    PLANNED,
    RANK_BANKS,
    REACH,
    READOUT,
    READOUT_APART,
    READOUT_TO_WRITE,
    READOUTS,
    ROWS_AT,
    SLACK,
    SLACK_ACT,
    SLACK_ANY,
    SLACK_PRE,
    SLACK_PRE_COST,
    STEP_ROW,
    TILE,
    TWO_BUFFERS,
    UNIT_BASE,
    UNIT_END,
    UNIT_FIELDS,
    UNIT_FIRST,
    UNIT_STEP,
    UNITS,
    WRITE_TO_READOUT,
)
from sim.kernels.pim_tables import MODE as PIM_MODE


@inlined
def has_work(q):
    """Whether a PIM job waits or is under way, or PIM rows are still to be closed."""
    return q[JOBS] > 0 or q[OPEN_ROWS] > 0


@inlined
def reads_out(p, q, now):
    """Whether read-outs may still be to come that ordinary bursts must keep clear of."""
    return now <= q[LAST_READOUT] + p[READOUT_TO_WRITE]


@leaf
def after_bank(t, p, q, ready, near, kind, b, tick):
    """Let PIM commands keep their distance from the ordinary command `kind` in bank `b`."""
    apply_gaps(p, q, ready, near, kind * t.banks + b, np.int64(0), tick)
    q[PLANNED] = 0
    if q[ADMITTED] > 0:
        if kind == ACT:
            q[SLACK] -= p[SLACK_ACT]
        elif kind == PRE:
            q[SLACK] -= p[SLACK_PRE_COST]


@leaf
def after_rank(t, p, q, x, ready, near, kind, r, tick):
    """Follow a command towards a refresh of rank `r`; PIM goes on when that is done."""
    apply_gaps(p, q, ready, near, kind * t.banks + r * p[RANK_BANKS], np.int64(0), tick)
    q[OPENED] = 0
    q[PLANNED] = 0
    if x[WAITING_REFRESH] == 0:
        q[FROZEN] = 0


@inlined
def limit_of_leap(p, until):
    """Tick up to which a stretch may be jumped over, so that its commands concern no PIM command from `until` on."""
    return until - p[REACH] if until < NEVER else until


@leaf
def after_leap(t, p, q, ready, near, rank, before, now):
    """Catch up with the ordinary commands that were jumped over from `before` to `now`.

    Their rules for PIM commands are over after REACH ticks, those of refreshes when the refresh is; until then PIM,
    which has no work yet, does not begin.
    """
    if now == before:
        return
    q[NOT_BEFORE] = now + p[REACH]
    for r in range(t.ranks):
        if rank[SINCE, r] > now:
            refreshed = rank[SINCE, r] - t.refresh_ticks
            apply_gaps(p, q, ready, near, REF * t.banks + r * p[RANK_BANKS], np.int64(0), refreshed)


@inlined
def set_row(bank, entry, b, row):
    """Open `row` in the ordinary buffer of bank `b`, or close it (-1), for the requests queued there."""
    bank[ROW, b] = row
    bank[STREAK, b] = 0
    for d in range(2):
        e = np.int64(-1)
        if row >= 0:
            e = bank[HEAD_R + d, b]
            while e >= 0 and entry[ENTRY_ROW, e] != row:
                e = entry[FORWARD, e]
        bank[HIT_R + d, b] = e


@leaf
def choose_all(t, bank, ready, rank, entry):
    """Decide anew for every bank."""
    for b in range(t.banks):
        for d in range(2):
            choose(t, bank, ready, rank, entry, b, np.int64(d))


@leaf
def log_pim(t, p, q, x, log, tick):
    """Append the planned PIM command to the log: its unit in the field of its level, -1 in all others.

    A bank: rank, group and bank; a bank group: rank and group; a set of banks: its number in the field of the bank. The
    field of the row holds the dots of a composite command above bit 32.
    """
    n = x[LOGGED]
    if n >= log.shape[0]:
        return
    kind = q[NEXT_COMMAND]
    unit = max(q[NEXT_UNIT], np.int64(0))
    at = p[UNITS] + (p[UNIT_BASE + kind] + unit) * UNIT_FIELDS
    log[n, 0] = N_COMMANDS + kind
    log[n, 1] = tick
    log[n, 2] = -1
    log[n, 3] = -1
    log[n, 4] = unit
    log[n, 5] = -1
    size = p[at + UNIT_END] - p[at + UNIT_FIRST]
    if p[at + UNIT_STEP] == 1 and size < t.banks:
        g = t.group_of[p[at + UNIT_FIRST]]
        log[n, 2] = t.rank_of[g]
        log[n, 3] = g % (t.groups // t.ranks)
        log[n, 4] = p[at + UNIT_FIRST] % (t.banks // t.groups) if size == 1 else -1
    if kind != PIM_PRE:
        job = under_way(p, q)
        step = step_at(p, q, job, q[LOADED] < q[job + LOADS])
        if kind == G_ACT:
            log[n, 5] = row_to_open(p, q, unit)
        elif kind == HEADER:
            log[n, 5] = row_of(p, q, job, q[TILE])
        elif kind == GWRITE and p[FROM_BANK] == 1:
            log[n, 5] = q[job + LOAD_ROW]
        elif q[NEXT_UNIT] >= 0 and p[step + STEP_ROW] != NO_ROW:
            log[n, 5] = step_row(p, q, job, q[TILE], step) + ((q[job + DOTS] if kind == COMPS_READRES else 0) << 32)
    x[LOGGED] = n + 1


@leaf
def ordinary_row_command(t, s, c, tick):
    """Open or close a row of the ordinary buffer for the PIM part, as planned."""
    p = t.pim
    q = s.pim[c]
    x = s.scalar[c]
    bank = s.bank[c]
    kind = q[NEXT_COMMAND] - ORDINARY
    b = q[NEXT_UNIT]
    q[PLANNED] = 0
    x[STALE] = 1
    if q[BUSY_FROM] < 0:
        q[BUSY_FROM] = tick
    g = t.group_of[b]
    row = bank[ROW, b]
    if kind == ACT:
        row = q[under_way(p, q) + LOAD_ROW]
    count_open(p, s.rank[c], b, np.int64(1 if kind == ACT else -1), tick)
    s.count[c, kind] += 1
    constrain(t, s.ready[c], s.near[c], s.ring[c], kind, b, g, tick)
    apply_gaps(p, q, s.ready[c], s.near[c], kind * t.banks + b, np.int64(0), tick)
    set_row(bank, s.entry[c], b, row if kind == ACT else np.int64(-1))
    choose_all(t, bank, s.ready[c], s.rank[c], s.entry[c])
    take_bus(p, x, False, t.command_ticks[kind], tick)
    if s.log.shape[1] > 0:
        write_log(t, x, s.log[c], kind, tick, g, b, row)


@leaf
def after_work(t, s, c, report):
    """Tidy up after PIM commands of which `work` reported something: a job done, or banks that must wait."""
    if report & MADE_WAIT:
        choose_all(t, s.bank[c], s.ready[c], s.rank[c], s.entry[c])
    if report & JOB_DONE:
        task, end = end_job(t.pim, s.pim[c])
        k = s.done_count[c]
        s.done_task[c, k] = task
        s.done_tick[c, k] = end
        s.done_count[c] = k + 1


@inlined
def run_pim(t, s, c, tick, limit):
    """Issue the planned PIM command at `tick`, and before `limit` those after it that nothing else could precede.

    Returns the last tick and whether a job was completed.
    """
    p = t.pim
    q = s.pim[c]
    if q[NEXT_COMMAND] >= ORDINARY:
        ordinary_row_command(t, s, c, tick)
        return tick, False
    if s.log.shape[1] > 0:
        log_pim(t, p, q, s.scalar[c], s.log[c], tick)
        limit = tick
    refreshed = s.scalar[c, WAITING_REFRESH] > 0
    if refreshed:
        limit = tick
    last, report = work(p, q, s.scalar[c], s.bank[c], s.ready[c], s.near[c], s.rank[c], s.count[c], limit)
    if refreshed:
        for r in range(t.ranks):
            if s.rank[c, WAITS, r] > 0:
                plan_refresh(t, s.bank[c], s.ready[c], s.rank[c], r)
    if report != 0:
        after_work(t, s, c, report)
    return last, report & JOB_DONE != 0


@inlined
def next_pim(t, s, c, now):
    """Earliest tick of the next PIM command, NEVER if there is none."""
    q = s.pim[c]
    if q[PLANNED] == 0:
        plan(t.pim, q, s.scalar[c], s.bank[c], s.ready[c], s.near[c], s.rank[c], now)
    return q[NEXT_TICK]


@inlined
def clear_of_readouts(p, q, d, first):
    """Earliest tick from `first` on at which a read (d = 0) or write burst meets no read-out on the data bus."""
    for i in range(READOUT, READOUT + READOUTS):
        at = q[i]
        if d == 0:
            if first > at - p[READOUT_APART] and first < at + p[READOUT_APART]:
                first = at + p[READOUT_APART]
        elif first > at - p[WRITE_TO_READOUT] and first < at + p[READOUT_TO_WRITE]:
            first = at + p[READOUT_TO_WRITE]
    return first + (-first & (p[FRONT_TICKS] - 1))


@inlined
def pim_rows_open(p, q, r):
    """Whether a bank of rank `r` has a row open in its PIM buffer."""
    if p[TWO_BUFFERS] == 1:
        for b in range(r * p[RANK_BANKS], (r + 1) * p[RANK_BANKS]):
            if q[p[ROWS_AT] + b] >= 0:
                return True
    return False


@leaf
def find_best_beside(t, p, q, x, bank, near, rank, entry, now):
    """As `find_best`, while PIM works in the other row buffers: it comes first, and ordinary commands fill its slack.

    Left out are requests to the row that PIM has open or is about to open in their bank, the bank that a load reads,
    and commands for which the slack before the next refresh is too short.
    """
    if x[QUEUED_R] > 0 and x[OVERDUE] < 0 and now >= x[URGENT_FROM]:
        find_overdue(t, x, bank, entry, now)
    d = x[MODE]
    own = np.int64(-1)
    if x[OVERDUE] >= 0:
        d = np.int64(0)
        own = t.rank_of[t.group_of[entry[ENTRY_BANK, x[OVERDUE]]]]
    x[SIDE] = d
    x[STALE] = 0
    x[BEST_TICK] = NEVER
    x[BEST] = 1 << CLASS_SHIFT
    reserved = np.int64(-1)
    loads_from = np.int64(-1)
    limited = False
    # In blocked mode PIM waits for what is queued, so that nothing of it is kept for PIM.
    if q[JOBS] > 0 and q[ADMITTED] > 0 and p[PIM_MODE] != BLOCKED:
        job = under_way(p, q)
        limited = p[DEADLINE] == 1
        if q[LOADED] == q[job + LOADS]:
            reserved = row_of(p, q, job, q[TILE])
        elif p[FROM_BANK] == 1:
            loads_from = q[job + LOAD_BANK]
    slack = q[SLACK]
    rows = p[ROWS_AT]
    for b in range(t.banks):
        if bank[FROM_R + d, b] >= FAR or b == loads_from or (limited and slack < p[SLACK_ANY]):
            continue
        order = bank[ORDER_R + d, b]
        kind = order >> CLASS_SHIFT
        if limited and ((kind == 1 and slack <= p[SLACK_ACT]) or (kind == 3 and slack <= p[SLACK_PRE])):
            continue
        e = bank[PICK_R + d, b]
        if e >= 0:
            row = entry[ENTRY_ROW, e]
            if row == q[rows + b] or row == reserved:
                continue
        first = max(bank[FROM_R + d, b], near[bank[NEAR_R + d, b]])
        if kind == 2:
            if own >= 0 and t.rank_of[t.group_of[b]] != own:
                continue
            first = max(first, max(now, x[BUS_COLUMN]))
            first = clear_of_readouts(p, q, bank[WANT_R + d, b] - RD, first)
        else:
            first = max(first, max(now, x[BUS_ROW]))
        if first < x[BEST_TICK] or (first == x[BEST_TICK] and order < x[BEST]):
            x[BEST_TICK] = first
            x[BEST] = order
    for r in range(t.ranks):
        if rank[WAITS, r] > 0 and not pim_rows_open(p, q, r):
            first = max(max(now, x[BUS_ROW]), max(rank[NEXT_FROM, r], near[rank[NEXT_NEAR, r]]))
            if first < x[BEST_TICK] or (first == x[BEST_TICK] and r < x[BEST]):
                x[BEST_TICK] = first
                x[BEST] = r
    look_again(x)
