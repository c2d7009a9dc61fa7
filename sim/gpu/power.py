"""Power and clock of a GPU: the clock falls until the power of what runs meets the limit.

Dynamic power of the multiprocessors goes with the clock and the square of the voltage; that of the memory with its
traffic; the rest flows always. Short bursts may draw more than the cap, which holds on average over longer runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sim.gpu.cost import Cost
    from sim.gpu.schema import Gpu

HALVINGS = 20
"""Of the range of clocks; leaves less than a few kHz."""

Load = Sequence[tuple["Cost", int]]
"""Kernels and how often each runs in one repetition."""


class Running(NamedTuple):
    """A kernel or chain in steady repetition at the clock that its power allows."""

    clock_hz: float
    time_s: float
    power_w: float

    @property
    def energy_j(self) -> float:
        """Joules of one repetition."""
        return self.power_w * self.time_s


def counted(costs: Iterable[Cost]) -> Load:
    """The kernels of `costs` with equal ones, as those of equal layers are, counted."""
    found: dict[int, tuple[Cost, int]] = {}
    for cost in costs:
        for kernel in cost.kernels():
            known = found.get(id(kernel))
            found[id(kernel)] = (kernel, 1 if known is None else known[1] + 1)
    return tuple(found.values())


def voltage(gpu: Gpu, clock_hz: float) -> float:
    """Supply voltage at a clock as a share of that at the highest."""
    volts = gpu.power.volts
    return max(volts.floor, 1.0 - volts.slope * (1.0 - clock_hz / gpu.clock.maximum))


def active_w(gpu: Gpu, clock_hz: float) -> float:
    """Power above idle that flows while kernels run, whatever they do."""
    return gpu.power.active * voltage(gpu, clock_hz) ** 2 * clock_hz / gpu.clock.maximum


def _run(gpu: Gpu, load: Load, limit_w: float) -> Running:
    energies = [kernel.dynamic_j(gpu) for kernel, _ in load]
    core_j = math.fsum(times * core for (_, times), (core, _) in zip(load, energies, strict=True))
    memory_j = math.fsum(times * memory for (_, times), (_, memory) in zip(load, energies, strict=True))

    def at(clock_hz: float) -> Running:
        time_s = math.fsum(times * kernel.time_s(clock_hz) for kernel, times in load)
        dynamic_j = core_j * voltage(gpu, clock_hz) ** 2 + memory_j
        power = gpu.power.idle + active_w(gpu, clock_hz) + (dynamic_j / time_s if time_s else 0.0)
        return Running(clock_hz, time_s, power)

    found = at(float(gpu.clock.maximum))
    if found.power_w <= limit_w:
        return found
    low, high = float(gpu.clock.minimum), found.clock_hz
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if at(middle).power_w > limit_w:
            high = middle
        else:
            low = middle
    return at(low)


def burst(gpu: Gpu, load: Load) -> Running:
    """Milliseconds from a rested part: the board's limit for short times holds."""
    return _run(gpu, load, gpu.power.burst)


def sustained(gpu: Gpu, load: Load) -> Running:
    """Half a second and more: the power cap holds."""
    return _run(gpu, load, gpu.power.cap)
