"""Searches: fronts and volumes by hand, the same seed the same trials, resuming, and what is refused."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.sweep.search import Sampler, hypervolume, pareto, run_search
from sim.sweep.spec import Spec
from tests.conftest import Outcome
from tests.test_sweep import own_cache, spec_file  # noqa: F401

SMALL = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)


@given(SMALL)
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, int]]) -> None:
    front = {points[i] for i in pareto(points, ["min", "max"])}
    for p in points:
        beaten = any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)
        assert (p in front) == (not beaten)


@given(SMALL)
def test_the_volume_is_that_of_the_cells_that_some_point_beats(points: list[tuple[int, int]]) -> None:
    cells = sum(any(p[0] <= x and p[1] <= y for p in points) for x, y in itertools.product(range(7), repeat=2))
    assert hypervolume(points, ["min", "min"], [7, 7]) == cells


def test_a_volume_in_three_dimensions_by_hand() -> None:
    assert hypervolume([(1, 1, 1), (0, 2, 2)], ["min"] * 3, [3, 3, 3]) == 8 + 3 - 2


def wide(**changes: Any) -> Spec:
    """A space of 8,000 points whose rows `planted` makes up."""
    axes = {"hw.array.rows": list(range(1, 21)), "hw.cores": list(range(1, 21)), "workload.batch": list(range(1, 21))}
    given_keys: dict[str, Any] = {"hardware": "npu-hbm2", "workload": "llama3-8b-decode", "name": "wide", "axes": axes}
    return Spec.model_validate(given_keys | changes)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the simulator by two opposed curves with a ridge; returns the points that were evaluated."""
    seen: list[int] = []

    def rows(spec: Spec, tasks: Any, jobs: int, cache: Any) -> Any:
        for number, keys in tasks:
            seen.append(number)
            r, c, b = keys["hw.array.rows"], keys["hw.cores"], keys["workload.batch"]
            if r * c > 300:
                yield number, {"status": "impossible", "error": "too large"}
            else:
                yield number, {"status": "ok", "error": None, "time_s": 400 / (r * c) + abs(b - 7), "area": r * c + 2 * b}

    monkeypatch.setattr("sim.sweep.search.solve_all", rows)
    monkeypatch.setattr("sim.sweep.search.check_space", lambda space: None)
    return seen


def test_the_same_seed_tries_the_same_points_and_none_twice(planted: list[int], tmp_path: Path) -> None:
    goals = {"time_s": "min", "area": "min"}
    run_search(wide(), tmp_path / "a", trials=60, objectives=goals, seed=3)
    first = list(planted)
    planted.clear()
    run_search(wide(), tmp_path / "b", trials=60, objectives=goals, seed=3)
    assert planted == first
    assert len(set(first)) == len(first)


def test_a_search_resumes_to_the_number_asked_for(planted: list[int], tmp_path: Path) -> None:
    goals = {"time_s": "min"}
    run_search(wide(), tmp_path, trials=20, objectives=goals)
    evaluated = len(planted)
    again = run_search(wide(), tmp_path, trials=20, objectives=goals)
    assert len(planted) == evaluated == again.evaluated
    more = run_search(wide(), tmp_path, trials=40, objectives=goals)
    assert more.evaluated > evaluated
    assert more.trials.num_rows == more.evaluated == len(set(planted))


def test_a_search_finds_most_of_the_front_with_few_points(planted: list[int], tmp_path: Path) -> None:
    goals = {"time_s": "min", "area": "min"}
    found = run_search(wide(), tmp_path, trials=160, objectives=goals, seed=1)
    whole = [
        (400 / (r * c) + abs(b - 7), r * c + 2 * b)
        for r, c, b in itertools.product(range(1, 21), repeat=3)
        if r * c <= 300
    ]
    mine = list(zip(found.front["time_s"].to_pylist(), found.front["area"].to_pylist(), strict=True))
    corner = [420.0, 345.0]
    assert hypervolume(mine, ["min", "min"], corner) >= 0.98 * hypervolume(whole, ["min", "min"], corner)
    assert set(found.front["status"].to_pylist()) == {"ok"}


def test_the_command_searches_real_points(
    spec_file: Path, tmp_path: Path, opcycle: Callable[..., Outcome]  # noqa: F811
) -> None:
    outcome = opcycle(
        "search", spec_file, "-o", tmp_path / "s", "--trials", 8, "--objective", "time_s", "--objective",
        "tokens_per_j", "--sampler", "random", "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["objectives"] == {"time_s": "min", "tokens_per_j": "max"}
    assert 1 <= len(found["front"]) <= found["evaluated"] <= 8


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "needs objectives"),
        (["--objective", "time"], "unknown column 'time', nearest is 'time_s'"),
        (["--objective", "time_s:low"], "unknown direction 'low'"),
        (["--objective", "time_s", "--sampler", "tpp"], "unknown sampler 'tpp', nearest is 'tpe'"),
    ],
)
def test_wrong_searches_are_refused(
    options: list[str], sentence: str, spec_file: Path, tmp_path: Path, refused: Callable[..., str]  # noqa: F811
) -> None:
    assert sentence in refused("search", spec_file, "-o", tmp_path / "s", "--trials", "1", *options)


def test_a_folder_of_another_search_is_kept(
    planted: list[int], tmp_path: Path
) -> None:
    run_search(wide(), tmp_path, trials=2, objectives={"time_s": "min"}, sampler=Sampler.RANDOM)
    from sim.errors import ConfigError

    with pytest.raises(ConfigError, match="another spec or other objectives"):
        run_search(wide(), tmp_path, trials=2, objectives={"area": "min"}, sampler=Sampler.RANDOM)
