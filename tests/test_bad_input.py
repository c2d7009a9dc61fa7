"""Wrong input from the command line: exit code 2, one sentence that names what is wrong, and nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome

Refused = Callable[..., str]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["simulte"], "no such command 'simulte', nearest is 'simulate'"),
        (["frobnicate"], "no such command 'frobnicate'; allowed: "),
        (["--jsn"], "no such option '--jsn'"),
        (["check", "--jsn", "x"], "check: no such option '--jsn', nearest is '--json'"),
        (["simulate", "npu-hbm2"], "simulate: Missing argument 'WORKLOAD'"),
        (["simulate", "npu-hbm2", "gpt3-7b-decode", "extra"], "simulate: "),
        (["list", "hardwar"], "list: Invalid value for 'kind': unknown value 'hardwar', nearest is 'hardware'; "),
        (["list", "models", "gpt3-31b"], "unknown model 'gpt3-31b', nearest is 'gpt3-"),
        (["schema", "workloads"], "schema: Invalid value for 'kind': unknown value 'workloads', nearest is 'workload'"),
        (["unit", "gem"], "unit: no such command 'gem', nearest is 'gemm'"),
        (
            ["unit", "gemm", "1", "2", "3", "--rows", "0", "--cols", "4", "--dataflow", "ws"],
            "unit gemm: --rows: is 0, but must be at least 1",
        ),
        (["unit", "gemm", "1", "2", "3", "--rows", "4", "--cols", "4", "--dataflow", "vs"], "unit gemm: "),
        (
            ["unit", "gemm", "1", "2", "x", "--rows", "4", "--cols", "4", "--dataflow", "ws"],
            "unit gemm: K: is 'x', but must be a whole number",
        ),
        (["simulate", "npu-hbm2", "gpt3-7b-decode", "-o", ""], "-o is empty"),
        (["trace", "gpt3-7b-decode", "-o", ""], "-o is empty"),
        (["trace", "gpt3-7b-decode", "-o", "."], ".: is a folder, but a file is to be written"),
        (["simulate", "npu-hbm2", "/"], "/: is a folder, but a workload is "),
        (["unit", "gemm", "1", "2", "--", "-3", "--rows", "4", "--cols", "4", "--dataflow", "ws"], "unit gemm: "),
    ],
)
def test_wrong_command_lines(refused: Refused, arguments: list[str], says: str) -> None:
    assert refused(*arguments).startswith(says)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("hw.clock", "--set 'hw.clock' must be written key=value"),
        ("=3", "--set '=3' must be written key=value"),
        (
            "workloads.x=1",
            "--set 'workloads.x', nearest is 'workload.': keys begin with 'hw.' or 'workload.', then a dotted key",
        ),
        ("clock=1 GHz", "--set 'clock': keys begin with 'hw.' or 'workload.', then a dotted key"),
        ("hw.=1", "--set 'hw.': keys begin with 'hw.' or 'workload.', then a dotted key"),
    ],
)
def test_wrong_settings(refused: Refused, setting: str, says: str) -> None:
    assert refused("simulate", "npu-hbm2", "gpt3-7b-decode", "--set", setting) == says


def test_a_setting_given_twice(refused: Refused) -> None:
    says = refused("simulate", "a", "b", "--set", "hw.cores=1", "--set", "hw.cores=2")
    assert says == "--set 'hw.cores' is given twice"


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("hw.memory.chanels=16", "memory.chanels: unknown key 'chanels' in memory, nearest is 'channels'"),
        ("hw.clock=1", "clock: 1 lacks its unit: "),
        ("hw.clock=1 Ghz", "clock: '1 Ghz' has the unknown unit 'Ghz', nearest is 'GHz'"),
        ("hw.scratchpad.capacity=-1 MiB", "scratchpad.capacity: '-1 MiB' is negative"),
        ("hw.array.rows=0", "array.rows: is 0, but must be greater than 0"),
        ("hw.array.rows=lots", 'array.rows: is "lots", but must be a whole number'),
        ("hw.scratchpad.capacity=1 B", "scratchpad.capacity of 1 B is too small"),
        ("hw.memory.standard=hbm7", "unknown memory 'hbm7', nearest is 'hbm"),
        ("workload.bach=8", "bach: unknown key 'bach', nearest is 'batch'"),
        ("workload.batch=-8", "batch: is -8, but must be at least 1"),
        ("workload.model=gpt3-31b", "unknown model 'gpt3-31b'"),
        ("workload.model=nope", "override of gpt3-7b-decode.yaml: model: unknown model 'nope'"),
        ("hw.foo=1", "override of npu-hbm2.yaml: foo: unknown key 'foo'"),
        ("hw.array.formats={}", "array.formats: is {}, but must have at least 1 entry"),
        ("hw.energy.table=nope", "unknown energy table 'nope'; allowed: 16nm, 45nm, 7nm"),
        ("hw.energy.table=dram", "unknown energy table 'dram'"),
        ("workload.context=100000", "context: needs 100001 positions"),
    ],
)
def test_overrides_that_do_not_fit(refused: Refused, setting: str, key: str) -> None:
    says = refused("simulate", "npu-hbm2", "gpt3-7b-decode", "--set", setting)
    assert key in says


def test_a_model_that_does_not_fit_in_memory(refused: Refused) -> None:
    says = refused("simulate", "npu-hbm2", "gpt3-175b-decode")
    assert "GiB" in says or "bytes" in says


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: [1", "{file}:2: broken YAML: "),
        ("a: 1\na: 2", "{file}:2: a: duplicate key, first given on line 1"),
        ("a:\n\tb: 2", "{file}:2: broken YAML: a tab is used for indentation"),
        ("", "{file}:1: the file is empty"),
        ("name: x", "{file}: schema: is missing; allowed: opcycle/hardware/1, "),
        ("schema: opcycle/hardwear/1", "{file}: schema: unknown schema 'opcycle/hardwear/1', nearest is 'opcycle/hard"),
        ("schema: opcycle/workload/1\nname: x", "{file}:1: model: is missing"),
        ("schema: opcycle/hardware/1\nname: x", "{file}:1: technology: is missing"),
        (
            '{"schema": "opcycle/trace/3"}',
            "{file}: schema: is 'opcycle/trace/3', written by a newer opcycle",
        ),
        ('{"schema": "opcycle/trace/1"', "{file}:1: is broken JSON: "),
        ('{"model_type": "tamagotchi"}', "{file}: "),
    ],
)
def test_files_that_say_nothing_sensible(opcycle: Callable[..., Outcome], tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / ("file.json" if text.startswith("{") else "file.yaml")
    file.write_text(text)
    outcome = opcycle("check", file)
    assert outcome.code == 2
    assert outcome.err.startswith("opcycle: " + says.format(file=file)), outcome.err
    assert outcome.err.count("\n") == 1


def test_check_goes_on_after_the_first_mistake(opcycle: Callable[..., Outcome], tmp_path: Path, root: Path) -> None:
    (tmp_path / "bad.yaml").write_text("a: 1\na: 1\n")
    good = root / "hwconfigs" / "energy" / "7nm.yaml"
    outcome = opcycle("check", tmp_path / "bad.yaml", good, tmp_path / "none.yaml", "--json")
    assert outcome.code == 2
    rows = json.loads(outcome.out)
    assert [(row["ok"], row["kind"]) for row in rows] == [(False, None), (True, "energy"), (False, None)]
    assert outcome.err.count("\n") == 2


def test_a_trace_of_a_future_version(refused: Refused, tmp_path: Path) -> None:
    file = tmp_path / "future.json"
    file.write_text('{"schema": "opcycle/trace/3", "passes": []}')
    assert "opcycle/trace/3" in refused("simulate", "npu-hbm2", file)


def test_a_trace_cannot_be_changed(refused: Refused, opcycle: Callable[..., Outcome], tmp_path: Path) -> None:
    file = tmp_path / "some.trace"
    assert opcycle("trace", "gpt3-7b-decode", "-o", file).code == 0
    says = refused("simulate", "npu-hbm2", file, "--set", "workload.batch=2")
    assert says.startswith(f"{file}: batch: ")


@pytest.mark.parametrize("command", ["simulate", "trace"])
def test_places_that_cannot_be_written(refused: Refused, tmp_path: Path, command: str) -> None:
    (tmp_path / "file").write_text("")
    machine = ["npu-hbm2"] if command == "simulate" else []
    for place in (tmp_path / "file" / "below", "/proc/opcycle/result"):
        assert refused(command, *machine, "gpt3-7b-decode", "-o", place).startswith(f"{place}: cannot be written")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_a_result_never_replaces_files_of_others(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    says = refused("simulate", "npu-hbm2", "gpt3-7b-decode", "-o", tmp_path)
    assert (
        says == f"{tmp_path}: holds no opcycle result (such as 'thesis.tex'), so it is not replaced; name a new folder"
    )


def test_results_that_are_none(refused: Refused, tmp_path: Path) -> None:
    assert refused("plot", tmp_path).startswith(f"{tmp_path}: holds no result")
    assert refused("compare", tmp_path / "none").startswith(f"{tmp_path / 'none'}: holds no result")


@pytest.mark.parametrize("command", ["plot", "compare"])
def test_results_with_a_file_missing(refused: Refused, tmp_path: Path, command: str) -> None:
    (tmp_path / "summary.json").write_text('{"schema": "opcycle/summary/1"}')
    assert refused(command, tmp_path).startswith(f"{tmp_path}: result is incomplete: operators.csv is missing")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"LD 0\n\xff", "is not UTF-8 text (byte 5)"),
        (b"LD 99999999999999999999", "address 99999999999999999999 is out of range"),
        (b"ST -1", "address -1 is out of range"),
        (b"LD 0 -3", "clock -3 is out of range"),
    ],
)
def test_requests_that_make_no_sense(refused: Refused, tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "requests"
    file.write_bytes(content)
    assert says in refused("unit", "dram", "hbm2", file)
    assert refused("unit", "dram", "hbm2", tmp_path) == f"{tmp_path}: is a folder, but a file is wanted"


@pytest.mark.parametrize(
    "text", ['{"schema": "opcycle/trace/1", ', '{"schema": "opcycle/trace/2"}', '{"a": 1, "a": 2}']
)
def test_a_wrong_trace_is_told_alike(
    refused: Refused, opcycle: Callable[..., Outcome], tmp_path: Path, text: str
) -> None:
    file = tmp_path / "trace.json"
    file.write_text(text)
    assert opcycle("check", file).err == f"opcycle: {refused('simulate', 'npu-hbm2', file)}\n"


def test_names_that_are_none(refused: Refused) -> None:
    assert refused("simulate", "npu-hbm", "gpt3-7b-decode").startswith(
        "unknown hardware 'npu-hbm', nearest is 'npu-hbm2'"
    )
    assert refused("simulate", "npu-hbm2", "gpt3-7b-decod").startswith("unknown workload 'gpt3-7b-decod'")
    assert refused("simulate", "./none.yaml", "gpt3-7b-decode") == "none.yaml: no such file"


def test_mistakes_of_ours_are_no_wrong_input(opcycle: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the roof\nis on fire")

    monkeypatch.setattr("sim.cli.data.json_schema", fail)
    outcome = opcycle("schema", "hardware")
    assert outcome.code == 1
    assert outcome.err == (
        "opcycle: internal error, RuntimeError: the roof is on fire (set OPCYCLE_DEBUG=1 to see the traceback)\n"
    )
    monkeypatch.setenv("OPCYCLE_DEBUG", "1")
    with pytest.raises(RuntimeError):
        opcycle("schema", "hardware")
