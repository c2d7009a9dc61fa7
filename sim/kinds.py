"""The kinds of machine: which schema reads a description, and which engine runs a pass on it.

A new kind is one line here. The modules are imported when a machine of the kind is met, so that kinds cost nothing to
those who do not use them.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, cast

from sim.errors import not_among

if TYPE_CHECKING:
    from sim.machine import Machine
    from sim.passes import PassResult
    from workloads.trace import Pass


class Kind(NamedTuple):
    """Where a kind's schema and engine are, as module:name, the module that accounts for its energy, and whether its
    engine knows `sampled` fidelity. The others simulate equal layers once in any case.
    """

    schema: str
    engine: str
    energy: str = "sim.energy"
    samples: bool = False


KINDS = {
    "npu": Kind("sim.hardware:Hardware", "sim.engine:Engine", samples=True),
    "gpu": Kind("sim.gpu.schema:Gpu", "sim.gpu.engine:GpuEngine", "sim.gpu.energy"),
    "stream": Kind("sim.spatial.machine:StreamMachine", "sim.spatial.engine:StreamEngine"),
    "roofline": Kind("sim.roofline_machine:RooflineMachine", "sim.roofline_machine:RooflineEngine"),
}
"""By the value of `kind:` in a description; the first is meant where it says none."""

DEFAULT = next(iter(KINDS))

EXACT: Final = "exact"
SAMPLED: Final = "sampled"
FIDELITIES: Final = (EXACT, SAMPLED)
"""All layers and channels, or the approximation of `sim.sampling`."""


class PassRunner(Protocol):
    """An engine: what a kind of machine must be able to do."""

    @property
    def fidelity(self) -> str:
        """Which of FIDELITIES its results are."""
        ...

    def run(self, work: Pass) -> PassResult:
        """Simulate one pass. Raises ConfigError for what the machine has no unit for."""
        ...


def schema_of(kind: str) -> type[Machine]:
    """The pydantic class of a kind."""
    return cast("type[Machine]", _load(KINDS[kind].schema))


def engine_for(machine: Machine, fidelity: str = EXACT) -> PassRunner:
    """A fresh engine for `machine`, of one of FIDELITIES where its kind has a choice."""
    kind = KINDS[machine.kind]
    choice = {"sampled": fidelity == SAMPLED} if kind.samples else {}
    return cast("PassRunner", _load(kind.engine)(machine, **choice))


def account_of(machine: Machine) -> Any:
    """The module with `energy_rows` and `operator_energy_j` for the machine's kind."""
    return import_module(KINDS[getattr(machine, "kind", DEFAULT)].energy)


def load_hardware(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> Machine:
    """Read a machine that ships (`neupims`) or a YAML file; `overrides` maps dotted keys to values.

    Raises ConfigError for anything that the schema or the geometry does not allow.
    """
    from sim.base import load_based
    from sim.config import ConfigError, apply_overrides, build

    document = load_based("hardware", name_or_path)
    if overrides:
        document = apply_overrides(document, overrides)
    kind = document.data.get("kind", DEFAULT)
    if kind not in KINDS:
        raise document.error(not_among("kind", str(kind), KINDS), "kind")
    machine = build(schema_of(kind), document)
    try:
        machine.dram.check_channels(machine.memory.channels)
    except ConfigError as error:
        # An unknown name has no file of its own; a fault inside the memory's file is told with that file.
        raise error if error.file else document.error(str(error), "memory") from None
    try:
        machine.check_parts()
    except ConfigError as error:
        raise error if error.file else document.error(error.message, error.key) from None
    _ = machine.tier_data
    return machine


def hardware_schema() -> dict[str, Any]:
    """JSON Schema of a machine description of any kind."""
    from pydantic import TypeAdapter

    kinds: Any = schema_of(DEFAULT)
    for kind in list(KINDS)[1:]:
        kinds = kinds | schema_of(kind)
    described = TypeAdapter(kinds).json_schema(by_alias=True)
    told = {"schema": {"type": "string"}, "kind": {"enum": list(KINDS), "default": DEFAULT}}
    return {"type": "object", "properties": told, "required": ["schema"], **described}


def _load(place: str) -> Any:
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)
