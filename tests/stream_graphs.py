"""Random streaming graphs whose rates balance: any kinds, capacities and latencies, some of them deadlocked."""

from __future__ import annotations

import random
from typing import Any

from sim.stream.schema import Graph, read_graph


class _Maker:
    def __init__(self, seed: int, scale: int) -> None:
        self.random = random.Random(seed)
        self.scale = scale
        self.nodes: list[dict[str, Any]] = []
        self.channels: dict[str, dict[str, Any]] = {}
        self.open: list[tuple[str, int]] = []

    def channel(self, initial: int = 0) -> str:
        r = self.random
        name = f"c{len(self.channels)}"
        capacity: Any = r.choice([1, 2, 2, 3, 4, 5, 7, 9, 16, "inf", 100])
        if initial and capacity != "inf":
            capacity = max(capacity, initial)
        self.channels[name] = {"capacity": capacity, "send_latency": r.choice([1, 1, 1, 2, 4]),
                               "response_latency": r.choice([1, 1, 1, 3]), "initial": initial}  # fmt: skip
        return name

    def add(self, kind: str, **keys: Any) -> None:
        r = self.random
        node = {"name": f"n{len(self.nodes)}", "kind": kind, "ii": r.choice([1, 1, 1, 2, 3, 0]),
                "latency": r.choice([1, 1, 2, 5, 9]), **keys}  # fmt: skip
        if r.random() < 0.2:
            node["start"] = r.randrange(20)
        if r.random() < 0.15:
            node["take"] = "together"
        if r.random() < 0.15:
            node["write"] = "together"
        if "every" in keys and r.random() < 0.2:
            node["row_cycles"] = r.randrange(5)
        self.nodes.append(node)

    def outputs(self, count: int, most: int = 3) -> list[str]:
        names = [self.channel() for _ in range(self.random.choice([1, 1, 2, most]))]
        self.open += [(name, count) for name in names]
        return names

    def pick(self) -> tuple[str, int]:
        return self.open.pop(self.random.randrange(len(self.open)))

    def equal(self, count: int) -> list[str]:
        """Up to two more open channels that bring `count` tokens."""
        same = [entry for entry in self.open if entry[1] == count]
        found = self.random.sample(same, min(len(same), self.random.choice([0, 1, 2])))
        for entry in found:
            self.open.remove(entry)
        return [name for name, _ in found]

    def rows(self, count: int) -> Any:
        """Rows that `count` firings end with: one length, or several by turns."""
        divisors = [n for n in range(1, min(count, 400) + 1) if count % n == 0]
        every = self.random.choice(divisors)
        if every > 2 and self.random.random() < 0.3:
            cut = self.random.randrange(1, every)
            return [cut, every - cut]
        return every

    def step(self) -> None:
        kinds = "source map map reduce broadcast repeat scan merge split sink memory_reduce loop select row"
        kind = self.random.choice(kinds.split())
        if kind == "source" or not self.open:
            count = self.scale * self.random.choice([12, 24, 60])
            self.add("source", count=count, out=self.outputs(count))
            return
        name, count = self.pick()
        if kind == "sink":
            self.add("sink", **{"in": [name, *self.equal(count)]})
        elif kind == "map":
            self.add("map", **{"in": [name, *self.equal(count)]}, out=self.outputs(count))
        elif kind == "scan":
            self.add("scan", **{"in": [name, *self.equal(count)]}, out=self.outputs(count), every=self.rows(count))
        elif kind == "row":
            every = self.rows(count)
            a, b, row = self.channel(), self.channel(), self.channel()
            self.add("map", **{"in": [name]}, out=[a, b])
            self.add("reduce", **{"in": [a]}, out=[row], every=every)
            self.add("broadcast", **{"in": [b, row]}, out=self.outputs(count), every=every)
        elif kind == "loop":
            back = self.channel(initial=self.random.choice([1, 2, 3]))
            outputs = self.outputs(count)
            outputs.insert(self.random.randrange(len(outputs) + 1), back)
            inputs = [name]
            inputs.insert(self.random.randrange(2), back)
            self.add("map", **{"in": inputs}, out=outputs)
        elif kind in ("reduce", "memory_reduce"):
            every = self.rows(count)
            rows = count // every if isinstance(every, int) else len(every) * count // sum(every)
            self.add(kind, **{"in": [name, *self.equal(count)]}, out=self.outputs(rows), every=every)
        elif kind == "repeat":
            if count > 60 * self.scale:
                self.open.append((name, count))
                return
            every = self.random.choice([1, 2, 3])
            self.add("repeat", **{"in": [name]}, out=self.outputs(count * every), every=every)
        elif kind == "broadcast":
            every = self.rows(count)
            rows = count // every if isinstance(every, int) else len(every) * count // sum(every)
            same = [entry for entry in self.open if entry[1] == rows]
            if same:
                other = self.random.choice(same)
                self.open.remove(other)
                row = other[0]
            else:
                row = self.channel()
                self.add("source", count=rows, out=[row])
            self.add("broadcast", **{"in": [name, row]}, out=self.outputs(count), every=every)
        elif kind == "split":
            if count % 3:
                self.open.append((name, count))
                return
            a, b = self.channel(), self.channel()
            order = [0, 1, 1]
            self.random.shuffle(order)
            self.open += [(a, count // 3), (b, 2 * count // 3)]
            self.add("split", **{"in": [name]}, out=[a, b], order=order)
        elif kind == "merge":
            others = self.equal(count)
            if not others:
                self.open.append((name, count))
                return
            self.add("merge", **{"in": [name, *others]}, out=self.outputs(count * (1 + len(others))))
        elif kind == "select":
            if count % 3:
                self.open.append((name, count))
                return
            a, b = self.channel(), self.channel()
            self.add("source", count=count // 3, out=[a])
            self.add("source", count=2 * count // 3, out=[b])
            order = [0, 1, 1]
            self.random.shuffle(order)
            self.add("select", **{"in": [name, a, b]}, out=self.outputs(count), order=order)


def random_plain(seed: int, scale: int = 1) -> dict[str, Any]:
    """A graph as it would stand in a file; sources bring at most 60 * `scale` tokens."""
    maker = _Maker(seed, scale)
    for _ in range(maker.random.randrange(3, 14)):
        maker.step()
    while maker.open:
        name, count = maker.pick()
        maker.add("sink", **{"in": [name, *maker.equal(count)]})
    maker.random.shuffle(maker.nodes)
    return {"channels": maker.channels, "nodes": maker.nodes}


def random_graph(seed: int, scale: int = 1) -> Graph:
    """The same, checked."""
    return read_graph(random_plain(seed, scale))
