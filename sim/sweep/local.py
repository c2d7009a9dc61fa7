"""Spreads points over processes of this machine: workers are forked after warm-up, and replaced when they die."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import connection
from pathlib import Path
from threading import Thread
from typing import Any, Final

from sim.errors import ConfigError
from sim.sweep.cache import PointCache
from sim.sweep.point import FAILED, OK, Row, evaluate, judged, prepare, refused
from sim.sweep.spec import Spec, Value

Task = tuple[int, dict[str, Value]]
"""A point's number and the keys that it sets."""

AHEAD: Final = 2
"""Pieces of work given to the workers beyond those under way, for each of them."""

PIECE_S: Final = 0.2
"""Seconds that a piece should take: long beside the cost of handing it over, short beside any sweep."""

PIECE: Final = 64
"""Most points of a piece."""

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
    again: list[Task] = []
    deaths: dict[int, int] = {}
    pool = _pool(jobs, spec, cache)
    running: dict[Future[tuple[list[Row | None], float]], list[Task]] = {}
    size = 1
    try:
        while True:
            piece: list[Task] = []
            try:
                while len(running) < jobs * (1 + AHEAD):
                    piece = [*again[:size], *islice(tasks, max(size - len(again), 0))]
                    del again[:size]
                    if not piece:
                        break
                    running[pool.submit(_piece, piece)] = piece
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    piece = running.pop(future)
                    rows, each_s = future.result()
                    size = max(1, min(PIECE, int(PIECE_S / max(each_s, 1e-9))))
                    again += piece[len(rows) :]
                    for task, row in zip(piece, rows, strict=False):
                        if row is None:
                            again.append(task)
                        else:
                            yield task[0], row
            except BrokenProcessPool:
                # Whose worker died is not known: each lost point is tried alone next, and blamed if it dies again.
                lost = dict(task for other in [piece, *running.values()] for task in other)
                running.clear()
                pool.shutdown(wait=False)
                pool = _pool(jobs, spec, cache)
                yield from _one_by_one(spec, list(lost.items()), cache, deaths)
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
            self._pool = _pool(self._jobs, self._spec, self._cache)
        told = 0
        try:
            for future in [self._pool.submit(_alone, keys) for _, keys in tasks]:
                row = future.result()
                told += 1
                yield tasks[told - 1][0], row
        except BrokenProcessPool:
            self.close()
            yield from _one_by_one(self._spec, list(tasks[told:]), self._cache, {})

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None


def _one_by_one(spec: Spec, lost: list[Task], cache: Path | None, deaths: dict[int, int]) -> Iterator[tuple[int, Row]]:
    for number, keys in lost:
        while True:
            with _pool(1, spec, cache) as alone:
                try:
                    row = alone.submit(_alone, keys).result()
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


_WORK: list[tuple[Spec, Path | None]] = []
"""In a worker: the sweep that it was forked for, which need not travel with every point."""


def _piece(tasks: list[Task]) -> tuple[list[Row | None], float]:
    """In a worker: rows of the first of `tasks`, None where another process is at the point, and the seconds of one.

    What takes longer than a piece should is handed back: other workers may have nothing left to do.
    """
    began = time.perf_counter()
    spec, cache = _WORK[0]
    rows: list[Row | None] = []
    for _, keys in tasks:
        rows.append(solve(spec, keys, cache))
        if time.perf_counter() - began > PIECE_S:
            break
    return rows, (time.perf_counter() - began) / len(rows)


def _alone(keys: dict[str, Value]) -> Row:
    """In a worker: the row of one point."""
    spec, cache = _WORK[0]
    return _insist(spec, keys, cache)


def _pool(jobs: int, spec: Spec, cache: Path | None) -> ProcessPoolExecutor:
    fork = multiprocessing.get_context("fork")
    return ProcessPoolExecutor(jobs, mp_context=fork, initializer=_begin, initargs=(spec, cache))


def _begin(spec: Spec, cache: Path | None) -> None:
    """What a worker does first. One whose parent was killed would otherwise wait for work for ever."""
    _OPEN.clear()
    _WORK[:] = [(spec, cache)]
    parent = multiprocessing.parent_process()
    assert parent is not None
    Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()


def _end_with(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)


def _close_caches() -> None:
    """An open SQLite file must not cross a fork."""
    for open_cache in _OPEN.values():
        open_cache.close()
    _OPEN.clear()


def _cache(path: Path) -> PointCache:
    name = str(path)
    if name not in _OPEN:
        _OPEN[name] = PointCache(path)
    return _OPEN[name]


def cpu_count() -> int:
    """Processors that this process may use."""
    affinity: Any = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
