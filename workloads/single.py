"""Passes of one operator, or of one decoder layer, alone: operands come from the memory and results go back to it.

A machine that keeps activations on chip would leave the result there, as nothing reads it. So each pass ends with a
block that reads the result and costs nothing: what one block leaves to another goes through the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workloads.build import Builder, encode_passes
from workloads.emit import FormatChoice
from workloads.models import Model
from workloads.trace import (
    CARRIED,
    CAUSAL,
    FULL,
    AttentionAttrs,
    Block,
    CollectiveAttrs,
    ElementwiseAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    Pass,
    ReduceAttrs,
    RequestSpan,
    Role,
    Sparsity,
    Tensor,
)


def _activation(name: str, number_format: str, *shape: int) -> Tensor:
    return Tensor(name, shape, number_format, Role.ACTIVATION)


def _alone(name: str, ops: Sequence[Op], results: Sequence[Tensor], tokens: int) -> Pass:
    """The pass of `ops`, and after it one that reads `results`: a collective of one device, which takes no time."""
    read = Op("read", OpKind.COLLECTIVE, "output", tuple(results), (), CollectiveAttrs("broadcast", 0, 1))
    return Pass(name, "encode", (Block(name, 1, tuple(ops)), Block("after", 1, (read,))), tokens)


def product(m: int, n: int, k: int, number_format: str, batch: int = 1, weights: str = "dense") -> Pass:
    """`batch` products (m x k)(k x n). A single one's second operand is a weight, 2:4 sparse on demand (`weights`)."""
    sparsity = Sparsity("n:m", 0.5, 2, 4) if weights == "2:4" else None
    role = Role.WEIGHT if batch == 1 else Role.ACTIVATION
    many = (batch,) if batch > 1 else ()
    left = _activation("a", number_format, *many, m, k)
    right = Tensor("b", (*many, k, n), number_format, role, sparsity)
    result = _activation("c", number_format, *many, m, n)
    op = Op("product", OpKind.MATMUL, "ffn", (left, right), (result,), MatmulAttrs(batch, m, k, n))
    return _alone("product", (op,), (result,), batch * m)


def gemm(m: int, n: int, k: int, number_format: str) -> Pass:
    """(m x k) times (k x n), the second operand a weight."""
    return product(m, n, k, number_format)


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


def encoder_attention(heads: int, positions: int, head_dim: int, number_format: str) -> Pass:
    """Every position of one sequence attends to all of it; queries, keys and values come from the memory."""
    q, k, v, o = (_activation(name, number_format, positions, heads * head_dim) for name in "qkvo")
    attrs = AttentionAttrs(heads, heads, head_dim, head_dim, FULL, (RequestSpan(1, positions, 0),))
    op = Op("attention", OpKind.ATTENTION, "attention", (q, k, v), (o,), attrs)
    return _alone("attention", (op,), (o,), positions)


def attention(
    batch: int, heads: int, kv_heads: int, queries: int, keys: int, head_dim: int, causal: bool, number_format: str
) -> Pass:
    """`batch` requests of `queries` positions that attend to `keys` cached ones, their own included."""
    span = RequestSpan(batch, queries, keys - queries) if keys >= queries else RequestSpan(batch, queries)
    attrs = AttentionAttrs(heads, kv_heads, head_dim, head_dim, CAUSAL if causal else FULL, (span,))
    q, o = (_activation(name, number_format, batch * queries, heads * head_dim) for name in "qo")
    k, v = (Tensor(name, (batch * span.length, kv_heads * head_dim), number_format, Role.KV) for name in "kv")
    op = Op("attention", OpKind.ATTENTION, "attention", (q, k, v), (o,), attrs)
    return _alone("attention", (op,), (o,), batch * queries)


def reduction(function: str, rows: int, columns: int, number_format: str) -> Pass:
    """A function along each of `rows` rows."""
    operand, result = (_activation(name, number_format, rows, columns) for name in "ac")
    op = Op(function, OpKind.REDUCE, "norm", (operand,), (result,), ReduceAttrs(function, rows, columns))
    return _alone(function, (op,), (result,), rows)


def elementwise(function: str, rows: int, columns: int, number_format: str) -> Pass:
    """A function of each element, or of pairs of elements (`add`)."""
    operands = "ab" if function == "add" else "a"
    inputs = tuple(_activation(name, number_format, rows, columns) for name in operands)
    result = _activation("c", number_format, rows, columns)
    op = Op(function, OpKind.ELEMENTWISE, "ffn", inputs, (result,), ElementwiseAttrs(function, rows * columns))
    return _alone(function, (op,), (result,), rows)


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


def decoder_layer(model: Model, batch: int, queries: int, past: int, number_format: str) -> Pass:
    """One layer of a decoder over `queries` new positions of `batch` requests with `past` cached ones each."""
    formats = FormatChoice(number_format, number_format, number_format, number_format, number_format)
    span = RequestSpan(batch, queries, past)
    work = Builder(model, formats).build_pass("layer", "decode" if past else "prefill", [span], 0)
    layer = next(block for block in work.blocks if any(op.kind is OpKind.ATTENTION for op in block.ops))
    carried = next(tensor for op in layer.ops for tensor in op.outputs if tensor.name == CARRIED)
    move = MoveAttrs("copy", batch * queries, carried.bytes // (batch * queries))
    operand, result = replace(carried, name="a"), replace(carried, name="c")
    load = Block("before", 1, (Op("load", OpKind.GATHER, "embed", (operand,), (carried,), move),))
    store = Op("store", OpKind.GATHER, "embed", (carried,), (result,), move)
    alone = _alone("layer", (store,), (result,), batch * queries)
    return replace(alone, blocks=(load, replace(layer, repeat=1), *alone.blocks))
