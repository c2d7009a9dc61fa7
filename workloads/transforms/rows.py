"""Operators with fewer (or more) rows: what a layer is for a part of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from workloads.ffn import balanced_loads
from workloads.trace import (
    CARRIED,
    AttentionAttrs,
    CollectiveAttrs,
    ElementwiseAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    ReduceAttrs,
    RequestSpan,
    Role,
    Tensor,
)


def spread(total: int, keep: Fraction, layers: int) -> tuple[int, int, int]:
    """(rows, layers with one row more, rows in all): `keep` of `total` rows in `layers` layers, rounded once."""
    everything = total * keep * layers
    whole = everything.numerator // everything.denominator
    if everything - whole >= Fraction(1, 2):
        whole += 1
    return whole // layers, whole % layers, whole


def thin(spans: Sequence[RequestSpan], rows: int) -> tuple[RequestSpan, ...]:
    """`rows` of the new positions of `spans`: whole requests where each has one position, else a share of each.

    Cached positions stay. Where the share is no whole number the first requests have one position more.
    """
    total = sum(s.tokens for s in spans)
    found: list[RequestSpan] = []
    given = seen = 0
    for span in spans:
        seen += span.tokens
        part = rows * seen // total - given
        given += part
        if span.query == 1:
            if part:
                found.append(replace(span, count=part))
            continue
        each, more = divmod(part, span.count)
        if more:
            found.append(RequestSpan(more, each + 1, span.past))
        if each and span.count > more:
            found.append(RequestSpan(span.count - more, each, span.past))
    return tuple(found)


def with_rows(op: Op, tokens: int, rows: int, spans: tuple[RequestSpan, ...] | None = None) -> Op:
    """An operator of a layer with `rows` of its `tokens` positions; `spans` says what attention sees of them.

    Sizes that count positions shrink in proportion, those of experts by balanced routing of the choices left. Tensors
    whose other rows still exist (the residual stream, cached keys) keep their `whole`.
    """
    if rows == tokens and spans is None:
        return op
    attrs = op.attrs
    if isinstance(attrs, AttentionAttrs):
        assert spans is not None
        return _attention_rows(op, attrs, spans, tokens, rows)

    def scale(amount: int) -> int:
        return amount * rows // tokens

    hit: int | None = None
    if isinstance(attrs, MatmulAttrs):
        if attrs.group_m is not None:
            choices = attrs.m * rows // tokens
            experts = max((t.whole or t.shape)[0] for t in op.inputs if t.role is Role.WEIGHT)
            loads = balanced_loads(max(choices, 1), experts)
            hit = len(loads)
            attrs = replace(attrs, m=sum(loads), group_m=loads, batch=hit)
        else:
            attrs = replace(attrs, m=max(scale(attrs.m), 1))
    elif isinstance(attrs, ReduceAttrs):
        attrs = replace(attrs, rows=max(scale(attrs.rows), 1))
    elif isinstance(attrs, ElementwiseAttrs):
        attrs = replace(attrs, elements=max(scale(attrs.elements), 1))
    elif isinstance(attrs, MoveAttrs):
        attrs = replace(attrs, rows=max(scale(attrs.rows), 1), vector_ops=scale(attrs.vector_ops))
    elif isinstance(attrs, CollectiveAttrs):
        attrs = replace(attrs, bytes=scale(attrs.bytes))
    inputs = tuple(_tensor_rows(t, tokens, rows, hit) for t in op.inputs)
    return replace(
        op, attrs=attrs, inputs=inputs, outputs=tuple(_tensor_rows(t, tokens, rows, hit) for t in op.outputs)
    )


def _tensor_rows(tensor: Tensor, tokens: int, rows: int, hit: int | None) -> Tensor:
    shape = tensor.shape
    if tensor.role is Role.WEIGHT:
        if hit is None or shape[0] == hit or (tensor.whole is None and len(shape) < 2):
            return tensor
        whole = tensor.whole or shape
        return replace(tensor, shape=(hit, *shape[1:]), whole=None if whole[0] == hit else whole)
    for axis, size in enumerate(shape):
        if size % tokens == 0 and size >= tokens:
            changed = (*shape[:axis], max(size * rows // tokens, 1), *shape[axis + 1 :])
            keep = tensor.whole or (shape if tensor.name == CARRIED else None)
            return replace(tensor, shape=changed, whole=keep)
    return tensor


def _attention_rows(op: Op, attrs: AttentionAttrs, spans: tuple[RequestSpan, ...], tokens: int, rows: int) -> Op:
    changed = replace(attrs, requests=spans)
    inputs = []
    for tensor in op.inputs:
        if tensor.role is Role.KV or (tensor.shape[0] == attrs.keys != tokens and tensor.role is Role.ACTIVATION):
            axis = tensor.shape.index(attrs.keys)
            shape = (*tensor.shape[:axis], changed.keys, *tensor.shape[axis + 1 :])
            inputs.append(replace(tensor, shape=shape, whole=None if tensor.whole is None else shape))
        else:
            inputs.append(_tensor_rows(tensor, tokens, rows, None))
    outputs = tuple(_tensor_rows(t, tokens, rows, None) for t in op.outputs)
    return replace(op, attrs=changed, inputs=tuple(inputs), outputs=outputs)
