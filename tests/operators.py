"""Passes of one operator, as people measure operators alone: operands come from the memory and results go back to it.

A machine that keeps activations on chip would leave the result there, as nothing reads it from memory. So each pass
ends with a block that reads the result and costs nothing: what one block leaves to another goes through the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workloads.build import Builder, encode_passes
from workloads.emit import FormatChoice
from workloads.models import Model
from workloads.trace import (
    CARRIED,
    FULL,
    AttentionAttrs,
    Block,
    CollectiveAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    Pass,
    ReduceAttrs,
    RequestSpan,
    Role,
    Tensor,
)


def _activation(name: str, number_format: str, *shape: int) -> Tensor:
    return Tensor(name, shape, number_format, Role.ACTIVATION)


def _alone(name: str, ops: Sequence[Op], results: Sequence[Tensor], tokens: int) -> Pass:
    """The pass of `ops`, and after it one that reads `results`: a collective of one device, which takes no time."""
    read = Op("read", OpKind.COLLECTIVE, "output", tuple(results), (), CollectiveAttrs("broadcast", 0, 1))
    return Pass(name, "encode", (Block(name, 1, tuple(ops)), Block("after", 1, (read,))), tokens)


def gemm(m: int, n: int, k: int, number_format: str) -> Pass:
    """(m x k) times (k x n), the second operand a weight."""
    left, result = _activation("a", number_format, m, k), _activation("c", number_format, m, n)
    right = Tensor("b", (k, n), number_format, Role.WEIGHT)
    op = Op("gemm", OpKind.MATMUL, "ffn", (left, right), (result,), MatmulAttrs(1, m, k, n))
    return _alone("gemm", (op,), (result,), m)


def convolution(
    images: int, height: int, width: int, inputs: int, outputs: int, kernel: int, stride: int, padding: int,
    number_format: str, patches_bytes: int,
) -> Pass:  # fmt: skip
    """A square convolution as an implicit GEMM: (positions x inputs kernel^2) times (inputs kernel^2 x outputs).

    The images are read once. Patches are laid out on chip for as many positions at a time as fill `patches_bytes`;
    the filters are read again for each such part. Rows of the image that two parts share are read with one of them.
    """
    positions = images * _steps(height, kernel, stride, padding) * _steps(width, kernel, stride, padding)
    reduced = inputs * kernel * kernel
    whole = _activation("patches", number_format, positions, reduced)
    parts = -(-whole.bytes // patches_bytes)
    pixels = images * height * width
    ops, results = [], []
    for part in range(parts):
        rows = positions * (part + 1) // parts - positions * part // parts
        seen = pixels * (part + 1) // parts - pixels * part // parts
        image = _activation(f"image{part}", number_format, seen, inputs)
        patches = _activation(f"patches{part}", number_format, rows, reduced)
        result = _activation(f"c{part}", number_format, rows, outputs)
        filters = Tensor(f"filters{part}", (reduced, outputs), number_format, Role.WEIGHT)
        move = MoveAttrs("patches", rows, patches.bytes // rows)
        product = MatmulAttrs(1, rows, reduced, outputs)
        ops.append(Op(f"patches{part}", OpKind.GATHER, "conv", (image,), (patches,), move))
        ops.append(Op(f"conv{part}", OpKind.MATMUL, "conv", (patches, filters), (result,), product))
        results.append(result)
    return _alone("conv", ops, results, positions)


def _steps(size: int, kernel: int, stride: int, padding: int) -> int:
    return (size + 2 * padding - kernel) // stride + 1


def reduction(function: str, rows: int, columns: int, number_format: str) -> Pass:
    """`softmax` or `layernorm` along each of `rows` rows."""
    operand, result = (_activation(name, number_format, rows, columns) for name in ("a", "c"))
    op = Op(function, OpKind.REDUCE, "norm", (operand,), (result,), ReduceAttrs(function, rows, columns))
    return _alone(function, (op,), (result,), rows)


def attention(heads: int, positions: int, head_dim: int, number_format: str) -> Pass:
    """Every position of one sequence attends to all of it; queries, keys and values come from the memory."""
    q, k, v, o = (_activation(name, number_format, positions, heads * head_dim) for name in "qkvo")
    attrs = AttentionAttrs(heads, heads, head_dim, head_dim, FULL, (RequestSpan(1, positions, 0),))
    op = Op("attention", OpKind.ATTENTION, "attention", (q, k, v), (o,), attrs)
    return _alone("attention", (op,), (o,), positions)


def encoder_layer(hidden: int, heads: int, positions: int, number_format: str) -> Pass:
    """One transformer layer: attention, a ReLU feed-forward part of 4 x hidden, layer norms after both, biases."""
    facts = {
        "name": "layer", "kind": "encoder", "layers": 1, "hidden": hidden, "vocab": 1, "max_position": positions,
        "position": "learned",
        "attention": {
            "heads": heads, "kv_heads": heads, "head_dim": hidden // heads, "qkv_bias": True, "out_bias": True,
        },
        "ffn": {"hidden": 4 * hidden, "activation": "relu", "bias": True},
        "norm": {"kind": "layernorm", "place": "post"},
    }  # fmt: skip
    formats = FormatChoice(weights=number_format, activations=number_format, kv=number_format)
    (work,) = encode_passes(Builder(Model.model_validate(facts), formats), [positions])
    (layer,) = (block for block in work.blocks if any(op.kind is OpKind.ATTENTION for op in block.ops))
    carried = next(tensor for op in layer.ops for tensor in op.outputs if tensor.name == CARRIED)
    move = MoveAttrs("copy", positions, carried.bytes // positions)
    operand, result = replace(carried, name="a"), replace(carried, name="c")
    load = Block("before", 1, (Op("load", OpKind.GATHER, "embed", (operand,), (carried,), move),))
    store = Op("store", OpKind.GATHER, "embed", (carried,), (result,), move)
    alone = _alone("encoder_layer", (store,), (result,), positions)
    return replace(alone, blocks=(load, layer, *alone.blocks))
