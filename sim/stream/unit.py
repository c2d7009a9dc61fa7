"""Behind `opcycle unit stream`: a graph from a file or an attention graph, run, explained and, if wanted, drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.config import apply_overrides
from sim.document import Document, dump_yaml, load_yaml
from sim.errors import ConfigError
from sim.output import check_target, write_text
from sim.stream.schema import AUTO, UNBOUNDED, Graph, read_graph

if TYPE_CHECKING:
    from sim.stream.attention import Attention


@dataclass(frozen=True)
class Job:
    """What the command was asked for.

    size: channels `auto` are sized for this goal, with `size_all` every channel. critical: find the loop that limits
    throughput; `output`, a folder for tables and pictures, wants it too. values: execute the attention graph on random
    numbers of `seed` as well. steady: allow closed-form stretches. before: called when the input has proved right.
    """

    size: str | None = None
    critical: bool = False
    values: bool = False
    seed: int = 0
    steady: bool = True
    write: Path | None = None
    output: Path | None = None
    before: Callable[[Graph], None] | None = None
    overrides: Mapping[str, str] = field(default_factory=dict)


def graph_text(graph: Graph) -> str:
    """The graph as YAML that `load_graph` reads back equal."""
    return dump_yaml(graph.plain())


def run_file(path: str | Path, job: Job) -> dict[str, Any]:
    """Run the graph in the file, or of the name, `path`; what `--json` prints. Raises ConfigError."""
    from sim.catalog import find

    document = apply_overrides(load_yaml(find("graph", path)), job.overrides)
    graph = read_graph(document)
    if job.values:
        raise ConfigError("--values needs --attention: a file has no functions")
    try:
        return _run(replace_name(graph, document), job, None)
    except ConfigError as error:
        raise document.error(error.message, error.key) if error.file is None else error from None


def replace_name(graph: Graph, document: Document) -> Graph:
    """The graph with the name of its file, where it has none of its own."""
    if graph.name or document.path is None:
        return graph
    return graph.model_copy(update={"name": document.path.stem})


def run_attention(spec: Attention, job: Job) -> dict[str, Any]:
    """As `run_file`, of an attention graph."""
    from sim.stream.attention import attention_graph

    graph = attention_graph(spec)
    if job.overrides:
        graph = read_graph(apply_overrides(Document(None, graph.plain()), job.overrides))
    return _run(graph, job, spec)


def _run(graph: Graph, job: Job, spec: Attention | None) -> dict[str, Any]:
    from sim.stream.engine import run_graph

    if job.output is not None:
        check_target(job.output)
    graph, found = _sized(graph, job)
    if job.write is not None:
        write_text(job.write, graph_text(graph))
    if job.before is not None:
        job.before(graph)
    outcome = run_graph(graph, steady=job.steady)
    result: dict[str, Any] = {
        "graph": graph.name,
        "cycles": outcome.cycles,
        "deadlock": outcome.deadlock,
        "waits": [wait.as_dict() for wait in outcome.waits],
        "peak_in_flight": outcome.peak_in_flight,
        "fires": outcome.fires,
        "events": outcome.events,
        "wall_s": outcome.wall_s,
    }
    if found:
        result["capacities"] = found
    if outcome.memory is not None:
        result |= {"memory": outcome.memory, "requests": outcome.requests}
    if outcome.deadlock:
        from sim.stream.deadlock import explain

        why = explain(graph)
        assert why is not None
        result["explanation"] = {**why.as_dict(), "sentence": why.sentence()}
    traced = None
    if job.critical or job.output is not None:
        from sim.stream.critical import trace

        traced = trace(graph, outcome.cycles)
        result["critical"] = None if traced.critical is None else traced.critical.as_dict()
        if traced.critical is not None:
            result["critical"]["sentence"] = traced.critical.sentence()
    if job.values:
        assert spec is not None
        result["max_abs_error"] = None if outcome.deadlock else largest_error(spec, graph, job.seed)
    if job.output is not None:
        from sim.stream.report import write_report

        assert traced is not None
        write_report(job.output, graph, outcome, traced, result)
    return result


def _sized(graph: Graph, job: Job) -> tuple[Graph, dict[str, int]]:
    """The graph with numbers for capacities, and those that were worked out."""
    names = [name for name, channel in graph.all_channels().items() if channel.capacity == AUTO]
    if job.size is not None:
        names = list(graph.all_channels())
    if not names:
        return graph, {}
    from sim.stream.sizing import Goal, capacities

    goal = Goal(job.size) if job.size is not None else Goal.throughput
    bare = graph.with_capacities(dict.fromkeys(names, UNBOUNDED))
    found = capacities(bare, names, goal)
    return bare.with_capacities(found), found


def largest_error(spec: Attention, graph: Graph, seed: int) -> float:
    """Largest absolute difference between the graph's output and numpy's attention, on normal random numbers."""
    import numpy as np

    from sim.stream.attention import attention_functions, attention_reference, attention_result, attention_tokens
    from sim.stream.values import execute

    numbers = np.random.default_rng(seed)
    kv = spec.kv_heads or spec.heads
    q = numbers.normal(size=(spec.heads, spec.mask.queries, spec.d)) / spec.d**0.5
    k = numbers.normal(size=(kv, spec.mask.keys, spec.d))
    v = numbers.normal(size=k.shape)
    executed = execute(graph, attention_functions(spec), attention_tokens(spec, q, k, v))
    difference = attention_result(spec, executed.collected) - attention_reference(spec, q, k, v)
    return float(np.abs(difference).max())
