"""Pictures of a streaming run: the graph with its channels' occupancy and the critical loop, and occupancy over time.

They are drawn from the folder that `opcycle unit stream -o DIR` writes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.folder import read_columns, read_summary
from analysis.style import BLACK, BLUE, GREY, SKY, VERMILION, WIDTH_INCHES, figure, ink_on, name_rows, shade

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEMA = "opcycle/stream-result/1"
FILE = "stream.json"
MOST_CHANNELS = 40
"""Channels that the picture over time has rows for; the fullest are shown."""

MOST_LETTERS = 11
"""Letters that a line in a node's box holds at full size."""

Spot = tuple[float, float]


@dataclass(frozen=True)
class StreamResult:
    """A folder of `unit stream -o`."""

    folder: Path
    summary: dict[str, Any]

    def occupancy(self) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """(end of each stretch of time in cycles, tokens in flight by channel). Raises ConfigError."""
        columns = read_columns(self.folder / "occupancy.csv")
        return next(iter(columns.values())), {name: columns[name] for name in list(columns)[1:]}

    @property
    def title(self) -> str:
        """Name and cycles in one line."""
        s = self.summary
        end = "deadlock at" if s["deadlock"] else "ends after"
        return f"{s['graph']}: {end} {s['cycles']:,} cycles"


def is_stream_result(folder: str | Path) -> bool:
    """Whether a folder holds a run of a streaming graph."""
    return (Path(folder) / FILE).is_file()


def read_stream_result(folder: str | Path) -> StreamResult:
    """The result in `folder`. Raises ConfigError where there is none, or one of another version."""
    return StreamResult(Path(folder), read_summary(Path(folder) / FILE, SCHEMA))


def layers(nodes: list[str], channels: list[dict[str, Any]]) -> list[list[str]]:
    """Nodes in columns from left to right: each right of those that feed it, as far as loops allow, few crossings.

    A channel past several columns has an entry in each of them too, named as `passing` says.
    """
    before: dict[str, list[str]] = {name: [] for name in nodes}
    after: dict[str, list[str]] = {name: [] for name in nodes}
    forward = [channel for channel in channels if not channel["initial"]]
    for channel in forward:
        before[channel["to"]].append(channel["from"])
        after[channel["from"]].append(channel["to"])
    depth = dict.fromkeys(nodes, 0)
    left = {name: len(before[name]) for name in nodes}
    ready = [name for name in nodes if not left[name]]
    while ready:
        name = ready.pop()
        for other in after[name]:
            depth[other] = max(depth[other], depth[name] + 1)
            left[other] -= 1
            if not left[other]:
                ready.append(other)
    for name in nodes:  # what only feeds something stands right before it
        if not before[name] and after[name]:
            depth[name] = min(depth[other] for other in after[name]) - 1
    columns: list[list[str]] = [[] for _ in range(max(depth.values()) + 1)]
    for name in nodes:
        columns[depth[name]].append(name)
    for channel in forward:
        chain = [channel["from"]]
        for x in range(depth[channel["from"]] + 1, depth[channel["to"]]):
            chain.append(passing(channel["channel"], x))
            columns[x].append(chain[-1])
        chain.append(channel["to"])
        for one, other in pairwise(chain):
            before.setdefault(other, []).append(one)
            after.setdefault(one, []).append(other)
    place = {name: (i + 0.5) / len(column) for column in columns for i, name in enumerate(column)}
    for sweep in range(8):
        near = before if sweep % 2 == 0 else after
        for column in columns if sweep % 2 == 0 else columns[::-1]:
            column.sort(key=lambda name: np.mean([place[o] for o in near[name]]) if near.get(name) else place[name])
            place |= {name: (i + 0.5) / len(column) for i, name in enumerate(column)}
    return columns


def passing(channel: str, column: int) -> str:
    """Name of the place where a channel passes a column."""
    return f"{channel}\0{column}"


