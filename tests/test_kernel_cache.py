"""Compiled kernels are kept by what they say, not by where they stand."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from sim.kernels import jit

ADD = '''"""A kernel for a test."""

from sim.kernels.jit import leaf
{extra}

@leaf
def add(a, b):
    return a + b {more}
'''
RUN = """
import sys
sys.path.insert(0, {folder!r})
from sim.kernels.tiny import add
print(add(2, 3), sum(add.stats.cache_hits.values()))
"""


def _package(folder: Path, more: str = "", extra: str = "") -> Path:
    kernels = folder / "sim" / "kernels"
    kernels.mkdir(parents=True)
    (folder / "sim" / "__init__.py").write_text("")
    (kernels / "__init__.py").write_text("")
    shutil.copy(jit.__file__, kernels)
    (kernels / "other.py").write_text("SHIFT = 0\n")
    (kernels / "tiny.py").write_text(ADD.format(more=more, extra=extra))
    return folder


def _run(folder: Path, cache: Path) -> list[int]:
    environment = {**os.environ, "OPCYCLE_CACHE": str(cache), "NUMBA_DISABLE_JIT": "0"}
    command = [sys.executable, "-c", RUN.format(folder=str(folder))]
    ran = subprocess.run(command, env=environment, cwd=folder, capture_output=True, check=True, text=True)
    return [int(word) for word in ran.stdout.split()]


def test_a_second_checkout_compiles_nothing_and_a_changed_one_does(tmp_path):
    cache = tmp_path / "cache"
    first, second = _package(tmp_path / "a"), _package(tmp_path / "b")
    assert _run(first, cache) == [5, 0]
    assert _run(second, cache) == [5, 1]
    changed = _package(tmp_path / "c", more="+ 1")
    assert _run(changed, cache) == [6, 0]


def test_a_change_in_an_imported_module_compiles_again(tmp_path):
    cache = tmp_path / "cache"
    extra = "from sim.kernels.other import SHIFT\n"
    first = _package(tmp_path / "a", more="+ SHIFT", extra=extra)
    assert _run(first, cache) == [5, 0]
    second = _package(tmp_path / "b", more="+ SHIFT", extra=extra)
    (second / "sim" / "kernels" / "other.py").write_text("SHIFT = 7\n")
    assert _run(second, cache) == [12, 0]
