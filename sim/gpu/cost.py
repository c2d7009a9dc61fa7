"""What one kernel costs a GPU, apart from the clock: clocks of the busiest multiprocessor, seconds of memory, events.

A Cost knows its time at any clock. Compute follows the clock and memory does not, so the bound of a kernel may change
with the power that is left for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.gpu.schema import Gpu


@dataclass(frozen=True, slots=True)
class Cost:
    """One kernel, or kernels that follow each other (`parts`).

    core_cycles: clocks in which the busiest multiprocessor computes, fetches from L2 and issues, whichever is longest;
        `core` names it. memory_s: seconds of DRAM. fixed_cycles, fixed_s: what nothing overlaps (launch, first data,
        last block). overlap: exponent of the norm that joins compute and memory.
    macs: multiply-accumulates that switch, without the zeros of padding. `decisions`: what the library chose.
    """

    core_cycles: float = 0.0
    memory_s: float = 0.0
    fixed_cycles: float = 0.0
    fixed_s: float = 0.0
    overlap: float = 8.0
    core: str = "compute"
    format: str = ""
    macs: int = 0
    vector_results: int = 0
    l2_bytes: int = 0
    dram_read_bytes: int = 0
    dram_write_bytes: int = 0
    decisions: dict[str, str] = field(default_factory=dict)
    parts: tuple[Cost, ...] = ()

    def time_s(self, clock_hz: float) -> float:
        """Seconds at that clock."""
        if self.parts:
            return sum(part.time_s(clock_hz) for part in self.parts)
        fixed = self.fixed_s + self.fixed_cycles / clock_hz
        return fixed + norm(self.core_cycles / clock_hz, self.memory_s, self.overlap)

    def kernels(self) -> tuple[Cost, ...]:
        """The kernels of it, in order."""
        return self.parts or (self,)

    def bound(self, clock_hz: float) -> str:
        """What takes longest at that clock: `launch`, `memory` or what `core` names."""
        longest: dict[str, float] = {}
        for part in self.kernels():
            fixed = part.fixed_s + part.fixed_cycles / clock_hz
            for name, seconds in (
                ("launch", fixed), (part.core, part.core_cycles / clock_hz), ("memory", part.memory_s)
            ):  # fmt: skip
                longest[name] = longest.get(name, 0.0) + seconds
        return max(longest, key=lambda name: longest[name])

    def dynamic_j(self, gpu: Gpu) -> tuple[float, float]:
        """(joules of events that follow the voltage, at the highest clock's; joules of the memory, which do not)."""
        energy = gpu.energy
        core = memory = 0.0
        for part in self.kernels():
            mac = energy.mac[part.format] if part.macs else 0.0
            core += part.macs * mac + part.vector_results * energy.vector + part.l2_bytes * energy.l2_byte
            memory += (part.dram_read_bytes + part.dram_write_bytes) * energy.dram_byte
        return core * 1e-12, memory * 1e-12


def norm(first: float, second: float, exponent: float) -> float:
    """(first^p + second^p)^(1/p), written so that nothing overflows."""
    high, low = (first, second) if first >= second else (second, first)
    if low <= 0.0:
        return high
    return float(high * (1.0 + (low / high) ** exponent) ** (1.0 / exponent))


def chain(costs: Sequence[Cost]) -> Cost:
    """The kernels of all costs, one after another."""
    parts = tuple(part for cost in costs for part in cost.kernels())
    return parts[0] if len(parts) == 1 else Cost(parts=parts)


def launched(gpu: Gpu, cost: Cost, kind: str, mode: str) -> Cost:
    """`cost` with the launch of each of its kernels: `graph`, within a launch graph of this operator alone; `chain`,
    in a graph of different ones; `separate`, from the host.

    A kernel after a different one finds neither its instructions nor its division of L1 in place. A host that launches
    kernels one by one does so beside the part while one is at work; the first waits for it.
    """
    node = (gpu.launch.graph + (gpu.launch.change if mode == "chain" else 0)) * 1e-12
    parts = [replace(part, fixed_s=part.fixed_s + node) for part in cost.kernels()]
    if mode == "separate":
        host = gpu.launch.host.get(kind, gpu.launch.host.get("other", 0)) * 1e-12
        parts[0] = replace(parts[0], fixed_s=parts[0].fixed_s + host)
    return chain(parts)
