"""`opcycle unit stream`: what it prints and writes, the graphs that ship, and how it refuses what is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sim.catalog import names
from sim.document import dump_yaml, parse_yaml
from sim.stream.attention import attention, attention_graph
from sim.stream.engine import run_graph
from sim.stream.schema import KINDS, load_graph, read_graph
from sim.stream.unit import graph_text
from tests.conftest import Outcome

Opcycle = Callable[..., Outcome]
Refused = Callable[..., str]

GRAPH = """channels: {qs: {capacity: 2}, s: {capacity: 2, send_latency: 1, response_latency: 1}, long: {capacity: inf}}
nodes:
  - {name: q, kind: source, count: 64, out: [qs]}
  - {name: m, kind: map, ii: 1, latency: 7, in: [qs], out: [s]}
  - {name: rep, kind: repeat, every: 4, in: [s], out: [long]}
  - {name: out, kind: sink, in: [long]}
"""


@pytest.fixture
def file(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes a graph, as text or as data, to a file."""

    def write(graph: Any) -> Path:
        path = tmp_path / "g.yaml"
        path.write_text(graph if isinstance(graph, str) else dump_yaml(graph), encoding="utf-8")
        return path

    return write


def test_json(opcycle: Opcycle, file: Callable[[Any], Path]) -> None:
    outcome = opcycle("unit", "stream", file(GRAPH), "--json")
    assert outcome.code == 0
    result = json.loads(outcome.out)
    assert {"cycles", "deadlock", "waits", "peak_in_flight", "fires", "wall_s"} <= set(result)
    # Capacity 2 behind a latency of 7: three tokens in nine cycles are faster than four cycles a token of rep.
    assert result["fires"] == {"q": 64, "m": 64, "rep": 256, "out": 256}
    assert result["deadlock"] is False
    assert result["waits"] == []
    assert result["peak_in_flight"]["s"] == 2
    assert result["cycles"] == 1 + 7 + 256  # rep begins at 8 and never waits again


def test_deadlock(opcycle: Opcycle) -> None:
    arguments = ("unit", "stream", "--attention", "naive", "--n", 16, "--long", 14)
    result = json.loads(opcycle(*arguments, "--json").out)
    assert result["deadlock"] is True
    assert {"node": "exp", "channel": "e_div", "state": "full", "occupancy": 14, "time": 23} in result["waits"]
    assert result["explanation"]["change"] == [{"channel": "e_div", "capacity": 14, "needed": 15}]
    text = opcycle(*arguments).out
    assert "deadlock at" in text
    assert "It ends with the capacity of e_div from 14 to 15." in text


def test_attention_options(opcycle: Opcycle) -> None:
    options = "--n 20 --keys 30 --d 16 --mask window:7 --heads 4 --kv-heads 2 --lanes 2 --latency pv=3 --ii div=2"
    arguments = ("unit", "stream", "--attention", "memory_free", *options.split(), "--values", "--critical")
    result = json.loads(opcycle(*arguments, "--json").out)
    assert result["max_abs_error"] < 1e-10
    assert result["fires"]["l0.q"] == 40
    assert result["critical"]["links"]
    assert "Largest error against numpy" in opcycle(*arguments).out


def test_capacities_are_worked_out(opcycle: Opcycle, file: Callable[[Any], Path]) -> None:
    result = json.loads(opcycle("unit", "stream", "--attention", "naive", "--n", 24, "--size", "live", "--json").out)
    assert result["capacities"]["e_div"] == 23
    result = json.loads(opcycle("unit", "stream", "--attention", "naive", "--n", 24, "--long", "auto", "--json").out)
    assert result["capacities"] == {"e_div": 30}
    path = file(GRAPH)
    result = json.loads(opcycle("unit", "stream", path, "--set", "channels.s.capacity=auto", "--json").out)
    assert result["cycles"] == 264
    assert result["capacities"]["s"] <= 4


def test_the_graph_can_be_written_and_read(opcycle: Opcycle, tmp_path: Path) -> None:
    path = tmp_path / "made.yaml"
    reordered = ("--attention", "reordered", "--n", 12, "--mask", "causal")
    made = opcycle("unit", "stream", *reordered, "--write", path, "--json")
    again = opcycle("unit", "stream", path, "--json")
    ours, theirs = json.loads(made.out), json.loads(again.out)
    ours.pop("wall_s")
    theirs.pop("wall_s")
    assert ours == theirs
    assert opcycle("check", path).out == f"{path}: ok (stream)\n"
    graph = load_graph(path)
    assert read_graph(load_graph(path).plain()) == graph


