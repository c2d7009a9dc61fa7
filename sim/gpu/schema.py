"""What the description of a GPU may say: multiprocessors, L2, sustained DRAM, launch costs, power, and fitted factors.

One part is one set of numbers, each from a data sheet, a micro-benchmark or the list `fitted`, the few that were chosen
so that measured times come out right. What software does on it (tiles, thread blocks) is the kernel library's.
"""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.errors import ConfigError
from sim.gpu.library import Library, load_library
from sim.links.schema import Links
from sim.machine import OWN_TABLE, Chip, EnergyUse, Machine, Positive, Strict
from sim.units import Bytes, Energy, Frequency, Power, Time

Share = Annotated[float, Field(gt=0, le=1)]
Factor = Annotated[float, Field(gt=0, le=64)]


class GpuClock(Strict):
    """The range of the multiprocessors' clock; power decides where in it a kernel runs."""

    maximum: Frequency
    minimum: Frequency

    @model_validator(mode="after")
    def _order(self) -> GpuClock:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum of {self.minimum} Hz is above maximum of {self.maximum} Hz")
        return self


class Multiprocessor(Strict):
    """One streaming multiprocessor (compute unit, tensor core with its memory): rates a clock, and what it holds."""

    count: Positive = Field(description="multiprocessors that the part has switched on")
    tensor: dict[str, Positive] = Field(description="dense multiply-accumulates a clock by number format", min_length=1)
    sparse: Annotated[float, Field(gt=1, le=8)] | None = Field(
        default=None, description="speed of 2:4 weights over dense ones; none: no such unit"
    )
    lanes: Positive = Field(description="results of simple vector instructions a clock")
    special: Positive = Field(description="results of exp, rsqrt ... a clock")
    shared: Bytes = Field(gt=0, description="shared memory that one thread block may use")
    shared_bytes_per_clock: Positive
    registers: Bytes = Field(gt=0)
    threads: Positive = Field(description="most resident threads")
    blocks: Positive = Field(description="most resident thread blocks")
    fetch_bytes_per_clock: Positive = Field(description="most that one multiprocessor draws from beyond L2")


class Cache(Strict):
    """The L2: `share` of the capacity holds data between kernels, as each half of a split L2 may keep copies."""

    capacity: Bytes = Field(gt=0)
    slices: Positive
    partitions: Positive = Field(default=1, description="halves with a link between them")
    bytes_per_clock: Positive = Field(description="of all slices, to all multiprocessors")
    share: Share = Field(default=0.5, description="part of the capacity that a streamed operand may hold")


class Sustained(Strict):
    """What long streams reach of the memory's peak, and the latency of one access."""

    read: Share
    mixed: Share = Field(description="where a third or more of the traffic is writes")
    latency: Time


class Burst(Strict):
    """A burst of calls after a pause, as short times are measured: its start is shared by its calls.

    There are as many calls as touch `bytes` of weights together, so that none waits in L2, and at most `calls`.
    """

    start: Time
    bytes: Bytes = Field(gt=0)
    calls: Positive

    def share_s(self, weight_bytes: float) -> float:
        """Seconds that each call of an operator with so many bytes of weights bears."""
        calls = min(self.calls, int(self.bytes / weight_bytes)) if weight_bytes else self.calls
        return self.start * 1e-12 / max(1, calls)


class Launch(Strict):
    """Cost of starting a kernel."""

    graph: Time = Field(description="from kernel to dependent kernel inside a launch graph")
    change: Time = Field(default=0, ge=0, description="more to a kernel that is another than the one before")
    block: Time = Field(description="between the starts of two thread blocks")
    host: dict[str, Time] = Field(
        default_factory=dict, description="of a separate launch from the host, by operator kind; `other` for the rest"
    )
    operator: Literal["graph", "separate"] = Field(default="graph", description="how operators alone are launched")
    operands: Literal["held", "cold"] = Field(
        default="held", description="of operators alone, but for weights: in L2 from the last repetition, or never"
    )
    burst: Burst | None = Field(default=None, description="what times of short bursts contain besides")


class Volts(Strict):
    """Supply voltage over the clock, as a share of that at the highest clock: straight above `floor`."""

    slope: Annotated[float, Field(ge=0, le=1)] = Field(description="fall of the voltage as the clock falls to nothing")
    floor: Share


class PowerUse(Strict):
    """Limits and the power that flows whatever runs."""

    cap: Power = Field(gt=0, description="board power that the clock is lowered to hold")
    burst: Power = Field(gt=0, description="power that the board allows for milliseconds")
    idle: Power = Field(ge=0, description="nothing runs")
    active: Power = Field(ge=0, description="above idle while kernels run, at the highest clock and voltage")
    volts: Volts

    @model_validator(mode="after")
    def _order(self) -> PowerUse:
        if not self.idle < self.cap <= self.burst:
            raise ValueError(f"needs idle < cap <= burst, not {self.idle} W, {self.cap} W, {self.burst} W")
        return self


