"""One training step of a matmul on an array that takes N:M weights: forward, both gradients, update, new masks.

Forward and input-gradient passes multiply by weights pruned along their own reduction dimension; the weight-gradient
pass has no weights and stays dense. The update engine and the mask engine work beside the array when interleaved.
The manner of SAT (Fang et al., IEEE TCAD 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from sim.errors import ConfigError
from sim.sparse.cost import SparseCost, matmul_cost
from sim.sparse.pattern import DENSE, Pattern
from workloads.formats import format_bits

if TYPE_CHECKING:
    from sim.hardware import Hardware

MASTER = Fraction(4)
"""Bytes of the fp32 master copy of a weight."""


class Gemm(NamedTuple):
    """(M x K)(K x N) of one layer, `repeat` of them; `weights`: False where both operands are activations."""

    name: str
    m: int
    n: int
    k: int
    weights: bool = True
    repeat: int = 1


@dataclass(frozen=True)
class Step:
    """Cycles of one GEMM's training step by pass, DRAM included in each; `update` is what the update engine adds."""

    forward: int
    input_gradient: int
    weight_gradient: int
    update: int
    bounds: tuple[str, str, str]

    @property
    def cycles(self) -> int:
        """All of it."""
        return self.forward + self.input_gradient + self.weight_gradient + self.update


def training_step(machine: Hardware, gemm: Gemm, pattern: Pattern, number_format: str | None = None) -> Step:
    """One step of `gemm` with weights pruned to `pattern` (DENSE: as its dense twin would train).

    Activations' products (attention scores) have no weights: three dense passes and no update. Raises ConfigError for
    a machine without an update engine.
    """
    engine = machine.sparse
    if engine is None or engine.update is None:
        raise ConfigError(f"{machine.name} has no update engine, so it cannot train", key="sparse.update")
    w = pattern if gemm.weights else DENSE

    def cost(m: int, n: int, k: int, weights: Pattern) -> SparseCost:
        return matmul_cost(machine, m, n, k, weights, weight_format=number_format, activation_format=number_format)

    passes = (
        cost(gemm.m, gemm.n, gemm.k, w),
        cost(gemm.m, gemm.k, gemm.n, w),
        cost(gemm.k, gemm.n, gemm.m, DENSE),
    )
    cycles = [c.streamed_cycles for c in passes]
    extra = 0
    if gemm.weights:
        size = gemm.k * gemm.n
        used = format_bits(number_format or next(iter(machine.array.formats))) / 8
        # The update reads and writes master copy and optimizer state, and writes the copy that the passes use.
        moved = size * (2 * (MASTER + engine.update.state_bytes) + used)
        traffic = moved * machine.clock / Fraction(machine.peak_bytes_per_s)
        vector = -(-size // engine.update.lanes)
        # Both directions' masks come from the new weights; without sparsity there are none to make.
        masks = -(-size // engine.update.mask_lanes) if w.kind != "dense" and engine.skip else 0
        extra = max(vector, masks, -(-traffic.numerator // traffic.denominator))
        if engine.update.interleaved:
            # Work of one layer's update hides where the array, not the DRAM, is what the other layers' passes wait for.
            idle = sum(c.streamed_cycles - c.parts["dram"] for c in passes)
            extra = max(0, extra - idle)
    bounds = tuple(c.bound(with_dram=True) for c in passes)
    return Step(cycles[0], cycles[1], cycles[2], extra, (bounds[0], bounds[1], bounds[2]))


def training_cycles(
    machine: Hardware, gemms: Sequence[Gemm], pattern: Pattern, number_format: str | None = None
) -> dict[str, int]:
    """Cycles of a whole set by pass, repeats included, and their sum `cycles`."""
    total = {"forward": 0, "input_gradient": 0, "weight_gradient": 0, "update": 0}
    for gemm in gemms:
        step = training_step(machine, gemm, pattern, number_format)
        for name in total:
            total[name] += gemm.repeat * getattr(step, name)
    return total | {"cycles": sum(total.values())}
