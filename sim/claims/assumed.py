"""What the runs of a claim rest on that no paper states: numbers of the run, of its workload, and of its methods.

All of it stands in comments of the data files, so the list cannot differ from what was run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from sim.claims.formula import runs_of
from sim.claims.schema import Run, Source
from sim.document import Document, load_yaml
from sim.errors import show
from workloads.methods import load_method
from workloads.scenario import SCENARIO_FOLDER

_SIZES = ("batch", "prompt", "context", "steps", "chunk")


def assumed_inputs(source: Source) -> tuple[str, ...]:
    """One line for each assumed number, `what = value: why`, each once, in the order of the runs."""
    found: dict[str, None] = {}
    for name in runs_of(source.claim.ours):
        for line in _of_run(source.file.runs[name], source.document, f"runs.{name}"):
            found.setdefault(line)
    return tuple(found)


def _of_run(run: Run, document: Document, place: str) -> Iterator[str]:
    for key, value in run.set.items():
        if key != "workload.methods":
            words = document.source_of(f"{place}.set.{key}") or document.source_of(f"{place}.set") or ""
            yield from _line(key.removeprefix("workload."), value, words)
    if run.attention_graph is not None:
        words = document.source_of(f"{place}.attention_graph") or ""
        yield from _line("attention graph", run.attention_graph.model_dump(exclude_none=True), words)
    if run.operator is not None:
        yield from _line("operator", run.operator, document.source_of(f"{place}.operator") or "")
    if run.workload is not None:
        yield from _of_workload(run, document, place)


def _of_workload(run: Run, document: Document, place: str) -> Iterator[str]:
    assert run.workload is not None
    path = SCENARIO_FOLDER / f"{run.workload}.yaml"
    scenario = load_yaml(path if path.is_file() else run.workload)
    for key in _SIZES:
        if key in scenario.data and f"workload.{key}" not in run.set:
            yield from _line(key, scenario.data[key], scenario.source_of(key) or "")
    methods = run.set.get("workload.methods", scenario.data.get("methods") or [])
    words = document.source_of(f"{place}.set.workload.methods") or ""
    for number, entry in enumerate(methods):
        if isinstance(entry, Mapping) and "use" not in entry:
            yield from _line("methods", entry, document.source_of(f"{place}.set.workload.methods.{number}") or words)
            continue
        name, changes = (entry, {}) if isinstance(entry, str) else (entry["use"], entry.get("set") or {})
        for parameter in load_method(name).parameters:
            inner = ".".join(parameter.key.split(".")[2:])
            if parameter.origin == "assumed" and not _changed(inner, changes):
                yield f"{name} {inner} = {show(parameter.value)}" + (f": {parameter.words}" if parameter.words else "")
        for primitive, values in changes.items():
            for key, value in values.items():
                said = document.source_of(f"{place}.set.workload.methods.{number}.set.{primitive}.{key}") or words
                yield from _line(f"{name} {primitive}.{key}", value, said)


def _changed(key: str, changes: Mapping[str, Any]) -> bool:
    primitive, _, rest = key.partition(".")
    return rest in changes.get(primitive, {})


def _line(what: str, value: Any, words: str) -> Iterator[str]:
    if found := re.search(r"assumed\b[;:,]?\s*", words):
        why = words[found.end() :].strip()
        yield f"{what} = {show(value)}" + (f": {why}" if why else "")
