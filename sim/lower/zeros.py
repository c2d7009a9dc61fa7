"""Operands with zeros in the lowering of a product: whether the machine makes use of them, what must be predicted
first, and what the report is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from sim.errors import ConfigError
from sim.lower import matmul
from sim.lower.builder import Builder, Space
from sim.lower.compute import Bits
from sim.passes import ZeroRow
from sim.sparse.plain import zeros_between
from sim.sparse.zeros import Split, Zeros, rank_of_predictor, skips, told
from workloads.formats import format_bits
from workloads.trace import Op, Tensor

if TYPE_CHECKING:
    from sim.hardware import Hardware
    from sim.lower.scope import Scope


def usable(machine: Hardware, left: Tensor, right: Tensor) -> Zeros | None:
    """The zeros of a product's operands, None where it has none or the machine cannot make use of them."""
    return zeros_between(left, right) if skips(machine) else None


@contextmanager
def in_op(op: Op, product: matmul.Product) -> Iterator[None]:
    """Refusals of the sparse engine name the operator whose zeros it does not take."""
    try:
        yield
    except ConfigError as error:
        if product.zeros is None:
            raise
        raise ConfigError(f"operator {op.name} ({product.zeros}): {error.message}", key=error.key) from None


def predict(scope: Scope, product: matmul.Product, op: Op, start: tuple[int, ...]) -> tuple[int, ...]:
    """Add the predictor's two products, if the machine has one and activations have zeros; what the product waits for.

    Its inputs are as wide as the product's result (the half layer's own inputs) and still on chip; so are its scores.
    Its matrices come from DRAM, in the format of the weights.
    """
    rank = rank_of_predictor(scope.machine, product.zeros)
    if not rank:
        return start
    b = scope.builder
    assert product.zeros is not None
    left, right = (format_bits(name) / 8 for name in (product.zeros.left_format, product.zeros.right_format))
    for n, k in ((rank, product.n), (product.k, rank)):
        part = matmul.Product(
            product.groups, n, k, product.number_format, Bits(left, right, left, product.size.accumulator), False, True,
            False, product.right_shared,
        )  # fmt: skip
        tiling = scope.context.mapper.tiling(part)
        at = b.region(Space.WEIGHT, matmul.layout_bytes(part, tiling, scope.context.align_bytes))
        places = matmul.Places(0, Space.ACTIVATION, start, at, Space.WEIGHT, (), (), (), start)
        start = (b.sync(b.attempt(matmul.lower_product, part, tiling, places, (b.current_op,))),)
    return start


def describe(builder: Builder, op: Op, product: matmul.Product, tiling: matmul.Tiling) -> None:
    """Tell the report of the operator's zeros, if it has any, whether they were made use of or not."""
    machine, number = builder.machine, builder.current_op
    if product.number_format != op.inputs[0].format:
        builder.template.formats[number] = product.number_format
    zeros = zeros_between(op.inputs[0], op.inputs[1])
    if zeros is None:
        return
    useful = round(op.macs * zeros.density)
    if product.zeros is None:
        builder.template.zeros[number] = ZeroRow(useful_macs=useful)
        builder.decide(sparsity=told(machine, zeros, Split()))
        return
    macs, split = matmul.engine_work(machine, product, tiling)
    rank = rank_of_predictor(machine, zeros)
    predicted = sum(product.groups) * rank * (product.n + product.k)
    builder.template.zeros[number] = ZeroRow(useful, op.macs - macs, predicted, cycles=tuple(split))
    builder.decide(sparsity=told(machine, zeros, split))
