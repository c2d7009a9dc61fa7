"""Published claims as data and their engine: formulas, ratios, what is assumed, and that every file can be run."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from sim.claims.assumed import assumed_inputs
from sim.claims.compute import Result, command, compute, ratio_of
from sim.claims.formula import evaluate, runs_of
from sim.claims.measure import Runs, split
from sim.claims.schema import Run, all_claims, chosen, read_claims
from sim.cli import app, run
from sim.config import ConfigError, load_yaml
from sim.kinds import load_hardware
from tests.test_sources import without_source
from workloads import load_workload
from workloads.methods import method_names

ALL = all_claims()
FILES = sorted({source.document.path for source in ALL if source.document.path})
LOADED: set[str] = set()
FIGURES = {"a": {"time_s": 6.0, "operator.up.flops": 4.0}, "b": {"time_s": 2.0}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a.time_s / b.time_s", 3.0),
        ("a.operator.up.flops * 2 - 1", 7.0),
        ("(a.time_s + b.time_s) / min(a.time_s, 4)", 2.0),
        ("-max(a.time_s, b.time_s)", -6.0),
    ],
)
def test_formulas_by_hand(text: str, value: float) -> None:
    assert evaluate(text, FIGURES) == value


@given(st.floats(0.1, 1e6), st.floats(0.1, 1e6))
def test_a_ratio_and_its_inverse(first: float, second: float) -> None:
    figures = {"a": {"x": first}, "b": {"x": second}}
    assert evaluate("a.x / b.x", figures) * evaluate("b.x / a.x", figures) == pytest.approx(1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a.tim_s / b.time_s", "nearest is 'time_s'"),
        ("a.time_s ** 2", "must be made of"),
        ("a.time_s / (b.time_s - 2)", "divides by a figure that is 0"),
        ("abs(a.time_s)", "must be made of"),
        ("a.time_s /", "must be made of"),
        ("'a'", "must be made of"),
    ],
)
def test_bad_formulas(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        evaluate(text, FIGURES)


def test_runs_are_read_off_a_formula() -> None:
    assert runs_of("b.x / (a.y.z + b.w) * 3") == ["b", "a"]


def test_ratio_of_a_range_is_to_its_nearer_end() -> None:
    ranged = next(s.claim for s in ALL if s.claim.id == "speculative-sampling")
    assert ranged.value == (2, 2.5)
    assert [ratio_of(ranged, ours) for ours in (1.0, 2.0, 2.2, 2.5, 5.0)] == [0.5, 1, 1, 1, 2]
    single = next(s.claim for s in ALL if s.claim.id == "neupims-over-npu")
    assert ratio_of(single, 1.2) == pytest.approx(0.5)


def test_there_are_claims_of_many_papers() -> None:
    assert len(ALL) >= 20
    ids = [source.claim.id for source in ALL]
    assert len(set(ids)) == len(ids)
    methods = {source.file.method for source in ALL} - {None}
    assert methods <= set(method_names())
    assert {"neupims", "streaming-attention", "kv-direct", "sat-bdwp", "s2o", "larosa", "specexec", "step-3"} <= methods


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_number_is_stated_or_assumed(path: Path) -> None:
    words = (".claim", ".setting", ".here", ".why", ".year")
    assert [key for key in without_source(load_yaml(path)) if not key.endswith(words)] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_inputs_of_every_run_load(path: Path) -> None:
    """Each run names machines and workloads that ship; a claim cannot come out empty for want of an input."""
    sources = read_claims(path)
    for each in sources[0].file.runs.values():
        hardware, workload = split(each.set)
        key = repr((each.hardware, hardware))
        if each.hardware is not None and key not in LOADED:
            LOADED.add(key)
            load_hardware(each.hardware, hardware)
        if each.workload is not None:
            load_workload(each.workload, workload)
    assert all(" = " in line for source in sources for line in assumed_inputs(source))


def test_quick_claims_against_hand_worked_figures() -> None:
    results = {r.source.claim.id: r for r in compute(chosen(["kv-direct-bytes", "ffsplit", "block-quantised-kv"]))}
    # 34 layers x 2 x 4 heads x 256 over one residual of 2560, both in 16 bits.
    assert results["kv-direct-bytes"].ours == pytest.approx(34 * 2 * 4 * 256 / 2560)
    assert not results["kv-direct-bytes"].differs
    # Sixteen values of 8 bits share 8 bits more in `bfp16` blocks; the claim forgets the scale.
    assert 1.5 < results["block-quantised-kv"].ours < 2
    assert 1.2 < results["ffsplit"].ours < 1.8
    assert any(line.startswith("ffsplit width.share = 0.375") for line in results["ffsplit"].assumed)


def test_runs_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str | None] = []
    measure = Runs._measure

    def counted(self: Runs, each: Run) -> dict[str, float]:
        made.append(each.workload)
        return measure(self, each)

    monkeypatch.setattr(Runs, "_measure", counted)
    results = list(compute(chosen(["sliminfer"])))
    assert [r.source.claim.id for r in results] == ["sliminfer-ttft", "sliminfer-end-to-end"]
    assert len(made) == 2


def test_what_is_assumed_follows_what_is_run() -> None:
    source = chosen(["hydra"])[0]
    lines = assumed_inputs(source)
    assert "batch = 1: an interactive user" in lines
    assert not any(line.startswith("batch = 8") for line in lines), "the scenario's own batch was replaced"
    assert any(line.startswith("hydra accept.rate") for line in lines)


MINE = """\
schema: opcycle/claims/1
paper: {title: Mine}
claims:
  - {id: mine, claim: twice, value: 2, limit: exact, setting: any, here: so, why: it does,
     ours: a.trace.flops / a.trace.flops}
