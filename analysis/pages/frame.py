"""The frame of a report page: one HTML text with style, scripts, the plotting library and its data inside."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from analysis.designs import unit_of
from sim.errors import ConfigError

HERE = Path(__file__).parent

Column = dict[str, Any]

PREFIXED = ("s", "J", "W", "B", "/s", "FLOP", "FLOP/s", "op", "MAC")
"""Units that take a prefix in a table."""


def page(title: str, subtitle: str, body: str, script: str) -> str:
    """The whole page. It asks for nothing from elsewhere. Raises ConfigError where Plotly is not installed."""
    style, tools = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{style}</style>\n<script>{_library()}</script>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="note">{escape(subtitle)}</p>\n{body}\n'
        f"<script>\n{tools}\n{script}\n</script>\n</body>\n</html>\n"
    )


def facts(values: Sequence[tuple[str, str]]) -> str:
    """Boxes of a name and a value."""
    boxes = "".join(f"<div><span>{escape(name)}</span><b>{escape(value)}</b></div>" for name, value in values)
    return f'<div class="facts">{boxes}</div>'


def section(title: str, inside: str, note: str = "") -> str:
    """A heading, a remark and what follows."""
    remark = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{remark}{inside}</section>"


def source(title: str, text: str) -> str:
    """A text that opens on demand."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"


def columns_of(names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[Column]:
    """What the scripts must know of a table's columns: name, unit, and whether it holds text."""
    found = []
    for i, name in enumerate(names):
        text = any(isinstance(row[i], (str, bool)) for row in rows)
        unit = "" if text else unit_of(name)
        found.append({"name": name, "unit": unit if unit in PREFIXED else "", "text": text})
    return found


def data_text(value: Any) -> str:
    """A value as JavaScript, safe inside a script element; numbers that JSON lacks become null."""
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def _library() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError:
        raise ConfigError("--html needs Plotly: pip install 'opcycle[html]'") from None
    text: str = get_plotlyjs()
    return text
