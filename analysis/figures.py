"""One function a picture, and one that draws all pictures of a result folder again from what is stored in it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from analysis import dram, sparse, stream
from analysis.design_figures import design_pictures
from analysis.designs import is_design_result
from analysis.energy import energy_figure
from analysis.roofline import roofline_figure
from analysis.style import save
from analysis.tables import Result, read_result
from analysis.timeline import timeline_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES: dict[str, Callable[[Result], Figure]] = {
    "roofline": roofline_figure, "timeline": timeline_figure, "energy": energy_figure,
}  # fmt: skip
"""Pictures of a result folder, by the stem of their files."""


def draw_all(folder: str | Path, formats: Sequence[str] = ("png",)) -> list[Path]:
    """Draw every picture of a result folder into it, as `png`, `pdf` or `svg`; the paths written.

    Raises ConfigError where the folder holds no result of this version.
    """
    figures: list[tuple[str, Callable[[], Figure]]]
    if is_design_result(folder):
        figures = list(design_pictures(folder).items())
    elif dram.is_dram_result(folder):
        run = dram.read_dram_result(folder)
        figures = [(name, partial(draw, run)) for name, draw in dram.FIGURES.items()]
    elif stream.is_stream_result(folder):
        streamed = stream.read_stream_result(folder)
        figures = [(name, partial(draw, streamed)) for name, draw in stream.FIGURES.items()]
    elif sparse.is_sparse_result(folder):
        curve = sparse.read_sparse_result(folder)
        figures = [(name, partial(draw, curve)) for name, draw in sparse.FIGURES.items()]
    else:
        result = read_result(folder)
        figures = [(name, partial(draw, result)) for name, draw in FIGURES.items()]
    written = []
    for name, picture in figures:
        drawn = picture()
        for ending in formats:
            path = Path(folder) / f"{name}.{ending}"
            save(drawn, path)
            written.append(path)
    return written
