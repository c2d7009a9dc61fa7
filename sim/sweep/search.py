"""Searches a design space with Optuna: the axes of a sweep are its parameters, result columns its objectives.

Trials live in an SQLite study inside the result folder, so a search resumes and can be watched from elsewhere. A point
that comes up again costs nothing, one that cannot exist is told to the sampler as failed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sim.errors import ConfigError, not_among
from sim.output import make_parent, replacing
from sim.sweep.cache import cache_file
from sim.sweep.local import solve_all
from sim.sweep.point import IMPOSSIBLE, OK, Row
from sim.sweep.run import check_space
from sim.sweep.space import Axis, Space
from sim.sweep.spec import Spec
from sim.sweep.store import table

if TYPE_CHECKING:
    import pyarrow as pa

STUDY: Final = "study.sqlite"
TRIALS: Final = "trials.parquet"
FRONT: Final = "front.parquet"
STARTUP: Final = 0.15
"""Part of the trials that are drawn at random before the sampler draws its own conclusions."""

Progress = Callable[[int, int], None]


class Sampler(StrEnum):
    """How the next points are chosen."""

    TPE = "tpe"
    NSGA2 = "nsga2"
    RANDOM = "random"


@dataclass(frozen=True)
class Found:
    """A finished search: all evaluated points, and those that no other beats in every objective."""

    trials: pa.Table
    front: pa.Table
    objectives: Mapping[str, str]
    evaluated: int


def run_search(
    spec: Spec,
    folder: str | Path,
    *,
    trials: int,
    objectives: Mapping[str, str] | None = None,
    sampler: Sampler = Sampler.TPE,
    seed: int = 0,
    jobs: int = 1,
    cached: bool = True,
    progress: Progress | None = None,
) -> Found:
    """Try `trials` points of `spec` in all, those of an earlier search in `folder` counted in.

    `objectives` are columns of result rows with `min` or `max`; those of the spec by default. The same seed gives the
    same trials, whatever `jobs` is as long as it is the same. Raises ConfigError for columns that rows do not have.
    """
    optuna = _optuna()
    goals = dict(objectives or spec.objectives)
    if not goals:
        raise ConfigError("a search needs objectives, such as --objective time_s --objective energy_j")
    space = Space(spec)
    check_space(space)
    folder = Path(folder)
    make_parent(folder / STUDY)
    study = _study(optuna, folder, spec, goals, _sampler(optuna, sampler, seed, trials))
    rows: dict[int, Row] = {
        trial.user_attrs["point"]: trial.user_attrs["row"]
        for trial in study.get_trials(deepcopy=False)
        if "row" in trial.user_attrs
    }
    done = len([t for t in study.get_trials(deepcopy=False) if t.state.is_finished()])
    cache = cache_file() if cached else None
    while done < trials:
        batch = [study.ask() for _ in range(min(max(jobs, 1), trials - done))]
        numbers = [_ask(space, trial) for trial in batch]
        fresh = [n for n in dict.fromkeys(numbers) if n not in rows]
        points = [(n, keys) for n in fresh if (keys := space.point(n)) is not None]
        rows.update(solve_all(spec, iter(points), min(jobs, max(len(points), 1)), cache))
        for trial, number in zip(batch, numbers, strict=True):
            row = rows.setdefault(number, {"status": IMPOSSIBLE, "error": "an axis is taken away here"})
            trial.set_user_attr("point", number)
            trial.set_user_attr("row", row)
            if row["status"] == OK:
                study.tell(trial, [_goal(row, name) for name in goals])
            else:
                study.tell(trial, state=optuna.trial.TrialState.FAIL)
            done += 1
        if progress:
            progress(done, trials)
    return _write(space, folder, rows, goals)


def check_objectives(texts: Sequence[str]) -> dict[str, str]:
    """{column: min or max} of `--objective column` or `column:max` options. Raises ConfigError."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, goal = text.partition(":")
        goal = goal or ("max" if name in BETTER_HIGH else "min")
        if goal not in ("min", "max"):
            raise ConfigError(f"--objective {text!r}: {not_among('direction', goal, ('min', 'max'))}")
        if name in found:
            raise ConfigError(f"--objective {name!r} is given twice")
        found[name] = goal
    return found


BETTER_HIGH: Final = frozenset(
    {"tokens_per_s", "tokens_per_j", "mac_utilization", "memory_bandwidth_utilization", "achieved_flops_per_s"}
)
"""Columns that are better when larger; any other is meant to be small unless it says `:max`."""


