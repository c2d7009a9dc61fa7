"""Evaluates a graph whose ports go to memory channels: nodes until nothing can move, then the memory a step on.

What a channel does depends on the order in which requests reach it, so a request is handed over only when no earlier
one can still come. Once no node can move, whatever is asked for later is asked for because of a completion to come,
and a response and a request later than that. So the channel with the earliest thing to do may always do it, and go on
up to the others' earliest, and requests are handed over by tick, those of one tick by number of the port.
"""

from typing import NamedTuple

import numpy as np

from sim.kernels.dram import COMPLETION, push, step
from sim.kernels.jit import kernel
from sim.kernels.stream import run
from sim.kernels.stream_tables import (
    BASE,
    DEQ,
    ELASTIC,
    ENQ,
    FIRED,
    FROM,
    GROW,
    LIMIT,
    MASK,
    MEMORY,
    NEED,
    NEVER,
    QUIET,
    READY,
    SEND,
    TOTAL,
)


class Ports(NamedTuple):
    """The DRAM ports of a graph, one entry each, and the clocks: a cycle is `num` / `den` ticks of the memory."""

    channel: np.ndarray  # of the graph, that holds the requests
    is_write: np.ndarray
    lo: np.ndarray  # burst of the first token, in its memory channel
    stride: np.ndarray  # bursts from a token to the next
    bursts: np.ndarray  # of a token
    sent: np.ndarray  # tokens handed over so far
    due: np.ndarray  # [memory channels]: tick of the next thing that each would do
    num: int
    den: int


@kernel
def ticks(cycle, num, den):
    """First tick that is not before a cycle."""
    return cycle // den * num - (-(cycle % den) * num) // den


@kernel
def cycles(tick, num, den):
    """First cycle that is not before a tick."""
    return tick // num * den - (-(tick % num) * den) // num


@kernel
def held_up(g):
    """Mark channels whose ring, not whose capacity, may keep a node from writing; whether there are any."""
    found = False
    for c in range(g.channel.shape[0]):
        ch = g.channel[c]
        writer = g.node[ch[FROM]]
        if ch[ELASTIC] == 1 and ch[ENQ] - ch[DEQ] >= ch[LIMIT] and writer[FIRED] < writer[TOTAL]:
            ch[NEED] = 1
            found = True
    return found


@kernel
def collect(g, s, ports, m):
    """Stamp the tokens that memory channel `m` has completed; whether there are any."""
    count = s.done_count[m]
    number = ports.channel.shape[0]
    for i in range(count):
        r = s.done_task[m, i] % number
        token = s.done_task[m, i] // number
        ch = g.channel[ports.channel[r]]
        at = ch[BASE] + (token & ch[MASK])
        g.ring[at] = max(cycles(s.done_tick[m, i], ports.num, ports.den), g.sent[at] + ch[SEND])
    s.done_count[m] = 0
    for r in range(number):
        ch = g.channel[ports.channel[r]]
        while ch[READY] < ports.sent[r] and g.ring[ch[BASE] + (ch[READY] & ch[MASK])] < NEVER:
            ch[READY] += 1
    return count > 0


@kernel
def run_with_memory(g, old, trace, most, budget, t, s, ports):
    """As `stream.run`, with the memory channels `s` of the standard `t`. `ports` is kept from call to call."""
    never = np.int64(NEVER)
    number = ports.channel.shape[0]
    first = np.zeros(ports.due.shape[0], np.int64)
    who = np.zeros(ports.due.shape[0], np.int64)
    while True:
        status = run(g, old, trace, most, np.int64(-1), np.int64(1), np.int64(0), budget)
        if status != QUIET:
            return status
        if held_up(g):
            return np.int64(GROW)
        fresh = False
        while not fresh:
            first[:] = never
            for r in range(number):
                c = ports.channel[r]
                ch = g.channel[c]
                if ports.sent[r] < ch[ENQ]:
                    tick = ticks(g.sent[ch[BASE] + (ports.sent[r] & ch[MASK])], ports.num, ports.den)
                    m = ch[MEMORY]
                    if tick < first[m]:
                        first[m] = tick
                        who[m] = r
            at = np.int64(0)
            other = never
            for m in range(1, first.shape[0]):
                if min(first[m], ports.due[m]) < min(first[at], ports.due[at]):
                    other = min(other, min(first[at], ports.due[at]))
                    at = np.int64(m)
                else:
                    other = min(other, min(first[m], ports.due[m]))
            if min(first[at], ports.due[at]) >= never:
                return np.int64(QUIET)
            if first[at] <= ports.due[at]:
                r = who[at]
                token = ports.sent[r]
                ch = g.channel[ports.channel[r]]
                lo = ports.lo[r] + token * ports.stride[r]
                if push(t, s, at, lo, ports.bursts[r], ports.is_write[r], token * number + r, first[at]):
                    g.ring[ch[BASE] + (token & ch[MASK])] = never
                    ports.sent[r] += 1
                    ports.due[at] = min(ports.due[at], first[at])
                    continue
                # The channel's ring is full: it must complete something first.
                ports.due[at] = step(t, s, at, np.int64(never), np.int64(0), np.int64(COMPLETION))
            else:
                ports.due[at] = step(t, s, at, np.int64(min(first[at], other + 1)), np.int64(0), np.int64(COMPLETION))
            fresh = collect(g, s, ports, at)
