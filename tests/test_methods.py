"""Presets and their use: every one builds, says its sources, and is found; contradictions and mistakes are refused."""

from __future__ import annotations

import csv
import doctest
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sim import load_hardware
from sim.cli import app, run
from sim.config import ConfigError, dump_yaml, parse_yaml
from tests.method_cases import DECODER, DRAFT, small, small_preset, write_model
from workloads import load_workload, make_workload, read_trace, write_trace
from workloads.methods import FAMILIES, load_method, method_names
from workloads.trace_file import trace_text
from workloads.transforms.registry import PRIMITIVES, Entry

ROOT = Path(__file__).resolve().parent.parent
CASES = [(name, phase) for name in method_names() for phase in load_method(name).method.phases]
QUIET = ("pencil", "raas", "confidence-gated-taylor", "adaptive-best-of-k")
"""Presets that change nothing here: too few tokens for their triggers, or a draw of one sample for each request."""
MORE_TOKENS = ("parscale", "adaptive-best-of-k", "ssr", "progressive-supernet", "phi-decoding")
"""Presets that generate another number of tokens: several samples of a request, or passes of their own."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def test_presets_span_all_families_and_primitives() -> None:
    presets = [load_method(name).method for name in method_names()]
    assert {m.family for m in presets} == set(FAMILIES)
    used = {entry.name for m in presets for entry in m.primitives}
    assert used == set(PRIMITIVES)
    assert set(Entry.model_fields) == set(PRIMITIVES)


def test_every_paper_has_its_preset() -> None:
    """The list is `data/seeds_ids.csv`; that each preset builds is the next test's."""
    with (ROOT / "tests" / "data" / "seeds_ids.csv").open(encoding="utf-8", newline="") as file:
        papers = {row["title"]: (row["family"], int(row["relevance"])) for row in csv.DictReader(file)}
    assert len(papers) == 168
    presets: dict[str, tuple[str, int]] = {}
    for name in method_names():
        method = load_method(name).method
        assert method.paper.title not in presets, f"{name} is of a paper that another preset has"
        presets[method.paper.title] = (method.family, method.relevance)
    assert sorted(set(papers) - set(presets)) == []
    assert {title: presets[title] for title in papers} == papers


@pytest.mark.parametrize(("name", "phase"), CASES)
def test_every_preset_builds(folder: Path, name: str, phase: str) -> None:
    trace = small_preset(folder, name, phase).trace()
    assert trace.methods == (name,)
    assert trace.flops > 0
    plain = small(folder, phase).trace()
    if phase in ("decode", "generate") and name not in MORE_TOKENS:
        assert trace.generated == plain.generated
    changed = trace.passes != plain.passes or trace.hints != plain.hints
    assert changed or name in QUIET


@pytest.mark.parametrize("name", ["sequoia", "per-head-patterns", "step-3", "psa", "ffn-skipllm", "foldgpt", "memo"])
def test_traces_of_methods_are_written_and_read(folder: Path, tmp_path: Path, name: str) -> None:
    trace = small_preset(folder, name, load_method(name).method.phases[0]).trace()
    write_trace(trace, tmp_path / "t.json")
    again = read_trace(tmp_path / "t.json")
    assert again == trace
    assert trace_text(again) == trace_text(trace)
    assert (again.weight_bytes, again.kv_bytes, again.work) == (trace.weight_bytes, trace.kv_bytes, trace.work)


def test_a_trace_without_novelties_stays_at_version_one(folder: Path) -> None:
    assert '"schema": "opcycle/trace/1"' in trace_text(small(folder, "decode").trace())
    cut = small(folder, "decode", [{"drop": {"unit": "ffn", "where": {"layers": [2]}}}]).trace()
    assert '"schema": "opcycle/trace/2"' in trace_text(cut)


def test_parameters_are_stated_or_assumed() -> None:
    origins = {p.origin for name in method_names() for p in load_method(name).parameters}
    assert origins == {"stated", "assumed"}
    by_key = {p.key: p for p in load_method("ffn-skipllm").parameters}
    assert by_key["primitives.0.skip.probability"].origin == "stated"
    assert by_key["primitives.0.skip.probability"].value == 0.275


