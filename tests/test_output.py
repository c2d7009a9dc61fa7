"""Result folders: whole or absent, and never in place of someone else's files."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sim.errors import ConfigError
from sim.output import MANIFEST, check_target, replacing, result_folder, write_text


def fill(target: Path, **files: str) -> None:
    with result_folder(target) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_appears_whole_with_a_manifest(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "result"
    fill(target, a="1", b="2")
    assert names(target) == [MANIFEST, "a", "b"]
    assert json.loads((target / MANIFEST).read_text()) == {"schema": "opcycle/result/1", "files": ["a", "b"]}
    assert names(target.parent) == ["result"]


def test_is_invisible_until_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "result"
    with result_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert target.exists()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_vanishes_when_interrupted(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "result"
    with pytest.raises(error), result_folder(target) as folder:
        (folder / "a").write_text("1")
        raise error
    assert names(tmp_path) == []


def test_an_interrupted_rerun_keeps_the_earlier_result(tmp_path: Path) -> None:
    target = tmp_path / "result"
    fill(target, a="old")
    with pytest.raises(KeyboardInterrupt), result_folder(target) as folder:
        (folder / "a").write_text("new")
        raise KeyboardInterrupt
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["result"]


def test_replaces_an_earlier_result_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "result"
    fill(target, a="old", b="old")
    fill(target, a="new")
    assert names(target) == [MANIFEST, "a"]
    assert (target / "a").read_text() == "new"
    assert names(tmp_path) == ["result"]


def test_fills_an_empty_folder(tmp_path: Path) -> None:
    fill(tmp_path / "result")
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty", a="1")
    assert names(tmp_path / "empty") == [MANIFEST, "a"]


def test_never_replaces_files_of_others(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds no opcycle result \(such as 'thesis.tex'\)"):
        check_target(tmp_path)
    target = tmp_path / "result"
    fill(target, a="1")
    (target / "notes.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds files of others \(such as 'notes.md'\)"):
        fill(target, a="2")
    assert (target / "a").read_text() == "1"
    assert (target / "notes.md").read_text() == "mine"


def test_follows_a_link_to_a_result(tmp_path: Path) -> None:
    fill(tmp_path / "real", a="1")
    (tmp_path / "latest").symlink_to("real")
    fill(tmp_path / "latest", a="2")
    assert (tmp_path / "latest").is_symlink()
    assert (tmp_path / "real" / "a").read_text() == "2"


def test_says_why_a_place_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file, but a result is a folder"):
        check_target(tmp_path / "file")
    with pytest.raises(ConfigError, match=r"cannot be written \(.*file is no folder\)"):
        check_target(tmp_path / "file" / "below")
    with pytest.raises(ConfigError, match="is a folder, but a file is to be written"):
        write_text(tmp_path, "x")
    with pytest.raises(ConfigError, match="cannot be written"):
        check_target("/proc/result")


def test_files_are_replaced_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    write_text(path, "new")
    assert path.read_text() == "new"
    assert names(tmp_path) == ["file"]


def test_files_get_the_usual_permissions(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_text(tmp_path / "file", "x")
        fill(tmp_path / "result")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "result").stat().st_mode & 0o777 == 0o750


def test_a_terminated_process_leaves_nothing_that_looks_whole(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "import sim.cli\n"
        "from sim.output import result_folder\n"
        "def stopped():\n"
        "    with result_folder(target) as folder:\n"
        "        (folder / 'summary.json').write_text('{}')\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "sim.cli.app.command('stopped')(stopped)\n"
        "target, sys.argv = sys.argv[1], ['opcycle', 'stopped']\n"
        "sim.cli.main()\n"
    )
    target = tmp_path / "result"
    done = subprocess.run([sys.executable, "-c", program, str(target)], capture_output=True, text=True, check=False)
    assert done.returncode == 130, done.stderr
    assert done.stderr == "opcycle: interrupted\n"
    assert names(tmp_path) == []
