"""Result folders side by side: totals, time and energy by kind of operator, each with its ratio to the first folder.

Runs that made other numbers of tokens do not compare as wholes: their rows by kind are per token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from analysis.tables import Source, read_result, source_name, total

if TYPE_CHECKING:
    from pandas import DataFrame

TOTALS = (
    "time_s",
    "energy_j",
    "power_w",
    "tokens_per_s",
    "time_per_step_s",
    "ttft_s",
    "tpot_s",
    "energy_per_token_j",
    "flops",
    "dram_bytes",
    "mac_utilization",
    "memory_bandwidth_utilization",
)
"""Keys of the summary that are compared, and the energy of a token."""

Row = dict[str, str | float | None]


def compare_rows(folders: Sequence[Source]) -> list[Row]:
    """Rows of the comparison: `quantity`, `kind` (empty for totals), one value a folder, one ratio to the first a
    further folder.

    Columns are named after the folders, numbered where names repeat. Time by kind sums the operators' spans, which may
    overlap; rows by kind are `time_per_token_s` and `energy_per_token_j` where the runs made other numbers of tokens. A
    ratio is None where either side is missing or the first is 0. Raises ConfigError for a folder without result.
    """
    results = [read_result(folder) for folder in folders]
    names = column_names(folders)
    tokens = [float(r.summary["tokens"]) for r in results]
    totals = [{**r.summary, "energy_per_token_j": r.summary["energy_j"] / n if n else None} for r, n in
              zip(results, tokens, strict=True)]  # fmt: skip
    rows = [_row(key, "", [t.get(key) for t in totals], names) for key in TOTALS]
    alike = len(set(tokens)) == 1 or 0 in tokens
    over = [1.0] * len(results) if alike else tokens
    for column, each in (("time_s", "time_per_token_s"), ("energy_j", "energy_per_token_j")):
        sums = [total(r.operators, "kind", column) for r in results]
        kinds = dict.fromkeys(kind for s in sums for kind in s)
        for kind in kinds:
            values = [s[kind] / n if kind in s else None for s, n in zip(sums, over, strict=True)]
            rows.append(_row(column if alike else each, kind, values, names))
    return rows


def compare_table(folders: Sequence[Source]) -> DataFrame:
    """`compare_rows` as a data frame."""
    from pandas import DataFrame

    return DataFrame(compare_rows(folders))


def column_names(folders: Sequence[Source]) -> list[str]:
    """A distinct short name for each: the last part of a folder, a report's machine; a number where that repeats."""
    last = [source_name(folder) for folder in folders]
    return [name if last.count(name) == 1 else f"{name} ({i + 1})" for i, name in enumerate(last)]


def _row(quantity: str, kind: str, values: Sequence[float | None], names: Sequence[str]) -> Row:
    row: Row = {"quantity": quantity, "kind": kind}
    row |= dict(zip(names, values, strict=True))
    first = values[0]
    for name, value in list(zip(names, values, strict=True))[1:]:
        row[f"{name} / {names[0]}"] = value / first if first and value is not None else None
    return row
