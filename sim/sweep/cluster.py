"""Spreads points over a Dask cluster: same spec, same rows. A worker's death costs the points that it had under way."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from sim.errors import ConfigError
from sim.sweep.cache import PointCache
from sim.sweep.local import Task
from sim.sweep.point import FAILED, OK, Prepared, Row, code_version, evaluate, forget, judged, prepare, refused
from sim.sweep.spec import Spec, Value

CONNECT_S: Final = 10
"""Seconds that a scheduler has to answer, and to have a worker."""

RETRIES: Final = 5
"""Times that a point lost with its worker is tried again."""

AHEAD: Final = 4
"""Points given to the workers for each of their threads, those under way counted in."""

GONE: Final = "the Dask scheduler is gone; the points that are done are kept, so the run can go on later"

_SWEEP: list[tuple[str, Spec]] = []
"""On a worker: the sweep whose points it had last."""


def solve_remote(sweep: str, spec_json: str, keys: dict[str, Value]) -> Row:
    """One point on a worker, which has no cache of its own and may live longer than a sweep."""
    if not _SWEEP or _SWEEP[0][0] != sweep:
        forget()
        _SWEEP[:] = [(sweep, Spec.model_validate_json(spec_json))]
    try:
        prepared = prepare(_SWEEP[0][1], keys)
    except ConfigError as error:
        return refused(error)
    return evaluate(prepared)


class Cluster:
    """The workers of a Dask scheduler, for one spec. Raises ConfigError where they cannot be used."""

    def __init__(self, address: str, spec: Spec, cache: Path | None) -> None:
        self._client = connect(address)
        self._spec = spec
        self._told = (uuid4().hex, spec.model_dump_json(by_alias=True))
        self._cache = None if cache is None else PointCache(cache)

    def solve(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Row]]:
        """(number, row) of every point of a batch, in its order."""
        rows = dict(self.solve_all(iter(tasks)))
        for number, _ in tasks:
            yield number, rows[number]

    def solve_all(self, tasks: Iterator[Task]) -> Iterator[tuple[int, Row]]:
        """(number, row) of every point in the order in which they finish. Raises ConfigError if the scheduler goes."""
        import distributed

        running: dict[Any, tuple[int, str]] = {}
        under_way: dict[str, tuple[Prepared, list[int]]] = {}
        finished: Any = distributed.as_completed
        done = finished(loop=self._client.loop)

        def submit() -> Iterator[tuple[int, Row]]:
            """Hand over points while workers have room; those known already come back at once."""
            while len(running) < AHEAD * max(2, sum(self._client.nthreads().values())):
                task = next(tasks, None)
                if task is None:
                    return
                number, keys = task
                try:
                    prepared = prepare(self._spec, keys)
                except ConfigError as error:
                    yield number, refused(error)
                    continue
                key = prepared.key
                row = None if self._cache is None else self._cache.get(key)
                if row is not None:
                    yield number, judged(self._spec, prepared, row)
                elif key in under_way:
                    under_way[key][1].append(number)
                else:
                    under_way[key] = (prepared, [number])
                    future = self._client.submit(solve_remote, *self._told, keys, retries=RETRIES, pure=False)
                    running[future] = (number, key)
                    done.add(future)

        try:
            yield from submit()
            while running:
                future = next(done)
                _, key = running.pop(future)
                row = self._row(future)
                if self._cache is not None and row["status"] == OK:
                    self._cache.put(key, row)
                prepared, numbers = under_way.pop(key)
                for number in numbers:
                    yield number, judged(self._spec, prepared, row)
                future.release()
                yield from submit()
        except OSError as error:
            raise ConfigError(f"{GONE} ({error})") from None

    def _row(self, future: Any) -> Row:
        from concurrent.futures import CancelledError

        try:
            row: Row = future.result()
        except CancelledError:  # a lost point is tried again; only a lost scheduler cancels
            raise ConfigError(GONE) from None
        except Exception as error:
            return {"status": FAILED, "error": f"{type(error).__name__}: {error}"}
        return row

    def close(self) -> None:
        """Let the scheduler go; it and its workers stay."""
        self._client.close()


def connect(address: str) -> Any:
    """A client of the Dask scheduler at an address. Raises ConfigError where none answers, or workers are unfit."""
    try:
        import distributed
    except ImportError:
        raise ConfigError("--cluster needs Dask: pip install 'opcycle[cluster]'") from None
    if not re.fullmatch(r"([a-z]+://)?[^/]+:[0-9]+", address):
        raise ConfigError(f"--cluster {address!r}: is no address; write it like tcp://host:8786")
    # What it has to say of a lost scheduler, in many lines, is told in one sentence here.
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
    make: Any = distributed.Client
    try:
        client = make(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ConfigError(f"--cluster {address!r}: no Dask scheduler answers there ({error})") from None
    try:
        _check_workers(client, address)
    except BaseException:
        client.close()
        raise
    return client


def _check_workers(client: Any, address: str) -> None:
    """Refuse a cluster without workers, or with some that would compute other rows than this process."""
    try:
        client.wait_for_workers(1, timeout=CONNECT_S)
    except TimeoutError:
        raise ConfigError(f"--cluster {address!r}: the scheduler has no workers") from None
    try:
        versions = client.run(code_version)
    except Exception as error:
        what = f"{type(error).__name__}: {error}"
        raise ConfigError(f"--cluster {address!r}: workers cannot run this opcycle ({what})") from None
    others = [worker for worker, version in versions.items() if version != code_version()]
    if others:
        raise ConfigError(
            f"--cluster {address!r}: {len(others)} of {len(versions)} workers, such as {others[0]}, have another "
            "opcycle than this one"
        )
