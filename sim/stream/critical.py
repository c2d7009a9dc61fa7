"""Runs a graph once more with its reasons noted: tokens in flight over time, and the loop that limits throughput."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.kernels import stream_tables as at
from sim.stream.engine import Run
from sim.stream.schema import Graph

MOST_FIRINGS = 20_000_000
"""Firings that are looked at; a longer run is judged by these first ones."""
MOST_STEPS = 400_000
BINS = 512
KINDS = ("own", "data", "full", "memory")


@dataclass(frozen=True)
class Link:
    """One step of the critical loop: `to` waits for `node`, by the kind of KINDS, over `channel`."""

    node: str
    to: str
    kind: str
    channel: str | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"from": self.node, "to": self.to, "kind": self.kind, "channel": self.channel}


@dataclass(frozen=True)
class Critical:
    """The loop of waits that sets the pace: it takes `cycles`, in which its first node fires `firings` times.

    A link of kind `own` is a node that waits for nothing but its own initiation interval; `data` waits for a token,
    `full` for room, `memory` for the DRAM, whose time is not fixed: then `cycles` is None.
    """

    links: tuple[Link, ...]
    firings: int
    cycles: int | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"links": [link.as_dict() for link in self.links], "firings": self.firings, "cycles": self.cycles}

    def sentence(self) -> str:
        """In words."""
        words = {"own": "its own interval", "data": "a token in {}", "full": "room in {}", "memory": "the memory in {}"}
        parts = [f"{k.to} waits for {words[k.kind].format(k.channel)}" for k in self.links]
        time = "one round" if self.cycles is None else f"{self.cycles} cycle{'s' if self.cycles != 1 else ''}"
        pace = f"{self.firings} firing{'s' if self.firings != 1 else ''} in {time}"
        return f"{'; '.join(parts)}: {pace}"


@dataclass(frozen=True)
class Traced:
    """What a traced run tells. occupancy: [channels, bins], tokens in flight at the end of each stretch of time."""

    channels: list[str]
    occupancy: NDArray[np.int64]
    bin_cycles: int
    cycles: int
    critical: Critical | None


def trace(graph: Graph, cycles: int) -> Traced:
    """Run `graph`, which takes `cycles`, once more, token by token. Raises ConfigError as `run_graph` does."""
    run = Run(graph, budget=MOST_FIRINGS)
    total = run.compiled.streams.node[:, at.TOTAL]
    most = max(MOST_FIRINGS // len(total), 1)
    size = np.array([1 << (int(min(n, most)) - 1).bit_length() if n else 1 for n in total], np.int64)
    shift = max((cycles // BINS).bit_length(), 0)
    run.trace = at.Trace(
        code=np.zeros(int(size.sum()), np.int64),
        first=np.concatenate([[0], np.cumsum(size)[:-1]]),
        mask=size - 1,
        change=np.zeros((len(run.compiled.channels), BINS + 1), np.int64),
        shift=shift,
    )
    run.steady = False
    run.trace.change[:, 0] = [graph.all_channels()[c].initial if c in graph.all_channels() else 0
                              for c in run.compiled.channels]  # fmt: skip
    run.go_on()
    reached = int(run.compiled.streams.node[:, at.TIME].max())
    bins = min((reached >> shift) + 1, BINS)
    own = len(graph.all_channels())
    return Traced(
        channels=run.compiled.channels[:own],
        occupancy=run.trace.change.cumsum(axis=1)[:own, :bins],
        bin_cycles=1 << shift,
        cycles=reached,
        critical=_critical(run),
    )


def _critical(run: Run) -> Critical | None:
    """The loop that the walk back from the latest node goes round, taken from the middle of the walk."""
    from sim.kernels.stream_path import walk

    g, graph = run.compiled.streams, run.compiled.graph
    specs = graph.all_channels()
    first = np.array([specs[c].initial if c in specs else 0 for c in run.compiled.channels], np.int64)
    steps = np.zeros((MOST_STEPS, 5), np.int64)
    times = np.where(g.node[:, at.FIRED] > 0, g.node[:, at.TIME], -1)
    start = int(times.argmax())
    count = walk(g, run.trace, first, np.int64(start), steps)
    steps = steps[:count]
    if not count:
        return None
    return loop_of(steps, start, run.compiled.nodes, run.compiled.channels)


def loop_of(steps: NDArray[np.int64], start: int, nodes: list[str], channels: list[str]) -> Critical:
    """The critical loop of a walk (see `stream_path`): where it is in the middle, and what follows until it is back."""
    middle = len(steps) // 2
    before = np.concatenate([[start], steps[:-1, 0]])
    hops = np.flatnonzero(steps[:, 2] != 0)
    label = steps[:, 2] * len(channels) + steps[:, 3]
    later = hops[hops >= middle]
    for here in later[:64]:
        again = later[(later > here) & (label[later] == label[here]) & (before[later] == before[here])]
        if not len(again):
            continue
        part = steps[here : again[0]]
        links = [
            Link(nodes[int(node)], nodes[int(to)], KINDS[int(kind)], channels[int(c)])
            for (node, _, kind, c, _), to in zip(part, before[here : again[0]], strict=True)
            if kind
        ]
        ahead = _firings_at(steps, here - 1, start, before)
        fired = ahead - _firings_at(steps, int(again[0]) - 1, start, before)
        fixed = all(link.kind != "memory" for link in links)
        return Critical(tuple(links), int(fired), int(part[:, 4].sum()) if fixed else None)
    node = int(np.bincount(steps[middle:, 0]).argmax())
    own = steps[(steps[:, 0] == node) & (steps[:, 2] == 0)]
    cycles = int(np.median(own[:, 4])) if len(own) else 0
    return Critical((Link(nodes[node], nodes[node], "own", None),), 1, cycles)


def _firings_at(steps: NDArray[np.int64], i: int, start: int, before: NDArray[np.int64]) -> int:
    """The firing that step `i` leads to."""
    return int(steps[i, 1]) if i >= 0 else int(steps[0, 1]) + int(steps[0, 2] == 0)
