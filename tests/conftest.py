"""What the tests of the command line share: a command that runs in this process, and the repository's root."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Outcome:
    """What one command line left: exit code, standard output, standard error."""

    code: int
    out: str
    err: str


@pytest.fixture
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture
def opcycle(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a command line in this process, as the console script would."""

    def call(*arguments: object) -> Outcome:
        from sim.cli import run

        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Outcome(code, captured.out, captured.err)

    return call


@pytest.fixture
def refused(opcycle: Callable[..., Outcome]) -> Callable[..., str]:
    """Runs a command line that must be refused as wrong input, and returns the one sentence it says."""

    def call(*arguments: object) -> str:
        outcome = opcycle(*arguments)
        assert outcome.code == 2, outcome
        assert outcome.out == ""
        assert outcome.err.count("\n") == 1, outcome.err
        assert outcome.err.startswith("opcycle: ")
        assert "Traceback" not in outcome.err
        return outcome.err.removeprefix("opcycle: ").strip()

    return call


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points of tests go to a folder of the test; compiled kernels stay where they are."""
    monkeypatch.setattr("sim.sweep.cache.FILE", f"{tmp_path}/points.sqlite")


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    """A sweep of twelve small points: two arrays, three batches, two scratchpads."""
    import yaml

    from tests.test_cli import MODEL, SCENARIO

    (tmp_path / "tiny.yaml").write_text(MODEL)
    (tmp_path / "tiny-decode.yaml").write_text(SCENARIO)
    path = tmp_path / "sweep.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "schema": "opcycle/sweep/1",
                "hardware": "npu-hbm2",
                "workload": "./tiny-decode.yaml",
                "axes": {
                    "hw.array.rows": [32, 64],
                    "workload.batch": {"from": 1, "to": 4, "factor": 2},
                    "hw.scratchpad.capacity": ["1 MiB", "2 MiB"],
                },
                "set": {"hw.memory.channels": 2},
            },
            sort_keys=False,
        )
    )
    return path
