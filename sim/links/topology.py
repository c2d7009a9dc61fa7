"""Which way data goes between the devices of a group, and how many flows share the busiest link.

Devices are numbered from 0. Switches, full meshes, and whole meshes and tori have closed forms at any size; a part of a
mesh or torus, and graphs, are routed along shortest paths, one pattern of flows at a time.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING, NamedTuple

from sim.errors import ConfigError

if TYPE_CHECKING:
    from sim.links.schema import Links


class Load(NamedTuple):
    """Of one pattern of flows that all send alike: flows on the busiest link, hops of the longest way."""

    sharing: float
    hops: int


def joined(edges: Iterable[tuple[int, int]], devices: int | None) -> int:
    """Devices of a graph. Raises ConfigError, which names the device, if one cannot be reached."""
    neighbours = _neighbours(edges)
    count = devices or 1 + max(neighbours)
    beyond = [node for node in neighbours if node >= count]
    if beyond:
        raise ConfigError(f"an edge names device {beyond[0]}, but there are {count}, counted from 0", key="edges")
    reached = _distances(neighbours, 0)
    lost = [node for node in range(count) if node not in reached]
    if lost:
        raise ConfigError(f"device {lost[0]} cannot be reached from device 0 over the edges given", key="edges")
    return count


def _neighbours(edges: Iterable[tuple[int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {0: []}
    for one, other in edges:
        found.setdefault(one, []).append(other)
        found.setdefault(other, []).append(one)
    return {node: sorted(set(near)) for node, near in found.items()}


def _distances(neighbours: dict[int, list[int]], start: int) -> dict[int, int]:
    seen, queue = {start: 0}, deque([start])
    while queue:
        node = queue.popleft()
        for near in neighbours.get(node, []):
            if near not in seen:
                seen[near] = seen[node] + 1
                queue.append(near)
    return seen


@lru_cache(maxsize=64)
def _graph(links: Links, n: int) -> dict[int, list[int]]:
    """Neighbours of each of `n` devices. Raises ConfigError if there are not so many."""
    if links.topology == "graph":
        have = joined(links.edges, links.devices)
        edges: Sequence[tuple[int, int]] = links.edges
    else:
        have = prod(links.shape)
        edges = _grid(links.shape, links.topology == "torus")
    if n > have:
        raise ConfigError(f"{n} devices are asked for, but the {links.topology} has {have}", key="links")
    return _neighbours(edges)


def _grid(shape: Sequence[int], wraps: bool) -> list[tuple[int, int]]:
    """Edges of a mesh or torus; devices are numbered along a snake, so that successors are neighbours."""
    number = {at: i for i, at in enumerate(_snake(shape))}
    edges = []
    for at in number:
        for axis, size in enumerate(shape):
            near = list(at)
            near[axis] += 1
            if near[axis] == size:
                if not wraps or size < 3:
                    continue
                near[axis] = 0
            edges.append((number[at], number[tuple(near)]))
    return edges


def _snake(shape: Sequence[int]) -> list[tuple[int, ...]]:
    if not shape:
        return [()]
    inner = _snake(shape[1:])
    return [(i, *rest) for i in range(shape[0]) for rest in (inner if i % 2 == 0 else inner[::-1])]


def neighbour_load(links: Links, n: int) -> Load:
    """Every device sends to its successor, the last to the first."""
    if links.topology in ("ring", "switch"):
        return Load(1.0, 1)
    if links.topology == "full":
        return Load(float(max(n - 1, 1)), 1)  # one of a device's n - 1 links has its part of the bandwidth
    if links.topology in ("mesh", "torus"):
        return _snake_load(links, n)
    return _load(links, n, tuple((i, (i + 1) % n) for i in range(n)))


def exchange_load(links: Links, n: int) -> Load:
    """Every device sends to every other at once: as if each flow were 1/(n - 1) of what a device sends."""
    if links.topology in ("switch", "full"):
        return Load(1.0, 1)
    if links.topology == "ring":
        # Half of the flows go each way round, n / 4 hops on average, over one link each way.
        return Load(max(1.0, n * n / 8 / max(n - 1, 1)), max(n // 2, 1))
    if links.topology in ("mesh", "torus") and n == prod(links.shape):
        return _grid_exchange(links.shape, links.topology == "torus")
    flows = tuple((i, j) for i in range(n) for j in range(n) if i != j)
    load = _load(links, n, flows)
    return Load(load.sharing / max(n - 1, 1), load.hops)


@lru_cache(maxsize=64)
def _snake_load(links: Links, n: int) -> Load:
    """Successors are neighbours, and only the last device's flow to the first goes over several links."""
    neighbours = _graph(links, n)
    distance = _distances(neighbours, 0)
    node, hops, shared = n - 1, 0, 1.0
    while node:
        # Of shortest ways the one with the higher number first, which keeps off the snake's own links.
        near = max(near for near in neighbours[node] if distance[near] < distance[node])
        shared = 2.0 if near == node + 1 else shared
        node, hops = near, hops + 1
    return Load(shared, max(hops, 1))


def _grid_exchange(shape: Sequence[int], wraps: bool) -> Load:
    """All to all, one dimension after the other: the links of a line carry what its devices send along it.

    A ring of s devices has s^2 / 4 hops between one and all others, half of them each way; the middle of an open line
    is crossed by the flows of one half to the other.
    """
    n = prod(shape)
    flows, hops = 1.0, 0
    for size in shape:
        if size == 1:
            continue
        ring = wraps and size > 2
        lines = n / size
        flows = max(flows, lines * (size * size // 4) / 2 if ring else lines * (size // 2) * (size - size // 2))
        hops += size // 2 if ring else size - 1
    return Load(flows / max(n - 1, 1), max(hops, 1))


@lru_cache(maxsize=256)
def _load(links: Links, n: int, flows: tuple[tuple[int, int], ...]) -> Load:
    neighbours = _graph(links, n)
    used: Counter[tuple[int, int]] = Counter()
    longest = 1
    toward: dict[int, dict[int, int]] = {}
    for source, target in flows:
        distance = toward.setdefault(target, _distances(neighbours, target))
        node, hops = source, 0
        while node != target:
            closer = [near for near in neighbours[node] if distance[near] < distance[node]]
            near = closer[(source + target + hops) % len(closer)]
            used[node, near] += 1
            node, hops = near, hops + 1
        longest = max(longest, hops)
    return Load(float(max(used.values(), default=1)), longest)
