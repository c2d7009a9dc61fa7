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
