"""Pictures of a DRAM run: what every bank did when, bandwidth over time, and how the banks share the work.

They are drawn from the folder that `opcycle unit dram -o DIR` writes: commands, tables and the sizes of the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from analysis.folder import read_columns, read_summary
from analysis.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILION,
    WIDTH_INCHES,
    figure,
    name_rows,
    scaled,
    shade,
    short,
)
from sim.dram_stats import CommandLog, Geometry, bank_activity
from sim.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCHEMA = "opcycle/dram-result/1"
FILE = "dram.json"

Colour = tuple[float, float, float]
COLOURS: dict[str, Colour] = {
    "open": shade(SKY, 0.72),
    "refresh": shade(GREY, 0.15),
    "precharge": shade(PURPLE, 0.0),
    "activate": shade(GREEN, 0.0),
    "write": shade(VERMILION, 0.0),
    "read": shade(BLUE, 0.0),
}
"""States of a bank, from the one painted first to the one painted last."""
NAMES = {"open": "row open", "precharge": "precharge", "activate": "activate", "read": "read", "write": "write",
         "refresh": "refresh"}  # fmt: skip

COLUMNS = 1100
"""Stretches of time that a picture is wide at most: one a pixel."""
BANK_ROWS = 256
"""Bank rows of a picture at most."""
CLOSE_UP = 320
"""Ticks that the close-up shows."""


@dataclass(frozen=True)
class DramResult:
    """A folder of `unit dram`; tables are read when first asked for. Every reader raises ConfigError."""

    folder: Path
    summary: dict[str, Any]

    @cached_property
    def geometry(self) -> Geometry:
        """Sizes and times of the memory."""
        try:
            return Geometry(**self.summary["geometry"])
        except (KeyError, TypeError) as error:
            raise ConfigError(f"is damaged: {error}", file=self.folder / FILE, key="geometry") from None

    @cached_property
    def commands(self) -> CommandLog:
        """Every command of the run."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = self.folder / "commands.parquet"
        try:
            table = pq.read_table(path, columns=list(CommandLog._fields))
        except (OSError, pa.ArrowException) as error:
            raise ConfigError(f"cannot be read ({str(error).splitlines()[0]})", file=path) from None
        return CommandLog(*(table.column(name).to_numpy() for name in CommandLog._fields))

    def table(self, name: str) -> dict[str, NDArray[np.float64]]:
        """The columns of `windows`, `banks` or `channels`."""
        return read_columns(self.folder / f"{name}.csv")

    @property
    def title(self) -> str:
        """Trace, memory and channels in one line."""
        channels = self.summary["channels"]
        return f"{self.summary['trace']} on {self.summary['memory']}, {channels} channel{'s' if channels > 1 else ''}"


def is_dram_result(folder: str | Path) -> bool:
    """Whether a folder holds a DRAM run rather than a simulated model."""
    return (Path(folder) / FILE).is_file()


def read_dram_result(folder: str | Path) -> DramResult:
    """The result in `folder`. Raises ConfigError where there is none, or one of another version."""
    return DramResult(Path(folder), read_summary(Path(folder) / FILE, SCHEMA))


