"""Zeros that a Trace states, on a machine: what they leave of a tile's time and of a tensor's bytes.

The lowering asks for tiles of one core at a time; nothing here depends on time or order, so answers are remembered. A
machine without an engine, or whose engine treats zeros as numbers (a dense twin), takes every tensor as dense.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from sim.cost import vector_cycles
from sim.sparse.arrays import encoding_of
from sim.sparse.case import case
from sim.sparse.cost import SparseCost, pattern_cost
from sim.sparse.pattern import DENSE, of_sparsity
from sim.sparse.schema import Gather
from sim.sparse.storage import Stored, conversion_cycles
from workloads.formats import format_bits
from workloads.trace import Role, Sparsity, Tensor

if TYPE_CHECKING:
    from sim.hardware import Hardware

ON_ARRAYS = ("structured", "balanced", "gather")
"""Engines that are the machine's systolic arrays; the others do every product, dense ones too, in their own way."""


@dataclass(frozen=True, slots=True)
class Zeros:
    """What a product knows of the zeros of its operands: activations left, weights right, each with its format."""

    left: Sparsity | None
    right: Sparsity | None
    left_format: str
    right_format: str

    @property
    def seed(self) -> int:
        """The draw of both masks."""
        return max(s.seed for s in (self.left, self.right) if s is not None)

    @property
    def density(self) -> Fraction:
        """Part of the products that have two kept values, as if zeros of the two fell independently."""
        return density_of(self.left) * density_of(self.right)

    def __str__(self) -> str:
        sides = (("weights", self.right), ("activations", self.left))
        return ", ".join(f"{name} {of_sparsity(s)}" for name, s in sides if s is not None)


class Split(NamedTuple):
    """Cycles of the arrays' task by cause: products of kept values at the engine's full rate, then what each of the
    others adds."""

    products: int = 0
    imbalance: int = 0
    unfilled: int = 0
    bandwidth: int = 0
    metadata: int = 0

    def plus(self, other: Split, times: int = 1) -> Split:
        """This and `times` the other."""
        return Split(*(a + times * b for a, b in zip(self, other, strict=True)))


class ZeroTile(NamedTuple):
    """A tile on the engine of one core: cycles (as `sim.cost.ArrayTile`), products done, bytes from the scratchpad."""

    occupancy: int
    tail: int
    cold: int
    macs: int
    read_bytes: int
    split: Split


def skips(machine: Hardware) -> bool:
    """Whether the machine has an engine that makes use of zeros."""
    return machine.sparse is not None and machine.sparse.skip


def own_engine(machine: Hardware) -> bool:
    """Whether products are done by an engine that is no systolic array."""
    return machine.sparse is not None and machine.sparse.engine not in ON_ARRAYS


def density_of(sparsity: Sparsity | None) -> Fraction:
    """The part kept, exactly where it is a ratio."""
    if sparsity is None:
        return Fraction(1)
    if sparsity.pattern == "n:m":
        return Fraction(sparsity.n or 1, sparsity.m or 1)
    return Fraction(str(sparsity.density))


@lru_cache(maxsize=1 << 12)
def stored_tensor(machine: Hardware, tensor: Tensor) -> Stored | None:
    """How the machine keeps a tensor with zeros; None for a tensor that is dense there.

    Each matrix of the last two dimensions is stored by itself: weights K x N, everything else rows x K.
    """
    if tensor.sparsity is None or not skips(machine) or len(tensor.shape) < 2:
        return None
    pattern = of_sparsity(tensor.sparsity)
    if pattern.kind == "dense":
        return None
    rows, columns = tensor.shape[-2:]
    count = tensor.elements // (rows * columns)
    seed = tensor.sparsity.seed
    if tensor.role is Role.WEIGHT:
        made = case(machine, 1, columns, rows, pattern, DENSE, weight_format=tensor.format, activation_format=None,
                    seed=seed, check=False)  # fmt: skip
        side = made.weights
    else:
        made = case(machine, rows, 1, columns, DENSE, pattern, activation_format=tensor.format, seed=seed, check=False)
        side = made.activations
    one = side.stored(encoding_of(made, side))
    return Stored(one.value_bits * count, one.metadata_bits * count, one.entries * count)


