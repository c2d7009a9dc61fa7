"""Keeps the row of every point ever simulated, by the hash of all that it depends on, in one SQLite file.

Processes share it: the first to meet a point claims it, so that equal points of sweeps running at once are simulated
once. A claim of a process that died is taken over.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from sim.errors import ConfigError

FILE: Final = "points-1.sqlite"
CLAIM_S: Final = 3600.0
"""Seconds after which a claim is no longer believed, wherever its process runs."""

Row = dict[str, Any]


def cache_file() -> Path:
    """Where points are kept: $OPCYCLE_CACHE, else the user's cache folder."""
    chosen = os.environ.get("OPCYCLE_CACHE")
    if chosen:
        return Path(chosen) / FILE
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path("~").expanduser() / ".cache") / "opcycle" / FILE


class PointCache:
    """An open cache; one object a process. Raises ConfigError where the file cannot be used."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or cache_file()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._base = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.execute("CREATE TABLE IF NOT EXISTS row (key TEXT PRIMARY KEY, json TEXT, made REAL)")
            self._base.execute("CREATE TABLE IF NOT EXISTS claim (key TEXT PRIMARY KEY, pid INTEGER, made REAL)")
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"cannot be used as a cache of points ({error})", file=self.path) from None

    def get(self, key: str) -> Row | None:
        """The row of a point, or None."""
        found = self._base.execute("SELECT json FROM row WHERE key = ?", (key,)).fetchone()
        return None if found is None else json.loads(found[0])

    def claim(self, key: str) -> bool:
        """Whether this process may simulate the point now; False if another one is at it."""
        with self._writing():
            held = self._base.execute("SELECT pid, made FROM claim WHERE key = ?", (key,)).fetchone()
            if held is not None and held[0] != os.getpid() and _alive(held[0]) and time.time() - held[1] < CLAIM_S:
                return False
            self._base.execute("INSERT OR REPLACE INTO claim VALUES (?, ?, ?)", (key, os.getpid(), time.time()))
        return True

    def put(self, key: str, row: Row) -> None:
        """Keep a row and give up the claim."""
        with self._writing():
            text = json.dumps(row, sort_keys=True)
            self._base.execute("INSERT OR REPLACE INTO row VALUES (?, ?, ?)", (key, text, time.time()))
            self._base.execute("DELETE FROM claim WHERE key = ?", (key,))

    def release(self, key: str) -> None:
        """Give up the claim on a point that came to nothing."""
        with self._writing():
            self._base.execute("DELETE FROM claim WHERE key = ?", (key,))

    def size(self) -> tuple[int, int]:
        """(points kept, bytes of the file)."""
        (count,) = self._base.execute("SELECT COUNT(*) FROM row").fetchone()
        files = (self.path, self.path.with_name(self.path.name + "-wal"))
        return count, sum(file.stat().st_size for file in files if file.exists())

    def clear(self) -> int:
        """Forget all points; returns how many there were."""
        (count,) = self._base.execute("SELECT COUNT(*) FROM row").fetchone()
        self._base.execute("DELETE FROM row")
        self._base.execute("DELETE FROM claim")
        self._base.execute("VACUUM")
        return int(count)

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
