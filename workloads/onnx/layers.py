"""Folds a chain of operators in which the same stretch stands many times into a block that repeats.

A stretch may take one tensor from the stretch before it (the residual stream, named as blocks carry it) and anything
made before all of them; then one repetition stands for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from workloads.trace import CARRIED, Block, Op, Role, Tensor

MOST = 400
"""Longest stretch that is looked for, in operators."""


def fold(ops: Sequence[Op]) -> tuple[Block, ...]:
    """Blocks of a chain of operators: what comes before the layers, the layers, what comes after."""
    found = _stretch(ops)
    if found is None:
        return (Block("graph", 1, _unique(ops)),)
    start, length, times = found
    carried = _carried(ops, start, length, times)
    assert carried is not None
    first, last = carried
    names = {first: CARRIED}
    before = _renamed(ops[:start], names)
    layer = _renamed(ops[start : start + length], {first: CARRIED, last: CARRIED})
    final = _output(ops[start + (times - 1) * length : start + times * length], last, ops[start : start + length])
    after = _renamed(ops[start + times * length :], {final: CARRIED})
    blocks = [Block("before", 1, _unique(before))] if before else []
    blocks.append(Block("layers", times, _unique(layer)))
    if after:
        blocks.append(Block("after", 1, _unique(after)))
    return tuple(blocks)


def _signature(op: Op) -> tuple[object, ...]:
    return (
        op.kind, op.role, op.attrs, tuple((i.role, i.shape, i.format) for i in op.inputs),
        tuple((o.shape, o.format) for o in op.outputs),
    )  # fmt: skip


def _stretch(ops: Sequence[Op]) -> tuple[int, int, int] | None:
    """(start, length, times) of the stretch that covers most, and can be folded; None where nothing repeats."""
    numbers: dict[object, int] = {}
    kinds = [numbers.setdefault(_signature(op), len(numbers)) for op in ops]
    best: tuple[int, int, int] | None = None
    for length in range(1, min(MOST, len(ops) // 2) + 1):
        run = 0
        for place in range(len(ops) - length):
            run = run + 1 if kinds[place] == kinds[place + length] else 0
            times = run // length + 1
            if run >= length and (best is None or times * length > best[1] * best[2]):
                start = place + length - times * length + 1
                if _carried(ops, start, length, times) is not None:
                    best = (start, length, times)
    return best


def _carried(ops: Sequence[Op], start: int, length: int, times: int) -> tuple[str, str] | None:
    """Names of the tensor that the first stretch takes from outside and of the one that it hands to the second.

    None where a stretch takes more than one tensor from the one before, or takes what comes from before all of them in
    different ways.
    """
    made = [
        {o.name: (n, p) for n, op in enumerate(ops[start + i * length : start + (i + 1) * length])
         for p, o in enumerate(op.outputs)}
        for i in range(times)
    ]  # fmt: skip
    handed: set[tuple[int, int]] = set()
    places: set[tuple[int, int]] = set()
    for i in range(times):
        own: set[str] = set()
        for n, op in enumerate(ops[start + i * length : start + (i + 1) * length]):
            for p, tensor in enumerate(op.inputs):
                if tensor.role is Role.WEIGHT or tensor.name in own:
                    continue
                if i and tensor.name in made[i - 1]:
                    handed.add(made[i - 1][tensor.name])
                    places.add((n, p))
                elif any(tensor.name in earlier for earlier in made[: max(0, i - 1)]):
                    return None
            own.update(o.name for o in op.outputs)
    if len(handed) != 1:
        return None
    taken = {ops[start + n].inputs[p].name for n, p in places}
    if len(taken) != 1:
        return None
    (n, p), first = next(iter(handed)), taken.pop()
    last = ops[start + n].outputs[p].name
    # The stream that comes in must not be read after the one that goes out has taken its name.
    if any(first == tensor.name for op in ops[start + n + 1 : start + length] for tensor in op.inputs):
        return None
    return first, last


def _output(stretch: Sequence[Op], name: str, first: Sequence[Op]) -> str:
    """The name that `name` of the first stretch has in another."""
    for here, there in zip(first, stretch, strict=True):
        for own, other in zip(here.outputs, there.outputs, strict=True):
            if own.name == name:
                return other.name
    raise AssertionError(name)


def _renamed(ops: Sequence[Op], names: dict[str, str]) -> list[Op]:
    def other(tensor: Tensor) -> Tensor:
        return replace(tensor, name=names[tensor.name]) if tensor.name in names else tensor

    return [
        replace(op, inputs=tuple(other(i) for i in op.inputs), outputs=tuple(other(o) for o in op.outputs))
        for op in ops
    ]


def _unique(ops: Sequence[Op]) -> tuple[Op, ...]:
    """The operators with names counted anew in their block."""
    counts: dict[str, int] = {}
    found = []
    for op in ops:
        stem = op.name.partition(".")[0]
        counts[stem] = counts.get(stem, 0) + 1
        found.append(replace(op, name=stem if counts[stem] == 1 else f"{stem}.{counts[stem]}"))
    return tuple(found)
