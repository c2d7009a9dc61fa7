"""One section: nodes joined by channels, the budgets they must keep to, tiles given out, and the graph for the kernel.

A token is a block of rows. Every node passes tokens on one for one, or takes many of a kind for one (and the other way
round) in rows, so a channel that skips nodes never stands still if it holds what the longest way round holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from sim.spatial.machine import StreamMachine
from sim.spatial.rates import Rated, fewest, up
from sim.stream.schema import SCHEMA

COMPUTE, VECTOR, STORE_TILES, LOAD, STORE = "compute", "vector", "memory tiles", "dram.load", "dram.store"
"""Units of the report: products and vector functions on compute tiles, what memory tiles do, ports by direction."""


class TooLargeError(Exception):
    """A section that does not fit a budget: says which, how much it needs and how much there is, with the key."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


@dataclass(slots=True)
class Work:
    """What a node does in one section, for the report."""

    macs: int = 0
    vector_ops: int = 0
    sram_read: int = 0
    sram_write: int = 0
    dram_read: int = 0
    dram_write: int = 0


@dataclass(slots=True)
class Link:
    """A channel: its nodes, bytes of a token, tokens it holds (0: worked out)."""

    name: str
    writer: str
    reader: str
    token_bytes: int
    capacity: int = 0


@dataclass(slots=True)
class Node:
    """A node of a section. `op`: operator it works for; `rated`: what tiles do for one firing, None without tiles.

    holds: bytes that stay in memory tiles beside the channels; barrier: tokens that it takes before it lets one go;
    ahead: it works for the next section, whose operators `op` counts.
    """

    name: str
    kind: str
    unit: str
    op: int
    fires: int
    rated: Rated | None = None
    ii: int = 1
    latency: int = 1
    keys: dict[str, Any] = field(default_factory=dict)
    work: Work = field(default_factory=Work)
    holds: int = 0
    barrier: int = 1
    inputs: list[Link] = field(default_factory=list)
    outputs: list[Link] = field(default_factory=list)
    tiles: int = 0
    ahead: bool = False


