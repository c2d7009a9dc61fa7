"""Sweeps: which points a spec has, what a run leaves, and that kills, workers and resuming lose or repeat nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from sim.catalog import find
from sim.errors import ConfigError
from sim.kinds import load_hardware
from sim.sweep.cache import PointCache
from sim.sweep.condition import Condition
from sim.sweep.local import solve_all
from sim.sweep.point import forget, prepare, rests_on
from sim.sweep.run import check_space, run_sweep
from sim.sweep.search import run_search
from sim.sweep.space import Space
from sim.sweep.spec import Range, Spec, load_spec, points_of
from sim.sweep.store import RESULTS, Store, table
from tests.conftest import ROOT, Outcome

Refused = Callable[..., str]

pytestmark = pytest.mark.usefixtures("own_cache")


def spec(**keys: Any) -> Spec:
    """A spec of keys, for questions about points that are never run."""
    return Spec.model_validate({"hardware": "npu-hbm2", "workload": "llama3-8b-decode", **keys})


def columns(folder: Path) -> dict[str, list[Any]]:
    """The results of a sweep by column."""
    found: dict[str, list[Any]] = pq.read_table(folder / RESULTS).to_pydict()
    return found


def test_points_are_all_combinations_the_last_axis_fastest() -> None:
    space = Space(spec(axes={"hw.cores": [1, 2], "workload.batch": [1, 8, 64]}))
    assert space.size == 6
    assert [keys for _, keys in space][:3] == [{"hw.cores": 1, "workload.batch": b} for b in (1, 8, 64)]
    assert space.point(5) == {"hw.cores": 2, "workload.batch": 64}


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.data())
def test_a_number_and_its_choices_are_the_same_point(sizes: list[int], data: st.DataObject) -> None:
    space = Space(spec(axes={f"hw.axis{i}": list(range(n)) for i, n in enumerate(sizes)}))
    number = data.draw(st.integers(0, space.size - 1))
    rebuilt = 0
    for choice, size in zip(space.choices(number), sizes, strict=True):
        rebuilt = rebuilt * size + choice
    assert rebuilt == number


@pytest.mark.parametrize(
    ("given_range", "values"),
    [
        ({"from": 1, "to": 10, "step": 4}, [1, 5, 9]),
        ({"from": 1, "to": 64, "factor": 4}, [1, 4, 16, 64]),
        ({"from": "4 MiB", "to": "16 MiB", "factor": 2}, ["4 MiB", "8 MiB", "16 MiB"]),
        ({"from": "1 GHz", "to": "2 GHz", "step": 0.5}, ["1 GHz", "1.5 GHz", "2 GHz"]),
        ({"from": 0.1, "to": 0.3, "step": 0.1}, [0.1, 0.2, 0.3]),
    ],
)
def test_ranges_hold_both_ends_exactly(given_range: dict[str, Any], values: list[Any]) -> None:
    assert Range.model_validate(given_range).values() == values


def test_zipped_axes_move_together() -> None:
    axes = {"hw.array.rows": [32, 64], "hw.cores": [1, 2, 4], "hw.array.columns": [32, 64]}
    space = Space(spec(axes=axes, zip=[["hw.array.rows", "hw.array.columns"]]))
    assert space.size == 6
    assert all(keys["hw.array.rows"] == keys["hw.array.columns"] for _, keys in space)


def test_variants_are_an_axis_with_names() -> None:
    variants = {"small": {"hw.cores": 1}, "large": {"hw.cores": 4, "hw.clock": "2 GHz"}}
    space = Space(spec(axes={"workload.batch": [1, 2]}, variants=variants))
    rows = [space.row(space.choices(n)) for n, _ in space]
    assert [row["variant"] for row in rows] == ["small", "small", "large", "large"]
    assert [row["hw.clock"] for row in rows] == [None, None, "2 GHz", "2 GHz"]


def test_a_conditional_axis_is_there_only_where_it_means_something() -> None:
    axes = {"hw.cores": [1, 2], "hw.memory.channels": {"values": [4, 8, 16], "when": "hw.cores > 1"}}
    points = [keys for _, keys in Space(spec(axes=axes))]
    assert points == [{"hw.cores": 1}, *({"hw.cores": 2, "hw.memory.channels": c} for c in (4, 8, 16))]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("hw.a * 2 <= hw.b", True), ("hw.a * 2 < hw.b", False), ("hw.kind == 'dual' and not hw.a > 8", True),
        ("2 <= hw.a < 4 or hw.b // 3 == 2", True), ("hw.size > 8 * MiB", True), ("-hw.a + 1 == -3", True),
        ("hw.b % 3 == 2 and hw.b / 4 == 2", True),
    ],
)  # fmt: skip
def test_conditions_are_worked_out(text: str, value: bool) -> None:
    known = {"hw.a": 4, "hw.b": 8, "hw.kind": "dual", "hw.size": 9 << 20}
    assert Condition(text).holds(known.__getitem__) is value


@pytest.mark.parametrize("text", ["", "a < 1", "hw < 2", "hw.a()", "__import__('os')", "hw.a if hw.b else 1", "hw.a <"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="condition|allowed|keys begin"):
        Condition(text)


def test_rows_stand_sorted_with_their_keys_and_metrics(spec_file: Path, tmp_path: Path) -> None:
    outcome = run_sweep(load_spec(spec_file), tmp_path / "out")
    found = columns(tmp_path / "out")
    assert found["point"] == list(range(12))
    assert outcome.counts == {"ok": 12}
    assert list(found)[1:4] == ["hw.array.rows", "workload.batch", "hw.scratchpad.capacity"]
    assert found["workload.batch"] == [1, 1, 2, 2, 4, 4] * 2
    assert found["tokens"] == found["workload.batch"]
    assert all(t > 0 and e > 0 for t, e in zip(found["time_s"], found["energy_j"], strict=True))
    total = [sum(found[n][i] for n in found if n.startswith("energy_j.")) for i in range(12)]
    assert total == pytest.approx(found["energy_j"], rel=1e-12)


def test_workers_and_one_process_write_the_same_bytes(spec_file: Path, tmp_path: Path) -> None:
    read = load_spec(spec_file)
    run_sweep(read, tmp_path / "one", cached=False)
    run_sweep(read, tmp_path / "two", jobs=2, cached=False)
    assert (tmp_path / "one" / RESULTS).read_bytes() == (tmp_path / "two" / RESULTS).read_bytes()


def test_points_that_cannot_exist_are_told_and_the_rest_goes_on(spec_file: Path, tmp_path: Path) -> None:
    changes = {"constraints": ["hw.array.rows * workload.batch <= 64"]}
    read = load_spec(spec_file).model_copy(update=changes)
    outcome = run_sweep(read, tmp_path / "out")
    found = columns(tmp_path / "out")
    assert outcome.counts == {"ok": 6, "impossible": 6}
    for rows, batch, status, error in zip(
        found["hw.array.rows"], found["workload.batch"], found["status"], found["error"], strict=True
    ):
        assert (status == "ok") == (rows * batch <= 64)
        assert error is None or "does not hold" in error


def test_a_fault_is_recorded_and_the_sweep_goes_on(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sim.engine import Engine

    right = Engine.run

    def wrong(self: Engine, work: Any) -> Any:
        if self.machine.array.rows == 64:
            raise ZeroDivisionError("planted")
        return right(self, work)

    monkeypatch.setattr(Engine, "run", wrong)
    outcome = run_sweep(load_spec(spec_file), tmp_path / "out")
    assert outcome.counts == {"ok": 6, "failed": 6}
    assert set(columns(tmp_path / "out")["error"]) == {None, "ZeroDivisionError: planted"}


def test_what_is_known_is_not_simulated_again(spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = load_spec(spec_file)
    run_sweep(read, tmp_path / "first")
    monkeypatch.setattr("sim.sweep.local.evaluate", lambda prepared: pytest.fail("simulated again"))
    run_sweep(read, tmp_path / "second")
    assert (tmp_path / "first" / RESULTS).read_bytes() == (tmp_path / "second" / RESULTS).read_bytes()


def test_equal_points_of_one_sweep_are_simulated_once(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sim.sweep import local

    seen = []
    right = local.evaluate
    monkeypatch.setattr("sim.sweep.local.evaluate", lambda prepared: seen.append(prepared.key) or right(prepared))
    twice = spec(axes={"hw.array.rows": [32, 32], "workload.batch": [1, 1]}).model_copy(
        update={"workload": load_spec(spec_file).workload}
    )
    outcome = run_sweep(twice, tmp_path / "out")
    assert (outcome.counts, len(seen)) == ({"ok": 4}, 1)


def test_a_claim_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    cache = PointCache(tmp_path / "points.sqlite")
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    assert cache.claim("point")
    cache._base.execute("UPDATE claim SET pid = ?", (int(gone.stdout),))
    assert cache.claim("point")
    cache._base.execute("UPDATE claim SET pid = ?", (os.getppid(),))
    assert not cache.claim("point")


KILLED = """
import sys
from pathlib import Path
from sim.sweep import cache, run, store
from sim.sweep.spec import load_spec
store.SECONDS = 0.0
cache.FILE = sys.argv[3]
run.run_sweep(load_spec(sys.argv[1]), sys.argv[2], jobs=int(sys.argv[4]), resume=True, cached=False)
"""


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_killed_sweep_resumes_and_repeats_nothing(
    jobs: int, spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = load_spec(spec_file)
    run_sweep(read, tmp_path / "whole", cached=False)
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", KILLED, str(spec_file), str(folder), str(tmp_path / "points.sqlite"), str(jobs)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE)
    parts = folder / "parts"
    deadline = time.monotonic() + 120
    while not (parts.is_dir() and len(list(parts.glob("*.parquet"))) >= 2) and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)  # ends when the last process that shares the output has: no worker stays behind
    done = Store(folder, read, rests_on(read)).open(resume=True, restart=False)
    assert 2 <= len(done) < 12
    simulated = []
    from sim.sweep import local

    right = local.evaluate
    monkeypatch.setattr("sim.sweep.local.evaluate", lambda prepared: simulated.append(1) or right(prepared))
    run_sweep(read, folder, resume=True, cached=False)
    assert len(simulated) == 12 - len(done)
    assert (folder / RESULTS).read_bytes() == (tmp_path / "whole" / RESULTS).read_bytes()
    assert not parts.exists()


def _die_at(keys: dict[str, Any]) -> None:
    if keys["workload.batch"] == 2:
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_point_that_kills_its_worker_is_blamed_alone(
    spec_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sim.sweep import local

    right = local.prepare
    monkeypatch.setattr("sim.sweep.local.prepare", lambda read, keys: _die_at(keys) or right(read, keys))
    tasks = [(n, keys) for n, keys in Space(load_spec(spec_file))]
    rows = dict(solve_all(load_spec(spec_file), iter(tasks), 2, None))
    assert {n for n, row in rows.items() if row["status"] == "failed"} == {
        n for n, keys in tasks if keys["workload.batch"] == 2
    }
    assert len(rows) == 12


def test_a_table_does_not_depend_on_how_rows_were_parted(tmp_path: Path) -> None:
    rows = [{"point": i, "a": value, "status": "ok", "error": None} for i, value in enumerate([1, 2.5, "x", None, 7])]
    made = []
    for size in (1, 2, 5):
        store = Store(tmp_path / str(size), spec(axes={"hw.cores": [1]}))
        store.open(resume=False, restart=False)
        for i in range(0, len(rows), size):
            for row in rows[i : i + size]:
                store._rows.append(row)
            store.flush()
        made.append(store.finish(["a"]).to_pylist())
    assert made[0] == made[1] == made[2]
    assert table([]).num_rows == 0


def test_the_command_tells_what_it_found(spec_file: Path, tmp_path: Path, opcycle: Callable[..., Outcome]) -> None:
    outcome = opcycle("sweep", spec_file, "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "12 points: 12 ok" in outcome.out
    assert json.loads(opcycle("sweep", spec_file, "-o", tmp_path / "out", "--json").out)["ok"] == 12
    assert json.loads(opcycle("cache", "--json").out)["points"] == 12
    assert json.loads(opcycle("cache", "--clear", "--json").out) == {"cleared": 12}
    assert opcycle("check", spec_file).out.strip().endswith("ok (sweep)")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"axes": {"hw.array.rowz": [1]}}, "rowz.*nearest is 'rows'"),
        ({"axes": {"workload.bach": [1]}}, "bach.*nearest is 'batch'"),
        ({"axes": {"hw.array.rows": []}}, "axes.hw.array.rows|has no values"),
        ({"axes": {"array.rows": [1]}}, "keys begin with 'hw.'"),
        ({"axes": {}}, "nothing to sweep"),
        ({"axes": {"hw.cores": {"from": 4, "to": 1, "step": 1}}}, "is empty"),
        ({"axes": {"hw.cores": [1, 2], "hw.clock": ["1 GHz"]}, "zip": [["hw.cores", "hw.clock"]]}, "different lengths"),
        ({"constraints": ["hw.cores <"]}, "no condition"),
        ({"constraints": ["hw.area_mm < 1"]}, "unknown key 'area_mm'"),
        ({"constraints": ["workload.bach < 1"]}, "unknown key 'bach'.*nearest is 'batch'"),
        ({"constraints": ["result.time < 1"]}, "unknown column 'time', nearest is 'time_s'"),
        ({"constraints": ["hw.scratchpad.capacity > 2 MiB"]}, r"2 MiB is written 2 \* MiB"),
        ({"axes": {"hw.cores": 4}}, "is 4, but must be a list, a range"),
        ({"axes": {"hw.cores": {"values": []}}}, "hw.cores: has no values"),
        ({"axes": {"hw.cores": {"from": 1, "too": 4, "step": 1}}}, "unknown key 'too', nearest is 'to'"),
        ({"axes": {"hw.cores": {"from": 1, "step": 1}}}, "to is missing"),
        ({"axes": {"hw.cores": {"from": True, "to": 4, "step": 1}}}, "from is true, but must be a number"),
        ({"axes": {"hw.cores": {"from": 1, "to": 2, "factor": 1.0000001}}}, "more than 10,000 values"),
        ({"axes": {"hw.cores": {"from": 1, "to": 10**12, "step": 1}}}, "has 1,000,000,000,000 points.*--yes"),
        ({"axes": {"hardware": ["npu-hbm2", "npu-hbm3"]}}, "unknown hardware 'npu-hbm3'"),
        ({"axes": {"hardware": ["npu-hbm2", "./npu.yaml"]}}, "axes.hardware: './npu.yaml': no such file"),
        ({"objectives": {"tim": "min"}}, "unknown column 'tim', nearest is 'time'"),
        ({"hardware": "npu-hbm3"}, "npu-hbm3.*nearest"),
        ({"axis": {}}, "unknown key 'axis', nearest is 'axes'"),
    ],
)
def test_wrong_specs_are_refused(
    change: dict[str, Any], sentence: str, spec_file: Path, tmp_path: Path, refused: Refused
) -> None:
    import re

    data = yaml.safe_load(spec_file.read_text()) | change
    spec_file.write_text(yaml.safe_dump(data))
    said = refused("sweep", spec_file, "-o", tmp_path / "out")
    assert re.search(sentence, said), said
    assert not (tmp_path / "out").exists()


def test_specs_are_checked_without_a_run(spec_file: Path, opcycle: Callable[..., Outcome], refused: Refused) -> None:
    assert opcycle("check", spec_file).code == 0
    spec_file.write_text(spec_file.read_text().replace("array.rows", "array.rowz"))
    assert "nearest is 'rows'" in refused("check", spec_file)


def test_a_range_counts_what_it_has_without_laying_it_out() -> None:
    for ends in (
        {"from": 1, "to": 9, "step": 4},
        {"from": 3, "to": 100, "factor": 1.5},
        {"from": 5, "to": 5, "factor": 2},
    ):
        given_range = Range.model_validate(ends)
        assert given_range.count() == len(given_range.values())
    wide = spec(
        axes={"hw.cores": {"from": 1, "to": 10**9, "step": 1}, "hw.array.rows": [1, 2]}, variants={"a": {}, "b": {}}
    )
    assert points_of(wide) == 4 * 10**9
    with pytest.raises(ConfigError, match="1,000,000,000 values, but at most 1,000,000"):
        Space(wide)


def test_paths_of_an_axis_are_beside_the_spec(spec_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = yaml.safe_load(spec_file.read_text())
    data["axes"] = {"workload": ["./tiny-decode.yaml", "llama3-8b-decode"]}
    spec_file.write_text(yaml.safe_dump(data))
    monkeypatch.chdir(ROOT)
    assert load_spec(spec_file).axes["workload"] == [str(tmp_path / "tiny-decode.yaml"), "llama3-8b-decode"]


def test_a_space_beyond_reason_asks_for_a_word(spec_file: Path, tmp_path: Path, refused: Refused) -> None:
    data = yaml.safe_load(spec_file.read_text())
    data["axes"] |= {f"hw.axis{i}": {"from": 1, "to": 1000, "step": 1} for i in range(3)}
    spec_file.write_text(yaml.safe_dump(data))
    assert "12,000,000,000 points" in refused("sweep", spec_file, "-o", tmp_path / "out")


def test_folders_of_others_and_of_other_sweeps_stay(
    spec_file: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sim.sweep.cluster.CONNECT_S", 0.5)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("keep")
    assert "holds no sweep" in refused("sweep", spec_file, "-o", mine)
    run_sweep(load_spec(spec_file), tmp_path / "out")
    about = json.loads((tmp_path / "out" / "sweep.json").read_text())
    for change, sentence in (
        ({"schema": "opcycle/sweep-result/0"}, "sweep-result/0"),
        ({"complete": False}, "--resume"),
        ({"complete": False, "spec_sha256": "0"}, "--resume"),
    ):
        (tmp_path / "out" / "sweep.json").write_text(json.dumps(about | change))
        assert sentence in refused("sweep", spec_file, "-o", tmp_path / "out")
    assert "another spec" in refused("sweep", spec_file, "-o", tmp_path / "out", "--resume")
    assert "no Dask scheduler" in refused("sweep", spec_file, "-o", tmp_path / "c", "--cluster", "tcp://127.0.0.1:1")
    assert "is no address" in refused("sweep", spec_file, "-o", tmp_path / "c", "--cluster", "nowhere")
    assert not (tmp_path / "c").exists()


def test_damaged_folders_and_changed_inputs_are_told(
    spec_file: Path, tmp_path: Path, refused: Refused, opcycle: Callable[..., Outcome]
) -> None:
    out = tmp_path / "out"
    assert opcycle("sweep", spec_file, "-o", out).code == 0
    again = ("sweep", spec_file, "-o", out, "--resume")
    (out / "parts").mkdir()
    (out / "parts" / "000000.parquet").write_text("junk")
    assert "000000.parquet: is damaged" in refused(*again)
    (out / "parts" / "000000.parquet").unlink()
    assert opcycle(*again).code == 0
    work = tmp_path / "tiny-decode.yaml"
    work.write_text(work.read_text().replace("context: ", "context: 1"))
    assert "of files that have changed since" in refused(*again)
    for text in ("{", "{}", '{"schema": "opcycle/sweep-result/1"}'):
        (out / "sweep.json").write_text(text)
        assert "cannot be read as the description of a sweep" in refused(*again)
    (tmp_path / "file").write_text("")
    assert "file is no folder" in refused("sweep", spec_file, "-o", tmp_path / "file" / "out")


def test_machines_of_every_kind_are_points_and_files_that_they_name_count(spec_file: Path, tmp_path: Path) -> None:
    kernels = tmp_path / "kernels.yaml"
    kernels.write_text(find("kernels", load_hardware("h200").kernels).read_text())
    read = load_spec(spec_file).model_copy(
        update={"axes": {"hardware": ["h200", "streaming-hbm", "a100-roofline"]}, "set": {"workload.batch": 1}}
    )
    outcome = run_sweep(read, tmp_path / "out")
    assert outcome.counts == {"ok": 3}, outcome.table["error"]
    keys = []
    for text in ("", "\n# changed\n"):
        kernels.write_text(kernels.read_text() + text)
        forget()
        keys.append(prepare(read, {"hardware": "h200", "hw.kernels": str(kernels)}).key)
    assert keys[0] != keys[1]


def test_dimensions_that_an_onnx_file_leaves_open_are_axes(tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    from tests.onnx_models import decoder

    decoder(tmp_path / "model.onnx", 1, 64, 4, 2, 128, 96, 256)
    axes = {"workload.dims.batch": [1, 2], "workload.dims.sequence": [16]}
    data = {"schema": "opcycle/sweep/1", "hardware": "npu-hbm2", "workload": "./model.onnx", "axes": axes}
    (tmp_path / "onnx.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    space = Space(load_spec(tmp_path / "onnx.yaml"))
    check_space(space)
    one, two = (prepare(space.spec, keys) for _, keys in space)
    assert one.key != two.key
    assert 2 * one.workload.trace().tokens == two.workload.trace().tokens
    assert rests_on(space.spec) == rests_on(space.spec)


def test_the_same_points_come_from_a_cluster_that_loses_a_worker(spec_file: Path, tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    read = load_spec(spec_file)
    run_sweep(read, tmp_path / "here", cached=False)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, host="127.0.0.1"
    ) as cluster:
        killed = []

        def kill(done: int, points: int) -> None:
            if done == 3 and not killed:
                worker = next(iter(cluster.workers.values()))
                killed.append(worker.pid)
                os.kill(worker.pid, signal.SIGKILL)

        at = cluster.scheduler_address
        run_sweep(read, tmp_path / "there", cluster=at, cached=False, progress=kill)
        search = partial(run_search, read, trials=4, objectives={"time_s": "min"}, jobs=2, cached=False)
        fronts = [search(tmp_path / f"search-{where}", cluster=where).trials for where in (None, at)]
    assert killed
    assert fronts[0].equals(fronts[1])
    assert (tmp_path / "here" / RESULTS).read_bytes() == (tmp_path / "there" / RESULTS).read_bytes()


class Unfit:
    """A client of a cluster without workers, or with some of another version."""

    def __init__(self, versions: dict[str, str]) -> None:
        self.versions = versions

    def wait_for_workers(self, count: int, timeout: float) -> None:
        if len(self.versions) < count:
            raise TimeoutError

    def run(self, what: Callable[[], str]) -> dict[str, str]:
        return {worker: version or what() for worker, version in self.versions.items()}


def test_clusters_that_would_give_other_rows_are_refused() -> None:
    from sim.sweep.cluster import _check_workers

    _check_workers(Unfit({"tcp://a:1": ""}), "here:1")
    with pytest.raises(ConfigError, match="has no workers"):
        _check_workers(Unfit({}), "here:1")
    with pytest.raises(ConfigError, match="1 of 2 workers, such as tcp://b:1, have another opcycle"):
        _check_workers(Unfit({"tcp://a:1": "", "tcp://b:1": "older"}), "here:1")


def test_slow_points_are_handed_back_to_the_other_workers(spec_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sim.sweep import local

    read = load_spec(spec_file)
    monkeypatch.setattr(local, "_WORK", [(read, None)])
    monkeypatch.setattr(local, "solve", lambda read, keys, cache: keys)
    tasks = list(Space(read))
    assert local._piece(tasks)[0] == [keys for _, keys in tasks]
    monkeypatch.setattr(local, "PIECE_S", 0.0)
    assert local._piece(tasks)[0] == [tasks[0][1]]


def test_an_unused_cache_is_refused_where_it_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be used as a cache"):
        PointCache(tmp_path / "file" / "points.sqlite")
