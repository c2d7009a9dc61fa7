"""Spreads points over a Dask cluster: same spec, same rows. A worker's death costs the points that it had under way."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from sim.errors import ConfigError
from sim.sweep.cache import PointCache
from sim.sweep.local import AHEAD, Task
from sim.sweep.point import FAILED, OK, Prepared, Row, evaluate, forget, judged, prepare, refused
from sim.sweep.spec import Spec, Value

CONNECT_S: Final = 10
"""Seconds that a scheduler has to answer."""

RETRIES: Final = 5
"""Times that a point lost with its worker is tried again."""


def solve_remote(spec_json: str, keys: dict[str, Value]) -> Row:
    """One point on a worker, which has no cache of its own and may live longer than a sweep."""
    forget()
    try:
        prepared = prepare(Spec.model_validate_json(spec_json), keys)
    except ConfigError as error:
        return refused(error)
    return evaluate(prepared)


def solve_on_cluster(
    spec: Spec, tasks: Iterator[Task], client: Any, cache: Path | None
) -> Iterator[tuple[int, Row]]:
    """(number, row) of every point in the order in which they finish; closes the client of `connect` at the end."""
    try:
        yield from _solve(client, spec, tasks, None if cache is None else PointCache(cache))
    finally:
        client.close()


def connect(address: str) -> Any:
    """A client of the Dask scheduler at an address. Raises ConfigError where none answers."""
    try:
        import distributed
    except ImportError:
        raise ConfigError("--cluster needs Dask: pip install 'opcycle[cluster]'") from None
    if not re.fullmatch(r"([a-z]+://)?[^/]+:[0-9]+", address):
        raise ConfigError(f"--cluster {address!r}: is no address; write it like tcp://host:8786")
    client: Any = distributed.Client
    try:
        return client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as error:
        raise ConfigError(f"--cluster {address!r}: no Dask scheduler answers there ({error})") from None


def _solve(client: Any, spec: Spec, tasks: Iterator[Task], cache: PointCache | None) -> Iterator[tuple[int, Row]]:
    import distributed

    text = spec.model_dump_json(by_alias=True)
    running: dict[Any, tuple[int, str]] = {}
    under_way: dict[str, tuple[Prepared, list[int]]] = {}
    finished: Any = distributed.as_completed
    done = finished(loop=client.loop)

    def submit() -> Iterator[tuple[int, Row]]:
        """Hand over points while workers have room; those known already come back at once."""
        while len(running) < AHEAD * max(2, sum(client.nthreads().values())):
            task = next(tasks, None)
            if task is None:
                return
            number, keys = task
            try:
                prepared = prepare(spec, keys)
            except ConfigError as error:
                yield number, refused(error)
                continue
            key = prepared.key
            row = None if cache is None else cache.get(key)
            if row is not None:
                yield number, judged(spec, prepared, row)
            elif key in under_way:
                under_way[key][1].append(number)
            else:
                under_way[key] = (prepared, [number])
                future = client.submit(solve_remote, text, keys, retries=RETRIES, pure=False)
                running[future] = (number, key)
                done.add(future)

    yield from submit()
    while running:
        future = next(done)
        _, key = running.pop(future)
        try:
            row = future.result()
        except Exception as error:
            row = {"status": FAILED, "error": f"{type(error).__name__}: {error}"}
        if cache is not None and row["status"] == OK:
            cache.put(key, row)
        prepared, numbers = under_way.pop(key)
        for number in numbers:
            yield number, judged(spec, prepared, row)
        future.release()
        yield from submit()
