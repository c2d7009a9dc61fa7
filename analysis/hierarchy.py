"""The hierarchical roofline: runs against the roofs of DRAM and of on-chip memory, for one machine or several.

Work has one intensity for each memory that its bytes cross. The lower of its two roofs says which memory holds it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from analysis.compare import column_names
from analysis.style import BLACK, BLUE, GREEN, GREY, ORANGE, PURPLE, SKY, VERMILION, figure, role_colours
from analysis.tables import Result, Source, read_result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from pandas import DataFrame

COLOURS = (BLUE, VERMILION, GREEN, ORANGE, PURPLE, SKY, BLACK)
SHOWN = 0.005
"""Share of the run's time from which an operator of a single run has a point."""


@dataclass(frozen=True, slots=True)
class Level:
    """Work at one memory: FLOP a byte that crosses it, FLOP/s reached, and what the machine could do at best."""

    system: str
    what: str  # an operator, or empty for the whole run
    role: str
    memory: str  # dram or scratchpad
    intensity: float
    flops_per_s: float
    roof_flops_per_s: float
    share: float


def levels(folders: Sequence[Source]) -> list[Level]:
    """Whole runs and their operators with products, at each memory that they use. Raises ConfigError without a result.

    The roof is the lower of the compute peak and the memory's bandwidth times the intensity.
    """
    found = []
    for name, result in zip(column_names(folders), map(read_result, folders), strict=True):
        all_s = sum(row["time_s"] or 0.0 for row in result.operators) or 1.0
        whole = {key: sum(row[key] or 0.0 for row in result.operators) for key in ("flops", *_bytes())}
        found += _levels(name, "", "", result, whole, result.summary["time_s"], 1.0)
        sums: dict[str, dict[str, float]] = {}
        roles: dict[str, str] = {}
        for row in result.operators:
            into = sums.setdefault(row["operator"], dict.fromkeys(("flops", "time_s", *_bytes()), 0.0))
            roles[row["operator"]] = row["role"]
            for key in into:
                into[key] += row[key] or 0.0
        for operator, sum_ in sums.items():
            found += _levels(name, operator, roles[operator], result, sum_, sum_["time_s"], sum_["time_s"] / all_s)
    return found


def level_table(folders: Sequence[Source]) -> DataFrame:
    """`levels` as a data frame."""
    from dataclasses import asdict

    from pandas import DataFrame

    return DataFrame([asdict(level) for level in levels(folders)])


