"""Deadlocks explained, capacities worked out, critical loops found, against what is known of the attention graphs."""

from __future__ import annotations

import numpy as np
import pytest

from sim.stream.attention import attention, attention_graph
from sim.stream.critical import Critical, trace
from sim.stream.deadlock import explain
from sim.stream.engine import run_graph
from sim.stream.schema import Graph, read_graph
from sim.stream.sizing import Goal, capacities, sized, smallest
from tests.stream_graphs import random_graph


def test_who_waits_for_whom() -> None:
    # With room for N - 2 exponentials, exp blocks on the long channel before sum has seen the last of the row.
    n = 16
    why = explain(attention_graph(attention("naive", n, 64, long=n - 2)))
    assert why is not None
    assert {(w.node, w.channel, w.state, w.occupancy) for w in why.loop} == {
        ("exp", "e_div", "full", n - 2),
        ("sum", "e_sum", "empty", 0),
        ("div", "sum", "empty", 0),
    }
    assert why.change == {"e_div": (n - 2, n - 1)}
    assert "exp waits for room in e_div (full, 14 tokens, at cycle" in why.sentence()
    assert why.sentence().endswith("It ends with the capacity of e_div from 14 to 15.")
    assert explain(attention_graph(attention("naive", n, 64, long=n - 1))) is None


def test_a_change_of_two_channels() -> None:
    n = 16
    why = explain(attention_graph(attention("max_subtracted", n, 64, long=2)))
    assert why is not None
    assert why.change == {"s_sub": (2, n - 2), "e_div": (2, n - 1)}


def test_a_loop_with_too_few_tokens_is_beyond_help() -> None:
    data = {
        "channels": {"back": {"initial": 1}},
        "nodes": [
            {"name": "src", "kind": "source", "count": 8, "out": ["a"]},
            {"name": "join", "kind": "map", "in": ["a", "back"], "out": ["b"]},
            {"name": "pair", "kind": "reduce", "every": 2, "in": ["b"], "out": ["c"]},
            {"name": "twice", "kind": "repeat", "every": 2, "in": ["c"], "out": ["back"]},
        ],
    }
    why = explain(read_graph(data))
    assert why is not None
    assert why.change == {}
    assert {(w.node, w.state) for w in why.loop} == {("join", "empty"), ("pair", "empty"), ("twice", "empty")}
    assert why.sentence().endswith("No capacity helps: the tokens in the loop are too few.")


def test_every_change_is_the_least() -> None:
    seen = 0
    for seed in range(100, 200):
        graph = random_graph(seed)
        why = explain(graph)
        if why is None or not why.change:
            continue
        seen += 1
        needed = {name: b for name, (_, b) in why.change.items()}
        assert not run_graph(graph.with_capacities(needed)).deadlock
        for name, (a, b) in why.change.items():
            assert b > a
            assert run_graph(graph.with_capacities({**needed, name: b - 1})).deadlock
    assert seen > 5


@pytest.mark.parametrize("n", [24, 64])
def test_capacities_for_full_throughput(n: int) -> None:
    # The published law of the long channels: N + Le + Lsum and N + Ld + Lmax; L + 1 behind a node of latency L.
    found = capacities(graph := attention_graph(attention("max_subtracted", n, 64, long=2)), graph.all_channels())
    assert found["e_div"] == n + 5 + 1
    assert found["s_sub"] == n + 7 + 1
    assert found["s_max"] == 8
    assert found["e_sum"] == 6
    assert {found[c] for c in ("k", "v", "x", "p")} == {2}
    assert {found[c] for c in ("q", "max", "sum", "o")} == {1}


def test_capacities_without_deadlock() -> None:
    n = 24
    graph = attention_graph(attention("max_subtracted", n, 64))
    found = capacities(graph, graph.all_channels(), Goal.live)
    assert found.pop("e_div") == n - 1
    assert found.pop("s_sub") == n - 2
    assert set(found.values()) == {1}


def unbounded(graph: Graph) -> Graph:
    return graph.with_capacities(dict.fromkeys(graph.all_channels(), "inf"))


