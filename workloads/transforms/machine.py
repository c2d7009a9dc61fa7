"""What a method asks of the machine (`engine`, `mac`, `dvfs`, `fault`): hints, because the Trace knows no hardware."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from workloads.schema import Schema
from workloads.trace import HINT_KINDS, Hint, Trace
from workloads.transforms.rates import Rate
from workloads.transforms.where import Where

Settings = dict[str, str | int | float]


class Engine(Schema):
    """The kind of unit that the method needs: systolic, pim, stream, nm, sparse, fpga, gpu. Required unless stated."""

    kind: Literal["systolic", "pim", "stream", "nm", "sparse", "fpga", "gpu"]
    settings: Settings = Field(default_factory=dict)
    required: bool = True


class Mac(Schema):
    """A multiply-accumulate unit with area and energy relative to the machine's own (1: the same)."""

    format: str
    area: Annotated[float, Field(gt=0)] = 1.0
    energy: Annotated[float, Field(gt=0)] = 1.0
    error: Rate = 0.0
    required: bool = True


class Dvfs(Schema):
    """Clock of the selected work relative to the machine's own."""

    clock: Annotated[float, Field(gt=0, le=1)]
    where: Where = Where(model="all")
    required: bool = False


class Fault(Schema):
    """Errors or losses: `rate` a step of `structure`, and what protection costs."""

    structure: str
    rate: Rate
    protection: str = "none"
    area: Annotated[float, Field(ge=0)] = 0.0
    time: Annotated[float, Field(ge=0)] = 0.0
    required: bool = False


def annotate(trace: Trace, params: Engine | Mac | Dvfs | Fault) -> Trace:
    """Add the hint; neutral values (a clock of 1, a rate of 0 without protection) add none. No work changes."""
    if isinstance(params, Dvfs) and params.clock == 1:
        return trace
    if isinstance(params, Fault) and params.rate == 0 and not (params.area or params.time):
        return trace
    kind = type(params).__name__.lower()
    assert kind in HINT_KINDS
    data = params.model_dump(exclude={"required", "where", "settings"})
    found: Settings = {**data, **getattr(params, "settings", {})}
    if isinstance(params, Dvfs):
        for name in ("phases", "passes", "roles", "operators"):
            chosen = getattr(params.where, name)
            if chosen:
                found[name] = " ".join(chosen)
    return replace(trace, hints=(*trace.hints, Hint(kind, tuple(sorted(found.items())), params.required)))
