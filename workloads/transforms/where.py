"""Selectors: which passes, layers and operators a primitive works on."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Annotated, Literal

from pydantic import Field

from sim.config import ConfigError, not_among
from workloads.schema import Count, Schema, Size
from workloads.trace import Op, Pass

LayerRange = Annotated[int, Field(ge=0)] | Annotated[str, Field(pattern=r"^[0-9]+(-[0-9]+|%-[0-9]+%)$")]
Gemm = Literal["forward", "input_gradient", "weight_gradient"]

INPUT_GRADIENT, WEIGHT_GRADIENT, RECOMPUTED = "_dx", "_dw", "_again"
"""How the names of operators of a backward pass end."""


class Where(Schema):
    """A selection; what is left out selects everything. Layers are numbered from 0: single ones, ranges `4-15` that
    include both ends, or shares `25%-75%` of the depth (from the layer at 25 % up to the one before that at 75 %).
    """

    layers: tuple[LayerRange, ...] | None = Field(None, description="Layers of the model: numbers and ranges.")
    every: Size = Field(1, description="Of these layers every so many-th, the first among them.")
    operators: tuple[str, ...] | None = Field(None, description="Names without prefix; * and ? as in file names.")
    roles: tuple[str, ...] | None = Field(None, description="Roles of operators: attention, ffn, head ...")
    passes: tuple[str, ...] | None = Field(None, description="Names of passes; * and ? as in file names.")
    phases: tuple[str, ...] | None = Field(None, description="Phases: prefill, decode, draft, verify, forward ...")
    steps: tuple[Count, Count] | None = Field(None, description="First and last pass of the run, from 0, repeats too.")
    model: str = Field("main", description="main, draft (any other model), all, or a model's name.")
    gemms: tuple[Gemm, ...] | None = Field(None, description="Which of the products of a training step.")

    def numbers(self, layers: int) -> frozenset[int]:
        """The layers selected of a model that has `layers` of them. Raises ConfigError for a range beyond it."""
        if self.layers is None:
            return frozenset(range(0, layers, self.every))
        found: list[int] = []
        for part in self.layers:
            if isinstance(part, str) and "%" in part:
                ends = [int(end) for end in part.replace("%", "").split("-")]
                low, high = ends[0] * layers // 100, -(-ends[1] * layers // 100) - 1
                high = max(high, low) if ends[1] > ends[0] else -1
            else:
                low, high = (part, part) if isinstance(part, int) else map(int, part.split("-"))
            if low > high:
                raise ConfigError(f"is {part!r}, but a range goes from its first layer to its last", key="where.layers")
            if high >= layers:
                raise ConfigError(
                    f"is {part!r}, but the model has layers 0 to {layers - 1}" if layers else "selects layers of none",
                    key="where.layers",
                )
            found.extend(range(low, high + 1))
        return frozenset(sorted(set(found))[:: self.every])

    def takes_pass(self, p: Pass) -> bool:
        """Whether a pass is selected, its place in the run aside."""
        if self.model == "main" and p.model:
            return False
        if self.model == "draft" and not p.model:
            return False
        if self.model not in ("main", "draft", "all") and self.model != p.model:
            return False
        return _matches(p.name, self.passes) and _matches(p.phase, self.phases)

    def takes_op(self, op: Op) -> bool:
        """Whether an operator of a selected layer or block is selected."""
        name = plain(op.name)
        if self.gemms is not None and gemm_of(op) not in self.gemms:
            return False
        return _matches(stem(name), self.operators) and _matches(op.role, self.roles)

    def check_operators(self, names: Iterable[str]) -> None:
        """Raise ConfigError if a pattern fits none of `names`, the operators that there are."""
        known = sorted({stem(plain(name)) for name in names})
        for pattern in self.operators or ():
            if not any(fnmatchcase(name, pattern) for name in known):
                raise ConfigError(not_among("operator", pattern, known, most=40), key="where.operators")


def plain(name: str) -> str:
    """An operator's name without what tells layers of one block apart."""
    return name.rpartition(".")[2]


def stem(name: str) -> str:
    """An operator's name without the ending that a training step gives it."""
    for ending in (INPUT_GRADIENT, WEIGHT_GRADIENT, RECOMPUTED):
        name = name.removesuffix(ending)
    return name


def gemm_of(op: Op) -> Gemm:
    """Which of the three products of a training step an operator is; everything outside of one is forward."""
    if op.name.endswith(INPUT_GRADIENT):
        return "input_gradient"
    return "weight_gradient" if op.name.endswith(WEIGHT_GRADIENT) else "forward"


def _matches(name: str, patterns: tuple[str, ...] | None) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)
