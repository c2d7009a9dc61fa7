"""DRAM ports of streaming graphs: against the DRAM alone, in any order of evaluation, on several channels."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from sim.dram_unit import run as run_dram
from sim.errors import ConfigError
from sim.stream.engine import Run, run_graph
from sim.stream.schema import read_graph


def graph(nodes: list[dict[str, Any]], clock: str = "1 GHz", channels: int = 1, room: int = 4) -> Any:
    names = {name for node in nodes for name in (*node.get("in", ()), *node.get("out", ()))}
    return {
        "clock": clock,
        "memory": {"standard": "hbm2", "channels": channels},
        "channels": {name: {"capacity": room} for name in sorted(names)},
        "nodes": nodes,
    }


def adder(count: int, channels: int = 1, outstanding: int = 16, room: int = 4, bursts: int = 1) -> Any:
    ports = {"outstanding": outstanding, "bursts": bursts}
    second = ports | {"address": 1 << 20, "channel": channels - 1}
    return graph(
        [
            {"name": "a", "kind": "dram_read", "count": count, "out": ["a"], **ports},
            {"name": "b", "kind": "dram_read", "count": count, "out": ["b"], **second},
            {"name": "add", "kind": "map", "in": ["a", "b"], "out": ["c"], "latency": 3},
            {"name": "w", "kind": "dram_write", "in": ["c"], "address": 1 << 22, **ports},
        ],
        channels=channels, room=room,
    )  # fmt: skip


def test_one_reader_takes_as_long_as_the_dram_alone(tmp_path: Path) -> None:
    # Requests a cycle apart, far from each other; the clock of hbm2 is 1 GHz, so cycles are its clocks.
    count, apart = 200, 32 * 37
    requests = tmp_path / "trace"
    requests.write_text("".join(f"LD {k * apart} {k}\n" for k in range(count)), encoding="ascii")
    alone = run_dram("hbm2", requests)["cycles"]
    nodes = [
        {"name": "r", "kind": "dram_read", "count": count, "stride": apart, "outstanding": count, "out": ["o"]},
        {"name": "s", "kind": "sink", "in": ["o"]},
    ]
    # Data come out of order, tokens are delivered in order: all are when the last data are there, given room for those
    # that waited, and the sink sees them a cycle of latency later.
    assert run_graph(read_graph(graph(nodes, room=count))).cycles == alone + 1
    assert run_graph(read_graph(graph(nodes, room=count, clock="2 GHz"))).cycles > 1.8 * alone


@pytest.mark.parametrize("channels", [1, 2])
def test_any_order_of_evaluation(channels: int) -> None:
    for outstanding, room, bursts in ((1, 1, 1), (8, 4, 2), (64, 2, 1)):
        data = read_graph(adder(300, channels, outstanding, room, bursts))
        first = run_graph(data)
        assert not first.deadlock
        nodes = len(Run(data).compiled.nodes)
        for seed in range(3):
            numbers = random.Random(seed)
            order = numbers.sample(range(nodes), nodes)
            assert run_graph(data, order=order, most=numbers.choice([1, 2, 5])) == first


def test_counts() -> None:
    outcome = run_graph(read_graph(adder(256, channels=2, bursts=2)))
    assert outcome.memory is not None
    assert outcome.memory["bytes_read"] == 2 * 256 * 2 * 32
    assert outcome.memory["bytes_written"] == 256 * 2 * 32
    assert set(outcome.requests) == {"a", "b", "w"}
    assert outcome.requests["a"] == 16
    assert outcome.fires == {"a": 256, "b": 256, "add": 256, "w": 256}


def test_more_requests_under_way_hide_the_latency() -> None:
    slow, fast = (run_graph(read_graph(adder(512, 2, outstanding))).cycles for outstanding in (1, 64))
    assert slow > 5 * fast


def test_a_write_can_be_waited_for() -> None:
    # Each read waits for the token that says that the write before it was accepted.
    nodes = [
        {"name": "src", "kind": "source", "count": 64, "out": ["x"]},
        {"name": "w", "kind": "dram_write", "in": ["x"], "out": ["ok"]},
        {"name": "r", "kind": "dram_read", "in": ["ok"], "out": ["y"]},
        {"name": "s", "kind": "sink", "in": ["y"]},
    ]
    outcome = run_graph(read_graph(graph(nodes)))
    assert outcome.fires == {"src": 64, "w": 64, "r": 64, "s": 64}
    assert outcome.memory is not None
    assert outcome.memory["bytes_written"] == 64 * 32


def test_unbounded_channels_are_exact_too() -> None:
    data = adder(400, channels=2, outstanding=32)
    data["channels"] = {name: {"capacity": "inf"} for name in data["channels"]}
    deep = adder(400, channels=2, outstanding=32, room=400)
    assert run_graph(read_graph(data)).cycles == run_graph(read_graph(deep)).cycles


def test_refusals() -> None:
    def refused(**changes: Any) -> str:
        data = adder(16)
        data["nodes"][1] |= changes
        with pytest.raises(ConfigError) as caught:
            run_graph(read_graph(data))
        return str(caught.value)

    assert refused(address=16) == "nodes.1.address: is 16, but must be a multiple of hbm2's burst of 32 B"
    assert refused(stride=40).startswith("nodes.1.stride: is 40, but must be a multiple")
    assert "but a channel of hbm2 ends at 0x10000000" in refused(address=(1 << 28) - 64)
    assert refused(channel=3) == "nodes.1.channel: is 3, but the memory has 1 channels, counted from 0"
    assert refused(count=None) == "nodes.1.count: needs either `count` or an input that asks for each token"
    data = adder(16)
    del data["clock"]
    with pytest.raises(ConfigError, match="clock: is missing: with a memory, a cycle must have a length"):
        read_graph(data)
    del data["memory"]
    with pytest.raises(ConfigError, match="memory: is missing, but node 'a' goes to it"):
        read_graph(data)
    data = adder(16)
    data["memory"]["standard"] = "hbm9"
    with pytest.raises(ConfigError, match="memory: unknown memory 'hbm9'"):
        run_graph(read_graph(data))
