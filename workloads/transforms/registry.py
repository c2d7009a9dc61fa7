"""The primitives by name: their parameters, what applies them, and the order in which they work."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import model_validator

from workloads.schema import Schema
from workloads.trace import Trace
from workloads.transforms.attend import MaskParams, mask
from workloads.transforms.conditional import Skip, skip
from workloads.transforms.context import Context
from workloads.transforms.custom import Operator, operator
from workloads.transforms.experts import Route, route
from workloads.transforms.factor import Factor, factor
from workloads.transforms.kv import Kv, kv
from workloads.transforms.loops import Loop, Passes, given_passes, loop
from workloads.transforms.machine import Dvfs, Engine, Fault, Mac, annotate
from workloads.transforms.placement import Memory, Schedule, Serve, memory, schedule, serve
from workloads.transforms.reuse import Cache, cache
from workloads.transforms.sparsity import ASparse, WSparse, asparse, wsparse
from workloads.transforms.speculate import Accept, Draft
from workloads.transforms.structure import Drop, Merge, Width, drop, merge, width
from workloads.transforms.tokens import Tokens, tokens
from workloads.transforms.training import Train, train
from workloads.transforms.values import DType, XForm, dtype, xform
from workloads.transforms.where import Where

Apply = Callable[[Trace, Any, Context], Trace]
SAMPLES, PREFIXES, DECODING, STRUCTURE, TRAINING, VALUES, PLACEMENT, MACHINE = range(8)
"""Ranks: a primitive of a lower one is applied first, those of one rank in the order of the method."""


@dataclass(frozen=True, slots=True)
class Primitive:
    """One primitive. `pairs_with`: the one that it makes no sense without; `apply` is that of the pair's first."""

    name: str
    params: type[Schema]
    rank: int
    apply: Apply | None
    pairs_with: str | None = None

    @property
    def summary(self) -> str:
        """The first sentence of the parameters' description."""
        return " ".join((self.params.__doc__ or "").split("\n\n")[0].split())


def _alone(function: Callable[[Trace, Any], Trace]) -> Apply:
    return lambda trace, params, context: function(trace, params)


PRIMITIVES: dict[str, Primitive] = {
    p.name: p
    for p in (
        Primitive("passes", Passes, SAMPLES, given_passes),
        Primitive("loop", Loop, DECODING, loop),
        Primitive("draft", Draft, DECODING, None, "accept"),
        Primitive("accept", Accept, DECODING, None, "draft"),
        Primitive("drop", Drop, STRUCTURE, _alone(drop)),
        Primitive("merge", Merge, STRUCTURE, _alone(merge)),
        Primitive("width", Width, STRUCTURE, _alone(width)),
        Primitive("factor", Factor, STRUCTURE, _alone(factor)),
        Primitive("route", Route, STRUCTURE, route),
        Primitive("skip", Skip, STRUCTURE, skip),
        Primitive("asparse", ASparse, STRUCTURE, _alone(asparse)),
        Primitive("tokens", Tokens, STRUCTURE, _alone(tokens)),
        Primitive("mask", MaskParams, STRUCTURE, _alone(mask)),
        Primitive("kv", Kv, STRUCTURE, kv),
        Primitive("cache", Cache, STRUCTURE, cache),
        Primitive("operator", Operator, STRUCTURE, _alone(operator)),
        Primitive("train", Train, TRAINING, train),
        Primitive("wsparse", WSparse, VALUES, _alone(wsparse)),
        Primitive("dtype", DType, VALUES, _alone(dtype)),
        Primitive("xform", XForm, VALUES, _alone(xform)),
        Primitive("memory", Memory, PLACEMENT, _alone(memory)),
        Primitive("schedule", Schedule, PLACEMENT, _alone(schedule)),
        Primitive("serve", Serve, PLACEMENT, _alone(serve)),
        Primitive("engine", Engine, MACHINE, _alone(annotate)),
        Primitive("mac", Mac, MACHINE, _alone(annotate)),
        Primitive("dvfs", Dvfs, MACHINE, _alone(annotate)),
        Primitive("fault", Fault, MACHINE, _alone(annotate)),
    )
}


class Entry(Schema):
    """One primitive of a method: a mapping with its name as the only key."""

    passes: Passes | None = None
    loop: Loop | None = None
    draft: Draft | None = None
    accept: Accept | None = None
    drop: Drop | None = None
    merge: Merge | None = None
    width: Width | None = None
    factor: Factor | None = None
    route: Route | None = None
    skip: Skip | None = None
    asparse: ASparse | None = None
    tokens: Tokens | None = None
    mask: MaskParams | None = None
    kv: Kv | None = None
    cache: Cache | None = None
    operator: Operator | None = None
    train: Train | None = None
    wsparse: WSparse | None = None
    dtype: DType | None = None
    xform: XForm | None = None
    memory: Memory | None = None
    schedule: Schedule | None = None
    serve: Serve | None = None
    engine: Engine | None = None
    mac: Mac | None = None
    dvfs: Dvfs | None = None
    fault: Fault | None = None

    @model_validator(mode="after")
    def _one(self) -> Entry:
        if len(self.model_fields_set) != 1:
            raise ValueError(f"must name one primitive, has {', '.join(sorted(self.model_fields_set)) or 'none'}")
        if getattr(self, self.name) is None:
            raise ValueError(f"{self.name} has no parameters")
        return self

    @property
    def name(self) -> str:
        """The primitive's name."""
        (name,) = self.model_fields_set
        return name

    @property
    def params(self) -> Schema:
        """The primitive's parameters."""
        found: Schema = getattr(self, self.name)
        return found


def rank_of(name: str, params: Schema) -> int:
    """When a primitive is applied. Loops over layers and policies of the cache differ by what they change."""
    if isinstance(params, Loop):
        return {"samples": SAMPLES, "layers": STRUCTURE}.get(params.over, DECODING)
    if isinstance(params, Kv):
        return {"prefix": PREFIXES, "replace": PREFIXES, "fill": PREFIXES, "erase": DECODING}.get(
            params.policy, STRUCTURE
        )
    return PRIMITIVES[name].rank


Slot = Literal[
    "how tokens are decoded", "the passes", "the cache of these layers", "the prompt's cache", "the training step",
    "the mask of these layers", "the experts of these layers", "the steps of these layers",
]  # fmt: skip


def slot_of(params: Schema) -> tuple[Slot, Where | None] | None:
    """What two primitives cannot both decide for the same layers and passes."""
    if isinstance(params, (Draft,)):
        return "how tokens are decoded", None
    if isinstance(params, Loop):
        return ("how tokens are decoded", None) if params.over in ("denoise", "sweeps") else None
    if isinstance(params, Kv):
        if params.policy == "erase":
            return "how tokens are decoded", None
        if params.policy in ("prefix", "replace", "fill"):
            return "the prompt's cache", None
        return None if params.policy == "tier" else ("the cache of these layers", params.where)
    if isinstance(params, Passes):
        return "the passes", None
    if isinstance(params, Train):
        return "the training step", None
    if isinstance(params, MaskParams):
        return "the mask of these layers", params.where
    if isinstance(params, Route):
        return "the experts of these layers", params.where
    return None


__all__ = ["PRIMITIVES", "Entry", "Primitive", "rank_of", "slot_of"]