def activity(result: DramResult) -> Figure:
    """One row a bank over the whole run, coloured by state and command; beside many commands, a stretch in close-up.

    Where a pixel spans several commands, a colour is the stronger the more of the pixel's time it stands for.
    """
    g = result.geometry
    shown = min(g.channels, max(BANK_ROWS // g.channel_banks, 1))
    width = -(-g.end // COLUMNS)
    rows = shown * g.channel_banks
    tall = max(min(0.15 * rows, 4.6), 0.9)
    zoom = 2 * width > max(g.burst_ticks, 2)  # single bursts cannot be seen
    small = max(min(0.15 * g.channel_banks, 2.6), 0.9) if zoom else 0.0
    height = tall + 0.92 + (small + 0.72 if zoom else 0.0)
    with figure(height) as drawn:
        left, wide = 0.115, 0.865
        top = drawn.add_axes((left, 1 - (0.5 + tall) / height, wide, tall / height))
        _paint(top, result, list(range(shown)), 0, width, -(-g.end // width))
        part = f", channels 0 to {shown - 1} of {g.channels}" if 1 < shown < g.channels else ""
        part = f", channel 0 of {g.channels}" if shown < g.channels and shown == 1 else part
        top.set_title(f"Bank activity: {result.title}{part}", loc="left", pad=18)
        _state_legend(drawn, top)
        if zoom:
            below = drawn.add_axes((left, 0.42 / height, wide, small / height))
            channel, start = _busy_stretch(result, shown)
            _paint(below, result, [channel], start, 1, min(CLOSE_UP, g.end))
            where = f"channel {channel}, " if g.channels > 1 else ""
            clocks = min(CLOSE_UP, g.end) // g.clock_ticks
            below.set_title(f"Close-up: {where}{clocks} clocks at the orange line", loc="left", pad=3)
            top.axvline((start + CLOSE_UP / 2) * top.get_xlim()[1] / g.end, color=ORANGE, lw=1.4)
            top.text(
                1, 1.012, "strength: share of the time", transform=top.transAxes, fontsize=7, ha="right", va="bottom"
            )
    return drawn


def _busy_stretch(result: DramResult, shown: int) -> tuple[int, int]:
    """Channel and first tick of a stretch worth a close look: around the middle command of the busiest one shown."""
    g, log = result.geometry, result.commands
    channel = int(np.bincount(log.channel, minlength=g.channels)[:shown].argmax())
    ticks = log.tick[log.channel == channel]
    middle = int(ticks[len(ticks) // 2]) if len(ticks) else 0
    return channel, max(min(middle - CLOSE_UP // 2, g.end - CLOSE_UP), 0)


def _paint(axes: Axes, result: DramResult, channels: list[int], start: int, width: int, bins: int) -> None:
    g = result.geometry
    shares = bank_activity(g, result.commands, channels, start, width, bins)
    rows = len(channels) * g.channel_banks
    moved = np.maximum(shares["read"], shares["write"])
    most = float(moved.max(initial=0.0)) or 1.0
    picture = np.ones((rows, bins, 3))
    for state, colour in COLOURS.items():
        strength = shares[state]
        if state in ("read", "write"):
            strength = np.sqrt(strength / most)
        elif state in ("activate", "precharge") and width > g.activate_ticks:
            strength = 0.5 * strength
        strength = np.clip(strength, 0.0, 1.0)[:, :, None]
        picture = picture * (1 - strength) + np.array(colour) * strength
    factor, unit = scaled(g.ns(start + width * bins) * 1e-9, "s")
    edge = [g.ns(start) * 1e-9 * factor, g.ns(start + width * bins) * 1e-9 * factor]
    axes.imshow(picture, aspect="auto", interpolation="nearest", extent=(edge[0], edge[1], rows, 0))
    axes.set_xlim(edge[0], min(edge[1], g.ns(g.end) * 1e-9 * factor) if start == 0 else edge[1])
    axes.set_xlabel(f"time ({unit})", labelpad=1)
    _bank_axis(axes, g, channels)


def _bank_axis(axes: Axes, g: Geometry, channels: list[int]) -> None:
    """Names the rows by the finest level that leaves names legible, with a line between channels or ranks."""
    rows = len(channels) * g.channel_banks
    levels: list[tuple[int, Callable[[int], str]]] = [
        (g.banks, lambda i: f"{_rank_name(g, channels, i * g.banks)} bg{i % g.bank_groups}".strip()),
        (g.rank_banks, lambda i: _rank_name(g, channels, i * g.rank_banks) or "banks"),
        (g.channel_banks, lambda i: f"ch{channels[i]}"),
    ]
    height = axes.bbox.height / axes.figure.dpi
    size, name = next(((s, n) for s, n in levels if height / (rows / s) >= 0.115), levels[-1])
    count = rows // size
    step = max(1, -(-count // max(int(height / 0.115), 1)))
    at = range(0, count, step)
    name_rows(axes, [(i + 0.5) * size for i in at], [name(i) for i in at], rows)
    border = g.rank_banks if len(channels) == 1 else g.channel_banks
    for y in range(border, rows, border):
        axes.axhline(y, color=BLACK, lw=0.4)
    if height / rows > 0.05:
        for y in range(size, rows, size):
            axes.axhline(y, color=GREY, lw=0.25, alpha=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(True)


def _rank_name(g: Geometry, channels: list[int], row: int) -> str:
    channel, rank = channels[row // g.channel_banks], row // g.rank_banks % g.all_ranks
    parts = [f"ch{channel}"] if len(channels) > 1 else []
    parts += [f"pc{rank // g.ranks}"] if g.pseudo_channels > 1 else []
    parts += [f"r{rank % g.ranks}"] if g.ranks > 1 else []
    return " ".join(parts)


def _state_legend(drawn: Figure, axes: Axes) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(facecolor="white", edgecolor=GREY, lw=0.5, label="closed")]
    handles += [Patch(facecolor=COLOURS[state], label=name) for state, name in NAMES.items()]
    axes.legend(
        handles=handles, loc="lower left", bbox_to_anchor=(-0.005, 1.0), ncols=len(handles), borderaxespad=0.1,
        handlelength=1.1, handleheight=0.8, columnspacing=1.2, handletextpad=0.5,
    )  # fmt: skip


def bandwidth(result: DramResult) -> Figure:
    """Read and write bandwidth of all channels by window, under the peak of the data buses; below, row hits."""
    g = result.geometry
    table = result.table("windows")
    bins = len(table["channel"]) // g.channels
    factor, unit = scaled(g.ns(g.end) * 1e-9, "s")
    edges = np.append(table["start_ns"][:bins], table["end_ns"][bins - 1]) * 1e-9 * factor

    def total(name: str) -> NDArray[np.float64]:
        summed: NDArray[np.float64] = table[name].reshape(g.channels, bins).sum(axis=0)
        return summed

    peak = g.peak_bytes_per_s
    scale, rate = scaled(peak, "B/s")
    read, write = total("read_bytes_per_s") * scale, total("write_bytes_per_s") * scale
    moved, hits = total("reads") + total("writes"), total("row_hits")
    mean = result.summary["bandwidth_bytes_per_s"]
    with figure(3.3) as drawn:
        top = drawn.add_axes((0.085, 0.415, 0.895, 0.475))
        below = drawn.add_axes((0.085, 0.125, 0.895, 0.2))
        _steps(top, edges, np.zeros(bins), read, BLUE, "read")
        if write.any():
            _steps(top, edges, read, read + write, VERMILION, "write")
        top.axhline(peak * scale, color=BLACK, lw=1.0, ls=(0, (5, 2)))
        top.axhline(mean * scale, color=ORANGE, lw=1.0)
        top.set_ylim(0, 1.22 * peak * scale)
        top.set_ylabel(f"bandwidth ({rate})")
        handles, labels = top.get_legend_handles_labels()
        from matplotlib.lines import Line2D

        handles += [Line2D([], [], color=BLACK, lw=1.0, ls=(0, (5, 2))), Line2D([], [], color=ORANGE, lw=1.0)]
        labels += [f"peak {short(peak, 'B/s')}", f"mean of the run {short(mean, 'B/s')}, {mean / peak:.1%} of peak"]
        top.legend(handles, labels, loc="upper left", ncols=4, borderaxespad=0.2, columnspacing=1.4)
        top.set_title(f"Bandwidth: {result.title}", loc="left")
        top.set_title(f"windows of {short(result.summary['window_ns'] * 1e-9, 's')}", loc="right", fontsize=7)
        share = np.divide(100 * hits, moved, out=np.full(bins, np.nan), where=moved > 0)
        below.stairs(share, edges, color=GREEN, lw=1.0, baseline=None)
        below.set_ylim(0, 105)
        below.set_ylabel("row hits (%)")
        below.set_xlabel(f"time ({unit})", labelpad=1)
        for axes in (top, below):
            axes.set_xlim(0, edges[-1])
            axes.grid(True, axis="y", lw=0.3, color="#DDDDDD")
            axes.set_axisbelow(True)
        top.set_xticklabels([])
        drawn.align_ylabels([top, below])
    return drawn


def _steps(axes: Axes, edges: Any, low: Any, high: Any, colour: str, label: str) -> None:
    axes.fill_between(
        edges, np.append(low, low[-1]), np.append(high, high[-1]), step="post", color=colour, lw=0, alpha=0.85,
        label=label,
    )  # fmt: skip


def banks(result: DramResult) -> Figure:
    """Activations, reads and writes, and time open of every bank of a channel; with several channels the mean of each
    bank over them, and the range as a line.
    """
    g = result.geometry
    table = {name: values.reshape(g.channels, g.channel_banks) for name, values in result.table("banks").items()}
    x = np.arange(g.channel_banks)
    panels: list[tuple[str, list[tuple[str, str, Any]]]] = [
        ("activations", [("", GREEN, table["activates"])]),
        ("bursts", [("read", BLUE, table["reads"]), ("write", VERMILION, table["writes"])]),
        ("row hits (%)", [("", ORANGE, _percent(table["row_hits"], table["reads"] + table["writes"]))]),
        ("time open (%)", [("", SKY, 100 * table["open_share"])]),
    ]
    height = 4.6
    with figure(height) as drawn:
        step = 0.2
        all_axes = []
        for i, (label, parts) in enumerate(panels):
            axes = drawn.add_axes((0.095, 0.735 - i * (step + 0.015), 0.885, step - 0.015))
            all_axes.append(axes)
            bottom = np.zeros(g.channel_banks)
            for name, colour, values in parts:
                if not values.any() and len(parts) > 1:
                    continue
                mean = values.mean(axis=0)
                axes.bar(x, mean, bottom=bottom, width=0.8, color=colour, label=name or None)
                bottom = bottom + mean
            if g.channels > 1:
                total = sum(values for _, _, values in parts)
                axes.vlines(x, total.min(axis=0), total.max(axis=0), color=BLACK, lw=0.7)
                bottom = np.maximum(bottom, total.max(axis=0))
            percent = "%" in label
            named = len(axes.get_legend_handles_labels()[0]) > 1
            axes.set_ylim(0, 105 if percent else (1.4 if named else 1.12) * (float(bottom.max()) or 1.0))
            axes.set_ylabel(label)
            axes.set_xlim(-0.6, g.channel_banks - 0.4)
            axes.grid(True, axis="y", lw=0.3, color="#DDDDDD")
            axes.set_axisbelow(True)
            axes.set_xticks([])
            for border in range(g.rank_banks, g.channel_banks, g.rank_banks):
                axes.axvline(border - 0.5, color=BLACK, lw=0.4)
            if named:
                axes.legend(loc="upper right", ncols=2, borderaxespad=0.1)
        drawn.align_ylabels(all_axes)
        _bank_names(all_axes[-1], g)
        all_axes[0].set_title(f"Banks: {result.title}", loc="left")
        if g.channels > 1:
            all_axes[0].set_title("mean of the channels, line: range", loc="right", fontsize=7)
    return drawn


def _percent(part: Any, whole: Any) -> Any:
    return np.divide(100 * part, whole, out=np.zeros_like(part), where=whole > 0)


def _bank_names(axes: Axes, g: Geometry) -> None:
    groups = g.channel_banks // g.banks
    wide = 0.885 * WIDTH_INCHES / groups
    if g.bank_groups > 1 and wide >= 0.3:
        names = [f"{_rank_name(g, [0], i * g.banks)} bg{i % g.bank_groups}".strip() for i in range(groups)]
        size = g.banks
    else:
        names = [_rank_name(g, [0], i * g.rank_banks) for i in range(g.all_ranks)]
        size = g.rank_banks
    if not any(names):
        axes.set_xticks(range(0, g.channel_banks, max(1, g.channel_banks // 16)))
    else:
        lines = [name.replace(" bg", "\nbg") if wide < 0.5 else name for name in names]
        axes.set_xticks([(i + 0.5) * size - 0.5 for i in range(len(names))], lines)
        axes.tick_params(axis="x", length=0)
    axes.set_xlabel("bank of a channel", labelpad=2)


FIGURES: dict[str, Callable[[DramResult], Figure]] = {"activity": activity, "bandwidth": bandwidth, "banks": banks}
"""Pictures of a DRAM run, by the stem of their files (`banks.png` stands beside `banks.csv`)."""
