"""A pass whose requests are halved: while a collective of one half is under way, the multiprocessors work on the other.

DeepSeek-V3 overlaps two micro-batches so (technical report, 2024, sections 3.4.1 and 3.4.2). It has its price: each
half reads the weights, fills thread blocks less and pays each collective's start, and the kernels of collectives hold
multiprocessors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workloads.trace import (
    AttentionAttrs,
    CollectiveAttrs,
    ElementwiseAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpAttrs,
    ReduceAttrs,
    RequestSpan,
    Role,
    Tensor,
)


def _half(count: int) -> int:
    return -(-count // 2)


def halved(op: Op) -> Op | None:
    """`op` for the larger half of its requests; None where it has one request only, or work that is not by request."""
    attrs = _attrs(op.attrs)
    if attrs is None:
        return None
    inputs, outputs = (tuple(_tensor(tensor) for tensor in some) for some in (op.inputs, op.outputs))
    return replace(op, attrs=attrs, inputs=inputs, outputs=outputs)


def _attrs(attrs: OpAttrs) -> OpAttrs | None:
    if isinstance(attrs, MatmulAttrs):
        if attrs.group_m is not None:
            groups = tuple(_half(rows) for rows in attrs.group_m)
            return replace(attrs, m=sum(groups), group_m=groups)
        return replace(attrs, m=_half(attrs.m))
    if isinstance(attrs, AttentionAttrs):
        requests = _requests(attrs.requests)
        return replace(attrs, requests=requests) if requests else None
    if isinstance(attrs, ReduceAttrs):
        return replace(attrs, rows=_half(attrs.rows))
    if isinstance(attrs, ElementwiseAttrs):
        return replace(attrs, elements=_half(attrs.elements))
    if isinstance(attrs, MoveAttrs):
        return replace(attrs, rows=_half(attrs.rows), vector_ops=_half(attrs.vector_ops))
    if isinstance(attrs, CollectiveAttrs):
        return replace(attrs, bytes=_half(attrs.bytes))
    return None


def _requests(spans: Sequence[RequestSpan]) -> tuple[RequestSpan, ...]:
    """Every other request, beginning with the first; none of a single one."""
    if sum(span.count for span in spans) < 2:
        return ()
    found, before = [], 0
    for span in spans:
        count = _half(before + span.count) - _half(before)
        before += span.count
        if count:
            found.append(replace(span, count=count))
    return tuple(found)


def _tensor(tensor: Tensor) -> Tensor:
    """The rows of one half. A weight is read whole, but for the rows looked up in a table."""
    looked_up = tensor.role is Role.WEIGHT and tensor.whole is not None and len(tensor.shape) == 2
    if (tensor.role is Role.WEIGHT and not looked_up) or not tensor.shape:
        return tensor
    return replace(tensor, shape=(_half(tensor.shape[0]), *tensor.shape[1:]))


def alternated(lengths: Sequence[tuple[int, bool]]) -> tuple[list[int], list[int]]:
    """Starts of the steps of two equal halves that follow each other within a half, and share two units.

    `lengths`: (ps, whether it is the links' work) of each step. A half keeps the multiprocessors until its next
    collective; where neither has them, the one that is ready first is next, or the first half.
    """
    at, ready, starts = [0, 0], [0, 0], ([0] * len(lengths), [0] * len(lengths))
    free = {False: 0, True: 0}
    last = 0
    while min(at) < len(lengths):
        waiting = [half for half in (0, 1) if at[half] < len(lengths)]
        begins = {half: max(ready[half], free[lengths[at[half]][1]]) for half in waiting}
        half = min(waiting, key=lambda one: (begins[one], one != last))
        length, linked = lengths[at[half]]
        starts[half][at[half]] = begins[half]
        ready[half] = free[linked] = begins[half] + length
        at[half] += 1
        if not linked:
            last = half
    return starts
