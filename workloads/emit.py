"""Makes operators with the names, shapes and formats that a Trace expects, in the order they are called for.

An Emitter stands for one layer inside one block: it knows how the layer's weights and caches are named, in which number
formats they are kept, and collects the operators. What a layer consists of is said in `attention`, `ffn` and `build`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from workloads.formats import storage_bytes
from workloads.trace import (
    CARRIED,
    ElementwiseAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpAttrs,
    OpKind,
    ReduceAttrs,
    Role,
    Tensor,
)


@dataclass(frozen=True, slots=True)
class FormatChoice:
    """Number format of each tensor class; norm gains and biases are kept as the activations are."""

    weights: str = "fp16"
    activations: str = "fp16"
    kv: str = "fp16"
    experts: str = "fp16"
    embeddings: str = "fp16"


@dataclass(slots=True)
class Emitter:
    """Collects the operators of one layer; `prefix` tells layers of one block apart ("local.", "2.")."""

    block: str
    formats: FormatChoice
    prefix: str = ""
    ops: list[Op] = field(default_factory=list)

    def activation(self, name: str, *shape: int) -> Tensor:
        return Tensor(name, shape, self.formats.activations, Role.ACTIVATION)

    def cache(self, name: str, *shape: int, whole: tuple[int, ...] | None = None) -> Tensor:
        return Tensor(self.prefix + name, shape, self.formats.kv, Role.KV, whole=whole)

    def weight(
        self, name: str, shape: tuple[int, ...], whole: tuple[int, ...] | None = None, kind: str = "weights"
    ) -> Tensor:
        """A weight of this layer, stored as `kind` (a field of FormatChoice)."""
        name = f"{self.block}.{self.prefix}{name}"
        return Tensor(name, shape, getattr(self.formats, kind), Role.WEIGHT, whole=None if whole == shape else whole)

    def emit(
        self,
        name: str,
        kind: OpKind,
        role: str,
        inputs: tuple[Tensor, ...],
        outputs: tuple[Tensor, ...],
        attrs: OpAttrs,
    ) -> None:
        """Add an operator."""
        self.ops.append(Op(self.prefix + name, kind, role, inputs, outputs, attrs))

    def linear(
        self, name: str, role: str, x: Tensor, n: int, out: str, bias: bool = False, kind: str = "weights"
    ) -> Tensor:
        """x (m, k) times a weight (k, n), plus a bias that the accumulators start from; returns (m, n) named `out`."""
        return self.linear_with(name, role, x, self.weight(f"{name}.weight", (x.shape[-1], n), kind=kind), out, bias)

    def linear_with(self, name: str, role: str, x: Tensor, weight: Tensor, out: str, bias: bool = False) -> Tensor:
        """`linear` with a weight that exists already under its own name."""
        m, k = x.shape
        n = weight.shape[-1]
        inputs = (x, weight, self.weight(f"{name}.bias", (n,), kind="activations")) if bias else (x, weight)
        result = self.activation(out, m, n)
        self.emit(name, OpKind.MATMUL, role, inputs, (result,), MatmulAttrs(1, m, k, n))
        return result

    def norm(self, name: str, role: str, x: Tensor, out: str, kind: str, affine: bool = True) -> Tensor:
        """A row-wise normalisation; the gain (and the offset of a layer norm) are its weights."""
        rows, columns = prod(x.shape[:-1]), x.shape[-1]
        weights = [self.weight(f"{name}.weight", (columns,), kind="activations")] if affine else []
        if affine and kind == "layernorm":
            weights.append(self.weight(f"{name}.bias", (columns,), kind="activations"))
        result = self.activation(out, *x.shape)
        self.emit(name, OpKind.REDUCE, role, (x, *weights), (result,), ReduceAttrs(kind, rows, columns))
        return result

    def elementwise(self, name: str, role: str, function: str, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        self.emit(name, OpKind.ELEMENTWISE, role, inputs, (out,), ElementwiseAttrs(function, out.elements))
        return out

    def add(self, name: str, role: str, x: Tensor, y: Tensor, out: str = CARRIED) -> Tensor:
        """x + y; by default the new residual stream."""
        return self.elementwise(name, role, "add", (x, y), self.activation(out, *x.shape))

    def gather(self, name: str, role: str, table: str, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        """Rows of inputs[-1] picked into `out` (rows, columns)."""
        rows, columns = out.shape
        move = MoveAttrs(table, rows, storage_bytes((columns,), inputs[-1].format))
        self.emit(name, OpKind.GATHER, role, inputs, (out,), move)
        return out