class GpuEnergy(EnergyUse):
    """Energy of an event at the highest clock's voltage; these stand here, not in a table of a technology node."""

    table: Literal["own"] = OWN_TABLE
    wire_length: float = 0.0
    mac: dict[str, Energy] = Field(description="one dense multiply-accumulate by number format, operands included")
    vector: Energy = Field(description="one result of a vector instruction")
    l2_byte: Energy = Field(description="a byte from L2 to a multiprocessor")
    dram_byte: Energy = Field(description="a byte between DRAM and L2; the memory's supply does not follow the clock")


class Fitted(Strict):
    """Factors that no data sheet gives, chosen on measured operators and then frozen; docs/gpu.md lists on which."""

    tensor: Share = Field(description="of the tensor rate that a main loop reaches once it runs")
    sparse: Share = Field(default=0.5, description="the same with 2:4 weights")
    overlap: Annotated[float, Field(ge=1, le=16)] = Field(
        description="exponent of the norm that joins compute and memory time; infinite would be perfect overlap"
    )
    tile: Positive = Field(description="clocks of a tile beyond its main loop: pipeline fill, epilogue")
    start: Time = Field(description="of a kernel: first instruction to first data, and its tail")
    attention: Share = Field(description="of the tensor rate that fused attention reaches on full tiles")
    vector: Share = Field(description="of the issue rate that row-wise and elementwise kernels reach")


class Overlap(Strict):
    """A rule of the software, where it pays: a product and the collective beside it are cut into parts that overlap, or
    the requests of a pass are halved, and one half computes while the other communicates.
    """

    chunks: Annotated[int, Field(ge=2, le=64)] | None = Field(
        default=None, description="parts that the product's rows are cut into"
    )
    batches: Literal[2] | None = Field(default=None, description="parts that the requests of a pass are cut into")
    multiprocessors: Positive = Field(description="held by the collective's kernels while others run beside them")

    @model_validator(mode="after")
    def _one(self) -> Overlap:
        if (self.chunks is None) == (self.batches is None):
            raise ValueError("overlap needs one of chunks and batches")
        return self


class Gpu(Machine):
    """A machine of multiprocessors behind one L2 and one memory."""

    kind: Literal["gpu"] = "gpu"
    clock: GpuClock
    sm: Multiprocessor
    l2: Cache
    capacity: Bytes = Field(gt=0, description="bytes of device memory that programs may use")
    sustained: Sustained
    launch: Launch
    power: PowerUse
    energy: GpuEnergy
    fitted: Fitted
    kernels: str = Field(description="name of a kernel library in hwconfigs/kernels or a YAML path")
    links: Links | None = Field(default=None, description="how devices of this kind are joined")
    overlap: Overlap | None = Field(default=None, description="of collectives with products; none: one after another")

    @model_validator(mode="after")
    def _held(self) -> Gpu:
        if self.overlap is not None and self.overlap.multiprocessors >= self.sm.count:
            raise ValueError(
                f"overlap.multiprocessors is {self.overlap.multiprocessors}, but must leave some of {self.sm.count}"
            )
        return self

    @model_validator(mode="after")
    def _energies(self) -> Gpu:
        missing = [name for name in self.sm.tensor if name not in self.energy.mac]
        if missing:
            raise ValueError(f"energy.mac lacks {', '.join(missing)}, which sm.tensor has")
        return self

    @cached_property
    def library(self) -> Library:
        """The kernels that run on it."""
        return load_library(self.kernels)

    def check_parts(self) -> None:
        try:
            _ = self.library
        except ConfigError as error:
            # An unknown name is a fault of this file, a fault inside a library's file is told with that file.
            raise error if error.file else ConfigError(error.message, key="kernels") from None

    @property
    def capacity_bytes(self) -> int:
        return int(self.capacity)

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(self.sm.tensor)

    def peak_flops_per_s(self, number_format: str) -> float:
        """Dense FLOP/s of all tensor units at the highest clock."""
        return float(2 * self.sm.count * self.macs_per_clock(number_format) * self.clock.maximum)

    def macs_per_clock(self, number_format: str) -> int:
        """Dense multiply-accumulates a clock of one multiprocessor. Raises ConfigError without such a unit."""
        try:
            return self.sm.tensor[number_format]
        except KeyError:
            have = ", ".join(self.sm.tensor)
            raise ConfigError(
                f"{self.name} has no unit that multiplies {number_format}; it multiplies {have}", key="sm.tensor"
            ) from None

    @property
    def abilities(self) -> frozenset[str]:
        """A GPU, and 2:4 weights where its tensor units take them."""
        return super().abilities | {"gpu"} | ({"nm"} if self.sm.sparse is not None else set())

    @property
    def chip(self) -> Chip:
        lanes = max(self.sm.tensor.values()) * self.sm.count
        on_chip = int(self.l2.capacity) + self.sm.count * (int(self.sm.shared) + int(self.sm.registers))
        return Chip(sram_access_bytes=int(self.sm.shared), sram_bytes=on_chip, lanes=lanes)

    @property
    def compute(self) -> str:
        return f"{self.sm.count} multiprocessors"

    @property
    def facts(self) -> dict[str, str]:
        return {"kernel_library": self.library.name}
