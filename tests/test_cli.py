"""The command line: what it prints for people and for programs, and what it leaves on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sim import __version__
from sim.cli.printing import COMPILING, binary_size, engineering, say_if_kernels_are_new
from sim.cli.settings import settings
from sim.output import MANIFEST
from tests.conftest import Outcome

Run = Callable[..., Outcome]
COMMANDS = ["simulate", "trace", "compare", "plot", "check", "list", "schema", "sweep", "search", "cache", "unit"]

MODEL = """\
schema: opcycle/model/1
name: tiny
layers: 2
hidden: 256
vocab: 1000
max_position: 512
attention: {heads: 4, kv_heads: 2, head_dim: 64}
ffn: {hidden: 512, activation: swiglu}
norm: {kind: rmsnorm}
"""
SCENARIO = """\
schema: opcycle/workload/1
name: tiny-decode
model: ./tiny.yaml
phase: decode
batch: 4
context: 64
"""


@pytest.fixture
def workload(tmp_path: Path) -> Path:
    """A scenario of a model with two small layers."""
    (tmp_path / "tiny.yaml").write_text(MODEL)
    path = tmp_path / "tiny-decode.yaml"
    path.write_text(SCENARIO)
    return path


def parsed(outcome: Outcome) -> Any:
    """The one JSON value on standard output of a command that went well and complained about nothing."""
    assert outcome.code == 0, outcome.err
    assert outcome.err.replace(COMPILING, "").strip() == ""
    assert "NaN" not in outcome.out
    assert "Infinity" not in outcome.out
    return json.loads(outcome.out)


def test_help_names_every_command(opcycle: Run) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        outcome = opcycle(*arguments)
        assert outcome.code == 0
        assert [name for name in COMMANDS if f" {name} " not in outcome.out] == []


@pytest.mark.parametrize("command", [*COMMANDS, "unit dram", "unit gemm"])
def test_every_command_explains_itself(opcycle: Run, command: str) -> None:
    outcome = opcycle(*command.split(), "--help")
    assert outcome.code == 0
    assert f"opcycle {command}" in outcome.out


def test_version(opcycle: Run, root: Path) -> None:
    assert opcycle("--version").out == f"opcycle {__version__}\n"
    assert f'version = "{__version__}"' in (root / "pyproject.toml").read_text()


@pytest.mark.parametrize("kind", ["hardware", "models", "workloads", "memories"])
def test_lists_are_objects_with_names(opcycle: Run, kind: str) -> None:
    rows = parsed(opcycle("list", kind, "--json"))
    names = [row["name"] for row in rows]
    assert names == sorted(set(names))
    assert len(names) >= 1
    assert all(row["description"] for row in rows)
    shown = opcycle("list", kind)
    assert shown.code == 0
    assert all(name in shown.out for name in names)


def test_one_of_a_list_shows_values_with_sources(opcycle: Run) -> None:
    shown = opcycle("list", "hardware", "npu-hbm2")
    assert shown.code == 0
    assert "array.rows" in shown.out
    assert "NeuPIMs artifact: core_height" in shown.out
    (row,) = parsed(opcycle("list", "hardware", "npu-hbm2", "--json"))
    assert row["name"] == "npu-hbm2"
    assert row["data"]["array"]["rows"] == 128
    assert row["sources"]["array.rows"] == "NeuPIMs artifact: core_height"


@pytest.mark.parametrize(
    "kind",
    ["hardware", "workload", "trace", "memory", "energy", "kernels", "dram-energy", "model", "method", "unit", "area"],
)
def test_schemas_describe_each_kind_of_file(opcycle: Run, kind: str) -> None:
    schema = parsed(opcycle("schema", kind))
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "schema" in schema["properties"]


def test_everything_that_ships_is_valid(opcycle: Run, root: Path) -> None:
    files = sorted([*(root / "hwconfigs").rglob("*.yaml"), *(root / "workloads").rglob("*.yaml")])
    rows = parsed(opcycle("check", *files, "--json"))
    assert [row["file"] for row in rows] == [str(file) for file in files]
    kinds = {
        "hardware", "kernels", "memory", "tier", "energy", "dram-energy", "model", "method", "workload", "unit",
        "stream", "lengths", "area",
    }  # fmt: skip
    assert {row["kind"] for row in rows} == kinds
    assert all(row["ok"] and row["error"] is None for row in rows)


def test_check_says_what_each_file_is(opcycle: Run, workload: Path) -> None:
    assert opcycle("check", workload).out == f"{workload}: ok (workload)\n"


def test_unit_gemm_counts_cycles(opcycle: Run) -> None:
    # 13 x 19 folds of a 16 x 16 array, each 2 * 16 + 16 + 100 - 2 cycles (SCALE-Sim's rule).
    result = parsed(opcycle("unit", "gemm", "--rows", 16, "--cols", 16, "--dataflow", "ws", 100, 200, 300, "--json"))
    assert result["cycles"] == 13 * 19 * 146
    assert result["macs"] == 100 * 200 * 300
    assert result["utilization"] == pytest.approx(100 * 200 * 300 / (13 * 19 * 146 * 256))
    shown = opcycle("unit", "gemm", "--rows", 16, "--cols", 16, "--dataflow", "ws", 100, 200, 300)
    assert "36,062" in shown.out


def test_unit_dram_counts_commands(opcycle: Run, tmp_path: Path) -> None:
    trace = tmp_path / "trace.txt"
    trace.write_text("".join(f"LD {64 * i}\n" for i in range(8)) + "ST 0x0\n")
    result = parsed(opcycle("unit", "dram", "ddr4-3200", trace, "--check", "--json"))
    assert (result["reads"], result["writes"], result["violations"]) == (8, 1, 0)
    assert parsed(opcycle("unit", "dram", "ddr4-3200", trace, "--json"))["violations"] is None
    fewer = parsed(opcycle("unit", "dram", "ddr4-3200", trace, "--set", "queue=2", "--in-flight", "1", "--json"))
    assert fewer["cycles"] > result["cycles"]


def test_settings_go_to_their_side() -> None:
    found = settings(["hw.memory.channels=16", "workload.batch = 8", "hw.name=a=b"], ("hw", "workload"))
    assert found == {"hw": {"memory.channels": "16", "name": "a=b"}, "workload": {"batch": " 8"}}
    assert settings(["controller.queue=32"], ("",)) == {"": {"controller.queue": "32"}}


def test_traces_are_the_same_bytes_each_time(opcycle: Run, workload: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "new" / "first", tmp_path / "second.json"
    facts = parsed(opcycle("trace", workload, "-o", first, "--json"))
    assert opcycle("trace", workload, "-o", second).code == 0
    assert first.read_bytes() == second.read_bytes()
    assert opcycle("check", first).out == f"{first}: ok (trace)\n"
    larger = parsed(opcycle("trace", workload, "-o", first, "--set", "workload.batch=8", "--json"))
    assert larger["flops"] == 2 * facts["flops"]
    assert larger["weight_bytes"] == facts["weight_bytes"]


RESULT = [
    "energy.csv", "energy.png", "hwconfig.yaml", "operators.csv", "operators.parquet", "roofline.png", "summary.json",
    "timeline.json", "timeline.png", "workload.yaml",
]  # fmt: skip


def timeless(summary: dict[str, Any]) -> dict[str, Any]:
    """A summary without what the host's speed decides."""
    return {key: value for key, value in summary.items() if key != "wall_s"}