runs:
  a: {workload: llama3-8b-decode}
"""


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("a.trace.flops / a", "b.trace.flops / a"), "unknown run 'b'"),
        (("limit: exact", "limit: exactly"), "exact"),
        (("value: 2", "value: [1, 2]"), "a range has two ends"),
        (("  a: {work", "  b: {workload: vit-b-encode}\n  a: {work"), "run b is in no claim's formula"),
        (("workload: llama3-8b-decode", "hardware: h200"), "needs one of workload, operator and attention_graph"),
        (("paper: {title: Mine}\n", ""), "needs either method or paper"),
        (("claims/1", "claims/9"), "reads 'opcycle/claims/1'"),
        (("claim: twice", "clam: twice"), "nearest is 'claim'"),
    ],
)
def test_bad_files(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE.replace(*change), encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        read_claims(path)
    assert words in str(error.value)
    assert error.value.file == str(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("{workload: llama3-8b-decode}", "{workload: llama3-8b-decod}"), "nearest is 'llama3-8b-decode'"),
        (("a.trace.flops /", "a.trace.flop /"), "nearest is 'trace.flops'"),
        (("{workload: llama3-8b-decode}", "{workload: llama3-8b-decode, set: {batch: 2}}"), "keys begin with"),
    ],
)
def test_bad_runs_name_the_file(tmp_path: Path, change: tuple[str, str], words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(MINE.replace(*change), encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as error:
        list(compute(read_claims(path)))
    assert error.value.file == str(path)


def test_the_command(tmp_path: Path) -> None:
    ran = CliRunner().invoke(app, ["claims", "ffsplit", "saisa", "--json"])
    assert ran.exit_code == 0, ran.output
    told = json.loads(ran.stdout)
    assert [row["id"] for row in told] == ["ffsplit", "saisa"]
    for row in told:
        assert row["ours"] > 0 and row["ratio"] > 0
        assert row["claim"] and row["setting"] and row["sentence"] and row["assumed"]
        assert all(line.startswith("opcycle ") for line in row["commands"].values())
    folder = tmp_path / "claims"
    shown = CliRunner().invoke(app, ["claims", "ffsplit", "-o", str(folder)])
    assert shown.exit_code == 0, shown.output
    assert "FFSplit" in shown.stdout and "Assumed" in shown.stdout
    assert {path.name for path in folder.iterdir()} >= {"claims.csv", "claims.json", "claims.png"}
    with (folder / "claims.csv").open(encoding="utf-8", newline="") as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["ffsplit"]


def test_the_printed_command_repeats_the_run() -> None:
    source = chosen(["ffsplit"])[0]
    line = command(source.file.runs["method"])
    assert line == (
        "opcycle simulate a100-80g llama3-8b-decode --set workload.batch=1 --set 'workload.methods=[\"ffsplit\"]'"
    )


@pytest.mark.parametrize(("name", "words"), [("ffsplt", "nearest is 'ffsplit'"), ("no-such-thing", "--list")])
def test_unknown_claims(name: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["claims", name]) == 2
    told = capsys.readouterr()
    assert words in told.err and told.err.count("\n") == 1
    assert told.out == ""


def test_a_difference_is_explained_and_agreement_is_not() -> None:
    source = chosen(["ffsplit"])[0]
    far, close = Result(source, 3.0, 3.0 / 1.56, (), 0.0), Result(source, 1.4, 1.0, (), 0.0)
    assert (far.differs, close.differs) == (True, False)
    assert far.sentence == source.claim.why
    assert close.sentence == "Inside the range."
