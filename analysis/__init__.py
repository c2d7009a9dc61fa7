"""Tables and pictures from stored results; only this package imports matplotlib, and only when something is drawn."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "compare_table": "analysis.compare",
    "design_table": "analysis.designs",
    "draw_all": "analysis.figures",
    "front_figure": "analysis.design_figures",
    "front_rows": "analysis.designs",
    "heat_map_figure": "analysis.design_figures",
    "energy_figure": "analysis.energy",
    "hierarchical_roofline": "analysis.hierarchy",
    "level_table": "analysis.hierarchy",
    "read_result": "analysis.tables",
    "roofline_figure": "analysis.roofline",
    "sensitivity_rows": "analysis.designs",
    "speedup_figure": "analysis.bars",
    "summaries": "analysis.tables",
    "timeline_figure": "analysis.timeline",
    "tornado_figure": "analysis.design_figures",
    "utilisation_figure": "analysis.bars",
    "utilisation_table": "analysis.bars",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'analysis' has no attribute {name!r}; public names: {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
