"""Runs what claims need, each run once, and takes it apart into named figures.

A run of a workload has the numbers of its summary under their dotted keys, and sums by `operator`, `role`, `kind` and
`phase` (`operator.attention.time_s`); with or without a machine it has those of its trace under `trace`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, cast

from sim.claims.schema import AttentionGraph, Run
from sim.errors import ConfigError

if TYPE_CHECKING:
    from sim.kinds import PassRunner
    from sim.machine import Machine
    from sim.result import Report
    from workloads.trace import Trace

Figures = dict[str, float]
_SUMMED = ("time_s", "advance_s", "flops", "dram_bytes", "energy_j")
_TRACE = ("flops", "vector_ops", "read_bytes", "write_bytes", "weight_bytes", "kv_bytes", "tokens", "generated")


class Runs:
    """Machines, their engines and the runs made so far."""

    def __init__(self) -> None:
        self._machines: dict[str, tuple[Machine, PassRunner]] = {}
        self._known: dict[str, Figures] = {}

    def figures(self, run: Run) -> Figures:
        """The figures of a run, made once. Raises ConfigError for what cannot be run."""
        key = run.model_dump_json()
        if key not in self._known:
            self._known[key] = self._measure(run)
        return self._known[key]

    def _measure(self, run: Run) -> Figures:
        if run.attention_graph is not None:
            return _stream(run.attention_graph)
        hardware, workload = split(run.set)
        if run.operator is not None:
            assert run.hardware is not None
            return self._operator(run.hardware, run.operator, hardware)
        assert run.workload is not None
        from workloads import load_workload

        work = load_workload(run.workload, workload)
        if run.hardware is None:
            return dict(_of_trace(work.trace()))
        from sim.engine import simulate

        machine, engine = self._machine(run.hardware, hardware)
        return dict(_of_report(simulate(machine, work, engine=engine))) | dict(_of_trace(work.trace()))

    def _operator(self, hardware: str, text: str, settings: Mapping[str, Any]) -> Figures:
        from sim.operators.measure import Operators
        from sim.operators.request import make_request

        kind, *sizes = text.split()
        machine, _ = self._machine(hardware, settings)
        answer = Operators(machine).measure(make_request(kind, dict(size.split("=", 1) for size in sizes)))
        return dict(_numbers(answer))

    def _machine(self, name: str, settings: Mapping[str, Any]) -> tuple[Machine, PassRunner]:
        from sim.kinds import engine_for, load_hardware

        key = repr((name, sorted(settings.items())))
        if key not in self._machines:
            machine = load_hardware(name, dict(settings))
            self._machines[key] = machine, engine_for(machine)
        return self._machines[key]


def split(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Overrides of the machine, and of the workload, without their prefixes."""
    found: dict[str, dict[str, Any]] = {"hw": {}, "workload": {}}
    for key, value in settings.items():
        prefix, _, rest = key.partition(".")
        if prefix not in found or not rest:
            raise ConfigError(f"sets {key!r}, but keys begin with 'hw.' or 'workload.'", key="set")
        found[prefix][rest] = value
    return found["hw"], found["workload"]


def _stream(graph: AttentionGraph) -> Figures:
    from sim.stream.attention import attention
    from sim.stream.unit import Job, run_attention

    answer = run_attention(attention(graph.variant, graph.n, graph.d), Job())
    peaks: Mapping[str, int] = answer["peak_in_flight"]
    return dict(_numbers(answer)) | {"peak_tokens": float(max(peaks.values()))}


def _of_report(report: Report) -> Iterator[tuple[str, float]]:
    yield from _numbers(report.summary)
    columns = report.operator_columns
    for group in ("operator", "role", "kind", "phase"):
        sums: dict[str, list[float]] = defaultdict(list)
        for figure in _SUMMED:
            for name, value in zip(columns[group], columns[figure], strict=True):
                sums[f"{group}.{name}.{figure}"].append(float(cast("float", value)))
        yield from ((key, math.fsum(values)) for key, values in sums.items())


def _of_trace(trace: Trace) -> Iterator[tuple[str, float]]:
    for name in _TRACE:
        yield f"trace.{name}", float(getattr(trace, name))
    sums: dict[str, int] = defaultdict(int)
    for work in trace.passes:
        for block in work.blocks:
            for op in block.ops:
                times = work.repeat * block.repeat
                for key in (f"operator.{op.name}", f"role.{op.role}", f"kind.{op.kind}", f"phase.{work.phase}"):
                    sums[f"trace.{key}.flops"] += times * op.flops
                    sums[f"trace.{key}.vector_ops"] += times * op.vector_ops
    yield from ((key, float(value)) for key, value in sums.items())


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _numbers(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key, float(value)
