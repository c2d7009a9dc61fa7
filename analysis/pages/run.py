"""The page of one run: totals, roofline, a timeline to zoom into, energy, operators to sort, and the inputs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from analysis.pages.frame import columns_of, data_text, facts, page, section, source
from analysis.roofline import MARKERS, points
from analysis.style import COMPONENTS, GREY, role_colours, scaled, short
from analysis.tables import Result, read_result, total

SLICES = 12_000
"""Slices of units that the timeline draws; of more, the longest."""
UNITS = 3
"""Process of the timeline file in which units stand."""
SHOWN = (
    "pass", "block", "operator", "kind", "role", "format", "count", "time_s", "flops", "vector_ops", "dram_bytes",
    "scratchpad_bytes", "intensity_flop_per_byte", "achieved_flops_per_s", "bound", "energy_j",
)  # fmt: skip
"""Columns of the operators' table, of those that there are."""
BEYOND = {
    "padding_macs": "padding", "predictor_macs": "predictor", "skipped_macs": "zeros left out",
    "refetched_bytes": "fetched again", "kept_on_chip_bytes": "kept on chip", "burst_padding_bytes": "burst padding",
    "left_out_bytes": "zeros not stored", "metadata_bytes": "metadata", "write_queue_hit_bytes": "from the write queue",
}  # fmt: skip
"""What the machine did more, or less, than the operators ask for, of the summary's overheads."""
SYMBOLS = {"o": "circle", "s": "square", "D": "diamond"}
MARGIN = {"l": 80, "r": 20, "t": 34, "b": 50}


def run_page(folder: str | Path) -> str:
    """The page of a result folder of `simulate`. Raises ConfigError where there is none."""
    result = read_result(folder)
    plots = {"roofline": _roofline(result), "timeline": _timeline(result), "energy": _energy(result)}
    drawn, told, whole = plots["timeline"].pop("counts")
    note = f"{drawn} of {whole} stretches, the longest; " if drawn < whole else ""
    beyond = {name: value for name, value in result.summary["overheads"].items() if value and name in BEYOND}
    body = [
        facts(_facts(result.summary)),
        section("Units", facts(_busy(result.summary)), "share of the time that each works"),
        section("Roofline", '<div id="roofline" class="plot"></div>', "area: share of the time; star: the whole run"),
        section(
            "Timeline",
            '<div id="timeline" class="plot"></div>',
            f"{note}{told} units; drag to zoom, double-click to see all, drag the axis to move",
        ),
        section("Energy", '<div id="energy" class="plot"></div>'),
        *([section("Beyond the model's own work", facts(_beyond(beyond)))] if beyond else []),
        section("Operators", '<div id="operators"></div>', "click a heading to sort"),
        section("Energy account", '<div id="account"></div>'),
        section("Inputs", "".join(_inputs(Path(folder)))),
    ]
    tables = [_table("operators", result.operators, SHOWN), _table("account", result.energy, tuple(result.energy[0]))]
    script = [f"drawPlot({data_text(name)}, {data_text(plot)});" for name, plot in plots.items()]
    script += [f"makeTable({data_text(table)});" for table in tables]
    s = result.summary
    subtitle = f"{s['model']}, opcycle {s['provenance'].get('opcycle', '')}"
    return page(result.title, subtitle, "\n".join(body), "\n".join(script))


def _busy(s: dict[str, Any]) -> list[tuple[str, str]]:
    busy = sorted(s["utilization"].items(), key=lambda item: -item[1])
    return [(unit, f"{share:.1%}") for unit, share in busy]


def _beyond(found: dict[str, int]) -> list[tuple[str, str]]:
    return [(BEYOND[name], short(value, name.rpartition("_")[2].replace("bytes", "B").upper())) for name, value in
            found.items()]  # fmt: skip


