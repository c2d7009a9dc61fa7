"""Writes what a DRAM run left behind as a folder: result, tables by channel, bank and window, commands and pictures.

All that the pictures show is in the other files, so that they can be drawn again from the folder alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.document import dump_yaml
from sim.dram_stats import (
    CommandLog,
    bank_table,
    channel_table,
    command_log,
    geometry,
    window_table,
    window_ticks,
)
from sim.errors import ConfigError
from sim.kernels import dram_tables as at
from sim.output import result_folder
from sim.result import csv_text, json_text, write_parquet

if TYPE_CHECKING:
    from sim.dram_unit import Replay
    from sim.standards import Memory

SCHEMA = "opcycle/dram-result/1"
MOST_ROWS = 2_000_000
"""Rows of the window table, above which a longer window is asked for."""


def write_report(
    folder: str | Path,
    memory: Memory,
    trace: str,
    replayed: Replay,
    result: dict[str, Any],
    window_ps: int | None = None,
    pictures: bool = True,
) -> Path:
    """Write `dram.json`, `memory.yaml`, the tables, `commands.parquet` and pictures into `folder`, whole or not at all.

    `replayed` must have recorded every command; `result` is what `sim.dram_unit.summary` says of it. Raises ConfigError
    where the folder cannot be written, or windows of `window_ps` are too many.
    """
    state = replayed.state
    channels = state.scalar.shape[0]
    log = command_log(memory, [state.log[c, : state.scalar[c, at.LOGGED]] for c in range(channels)])
    end = int(max(state.scalar[:, at.LAST_READ_END].max(), state.scalar[:, at.LAST_WRITE].max()))
    facts = geometry(memory, channels, log, end)
    width = window_ticks(facts, window_ps)
    if -(-facts.end // width) * channels > MOST_ROWS:
        raise ConfigError(
            f"--window of {facts.ns(width):g} ns cuts {facts.ns(facts.end):g} ns on {channels} channels into more than "
            f"{MOST_ROWS} rows; choose a longer one"
        )
    tables = {
        "channels": channel_table(facts, log),
        "banks": bank_table(facts, log),
        "windows": window_table(facts, log, width),
    }
    said = {key: value for key, value in result.items() if key != "wall_s"}
    summary = {
        "schema": SCHEMA,
        "memory": memory.name,
        "trace": trace,
        "channels": channels,
        "window_ns": facts.ns(width),
        "peak_bytes_per_s": facts.peak_bytes_per_s,
        "commands": len(log.kind),
        **said,
        "geometry": facts.as_dict(),
    }
    with result_folder(folder) as target:
        for name, table in tables.items():
            columns = {key: values.tolist() for key, values in table.items()}
            (target / f"{name}.csv").write_text(csv_text(columns), encoding="utf-8")
            write_parquet(columns, target / f"{name}.parquet")
        _write_commands(log, target / "commands.parquet")
        text = dump_yaml(memory.model_dump(mode="json", by_alias=True, exclude_none=True))
        (target / "memory.yaml").write_text(text, encoding="utf-8")
        (target / "dram.json").write_text(json_text(summary), encoding="utf-8")
        if pictures:
            from analysis.figures import draw_all

            draw_all(target)
    return Path(folder)


def _write_commands(log: CommandLog, path: Path) -> None:
    """The log as Parquet, from the arrays' own memory: millions of commands take no detour over text or pandas."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        name: pa.Array.from_buffers(pa.int64(), len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])
        for name, values in log._asdict().items()
    }
    pq.write_table(pa.table(columns), path, compression="zstd")
