"""The trace file: round trips, stable text, refusals, and the example of the documentation."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sim.config import ConfigError
from workloads import load_workload, read_trace, write_trace
from workloads.scenario import make_workload, workload_names
from workloads.trace import (
    AttentionAttrs,
    Block,
    CollectiveAttrs,
    CustomAttrs,
    Mask,
    Op,
    OpKind,
    Pass,
    RequestSpan,
    Role,
    Sparsity,
    Tensor,
    Trace,
    TransferAttrs,
)
from workloads.trace_file import TRACE_SCHEMA, trace_schema, trace_text

ROOT = Path(__file__).resolve().parent.parent


def small(**keys: Any) -> Trace:
    facts = {"model": "llama-3.2-1b", "phase": "decode", "batch": 2, "context": 7, "steps": 2, **keys}
    return make_workload({"schema": "opcycle/workload/1", "name": "small", **facts}).trace()


@pytest.mark.parametrize("name", workload_names())
def test_every_scenario_survives_the_round_trip(name: str, tmp_path: Path) -> None:
    trace = load_workload(name).trace()
    write_trace(trace, tmp_path / "t.json")
    again = read_trace(tmp_path / "t.json")
    assert again == trace
    assert trace_text(again) == (tmp_path / "t.json").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]


def test_a_trace_file_is_a_workload(tmp_path: Path) -> None:
    trace = small()
    write_trace(trace, tmp_path / "mine.json")
    workload = load_workload(tmp_path / "mine.json")
    assert workload.name == dict(trace.meta)["workload"]
    assert workload.trace() == trace
    write_trace(replace(trace, meta=()), tmp_path / "mine.json")
    assert load_workload(tmp_path / "mine.json").name == "mine"
    with pytest.raises(ConfigError, match="a trace file is fixed"):
        load_workload(tmp_path / "mine.json", batch=3)
    with pytest.raises(ConfigError, match="no scenario"):
        workload.resolved()


def test_text_is_one_operator_a_line_with_sorted_keys() -> None:
    trace = small(steps=1)
    lines = trace_text(trace).splitlines()
    ops = [json.loads(line.rstrip(",")) for line in lines if line.strip().startswith('{"attrs"')]
    assert len(ops) == sum(len(block.ops) for block in trace.passes[0].blocks)
    assert all(list(op) == sorted(op) for op in ops)
    other = trace_text(small(steps=1, context=8)).splitlines()
    changed = [line for line, new in zip(lines, other, strict=True) if line != new]
    assert len(changed) == 1
    assert '"attention"' in changed[0]


def test_reading_shares_equal_operators(tmp_path: Path) -> None:
    write_trace(small(steps=8), tmp_path / "t.json")
    trace = read_trace(tmp_path / "t.json")
    distinct = {id(op) for p in trace.passes for block in p.blocks for op in block.ops}
    assert len(distinct) == sum(len(block.ops) for block in trace.passes[0].blocks) + 7


TENSORS = st.builds(
    Tensor,
    st.sampled_from(["a", "b.weight", "ü"]),
    st.lists(st.integers(1, 9), min_size=1, max_size=3).map(tuple),
    st.sampled_from(["fp16", "nvfp4", "int32"]),
    st.sampled_from([Role.GRADIENT, Role.OPTIMIZER, Role.KV]),
    sparsity=st.sampled_from(
        [None, Sparsity("n:m", 0.5, 2, 4), Sparsity("block", 0.25, block=(8, 8)), Sparsity("unstructured", 0.1)]
    ),
    tier=st.sampled_from(["device", "host"]),
)
MASKS = st.sampled_from(
    [
        Mask("causal"),
        Mask("window", window=4, sinks=1),
        Mask("chunk", window=3),
        Mask("block", block=4),
        Mask("tree", parents=(-1, 0, 0)),
        Mask("top_k", top_k=5),
        Mask("block_sparse", block=4, density=0.25),
    ]
)


@st.composite
def op_and_attrs(draw: st.DrawFn) -> Op:
    """Operators of the kinds that no model builds yet, and attention under every mask."""
    kind = draw(st.sampled_from([OpKind.COLLECTIVE, OpKind.TRANSFER, OpKind.CUSTOM, OpKind.ATTENTION]))
    inputs = tuple(draw(st.lists(TENSORS, max_size=2)))
    if kind is OpKind.COLLECTIVE:
        return Op("op", kind, "link", inputs, inputs, CollectiveAttrs("all_reduce", draw(st.integers(0, 99)), 8))
    if kind is OpKind.TRANSFER:
        return Op("op", kind, "link", inputs, inputs, TransferAttrs("host", "device", draw(st.integers(0, 99))))
    if kind is OpKind.CUSTOM:
        return Op("op", kind, "other", inputs, inputs, CustomAttrs(2, 1, 4, draw(st.integers(0, 9)), "array"))
    attrs = AttentionAttrs(4, 2, 8, 8, draw(MASKS), (RequestSpan(2, 3, 5),), latent=draw(st.booleans()))
    out = Tensor("o", (6, 32), "fp16", Role.ACTIVATION)
    query = Tensor("q", (6, 32), "fp16", Role.ACTIVATION)
    return Op("op", kind, "attention", (query, query), (out,), attrs)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(op=op_and_attrs(), shared=st.booleans(), model=st.sampled_from(["", "draft"]))
def test_everything_that_a_trace_can_hold_survives(op: Op, shared: bool, model: str, tmp_path: Path) -> None:
    block = Block("b", 3, (op,), weights_shared=shared)
    p = Pass("p", "train", (block,), 5, 1, repeat=2, model=model, device="npu1")
    trace = Trace("m", 4, (p,), methods=("one", "two"), meta=(("a", 1), ("b", "two")))
    write_trace(trace, tmp_path / "t.json")
    assert read_trace(tmp_path / "t.json") == trace


def edited(tmp_path: Path, change: Any) -> Path:
    """The file of a small trace after `change` has edited its data."""
    data = json.loads(trace_text(small(steps=1)))
    change(data)
    path = tmp_path / "t.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def op_named(data: Any, name: str) -> Any:
    return next(op for block in data["passes"][0]["blocks"] for op in block["ops"] if op["name"] == name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.update(schema="opcycle/trace/3"), "written by a newer opcycle"),
        (lambda d: d.update(schema="opcycle/workload/1"), "but a trace has 'opcycle/trace/2'"),
        (lambda d: d.pop("schema"), "but a trace has 'opcycle/trace/2'"),
        (lambda d: d.update(passes=[]), "at least one pass"),
        (lambda d: d.update(pases=1), "passes"),
        (lambda d: d.pop("batch"), "batch: is missing"),
        (lambda d: d.update(batch="2"), "must be a whole number"),
        (lambda d: d.update(batch=True), "must be a whole number"),
        (lambda d: d.update(batch=-2), "batch >= 1"),
        (lambda d: d["passes"][0]["blocks"][1].update(repeat=0), "repeat >= 1"),
        (lambda d: op_named(d, "qkv").update(kind="matmull"), "matmul"),
        (lambda d: op_named(d, "qkv")["attrs"].update(n=5), "the attributes mean"),
        (lambda d: op_named(d, "qkv")["attrs"].update(n=2.5), "must be a whole number"),
        (lambda d: op_named(d, "qkv")["attrs"].pop("k"), "attrs.k: is missing"),
        (lambda d: op_named(d, "qkv")["inputs"][1].update(format="fp17"), "unknown number format 'fp17'"),
        (lambda d: op_named(d, "qkv")["inputs"][1].update(shape=[2048, -1]), "sizes must be positive"),
        (lambda d: op_named(d, "qkv").update(name="rotary"), "stands twice in its block"),
        (lambda d: op_named(d, "qkv")["inputs"][0].update(name="act"), "made only afterwards"),
        (lambda d: op_named(d, "embedding")["outputs"][0].update(name="y"), "no earlier block makes"),
        (lambda d: op_named(d, "attention")["attrs"]["mask"].update(kind="casual"), "causal"),
        (lambda d: op_named(d, "attention")["attrs"].update(requests=[]), "at least one request"),
    ],
)
def test_wrong_files_are_one_sentence(change: Any, words: str, tmp_path: Path) -> None:
    path = edited(tmp_path, change)
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        read_trace(path)
    assert caught.value.file == str(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "{", '{"schema": "opcycle/trace/1", "schema": 2}', "nothing"])
def test_files_that_are_no_traces(text: str, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError):
        read_trace(path)


def test_nothing_half_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        write_trace(small(), tmp_path / "no" / "t.json")
    assert list(tmp_path.iterdir()) == []


def schema_of(schema: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = schema["$defs"][name]
    return found


def test_json_schema_lists_what_the_reader_takes() -> None:
    schema = trace_schema()
    assert schema["properties"]["schema"] == {"enum": ["opcycle/trace/1", TRACE_SCHEMA]}
    assert set(schema["required"]) == {"schema", "model", "batch", "passes"}
    assert set(schema_of(schema, "Op")["required"]) == {"name", "kind", "role", "inputs", "outputs", "attrs"}
    assert "window" in schema_of(schema, "Mask")["properties"]
    assert schema_of(schema, "Tensor")["additionalProperties"] is False


def test_example_of_the_documentation(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "trace.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```json\n(.*?)```", text, flags=re.DOTALL)
    path = tmp_path / "example.json"
    path.write_text(example, encoding="utf-8")
    trace = read_trace(path)
    assert trace_text(trace) == example
    facts = dict(re.findall(r"^\| `(\w+)` \| ([\d,]+) \|", text, flags=re.MULTILINE))
    assert facts
    for name, value in facts.items():
        assert getattr(trace, name) == int(value.replace(",", "")), name
