"""Every number in the data that ships says where it comes from, or that it is assumed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sim.config import load_yaml, parse_yaml
from sim.document import Document

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(
    path
    for folder in ("hwconfigs", "workloads/models", "workloads/scenarios", "workloads/lengths")
    for path in (ROOT / folder).rglob("*.yaml")
)


LABELS = ("name", "node", "technology", "description", "standard", "table")
"""Keys whose text is a name, even where it begins with a number (`7 nm`)."""


def numbers(value: Any, key: str = "") -> Iterator[str]:
    """Dotted paths of the numbers in plain data: bare ones, and quantities with a unit."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from numbers(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from numbers(item, f"{key}.{index}")
    elif isinstance(value, str):
        if re.match(r"[0-9.]+(e[-+]?[0-9]+)? ?[A-Za-z%µ]", value) and key.rpartition(".")[2] not in LABELS:
            yield key
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield key


def without_source(document: Document) -> list[str]:
    """The numbers of a file that no comment vouches for."""
    return [key for key in numbers(document.data) if not re.search(r"\w", document.source_of(key) or "")]


def test_the_rule_finds_what_it_should() -> None:
    text = "a: 1\nb: 2  # data sheet\n# source: paper\nc: {d: 3, e: 4 ns}\nf:\n  # nothing of use\n  - 5 GHz\ng: true\n"
    assert without_source(parse_yaml(text)) == ["a", "f.0"]


def test_there_is_data() -> None:
    assert len(FILES) > 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_number_has_a_source(path: Path) -> None:
    document = load_yaml(path)
    missing = without_source(document)
    assert not missing, f"{path.relative_to(ROOT)}: " + ", ".join(f"{document.line_of(k)}: {k}" for k in missing[:10])
