"""Reads result folders into plain tables, and many of them into one data frame.

Figures read through this module, so that a picture can be drawn again from its folder alone.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Protocol

from analysis.folder import check_schema, read_json
from sim.errors import ConfigError

if TYPE_CHECKING:
    from pandas import DataFrame

SUMMARY_SCHEMA = "opcycle/summary/1"
FILES = ("operators.csv", "energy.csv", "timeline.json")
"""What a result holds beside its summary, for pictures and comparisons."""
TIMELINE_SCHEMA = "opcycle/timeline/1"

_TEXT = frozenset(
    {
        "pass",
        "phase",
        "block",
        "operator",
        "kind",
        "role",
        "format",
        "bound",
        "component",
        "subcomponent",
        "unit",
        "source",
    }
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """One result folder; the larger files are read when first asked for. Every reader raises ConfigError."""

    folder: Path
    summary: dict[str, Any]

    @cached_property
    def operators(self) -> list[Row]:
        """Rows of operators.csv; numbers are floats, missing ones None."""
        return _read_csv(self.folder / "operators.csv")

    @cached_property
    def energy(self) -> list[Row]:
        """Rows of energy.csv."""
        return _read_csv(self.folder / "energy.csv")

    @cached_property
    def events(self) -> list[Row]:
        """Events of timeline.json, in the order of the file."""
        trace = read_json(self.folder / "timeline.json")
        check_schema(trace.get("otherData", {}).get("schema"), TIMELINE_SCHEMA, self.folder / "timeline.json")
        events: list[Row] = trace["traceEvents"]
        return events

    @property
    def title(self) -> str:
        """Workload and hardware in one line."""
        return f"{self.summary['workload']} on {self.summary['hardware']}"


class Written(Protocol):
    """A report that can be written, as `simulate` returns it."""

    @property
    def summary(self) -> dict[str, Any]: ...

    def write(self, folder: str | Path, pictures: bool = ..., page: bool = ...) -> Path: ...


Source = str | Path | Result | Written
"""Where a run's results are: a folder, or the report itself."""


def read_result(source: Source) -> Result:
    """The result in a folder, or of a report, which is written and read back, so that both give the same pictures.

    Raises ConfigError where there is none, or one of another version.
    """
    if isinstance(source, Result):
        return source
    if isinstance(source, (str, Path)):
        return _read_folder(Path(source))
    with TemporaryDirectory() as folder:
        found = _read_folder(source.write(Path(folder) / source_name(source), pictures=False))
        _ = found.operators, found.energy, found.events  # read while they are there
    return found


def source_name(source: Source) -> str:
    """What a run is called: the last part of its folder, or its machine."""
    if isinstance(source, Result):
        source = source.folder
    return Path(source).resolve().name if isinstance(source, (str, Path)) else str(source.summary["hardware"])


def _read_folder(path: Path) -> Result:
    if not (path / "summary.json").is_file():
        raise ConfigError("holds no result (there is no summary.json)", file=path)
    summary = read_json(path / "summary.json")
    check_schema(summary.get("schema"), SUMMARY_SCHEMA, path / "summary.json")
    missing = [name for name in FILES if not (path / name).is_file()]
    if missing:
        raise ConfigError(f"result is incomplete: {missing[0]} is missing; simulate it again", file=path)
    return Result(path, summary)


def summaries(folders: Iterable[Source]) -> DataFrame:
    """One row a run: the summary's numbers, nested keys joined by dots, with the column `folder` first."""
    from pandas import DataFrame

    named = [(str(each) if isinstance(each, (str, Path)) else source_name(each), each) for each in folders]
    return DataFrame([{"folder": name} | flatten(read_result(each).summary) for name, each in named])


def flatten(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one level, keys joined by dots; lists are left out."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            flat |= flatten(inner, f"{prefix}{key}.")
        elif not isinstance(inner, list):
            flat[f"{prefix}{key}"] = inner
    return flat


def total(rows: Iterable[Row], key: str, amount: str) -> dict[str, float]:
    """Sum of column `amount` by the values of column `key`, in order of appearance."""
    sums: dict[str, float] = {}
    for row in rows:
        sums[row[key]] = sums.get(row[key], 0.0) + (row[amount] or 0.0)
    return sums


def _read_csv(path: Path) -> list[Row]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return [{name: _cell(name, text) for name, text in row.items()} for row in csv.DictReader(file)]
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from None
    except ValueError as error:
        raise ConfigError(f"is damaged: {error}", file=path) from None


def _cell(name: str, text: str) -> str | float | None:
    if name in _TEXT or name.startswith("decision_"):
        return text
    return float(text) if text else None
