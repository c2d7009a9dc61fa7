"""How pictures look: size for a paper's two columns, readable type, the Okabe-Ito palette, units chosen by magnitude.

Figures are built with the object interface on the Agg canvas: nothing global is changed and no window system is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH_INCHES = 7.0
DPI = 200
FORMATS = ("png", "svg", "pdf")
"""How figures can be saved."""

BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, VERMILION, PURPLE, GREY = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#F0E442",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
    "#8A8A8A",
)
"""Okabe and Ito's colours, which readers with any common colour vision tell apart, and a grey."""

ROLES = {
    "attention": BLUE,
    "ffn": VERMILION,
    "norm": GREEN,
    "router": SKY,
    "embed": ORANGE,
    "head": PURPLE,
    "residual": YELLOW,
}
COMPONENTS = {
    "array": VERMILION,
    "vector": ORANGE,
    "accumulator": YELLOW,
    "scratchpad": GREEN,
    "wire": SKY,
    "dram": BLUE,
    "link": PURPLE,
    "leakage": GREY,
}

_RC: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.fontsize": 7.5,
    "legend.frameon": False,
    "figure.dpi": 100,
    "svg.hashsalt": "opcycle",
    "pdf.fonttype": 42,
    "svg.fonttype": "path",
}

_FALLBACK = (SKY, ORANGE, PURPLE, GREY, BLACK)


@contextmanager
def figure(height_inches: float) -> Iterator[Figure]:
    """An empty figure of paper width inside this style."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_RC):
        drawn = Figure(figsize=(WIDTH_INCHES, height_inches))
        FigureCanvasAgg(drawn)
        yield drawn


def save(drawn: Figure, path: Path) -> None:
    """Write the figure; the ending (png, pdf, svg) says how. The same figure gives the same bytes."""
    import matplotlib

    metadata: dict[str, Any] = {
        ".png": {"Software": None},
        ".pdf": {"CreationDate": None, "Creator": None, "Producer": None},
        ".svg": {"Date": None, "Creator": None},
    }[path.suffix]
    with matplotlib.rc_context(_RC):
        drawn.savefig(path, dpi=DPI, metadata=metadata)


def name_rows(axes: Axes, places: Sequence[float], names: Sequence[str], rows: int) -> None:
    """A vertical axis of `rows` rows from the top down, with names at `places` and no ticks."""
    axes.set_yticks(places, names)
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(rows, 0)


def room_for(names: Iterable[str]) -> float:
    """Part of the width that the longest of `names` takes at the left of a vertical axis, with its tick."""
    return min(0.45, 0.03 + 0.0088 * max(map(len, names), default=0))


def role_colours(roles: Iterable[str]) -> dict[str, str]:
    """A colour for each role, in order of first appearance; known roles always have the same one."""
    found: dict[str, str] = {}
    spare = iter(_FALLBACK * 8)
    for role in dict.fromkeys(roles):
        colour = ROLES.get(role)
        found[role] = colour or next(c for c in spare if c not in found.values() or len(found) >= 8)
    return found


def shade(colour: str, share: float) -> tuple[float, float, float]:
    """`colour` mixed with white: `share` 0 leaves it, 1 is white."""
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return mixed((r, g, b), share)


def mixed(colour: tuple[float, float, float], share: float) -> tuple[float, float, float]:
    """As `shade`, of a colour given by its parts."""
    r, g, b = colour
    return (r + (1 - r) * share, g + (1 - g) * share, b + (1 - b) * share)


def ink_on(colour: tuple[float, float, float]) -> str:
    """Black or white, whichever reads better on `colour`."""
    r, g, b = colour
    return BLACK if 0.299 * r + 0.587 * g + 0.114 * b > 0.55 else "#FFFFFF"


def scaled(largest: float, unit: str) -> tuple[float, str]:
    """(factor, prefixed unit) that brings `largest` between 1 and 1000: 0.0123 s gives (1e3, "ms")."""
    for exponent, prefix in (
        (12, "T"),
        (9, "G"),
        (6, "M"),
        (3, "k"),
        (0, ""),
        (-3, "m"),
        (-6, "µ"),
        (-9, "n"),
        (-12, "p"),
    ):
        if largest >= 0.9995 * 10.0**exponent:
            return 10.0**-exponent, prefix + unit
    return 1.0, unit


def short(value: float, unit: str) -> str:
    """A quantity in three digits with its prefixed unit: `84.8 ms`."""
    factor, name = scaled(abs(value), unit)
    return f"{value * factor:.3g} {name}"
