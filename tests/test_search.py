"""Searches: fronts and volumes by hand, the same seed the same trials, resuming, constraints, and what is refused."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import ConfigError
from sim.sweep.front import hypervolume, pareto
from sim.sweep.search import run_search
from sim.sweep.space import Space
from sim.sweep.spec import Spec, load_spec
from sim.sweep.study import STUDY, Sampler
from tests.conftest import Outcome

pytestmark = pytest.mark.usefixtures("own_cache")

SMALL = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=12)
THREE = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=9)
GOALS = {"time_s": "min", "area_mm2": "min"}


@given(SMALL | THREE)
def test_the_front_is_what_nothing_dominates(points: list[tuple[int, ...]]) -> None:
    goals = ["min", "max", "min"][: len(points[0])]
    front = {points[i] for i in pareto(points, goals)}
    signed = {p: tuple(-v if g == "max" else v for v, g in zip(p, goals, strict=True)) for p in points}
    for p in points:
        beaten = any(q != p and all(a <= b for a, b in zip(signed[q], signed[p], strict=True)) for q in points)
        assert (p in front) == (not beaten)


@given(SMALL | THREE)
def test_the_volume_is_that_of_the_cells_that_some_point_beats(points: list[tuple[int, ...]]) -> None:
    axes = len(points[0])
    cells = sum(
        any(all(a <= b for a, b in zip(p, cell, strict=True)) for p in points)
        for cell in itertools.product(range(7), repeat=axes)
    )
    assert hypervolume(points, ["min"] * axes, [7] * axes) == cells


def test_a_volume_in_three_dimensions_by_hand() -> None:
    assert hypervolume([(1, 1, 1), (0, 2, 2)], ["min"] * 3, [3, 3, 3]) == 8 + 3 - 2


def made_up(keys: dict[str, Any]) -> dict[str, Any]:
    """The row that `planted` gives for a point: two opposed curves with a ridge, and a corner that cannot exist."""
    r, c, b = keys["hw.array.rows"], keys.get("hw.cores", 1), keys["workload.batch"]
    if r * c > 300:
        return {"status": "impossible", "error": "too large"}
    return {"status": "ok", "error": None, "time_s": 400 / (r * c) + abs(b - 7), "area_mm2": r * c + 2 * b}


def wide(**changes: Any) -> Spec:
    """A space of 8,000 points whose rows `planted` makes up."""
    axes = {"hw.array.rows": list(range(1, 21)), "hw.cores": list(range(1, 21)), "workload.batch": list(range(1, 21))}
    given_keys: dict[str, Any] = {"hardware": "npu-hbm2", "workload": "llama3-8b-decode", "name": "wide", "axes": axes}
    return Spec.model_validate(given_keys | changes)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the simulator by `made_up`; returns the points that were evaluated."""
    seen: list[int] = []

    class Made:
        def __init__(self, spec: Spec, jobs: int, cache: Path | None) -> None: ...

        def solve(self, tasks: Sequence[tuple[int, dict[str, Any]]]) -> Any:
            for number, keys in tasks:
                seen.append(number)
                yield number, made_up(keys)

        def close(self) -> None: ...

    monkeypatch.setattr("sim.sweep.search.Workers", Made)
    monkeypatch.setattr("sim.sweep.search.check_space", lambda space: None)
    return seen


def test_the_same_seed_tries_the_same_points_and_none_twice(planted: list[int], tmp_path: Path) -> None:
    run_search(wide(), tmp_path / "a", trials=18, objectives=GOALS, seed=3)
    first = list(planted)
    planted.clear()
    run_search(wide(), tmp_path / "b", trials=18, objectives=GOALS, seed=3)
    assert planted == first
    assert len(set(first)) == len(first) == 18
    planted.clear()
    run_search(wide(), tmp_path / "c", trials=18, objectives=GOALS, seed=4)
    assert planted != first


