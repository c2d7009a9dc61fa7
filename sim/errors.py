"""How wrong input is told: one exception, one sentence with the place, what is allowed and the nearest name."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """Wrong input, told in one sentence: `file:line: key: message`.

    It is a `ValueError` so that validators of pydantic models may raise it; `build` then completes file and line.
    """

    def __init__(
        self, message: str, *, file: str | Path | None = None, key: str | None = None, line: int | None = None
    ) -> None:
        self.message = " ".join(str(message).split())
        self.file = None if file is None else str(file)
        self.key = key or None
        self.line = line
        place = self.file if line is None or self.file is None else f"{self.file}:{line}"
        super().__init__(": ".join(part for part in (place, self.key, self.message) if part))


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The one of `names` that `name` was probably meant to be, or None where none is as alike as `cutoff` (0 to 1)."""
    from difflib import get_close_matches

    folded = {n.casefold(): n for n in sorted(names, reverse=True)}
    found = get_close_matches(name.casefold(), list(folded), n=1, cutoff=cutoff)
    return folded[found[0]] if found else None


def not_among(what: str, name: str, names: Iterable[str], most: int = 16, inside: str = "") -> str:
    """Says that `name` is no known `what`, which one is nearest, and which ones there are (about `most` of them)."""
    known = sorted(names)
    if len(known) <= most + 4:  # a few more cost less than wondering which they are
        most = len(known)
    near = nearest(name, known)
    hint = f", nearest is {near!r}" if near else ""
    more = f" and {len(known) - most} more" if len(known) > most else ""
    listed = f"; allowed: {', '.join(known[:most])}{more}" if known else ""
    return f"unknown {what} {name!r}{' in ' + inside if inside else ''}{hint}{listed}"


def show(value: Any) -> str:
    """A value as it would stand in a YAML file, cut to a readable length."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
