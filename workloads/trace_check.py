"""Refuses a Trace that contradicts itself: shapes against attributes, unknown formats, names twice, wrong order."""

from __future__ import annotations

from collections.abc import Callable

from sim.config import ConfigError
from workloads.formats import FORMATS, unknown_format
from workloads.trace import (
    CARRIED,
    AttentionAttrs,
    Block,
    ElementwiseAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    ReduceAttrs,
    Role,
    Trace,
)


def check_trace(trace: Trace) -> None:
    """Refuse a trace that contradicts itself: shapes against attributes, formats, names, and who produces what.

    Raises ConfigError naming pass, block and operator. Shared blocks are checked once.
    """
    if not trace.passes:
        raise ConfigError("must hold at least one pass", key="passes")
    checked: dict[int, set[str]] = {}
    for p in trace.passes:
        if not p.blocks:
            raise ConfigError("must hold at least one block", key=f"pass {p.name}")
        made: set[str] = set()
        for block in p.blocks:
            where = f"pass {p.name}, block {block.name}"
            if id(block) not in checked:
                checked[id(block)] = _check_block(block, where)
            _check_order(block, made, where)
            made |= checked[id(block)]


def _check_block(block: Block, where: str) -> set[str]:
    """Check each operator; the names of the activations that the block produces."""
    names: set[str] = set()
    made: set[str] = set()
    for op in block.ops:
        key = f"{where}, operator {op.name}"
        if op.name in names:
            raise ConfigError("stands twice in its block", key=key)
        names.add(op.name)
        for tensor in (*op.inputs, *op.outputs):
            if tensor.format not in FORMATS:
                raise ConfigError(f"tensor {tensor.name}: {unknown_format(tensor.format)}", key=key)
            if not tensor.shape or min(tensor.shape) < 1:
                raise ConfigError(
                    f"tensor {tensor.name} has shape {list(tensor.shape)}; sizes must be positive", key=key
                )
            if tensor.resident_elements < tensor.elements and tensor.role is Role.WEIGHT:
                raise ConfigError(f"tensor {tensor.name} touches more elements than its whole holds", key=key)
        _SHAPE_CHECKS[op.kind](op, key)
        made.update(t.name for t in op.outputs if t.role is Role.ACTIVATION)
    return made


def _check_order(block: Block, made: set[str], where: str) -> None:
    """Activations are made before they are read: earlier in the block, or in an earlier block of the pass.

    What no operator makes enters the pass from outside. The carried tensor is handed from repetition to repetition.
    """
    written: set[str] = set()
    later = {t.name for op in block.ops for t in op.outputs}
    takes_carried = False
    for op in block.ops:
        for tensor in op.inputs:
            if tensor.role is not Role.ACTIVATION or tensor.name in written or tensor.name in made:
                continue
            if tensor.name in later and tensor.name != CARRIED:
                raise ConfigError(
                    f"reads {tensor.name!r}, which is made only afterwards", key=f"{where}, operator {op.name}"
                )
            if tensor.name == CARRIED and made:
                raise ConfigError(
                    f"reads the carried tensor {CARRIED!r}, which no earlier block makes",
                    key=f"{where}, operator {op.name}",
                )
        takes_carried |= CARRIED not in written and any(t.name == CARRIED for t in op.inputs)
        written.update(t.name for t in op.outputs)
    if block.repeat > 1 and takes_carried and CARRIED not in later:
        raise ConfigError(f"repeats and takes the carried tensor {CARRIED!r}, but does not hand it on", key=where)


def _expect(condition: bool, op: Op, message: str, key: str) -> None:
    if not condition:
        raise ConfigError(f"{message} (kind {op.kind})", key=key)


def _check_matmul(op: Op, key: str) -> None:
    a = op.attrs
    assert isinstance(a, MatmulAttrs)
    _expect(
        len(op.inputs) >= 2 and len(op.outputs) == 1, op, "needs two inputs (or a bias as third) and one output", key
    )
    rows = a.m if a.group_m is not None else a.batch * a.m
    for tensor, elements, what in (
        (op.inputs[0], rows * a.k, "first input"),
        (op.inputs[1], a.batch * a.k * a.n, "second input"),
        (op.outputs[0], rows * a.n, "output"),
    ):
        _expect(
            tensor.elements == elements,
            op,
            f"{what} {tensor.name} has {tensor.elements} elements, but the attributes mean {elements}",
            key,
        )


def _check_attention(op: Op, key: str) -> None:
    a = op.attrs
    assert isinstance(a, AttentionAttrs)
    _expect(len(op.inputs) >= 2 and len(op.outputs) == 1, op, "needs a query, keys (and values) and one output", key)
    elements = a.tokens * a.heads * a.v_head_dim
    _expect(
        op.outputs[0].elements == elements,
        op,
        f"output has {op.outputs[0].elements} elements, but the attributes mean {elements}",
        key,
    )


def _check_rows(op: Op, key: str) -> None:
    a = op.attrs
    assert isinstance(a, ReduceAttrs)
    _expect(bool(op.inputs) and bool(op.outputs), op, "needs an input and an output", key)
    _expect(
        op.inputs[0].elements == a.rows * a.columns,
        op,
        f"input {op.inputs[0].name} has {op.inputs[0].elements} elements, but the attributes mean {a.rows * a.columns}",
        key,
    )


def _check_elementwise(op: Op, key: str) -> None:
    assert isinstance(op.attrs, ElementwiseAttrs)
    made = sum(t.elements for t in op.outputs)
    _expect(bool(op.inputs) and made >= 1, op, "needs an input and an output", key)
    _expect(
        made == op.attrs.elements, op, f"outputs have {made} elements, but the attributes mean {op.attrs.elements}", key
    )


def _check_move(op: Op, key: str) -> None:
    assert isinstance(op.attrs, MoveAttrs)
    _expect(bool(op.inputs) and bool(op.outputs), op, "needs an input and an output", key)


def _check_nothing(op: Op, key: str) -> None:
    """Collectives, transfers and custom operators state their amounts themselves."""


_SHAPE_CHECKS: dict[OpKind, Callable[[Op, str], None]] = {
    OpKind.MATMUL: _check_matmul,
    OpKind.ATTENTION: _check_attention,
    OpKind.REDUCE: _check_rows,
    OpKind.ELEMENTWISE: _check_elementwise,
    OpKind.GATHER: _check_move,
    OpKind.SCATTER: _check_move,
    OpKind.COLLECTIVE: _check_nothing,
    OpKind.TRANSFER: _check_nothing,
    OpKind.CUSTOM: _check_nothing,
}
