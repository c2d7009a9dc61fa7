"""Replays a list of requests on the channels of one memory: turns addresses into accept and completion ticks.

Requests are offered in order, in any one clock at most as many as there are channels, and the first one refused holds
up all that follow. Channels are independent between offers, so each is only taken as far as the next offer to it needs.
"""

import numpy as np

from sim.kernels.dram import COMPLETION, NO_SEGMENTS, offer, push, step
from sim.kernels.dram_tables import BEST_TICK, CLOCK, DUE, NEVER, SEGMENTS, STALE
from sim.kernels.jit import inlined, leaf


@inlined
def behind(s, c, tick):
    """Whether channel `c` may have something to do below `tick`."""
    x = s.scalar[c]
    return x[STALE] == 1 or min(x[BEST_TICK], x[DUE]) < tick


@leaf
def replay(t, s, channel, burst, is_write, earliest, in_flight, under, accepted):
    """Serve all requests; `accepted` and `s.request_done` get their ticks.

    channel, burst (channel-local), is_write, earliest (tick): one entry a request. in_flight: most requests under way
    at once, the next being offered in the clock after a completion, with `under` as scratch of that size; 0: no limit.
    """
    channels = s.scalar.shape[0]
    done = s.request_done
    front = t.front_ticks
    count = np.int64(0)
    tick = np.int64(0)
    offered = np.int64(0)
    n = channel.shape[0]
    i = np.int64(0)
    last = np.int64(0)
    fresh = True
    while True:
        wait = np.int64(-1)
        if i < n:
            c = channel[i]
            if fresh:
                begin = max(tick, earliest[i])
                if offered == channels:
                    begin = max(begin, tick + front)
                if in_flight > 0 and count == in_flight:
                    # The first to complete; channels whose next command comes before are advanced, never past it.
                    free = np.int64(NEVER)
                    place = np.int64(0)
                    low = np.int64(-1)
                    while free > low:
                        free = np.int64(NEVER)
                        low = np.int64(NEVER)
                        for k in range(count):
                            if done[under[k]] < free:
                                free = done[under[k]]
                                place = np.int64(k)
                            elif done[under[k]] == NEVER:
                                c = channel[under[k]]
                                now = s.scalar[c, CLOCK]
                                low = min(low, step(t, s, c, now, np.int64(0), np.int64(COMPLETION)))
                        for k in range(count if free > low else 0):
                            if done[under[k]] == NEVER:
                                step(t, s, channel[under[k]], low + 1, np.int64(0), np.int64(COMPLETION))
                    c = channel[i]
                    begin = max(begin, free + 1)
                    count -= 1
                    under[place] = under[count]
                if begin > tick:
                    tick = -(-begin // front) * front
                    offered = np.int64(0)
                fresh = False
            until = tick
            if not behind(s, c, tick):
                if offer(t, s, c, burst[i], is_write[i], i, tick):
                    accepted[i] = tick
                    offered += 1
                    if in_flight > 0:
                        under[count] = i
                        count += 1
                    i += 1
                    fresh = True
                    continue
                until = np.int64(NEVER)
                wait = is_write[i]
        else:
            if last == channels:
                break
            c = last
            until = np.int64(NEVER)
            last += 1
        step(t, s, c, until, np.int64(1 if until < NEVER else 0), wait)
        if wait >= 0:
            tick = -(-s.scalar[c, CLOCK] // front) * front
            offered = np.int64(0)


@leaf
def replay_runs(t, s, lo, n, is_write):
    """Serve runs of consecutive bursts on the only channel, in order and as fast as it takes them.

    The same as `replay` of every single burst without a limit in flight, but without a call for each, and long runs in
    time proportional to them where the steady-state shortcut applies; ticks of single requests are not kept. False if
    the ring of segments was too short: a request waited while all of it was gone through.
    """
    x = s.scalar[0]
    i = np.int64(0)
    while i < lo.shape[0]:
        while i < lo.shape[0] and push(t, s, np.int64(0), lo[i], n[i], is_write[i], i, np.int64(0)):
            i += 1
        if x[SEGMENTS] == 0:
            return False
        if i < lo.shape[0]:
            step(t, s, np.int64(0), np.int64(NEVER), np.int64(0), np.int64(NO_SEGMENTS))
            s.done_count[0] = 0
    while step(t, s, np.int64(0), np.int64(NEVER), np.int64(0), np.int64(COMPLETION)) < NEVER:
        s.done_count[0] = 0
    s.done_count[0] = 0
    return True
