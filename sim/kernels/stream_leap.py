"""Advances a graph in closed form where it has come back to an earlier state, shifted by some cycles and tokens.

Two states are alike if the same will happen from both: every node that fired has moved by the same time and is at the
same place of its firing, every other one is untouched, and each channel holds as many tokens with the same times
relative to the nodes at its ends. A time that has passed for the node that looks at it is as good as any other. What
was done between the two states is then done again and again, up to the first firing that is not like those in between
(the beginning or end of a row, unless a whole number of rows lies between the states) or to a node's last.
"""

import numpy as np

from sim.kernels.jit import inlined
from sim.kernels.stream_tables import (
    AT,
    BASE,
    DEQ,
    ENQ,
    FIRED,
    FLAGS,
    FROM,
    HAS_FIRST,
    HAS_LAST,
    HAS_TURN,
    LENGTH,
    LIMIT,
    MASK,
    N_CHANNEL,
    N_NODE,
    NEVER,
    NOW,
    OUTPUTS,
    PHASE,
    PORTS,
    READY,
    ROW,
    TIME,
    TO,
    TOTAL,
    TURN_AT,
)


@inlined
def save(g, old, s):
    """Keep the present state at place `s` of `old`."""
    for n in range(g.node.shape[0]):
        for i in range(N_NODE):
            old.node[s, n, i] = g.node[n, i]
    for c in range(g.channel.shape[0]):
        for i in range(N_CHANNEL):
            old.channel[s, c, i] = g.channel[c, i]
    for i in range(g.ring.shape[0]):
        old.ring[s, i] = g.ring[i]
        old.sent[s, i] = g.sent[i]


@inlined
def alike_nodes(g, old, s):
    """(periods, cycles): how often all firings since then can be repeated, 0 if never, and the time they took."""
    most = np.int64(NEVER)
    cycles = np.int64(-1)
    for n in range(g.node.shape[0]):
        x = g.node[n]
        y = old.node[s, n]
        if x[PHASE] != y[PHASE]:
            return np.int64(0), cycles
        fired = x[FIRED] - y[FIRED]
        moved = x[TIME] - y[TIME]
        if fired == 0:
            if moved != 0:
                return np.int64(0), cycles
            continue
        if cycles < 0:
            cycles = moved
        if moved != cycles or (x[PHASE] > x[OUTPUTS] - x[PORTS] and x[NOW] - y[NOW] != cycles):
            return np.int64(0), cycles
        most = min(most, (x[TOTAL] - 1 - x[FIRED]) // fired)
        flags = x[FLAGS]
        if x[ROW] == y[ROW] and x[AT] == y[AT] and x[TURN_AT] == y[TURN_AT]:
            continue
        if flags & HAS_TURN:
            return np.int64(0), cycles
        if flags & (HAS_FIRST | HAS_LAST):
            if x[AT] - y[AT] != fired or (flags & HAS_FIRST and y[AT] == 0):
                return np.int64(0), cycles
        most = min(most, (x[LENGTH] - 2 - x[AT]) // fired)
    if cycles < 0:
        return np.int64(0), cycles
    return most, cycles


@inlined
def alike_channels(g, old, s, cycles):
    """Whether every channel that was used holds the same, `cycles` later."""
    for c in range(g.channel.shape[0]):
        ch = g.channel[c]
        was = old.channel[s, c]
        passed = ch[ENQ] - was[ENQ]
        if passed != ch[DEQ] - was[DEQ]:
            return False
        if passed == 0:
            continue
        if was[ENQ] < ch[LIMIT]:
            return False
        base = ch[BASE]
        mask = ch[MASK]
        writer = g.node[ch[FROM], TIME]
        reader = g.node[ch[TO], TIME]
        for k in range(ch[ENQ] - ch[LIMIT], ch[DEQ]):
            now = max(g.ring[base + (k & mask)], writer)
            if now != max(old.ring[s, base + ((k - passed) & mask)] + cycles, writer):
                return False
        for k in range(ch[DEQ], ch[ENQ]):
            here = base + (k & mask)
            there = base + ((k - passed) & mask)
            if max(g.ring[here], reader) != max(old.ring[s, there] + cycles, reader):
                return False
            if max(g.sent[here], reader) != max(old.sent[s, there] + cycles, reader):
                return False
    return True


@inlined
def leap(g, old, s):
    """Repeat what was done since the state kept at `s` as often as possible; False if the states are not alike."""
    periods, cycles = alike_nodes(g, old, s)
    if periods <= 0 or not alike_channels(g, old, s, cycles):
        return False
    later = periods * cycles
    for n in range(g.node.shape[0]):
        x = g.node[n]
        y = old.node[s, n]
        fired = x[FIRED] - y[FIRED]
        if fired == 0:
            continue
        if x[ROW] != y[ROW] or x[AT] != y[AT] or x[TURN_AT] != y[TURN_AT]:
            x[AT] += periods * fired
        x[FIRED] += periods * fired
        x[TIME] += later
        x[NOW] += later
    for c in range(g.channel.shape[0]):
        ch = g.channel[c]
        passed = periods * (ch[ENQ] - old.channel[s, c, ENQ])
        if passed == 0:
            continue
        base = ch[BASE]
        mask = ch[MASK]
        for k in range(ch[ENQ] - ch[LIMIT], ch[ENQ]):
            there = base + ((k + passed) & mask)
            old.ring[s, there] = g.ring[base + (k & mask)] + later
            old.sent[s, there] = g.sent[base + (k & mask)] + later
        for k in range(ch[ENQ] - ch[LIMIT] + passed, ch[ENQ] + passed):
            here = base + (k & mask)
            g.ring[here] = old.ring[s, here]
            g.sent[here] = old.sent[s, here]
        ch[ENQ] += passed
        ch[DEQ] += passed
        ch[READY] += passed
    return True
