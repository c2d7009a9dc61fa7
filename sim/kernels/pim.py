"""The PIM part of a channel's controller: turns the jobs of a channel into commands, one at a time, in order.

It shares banks, buses and rules with the ordinary part (`dram_issue`): every command of either moves the earliest ticks
of the other. What a job does is a template of steps; where its rows are not open, they are opened first. In blocked
mode a channel serves PIM or requests, with two row buffers both at once, PIM first. `p` is the table of the memory and
`q` the state of the channel.
"""

import numpy as np

from sim.kernels.dram_issue import account
from sim.kernels.dram_tables import (
    ACT,
    BUS_COLUMN,
    BUS_ROW,
    BUSY,
    DUE,
    LAST_END,
    LAST_READ_END,
    N_COMMANDS,
    NEVER,
    OPEN,
    PRE,
    QUEUED_R,
    QUEUED_W,
    STALE,
    WAITING_REFRESH,
    WAITS,
)
from sim.kernels.dram_tables import ROW as OPEN_ROW
from sim.kernels.jit import inlined, leaf
from sim.kernels.pim_tables import (
    ADMITTED,
    AHEAD,
    BANKS,
    BLOCKED,
    BURST_TICKS,
    BUSY_FROM,
    BUSY_TICKS,
    CLOSE_UNUSED,
    COMMAND_TICKS,
    COMP,
    COMPS_READRES,
    COUNTED,
    COUNTS,
    DEADLINE,
    DONE,
    DOTS,
    DOTS_GAP,
    DOTS_WIDTH,
    EARLIEST_AT,
    END,
    FIXED_ROW,
    FOR_ACTIVATION,
    FOR_DOT,
    FOR_LOAD,
    FOR_LOAD_CLOSED,
    FOR_LOAD_CONFLICT,
    FOR_PRECHARGE,
    FOR_READOUT,
    FOR_TILE,
    FREED,
    FROM_BANK,
    FRONT_TICKS,
    FROZEN,
    G_ACT,
    GROUP,
    GROUP_BANKS,
    GROUPS,
    GWRITE,
    HEADED,
    HEADER,
    HEADERS,
    IN_DONE,
    JOB,
    JOB_FIELDS,
    JOB_TASK,
    JOB_VISIBLE,
    JOBS,
    JOBS_AT,
    KERNEL,
    LAST_READOUT,
    LEAST_DOTS,
    LOAD_BANK,
    LOAD_ROW,
    LOAD_TICKS,
    LOADED,
    LOADS,
    LONGEST,
    MODE,
    MOVES_IN,
    MOVES_OUT,
    NEXT_COMMAND,
    NEXT_TICK,
    NEXT_UNIT,
    NO_ROW,
    NOT_BEFORE,
    ON_NEAR,
    ON_PIM,
    OPEN_ROWS,
    OPENED,
    ORDINARY,
    OUT_DONE,
    PIM_PRE,
    PLANNED,
    PWRITE,
    RANK_BANKS,
    RANKS,
    READ_TICKS,
    READOUT,
    READOUT_AT,
    READOUTS,
    READRES,
    RING,
    RING_FIELDS,
    ROW,
    ROWS_AT,
    RUN_DOTS,
    RUN_END,
    RUN_FIELDS,
    RUN_FIRST,
    RUN_GAP,
    RUN_POINTERS,
    RUN_STEP,
    RUN_WHERE,
    RUNS,
    SIDE,
    SIDES,
    SLACK,
    SPREAD,
    STEP,
    STEP_COUNT,
    STEP_FIELDS,
    STEP_KIND,
    STEP_NOW,
    STEP_OFFSET,
    STEP_ROW,
    STEP_SIDE,
    STEPS,
    TEMPLATES,
    TILE,
    TILES,
    TWO_BUFFERS,
    TWO_BUSES,
    UNIT_BASE,
    UNIT_END,
    UNIT_FIELDS,
    UNIT_FIRST,
    UNIT_STEP,
    UNITS,
    WRITE_TICKS,
)

