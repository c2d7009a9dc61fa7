"""The roofline: every operator of a run as a point against the machine's DRAM, compute and vector roofs."""

from __future__ import annotations

from dataclasses import dataclass
from math import atan2, degrees
from typing import TYPE_CHECKING, Any

from analysis.style import BLACK, GREY, figure, role_colours, short
from analysis.tables import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LABELLED = 12
"""Points that are labelled at most, those with the most time first."""
MARKERS = {"decode": "o", "prefill": "s", "encode": "D"}


@dataclass(frozen=True, slots=True)
class Point:
    """An operator: `x` operations a byte (None: nothing came from DRAM), `y` operations/s, its share of all spans."""

    name: str
    role: str
    phase: str
    vector: bool
    x: float | None
    y: float
    share: float


def points(result: Result) -> list[Point]:
    """Points of a result, alike operators of passes of one phase as one, longest first.

    An operator without FLOPs is measured in vector operations; one without either, or without time, has no point.
    """
    sums: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in result.operators:
        key = (row["phase"], row["block"], row["operator"])
        into = sums.setdefault(
            key, {"role": row["role"], "time_s": 0.0, "flops": 0.0, "vector_ops": 0.0, "dram_bytes": 0.0}
        )
        for name in ("time_s", "flops", "vector_ops", "dram_bytes"):
            into[name] += row[name] or 0.0
    all_s = sum(s["time_s"] for s in sums.values()) or 1.0
    found = []
    for (phase, _, name), s in sums.items():
        work = s["flops"] or s["vector_ops"]
        if work and s["time_s"]:
            x = work / s["dram_bytes"] if s["dram_bytes"] else None
            found.append(Point(name, s["role"], phase, not s["flops"], x, work / s["time_s"], s["time_s"] / all_s))
    return sorted(found, key=lambda p: (-p.share, p.name))


def roofline(result: Result) -> Figure:
    """Log-log roofline: area of a point is its share of the operators' time, the star is the whole run.

    Points at the right edge moved nothing from or to DRAM.
    """
    roof = result.summary["roofline"]
    found = points(result)
    with figure(3.9) as drawn:
        axes = drawn.add_axes((0.085, 0.125, 0.655, 0.79))
        axes.set_xscale("log")
        axes.set_yscale("log")
        _limits(axes, roof, found)
        texts = _roofs(axes, roof)
        colours = role_colours(p.role for p in found)
        for p in found:
            _mark(axes, p, colours[p.role])
        if roof["intensity_flop_per_byte"] and roof["achieved_flops_per_s"]:
            axes.plot(
                [roof["intensity_flop_per_byte"]],
                [roof["achieved_flops_per_s"]],
                "*",
                ms=13,
                mfc="#F0E442",
                mec=BLACK,
                mew=0.8,
                zorder=6,
                ls="none",
            )
        axes.set_xlabel("arithmetic intensity (operations per DRAM byte)")
        axes.set_ylabel("performance (operations/s)")
        axes.set_title(f"Roofline: {result.title}", loc="left")
        axes.grid(True, which="major", lw=0.3, color="#DDDDDD")
        axes.set_axisbelow(True)
        _legend(axes, found, colours, roof)
        _label(drawn, axes, found[:LABELLED], texts)
    return drawn


def _limits(axes: Axes, roof: dict[str, Any], found: list[Point]) -> None:
    peak = max([roof["peak_flops_per_s"], *roof["peak_flops_per_s_by_format"].values()])
    ridge = peak / roof["peak_bytes_per_s"]
    xs = [p.x for p in found if p.x] + [x for x in (roof["intensity_flop_per_byte"],) if x]
    ys = [p.y for p in found] + [y for y in (roof["achieved_flops_per_s"],) if y]
    axes.set_xlim(min([*xs, ridge / 30]) / 3, max([*xs, ridge]) * 12)
    axes.set_ylim(min([*ys, peak / 1000]) / 3, peak * 4)


