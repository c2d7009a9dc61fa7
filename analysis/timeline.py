"""The timeline: how busy each unit is over the whole run, and one layer in close-up with a slice for each operator."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from analysis.style import BLACK, BLUE, GREY, ORANGE, figure, ink_on, mixed, role_colours, scaled, shade
from analysis.tables import Result, Row, Source, read_result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PASSES, OPERATORS, UNITS = 1, 2, 3
"""Process numbers of timeline.json."""
TRAFFIC = "DRAM traffic\n(of peak)"
"""Row of the upper panel that is no unit."""
Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of time in us, and what it shows; `layer` is None where the whole run is shown."""

    start_us: float
    end_us: float
    text: str
    pass_span: tuple[float, float]
    block: str | None
    layer: int | None


def unit_tracks(events: Iterable[Row]) -> dict[str, list[int]]:
    """Track numbers of each unit, in the order of the file."""
    found: dict[str, list[int]] = {}
    for event in events:
        if event["ph"] == "M" and event["pid"] == UNITS and event["name"] == "thread_name":
            found.setdefault(event["args"]["name"].partition(", overlap")[0], []).append(event["tid"])
    return found


def _is_traffic(event: Row) -> bool:
    return bool(event["ph"] == "C" and event["name"] == "DRAM traffic")


def close_up(events: list[Row]) -> Window | None:
    """A typical layer: the middle one of the block with the most time in the longest pass; None without operators."""
    passes = [e for e in events if e["ph"] == "X" and e["pid"] == PASSES]
    if not passes:
        return None
    longest = max(passes, key=lambda e: (e["dur"] * e["args"]["repeat"], -e["ts"]))
    begin, end = longest["ts"], longest["ts"] + longest["dur"]
    inside = [
        e
        for e in events
        if e["ph"] == "X" and e["pid"] == OPERATORS and begin <= e["ts"] and e["ts"] + e["dur"] <= end * (1 + 1e-12)
    ]
    if not inside:
        return None
    time: dict[str, float] = {}
    for e in inside:
        time[e["args"]["block"]] = time.get(e["args"]["block"], 0.0) + e["dur"]
    block = max(time, key=lambda name: time[name])
    layers = sorted({e["args"]["layer"] for e in inside if e["args"]["block"] == block})
    layer = layers[len(layers) // 2]
    mine = [e for e in inside if e["args"]["block"] == block and e["args"]["layer"] == layer]
    start, stop = min(e["ts"] for e in mine), max(e["ts"] + e["dur"] for e in mine)
    margin = 0.02 * (stop - start)
    name = f"{block}, layer {layer}" if len(layers) > 1 else block
    return Window(max(start - margin, begin), min(stop + margin, end), name, (begin, end), block, layer)


def timeline_figure(source: Source) -> Figure:
    """Two panels: utilisation of every unit over the run, and the slices of one layer. Times are simulated time."""
    result = read_result(source)
    events = result.events
    units = unit_tracks(events)
    window = close_up(events)
    spans = _layer_spans(events, window) if window else []
    rows = len(units)
    lanes = _name_rows(spans)
    upper_rows = rows + any(_is_traffic(e) for e in events)
    height = 1.64 + 0.27 * (rows + upper_rows + lanes)
    with figure(height) as drawn:
        upper = 0.27 * upper_rows / height
        lower = 0.27 * (rows + lanes) / height
        bottom = 0.78 / height
        left = max(0.105, 0.018 + 0.0098 * max(map(len, units), default=0))
        top = drawn.add_axes((left, bottom + lower + 0.62 / height, 0.945 - left, upper))
        zoom = drawn.add_axes((left, bottom, 0.945 - left, lower))
        _whole(top, events, list(units), result, window)
        if window:
            _slices(zoom, events, units, spans, window)
        else:
            zoom.set_axis_off()
    return drawn


def _whole(axes: Axes, events: list[Row], units: list[str], result: Result, window: Window | None) -> None:
    passes = [e for e in events if e["ph"] == "X" and e["pid"] == PASSES]
    end = max((e["ts"] + e["dur"] for e in passes), default=0.0) or 1.0
    factor, unit = scaled(end * 1e-6, "s")
    factor *= 1e-6
    means = result.summary["utilization"]
    if any(_is_traffic(e) for e in events):
        units = [*units, TRAFFIC]
        means = means | {TRAFFIC: result.summary["memory_bandwidth_utilization"]}
    busy: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in units}
    for e in events:
        if _is_traffic(e):
            at, shares = busy[TRAFFIC]
            at.append(e["ts"] * factor)
            shares.append(min(e["args"]["of_peak"], 1.0))
        elif e["ph"] == "C":
            at, shares = busy[e["name"].removesuffix(" busy")]
            at.append(e["ts"] * factor)
            shares.append(e["args"]["busy"])
    for row, name in enumerate(units):
        at, shares = busy[name]
        base = len(units) - 1 - row
        axes.axhline(base, color="#CCCCCC", lw=0.5, zorder=1)
        if at:
            axes.fill_between(
                [*at, end * factor],
                base,
                [base + 0.86 * s for s in [*shares, shares[-1]]],
                step="post",
                color=ORANGE if name == TRAFFIC else BLUE,
                lw=0,
                alpha=0.85,
                zorder=2,
            )
        share = means.get(name, 0.0)
        axes.text(1.008, base + 0.4, f"{share:.0%}", transform=axes.get_yaxis_transform(), fontsize=7, va="center")
    if window:
        axes.axvspan(window.start_us * factor, window.end_us * factor, color="#E69F00", alpha=0.35, lw=0, zorder=3)
    for e in passes:
        if len(passes) > 1:
            axes.axvline(e["ts"] * factor, color=BLACK, lw=0.5, zorder=3)
        if len(passes) > 1 and e["dur"] > 0.08 * end:
            times = f" ×{e['args']['repeat']}" if e["args"]["repeat"] > 1 else ""
            axes.text(
                (e["ts"] + e["dur"] / 2) * factor,
                len(units) + 0.03,
                e["name"] + times,
                fontsize=7,
                ha="center",
                va="bottom",
            )
    axes.set_xlim(0, end * factor)
    axes.set_ylim(0, len(units) + (0.5 if len(passes) > 1 else 0))
    axes.set_yticks([len(units) - 0.6 - i for i in range(len(units))], units)
    axes.tick_params(axis="y", length=0)
    repeated = ", each pass shown once" if any(e["args"]["repeat"] > 1 for e in passes) else ""
    axes.set_xlabel(f"time ({unit}){repeated}", labelpad=1)
    axes.set_title(f"Utilisation by unit: {result.title}", loc="left", pad=4)
    axes.set_title("mean", loc="right", fontsize=7, pad=3, x=1.045)