def _facts(s: dict[str, Any]) -> list[tuple[str, str]]:
    roof = s["roofline"]
    wanted: list[tuple[str, Any, str]] = [
        ("time", s["time_s"], "s"), ("per step", s["time_per_step_s"], "s"), ("to first token", s["ttft_s"], "s"),
        ("tokens/s", s["tokens_per_s"], ""), ("energy", s["energy_j"], "J"), ("power", s["power_w"], "W"),
        ("arithmetic", s["flops"], "FLOP"), ("reached", roof["achieved_flops_per_s"], "FLOP/s"),
        ("DRAM traffic", s["dram_bytes"], "B"), ("FLOP per DRAM byte", roof["intensity_flop_per_byte"], ""),
    ]  # fmt: skip
    found = [(name, short(value, unit)) for name, value, unit in wanted if value]
    found.append(("bound by", str(roof["bound"])))
    if s["busiest_unit"]:
        found.append(("busiest unit", f"{s['busiest_unit']} {s['utilization'][s['busiest_unit']]:.0%}"))
    if s.get("fidelity", "exact") != "exact":
        found.append(("fidelity", str(s["fidelity"])))
    if s.get("area_mm2"):
        found.append(("area (first order)", f"{s['area_mm2']:,.0f} mm²"))
    if s.get("cost_usd"):
        found.append(("cost (first order)", f"{s['cost_usd']:,.0f} USD"))
    return found


def _roofline(result: Result) -> dict[str, Any]:
    roof = result.summary["roofline"]
    found = [p for p in points(result) if p.x is not None]
    colours = role_colours(p.role for p in found)
    peak = max([roof["peak_flops_per_s"], *roof["peak_flops_per_s_by_format"].values()])
    bandwidth = roof["peak_bytes_per_s"]
    ridge = peak / bandwidth
    xs = [p.x for p in found if p.x] + [ridge]
    low, high = min(xs) / 5, max(xs) * 8
    data: list[dict[str, Any]] = [
        {"x": [low, ridge, high], "y": [low * bandwidth, peak, peak], "mode": "lines", "name": "roof",
         "line": {"color": "#000", "width": 1.5}, "hoverinfo": "skip"}
    ]  # fmt: skip
    pad = roof.get("peak_scratchpad_bytes_per_s")
    if pad:
        data.append(
            {"x": [low, peak / pad], "y": [low * pad, peak], "mode": "lines", "name": "scratchpad roof",
             "line": {"color": "#000", "width": 1, "dash": "dash"}, "hoverinfo": "skip"}
        )  # fmt: skip
    for role, colour in colours.items():
        own = [p for p in found if p.role == role]
        data.append(
            {
                "x": [p.x for p in own], "y": [p.y for p in own], "mode": "markers", "name": role or "other",
                "text": [f"{p.name} ({p.phase}), {p.share:.1%} of the time" for p in own],
                "hovertemplate": "%{text}<br>%{x:.4g} operations/B<br>%{y:.4s}op/s<extra></extra>",
                "marker": {
                    "color": colour, "opacity": 0.85, "size": [7 + 40 * math.sqrt(p.share) for p in own],
                    "symbol": [SYMBOLS[MARKERS.get(p.phase, "o")] for p in own],
                },
            }
        )  # fmt: skip
    if roof["intensity_flop_per_byte"] and roof["achieved_flops_per_s"]:
        data.append(
            {"x": [roof["intensity_flop_per_byte"]], "y": [roof["achieved_flops_per_s"]], "mode": "markers",
             "name": "whole run", "hovertemplate": "whole run<br>%{x:.4g} FLOP/B<br>%{y:.4s}FLOP/s<extra></extra>",
             "marker": {"symbol": "star", "size": 15, "color": "#F0E442",
                                                                      "line": {"color": "#000", "width": 1}}}
        )  # fmt: skip
    layout = {
        "height": 440, "margin": MARGIN, "plot_bgcolor": "#fff",
        "xaxis": {"type": "log", "dtick": 1, "title": {"text": "operations per DRAM byte"}, "gridcolor": "#e4e4e4"},
        "yaxis": {"type": "log", "dtick": 1, "title": {"text": "operations/s", "standoff": 12}, "automargin": True,
                  "gridcolor": "#e4e4e4", "tickformat": "~s"},
    }  # fmt: skip
    return {"data": data, "layout": layout}


