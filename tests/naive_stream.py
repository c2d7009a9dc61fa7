"""The rules of streaming graphs once more, in plain Python: the twin that the compiled engine is tested against.

Each node is a generator that yields what it waits for; channels keep every stamp, response and write time for ever. It
shares nothing with the engine but the description of the graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from sim.stream.checks import firings
from sim.stream.schema import Graph, Node, inputs_of, outputs_of


@dataclass
class Wire:
    """One channel with its whole history."""

    capacity: float
    send: int
    response: int
    stamps: list[int] = field(default_factory=list)
    sent: list[int] = field(default_factory=list)
    responses: list[int] = field(default_factory=list)

    def peak(self) -> int:
        """Most tokens written and not yet answered for at the moment a token is written."""
        most = 0
        for k, time in enumerate(self.sent):
            freed = sum(1 for response in self.responses if response <= time)
            most = max(most, k + 1 - freed)
        return most


@dataclass
class Outcome:
    """What a run left behind."""

    cycles: int
    deadlock: bool
    times: dict[str, int]
    fires: dict[str, int]
    peaks: dict[str, int]
    waits: dict[str, tuple[str, str]]


def _rows(every: int | tuple[int, ...] | None) -> Iterator[tuple[bool, bool]]:
    lengths = [1] if every is None else [every] if isinstance(every, int) else list(every)
    while True:
        for length in lengths:
            for j in range(length):
                yield j == 0, j == length - 1


class Process:
    """A node: `run` is a generator that yields (channel, "empty" | "full") while it must wait."""

    def __init__(self, node: Node, total: int, wires: dict[str, Wire]) -> None:
        self.node, self.total, self.wires = node, total, wires
        self.time = node.start
        self.fires = 0
        self.wait: tuple[str, str] | None = None
        self.done = False

    def run(self) -> Iterator[tuple[str, str]]:
        node = self.node
        all_inputs, all_outputs = inputs_of(node), outputs_of(node)
        row_cycles = getattr(node, "row_cycles", 0)
        rows = _rows(getattr(node, "every", None))
        by_turns = all_outputs if node.kind == "split" else all_inputs
        turns = getattr(node, "order", None) or tuple(range(len(by_turns) or 1))
        taken = dict.fromkeys(all_inputs, 0)
        while self.fires < self.total:
            first, last = next(rows)
            turn = turns[self.fires % len(turns)]
            inputs, outputs = all_inputs, all_outputs
            if node.kind == "broadcast" and not first:
                inputs = inputs[:1]
            elif node.kind == "repeat" and not first:
                inputs = ()
            elif node.kind == "merge":
                inputs = (inputs[turn],)
            elif node.kind == "select":
                inputs = (inputs[0], inputs[1 + turn])
            if node.kind in ("reduce", "memory_reduce") and not last:
                outputs = ()
            elif node.kind == "split":
                outputs = (outputs[turn],)
            if first:
                self.time += row_cycles
            if node.take == "together":
                for name in inputs:
                    while taken[name] >= len(self.wires[name].stamps):
                        yield name, "empty"
                    self.time = max(self.time, self.wires[name].stamps[taken[name]])
            for name in inputs:
                wire = self.wires[name]
                while taken[name] >= len(wire.stamps):
                    yield name, "empty"
                self.time = max(self.time, wire.stamps[taken[name]])
                wire.responses.append(self.time + wire.response)
                taken[name] += 1
            now = self.time
            if node.write == "together":
                room = [self.time]
                for name in outputs:
                    wire = self.wires[name]
                    back = len(wire.stamps) - wire.capacity
                    while back >= len(wire.responses):
                        yield name, "full"
                    if back >= 0:
                        room.append(wire.responses[int(back)])
                self.time = max(room)
            for name in outputs:
                wire = self.wires[name]
                back = len(wire.stamps) - wire.capacity
                while back >= len(wire.responses):
                    yield name, "full"
                if back >= 0:
                    self.time = max(self.time, wire.responses[int(back)])
                wire.sent.append(self.time)
                wire.stamps.append(max(now + node.latency, self.time + wire.send))
            self.time += node.ii
            self.fires += 1


def simulate(graph: Graph) -> Outcome:
    """Run a graph to its end or to its deadlock; only for small ones."""
    wires = {
        name: Wire(float("inf") if c.capacity == "inf" else int(c.capacity), c.send_latency, c.response_latency)
        for name, c in graph.all_channels().items()
    }
    for name, channel in graph.all_channels().items():
        wires[name].stamps += [0] * channel.initial
        wires[name].sent += [0] * channel.initial
    totals = firings(graph)
    processes = [Process(node, totals[node.name], wires) for node in graph.nodes]
    running = {id(p): p.run() for p in processes}
    progress = True
    while progress:
        progress = False
        for p in processes:
            if p.done:
                continue
            before = (p.fires, sum(len(w.stamps) + len(w.responses) for w in wires.values()))
            p.wait = next(running[id(p)], None)
            p.done = p.wait is None
            after = (p.fires, sum(len(w.stamps) + len(w.responses) for w in wires.values()))
            progress |= before != after or p.done
    stuck = {p.node.name: p.wait for p in processes if p.wait is not None}
    return Outcome(
        cycles=max(p.time for p in processes),
        deadlock=bool(stuck),
        times={p.node.name: p.time for p in processes},
        fires={p.node.name: p.fires for p in processes},
        peaks={name: wire.peak() for name, wire in wires.items()},
        waits=stuck,
    )
