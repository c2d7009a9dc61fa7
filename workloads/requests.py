"""Batches of requests: equal lengths, listed lengths, or lengths read from a CSV file.

The CSV has a header. The lengths are in the column `length`, in `input_tokens` as request logs call it, or in
`seq_len` as the traces of the NeuPIMs artifact do; or each is the sum of `prompt` and `generated`. Further columns are
ignored: which channel a request is on is the machine's decision.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from sim.config import ConfigError

LENGTH_COLUMNS = (("length",), ("input_tokens",), ("seq_len",), ("prompt", "generated"))
"""Columns whose sum is the length of a request; the first that are all there are taken."""


def read_lengths(path: Path) -> tuple[int, ...]:
    """The lengths in a CSV file, one a row, in order. Raises ConfigError with the line of the first bad one."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError(f"cannot be read: {reason}", file=path) from None
    reader = csv.DictReader(text.splitlines())
    header = reader.fieldnames or ()
    columns = next((names for names in LENGTH_COLUMNS if all(name in header for name in names)), None)
    if columns is None:
        known = ", ".join(" and ".join(names) for names in LENGTH_COLUMNS)
        raise ConfigError(f"has none of these columns in its first line: {known}", file=path, line=1)
    lengths = []
    for row in reader:
        length = 0
        for column in columns:
            value = (row[column] or "").strip()
            # Nothing may have been generated yet; everything else is at least one position.
            least = 0 if column == "generated" else 1
            if not value.isdecimal() or int(value) < least:
                message = f"is {value!r}, but must be a whole number of at least {least}"
                raise ConfigError(message, file=path, key=column, line=reader.line_num)
            length += int(value)
        lengths.append(length)
    if not lengths:
        raise ConfigError("lists no requests", file=path)
    return tuple(lengths)


def batch_lengths(
    batch: int | None, each: int | None, listed: Sequence[int] | None, from_file: bool
) -> tuple[int, ...]:
    """One length for each request of a batch.

    Either `each` for all `batch` (default 1) of them, or the `listed` ones: a list must have `batch` entries if a
    batch is given, a file at least as many, of which the first are taken. Raises ConfigError otherwise.
    """
    if listed is None:
        assert each is not None
        return (each,) * (batch or 1)
    if batch is None or batch == len(listed):
        return tuple(listed)
    if from_file and batch < len(listed):
        return tuple(listed[:batch])
    what = "the file lists" if from_file else "lengths lists"
    raise ConfigError(f"is {batch}, but {what} {len(listed)} requests", key="batch")
