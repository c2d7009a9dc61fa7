"""Pictures of many designs at once: fronts, heat maps over two axes, and which axis matters how much."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.designs import (
    Row,
    Source,
    design_rows,
    front_rows,
    goals_of,
    number,
    sensitivity_rows,
    steps_of,
    unit_of,
)
from analysis.style import BLACK, BLUE, GREY, ORANGE, VERMILION, figure, ink_on, scaled
from sim.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def design_pictures(folder: str | Path) -> dict[str, Callable[[], Figure]]:
    """The pictures of a folder of a sweep or a search: its front, and how much each axis matters to the first goal."""
    rows = design_rows(folder)
    goals = goals_of(folder)
    first = next(iter(goals))
    found: dict[str, Callable[[], Figure]] = {"front": partial(front_figure, rows, goals)}
    if sensitivity_rows(rows, first):
        found["sensitivity"] = partial(tornado_figure, rows, first)
    return found


def front_figure(source: Source, objectives: Mapping[str, str]) -> Figure:
    """All points, and the front of the first two objectives as a staircase.

    A third objective is the size of the points; with a single one, its best value so far over the points tried.
    """
    rows = design_rows(source)
    names = list(objectives)
    if len(names) == 1:
        return _progress_figure(rows, names[0], objectives[names[0]])
    pair = {name: objectives[name] for name in names[:2]}
    front = front_rows(rows, pair)
    best = front_rows(rows, objectives)
    with figure(2.9) as drawn:
        axes = drawn.subplots()
        (fx, ux), (fy, uy) = (_scale([number(row, name) for row in rows], name) for name in pair)
        x, y = names[:2]
        axes.scatter(
            [number(r, x) * fx for r in rows], [number(r, y) * fy for r in rows], s=9, color=GREY, alpha=0.45,
            linewidths=0, label=f"{len(rows):,} points",
            rasterized=True,
        )  # fmt: skip
        steps = [(number(r, x) * fx, number(r, y) * fy) for r in front]
        axes.step(*zip(*steps, strict=True), where="post", color=BLUE, lw=1.1, label="front", zorder=3)
        sizes: list[float] | float = 20.0
        label = f"{len(best)} on the front"
        if len(names) > 2:
            third = [number(row, names[2]) for row in best]
            low, high = min(third), max(third)
            sizes = [14 + 90 * (v - low) / (high - low) if high > low else 30.0 for v in third]
            factor, unit = _scale(third, names[2])
            label += f" of {len(names)}; size: {names[2]}, {low * factor:.3g} to {high * factor:.3g} {unit}".rstrip()
        axes.scatter(
            [number(r, x) * fx for r in best], [number(r, y) * fy for r in best], s=sizes, color=VERMILION,
            edgecolors="white", linewidths=0.5, label=label, zorder=4,
        )  # fmt: skip
        for axis, set_scale, name in ((axes.xaxis, axes.set_xscale, x), (axes.yaxis, axes.set_yscale, y)):
            if spreads([number(row, name) for row in rows]):
                set_scale("log")
                axis.set_major_formatter("{x:g}")
        axes.set_xlabel(_label(x, ux, objectives[x]))
        axes.set_ylabel(_label(y, uy, objectives[y]))
        axes.grid(True, lw=0.3, color="#DDDDDD")
        axes.set_axisbelow(True)
        axes.legend(loc="best", fontsize=7)
        drawn.subplots_adjust(left=0.1, right=0.985, top=0.97, bottom=0.15)
    return drawn


def spreads(values: Sequence[float]) -> bool:
    """Whether values reach so far that only a logarithmic axis shows them all."""
    return min(values, default=0) > 0 and max(values) / min(values) > 30


def _progress_figure(rows: Sequence[Row], name: str, goal: str) -> Figure:
    """Values in the order in which a search tried them; a sweep has no order but that of its points."""
    tried = all("trial" in row for row in rows)
    if tried:
        rows = sorted(rows, key=lambda row: row["trial"])
    values = [number(row, name) for row in rows]
    factor, unit = _scale(values, name)
    best: list[float] = []
    for value in values:
        best.append(value if not best else (max if goal == "max" else min)(best[-1], value))
    with figure(2.3) as drawn:
        axes = drawn.subplots()
        at = [row["trial"] for row in rows] if tried else [row.get("point", i) for i, row in enumerate(rows)]
        axes.scatter(at, [v * factor for v in values], s=9, color=GREY, alpha=0.6, linewidths=0, label="points")
        axes.step(at, [v * factor for v in best], where="post", color=BLUE, lw=1.2, label="best so far")
        if spreads(values):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("points in the order in which they were tried" if tried else "points by number")
        axes.set_ylabel(_label(name, unit, goal))
        axes.grid(True, lw=0.3, color="#DDDDDD")
        axes.legend(loc="best", fontsize=7)
        drawn.subplots_adjust(left=0.1, right=0.985, top=0.96, bottom=0.19)
    return drawn


def heat_map_figure(source: Source, x: str, y: str, value: str, goal: str = "min") -> Figure:
    """`value` over the axes `x` and `y`; where other axes differ too, the best of the points in a cell."""
    rows = design_rows(source)
    columns, lines = steps_of(rows, x), steps_of(rows, y)
    better = max if goal == "max" else min
    cells: dict[tuple[Any, Any], float] = {}
    for row in rows:
        at = (row[x], row[y])
        cells[at] = better(cells[at], number(row, value)) if at in cells else number(row, value)
    factor, unit = _scale(list(cells.values()), value)
    grid = [[cells.get((c, r), float("nan")) * factor for c in columns] for r in lines]
    height = max(2.2, 0.9 + min(0.3 * len(lines), max(2.4, 0.16 * len(lines))))
    with figure(height) as drawn:
        from matplotlib import colormaps

        axes = drawn.subplots()
        image = axes.imshow(grid, aspect="auto", origin="lower", cmap="cividis")
        axes.set_xticks(range(len(columns)), list(map(_tick, columns)))
        axes.set_yticks(range(len(lines)), list(map(_tick, lines)))
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        low, high = min(cells.values()) * factor, max(cells.values()) * factor
        if len(columns) * len(lines) <= 120:
            for i, line in enumerate(grid):
                for k, shown in enumerate(line):
                    if shown == shown:
                        share = (shown - low) / (high - low) if high > low else 0.0
                        ink = ink_on(colormaps["cividis"](share)[:3])
                        axes.text(k, i, f"{shown:.3g}", ha="center", va="center", fontsize=6.5, color=ink)
        bar = drawn.colorbar(image, ax=axes, fraction=0.04, pad=0.015)
        several = len(rows) > len(cells)
        bar.set_label(_label(value, unit, goal if several else ""))
        below = 0.5 / height
        drawn.subplots_adjust(left=0.12, right=0.93, top=0.97, bottom=below)
    return drawn


def tornado_figure(source: Source, value: str, axes: Sequence[str] = ()) -> Figure:
    """`sensitivity_rows` as bars around the mean: the axis that matters most on top."""
    found = sensitivity_rows(source, value, axes)
    if not found:
        raise ConfigError(f"no axis has all its steps simulated with the others fixed, so {value} has no sensitivities")
    with figure(0.75 + 0.33 * len(found)) as drawn:
        plot = drawn.subplots()
        for i, row in enumerate(found):
            if row["swing"] == 1:
                plot.annotate(" no effect", (1, i), va="center", fontsize=7, color=GREY)
                continue
            for end, colour in (("low", BLUE), ("high", ORANGE)):
                plot.barh(i, row[end] - 1, left=1, height=0.6, color=colour)
            plot.annotate(
                f"{_tick(row['low_step'])} ", (row["low"], i), ha="right", va="center", fontsize=7, xytext=(-2, 0),
                textcoords="offset points",
            )  # fmt: skip
            plot.annotate(
                f" {_tick(row['high_step'])}", (row["high"], i), ha="left", va="center", fontsize=7, xytext=(2, 0),
                textcoords="offset points",
            )  # fmt: skip
        plot.set_yticks(range(len(found)), [row["axis"] for row in found])
        plot.set_ylim(len(found) - 0.5, -0.5)
        plot.axvline(1, color=BLACK, lw=0.7)
        low, high = min(r["low"] for r in found), max(r["high"] for r in found)
        room = 0.22 * (high - low)
        plot.set_xlim(low - room, high + room)
        plot.set_xlabel(f"{value} over the mean of the axis's steps, all other axes fixed")
        plot.grid(True, axis="x", lw=0.3, color="#DDDDDD")
        plot.set_axisbelow(True)
        plot.tick_params(axis="y", length=0)
        drawn.subplots_adjust(left=0.25, right=0.985, top=0.97, bottom=0.42 / (0.75 + 0.33 * len(found)))
    return drawn


def _tick(value: Any) -> str:
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _scale(values: Sequence[float], name: str) -> tuple[float, str]:
    """Factor and unit in which `values` of a column are drawn."""
    unit = unit_of(name)
    if unit in ("mm²", "USD", "J s", ""):
        return 1.0, unit
    return scaled(max(map(abs, values), default=1.0) or 1.0, unit)


def _label(name: str, unit: str, goal: str) -> str:
    told = {"min": "less is better", "max": "more is better"}.get(goal, "")
    parts = ", ".join(part for part in (unit, told) if part)
    return f"{name} ({parts})" if parts else name
