"""What the stream kernels read and write: the columns of nodes, channels and ports, and the codes of what they do.

A graph is three integer tables, one row a node, a channel and a port; the columns before the mark `static` change as
the graph runs. Rings of all channels lie one after the other in two flat arrays.
"""

from typing import NamedTuple

import numpy as np

NEVER = 2**62

# Nodes. PHASE: 0 between firings, 1 begun, 1 + p: p ports of the firing are dealt with. NOW: time after its inputs.
# ROW, AT, LENGTH: which row of the cycle of rows, firing in it, firings of it. TURN_AT, TURN: the same for turns.
TIME, FIRED, PHASE, NOW, ROW, AT, LENGTH, TURN_AT, TURN = 0, 1, 2, 3, 4, 5, 6, 7, 8
# static. PORTS, OUTPUTS, PORTS_END: first port, first output, end. EACH_IN, EACH_OUT, EACH_END: the same in `each`.
TOTAL, II, LATENCY, PORTS, OUTPUTS, PORTS_END, EACH_IN, EACH_OUT, EACH_END = 9, 10, 11, 12, 13, 14, 15, 16, 17
ROW_FIRST, ROWS, TURN_FIRST, TURNS, ROW_CYCLES, FLAGS = 18, 19, 20, 21, 22, 23
N_NODE = 24

# Bits of FLAGS: ports used in a row's first firing only, in its last only, by turns; inputs or outputs all at once.
HAS_FIRST, HAS_LAST, HAS_TURN, TAKE_TOGETHER, WRITE_TOGETHER = 1, 2, 4, 8, 16
ONE_BY_ONE = HAS_TURN | TAKE_TOGETHER | WRITE_TOGETHER

# Channels: tokens written, taken and ready to be taken, most in flight, 1 if the ring is too small.
ENQ, DEQ, READY, PEAK, NEED = 0, 1, 2, 3, 4
# static. LIMIT: tokens that fit, the smaller of ring and capacity; ELASTIC: 1 where that is the ring.
LIMIT, MASK, BASE, ELASTIC, SEND, RESPONSE, FROM, TO = 5, 6, 7, 8, 9, 10, 11, 12
MEMORY = 13  # of requests to a memory channel, whose number this is; -1: stamped by the sender
N_CHANNEL = 14

# Ports: the channel, in which firings it is used, and its turn.
CHANNEL, WHEN, MEMBER = 0, 1, 2
N_PORT = 3
EACH, FIRST, LAST, IN_TURN = 0, 1, 2, 3

# Why `run` returned: nothing can move, a ring is too small, or it has fired as often as asked.
QUIET, GROW, PAUSED = 0, 1, 2

# A traced firing is one integer: for each of 16 ports a bit whether its input or output moved the time forward, and
# for each output whether the time of the write, rather than the latency, set the stamp.
TRACE_PORTS = 16


class Streams(NamedTuple):
    """A compiled graph and its state."""

    node: np.ndarray  # [nodes, N_NODE]
    channel: np.ndarray  # [channels, N_CHANNEL]
    port: np.ndarray  # [ports, N_PORT]: of node after node, inputs before outputs
    each: np.ndarray  # channels of the ports used in every firing, in the same order
    rows: np.ndarray  # lengths of the rows of all nodes
    turns: np.ndarray
    order: np.ndarray  # in which nodes are evaluated
    ring: np.ndarray  # stamps of tokens in a channel, responses of those taken
    sent: np.ndarray  # times at which they were written


class Saved(NamedTuple):
    """Two earlier states to compare with, the leading axis of each array."""

    node: np.ndarray
    channel: np.ndarray
    ring: np.ndarray
    sent: np.ndarray


class Trace(NamedTuple):
    """What a traced run notes; arrays of length 0 where nothing is traced."""

    code: np.ndarray  # of the last firings of each node
    first: np.ndarray  # [nodes]: where its part of `code` begins
    mask: np.ndarray  # [nodes]: length of that part less one
    change: np.ndarray  # [channels, bins + 1]: change of the tokens in flight in each stretch of time
    shift: int  # a stretch is 2**shift cycles
