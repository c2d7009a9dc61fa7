"""Joins the operators of a block that run in memory to the rest: which ones they are, where their operands are, and
the order in which new keys and values are written.
"""

from __future__ import annotations

from sim.lower.homes import Home
from sim.lower.pim import PimAttention, Place, lower_append
from sim.lower.pim_product import lower_pim_product
from sim.lower.scope import Scope, where, width
from sim.pim.parts import part_number
from workloads.trace import AttentionAttrs, MatmulAttrs, Op, OpKind, Role, Tensor

__all__ = [
    "append_in_memory",
    "append_last",
    "attention_in_memory",
    "in_memory",
    "multiply_in_memory",
    "part_number",
    "product_in_memory",
]


def in_memory(scope: Scope, op: Op) -> bool:
    """Whether an attention operator, or an append to its caches, works on rows set apart for units in the memory."""
    plan = scope.context.pim
    return plan is not None and any(t.name in plan.caches for t in (*op.inputs, *op.outputs))


def attention_in_memory(scope: Scope, op: Op) -> tuple[int, ...]:
    """Lower attention for the units in the memory."""
    plan, attrs, b = scope.context.pim, op.attrs, scope.builder
    assert plan is not None
    assert isinstance(attrs, AttentionAttrs)
    query, output = op.inputs[0], op.outputs[0]
    home, target = scope.home(query), scope.target(output)
    lowered = PimAttention(
        b,
        plan,
        part_number(op),
        attrs,
        width(scope.machine, query),
        _place(home),
        _place(target),
        scope.start((op,)) or (scope.first,),
    )
    ends = lowered.lower(barrier=scope.machine.operators == "serial")
    b.decide(unit="memory", attention="in memory", input=where(home), output=where(target))
    return scope.settle([(output, target)], ends)


def product_in_memory(scope: Scope, op: Op) -> bool:
    """Whether an operator is a product with weights that are in rows for the units in the memory."""
    plan = scope.context.pim
    return plan is not None and op.kind is OpKind.MATMUL and op.inputs[1].name in plan.products


def multiply_in_memory(scope: Scope, op: Op) -> tuple[int, ...]:
    """Lower a product with weights for the units in the memory."""
    plan, attrs = scope.context.pim, op.attrs
    assert plan is not None
    assert isinstance(attrs, MatmulAttrs)
    (left, weight, *rest), output = op.inputs, op.outputs[0]
    home, target = scope.home(left), scope.target(output)
    shape = plan.products[weight.name]
    ends = lower_pim_product(
        scope.builder, plan, shape, attrs.m, bool(rest), width(scope.machine, left), _place(home), _place(target),
        scope.start((op,)) or (scope.first,),
    )  # fmt: skip
    scope.builder.decide(
        unit="memory",
        tile=f"{attrs.m} vectors x {shape.tiles * shape.chunks} rows",
        input=where(home),
        output=where(target),
    )
    return scope.settle([(output, target)], ends)


def append_in_memory(scope: Scope, number: int) -> tuple[int, ...]:
    """Note an append for later: attention does not wait for it, so everything else in the block goes first."""
    assert scope.machine.pim is not None
    op = scope.ops[number]
    ready = scope.start((op,)) or (scope.first,)
    if scope.machine.pim.append == "none":
        scope.builder.decide(unit="none", place="not written")
    else:
        scope.builder.decide(unit="memory", place="rows")
        scope.later.append((number, ready))
    return scope.settle([(t, Home(False)) for t in op.outputs], ready)


def append_last(scope: Scope) -> list[int]:
    """Lower the appends noted before, behind everything else of the block; returns what ends them."""
    plan = scope.context.pim
    ends: list[int] = []
    current = scope.builder.current_op
    for number, ready in scope.later:
        assert plan is not None
        op = scope.ops[number]
        scope.builder.current_op = number
        scope.gate = ready
        sources = [t for t in op.inputs if t.role is Role.ACTIVATION]
        each = width(scope.machine, op.outputs[0])
        ends += lower_append(scope.builder, plan, part_number(op), _source(scope, sources), ready, each)
    scope.builder.current_op = current
    return ends


def _place(home: Home) -> Place | None:
    return None if home.on_chip else Place(home.space, home.offset, home.ready)


def _source(scope: Scope, tensors: list[Tensor]) -> Place | None:
    """Where keys and values are together, behind the query in one buffer; None on chip."""
    homes = [scope.home(t) for t in tensors]
    away = [home for home in homes if not home.on_chip]
    return _place(away[0]) if away else None
