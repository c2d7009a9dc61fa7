"""Systems side by side: speedups and shares by hand, files, what the command prints."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from report_cases import decoder, report
from typer.testing import CliRunner

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
    assert second["speedup"] == pytest.approx(summaries[0]["time_per_step_s"] / summaries[1]["time_per_step_s"])
    assert second["energy_per_token_j"] == pytest.approx(summaries[1]["energy_j"] / summaries[1]["tokens"])
    assert first["npu_busy"] == summaries[0]["utilization"]["array"]
    # These reports come from a machine without units in memory, whose data buses were not watched.
    assert first["pim_busy"] is None and first["memory_bus"] is None


def test_the_picture_names_every_system_and_part_and_stays_on_the_page(folders: list[Path]) -> None:
    drawn = systems_figure(system_rows(folders))
    drawn.canvas.draw()
    renderer = drawn.canvas.get_renderer()  # type: ignore[attr-defined]
    ink = drawn.get_tightbbox(renderer)
    wide, tall = drawn.get_size_inches()
    assert ink.x0 >= 0 and ink.y0 >= 0 and ink.x1 <= wide and ink.y1 <= tall
    words = {text.get_text() for axes in drawn.axes for text in axes.get_yticklabels()}
    assert {"slow", "fast"} <= words
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == [name for name, _ in PARTS.values()]


def test_the_command_prints_and_writes_them(folders: list[Path], tmp_path: Path) -> None:
    names = [str(folder) for folder in folders]
    shown = CliRunner().invoke(app, ["compare", *names, "-o", str(tmp_path / "c")])
    assert shown.exit_code == 0, shown.output
    assert "speedup" in shown.output and "memory bus" in shown.output
    with (tmp_path / "c" / "systems.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["system"] for row in rows] == ["slow", "fast"]
    assert (tmp_path / "c" / "systems.png").read_bytes().startswith(b"\x89PNG")
    printed = json.loads(CliRunner().invoke(app, ["compare", *names, "--json"]).output)
    assert [row["hardware"] for row in printed["systems"]] == ["npu", "pim"]
    assert printed["rows"] and printed["folders"] == names
