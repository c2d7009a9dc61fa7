"""The picture of a sparsity curve: speedup beside the ideal line, and below it where the time of each point goes.

It is drawn from the folder that `opcycle unit sparse --curve -o DIR` writes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from analysis.folder import read_summary
from analysis.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, YELLOW, figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = "opcycle/sparse-curve/1"
FILE = "sparse.json"

PARTS = {
    "ideal": ("useful products", SKY),
    "imbalance": ("imbalance", VERMILION),
    "predictor": ("predictor", YELLOW),
    "unfilled": ("unfilled lanes, fill and drain", ORANGE),
    "bandwidth": ("bandwidth of values", BLUE),
    "metadata": ("metadata", PURPLE),
    "vector": ("vector operators", GREEN),
}
"""Parts of a point's time: what they are called and their colours, from the bottom of a bar up."""


def is_sparse_result(folder: str | Path) -> bool:
    """Whether a folder holds a sparsity curve."""
    return (Path(folder) / FILE).is_file()


def read_sparse_result(folder: str | Path) -> dict[str, Any]:
    """The curve in `folder`. Raises ConfigError where there is none, or one of another version."""
    return read_summary(Path(folder) / FILE, SCHEMA)


def speedup(data: dict[str, Any]) -> Figure:
    """Speedup over dense operands against sparsity with the ideal line; below, each point's time by what it goes to."""
    points = sorted(data["points"], key=lambda p: p["sparsity"])
    places = range(len(points))
    with figure(5.4) as drawn:
        top, bottom = drawn.subplots(2, 1, height_ratios=(3, 2), sharex=True)
        reached = [p["speedup"] for p in points]
        top.plot(places, [p["ideal_speedup"] for p in points], color=GREY, linestyle="--", marker=".", label="ideal")
        top.plot(places, reached, color=BLACK, marker="o", markersize=3.5, label="this machine")
        for place, value in zip(places, reached, strict=True):
            top.annotate(f"{value:.2f}", (place, value), textcoords="offset points", xytext=(5, -9), fontsize=6.5)
        most = max(p["ideal_speedup"] for p in points)
        if most > 8:
            top.set_yscale("log", base=2)
            top.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
            top.set_ylim(bottom=0.7 * min(reached))
        else:
            top.set_ylim(bottom=0)
        top.set_ylabel("speedup over dense operands")
        size = f"{data['m']} x {data['k']} times {data['k']} x {data['n']}"
        top.set_title(f"{data['hardware']}: {size}, operands in {data['operands']}", loc="left")
        top.legend(loc="upper left")
        bottoms = [0.0] * len(points)
        for name, (text, colour) in PARTS.items():
            shares = [p.get(name, 0) / p["cycles"] * 100 for p in points]
            if name != "ideal" and max(shares) < VISIBLE:
                continue
            bottom.bar(places, shares, bottom=bottoms, color=colour, label=text, width=0.7)
            bottoms = [b + s for b, s in zip(bottoms, shares, strict=True)]
        lines = [_label(p) for p in points]
        if len(points) > MOST_ON_ONE_LINE:
            lines = [line.replace(":", "\n", 1) for line in lines]
            lines = [line if "\n" in line else f"{line}\n" for line in lines]
        bottom.set_xticks(places, [f"{t}\n{100 * p['sparsity']:.3g} %" for t, p in zip(lines, points, strict=True)],
                          fontsize=6.5)  # fmt: skip
        bottom.set_xlabel("pattern, and products that it leaves out")
        bottom.set_ylabel("share of the time (%)")
        bottom.set_ylim(0, 100)
        bottom.legend(loc="upper center", bbox_to_anchor=(0.5, -0.4), ncols=4)
        drawn.tight_layout()
    return drawn


VISIBLE = 0.05
"""Per cent of the time from which a part is drawn."""
MOST_ON_ONE_LINE = 8
"""Points whose patterns fit side by side without a break."""


def _label(point: dict[str, Any]) -> str:
    given = [text for text in (point["weights"], point["activations"]) if text != "dense"]
    return " x ".join(given) or "dense"


FIGURES: dict[str, Callable[[dict[str, Any]], Figure]] = {"speedup": speedup}
"""Pictures of a curve's folder, by the stem of their files."""