def graph(result: StreamResult) -> Figure:
    """Nodes as boxes and channels as arrows, the darker the fuller on average; the critical loop or deadlock stands
    out in colour."""
    s = result.summary
    columns = layers([node["node"] for node in s["nodes"]], s["channels"])
    tall = max(len(column) for column in columns)
    height = max(1.9, 0.62 * tall + 0.9)
    spots: dict[str, Spot] = {}
    for x, column in enumerate(columns):
        for i, name in enumerate(column):
            spots[name] = (x + 0.5, (i + 0.5) / len(column) * tall)
    wide = 0.5
    with figure(height) as drawn:
        axes = drawn.add_axes((0.01, 0.02, 0.98, 1 - 0.62 / height))
        axes.set_xlim(0, len(columns))
        axes.set_ylim(tall, 0)
        axes.axis("off")
        red_nodes, red_channels = _critical(s)
        size = float(np.clip(WIDTH_INCHES / len(columns) * 5.6, 3.2, 6.8))
        _arrows(axes, s, spots, wide, red_channels, size)
        for node in s["nodes"]:
            _box(axes, node, spots[node["node"]], wide, node["node"] in red_nodes, size)
        drawn.text(0.012, 1 - 0.2 / height, _cut(result.title, 105), fontsize=9)
        note = (s.get("explanation") or s.get("critical") or {}).get("sentence", "")
        what = "deadlock: " if s["deadlock"] else "critical loop: "
        if note:
            drawn.text(0.012, 1 - 0.4 / height, _cut(what + note, 150), fontsize=6.5, color=VERMILION)
        drawn.text(0.988, 0.09 / height, KEY, fontsize=5.5, ha="right")
    return drawn


KEY = (
    "II: cycles between firings, L: latency; nodes: the darker, the busier; "
    "channels: most tokens in flight / capacity, the darker, the fuller"
)


