"""Runs a streaming graph and tells what came of it: cycles, firings, tokens in flight, and who waits for whom."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sim.errors import ConfigError
from sim.kernels import stream_tables as at
from sim.stream.schema import Graph
from sim.stream.tables import Compiled, compile_graph, enlarge


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
    """A finished run. `cycles` is the largest local time; the rest is by name."""

    cycles: int
    deadlock: bool
    fires: dict[str, int]
    times: dict[str, int]
    peak_in_flight: dict[str, int]
    waits: tuple[Wait, ...]
    events: int
    """Tokens written and tokens taken."""
    wall_s: float
    compiled: Compiled = field(repr=False, compare=False)


class Run:
    """A graph on its way: it can be taken up again, with larger channels, where it stood still."""

    def __init__(
        self, graph: Graph, *, steady: bool = True, order: Sequence[int] | None = None, most: int = at.NEVER,
        trace: at.Trace | None = None,
    ) -> None:  # fmt: skip
        """`order`: nodes by number, in which they are evaluated; `most`: firings of a node in its turn.

        `steady` allows stretches to be advanced in closed form. None of them changes a result.
        """
        self.compiled = compile_graph(graph)
        if order is not None:
            streams = self.compiled.streams._replace(order=np.array(order, np.int64))
            self.compiled = self.compiled._replace(streams=streams)
        self.most, self.trace = most, trace or no_trace()
        self.steady = steady and trace is None

    def go_on(self) -> None:
        """Evaluate until nothing can move, with rings as large as the tokens in flight need. """
        from sim.kernels.stream import run

        while True:
            g = self.compiled.streams
            status = run(
                g, remembered(g, self.steady), self.trace, self.most, self.compiled.anchor, self.compiled.period,
                int(self.steady),
            )  # fmt: skip
            small = np.flatnonzero(g.channel[:, at.NEED]) if status == at.GROW else self._held_up()
            if not len(small):
                return
            self.compiled = enlarge(self.compiled, [int(c) for c in small])

    def _held_up(self) -> list[int]:
        """The smallest of the rings, if any, that only for their size keep a node from writing."""
        g = self.compiled.streams
        full = [
            c for _, c, state in self.stuck()
            if state == "full" and g.channel[c, at.ELASTIC]
        ]  # fmt: skip
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

    def _used(self, x: np.ndarray, p: int) -> bool:
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

    def waits(self) -> tuple[Wait, ...]:
        """As `stuck`, in names."""
        g, names = self.compiled.streams, self.compiled
        return tuple(
            Wait(names.nodes[i], names.channels[c], state, int(g.channel[c, at.ENQ] - g.channel[c, at.DEQ]),
                 int(g.node[i, at.TIME]))
            for i, c, state in self.stuck()
        )  # fmt: skip

    def outcome(self, wall_s: float) -> Outcome:
        """What came of it."""
        g = self.compiled.streams
        waits = self.waits()
        own = [node.name for node in self.compiled.graph.nodes]
        rows = dict(zip(self.compiled.nodes, g.node, strict=True))
        return Outcome(
            cycles=int(g.node[:, at.TIME].max()),
            deadlock=bool(waits),
            fires={name: int(rows[name][at.FIRED]) for name in own},
            times={name: int(rows[name][at.TIME]) for name in own},
            peak_in_flight={name: self._peak(c) for c, name in enumerate(self.compiled.channels)},
            waits=waits,
            events=int(g.channel[:, [at.ENQ, at.DEQ]].sum()),
            wall_s=wall_s,
            compiled=self.compiled,
        )

    def _peak(self, c: int) -> int:
        """Most tokens in flight, those that nobody will take any more included."""
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
    return at.Trace(none, none, none, np.zeros((0, 1), np.int64), np.int64(0))


def remembered(g: at.Streams, steady: bool) -> at.Saved:
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

    See `Run` for the options. Raises ConfigError.
    """
    run = Run(graph, steady=steady, order=order, most=most)
    began = time.perf_counter()
    run.go_on()
    return run.outcome(time.perf_counter() - began)


__all__ = ["ConfigError", "Mapping", "Outcome", "Run", "Wait", "run_graph"]