def _roofs(axes: Axes, roof: dict[str, Any]) -> list[Any]:
    """Draw the roofs; their labels, which other text has to keep clear of."""
    texts = []
    bandwidth = roof["peak_bytes_per_s"]
    left, right = axes.get_xlim()
    formats = sorted(roof["peak_flops_per_s_by_format"].items(), key=lambda item: item[1])
    peaks: dict[float, list[str]] = {}
    for name, peak in formats:
        peaks.setdefault(peak, []).append(name)
    top = max(peaks, default=roof["peak_flops_per_s"])
    axes.plot([left, top / bandwidth], [left * bandwidth, top], color=BLACK, lw=1.3, zorder=2)
    for peak, names in peaks.items():
        axes.plot([peak / bandwidth, right], [peak, peak], color=BLACK, lw=1.3, zorder=2)
        texts.append(_roof_text(axes, right, peak, f"{', '.join(names)}  {short(peak, 'FLOP/s')}", BLACK))
    vector = roof.get("peak_vector_ops_per_s") or 0.0
    if vector:
        axes.plot([vector / bandwidth, right], [vector, vector], color=GREY, lw=1.1, ls=(0, (5, 2)), zorder=2)
        texts.append(_roof_text(axes, right, vector, f"vector  {short(vector, 'op/s')}", "#555555"))
    low = max(axes.get_ylim()[0] / bandwidth, left)
    x = (low * min(top / bandwidth, right)) ** 0.5
    at = axes.transData.transform([(x, x * bandwidth), (x * 1.1, x * 1.1 * bandwidth)])
    angle = degrees(atan2(at[1][1] - at[0][1], at[1][0] - at[0][0]))
    axes.annotate(
        f"DRAM  {short(bandwidth, 'B/s')}",
        (x, x * bandwidth),
        xytext=(-3, 3),
        textcoords="offset points",
        rotation=angle,
        rotation_mode="anchor",
        ha="center",
        va="bottom",
        fontsize=7.5,
    )
    return texts


def _roof_text(axes: Axes, x: float, y: float, text: str, colour: str) -> Any:
    return axes.annotate(
        text, (x, y), xytext=(-2, 2), textcoords="offset points", ha="right", va="bottom", fontsize=7.5, color=colour
    )


def _area(share: float) -> float:
    return 18 + 420 * share


def _mark(axes: Axes, p: Point, colour: str) -> None:
    right = axes.get_xlim()[1]
    off = p.x is None
    axes.scatter(
        [right / 1.25 if p.x is None else p.x],
        [p.y],
        s=_area(p.share),
        marker=">" if off else MARKERS.get(p.phase, "o"),
        facecolors="none" if p.vector else colour,
        edgecolors=colour if p.vector else "white",
        linewidths=1.3 if p.vector else 0.6,
        alpha=0.9,
        zorder=4,
    )


def _legend(axes: Axes, found: list[Point], colours: dict[str, str], roof: dict[str, Any]) -> None:
    from matplotlib.lines import Line2D

    def entry(label: str, marker: str, fill: str, edge: str, size: float = 6) -> Line2D:
        return Line2D([], [], ls="none", marker=marker, mfc=fill, mec=edge, mew=1.0, ms=size, label=label)

    role_entries: list[Any] = [entry(role, "o", colour, "white", 7) for role, colour in colours.items()]
    first = axes.legend(
        handles=role_entries, title="role", loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0
    )
    first._legend_box.align = "left"  # type: ignore[attr-defined]
    axes.add_artist(first)
    marks = []
    phases = list(dict.fromkeys(p.phase for p in found))
    if len(phases) > 1:
        marks += [entry(phase, MARKERS.get(phase, "o"), GREY, "white", 7) for phase in phases]
    if any(p.vector for p in found):
        marks.append(entry("vector operator", "o", "none", GREY))
    if any(p.x is None for p in found):
        marks.append(entry("no DRAM traffic", ">", GREY, "white", 7))
    marks += [entry(f"{share:.0%} of time", "o", "#BBBBBB", "white", _area(share) ** 0.5) for share in (0.05, 0.4)]
    marks.append(entry(f"run: {roof['bound']}-bound", "*", "#F0E442", BLACK, 11))
    second = axes.legend(
        handles=marks, title="mark", loc="lower left", bbox_to_anchor=(1.01, -0.02), borderaxespad=0, labelspacing=0.9
    )
    second._legend_box.align = "left"  # type: ignore[attr-defined]