def test_a_small_space_is_tried_whole_and_no_point_twice(planted: list[int], tmp_path: Path) -> None:
    axes = {"hw.array.rows": [1, 2, 3], "hw.cores": [1, 2], "workload.batch": [1, 7]}
    found = run_search(wide(axes=axes), tmp_path, trials=50, objectives=GOALS)
    assert sorted(planted) == list(range(12))
    assert found.tried == 12


def test_axes_that_are_taken_away_cost_no_trials(planted: list[int], tmp_path: Path) -> None:
    axes = {
        "hw.array.rows": [1, 2, 3], "workload.batch": [1, 7],
        "hw.cores": {"values": [1, 2, 4], "when": "hw.array.rows > 2"},
    }  # fmt: skip
    space = Space(wide(axes=axes))
    exist = [number for number, _ in space]
    assert (space.size, len(exist)) == (18, 10)
    for number in range(space.size):
        assert space.at(space.choices(space.named(space.choices(number)))) is not None
    assert [space.named(space.choices(number)) for number in exist] == exist
    found = run_search(wide(axes=axes), tmp_path, trials=50, objectives=GOALS)
    assert sorted(planted) == exist
    assert set(found.trials["status"].to_pylist()) == {"ok"}


def test_a_search_resumes_from_its_file_to_the_number_asked_for(planted: list[int], tmp_path: Path) -> None:
    goals = {"time_s": "min"}
    run_search(wide(), tmp_path, trials=12, objectives=goals)
    first = list(planted)
    with sqlite3.connect(tmp_path / STUDY) as base:
        assert base.execute("SELECT COUNT(*) FROM trials").fetchone() == (12,)
    again = run_search(wide(), tmp_path, trials=12, objectives=goals)
    assert planted == first
    assert again.tried == 12
    more = run_search(wide(), tmp_path, trials=15, objectives=goals)
    assert more.tried == more.trials.num_rows == len(planted) == len(set(planted)) == 15


