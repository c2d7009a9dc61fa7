"""Works out channel capacities: the smallest with which a graph ends, or with which it is as fast as without limits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum

from sim.kernels import stream_tables as at
from sim.stream.engine import Outcome, Run, run_graph
from sim.stream.schema import AUTO, UNBOUNDED, Graph


class Goal(StrEnum):
    """What capacities must be enough for."""

    throughput = "throughput"
    """As many cycles as with unbounded channels in their place."""
    live = "live"
    """No deadlock."""


def automatic(graph: Graph) -> list[str]:
    """Channels whose capacity is to be worked out."""
    return [name for name, channel in graph.all_channels().items() if channel.capacity == AUTO]


def sized(graph: Graph, goal: Goal = Goal.throughput) -> tuple[Graph, dict[str, int]]:
    """`graph` with a number in place of every `auto`, and these numbers."""
    names = automatic(graph)
    found = capacities(graph, names, goal) if names else {}
    return graph.with_capacities(found), found


def capacities(graph: Graph, names: Iterable[str], goal: Goal = Goal.throughput) -> dict[str, int]:
    """Capacities of the channels `names`, the others as they are, none of which can be lowered alone and reach `goal`.

    Each is first found with the rest of `names` as large as a run without limits fills them. Where these are enough
    together, they are the answer; where not, a search goes from what that run fills down, channel by channel. Where
    `goal` is out of reach, as others are too small, the answer is for what can be reached.
    """
    names = list(names)
    run = Run(graph.with_capacities(dict.fromkeys(names, UNBOUNDED)))
    run.go_on()
    free = run.outcome(0.0)

    def good(outcome: Outcome) -> bool:
        fast = outcome.cycles <= free.cycles or goal is Goal.live
        return outcome.deadlock == free.deadlock and fast and outcome.fires == free.fires

    g, order = run.compiled.streams, run.compiled.channels
    enough = {name: max(int(g.channel[order.index(name), at.LIMIT]), free.peak_in_flight[name], 1) for name in names}
    alone = {name: _least(graph, name, enough, 1, enough[name], good) for name in names}
    if good(run_graph(graph.with_capacities(alone))):
        return alone
    return shrink(graph, enough, good, alone)


def shrink(
    graph: Graph, enough: Mapping[str, int], good: Callable[[Outcome], bool], least: Mapping[str, int] | None = None
) -> dict[str, int]:
    """Capacities from `enough` down, one channel after the other, as small as keeps the outcome good."""
    found = dict(enough)
    for name in found:
        found[name] = _least(graph, name, found, (least or {}).get(name, 1), found[name], good)
    return found


def _least(
    graph: Graph, name: str, others: Mapping[str, int], least: int, enough: int, good: Callable[[Outcome], bool]
) -> int:
    """The smallest capacity of `name` that is good, with the capacities of `others` in place of those of the graph."""
    least = max(least, graph.all_channels()[name].initial, 1)
    return smallest(lambda n: good(run_graph(graph.with_capacities({**others, name: n}))), least, enough)


def smallest(good: Callable[[int], bool], least: int, enough: int) -> int:
    """The smallest number from `least` on that is good, where `enough` is and all above a good one are.

    Small numbers are tried first: they are the likely ones, and quick.
    """
    low, step = least, 0
    while low + step < enough:
        if good(low + step):
            enough = low + step
        else:
            low, step = low + step + 1, 2 * step + 1
    while low < enough:
        middle = (low + enough) // 2
        if good(middle):
            enough = middle
        else:
            low = middle + 1
    return enough