def test_simulate_leaves_a_whole_result_that_can_be_repeated(opcycle: Run, workload: Path, tmp_path: Path) -> None:
    target = tmp_path / "result"
    summary = parsed(opcycle("simulate", "npu-hbm2", workload, "-o", target, "--json"))
    assert sorted(path.name for path in target.iterdir()) == [MANIFEST, *RESULT]
    assert json.loads((target / "summary.json").read_text()) == summary
    again = parsed(opcycle("simulate", target / "hwconfig.yaml", target / "workload.yaml", "--json"))
    assert timeless(again) == timeless(summary)

    slower = parsed(opcycle("simulate", "npu-hbm2", workload, "-o", target, "--set", "hw.memory.channels=1", "--json"))
    assert slower["time_s"] > summary["time_s"]
    assert json.loads((target / "summary.json").read_text()) == slower


def test_a_trace_runs_like_its_workload(opcycle: Run, workload: Path, tmp_path: Path) -> None:
    assert opcycle("trace", workload, "-o", tmp_path / "t.json").code == 0
    direct = parsed(opcycle("simulate", "npu-hbm2", workload, "--json"))
    stored = parsed(opcycle("simulate", "npu-hbm2", tmp_path / "t.json", "--json"))
    assert [stored[key] for key in ("time_s", "energy_j", "flops", "dram_bytes")] == [
        direct[key] for key in ("time_s", "energy_j", "flops", "dram_bytes")
    ]


