"""Runs a sweep: points go out to workers, rows come back into the folder, and what is done is never done again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sim.sweep.cache import cache_file
from sim.sweep.local import Task, solve_all
from sim.sweep.objectives import SHORT
from sim.sweep.point import check_axes, check_column, check_constraints, forget, rests_on
from sim.sweep.space import Space
from sim.sweep.spec import FILES, Spec
from sim.sweep.store import RESULTS, Store

if TYPE_CHECKING:
    import pyarrow as pa

    from sim.sweep.cluster import Cluster

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Outcome:
    """A finished sweep: its table, sorted by point, and how many points ended how."""

    table: pa.Table
    counts: dict[str, int]
    columns: tuple[str, ...]


def run_sweep(
    spec: Spec,
    folder: str | Path,
    *,
    jobs: int = 1,
    cluster: str | None = None,
    resume: bool = False,
    restart: bool = False,
    cached: bool = True,
    progress: Progress | None = None,
) -> Outcome:
    """Simulate all points of `spec` into `folder`. `progress` is called with (points done, points).

    Raises ConfigError for keys that do not exist, a folder of something else and a cluster out of reach. Interrupted,
    it leaves the rows that are done, for `resume`.
    """
    space = Space(spec)
    check_space(space)
    cache = cache_file() if cached else None
    remote = None
    if cluster is not None:
        from sim.sweep.cluster import Cluster

        remote = Cluster(cluster, spec, cache)  # before the folder is touched
    try:
        return _run(space, Store(folder, spec, rests_on(spec)), jobs, remote, cache, resume, restart, progress)
    finally:
        if remote is not None:
            remote.close()


def _run(
    space: Space, store: Store, jobs: int, remote: Cluster | None, cache: Path | None, resume: bool, restart: bool,
    progress: Progress | None,
) -> Outcome:  # fmt: skip
    done = store.open(resume, restart)
    counts: Counter[str] = Counter()
    points = space.size
    store.describe(points, False, counts)

    def tasks() -> Iterator[Task]:
        nonlocal points
        for number in range(space.size):
            keys = space.point(number)
            if keys is None:
                points -= 1
            elif number not in done:
                yield number, keys

    rows = solve_all(space.spec, tasks(), jobs, cache) if remote is None else remote.solve_all(tasks())
    finished = len(done)
    try:
        if progress:
            progress(finished, points)
        for number, row in rows:
            store.add({"point": number, **space.row(space.choices(number)), **row})
            finished += 1
            if progress:
                progress(finished, points)
    finally:
        store.flush()
    table = store.finish(space.columns)
    if table.num_rows:
        counts.update({found["values"]: found["counts"] for found in table["status"].value_counts().to_pylist()})
    store.describe(points, True, counts, [RESULTS])
    return Outcome(table, dict(counts), space.columns)


def check_space(space: Space) -> None:
    """Refuse names, keys and columns that do not exist, before anything runs. Raises ConfigError."""
    forget()
    spec = space.spec
    check_axes(spec, {"hardware": spec.hardware, "workload": spec.workload})
    seen: set[tuple[str, str]] = set()
    for axis in space.axes:
        for step in axis.steps:
            # A key is asked for once, a file as often as another is named.
            named = {key: (key, str(value) if key in FILES else "") for key, value in step.items()}
            check_axes(spec, {key: value for key, value in step.items() if named[key] not in seen})
            seen.update(named.values())
    check_axes(spec, spec.set)
    check_constraints(spec)
    for name in spec.objectives:
        check_column(SHORT.get(name, name), f"objective {name!r}", SHORT)
