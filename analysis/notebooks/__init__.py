"""Notebooks: stories told with the simulator. They are stored without outputs and rendered into docs/notebooks.

`python -m analysis.notebooks` runs all of them and writes their pages anew.
"""

from __future__ import annotations

from analysis.notebooks.runner import Cell, names, read_notebook, render, run

__all__ = ["Cell", "names", "read_notebook", "render", "run"]
