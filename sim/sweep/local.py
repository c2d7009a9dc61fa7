"""Spreads points over processes of this machine: workers are forked after warm-up, and replaced when they die."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Final

from sim.errors import ConfigError
from sim.sweep.cache import PointCache
from sim.sweep.point import FAILED, OK, Row, evaluate, judged, prepare, refused
from sim.sweep.spec import Spec, Value

Task = tuple[int, dict[str, Value]]
"""A point's number and the keys that it sets."""

AHEAD: Final = 4
"""Points given to the workers beyond those under way, for each of them."""

ATTEMPTS: Final = 3
"""Deaths of its worker after which a point counts as failed."""

AGAIN_S: Final = 0.02
"""Seconds before a point that another process is simulating is asked for again."""

_OPEN: dict[str, PointCache] = {}


def solve(spec: Spec, keys: dict[str, Value], cache: Path | None) -> Row | None:
    """The row of a point, from the cache or simulated and then kept; None if another process is simulating it."""
    try:
        prepared = prepare(spec, keys)
    except ConfigError as error:
        return refused(error)
    if cache is None:
        return judged(spec, prepared, evaluate(prepared))
    known = _cache(cache)
    row = known.get(prepared.key)
    if row is not None:
        return judged(spec, prepared, row)
    if not known.claim(prepared.key):
        time.sleep(AGAIN_S)
        return None
    row = evaluate(prepared)
    known.put(prepared.key, row) if row["status"] == OK else known.release(prepared.key)
    return judged(spec, prepared, row)


def solve_all(spec: Spec, tasks: Iterator[Task], jobs: int, cache: Path | None) -> Iterator[tuple[int, Row]]:
    """(number, row) of every point, in the order in which they finish; memory does not grow with their number.

    With one job everything runs in this process. The first point always does, so that kernels are compiled before
    workers are forked.
    """
    first = next(tasks, None)
    if first is None:
        return
    yield first[0], _insist(spec, first[1], cache)
    if jobs == 1:
        for number, keys in tasks:
            yield number, _insist(spec, keys, cache)
        return
    _close_caches()
    yield from _forked(spec, tasks, jobs, cache)


def _forked(spec: Spec, tasks: Iterator[Task], jobs: int, cache: Path | None) -> Iterator[tuple[int, Row]]:
    waiting: list[Task] = []
    deaths: dict[int, int] = {}
    pool = _pool(jobs)
    running: dict[Future[Row | None], Task] = {}
    ended = False
    try:
        while True:
            while not ended and len(running) < jobs * (1 + AHEAD):
                task = waiting.pop() if waiting else next(tasks, None)
                if task is None:
                    ended = True
                else:
                    running[pool.submit(solve, spec, task[1], cache)] = task
            if not running:
                if not waiting:
                    return
                ended = False
                continue
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task = running.pop(future)
                try:
                    row = future.result()
                except BrokenProcessPool:
                    lost = [task, *running.values()]
                    running.clear()
                    pool.shutdown(wait=False)
                    pool = _pool(jobs)
                    # Whose worker died is not known: each lost point is tried alone next, and blamed if it dies again.
                    yield from _one_by_one(spec, lost, cache, deaths)
                    break
                if row is None:
                    waiting.append(task)
                    ended = False
                else:
                    yield task[0], row
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class Workers:
    """Processes that solve one small batch of points after another; the first batch begins in this process."""

    def __init__(self, spec: Spec, jobs: int, cache: Path | None) -> None:
        self._spec, self._jobs, self._cache = spec, jobs, cache
        self._pool: ProcessPoolExecutor | None = None
        self._warm = False

    def solve(self, tasks: Sequence[Task]) -> Iterator[tuple[int, Row]]:
        """(number, row) of every point of a batch, in its order."""
        if self._jobs == 1 or not self._warm:
            alone = tasks if self._jobs == 1 else tasks[:1]
            for number, keys in alone:
                yield number, _insist(self._spec, keys, self._cache)
            self._warm = self._warm or bool(tasks)
            tasks = tasks[len(alone) :]
        if not tasks:
            return
        if self._pool is None:
            _close_caches()
            self._pool = _pool(self._jobs)
        futures = [self._pool.submit(_insist, self._spec, keys, self._cache) for _, keys in tasks]
        for at, (future, task) in enumerate(zip(futures, tasks, strict=True)):
            try:
                yield task[0], future.result()
            except BrokenProcessPool:
                self.close()
                yield from _one_by_one(self._spec, list(tasks[at:]), self._cache, {})
                return

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _one_by_one(
    spec: Spec, lost: list[Task], cache: Path | None, deaths: dict[int, int]
) -> Iterator[tuple[int, Row]]:
    for number, keys in lost:
        while True:
            with _pool(1) as alone:
                try:
                    row = alone.submit(_insist, spec, keys, cache).result()
                except BrokenProcessPool:
                    deaths[number] = deaths.get(number, 0) + 1
                    if deaths[number] < ATTEMPTS:
                        continue
                    row = {"status": FAILED, "error": f"its process died {ATTEMPTS} times"}
            yield number, row
            break


def _insist(spec: Spec, keys: dict[str, Value], cache: Path | None) -> Row:
    """As `solve`, simulating even what another process is at."""
    row = solve(spec, keys, cache)
    return row if row is not None else solve(spec, keys, None) or {}


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("fork"), initializer=_own_cache)


def _close_caches() -> None:
    """An open SQLite file must not cross a fork."""
    for open_cache in _OPEN.values():
        open_cache.close()
    _OPEN.clear()


def _own_cache() -> None:
    _OPEN.clear()


def _cache(path: Path) -> PointCache:
    name = str(path)
    if name not in _OPEN:
        _OPEN[name] = PointCache(path)
    return _OPEN[name]


def cpu_count() -> int:
    """Processors that this process may use."""
    import os

    affinity: Any = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
