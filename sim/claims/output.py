"""Writes computed claims: a folder with a table, the same as JSON, and a picture; or a table in Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from sim.claims.compute import Result
from sim.claims.words import claimed, figure, machines
from sim.output import result_folder
from sim.report_tables import Columns
from sim.result import csv_text

_COLUMNS = ("id", "paper", "claim", "limit", "unit", "ours", "ratio", "sentence", "setting", "here")


def write(results: Sequence[Result], target: Path) -> None:
    """Fill the folder `target` with claims.csv, claims.json and claims.png. Raises ConfigError if it cannot."""
    from analysis.claims import draw

    rows = [result.plain() for result in results]
    columns: Columns = {name: [row[name] for row in rows] for name in _COLUMNS}
    columns["claimed"] = [claimed(result.source.claim) for result in results]
    columns["hardware"] = [" ".join(row["hardware"]) for row in rows]
    columns["assumed"] = ["; ".join(row["assumed"]) for row in rows]
    with result_folder(target) as folder:
        (folder / "claims.csv").write_text(csv_text(columns), encoding="utf-8")
        (folder / "claims.json").write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        draw(rows, folder / "claims.png")


def markdown(results: Sequence[Result]) -> str:
    """The table of claims for the documentation."""
    lines = ["| claim | claimed | ours | ratio | on | where they differ |", "|---|---|---|---|---|---|"]
    for result in results:
        claim = result.source.claim
        cells = [
            f"`{claim.id}`: {claim.claim}", claimed(claim), figure(result.ours, claim.unit), f"{result.ratio:.2f}",
            machines(result.source), result.sentence if result.differs else "",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
