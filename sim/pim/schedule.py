"""In which order the operators of a pass run on a machine with units in its memory, and which of them run together.

Without overlap a layer is one section. With two parts of the batch, one part's attention runs in memory while the NPU
works on the other part (Heo et al., NeuPIMs, ASPLOS 2024):

    section  together
    first    A: the first half layer of part 0    B: attention of part 0, first half layer of part 1
    steady   C: attention of part 1, rest of the layer and next first half of part 0    D: the same with parts swapped
    last     E: attention of part 1, rest of the layer of part 0    F: rest of the layer of part 1

so that n layers take first + (n - 1) steady + last. A section starts when the one before has ended, on an idle machine
with the memory's refresh at its start, as a pass does; therefore equal sections are simulated once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.errors import ConfigError
from sim.pim.parts import Part, part_of
from workloads.trace import CARRIED, AttentionAttrs, Block, Op, OpKind, Role


@dataclass(frozen=True, slots=True)
class Section:
    """Operators that are lowered together. `block` has them; `home` is the trace's block; `layers`: of each operator,
    how many layers it is ahead of the section's first.
    """

    block: Block
    home: str
    layers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Stretch:
    """Sections one after another, `repeat` times over; `layer` is that of the first."""

    sections: tuple[Section, ...]
    repeat: int
    layer: int = 0


def plain(block: Block) -> list[Stretch]:
    """A block as it is, all its layers together."""
    return [Stretch((Section(block, block.name, (0,) * len(block.ops)),), 1)]


def layer_by_layer(block: Block, apart: bool) -> list[Stretch]:
    """One layer after another, cut where attention begins, so that loads for the next layer overlap the end of one.

    `apart`: cut between layers. A block of several layers is cut there, too.
    """
    cut = _cut(block)
    if apart or cut is None:
        return [Stretch((Section(replace(block, repeat=1), block.name, (0,) * len(block.ops)),), block.repeat)]
    before, rest = block.ops[: cut[0]], block.ops[cut[0] :]

    def section(letters: str, ops: tuple[Op, ...], ahead: int) -> Section:
        layers = (0,) * (len(ops) - ahead) + (1,) * ahead
        return Section(Block(f"{block.name}.{letters}", 1, ops), block.name, layers)

    stretches = [
        Stretch((section("first", before, 0),), 1),
        Stretch((section("steady", rest + before, len(before)),), block.repeat - 1),
        Stretch((section("last", rest, 0),), 1, block.repeat - 1),
    ]
    return [stretch for stretch in stretches if stretch.repeat and stretch.sections[0].block.ops]


def _cut(block: Block) -> tuple[int, int] | None:
    """Where attention begins, with the append of the newest position, and where it ends; None if there is not one.

    Appending goes with attention, because nothing waits for it and it overlaps with what the NPU does meanwhile.
    """
    found = [i for i, op in enumerate(block.ops) if op.kind is OpKind.ATTENTION]
    if len(found) != 1:
        return None
    begin = found[0]
    while begin and getattr(block.ops[begin - 1].attrs, "table", "") == "kv_append":
        begin -= 1
    return begin, found[0] + 1


def interleaved(block: Block, parts: Sequence[Part], apart: bool) -> list[Stretch]:
    """Two parts of the batch taking turns. `apart`: A to F each on its own, with all idle between them.

    Raises ConfigError for a block of several layers, or one whose operators cannot be divided.
    """
    cut = _cut(block)
    if cut is None:
        raise ConfigError(
            f"block {block.name} has not one attention operator a repetition; two parts of a batch can be overlapped "
            "where all layers are alike",
            key="pim.interleave",
        )
    begin, end = cut
    attrs = block.ops[end - 1].attrs
    assert isinstance(attrs, AttentionAttrs)
    ops = [[part_of(op, part, attrs.keys) for op in block.ops] for part in parts]
    before, attention, after = [o[:begin] for o in ops], [o[begin:end] for o in ops], [o[end:] for o in ops]

    def section(letters: str, *pieces: tuple[list[Op], int]) -> Section:
        ops = tuple(op for piece, _ in pieces for op in piece)
        layers = tuple(layer for piece, layer in pieces for _ in piece)
        return Section(Block(f"{block.name}.{letters}", 1, ops), block.name, layers)

    # Attention comes first in each stage, so that what it needs of vector units and DMA is not kept waiting.
    a = ((before[0], 0),)
    b = ((attention[0], 0), (before[1], 0))
    c = ((attention[1], 0), (after[0], 0), (before[0], 1))
    d = ((attention[0], 1), (after[1], 0), (before[1], 1))
    e = ((attention[1], 0), (after[0], 0))
    f = ((after[1], 0),)
    if apart:
        stretches = [
            Stretch((section("A", *a), section("B", *b)), 1),
            Stretch((section("C", *c), section("D", *d)), block.repeat - 1),
            Stretch((section("E", *e), section("F", *f)), 1, block.repeat - 1),
        ]
    else:
        stretches = [
            Stretch((section("AB", *a, *b),), 1),
            Stretch((section("CD", *c, *d),), block.repeat - 1),
            Stretch((section("EF", *e, *f),), 1, block.repeat - 1),
        ]
    return [stretch for stretch in stretches if stretch.repeat]


def handed_on(sections: Sequence[Section]) -> dict[str, int]:
    """The residual stream, and other activations that one section leaves to a later one or to itself the next time,
    with their bytes.
    """
    made = {t.name for s in sections for op in s.block.ops for t in op.outputs if t.role is Role.ACTIVATION}
    found: dict[str, int] = {CARRIED: 0}
    for each in sections:
        here: set[str] = set()
        for op in each.block.ops:
            for tensor in op.inputs:
                if tensor.role is Role.ACTIVATION and tensor.name in made and tensor.name not in here:
                    found[tensor.name] = 0
            here.update(t.name for t in op.outputs)
    for each in sections:
        for op in each.block.ops:
            for tensor in (*op.inputs, *op.outputs):
                if tensor.name in found:
                    found[tensor.name] = max(found[tensor.name], tensor.resident_bytes)
    return found
