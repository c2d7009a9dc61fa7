"""What a machine says about processing in its memory: which operators run there, how requests are placed, when work
overlaps. What the units can do is the memory's own section.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, model_validator

from sim.machine import Strict
from sim.pim.placement import Policy

KERNEL = "gemv"
"""The template of a memory that multiplies rows with a loaded vector, which operators in memory are made of."""


class Operators(StrEnum):
    """Work that can be placed in the memory."""

    ATTENTION = "attention"
    FC_DECODE = "fc_decode"


class Interleave(StrEnum):
    """Whether two halves of a batch take turns on the NPU and in the memory; auto: where that is faster."""

    NEVER = "never"
    ALWAYS = "always"
    AUTO = "auto"


class PimUse(Strict):
    """How the units in the memory are used."""

    operators: tuple[Operators, ...] = Field(
        default=(Operators.ATTENTION,),
        description="attention: scores and weighted values of decode steps; fc_decode: with it, its layers' products "
        "with weights, a vector at a time",
    )
    interleave: Interleave = Field(default=Interleave.NEVER, description="never, always, or auto: whichever is faster")
    placement: Policy = Field(default=Policy.GREEDY, description="how requests are dealt out over channels")
    issue_port: Literal["per_channel", "shared"] = Field(
        default="per_channel", description="shared: one PIM instruction a core clock for all channels together"
    )
    append: Literal["collected", "rows", "none"] = Field(
        default="collected",
        description="new values: collected in order of positions until they fill a burst of each element's row; rows: "
        "written there at once, each in a burst of its own; none: keys and values are not written at all",
    )

    @model_validator(mode="after")
    def _together(self) -> PimUse:
        if Operators.FC_DECODE in self.operators and Operators.ATTENTION not in self.operators:
            raise ValueError("operators: fc_decode goes with attention: list both")
        return self
