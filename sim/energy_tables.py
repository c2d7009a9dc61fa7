"""Schemas and readers of the energy tables: on-chip events of one technology node, and what a DRAM transfer costs
beyond IDD.

A table is data in `hwconfigs/energy`; each value keeps the comment that vouches for it, which ends in the rows of a
report.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sim.catalog import find, is_path, names
from sim.config import build, load_yaml
from sim.document import Document
from sim.errors import ConfigError, not_among
from sim.units import Area, BitEnergy, Bytes, Energy, Power, WireEnergy

INTERFACES = "dram"
"""File beside the energy tables that is none itself: the interface terms of DRAM families."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Mac(_Strict):
    """One multiply-accumulate of one lane, and what its pipeline registers move beside it."""

    energy: Energy
    accumulate: str = Field(description="number format of the sum")
    register_bytes: Bytes = Field(description="bytes that pass pipeline registers for one multiply-accumulate")
    area: Area | None = Field(default=None, description="of the multiplier and the adder, without registers")


class VectorCost(_Strict):
    """One scalar operation of a vector lane."""

    operation: Energy
    register_bytes: Bytes = Field(description="bytes read and written in the register file for one operation")


class RegisterCost(_Strict):
    """Registers, per byte that passes them."""

    pipeline_per_byte: Energy = Field(description="registers between the lanes of an array")
    file_per_byte: Energy = Field(description="register file of a vector lane")


class AccumulatorCost(_Strict):
    """Partial-sum memories, per byte read or written."""

    energy_per_byte: Energy


class SramPoint(_Strict):
    """One access to a memory of one size."""

    size: Bytes
    read: Energy
    write: Energy


class Sram(_Strict):
    """Energy of an access by size; larger memories are built of macros."""

    width: Bytes = Field(gt=0, description="bytes of the access that the points give")
    macro: Bytes = Field(gt=0, description="largest memory that is one piece")
    points: Annotated[tuple[SramPoint, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _rising(self) -> Sram:
        sizes = [p.size for p in self.points]
        if sizes != sorted(set(sizes)) or sizes[0] <= 0:
            raise ValueError("sram.points must be in order of rising size")
        if any(p.read <= 0 or p.write <= 0 for p in self.points):
            raise ValueError("sram.points must have energies above zero")
        return self

    def access_pj_per_byte(self, capacity_bytes: int) -> tuple[float, float]:
        """(read, write) pJ per byte of a memory of `capacity_bytes`.

        Straight in log(energy) over log(size), beyond the ends with the slope of the nearest piece; above `macro` every
        access goes to one macro.
        """
        x = math.log(min(capacity_bytes, self.macro))
        xs = [math.log(p.size) for p in self.points]
        i = min(max(sum(1 for at in xs if at <= x), 1), len(xs) - 1) if len(xs) > 1 else 0

        def at(energies: list[float]) -> float:
            if i == 0:
                return energies[0]
            t = (x - xs[i - 1]) / (xs[i] - xs[i - 1])
            if t == 1.0 or t == 0.0:
                return energies[i] if t else energies[i - 1]
            return math.exp(math.log(energies[i - 1]) * (1 - t) + math.log(energies[i]) * t)

        return at([p.read for p in self.points]) / self.width, at([p.write for p in self.points]) / self.width


class Wire(_Strict):
    """On-chip transport between the scratchpad and the units."""

    energy: WireEnergy


class Leakage(_Strict):
    """Power that flows whether or not anything happens."""

    sram_per_mib: Power
    mac_lane: Power = Field(description="one multiply-accumulate lane of an array with its registers")


class EnergyTable(_Strict):
    """Schema `opcycle/energy/1`: energy of on-chip events at one technology node."""

    schema_: Literal["opcycle/energy/1"] = Field(alias="schema")
    name: str
    node: str = Field(description="technology node and, where known, supply voltage")
    mac: dict[str, Mac] = Field(min_length=1, description="by number format of the operands")
    vector: VectorCost
    register_: RegisterCost = Field(alias="register")
    accumulator: AccumulatorCost
    sram: Sram
    wire: Wire
    leakage: Leakage


class DramFamily(_Strict):
    """What a transferred bit costs beyond the currents of the data sheet, and how much of those stays in the bank."""

    bank: BitEnergy = Field(
        description="of a read or write by IDD, what is spent between the cells and the bank's edge"
    )
    movement: BitEnergy = Field(description="data path on the DRAM dies that IDD4R - IDD3N leaves out")
    tsv: BitEnergy = Field(description="through the stack")
    io: BitEnergy = Field(description="both ends of the interface, and the interposer of a stack")


class DramInterfaces(_Strict):
    """Schema `opcycle/dram-energy/1`: interface terms by memory family."""

    schema_: Literal["opcycle/dram-energy/1"] = Field(alias="schema")
    families: dict[str, DramFamily]


@lru_cache(maxsize=16)
def load_table(name_or_path: str) -> tuple[EnergyTable, Document]:
    """A table that ships (`7nm`) or a YAML file, with the document that knows its sources. Raises ConfigError."""
    shipped = [name for name in names("energy") if name != INTERFACES]
    if not is_path(name_or_path) and name_or_path not in shipped:
        raise ConfigError(not_among("energy table", name_or_path, shipped))
    document = load_yaml(find("energy", name_or_path))
    return build(EnergyTable, document), document


@lru_cache(maxsize=1)
def load_interfaces() -> tuple[DramInterfaces, Document]:
    """The interface terms by memory family, with their document."""
    document = load_yaml(find("energy", INTERFACES))
    return build(DramInterfaces, document), document


def mac_cost(table: EnergyTable, number_format: str) -> tuple[str, Mac]:
    """The entry for a number format, and its key: `fp8_e4m3` is served by `fp8` where it has no entry of its own.

    A pair of formats (`int8*int2`) without an entry is served by the first, whose multiplier does the work.
    """
    pair, _, _ = number_format.partition("*")
    for key in (number_format, pair, number_format.partition("_")[0], pair.partition("_")[0]):
        if key in table.mac:
            return key, table.mac[key]
    raise ConfigError(
        not_among("number format", number_format, table.mac), file=f"energy table {table.name}", key="mac"
    )


def family_of(name: str, families: Mapping[str, object]) -> str | None:
    """The family whose name begins `name` (`ddr4-3200` is `ddr4`), or None."""
    fits = [f for f in families if name.lower().startswith(f)]
    return max(fits, key=len) if fits else None


def source_text(document: Document, key: str) -> str:
    """Table name and the comment that vouches for `key`."""
    name = document.path.stem if document.path else "table"
    return f"{name}: {document.source_of(key) or 'no source given'}"
