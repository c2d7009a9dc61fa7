"""Claimed figures and ours in words for tables."""

from __future__ import annotations

from sim.claims.formula import runs_of
from sim.claims.schema import Claim, Source

_LIMITS = {"exact": "", "about": "about ", "average": "mean ", "up_to": "up to ", "at_least": "over ", "range": ""}


def figure(value: float, unit: str) -> str:
    """A figure with three digits and its unit."""
    text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) < 100 else f"{value:.4g}"
    return f"{text}x" if unit == "x" else f"{text} {unit}".strip()


def machines(source: Source) -> str:
    """Where the runs of a claim are made: machines, an abstract streaming graph, or the trace alone."""
    runs = [source.file.runs[name] for name in runs_of(source.claim.ours)]
    named = dict.fromkeys(run.hardware for run in runs if run.hardware)
    graph = "streaming graph" if any(run.attention_graph for run in runs) else "trace"
    return ", ".join(named) or graph


def claimed(claim: Claim) -> str:
    """The paper's figure as its limit says it."""
    if isinstance(claim.value, tuple):
        low, high = claim.value
        return f"{figure(low, '')} to {figure(high, claim.unit)}"
    return f"{_LIMITS[claim.limit]}{figure(claim.value, claim.unit)}"
