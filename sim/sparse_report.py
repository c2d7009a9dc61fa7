"""What zeros came to in a run: sums over its operators, and where the time went that they did not save."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from sim.joins import advances_ps, spans_ps
from sim.passes import OpRow, PassResult, ZeroRow

if TYPE_CHECKING:
    from sim.machine import Machine

SUMS = tuple(f.name for f in fields(ZeroRow) if f.name != "cycles")
CAUSES = ("products", "imbalance", "unfilled", "bandwidth", "metadata")
"""Where the engine's time went, in the order of `ZeroRow.cycles`."""
KINDS = ("products_with_zeros", "other_products", "vector", "moves")
"""What the run's time is divided into."""


def zero_totals(passes: Sequence[PassResult]) -> dict[str, int]:
    """Sums of a ZeroRow's amounts over a run; all 0 where no tensor has zeros."""
    total = dict.fromkeys(SUMS, 0)
    for result in passes:
        for op in result.ops:
            if op.zeros is not None:
                for name in SUMS:
                    total[name] += result.repeat * int(getattr(op.zeros, name))
    return total


def saved_bytes(op: OpRow) -> int:
    """Bytes by which an operator's tensors are smaller in memory than dense ones."""
    return op.zeros.left_out_bytes - op.zeros.metadata_bytes if op.zeros is not None else 0


def sparsity_summary(machine: Machine, passes: Sequence[PassResult]) -> dict[str, Any] | None:
    """The section `sparsity` of the summary; None for a run without zeros.

    `time_s` divides the run by what each operator added to it, so that it shows which part of the run zeros can
    shorten; `engine_s` divides the engine's time on products with zeros by cause.
    """
    rows = [(p, op) for p in passes for op in p.ops if op.zeros is not None and op.flops]
    if not rows:
        return None
    dense = sum(p.repeat * op.flops // 2 for p, op in rows)
    totals = zero_totals(passes)
    all_macs = sum(p.repeat * op.flops // 2 for p in passes for op in p.ops)
    cycles = [sum(p.repeat * op.zeros.cycles[i] for p, op in rows if op.zeros) for i in range(len(CAUSES))]
    # Only an engine that leaves products out counts its cycles by cause.
    clock = float(getattr(machine, "clock", 0)) * getattr(machine, "cores", 1) if any(cycles) else 0.0
    products = sum(cycles[:2])
    return {
        "operators": len({(op.block, op.name) for _, op in rows}),
        "dense_macs": dense,
        "executed_macs": dense - totals["skipped_macs"],
        **totals,
        "ideal_speedup": dense / totals["useful_macs"] if totals["useful_macs"] else None,
        "ideal_speedup_of_all_products": all_macs / (all_macs - dense + totals["useful_macs"]) if all_macs else None,
        "imbalance": products / cycles[0] if cycles[0] else None,
        "engine_s": {name: value / clock for name, value in zip(CAUSES, cycles, strict=True)} if clock else None,
        "time_s": _time_by_kind(passes),
    }


def _time_by_kind(passes: Sequence[PassResult]) -> dict[str, float]:
    ps = dict.fromkeys(KINDS, 0)
    for result in passes:
        advances = advances_ps(spans_ps(result.tasks.op, result.schedule, len(result.ops))[1])
        for op, advance in zip(result.ops, advances.tolist(), strict=True):
            ps[_kind(op)] += result.repeat * advance
    return {name: value * 1e-12 for name, value in ps.items()}


def _kind(op: OpRow) -> str:
    if op.flops:
        return "products_with_zeros" if op.zeros is not None else "other_products"
    return "vector" if op.vector_ops else "moves"
