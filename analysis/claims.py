"""Draws published claims against what was computed here: a row a claim, ours over the claimed figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.style import BLUE, GREY, VERMILION, figure, save, shade

CLOSE = 0.1
_MOST = 12.0
"""How far the axis goes; ratios beyond are drawn at its end and written down as all are."""


def draw(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The picture `path` of claims as `opcycle claims --json` gives them, sorted by their ratio."""
    ordered = sorted(rows, key=lambda row: (row["ratio"], row["id"]))
    with figure(1.0 + 0.155 * len(ordered)) as picture:
        axes = picture.add_axes(
            (0.30, 0.55 / (1.0 + 0.155 * len(ordered)), 0.42, 1 - 1.0 / (1.0 + 0.155 * len(ordered)))
        )
        axes.axvspan(1 / (1 + CLOSE), 1 + CLOSE, color=shade(GREY, 0.75), linewidth=0)
        axes.axvline(1, color=GREY, linewidth=0.7)
        for place, row in enumerate(ordered):
            shown = min(max(row["ratio"], 1 / _MOST), _MOST)
            colour = VERMILION if row["differs"] else BLUE
            axes.plot([1, shown], [place, place], color=colour, linewidth=0.8)
            axes.plot([shown], [place], "o", color=colour, markersize=3)
            axes.annotate(
                f"{_number(row['value'])} claimed, {_number(row['ours'])} here" + _unit(row["unit"]),
                (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=6.5,
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(1 / _MOST, _MOST)
        ticks = (0.1, 0.2, 0.5, 1, 2, 5, 10)
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_xticks([], minor=True)
        axes.set_yticks(range(len(ordered)), [row["id"] for row in ordered], fontsize=6.5)
        axes.set_ylim(-0.8, len(ordered) - 0.2)
        axes.set_xlabel("ours over the claimed figure (a range: over its nearer end)")
        axes.set_title("Published claims and ours; grey: within 10 %", loc="left")
        save(picture, path)


def _number(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"{value[0]:.4g} to {value[1]:.4g}"
    return f"{value:.4g}"


def _unit(unit: str) -> str:
    return "" if unit == "x" else f" {unit}"
