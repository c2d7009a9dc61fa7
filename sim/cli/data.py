"""The commands that look at data without simulating: `check`, `list` and `schema`. None of them needs numba."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.methods import method_rows, print_methods, show_methods
from sim.cli.printing import binary_size, engineering, print_json, print_table
from sim.errors import ConfigError, not_among

if TYPE_CHECKING:
    from collections.abc import Callable

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Kind(StrEnum):
    """What `list` can list."""

    hardware = "hardware"
    models = "models"
    workloads = "workloads"
    memories = "memories"
    methods = "methods"
    tiers = "tiers"
    graphs = "graphs"


class Schema(StrEnum):
    """What `schema` can describe; `check` finds out by the key `schema` of a file."""

    hardware = "hardware"
    workload = "workload"
    trace = "trace"
    memory = "memory"
    tier = "tier"
    energy = "energy"
    kernels = "kernels"
    method = "method"
    model = "model"
    dram_energy = "dram-energy"
    stream = "stream"
    unit = "unit"
    area = "area"
    sweep = "sweep"
    lengths = "lengths"
    claims = "claims"


def check(
    files: Annotated[list[Path], typer.Argument(help="YAML or JSON files of opcycle, or config.json of a model.")],
    json: Json = False,
) -> None:
    """Validate files of any kind: machines, workloads, methods, memories, models, graphs, sweeps, traces ..."""
    rows: list[dict[str, Any]] = []
    for file in files:
        row: dict[str, Any] = {"file": str(file), "kind": None, "ok": True, "error": None}
        try:
            kind = kind_of(file)
            row["kind"] = kind.value
            _validate(kind, file)
        except ConfigError as error:
            row |= {"ok": False, "error": str(error)}
        rows.append(row)
    if json:
        print_json(rows)
    for row in rows:
        if row["ok"] and not json:
            print(f"{row['file']}: ok ({row['kind']})")
        elif not row["ok"]:
            typer.echo(f"opcycle: {row['error']}", err=True)
    if not all(row["ok"] for row in rows):
        raise typer.Exit(2)


def kind_of(file: Path) -> Schema:
    """What a file describes, by its key `schema`; a `config.json` has `model_type` instead. Raises ConfigError."""
    from sim.document import load_yaml, read_json, read_text

    if read_text(file).lstrip().startswith("{"):
        data = read_json(file)
        if "model_type" in data and "schema" not in data:
            return Schema.model
    else:
        data = load_yaml(file).data
    stated = data.get("schema")
    known = {f"opcycle/{kind.value}/1": kind for kind in Schema}
    if stated is None:
        raise ConfigError(f"is missing; allowed: {', '.join(known)}", file=file, key="schema")
    family, _, version = str(stated).rpartition("/")
    if stated not in known and not (f"{family}/1" in known and version.isdecimal()):
        raise ConfigError(not_among("schema", str(stated), known), file=file, key="schema")
    # A version that this code does not know is refused by the reader of its kind, in the words that other commands use.
    return known[f"{family}/1"]


def _validate(kind: Schema, file: Path) -> None:
    """Read `file` as a `kind`, with everything that it names. Raises ConfigError."""
    if kind is Schema.hardware:
        from sim.kinds import load_hardware

        load_hardware(file)
    elif kind is Schema.memory:
        from sim.standards import load_memory

        load_memory(file)
    elif kind is Schema.tier:
        from sim.tiers import load_tier

        load_tier(file)
    elif kind is Schema.kernels:
        from sim.gpu.library import load_library

        load_library(str(file))
    elif kind is Schema.energy:
        from sim.energy_tables import load_table

        load_table(str(file))
    elif kind is Schema.unit:
        from sim.arithmetic import load_unit

        load_unit(str(file))
    elif kind is Schema.area:
        from sim.area import load_silicon

        load_silicon(str(file))
    elif kind is Schema.dram_energy:
        from sim.config import build, load_yaml
        from sim.energy_tables import DramInterfaces

        build(DramInterfaces, load_yaml(file))
    elif kind is Schema.model:
        from workloads import load_model

        load_model(file)
    elif kind is Schema.stream:
        from sim.stream.schema import load_graph

        load_graph(file)
    elif kind is Schema.method:
        from workloads.methods import load_method

        load_method(file)
    elif kind is Schema.lengths:
        from workloads.distributions import load_length_set

        load_length_set(file)
    elif kind is Schema.sweep:
        from sim.sweep.run import check_space
        from sim.sweep.space import Space
        from sim.sweep.spec import load_spec

        check_space(Space(load_spec(file)))
    elif kind is Schema.claims:
        from sim.claims.schema import read_claims

        read_claims(file)
    elif kind is Schema.trace:
        from workloads import read_trace

        read_trace(file)
    else:
        from workloads import load_workload

        load_workload(file)


def schema(kind: Annotated[Schema, typer.Argument(help="What to describe.")]) -> None:
    """Print the JSON Schema of a kind of file, for editors and other tools."""
    print_json(json_schema(kind))


_MODELS = {
    Schema.hardware: ("sim.kinds", "hardware_schema"),
    Schema.memory: ("sim.standards", "Memory"),
    Schema.tier: ("sim.tiers", "Tier"),
    Schema.energy: ("sim.energy_tables", "EnergyTable"),
    Schema.kernels: ("sim.gpu.library", "Library"),
    Schema.dram_energy: ("sim.energy_tables", "DramInterfaces"),
    Schema.stream: ("sim.stream.schema", "Graph"),
    Schema.method: ("workloads.methods", "Method"),
    Schema.unit: ("sim.arithmetic", "ArithmeticUnit"),
    Schema.area: ("sim.area", "Silicon"),
    Schema.claims: ("sim.claims.schema", "Claims"),
    Schema.model: ("workloads.models", "Model"),
    Schema.workload: ("workloads.scenario", "Scenario"),
    Schema.trace: ("workloads.trace_file", "trace_schema"),
    Schema.sweep: ("sim.sweep.spec", "Spec"),
    Schema.lengths: ("workloads.distributions", "LengthSet"),
}
"""The module and the pydantic model of each kind of file, or the function that writes its schema."""


def json_schema(kind: Schema) -> dict[str, Any]:
    """The JSON Schema (2020-12) of a kind of file."""
    from importlib import import_module

    module, name = _MODELS[kind]
    model = getattr(import_module(module), name)
    describe = getattr(model, "model_json_schema", model)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **describe()}


def list_(
    kind: Annotated[Kind, typer.Argument(help="What to list.")],
    name: Annotated[
        str | None,
        typer.Argument(help="Show this one, with the source of every value; of methods also a text to search for."),
    ] = None,
    json: Json = False,
) -> None:
    """List what ships, or show one of it with sources."""
    if name is not None and kind is Kind.methods:
        show_methods(name, json)
        return
    if name is not None:
        _show_one(kind, name, json)
        return
    rows = _LISTS[kind]()
    if json:
        print_json(rows)
        return
    if kind is Kind.methods:
        print_methods(rows)
        return
    columns = [key for key in rows[0] if key != "description"] if rows else ["name"]
    table = [[_cell(key, row[key]) for key in columns] + [row["description"]] for row in rows]
    heads = [_HEADS.get(key, key) for key in columns]
    numbers = [_HEADS.get(key, key) for key in columns if any(isinstance(row[key], (int, float)) for row in rows)]
    print_table("", [*heads, "description"], table, right=numbers)


_HEADS = {
    "peak_flops_per_s": "peak",
    "memory_bytes_per_s": "bandwidth",
    "capacity_bytes": "capacity",
    "channel_bytes_per_s": "of a channel",
    "burst_bytes": "burst",
    "channel_capacity_bytes": "capacity",
    "parameters": "weights",
    "active_parameters": "active",
}
"""Headings of the tables, where the keys of --json would be too long."""


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if key.endswith("bytes_per_s"):
        return engineering(value, "B/s")
    if key.endswith("flops_per_s"):
        return engineering(value, "FLOP/s")
    if key.endswith("bytes"):
        return binary_size(value)
    if key.endswith("parameters"):
        return engineering(value, "").replace("G", "B")
    return f"{value:,}" if isinstance(value, int) else str(value)


def _hardware_rows() -> list[dict[str, Any]]:
    from sim.catalog import names
    from sim.kinds import load_hardware

    rows = []
    for name in names("hardware"):
        machine = load_hardware(name)
        best = max(machine.formats, key=machine.peak_flops_per_s)
        rows.append(
            {
                "name": name,
                "kind": machine.kind,
                "compute": machine.compute,
                "peak_flops_per_s": machine.peak_flops_per_s(best),
                "format": best,
                "memory": f"{machine.memory.channels} x {machine.memory.standard}",
                "memory_bytes_per_s": machine.peak_bytes_per_s,
                "capacity_bytes": machine.capacity_bytes,
                "description": machine.description,
            }
        )
    return rows


def _model_rows() -> list[dict[str, Any]]:
    from workloads.models import load_model, model_names

    rows = []
    for name in model_names():
        model = load_model(name)
        weights = model.parameters()
        experts = f", {model.moe.experts} experts" if model.moe is not None else ""
        rows.append(
            {
                "name": name,
                "kind": model.kind,
                "parameters": weights.total,
                "active_parameters": weights.active,
                "layers": model.layers,
                "hidden": model.hidden,
                "heads": model.attention.heads,
                "description": f"{model.family or model.name}{experts}",
            }
        )
    return rows


def _workload_rows() -> list[dict[str, Any]]:
    from workloads import load_workload, workload_names

    rows = []
    for name in workload_names():
        workload = load_workload(name)
        scenario, lengths = workload.scenario, workload.lengths
        assert scenario is not None
        length = f"{lengths[0]:,}" if len(set(lengths)) == 1 else f"{min(lengths):,} to {max(lengths):,}"
        steps = f", {scenario.steps} steps" if scenario.steps and scenario.steps > 1 else ""
        rows.append(
            {
                "name": name,
                "model": scenario.model,
                "phase": scenario.phase,
                "batch": len(lengths),
                "weights": scenario.formats.weights,
                "description": f"{length} positions each{steps}",
            }
        )
    return rows


def _memory_rows() -> list[dict[str, Any]]:
    from sim.catalog import find, names
    from sim.config import load_yaml
    from sim.standards import load_memory

    rows = []
    for name in names("memory"):
        memory = load_memory(name)
        rows.append(
            {
                "name": name,
                "channel_bytes_per_s": float(memory.channel_peak_bytes_per_s),
                "burst_bytes": memory.burst_bytes,
                "channel_capacity_bytes": memory.capacity_bytes_per_channel,
                "description": load_yaml(find("memory", name)).heading,
            }
        )
    return rows


def _tier_rows() -> list[dict[str, Any]]:
    from sim.catalog import names
    from sim.tiers import load_tier

    rows = []
    for name in names("tier"):
        tier = load_tier(name)
        rows.append(
            {
                "name": name,
                "capacity_bytes": tier.capacity,
                "read_bytes_per_s": float(tier.read.bandwidth),
                "read_latency_s": tier.latency_ps(True) / 1e12,
                "write_bytes_per_s": float(tier.write.bandwidth),
                "write_latency_s": tier.latency_ps(False) / 1e12,
                "description": tier.description,
            }
        )
    return rows


def _graph_rows() -> list[dict[str, Any]]:
    from sim.catalog import find, names
    from sim.config import load_yaml
    from sim.stream.schema import load_graph

    rows = []
    for name in names("graph"):
        graph = load_graph(name)
        rows.append(
            {
                "name": name,
                "nodes": len(graph.nodes),
                "channels": len(graph.all_channels()),
                "description": load_yaml(find("graph", name)).heading,
            }
        )
    return rows


_LISTS: dict[Kind, Callable[[], list[dict[str, Any]]]] = {
    Kind.hardware: _hardware_rows,
    Kind.models: _model_rows,
    Kind.workloads: _workload_rows,
    Kind.memories: _memory_rows,
    Kind.methods: method_rows,
    Kind.tiers: _tier_rows,
    Kind.graphs: _graph_rows,
}
_CATALOG = {Kind.hardware: "hardware", Kind.models: "model", Kind.workloads: "workload", Kind.memories: "memory",
            Kind.tiers: "tier", Kind.graphs: "graph"}  # fmt: skip


def _show_one(kind: Kind, name: str, json: bool) -> None:
    """Every value of one file with its source, on a screen or as a list of one JSON object."""
    from sim.catalog import find
    from sim.config import load_yaml, show

    if kind is Kind.models:
        from workloads.models import model_aliases

        name = model_aliases().get(name, name)
    document = load_yaml(find(_CATALOG[kind], name))
    if json:
        print_json([{"name": name, "file": str(document.path), "data": document.data, "sources": document.sources}])
        return
    rows: list[list[str]] = []

    def walk(value: Any, key: str) -> None:
        if isinstance(value, dict) and value:
            for inner, item in value.items():
                walk(item, f"{key}.{inner}" if key else inner)
        else:
            source = document.source_of(key)
            text = value if isinstance(value, str) else show(value)
            rows.append([key, text, "" if source is None or source == whole else source])

    whole = document.sources.get("")
    walk(document.data, "")
    print_table(str(document.path), ["key", "value", "source"], rows)
    if whole is not None:
        print(f"Source of the values without one of their own: {whole}")
