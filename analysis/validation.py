"""Draws predicted against measured figures of a validation set, one picture a quantity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib.ticker import LogLocator, ScalarFormatter

from analysis.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, YELLOW, figure, save

if TYPE_CHECKING:
    from sim.validation.points import Point

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, YELLOW, GREY, BLACK)
MARKERS = "osv^Dx+<>"
UNITS = {
    "time": ("s", "time"),
    "sustained": ("s", "sustained time"),
    "power": ("W", "power"),
    "cycles": ("", "cycles"),
}


def draw(points: Sequence[Point], title: str, stem: Path, ending: str = "png") -> list[Path]:
    """Pictures `STEM-QUANTITY.ENDING` of all points, with lines at equality and 20 % off; returns their paths."""
    made = []
    for quantity in dict.fromkeys(point.quantity for point in points):
        mine = [point for point in points if point.quantity == quantity]
        unit, words = UNITS[quantity]
        path = stem.with_name(f"{stem.name}-{quantity}.{ending}")
        with figure(4.2) as picture:
            axes = picture.add_subplot()
            low = min(min(p.measured, p.predicted) for p in mine) / 1.3
            high = max(max(p.measured, p.predicted) for p in mine) * 1.3
            for factor, style in ((1.0, "-"), (1.2, ":"), (1 / 1.2, ":")):
                axes.plot([low, high], [low * factor, high * factor], style, color=GREY, linewidth=0.7, zorder=1)
            for i, kind in enumerate(dict.fromkeys(p.kind for p in mine)):
                of = [p for p in mine if p.kind == kind]
                # Colours and markers move on at different paces, so that no pair of them comes twice.
                marker, colour = MARKERS[(i + i // len(COLOURS)) % len(MARKERS)], COLOURS[i % len(COLOURS)]
                axes.plot(
                    [p.measured for p in of], [p.predicted for p in of], marker, label=kind, color=colour,
                    markersize=3.2, markeredgewidth=0.7, linestyle="none", zorder=2,
                )  # fmt: skip
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.set_xlim(low, high)
            axes.set_ylim(low, high)
            if high < 30 * low:
                # Under a decade and a half marks between powers of ten are named: few, as plain numbers.
                for axis in (axes.xaxis, axes.yaxis):
                    axis.set_minor_locator(LogLocator(subs=(2, 5)))
                    axis.set_major_formatter(ScalarFormatter())
                    axis.set_minor_formatter(ScalarFormatter())
            axes.set_aspect("equal")
            axes.set_xlabel(f"measured {words}{unit and f' ({unit})'}")
            axes.set_ylabel(f"predicted {words}{unit and f' ({unit})'}")
            axes.set_title(f"{title}, lines at equality and 20 % off", loc="left")
            axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))
            save(picture, path)
        made.append(path)
    return made
