"""docs/stream.md: its tables are what the simulator gives, its graph and its Python work as shown."""

from __future__ import annotations

import doctest
import re
import shlex
from collections.abc import Callable

import pytest

from sim.document import parse_yaml
from sim.stream.attention import COMPUTE, VARIANTS, Variant, attention, attention_graph
from sim.stream.engine import run_graph
from sim.stream.schema import read_graph
from tests.conftest import ROOT, Outcome

PAGE = (ROOT / "docs" / "stream.md").read_text(encoding="utf-8")


def table(name: str) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table between the comments of that name."""
    found = re.search(f"<!-- {name} -->\n(.*?)\n<!-- end {name} -->", PAGE, re.DOTALL)
    assert found is not None
    heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in found[1].split("\n"))
    return heads, rows


def cycles(kind: Variant, n: int, short: int, long: int | str, unit: bool) -> str:
    latency = dict.fromkeys(COMPUTE[kind], 1) if unit else {}
    outcome = run_graph(attention_graph(attention(kind, n, 64, short=short, long=long, latency=latency)))
    return "deadlock" if outcome.deadlock else str(outcome.cycles)


def test_tables() -> None:
    heads, rows = table("deep")
    assert tuple(heads[1:]) == VARIANTS
    assert len(rows) == 4
    for n, *found in rows:
        assert found == [cycles(kind, int(n), 2, int(n) + 2, True) for kind in VARIANTS]
    _, rows = table("shallow")
    assert len(rows) == 6
    for n, short, *found in rows:
        assert found == [cycles(kind, int(n), int(short), "inf", False) for kind in VARIANTS]
    _, rows = table("depth")
    assert len(rows) == 6
    for depth, *found in rows:
        assert found == [cycles(kind, 64, 2, int(depth), True) for kind in VARIANTS[:3]]


def test_python() -> None:
    test = doctest.DocTestParser().get_doctest(PAGE, {}, "stream.md", "stream.md", 0)
    assert len(test.examples) == 5
    assert doctest.DocTestRunner().run(test).failed == 0


def test_graph_and_commands(opcycle: Callable[..., Outcome]) -> None:
    found = re.search(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    assert run_graph(read_graph(parse_yaml(found[1]))).fires["rep"] == 256
    commands = [line for line in PAGE.split("\n") if line.startswith("opcycle unit stream") and "GRAPH" not in line]
    assert len(commands) == 3
    for command in commands:
        arguments = [re.sub("^1024$", "48", word) for word in shlex.split(command)[1:]]
        assert opcycle(*arguments).code == 0, command


@pytest.mark.parametrize("kind", ["source", "map", "scan", "broadcast", "repeat", "merge", "select", "split", "sink"])
def test_kinds_are_described(kind: str) -> None:
    assert re.search(rf"^\| [^|]*`{kind}`", PAGE, re.MULTILINE)
