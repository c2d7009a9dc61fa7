"""The base of every schema of this package: frozen, strict, no unknown keys, and the sizes that schemas are made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class Schema(BaseModel):
    """A frozen mapping whose keys are exactly its fields."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", populate_by_name=True)


Size = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