def _timeline(result: Result) -> dict[str, Any]:
    names = {
        # Slices of a unit that overlap stand on further lanes of the file; here they share the unit's own.
        event["tid"]: event["args"]["name"].partition(", overlap")[0]
        for event in result.events
        if event["ph"] == "M" and event["name"] == "thread_name" and event["pid"] == UNITS
    }
    slices = [event for event in result.events if event["ph"] == "X" and event["pid"] == UNITS]
    whole = len(slices)
    slices = _longest(slices)
    roles = {row["operator"]: row["role"] for row in result.operators}
    colours = role_colours(roles.values())
    factor, unit = scaled(max((e["ts"] + e["dur"] for e in slices), default=1.0) * 1e-6, "s")
    factor *= 1e-6  # the file counts microseconds
    data = []
    for role in colours:
        own = [event for event in slices if roles.get(event["name"], "") == role]
        if own:
            data.append(
                {
                    "type": "bar", "orientation": "h", "name": role or "other", "base": [e["ts"] * factor for e in own],
                    "x": [e["dur"] * factor for e in own], "y": [names[e["tid"]] for e in own], "customdata": [
                        [e["name"], e["args"].get("block", ""), e["args"].get("layer", "")] for e in own
                    ],
                    "hovertemplate": "%{customdata[0]} (%{customdata[1]} %{customdata[2]})<br>from %{base:.6g} "
                    f"{unit}, %{{x:.4g}} {unit}<extra></extra>",
                    "marker": {"color": colours[role], "opacity": 0.85, "line": {"width": 0}}, "offset": -0.4,
                    "width": 0.8,
                }
            )  # fmt: skip
    busy = {names[event["tid"]] for event in slices}
    units = [name for name in dict.fromkeys(names[tid] for tid in sorted(names)) if name in busy]
    layout = {
        "height": 110 + 44 * len(units), "margin": {**MARGIN, "l": 110}, "plot_bgcolor": "#fff", "dragmode": "zoom",
        "barmode": "overlay", "legend": {"traceorder": "normal"},
        "xaxis": {"title": {"text": f"time ({unit})"}, "gridcolor": "#e4e4e4"},
        "yaxis": {"categoryorder": "array", "categoryarray": units[::-1], "fixedrange": True},
    }  # fmt: skip
    return {"data": data, "layout": layout, "scroll": True, "counts": (len(slices), len(units), whole)}


def _longest(slices: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most SLICES slices: the longest of each unit, so that none looks idle whose work is short, then of all."""
    ordered = sorted(slices, key=lambda event: -event["dur"])
    share = SLICES // max(len({event["tid"] for event in slices}), 1)
    own: dict[int, int] = {}
    first: list[dict[str, Any]] = []
    rest: list[dict[str, Any]] = []
    for event in ordered:
        own[event["tid"]] = own.get(event["tid"], 0) + 1
        (first if own[event["tid"]] <= share else rest).append(event)
    return (first + rest)[:SLICES]


def _energy(result: Result) -> dict[str, Any]:
    roles = sorted(total(result.operators, "role", "energy_j").items(), key=lambda item: item[1])
    names = [role or "other" for role, _ in roles]
    data = []
    for component, colour in {**COMPONENTS, **{row["component"]: GREY for row in result.energy}}.items():
        column = f"energy_{component}_j"
        if not result.operators or column not in result.operators[0]:
            continue
        sums = total(result.operators, "role", column)
        if any(sums.values()):
            data.append(
                {
                    "type": "bar", "orientation": "h", "name": component, "y": names,
                    "x": [sums.get(role, 0.0) for role, _ in roles],
                    "marker": {"color": COMPONENTS.get(component, colour)},
                    "hovertemplate": f"{component}, %{{y}}: %{{x:.4s}}J<extra></extra>",
                }
            )  # fmt: skip
    layout = {
        "height": 110 + 34 * len(names), "margin": {**MARGIN, "l": 110}, "barmode": "stack", "plot_bgcolor": "#fff",
        "legend": {"traceorder": "normal"},
        "xaxis": {"title": {"text": "energy (J)"}, "gridcolor": "#e4e4e4", "exponentformat": "SI"},
    }  # fmt: skip
    return {"data": data, "layout": layout}


def _table(name: str, rows: list[dict[str, Any]], wanted: tuple[str, ...]) -> dict[str, Any]:
    columns = [column for column in wanted if rows and column in rows[0]]
    listed = [[row[column] for column in columns] for row in rows]
    return {"id": name, "columns": columns_of(columns, listed), "rows": listed, "filter": True}


def _inputs(folder: Path) -> list[str]:
    files = [folder / name for name in ("hwconfig.yaml", "workload.yaml")]
    return [source(file.name, file.read_text(encoding="utf-8")) for file in files if file.is_file()]
