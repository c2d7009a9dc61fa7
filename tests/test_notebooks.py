"""Every notebook runs from top to bottom, is stored without outputs, and its page in the docs tells the same story."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from analysis.notebooks import names, render
from tests.conftest import ROOT

PAGES = ROOT / "docs" / "notebooks"


@pytest.mark.parametrize("name", names())
def test_a_notebook_runs_and_its_page_says_what_comes_out(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    page = render(name, tmp_path).read_text(encoding="utf-8")
    assert Path.cwd() == ROOT
    assert page.count("![picture") + page.count("\n| --- |") >= 2
    stored = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    assert stored == page, f"docs/notebooks/{name}.md is of older code; run python -m analysis.notebooks {name}"
    drawn = {path.name for path in tmp_path.glob("*.svg")}
    assert drawn == {path.name for path in PAGES.glob(f"{name}-*.svg")}


@pytest.mark.parametrize("name", names())
def test_a_notebook_is_stored_without_outputs(name: str) -> None:
    data = json.loads((ROOT / "analysis" / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert (data["nbformat"], data["metadata"]["kernelspec"]["name"]) == (4, "python3")
    for cell in data["cells"]:
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
        assert not any(line.startswith(("%", "!")) for line in cell["source"])
    assert data["cells"][0]["source"][0].startswith("# ")
    assert f"notebooks/{name}.md" in (ROOT / "docs" / "README.md").read_text(encoding="utf-8")


def test_a_page_holds_tables_text_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = [
        {"cell_type": "markdown", "source": ["# Story"]},
        {"cell_type": "code", "source": ["import pandas as pd\nprint('said')\npd.DataFrame({'a': [1.25, None]})"]},
        {"cell_type": "code", "source": ["from analysis.style import figure\nwith figure(1) as f: f.subplots()\nf"]},
    ]  # fmt: skip
    (tmp_path / "story.ipynb").write_text(json.dumps({"cells": source}))
    monkeypatch.setattr("analysis.notebooks.runner.HERE", tmp_path)
    page = render("story", tmp_path / "out").read_text()
    assert "```\nsaid\n```" in page
    assert "| a |\n| --- |\n| 1.25 |\n| - |" in page
    assert "![picture 1](story-1.svg)" in page
    assert (tmp_path / "out" / "story-1.svg").is_file()
