"""Explains a deadlock: the loop of nodes that wait for one another, and the least capacities that free it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sim.kernels import stream_tables as at
from sim.stream.engine import Outcome, Run, Wait
from sim.stream.schema import UNBOUNDED, Graph
from sim.stream.sizing import shrink


@dataclass(frozen=True)
class Deadlock:
    """Why a graph stands still.

    loop: nodes each of which waits for the next, the last for the first. change: capacities, by channel, that let the
    graph end, each as small as can be with the others; empty where no capacity helps.
    """

    loop: tuple[Wait, ...]
    change: dict[str, tuple[int, int]]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "loop": [wait.as_dict() for wait in self.loop],
            "change": [{"channel": name, "capacity": a, "needed": b} for name, (a, b) in self.change.items()],
        }

    def sentence(self) -> str:
        """In words."""
        links = [
            f"{w.node} waits for {'a token in' if w.state == 'empty' else 'room in'} {w.channel} "
            f"({w.state}, {w.occupancy} token{'s' if w.occupancy != 1 else ''}, at cycle {w.cycle:,})"
            for w in self.loop
        ]
        if not self.change:
            return f"{'; '.join(links)}. No capacity helps: the tokens in the loop are too few."
        needs = [f"{name} from {a} to {b}" for name, (a, b) in self.change.items()]
        return f"{'; '.join(links)}. It ends with the capacity of {' and '.join(needs)}."


def wait_loop(run: Run) -> list[tuple[int, int, str]]:
    """Entries of `run.stuck()`, each waiting for the node of the next, the last for that of the first."""
    g = run.compiled.streams
    waits = {i: (i, c, state) for i, c, state in run.stuck()}
    if not waits:
        return []
    i = next(iter(waits))
    seen: list[int] = []
    while i not in seen:
        seen.append(i)
        _, c, state = waits[i]
        i = int(g.channel[c, at.FROM if state == "empty" else at.TO])
        if i not in waits:
            return []
    return [waits[i] for i in seen[seen.index(i) :]]


def explain(graph: Graph) -> Deadlock | None:
    """Why `graph` stands still, or None where it does not. Runs it again several times."""
    run = Run(graph)
    run.go_on()
    loop = wait_loop(run)
    if not run.stuck():
        return None
    waits = tuple(run.wait_of(*entry) for entry in loop or run.stuck())
    return Deadlock(waits, least_change(graph, loop))


def least_change(graph: Graph, loop: list[tuple[int, int, str]]) -> dict[str, tuple[int, int]]:
    """Channel: (capacity now, capacity needed), as few channels and tokens more as were found."""
    channels = graph.all_channels()
    names = list(channels)
    first = _full(loop, names)
    best: dict[str, tuple[int, int]] = {}
    for name in first:
        opened = _open(graph, [name])
        if opened is None:
            continue
        found = {c: (int(channels[c].capacity), n) for c, n in shrink(graph, opened, _ends).items()}
        cost = (len(found), sum(b - a for a, b in found.values()))
        if not best or cost < (len(best), sum(b - a for a, b in best.values())):
            best = found
    return best


def _full(loop: list[tuple[int, int, str]], names: list[str]) -> list[str]:
    """Channels of the graph that are full in a loop; those of a DRAM port's requests are not the graph's."""
    return [names[c] for _, c, state in loop if state == "full" and c < len(names)]


def _open(graph: Graph, opened: list[str]) -> dict[str, int] | None:
    """Channels that must be larger for the graph to end, `opened` and more, with enough of it; None if none helps."""
    names = list(graph.all_channels())
    while True:
        run = Run(graph.with_capacities(dict.fromkeys(opened, UNBOUNDED)))
        run.go_on()
        if not run.stuck():
            g = run.compiled.streams
            return {name: int(g.channel[run.compiled.channels.index(name), at.LIMIT]) for name in opened}
        full = [name for name in _full(wait_loop(run), names) if name not in opened]
        if not full:
            return None
        opened = [*opened, min(full, key=lambda name: int(graph.all_channels()[name].capacity))]


def _ends(outcome: Outcome) -> bool:
    return not outcome.deadlock
