"""Further memories behind a link (host DRAM, CXL memory, flash, on-chip SRAM): schema, reader and time of a transfer.

A tier is data: bandwidth, latency and energy in either direction, and a capacity. Moving bytes takes the latency plus
the bytes over the bandwidth, and one link moves one thing at a time in each direction.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sim.catalog import find
from sim.config import apply_overrides, build, load_yaml
from sim.document import Document
from sim.units import PS_PER_S, Bandwidth, BitEnergy, Bytes, Time

DEVICE = "device"
"""The name that traces give to the machine's own DRAM."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Direction(_Strict):
    """Towards the device (`read`) or from it (`write`)."""

    bandwidth: Bandwidth = Field(description="payload bytes per second that arrive")
    latency: Time = Field(description="from request to first byte at the other end")
    energy: BitEnergy = Field(description="access to the memory itself, without the link")


class SizePoint(_Strict):
    """What an access to a memory of one size adds to latency and energy."""

    capacity: Bytes
    latency: Time
    energy: BitEnergy


class Tier(_Strict):
    """Schema `opcycle/tier/1`: a memory behind a link."""

    schema_: Literal["opcycle/tier/1"] = Field(alias="schema")
    name: str = Field(min_length=1)
    description: str
    capacity: Annotated[Bytes, Field(gt=0)]
    read: Direction
    write: Direction
    duplex: bool = Field(description="whether the link moves data in both directions at once")
    link_energy: BitEnergy = Field(description="both ends of the link")
    sizes: tuple[SizePoint, ...] = Field(
        default=(), description="by capacity; the smallest size that holds the tier's capacity counts"
    )

    @model_validator(mode="after")
    def _check(self) -> Tier:
        sizes = [point.capacity for point in self.sizes]
        if sizes != sorted(set(sizes)):
            raise ValueError("sizes must be in order of rising capacity")
        if sizes and sizes[-1] < self.capacity:
            raise ValueError(f"sizes end at {sizes[-1]} B, but capacity is {self.capacity} B")
        return self

    @property
    def size(self) -> SizePoint | None:
        """The entry of `sizes` that counts for this capacity."""
        return next((point for point in self.sizes if point.capacity >= self.capacity), None)

    def direction(self, towards_device: bool) -> Direction:
        """The stated direction."""
        return self.read if towards_device else self.write

    def latency_ps(self, towards_device: bool) -> int:
        """From request to first byte."""
        return self.direction(towards_device).latency + (self.size.latency if self.size else 0)

    def occupancy_ps(self, size_bytes: int, towards_device: bool) -> int:
        """Time for which `size_bytes` keep the link busy, rounded up."""
        return -(-size_bytes * PS_PER_S // self.direction(towards_device).bandwidth)

    def transfer_ps(self, size_bytes: int, towards_device: bool) -> int:
        """Time of one transfer alone: latency and bytes over bandwidth."""
        return self.latency_ps(towards_device) + self.occupancy_ps(size_bytes, towards_device)

    def memory_pj_per_bit(self, towards_device: bool) -> float:
        """Energy of the memory's side of a transferred bit; `link_energy` comes on top."""
        return self.direction(towards_device).energy + (self.size.energy if self.size else 0.0)


def load_tier(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Tier:
    """A tier that ships (`host-ddr5-pcie5`) or a YAML file; `overrides` maps dotted keys to values.

    Raises ConfigError.
    """
    return build(Tier, tier_document(name_or_path, overrides))


def tier_document(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Document:
    """The same as plain data with the source of each value."""
    return apply_overrides(load_yaml(find("tier", name_or_path)), overrides)
