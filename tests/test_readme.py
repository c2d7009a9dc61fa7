"""What the README shows works as shown: its commands and its Python are run here, in order."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT, Outcome

README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.partition("  #")[0].strip() for line in re.findall(r"^\$ (opcycle .*)$", README, re.MULTILINE)]
PYTHON = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the examples take for given."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "hwconfigs" / "machines" / "npu-hbm2.yaml", tmp_path / "my-machine.yaml")
    (tmp_path / "requests.txt").write_text("LD 0\nLD 64\nST 0x80\n")
    return tmp_path


def test_commands(opcycle: Callable[..., Outcome], folder: Path) -> None:
    assert len(COMMANDS) >= 8
    demo = re.search(r"opcycle simulate .*", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert demo is not None
    for command in [demo.group(), *COMMANDS]:
        outcome = opcycle(*shlex.split(command)[1:])
        assert outcome.code == 0, f"{command}: {outcome.err}"
        assert outcome.out
    table = re.findall(r"^\| (`[^|]*`) \|", README, re.MULTILINE)
    promised = {name for cell in table for name in re.findall(r"`([^`]*)`", cell)}
    assert promised == {path.name for path in (folder / "results" / "demo").iterdir() if path.name[0] != "."}


def test_python(folder: Path) -> None:
    (program,) = PYTHON
    names: dict[str, object] = {}
    exec(compile(program, "README.md", "exec"), names)
    assert (folder / "results" / "gpt3" / "summary.json").exists()


def test_pages_are_listed_and_links_lead_somewhere() -> None:
    pages = sorted((ROOT / "docs").glob("*.md"))
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [page.name for page in pages if page.name != "README.md" and f"({page.name})" not in index] == []
    for page in [ROOT / "README.md", *pages]:
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), f"{page.name}: {link}"


def test_the_error_that_the_docs_show(refused: Callable[..., str], folder: Path) -> None:
    shown = re.search(r"^my-machine\.yaml:(\d+): .*$", (ROOT / "docs" / "files.md").read_text("utf-8"), re.MULTILINE)
    assert shown is not None
    path = folder / "my-machine.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace("channels: 32", "chanels: 32"))
    said = refused("check", path.name)
    line = said.split(":")[1]
    assert said == shown.group().replace(f":{shown.group(1)}:", f":{line}:")
    assert "chanels" in path.read_text(encoding="utf-8").splitlines()[int(line) - 1]