# What `work` reports of its last command: it completed a job, its log entry is to be written, it made ordinary
# commands wait in single banks.
JOB_DONE, MADE_WAIT = 1, 2


@inlined
def push_pim(t, s, c, jobs, k, task, tick):
    """Append job `k` of the table `jobs` to class `c`, seen from `tick` on. Returns False if the ring is full.

    Ticks must not decrease from call to call.
    """
    q = s.pim[c]
    if q[JOBS] >= q[RING]:
        return False
    at = t.pim[JOBS_AT] + (q[JOB] + q[JOBS]) % q[RING] * RING_FIELDS
    for f in range(JOB_FIELDS):
        q[at + f] = jobs[k, f]
    q[at + JOB_TASK] = task
    q[at + JOB_VISIBLE] = tick
    q[JOBS] += 1
    q[PLANNED] = 0
    return True


@inlined
def under_way(p, q):
    """Where the job under way stands in the state."""
    return p[JOBS_AT] + q[JOB] * RING_FIELDS


@inlined
def admits_requests(p, q, tick):
    """Whether a request may enter the queues at `tick`: in blocked mode not while a PIM job waits."""
    return p[MODE] != BLOCKED or q[JOBS] == 0 or tick < q[under_way(p, q) + JOB_VISIBLE]


@inlined
def apply_gaps(p, q, ready, near, place, dots, tick):
    """Move the earliest ticks that the rules allow after the command whose gaps stand at `place`.

    Returns MADE_WAIT if ordinary commands of single banks are among them, so that these must be chosen anew.
    """
    earliest = p[EARLIEST_AT]
    result = 0
    for r in range(p[p[RUN_POINTERS] + place], p[p[RUN_POINTERS] + place + 1]):
        at = p[RUNS] + r * RUN_FIELDS
        gap = p[at + RUN_GAP]
        if p[at + RUN_DOTS] >= 0:
            gap = p[p[DOTS_GAP] + p[at + RUN_DOTS] * p[DOTS_WIDTH] + dots]
        limit = tick + gap
        where = p[at + RUN_WHERE]
        end = p[at + RUN_END]
        step = p[at + RUN_STEP]
        i = p[at + RUN_FIRST]
        if where == ON_PIM:
            while i < end:
                q[earliest + i] = max(q[earliest + i], limit)
                i += step
        elif where == ON_NEAR:
            while i < end:
                near[i] = max(near[i], limit)
                i += step
        else:
            result = MADE_WAIT
            while i < end:
                b = i // N_COMMANDS
                ready[b, i % N_COMMANDS] = max(ready[b, i % N_COMMANDS], limit)
                i += step
    return result


@inlined
def consider(q, tick, command, unit):
    """Note a command that could come next if it is the earliest so far."""
    if tick < q[NEXT_TICK]:
        q[NEXT_TICK] = tick
        q[NEXT_COMMAND] = command
        q[NEXT_UNIT] = unit


@inlined
def row_in(p, q, bank, b):
    """Row that PIM has open in bank `b`, which is in the ordinary buffer where there is no other."""
    return q[p[ROWS_AT] + b] if p[TWO_BUFFERS] == 1 else bank[OPEN_ROW, b]


@inlined
def row_tick(p, q, x, kind, unit, floor):
    """Earliest tick of the PIM row command `kind` in its unit."""
    return max(max(floor, x[BUS_ROW]), q[p[EARLIEST_AT] + p[UNIT_BASE + kind] + unit])


@inlined
def column_tick(p, q, x, kind, unit, floor):
    """Earliest tick of the PIM column command `kind` in its unit: it starts with a clock."""
    first = max(max(floor, x[BUS_COLUMN]), q[p[EARLIEST_AT] + p[UNIT_BASE + kind] + unit])
    return first + (-first & (p[FRONT_TICKS] - 1))


