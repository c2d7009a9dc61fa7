"""Systems side by side: how fast each is, and how busy its arrays, its units in memory and its memory bus are.

One result folder a system; the first is what the others are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.compare import Row, column_names
from analysis.style import BLUE, GREEN, GREY, ORANGE, SKY, VERMILION, figure, room_for, short
from analysis.tables import Source, read_result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTS = {
    "npu_busy": ("NPU arrays", VERMILION),
    "npu_macs": ("NPU MACs", ORANGE),
    "pim_busy": ("PIM units", BLUE),
    "pim_macs": ("PIM MACs", SKY),
    "memory_bus": ("memory bus", GREEN),
}
"""Shares that `system_rows` states of a system: what they are called, and their colour."""


def system_rows(folders: Sequence[Source]) -> list[Row]:
    """One row a folder: how fast it is, how much faster than the first, and how busy its parts are (0 to 1).

    latency_s is that of a request's token after the prefill where a run generates any (`latency_of` is "token"): a
    decode pass, or drafts, checks and denoising over the tokens that they yield, so that methods with passes of
    different kinds and numbers compare. Of other runs it is the whole ("run"); speedup is None over one of the other
    kind. npu_busy, npu_macs: arrays (the compute unit of a machine known by its rates) with work, and their rate over
    their peak; pim_busy, pim_macs: the same of units in the memory, None without any; memory_bus: data buses with data.
    Raises ConfigError for a folder without result.
    """
    results = [read_result(folder) for folder in folders]
    first_s, first_of = _latency(results[0].summary)
    rows: list[Row] = []
    for name, result in zip(column_names(folders), results, strict=True):
        s = result.summary
        latency_s, latency_of = _latency(s)
        pim = s.get("pim") or {}
        busy = s["utilization"]
        arrays = [share for unit, share in busy.items() if unit.endswith("array") or unit == "compute"]
        rows.append(
            {
                "system": name,
                "hardware": s["hardware"],
                "workload": s["workload"],
                "latency_s": latency_s,
                "latency_of": latency_of,
                "tokens_per_s": s["tokens_per_s"],
                "speedup": first_s / latency_s if latency_s and latency_of == first_of else None,
                "energy_per_token_j": s["energy_j"] / s["tokens"] if s["tokens"] else None,
                "npu_busy": sum(arrays) / len(arrays) if arrays else None,
                "npu_macs": s["mac_utilization"],
                "pim_busy": pim.get("utilization"),
                "pim_macs": pim.get("mac_utilization"),
                "memory_bus": busy.get("memory"),
            }
        )
    return rows


def _latency(summary: dict[str, Any]) -> tuple[float, str]:
    token_s = summary["tpot_s"]
    return (float(summary["time_s"]), "run") if token_s is None else (float(token_s), "token")


def systems_figure(rows: Sequence[Row]) -> Figure:
    """Speedups over the first system, and how busy the parts of each are; `rows` are those of `system_rows`."""
    names = [str(row["system"]) for row in rows]
    places = range(len(rows))
    with figure(1.5 + 0.42 * len(rows)) as drawn:
        left, right = drawn.subplots(1, 2, sharey=True)
        speeds = [float(row["speedup"] or 0) for row in rows]
        left.barh(places, speeds, height=0.62, color=GREY)
        for place, (speed, row) in enumerate(zip(speeds, rows, strict=True)):
            told = "-" if row["speedup"] is None else f"{speed:.2f}x"
            latency = short(float(row["latency_s"] or 0), "s")
            left.text(speed, place, f" {told}, {latency} a {row['latency_of']}", va="center", fontsize=7.5)
        left.set_xlim(0, max(speeds, default=1) * 2.1)
        left.set_xlabel(f"speedup over {names[0]}")
        left.set_yticks(list(places), names)
        left.invert_yaxis()
        parts = {key: part for key, part in PARTS.items() if any(row[key] is not None for row in rows)}
        height = 0.8 / max(len(parts), 1)
        for number, (key, (label, colour)) in enumerate(parts.items()):
            values = [float(row[key] or 0) for row in rows]
            at = [place - 0.4 + (number + 0.5) * height for place in places]
            right.barh(at, values, height=height, color=colour, label=label)
        right.set_xlim(0, 1)
        right.set_xlabel("share of the time, or of the peak rate (MACs)")
        handles, labels = right.get_legend_handles_labels()
        drawn.legend(handles, labels, loc="upper center", ncols=max(len(parts), 1))
        right.tick_params(axis="y", length=0)
        drawn.subplots_adjust(
            left=max(0.14, room_for(names)),
            right=0.98,
            top=0.86,
            bottom=0.48 / (1.5 + 0.42 * len(rows)) + 0.04,
            wspace=0.08,
        )
    return drawn
