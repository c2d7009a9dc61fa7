"""The page of a sweep or a search: its front, a scatter whose axes are chosen, and a table of all points to filter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.designs import axis_names, design_points, goals_of, unit_of
from analysis.pages.frame import PREFIXED, columns_of, data_text, facts, page, section, source
from analysis.style import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILION, short
from sim.sweep.front import pareto
from sim.sweep.point import OK

if TYPE_CHECKING:
    from pyarrow import Table

FIRST = (
    "status", "time_s", "energy_j", "tokens_per_s", "area_mm2", "cost_usd", "edp_js", "tokens_per_j", "bound",
    "mac_utilization", "memory_bandwidth_utilization",
)  # fmt: skip
"""Columns that follow the axes; the others come after them."""
MOST = 20_000
"""Points that a page carries; of more, the front and the best by the first goal."""


def sweep_page(folder: str | Path) -> str:
    """The page of a result folder of `sweep` or `search`. Raises ConfigError where there is none."""
    folder = Path(folder)
    whole = design_points(folder)
    every, goals = whole.num_rows, goals_of(folder)
    shown, front, reached = _best(whole, goals)
    # Only what is shown becomes Python objects: a sweep may have many more rows.
    table = whole.take(shown)
    rows: list[dict[str, Any]] = table.to_pylist()
    keys = ["point", *(axis_names(rows) if rows else [])]
    names = [*keys, *(name for name in FIRST if name in table.column_names)]
    names += [name for name in table.column_names if name not in names and not _constant_axis(name)]
    names = [name for name in names if table[name].null_count < len(rows)]
    listed = [[row[name] for name in names] for row in rows]
    marked = [at for at, i in enumerate(shown) if i in front]
    numbers = [c["name"] for c in columns_of(names, listed) if not c["text"]]
    axes = [*(name for name in reached if name in numbers), "time_s", "energy_j"]
    data = {
        "id": "points", "columns": columns_of(names, listed), "rows": listed, "filter": True, "marked": marked,
        "keys": len(keys), "x": axes[0], "y": next((name for name in axes[1:] if name != axes[0]), axes[0]),
        "palette": [BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY],
    }  # fmt: skip
    about = _about(folder)
    counts = {found["values"]: found["counts"] for found in whole["status"].value_counts().to_pylist()}
    boxes = [("points", f"{every:,}"), *((status, f"{n:,}") for status, n in sorted(counts.items()))]
    boxes += [(f"best {name}", _told(value, name)) for name, value in reached.items()]
    choose = "".join(
        f'<label>{label} <select id="choose-{name}"></select></label>'
        + (f'<label><input type="checkbox" id="log-{name}"> logarithmic</label>' if name in "xy" else "")
        for name, label in (("x", "across"), ("y", "up"), ("colour", "colour"))
    )
    choices = f'<div class="choices">{choose}</div>'
    cut = f"{len(shown):,} of {every:,} points; " if every > MOST else ""
    aims = ", ".join(
        f"{name} {'large' if goal == 'max' else 'small'}" for name, goal in goals.items() if name in reached
    )
    body = [
        facts(boxes),
        section("Points", f'{choices}<div id="scatter" class="plot"></div>', f"{cut}ringed: the front of {aims}"),
        section(
            "Table",
            '<div id="points"></div>',
            "click a heading to sort; filter by part of a text, a comparison such as >= 32, or a range such as 16..64; "
            "the scatter follows",
        ),
        section("Input", source("spec", json.dumps(about.get("spec", {}), indent=2))),
    ]
    script = f"const data = {data_text(data)};\nmakeTable(data, makeScatter(data));"
    spec = about.get("spec", {})
    subtitle = f"{spec.get('workload', '')} on {spec.get('hardware', '')}, opcycle {about.get('opcycle', '')}"
    return page(str(about.get("name") or folder.name), subtitle, "\n".join(body), script)


def _best(whole: Table, goals: dict[str, str]) -> tuple[list[int], set[int], dict[str, float]]:
    """The rows that a page carries, those of them on the front, and the best value of each goal that points have."""
    ok = [i for i, status in enumerate(whole["status"].to_pylist()) if status == OK]
    known = [name for name in goals if name in whole.column_names]
    values = {name: column for name in known if all((column := whole[name].to_pylist())[i] is not None for i in ok)}
    if not ok or not values:
        return list(range(min(whole.num_rows, MOST))), set(), {}
    aims = [goals[name] for name in values]
    points = [[column[i] for column in values.values()] for i in ok]
    front = {ok[i] for i in pareto(points, aims)}
    reached = {
        name: (max if aim == "max" else min)(column)
        for name, aim, column in zip(values, aims, zip(*points, strict=True), strict=True)
    }
    if whole.num_rows <= MOST:
        return list(range(whole.num_rows)), front, reached
    first = next(iter(values.values()))
    others = sorted((i for i in ok if i not in front), key=lambda i: first[i], reverse=aims[0] == "max")
    return sorted([*front, *others[: MOST - len(front)]]), front, reached


def _told(value: float, name: str) -> str:
    """A value with the unit of its column, and a prefix where that takes one."""
    unit = unit_of(name)
    return short(value, unit) if unit in PREFIXED else f"{value:.4g} {unit}".rstrip()


def _constant_axis(name: str) -> bool:
    return name in ("on_front", "hardware", "workload", "variant") or name.startswith(("hw.", "workload."))


def _about(folder: Path) -> dict[str, Any]:
    for name in ("search.json", "sweep.json"):
        if (folder / name).is_file():
            found: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
            return found
    return {}
