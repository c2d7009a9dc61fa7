"""Runs a notebook's cells in this process and writes what they say and show as a page of Markdown with pictures.

Cells are plain Python: no magic, no shell. The last expression of a cell is shown as a notebook would: a data frame as
a table, a figure as a picture, anything else as text.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
ROWS = 20
"""Rows of a data frame that a page shows."""


class Cell(NamedTuple):
    """A cell: `kind` is markdown or code."""

    kind: str
    source: str


class Shown(NamedTuple):
    """What a cell of code printed, and the value of its last expression."""

    cell: Cell
    printed: str
    value: Any


def names() -> list[str]:
    """The notebooks that there are, in the order in which to read them."""
    return sorted(path.stem for path in HERE.glob("*.ipynb"))


def read_notebook(name: str) -> list[Cell]:
    """The cells of a notebook."""
    data = json.loads((HERE / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [Cell(cell["cell_type"], "".join(cell["source"])) for cell in data["cells"]]


def run(name: str) -> list[Shown]:
    """Run a notebook from top to bottom in a working folder of its own. What a cell raises passes through."""
    found = []
    scope: dict[str, Any] = {"__name__": "__main__"}
    with _own_folder():
        for number, cell in enumerate(read_notebook(name)):
            if cell.kind != "code":
                found.append(Shown(cell, "", None))
                continue
            tree = ast.parse(cell.source)
            last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
            where = f"{name}.ipynb, cell {number + 1}"
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(tree, where, "exec"), scope)
                value = None
                if isinstance(last, ast.Expr):
                    value = eval(compile(ast.Expression(last.value), where, "eval"), scope)
            found.append(Shown(cell, printed.getvalue(), value))
    return found


def render(name: str, folder: Path) -> Path:
    """Run a notebook and write its page and pictures into `folder`; returns the page."""
    from matplotlib.figure import Figure

    from analysis.style import save

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob(f"{name}-*.svg"):
        old.unlink()
    parts = []
    pictures = 0
    for cell, printed, value in run(name):
        if cell.kind != "code":
            parts.append(cell.source)
            continue
        parts.append(f"```python\n{cell.source}\n```")
        if printed:
            parts.append(f"```\n{printed.rstrip()}\n```")
        if isinstance(value, Figure):
            pictures += 1
            path = folder / f"{name}-{pictures}.svg"
            save(value, path)
            parts.append(f"![picture {pictures}]({path.name})")
        elif hasattr(value, "itertuples"):
            parts.append(_table(value))
        elif value is not None:
            parts.append(f"```\n{value}\n```")
    page = folder / f"{name}.md"
    page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return page


def _table(frame: Any) -> str:
    """A data frame as a table of Markdown; an index with a name is a column."""
    shown = frame.reset_index() if frame.index.name else frame
    lines = [[_text(value) for value in row] for row in shown.head(ROWS).itertuples(index=False)]
    heads = [str(name) for name in shown.columns]
    rule = ["---"] * len(heads)
    text = "\n".join(f"| {' | '.join(line)} |" for line in [heads, rule, *lines])
    more = len(shown) - ROWS
    return text + (f"\n\n{more} further rows" if more > 0 else "")


def _text(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


@contextlib.contextmanager
def _own_folder() -> Iterator[None]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
