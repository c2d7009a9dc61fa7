"""Simulates one point of a sweep: keys in, one flat row of results out, with a status in place of an exception.

A row says `ok`, `impossible` (the point contradicts a constraint, a schema, or what the machine can hold or do),
`outside` (it was simulated, and a constraint on its results does not hold) or `failed` (a fault of ours), and in the
latter three why. Host time is no part of it: equal points have equal rows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sim.catalog import is_path
from sim.errors import ConfigError, not_among
from sim.sweep.condition import RESULT, Condition, value_at
from sim.sweep.spec import Spec, Value, named, values_of

if TYPE_CHECKING:
    from sim.kinds import PassRunner
    from sim.machine import Machine
    from workloads import Workload

Row = dict[str, Any]

OK: Final = "ok"
IMPOSSIBLE: Final = "impossible"
OUTSIDE: Final = "outside"
FAILED: Final = "failed"

_PLAIN: Final = (
    "time_s", "energy_j", "power_w", "flops", "vector_ops", "dram_bytes", "weights_bytes", "kv_bytes",
    "memory_capacity_bytes", "tokens", "tokens_per_s", "time_per_step_s", "ttft_s", "tpot_s", "mac_utilization",
    "memory_bandwidth_utilization", "busiest_unit", "area_mm2", "cost_usd",
)  # fmt: skip
_ROOFLINE: Final = (
    "peak_flops_per_s", "peak_bytes_per_s", "intensity_flop_per_byte", "achieved_flops_per_s", "bound",
)  # fmt: skip
ENGINE_USES: Final = 64
"""Passes after which an engine is made anew: it remembers every pass that it ran."""


class Prepared(NamedTuple):
    """A point that may exist: machine, workload, hash of everything that its results depend on, and fidelity."""

    machine: Machine
    workload: Workload
    key: str
    fidelity: str


def prepare(spec: Spec, keys: Mapping[str, Value]) -> Prepared:
    """Build the machine and the workload of a point. Raises ConfigError where they, or a constraint, forbid it."""
    overrides: dict[str, dict[str, Value]] = {"hw": {}, "workload": {}}
    for key, value in keys.items():
        root, dot, rest = key.partition(".")
        if dot:
            overrides[root][rest] = value
    machine, told = _machine(str(keys.get("hardware", spec.hardware)), overrides["hw"])
    workload, asked_of = _workload(str(keys.get("workload", spec.workload)), overrides["workload"])
    for text in spec.constraints:
        asked = condition(text)
        if not asked.of_result and not asked.holds(lambda name: _value(machine, workload, name)):
            raise ConfigError(f"constraint {text!r} does not hold")
    digest = sha256(f"{code_version()}\0{spec.fidelity}\0{told}\0{asked_of}".encode())
    return Prepared(machine, workload, digest.hexdigest(), spec.fidelity)


KEPT: Final = 256
"""Machines, and workloads, that are remembered: neighbours in a space differ in one of the two."""
_MACHINES: dict[str, tuple[Machine, str]] = {}
_WORKLOADS: dict[str, tuple[Workload, str]] = {}


def forget() -> None:
    """Read machines and workloads anew: their files may have changed since they were read for an earlier sweep."""
    _MACHINES.clear()
    _WORKLOADS.clear()


def _machine(name: str, overrides: dict[str, Value]) -> tuple[Machine, str]:
    """A machine, and all that it rests on as text."""
    from sim.kinds import load_hardware

    what = f"{name} {json.dumps(overrides, sort_keys=True)}"
    if what not in _MACHINES:
        machine = load_hardware(name, overrides)
        parts = [machine.content, machine.dram.content]
        parts += [tier.model_dump_json(by_alias=True) for tier in machine.tier_data.values()]
        parts += _files(json.loads(machine.content))
        if len(_MACHINES) >= KEPT:
            _MACHINES.clear()
        _MACHINES[what] = machine, "\0".join(parts)
    return _MACHINES[what]


def _workload(name: str, overrides: dict[str, Value]) -> tuple[Workload, str]:
    """A workload, and all that it rests on as text."""
    from workloads import load_workload

    what = f"{name} {json.dumps(overrides, sort_keys=True)}"
    if what not in _WORKLOADS:
        workload = load_workload(name, overrides)
        if len(_WORKLOADS) >= KEPT:
            _WORKLOADS.clear()
        told = _asked(workload)
        _WORKLOADS[what] = workload, what + told if workload.scenario is None else told
    return _WORKLOADS[what]


def rests_on(spec: Spec) -> str:
    """Hash of all that rows depend on beside the spec: code, and the files of its machines and workloads."""
    digest = sha256(code_version().encode())
    for key, read in (("hardware", _machine), ("workload", _workload)):
        names = {str(value) for value in named(spec, key)}
        for name in sorted(names):
            try:
                told = read(name, {})[1]
            except ConfigError:
                told = read(name, _first(spec, key))[1]
            digest.update(told.encode())
    return digest.hexdigest()


@lru_cache(maxsize=256)
def condition(text: str) -> Condition:
    """The condition that `text` says, read once."""
    return Condition(text)


def evaluate(prepared: Prepared) -> Row:
    """Simulate a prepared point; returns the metrics with `status` and `error`."""
    from sim.engine import simulate
    from sim.run_info import brief_info

    machine, workload, _, fidelity = prepared
    try:
        report = simulate(machine, workload, engine=_engine(machine, fidelity))
        report = replace(report, workload=brief_info(machine, workload))
        return {"status": OK, "error": None, **metrics(report.summary)}
    except ConfigError as error:
        return {"status": IMPOSSIBLE, "error": str(error)}
    except Exception as error:
        return {"status": FAILED, "error": f"{type(error).__name__}: {error}"}


def judged(spec: Spec, prepared: Prepared, row: Row) -> Row:
    """The row, `outside` where a constraint on results does not hold. Raises ConfigError for columns that rows lack."""
    if row["status"] != OK:
        return row
    for text in spec.constraints:
        asked = condition(text)
        if not asked.of_result:
            continue

        def value(name: str) -> Any:
            root, _, rest = name.partition(".")
            if root != RESULT:
                return _value(prepared.machine, prepared.workload, name)
            if rest not in row:
                raise ConfigError(not_among("column", rest, sorted(row), most=40), key=f"constraints: {name}")
            return row[rest]

        if not asked.holds(value):
            return {**row, "status": OUTSIDE, "error": f"constraint {text!r} does not hold"}
    return row


def refused(error: ConfigError) -> Row:
    """The row of a point that cannot exist."""
    return {"status": IMPOSSIBLE, "error": str(error)}


def metrics(summary: Mapping[str, Any]) -> Row:
    """The columns of a result row, from the summary of a run."""
    roofline = summary["roofline"]
    row: Row = {name: summary[name] for name in _PLAIN} | {name: roofline[name] for name in _ROOFLINE}
    row["edp_js"] = summary["energy_j"] * summary["time_s"]
    row["tokens_per_j"] = summary["tokens"] / summary["energy_j"] if summary["energy_j"] else None
    row |= {f"utilization.{unit}": share for unit, share in summary["utilization"].items()}
    row |= {f"energy_j.{component}": joules for component, joules in summary["energy_breakdown_j"].items()}
    return row


DERIVED: Final = ("edp_js", "tokens_per_j")
FAMILIES: Final = ("utilization.", "energy_j.")
"""Beginnings of columns whose ends are units and components of the machine."""


def check_column(name: str, what: str, more: Collection[str] = ()) -> None:
    """Refuse a column that no result row can have, before anything runs; `more`: further names that are allowed.

    Raises ConfigError with the nearest name.
    """
    known = (*_PLAIN, *_ROOFLINE, *DERIVED, *more)
    if name not in known and not name.startswith(FAMILIES):
        raise ConfigError(f"{what}: {not_among('column', name, known, most=40)}")


def check_constraints(spec: Spec) -> None:
    """Refuse constraints on keys or columns that do not exist, before anything runs. Raises ConfigError."""
    fixed = not {"hardware", "workload"} & {*spec.axes, *(key for keys in spec.variants.values() for key in keys)}
    for text in spec.constraints:
        for name in condition(text).names:
            root, _, rest = name.partition(".")
            if root == RESULT:
                check_column(rest, f"constraint {text!r}")
            elif fixed:
                try:
                    _value(_machine(spec.hardware, {})[0], _workload(spec.workload, {})[0], name)
                except ConfigError as error:
                    if "unknown key" in error.message:
                        raise ConfigError(f"constraint {text!r}: {error.message}") from None


def check_axes(spec: Spec, keys: Mapping[str, Value]) -> None:
    """Refuse keys that no machine or workload has, before anything runs. Raises ConfigError with the nearest name.

    A value that is wrong only together with others is no reason: such points are skipped one by one.
    """
    from sim.kinds import load_hardware
    from workloads import load_workload

    for key, value in keys.items():
        root, dot, rest = key.partition(".")
        try:
            if not dot:
                _check_name(spec, key, str(value))
            elif root == "hw":
                load_hardware(str(keys.get("hardware", spec.hardware)), {rest: value})
            else:
                load_workload(str(keys.get("workload", spec.workload)), {rest: value})
        except ConfigError as error:
            if not dot:
                raise
            if "unknown key" in error.message:
                raise ConfigError(f"axis {key}: {error.message}") from None


def _check_name(spec: Spec, key: str, name: str) -> None:
    """Refuse a file that can be read neither as it is nor, if it leaves something open, at the first point."""
    read = _machine if key == "hardware" else _workload
    try:
        read(name, {})
    except ConfigError as error:
        try:
            read(name, _first(spec, key))
        except ConfigError:
            raise error from None


def _first(spec: Spec, key: str) -> dict[str, Value]:
    """What the first point sets of the machine, or of the workload."""
    keys = {**spec.set, **next(iter(spec.variants.values()), {})}
    keys |= {name: values_of(axis)[0] for name, axis in spec.axes.items()}
    root = "hw." if key == "hardware" else "workload."
    return {name.removeprefix(root): value for name, value in keys.items() if name.startswith(root)}


def _value(machine: Machine, workload: Workload, name: str) -> Any:
    root, _, rest = name.partition(".")
    if root == "hw":
        return value_at(machine, rest, "hw")
    if workload.scenario is None:
        raise ConfigError(f"{name}: a workload from a trace file has no keys")
    return value_at(workload.scenario, rest, "workload")


_ENGINE: list[Any] = ["", None, 0]


def _engine(machine: Machine, fidelity: str) -> PassRunner:
    """The engine of the last point if that had the same machine: what the mapper found out holds on."""
    from sim.kinds import engine_for

    what = f"{fidelity} {machine.content}"
    if what != _ENGINE[0] or _ENGINE[2] >= ENGINE_USES:
        _ENGINE[:] = [what, engine_for(machine, fidelity), 0]
    _ENGINE[2] += 1
    engine: PassRunner = _ENGINE[1]
    return engine


def _files(said: Any) -> list[str]:
    """Hashes of the files that a description names by path: energy tables, kernel libraries, arithmetic units."""
    if isinstance(said, dict):
        said = [*said.values()]
    if isinstance(said, list):
        return [found for inner in said for found in _files(inner)]
    if isinstance(said, str) and is_path(said) and Path(said).is_file():
        return [sha256(Path(said).read_bytes()).hexdigest()]
    return []


def _asked(workload: Workload) -> str:
    if workload.scenario is None or workload.model is None:
        assert workload.source is not None  # a trace, or an ONNX file with the dimensions that it leaves open
        return sha256(workload.source.read_bytes()).hexdigest()
    lengths = ",".join(map(str, workload.lengths))
    return f"{workload.scenario.model_dump_json(by_alias=True)}{lengths}{workload.model.model_dump_json(by_alias=True)}"


@cache
def code_version() -> str:
    """Hash of the version and of all code and data that results depend on."""
    from sim import __version__
    from sim.catalog import folder

    digest = sha256(__version__.encode())
    package = Path(__file__).resolve().parent.parent
    roots = [package, folder("workload").parent, folder("memory").parent]
    for path in sorted({p for root in roots for ending in ("*.py", "*.yaml") for p in root.rglob(ending)}):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()
