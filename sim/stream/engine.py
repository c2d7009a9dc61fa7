"""Runs a streaming graph and tells what came of it: cycles, firings, tokens in flight, and who waits for whom."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.kernels import stream_tables as at
from sim.stream.schema import Graph
from sim.stream.tables import REQUESTS, Compiled, compile_graph, enlarge

if TYPE_CHECKING:
    from sim.stream.memory import Attached


@dataclass(frozen=True)
class Wait:
    """One node that cannot go on: on which channel, whether that is `empty` or `full`, its tokens and the cycle."""

    node: str
    channel: str
    state: str
    occupancy: int
    cycle: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `time` is the node's local time."""
        return {
            "node": self.node, "channel": self.channel, "state": self.state, "occupancy": self.occupancy,
            "time": self.cycle,
        }  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """A finished run. `cycles` is the largest local time; the rest is by name, as in the graph.

    events: tokens written and tokens taken. requests: most tokens that each DRAM port had asked for at once; memory:
    what the DRAM did, None without one.
    """

    cycles: int
    deadlock: bool
    fires: dict[str, int]
    times: dict[str, int]
    peak_in_flight: dict[str, int]
    waits: tuple[Wait, ...]
    events: int
    requests: dict[str, int]
    memory: dict[str, Any] | None
    wall_s: float = field(compare=False)
    compiled: Compiled = field(repr=False, compare=False)


