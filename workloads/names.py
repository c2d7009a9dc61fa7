"""Types of names that several schemas share: number formats."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from workloads.formats import FORMATS, unknown_format


def _known_format(name: str) -> str:
    if name not in FORMATS:
        raise ValueError(unknown_format(name))
    return name


FormatName = Annotated[str, AfterValidator(_known_format), Field(json_schema_extra={"enum": list(FORMATS)})]
"""The name of a number format."""
