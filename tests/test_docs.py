"""What the docs show works: every command is run or, where it would take long, read to its inputs; every snippet too.

A command is a line of a block or a span that begins with `opcycle`. Words in capitals stand for things that `GIVEN`
names. README and docs/stream.md have tests of their own, which run their longer commands whole.
"""

from __future__ import annotations

import doctest
import re
import shlex
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from sim.base import load_based
from sim.kinds import load_hardware
from tests.conftest import ROOT, Outcome
from tests.onnx_models import decoder
from tests.test_cli import MODEL, SCENARIO
from workloads import load_workload

pytestmark = pytest.mark.usefixtures("own_cache")

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
GIVEN = {
    "DIR": "results/demo", "OUT": "results/out", "FILE": "my-machine.yaml", "FILE...": "my-machine.yaml",
    "MEMORY": "hbm2", "TRACE": "requests.txt", "WORKLOAD": "tiny-decode.yaml", "HWCONFIG": "npu-hbm2",
    "SPEC": "sweep.yaml", "GRAPH.yaml": "graph.yaml", "R": "64", "C": "64", "[--batch": "--batch", "B]": "1",
    "workload.methods=[NAME]": "workload.methods=[ffn-skipllm]",
}  # fmt: skip
"""What the words that stand for something are here."""
ABBREVIATED = {
    "opcycle unit sparse": "the command's name alone",
    "opcycle unit dram --check": "an option of a command that stands above",
    "opcycle simulate": "the command's name alone",
    "opcycle plot": "the command's name alone",
}
"""Spans that name a command or an option and are no whole command line, and why; they are asked for --help."""
NO_COMMAND = {"opcycle model": "a file of kind `opcycle/model`, said in passing"}
"""Spans that begin like a command and are none, and why."""
READ_ONLY = {
    "simulate": "whole models: seconds to minutes each",
    "validate": "its own tests run the sets, for seconds each",
    "claims": "its own tests compute some; all take a minute",
}
"""Commands that are read to their inputs, which must exist and fit each other, but not run, and why."""
TESTED = {
    "README.md": "test_readme runs its block",
    "stream.md": "test_stream_docs runs its block",
}
"""Pages whose blocks of commands have a test of their own; their spans and tables are run here."""
FRAGMENTS = {"links": "base: h200", "tiers": "base: npu-hbm2"}
"""Blocks of YAML that are a section of a machine: what the rest of it is."""