def test_no_capacity_can_be_lowered_alone() -> None:
    for seed in range(12):
        graph = unbounded(random_graph(seed))
        goal = (Goal.throughput, Goal.live)[seed % 2]
        best = run_graph(graph)
        found = capacities(graph, graph.all_channels(), goal)

        def good(room: dict[str, int], graph: Graph = graph, goal: Goal = goal, cycles: int = best.cycles) -> bool:
            outcome = run_graph(graph.with_capacities(room))
            return not outcome.deadlock and (goal is Goal.live or outcome.cycles == cycles)

        assert good(found) == (not best.deadlock)
        for name, room in found.items():
            if room > max(graph.all_channels()[name].initial, 1) and not best.deadlock:
                assert not good({**found, name: room - 1}), (seed, name)


def test_automatic_capacities_of_a_file() -> None:
    data = attention_graph(attention("naive", 16, 64)).plain()
    data["channels"]["e_div"] = {"capacity": "auto"}
    graph, found = sized(read_graph(data))
    assert found == {"e_div": 16 + 6}
    assert graph.all_channels()["e_div"].capacity == 22


def test_smallest() -> None:
    for answer in range(1, 40):
        asked: list[int] = []

        def good(n: int, answer: int = answer, asked: list[int] = asked) -> bool:
            asked.append(n)
            return n >= answer

        assert smallest(good, 1, 40) == answer
        assert len(asked) <= 12


def critical(graph: Graph) -> Critical:
    found = trace(graph, run_graph(graph).cycles).critical
    assert found is not None
    return found


def names(found: Critical) -> set[tuple[str, str | None]]:
    return {(link.kind, link.channel) for link in found.links}


def test_the_loop_that_limits() -> None:
    # A slot too few for the row: each row of 64 takes a cycle more for each, round div, exp and sum.
    found = critical(attention_graph(attention("naive", 64, 64, long=66)))
    assert names(found) == {("data", "sum"), ("data", "e_sum"), ("full", "e_div")}
    assert (found.firings, found.cycles) == (64, 68)
    # Five tokens in nine cycles with room for four behind a latency of seven: (C + 1) / (L + rl + 1).
    found = critical(attention_graph(attention("no_max", 64, 64, short=4)))
    assert names(found) == {("data", "s"), ("full", "s")}
    assert (found.firings, found.cycles) == (5, 9)
    # Deep enough: nothing but the interval of a node.
    found = critical(attention_graph(attention("memory_free", 64, 64, multipliers=16)))
    assert [link.kind for link in found.links] == ["own"]
    assert (found.firings, found.cycles) == (1, 4)


def test_the_pace_of_the_loop_is_that_of_the_run() -> None:
    for kind, short, long in (("naive", 8, 65), ("reordered", 3, 99), ("max_subtracted", 8, 70), ("memory_free", 5, 1)):
        n = 96
        graph = attention_graph(attention(kind, n, 64, short=short, long=max(long, n)))
        found = critical(graph)
        assert found.cycles is not None
        assert abs(run_graph(graph).cycles / (n * n) - found.cycles / found.firings) < 0.03


def test_occupancy_over_time() -> None:
    graph = attention_graph(attention("naive", 64, 64))
    outcome = run_graph(graph)
    traced = trace(graph, outcome.cycles)
    assert traced.cycles == outcome.cycles
    assert traced.occupancy.shape[1] * traced.bin_cycles >= outcome.cycles
    most = dict(zip(traced.channels, traced.occupancy.max(axis=1), strict=True))
    assert all(0 <= most[name] <= peak for name, peak in outcome.peak_in_flight.items())
    assert most["e_div"] == outcome.peak_in_flight["e_div"] == 70
    assert not traced.occupancy[:, -1].any()


def test_occupancy_of_random_graphs_never_exceeds_the_peak() -> None:
    for seed in range(30):
        graph = random_graph(seed)
        outcome = run_graph(graph)
        traced = trace(graph, outcome.cycles)
        peaks = np.array([outcome.peak_in_flight[name] for name in traced.channels])
        assert (traced.occupancy >= 0).all()
        assert (traced.occupancy.max(axis=1) <= peaks).all()
        assert traced.cycles == outcome.cycles
