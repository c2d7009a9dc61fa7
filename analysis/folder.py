"""What the pictures' readers of result folders share: a summary of a known version, and tables of numbers."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sim.errors import ConfigError


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`. Raises ConfigError where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from None
    except ValueError as error:
        raise ConfigError(f"is damaged: {error}", file=path) from None
    if not isinstance(found, dict):
        raise ConfigError("is damaged: a JSON object is wanted", file=path)
    return found


def check_schema(said: object, wanted: str, path: Path) -> None:
    """Raise ConfigError where a file is of another version."""
    if said != wanted:
        raise ConfigError(f"is {said!r}, but this version reads {wanted!r}", file=path, key="schema")


def read_summary(path: Path, schema: str) -> dict[str, Any]:
    """As `read_json`, of one version."""
    found = read_json(path)
    check_schema(found.get("schema"), schema, path)
    return found


def read_columns(path: Path) -> dict[str, NDArray[np.float64]]:
    """The columns of a CSV file of numbers, by name. Raises ConfigError."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            heads, *rows = csv.reader(file)
        values = np.array(rows, np.float64).reshape(-1, len(heads))
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from None
    except ValueError as error:
        raise ConfigError(f"is damaged: {error}", file=path) from None
    return {head: values[:, i] for i, head in enumerate(heads)}
