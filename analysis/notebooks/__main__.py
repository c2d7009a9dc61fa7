"""Renders notebooks into docs/notebooks: all of them, or those that are named."""

from __future__ import annotations

import sys
from pathlib import Path

from analysis.notebooks import names, render

folder = Path(__file__).resolve().parents[2] / "docs" / "notebooks"
for name in sys.argv[1:] or names():
    sys.stderr.write(f"{render(name, folder)}\n")
