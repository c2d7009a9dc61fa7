"""The attention graphs: cycles and deadlocks to the cycle, values against numpy, masks, heads and lanes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sim.errors import ConfigError
from sim.stream.attention import (
    COMPUTE,
    VARIANTS,
    Attention,
    Variant,
    attention,
    attention_functions,
    attention_graph,
    attention_reference,
    attention_result,
    attention_tokens,
)
from sim.stream.engine import run_graph
from sim.stream.masks import Mask, blocks, causal, full, random_blocks, read_mask
from sim.stream.schema import Graph, read_graph
from sim.stream.values import execute

LETTER: dict[str, Variant] = dict(zip("ABCUD", VARIANTS, strict=True))


def unit(letter: str, n: int, short: int | str = 2, long: int | str = "inf", **keys: Any) -> Graph:
    """All latencies 1."""
    kind = LETTER[letter]
    latency = dict.fromkeys(COMPUTE[kind], 1)
    return attention_graph(attention(kind, n, 64, short=short, long=long, latency=latency, **keys))


def cycles(graph: Graph) -> int | str:
    outcome = run_graph(graph)
    return "deadlock" if outcome.deadlock else outcome.cycles


# Elapsed cycles by the channel code of the Dataflow Abstract Machine (N = 512 and 1024 at d = 64: by the same rules).
UNIT = {
    64: (4164, 4229, 4165, 4100, 4100),
    128: (16516, 16645, 16517, 16388, 16388),
    512: (262660, 263173, 262661, 262148, 262148),
    1024: (1049604, 1050629, 1049605, 1048580, 1048580),
}
D64 = {
    64: (4174, 4239, 4175, 4110, 4110),
    128: (16526, 16655, 16527, 16398, 16398),
    512: (262670, 263183, 262671, 262158, 262158),
    1024: (1049614, 1050639, 1049615, 1048590, 1048590),
}
SHALLOW = {
    (64, 2): (12364, 12513, 12449, 12300, 12300),
    (64, 4): (7450, 7539, 7475, 7386, 7386),
    (64, 6): (5344, 5409, 5345, 5280, 5280),
    (128, 2): (49292, 49589, 49461, 49164, 49164),
    (128, 4): (29630, 29809, 29681, 29502, 29502),
    (128, 6): (21206, 21335, 21207, 21078, 21078),
}


@pytest.mark.parametrize("n", UNIT)
def test_deep_enough(n: int) -> None:
    for letter, unit_cycles, d64_cycles in zip("ABCUD", UNIT[n], D64[n], strict=True):
        assert cycles(unit(letter, n)) == unit_cycles
        assert cycles(unit(letter, n, long=n + 2)) == unit_cycles
        for d, more in ((64, 0), (128, 1), (16, -2)):
            assert cycles(attention_graph(attention(LETTER[letter], n, d))) == d64_cycles + more
            assert cycles(attention_graph(attention(LETTER[letter], n, d, short=9, long="inf"))) == d64_cycles + more


@pytest.mark.parametrize(("n", "short"), SHALLOW)
def test_shallow_short_channels(n: int, short: int) -> None:
    found = tuple(cycles(attention_graph(attention(LETTER[c], n, 64, short=short, long="inf"))) for c in "ABCUD")
    assert found == SHALLOW[n, short]


def test_intervals_of_two_and_capacities_of_one() -> None:
    n = 32
    for letter, twice, one in zip("ABCUD", (67, 131, 68, 4, 4), (2114, 2178, 2115, 2051, 2051), strict=True):
        assert cycles(unit(letter, n, multipliers=32)) == 2 * n * n + twice
        assert cycles(unit(letter, n, short=1)) == one


@pytest.mark.parametrize("n", [64, 128, 512])
def test_depth_of_the_long_channels(n: int) -> None:
    # Full speed from N + 2, N - 1 cycles more for each slot less, and the deadlock where the row does not fit.
    for letter, fatal in (("A", n - 2), ("B", n - 2), ("C", n - 3)):
        fastest = UNIT[n]["ABCUD".index(letter)]
        for depth in range(n - 4, n + 4):
            expected: int | str = fastest + max(n + 2 - depth, 0) * (n - 1)
            assert cycles(unit(letter, n, long=depth)) == ("deadlock" if depth <= fatal else expected)


@pytest.mark.parametrize(("letter", "fatal"), [("A", -1), ("B", -1), ("C", -2)])
def test_inputs_taken_together_need_a_slot_more(letter: str, fatal: int) -> None:
    for n in (16, 64):
        for depth in (n + fatal, n + fatal + 1):
            data = unit(letter, n, long=depth).plain()
            for node in data["nodes"]:
                if node["kind"] == "broadcast" and node["name"] != "qk":
                    node["take"] = "together"
            assert (cycles(read_graph(data)) == "deadlock") == (depth == n + fatal)


def test_depths_with_longer_latencies() -> None:
    n = 64
    for letter, deep in (("A", n + 6), ("B", n + 8), ("C", n + 8)):
        fastest = D64[n]["ABCUD".index(letter)]
        for depth in (deep + 3, deep, deep - 1, deep - 4):
            found = cycles(attention_graph(attention(LETTER[letter], n, 64, short=8, long=depth)))
            assert found == fastest + max(deep - depth, 0) * (n - 1)


@pytest.mark.parametrize(
    ("n", "long", "expected"),
    [(64, 66, 4892), (64, "inf", 4451), (64, 64, 5018), (64, 62, "deadlock"), (512, 514, 268316)],
)
def test_spatial_variant(n: int, long: int | str, expected: int | str) -> None:
    # Scalars, 4 cycles of start-up for each node and for each row, all outputs waited for before the first is written.
    own = {"start": 4, "row_cycles": 4, "every": n, "write": "together"}
    nodes = [
        {"name": "q", "kind": "source", "count": n, "out": ["q"]},
        {"name": "k", "kind": "source", "count": n * n, "out": ["k"]},
        {"name": "v", "kind": "source", "count": n * n, "out": ["v"]},
        {"name": "qkexp", "kind": "broadcast", "latency": 11, "in": ["k", "q"], "out": ["e_div", "e_sum"], **own},
        {"name": "sum", "kind": "reduce", "latency": 2, "in": ["e_sum"], "out": ["sum"], **own},
        {"name": "div", "kind": "broadcast", "latency": 8, "in": ["e_div", "sum"], "out": ["p"], **own},
        {"name": "pv", "kind": "memory_reduce", "latency": 12, "in": ["p", "v"], "out": ["o"], **own},
        {"name": "out", "kind": "sink", "in": ["o"]},
    ]
    room = {"q": 3, "k": 3, "v": 3, "e_div": long, "e_sum": 13, "sum": 4, "p": 10, "o": 14}
    assert cycles(read_graph({"channels": {c: {"capacity": r} for c, r in room.items()}, "nodes": nodes})) == expected


def closed_form(letter: str, n: int, at: dict[str, int]) -> int:
    if letter == "A":
        return n * n + n + at["qk"] + at["exp"] + at["sum"] + at["div"] + at["pv"] - 1
    if letter == "B":
        return n * n + 2 * n + sum(at.values()) - 2
    if letter == "C":
        return n * n + n + at["qk"] + at["max"] + at["sub"] + at["exp"] + max(at["sum"], at["pv"]) + at["div"] - 1
    if letter == "U":
        return n * n + at["qk"] + at["exp"] + max(at["sum"], at["pv"]) + at["div"]
    return n * n + at["qk"] + at["max"] + max(at["sum"], at["pv"]) + at["div"]


@pytest.mark.parametrize("letter", "ABCUD")
@pytest.mark.parametrize("seed", range(3))
def test_any_size_and_latency(letter: str, seed: int) -> None:
    numbers = np.random.default_rng(seed)
    n = int(numbers.integers(20, 300))
    at = {name: int(numbers.integers(1, 12)) for name in COMPUTE[LETTER[letter]]}
    spec = attention(LETTER[letter], n, 64, latency=at)
    assert cycles(attention_graph(spec)) == closed_form(letter, n, at)
    slow = attention(LETTER[letter], n, 64, latency=at, short=3)
    assert run_graph(attention_graph(slow)) == run_graph(attention_graph(slow), steady=False)


def test_closed_form_on_a_large_graph() -> None:
    n = 1 << 14
    outcome = run_graph(attention_graph(attention("memory_free", n, 64)))
    assert outcome.cycles == n * n + 7 + 5 + 1 + 1
    assert len(outcome.compiled.streams.ring) == 11 * 8  # whatever the number of queries
    assert outcome.events == 14 * n * n + 8 * n


def largest_error(spec: Attention, seed: int = 0) -> float:
    """Against numpy; the executed graph must fire as the timed one does."""
    numbers = np.random.default_rng(seed)
    kv = spec.kv_heads or spec.heads
    q = numbers.normal(size=(spec.heads, spec.mask.queries, spec.d))
    k = numbers.normal(size=(kv, spec.mask.keys, spec.d))
    v = numbers.normal(size=k.shape)
    graph = attention_graph(spec)
    executed = execute(graph, attention_functions(spec), attention_tokens(spec, q, k, v))
    timed = run_graph(graph)
    assert not executed.deadlock
    assert not timed.deadlock
    assert executed.fires == timed.fires
    return float(np.abs(attention_result(spec, executed.collected) - attention_reference(spec, q, k, v)).max())


MASKS = {
    "full": full(24, 24),
    "rectangular": full(9, 40),
    "causal": causal(24, 24),
    "continued": causal(5, 30),
    "window": causal(24, 24, 6),
    "blocks": random_blocks(30, 30, 8, 0.3, 7),
}


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize("mask", MASKS)
def test_values(kind: Variant, mask: str) -> None:
    assert largest_error(Attention(kind, 16, MASKS[mask])) < 1e-10


@pytest.mark.parametrize("kind", VARIANTS)
@pytest.mark.parametrize(("heads", "kv_heads", "lanes"), [(4, 4, 2), (8, 2, 4), (6, 2, 1), (4, 1, 4), (4, 2, 2)])
def test_values_of_many_heads(kind: Variant, heads: int, kv_heads: int, lanes: int) -> None:
    spec = Attention(kind, 8, causal(10, 10), heads=heads, kv_heads=kv_heads, lanes=lanes)
    assert largest_error(spec) < 1e-10


def test_a_graph_too_shallow_stands_still_with_values_too() -> None:
    spec = attention("naive", 16, 8, long=14)
    rows = np.ones((1, 16, 8))
    executed = execute(attention_graph(spec), attention_functions(spec), attention_tokens(spec, rows, rows, rows))
    timed = run_graph(attention_graph(spec))
    assert executed.deadlock
    assert executed.fires == timed.fires


def test_masks_shorten_the_run() -> None:
    n = 200
    whole = run_graph(attention_graph(Attention("memory_free", 64, full(n, n))))
    half = run_graph(attention_graph(Attention("memory_free", 64, causal(n, n))))
    window = run_graph(attention_graph(Attention("memory_free", 64, causal(n, n, 16))))
    assert half.cycles == whole.cycles - n * (n - 1) // 2
    assert window.cycles == whole.cycles - n * n + sum(min(i + 1, 16) for i in range(n))
    for spec in (Attention("naive", 64, causal(n, n, 16)), Attention("reordered", 64, random_blocks(n, n, 16, 0.2, 1))):
        graph = attention_graph(spec)
        assert run_graph(graph) == run_graph(graph, steady=False)


def test_heads_share_time_and_lanes_do_not() -> None:
    one = cycles(attention_graph(attention("memory_free", 64, 64)))
    assert cycles(attention_graph(attention("memory_free", 64, 64, heads=8, kv_heads=2, lanes=8))) == one
    assert cycles(attention_graph(attention("memory_free", 64, 64, heads=8, kv_heads=2, lanes=2))) == one + 3 * 64 * 64


def test_masks() -> None:
    assert read_mask("window:3", 5, 5).lengths() == [1, 2, 3, 3, 3]
    assert read_mask("causal", 2, 5).lengths() == [4, 5]
    assert read_mask("full", 3, 5).lengths() == 5
    pattern = np.array([[True, False], [True, True]])
    mask = blocks(pattern, 2, 4, 3)
    assert mask.lengths() == [2, 2, 3, 3]
    assert mask.seen(0).tolist() == [0, 1]
    assert Mask(4, 4).seen(1).tolist() == [0, 1, 2, 3]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="unknown node 'exq' in the naive graph, nearest is 'exp'"):
        attention("naive", 8, 8, latency={"exq": 2})
    with pytest.raises(ConfigError, match="lanes: is 3, but must divide the 8 heads"):
        attention("naive", 8, 8, heads=8, lanes=3)
    with pytest.raises(ConfigError, match="kv_heads: is 3, but must divide the 8 heads"):
        attention("naive", 8, 8, heads=8, kv_heads=3)
    with pytest.raises(ConfigError, match="query 2 sees no key"):
        blocks(np.array([[True, False], [False, False]]), 2, 4, 4)
    with pytest.raises(ConfigError, match=r"is 'casual', but must be full, causal"):
        read_mask("casual", 4, 4)