@inlined
def bank_tick(p, x, ready, near, kind, b, floor):
    """Earliest tick of the ordinary row command `kind` in bank `b`."""
    first = max(max(floor, x[BUS_ROW]), ready[b, kind])
    return max(first, near[b // p[GROUP_BANKS] * N_COMMANDS + kind])


@leaf
def close_rows(p, q, x, bank, first, end, step, row, floor):
    """Note the earliest PIM precharge of the banks first, first + step ... that have another row than `row` open.

    Returns whether there is any.
    """
    units = p[UNITS] + p[UNIT_BASE + PIM_PRE] * UNIT_FIELDS
    soonest = max(floor, x[BUS_ROW])
    found = False
    for u in range(p[UNIT_BASE + PIM_PRE + 1] - p[UNIT_BASE + PIM_PRE]):
        at = units + u * UNIT_FIELDS
        b = p[at + UNIT_FIRST]
        if b < first or b >= end or (step > 1 and (b - first) % step != 0):
            continue
        while b < p[at + UNIT_END]:
            now_open = row_in(p, q, bank, b)
            if now_open >= 0 and now_open != row:
                found = True
                tick = row_tick(p, q, x, PIM_PRE, u, floor)
                consider(q, tick, PIM_PRE, u)
                if tick == soonest:
                    return True
                break
            b += p[at + UNIT_STEP]
    return found


@leaf
def free_row(p, q, x, bank, ready, near, row, floor):
    """Note the earliest precharge of an ordinary buffer that has `row` open, which PIM wants; True if there is any."""
    found = False
    for b in range(p[BANKS]):
        if bank[OPEN_ROW, b] == row:
            found = True
            consider(q, bank_tick(p, x, ready, near, PRE, b, floor), ORDINARY + PRE, b)
    return found


@leaf
def open_rows(p, q, x, bank, first, step, row, floor):
    """Note the earliest activation of a unit of the banks first, first + step ... without `row` open; True if any."""
    units = p[UNITS] + p[UNIT_BASE + G_ACT] * UNIT_FIELDS
    soonest = max(floor, x[BUS_ROW])
    found = False
    for u in range(p[UNIT_BASE + G_ACT + 1] - p[UNIT_BASE + G_ACT]):
        b = p[units + u * UNIT_FIELDS + UNIT_FIRST]
        if b >= first and row_in(p, q, bank, b) != row and (step == 1 or (b - first) % step == 0):
            found = True
            tick = row_tick(p, q, x, G_ACT, u, floor)
            consider(q, tick, G_ACT, u)
            if tick == soonest:
                return True
    return found


@inlined
def in_time(p, q, x, ticks, floor):
    """Whether `ticks` from `floor` on end before the next refresh; what is left is for ordinary commands."""
    slack = x[DUE] - floor - ticks
    if slack <= 0 and ticks < p[LONGEST]:
        q[FROZEN] = 1
        return False
    q[ADMITTED] = 1
    q[SLACK] = max(np.int64(0), slack)
    x[STALE] = 1  # its rows are reserved from now on
    return True


@leaf
def fits(p, q, x, bank, first, step, row, groups, dots, floor):
    """Whether a tile of the banks first, first + step ... that began at `floor` would end before the next refresh."""
    if p[DEADLINE] == 0:
        x[STALE] = max(x[STALE], 1 - q[ADMITTED])
        q[ADMITTED] = 1
        return True
    units = p[UNITS] + p[UNIT_BASE + G_ACT] * UNIT_FIELDS
    precharges = np.int64(0)
    most = np.int64(0)
    for r in range(p[RANKS]):
        activations = np.int64(0)
        for u in range(p[UNIT_BASE + G_ACT + 1] - p[UNIT_BASE + G_ACT]):
            at = units + u * UNIT_FIELDS
            b = p[at + UNIT_FIRST]
            if b // p[RANK_BANKS] == r and b >= first and (step == 1 or (b - first) % step == 0):
                closed = False
                while b < p[at + UNIT_END]:
                    now_open = row_in(p, q, bank, b)
                    if now_open != row:
                        closed = True
                        if now_open >= 0:
                            precharges += 1
                    b += p[at + UNIT_STEP]
                if closed:
                    activations += 1
        most = max(most, activations)
    ticks = p[FOR_TILE] + precharges * p[FOR_PRECHARGE] + most * p[FOR_ACTIVATION]
    ticks += max(groups * dots, p[LEAST_DOTS]) * p[FOR_DOT] + (groups - 1) * p[FOR_READOUT]
    return in_time(p, q, x, ticks, floor)


@leaf
def plan_load(p, q, x, bank, ready, near, job, floor):
    """Plan a load from a bank: its row must be open in the ordinary buffer, and not in the other one."""
    b = q[job + LOAD_BANK]
    row = q[job + LOAD_ROW]
    now_open = bank[OPEN_ROW, b]
    if p[DEADLINE] == 1 and q[ADMITTED] == 0:
        ticks = p[FOR_LOAD]
        if now_open != row:
            ticks += p[FOR_LOAD_CLOSED]
            if now_open >= 0:
                ticks += p[FOR_LOAD_CONFLICT]
        if not in_time(p, q, x, ticks, row_tick(p, q, x, GWRITE, b, floor)):
            return
    if p[TWO_BUFFERS] == 1 and q[p[ROWS_AT] + b] == row:
        close_rows(p, q, x, bank, b, b + 1, 1, np.int64(-1), floor)
    elif now_open == row:
        consider(q, column_tick(p, q, x, GWRITE, b, floor), GWRITE, b)
    elif now_open >= 0:
        consider(q, bank_tick(p, x, ready, near, PRE, b, floor), ORDINARY + PRE, b)
    else:
        consider(q, bank_tick(p, x, ready, near, ACT, b, floor), ORDINARY + ACT, b)


@inlined
def side_of(p, q, job, i):
    """Bank set of tile `i`."""
    return q[job + SIDE] if q[job + SIDE] >= 0 else i % p[SIDES]


@inlined
def row_of(p, q, job, i):
    """Row of tile `i`."""
    return q[job + ROW] + (i if q[job + SIDE] >= 0 else i // p[SIDES]) * q[job + STEP]


@inlined
def step_row(p, q, job, i, at):
    """Row that the step at `at` needs open in tile `i`."""
    return p[at + STEP_OFFSET] + (np.int64(0) if p[at + STEP_ROW] == FIXED_ROW else row_of(p, q, job, i))


@inlined
def step_at(p, q, job, loading):
    """Where the step under way stands in the table."""
    template = p[TEMPLATES] + 3 * q[job + KERNEL]
    return p[STEPS] + (p[template if loading else template + 1] + q[STEP_NOW]) * STEP_FIELDS


@inlined
def side_now(p, q, job, at):
    """Bank set of the next command of the step at `at`."""
    if p[at + STEP_SIDE] >= 0:
        return p[at + STEP_SIDE]
    if p[SPREAD] == 1 and p[at + STEP_COUNT] < 0:
        return q[DONE] % p[SIDES]
    return side_of(p, q, job, q[TILE])


@inlined
def open_ahead(p, q, x, bank, side, row, floor):
    """Note the next command towards `row` open in a bank set that is needed next; sets are units of row commands."""
    now_open = row_in(p, q, bank, side)
    if now_open >= 0 and now_open != row:
        consider(q, row_tick(p, q, x, PIM_PRE, side, floor), PIM_PRE, side)
    elif now_open < 0:
        consider(q, row_tick(p, q, x, G_ACT, side, floor), G_ACT, side)


@inlined
def plan_step(p, q, x, bank, ready, near, job, loading, floor):
    """Plan the step under way: open what it needs, then its column command."""
    at = step_at(p, q, job, loading)
    i = q[TILE]
    side = side_now(p, q, job, at)
    row = step_row(p, q, job, i, at)
    if q[OPENED] == 0 and p[at + STEP_ROW] != NO_ROW:
        begins = not loading and q[HEADED] == 0
        floor_of_rows = floor
        if begins:
            floor_of_rows = max(floor, q[p[EARLIEST_AT] + p[UNIT_BASE + HEADER]])
            if q[ADMITTED] == 0:
                begin = row_tick(p, q, x, HEADER, 0, floor)
                if not fits(p, q, x, bank, side, p[SIDES], row, q[job + GROUPS], q[job + DOTS], begin):
                    return
        blocked = close_rows(p, q, x, bank, side, p[BANKS], p[SIDES], row, floor_of_rows)
        if p[TWO_BUFFERS] == 1 and q[FREED] == 0:
            # From now on the ordinary buffers do not open the row, as it is reserved.
            if free_row(p, q, x, bank, ready, near, row, floor):
                blocked = True
            else:
                q[FREED] = 1
        if blocked:
            return
        if begins and p[HEADERS] == 1:
            consider(q, row_tick(p, q, x, HEADER, 0, floor), HEADER, 0)
            return
        if open_rows(p, q, x, bank, side, p[SIDES], row, floor):
            return
        q[OPENED] = 1 - p[SPREAD]
    kind = p[at + STEP_KIND]
    consider(q, column_tick(p, q, x, kind, side, floor), kind, side)
    if p[CLOSE_UNUSED] == 1:
        for other in range(p[SIDES]):
            if other != side:
                close_rows(p, q, x, bank, other, p[BANKS], p[SIDES], np.int64(-1), floor)
    if p[AHEAD] == 1 and not loading:
        if p[SPREAD] == 0:
            if q[job + SIDE] < 0 and i + 1 < q[job + TILES]:
                open_ahead(p, q, x, bank, side_of(p, q, job, i + 1), row_of(p, q, job, i + 1), floor)
        else:
            for d in range(q[DONE] + 1, q[DONE] + p[SIDES]):
                later = d >= q[job + DOTS]
                if later and i + 1 == q[job + TILES]:
                    break
                open_ahead(p, q, x, bank, d % p[SIDES], row_of(p, q, job, i + 1 if later else i), floor)


@leaf
def plan(p, q, x, bank, ready, near, rank, now):
    """Find the next PIM command and the earliest tick for it (NEVER: none as things stand)."""
    q[PLANNED] = 1
    q[NEXT_TICK] = NEVER
    if x[WAITING_REFRESH] > 0:
        # The rows of a rank that is about to be refreshed are closed; nothing else is done.
        if p[TWO_BUFFERS] == 1:
            each = p[RANK_BANKS]
            for r in range(p[RANKS]):
                if rank[WAITS, r] > 0:
                    close_rows(p, q, x, bank, r * each, (r + 1) * each, 1, np.int64(-1), now)
        return
    if q[FROZEN] > 0:
        return
    if q[JOBS] == 0:
        if q[OPEN_ROWS] > 0:
            close_rows(p, q, x, bank, 0, p[BANKS], 1, np.int64(-1), now)
        return
    if p[MODE] == BLOCKED and x[QUEUED_R] + x[QUEUED_W] > 0:
        # A job found to end before the next refresh, which a request has delayed since, must be asked about again.
        q[ADMITTED] = 0
        return
    job = under_way(p, q)
    floor = max(max(now, q[job + JOB_VISIBLE]), q[NOT_BEFORE])
    loading = q[LOADED] < q[job + LOADS]
    if loading and p[FROM_BANK] == 1:
        plan_load(p, q, x, bank, ready, near, job, floor)
    elif loading or q[TILE] < q[job + TILES]:
        plan_step(p, q, x, bank, ready, near, job, loading, floor)
    if q[OUT_DONE] < q[job + MOVES_OUT]:
        consider(q, column_tick(p, q, x, READRES, 0, floor), READRES, -1)
    elif q[IN_DONE] < q[job + MOVES_IN]:
        consider(q, column_tick(p, q, x, GWRITE, 0, floor), GWRITE, -1)


@inlined
def count_open(p, rank, b, change, tick):
    """Account for a row of bank `b` opened (change 1) or closed (-1): standby is active while any buffer is open."""
    r = b // p[RANK_BANKS]
    if rank[OPEN, r] == 0 or rank[OPEN, r] + change == 0:
        account(rank, r, tick)
    rank[OPEN, r] += change


@inlined
def set_rows(p, q, bank, rank, unit, row, tick):
    """Open `row` in all banks of a unit that do not have it open, or close (-1) all that are open.

    With one row buffer no request is queued then, so that no list of theirs is concerned.
    """
    at = p[UNITS] + unit * UNIT_FIELDS
    b = p[at + UNIT_FIRST]
    change = np.int64(-1 if row < 0 else 1)
    while b < p[at + UNIT_END]:
        if row_in(p, q, bank, b) != row:
            count_open(p, rank, b, change, tick)
            if p[TWO_BUFFERS] == 1:
                q[p[ROWS_AT] + b] = row
                q[OPEN_ROWS] += change
            else:
                bank[OPEN_ROW, b] = row
        b += p[at + UNIT_STEP]


@inlined
def take_bus(p, x, column, ticks, tick):
    """Occupy the row or the column command bus."""
    if column and p[TWO_BUSES] == 1:
        x[BUS_COLUMN] = tick + ticks
    else:
        x[BUS_ROW] = tick + ticks
        if p[TWO_BUSES] == 0:
            x[BUS_COLUMN] = x[BUS_ROW]


@inlined
def put_on_bus(p, q, x, count, kind, dots, tick):
    """Note when the effect of a column command is there, and what it puts on the data bus."""
    end = tick + p[BURST_TICKS]
    if kind == GWRITE:
        end = tick + p[LOAD_TICKS]
    elif kind == PWRITE:
        end = tick + p[WRITE_TICKS]
    elif kind == READRES or kind == COMPS_READRES:
        at = tick
        if kind == COMPS_READRES:
            at += p[p[READOUT_AT] + dots]
            for i in range(READOUT, READOUT + READOUTS - 1):
                q[i] = q[i + 1]
            q[READOUT + READOUTS - 1] = at
            q[LAST_READOUT] = at
            q[COUNTS + COMP] += dots
        end = at + p[READ_TICKS]
        count[BUSY] += p[BURST_TICKS]
        x[LAST_READ_END] = max(x[LAST_READ_END], end)
    q[END] = max(q[END], end)
    x[LAST_END] = max(x[LAST_END], end)


@inlined
def needs(p, at):
    """The row and set that a step needs, in one number that differs if they do."""
    return (p[at + STEP_SIDE] * 4 + p[at + STEP_ROW]) * 2**32 + p[at + STEP_OFFSET]


@inlined
def advance_job(p, q, kind):
    """A column command of the step under way was issued: move on in the template."""
    job = under_way(p, q)
    loading = q[LOADED] < q[job + LOADS]
    at = step_at(p, q, job, loading)
    wanted = p[at + STEP_COUNT]
    if wanted < 0:
        wanted = np.int64(1) if kind == COMPS_READRES else q[job + DOTS]
    q[DONE] += 1
    if q[DONE] < wanted:
        return
    q[DONE] = 0
    q[STEP_NOW] += 1
    before = needs(p, at)
    template = p[TEMPLATES] + 3 * q[job + KERNEL]
    if at + STEP_FIELDS == p[STEPS] + p[template + 1 if loading else template + 2] * STEP_FIELDS:
        q[STEP_NOW] = 0
        if loading:
            q[LOADED] += 1
            for f in range(HEADED, OPENED + 1):
                q[f] = 0
        else:
            q[GROUP] += 1
            if q[GROUP] == q[job + GROUPS]:
                q[GROUP] = 0
                q[TILE] += 1
                for f in range(HEADED, OPENED + 1):
                    q[f] = 0
    if q[OPENED] > 0 and needs(p, step_at(p, q, job, q[LOADED] < q[job + LOADS])) != before:
        q[OPENED] = 0


@inlined
def job_ended(q, job):
    """Whether the job under way has nothing left to do."""
    return (
        q[LOADED] >= q[job + LOADS]
        and q[TILE] >= q[job + TILES]
        and q[OUT_DONE] >= q[job + MOVES_OUT]
        and q[IN_DONE] >= q[job + MOVES_IN]
    )


@leaf
def issue_pim(p, q, x, bank, ready, near, rank, count, tick):
    """Issue the planned PIM command, which is none of the ordinary buffer's, at `tick`; return JOB_DONE | MADE_WAIT."""
    kind = q[NEXT_COMMAND]
    unit = max(q[NEXT_UNIT], np.int64(0))
    beside = q[NEXT_UNIT] < 0
    q[PLANNED] = 0
    x[STALE] = 1
    if q[JOBS] > 0 and q[BUSY_FROM] < 0:
        q[BUSY_FROM] = tick
    job = under_way(p, q)
    dots = np.int64(0)
    if kind == PIM_PRE or kind == G_ACT:
        row = np.int64(-1) if kind == PIM_PRE else row_to_open(p, q, unit)
        set_rows(p, q, bank, rank, p[UNIT_BASE + kind] + unit, row, tick)
    elif kind == HEADER:
        q[HEADED] = 1
    else:
        if kind == COMPS_READRES:
            dots = q[job + DOTS]
        put_on_bus(p, q, x, count, kind, dots, tick)
    q[COUNTS + kind] += 1
    result = apply_gaps(p, q, ready, near, (N_COMMANDS + kind) * p[BANKS] + unit, dots, tick)
    column = kind == GWRITE or kind >= COMP
    take_bus(p, x, column, p[COMMAND_TICKS + kind], tick)
    if not column:
        return result
    if not beside:
        advance_job(p, q, kind)
    elif kind == READRES:
        q[OUT_DONE] += 1
    else:
        q[IN_DONE] += 1
    return result | (JOB_DONE if job_ended(q, job) else 0)


@inlined
def row_to_open(p, q, unit):
    """Row that an activation of `unit` is for: the step's under way, or where its set is another, the next tile's."""
    job = under_way(p, q)
    loading = q[LOADED] < q[job + LOADS]
    at = step_at(p, q, job, loading)
    i = q[TILE]
    side = p[p[UNITS] + (p[UNIT_BASE + G_ACT] + unit) * UNIT_FIELDS + UNIT_FIRST] % p[SIDES]
    if p[SPREAD] == 1:
        if q[DONE] + (side - q[DONE]) % p[SIDES] >= q[job + DOTS]:
            return row_of(p, q, job, i + 1)
    elif side != side_now(p, q, job, at):
        return row_of(p, q, job, i + 1)
    return step_row(p, q, job, i, at)


@leaf
def work(p, q, x, bank, ready, near, rank, count, limit):
    """Issue planned PIM commands before `limit` while nothing else can come between; return (last tick, report).

    That is for as long as no request is queued, up to the end of a job and not further than one command of the ordinary
    row buffer, which the caller issues. `near`, `ready`: earliest ticks of ordinary commands.
    """
    tick = q[NEXT_TICK]
    result = issue_pim(p, q, x, bank, ready, near, rank, count, tick)
    while result == 0 and x[QUEUED_R] + x[QUEUED_W] == 0:
        plan(p, q, x, bank, ready, near, rank, tick)
        if q[NEXT_TICK] >= limit or q[NEXT_COMMAND] >= ORDINARY:
            break
        tick = q[NEXT_TICK]
        result = issue_pim(p, q, x, bank, ready, near, rank, count, tick)
    return tick, result


@inlined
def end_job(p, q):
    """Take the job that is done off the ring; return its task and the tick of its last result."""
    job = under_way(p, q)
    end = q[END]
    q[BUSY_TICKS] += max(np.int64(0), end - max(q[BUSY_FROM], q[COUNTED]))
    q[COUNTED] = max(q[COUNTED], end)
    q[JOB] = q[JOB] + 1 if q[JOB] + 1 < q[RING] else 0
    q[JOBS] -= 1
    for f in range(LOADED, OPENED + 1):
        q[f] = 0
    q[END] = 0
    q[BUSY_FROM] = -1
    q[PLANNED] = 0
    return q[job + JOB_TASK], end
