"""Executes a graph on data: every token has a value, and each node a function; time plays no part in it.

Nodes take, write and wait as in the timed run, channel capacities included, so that the same graph ends or stands
still. A timed run never comes here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from sim.errors import ConfigError, not_among
from sim.stream.checks import firings
from sim.stream.ports import EACH, FIRST, IN_TURN, LAST, Port, Rhythm, ports_of, rhythm_of
from sim.stream.schema import UNBOUNDED, Graph, MemoryReduce, Node, Reduce, Scan, Sink, Source


class Function(NamedTuple):
    """What a node does with the values of its inputs, in their order.

    call: of `map`, `broadcast` and others, (*inputs) -> value; of `reduce` and `memory_reduce`, (state, *inputs) ->
    state, whose last value in a row is written; of `scan`, (state, *inputs) -> (state, value). A tuple as value has one
    entry for each output, anything else goes to all. start: the state at the beginning of each row; it is never changed
    in place by what is here. finish: applied to a reduction's state before it is written.
    """

    call: Callable[..., Any]
    start: Any = None
    finish: Callable[[Any], Any] | None = None


class Executed(NamedTuple):
    """What the sinks took, by name and in order (tuples where one has several inputs), and how often nodes fired."""

    collected: dict[str, list[Any]]
    fires: dict[str, int]
    deadlock: bool


def execute(graph: Graph, functions: Mapping[str, Function], tokens: Mapping[str, Iterable[Any]]) -> Executed:
    """Run `graph` on data: `functions` by node, `tokens` by source (and by DRAM read port). Raises ConfigError.

    A node without a function passes on its input; it may have one only. Initial tokens of channels are None.
    """
    totals = firings(graph)
    for name in (*functions, *tokens):
        if name not in totals:
            raise ConfigError(not_among("node", name, totals))
    wires = {name: deque[Any]([None] * channel.initial) for name, channel in graph.all_channels().items()}
    room = {
        name: float("inf") if isinstance(c.capacity, str) else c.capacity for name, c in graph.all_channels().items()
    }
    assert all(c.capacity == UNBOUNDED or isinstance(c.capacity, int) for c in graph.all_channels().values())
    fires = dict.fromkeys(totals, 0)
    collected: dict[str, list[Any]] = {node.name: [] for node in graph.nodes if isinstance(node, Sink)}
    running = {}
    for node in graph.nodes:
        given = iter(tokens[node.name]) if node.name in tokens else None
        walk = _run(node, totals[node.name], functions.get(node.name), given, wires, room, fires, collected)
        running[node.name] = walk
    progress = True
    while progress and running:
        progress = False
        for name in list(running):
            before = fires[name]
            moved = next(running[name], None)
            if moved is None:
                del running[name]
            progress |= moved is None or moved or fires[name] > before
    return Executed(collected, fires, bool(running))


def _run(
    node: Node, total: int, function: Function | None, given: Iterator[Any] | None, wires: dict[str, deque[Any]],
    room: Mapping[str, float], fires: dict[str, int], collected: dict[str, list[Any]],
) -> Iterator[bool]:  # fmt: skip
    """The node as a process that yields, where it must wait, whether it has done something since it last did."""
    inputs, outputs = ports_of(node)
    rhythm = rhythm_of(node)
    held: dict[str, Any] = {}
    state: Any = None
    moved = False
    position = _positions(rhythm)
    for _ in range(total):
        first, last, turn = next(position)
        now_in = [p for p in inputs if _used(p, first, last, turn)]
        now_out = [p for p in outputs if _used(p, first, last, turn)]
        while node.take == "together" and not all(wires[p.channel] for p in now_in):
            yield moved
            moved = False
        for p in now_in:
            while not wires[p.channel]:
                yield moved
                moved = False
            held[p.channel] = wires[p.channel].popleft()
            moved = True
        if first and function is not None:
            state = function.start
        values = [held[p.channel] for p in (now_in if any(q.when == IN_TURN for q in inputs) else inputs)]
        state, value = _value(node, function, state, values, given)
        if isinstance(node, Sink):
            collected[node.name].append(values[0] if len(values) == 1 else tuple(values))
        while node.write == "together" and not all(len(wires[p.channel]) < room[p.channel] for p in now_out):
            yield moved
            moved = False
        for p in now_out:
            while len(wires[p.channel]) >= room[p.channel]:
                yield moved
                moved = False
            place = outputs.index(p)
            wires[p.channel].append(value[place] if isinstance(value, tuple) else value)
            moved = True
        fires[node.name] += 1


def _positions(rhythm: Rhythm) -> Iterator[tuple[bool, bool, int]]:
    """(first of its row, last of its row, turn) of each firing, for ever."""
    fired = 0
    while True:
        for length in rhythm.rows:
            for j in range(length):
                turn = rhythm.turns[fired % len(rhythm.turns)] if rhythm.turns else -1
                yield j == 0, j == length - 1, turn
                fired += 1


def _used(port: Port, first: bool, last: bool, turn: int) -> bool:
    return {EACH: True, FIRST: first, LAST: last, IN_TURN: port.member == turn}[port.when]


def _value(
    node: Node, function: Function | None, state: Any, values: list[Any], given: Iterator[Any] | None
) -> tuple[Any, Any]:
    """(state, value to write) of one firing."""
    if isinstance(node, Source) or (given is not None and not values):
        if given is None:
            raise ConfigError(f"node {node.name!r} has no tokens to bring")
        value = next(given, _NOTHING)
        if value is _NOTHING:
            raise ConfigError(f"node {node.name!r} has fewer tokens than it is to bring")
        return None, value
    if function is None:
        if isinstance(node, Sink):
            return None, None
        if len(values) != 1 or isinstance(node, (Scan, Reduce, MemoryReduce)):
            raise ConfigError(f"node {node.name!r} needs a function for its inputs")
        return None, values[0]
    if isinstance(node, Scan):
        new, value = function.call(state, *values)
        return new, value
    if isinstance(node, (Reduce, MemoryReduce)):
        state = function.call(state, *values)
        return state, state if function.finish is None else function.finish(state)
    return None, function.call(*values)


_NOTHING = object()
