"""Self-contained report pages: everything that they need stands inside one file, the plotting library included."""

from __future__ import annotations

from analysis.pages.run import run_page
from analysis.pages.sweep import sweep_page

__all__ = ["run_page", "sweep_page"]
