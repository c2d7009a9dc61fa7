"""Writes what a streaming run left behind as a folder: result, graph, Graphviz dot, tables and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sim.output import result_folder
from sim.result import csv_text, json_text
from sim.stream.checks import ends
from sim.stream.critical import Traced
from sim.stream.engine import Outcome
from sim.stream.schema import Graph

SCHEMA = "opcycle/stream-result/1"


def write_report(
    folder: str | Path, graph: Graph, outcome: Outcome, traced: Traced, result: dict[str, Any], pictures: bool = True
) -> Path:
    """Write `stream.json`, `graph.yaml`, `graph.dot`, the tables and pictures, whole or not at all. Raises ConfigError.

    All that the pictures show is in `stream.json` and `occupancy.csv`.
    """
    from sim.stream.unit import graph_text

    nodes, channels = node_table(graph, outcome), channel_table(graph, outcome, traced)
    times = [min((i + 1) * traced.bin_cycles, traced.cycles) for i in range(traced.occupancy.shape[1])]
    occupancy = {"cycle": times} | {
        name: row.tolist() for name, row in zip(traced.channels, traced.occupancy, strict=True)
    }
    said = {key: value for key, value in result.items() if key != "wall_s"}
    tables = {"nodes": _rows(nodes), "channels": _rows(channels)}
    summary = {"schema": SCHEMA, **said, "traced_cycles": traced.cycles, **tables}
    with result_folder(folder) as target:
        for name, table in (("nodes", nodes), ("channels", channels), ("occupancy", occupancy)):
            (target / f"{name}.csv").write_text(csv_text(table), encoding="utf-8")
        (target / "graph.yaml").write_text(graph_text(graph), encoding="utf-8")
        (target / "graph.dot").write_text(dot(summary), encoding="utf-8")
        (target / "stream.json").write_text(json_text(summary), encoding="utf-8")
        if pictures:
            from analysis.figures import draw_all

            draw_all(target)
    return Path(folder)


def node_table(graph: Graph, outcome: Outcome) -> dict[str, list[Any]]:
    """Columns: one entry a node. `busy` is the share of all cycles that its firings' intervals are."""
    fires = [outcome.fires[node.name] for node in graph.nodes]
    return {
        "node": [node.name for node in graph.nodes],
        "kind": [node.kind for node in graph.nodes],
        "ii": [node.ii for node in graph.nodes],
        "latency": [node.latency for node in graph.nodes],
        "fires": fires,
        "time": [outcome.times[node.name] for node in graph.nodes],
        "busy": [f * node.ii / max(outcome.cycles, 1) for f, node in zip(fires, graph.nodes, strict=True)],
    }


def channel_table(graph: Graph, outcome: Outcome, traced: Traced) -> dict[str, list[Any]]:
    """Columns: one entry a channel; `mean` and `peak` are tokens in flight."""
    writers, readers = ends(graph)
    stuck = {(wait.channel, wait.state) for wait in outcome.waits}
    states = {name: "/".join(s for s in ("full", "empty") if (name, s) in stuck) for name in traced.channels}
    specs = graph.all_channels()
    return {
        "channel": traced.channels,
        "from": [graph.nodes[writers[name][0][0]].name for name in traced.channels],
        "to": [graph.nodes[readers[name][0][0]].name for name in traced.channels],
        "capacity": [specs[name].capacity for name in traced.channels],
        "initial": [specs[name].initial for name in traced.channels],
        "peak": [outcome.peak_in_flight[name] for name in traced.channels],
        "mean": [float(row.mean()) for row in traced.occupancy],
        "stuck": [states[name] for name in traced.channels],
    }


def _rows(table: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]


def dot(summary: dict[str, Any]) -> str:
    """The graph of a result in Graphviz' language: the critical loop and waits of a deadlock in red."""
    critical = (summary.get("critical") or {}).get("links", [])
    hot = {link["channel"] for link in critical}
    hot_nodes = {link["to"] for link in critical}
    lines = ["digraph stream {", "  rankdir=LR;", '  node [shape=box, style=rounded, fontname="Helvetica"];']
    lines.append(f"  label={_quoted(summary['graph'])};")
    for node in summary["nodes"]:
        text = f"{node['node']}\\n{node['kind']}, II {node['ii']}, L {node['latency']}\\n{node['fires']} firings"
        colour = ", color=red, penwidth=2" if node["node"] in hot_nodes else ""
        lines.append(f"  {_quoted(node['node'])} [label={_quoted(text)}{colour}];")
    for channel in summary["channels"]:
        text = f"{channel['channel']}\\n{channel['peak']} of {channel['capacity']}"
        text += f", {channel['stuck']}" if channel["stuck"] else ""
        colour = ", color=red, penwidth=2" if channel["channel"] in hot or channel["stuck"] else ""
        ends_ = f"{_quoted(channel['from'])} -> {_quoted(channel['to'])}"
        lines.append(f"  {ends_} [label={_quoted(text)}{colour}];")
    return "\n".join([*lines, "}", ""])


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '\\"') + '"'