class Fabric:
    """A section as it grows. `blocks`: tokens that pass through it."""

    def __init__(self, machine: StreamMachine, blocks: int) -> None:
        self.machine = machine
        self.blocks = blocks
        self.nodes: dict[str, Node] = {}
        self.links: list[Link] = []
        self.ports: dict[str, Node] = {}
        self.decisions: dict[int, dict[str, str]] = {}
        self.weights: list[tuple[Node, Node]] = []
        """(port, node that holds them) of weights that are loaded in one go, before anything else is known."""
        self.end = 0
        """Bytes of each memory channel that the section has addresses for."""
        self._hops: dict[str, int] = {}
        self._joined = 0

    def add(self, node: Node) -> Node:
        """Add a node; a name that is taken gets a number."""
        name, number = node.name, 2
        while node.name in self.nodes:
            node.name = f"{name} {number}"
            number += 1
        self.nodes[node.name] = node
        return node

    def join(self, writer: Node, reader: Node, token_bytes: int, capacity: int = 0) -> Link:
        """A channel from `writer` to `reader`, after those that they have already."""
        link = Link(f"c{self._joined}", writer.name, reader.name, token_bytes, capacity)
        self._joined += 1
        self.links.append(link)
        writer.outputs.append(link)
        reader.inputs.append(link)
        return link

    def port(self, name: str, op: int, tokens: int, token_bytes: int, total: int, write: bool = False) -> Node:
        """A stream from or to DRAM of `tokens` tokens, `total` bytes in all, spread evenly over all channels."""
        machine = self.machine
        bursts = max(up(token_bytes, machine.memory.channels * machine.dram.burst_bytes), 1)
        outstanding = max(1, min(int(machine.ports.window) // max(token_bytes, 1), tokens))
        keys = {"bursts": bursts, "outstanding": outstanding, "address": self.end}
        self.end += tokens * bursts * machine.dram.burst_bytes
        node = Node(name, "dram_write" if write else "dram_read", STORE if write else LOAD, op, tokens, keys=keys)
        node.ii = up(token_bytes, machine.ports.bytes_per_cycle)
        node.work = Work(sram_read=total, dram_write=total) if write else Work(sram_write=total, dram_read=total)
        if not write:
            keys["count"] = tokens
        self.ports[self.add(node).name] = node
        return node

    def load(self, name: str, op: int, tokens: int, total: int, held: int, weights: bool = False) -> Node:
        """Reads `total` bytes in `tokens` parts; a part is handed on when all of it lies in its `held` bytes.

        weights: what is read is known before the section begins.
        """
        chunk = max(int(self.machine.ports.window) // 8, 1)
        each = up(total, tokens)
        pieces = up(each, chunk)
        port = self.port(f"{name} load", op, tokens * pieces, up(each, pieces), total)
        hold = self.add(Node(name, "reduce", STORE_TILES, op, tokens * pieces, keys={"every": pieces}, holds=held))
        # A memory tile writes as fast as the port hands on.
        hold.ii = port.ii
        self.join(port, hold, 0, 1 + min(tokens * pieces, 8))
        if weights and tokens == 1:
            self.weights.append((port, hold))
        return hold

    def copy(self) -> Fabric:
        """A finished section whose nodes and channels can be changed without changing this one."""
        made = Fabric(self.machine, self.blocks)
        made.links = [replace(link) for link in self.links]
        known = {link.name: link for link in made.links}
        for node in self.nodes.values():
            inputs, outputs = ([known[link.name] for link in side] for side in (node.inputs, node.outputs))
            made.nodes[node.name] = replace(node, keys=dict(node.keys), inputs=inputs, outputs=outputs)
        made.ports = {name: made.nodes[name] for name in self.ports}
        made.weights = [(made.nodes[port.name], made.nodes[hold.name]) for port, hold in self.weights]
        made.decisions, made.end, made._hops = self.decisions, self.end, dict(self._hops)
        made._joined = self._joined
        return made

    def fit(self) -> None:
        """Work out capacities and check every budget. Raises TooLargeError."""
        machine = self.machine
        order = self._order()
        self._capacities(order)
        held = sum(n.holds for n in self.nodes.values()) + sum(c.capacity * c.token_bytes for c in self.links)
        if held > machine.sram_bytes:
            raise TooLargeError(f"needs {held} B in memory tiles, but all of them hold {machine.sram_bytes} B",
                           "memory_tiles.capacity")  # fmt: skip
        if len(self.links) > machine.fifo.count:
            raise TooLargeError(f"needs {len(self.links)} channels, but a section may have {machine.fifo.count}",
                                "fifo.count")  # fmt: skip
        if len(self.ports) > machine.ports.count:
            raise TooLargeError(f"needs {len(self.ports)} DRAM ports, but there are {machine.ports.count}",
                                "ports.count")  # fmt: skip
        rated = [n for n in order if n.rated is not None]
        tiles = machine.compute_tiles.count
        if len(rated) > tiles:
            raise TooLargeError(f"needs a compute tile for each of {len(rated)} operators, but there are {tiles}",
                           "compute_tiles.rows")  # fmt: skip
        per_channel = machine.dram.capacity_bytes_per_channel
        if self.end > per_channel:
            raise TooLargeError(f"streams {self.end} B of each memory channel, but a channel holds {per_channel} B",
                           "memory.channels")  # fmt: skip

    def finish(self) -> None:
        """Give out tiles and places; the section must fit."""
        order = self._order()
        self._allocate([n for n in order if n.rated is not None])
        self._place(order)

    @property
    def sram_bytes(self) -> int:
        """Bytes in memory tiles, once settled."""
        return sum(n.holds for n in self.nodes.values()) + sum(c.capacity * c.token_bytes for c in self.links)

    def graph(self) -> dict[str, Any]:
        """The section for the streaming kernel, on one memory channel: tokens are spread evenly, so all do the same."""
        machine = self.machine
        nodes = []
        for node in self.nodes.values():
            data: dict[str, Any] = {"name": node.name, "kind": node.kind, "ii": node.ii, "latency": node.latency}
            data |= node.keys
            if node.inputs:
                data["in"] = [link.name for link in node.inputs]
            if node.outputs:
                data["out"] = [link.name for link in node.outputs]
            nodes.append(data)
        channels = {
            link.name: {"capacity": link.capacity, "send_latency": 1 + hops * machine.network.hop,
                        "response_latency": 1 + hops * machine.network.hop}
            for link in self.links
            for hops in [self._hops.get(link.name, 0)]
        }  # fmt: skip
        memory = {"standard": machine.memory.standard, "settings": machine.memory.settings}
        clock = f"{int(machine.clock)} Hz"
        return {"schema": SCHEMA, "clock": clock, "memory": memory, "channels": channels, "nodes": nodes}

    def _order(self) -> list[Node]:
        """Nodes after those that feed them."""
        left = {name: len(node.inputs) for name, node in self.nodes.items()}
        ready = [name for name, count in left.items() if count == 0]
        order = []
        while ready:
            node = self.nodes[ready.pop(0)]
            order.append(node)
            for link in node.outputs:
                left[link.reader] -= 1
                if left[link.reader] == 0:
                    ready.append(link.reader)
        assert len(order) == len(self.nodes), "a section is a graph without loops"
        return order

    def _capacities(self, order: list[Node]) -> None:
        """Tokens that each channel holds: the depth, and where nodes are skipped all that the way round may hold."""
        depth = self.machine.fifo.depth
        base = {c.name: c.capacity or min(depth, self.nodes[c.writer].fires) for c in self.links}
        for node in order:
            if len(node.outputs) < 2:
                continue
            reach = {node.name: 0}
            for other in order:
                if other.name not in reach:
                    continue
                here = reach[other.name] + (0 if other is node else max(1, other.barrier))
                for link in other.outputs:
                    reach[link.reader] = max(reach.get(link.reader, 0), here + base[link.name])
            for link in node.outputs:
                if not link.capacity and reach[link.reader] > base[link.name]:
                    link.capacity = min(self.blocks, reach[link.reader])
        for link in self.links:
            link.capacity = max(link.capacity or base[link.name], 1)

    def _allocate(self, rated: list[Node]) -> None:
        """Tiles for every node so that the slowest is as fast as it can be; spare ones stay idle."""
        machine = self.machine
        tiles, budget = machine.compute_tiles, machine.compute_tiles.count
        if machine.mapping.tiles == "one" or not rated:
            given: list[int] | None = [1] * len(rated)
        elif self.blocks == 1:
            given = self._in_turn(rated)
        else:
            most = budget - len(rated) + 1
            high = max(n.fires * n.rated.cycles(tiles, 1) for n in rated if n.rated)
            low = max(n.fires * n.rated.cycles(tiles, most) for n in rated if n.rated)
            given = self._tiles_for(rated, high, most)
            while low < high:
                middle = (low + high) // 2
                found = self._tiles_for(rated, middle, most)
                if found is None:
                    low = middle + 1
                else:
                    high, given = middle, found
        assert given is not None
        for node, count in zip(rated, given, strict=True):
            assert node.rated is not None
            node.tiles = count
            node.ii = node.rated.cycles(tiles, count)
            node.latency = node.ii + node.rated.latency(tiles, count)
            if node.op in self.decisions:
                mine = self.decisions[node.op]
                mine["tiles"] = str(int(mine.get("tiles", "0")) + count)
                mine["ii"] = f"{mine['ii']}, {node.ii}" if "ii" in mine else str(node.ii)

    def _in_turn(self, rated: list[Node]) -> list[int]:
        """Tiles where a single token makes nodes work one after the other: by the roots of their work, which makes the
        sum of their times least.
        """
        tiles = self.machine.compute_tiles
        roots = [math.isqrt(n.fires * n.rated.cycles(tiles, 1)) for n in rated if n.rated]
        spare, whole = tiles.count - len(rated), max(sum(roots), 1)
        return [1 + spare * root // whole for root in roots]

    def _tiles_for(self, rated: list[Node], cycles: int, most: int) -> list[int] | None:
        """Fewest tiles of each node with which none takes longer than `cycles` in all; None if they are too many."""
        tiles = self.machine.compute_tiles
        left = tiles.count
        given = []
        for i, node in enumerate(rated):
            assert node.rated is not None
            rate = node.rated
            count = fewest(partial(rate.cycles, tiles), cycles // node.fires, most)
            if count is None:
                return None
            left -= count
            if left < len(rated) - i - 1:
                return None
            given.append(count)
        return given

    def _place(self, order: Iterable[Node]) -> None:
        """Nodes along the rows of the grid, to and fro; a channel takes the way between the middles of its nodes."""
        columns = self.machine.compute_tiles.columns
        middle: dict[str, tuple[int, int]] = {}
        used = 0
        for node in order:
            row, column = divmod(used + max(node.tiles - 1, 0) // 2, columns)
            middle[node.name] = (row, columns - 1 - column if row % 2 else column)
            used += node.tiles
        self._hops = {
            c.name: sum(abs(a - b) for a, b in zip(middle[c.writer], middle[c.reader], strict=True))
            for c in self.links
        }
