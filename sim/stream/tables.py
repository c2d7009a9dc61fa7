"""Compiles a streaming graph to the integer tables of the kernel, and finds the order in which to evaluate it.

A DRAM port becomes two nodes: one asks for tokens, the other delivers them, and the channel between them holds the
requests under way, which the memory stamps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sim.kernels import stream_tables as at
from sim.stream.checks import firings
from sim.stream.ports import EACH, Port, has_rows, ports_of, rhythm_of
from sim.stream.schema import AUTO, UNBOUNDED, Channel, DramRead, DramWrite, Graph, Node

FIRST_RING = 64
"""Slots that the ring of an unbounded channel, or of one with room for more, begins with."""
REQUESTS = ".requests"
"""Suffix of the node and the channel that a DRAM port brings along."""


class Part(NamedTuple):
    """A node as the kernel has it: one of the graph's, or half of a DRAM port."""

    name: str
    node: Node
    inputs: list[Port]
    outputs: list[Port]
    fires: int
    rows: tuple[int, ...]
    turns: tuple[int, ...]


class Compiled(NamedTuple):
    """A graph ready to run: names in the order of the tables, and the tables with everything at cycle 0."""

    graph: Graph
    parts: list[Part]
    nodes: list[str]
    channels: list[str]
    streams: at.Streams
    anchor: int
    period: int
    """A node whose rows all others follow, if there is one, and its firings until they repeat."""


def parts_of(graph: Graph) -> tuple[list[Part], dict[str, Channel], dict[str, int]]:
    """(nodes, channels, memory channel of those that hold requests), DRAM ports taken apart."""
    fires = firings(graph)
    channels = graph.all_channels()
    memory: dict[str, int] = {}
    parts = []
    for node in graph.nodes:
        inputs, outputs = ports_of(node)
        rhythm = rhythm_of(node)
        n = fires[node.name]
        if isinstance(node, (DramRead, DramWrite)):
            under_way = node.name + REQUESTS
            channels[under_way] = Channel(capacity=node.outstanding)
            memory[under_way] = node.channel
            parts.append(Part(under_way, node, inputs, [Port(under_way, EACH)], n, (1,), ()))
            inputs = [Port(under_way, EACH)]
        parts.append(Part(node.name, node, inputs, outputs, n, rhythm.rows, rhythm.turns))
    return parts, channels, memory


def compile_graph(graph: Graph) -> Compiled:
    """Tables of `graph`, whose capacities must all be known. Raises ConfigError."""
    parts, channels, memory = parts_of(graph)
    names = list(channels)
    number = {name: c for c, name in enumerate(names)}
    channel = np.zeros((len(names), at.N_CHANNEL), np.int64)
    base = 0
    for c, (name, spec) in enumerate(channels.items()):
        assert spec.capacity != AUTO, f"channel {name} has no capacity yet"
        size = FIRST_RING if spec.capacity == UNBOUNDED else min(int(spec.capacity), FIRST_RING)
        size = 1 << (max(size, spec.initial) - 1).bit_length()
        _shape(channel[c], spec, size, base)
        base += size
        channel[c, at.SEND] = spec.send_latency
        channel[c, at.RESPONSE] = spec.response_latency
        channel[c, at.MEMORY] = memory.get(name, -1)
        channel[c, [at.ENQ, at.READY, at.PEAK]] = spec.initial
    node = np.zeros((len(parts), at.N_NODE), np.int64)
    port: list[tuple[int, int, int]] = []
    each: list[int] = []
    rows: list[int] = []
    turns: list[int] = []
    for i, part in enumerate(parts):
        _fill(node[i], part, port, each, rows, turns, number)
        for p in part.outputs:
            channel[number[p.channel], at.FROM] = i
        for p in part.inputs:
            channel[number[p.channel], at.TO] = i
    anchor, period = _anchor(parts, node)
    streams = at.Streams(
        node=node,
        channel=channel,
        port=np.array(port, np.int64).reshape(-1, at.N_PORT),
        each=_numbers(each),
        rows=_numbers(rows),
        turns=_numbers(turns),
        order=np.array(_order(channel, len(parts)), np.int64),
        ring=np.zeros(base, np.int64),
        sent=np.zeros(base, np.int64),
    )
    return Compiled(graph, parts, [part.name for part in parts], names, streams, anchor, period)


def _numbers(values: Sequence[int]) -> NDArray[np.int64]:
    return np.array(values, np.int64).reshape(-1)


