"""Asks Optuna for the next point of a space, and keeps what it was told in an SQLite study that can be watched.

The sampler works on a study in memory; the file has every told trial at most two seconds later, and a search that goes
on begins from it. Points are told once: where the sampler repeats itself an untried neighbour of the front is taken.
"""

from __future__ import annotations

import json
import random
import sqlite3
import time
import warnings
from collections.abc import Mapping, Sequence
from enum import StrEnum
from itertools import chain
from pathlib import Path
from typing import Any, Final

from sim.errors import ConfigError
from sim.sweep.front import pareto
from sim.sweep.point import Row
from sim.sweep.space import Axis, Space

STUDY: Final = "study.sqlite"
STARTUP: Final = 0.15
"""Part of the trials that are drawn at random before the sampler draws its own conclusions."""
LOCAL: Final = 0.2
"""Part of the trials after those that try a neighbour of the front instead of asking the sampler."""
SECONDS: Final = 2.0
"""Longest that a told trial waits to be in the file."""


class Sampler(StrEnum):
    """How the next points are chosen."""

    TPE = "tpe"
    NSGA2 = "nsga2"
    RANDOM = "random"


class Study:
    """The trials of one search. Raises ConfigError where Optuna is missing or the file holds another search."""

    def __init__(
        self, folder: Path, space: Space, about: Mapping[str, Any], goals: Mapping[str, str], sampler: Sampler,
        seed: int, trials: int,
    ) -> None:  # fmt: skip
        self._optuna = optuna = _optuna()
        self._space = space
        self._goals = goals
        self._startup = max(10, round(STARTUP * trials))
        self._local = sampler is not Sampler.RANDOM
        self._disk, self._about = _open(optuna, folder, space.spec.name, about, goals)
        self.rows: dict[int, Row] = {}
        self._choices: dict[int, tuple[int, ...]] = {}
        earlier = [t for t in self._disk.get_trials(deepcopy=False) if "point" in t.user_attrs]
        # A search that goes on draws other numbers than it began with, yet the same each time.
        self._random = random.Random(f"{seed} {len(earlier)}")
        self._memory = optuna.create_study(
            directions=[_direction(goal) for goal in goals.values()],
            sampler=_sampler(optuna, sampler, self._random.getrandbits(31), self._startup, trials),
        )
        for trial in earlier:
            self._memory.add_trial(trial)
            self.rows[trial.user_attrs["point"]] = json.loads(trial.user_attrs["row"])
        self._front: list[int] = []
        self._improve(self.rows)
        self._waiting: list[Any] = []
        self._written = time.monotonic()

    def ask(self, count: int) -> list[tuple[int, Any]]:
        """Up to `count` points that were not tried before, with the trials to tell; none when the space is used up."""
        found: dict[int, Any] = {}
        while len(found) < count:
            if self._local and self._front and len(self.rows) >= self._startup and self._random.random() < LOCAL:
                number = self._neighbour(found)
            else:
                trial = self._memory.ask()
                number = self._suggest(trial)
                if number not in self.rows and number not in found:
                    found[number] = trial
                    continue
                self._memory.tell(trial, state=self._optuna.trial.TrialState.FAIL)
                number = self._neighbour(found)
            if number is None:
                number = self._untried(found)
            if number is None:
                break
            self._memory.enqueue_trial(self._parameters(number))
            trial = self._memory.ask()
            self._suggest(trial)
            found[number] = trial
        return list(found.items())

    def tell(self, number: int, trial: Any, row: Row, values: Sequence[float] | None) -> None:
        """What point `number` came to; `values` are None where it cannot exist or breaks a constraint."""
        self.rows[number] = row
        trial.set_user_attr("point", number)
        trial.set_user_attr("row", json.dumps(row, sort_keys=True))
        trial.set_constraint("possible", 0.0 if values is not None else 1.0)
        worst = [float("-inf") if goal == "max" else float("inf") for goal in self._goals.values()]
        self._memory.tell(trial, list(values) if values is not None else worst)
        if values is not None:
            self._improve({number: row})
        self._waiting.append(trial.number)
        if time.monotonic() - self._written >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write the trials that are not in the file yet."""
        if self._waiting:
            trials = self._memory.get_trials(deepcopy=False)
            for key, value in self._about.items():
                self._disk.set_user_attr(key, value)
            self._about = {}
            for number in self._waiting:
                self._disk.add_trial(trials[number])
            self._waiting.clear()
        self._written = time.monotonic()

    def _suggest(self, trial: Any) -> int:
        """The number of the point that the sampler asks for. Axes of numbers in order keep their order."""
        choices = []
        for axis in self._space.axes:
            steps = len(axis.steps)
            if _ordered(axis):
                choices.append(trial.suggest_int(axis.label, 0, steps - 1))
            else:
                choices.append(trial.suggest_categorical(axis.label, list(range(steps))))
        return self._space.named(tuple(choices))

    def _parameters(self, number: int) -> dict[str, int]:
        return {axis.label: step for axis, step in zip(self._space.axes, self._space.choices(number), strict=True)}

    def _neighbour(self, taken: Mapping[int, Any]) -> int | None:
        """An untried point one step along one axis from a point of the front; None where all are tried."""
        near = []
        for number in self._front:
            choices = self._space.choices(number)
            for i, axis in enumerate(self._space.axes):
                steps = (choices[i] - 1, choices[i] + 1) if _ordered(axis) else range(len(axis.steps))
                for step in steps:
                    if 0 <= step < len(axis.steps) and step != choices[i]:
                        found = self._space.named((*choices[:i], step, *choices[i + 1 :]))
                        if found not in self.rows and found not in taken:
                            near.append(found)
        return self._random.choice(near) if near else None

    def _untried(self, taken: Mapping[int, Any]) -> int | None:
        """Any point that was not tried; None when all that exist were."""
        size = self._space.size
        start = self._random.randrange(size)
        for number in chain(range(start, size), range(start)) if len(self.rows) + len(taken) < size else ():
            if number not in self.rows and number not in taken and self._space.point(number) is not None:
                return number
        return None

    def _improve(self, rows: Mapping[int, Row]) -> None:
        """Take in rows to the front. Those without all objectives are no candidates."""
        fresh = [n for n, row in rows.items() if row["status"] == "ok"]
        candidates = sorted({*self._front, *fresh})
        values = [[self.rows[n][name] for name in self._goals] for n in candidates]
        self._front = [candidates[i] for i in pareto(values, list(self._goals.values()))]


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError("opcycle search needs Optuna: pip install 'opcycle[search]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _sampler(optuna: Any, sampler: Sampler, seed: int, startup: int, trials: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna marks the joint model of TPE as experimental
        if sampler is Sampler.TPE:
            return optuna.samplers.TPESampler(
                seed=seed, multivariate=True, n_startup_trials=startup, constant_liar=True
            )
        if sampler is Sampler.NSGA2:
            return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(10, min(50, trials // 8)))
        return optuna.samplers.RandomSampler(seed=seed)


def _open(
    optuna: Any, folder: Path, name: str, about: Mapping[str, Any], goals: Mapping[str, str]
) -> tuple[Any, dict[str, Any]]:
    """The study in the file, and what it must still be told about itself."""
    from sqlalchemy import event

    path = (folder / STUDY).resolve()
    try:
        with sqlite3.connect(path) as base:
            base.execute("PRAGMA journal_mode=WAL")  # a reader does not stop the search, and a commit is cheap
    except sqlite3.Error as error:
        raise ConfigError(f"cannot be used as a study ({error})", file=path) from None
    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    event.listen(storage.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=NORMAL"))
    storage.engine.dispose()
    known = {summary.study_name: summary for summary in optuna.get_all_study_summaries(storage)}
    for other, summary in known.items():
        if summary.n_trials == 0:
            optuna.delete_study(study_name=other, storage=storage)  # broken off before its first point was told
        elif other != name or summary.user_attrs != dict(about):
            raise ConfigError(f"holds a search {_other(summary.user_attrs, about)}; name a new folder", file=folder)
    study = optuna.create_study(
        storage=storage, study_name=name, directions=[_direction(goal) for goal in goals.values()], load_if_exists=True
    )
    return study, {} if study.user_attrs else dict(about)


def _other(held: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """How a search that a file holds differs from the one that is wanted."""
    if held.get("spec") != about["spec"]:
        return "of another spec"
    if held.get("objectives") != about["objectives"]:
        return "for other objectives, or for these in another order"
    return "made by other code, or of files that have changed since"


def _direction(goal: str) -> str:
    return "maximize" if goal == "max" else "minimize"


def _ordered(axis: Axis) -> bool:
    values = [next(iter(step.values()), None) for step in axis.steps]
    numbers = [v for v in values if isinstance(v, (int, float)) and not isinstance(v, bool)]
    texts = [v for v in values if isinstance(v, str) and v[:1].isdigit()]
    return len(values) > 2 and (len(numbers) == len(values) or len(texts) == len(values))