def _slices(axes: Axes, events: list[Row], units: dict[str, list[int]], spans: list[Row], window: Window) -> None:
    factor, unit = scaled((window.end_us - window.start_us) * 1e-6, "s")
    factor *= 1e-6
    colours = _operator_colours(spans)
    row_of = {tid: len(units) - 1 - i for i, tids in enumerate(units.values()) for tid in tids}
    lane = {tid: (k, len(tids)) for tids in units.values() for k, tid in enumerate(tids)}
    boxes: dict[Colour, list[Any]] = {}
    longest: dict[tuple[int, str], tuple[float, float, Colour]] = {}
    for e in events:
        if e["ph"] != "X" or e["pid"] != UNITS:
            continue
        start, end = max(e["ts"], window.start_us), min(e["ts"] + e["dur"], window.end_us)
        if end <= start:
            continue
        mine = e["args"]["layer"] == window.layer and e["name"] in colours
        colour = colours[e["name"]] if mine else shade(GREY, 0.55)
        k, lanes = lane[e["tid"]]
        base, tall = row_of[e["tid"]] + 0.08 + 0.84 * k / lanes, 0.84 / lanes
        x0, x1 = (start - window.start_us) * factor, (end - window.start_us) * factor
        boxes.setdefault(colour, []).append(((x0, base), (x0, base + tall), (x1, base + tall), (x1, base)))
        key = (row_of[e["tid"]], e["name"])
        if mine and lanes == 1 and x1 - x0 > longest.get(key, (0.0, 0.0, colour))[1]:
            longest[key] = (x0, x1 - x0, colour)
    _draw_boxes(axes, boxes)
    width = (window.end_us - window.start_us) * factor
    axes.set_xlim(0, width)
    axes.set_ylim(0, len(units) + _name_rows(spans))
    _names(axes, spans, _work(events, spans), colours, window, factor, len(units))
    for (row, name), (x0, length, colour) in longest.items():
        if length > (0.011 * len(name) + 0.012) * width:
            axes.text(x0 + length / 2, row + 0.5, name, fontsize=6.5, ha="center", va="center", color=ink_on(colour))
    axes.set_yticks(
        [len(units) + _name_rows(spans) / 2, *(len(units) - 0.5 - i for i in range(len(units)))], ["operators", *units]
    )
    axes.tick_params(axis="y", length=0)
    since, since_unit = scaled(window.start_us / 1e6, "s")
    axes.set_xlabel(f"time ({unit}) from {window.start_us / 1e6 * since:.5g} {since_unit}", labelpad=1)
    axes.set_title(f"Close-up: {window.text}", loc="left", pad=3)
    axes.set_title("operators: dark works, light waits", loc="right", fontsize=7, pad=3)
    _legend(axes, colours)


