"""Applies the primitives of methods to a trace: in the order of their ranks, refusing what contradicts itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from sim.config import ConfigError
from workloads.schema import Schema
from workloads.trace import Trace
from workloads.trace_check import check_trace
from workloads.transforms.context import Context
from workloads.transforms.experts import load_facts
from workloads.transforms.graph import number_layers
from workloads.transforms.registry import DECODING, PRIMITIVES, rank_of, slot_of
from workloads.transforms.speculate import Accept, Draft, speculate
from workloads.transforms.training import Train, forward_step
from workloads.transforms.where import Where


@dataclass(frozen=True, slots=True)
class Step:
    """One primitive as stated: `place` is the key of it in the workload (`methods.0.skip`), `method` whose it is."""

    name: str
    params: Schema
    place: str
    method: str

    def __str__(self) -> str:
        return f"{self.place} ({self.method})" if self.method else self.place


def compose(trace: Trace, steps: Sequence[Step], context: Context, names: Sequence[str] = ()) -> Trace:
    """The trace under all `steps`. `names` are the methods for its record.

    Raises ConfigError, with the key of the primitive, for one that finds nothing to work on or is out of the model's
    range, and with both keys for two that contradict each other.
    """
    if not steps:
        return trace
    check_contradictions(steps, context.model.layers)
    pair = _pair(steps)
    ordered = sorted(steps, key=lambda s: rank_of(s.name, s.params))
    training = next((s for s in steps if isinstance(s.params, Train)), None)
    if training is not None:
        late = next((s for s in steps if rank_of(s.name, s.params) == DECODING), None)
        if late is not None:
            raise ConfigError(f"decodes tokens, but {training} trains: a step has no decoding", key=late.place)
        assert isinstance(training.params, Train)
        trace = _apply(training, partial(forward_step, trace, training.params, context))
    before = trace
    for step in ordered:
        if isinstance(step.params, Accept):
            continue
        if isinstance(step.params, Draft):
            assert pair is not None
            trace = _apply(step, partial(speculate, trace, step.params, pair, context))
            continue
        apply = PRIMITIVES[step.name].apply
        assert apply is not None
        trace = _apply(step, partial(apply, trace, step.params, context))
    if trace is not before and any(b.first_layer is not None for p in trace.passes for b in p.blocks):
        trace = number_layers(trace)
    facts = dict(trace.meta) | (load_facts(trace) if any(s.name == "route" for s in steps) else {})
    trace = replace(trace, methods=(*trace.methods, *names), meta=tuple(sorted(facts.items())))
    check_trace(trace)
    return trace


def _apply(step: Step, work: Callable[[], Trace]) -> Trace:
    """Do the work of a step; what goes wrong in it is told with the step's place."""
    try:
        return work()
    except ConfigError as error:
        if error.file is not None:
            raise
        inner = (error.key or "").removeprefix(f"{step.name}.")
        raise ConfigError(
            error.message, key=f"{step.place}.{inner}" if inner and inner != step.name else step.place
        ) from None


def _pair(steps: Sequence[Step]) -> Accept | None:
    """The `accept` that goes with `draft`; one without the other is refused."""
    drafts = [s for s in steps if s.name == "draft"]
    accepts = [s for s in steps if s.name == "accept"]
    if len(accepts) > 1:
        raise ConfigError(f"states acceptance a second time, after {accepts[0]}", key=accepts[1].place)
    if drafts and not accepts:
        raise ConfigError("drafts, but no accept says how much of the drafts stays", key=drafts[0].place)
    if accepts and not drafts:
        raise ConfigError("accepts, but no draft proposes anything", key=accepts[0].place)
    if not accepts:
        return None
    assert isinstance(accepts[0].params, Accept)
    return accepts[0].params


def check_contradictions(steps: Sequence[Step], layers: int) -> None:
    """Refuse two primitives that decide the same for the same layers and passes, naming both."""
    known: list[tuple[Step, str, Where | None]] = []
    for step in steps:
        found = slot_of(step.params)
        if found is None:
            continue
        slot, where = found
        for other, taken, there in known:
            if slot == taken and _overlap(where, there, layers, step):
                raise ConfigError(f"contradicts {other}: both decide {slot}", key=step.place)
        known.append((step, slot, where))


def _overlap(a: Where | None, b: Where | None, layers: int, step: Step) -> bool:
    if a is None or b is None:
        return True
    if a.model != b.model and "all" not in (a.model, b.model):
        return False
    for name in ("phases", "passes"):
        one, other = getattr(a, name), getattr(b, name)
        if one is not None and other is not None and not set(one) & set(other):
            return False
    if a.steps is not None and b.steps is not None and (a.steps[1] < b.steps[0] or b.steps[1] < a.steps[0]):
        return False
    try:
        return bool(a.numbers(layers) & b.numbers(layers))
    except ConfigError as error:
        raise ConfigError(error.message, key=f"{step.place}.{error.key}") from None


__all__ = ["Step", "check_contradictions", "compose"]
