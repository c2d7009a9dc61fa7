"""Energy: where it goes by component of the machine, and by role of the operators that it was spent on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from analysis.style import COMPONENTS, GREY, figure, ink_on, scaled, shade, short
from analysis.tables import Result, Source, read_result, total

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def energy_figure(source: Source) -> Figure:
    """Two panels of horizontal stacked bars: components with their parts, and operator roles with their components."""
    result = read_result(source)
    rows = result.energy
    components = [name for name in COMPONENTS if any(row["component"] == name for row in rows)]
    components += [name for name in dict.fromkeys(row["component"] for row in rows) if name not in components]
    roles = sorted(total(result.operators, "role", "energy_j").items(), key=lambda item: -item[1])
    height = 1.34 + 0.26 * (len(components) + len(roles))
    with figure(height) as drawn:
        share = (height - 1.34) / (len(components) + len(roles)) / height
        lower = share * len(roles)
        upper = share * len(components)
        below = 0.42 / height
        top = drawn.add_axes((0.125, below + lower + 0.62 / height, 0.855, upper))
        bottom = drawn.add_axes((0.125, below, 0.855, lower))
        _by_component(top, result, components)
        _by_role(bottom, result, components, [name for name, _ in roles])
    return drawn


def _by_component(axes: Axes, result: Result, components: list[str]) -> None:
    sums = {
        name: total((r for r in result.energy if r["component"] == name), "subcomponent", "energy_j")
        for name in components
    }
    largest = max((sum(parts.values()) for parts in sums.values()), default=1.0) or 1.0
    all_j = result.summary["energy_j"] or 1.0
    factor, unit = scaled(largest, "J")
    axes.set_xlim(0, 1.22 * largest * factor)
    for i, (name, parts) in enumerate(sums.items()):
        left = 0.0
        ordered = sorted(parts.items(), key=lambda item: -item[1])
        for k, (part, joules) in enumerate(ordered):
            colour = shade(COMPONENTS.get(name, GREY), 0.7 * k / max(len(ordered) - 1, 1) if len(ordered) > 1 else 0.0)
            axes.barh(i, joules * factor, left=left, height=0.72, color=colour, edgecolor="white", linewidth=0.5)
            lines = [part] if joules / largest > 0.0115 * len(part) + 0.008 else part.split(" ")
            if joules / largest > 0.0115 * max(map(len, lines)) + 0.008 and len(lines) <= 2:
                axes.text(
                    left + joules * factor / 2,
                    i,
                    "\n".join(lines),
                    ha="center",
                    va="center",
                    linespacing=0.95,
                    fontsize=6.5 if len(lines) == 1 else 5.8,
                    color=ink_on(colour),
                )
            left += joules * factor
        axes.text(
            left,
            i,
            f"  {short(sum(parts.values()), 'J')}  ({_percent(sum(parts.values()) / all_j)})",
            va="center",
            fontsize=7.5,
        )
    _finish(axes, components, f"energy ({unit})")
    power = result.summary["power_w"]
    mean = f", {short(power, 'W')} on average" if power else ""
    axes.set_title(f"Energy by component: {result.title}, {short(all_j, 'J')}{mean}", loc="left", pad=4)


def _by_role(axes: Axes, result: Result, components: list[str], roles: list[str]) -> None:
    from matplotlib.patches import Patch

    parts = {name: total(result.operators, "role", f"energy_{name}_j") for name in components}
    largest = max((sum(parts[c][role] for c in components) for role in roles), default=1.0) or 1.0
    all_j = result.summary["energy_j"] or 1.0
    factor, unit = scaled(largest, "J")
    axes.set_xlim(0, 1.22 * largest * factor)
    for i, role in enumerate(roles):
        left = 0.0
        for name in components:
            wide = parts[name][role] * factor
            axes.barh(
                i, wide, left=left, height=0.72, color=COMPONENTS.get(name, GREY), edgecolor="white", linewidth=0.5
            )
            left += wide
        axes.text(
            left, i, f"  {short(left / factor, 'J')}  ({_percent(left / factor / all_j)})", va="center", fontsize=7.5
        )
    _finish(axes, roles, f"energy ({unit})")
    axes.set_title("Energy by operator role", loc="left", pad=4)
    handles = [Patch(facecolor=COMPONENTS.get(name, GREY), label=name) for name in components]
    axes.legend(
        handles=handles,
        loc="lower right",
        bbox_to_anchor=(1.01, 1.0),
        ncol=len(handles),
        handlelength=1.0,
        handletextpad=0.4,
        columnspacing=0.9,
        borderaxespad=0.3,
        fontsize=7,
    )


def _finish(axes: Axes, names: list[str], label: str) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(label, labelpad=1)
    axes.grid(True, axis="x", lw=0.3, color="#DDDDDD")
    axes.set_axisbelow(True)


def _percent(share: float) -> str:
    return "<0.1%" if 0 < share < 0.0005 else f"{share:.1%}"