def hierarchical_roofline(folders: Sequence[Source]) -> Figure:
    """Log-log roofline with a slanted roof for each memory: DRAM solid, scratchpad dashed.

    One folder: its operators, filled where measured in DRAM bytes and hollow in scratchpad bytes, joined by a line.
    Several: the whole runs, each in a colour of its own.
    """
    results = [read_result(folder) for folder in folders]
    names = column_names(folders)
    found = levels(folders)
    alone = len(results) == 1
    shown = [x for x in found if (bool(x.what) and x.share >= SHOWN if alone else not x.what)]
    shown = shown or [x for x in found if not x.what]
    with figure(3.5) as drawn:
        axes = drawn.add_axes((0.09, 0.13, 0.63, 0.83))
        axes.set_xscale("log")
        axes.set_yscale("log")
        _limits(axes, results, shown)
        if alone:
            colours = role_colours(x.role for x in shown)
            _roofs(axes, results[0], BLACK, named=True)
        else:
            colours = dict(zip(names, COLOURS * (len(names) // len(COLOURS) + 1), strict=False))
            for name, result in zip(names, results, strict=True):
                _roofs(axes, result, colours[name], named=False)
        pairs: dict[tuple[str, str], list[Level]] = {}
        for x in shown:
            pairs.setdefault((x.system, x.what), []).append(x)
        for both in pairs.values():
            colour = colours[both[0].role if alone else both[0].system]
            axes.plot([x.intensity for x in both], [x.flops_per_s for x in both], lw=0.6, color=colour, zorder=3)
            for x in both:
                axes.plot(
                    [x.intensity], [x.flops_per_s], "o", ms=4 + 9 * min(x.share, 0.5) if alone else 7, mec=colour,
                    mfc=colour if x.memory == "dram" else "white", mew=1.1, zorder=4,
                )  # fmt: skip
        axes.set_xlabel("arithmetic intensity (FLOP per byte of that memory)")
        axes.set_ylabel("performance (FLOP/s)")
        axes.grid(True, which="major", lw=0.3, color="#DDDDDD")
        axes.set_axisbelow(True)
        told = list(dict.fromkeys(x.role if alone else x.system for x in shown))
        memories = ["DRAM", *(["scratchpad"] if any(x.memory == "scratchpad" for x in found) else [])]
        _legend(drawn, told, colours, memories)
    return drawn


def _bytes() -> tuple[str, str]:
    return "dram_bytes", "scratchpad_bytes"


def _levels(
    system: str, what: str, role: str, result: Result, sums: dict[str, float], time_s: float, share: float
) -> list[Level]:
    roof = result.summary["roofline"]
    if not sums["flops"] or not time_s:
        return []
    found = []
    for memory, key, bandwidth in (
        ("dram", "dram_bytes", roof["peak_bytes_per_s"]),
        ("scratchpad", "scratchpad_bytes", roof.get("peak_scratchpad_bytes_per_s")),
    ):
        if sums[key] and bandwidth:
            intensity = sums["flops"] / sums[key]
            best = min(roof["peak_flops_per_s"], bandwidth * intensity)
            found.append(Level(system, what, role, memory, intensity, sums["flops"] / time_s, best, share))
    return found


def _limits(axes: Axes, results: Sequence[Result], shown: Sequence[Level]) -> None:
    peaks = [r.summary["roofline"]["peak_flops_per_s"] for r in results]
    ridges = [r.summary["roofline"]["peak_flops_per_s"] / r.summary["roofline"]["peak_bytes_per_s"] for r in results]
    xs, ys = [x.intensity for x in shown], [x.flops_per_s for x in shown]
    axes.set_xlim(min([*xs, *ridges]) / 6, max([*xs, *ridges]) * 6)
    axes.set_ylim(min([*ys, *(p / 100 for p in peaks)]) / 2, max(peaks) * 3)


def _roofs(axes: Axes, result: Result, colour: str, named: bool) -> None:
    """The slanted roofs up to the compute roof, and that one from where the first of them meets it."""
    roof = result.summary["roofline"]
    peak = roof["peak_flops_per_s"]
    low, high = axes.get_xlim()
    ridges = []
    for key, style, label in (
        ("peak_bytes_per_s", "-", "DRAM"), ("peak_scratchpad_bytes_per_s", "--", "scratchpad"),
    ):  # fmt: skip
        bandwidth = roof.get(key)
        if not bandwidth:
            continue
        ridge = peak / bandwidth
        ridges.append(ridge)
        axes.plot([low / 10, ridge], [low / 10 * bandwidth, peak], style, color=colour, lw=1.0, zorder=2)
        if named:
            x = max(axes.get_xlim()[0] * 1.6, axes.get_ylim()[0] / bandwidth * 1.6)
            slope = _angle(axes)
            axes.text(
                x, bandwidth * x * 1.15, f"{label} {bandwidth / 1e12:.3g} TB/s", rotation=slope,
                rotation_mode="anchor", fontsize=7, color=colour,
            )  # fmt: skip
    axes.plot([min(ridges), high * 10], [peak, peak], "-", color=colour, lw=1.0, zorder=2)
    if named:
        axes.text(high / 1.1, peak * 1.1, f"{peak / 1e12:.4g} TFLOP/s", ha="right", fontsize=7, color=colour)


def _angle(axes: Axes) -> float:
    """Degrees on the page of a line of slope one in logarithms."""
    from math import atan2, degrees

    (x0, y0), (x1, y1) = axes.transData.transform([(1, 1), (10, 10)]).tolist()
    return degrees(atan2(y1 - y0, x1 - x0))


def _legend(drawn: Figure, shown: Sequence[str], colours: dict[str, str], memories: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], marker="o", ls="none", color=colours[name], label=name or "run") for name in shown]
    looks = [(memory, *look) for memory, look in zip(memories, ((GREY, "-"), ("white", "--")), strict=False)]
    handles += [
        Line2D([], [], marker="o", ls="none", mec=GREY, mfc=fill, label=f"per {memory} byte")
        for memory, fill, _ in looks
    ]
    handles += [Line2D([], [], color=GREY, ls=style, lw=1, label=f"{memory} roof") for memory, _, style in looks]
    drawn.legend(handles=handles, loc="upper left", bbox_to_anchor=(0.735, 0.965), fontsize=7, borderaxespad=0)