PRESET = """\
schema: opcycle/method/1
name: mine
paper: {title: Mine, year: 2026}
family: serving
relevance: 1
phases: [decode]
primitives:
  - skip: {probability: 0.5}  # assumed
claim: none
setting: none
"""


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        (("  # assumed", ""), "primitives.0.skip.probability", "no comment"),
        (("  # assumed", "  # some number"), "primitives.0.skip.probability", "no comment"),
        (("skip:", "skp:"), "primitives.0.skp", "nearest is 'skip'"),
        (("probability: 0.5", "probability: 1.5"), "probability", "at most 1"),
        (("probability: 0.5", "probabilty: 0.5"), "probabilty", "nearest is 'probability'"),
        (("family: serving", "family: servin"), "family", "nearest is 'serving'"),
        (("opcycle/method/1", "opcycle/method/9"), "schema", "opcycle/method/1"),
        (("phases: [decode]", "phases: []"), "phases", "at least 1"),
        (("{probability: 0.5}", "{probability: 0.5}\n    drop: {unit: ffn}"), "primitives.0", "one primitive"),
    ],
)
def test_bad_preset_files(tmp_path: Path, change: tuple[str, str], key: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(PRESET.replace(*change), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        load_method(path)
    assert error.value.file == str(path)
    assert key in (error.value.key or "")
    assert words in error.value.message


def test_a_preset_of_ones_own(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(PRESET, encoding="utf-8")
    by_file = small(folder, "decode", [str(path)], batch=2).trace()
    inline = small(folder, "decode", [{"skip": {"probability": 0.5}}], batch=2).trace()
    assert by_file.passes == inline.passes
    assert (by_file.methods, inline.methods) == (("mine",), ("skip",))
    with pytest.raises(ConfigError, match="a method for phase decode, but the workload's phase is prefill"):
        small(folder, "prefill", [str(path)])


def test_parameters_set_anew(tmp_path: Path) -> None:
    model = write_model(tmp_path, {**DECODER, "vocab": 128256})
    draft = write_model(tmp_path, {**DRAFT, "vocab": 128256})
    text = {
        "schema": "opcycle/workload/1", "name": "mine", "model": model, "phase": "decode", "context": 9, "steps": 6,
        "methods": [
            {"use": "speculative-sampling", "set": {"draft": {"model": draft}}}, {"skip": {"probability": 0.5}},
        ],
    }  # fmt: skip
    path = tmp_path / "w.yaml"
    path.write_text(dump_yaml(text), encoding="utf-8")
    changes = {
        "workload.methods.speculative-sampling.draft.length": "2", "methods.speculative-sampling.accept.rate": "1",
        "methods.skip.probability": "0.25",
    }  # fmt: skip
    workload = load_workload(path, changes)
    trace = workload.trace()
    assert [p.phase for p in trace.passes] == ["draft", "draft", "verify"] * 2  # 2 + 1 of 6 tokens an iteration
    listed = load_workload(path, {"methods.1.skip.probability": "0.25"})
    assert listed.resolved()["methods"][1] == {"skip": {"probability": 0.25}}
    again = make_workload(workload.resolved())
    assert again.trace() == trace
    for wrong, words in (
        ({"methods.speculative.draft.length": "2"}, "nearest is 'speculative-sampling'"),
        ({"methods.speculative-sampling.drft.length": "2"}, "nearest is 'draft'"),
        ({"methods.speculative-sampling.draft.lenth": "2"}, "nearest is 'length'"),
        ({"methods.speculative-sampling.accept.rate": "1.5"}, "at most 1"),
    ):
        with pytest.raises(ConfigError) as error:
            load_workload(path, wrong)
        assert words in error.value.message
        assert "methods" in (error.value.key or "")


@pytest.mark.parametrize(
    ("phase", "methods", "both"),
    [
        (
            "decode",
            [
                {"kv": {"policy": "budget", "budget": 9}},
                {"kv": {"policy": "entry", "tokens": 2, "where": {"layers": [3]}}},
            ],
            ("methods.0.kv", "methods.1.kv"),
        ),
        ("decode", ["raas", {"kv": {"policy": "recompute"}}], ("methods.0.kv (raas)", "methods.1.kv")),
        (
            "decode",
            [{"draft": {"source": "lookup"}, "accept": {"rate": 0.5}}, {"loop": {"over": "denoise", "count": 2}}],
            ("methods.0.draft", "methods.1.loop"),
        ),
        ("decode", ["pencil", "lightningrl"], ("methods.0.kv (pencil)", "methods.1.loop")),
        ("prefill", [{"train": {}}, {"train": {"mode": "zeroth"}}], ("methods.0.train", "methods.1.train")),
        (
            "prefill",
            [{"mask": {"kind": "top_k", "top_k": 5}}, {"mask": {"kind": "window", "window": 5}}],
            ("methods.0.mask", "methods.1.mask"),
        ),
    ],
)  # fmt: skip
def test_contradictions_name_both_places(folder: Path, phase: str, methods: list[Any], both: tuple[str, str]) -> None:
    with pytest.raises(ConfigError) as error:
        small(folder, phase, methods)
    assert both[0] in error.value.message
    assert error.value.key == both[1]


def test_what_does_not_overlap_does_not_contradict(folder: Path) -> None:
    low = {"kv": {"policy": "budget", "budget": 9, "where": {"layers": ["0-3"]}}}
    high = {"kv": {"policy": "entry", "tokens": 2, "where": {"layers": ["4-7"]}}}
    assert small(folder, "decode", [low, high]).trace().kv_bytes > 0


@pytest.mark.parametrize(
    ("phase", "method", "key", "words"),
    [
        ("decode", {"drop": {"unit": "ffn", "where": {"layers": ["4-8"]}}}, "drop.where.layers", "layers 0 to 7"),
        ("decode", {"drop": {"unit": "ffn", "where": {"layers": ["5-4"]}}}, "where.layers", "from its first"),
        ("decode", {"drop": {"unit": "ffn", "where": {"phases": ["prefill"]}}}, "where", "selects no pass"),
        ("decode", {"xform": {"kind": "rotation", "where": {"operators": ["dwn"]}}}, "operators", "nearest is 'down'"),
        ("decode", {"width": {"of": "heads", "share": 0.3}}, "width", "no whole number"),
        ("decode", {"route": {"experts": 7, "top_k": 1}}, "route.experts", "shared out evenly"),
        ("decode", {"skip": {"probability": -0.1}}, "skip.probability", "at least 0"),
        ("decode", {"skip": {}}, "skip", "either probability or capacity"),
        ("decode", {"dtype": {"weights": "int3"}}, "dtype.weights", "nearest: int"),
        ("decode", {"dtype": {}}, "dtype", "needs a format"),
        ("decode", {"tokens": {"action": "remove", "count": 5, "keep": 0.5, "from_layer": 9}}, "from_layer", "0 to 7"),
        ("decode", {"memory": {"what": "shard", "devices": 2}}, "memory.what", "needs a training step"),
        ("decode", {"train": {}}, "train", "needs one prefill"),
        ("decode", {"cache": {"unit": "ffn", "schedule": [1]}}, "cache", "must hold step 0"),
        ("decode", {"nothing": {}}, "methods.0", "unknown primitive"),
        ("decode", {"use": "raas", "sett": {}}, "methods.0.sett", "nearest is 'set'"),
        ("decode", "rass", "methods.0", "nearest is 'raas'"),
        ("denoise", {"kv": {"policy": "erase", "trigger": 4, "keep": 5}}, "kv", "below trigger"),
        ("prefill", {"loop": {"over": "denoise", "count": 2}}, "loop", "needs decode steps"),
    ],
)  # fmt: skip
def test_methods_that_do_not_fit(folder: Path, phase: str, method: Any, key: str, words: str) -> None:
    with pytest.raises(ConfigError) as error:
        small(folder, phase, [method]).trace()
    assert words in error.value.message
    assert key in (error.value.key or "")
    assert (error.value.key or "").startswith("methods.0")


def test_methods_compose_in_any_order_of_ranks(folder: Path) -> None:
    parts: list[Any] = [
        {"draft": {"source": "lookup", "length": 3}, "accept": {"rate": 0.5}},
        {"skip": {"probability": 0.25}},
        {"wsparse": {"pattern": "2:4"}},
        {"dtype": {"kv": "int8"}},
    ]
    one = small(folder, "decode", parts).trace()
    other = small(folder, "decode", parts[::-1]).trace()
    assert one.passes == other.passes


def test_simulator_runs_what_methods_make(folder: Path) -> None:
    from sim.engine import Engine, simulate

    machine = load_hardware("npu-hbm2")
    engine = Engine(machine)
    base = simulate(machine, small(folder, "decode", batch=1, steps=1), engine=engine).summary
    skipped = simulate(
        machine,
        small(folder, "decode", [{"skip": {"probability": 1, "gate": "none"}}], batch=1, steps=1),
        engine=engine,
    ).summary
    assert skipped["time_s"] < base["time_s"]
    assert skipped["flops"] == base["flops"] - 2 * 8 * 3 * 64 * 256
    sparse = simulate(machine, small(folder, "decode", ["attention-drop"], batch=1, steps=1), engine=engine).summary
    assert sparse["methods"] == ["attention-drop"]
    assert sparse["time_s"] < base["time_s"]


def call(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout


def test_list_methods() -> None:
    code, out = call("list", "methods", "--json")
    rows = json.loads(out)
    assert code == 0
    assert [row["name"] for row in rows if row["family"] == "kv-cache"] == sorted(
        name for name in method_names() if load_method(name).method.family == "kv-cache"
    )
    code, out = call("list", "methods")
    assert all(title in out for title in FAMILIES.values())
    code, out = call("list", "methods", "hadamard", "--json")
    assert {"quarot", "mxfp4-hadamard"} <= {row["name"] for row in json.loads(out)}


def test_list_one_method_fits_on_a_screen() -> None:
    for name in ("specexec", "smallthinker", "step-3", "hisa"):
        code, out = call("list", "methods", name)
        assert code == 0
        assert len(out.splitlines()) <= 50, name
    code, out = call("list", "methods", "ffn-skipllm")
    assert "stated: 25-30 % of FFN blocks are skipped" in out
    code, out = call("list", "methods", "ffn-skipllm", "--json")
    (row,) = json.loads(out)
    assert row["parameters"][0]["origin"] == "stated"


def test_unknown_method_and_schema_and_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "methods", "ffn-skiplm"]) == 2
    assert "nearest is 'ffn-skipllm'" in capsys.readouterr().err
    assert run(["schema", "method"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert "primitives" in schema["properties"]
    path = tmp_path / "mine.yaml"
    path.write_text(PRESET, encoding="utf-8")
    assert run(["check", str(path), str(ROOT / "workloads" / "methods" / "neupims.yaml")]) == 0
    assert "ok (method)" in capsys.readouterr().out
    path.write_text(PRESET.replace("0.5", "7"), encoding="utf-8")
    assert run(["check", str(path)]) == 2
    assert "at most 1" in capsys.readouterr().err


def test_documentation_is_true(folder: Path, tmp_path: Path) -> None:
    path = ROOT / "docs" / "methods.md"
    outcome = doctest.testfile(str(path), module_relative=False)
    assert (outcome.attempted >= 4, outcome.failed) == (True, 0)
    workload, preset = re.findall(r"```yaml\n(.*?)```", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    data = parse_yaml(workload).data | {"steps": 4}
    assert make_workload(data).trace().methods == ("speculative-sampling", "ffn-skipllm", "wsparse")
    (tmp_path / "ffn-skipllm.yaml").write_text(preset, encoding="utf-8")
    assert load_method(tmp_path / "ffn-skipllm.yaml").method == load_method("ffn-skipllm").method