def _layer_spans(events: list[Row], window: Window) -> list[Row]:
    """The operators of the layer that `window` shows."""
    return [
        e
        for e in events
        if e["ph"] == "X"
        and e["pid"] == OPERATORS
        and e["args"]["block"] == window.block
        and e["args"]["layer"] == window.layer
        and window.start_us <= e["ts"] <= window.end_us
    ]


def _work(events: list[Row], spans: list[Row]) -> dict[int, list[tuple[float, float]]]:
    """When any unit works for each of `spans`, by its place in the list: (start, end) in us, which may overlap."""
    found: dict[int, list[tuple[float, float]]] = {i: [] for i in range(len(spans))}
    places: dict[tuple[str, int], list[int]] = {}
    for i, span in enumerate(spans):
        places.setdefault((span["name"], span["args"]["layer"]), []).append(i)
    for e in events:
        if e["ph"] != "X" or e["pid"] != UNITS:
            continue
        for i in places.get((e["name"], e["args"]["layer"]), ()):
            begin, end = spans[i]["ts"], spans[i]["ts"] + spans[i]["dur"]
            if e["ts"] < end and e["ts"] + e["dur"] > begin:
                found[i].append((max(e["ts"], begin), min(e["ts"] + e["dur"], end)))
    return found


def _name_rows(spans: list[Row]) -> float:
    """Height of the row of operator names, in rows of units: more where more operators overlap."""
    return max(1.0, 0.55 * len({e["tid"] for e in spans}))


def _operator_colours(spans: list[Row]) -> dict[str, Colour]:
    """A colour for each operator: the hue of its role, lighter for each further operator of that role."""
    hues = role_colours(e["args"]["role"] for e in spans)
    members: dict[str, list[str]] = {}
    for e in sorted(spans, key=lambda e: e["ts"]):
        names = members.setdefault(e["args"]["role"], [])
        if e["name"] not in names:
            names.append(e["name"])
    return {
        name: shade(hues[role], 0.62 * i / max(len(names) - 1, 1))
        for role, names in members.items()
        for i, name in enumerate(names)
    }


def _draw_boxes(axes: Axes, boxes: dict[Colour, list[Any]]) -> None:
    from matplotlib.collections import PolyCollection

    for colour, corners in sorted(boxes.items()):
        axes.add_collection(
            PolyCollection(corners, facecolors=[colour], edgecolors=[colour], linewidths=0.25, snap=False),
            autolim=False,
        )


def _names(
    axes: Axes,
    spans: list[Row],
    work: dict[int, list[tuple[float, float]]],
    colours: dict[str, Colour],
    window: Window,
    factor: float,
    row: int,
) -> None:
    """The top row: the span of every operator of the layer, stacked where they overlap; dark where `work` is done."""
    from matplotlib.patheffects import withStroke

    order = sorted(range(len(spans)), key=lambda i: (spans[i]["tid"], spans[i]["ts"]))
    tids = sorted({e["tid"] for e in spans})
    waiting: dict[Colour, list[Any]] = {}
    working: dict[Colour, list[Any]] = {}
    width = (window.end_us - window.start_us) * factor
    tall = (_name_rows(spans) - 0.16) / max(len(tids), 1)
    for i in order:
        e = spans[i]
        base = row + 0.08 + tall * (len(tids) - 1 - tids.index(e["tid"]))
        colour = colours[e["name"]]
        x0, x1 = (e["ts"] - window.start_us) * factor, (e["ts"] + e["dur"] - window.start_us) * factor
        for into, shown, pieces in (
            (waiting, mixed(colour, 0.72), [(e["ts"], e["ts"] + e["dur"])]),
            (working, colour, work[i]),
        ):
            for begin, end in pieces:
                a, b = (begin - window.start_us) * factor, (end - window.start_us) * factor
                into.setdefault(shown, []).append(((a, base), (a, base + tall), (b, base + tall), (b, base)))
        if x1 - x0 > (0.011 * len(e["name"]) + 0.012) * width:
            axes.text(
                (x0 + x1) / 2,
                base + tall / 2,
                e["name"],
                fontsize=6.5,
                ha="center",
                va="center",
                color=BLACK,
                path_effects=[withStroke(linewidth=1.8, foreground="white", alpha=0.8)],
            )
    _draw_boxes(axes, waiting)
    _draw_boxes(axes, working)
    axes.axhline(row, color="#BBBBBB", lw=0.5)


def _legend(axes: Axes, colours: dict[str, Colour]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor=colour, label=name) for name, colour in colours.items()]
    handles.append(Patch(facecolor=shade(GREY, 0.55), label="other layers"))
    axes.legend(
        handles=handles,
        loc="upper center",
        bbox_to_anchor=(0.45, -0.36 / (0.27 * (axes.get_ylim()[1]))),
        ncol=min(len(handles), 9),
        handlelength=1.0,
        columnspacing=0.9,
        handletextpad=0.4,
        fontsize=7,
    )