def _shape(row: NDArray[np.int64], spec: Channel, size: int, base: int) -> None:
    """Give a channel a ring of `size` slots, a power of two, at `base`."""
    bounded = spec.capacity != UNBOUNDED and int(spec.capacity) <= size
    row[at.LIMIT] = int(spec.capacity) if bounded else size
    row[at.ELASTIC] = int(not bounded)
    row[at.MASK] = size - 1
    row[at.BASE] = base
    row[at.NEED] = 0


def _fill(
    x: NDArray[np.int64], part: Part, port: list[tuple[int, int, int]], each: list[int], rows: list[int],
    turns: list[int], number: dict[str, int],
) -> None:  # fmt: skip
    """One row of the table of nodes, and its entries in the tables that it points to."""
    spec = part.node
    requests = part.name.endswith(REQUESTS) and part.name != spec.name
    x[at.TIME] = spec.start
    x[at.TOTAL] = part.fires
    x[at.II] = spec.ii if requests or not isinstance(spec, (DramRead, DramWrite)) else 0
    x[at.LATENCY] = spec.latency
    x[at.PORTS] = len(port)
    x[at.EACH_IN] = len(each)
    for ports, end, each_end in ((part.inputs, at.OUTPUTS, at.EACH_OUT), (part.outputs, at.PORTS_END, at.EACH_END)):
        port += [(number[p.channel], p.when, p.member) for p in ports]
        each += [number[p.channel] for p in ports if p.when == at.EACH]
        x[end] = len(port)
        x[each_end] = len(each)
    used = {p.when for p in (*part.inputs, *part.outputs)}
    row_cycles = getattr(spec, "row_cycles", 0)
    x[at.ROW_CYCLES] = row_cycles
    x[at.FLAGS] = (
        at.HAS_FIRST * (at.FIRST in used or row_cycles > 0)
        | at.HAS_LAST * (at.LAST in used)
        | at.HAS_TURN * (at.IN_TURN in used)
        | at.TAKE_TOGETHER * (spec.take == "together")
        | at.WRITE_TOGETHER * (spec.write == "together")
    )
    x[at.ROW_FIRST], x[at.TURN_FIRST] = len(rows), len(turns)
    own_rows = part.rows if has_rows(spec) else (at.NEVER,)
    rows += own_rows
    turns += part.turns
    x[at.ROWS], x[at.TURNS] = len(own_rows), len(part.turns)
    x[at.LENGTH] = own_rows[0]
    x[at.TURN] = part.turns[0] if part.turns else 0


def _anchor(parts: list[Part], node: NDArray[np.int64]) -> tuple[int, int]:
    """The node with the most firings that has rows or turns, and its firings until they repeat; -1, 1 without one."""
    found, period = -1, 1
    for i, part in enumerate(parts):
        length = sum(part.rows) if has_rows(part.node) else 1
        length = int(np.lcm(length, len(part.turns))) if part.turns else length
        if length > 1 and (found < 0 or part.fires >= parts[found].fires) and length < part.fires:
            found, period = i, length
    return found, period


def _order(channel: NDArray[np.int64], nodes: int) -> list[int]:
    """Nodes after those that feed them, as far as loops allow."""
    after: list[list[int]] = [[] for _ in range(nodes)]
    for row in channel:
        after[row[at.FROM]].append(int(row[at.TO]))
    state, order = [0] * nodes, []
    for root in range(nodes):
        stack = [root]
        while stack:
            i = stack[-1]
            if state[i] == 0:
                state[i] = 1
                stack += [j for j in after[i] if state[j] == 0]
            else:
                stack.pop()
                if state[i] == 1:
                    state[i] = 2
                    order.append(i)
    return order[::-1]


def enlarge(compiled: Compiled, wanted: Sequence[int], step: int = 2) -> Compiled:
    """The same state with rings of `wanted` channels twice as large; contents stay."""
    old = compiled.streams
    channel = old.channel.copy()
    specs = parts_of(compiled.graph)[1]
    sizes = channel[:, at.MASK] + 1
    sizes[list(wanted)] *= step
    bases = np.concatenate([[0], np.cumsum(sizes)])
    ring, sent = np.zeros((2, int(bases[-1])), np.int64)
    for c, name in enumerate(compiled.channels):
        k = np.arange(max(int(channel[c, at.ENQ] - channel[c, at.MASK] - 1), 0), int(channel[c, at.ENQ]))
        _shape(channel[c], specs[name], int(sizes[c]), int(bases[c]))
        here, there = bases[c] + (k & (sizes[c] - 1)), old.channel[c, at.BASE] + (k & old.channel[c, at.MASK])
        ring[here], sent[here] = old.ring[there], old.sent[there]
    return compiled._replace(streams=old._replace(channel=channel, ring=ring, sent=sent))
