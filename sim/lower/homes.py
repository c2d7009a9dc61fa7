"""Decides where each activation of a block lives (on chip or in DRAM) and which vector operators ride on a matmul.

A vector operator that is the only reader of a matmul's result is applied to each output tile before it leaves the chip.
Any other activation stays in the activation part of the scratchpad for as long as it is needed if there is room for it
at every moment of its life; else it goes through DRAM.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.lower.builder import Space
from sim.tiers import DEVICE
from workloads.trace import Block, ElementwiseAttrs, Op, OpKind, Role, Tensor

CARRIED = "x"
ALONE = frozenset({CARRIED})
"""The tensors that blocks hand on to each other: the residual stream, unless a schedule cuts layers elsewhere."""
PASSING = (Role.ACTIVATION, Role.INDEX)


@dataclass(frozen=True, slots=True)
class Home:
    """Where a tensor is: on chip, or at `offset` bytes of a DRAM space; readable once the `ready` tasks have ended."""

    on_chip: bool
    space: Space = Space.ACTIVATION
    offset: int = 0
    ready: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Operators lowered together: the first does the work, the others are applied to its output tiles."""

    ops: tuple[int, ...]


def versions(ops: Sequence[Op], carried: frozenset[str] = ALONE) -> tuple[Op, ...]:
    """The operators with every rewritten activation renamed (`q`, `q'2`, ...), so that a name stands for one value.

    Carried tensors keep their names: they are rewritten in place.
    """
    written: dict[str, int] = {}

    def current(tensor: Tensor) -> Tensor:
        count = written.get(tensor.name, 0)
        return replace(tensor, name=f"{tensor.name}'{count}") if count > 1 else tensor

    renamed = []
    for op in ops:
        inputs = tuple(current(t) for t in op.inputs)
        for tensor in op.outputs:
            if tensor.role in PASSING and tensor.name not in carried:
                written[tensor.name] = written.get(tensor.name, 0) + 1
        outputs = tuple(current(t) for t in op.outputs)
        same = inputs == op.inputs and outputs == op.outputs
        renamed.append(op if same else replace(op, inputs=inputs, outputs=outputs))
    return tuple(renamed)


def readers(ops: Sequence[Op]) -> dict[str, list[int]]:
    """Which operators read each tensor."""
    found: dict[str, list[int]] = {}
    for index, op in enumerate(ops):
        for name in dict.fromkeys(t.name for t in op.inputs):
            found.setdefault(name, []).append(index)
    return found


def groups(ops: Sequence[Op], carried: frozenset[str] = ALONE, riding: bool = True) -> list[Group]:
    """Split a block into groups: a matmul with the elementwise operators that can ride on its tiles, or one operator.

    An operator rides if it alone reads the result so far; rotary also if the rest of the result goes to the KV cache
    only. Without `riding`, every operator is alone.
    """
    if not riding:
        return [Group((index,)) for index in range(len(ops))]
    reads = readers(ops)
    found: list[Group] = []
    index = 0
    while index < len(ops):
        members = [index]
        if ops[index].kind is OpKind.MATMUL and len(ops[index].outputs) == 1:
            while index + 1 < len(ops) and _rides(ops, ops[index], index + 1, reads, carried):
                index += 1
                members.append(index)
                if len(ops[index].outputs) != 1:
                    break
        found.append(Group(tuple(members)))
        index += 1
    return found


def _rides(ops: Sequence[Op], before: Op, number: int, reads: dict[str, list[int]], carried: frozenset[str]) -> bool:
    result, op = before.outputs[0].name, ops[number]
    if op.kind is not OpKind.ELEMENTWISE or result in carried:
        return False
    users = reads.get(result, [])
    if users == [number]:
        return len(op.outputs) == 1
    rest = [ops[i] for i in users if i != number]
    return (
        number in users
        and isinstance(op.attrs, ElementwiseAttrs)
        and op.attrs.function == "rotary"
        and all(o.kind in (OpKind.SCATTER, OpKind.ATTENTION) for o in rest)
    )


def on_chip(
    blocks: Sequence[Block], share_bytes: int, carried: frozenset[str] = ALONE, riding: bool = True
) -> dict[str, frozenset[str]]:
    """Names of the activations that stay on chip, for each block by name.

    A carried tensor stays only if it does so in every block, because one block hands it to the next. Anything else
    that one block leaves to another goes through DRAM.
    """
    outside = {name for block in blocks for name in _taken_from_outside(block.ops)} - carried
    staying = carried
    while True:
        kept = {
            block.name: _keep(groups(ops, carried, riding), ops, share_bytes, carried, staying, outside)
            for block in blocks
            for ops in (versions(block.ops, carried),)
        }
        lost = {name for name in staying for names in kept.values() if name not in names}
        if not lost:
            return kept
        staying -= lost


def _taken_from_outside(ops: Sequence[Op]) -> set[str]:
    made: set[str] = set()
    taken: set[str] = set()
    for op in ops:
        taken.update(t.name for t in op.inputs if t.role in PASSING and t.name not in made)
        made.update(t.name for t in op.outputs)
    return taken


def _keep(
    parts: Sequence[Group], ops: Sequence[Op], share_bytes: int, carried: frozenset[str], staying: frozenset[str],
    outside: set[str],
) -> frozenset[str]:  # fmt: skip
    size: dict[str, int] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for step, part in enumerate(parts):
        inside = {ops[i].outputs[0].name for i in part.ops[:-1]} if len(ops[part.ops[-1]].outputs) == 1 else set()
        for i in part.ops:
            for tensor in (*ops[i].inputs, *ops[i].outputs):
                lives = tensor.role is Role.ACTIVATION and tensor.tier == DEVICE
                if lives and tensor.name not in inside and tensor.name not in outside:
                    size[tensor.name] = max(size.get(tensor.name, 0), tensor.resident_bytes)
                    first.setdefault(tensor.name, step)
                    last[tensor.name] = step
    # A carried tensor is there from the first operator to the last, and its new value is written beside the old one.
    for name in carried:
        first[name], last[name] = 0, len(parts) - 1
        size[name] = 2 * size.get(name, 0)
    load = [0] * len(parts)
    kept = set()
    for name in sorted(size, key=lambda n: (n not in carried, first[n], n)):
        if name in carried and name not in staying:
            continue
        life = range(first[name], last[name] + 1)
        if all(load[step] + size[name] <= share_bytes for step in life):
            kept.add(name)
            for step in life:
                load[step] += size[name]
    return frozenset(kept)
