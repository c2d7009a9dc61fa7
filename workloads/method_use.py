"""How a workload uses methods: the steps that its keys mean, parameters set from outside, and their application."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.config import ConfigError, Document, apply_overrides, not_among
from workloads.build import Builder
from workloads.methods import steps_of
from workloads.models import Model, load_model
from workloads.sparsity import mark
from workloads.trace import Trace
from workloads.transforms.compose import Step, compose
from workloads.transforms.context import Context

if TYPE_CHECKING:
    from workloads.scenario import Scenario, Workload


def scenario_steps(scenario: Scenario, path: Path | None) -> tuple[list[Step], list[str]]:
    """The steps of a scenario's `methods`, and what the trace calls them."""
    return steps_of(scenario.methods, scenario.phase, path)


def apply_methods(trace: Trace, workload: Workload, builder: Builder) -> Trace:
    """The workload's trace under its methods, then with its zeros. Raises ConfigError with the workload's file and the
    key."""
    assert workload.scenario is not None
    steps, names = scenario_steps(workload.scenario, workload.source)

    def load(name: str) -> Model:
        path = workload.source
        beside = path is not None and ("/" in name or Path(name).suffix) and (path.parent / name).exists()
        return load_model(str(path.parent / name) if beside and path is not None else name)

    try:
        done = compose(trace, steps, Context(builder, workload.scenario.seed, load), names)
        return mark(done, workload.scenario.sparsity, workload.scenario.activation_sparsity, workload.scenario.seed)
    except ConfigError as error:
        if error.file is not None:
            raise
        raise ConfigError(error.message, file=workload.source, key=error.key) from None


def split_parameters(changes: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Overrides of keys of the scenario, and those of parameters of a method by its name
    (`methods.NAME.draft.length`).
    """
    own: dict[str, Any] = {}
    parameters: dict[str, Any] = {}
    for key, value in changes.items():
        first, _, rest = key.partition(".")
        named = first == "methods" and rest and not rest.partition(".")[0].isdecimal()
        (parameters if named else own)[key] = value
    return own, parameters


def set_parameters(document: Document, parameters: Mapping[str, Any]) -> Document:
    """The document with parameters set in the methods that it names. Raises ConfigError for a method that it does not
    name.
    """
    if not parameters:
        return document
    listed = document.data.get("methods") or []
    names = [entry if isinstance(entry, str) else entry.get("use", next(iter(entry), "")) for entry in listed]
    entries: list[Any] = [dict(e) if isinstance(e, dict) else e for e in listed]
    for key, values in apply_overrides({}, parameters)["methods"].items():
        if key not in names:
            raise ConfigError(
                not_among("method", key, names) if names else f"sets parameters of {key!r}, but no methods are listed",
                file=document.override, key=f"methods.{key}",
            )  # fmt: skip
        number = names.index(key)
        entry = entries[number]
        if isinstance(entry, str) or "use" in entry:
            known = {} if isinstance(entry, str) else dict(entry.get("set") or {})
            entries[number] = {"use": key, "set": {**known, **_joined(values, known)}}
        else:
            entries[number] = {**entry, key: {**entry[key], **values}}
    data = {**document.data, "methods": entries}
    return replace(document, data=data, overridden=document.overridden | {"methods"})


def _joined(values: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """New parameters over those that the entry sets already, primitive by primitive."""
    return {
        name: {**known[name], **value} if isinstance(value, dict) and isinstance(known.get(name), dict) else value
        for name, value in values.items()
    }
