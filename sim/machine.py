"""What every machine description says, whatever its kind: name, memory, further memories, energy table, software costs.

`kinds.py` lists the kinds. Each has a schema that adds its own sections to `Machine`, and an engine that runs a pass.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sim.tiers import DEVICE, Tier, load_tier
from sim.units import Area, Bytes, Energy, Length, Time

if TYPE_CHECKING:
    from sim.standards import Memory

SCHEMA = "opcycle/hardware/1"

OWN_TABLE: Final = "own"
"""What `energy.table` says where the description itself holds the energies."""


def as_rate(value: Any) -> Any:
    """The Fraction that an integer or a text such as 1/2 says; pydantic turns the ValueError into its own."""
    if isinstance(value, bool) or not isinstance(value, (int, str, Fraction)):
        raise ValueError("must be an integer or a fraction such as 1/2")
    return Fraction(value)


Rate = Annotated[
    Fraction,
    BeforeValidator(as_rate),
    Field(gt=0, json_schema_extra={"type": ["integer", "string"]}),
]
Positive = Annotated[int, Field(gt=0, le=2**40)]


class Strict(BaseModel):
    """Base of every section: frozen, no unknown keys, hashed by content (sections key the caches of engines)."""

    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))

    @cached_property
    def content(self) -> str:
        """Everything that it says, as text."""
        return self.model_dump_json(by_alias=True)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """A copy with other values, without what was worked out from the old ones."""
        made = super().model_copy(update=update, deep=deep)
        for name in made.__dict__.keys() - type(made).model_fields.keys():
            del made.__dict__[name]
        return made

    def __hash__(self) -> int:
        return hash(self.content)

    def __eq__(self, other: object) -> bool:
        return self is other or (type(self) is type(other) and self.content == getattr(other, "content", None))


class MemoryUse(Strict):
    """Which memory, how many channels, and what differs from its file."""

    standard: str = Field(description="a memory's name or YAML path")
    channels: Positive
    settings: dict[str, Any] = Field(default_factory=dict, description="values that replace those of the memory's file")


class TierUse(Strict):
    """A further memory behind a link, what differs from its file, and how transfers to and from it are cut."""

    tier: str = Field(description="a tier's name or YAML path")
    chunk: Bytes = Field(default=256 * 1024, gt=0, description="bytes that the link hands to the DRAM at once")
    settings: dict[str, Any] = Field(default_factory=dict, description="values that replace those of the tier's file")


class Software(Strict):
    """Costs that are not hardware, kept as a term of their own."""

    launch: Time = Field(default=0, description="per operator, before its first task")


class EnergyUse(Strict):
    """Which energy table, and the geometry it needs."""

    table: str = Field(description="name of a table in hwconfigs/energy or a YAML path")
    wire_length: Length = Field(description="mean distance between scratchpad and arrays")
    dram_io: Energy | None = Field(default=None, description="per bit, replaces the memory's own figure")


@dataclass(frozen=True, slots=True)
class Chip:
    """What the energy model must know of a machine: bytes of the memory that an on-chip access pays for, bytes of all
    on-chip memory and multiply-accumulate lanes that leak; kind of arithmetic unit, and the lanes of one array of them.
    The area model asks for the lanes of vector units and the engine that skips zeros as well.
    """

    sram_access_bytes: int
    sram_bytes: int
    lanes: int
    unit: str = "plain"
    array_lanes: int = 1
    vector_lanes: int = 0
    engine: str = ""


class Machine(Strict, ABC):
    """Sections common to all kinds; a kind adds its own and says what it can do at best."""

    schema_: Literal["opcycle/hardware/1"] = Field(alias="schema")
    kind: str
    name: str = Field(min_length=1)
    description: str = ""
    technology: str = Field(description="technology node, e.g. 7 nm")
    fabric: Literal["asic", "fpga"] = Field(default="asic", description="what the machine is built of")
    die: Area | None = Field(default=None, description="area of the die where it is known; default: estimated")
    memory: MemoryUse
    software: Software = Field(default_factory=Software)
    energy: EnergyUse
    tiers: dict[str, TierUse] = Field(
        default_factory=dict, description="further memories, by the name that traces give them"
    )

    @model_validator(mode="after")
    def _tier_names(self) -> Self:
        for name in self.tiers:
            if name == DEVICE or not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise ValueError(
                    f"tiers.{name}: a tier's name begins with a letter and has small letters, digits and _ only; "
                    f"{DEVICE!r} is the machine's own memory"
                )
        return self

    @cached_property
    def dram(self) -> Memory:
        """The memory that `memory` names, with its settings applied."""
        from sim.standards import load_memory

        return load_memory(self.memory.standard, dict(dotted(self.memory.settings)))

    @cached_property
    def tier_data(self) -> dict[str, Tier]:
        """The further memories with their settings applied, by name."""
        return {name: load_tier(use.tier, dict(use.settings)) for name, use in self.tiers.items()}

    @property
    def capacity_bytes(self) -> int:
        """Bytes of DRAM on all channels."""
        return self.dram.capacity_bytes_per_channel * self.memory.channels

    @property
    def peak_bytes_per_s(self) -> float:
        """Bytes per second of all channels at the data bus's rate."""
        return float(self.dram.channel_peak_bytes_per_s * self.memory.channels)

    @property
    def scratchpad_bytes_per_s(self) -> float | None:
        """Bytes per second of all on-chip operand memory at best; None where the description does not say."""
        return None

    @property
    @abstractmethod
    def formats(self) -> tuple[str, ...]:
        """Number formats that the machine multiplies."""

    @abstractmethod
    def peak_flops_per_s(self, number_format: str) -> float:
        """FLOP/s (two a multiply-accumulate) of the whole machine in `number_format`."""

    @property
    def abilities(self) -> frozenset[str]:
        """Kinds of engine that methods may ask for: systolic, pim, nm, sparse, stream, gpu, fpga."""
        found = {"fpga"} if self.fabric == "fpga" else set()
        return frozenset(found | {"pim"} if self.dram.pim is not None else found)

    @property
    @abstractmethod
    def chip(self) -> Chip:
        """Sizes that the energy model needs."""

    @property
    @abstractmethod
    def compute(self) -> str:
        """The compute units in a few words, for lists."""

    @property
    def interconnect_pj_per_bit(self) -> float:
        """Energy of a bit sent to another device; 0 for a machine without links."""
        return 0.0

    @property
    def area_mm2(self) -> float | None:
        """Square millimetres of the chip and of units in the memory; None where neither die nor node is known."""
        from sim.area import area_mm2

        parts = area_mm2(self)
        return None if parts is None else math.fsum(parts.values())

    @property
    def cost_usd(self) -> float | None:
        """US dollars of chip, memory and assembly, by the same first-order model."""
        from sim.area import cost_usd

        parts = cost_usd(self)
        return None if parts is None else math.fsum(parts.values())

    def check_parts(self) -> None:
        """Raise ConfigError where the machine asks its memory for what that does not have."""

    @property
    def facts(self) -> dict[str, str]:
        """Choices of the kind's own that the summary of a run states."""
        return {}


def dotted(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings as (dotted key, value)."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{before}{key}.")
        else:
            yield before + key, value
