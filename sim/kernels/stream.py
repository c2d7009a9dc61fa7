"""Evaluates a graph of pipelined nodes joined by bounded channels: every token's time, without a global clock.

A node has its own local time. A firing takes its inputs in order (time moves to each token's stamp, and the token's
room is free `response_latency` later), then writes its outputs in order (time moves to the response that gives room;
the stamp is the time before the first of these waits plus the node's latency, and at least the time of the write plus
`send_latency`), then spends its initiation interval. Nodes are sequential and read blockingly, so times do not depend
on the order in which nodes are evaluated: here each one fires as often as it can when its turn comes.

The ring of a channel holds, slot by slot, a token's stamp until it is taken and from then on its response: token k
needs the response of token k - capacity, which is not overwritten before. A second ring keeps when tokens were
written, for the most tokens in flight. A ring smaller than its channel's capacity works in the same way, but where
it would hold a node up, `run` asks for a larger one instead: rings grow with the tokens in flight, not with all that
ever pass.
"""

import numpy as np

from sim.kernels.jit import inlined, leaf
from sim.kernels.stream_leap import leap, save
from sim.kernels.stream_tables import (
    AT,
    BASE,
    CHANNEL,
    DEQ,
    EACH,
    EACH_END,
    EACH_IN,
    EACH_OUT,
    ELASTIC,
    ENQ,
    FIRED,
    FIRST,
    FLAGS,
    GROW,
    HAS_FIRST,
    HAS_LAST,
    II,
    LAST,
    LATENCY,
    LENGTH,
    LIMIT,
    MASK,
    MEMBER,
    MEMORY,
    NEED,
    NOW,
    ONE_BY_ONE,
    OUTPUTS,
    PAUSED,
    PEAK,
    PHASE,
    PORTS,
    PORTS_END,
    QUIET,
    READY,
    RESPONSE,
    ROW,
    ROW_CYCLES,
    ROW_FIRST,
    ROWS,
    SEND,
    TAKE_TOGETHER,
    TIME,
    TOTAL,
    TRACE_PORTS,
    TURN,
    TURN_AT,
    TURN_FIRST,
    TURNS,
    WHEN,
    WRITE_TOGETHER,
)


@inlined
def take(ch, ring, sent, t):
    """Take the next token of a channel at time `t` or later; returns the time then."""
    k = ch[DEQ]
    base = ch[BASE]
    mask = ch[MASK]
    t = max(t, ring[base + (k & mask)])
    answer = t + ch[RESPONSE]
    ring[base + (k & mask)] = answer
    # Tokens written before the answer are in flight together with this one.
    last = k + ch[PEAK]
    if last < ch[ENQ] and sent[base + (last & mask)] < answer:
        while last < ch[ENQ] and sent[base + (last & mask)] < answer:
            last += 1
        ch[PEAK] = last - k
    ch[DEQ] = k + 1
    return t


@inlined
def write(ch, ring, sent, t, stamp):
    """Write a token at time `t` or, if later, when there is room, with at least `stamp`; returns the time then."""
    k = ch[ENQ]
    base = ch[BASE]
    mask = ch[MASK]
    t = max(t, ring[base + ((k - ch[LIMIT]) & mask)])
    # Tokens not yet taken may or may not be in flight still, but they are if an older one is.
    unknown = k - ch[DEQ] + 1
    flying = max(ch[PEAK], unknown)
    if ring[base + ((k - flying) & mask)] > t:
        while ring[base + ((k - flying) & mask)] > t:
            flying += 1
        ch[PEAK] = flying
    ring[base + (k & mask)] = max(stamp, t + ch[SEND])
    sent[base + (k & mask)] = t
    ch[ENQ] = k + 1
    return t


@inlined
def has_room(ch, ring, t):
    """Whether the next token can be written to the channel by a node at time `t`, however much it must wait."""
    k = ch[ENQ]
    if k - ch[DEQ] >= ch[LIMIT]:
        return False
    if ch[ELASTIC] == 1 and ring[ch[BASE] + ((k - ch[LIMIT]) & ch[MASK])] > t:
        ch[NEED] = 1
        return False
    return True


@inlined
def used(x, port, p):
    """Whether port `p` takes part in the firing that the node is at."""
    when = port[p, WHEN]
    if when == EACH:
        return True
    if when == FIRST:
        return x[AT] == 0
    if when == LAST:
        return x[AT] == x[LENGTH] - 1
    return x[TURN] == port[p, MEMBER]


@inlined
def step_row(x, rows, turns, n):
    """The node has fired `n` more times, within one row."""
    x[FIRED] += n
    x[AT] += n
    if x[AT] == x[LENGTH]:
        x[AT] = 0
        x[ROW] += 1
        if x[ROW] == x[ROWS]:
            x[ROW] = 0
        x[LENGTH] = rows[x[ROW_FIRST] + x[ROW]]
    if x[TURNS] > 0:
        x[TURN_AT] += 1
        if x[TURN_AT] == x[TURNS]:
            x[TURN_AT] = 0
        x[TURN] = turns[x[TURN_FIRST] + x[TURN_AT]]