def commands(page: Path) -> list[str]:
    """The command lines of a page, each once, in order."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^(?:\$ |    )?(opcycle .*)$", text, re.MULTILINE)
    spans = re.findall(r"`(opcycle [^`\n]*)`", text)
    return list(dict.fromkeys(line.partition("  #")[0].strip() for line in [*blocks, *spans]))


def blocks(page: Path, language: str) -> list[str]:
    """The blocks of a page in a language."""
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the files that the examples take for given."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "hwconfigs" / "machines" / "npu-hbm2.yaml", "my-machine.yaml")
    Path("requests.txt").write_text("LD 0\nLD 64\nST 0x80\n")
    Path("tiny.yaml").write_text(MODEL)
    Path("tiny-decode.yaml").write_text(SCENARIO)
    Path("my-decode.yaml").write_text(blocks(ROOT / "docs" / "workloads.md", "yaml")[0])
    shutil.copy(ROOT / "hwconfigs" / "graphs" / "two-nodes.yaml", "graph.yaml")
    decoder(Path("model.onnx"), 2, 64, 4, 2, 128, 96, 256)
    Path("sweep.yaml").write_text(
        "schema: opcycle/sweep/1\nhardware: a100-roofline\nworkload: ./tiny-decode.yaml\n"
        "axes: {hw.memory.channels: [16, 32, 64, 128], workload.batch: [1, 2, 4, 8]}\nset: {hw.die: null}\n"
        "objectives: {time_s: min, area_mm2: min}\n"
    )
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands(page: Path, folder: Path, opcycle: Callable[..., Outcome]) -> None:
    told = [line for line in commands(page) if line not in NO_COMMAND]
    if any("results/demo" in words(line) for line in told):
        assert opcycle("simulate", "a100-roofline", "tiny-decode.yaml", "-o", "results/demo").code == 0
    for line in told:
        if page.name in TESTED and f"`{line}`" not in page.read_text(encoding="utf-8"):
            continue
        arguments = words(line)
        if line in ABBREVIATED:
            arguments.append("--help")
        elif arguments[0] in READ_ONLY and not set(arguments) & {"tiny-decode.yaml", "results/demo/workload.yaml"}:
            read(arguments)
            continue
        elif arguments[0] == "compare":
            arguments[1:3] = ["results/demo", "results/demo"]
            opcycle("simulate", "a100-roofline", "tiny-decode.yaml", "-o", "results/demo")
        outcome = opcycle(*arguments)
        assert outcome.code == 0, f"{page.name}: {line}: {outcome.err}"


def words(line: str) -> list[str]:
    """The arguments of a command line, with what they stand for."""
    found = [GIVEN.get(word, re.sub(r"^DIR/", "results/demo/", word)) for word in shlex.split(line)[1:]]
    if "-o" in found and "DIR" in line:
        found[found.index("-o") + 1] = f"results/{found[0]}"
    if found[:2] == ["unit", "pim"]:
        found[2] = "neupims"
    return found


def read(arguments: list[str]) -> None:
    """Read the inputs of a command that is not run. Raises ConfigError where they do not exist or do not fit."""
    if arguments[0] == "validate":
        from sim.validation.sets import SETS

        assert {word for word in arguments[1:] if word[0] != "-" and word != "pictures"} <= set(SETS)
        return
    if arguments[0] == "claims":
        from sim.claims.schema import chosen

        named = [word for before, word in pairwise(arguments) if word[0] != "-" and before != "-o"]
        assert chosen([word for word in named if word != "mine.yaml"])
        return
    settings = [b.split("=", 1) for a, b in pairwise(arguments) if a == "--set"]
    own: dict[str, dict[str, object]] = {"hw": {}, "workload": {}}
    for key, value in settings:
        root, _, rest = key.partition(".")
        own[root][rest] = value
    hardware, workload = ("my-machine.yaml" if word == "./mine.yaml" else word for word in arguments[1:3])
    load_hardware(hardware, dict(own["hw"]))
    assert load_workload(workload, dict(own["workload"])).trace().passes


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python(page: Path, folder: Path) -> None:
    text = page.read_text(encoding="utf-8")
    if ">>> " in text:
        test = doctest.DocTestParser().get_doctest(text, {}, page.name, page.name, 0)
        assert doctest.DocTestRunner().run(test).failed == 0
    plain = [block for block in blocks(page, "python") if ">>> " not in block]
    assert not plain or page.name == "README.md", "a snippet is a doctest, or the README's, which test_readme runs"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files(page: Path, folder: Path, opcycle: Callable[..., Outcome]) -> None:
    for number, text in enumerate([*blocks(page, "yaml"), *blocks(page, "json")]):
        key = text.split(":")[0].strip()
        path = folder / f"shown-{number}.{'json' if text.startswith('{') else 'yaml'}"
        if key in FRAGMENTS:
            text = f"schema: opcycle/hardware/1\nname: shown\n{FRAGMENTS[key]}\n{text}"
        elif key == "rules":
            shown = yaml.safe_load(text)["rules"]
            whole = {**load_based("memory", "ddr4-3200").data, "name": "shown"}
            text = yaml.safe_dump({**whole, "rules": [*whole["rules"], *shown]}, sort_keys=False)
        elif key == "channels":
            text = f"schema: opcycle/stream/1\n{text}"
        elif text.startswith("# yaml-language-server"):
            continue  # the first two lines of a file, for editors
        method = re.match(r"schema: opcycle/method/1\nname: (\S+)", text)
        if method:
            path = folder / f"{method[1]}.yaml"  # a method is called as its file
        path.write_text(text)
        outcome = opcycle("check", path)
        assert outcome.code == 0, f"{page.name}: {outcome.err}"
