"""Searches a design space: the axes of a sweep are its parameters, result columns its objectives, rows what it leaves.

A point is evaluated once. One that cannot exist, or that breaks a constraint, counts as tried, so that the sampler
learns where not to look.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sim import __version__
from sim.errors import ConfigError
from sim.output import make_parent, replacing, write_text
from sim.sweep.cache import cache_file
from sim.sweep.front import pareto
from sim.sweep.local import Workers
from sim.sweep.objectives import SHORT, goal_value
from sim.sweep.point import OK, Row, check_column, rests_on
from sim.sweep.run import check_space
from sim.sweep.space import Space
from sim.sweep.spec import Spec
from sim.sweep.store import table
from sim.sweep.study import STUDY, Sampler, Study

if TYPE_CHECKING:
    import pyarrow as pa

    from sim.sweep.cluster import Cluster

SCHEMA: Final = "opcycle/search-result/1"
ABOUT: Final = "search.json"
TRIALS: Final = "trials.parquet"
FRONT: Final = "front.parquet"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Found:
    """A finished search: all tried points, and those that no other beats in every objective."""

    trials: pa.Table
    front: pa.Table
    objectives: Mapping[str, str]
    tried: int


def run_search(
    spec: Spec,
    folder: str | Path,
    *,
    trials: int,
    objectives: Mapping[str, str] | None = None,
    sampler: Sampler = Sampler.TPE,
    seed: int = 0,
    jobs: int = 1,
    cluster: str | None = None,
    cached: bool = True,
    progress: Progress | None = None,
) -> Found:
    """Try `trials` different points of `spec` in all, those of an earlier search in `folder` counted in.

    `jobs` points are tried at once, by processes of this machine or by the workers of the Dask scheduler `cluster`.
    `objectives` are columns of result rows with `min` or `max`; those of the spec by default. The same seed tries the
    same points as long as `jobs` is the same. Raises ConfigError for columns that rows do not have.
    """
    goals = {SHORT.get(name, name): goal for name, goal in (objectives or spec.objectives).items()}
    if not goals:
        raise ConfigError("a search needs objectives, such as --objective time --objective energy")
    for name in goals:
        check_column(name, f"objective {name!r}", SHORT)
    space = Space(spec)
    check_space(space)
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / STUDY).is_file():
        raise ConfigError("holds no search, so it is not replaced; name a new folder", file=folder)
    workers = _workers(spec, jobs, cluster, cache_file() if cached else None)
    try:
        make_parent(folder / STUDY)
        about = {
            "spec": spec.model_dump_json(by_alias=True, exclude_none=True),
            "objectives": [*map(list, goals.items())],
            "rests_on_sha256": rests_on(spec),
        }
        study = Study(folder, space, about, goals, sampler, seed, trials)
        wanted = min(trials, space.size)
        try:
            while len(study.rows) < wanted:
                asked = dict(study.ask(min(max(jobs, 1), wanted - len(study.rows))))
                if not asked:
                    break  # every point that exists was tried
                rows = dict(workers.solve([(number, space.point(number) or {}) for number in asked]))
                for number, trial in asked.items():
                    row = rows[number]
                    values = [goal_value(row, name) for name in goals] if row["status"] == OK else None
                    study.tell(number, trial, row, values)
                if progress:
                    progress(len(study.rows), wanted)
        finally:
            study.flush()
    finally:
        workers.close()
    return _write(space, folder, study.rows, goals)


def _workers(spec: Spec, jobs: int, cluster: str | None, cache: Path | None) -> Workers | Cluster:
    """Who solves points: processes of this machine, or a Dask cluster, which is reached before anything is written."""
    if cluster is None:
        return Workers(spec, jobs, cache)
    from sim.sweep.cluster import Cluster

    return Cluster(cluster, spec, cache)


def _write(space: Space, folder: Path, rows: Mapping[int, Row], goals: Mapping[str, str]) -> Found:
    import pyarrow.parquet as pq

    ok = [n for n in sorted(rows) if rows[n]["status"] == OK]
    values = [[goal_value(rows[n], name) for name in goals] for n in ok]
    best = {ok[i] for i in pareto(values, list(goals.values()))}
    turn = {n: i for i, n in enumerate(rows, 1)}

    def lines(numbers: Sequence[int]) -> Iterator[Row]:
        for n in numbers:
            yield {"point": n, "trial": turn[n], **space.row(space.choices(n)), **rows[n], "on_front": n in best}

    tried, front = table(lines(sorted(rows))), table(lines([n for n in ok if n in best]))
    for name, found in ((TRIALS, tried), (FRONT, front)):
        with replacing(folder / name) as temporary:
            pq.write_table(found, temporary)
    about = {
        "schema": SCHEMA,
        "opcycle": __version__,
        "name": space.spec.name,
        "objectives": dict(goals),
        "points": space.size,
        "tried": len(rows),
        "spec": json.loads(space.spec.model_dump_json(by_alias=True, exclude_none=True)),
    }
    write_text(folder / ABOUT, json.dumps(about, indent=2) + "\n")
    return Found(tried, front, goals, len(rows))
