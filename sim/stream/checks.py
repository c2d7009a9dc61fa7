"""What can be said of a graph without running it: who writes and reads each channel, loops, how often nodes fire."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.errors import ConfigError

if TYPE_CHECKING:
    from sim.stream.ports import Port, Rhythm
    from sim.stream.schema import Graph, Node

MOST_CYCLES = 2**61
"""Times stay below this, so that no sum of them leaves 64 bits."""


def check(graph: Graph) -> None:
    """Raise ConfigError for the first thing wrong with the graph, with its key."""
    _names(graph)
    _ends(graph)
    _loops(graph)
    _memory(graph)
    fires = firings(graph)
    channels = graph.all_channels().values()
    slowest = max(c.send_latency + c.response_latency for c in channels)
    bound = sum(n.start + f * (n.ii + n.latency + getattr(n, "row_cycles", 0) + 8 * slowest)
                for n, f in zip(graph.nodes, fires.values(), strict=True))  # fmt: skip
    if bound > MOST_CYCLES:
        raise ConfigError(f"could take up to {bound:.1e} cycles, more than {MOST_CYCLES:.1e} can be told", key="nodes")


def _names(graph: Graph) -> None:
    seen: dict[str, int] = {}
    for i, node in enumerate(graph.nodes):
        if node.name in seen:
            raise ConfigError(f"is {node.name!r}, the name of node {seen[node.name]} too", key=f"nodes.{i}.name")
        seen[node.name] = i


def ends(graph: Graph) -> tuple[dict[str, list[tuple[int, int]]], dict[str, list[tuple[int, int]]]]:
    """(writers, readers) of each channel, as (number of the node, place among its outputs or inputs)."""
    from sim.stream.schema import inputs_of, outputs_of

    writers: dict[str, list[tuple[int, int]]] = {name: [] for name in graph.all_channels()}
    readers: dict[str, list[tuple[int, int]]] = {name: [] for name in writers}
    for i, node in enumerate(graph.nodes):
        for j, name in enumerate(outputs_of(node)):
            writers[name].append((i, j))
        for j, name in enumerate(inputs_of(node)):
            readers[name].append((i, j))
    return writers, readers


def _ends(graph: Graph) -> None:
    writers, readers = ends(graph)
    for found, what, side in ((writers, "writer", "out"), (readers, "reader", "in")):
        other = readers if side == "out" else writers
        for name, at in found.items():
            if len(at) > 1:
                (first, _), (second, place) = at[:2]
                both = f"{graph.nodes[first].name!r} and {graph.nodes[second].name!r}"
                both = f"{graph.nodes[first].name!r} twice" if first == second else both
                raise ConfigError(
                    f"channel {name!r} has two {what}s, {both}, but must have one", key=f"nodes.{second}.{side}.{place}"
                )
            if not at:
                key = f"channels.{name}"
                if name not in graph.channels:
                    node, place = other[name][0]
                    key = f"nodes.{node}.{'in' if side == 'out' else 'out'}.{place}"
                raise ConfigError(f"channel {name!r} has no {what}{_meant(name, found, other)}", key=key)


def _meant(name: str, found: dict[str, list[tuple[int, int]]], other: dict[str, list[tuple[int, int]]]) -> str:
    """A hint at a misspelling: a channel that has only what `name` lacks."""
    from sim.errors import nearest

    near = nearest(name, [n for n, at in found.items() if at and not other[n]])
    return f"; is {near!r} a misspelling of it?" if near else ""


def _loops(graph: Graph) -> None:
    """Raise ConfigError for a loop of channels without a token in it: each node would wait for the one before."""
    from sim.stream.schema import inputs_of

    channels = graph.all_channels()
    writers, _ = ends(graph)
    before = [
        [(writers[name][0][0], name) for name in inputs_of(node) if channels[name].initial == 0] for node in graph.nodes
    ]
    state = [0] * len(graph.nodes)
    for root in range(len(graph.nodes)):
        if state[root]:
            continue
        state[root] = 1
        path = [(root, "", iter(before[root]))]
        while path:
            node, _, rest = path[-1]
            step = next(rest, None)
            if step is None:
                state[node] = 2
                path.pop()
            elif state[step[0]] == 0:
                state[step[0]] = 1
                path.append((step[0], step[1], iter(before[step[0]])))
            elif state[step[0]] == 1:
                start = next(i for i, entry in enumerate(path) if entry[0] == step[0])
                loop = [name for _, name, _ in path[start + 1 :]] + [step[1]]
                nodes = [graph.nodes[n].name for n, _, _ in path[start:]]
                through = ", ".join(repr(n) for n in reversed(nodes))
                raise ConfigError(
                    f"channel {loop[-1]!r} closes a loop through {through} without a token in it, so none of them can "
                    "ever fire; give a channel of it `initial` tokens",
                    key=f"channels.{loop[-1]}" if loop[-1] in graph.channels else "nodes",
                )


def _memory(graph: Graph) -> None:
    from sim.stream.schema import DramRead, DramWrite

    for i, node in enumerate(graph.nodes):
        if not isinstance(node, (DramRead, DramWrite)):
            continue
        if graph.memory is None:
            raise ConfigError(f"is missing, but node {node.name!r} goes to it", key="memory")
        if graph.clock is None:
            raise ConfigError("is missing: with a memory, a cycle must have a length, such as '1 GHz'", key="clock")
        if node.channel >= graph.memory.channels:
            raise ConfigError(
                f"is {node.channel}, but the memory has {graph.memory.channels} channels, counted from 0",
                key=f"nodes.{i}.channel",
            )


def firings(graph: Graph) -> dict[str, int]:
    """How often each node fires until no token is left over. Raises ConfigError where that cannot be."""
    from sim.stream.ports import ports_of, rhythm_of
    from sim.stream.schema import Merge

    channels = graph.all_channels()
    writers, readers = ends(graph)
    ports = [ports_of(node) for node in graph.nodes]
    rhythms = [rhythm_of(node) for node in graph.nodes]
    total: list[int | None] = [getattr(node, "count", None) for node in graph.nodes]

    def written(name: str) -> int | None:
        node, place = writers[name][0]
        fires = total[node]
        return None if fires is None else rhythms[node].uses(ports[node][1][place], fires)

    def settle(through_initial: bool) -> bool:
        """Find out about nodes that nothing is known of yet; False if there is nothing new."""
        found = False
        for i, node in enumerate(graph.nodes):
            if total[i] is not None:
                continue
            known = [
                (port, written(port.channel))
                for port in ports[i][0]
                if through_initial or channels[port.channel].initial == 0
            ]
            if isinstance(node, Merge):
                if known and len(known) == len(ports[i][0]) and all(tokens is not None for _, tokens in known):
                    total[i] = sum(tokens or 0 for _, tokens in known)
                    found = True
                continue
            for port, tokens in known:
                if tokens is not None and port.when != 3:
                    total[i] = rhythms[i].firings(port, tokens)
                    found = True
                    break
        return found

    while settle(False) or settle(True):
        pass
    for i, fires in enumerate(total):
        if fires is None:
            raise ConfigError(f"no source feeds node {graph.nodes[i].name!r}, so it would never end", key=f"nodes.{i}")
        if fires and not rhythms[i].whole(fires):
            _refuse_rest(graph, i, fires, ports[i][0], rhythms[i])
    for name, channel in channels.items():
        node, place = readers[name][0]
        fires, tokens = total[node], written(name)
        assert fires is not None
        assert tokens is not None
        taken = rhythms[node].uses(ports[node][0][place], fires)
        if not tokens <= taken <= tokens + channel.initial:
            _refuse_rates(graph, name, tokens, taken, (writers[name][0][0], node, place), ports[node][0], fires)
    return {node.name: fires or 0 for node, fires in zip(graph.nodes, total, strict=True)}


def _refuse_rest(graph: Graph, i: int, fires: int, inputs: list[Port], rhythm: Rhythm) -> None:
    every = rhythm.rows[0] if len(rhythm.rows) == 1 else "its rows"
    source = next(port.channel for port in inputs)
    raise ConfigError(
        f"node {graph.nodes[i].name!r} needs whole rows of {every}, but channel {source!r} brings {fires} tokens",
        key=f"nodes.{i}.every",
    )


def _refuse_rates(
    graph: Graph, name: str, tokens: int, taken: int, at: tuple[int, int, int], inputs: list[Port], fires: int
) -> None:
    writer, reader, place = at
    names: list[Node] = [graph.nodes[writer], graph.nodes[reader]]
    other = next((port.channel for port in inputs if port.channel != name), None)
    beside = f" in {fires} firings" if other is None else f" beside those of {other!r}"
    raise ConfigError(
        f"rates cannot balance: {names[0].name!r} writes {tokens} tokens to channel {name!r}, but {names[1].name!r} "
        f"takes {taken} of them{beside}",
        key=f"nodes.{reader}.in.{place}",
    )
