"""The folder of a sweep: rows arrive in any order as Parquet parts; when all are there one sorted table replaces them.

Parts and table appear whole (temporary file, then rename), so a sweep that was killed goes on from its parts. A row is
kept once: a part that repeats a point would be a fault and is refused.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sim.errors import ConfigError
from sim.output import make_parent, replacing, write_text
from sim.sweep.spec import Spec

if TYPE_CHECKING:
    import pyarrow as pa

SCHEMA: Final = "opcycle/sweep-result/1"
ABOUT: Final = "sweep.json"
RESULTS: Final = "results.parquet"
PARTS: Final = "parts"
WANTED: Final = frozenset({"spec_sha256", "rests_on_sha256", "points", "complete", "files"})
"""Keys that the description must have for a later run to know what the folder holds."""
ROWS: Final = 512
"""Rows of a part."""
SECONDS: Final = 2.0
"""Longest that a finished row waits to be written."""

Row = dict[str, Any]


class Store:
    """The results of one sweep on disk."""

    def __init__(self, folder: str | Path, spec: Spec, rests_on: str = "") -> None:
        """`rests_on`: a hash of the code and of the files that rows depend on beside the spec."""
        self.folder = Path(folder)
        self.spec = spec
        self._rests_on = rests_on
        self._rows: list[Row] = []
        self._written = time.monotonic()
        self._parts = 0

    def open(self, resume: bool, restart: bool) -> set[int]:
        """Make the folder ready; returns the points that are done. Raises ConfigError for a folder of something else.

        A complete earlier sweep is replaced; an unfinished one only with `restart`, and `resume` goes on with it.
        """
        folder = self.folder
        if folder.exists() and not folder.is_dir():
            raise ConfigError("is a file, but a sweep's result is a folder", file=folder)
        about = self._about()
        if about is None:
            if folder.is_dir() and any(folder.iterdir()):
                raise ConfigError("holds no sweep, so it is not replaced; name a new folder", file=folder)
        elif about.get("schema") != SCHEMA:
            raise ConfigError(
                f"was written as {about.get('schema')!r}, but this version of opcycle writes {SCHEMA!r}; "
                "name a new folder",
                file=folder / ABOUT,
            )
        elif resume:
            for key, own, what in (
                ("spec_sha256", self._spec_hash(), "of another spec"),
                ("rests_on_sha256", self._rests_on, "made by other code, or of files that have changed since"),
            ):
                if about[key] != own:
                    raise ConfigError(
                        f"holds a sweep {what}, so it cannot go on; say --restart or name a new folder",
                        file=folder / ABOUT,
                    )
        elif not about["complete"] and not restart:
            raise ConfigError(
                f"holds an unfinished sweep ({about['points']:,} points); say --resume to go on with it or --restart "
                "to begin again",
                file=folder,
            )
        done: set[int] = set()
        if about is not None and resume:
            done = self._known()
        elif about is not None:
            for name in about["files"]:
                (folder / name).unlink(missing_ok=True)
            shutil.rmtree(folder / PARTS, ignore_errors=True)
        make_parent(folder / PARTS / "x")
        return done

    def describe(self, points: int, complete: bool, counts: Mapping[str, int], files: Sequence[str] = ()) -> None:
        """Write what the folder holds."""
        from sim import __version__

        about = {
            "schema": SCHEMA,
            "opcycle": __version__,
            "name": self.spec.name,
            "spec_sha256": self._spec_hash(),
            "rests_on_sha256": self._rests_on,
            "spec": json.loads(self._spec_text()),
            "points": points,
            "complete": complete,
            "counts": dict(sorted(counts.items())),
            "files": sorted(files),
        }
        write_text(self.folder / ABOUT, json.dumps(about, indent=2) + "\n")

    def add(self, row: Row) -> None:
        """Take a row, which is on disk soon."""
        self._rows.append(row)
        if len(self._rows) >= ROWS or time.monotonic() - self._written >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that are not on disk yet."""
        if self._rows:
            import pyarrow.parquet as pq

            taken = {path.name for path in (self.folder / PARTS).glob("*.parquet")}
            while f"{self._parts:06}.parquet" in taken:
                self._parts += 1
            with replacing(self.folder / PARTS / f"{self._parts:06}.parquet") as temporary:
                pq.write_table(table(self._rows), temporary)
            self._rows.clear()
        self._written = time.monotonic()

    def finish(self, columns: Sequence[str]) -> pa.Table:
        """Join all parts, sorted by point, into the results; returns them. `columns` come first, after the point."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.flush()
        parts = [_read(path) for path in self._files()]
        whole = pa.concat_tables(_alike(parts), promote_options="permissive") if parts else table([])
        whole = whole.sort_by("point")
        points = whole["point"].to_pylist()
        assert len(points) == len(set(points)), "a point is there twice"
        first = ["point", *columns, "status", "error"]
        rest = sorted(name for name in whole.column_names if name not in first)
        whole = whole.select([name for name in first if name in whole.column_names] + rest)
        with replacing(self.folder / RESULTS) as temporary:
            pq.write_table(whole, temporary)
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        return whole

    def _files(self) -> list[Path]:
        parts = sorted((self.folder / PARTS).glob("*.parquet"))
        results = self.folder / RESULTS
        # Killed between the table's rename and the removal of the parts: the table has them all.
        if results.exists() and parts:
            inside = set(_points(results))
            parts = [p for p in parts if not inside.issuperset(_points(p))]
        return [*([results] if results.exists() else []), *parts]

    def _known(self) -> set[int]:
        return {point for path in self._files() for point in _points(path)}

    def _about(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError):
            found = {}
        known = isinstance(found, dict) and "schema" in found
        if not known or (found["schema"] == SCHEMA and not set(found) >= WANTED):
            raise ConfigError("cannot be read as the description of a sweep", file=self.folder / ABOUT) from None
        return dict(found)

    def _spec_text(self) -> str:
        return self.spec.model_dump_json(by_alias=True, exclude_none=True)

    def _spec_hash(self) -> str:
        return sha256(self._spec_text().encode()).hexdigest()


def table(rows: Iterable[Row]) -> pa.Table:
    """Rows as a table: columns in the order first met, typed by their values; lists and mappings as JSON text."""
    import pyarrow as pa

    listed = list(rows)
    names = dict.fromkeys(name for row in listed for name in row) or {"point": None}
    columns = {name: _column([row.get(name) for row in listed]) for name in names}
    return pa.table(columns)


def _column(values: list[Any]) -> pa.Array:
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    if not kinds:
        return pa.nulls(len(values))
    if kinds == {bool}:
        return pa.array(values, pa.bool_())
    if kinds == {int} and all(abs(v) < 2**63 for v in values if v is not None):
        return pa.array(values, pa.int64())
    if kinds <= {int, float}:
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    return pa.array([_text(value) for value in values], pa.string())


def _text(value: Any) -> str | None:
    """A value of a column that holds text too; whole numbers alike, whichever type their part gave them."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)


def _alike(parts: Sequence[pa.Table]) -> list[pa.Table]:
    """The parts with columns as text that are text in any of them, so that types do not depend on the division."""
    import pyarrow as pa

    texts = {field.name for part in parts for field in part.schema if pa.types.is_string(field.type)}

    def cast(part: pa.Table) -> pa.Table:
        for i, field in enumerate(part.schema):
            if field.name in texts and not pa.types.is_string(field.type):
                values = [_text(value) for value in part[field.name].to_pylist()]
                part = part.set_column(i, field.name, pa.array(values, pa.string()))
        return part

    return [cast(part) for part in parts]


def _points(path: Path) -> list[int]:
    found: list[int] = _read(path, ["point"])["point"].to_pylist()
    return found


def _read(path: Path, columns: list[str] | None = None) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path, columns=columns)
    except (OSError, pa.ArrowException):
        raise ConfigError("is damaged; without it, --resume simulates its points again", file=path) from None