@pytest.mark.parametrize("name", names("graph"))
def test_graphs_that_ship(name: str) -> None:
    graph = load_graph(name)
    if graph.memory is None:
        assert not run_graph(graph).deadlock
    for kind in ("naive", "max_subtracted", "reordered", "no_max", "memory_free"):
        if name == f"attention-{kind.replace('_', '-')}":
            assert graph == attention_graph(attention(kind, 64, 64))


def test_result_folder(opcycle: Opcycle, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    outcome = opcycle("unit", "stream", "--attention", "naive", "--n", 24, "--long", 26, "-o", folder)
    assert outcome.code == 0, outcome.err
    stored = {path.name for path in folder.iterdir()} - {".opcycle.json"}
    pictures = {"graph.png", "occupancy.png"}
    assert stored == pictures | {"stream.json", "graph.yaml", "graph.dot", "nodes.csv", "channels.csv", "occupancy.csv"}
    dot = (folder / "graph.dot").read_text(encoding="utf-8")
    assert '"exp" -> "div" [label="e_div\\n26 of 26", color=red, penwidth=2];' in dot
    assert '"k" -> "qk" [label="k\\n8 of 8"];' in dot
    for name in pictures:
        (folder / name).unlink()
    assert opcycle("plot", folder).code == 0
    assert all((folder / name).stat().st_size > 10_000 for name in pictures)
    assert opcycle("unit", "stream", "--attention", "naive", "--n", 8, "--long", 5, "-o", folder).code == 0


@pytest.mark.parametrize("name", names("graph"))
def test_graph_text_reads_back(name: str) -> None:
    graph = load_graph(name)
    again = read_graph(parse_yaml(graph_text(graph)))
    assert again.nodes == graph.nodes
    assert again.all_channels() == graph.all_channels()
    assert (again.clock, again.memory) == (graph.clock, graph.memory)


NODES = [
    {"name": "src", "kind": "source", "count": 64, "out": ["a"]},
    {"name": "sum", "kind": "reduce", "every": 16, "in": ["a"], "out": ["b"]},
    {"name": "out", "kind": "sink", "in": ["b"]},
]


def changed(position: int, **keys: Any) -> dict[str, Any]:
    nodes = [dict(node) for node in NODES]
    nodes[position] |= keys
    return {"nodes": [{k: v for k, v in node.items() if v is not None} for node in nodes]}


@pytest.mark.parametrize(
    ("graph", "said"),
    [
        (changed(2, **{"in": ["a"]}), "nodes.2.in.0: channel 'a' has two readers, 'sum' and 'out', but must have one"),
        (changed(1, out=["a"]), "nodes.1.out.0: channel 'a' has two writers, 'src' and 'sum', but must have one"),
        (changed(2, **{"in": ["bb"]}), "nodes.2.in.0: channel 'bb' has no writer; is 'b' a misspelling of it?"),
        (changed(2, **{"in": ["b", "z"]}), "nodes.2.in.1: channel 'z' has no writer"),
        ({**changed(0), "channels": {"zz": {}}}, "channels.zz: channel 'zz' has no writer"),
        (changed(0, count=70), "nodes.1.every: node 'sum' needs whole rows of 16, but channel 'a' brings 70 tokens"),
        (changed(1, evry=16), "nodes.1.evry: unknown key 'evry' in nodes.1, nearest is 'every'; allowed: every, ii,"),
        (changed(1, every=None), "nodes.1.every: is missing"),
        (changed(1, every=0), "nodes.1.every: is 0, but must be a whole number of at least 1, or a list of them"),
        (changed(1, kind="redcue"), "nodes.1.kind: unknown value 'redcue', nearest is 'reduce'; allowed: broadcast,"),
        (changed(1, kind=None), "nodes.1.kind: is missing"),
        (changed(1, ii=-1), "nodes.1.ii: is -1, but must be at least 0"),
        (changed(1, latency=1.5), "nodes.1.latency: is 1.5, but must be a whole number"),
        (changed(1, name="src"), "nodes.1.name: is 'src', the name of node 0 too"),
        (changed(0, out=[]), "nodes.0.out: is [], but must have at least 1 entry"),
        ({**changed(0), "chanels": {}}, "chanels: unknown key 'chanels', nearest is 'channels'"),
        (
            {**changed(0), "channels": {"a": {"capacity": 0}}},
            "channels.a.capacity: is 0, but must be a whole number of at least 1, inf or auto",
        ),
        (
            {**changed(0), "channels": {"a": {"send_latency": 0}}},
            "channels.a.send_latency: is 0, but must be at least 1",
        ),
        (
            {**changed(0), "channels": {"a": {"capacity": 1, "initial": 2}}},
            "channels.a.initial: is 2, but the capacity is 1",
        ),
        ({"nodes": []}, "nodes: is [], but must have at least 1 entry"),
        (changed(0, count=2**40, ii=2**31), "nodes: could take up to"),
    ],
)  # fmt: skip
def test_refusals(refused: Refused, file: Callable[[Any], Path], graph: Any, said: str) -> None:
    path = file(graph)
    sentence = refused("unit", "stream", path, "--json")
    assert sentence.startswith(str(path))
    assert said in sentence
    assert refused("check", file({"schema": "opcycle/stream/1", **graph})).endswith(sentence.partition(": ")[2])


def test_rates_that_cannot_balance(refused: Refused, file: Callable[[Any], Path]) -> None:
    nodes = [
        {"name": "a", "kind": "source", "count": 64, "out": ["x"]},
        {"name": "b", "kind": "source", "count": 63, "out": ["y"]},
        {"name": "add", "kind": "map", "in": ["x", "y"], "out": ["z"]},
        {"name": "out", "kind": "sink", "in": ["z"]},
    ]
    said = refused("unit", "stream", file({"nodes": nodes}))
    assert "nodes.2.in.1: rates cannot balance: 'b' writes 63 tokens to channel 'y', but 'add' takes 64 of them" in said
    nodes[2] = {"name": "add", "kind": "broadcast", "every": 8, "in": ["x", "y"], "out": ["z"]}
    said = refused("unit", "stream", file({"nodes": nodes}))
    assert "'b' writes 63 tokens to channel 'y', but 'add' takes 8 of them" in said


def test_a_loop_without_a_token(refused: Refused, file: Callable[[Any], Path]) -> None:
    nodes = [
        {"name": "src", "kind": "source", "count": 8, "out": ["a"]},
        {"name": "one", "kind": "map", "in": ["a", "c"], "out": ["b", "d"]},
        {"name": "two", "kind": "map", "in": ["b"], "out": ["c"]},
        {"name": "out", "kind": "sink", "in": ["d"]},
    ]
    graph = {"channels": {"b": {}, "c": {"capacity": 2}}, "nodes": nodes}
    said = refused("unit", "stream", file(graph))
    assert "closes a loop through" in said
    assert "'one'" in said
    assert "'two'" in said
    assert "without a token in it" in said
    graph["channels"]["c"]["initial"] = 1
    assert not run_graph(read_graph(graph)).deadlock
    only = [
        {"name": "one", "kind": "map", "in": ["c"], "out": ["b"]},
        {"name": "two", "kind": "map", "in": ["b"], "out": ["c"]},
    ]
    said = refused("unit", "stream", file({"channels": {"c": {"initial": 1}}, "nodes": only}))
    assert "no source feeds node 'one', so it would never end" in said


def test_wrong_options(refused: Refused, file: Callable[[Any], Path], tmp_path: Path) -> None:
    stream = ("unit", "stream")
    naive = (*stream, "--attention", "naive")
    assert refused(*stream) == "unit stream: needs a GRAPH or --attention"
    assert refused(*naive, file(GRAPH)).endswith("or --attention (naive), not both")
    assert "nearest is 'naive'" in refused(*stream, "--attention", "naiv")
    assert refused(*naive, "--long", "deep").startswith("--long is 'deep', but must be a whole number")
    assert refused(*naive, "--mask", "causl").startswith("--mask is 'causl', but must be full, causal, window:KEYS")
    assert refused(*naive, "--latency", "exp").startswith("--latency 'exp' must be written NODE=CYCLES")
    assert refused(*naive, "--latency", "exq=3").startswith("latency: unknown node 'exq'")
    assert "nearest is 'attention-naive'" in refused(*stream, "attention-naiv")
    assert refused(*stream, file(GRAPH), "--values").startswith("--values needs --attention")
    assert "channels.q.capacity" in refused(*naive, "--set", "channels.q.capacity=none")
    assert refused(*stream, tmp_path / "none.yaml").endswith("no such file")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    assert "holds no opcycle result" in refused(*naive, "-o", tmp_path / "other")


def test_kinds() -> None:
    wanted = "source map reduce broadcast repeat scan memory_reduce merge select split sink dram_read dram_write"
    assert set(KINDS) == set(wanted.split())
