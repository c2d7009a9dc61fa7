"""What the report is told of operands with zeros where a machine has no engine that would leave products out."""

from __future__ import annotations

from sim.passes import ZeroRow
from sim.sparse.zeros import Zeros
from workloads.trace import Op, OpKind, Tensor

AS_NUMBERS = "multiplied as numbers, no sparse engine"


def zeros_between(left: Tensor, right: Tensor) -> Zeros | None:
    """The zeros of a product's operands, None where neither has any."""
    sides = [s if s is not None and s.density < 1 else None for s in (left.sparsity, right.sparsity)]
    return Zeros(sides[0], sides[1], left.format, right.format) if any(sides) else None


def plain_row(op: Op) -> tuple[ZeroRow | None, dict[str, str]]:
    """(row for the books, decision) of an operator whose zeros are treated like other numbers; (None, {}) without."""
    zeros = zeros_between(*op.inputs[:2]) if op.kind is OpKind.MATMUL and len(op.inputs) > 1 else None
    if zeros is None:
        return None, {}
    return ZeroRow(useful_macs=round(op.macs * zeros.density)), {"sparsity": f"{zeros}: {AS_NUMBERS}"}
