"""Cuts the operators of a batch into those of a part of its requests, for schedules that overlap two parts.

An operator on some of the requests is the same operator with fewer rows: weights and columns stay, rows of activations
go with the new positions. Tensors and operators of a part have its number in their names.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from sim.errors import ConfigError
from workloads.trace import (
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


@dataclass(frozen=True, slots=True)
class Part:
    """Some requests of a batch, by number of cached positions; `tokens` is the whole batch's number."""

    number: int
    lengths: tuple[int, ...]
    tokens: int

    @property
    def share(self) -> Fraction:
        """Of the batch's new positions."""
        return Fraction(len(self.lengths), self.tokens)

    @property
    def spans(self) -> tuple[RequestSpan, ...]:
        """Requests alike together, in order of first appearance."""
        counts: dict[int, int] = {}
        for past in self.lengths:
            counts[past] = counts.get(past, 0) + 1
        return tuple(RequestSpan(count, 1, past) for past, count in counts.items())


def named(name: str, number: int) -> str:
    """The name of a tensor or operator of a part."""
    return f"{name}#{number}"


def part_number(op: Op) -> int:
    """Of the part that an operator belongs to; 0 where the batch is not divided."""
    _, mark, number = op.name.rpartition("#")
    return int(number) if mark and number.isdecimal() else 0


def part_of(op: Op, part: Part, keys: int) -> Op:
    """`op` for the requests of `part`; `keys`: cached positions of the whole batch, the new ones included.

    Raises ConfigError for operators whose rows do not go with the requests one by one.
    """
    attrs = op.attrs
    share = part.share
    new: object
    if isinstance(attrs, MatmulAttrs):
        if attrs.group_m is not None:
            raise ConfigError(
                f"operator {op.name} works expert by expert, which parts of a batch share: they cannot be overlapped",
                key="pim.interleave",
            )
        new = replace(attrs, m=_whole(attrs.m * share, op))
    elif isinstance(attrs, AttentionAttrs):
        new = replace(attrs, requests=part.spans)
    elif isinstance(attrs, ReduceAttrs):
        new = replace(attrs, rows=_whole(attrs.rows * share, op))
    elif isinstance(attrs, ElementwiseAttrs):
        new = replace(attrs, elements=_whole(attrs.elements * share, op))
    elif isinstance(attrs, MoveAttrs):
        new = replace(attrs, rows=_whole(attrs.rows * share, op), vector_ops=_whole(attrs.vector_ops * share, op))
    elif isinstance(attrs, CollectiveAttrs):
        new = replace(attrs, bytes=_whole(attrs.bytes * share, op))
    else:
        raise ConfigError(
            f"operator {op.name} is a {op.kind}, whose work cannot be divided by requests", key="pim.interleave"
        )
    part_keys = sum(span.count * span.length for span in part.spans)

    def cut(tensor: Tensor) -> Tensor:
        if tensor.role is Role.WEIGHT:
            return tensor
        rows = part_keys if tensor.role is Role.KV and tensor.shape[0] == keys else tensor.shape[0] * share
        return replace(tensor, name=named(tensor.name, part.number), shape=(_whole(rows, op), *tensor.shape[1:]))

    return replace(
        op, name=named(op.name, part.number), inputs=tuple(map(cut, op.inputs)), outputs=tuple(map(cut, op.outputs)),
        attrs=new,
    )  # fmt: skip


def cut_lengths(spans: Sequence[RequestSpan]) -> list[int]:
    """Cached positions of each request, one entry a request."""
    return [span.past for span in spans for _ in range(span.count)]


def _whole(value: Fraction | int, op: Op) -> int:
    if value != int(value):
        raise ConfigError(
            f"operator {op.name} has rows that do not go with the requests one by one: it cannot be divided",
            key="pim.interleave",
        )
    return int(value)
