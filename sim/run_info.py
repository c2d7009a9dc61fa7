"""What a report says about its inputs: names, the resolved hwconfig and workload as YAML, and the hashes of all of
them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from sim.document import dump_yaml
from sim.energy_tables import load_table
from sim.machine import OWN_TABLE

if TYPE_CHECKING:
    from sim.machine import Machine
    from workloads import Workload


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What was run: names, the resolved inputs as text, what the trace says about resident data, and where all came
    from.

    `provenance` holds the version of the code and the SHA-256 of each input.
    """

    hardware: str
    workload: str
    model: str = ""
    batch: int | None = None
    methods: tuple[str, ...] = ()
    weights_bytes: int = 0
    kv_bytes: int = 0
    hwconfig_yaml: str = ""
    workload_yaml: str = ""
    provenance: Mapping[str, str] = field(default_factory=dict)


def run_info(machine: Machine, workload: Workload) -> RunInfo:
    """The RunInfo of `workload` on `machine`. A workload that was read from a trace file stays that trace, word for
    word; one from an ONNX file becomes its trace.
    """
    from sim import __version__

    hwconfig = dump_yaml(machine.model_dump(mode="json", by_alias=True, exclude_none=True))
    if workload.scenario is None and workload.source is not None and workload.source.suffix == ".onnx":
        from workloads.trace_file import trace_text

        asked = trace_text(workload.trace())
    elif workload.scenario is None and workload.source is not None:
        asked = workload.source.read_text(encoding="utf-8")
    else:
        asked = dump_yaml(workload.resolved())
    trace = workload.trace()
    table = machine.energy if machine.energy.table == OWN_TABLE else load_table(machine.energy.table)[0]
    return RunInfo(
        hardware=machine.name,
        workload=workload.name,
        model=trace.model,
        batch=trace.batch,
        methods=tuple(trace.methods),
        weights_bytes=trace.weight_bytes,
        kv_bytes=trace.kv_bytes,
        hwconfig_yaml=hwconfig,
        workload_yaml=asked,
        provenance={
            "opcycle": __version__,
            "hwconfig_sha256": _hash(hwconfig),
            "workload_sha256": _hash(asked),
            "memory_sha256": _hash(machine.dram.content),
            "energy_table_sha256": _hash(table.model_dump_json(by_alias=True)),
        },
    )


def brief_info(machine: Machine, workload: Workload) -> RunInfo:
    """As `run_info` with names and sizes alone, for runs of which no files are kept."""
    trace = workload.trace()
    return RunInfo(
        hardware=machine.name,
        workload=workload.name,
        model=trace.model,
        batch=trace.batch,
        methods=tuple(trace.methods),
        weights_bytes=trace.weight_bytes,
        kv_bytes=trace.kv_bytes,
    )


def _hash(text: str) -> str:
    return sha256(text.encode("utf-8")).hexdigest()
