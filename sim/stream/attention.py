"""The five graphs of streaming attention, naive to memory-free, with their functions; any size, mask, heads and lanes.

One token is a whole query, key, value or output vector, or one score. Keys and values stream by once for each query.
The graphs are those of the streaming-attention study of Sohn, Zhang and Olukotun (2024), written from their node lists;
the memory-free one carries Milakov and Gimelshein's running maximum (2018).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sim.errors import ConfigError, not_among
from sim.stream.masks import Mask, full
from sim.stream.schema import SCHEMA, Graph, read_graph
from sim.stream.values import Function

Variant = Literal["naive", "max_subtracted", "reordered", "no_max", "memory_free"]
VARIANTS: tuple[Variant, ...] = get_args(Variant)
COMPUTE = {
    "naive": ("qk", "exp", "sum", "div", "pv"),
    "max_subtracted": ("qk", "max", "sub", "exp", "sum", "div", "pv"),
    "reordered": ("qk", "max", "sub", "exp", "sum", "pv", "div"),
    "no_max": ("qk", "exp", "sum", "pv", "div"),
    "memory_free": ("qk", "max", "sum", "pv", "div"),
}
"""Nodes of each graph that compute; `max` of the memory-free one is the running maximum with both exponentials."""
LONG = {
    "naive": ("e_div",),
    "max_subtracted": ("s_sub", "e_div"),
    "reordered": ("s_sub",),
    "no_max": (),
    "memory_free": (),
}
"""Channels that must hold a whole row, for the graph not to stand still."""


@dataclass(frozen=True)
class Attention:
    """What to build. Raises ConfigError for a node or number that does not fit.

    short, long: capacities of the channels of either class (`LONG`), by default just enough for full throughput.
    latency, ii: cycles of single compute nodes, by name. multipliers: of a dot product; with fewer than `d` every
    compute node takes ceil(d / multipliers) cycles a firing, so that all keep the same pace. heads are spread over
    lanes; lanes that work on query heads of one key-value head share its stream of keys and values.
    """

    variant: Variant
    d: int
    mask: Mask
    short: int | str | None = None
    long: int | str | None = None
    latency: Mapping[str, int] = field(default_factory=dict)
    ii: Mapping[str, int] = field(default_factory=dict)
    multipliers: int | None = None
    heads: int = 1
    kv_heads: int | None = None
    lanes: int = 1

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ConfigError(not_among("attention graph", self.variant, VARIANTS))
        for key, given in (("latency", self.latency), ("ii", self.ii)):
            for name in given:
                if name not in COMPUTE[self.variant]:
                    inside = f"the {self.variant} graph"
                    raise ConfigError(not_among("node", name, COMPUTE[self.variant], inside=inside), key=key)
        kv = self.kv_heads or self.heads
        if self.heads % kv:
            raise ConfigError(f"is {kv}, but must divide the {self.heads} heads", key="kv_heads")
        if self.heads % self.lanes:
            raise ConfigError(f"is {self.lanes}, but must divide the {self.heads} heads", key="lanes")
        if max(self.lanes, kv) % min(self.lanes, kv):
            raise ConfigError(f"is {self.lanes}, but must divide the {kv} key-value heads or be a multiple of them",
                              key="lanes")  # fmt: skip

    @property
    def streams(self) -> int:
        """Streams of keys and values: each feeds lanes / streams lanes."""
        return min(self.lanes, self.kv_heads or self.heads)

    @property
    def heads_of_lane(self) -> int:
        """Heads that a lane works off one after the other."""
        return self.heads // self.lanes

    def latency_of(self, node: str) -> int:
        """Cycles: a dot product is a multiplication and a tree of additions, an exponential 5 cycles, the rest 1."""
        if node in self.latency:
            return self.latency[node]
        if node == "qk":
            return 1 + (self.d - 1).bit_length()
        return 5 if node == "exp" or (node == "max" and self.variant == "memory_free") else 1

    def ii_of(self, node: str) -> int:
        """Cycles between firings of a compute node."""
        pace = -(-self.d // self.multipliers) if self.multipliers else 1
        return self.ii.get(node, pace)

    def short_capacity(self) -> int | str:
        """Room for a token a cycle behind the slowest node: latency and response, in firings of that node."""
        if self.short is not None:
            return self.short
        return max(2, *(self.latency_of(node) + 1 for node in COMPUTE[self.variant]))

    def long_capacity(self) -> int | str:
        """Room for a whole row and for what is on its way while its sum or maximum is found."""
        if self.long is not None:
            return self.long
        longest = self.mask.lengths()
        row = longest if isinstance(longest, int) else max(longest)
        return row + max(2, *(self.latency_of(a) + self.latency_of(b) for a, b in _PAIRS[self.variant]), 2)


_PAIRS: dict[str, tuple[tuple[str, str], ...]] = {
    "naive": (("exp", "sum"),),
    "max_subtracted": (("qk", "max"), ("exp", "sum")),
    "reordered": (("qk", "max"),),
    "no_max": (),
    "memory_free": (),
}


def attention_graph(spec: Attention) -> Graph:
    """The graph of `spec`; nodes and channels of lane l begin with `l<l>.` where there are several."""
    maker = _Maker(spec)
    for stream in range(spec.streams):
        maker.stream(stream)
    kind = f"{spec.variant} attention, {spec.mask.queries} queries, {spec.mask.keys} keys, d = {spec.d}"
    lanes = f", {spec.heads} heads on {spec.lanes} lanes" if spec.heads > 1 else ""
    return read_graph({"schema": SCHEMA, "name": kind + lanes, "channels": maker.channels, "nodes": maker.nodes})


class _Maker:
    def __init__(self, spec: Attention) -> None:
        self.spec = spec
        self.nodes: list[dict[str, Any]] = []
        self.channels: dict[str, dict[str, Any]] = {}
        lengths = spec.mask.lengths()
        self.every = lengths
        self.rows = spec.mask.queries * spec.heads_of_lane
        one = lengths * spec.mask.queries if isinstance(lengths, int) else sum(lengths)
        self.scores = one * spec.heads_of_lane

    def add(self, kind: str, name: str, lane: str, inputs: str, outputs: str, **keys: Any) -> None:
        spec = self.spec
        node: dict[str, Any] = {"name": lane + name, "kind": kind}
        if name in COMPUTE[spec.variant]:
            node |= {"ii": spec.ii_of(name), "latency": spec.latency_of(name)}
        if kind in ("reduce", "memory_reduce", "broadcast", "scan"):
            node["every"] = self.every
        node |= keys
        if inputs:
            node["in"] = [lane + c for c in inputs.split()]
        if outputs:
            node["out"] = [lane + c for c in outputs.split()]
        self.nodes.append(node)

    def channel(self, lane: str, names: str) -> None:
        for name in names.split():
            long = name in LONG[self.spec.variant]
            capacity = self.spec.long_capacity() if long else self.spec.short_capacity()
            self.channels[lane + name] = {"capacity": capacity}

    def stream(self, stream: int) -> None:
        """The sources of one stream of keys and values, and the lanes that it feeds."""
        spec = self.spec
        each = spec.lanes // spec.streams
        lanes = [f"l{stream * each + i}." if spec.lanes > 1 else "" for i in range(each)]
        own = f"kv{stream}." if spec.streams > 1 else ""
        for name in ("k", "v"):
            outputs = [lane + name for lane in lanes]
            self.nodes.append({"name": own + name, "kind": "source", "count": self.scores, "out": outputs})
        for lane in lanes:
            self.lane(lane)

    def lane(self, lane: str) -> None:
        self.add("source", "q", lane, "", "q", count=self.rows)
        {
            "naive": self.naive,
            "max_subtracted": self.max_subtracted,
            "reordered": self.reordered,
            "no_max": self.no_max,
            "memory_free": self.memory_free,
        }[self.spec.variant](lane)
        self.add("sink", "out", lane, "o", "")

    def naive(self, lane: str) -> None:
        self.channel(lane, "q k v s e_div e_sum sum p o")
        self.add("broadcast", "qk", lane, "k q", "s")
        self.add("map", "exp", lane, "s", "e_div e_sum")
        self.add("reduce", "sum", lane, "e_sum", "sum")
        self.add("broadcast", "div", lane, "e_div sum", "p")
        self.add("memory_reduce", "pv", lane, "p v", "o")

    def max_subtracted(self, lane: str) -> None:
        self.channel(lane, "q k v s_max s_sub max x e_div e_sum sum p o")
        self.add("broadcast", "qk", lane, "k q", "s_max s_sub")
        self.add("reduce", "max", lane, "s_max", "max")
        self.add("broadcast", "sub", lane, "s_sub max", "x")
        self.add("map", "exp", lane, "x", "e_div e_sum")
        self.add("reduce", "sum", lane, "e_sum", "sum")
        self.add("broadcast", "div", lane, "e_div sum", "p")
        self.add("memory_reduce", "pv", lane, "p v", "o")

    def reordered(self, lane: str) -> None:
        self.channel(lane, "q k v s_max s_sub max x e_pv e_sum sum acc o")
        self.add("broadcast", "qk", lane, "k q", "s_max s_sub")
        self.add("reduce", "max", lane, "s_max", "max")
        self.add("broadcast", "sub", lane, "s_sub max", "x")
        self.add("map", "exp", lane, "x", "e_pv e_sum")
        self.add("reduce", "sum", lane, "e_sum", "sum")
        self.add("memory_reduce", "pv", lane, "e_pv v", "acc")
        self.add("map", "div", lane, "acc sum", "o")

    def no_max(self, lane: str) -> None:
        self.channel(lane, "q k v s e_pv e_sum sum acc o")
        self.add("broadcast", "qk", lane, "k q", "s")
        self.add("map", "exp", lane, "s", "e_pv e_sum")
        self.add("reduce", "sum", lane, "e_sum", "sum")
        self.add("memory_reduce", "pv", lane, "e_pv v", "acc")
        self.add("map", "div", lane, "acc sum", "o")

    def memory_free(self, lane: str) -> None:
        self.channel(lane, "q k v s delta_sum e_sum delta_pv e_pv sum acc o")
        self.add("broadcast", "qk", lane, "k q", "s")
        self.add("scan", "max", lane, "s", "delta_sum e_sum delta_pv e_pv")
        self.add("reduce", "sum", lane, "delta_sum e_sum", "sum")
        self.add("memory_reduce", "pv", lane, "delta_pv e_pv v", "acc")
        self.add("map", "div", lane, "acc sum", "o")


def _running_max(state: float, score: float) -> tuple[float, tuple[float, float, float, float]]:
    largest = max(state, score)
    delta, e = np.exp(state - largest), np.exp(score - largest)
    return largest, (delta, e, delta, e)


def attention_functions(spec: Attention) -> dict[str, Function]:
    """What each compute node does to its tokens, in float64; for `sim.stream.values.execute`."""
    zero = np.zeros(spec.d)
    plain = {
        "qk": Function(lambda k, q: float(k @ q)),
        "max": Function(lambda state, s: max(state, s), start=-np.inf),
        "sub": Function(lambda s, largest: s - largest),
        "exp": Function(np.exp),
        "sum": Function(lambda state, e: state + e, start=0.0),
        "div": Function(lambda value, total: value / total),
        "pv": Function(lambda state, weight, v: state + weight * v, start=zero),
    }
    if spec.variant == "memory_free":
        plain |= {
            "max": Function(_running_max, start=-np.inf),
            "sum": Function(lambda state, delta, e: state * delta + e, start=0.0),
            "pv": Function(lambda state, delta, e, v: state * delta + e * v, start=zero),
        }
    return {lane + name: plain[name] for lane in _lanes(spec) for name in COMPUTE[spec.variant]}


def _lanes(spec: Attention) -> list[str]:
    return [f"l{lane}." for lane in range(spec.lanes)] if spec.lanes > 1 else [""]


Vectors = NDArray[np.float64]


def attention_tokens(spec: Attention, q: Vectors, k: Vectors, v: Vectors) -> dict[str, list[Vectors]]:
    """The tokens of each source. q: (heads, queries, d); k, v: (key-value heads, keys, d), scaled as wanted."""
    kv_heads = spec.kv_heads or spec.heads
    assert q.shape == (spec.heads, spec.mask.queries, spec.d), q.shape
    assert k.shape == v.shape == (kv_heads, spec.mask.keys, spec.d), (k.shape, v.shape)
    tokens: dict[str, list[Vectors]] = {}
    for lane, name in enumerate(_lanes(spec)):
        tokens[name + "q"] = [row for head in heads_of(spec, lane) for row in q[head]]
    each = spec.lanes // spec.streams
    seen = [spec.mask.seen(i) for i in range(spec.mask.queries)]
    for stream in range(spec.streams):
        own = f"kv{stream}." if spec.streams > 1 else ""
        group = spec.heads // kv_heads
        heads = [head // group for head in heads_of(spec, stream * each)]
        tokens[own + "k"] = [row for head in heads for keys in seen for row in k[head, keys]]
        tokens[own + "v"] = [row for head in heads for keys in seen for row in v[head, keys]]
    return tokens


def heads_of(spec: Attention, lane: int) -> list[int]:
    """Query heads that a lane works off, in order; lanes of one stream work on one key-value head at a time."""
    each = spec.lanes // spec.streams
    stream, place = divmod(lane, each)
    first = stream * each * spec.heads_of_lane
    return [first + step * each + place for step in range(spec.heads_of_lane)]


def attention_result(spec: Attention, collected: Mapping[str, list[Vectors]]) -> Vectors:
    """(heads, queries, d) from what the sinks collected."""
    out = np.empty((spec.heads, spec.mask.queries, spec.d))
    for lane, name in enumerate(_lanes(spec)):
        rows = np.array(collected[name + "out"]).reshape(spec.heads_of_lane, spec.mask.queries, spec.d)
        out[heads_of(spec, lane)] = rows
    return out


def attention_reference(spec: Attention, q: Vectors, k: Vectors, v: Vectors) -> Vectors:
    """Softmax attention by numpy in float64, all at once: (heads, queries, d)."""
    group = spec.heads // (spec.kv_heads or spec.heads)
    scores = q @ np.repeat(k, group, axis=0).transpose(0, 2, 1)
    scores = np.where(spec.mask.dense(), scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    result: Vectors = (weights / weights.sum(axis=2, keepdims=True)) @ np.repeat(v, group, axis=0)
    return result


def attention(variant: Variant, n: int, d: int, **options: Any) -> Attention:
    """Square attention without a mask: `n` queries and keys."""
    return Attention(variant, d, full(n, n), **options)
