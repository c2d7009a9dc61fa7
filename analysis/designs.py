"""Rows of many designs, from a sweep or a search: which are best, and how much each axis matters.

Rows are mappings of column to value, or the path of a folder that `opcycle sweep` or `search` left.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.errors import ConfigError, not_among
from sim.sweep.front import pareto
from sim.sweep.objectives import SHORT

if TYPE_CHECKING:
    from pandas import DataFrame
    from pyarrow import Table

Row = Mapping[str, Any]
Source = Any
"""A folder, or rows: mappings, a table of pyarrow (as searches and sweeps return them), a data frame."""

UNITS = {
    "_s": "s",
    "_j": "J",
    "_w": "W",
    "_bytes": "B",
    "_mm2": "mm²",
    "_usd": "USD",
    "_js": "J s",
    "_per_s": "/s",
    "flops": "FLOP",
    "flops_per_s": "FLOP/s",
    "vector_ops": "op",
    "_macs": "MAC",
}
"""What the end of a column's name says of its unit."""

SCHEMAS = ("opcycle/sweep-result/1", "opcycle/search-result/1")
RESULTS = ("results.parquet", "trials.parquet")


def design_rows(source: Source) -> list[Row]:
    """The points that could be simulated, of a result folder or of rows. Raises ConfigError where there are none."""
    if isinstance(source, (str, Path)):
        source = design_points(source)
    rows: Sequence[Row] = source
    if hasattr(source, "to_pylist"):
        rows = source.to_pylist()
    elif hasattr(source, "to_dict"):
        rows = source.to_dict("records")
    good = [row for row in rows if row.get("status", "ok") == "ok"]
    if not good:
        raise ConfigError("no point of these could be simulated, so there is nothing to draw")
    return good


def design_points(folder: str | Path) -> Table:
    """All points of a sweep or a search, whatever came of them. Raises ConfigError where there are none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    found = [Path(folder) / name for name in RESULTS if (Path(folder) / name).is_file()]
    if not found:
        raise ConfigError(f"holds no sweep or search (none of {', '.join(RESULTS)})", file=Path(folder))
    try:
        return pq.read_table(found[0])
    except (OSError, pa.ArrowException):
        raise ConfigError("is damaged", file=found[0]) from None


def is_design_result(folder: str | Path) -> bool:
    """Whether a folder holds a sweep or a search."""
    return any((Path(folder) / name).is_file() for name in RESULTS)


def goals_of(folder: str | Path) -> dict[str, str]:
    """What a search aimed at, or a sweep's spec says; else time and energy. Raises ConfigError for a damaged folder."""
    for name in ("search.json", "sweep.json"):
        path = Path(folder) / name
        if path.is_file():
            try:
                about = json.loads(path.read_text(encoding="utf-8"))
                version = about.get("schema")
                stated = about["objectives"] if "objectives" in about else about["spec"].get("objectives", {})
                found: dict[str, str] = dict(stated)
            except (OSError, ValueError, KeyError, AttributeError):
                raise ConfigError("cannot be read as the description of a sweep or search", file=path) from None
            if version not in SCHEMAS:
                raise ConfigError(not_among("version", str(version), SCHEMAS), file=path, key="schema")
            if found:
                return {SHORT.get(key) or key: goal for key, goal in found.items()}
    return {"time_s": "min", "energy_j": "min"}


def design_table(source: Source) -> DataFrame:
    """The same points as a data frame, a row a point, with everything that their columns say."""
    from pandas import DataFrame

    return DataFrame(design_rows(source))


def front_rows(source: Source, objectives: Mapping[str, str]) -> list[Row]:
    """The points that no other beats in all `objectives` ({column: min or max}), by the first of them."""
    rows = design_rows(source)
    values = [[number(row, name) for name in objectives] for row in rows]
    first = next(iter(objectives))
    return sorted((rows[i] for i in pareto(values, list(objectives.values()))), key=lambda row: number(row, first))


def number(row: Row, name: str) -> float:
    """A number of a row. Raises ConfigError with the nearest column."""
    value = row.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        if name in row:
            raise ConfigError(f"column {name} holds {value!r}, but a number is needed")
        raise ConfigError(not_among("column", name, map(str, row), most=40))
    return float(value)


def sensitivity_rows(source: Source, value: str, axes: Sequence[str] = ()) -> list[dict[str, Any]]:
    """How `value` moves when one axis goes through its steps and all others stay, largest first.

    One row an axis: `low` and `high`, geometric means over all settings of the others of the value at the axis's best
    and worst step over the mean of its steps; `low_step` and `high_step`; `swing` = high / low. A setting of the others
    counts where all steps of the axis could be simulated.
    """
    rows = design_rows(source)
    found = []
    keys = list(axes) or axis_names(rows)
    for key in keys:
        steps = steps_of(rows, key)
        groups: dict[tuple[str, ...], dict[Any, float]] = {}
        for row in rows:
            others = tuple(str(row[k]) for k in keys if k != key)
            groups.setdefault(others, {})[row[key]] = number(row, value)
        whole = [group for group in groups.values() if len(group) == len(steps) and min(group.values()) > 0]
        if len(steps) < 2 or not whole:
            continue
        ratio = dict.fromkeys(steps, 0.0)
        for group in whole:
            mean = sum(math.log(v) for v in group.values()) / len(group)
            for step, v in group.items():
                ratio[step] += (math.log(v) - mean) / len(whole)
        low, high = min(steps, key=lambda s: ratio[s]), max(steps, key=lambda s: ratio[s])
        found.append(
            {"axis": key, "low": math.exp(ratio[low]), "high": math.exp(ratio[high]), "low_step": low,
             "high_step": high, "swing": math.exp(ratio[high] - ratio[low]), "settings": len(whole)}
        )  # fmt: skip
    return sorted(found, key=lambda row: -row["swing"])


def axis_names(rows: Sequence[Row]) -> list[str]:
    """The columns that tell the points of a sweep apart."""
    names = [k for k in rows[0] if k.startswith(("hw.", "workload.")) or k in ("hardware", "workload", "variant")]
    return [name for name in names if len({str(row[name]) for row in rows}) > 1]


def steps_of(rows: Sequence[Row], key: str) -> list[Any]:
    """The values of an axis in order: by size where they are numbers or quantities, else as they come."""
    if key not in rows[0]:
        raise ConfigError(not_among("column", key, map(str, rows[0]), most=40))
    found = list(dict.fromkeys(row[key] for row in rows))
    sizes = [_size(value) for value in found]
    if all(size is not None for size in sizes):
        return [value for _, value in sorted(zip(sizes, found, strict=True), key=lambda pair: pair[0] or 0.0)]
    return found


def _size(value: Any) -> float | None:
    """A number, or what a quantity such as `4 MiB` counts in its base unit."""
    from sim.units import BYTES_UNITS, FREQUENCY_UNITS

    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        text, _, unit = value.partition(" ")
        factor = {**BYTES_UNITS, **FREQUENCY_UNITS, "": 1}.get(unit)
        try:
            return None if factor is None else float(text) * float(factor)
        except ValueError:
            return None
    return None


def unit_of(name: str) -> str:
    """The unit that a column's name ends in, or nothing."""
    ends = [end for end in UNITS if name.endswith(end)]
    return UNITS[max(ends, key=len)] if ends and "utilization" not in name else ""
