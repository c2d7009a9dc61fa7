"""Number formats of chosen tensors (`dtype`) and transforms around products (`xform`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from sim.config import ConfigError
from workloads.formats import storage_bytes
from workloads.names import FormatName
from workloads.schema import Schema, Size
from workloads.trace import (
    AttentionAttrs,
    CustomAttrs,
    ElementwiseAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    Pass,
    Role,
    Tensor,
    Trace,
)
from workloads.transforms.graph import edit_ops
from workloads.transforms.rotations import hadamard_ops
from workloads.transforms.where import Where

_CLASSES = {
    Role.WEIGHT: "weights", Role.ACTIVATION: "activations", Role.KV: "kv", Role.GRADIENT: "gradients",
    Role.OPTIMIZER: "optimizer",
}  # fmt: skip


class DType(Schema):
    """Formats by class of tensor, in the selected operators; a class that is not stated keeps its own.

    activations are the first operands of products only, unless `everywhere`; with `online` an operator before the
    product turns them into the format (a scale, a rounding and a clamp an element).
    """

    weights: FormatName | None = None
    activations: FormatName | None = None
    kv: FormatName | None = None
    gradients: FormatName | None = None
    optimizer: FormatName | None = None
    online: bool = False
    everywhere: bool = Field(False, description="All activations change, not only operands of products.")
    where: Where = Where(model="all")

    @model_validator(mode="after")
    def _states_one(self) -> DType:
        if not any((self.weights, self.activations, self.kv, self.gradients, self.optimizer)):
            raise ValueError("needs a format: weights, activations, kv, gradients or optimizer")
        return self


def dtype(trace: Trace, params: DType) -> Trace:
    """Closed form: bytes of each class scale with bits an element; `online` adds three vector operations an operand."""
    chosen = {name: getattr(params, name) for name in _CLASSES.values() if getattr(params, name) is not None}
    # Weights and caches have one format wherever they are read.
    names: dict[str, str] = {}

    def collect(op: Op, p: Pass) -> Sequence[Op]:
        for tensor in (*op.inputs, *op.outputs):
            wanted = chosen.get(_CLASSES.get(tensor.role, ""))
            matrix = tensor.role is not Role.WEIGHT or len(tensor.shape) > 1
            if wanted and tensor.role is not Role.ACTIVATION and matrix:
                names[tensor.name] = wanted
        return (op,)

    edit_ops(trace, params.where, collect)

    def change(tensor: Tensor) -> Tensor:
        if tensor.role is Role.ACTIVATION:
            if params.everywhere and params.activations:
                return replace(tensor, format=params.activations)
            return tensor
        wanted = names.get(tensor.name)
        return replace(tensor, format=wanted) if wanted and len(tensor.shape) > (tensor.role is Role.WEIGHT) else tensor

    def edit(op: Op, p: Pass) -> Sequence[Op]:
        inputs, outputs = tuple(map(change, op.inputs)), tuple(map(change, op.outputs))
        attrs = op.attrs
        if isinstance(attrs, MoveAttrs) and attrs.table == "kv_append":
            attrs = replace(attrs, row_bytes=sum(storage_bytes(t.shape[1:], t.format) for t in outputs))
        new = replace(op, inputs=inputs, outputs=outputs, attrs=attrs)
        x = new.inputs[0] if new.inputs else None
        product = isinstance(attrs, (MatmulAttrs, AttentionAttrs))
        if (
            params.activations
            and product
            and x is not None
            and x.role is Role.ACTIVATION
            and x.format != params.activations
        ):
            if not params.online:
                return (replace(new, inputs=(replace(x, format=params.activations), *new.inputs[1:])),)
            made = replace(
                x, name=f"{x.name}_{params.activations}", format=params.activations, whole=None, sparsity=None
            )
            cast = Op(
                f"{op.name}_quantize", OpKind.ELEMENTWISE, op.role, (x,), (made,),
                ElementwiseAttrs("quantize", made.elements),
            )  # fmt: skip
            return cast, replace(new, inputs=(replace(made, sparsity=x.sparsity), *new.inputs[1:]))
        return (new,)

    return edit_ops(trace, params.where, edit)


class XForm(Schema):
    """A transform of the inputs (or outputs) of the selected products, online, or folded into the weights beforehand.

    hadamard: blocks of `block` columns, log2(block) additions and a scaling an element on the vector unit, or a
    product with a small constant matrix on the array · rotation: a product with a full square matrix · affine: a
    product with a square matrix for each block · permutation: columns in another order. Columns that `block` does not
    divide are refused.
    """

    kind: Literal["hadamard", "rotation", "affine", "permutation"]
    side: Literal["input", "output"] = "input"
    block: Size | None = Field(None, description="Columns of a block (hadamard, affine); default: all.")
    unit: Literal["vector", "array"] = Field("vector", description="Where a Hadamard transform runs.")
    folded: bool = False
    where: Where = Where()

    @model_validator(mode="after")
    def _fits(self) -> XForm:
        if self.kind == "hadamard" and self.block is not None and (self.block < 2 or self.block & (self.block - 1)):
            raise ValueError(f"a Hadamard transform of {self.block} columns does not exist; state a power of two")
        return self


def xform(trace: Trace, params: XForm) -> Trace:
    """Closed forms for m rows of k columns: hadamard m k (log2(block) + 1) vector operations (on the array: m k
    block multiply-accumulates), affine m k block, rotation m k k, permutation m rows moved; folded nothing.
    """
    if params.folded:
        return trace

    def edit(op: Op, p: Pass) -> Sequence[Op]:
        attrs = op.attrs
        if not isinstance(attrs, MatmulAttrs) or (attrs.batch != 1 and attrs.group_m is None):
            raise ConfigError(f"{op.name} is no plain product; name products in where.operators", key="where.operators")
        if params.side == "input":
            x = op.inputs[0]
            done = replace(x, name=f"{x.name}_turned", sparsity=None, whole=None)
            return *_turn(op, x, done, params), replace(op, inputs=(replace(done, sparsity=x.sparsity), *op.inputs[1:]))
        out = op.outputs[0]
        raw = replace(out, name=f"{out.name}_unturned")
        return replace(op, outputs=(raw,)), *_turn(op, raw, out, params)

    return edit_ops(trace, params.where, edit)


def _turn(op: Op, x: Tensor, done: Tensor, params: XForm) -> tuple[Op, ...]:
    columns = x.shape[-1]
    # By default a Hadamard transform works on the largest power of two that divides the columns.
    rows, block = x.elements // columns, params.block or (columns & -columns if params.kind == "hadamard" else columns)
    name = f"{op.name}_{params.kind}"
    if columns % block:
        raise ConfigError(f"is {block}, which does not divide the {columns} columns of {x.name}", key="block")
    if params.kind == "permutation":
        move = MoveAttrs("permute", rows, storage_bytes((columns,), x.format))
        return (Op(name, OpKind.GATHER, op.role, (x,), (done,), move),)
    if params.kind == "hadamard" and block < 2:
        raise ConfigError(
            f"finds {columns} columns of {x.name}, an odd number that no Hadamard transform fits", key="kind"
        )
    if params.kind == "hadamard" and params.unit == "vector":
        work = CustomAttrs(0, hadamard_ops(rows, columns, block), x.bytes, done.bytes, "vector")
        return (Op(name, OpKind.CUSTOM, op.role, (x,), (done,), work),)
    if params.kind == "hadamard":
        weight = Tensor(f"hadamard{block}", (block, block), x.format, Role.WEIGHT)
        product = MatmulAttrs(1, x.elements // block, block, block)
        return (Op(name, OpKind.MATMUL, op.role, (x, weight), (done,), product),)
    base = next((t.name.removesuffix(".weight") for t in op.inputs if t.role is Role.WEIGHT), op.name)
    if params.kind == "rotation":
        weight = Tensor(f"{base}_rotation.weight", (columns, columns), x.format, Role.WEIGHT)
        return (Op(name, OpKind.MATMUL, op.role, (x, weight), (done,), MatmulAttrs(1, rows, columns, columns)),)
    count = columns // block
    weight = Tensor(f"{base}_affine.weight", (count, block, block), x.format, Role.WEIGHT)
    return (Op(name, OpKind.MATMUL, op.role, (x, weight), (done,), MatmulAttrs(count, rows, block, block)),)