def _critical(s: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Nodes and channels to draw in red: those that wait for one another, or that limit the throughput."""
    if s["deadlock"]:
        loop = s["explanation"]["loop"]
        return {wait["node"] for wait in loop}, {wait["channel"] for wait in loop}
    links = (s.get("critical") or {}).get("links", [])
    return {link["to"] for link in links}, {link["channel"] for link in links if link["channel"]}


def _box(axes: Axes, node: dict[str, Any], spot: Spot, wide: float, red: bool, size: float) -> None:
    from matplotlib.patches import FancyBboxPatch

    x, y = spot
    colour = shade(BLUE, 1 - 0.75 * min(node["busy"], 1.0))
    axes.add_patch(
        FancyBboxPatch(
            (x - wide / 2, y - 0.27), wide, 0.54, boxstyle="round,pad=0,rounding_size=0.06", facecolor=colour,
            edgecolor=VERMILION if red else BLACK, linewidth=1.6 if red else 0.6, zorder=3,
        )
    )  # fmt: skip
    ink = ink_on(colour)
    axes.text(x, y - 0.1, _cut(node["node"], 14), ha="center", va="center", fontsize=size + 0.8, color=ink, zorder=4)
    under = f"{node['kind'].replace('_', ' ')}\nII {node['ii']}, L {node['latency']}"
    small = (size - 1) * min(1.0, MOST_LETTERS / max(map(len, under.splitlines())))
    axes.text(x, y + 0.11, under, ha="center", va="center", fontsize=small, color=ink, zorder=4, linespacing=1.0)


def _arrows(axes: Axes, s: dict[str, Any], spots: dict[str, Spot], wide: float, red: set[str], size: float) -> None:
    """Channels of one pair of nodes side by side, past other columns through their own places; back below the nodes."""
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Line

    beside: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for channel in s["channels"]:
        beside.setdefault((channel["from"], channel["to"]), []).append(channel)
    for (start, end), together in beside.items():
        (x0, y0), (x1, y1) = spots[start], spots[end]
        for i, channel in enumerate(together):
            shift = (i - (len(together) - 1) / 2) * 0.2
            points = [(x0 + wide / 2, y0 + shift)]
            for x in range(int(x0) + 1, int(x1)):
                _, y = spots[passing(channel["channel"], x)]
                points += [(x + 0.5 - wide / 2, y), (x + 0.5 + wide / 2, y)]
            points.append((x1 - wide / 2, y1 + shift))
            if x1 <= x0:
                low = max(y0, y1) + 0.36
                points = [(x0, y0 + 0.27), (x0, low), (x1 - 0.1, low), (x1 - 0.1, y1 + 0.27)]
            hot = channel["channel"] in red
            room = channel["capacity"] if isinstance(channel["capacity"], int) else max(channel["peak"], 1)
            colour: Any = VERMILION if hot else shade(BLACK, 0.65 * (1 - min(channel["mean"] / room, 1.0)))
            axes.add_patch(
                FancyArrowPatch(
                    path=Line(points), arrowstyle="-|>,head_length=3,head_width=1.6", color=colour, fill=False,
                    linewidth=1.7 if hot else 0.9, zorder=2,
                )
            )  # fmt: skip
            text = f"{_cut(channel['channel'], 14)} {channel['peak']:,}/{_capacity(channel['capacity'])}"
            middle = len(points) // 2
            (xa, ya), (xb, yb) = points[middle - 1], points[middle]
            # Names of parallel channels that climb would cover each other halfway.
            along = 0.5 + (i - (len(together) - 1) / 2) * (0.36 if abs(yb - ya) > 0.4 else 0.0)
            axes.text(
                xa + along * (xb - xa), ya + along * (yb - ya), text, ha="center", va="center", fontsize=size - 1.2,
                zorder=5, color=VERMILION if hot else BLACK,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.4},
            )  # fmt: skip


def _capacity(capacity: int | str) -> str:
    return "∞" if capacity == "inf" else f"{capacity:,}"


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def occupancy(result: StreamResult) -> Figure:
    """One row a channel over time: tokens in flight, against the capacity or, without one, the most there were."""
    s = result.summary
    times, tokens = result.occupancy()
    channels = sorted(s["channels"], key=lambda c: -c["mean"])[:MOST_CHANNELS]
    shown = {c["channel"] for c in channels}
    channels = [c for c in s["channels"] if c["channel"] in shown]
    red = _critical(s)[1]
    row = 0.27
    height = row * len(channels) + 0.9
    edges = np.concatenate([[0.0], times])
    with figure(height) as drawn:
        axes = drawn.add_axes((0.15, 0.45 / height, 0.74, 1 - 0.85 / height))
        for i, channel in enumerate(channels):
            most = channel["capacity"] if isinstance(channel["capacity"], int) else max(channel["peak"], 1)
            level = np.minimum(tokens[channel["channel"]] / most, 1.0) * 0.86
            colour = VERMILION if channel["channel"] in red else SKY
            axes.stairs(i + 0.95 - level, edges, baseline=i + 0.95, fill=True, color=colour, lw=0)
            axes.axhline(i + 0.95, color=GREY, lw=0.3)
            text = f"{channel['peak']:,} of {_capacity(channel['capacity'])}"
            axes.text(1.008, i + 0.6, text, transform=axes.get_yaxis_transform(), fontsize=6.5, va="center")
        places = [i + 0.6 for i in range(len(channels))]
        name_rows(axes, places, [_cut(c["channel"], 18) for c in channels], len(channels))
        axes.set_xlim(0, edges[-1] or 1)
        axes.set_xlabel("cycle (right: most tokens in flight, of the capacity)", labelpad=1)
        axes.set_title(_cut(f"Tokens in flight, {result.title}", 95), loc="left", fontsize=8)
    return drawn


FIGURES: dict[str, Callable[[StreamResult], Figure]] = {"graph": graph, "occupancy": occupancy}
"""Pictures of a streaming run, by the stem of their files."""
