"""The roofline: every operator of a run as a point against the machine's DRAM, compute and vector roofs."""

from __future__ import annotations

from dataclasses import dataclass
from math import atan2, cos, degrees, sin
from typing import TYPE_CHECKING, Any

from analysis.style import BLACK, GREY, figure, role_colours, short
from analysis.tables import Result, Source, read_result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 0.005
"""Share of the time from which an operator is named, at its point or below the picture."""
LABELLED = 12
"""Operators that are named anyway where there is room, those with the most time first."""
STAR_SIZE = 13
"""Points."""
GAP = 2.0
"""Pixels between a name and what is beside it."""
Spot = tuple[float, float, float, float]
"""A box (left, low, right, high), or a line from one point to another, in pixels."""
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
    return sorted((p for p in _operators(result) if p.y), key=lambda p: (-p.share, p.name))


def _operators(result: Result) -> list[Point]:
    """An entry for every operator with time; those without operations have a `y` of 0 and no place in the picture."""
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
        if s["time_s"]:
            x = work / s["dram_bytes"] if s["dram_bytes"] else None
            found.append(Point(name, s["role"], phase, not s["flops"], x, work / s["time_s"], s["time_s"] / all_s))
    return found


def roofline_figure(source: Source) -> Figure:
    """Log-log roofline: area of a point is its share of the operators' time, the star is the whole run.

    Points at the right edge moved nothing from or to DRAM.
    """
    result = read_result(source)
    roof = result.summary["roofline"]
    found = points(result)
    with figure(4.05) as drawn:
        axes = drawn.add_axes((0.085, 0.155, 0.655, 0.765))
        axes.set_xscale("log")
        axes.set_yscale("log")
        _limits(axes, roof, found)
        colours = role_colours(p.role for p in found)
        several = len({p.phase for p in found}) > 1
        for p in found:
            _mark(axes, p, colours[p.role], MARKERS.get(p.phase, "o") if several else "o")
        page = _Page(drawn, axes, found, roof)
        _roofs(axes, roof, page)
        if roof["intensity_flop_per_byte"] and roof["achieved_flops_per_s"]:
            axes.plot(
                [roof["intensity_flop_per_byte"]],
                [roof["achieved_flops_per_s"]],
                "*",
                ms=STAR_SIZE,
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
        wanted = [p for i, p in enumerate(found) if p.share >= NAMED or i < LABELLED]
        unnamed = [p for p in _label(axes, wanted, page) if p.share >= NAMED]
        idle = sorted((p for p in _operators(result) if not p.y and p.share >= NAMED), key=lambda p: -p.share)
        _note(drawn, unnamed, idle)
    return drawn


def _limits(axes: Axes, roof: dict[str, Any], found: list[Point]) -> None:
    peak = max([roof["peak_flops_per_s"], *roof["peak_flops_per_s_by_format"].values()])
    ridge = peak / roof["peak_bytes_per_s"]
    xs = [p.x for p in found if p.x] + [x for x in (roof["intensity_flop_per_byte"],) if x]
    ys = [p.y for p in found] + [y for y in (roof["achieved_flops_per_s"],) if y]
    axes.set_xlim(min([*xs, ridge / 30]) / 3, max([*xs, ridge]) * 12)
    axes.set_ylim(min([*ys, peak / 1000]) / 3, peak * 4)


LABEL_GAP_POINTS = 2
"""Room left and right of a label."""


class _Page:
    """What is on the page already, in pixels: boxes that a name must keep clear of, and lines not to touch."""

    def __init__(self, drawn: Figure, axes: Axes, found: list[Point], roof: dict[str, Any]) -> None:
        self.axes = axes
        canvas: Any = drawn.canvas  # only the canvas of pictures in pixels has a renderer, and only that is used here
        self.renderer = canvas.get_renderer()
        self.scale = drawn.dpi / 72
        self.frame = axes.get_window_extent(self.renderer)
        self.lines: list[Spot] = []
        self.centres = {id(p): self.at(axes.get_xlim()[1] / 1.25 if p.x is None else p.x, p.y) for p in found}
        self.boxes = [self.square(self.centres[id(p)], self.radius(p)) for p in found]
        if roof["intensity_flop_per_byte"] and roof["achieved_flops_per_s"]:
            star = self.at(roof["intensity_flop_per_byte"], roof["achieved_flops_per_s"])
            self.boxes.append(self.square(star, STAR_SIZE / 2 * self.scale))

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Where a point of the diagram lies."""
        px, py = self.axes.transData.transform((x, y)).tolist()
        return px, py

    def radius(self, p: Point) -> float:
        """Half the width of a point."""
        return float(_area(p.share) ** 0.5 / 2 * self.scale)

    @staticmethod
    def square(centre: tuple[float, float], half: float) -> Spot:
        """A box around a centre."""
        return centre[0] - half, centre[1] - half, centre[0] + half, centre[1] + half

    def free(self, spot: Spot, inside: bool = True) -> bool:
        """Whether nothing is at `spot` yet; with `inside`, and it lies within the axes."""
        box = self.frame
        if inside and not (spot[0] > box.x0 and spot[2] < box.x1 and spot[1] > box.y0 and spot[3] < box.y1):
            return False
        gap = LABEL_GAP_POINTS * self.scale
        apart = (spot[0] - gap, spot[1], spot[2] + gap, spot[3])  # two labels in a line must not read as one
        return not any(_overlap(apart, other) for other in self.boxes) and not any(_cuts(o, spot) for o in self.lines)


def _roofs(axes: Axes, roof: dict[str, Any], page: _Page) -> None:
    """Draw the roofs, each with its name where no point covers it; both are noted on the page."""
    bandwidth = roof["peak_bytes_per_s"]
    left, right = axes.get_xlim()
    formats = sorted(roof["peak_flops_per_s_by_format"].items(), key=lambda item: item[1])
    peaks: dict[float, list[str]] = {}
    for name, peak in formats:
        peaks.setdefault(peak, []).append(name)
    top = max(peaks, default=roof["peak_flops_per_s"])
    vector = roof.get("peak_vector_ops_per_s") or 0.0
    axes.plot([left, top / bandwidth], [left * bandwidth, top], color=BLACK, lw=1.3, zorder=2)
    for peak in peaks:
        axes.plot([peak / bandwidth, right], [peak, peak], color=BLACK, lw=1.3, zorder=2)
    if vector:
        axes.plot([vector / bandwidth, right], [vector, vector], color=GREY, lw=1.1, ls=(0, (5, 2)), zorder=2)
    slope = (*page.at(left, left * bandwidth), *page.at(top / bandwidth, top))
    page.lines += [slope, *((*page.at(y / bandwidth, y), *page.at(right, y)) for y in (*peaks, vector) if y)]
    for peak, names in peaks.items():
        _roof_text(axes, page, peak / bandwidth, peak, f"{', '.join(names)}  {short(peak, 'FLOP/s')}", BLACK)
    if vector:
        _roof_text(axes, page, vector / bandwidth, vector, f"vector  {short(vector, 'op/s')}", "#555555")
    _slope_text(axes, page, slope, f"DRAM  {short(bandwidth, 'B/s')}")


def _roof_text(axes: Axes, page: _Page, ridge: float, y: float, text: str, colour: str) -> None:
    """Name a level roof just above it, as far to the right as nothing is in the way."""
    shown = axes.annotate(
        text,
        (axes.get_xlim()[1], y),
        xytext=(-2, 2),
        textcoords="offset points",
        ha="right",
        va="bottom",
        fontsize=7.5,
        color=colour,
    )
    box = shown.get_window_extent(page.renderer)
    room = int(box.x0 - page.at(ridge, y)[0])
    places = [(float(back), up * page.scale) for up in (0, 6, 12) for back in range(0, max(room, 1), 8)]
    spots = [(box.x0 - back, box.y0 + up, box.x1 - back, box.y1 + up) for back, up in places]
    at = next((i for i, spot in enumerate(spots) if not any(_overlap(spot, other) for other in page.boxes)), 0)
    back, up = places[at]
    shown.set_position((-2 - back / page.scale, 2 + up / page.scale))
    page.boxes.append(spots[at])


def _slope_text(axes: Axes, page: _Page, slope: Spot, text: str) -> None:
    """Name the bandwidth roof along it, near its middle where that is free."""
    x0, y0, x1, y1 = slope
    angle = atan2(y1 - y0, x1 - x0)
    shown = axes.text(0, 0, text, fontsize=7.5, rotation_mode="anchor", ha="center", va="bottom")
    box = shown.get_window_extent(page.renderer)
    half, tall = box.width / 2, box.height
    lowest = max(page.frame.y0 + half * sin(angle) + 4, y0 + half * sin(angle))

    def boxes(share: float) -> list[Spot]:
        """Small boxes along the text, which a box around all of a slanted text would be too large for."""
        px, py = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
        found = []
        for k in range(-3, 4):
            along, above = k / 3 * half, (3 + tall / 2)
            at = (px + along * cos(angle) - above * sin(angle), py + along * sin(angle) + above * cos(angle))
            found.append(page.square(at, tall / 2))
        return found

    shares = [
        k / 40 for k in range(2, 37) if y0 + k / 40 * (y1 - y0) > lowest and x0 + k / 40 * (x1 - x0) > page.frame.x0
    ]
    shares.sort(key=lambda share: abs(share - 0.5))
    free = [share for share in shares if not any(_overlap(a, b) for a in boxes(share) for b in page.boxes)]
    share = (free or shares or [0.5])[0]
    page.boxes += boxes(share)
    px, py = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
    shown.set_position(axes.transData.inverted().transform((px - 3 * sin(angle), py + 3 * cos(angle))).tolist())
    shown.set_rotation(degrees(angle))


def _area(share: float) -> float:
    return 18 + 420 * share


def _mark(axes: Axes, p: Point, colour: str, marker: str) -> None:
    right = axes.get_xlim()[1]
    off = p.x is None
    axes.scatter(
        [right / 1.25 if p.x is None else p.x],
        [p.y],
        s=_area(p.share),
        marker=">" if off else marker,
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
        handles=role_entries, title="role", loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0,
        alignment="left",
    )
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
    axes.legend(
        handles=marks, title="mark", loc="lower left", bbox_to_anchor=(1.01, -0.02), borderaxespad=0, labelspacing=0.9,
        alignment="left",
    )


def _label(axes: Axes, found: list[Point], page: _Page) -> list[Point]:
    """Name the points, each at the first of a ring of places where nothing is yet; those that found no room.

    Points that lie on each other share one label, longest first.
    """
    from matplotlib.patheffects import withStroke

    inverse = axes.transData.inverted()
    without: list[Point] = []
    for members in _heaps([page.centres[id(p)] for p in found]):
        mine = [found[i] for i in members]
        (x, y), radius = page.centres[id(mine[0])], max(page.radius(p) for p in mine)
        text = axes.text(1, 1, _names(mine, found), fontsize=7.5, zorder=7, linespacing=1.05)
        text.set_path_effects([withStroke(linewidth=1.6, foreground="white")])
        size = text.get_window_extent(page.renderer)
        spot, far = _free_spot((x, y), radius, (size.width, size.height), page)
        if spot is None:
            text.remove()
            without += mine
            continue
        page.boxes.append(spot)
        left, low = inverse.transform((spot[0], spot[1])).tolist()
        text.set_position((left, low))
        text.set_verticalalignment("bottom")
        if far:
            edge = (min(max(x, spot[0]), spot[2]), min(max(y, spot[1]), spot[3]))
            line = inverse.transform([(x, y), edge])
            axes.plot(line[:, 0], line[:, 1], color=GREY, lw=0.5, zorder=3)
            page.lines.append((x, y, *edge))
    return without


def _note(drawn: Figure, unnamed: list[Point], idle: list[Point]) -> None:
    """Below the picture, what it could not name or does not show."""
    parts = [
        f"{what}: {', '.join(f'{p.name} ({p.share:.1%} of time)' for p in listed[:6])}"
        + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
        for what, listed in (("no room to name", unnamed), ("no operations, so no point", idle))
        if listed
    ]
    if parts:
        drawn.text(0.985, 0.012, "; ".join(parts), fontsize=6.5, ha="right", va="bottom")


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


def _free_spot(
    at: tuple[float, float], radius: float, size: tuple[float, float], page: _Page
) -> tuple[Spot | None, bool]:
    """A place of `size` near `at` that is free on the page, and whether it is so far that it needs a line."""
    (x, y), (wide, tall) = at, size
    for distance in (2, 5, 9, 14, 20, 28, 40, 55, 70, 90):
        for dx, dy in ((1, 0), (1, -1), (-1, 1), (-1, 0), (1, 1), (-1, -1), (0, 1), (0, -1)):
            reach = (radius + distance * page.scale) * (0.75 if dx and dy else 1.0)
            left = x + dx * reach - (wide if dx < 0 else wide / 2 if dx == 0 else 0)
            low = y + dy * reach - (tall if dy < 0 else tall / 2 if dy == 0 else 0)
            spot = (left, low, left + wide, low + tall)
            if page.free((spot[0] - GAP, spot[1], spot[2] + GAP, spot[3])):
                return spot, distance > 2
    return None, False


def _cuts(line: Spot, box: Spot) -> bool:
    """Whether a line (from x, y to x, y) passes through a box."""
    x0, y0, x1, y1 = line
    first, last = 0.0, 1.0
    for start, step, low, high in ((x0, x1 - x0, box[0], box[2]), (y0, y1 - y0, box[1], box[3])):
        if step == 0:
            if not low < start < high:
                return False
            continue
        near, far = sorted(((low - start) / step, (high - start) / step))
        first, last = max(first, near), min(last, far)
    return first < last


def _overlap(a: Spot, b: Spot) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