def _label(drawn: Figure, axes: Axes, found: list[Point], texts: list[Any]) -> None:
    """Name the points; each name takes the first of a ring of places where it covers neither name, point nor `texts`.

    Points that lie on each other share one label, longest first.
    """
    from matplotlib.patheffects import withStroke

    renderer = drawn.canvas.get_renderer()  # type: ignore[attr-defined]
    right = axes.get_xlim()[1]
    scale = drawn.dpi / 72
    centres = [axes.transData.transform((right / 1.25 if p.x is None else p.x, p.y)) for p in found]
    radii = [_area(p.share) ** 0.5 / 2 * scale for p in found]
    taken = [(x - r, y - r, x + r, y + r) for (x, y), r in zip(centres, radii, strict=True)]
    taken += [(b.x0, b.y0, b.x1, b.y1) for b in (text.get_window_extent(renderer) for text in texts)]
    box = axes.get_window_extent(renderer)
    for members in _heaps(centres):
        (x, y), radius = centres[members[0]], radii[members[0]]
        text = axes.text(1, 1, _names([found[i] for i in members], found), fontsize=7.5, zorder=7, linespacing=1.05)
        text.set_path_effects([withStroke(linewidth=1.6, foreground="white")])
        size = text.get_window_extent(renderer)
        spot, far = _free_spot((x, y), radius, (size.width, size.height), box, taken, scale)
        if spot is None:
            text.remove()
            continue
        taken.append(spot)
        inverse = axes.transData.inverted()
        left, low = inverse.transform((spot[0], spot[1])).tolist()
        text.set_position((left, low))
        text.set_verticalalignment("bottom")
        if far:
            edge = (min(max(x, spot[0]), spot[2]), min(max(y, spot[1]), spot[3]))
            line = inverse.transform([(x, y), edge])
            axes.plot(line[:, 0], line[:, 1], color=GREY, lw=0.5, zorder=3)


def _heaps(centres: list[Any], reach: float = 7.0) -> list[list[int]]:
    """Points by the first point that they lie on, within `reach` pixels."""
    heaps: list[list[int]] = []
    for i, (x, y) in enumerate(centres):
        for heap in heaps:
            x0, y0 = centres[heap[0]]
            if abs(x - x0) < reach and abs(y - y0) < reach:
                heap.append(i)
                break
        else:
            heaps.append([i])
    return heaps


def _names(members: list[Point], found: list[Point]) -> str:
    """Names of points that share a label, two a line, by phase where the run has several; long lists are cut."""
    several = len({p.phase for p in found}) > 1
    lines = []
    for phase in dict.fromkeys(p.phase for p in members):
        names = list(dict.fromkeys(p.name for p in members if p.phase == phase))
        if len(names) > 5:
            names = [*names[:4], f"{len(names) - 4} more"]
        if several:
            names[0] = f"{phase}: {names[0]}"
        lines += [", ".join(names[i : i + 2]) for i in range(0, len(names), 2)]
    return "\n".join(lines)


Spot = tuple[float, float, float, float]


def _free_spot(
    at: tuple[float, float], radius: float, size: tuple[float, float], box: Any, taken: list[Spot], scale: float
) -> tuple[Spot | None, bool]:
    """A place of `size` near `at` inside `box` that overlaps nothing `taken`, and whether it is so far that it needs a
    line.
    """
    (x, y), (wide, tall) = at, size
    for distance in (2, 9, 18, 28, 40, 55, 70):
        for dx, dy in ((1, 0), (1, -1), (-1, 1), (-1, 0), (1, 1), (-1, -1), (0, 1), (0, -1)):
            reach = (radius + distance * scale) * (0.75 if dx and dy else 1.0)
            left = x + dx * reach - (wide if dx < 0 else wide / 2 if dx == 0 else 0)
            low = y + dy * reach - (tall if dy < 0 else tall / 2 if dy == 0 else 0)
            spot = (left, low, left + wide, low + tall)
            inside = left > box.x0 and spot[2] < box.x1 and low > box.y0 and spot[3] < box.y1
            if inside and not any(_overlap(spot, other) for other in taken):
                return spot, distance > 9
    return None, False


def _overlap(a: Spot, b: Spot) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