@inlined
def count(trace, c, time, change):
    """Note that from `time` on there are `change` more tokens in flight in channel `c`."""
    trace.change[c, min(time >> trace.shift, trace.change.shape[1] - 1)] += change


@inlined
def fire(x, n, g, trace):
    """Go on with the firing that node `n` is at, port by port; True if it ended, False if it must wait."""
    ring = g.ring
    sent = g.sent
    port = g.port
    traced = trace.code.shape[0] > 0
    t = x[TIME]
    done = x[PHASE]
    if done == 0:
        if x[AT] == 0:
            t += x[ROW_CYCLES]
        done = np.int64(1)
    bits = np.int64(0)
    at = np.int64(0)
    if traced:
        at = trace.first[n] + (x[FIRED] & trace.mask[n])
        if x[PHASE] > 0:
            bits = trace.code[at]
    p = x[PORTS] + done - 1
    if done == 1 and x[FLAGS] & TAKE_TOGETHER:
        for i in range(x[PORTS], x[OUTPUTS]):
            if used(x, port, i):
                ch = g.channel[port[i, CHANNEL]]
                if ch[DEQ] >= ch[READY]:
                    if traced:
                        trace.code[at] = bits
                    x[TIME] = t
                    x[PHASE] = 1
                    return False
                stamp = ring[ch[BASE] + (ch[DEQ] & ch[MASK])]
                if traced and stamp > t:
                    bits |= 1 << (i - x[PORTS])
                t = max(t, stamp)
    while p < x[OUTPUTS]:
        if used(x, port, p):
            c = port[p, CHANNEL]
            ch = g.channel[c]
            if ch[DEQ] >= ch[READY]:
                break
            before = t
            t = take(ch, ring, sent, t)
            if traced:
                if t > before:
                    bits |= 1 << (p - x[PORTS])
                count(trace, c, t + ch[RESPONSE], -1)
        p += 1
    if p >= x[OUTPUTS]:
        if p == x[OUTPUTS]:
            x[NOW] = t
        now = x[NOW]
        clear = True
        if p == x[OUTPUTS] and x[FLAGS] & WRITE_TOGETHER:
            for i in range(x[OUTPUTS], x[PORTS_END]):
                if clear and used(x, port, i):
                    clear = has_room(g.channel[port[i, CHANNEL]], ring, t)
            if clear:
                for i in range(x[OUTPUTS], x[PORTS_END]):
                    if used(x, port, i):
                        ch = g.channel[port[i, CHANNEL]]
                        before = t
                        t = max(t, ring[ch[BASE] + ((ch[ENQ] - ch[LIMIT]) & ch[MASK])])
                        if traced and t > before:
                            bits |= 1 << (TRACE_PORTS + i - x[OUTPUTS])
        while clear and p < x[PORTS_END]:
            if used(x, port, p):
                c = port[p, CHANNEL]
                ch = g.channel[c]
                if not has_room(ch, ring, t):
                    break
                before = t
                t = write(ch, ring, sent, t, now + x[LATENCY])
                if ch[MEMORY] < 0:
                    ch[READY] = ch[ENQ]
                if traced:
                    if t > before:
                        bits |= 1 << (TRACE_PORTS + p - x[OUTPUTS])
                    if t + ch[SEND] > now + x[LATENCY]:
                        bits |= 1 << (2 * TRACE_PORTS + p - x[OUTPUTS])
                    count(trace, c, t, 1)
            p += 1
    if traced:
        trace.code[at] = bits
    if p < x[PORTS_END]:
        x[TIME] = t
        x[PHASE] = p - x[PORTS] + 1
        return False
    x[TIME] = t + x[II]
    x[PHASE] = 0
    step_row(x, g.rows, g.turns, 1)
    return True


@inlined
def singular(x):
    """Whether the next firing is begun already, or uses other ports than those in the middle of a row do."""
    flags = x[FLAGS]
    if flags & ONE_BY_ONE or x[PHASE] > 1:
        return True
    return (flags & HAS_FIRST and x[AT] == 0) or (flags & HAS_LAST and x[AT] == x[LENGTH] - 1)


@inlined
def stretch(x, g, most):
    """How many firings, up to `most`, the node can do now that are like those in the middle of a row."""
    n = min(most, x[TOTAL] - x[FIRED])
    n = min(n, x[LENGTH] - x[AT] - (1 if x[FLAGS] & HAS_LAST else 0))
    for e in range(x[EACH_IN], x[EACH_OUT]):
        ch = g.channel[g.each[e]]
        n = min(n, ch[READY] - ch[DEQ])
    for e in range(x[EACH_OUT], x[EACH_END]):
        ch = g.channel[g.each[e]]
        n = min(n, ch[LIMIT] - ch[ENQ] + ch[DEQ])
        if ch[ELASTIC] == 1:
            # Answers only grow: where the last one that counts has passed, all have.
            while n > 0 and g.ring[ch[BASE] + ((ch[ENQ] + n - 1 - ch[LIMIT]) & ch[MASK])] > x[TIME]:
                n >>= 1
    return n


