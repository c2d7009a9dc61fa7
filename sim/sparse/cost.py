"""What a sparse matmul costs on a machine: the engine's cycles, and everything that may be slower than the engine.

`matmul_cost` is the one entry for others: sizes and patterns (or masks) in; cycles, multiplications, bytes of the
operands, metadata and imbalance out. Nothing here depends on time or order, so results may be remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from sim.cost import vector_cycles
from sim.errors import ConfigError, not_among
from sim.sparse import arrays, dual, flexible, unstructured
from sim.sparse.arrays import encoding_of
from sim.sparse.case import Case, EngineWork, case
from sim.sparse.pattern import DENSE, Mask, Pattern
from sim.sparse.storage import NAMES, conversion_cycles, order_changes
from workloads.formats import format_bits

if TYPE_CHECKING:
    from sim.hardware import Hardware

ENGINES: dict[str, Callable[[Case], EngineWork]] = {
    "structured": arrays.structured,
    "balanced": arrays.balanced,
    "gather": arrays.gather,
    "flexible": flexible.flexible,
    "mesh": flexible.mesh,
    "intersect": unstructured.intersect,
    "gustavson": unstructured.gustavson,
    "outer": unstructured.outer,
    "dual": dual.dual,
}


@dataclass(frozen=True)
class SparseCost:
    """Cost of one matmul. Times in cycles of the machine's clock; bytes are those of one pass from or to memory.

    parts: cycles that the array, the scratchpad, the metadata decoders, the format converter, the vector units and the
    DRAM would each take alone. `value_parts`: the same without metadata. The slowest one is the time: all run at once.
    read_bytes: from the scratchpad by the engine, metadata included. tail, cold: as in EngineWork.
    """

    parts: dict[str, int]
    value_parts: dict[str, int]
    macs: int
    effective_macs: int
    slots: int
    imbalance: float
    weight_bytes: int
    activation_bytes: int
    output_bytes: int
    metadata_bytes: int
    detail: dict[str, int | float]
    read_bytes: int
    tail: int
    cold: int

    @cached_property
    def cycles(self) -> int:
        """Cycles with operands on chip: the slowest part but the DRAM."""
        return max(cycles for name, cycles in self.parts.items() if name != "dram")

    @cached_property
    def streamed_cycles(self) -> int:
        """Cycles with every operand read from DRAM once, and the result written."""
        return max(self.parts.values())

    def bound(self, with_dram: bool = False) -> str:
        """The part that sets the time; the array where several do."""
        parts = {name: cycles for name, cycles in self.parts.items() if with_dram or name != "dram"}
        return max(parts, key=lambda name: parts[name])

    @property
    def utilization(self) -> float:
        """Useful products over the multiplications that the engine could have done."""
        used = self.slots * Fraction(self.cycles, max(1, self.parts["array"]))
        return float(self.effective_macs / used) if used else 0.0


def matmul_cost(
    machine: Hardware,
    m: int,
    n: int,
    k: int,
    weights: Pattern | Mask = DENSE,
    activations: Pattern | Mask = DENSE,
    *,
    weight_format: str | None = None,
    activation_format: str | None = None,
    result_format: str | None = None,
    epilogue: str | None = None,
    produced_as: str | None = None,
    seed: int = 0,
) -> SparseCost:
    """Cost of activations (M x K) times weights (K x N) on the machine's sparse engine.

    weights, activations: a Pattern, or a bool mask of shape (K, N) and (M, K). Formats default to the first of the
    machine's arrays. epilogue: a vector function on every result (`gelu`, ...), run beside the array. produced_as: the
    storage format in which the activations arrive, if not the engine's own; a converter turns them. Raises ConfigError
    for a machine without `sparse`, and for patterns, masks or formats that it doesn't take.
    """
    if machine.sparse is None:
        raise ConfigError(f"{machine.name} has no section 'sparse', so it has no sparse engine", key="sparse")
    made = case(machine, m, n, k, weights, activations, weight_format, activation_format, seed)
    return cost_of(made, result_format, epilogue, produced_as)


@lru_cache(maxsize=1 << 14)
def pattern_cost(
    machine: Hardware, m: int, n: int, k: int, weights: Pattern, activations: Pattern, weight_format: str,
    activation_format: str, seed: int = 0,
) -> SparseCost:  # fmt: skip
    """As `matmul_cost` for patterns alone, remembered: a mapper asks for the same few tiles again and again."""
    return matmul_cost(
        machine, m, n, k, weights, activations, weight_format=weight_format, activation_format=activation_format,
        seed=seed,
    )  # fmt: skip


def cost_of(
    made: Case, result_format: str | None = None, epilogue: str | None = None, produced_as: str | None = None
) -> SparseCost:
    """Cost of a Case that is already built."""
    machine = made.machine
    assert machine.sparse is not None
    work = ENGINES[machine.sparse.engine](made)
    result = result_format or made.activations.number_format
    activations, weights = (side.stored(encoding_of(made, side)) for side in made.sides)
    output_bytes = _whole(made.m * made.n * format_bits(result) / 8)
    moved = activations.bytes + weights.bytes + output_bytes
    metadata = activations.metadata_bytes + weights.metadata_bytes
    vector = work.vector_cycles
    if epilogue is not None:
        vector += int(vector_cycles(machine.vector, epilogue, made.m, made.n)) // machine.cores
    read, write = (rate * machine.cores for rate in _scratchpad(machine))
    own_port = machine.sparse.metadata_bytes_per_cycle
    values = max(_whole(work.value_bits / 8 / read), -(-output_bytes // write))
    together = values if own_port else max(values, _whole((work.value_bits + work.metadata_bits) / 8 / read))
    decode = _whole(Fraction(work.metadata_bits, 8 * own_port * machine.cores)) if own_port else 0
    if machine.sparse.decode_entries_per_cycle:
        decode = max(decode, -(-work.entries // (machine.sparse.decode_entries_per_cycle * machine.cores)))
    parts = {
        "array": work.cycles,
        "scratchpad": together,
        "metadata": decode,
        "converter": _conversion(made, produced_as),
        "vector": vector,
        "dram": _dram_cycles(machine, moved),
    }
    value_parts = parts | {"scratchpad": values, "metadata": 0, "converter": 0}
    value_parts["dram"] = _dram_cycles(machine, moved - metadata)
    return SparseCost(
        parts=parts,
        value_parts=value_parts,
        macs=work.macs,
        effective_macs=made.effective_macs,
        slots=work.slots,
        imbalance=work.imbalance,
        weight_bytes=weights.bytes,
        activation_bytes=activations.bytes,
        output_bytes=output_bytes,
        metadata_bytes=metadata,
        detail=work.detail,
        read_bytes=_whole((work.value_bits + work.metadata_bits) / 8),
        tail=work.tail,
        cold=work.cold,
    )


def _conversion(made: Case, produced_as: str | None) -> int:
    """Cycles to turn the activations from the format they were produced in to the one that the engine reads."""
    side, machine = made.activations, made.machine
    target = encoding_of(made, side)
    if produced_as is None or side.is_dense or produced_as == target.name:
        return 0
    if produced_as not in NAMES:
        raise ConfigError(not_among("storage format", produced_as, NAMES))
    assert machine.sparse is not None
    rate = machine.sparse.convert_entries_per_cycle
    if rate is None:
        raise ConfigError(
            f"activations come as {produced_as}, but {machine.name} reads {target.name} and has no converter",
            key="sparse.convert_entries_per_cycle",
        )
    source = side.stored(replace(target, name=produced_as))
    turned = order_changes(produced_as, target.name)
    return conversion_cycles(source, side.stored(target), made.m * made.k, rate * machine.cores, turned)


def _scratchpad(machine: Hardware) -> tuple[int, int]:
    return machine.scratchpad.read_bytes_per_cycle, machine.scratchpad.write_bytes_per_cycle


def _dram_cycles(machine: Hardware, moved_bytes: int) -> int:
    """Cycles in which the DRAM's data bus moves that many bytes at its peak."""
    return _whole(Fraction(moved_bytes * machine.clock) / Fraction(machine.peak_bytes_per_s))


def _whole(value: Fraction | int) -> int:
    return -(-value.numerator // value.denominator)
