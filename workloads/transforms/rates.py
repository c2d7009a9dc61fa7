"""Types of parameters that many primitives have: rates, shares, densities."""

from __future__ import annotations

from fractions import Fraction
from typing import Annotated

from pydantic import AfterValidator, Field

Rate = Annotated[float, Field(ge=0, le=1)]
"""A number in 0..1."""

Density = Annotated[float, Field(gt=0, le=1)]
"""A share that is kept: above 0, at most 1."""


def _shares(values: tuple[float, ...]) -> tuple[float, ...]:
    if not values or sum(values) <= 0:
        raise ValueError("must list shares of which at least one is above 0")
    return values


Shares = Annotated[tuple[Annotated[float, Field(ge=0)], ...], AfterValidator(_shares)]
"""Relative probabilities of 0, 1, 2 ..."""


def exact(rate: float) -> Fraction:
    """The decimal that was written, not the binary number next to it."""
    return Fraction(str(rate))


def portion(total: int, rate: float) -> int:
    """`rate` of `total`, rounded to the nearest whole number, halves up."""
    return int(total * exact(rate) + Fraction(1, 2))
