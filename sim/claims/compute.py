"""Claims and ours side by side: the formula over fresh runs, how far it is from the paper's figure, and why."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sim.claims.assumed import assumed_inputs
from sim.claims.formula import evaluate, runs_of
from sim.claims.measure import Runs
from sim.claims.schema import Claim, Run, Source
from sim.errors import ConfigError

CLOSE: Final = 0.1
"""How far from 1 the ratio may be before the sentence that explains a difference is told."""


@dataclass(frozen=True, slots=True)
class Result:
    """A claim computed. `ratio` is ours over the claimed figure; for a range over its nearer end, 1 inside it."""

    source: Source
    ours: float
    ratio: float
    assumed: tuple[str, ...]
    wall_s: float

    @property
    def differs(self) -> bool:
        """Whether ours is more than 10 % away."""
        return abs(self.ratio - 1) > CLOSE

    @property
    def sentence(self) -> str:
        """Why the two differ, or that they do not."""
        if self.differs:
            return self.source.claim.why
        return "Inside the range." if self.ratio == 1 and self.source.claim.limit == "range" else "Within 10 %."

    def plain(self) -> dict[str, Any]:
        """As data for `--json`."""
        claim, paper = self.source.claim, self.source.paper
        runs = {name: self.source.file.runs[name] for name in runs_of(claim.ours)}
        value = list(claim.value) if isinstance(claim.value, tuple) else claim.value
        return {
            "id": claim.id, "paper": paper.title, "arxiv": paper.arxiv, "year": paper.year,
            "method": self.source.file.method, "claim": claim.claim, "value": value, "limit": claim.limit,
            "unit": claim.unit, "setting": claim.setting, "ours": self.ours, "ratio": self.ratio,
            "differs": self.differs, "sentence": self.sentence, "here": claim.here, "formula": claim.ours,
            "hardware": list(dict.fromkeys(run.hardware for run in runs.values() if run.hardware)),
            "commands": {name: command(run) for name, run in runs.items()}, "assumed": list(self.assumed),
            "wall_s": self.wall_s,
        }  # fmt: skip


def compute(sources: Sequence[Source], show: Callable[[str, int, int], None] | None = None) -> Iterator[Result]:
    """Compute claims one after another; runs that several need are made once. Raises ConfigError with the place."""
    runs = Runs()
    for number, source in enumerate(sources):
        if show:
            show(source.claim.id, number, len(sources))
        began = time.perf_counter()
        figures = {}
        for name in runs_of(source.claim.ours):
            try:
                figures[name] = runs.figures(source.file.runs[name])
            except ConfigError as error:
                raise source.document.error(str(error), f"runs.{name}") from None
        try:
            ours = evaluate(source.claim.ours, figures)
        except ConfigError as error:
            raise source.document.error(f"claim {source.claim.id}: {error.message}", "claims") from None
        ratio = ratio_of(source.claim, ours)
        yield Result(source, ours, ratio, assumed_inputs(source), time.perf_counter() - began)


def ratio_of(claim: Claim, ours: float) -> float:
    """Ours over the claimed figure; for a range over its nearer end, and 1 inside it."""
    if not isinstance(claim.value, tuple):
        return ours / claim.value
    low, high = claim.value
    return ours / low if ours < low else ours / high if ours > high else 1.0


def command(run: Run) -> str:
    """The command line that repeats a run."""
    if run.attention_graph is not None:
        graph = run.attention_graph
        return f"opcycle unit stream --attention {graph.variant} --n {graph.n} --d {graph.d}"
    settings = [part for key, value in run.set.items() for part in ("--set", f"{key}={_text(value)}")]
    if run.operator is not None:
        return shlex.join(["opcycle", "unit", "operator", str(run.hardware), *run.operator.split(), *settings])
    assert run.workload is not None
    if run.hardware is None:
        return shlex.join(["opcycle", "trace", run.workload, "-o", "trace.json", *settings])
    return shlex.join(["opcycle", "simulate", run.hardware, run.workload, *settings])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