@inlined
def fire_often(x, g, n):
    """`n` firings that `stretch` has allowed."""
    ring = g.ring
    sent = g.sent
    t = x[TIME]
    latency = x[LATENCY]
    interval = x[II]
    a = x[EACH_IN]
    b = x[EACH_OUT]
    z = x[EACH_END]
    if b - a == 1 and z - b == 1:
        source = g.channel[g.each[a]]
        target = g.channel[g.each[b]]
        for _ in range(n):
            t = take(source, ring, sent, t)
            t = write(target, ring, sent, t, t + latency) + interval
    else:
        for _ in range(n):
            for e in range(a, b):
                t = take(g.channel[g.each[e]], ring, sent, t)
            stamp = t + latency
            for e in range(b, z):
                t = write(g.channel[g.each[e]], ring, sent, t, stamp)
            t += interval
    for e in range(b, z):
        ch = g.channel[g.each[e]]
        if ch[MEMORY] < 0:
            ch[READY] = ch[ENQ]
    x[TIME] = t
    x[PHASE] = 0
    step_row(x, g.rows, g.turns, n)


@inlined
def visit(n, g, trace, most, eager):
    """Let node `n` fire up to `most` times or until it must wait: (firings, those at the ends of rows, moved).

    A firing in the middle of a row is only begun, if not `eager`, when it can also end.
    """
    x = g.node[n]
    fired = np.int64(0)
    single = np.int64(0)
    phase = x[PHASE]
    while x[FIRED] < x[TOTAL] and fired < most:
        if eager or singular(x):
            if not fire(x, n, g, trace):
                break
            fired += 1
            single += 1
            continue
        many = stretch(x, g, most - fired)
        if many <= 0:
            break
        fire_often(x, g, many)
        fired += many
        if not singular(x):
            break
    return fired, single, fired > 0 or x[PHASE] != phase


@leaf
def run(g, old, trace, most, anchor, period, steady, budget):
    """Evaluate the graph `g` until nothing can move (QUIET) or a ring with NEED set must be larger (GROW).

    most: firings of a node in its turn. steady: 1 to advance periodic stretches at once, with `old` to remember states
    in; `anchor`: a node whose state after every `period` firings is worth comparing, -1: none. `trace` notes why the
    time moved, where it has room. budget: firings of all nodes after which to stop (PAUSED).
    """
    traced = trace.code.shape[0] > 0
    eager = traced
    spent = np.int64(0)
    rounds = np.int64(0)
    due = np.int64(1)
    valid = False
    turns = np.int64(0)
    turns_due = np.int64(1)
    turns_valid = False
    last_turn = g.node[anchor, FIRED] // period if anchor >= 0 else np.int64(0)
    # Keeping a state costs about as much as so many firings, and is done no more often than that.
    credit = np.int64(0)
    turns_credit = np.int64(0)
    size = g.ring.shape[0] // 4 + 4 * (g.node.shape[0] + g.channel.shape[0])
    while True:
        moved = False
        single = np.int64(0)
        for i in range(g.order.shape[0]):
            fired, alone, went = visit(np.int64(g.order[i]), g, trace, most, eager)
            moved |= went
            single += alone
            credit += fired
            turns_credit += fired
            spent += fired
        for c in range(g.channel.shape[0]):
            if g.channel[c, NEED] == 1:
                return GROW
        if not moved and eager:
            return QUIET
        eager = traced or not moved
        if spent >= budget:
            return PAUSED
        if steady == 0:
            continue
        if anchor >= 0 and g.node[anchor, FIRED] // period != last_turn:
            last_turn = g.node[anchor, FIRED] // period
            turns += 1
            if turns_valid and leap(g, old, 1):
                turns_valid = False
                valid = False
                turns_due = turns + 1
                last_turn = g.node[anchor, FIRED] // period
                continue
            if turns >= turns_due and turns_credit >= size:
                turns_credit = np.int64(0)
                save(g, old, 1)
                turns_valid = True
                turns_due = 2 * turns
        rounds += 1
        if single > 0:
            valid = False
            rounds = np.int64(0)
            due = np.int64(1)
            continue
        if valid and leap(g, old, 0):
            valid = False
            rounds = np.int64(0)
            due = np.int64(1)
            continue
        if rounds >= due and credit >= size:
            credit = np.int64(0)
            save(g, old, 0)
            valid = True
            due = 2 * rounds
