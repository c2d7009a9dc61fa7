"""What methods ask of a machine beyond the operators: refused where it is required and the machine cannot, else told.

The kinds of engine that a machine has are its `abilities`. Of arithmetic units with an energy of their own the energy
account takes the factor; everything else that is not required is passed over, and the summary says so.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sim.errors import ConfigError
from sim.machine import Machine
from workloads.trace import Hint, Trace


def check_hints(machine: Machine, trace: Trace) -> None:
    """Raise ConfigError where a method needs what the machine does not have."""
    for hint in trace.hints:
        if hint.required and not honoured(machine, hint):
            wanted = _words(hint)
            raise ConfigError(
                f"{_methods(trace)} needs {wanted}, but {machine.name} has no such thing; "
                f"it is: {', '.join(sorted(machine.abilities))}"
            )


def honoured(machine: Machine, hint: Hint) -> bool:
    """Whether the machine does what the hint asks."""
    settings = dict(hint.settings)
    if hint.kind == "engine":
        return settings.get("kind") in machine.abilities
    if hint.kind == "mac":
        return settings.get("format") in machine.formats
    return False


def mac_energy(hints: Sequence[Hint]) -> dict[str, float]:
    """{number format: energy of a multiply-accumulate over the machine's own} as methods ask for."""
    factors: dict[str, float] = {}
    for hint in hints:
        if hint.kind == "mac":
            settings = dict(hint.settings)
            name = str(settings["format"])
            factors[name] = factors.get(name, 1.0) * float(settings.get("energy", 1.0))
    return factors


def told(machine: Machine, hints: Sequence[Hint]) -> list[dict[str, Any]]:
    """Each hint with whether it was honoured, for the summary of a run."""
    return [
        {"kind": h.kind, **{k: v for k, v in h.settings if k != "kind"}, "honoured": honoured(machine, h)}
        | ({"engine": dict(h.settings)["kind"]} if h.kind == "engine" else {})
        for h in hints
    ]


def _methods(trace: Trace) -> str:
    return "method " + ", ".join(trace.methods) if trace.methods else "the trace"


def _words(hint: Hint) -> str:
    settings = dict(hint.settings)
    if hint.kind == "engine":
        return f"an engine of kind {settings.pop('kind')!r}{_rest(settings)}"
    return f"{hint.kind}{_rest(settings)}"


def _rest(settings: dict[str, Any]) -> str:
    return f" ({', '.join(_pairs(settings))})" if settings else ""


def _pairs(settings: dict[str, Any]) -> Iterator[str]:
    for key, value in settings.items():
        yield f"{key} {value}"
