"""Sections of a pass with attention in memory: every operator of every layer once, after those that it needs."""

from __future__ import annotations

from collections import Counter

import pytest

from sim.errors import ConfigError
from sim.pim.parts import Part, cut_lengths, part_number, part_of
from sim.pim.schedule import Stretch, handed_on, interleaved, layer_by_layer
from workloads.build import Builder, decode_passes
from workloads.models import Model
from workloads.trace import AttentionAttrs, Block, OpKind, Role

LENGTHS = [100, 7, 7, 300]


def layers(repeat: int = 5, lengths: list[int] = LENGTHS, **changes: object) -> Block:
    data: dict[str, object] = {
        "schema": "opcycle/model/1", "name": "t", "layers": repeat, "hidden": 64, "vocab": 96, "max_position": 4096,
        "attention": {"heads": 4, "kv_heads": 2, "head_dim": 16},
        "ffn": {"hidden": 128, "activation": "swiglu"}, "norm": {"kind": "rmsnorm"},
    }  # fmt: skip
    model = Model.model_validate({**data, **changes})
    (found,) = (b for b in decode_passes(Builder(model), lengths)[0].blocks if b.name == "layers")
    return found


def parts(first: tuple[int, ...], second: tuple[int, ...]) -> tuple[Part, Part]:
    total = len(first) + len(second)
    return Part(0, first, total), Part(1, second, total)


HALVES = parts((300, 7), (100, 7))


def unrolled(stretches: list[Stretch]) -> list[tuple[int, str]]:
    """(layer, operator) in the order of the sections."""
    return [
        (stretch.layer + turn + ahead, op.name)
        for stretch in stretches
        for turn in range(stretch.repeat)
        for section in stretch.sections
        for op, ahead in zip(section.block.ops, section.layers, strict=True)
    ]


@pytest.mark.parametrize("apart", [True, False])
@pytest.mark.parametrize("repeat", [1, 2, 5])
@pytest.mark.parametrize("halved", [True, False])
def test_every_operator_runs_once_a_layer_and_after_those_before_it(apart: bool, repeat: int, halved: bool) -> None:
    block = layers(repeat)
    order = unrolled(interleaved(block, HALVES, apart) if halved else layer_by_layer(block, apart))
    names = [op.name for op in block.ops]
    for number in range(2) if halved else (None,):
        # Operators of a part have its number at the end of their names.
        suffix = "" if number is None else f"#{number}"
        mine = [entry for entry in order if entry[1].endswith(suffix)]
        assert mine == [(layer, name + suffix) for layer in range(repeat) for name in names]
    assert Counter(order).most_common(1)[0][1] == 1


def test_stages_overlap_one_part_s_attention_with_the_other_s_products() -> None:
    stretches = interleaved(layers(3), HALVES, apart=True)
    stages = {s.block.name[-1]: [op.name for op in s.block.ops] for x in stretches for s in x.sections}
    assert list(stages) == list("ABCDEF")
    assert [x.repeat for x in stretches] == [1, 2, 1]
    attention = {letter: [n for n in names if n.startswith("attention")] for letter, names in stages.items()}
    assert attention == {
        "A": [], "B": ["attention#0"], "C": ["attention#1"], "D": ["attention#0"], "E": ["attention#1"], "F": [],
    }  # fmt: skip
    assert {n.partition("#")[2] for n in stages["C"] if "attention" not in n and "append" not in n} == {"0"}
    assert "qkv#0" in stages["C"] and "out_proj#0" in stages["C"] and "qkv#1" in stages["D"]


def test_parts_add_up_to_the_whole() -> None:
    block = layers()
    keys = next(op.attrs.keys for op in block.ops if isinstance(op.attrs, AttentionAttrs))
    for op in block.ops:
        cut = [part_of(op, part, keys) for part in HALVES]
        assert sum(each.macs for each in cut) == op.macs
        assert sum(each.vector_ops for each in cut) == op.vector_ops
        assert [part_number(each) for each in cut] == [0, 1]
        for tensors in zip(op.inputs, *(each.inputs for each in cut), strict=True):
            whole, *pieces = tensors
            if whole.role is Role.WEIGHT:
                assert all(piece == whole for piece in pieces)
            else:
                assert sum(piece.elements for piece in pieces) == whole.elements
    spans = next(op.attrs.requests for op in block.ops if isinstance(op.attrs, AttentionAttrs))
    assert sorted(cut_lengths(spans)) == sorted(LENGTHS)


def test_sections_hand_on_what_later_ones_read() -> None:
    sections = [s for x in interleaved(layers(), HALVES, apart=False) for s in x.sections]
    names = set(handed_on(sections))
    assert {"x#0", "x#1"} <= names
    # In the steady section the second part's attention needs what the first section made of its query.
    assert any(name.endswith("#1") and name[0] in "q" for name in names)
    assert all(size > 0 for name, size in handed_on(sections).items() if name != "x")


def test_what_cannot_be_divided_is_refused() -> None:
    moe = {"ffn": None, "moe": {"experts": 4, "top_k": 2, "hidden": 32}}
    with pytest.raises(ConfigError, match="works expert by expert"):
        interleaved(layers(**moe), HALVES, apart=False)
    block = layers()
    twice = Block("twice", 2, tuple(op for op in block.ops if op.kind is OpKind.ATTENTION) * 2)
    with pytest.raises(ConfigError, match="has not one attention operator"):
        interleaved(twice, HALVES, apart=False)
    assert [x.repeat for x in layer_by_layer(twice, apart=False)] == [2]
