"""What a machine description may say: the pydantic schema of `opcycle/hardware/1`, and the reader of such files.

A Hardware is frozen and complete: every value that the lowering or the energy model uses is here or in the memory and
energy tables that it names. Checks that need several fields stand at the bottom of each class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from sim.sparse.schema import SparseArray
from sim.strict import Positive, Rate, Strict, to_fraction
from sim.tiers import DEVICE, Tier, load_tier
from sim.units import Bytes, Energy, Frequency, Length, Time

if TYPE_CHECKING:
    from sim.document import Document
    from sim.standards import Memory

SCHEMA = "opcycle/hardware/1"


class Dataflow(StrEnum):
    """Which operand stays in the array."""

    WS = "ws"
    OS = "os"
    IS = "is"


class Preload(StrEnum):
    """Whether loading the stationary operand overlaps the stream (SCALE-Sim: no; as built NPUs: yes)."""

    FOLD_SERIAL = "fold_serial"
    DOUBLE_BUFFERED = "double_buffered"


class Array(Strict):
    """The systolic arrays; `count` of them work on one operator together."""

    count: Positive = Field(description="arrays of one core")
    rows: Positive = Field(description="PE rows of one array")
    columns: Positive = Field(description="PE columns of one array")
    dataflow: Dataflow = Field(description="ws, os or is")
    preload: Preload = Field(description="fold_serial (nothing overlaps) or double_buffered (loads overlap the stream)")
    formats: dict[str, Rate] = Field(
        description="number format, or activation*weight format: multiply-accumulates per PE and cycle", min_length=1
    )
    accumulate: str = Field(description="number format of the accumulators")
    reload: Literal["chunk", "tile"] = Field(
        default="tile", description="stationary operand loaded once per tile, or again for each `rows` rows of stream"
    )
    issue_floor: Positive = Field(default=1, description="fewest cycles between two streams")
    cold_load: int | None = Field(default=None, ge=0, description="cycles to fill an empty array; default 2 rows - 1")
    drain: bool = Field(default=False, description="fold-serial output-stationary: charge the shift of results")
    unit: str = Field(default="plain", description="kind of arithmetic unit: a name in hwconfigs/units or plain")


class Vector(Strict):
    """The vector units: softmax, normalisation, activation, rotary, residual."""

    count: Positive = Field(description="vector units of one core")
    lanes: Positive = Field(description="elements that one instruction of one unit works on")
    cycles: dict[str, Positive] = Field(description="cycles of one instruction: add, mul, exp, ...", min_length=1)
    rows_per_vector: Positive = Field(default=1, description="rows that share one vector in row-wise functions")
    simple_slots: Positive = Field(default=1, description="simple instructions issued in a cycle")
    special_parallel: bool = Field(default=False, description="exp, tanh ... run beside the simple instructions")
    reduce_cycles: int | None = Field(default=None, ge=0, description="one reduction over lanes; default log2 steps")


class Scratchpad(Strict):
    """On-chip operand memory of one core; a part of it holds activations between operators."""

    capacity: Bytes = Field(description="of one core")
    read_bytes_per_cycle: Positive = Field(description="towards arrays, vector units and DMA")
    write_bytes_per_cycle: Positive = Field(description="from arrays, vector units and DMA")
    activation_share: Annotated[Fraction, BeforeValidator(to_fraction), Field(ge=0, lt=1)] = Field(
        description="part of the capacity that may hold activations between operators",
        json_schema_extra={"type": ["integer", "string"]},
    )


class Accumulator(Strict):
    """On-chip memory of the partial sums of one core."""

    capacity: Bytes = Field(description="of one core; holds two output tiles")


class Dma(Strict):
    """Engines that move tiles between DRAM and scratchpad."""

    loads: Positive = Field(description="load descriptors under way at once, of one core")
    stores: Positive = Field(description="store descriptors under way at once, of one core")
    window: Bytes = Field(
        description="bytes that further descriptors may add to two under way; bandwidth x latency covers it"
    )
    setup: Time = Field(description="from descriptor to first request")


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


class Hardware(Strict):
    """A machine of systolic arrays, vector units, scratchpad, DMA and DRAM channels."""

    schema_: Literal["opcycle/hardware/1"] = Field(alias="schema")
    name: str = Field(min_length=1)
    description: str = ""
    technology: str = Field(description="technology node, e.g. 7 nm")
    clock: Frequency
    cores: Positive = Field(default=1, description="each with arrays, vector units, scratchpad and DMA of its own")
    array: Array
    vector: Vector
    scratchpad: Scratchpad
    accumulator: Accumulator
    dma: Dma
    memory: MemoryUse
    sparse: SparseArray | None = Field(default=None, description="engine that skips zeros; default: none")
    attention: Literal["flash", "unfused"] = Field(description="flash: fused on chip where it fits")
    software: Software = Field(default_factory=Software)
    energy: EnergyUse
    tiers: dict[str, TierUse] = Field(
        default_factory=dict, description="further memories, by the name that traces give them"
    )

    @model_validator(mode="after")
    def _geometry(self) -> Hardware:
        for name in self.tiers:
            if name == DEVICE or not re.fullmatch("[a-z][a-z0-9_]*", name):
                raise ValueError(
                    f"tiers.{name}: a tier's name begins with a letter and has small letters, digits and _ only; "
                    f"{DEVICE!r} is the machine's own memory"
                )
        tile = self.array.rows * self.array.columns
        if self.scratchpad.capacity < 4 * tile:
            raise ValueError(
                f"scratchpad.capacity of {self.scratchpad.capacity} B is too small for double-buffered tiles of the "
                f"{self.array.rows}x{self.array.columns} array; at least {4 * tile} B"
            )
        if self.accumulator.capacity < 8 * tile:
            raise ValueError(
                f"accumulator.capacity of {self.accumulator.capacity} B is too small for two output tiles of the "
                f"{self.array.rows}x{self.array.columns} array; at least {8 * tile} B"
            )
        return self

    @cached_property
    def dram(self) -> Memory:
        """The memory that `memory` names, with its settings applied."""
        from sim.standards import load_memory

        return load_memory(self.memory.standard, dict(_dotted(self.memory.settings)))

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

    def peak_flops_per_s(self, number_format: str) -> float:
        """FLOP/s (two a multiply-accumulate) of all arrays in `number_format`."""
        pes = self.cores * self.array.count * self.array.rows * self.array.columns
        return float(2 * pes * self.clock * self.array.formats[number_format])


def _dotted(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{before}{key}.")
        else:
            yield before + key, value


def load_hardware(name_or_path: str | Path, overrides: dict[str, Any] | None = None) -> Hardware:
    """Read a machine that ships (`neupims`) or a YAML file; `overrides` maps dotted keys to values.

    Raises ConfigError for anything that the schema or the geometry does not allow.
    """
    from sim.base import load_based
    from sim.config import ConfigError, apply_overrides, build

    document = load_based("hardware", name_or_path)
    if overrides:
        document = apply_overrides(document, overrides)
    machine = build(Hardware, document)
    try:
        machine.dram.check_channels(machine.memory.channels)
    except ConfigError as error:
        # An unknown name has no file of its own; a fault inside the memory's file is told with that file.
        raise error if error.file else document.error(str(error), "memory") from None
    _ = machine.tier_data
    _check_unit(machine, document)
    return machine


def _check_unit(machine: Hardware, document: Document) -> None:
    """Refuse an arithmetic unit that is not known."""
    from sim.arithmetic import PLAIN, load_unit
    from sim.config import ConfigError

    if machine.array.unit != PLAIN:
        try:
            load_unit(machine.array.unit)
        except ConfigError as error:
            raise error if error.file else document.error(error.message, "array.unit") from None
