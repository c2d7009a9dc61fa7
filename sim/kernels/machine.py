"""The executor: runs a Program on serial units and memory channels, always advancing whoever is next in time.

A unit takes its lowest-numbered ready task; tasks that only join others end at once, before any unit picks. A memory
task gives its segments to every channel class that carries a part of it and ends when the last part has. Channels are
stepped command by command by `dram.step`; none that has nothing left at its front end is taken past the moment at
which another unit could still hand it work, because of an event or because another channel may have completed a task.
"""

import numpy as np

from sim.kernels.dram import AHEAD, push, soonest_done, step
from sim.kernels.dram_tables import GRACE
from sim.kernels.heap import drop_event, pop_number, push_event, push_number
from sim.kernels.jit import kernel
from sim.kernels.pim import push_pim
from sim.kernels.pim_tables import MODE as PIM_MODE
from sim.kernels.pim_tables import NO_PIM
from sim.kernels.program import NEVER


@kernel
def to_ps(tick, num, den):
    """Picoseconds of a channel tick, rounded up; no product exceeds num * den, however late it is."""
    return tick // den * num - (-(tick % den) * num) // den


@kernel
def to_tick(time, num, den):
    """First channel tick that is not before `time` picoseconds."""
    return time // num * den - (-(time % num) * den) // num


@kernel
def next_tick(time, num, den):
    """First channel tick after `time` picoseconds."""
    return time // num * den + time % num * den // num + 1


@kernel
def wake(prog, i, left, ready, first, count):
    """Task `i` has finished: successors that wait for nothing else become ready."""
    for k in range(prog.ptr[i], prog.ptr[i + 1]):
        j = prog.succ[k]
        left[j] -= 1
        if left[j] == 0:
            u = prog.unit[j]
            push_number(ready, first[u], count[u], j)
            count[u] += 1


