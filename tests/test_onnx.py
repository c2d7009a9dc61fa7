"""ONNX files as Traces: FLOPs of the zoo's models, layers folded, patterns found, and what is refused or told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sim import load_hardware, simulate
from sim.cli import app, run
from sim.config import ConfigError
from tests.method_cases import write_model
from workloads import load_workload, make_workload
from workloads.trace import AttentionAttrs, ElementwiseAttrs, MoveAttrs, OpKind, ReduceAttrs, Trace

pytest.importorskip("onnx")
from tests.onnx_models import Maker, decoder, encoder

LAYERS, HIDDEN, HEADS, FFN, VOCAB, POSITIONS = 4, 64, 4, 256, 1000, 128
DIMS = {"dims.batch": 2, "dims.sequence": 48}
DECODER = {
    "schema": "opcycle/model/1", "name": "tiny-onnx", "kind": "decoder", "layers": LAYERS, "hidden": HIDDEN,
    "vocab": VOCAB, "max_position": POSITIONS, "attention": {"heads": HEADS, "kv_heads": 2, "head_dim": 16},
    "ffn": {"hidden": FFN, "activation": "swiglu"}, "norm": {"kind": "rmsnorm"},
}  # fmt: skip
ENCODER = {
    **DECODER, "name": "tiny-onnx-encoder", "kind": "encoder", "position": "learned", "pooler": True,
    "attention": {"heads": HEADS, "kv_heads": HEADS, "head_dim": 16, "qkv_bias": True, "out_bias": True},
    "ffn": {"hidden": FFN, "activation": "gelu", "bias": True}, "norm": {"kind": "layernorm", "place": "post"},
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("onnx")
    return {
        "decoder": decoder(folder / "decoder.onnx", LAYERS, HIDDEN, HEADS, 2, FFN, VOCAB, POSITIONS),
        "encoder": encoder(folder / "encoder.onnx", LAYERS, HIDDEN, HEADS, FFN, VOCAB, POSITIONS),
        "tanh": encoder(folder / "tanh.onnx", LAYERS, HIDDEN, HEADS, FFN, VOCAB, POSITIONS, tanh=True),
        "strange": decoder(
            folder / "strange.onnx", LAYERS, HIDDEN, HEADS, 2, FFN, VOCAB, POSITIONS, extra="HardSigmoid"
        ),
    }


def loaded(path: Path, **settings: Any) -> Trace:
    return load_workload(path, {**DIMS, **settings}).trace()


def zoo(folder: Path, model: dict[str, Any], phase: str) -> Trace:
    scenario = {"schema": "opcycle/workload/1", "name": "same", "phase": phase, "batch": 2, "prompt": 48}
    return make_workload({**scenario, "model": write_model(folder, model)}).trace()


@pytest.mark.parametrize(("name", "model", "phase"), [("decoder", DECODER, "prefill"), ("encoder", ENCODER, "encode")])
def test_flops_are_those_of_the_zoo(
    files: dict[str, Path], tmp_path: Path, name: str, model: dict[str, Any], phase: str
) -> None:
    ours, theirs = loaded(files[name]), zoo(tmp_path, model, phase)
    assert ours.flops == pytest.approx(theirs.flops, rel=0.01)
    kinds = (OpKind.MATMUL, OpKind.ATTENTION)

    def by_kind(trace: Trace) -> list[int]:
        ops = [(op, block.repeat) for p in trace.passes for block in p.blocks for op in block.ops]
        return [sum(op.flops * times for op, times in ops if op.kind is kind) for kind in kinds]

    assert by_kind(ours) == by_kind(theirs), "same products, same attention"
    # Weights in 32 bits here; an encoder of the zoo has token types and no slice of its table besides.
    assert ours.weight_bytes == pytest.approx(2 * theirs.weight_bytes, rel=0.03)


def test_layers_are_folded(files: dict[str, Path]) -> None:
    blocks = loaded(files["decoder"]).passes[0].blocks
    assert [(block.name, block.repeat) for block in blocks] == [("before", 1), ("layers", LAYERS), ("after", 1)]
    layer = blocks[1].ops
    (attention,) = (op for op in layer if op.kind is OpKind.ATTENTION)
    assert isinstance(attention.attrs, AttentionAttrs)
    assert (attention.attrs.heads, attention.attrs.kv_heads, attention.attrs.head_dim) == (HEADS, 2, 16)
    assert attention.attrs.mask.kind == "causal"
    assert [(r.count, r.query, r.past) for r in attention.attrs.requests] == [(2, 48, 0)]
    norms = [op.attrs.function for op in layer if isinstance(op.attrs, ReduceAttrs)]
    assert norms == ["rmsnorm", "rmsnorm"]
    assert sum(op.kind is OpKind.MATMUL for op in layer) == 7
    assert layer[-1].outputs[0].name == "x"


@pytest.mark.parametrize("name", ["encoder", "tanh"])
def test_written_out_functions_are_one_operator(files: dict[str, Path], name: str) -> None:
    layer = next(block for block in loaded(files[name]).passes[0].blocks if block.repeat == LAYERS).ops
    functions = [op.attrs.function for op in layer if isinstance(op.attrs, ElementwiseAttrs | ReduceAttrs)]
    assert sorted(functions) == ["add", "add", "gelu", "layernorm", "layernorm"]
    (attention,) = (op for op in layer if op.kind is OpKind.ATTENTION)
    assert isinstance(attention.attrs, AttentionAttrs)
    assert attention.attrs.mask.kind == "full"


def test_the_mask_can_be_stated(files: dict[str, Path]) -> None:
    auto, causal, full = (loaded(files["decoder"], **s) for s in ({}, {"mask": "causal"}, {"mask": "full"}))
    assert auto.passes == causal.passes
    pairs = 2 * HEADS * LAYERS * (48 * 48 - 48 * 49 // 2)  # keys that a causal mask hides, of both requests
    assert full.flops - auto.flops == 2 * pairs * (16 + 16)


def test_sizes_follow_the_dimensions(files: dict[str, Path]) -> None:
    small, large = (
        loaded(files["encoder"]),
        load_workload(files["encoder"], {"dims.batch": 4, "dims.sequence": 48}).trace(),
    )
    assert large.flops == 2 * small.flops
    assert (small.batch, small.passes[0].tokens) == (2, 96)
    assert small.weight_bytes == large.weight_bytes


def test_what_nothing_covers_is_custom_and_told(files: dict[str, Path]) -> None:
    workload = load_workload(files["strange"], DIMS)
    assert any(f"HardSigmoid x {LAYERS}" in note for note in workload.notes)
    plain = loaded(files["decoder"])
    assert workload.trace().flops == plain.flops
    assert workload.trace().work.vector_ops == plain.work.vector_ops + LAYERS * 2 * 48 * HIDDEN
    assert not any("custom" in note for note in load_workload(files["decoder"], DIMS).notes)


@pytest.mark.parametrize("name", ["a100-roofline", "h200", "npu-hbm2", "plasticine-like"])
def test_files_run_on_machines(files: dict[str, Path], name: str) -> None:
    dims = {"dims.batch": 1, "dims.sequence": 16}
    workload = load_workload(files["decoder"], {**dims, "format": "bf16"})
    assert simulate(load_hardware(name), workload).summary["flops"] == workload.trace().flops
    stored = load_workload(files["decoder"], dims)  # in fp32
    if name == "npu-hbm2":
        with pytest.raises(ConfigError, match="fp32"):
            simulate(load_hardware(name), stored)
    if name == "h200":
        assert simulate(load_hardware(name), stored).summary["flops"] == workload.trace().flops


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dims.batch": 2}, "symbolic dimension 'sequence'"),
        ({**DIMS, "dims.sequenc": 3}, "nearest is 'sequence'"),
        ({**DIMS, "dims.batch": 0}, "whole number of at least 1"),
        ({**DIMS, "dims.batch": "many"}, "whole number of at least 1"),
        ({**DIMS, "format": "bf61"}, "nearest: bf16"),
        ({**DIMS, "mask": "casual"}, "nearest is 'causal'"),
        ({**DIMS, "batch": 2}, "allowed: dims, format, mask"),
    ],
)
def test_wrong_settings(files: dict[str, Path], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        load_workload(files["encoder"], settings)
    assert error.value.file == str(files["encoder"])


def test_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_text("schema: opcycle/workload/1\n", encoding="utf-8")
    m = Maker()
    sums = m.save(tmp_path / "sums.onnx", [("tokens", 1, [2, 3])], m.op("Add", "tokens", "tokens"))
    for path, words in ((broken, "no ONNX file"), (sums, "no matrix product"), (tmp_path / "none.onnx", "no such")):
        assert run(["trace", str(path), "-o", str(tmp_path / "t.json")]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "t.json").exists()


def test_the_command_writes_a_trace_that_is_read_back(files: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "t.json"
    sizes = ["--set", "workload.dims.batch=2", "--set", "workload.dims.sequence=48"]
    ran = CliRunner().invoke(app, ["trace", str(files["decoder"]), "-o", str(out), *sizes, "--json"])
    assert ran.exit_code == 0, ran.output
    assert "taken as causal" in ran.stderr
    told = json.loads(ran.stdout)
    again = load_workload(out).trace()
    assert told["flops"] == again.flops == loaded(files["decoder"]).flops
    assert again == loaded(files["decoder"])


def test_more_tokens_than_the_table_has_rows(tmp_path: Path) -> None:
    trace = loaded(decoder(tmp_path / "few.onnx", 1, 32, 2, 1, 64, 8, 64), **{"dims.batch": 2, "dims.sequence": 16})
    (gather,) = (op for p in trace.passes for b in p.blocks for op in b.ops if op.name == "embedding")
    assert gather.inputs[0].shape == (8, 32)
    assert isinstance(gather.attrs, MoveAttrs)
    assert gather.attrs.rows == 32
