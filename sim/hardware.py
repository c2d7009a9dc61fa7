"""What the description of an NPU may say: systolic arrays, vector units, scratchpads and DMA.

A Hardware is frozen and complete: every value that the lowering or the energy model uses is here, in `machine.py` or in
the memory and energy tables that it names. Checks that need several fields stand at the bottom of each class.
"""

from __future__ import annotations

from enum import StrEnum
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from sim.errors import ConfigError
from sim.links import Links
from sim.machine import Chip, Machine, Positive, Rate, Strict, as_rate
from sim.pim.use import KERNEL, Interleave, Operators, PimUse
from sim.sparse.schema import SparseArray
from sim.units import Bytes, Frequency, Time


def _known_unit(name: str) -> str:
    from sim.arithmetic import PLAIN, load_unit

    if name != PLAIN:
        load_unit(name)
    return name


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
    unit: Annotated[str, AfterValidator(_known_unit)] = Field(
        default="plain", description="kind of arithmetic unit: a name in hwconfigs/units, or plain"
    )


class Vector(Strict):
    """The vector units: softmax, normalisation, activation, rotary, residual."""

    count: Positive = Field(description="vector units of one core")
    lanes: Positive = Field(description="elements that one instruction of one unit works on")
    cycles: dict[str, Positive] = Field(description="cycles of one instruction: add, mul, exp, ...", min_length=1)
    rows_per_vector: Positive = Field(default=1, description="rows that share one vector in row-wise functions")
    simple_slots: Positive = Field(default=1, description="simple instructions issued in a cycle")
    special_parallel: bool = Field(default=False, description="exp, tanh ... run beside the simple instructions")
    charge: Literal["all", "issue"] = Field(
        default="all",
        description="issue: a softmax takes a cycle a row and nothing else any time, as in the NeuPIMs artifact",
    )
    reduce_cycles: int | None = Field(default=None, ge=0, description="one reduction over lanes; default log2 steps")


class Scratchpad(Strict):
    """On-chip operand memory of one core; a part of it holds activations between operators."""

    capacity: Bytes = Field(description="of one core")
    read_bytes_per_cycle: Positive = Field(description="towards arrays, vector units and DMA")
    write_bytes_per_cycle: Positive = Field(description="from arrays, vector units and DMA")
    activation_share: Annotated[Fraction, BeforeValidator(as_rate), Field(ge=0, lt=1)] = Field(
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


class Hardware(Machine):
    """A machine of systolic arrays, vector units, scratchpad, DMA and DRAM channels."""

    kind: Literal["npu"] = "npu"
    clock: Frequency
    cores: Positive = Field(default=1, description="each with arrays, vector units, scratchpad and DMA of its own")
    array: Array
    vector: Vector
    scratchpad: Scratchpad
    accumulator: Accumulator
    dma: Dma
    sparse: SparseArray | None = Field(default=None, description="engine that skips zeros; default: none")
    attention: Literal["flash", "unfused"] = Field(description="flash: fused on chip where it fits")
    links: Links | None = Field(default=None, description="to other devices, for models that are cut over several")
    pim: PimUse | None = Field(default=None, description="use of units in the memory, where it has some")
    operators: Literal["overlapped", "serial"] = Field(
        default="overlapped",
        description="serial: one operator after another, loads included, and none rides on a product's tiles",
    )

    @model_validator(mode="after")
    def _geometry(self) -> Hardware:
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

    def check_parts(self) -> None:
        """Raise ConfigError for a use of units in the memory that the memory does not allow."""
        if self.pim is None:
            return
        pim, standard = self.dram.pim, self.memory.standard
        if pim is None:
            raise ConfigError(
                f"says how units in the memory are used, but {standard} has none; a memory with them has a section pim",
                key="pim",
            )
        if KERNEL not in pim.kernels:
            raise ConfigError(
                f"places operators in the memory, but {standard} has no kernel {KERNEL!r} for them, only "
                f"{', '.join(pim.kernels)}",
                key="pim.operators",
            )
        if pim.lanes > 1 or pim.sets > 1:
            raise ConfigError(
                f"places operators in the memory, but the units of {standard} keep results side by side and work in "
                "sets of banks; the layout of keys and values is for units that add up what a row gives",
                key="pim.operators",
            )
        if self.pim.interleave is Interleave.ALWAYS and pim.mode == "blocked":
            raise ConfigError(
                f"is always, but {standard} is in mode blocked: while it computes, the NPU has no memory to work on "
                "the other half of the batch; use never, or a memory with two row buffers",
                key="pim.interleave",
            )

    @property
    def scratchpad_bytes_per_s(self) -> float:
        """Reads and writes of the scratchpads of all cores together."""
        pad = self.scratchpad
        return float(self.cores * (pad.read_bytes_per_cycle + pad.write_bytes_per_cycle) * self.clock)

    @property
    def riding(self) -> bool:
        """Whether vector operators are applied to the tiles of a product: not where operators are kept apart, and not
        where products run in memory.
        """
        return self.operators == "overlapped" and not (self.pim and Operators.FC_DECODE in self.pim.operators)

    @property
    def pim_peak_flops_per_s(self) -> float:
        """FLOP/s of all units in the memory, each with a step a burst time; 0 without any."""
        memory = self.dram
        if memory.pim is None:
            return 0.0
        o = memory.organisation
        banks = o.pseudo_channels * o.ranks * o.bank_groups * o.banks
        steps_per_s = 1e12 / float(memory.burst_ticks * memory.period)
        return 2.0 * memory.pim.macs * banks * self.memory.channels * steps_per_s

    @property
    def formats(self) -> tuple[str, ...]:
        """Number formats that the arrays multiply."""
        return tuple(self.array.formats)

    def peak_flops_per_s(self, number_format: str) -> float:
        """FLOP/s (two a multiply-accumulate) of all arrays in `number_format`."""
        return float(2 * self.chip.lanes * self.clock * self.array.formats[number_format])

    @property
    def abilities(self) -> frozenset[str]:
        """Arrays, and what its sparse engine and its memory add."""
        sparse = {"sparse", "nm"} if self.sparse is not None else set()
        return super().abilities | {"systolic"} | sparse

    @property
    def chip(self) -> Chip:
        """Arrays as lanes; a core's scratchpad is what an access pays for."""
        return Chip(
            sram_access_bytes=int(self.scratchpad.capacity),
            sram_bytes=self.cores * (self.scratchpad.capacity + self.accumulator.capacity),
            lanes=self.cores * self.array.count * self.array.rows * self.array.columns,
            unit=self.array.unit,
            array_lanes=self.array.rows * self.array.columns,
            vector_lanes=self.cores * self.vector.count * self.vector.lanes,
            engine=self.sparse.engine if self.sparse is not None else "",
        )

    @property
    def compute(self) -> str:
        """Arrays of all cores and their shape."""
        return f"{self.cores * self.array.count} x {self.array.rows}x{self.array.columns}"

    @property
    def interconnect_pj_per_bit(self) -> float:
        """Energy of a bit on the links to other devices."""
        return self.links.energy if self.links else 0.0

    @property
    def facts(self) -> dict[str, str]:
        """How the arrays work."""
        return {"preload_model": str(self.array.preload), "dataflow": str(self.array.dataflow)}
