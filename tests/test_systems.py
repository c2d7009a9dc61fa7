"""Systems side by side: speedups and shares by hand, files, what the command prints."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
from report_cases import decoder, report
from typer.testing import CliRunner

from analysis.compare import compare_rows
from analysis.systems import PARTS, system_rows, systems_figure
from sim.cli import app


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("systems")
    slow, fast = decoder(layers=4, tiles=12), decoder(layers=2, tiles=12)
    return [
        report(slow, hardware="npu").write(root / "slow", pictures=False),
        report(fast, hardware="pim").write(root / "fast", pictures=False),
    ]


def test_rows_say_how_fast_and_how_busy(folders: list[Path]) -> None:
    first, second = system_rows(folders)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in folders]
    assert (first["system"], second["system"]) == ("slow", "fast")
    assert first["speedup"] == 1
    assert (first["latency_s"], first["latency_of"]) == (summaries[0]["tpot_s"], "token")
    assert second["speedup"] == pytest.approx(summaries[0]["tpot_s"] / summaries[1]["tpot_s"])
    assert second["energy_per_token_j"] == pytest.approx(summaries[1]["energy_j"] / summaries[1]["tokens"])
    assert first["npu_busy"] == summaries[0]["utilization"]["array"]
    # These reports come from a machine without units in memory, whose data buses were not watched.
    assert first["pim_busy"] is None and first["memory_bus"] is None


def test_runs_of_other_passes_and_lengths_are_compared_by_the_token(tmp_path: Path) -> None:
    step = decoder(layers=2, tiles=12)  # 64 requests, a token each
    # Two tokens a request from each pass of the same time, 5 passes: half the time a token, whatever the run's length.
    checked = replace(step, name="verify", phase="verify", generated=128, repeat=5)
    encoded = replace(step, name="encode", phase="encode", generated=0)
    passes = {"plain": step, "checked": checked, "encoded": encoded}
    folders = [report(done, batch=64).write(tmp_path / name, pictures=False) for name, done in passes.items()]
    plain, fast, other = system_rows(folders)
    assert plain["latency_s"] == pytest.approx(2 * float(fast["latency_s"]))
    assert (fast["speedup"], other["speedup"], other["latency_of"]) == (pytest.approx(2), None, "run")
    rows = {(row["quantity"], row["kind"]): row for row in compare_rows(folders[:2])}
    assert rows["time_s", ""]["checked / plain"] == pytest.approx(5)
    assert rows["tpot_s", ""]["checked / plain"] == pytest.approx(0.5)
    assert rows["time_per_token_s", "matmul"]["checked / plain"] == pytest.approx(0.5)
    assert ("time_s", "matmul") not in rows


def test_the_picture_names_every_system_and_part_and_stays_on_the_page(folders: list[Path]) -> None:
    drawn = systems_figure(system_rows(folders))
    drawn.canvas.draw()
    renderer = drawn.canvas.get_renderer()
    ink = drawn.get_tightbbox(renderer)
    wide, tall = drawn.get_size_inches()
    assert ink.x0 >= 0 and ink.y0 >= 0 and ink.x1 <= wide and ink.y1 <= tall
    words = {text.get_text() for axes in drawn.axes for text in axes.get_yticklabels()}
    assert {"slow", "fast"} <= words
    rows = system_rows(folders)
    told = [name for key, (name, _) in PARTS.items() if any(row[key] is not None for row in rows)]
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == told
    assert "NPU MACs" in told and "PIM units" not in told


def test_the_command_prints_and_writes_them(folders: list[Path], tmp_path: Path) -> None:
    names = [str(folder) for folder in folders]
    shown = CliRunner().invoke(app, ["compare", *names, "-o", str(tmp_path / "c")])
    assert shown.exit_code == 0, shown.output
    assert "speedup" in shown.output and "NPU MACs" in shown.output
    with (tmp_path / "c" / "systems.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["system"] for row in rows] == ["slow", "fast"]
    assert (tmp_path / "c" / "systems.png").read_bytes().startswith(b"\x89PNG")
    printed = json.loads(CliRunner().invoke(app, ["compare", *names, "--json"]).output)
    assert [row["hardware"] for row in printed["systems"]] == ["npu", "pim"]
    assert printed["rows"] and printed["folders"] == names