class Run:
    """A graph under evaluation; `compiled` holds its state.

    steady: allow stretches to be advanced in closed form. order: numbers of nodes, as they are evaluated; most: firings
    of a node in its turn. None of these changes a result. trace: what to note; switches the shortcut off. budget:
    firings of all nodes after which to stop, whatever is left.
    """

    def __init__(
        self, graph: Graph, *, steady: bool = True, order: Sequence[int] | None = None, most: int = at.NEVER,
        trace: at.Trace | None = None, budget: int = at.NEVER,
    ) -> None:  # fmt: skip
        self.compiled = compile_graph(graph)
        if order is not None:
            streams = self.compiled.streams._replace(order=np.array(order, np.int64))
            self.compiled = self.compiled._replace(streams=streams)
        self.most, self.trace, self.budget = most, trace or no_trace(), budget
        self.steady = steady and trace is None and graph.memory is None
        self.attached: Attached | None = None
        if graph.memory is not None:
            from sim.stream.memory import attach

            self.attached = attach(graph, self.compiled)

    def load(self) -> None:
        """Compile or load the kernels, so that the time they take is not that of a run."""
        whole = self.compiled
        self.compiled = whole._replace(streams=whole.streams._replace(order=whole.streams.order[:0]))
        self._evaluate()
        self.compiled = whole

    def go_on(self) -> None:
        """Evaluate until nothing can move or the budget is spent, with rings as large as the tokens in flight need."""
        while True:
            g = self.compiled.streams
            before = int(g.node[:, at.FIRED].sum())
            status = self._evaluate()
            if self.budget < at.NEVER:
                self.budget -= int(g.node[:, at.FIRED].sum()) - before
            if status == at.PAUSED:
                return
            small = [int(c) for c in np.flatnonzero(g.channel[:, at.NEED])] if status == at.GROW else self.held_up()
            if not small:
                return
            self.compiled = enlarge(self.compiled, small)

    def _evaluate(self) -> int:
        g = self.compiled.streams
        old = _remembered(g, self.steady)
        if self.attached is None:
            from sim.kernels.stream import run

            anchor, period = self.compiled.anchor, self.compiled.period
            return int(run(g, old, self.trace, self.most, anchor, period, int(self.steady), self.budget))
        from sim.kernels.stream_dram import run_with_memory

        _, tables, state, ports = self.attached
        return int(run_with_memory(g, old, self.trace, self.most, self.budget, tables, state, ports))

    def held_up(self) -> list[int]:
        """The smallest of the rings, if any, that only for their size keep a node from writing."""
        g = self.compiled.streams
        full = [c for _, c, state in self.stuck() if state == "full" and g.channel[c, at.ELASTIC]]
        return [min(full, key=lambda c: (int(g.channel[c, at.MASK]), c))] if full else []

    def stuck(self) -> list[tuple[int, int, str]]:
        """(node, channel, "empty" or "full") of every node that has firings left, once nothing can move."""
        g = self.compiled.streams
        found = []
        for i, x in enumerate(g.node):
            if x[at.FIRED] == x[at.TOTAL]:
                continue
            p = int(x[at.PORTS] + max(x[at.PHASE] - 1, 0))
            if p < x[at.OUTPUTS] and x[at.FLAGS] & at.TAKE_TOGETHER:
                p = next(q for q in range(p, int(x[at.OUTPUTS])) if self._used(x, q) and not self._ready(q))
            if p >= x[at.OUTPUTS] and x[at.FLAGS] & at.WRITE_TOGETHER:
                p = next(q for q in range(p, int(x[at.PORTS_END])) if self._used(x, q) and not self._room(q))
            while not self._used(x, p):
                p += 1
            found.append((i, int(g.port[p, at.CHANNEL]), "empty" if p < x[at.OUTPUTS] else "full"))
        return found

    def _used(self, x: np.ndarray[Any, np.dtype[np.int64]], p: int) -> bool:
        when, member = self.compiled.streams.port[p, [at.WHEN, at.MEMBER]]
        return bool(
            when == at.EACH
            or (when == at.FIRST and x[at.AT] == 0)
            or (when == at.LAST and x[at.AT] == x[at.LENGTH] - 1)
            or (when == at.IN_TURN and x[at.TURN] == member)
        )

    def _ready(self, p: int) -> bool:
        ch = self.compiled.streams.channel[self.compiled.streams.port[p, at.CHANNEL]]
        return bool(ch[at.DEQ] < ch[at.READY])

    def _room(self, p: int) -> bool:
        ch = self.compiled.streams.channel[self.compiled.streams.port[p, at.CHANNEL]]
        return bool(ch[at.ENQ] - ch[at.DEQ] < ch[at.LIMIT])

    def wait_of(self, i: int, c: int, state: str) -> Wait:
        """One entry of `stuck`, in names."""
        g, compiled = self.compiled.streams, self.compiled
        held = int(g.channel[c, at.ENQ] - g.channel[c, at.DEQ])
        return Wait(compiled.nodes[i], compiled.channels[c], state, held, int(g.node[i, at.TIME]))

    def outcome(self, wall_s: float) -> Outcome:
        """What came of it."""
        g, graph = self.compiled.streams, self.compiled.graph
        waits = tuple(self.wait_of(*entry) for entry in self.stuck()) if self.budget == at.NEVER else ()
        rows = dict(zip(self.compiled.nodes, g.node, strict=True))
        peaks = {name: self._peak(c) for c, name in enumerate(self.compiled.channels)}
        own = list(graph.all_channels())
        return Outcome(
            cycles=int(g.node[:, at.TIME].max()),
            deadlock=bool(waits),
            fires={node.name: int(rows[node.name][at.FIRED]) for node in graph.nodes},
            times={node.name: int(rows[node.name][at.TIME]) for node in graph.nodes},
            peak_in_flight={name: peaks[name] for name in own},
            waits=waits,
            events=int(g.channel[:, [at.ENQ, at.DEQ]].sum()),
            requests={name.removesuffix(REQUESTS): peak for name, peak in peaks.items() if name not in own},
            memory=self._memory(),
            wall_s=wall_s,
            compiled=self.compiled,
        )

    def _memory(self) -> dict[str, Any] | None:
        if self.attached is None:
            return None
        from sim.stream.memory import counts

        return counts(self.attached)

    def _peak(self, c: int) -> int:
        """Most tokens in flight, those included that nobody will take any more."""
        g = self.compiled.streams
        ch = g.channel[c]
        k = int(ch[at.ENQ]) - 1
        if k < 0:
            return 0
        base, mask = int(ch[at.BASE]), int(ch[at.MASK])
        last = int(g.sent[base + (k & mask)])
        flying = max(int(ch[at.PEAK]), k + 1 - int(ch[at.DEQ]))
        while flying <= min(k, mask) and k - flying < ch[at.DEQ] and g.ring[base + ((k - flying) & mask)] > last:
            flying += 1
        return flying


def no_trace() -> at.Trace:
    """What a run that notes nothing is given."""
    none = np.zeros(0, np.int64)
    return at.Trace(none, none, none, np.zeros((0, 1), np.int64), 0)


def _remembered(g: at.Streams, steady: bool) -> at.Saved:
    """Room for two states to compare with."""
    n = 2 if steady else 0
    return at.Saved(
        np.zeros((n, *g.node.shape), np.int64),
        np.zeros((n, *g.channel.shape), np.int64),
        np.zeros((n, len(g.ring)), np.int64),
        np.zeros((n, len(g.sent)), np.int64),
    )


def run_graph(
    graph: Graph, *, steady: bool = True, order: Sequence[int] | None = None, most: int = at.NEVER
) -> Outcome:
    """Run `graph`, whose capacities must be numbers or `inf`, to its end or until nothing can move.

    The options are those of `Run`. Raises ConfigError for a memory that does not exist.
    """
    run = Run(graph, steady=steady, order=order, most=most)
    run.load()
    began = time.perf_counter()
    run.go_on()
    return run.outcome(time.perf_counter() - began)
