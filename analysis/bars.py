"""Bars and grids over several systems: speedups beside published ones, and how busy every unit of each is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from analysis.compare import column_names
from analysis.style import BLACK, BLUE, figure, ink_on, room_for
from analysis.systems import system_rows
from analysis.tables import Source, read_result
from sim.errors import ConfigError, not_among

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Claim = float | tuple[float, float]
"""A published speedup, or the range of it."""


def speedup_rows(
    folders: Sequence[Source],
    claims: Mapping[str, Claim] | None = None,
    by: Literal["latency", "tokens"] = "latency",
) -> list[dict[str, Any]]:
    """`system`, `speedup` over the first folder, and of a claimed one `claim_low`, `claim_high` and `off`.

    `by`: of the latency as in `system_rows`, or of tokens per second, which counts the requests of a batch.

    `claims`: published speedups over the same first system, by the name of the folder. `off` is how far ours is
    outside the claim, as a ratio less one; 0 inside. Raises ConfigError for a claim about no folder.
    """
    names = column_names(folders)
    for name in claims or {}:
        if name not in names:
            raise ConfigError(not_among("system", name, names), key="claims")
    rates = dict(zip(names, (read_result(folder).summary["tokens_per_s"] for folder in folders), strict=True))
    found: list[dict[str, Any]] = []
    for row in system_rows(folders):
        claim = (claims or {}).get(str(row["system"]))
        low, high = claim if isinstance(claim, tuple) else (claim, claim)
        ours = row["speedup"]
        if by == "tokens":
            ours = rates[str(row["system"])] / rates[names[0]]
        off = None
        if low is not None and high is not None and isinstance(ours, float):
            off = ours / low - 1 if ours < low else ours / high - 1 if ours > high else 0.0
        found.append({"system": row["system"], "speedup": ours, "claim_low": low, "claim_high": high, "off": off})
    return found


def speedup_figure(
    folders: Sequence[Source],
    claims: Mapping[str, Claim] | None = None,
    by: Literal["latency", "tokens"] = "latency",
) -> Figure:
    """`speedup_rows` as bars, with what was published as black lines or brackets over them."""
    rows = speedup_rows(folders, claims, by)
    height = 0.75 + 0.36 * len(rows)
    with figure(height) as drawn:
        axes = drawn.subplots()
        ends = [max(float(row[key] or 0) for key in ("speedup", "claim_high")) for row in rows]
        for place, (row, end) in enumerate(zip(rows, ends, strict=True)):
            ours = float(row["speedup"] or 0)
            axes.barh(place, ours, height=0.62, color=BLUE, label="simulated" if place == 0 else None)
            low, high = row["claim_low"], row["claim_high"]
            if low is not None:
                label = "published" if not any(r["claim_low"] is not None for r in rows[:place]) else None
                axes.plot([low, low], [place - 0.4, place + 0.4], color=BLACK, lw=1.6, label=label)
                axes.plot([high, high], [place - 0.4, place + 0.4], color=BLACK, lw=1.6)
                axes.plot([low, high], [place, place], color=BLACK, lw=0.8)
            published = "" if low is None else f" (published {low:g}x)" if low == high else f" ({low:g} to {high:g}x)"
            axes.text(end, place, f"  {ours:.2f}x{published}", va="center", fontsize=7.5)
        axes.set_yticks(range(len(rows)), [row["system"] for row in rows])
        axes.invert_yaxis()
        axes.tick_params(axis="y", length=0)
        axes.set_xlim(0, max(ends, default=1) * 1.35 or 1)
        axes.axvline(1, color=BLACK, lw=0.5, ls=":")
        axes.set_xlabel(f"{'tokens/s' if by == 'tokens' else 'speedup'} over {rows[0]['system']}")
        if claims:
            axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=7, borderaxespad=0)
        drawn.subplots_adjust(
            left=room_for(str(row["system"]) for row in rows), right=0.985, top=1 - 0.2 / height, bottom=0.42 / height
        )
    return drawn


def utilisation_rows(folders: Sequence[Source]) -> list[dict[str, Any]]:
    """A row a folder: `system`, and for every unit of any of them the share of the time it works (None: no such)."""
    results = [read_result(folder) for folder in folders]
    units = list(dict.fromkeys(unit for result in results for unit in result.summary["utilization"]))
    return [
        {"system": name, **{unit: result.summary["utilization"].get(unit) for unit in units}}
        for name, result in zip(column_names(folders), results, strict=True)
    ]


def utilisation_table(folders: Sequence[Source]) -> DataFrame:
    """`utilisation_rows` as a data frame."""
    from pandas import DataFrame

    return DataFrame(utilisation_rows(folders)).set_index("system")


def utilisation_figure(folders: Sequence[Source]) -> Figure:
    """`utilisation_rows` as a grid: systems down, units across, darker where a unit works more of the time."""
    from matplotlib import colormaps

    rows = utilisation_rows(folders)
    units = [key for key in rows[0] if key != "system"]
    height = 0.75 + 0.34 * len(rows)
    colours = colormaps["Blues"]
    with figure(height) as drawn:
        axes = drawn.subplots()
        for i, row in enumerate(rows):
            for k, unit in enumerate(units):
                share = row[unit]
                colour = colours(0.05 + 0.85 * share)[:3] if share is not None else (1.0, 1.0, 1.0)
                axes.add_patch(_cell(k, i, colour))
                text = "-" if share is None else f"{share:.0%}"
                axes.text(k + 0.5, i + 0.5, text, ha="center", va="center", fontsize=7.5, color=ink_on(colour))
        axes.set_xlim(0, len(units))
        axes.set_ylim(len(rows), 0)
        axes.set_xticks([k + 0.5 for k in range(len(units))], units)
        axes.set_yticks([i + 0.5 for i in range(len(rows))], [row["system"] for row in rows])
        axes.tick_params(length=0)
        axes.set_xlabel("share of the time that a unit works")
        for spine in axes.spines.values():
            spine.set_visible(False)
        drawn.subplots_adjust(
            left=room_for(str(row["system"]) for row in rows), right=0.985, top=0.97, bottom=0.5 / height
        )
    return drawn


def _cell(x: float, y: float, colour: tuple[float, float, float]) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x + 0.02, y + 0.03), 0.96, 0.94, facecolor=colour, edgecolor="none")
