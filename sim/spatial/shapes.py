"""What an operator asks of a section: how many rows, in which groups, and which tensors must leave it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from sim.errors import ConfigError
from sim.spatial.machine import StreamMachine
from sim.spatial.rates import up
from sim.spatial.visible import LOOKS_AHEAD
from sim.tiers import DEVICE
from workloads.trace import (
    CARRIED,
    AttentionAttrs,
    Block,
    CollectiveAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    Role,
)


def groups_of(op: Op) -> tuple[int, ...]:
    """Rows of each group that has weights of its own, or keys that its first row waits for; one where none has."""
    attrs = op.attrs
    if isinstance(attrs, MatmulAttrs):
        if attrs.group_m:
            return tuple(m for m in attrs.group_m if m)
        shared = op.inputs[1].elements < attrs.batch * attrs.k * attrs.n
        return (attrs.batch * attrs.m,) if shared else (attrs.m,) * attrs.batch
    if isinstance(attrs, AttentionAttrs) and attrs.mask.kind in LOOKS_AHEAD:
        return tuple(span.query for span in attrs.requests for _ in range(span.count))
    return (rows_of(op),)


def rows_of(op: Op) -> int:
    """Rows that stream through an operator."""
    attrs = op.attrs
    if isinstance(attrs, MatmulAttrs):
        return sum(groups_of(op))
    if isinstance(attrs, AttentionAttrs):
        return attrs.tokens
    if isinstance(attrs, MoveAttrs):
        return attrs.rows
    tensors = [t for t in op.inputs if t.role is Role.ACTIVATION] or list(op.outputs)
    return tensors[0].shape[0] if tensors and tensors[0].shape else 1


@dataclass(frozen=True)
class Layout:
    """How the rows of a section are cut into tokens: at most `block` rows of one group each."""

    groups: tuple[int, ...]
    block: int

    @property
    def rows(self) -> int:
        return sum(self.groups)

    @property
    def per_group(self) -> list[int]:
        """Tokens of each group."""
        return [up(m, self.block) for m in self.groups]

    @property
    def blocks(self) -> int:
        """Tokens of all groups."""
        return sum(self.per_group)


def common_groups(ops: Iterable[Op]) -> tuple[int, ...] | None:
    """The groups that all of `ops` can keep to; None where their rows don't agree."""
    found: tuple[int, ...] | None = None
    attention = False
    for op in ops:
        mine = groups_of(op)
        attention |= op.kind is OpKind.ATTENTION and len(mine) == 1
        if found is None or (sum(mine) == sum(found) and len(found) == 1):
            found = mine
        elif sum(mine) != sum(found) or (len(mine) > 1 and mine != found):
            return None
        if attention and len(found) > 1:
            return None
    return found


def check(machine: StreamMachine, block: Block) -> None:
    """Raise ConfigError for an operator that the machine has no unit for."""
    for op in block.ops:
        key = f"{block.name}.{op.name}"
        for tensor in (*op.inputs, *op.outputs):
            if tensor.tier != DEVICE and op.kind is not OpKind.TRANSFER:
                raise ConfigError(
                    f"operator {op.name} works on {tensor.name}, which lives in tier {tensor.tier!r}, but "
                    f"{machine.name} streams from its own memory only", key=key)  # fmt: skip
        if op.kind in (OpKind.TRANSFER, OpKind.CUSTOM) or (
            isinstance(op.attrs, CollectiveAttrs) and op.attrs.group > 1
        ):
            why = {
                OpKind.TRANSFER: "has no links to further memories",
                OpKind.CUSTOM: "cannot tell how an operator without a shape would be cut into streams",
                OpKind.COLLECTIVE: "is one device and has no links to others",
            }[op.kind]
            raise ConfigError(f"operator {op.name} is a {op.kind}, but {machine.name} {why}", key=key)
        if op.kind in (OpKind.MATMUL, OpKind.ATTENTION) and op.inputs[0].format not in machine.formats:
            raise ConfigError(
                f"operator {op.name} multiplies {op.inputs[0].format}, but {machine.name} multiplies only "
                f"{', '.join(machine.formats)}", key="compute_tiles.formats")  # fmt: skip


def exposed(block: Block) -> set[str]:
    """Names that a block reads before it writes them."""
    written: set[str] = set()
    found: set[str] = set()
    for op in block.ops:
        found |= {t.name for t in op.inputs} - written
        written |= {t.name for t in op.outputs}
    return found


def leaves(block: Block, last: int, name: str, role: Role, outside: set[str]) -> bool:
    """Whether tensor `name`, written at or before operator `last` of a section that ends there, must go to memory."""
    if role is Role.KV:
        return True
    for op in block.ops[last + 1 :]:
        if any(t.name == name for t in op.inputs):
            return True
        if any(t.name == name for t in op.outputs):
            return False
    read = any(t.name == name for op in block.ops for t in op.inputs)
    return name in outside or name == CARRIED or not read
