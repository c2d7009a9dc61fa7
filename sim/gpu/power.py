"""Power and clock of a GPU: the clock falls until the power of what runs meets the limit.

Dynamic power of the multiprocessors goes with the clock and the square of the voltage; that of the memory with its
traffic; the rest flows always. Short bursts may draw more than the cap, which holds on average over longer runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sim.gpu.cost import Cost
    from sim.gpu.schema import Gpu

HALVINGS = 20
"""Of the range of clocks; leaves less than a kHz."""


class Running(NamedTuple):
    """A kernel or chain in steady repetition at the clock that its power allows."""

    clock_hz: float
    time_s: float
    power_w: float

    @property
    def energy_j(self) -> float:
        """Joules of one repetition."""
        return self.power_w * self.time_s


def voltage(gpu: Gpu, clock_hz: float) -> float:
    """Supply voltage at a clock as a share of that at the highest."""
    volts = gpu.power.volts
    return max(volts.floor, 1.0 - volts.slope * (1.0 - clock_hz / gpu.clock.maximum))


def power_w(gpu: Gpu, cost: Cost, clock_hz: float) -> float:
    """Mean board power of `cost` in steady repetition at a clock."""
    core_j, memory_j = cost.dynamic_j(gpu)
    scale = voltage(gpu, clock_hz) ** 2
    active = gpu.power.active * scale * clock_hz / gpu.clock.maximum
    return gpu.power.idle + active + (core_j * scale + memory_j) / cost.time_s(clock_hz)


def _run(gpu: Gpu, cost: Cost, limit_w: float) -> Running:
    high, low = float(gpu.clock.maximum), float(gpu.clock.minimum)
    if power_w(gpu, cost, high) > limit_w:
        for _ in range(HALVINGS):
            middle = (high + low) / 2
            if power_w(gpu, cost, middle) > limit_w:
                high = middle
            else:
                low = middle
        high = low
    return Running(high, cost.time_s(high), power_w(gpu, cost, high))


def burst(gpu: Gpu, cost: Cost) -> Running:
    """Milliseconds from a rested part: the board's limit for short times holds."""
    return _run(gpu, cost, gpu.power.burst)


def sustained(gpu: Gpu, cost: Cost) -> Running:
    """Half a second and more: the power cap holds."""
    return _run(gpu, cost, gpu.power.cap)
