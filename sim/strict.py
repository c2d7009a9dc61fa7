"""What all sections of a machine description share: the frozen base class, and plain numbers with their limits."""

from __future__ import annotations

from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


def to_fraction(value: Any) -> Any:
    """A whole number or text such as `1/2` as an exact Fraction. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, (int, str, Fraction)):
        raise ValueError("must be an integer or a fraction such as 1/2")
    return Fraction(value)


Rate = Annotated[
    Fraction,
    BeforeValidator(to_fraction),
    Field(gt=0, json_schema_extra={"type": ["integer", "string"]}),
]
Positive = Annotated[int, Field(gt=0, le=2**40)]


class Strict(BaseModel):
    """Base of every section: frozen, no unknown keys, hashed by content (sections key the caches of the lowering)."""

    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))

    @cached_property
    def _content(self) -> str:
        return self.model_dump_json(by_alias=True)

    def __hash__(self) -> int:
        return hash(self._content)
