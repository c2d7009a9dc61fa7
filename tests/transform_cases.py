"""What the tests of primitives share: the sizes of the small decoder, and what a Trace with and without methods has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.method_cases import small
from workloads.trace import Op, Trace

HIDDEN, NEURONS, LAYERS, HEADS, KV_HEADS, HEAD = 64, 256, 8, 8, 4, 16
QKV = (HEADS + 2 * KV_HEADS) * HEAD
FFN_WEIGHTS = 3 * HIDDEN * NEURONS
ATTENTION_WEIGHTS = HIDDEN * QKV + HEADS * HEAD * HIDDEN


def traces(folder: Path, phase: str, *methods: Any, **keys: Any) -> tuple[Trace, Trace]:
    """The small workload of a phase without and with methods."""
    return small(folder, phase, **keys).trace(), small(folder, phase, list(methods), **keys).trace()


def ops(trace: Trace, name: str) -> list[tuple[Op, int]]:
    """Operators of that name (prefixes aside) with how often they run."""
    return [
        (op, p.repeat * b.repeat)
        for p in trace.passes
        for b in p.blocks
        for op in b.ops
        if op.name.rpartition(".")[2] == name
    ]


def matrix_weights(trace: Trace, *parts: str) -> int:
    """Elements of the matrices whose names contain one of `parts`."""
    return sum(
        n * t.resident_elements
        for t, n in trace._weights().values()
        if any(part in t.name for part in parts) and len(t.shape) > 1
    )