def test_a_trace_keeps_the_name_of_its_workload(opcycle: Run, workload: Path, tmp_path: Path) -> None:
    assert opcycle("trace", workload, "-o", tmp_path / "t.json").code == 0
    target = tmp_path / "result"
    first = parsed(opcycle("simulate", "npu-hbm2", tmp_path / "t.json", "-o", target, "--json"))
    assert first["workload"] == "tiny-decode"
    again = parsed(opcycle("simulate", target / "hwconfig.yaml", target / "workload.yaml", "--json"))
    assert timeless(again) == timeless(first)


def test_the_first_run_says_that_it_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPCYCLE_CACHE", str(tmp_path))
    monkeypatch.setattr("numba.core.config.DISABLE_JIT", 0)
    say_if_kernels_are_new("machine.run")
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", COMPILING + "\n")
    (folder,) = (tmp_path / "kernels").iterdir()
    (folder / "machine.run-1.py.nbi").write_text("")
    say_if_kernels_are_new("machine.run")
    assert capsys.readouterr().err == ""


def test_simulate_prints_a_table_and_where_the_files_are(opcycle: Run, workload: Path, tmp_path: Path) -> None:
    outcome = opcycle("simulate", "npu-hbm2", workload, "-o", tmp_path / "result")
    assert outcome.code == 0
    assert outcome.err.replace(COMPILING, "").strip() == ""
    assert "busiest unit" in outcome.out
    assert "tiny-decode on npu-hbm2" in outcome.out
    for name in ("attention", "gate_up", "energy", "roofline", str(tmp_path / "result" / "timeline.png")):
        assert name in outcome.out


def test_pictures_are_drawn_again_from_the_folder(opcycle: Run, workload: Path, tmp_path: Path) -> None:
    target = tmp_path / "result"
    assert opcycle("simulate", "npu-hbm2", workload, "-o", target).code == 0
    (target / "roofline.png").unlink()
    outcome = opcycle("plot", target)
    assert outcome.code == 0, outcome.err
    assert (target / "roofline.png").read_bytes().startswith(b"\x89PNG")
    assert str(target / "energy.png") in outcome.out


def test_compare_puts_runs_side_by_side(opcycle: Run, workload: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    first = parsed(opcycle("simulate", "npu-hbm2", workload, "-o", one, "--json"))
    second = parsed(opcycle("simulate", "npu-hbm2", workload, "-o", two, "--set", "workload.batch=8", "--json"))
    table = parsed(opcycle("compare", one, two, "--json"))
    assert table["folders"] == [str(one), str(two)]
    time = next(row for row in table["rows"] if row["quantity"] == "time_s" and not row["kind"])
    assert (time["one"], time["two"]) == (first["time_s"], second["time_s"])
    assert time["two / one"] == second["time_s"] / first["time_s"]
    assert {"matmul", "attention"} <= {row["kind"] for row in table["rows"]}
    shown = opcycle("compare", one, two)
    assert shown.code == 0
    assert "matmul" in shown.out


def test_an_interrupted_run_leaves_nothing(
    opcycle: Run, workload: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr("analysis.figures.draw_all", stop)
    outcome = opcycle("simulate", "npu-hbm2", workload, "-o", tmp_path / "result")
    assert (outcome.code, outcome.err) == (130, "opcycle: interrupted\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 s"), (1, "1.00 s"), (0.001, "1.00 ms"), (0.9999e-3, "1.00 ms"), (123.4, "123 s"), (12.34, "12.3 s"),
        (5e12, "5.00 Ts"), (3e-15, "0.00 ps"), (None, "-"), (999.7, "1.00 ks"),
    ],
)  # fmt: skip
def test_numbers_have_three_digits_and_a_prefix(value: float | None, text: str) -> None:
    assert engineering(value, "s") == text


def test_sizes_have_a_binary_prefix() -> None:
    assert binary_size(512) == "512 B"
    assert binary_size(1536) == "1.5 KiB"
    assert binary_size(2**30) == "1 GiB"
    assert binary_size(2**42) == "4 TiB"
