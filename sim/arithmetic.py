"""Variants of arithmetic units: area and energy factors on any array, from data files with sources.

A unit changes no cycle; it scales the energy and the area of a multiply-accumulate of the formats that it exists for.
Its factors may depend on the array's size, between whose published points the logarithm of the size interpolates.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.catalog import find, is_path, names
from sim.config import build, load_yaml
from sim.document import Document
from sim.errors import ConfigError, not_among
from sim.machine import Chip, Positive, Strict

PLAIN = "plain"

Factor = Annotated[float, Field(gt=0, le=4)]


class UnitPoint(Strict):
    """Factors for arrays of one size."""

    pes: Positive = Field(description="multiply-accumulators of the array")
    energy: Factor = Field(description="energy of a multiply-accumulate over that of a plain unit")
    area: Factor = Field(description="area over that of a plain unit")


class ArithmeticUnit(Strict):
    """Schema `opcycle/unit/1`: a way to build multiply-accumulators."""

    schema_: Literal["opcycle/unit/1"] = Field(alias="schema")
    name: str
    description: str = ""
    formats: tuple[str, ...] = Field(min_length=1, description="number formats that it is built for")
    points: tuple[UnitPoint, ...] = Field(min_length=1, description="by rising size")

    @model_validator(mode="after")
    def _rising(self) -> ArithmeticUnit:
        sizes = [p.pes for p in self.points]
        if sizes != sorted(set(sizes)):
            raise ValueError("points must be in order of rising pes")
        return self

    def factors(self, pes: int) -> tuple[float, float]:
        """(energy, area) for an array of `pes`: straight in log2(pes) between points, constant beyond the ends."""
        at = [p for p in self.points if p.pes <= pes]
        above = [p for p in self.points if p.pes > pes]
        if not at or not above:
            p = at[-1] if at else above[0]
            return p.energy, p.area
        low, high = at[-1], above[0]
        t = math.log(pes / low.pes) / math.log(high.pes / low.pes)
        return low.energy + t * (high.energy - low.energy), low.area + t * (high.area - low.area)


@lru_cache(maxsize=16)
def load_unit(name_or_path: str) -> tuple[ArithmeticUnit, Document]:
    """A unit that ships (`en_t`) or a YAML file, with the document that knows its sources. Raises ConfigError."""
    if not is_path(name_or_path) and name_or_path not in names("unit"):
        raise ConfigError(not_among("arithmetic unit", name_or_path, [PLAIN, *names("unit")]))
    document = load_yaml(find("unit", name_or_path))
    return build(ArithmeticUnit, document), document


def unit_factors(chip: Chip, number_format: str) -> tuple[float, float, str]:
    """(energy factor, area factor, what to say about it) of a chip's units for a format; (1, 1, "") for plain ones.

    Formats that the unit isn't built for keep plain multipliers.
    """
    if chip.unit == PLAIN:
        return 1.0, 1.0, ""
    unit, document = load_unit(chip.unit)
    if number_format.partition("*")[0] not in unit.formats:
        return 1.0, 1.0, ""
    energy, area = unit.factors(chip.array_lanes)
    source = document.source_of("points.0.energy") or "no source given"
    return energy, area, f"{unit.name}, energy x {energy:.3f}: {source}"