def stored_bytes(machine: Hardware, tensor: Tensor) -> int:
    """Bytes that the touched part of a tensor takes in the machine's memories."""
    stored = stored_tensor(machine, tensor)
    return tensor.bytes if stored is None else stored.bytes


@lru_cache(maxsize=64)
def _one_core(machine: Hardware) -> Hardware:
    return machine.model_copy(update={"cores": 1})


def cost_on_core(machine: Hardware, m: int, n: int, k: int, zeros: Zeros) -> SparseCost:
    """Cost of a tile with every part of the machine that one core has. Raises ConfigError as `matmul_cost`."""
    left, right = (of_sparsity(side) if side is not None else DENSE for side in (zeros.left, zeros.right))
    return pattern_cost(_one_core(machine), m, n, k, right, left, zeros.right_format, zeros.left_format, zeros.seed)


@lru_cache(maxsize=1 << 15)
def zero_tile(machine: Hardware, m: int, n: int, k: int, zeros: Zeros) -> ZeroTile:
    """A tile (m x k)(k x n) with zeros on one core's engine. Raises ConfigError for what it does not take."""
    return _tile(cost_on_core(machine, m, n, k, zeros))


@lru_cache(maxsize=1 << 15)
def dense_tile(machine: Hardware, m: int, n: int, k: int, number_format: str) -> ZeroTile:
    """A tile without zeros on an engine that is no systolic array; `number_format` may be a pair of formats."""
    left, _, right = number_format.partition("*")
    return _tile(pattern_cost(_one_core(machine), m, n, k, DENSE, DENSE, right or left, left, 0))


def _tile(cost: SparseCost) -> ZeroTile:
    array = max(1, cost.parts["array"] - cost.tail - cost.cold - int(cost.detail.get("predictor_cycles", 0)))
    values = max(array, cost.value_parts["scratchpad"])
    occupancy = max(values, cost.parts["scratchpad"], cost.parts["metadata"])
    products = min(array, -(-cost.effective_macs * cost.parts["array"] // max(1, cost.slots)))
    uneven = min(array - products, round(products * (cost.imbalance - 1)))
    split = Split(products, uneven, array - products - uneven, values - array, occupancy - values)
    return ZeroTile(occupancy, cost.tail, cost.cold, cost.macs, cost.read_bytes, split)


def prepare_cycles(machine: Hardware, m: int, k: int, zeros: Zeros) -> int:
    """Cycles of one core before rows of activations can be used: finding the positions to gather, and turning what
    the producer wrote into the engine's storage format, where the machine has a converter for that."""
    engine = machine.sparse
    if zeros.left is None or engine is None or not engine.skip:
        return 0
    found = int(vector_cycles(machine.vector, "relu", m, k)) if isinstance(engine, Gather) else 0
    rate = engine.convert_entries_per_cycle
    if rate is None or engine.activations == "dense":
        return found
    tensor = Tensor("", (m, k), zeros.left_format, Role.ACTIVATION, zeros.left)
    stored = stored_tensor(machine, tensor)
    source = Stored(m * k * format_bits(zeros.left_format), 0, 0)
    return found + (conversion_cycles(source, stored, m * k, rate, False) if stored is not None else 0)


def rank_of_predictor(machine: Hardware, zeros: Zeros | None) -> int:
    """Width between the two matrices of the machine's predictor; 0 where nothing is predicted."""
    if zeros is None or zeros.left is None or not skips(machine) or machine.sparse is None:
        return 0
    return machine.sparse.predictor.rank if machine.sparse.predictor is not None else 0


def told(machine: Hardware, zeros: Zeros, split: Split) -> str:
    """The decision column of an operator whose operands have zeros: the patterns, and what became of them."""
    if machine.sparse is None:
        return f"{zeros}: multiplied as numbers, no sparse engine"
    if not machine.sparse.skip:
        return f"{zeros}: multiplied as numbers"
    parts = split._asdict()
    most = max(list(parts)[1:], key=lambda name: parts[name])
    total = sum(split)
    lost = f", most lost to {most} ({parts[most] / total:.0%})" if total and parts[most] else ""
    imbalance = 1 + split.imbalance / split.products if split.products else 1.0
    even = f", imbalance {imbalance:.3g}" if imbalance > 1.001 else ""
    return f"{zeros} on {machine.sparse.engine}{even}{lost}"
