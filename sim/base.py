"""Reads a data file that may say `base:` and only how it differs from another file of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sim.catalog import find, is_path
from sim.document import Document, load_yaml
from sim.errors import ConfigError


def load_based(kind: str, name_or_path: str | Path) -> Document:
    """The document of that name or file with everything that it is based on; `kind` is a key of `catalog.FOLDERS`.

    Mappings are merged key by key, anything else is replaced. Raises ConfigError.
    """
    return _with_base(kind, find(kind, name_or_path), ())


def _with_base(kind: str, path: Path, seen: tuple[Path, ...]) -> Document:
    document = load_yaml(path)
    data = dict(document.data)
    base = data.pop("base", None)
    if base is None:
        return document
    if not isinstance(base, str):
        raise document.error(f"must be the name or path of a {kind}", "base")
    if path in seen:
        raise document.error("is based on itself", "base")
    try:
        below_path = find(kind, path.parent / base if is_path(base) else base)
    except ConfigError as error:
        raise document.error(error.message, "base") from None
    below = _with_base(kind, below_path, (*seen, path))
    return replace(document, data=_merged(below.data, data), sources={**below.sources, **document.sources})


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        result[key] = _merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result
