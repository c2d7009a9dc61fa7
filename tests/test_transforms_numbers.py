"""Primitives of sparsity, number formats and transforms around products against closed forms."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from sim.config import ConfigError
from tests.method_cases import small
from tests.transform_cases import ATTENTION_WEIGHTS, FFN_WEIGHTS, HIDDEN, LAYERS, NEURONS, ops, traces
from workloads.sparsity import parse_sparsity
from workloads.transforms.sparsity import effective_flops


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


# --- sparsity


def test_weight_sparsity_marks_and_saves_nothing_by_itself(folder: Path) -> None:
    before, after = traces(folder, "decode", {"wsparse": {"pattern": "2:4"}}, steps=1)
    assert after.work == before.work
    assert {op.inputs[1].sparsity for op, _ in ops(after, "down")} == {parse_sparsity("2:4")}
    assert {op.inputs[1].sparsity for op, _ in ops(after, "lm_head")} == {None}
    linears = 2 * 3 * LAYERS * (ATTENTION_WEIGHTS + FFN_WEIGHTS)
    assert before.flops - effective_flops(after) == linears // 2
    short = small(folder, "decode", sparsity="2:4", steps=1).trace()
    assert short.passes == after.passes


@pytest.mark.parametrize("batch", [1, 3])
def test_activation_sparsity_reads_the_union(folder: Path, batch: int) -> None:
    density = 0.25
    share = Fraction(1, 4) if batch == 1 else 1 - Fraction(3, 4) ** batch
    sparse = {"asparse": {"of": "neurons", "density": density}}
    before, after = traces(folder, "decode", sparse, batch=batch, steps=1)
    kept = int(NEURONS * share + Fraction(1, 2))
    assert before.flops - after.flops == 2 * batch * LAYERS * 3 * HIDDEN * (NEURONS - kept)
    assert after.weight_bytes == before.weight_bytes
    inputs = {"asparse": {"of": "inputs", "density": 0.5, "union": 0.75, "where": {"operators": ["down"]}}}
    before, after = traces(folder, "decode", inputs, batch=batch, steps=1)
    kept = NEURONS // 2 if batch == 1 else NEURONS * 3 // 4
    assert before.flops - after.flops == 2 * batch * LAYERS * HIDDEN * (NEURONS - kept)
    assert {op.inputs[0].elements for op, _ in ops(after, "down")} == {batch * kept}


def test_predictors_cost_their_products(folder: Path) -> None:
    base = {"of": "neurons", "density": 0.25, "union": 0.25}
    plain = small(folder, "decode", [{"asparse": base}], batch=2, steps=1).trace()
    for predictor, macs, weights in (
        ("linear", HIDDEN * NEURONS, HIDDEN * NEURONS),
        ("low_rank", 8 * (HIDDEN + NEURONS), 8 * (HIDDEN + NEURONS)),
        ("partial", 8 * NEURONS, 0),
    ):
        method = {"asparse": {**base, "predictor": predictor, "rank": 8}}
        after = small(folder, "decode", [method], batch=2, steps=1).trace()
        assert after.flops - plain.flops == 2 * 2 * LAYERS * macs
        assert after.weight_bytes - plain.weight_bytes == 2 * LAYERS * weights


@pytest.mark.parametrize("text", ["4:2", "0:4", "random:1.5", "random:", "block:0x4:0.5", "block:4x4:0", "half"])
def test_bad_patterns(text: str) -> None:
    with pytest.raises(ValueError, match="is '"):
        parse_sparsity(text)


# --- values


def test_formats_scale_bytes(folder: Path) -> None:
    only = {"weights": "int4", "kv": "int8", "where": {"roles": ["attention", "ffn"]}}
    before, after = traces(folder, "decode", {"dtype": only}, steps=1)
    assert before.weight_bytes - after.weight_bytes == LAYERS * (ATTENTION_WEIGHTS + FFN_WEIGHTS) * 3 // 2
    assert after.kv_bytes * 2 == before.kv_bytes
    assert after.flops == before.flops
    online = {"activations": "int8", "online": True, "where": {"operators": ["down"]}}
    before, after = traces(folder, "decode", {"dtype": online}, steps=1)
    assert after.vector_ops - before.vector_ops == 3 * 3 * NEURONS * LAYERS
    assert {op.inputs[0].format for op, _ in ops(after, "down")} == {"int8"}


def test_transforms_around_products(folder: Path) -> None:
    def change(**params: Any) -> tuple[int, int]:
        method = {"xform": {**params, "where": {"operators": ["down"]}}}
        before, after = traces(folder, "decode", method, steps=1)
        return after.flops - before.flops, after.vector_ops - before.vector_ops

    rows = 3 * LAYERS
    assert change(kind="hadamard", block=32) == (0, rows * NEURONS * (5 + 1))
    assert change(kind="hadamard") == (0, rows * NEURONS * (8 + 1))
    assert change(kind="hadamard", block=32, unit="array") == (2 * rows * NEURONS * 32, 0)
    assert change(kind="affine", block=32) == (2 * rows * NEURONS * 32, 0)
    assert change(kind="rotation") == (2 * rows * NEURONS * NEURONS, 0)
    assert change(kind="rotation", side="output") == (2 * rows * HIDDEN * HIDDEN, 0)
    assert change(kind="permutation") == (0, 0)
    with pytest.raises(ConfigError, match="does not divide"):
        change(kind="affine", block=48)
