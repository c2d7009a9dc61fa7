"""Passes of one operator, or of one decoder layer, alone: operands come from the memory and results go back to it.

A machine that keeps activations on chip would leave the result there, as nothing reads it. So each pass ends with a
block that reads the result and costs nothing: what one block leaves to another goes through the memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workloads.build import Builder
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
    """`batch` products (m x k)(k x n); the second operand is a weight, `2:4` sparse on demand, unless there are many."""
    sparsity = Sparsity("n:m", 0.5, 2, 4) if weights == "2:4" else None
    role = Role.WEIGHT if batch == 1 else Role.ACTIVATION
    left = _activation("a", number_format, batch, m, k)
    right = Tensor("b", (batch, k, n), number_format, role, sparsity)
    result = _activation("c", number_format, batch, m, n)
    op = Op("product", OpKind.MATMUL, "ffn", (left, right), (result,), MatmulAttrs(batch, m, k, n))
    return _alone("product", (op,), (result,), batch * m)


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