def test_what_was_told_before_a_fault_is_kept(
    planted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(done: int, wanted: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_search(wide(), tmp_path, trials=12, objectives=GOALS, progress=stop)
    assert len(planted) == 5
    assert run_search(wide(), tmp_path, trials=12, objectives=GOALS).tried == 12
    assert len(set(planted)) == len(planted) == 12


def test_a_search_finds_most_of_the_front_with_few_points(planted: list[int], tmp_path: Path) -> None:
    found = run_search(wide(), tmp_path, trials=160, objectives=GOALS, seed=1)
    rows = [
        made_up({"hw.array.rows": r, "hw.cores": c, "workload.batch": b})
        for r, c, b in itertools.product(range(1, 21), repeat=3)
    ]
    whole = [(row["time_s"], row["area_mm2"]) for row in rows if row["status"] == "ok"]
    mine = list(zip(found.front["time_s"].to_pylist(), found.front["area_mm2"].to_pylist(), strict=True))
    corner = [420.0, 345.0]
    assert hypervolume(mine, ["min", "min"], corner) >= 0.98 * hypervolume(whole, ["min", "min"], corner)
    assert set(found.front["status"].to_pylist()) == {"ok"}
    assert set(mine) <= set(whole)


def test_the_command_searches_real_points(
    spec_file: Path, tmp_path: Path, opcycle: Callable[..., Outcome]
) -> None:
    outcome = opcycle(
        "search", spec_file, "-o", tmp_path / "s", "--trials", 5, "--objective", "time", "--objective",
        "tokens_per_s_per_w", "--jobs", 2, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    assert found["objectives"] == {"time_s": "min", "tokens_per_j": "max"}
    assert 1 <= len(found["front"]) <= found["tried"] == 5


def test_a_constraint_on_results_keeps_points_off_the_front(
    spec_file: Path, tmp_path: Path, opcycle: Callable[..., Outcome]
) -> None:
    free = run_search(load_spec(spec_file), tmp_path / "free", trials=12, objectives={"time_s": "min"})
    times = sorted(free.trials["time_s"].to_pylist())
    text = spec_file.read_text() + f"constraints: [result.time_s >= {times[6]!r}]\n"
    spec_file.write_text(text)
    bound = run_search(load_spec(spec_file), tmp_path / "bound", trials=12, objectives={"time_s": "min"})
    assert bound.front["time_s"].to_pylist() == [times[6]]
    rows = bound.trials.to_pylist()
    assert {row["status"] for row in rows if row["time_s"] < times[6]} == {"outside"}
    assert all("does not hold" in row["error"] for row in rows if row["status"] == "outside")
    assert "outside" in opcycle("sweep", spec_file, "-o", tmp_path / "sweep").out
    spec_file.write_text(text.replace("result.time_s", "result.time"))
    with pytest.raises(ConfigError, match="unknown column 'time', nearest is 'time_s'"):
        run_search(load_spec(spec_file), tmp_path / "wrong", trials=1, objectives={"time_s": "min"})


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ([], "needs objectives"),
        (["--objective", "tyme"], "unknown column 'tyme', nearest is 'time'"),
        (["--objective", "time_s:low"], "unknown direction 'low'"),
        (["--objective", "time", "--objective", "time_s:max"], "'time_s' is given twice"),
        (["--objective", "time_s", "--sampler", "tpp"], "unknown sampler 'tpp', nearest is 'tpe'"),
        (["--objective", "ttft_s"], "'ttft_s' has no value"),
    ],
)
def test_wrong_searches_are_refused(
    options: list[str], sentence: str, spec_file: Path, tmp_path: Path, refused: Callable[..., str]
) -> None:
    assert sentence in refused("search", spec_file, "-o", tmp_path / "s", "--trials", "1", *options)


def test_a_folder_of_another_search_is_kept(
    planted: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_search(wide(), tmp_path, trials=2, objectives={"time_s": "min"}, sampler=Sampler.RANDOM)
    with pytest.raises(ConfigError, match="for other objectives"):
        run_search(wide(), tmp_path, trials=2, objectives={"area_mm2": "min"}, sampler=Sampler.RANDOM)
    with pytest.raises(ConfigError, match="of another spec"):
        run_search(wide(set={"hw.clock": "1 GHz"}), tmp_path, trials=2, objectives={"time_s": "min"})
    monkeypatch.setattr("sim.sweep.search.rests_on", lambda spec: "changed")
    with pytest.raises(ConfigError, match="made by other code"):
        run_search(wide(), tmp_path, trials=2, objectives={"time_s": "min"})


def test_objectives_keep_their_order(planted: list[int], tmp_path: Path) -> None:
    goals = {"time_s": "min", "area_mm2": "min"}
    run_search(wide(), tmp_path, trials=2, objectives=goals, sampler=Sampler.RANDOM)
    assert list(json.loads((tmp_path / "search.json").read_text())["objectives"]) == ["time_s", "area_mm2"]
    with pytest.raises(ConfigError, match="in another order"):  # values of trials would change places
        run_search(wide(), tmp_path, trials=2, objectives=dict(reversed(goals.items())), sampler=Sampler.RANDOM)


def test_folders_of_others_stay_as_they_are(
    spec_file: Path, tmp_path: Path, opcycle: Callable[..., Outcome], refused: Callable[..., str]
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    options = ("--objective", "time", "--trials", "1")
    assert "holds no search" in refused("search", spec_file, "-o", tmp_path / "mine", *options)
    # A search that came to nothing leaves the folder free for the right one.
    out = tmp_path / "out"
    assert "'ttft_s' has no value" in refused("search", spec_file, "-o", out, "--objective", "ttft_s", "--trials", "1")
    assert opcycle("search", spec_file, "-o", out, *options).code == 0
    about = json.loads((out / "search.json").read_text())
    (out / "search.json").write_text(json.dumps(about | {"schema": "opcycle/search-result/0"}))
    assert "unknown version 'opcycle/search-result/0'" in refused("plot", out)