@kernel
def run(prog, result, tables, state, num, den):
    """Execute `prog`; fill `result` and the counters of `state`; return how many tasks finished.

    num, den: period of a channel tick in picoseconds as a fraction. Fewer finished tasks than rows means that the waits
    form a cycle; -1 that a channel's ring of segments was too small.
    """
    tasks = prog.unit.shape[0]
    units = prog.slots.shape[0]
    classes = prog.seg_ptr.shape[0]

    left = prog.waits.copy()
    count = np.zeros(units, np.int64)
    first = np.zeros(units + 1, np.int64)
    for i in range(tasks):
        first[prog.unit[i] + 1] += 1
    for u in range(units):
        first[u + 1] += first[u]
    ready = np.zeros(max(tasks, 1), np.int32)
    running = np.zeros(units, np.int64)
    moving = np.zeros(units, np.int64)
    joins = units - 1
    last_release = np.full(units, np.int64(-1), np.int64)

    time = np.zeros(2 * tasks + 2, np.int64)
    code = np.zeros(2 * tasks + 2, np.int64)
    events = 0

    parts = np.zeros(tasks, np.int32)
    data_end = np.zeros(tasks, np.int64)
    due = np.full(classes, NEVER, np.int64)
    soonest = np.full(classes, NEVER, np.int64)
    setup = NEVER
    for i in range(tasks):
        if prog.memory[i] >= 0:
            setup = min(setup, prog.ticks[i])
        if left[i] == 0:
            u = prog.unit[i]
            push_number(ready, first[u], count[u], np.int32(i))
            count[u] += 1

    # After a completion nothing is handed out before the next transfer's delay has passed; only PIM jobs overtake.
    grace = NEVER >> 1
    if tables.pim[PIM_MODE] != NO_PIM:
        grace = setup // num * den + setup % num * den // num if setup < NEVER else np.int64(0)
    for c in range(classes):
        state.scalar[c, GRACE] = grace
    # A constant in the call below would make numba compile the channel a second time.
    forever = np.int64(NEVER)
    now = np.int64(0)
    done = np.int64(0)
    while True:
        while count[joins] > 0:
            i = pop_number(ready, first[joins], count[joins])
            count[joins] -= 1
            result.start[i] = now
            if prog.ticks[i] > 0:
                push_event(time, code, events, now + prog.ticks[i], np.int64(2 * i))
                events += 1
                continue
            result.release[i] = now
            result.finish[i] = now
            done += 1
            wake(prog, i, left, ready, first, count)
        for u in range(joins):
            while running[u] < prog.slots[u] and count[u] > 0:
                i = ready[first[u]]
                if running[u] >= 2 and prog.window[u] > 0 and moving[u] + prog.size[i] > prog.window[u]:
                    break
                pop_number(ready, first[u], count[u])
                count[u] -= 1
                running[u] += 1
                moving[u] += prog.size[i]
                result.start[i] = now
                j = prog.memory[i]
                if j < 0:
                    length = prog.ticks[i]
                    if last_release[u] < now:
                        length += prog.cold[i]
                    push_event(time, code, events, now + length, np.int64(2 * i))
                    events += 1
                    continue
                # Seen in a tick after its start at the earliest: the channels' order within a tick decides nothing.
                tick = max(to_tick(now + prog.ticks[i], num, den), next_tick(now, num, den))
                pieces = 0
                for c in range(classes):
                    for k in range(prog.seg_ptr[c, j], prog.seg_ptr[c, j + 1]):
                        if not push(tables, state, c, prog.seg_lo[k], prog.seg_n[k], prog.write[j], np.int64(i), tick):
                            return np.int64(-1)
                        pieces += 1
                    if prog.seg_ptr[c, j] < prog.seg_ptr[c, j + 1]:
                        due[c] = min(due[c], to_ps(tick, num, den))
                        soonest[c] = min(soonest[c], to_ps(tick, num, den))
                for c in range(prog.pim_ptr.shape[0]):
                    for k in range(prog.pim_ptr[c, j], prog.pim_ptr[c, j + 1]):
                        if not push_pim(tables, state, c, prog.pim_job, k, np.int64(i), tick):
                            return np.int64(-1)
                        pieces += 1
                    if prog.pim_ptr[c, j] < prog.pim_ptr[c, j + 1]:
                        due[c] = min(due[c], to_ps(tick, num, den))
                        soonest[c] = min(soonest[c], to_ps(tick, num, den))
                parts[i] = pieces
                if pieces == 0:
                    push_event(time, code, events, now + prog.ticks[i], np.int64(2 * i))
                    events += 1

        while True:
            event = NEVER
            if events > 0:
                event = time[0]
            who = np.int64(0)
            for k in range(1, classes):
                if due[k] < due[who]:
                    who = np.int64(k)
            other = NEVER
            for k in range(classes):
                if k != who:
                    other = min(other, soonest[k])
            # What a channel completes at the moment of an event belongs to that moment, so it is found out before.
            if due[who] > event or due[who] >= NEVER:
                break
            limit = min(event, other)
            until = forever
            if limit < NEVER:
                until = max(to_tick(limit + setup, num, den), next_tick(limit, num, den))
            nxt = step(tables, state, who, until, np.int64(0), np.int64(AHEAD))
            due[who] = NEVER
            soonest[who] = NEVER
            if nxt < NEVER:
                due[who] = to_ps(nxt, num, den)
                done_from = soonest_done(tables, state, who, nxt)
                if done_from < NEVER:
                    soonest[who] = to_ps(done_from, num, den)
            for k in range(state.done_count[who]):
                i = state.done_task[who, k]
                data_end[i] = max(data_end[i], to_ps(state.done_tick[who, k], num, den))
                parts[i] -= 1
                if parts[i] == 0:
                    push_event(time, code, events, data_end[i], np.int64(2 * i))
                    events += 1
            state.done_count[who] = 0

        if events == 0:
            return done
        now = time[0]
        while events > 0 and time[0] == now:
            what = code[0]
            drop_event(time, code, events)
            events -= 1
            i = what >> 1
            u = prog.unit[i]
            if what & 1 == 0:
                result.release[i] = now
                running[u] -= 1
                moving[u] -= prog.size[i]
                last_release[u] = now
                if prog.tail[i] > 0:
                    push_event(time, code, events, now + prog.tail[i], what + 1)
                    events += 1
                    continue
            result.finish[i] = now
            done += 1
            wake(prog, i, left, ready, first, count)