def pareto(values: Sequence[Sequence[float]], goals: Sequence[str]) -> list[int]:
    """Indices of the rows that no other is at least as good as in all, and better in one; of equals the first."""
    signed = [tuple(-v if goal == "max" else v for v, goal in zip(row, goals, strict=True)) for row in values]
    order = sorted(range(len(signed)), key=lambda i: (signed[i], i))
    front: list[int] = []
    for i in order:
        if not any(all(a <= b for a, b in zip(signed[j], signed[i], strict=True)) for j in front):
            front.append(i)
    return sorted(front)


def hypervolume(values: Sequence[Sequence[float]], goals: Sequence[str], reference: Sequence[float]) -> float:
    """Volume between the front of `values` and the `reference` point, all of it worse than every goal met."""
    sign = [-1.0 if goal == "max" else 1.0 for goal in goals]
    front = [[s * v for s, v in zip(sign, values[i], strict=True)] for i in pareto(values, goals)]
    corner = [s * v for s, v in zip(sign, reference, strict=True)]
    return _volume([p for p in front if all(a < b for a, b in zip(p, corner, strict=True))], corner)


def _volume(front: list[list[float]], corner: Sequence[float]) -> float:
    if not front:
        return 0.0
    if len(corner) == 1:
        return corner[0] - min(p[0] for p in front)
    total = 0.0
    front = sorted(front, key=lambda p: p[-1])
    for i, p in enumerate(front):
        above = front[i + 1][-1] if i + 1 < len(front) else corner[-1]
        total += (above - p[-1]) * _volume([q[:-1] for q in front[: i + 1]], corner[:-1])
    return total


def _goal(row: Row, name: str) -> float:
    value = row.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        numeric = [k for k, v in row.items() if isinstance(v, (int, float)) and not isinstance(v, bool)]
        raise ConfigError(f"objective {name!r}: {not_among('column', name, numeric, most=40)}")
    return float(value)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError("opcycle search needs Optuna: pip install 'opcycle[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _sampler(optuna: Any, sampler: Sampler, seed: int, trials: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna marks the joint model of TPE as experimental
        if sampler is Sampler.TPE:
            startup = max(10, round(STARTUP * trials))
            return optuna.samplers.TPESampler(seed=seed, multivariate=True, n_startup_trials=startup, constant_liar=True)
        if sampler is Sampler.NSGA2:
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(10, min(50, trials // 8)))
        return optuna.samplers.RandomSampler(seed=seed)


def _study(optuna: Any, folder: Path, spec: Spec, goals: Mapping[str, str], sampler: Any) -> Any:
    storage = optuna.storages.RDBStorage(f"sqlite:///{(folder / STUDY).resolve()}")
    directions = ["maximize" if goal == "max" else "minimize" for goal in goals.values()]
    about = {"spec": spec.model_dump_json(by_alias=True, exclude_none=True), "objectives": list(goals)}
    known = {summary.study_name: summary for summary in optuna.get_all_study_summaries(storage)}
    if spec.name in known and known[spec.name].user_attrs != about:
        raise ConfigError("holds a search of another spec or other objectives; name a new folder", file=folder)
    study = optuna.create_study(
        storage=storage, sampler=sampler, study_name=spec.name, directions=directions, load_if_exists=True
    )
    for key, value in about.items():
        study.set_user_attr(key, value)
    return study


def _ask(space: Space, trial: Any) -> int:
    """The number of the point that the sampler asks for. Axes of numbers in order keep their order."""
    number = 0
    for axis in space.axes:
        steps = len(axis.steps)
        if _ordered(axis):
            step = trial.suggest_int(axis.label, 0, steps - 1)
        else:
            step = trial.suggest_categorical(axis.label, list(range(steps)))
        number = number * steps + step
    return number


def _ordered(axis: Axis) -> bool:
    values = [next(iter(step.values()), None) for step in axis.steps]
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    texts = [v for v in values if isinstance(v, str) and v[:1].isdigit()]
    return len(values) > 2 and (len(numbers) == len(values) or len(texts) == len(values))


def _write(space: Space, folder: Path, rows: Mapping[int, Row], goals: Mapping[str, str]) -> Found:
    import pyarrow.parquet as pq

    ok = [n for n in sorted(rows) if rows[n]["status"] == OK]
    values = [[_goal(rows[n], name) for name in goals] for n in ok]
    best = {ok[i] for i in pareto(values, list(goals.values()))}

    def lines(numbers: Sequence[int]) -> Iterator[Row]:
        for n in numbers:
            yield {"point": n, **space.row(space.choices(n)), **rows[n], "on_front": n in best}

    trials, front = table(lines(sorted(rows))), table(lines([n for n in ok if n in best]))
    for name, found in ((TRIALS, trials), (FRONT, front)):
        with replacing(folder / name) as temporary:
            pq.write_table(found, temporary)
    return Found(trials, front, dict(goals), len(rows))
