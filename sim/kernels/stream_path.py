"""Follows the times of a traced run back from its end: which wait, latency or interval set each of them.

A moment of a firing is either that of its inputs or that of its outputs. It was set by a token (data), by room in a
channel that a reader freed (full), or by the node's own firing before (own). Each step goes to the moment that did.
"""

import numpy as np

from sim.kernels.jit import leaf
from sim.kernels.stream_tables import (
    CHANNEL,
    EACH,
    FIRED,
    FIRST,
    FROM,
    II,
    LAST,
    LATENCY,
    LIMIT,
    MEMBER,
    MEMORY,
    OUTPUTS,
    PORTS,
    PORTS_END,
    RESPONSE,
    ROW_CYCLES,
    ROW_FIRST,
    ROWS,
    SEND,
    TO,
    TRACE_PORTS,
    TURN_FIRST,
    TURNS,
    WHEN,
)

# Kinds of steps, and the columns of `steps`: the node and firing that a step leads to, how, over which channel (-1 for
# none) and how many cycles lie between.
OWN, DATA, FULL, REQUEST = 0, 1, 2, 3
STEP_NODE, STEP_FIRING, STEP_KIND, STEP_CHANNEL, STEP_CYCLES = 0, 1, 2, 3, 4
N_STEP = 5


@leaf
def row_of(g, n, firing):
    """(row, place in it) of a firing of node `n`."""
    x = g.node[n]
    total = np.int64(0)
    for i in range(x[ROWS]):
        total += g.rows[x[ROW_FIRST] + i]
    row = firing // total * x[ROWS]
    at = firing % total
    k = np.int64(0)
    while at >= g.rows[x[ROW_FIRST] + k]:
        at -= g.rows[x[ROW_FIRST] + k]
        k += 1
    return row + k, at


@leaf
def row_start(g, n, row):
    """First firing of a row."""
    x = g.node[n]
    firing = np.int64(0)
    for i in range(x[ROWS]):
        length = g.rows[x[ROW_FIRST] + i]
        firing += length * (row // x[ROWS] + (1 if i < row % x[ROWS] else 0))
    return firing


@leaf
def token_of(g, n, p, firing):
    """Which token of its channel port `p` of node `n` passes in `firing`."""
    when = g.port[p, WHEN]
    if when == EACH:
        return firing
    if when == FIRST or when == LAST:
        return row_of(g, n, firing)[0]
    x = g.node[n]
    token = np.int64(0)
    for i in range(x[TURNS]):
        if g.turns[x[TURN_FIRST] + i] == g.port[p, MEMBER]:
            token += firing // x[TURNS] + (1 if i < firing % x[TURNS] else 0)
    return token


@leaf
def firing_of(g, n, p, token):
    """In which firing of node `n` its port `p` passes a token of its channel."""
    when = g.port[p, WHEN]
    if when == EACH:
        return token
    if when == FIRST:
        return row_start(g, n, token)
    if when == LAST:
        return row_start(g, n, token + 1) - 1
    x = g.node[n]
    each = np.int64(0)
    for i in range(x[TURNS]):
        each += 1 if g.turns[x[TURN_FIRST] + i] == g.port[p, MEMBER] else 0
    left = token % each
    for i in range(x[TURNS]):
        if g.turns[x[TURN_FIRST] + i] == g.port[p, MEMBER]:
            if left == 0:
                return token // each * x[TURNS] + i
            left -= 1
    return np.int64(-1)


@leaf
def port_to(g, n, c, first, end):
    """The port of node `n` among `first` to `end` that uses channel `c`."""
    for p in range(first, end):
        if g.port[p, CHANNEL] == c:
            return np.int64(p)
    return np.int64(-1)


@leaf
def highest(bits, below):
    """The highest bit set among the lowest `below`; -1: none."""
    for i in range(below - 1, -1, -1):
        if bits >> i & 1:
            return np.int64(i)
    return np.int64(-1)


@leaf
def walk(g, trace, first_token, node, steps):
    """Fill `steps` from the last firing of `node` back; returns how many there are.

    It ends at the beginning of the run, of what is traced or at a token that was there from the start; `first_token`
    holds how many of these each channel had. Columns of `steps`: see above.
    """
    firing = g.node[node, FIRED] - 1
    outputs = True
    upto = g.node[node, PORTS_END] - g.node[node, OUTPUTS]
    count = np.int64(0)
    low = (1 << TRACE_PORTS) - 1
    while count < steps.shape[0]:
        x = g.node[node]
        if firing < 0 or firing < g.node[node, FIRED] - trace.mask[node]:
            return count
        bits = trace.code[trace.first[node] + (firing & trace.mask[node])]
        if outputs:
            i = highest(bits >> TRACE_PORTS & low, upto)
            if i < 0:
                outputs = False
                upto = x[OUTPUTS] - x[PORTS]
                continue
            p = x[OUTPUTS] + i
            c = g.port[p, CHANNEL]
            ch = g.channel[c]
            token = token_of(g, node, p, firing) + first_token[c] - ch[LIMIT]
            other = ch[TO]
            q = port_to(g, other, c, g.node[other, PORTS], g.node[other, OUTPUTS])
            node = other
            firing = firing_of(g, node, q, token)
            outputs = False
            upto = q - g.node[node, PORTS] + 1
            steps[count, STEP_KIND] = FULL
            steps[count, STEP_CHANNEL] = c
            steps[count, STEP_CYCLES] = ch[RESPONSE]
        else:
            i = highest(bits & low, upto)
            if i < 0:
                cycles = x[II]
                if x[ROW_CYCLES] > 0 and row_of(g, node, firing)[1] == 0:
                    cycles += x[ROW_CYCLES]
                firing -= 1
                outputs = True
                upto = x[PORTS_END] - x[OUTPUTS]
                steps[count, STEP_KIND] = OWN
                steps[count, STEP_CHANNEL] = -1
                steps[count, STEP_CYCLES] = cycles
            else:
                p = x[PORTS] + i
                c = g.port[p, CHANNEL]
                ch = g.channel[c]
                token = token_of(g, node, p, firing) - first_token[c]
                if token < 0:
                    return count
                other = ch[FROM]
                q = port_to(g, other, c, g.node[other, OUTPUTS], g.node[other, PORTS_END])
                node = other
                firing = firing_of(g, node, q, token)
                if firing < g.node[node, FIRED] - trace.mask[node]:
                    return count
                late = trace.code[trace.first[node] + (firing & trace.mask[node])]
                by_write = late >> (2 * TRACE_PORTS + q - g.node[node, OUTPUTS]) & 1 == 1
                outputs = by_write or ch[MEMORY] >= 0
                upto = q - g.node[node, OUTPUTS] + 1 if outputs else g.node[node, OUTPUTS] - g.node[node, PORTS]
                steps[count, STEP_KIND] = REQUEST if ch[MEMORY] >= 0 else DATA
                steps[count, STEP_CHANNEL] = c
                steps[count, STEP_CYCLES] = ch[SEND] if by_write else g.node[node, LATENCY]
        steps[count, STEP_NODE] = node
        steps[count, STEP_FIRING] = firing
        count += 1
    return count
