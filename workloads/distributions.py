"""Draws the lengths of a batch from published statistics of a set of requests, the same on every platform.

A file of `lengths/` states mean, median and maximum of prompts and answers. Each is taken as lognormal with that mean
and median, cut at that maximum (the shape is assumed: both sets are skewed to the right). Arithmetic is decimal, so
that no mathematical library has a say.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, model_validator

from sim.config import ConfigError, build, load_yaml, nearest
from workloads.schema import Schema, Size

FOLDER = Path(__file__).parent / "lengths"
SCHEMA: Final = "opcycle/lengths/1"
DIGITS = 24
"""Significant digits of the arithmetic: far more than a length needs."""


class Statistics(Schema):
    """Tokens of one part of the requests."""

    mean: float = Field(gt=0)
    median: float = Field(gt=0)
    longest: Size

    @model_validator(mode="after")
    def _skewed(self) -> Statistics:
        if self.mean < self.median:
            raise ValueError(f"mean ({self.mean:g}) must not be below median ({self.median:g}): lengths are lognormal")
        return self


class LengthSet(Schema):
    """A set of requests: the tokens of their prompts and of their answers."""

    schema_: Literal["opcycle/lengths/1"] = Field(alias="schema")
    name: str = Field(min_length=1)
    description: str = ""
    prompt: Statistics
    answer: Statistics


@dataclass(frozen=True, slots=True)
class _Lognormal:
    """exp(centre + spread z), from `statistics`; `biased` weighs each value with itself."""

    centre: Decimal
    spread: Decimal
    longest: int

    @staticmethod
    def of(statistics: Statistics, biased: bool = False) -> _Lognormal:
        median, mean = Decimal(repr(statistics.median)), Decimal(repr(statistics.mean))
        variance = 2 * (mean / median).ln()
        # A lognormal weighed by its own value is a lognormal again, moved by the variance.
        centre = median.ln() + (variance if biased else 0)
        return _Lognormal(centre, variance.sqrt(), statistics.longest)

    def draw(self, normal: _Normal) -> int:
        value = (self.centre + self.spread * normal.draw()).exp()
        return min(max(int(value.to_integral_value(ROUND_HALF_EVEN)), 1), self.longest)


class _Normal:
    """Normal variates by Marsaglia's polar method, from the exact numbers of the Mersenne Twister."""

    def __init__(self, source: random.Random) -> None:
        self.source = source

    def draw(self) -> Decimal:
        while True:
            x, y = (2 * Decimal(self.source.random()) - 1 for _ in range(2))
            square = x * x + y * y
            if 0 < square < 1:
                return x * (-2 * square.ln() / square).sqrt()


def length_set_names() -> list[str]:
    """Names of the sets that ship, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def load_length_set(name_or_path: str | Path) -> LengthSet:
    """The set of that name or YAML file. Raises ConfigError, with the nearest name, where there is none."""
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = FOLDER / f"{name_or_path}.yaml"
        if not path.is_file():
            near = nearest(str(name_or_path), length_set_names())
            hint = f"; nearest is {near!r}" if near else ""
            raise ConfigError(
                f"is {str(name_or_path)!r}, which is no set of lengths that ships ({', '.join(length_set_names())}) "
                f"and no CSV file of them{hint}",
                key="lengths",
            )
    elif not path.is_file():
        raise ConfigError("no such file of lengths", file=path)
    return build(LengthSet, load_yaml(path))


def draw_lengths(requests: LengthSet, batch: int, seed: int, decoding: bool, longest: int) -> tuple[int, ...]:
    """`batch` lengths, each at most `longest`, from a generator started with `seed`.

    decoding: cached positions of a batch into which a new request enters whenever one ends, once that has gone on for
    long: a request is met in proportion to the length of its answer, at a place in it that is uniform. Otherwise the
    lengths of prompts.
    """
    assert batch > 0
    source = random.Random(seed)
    normal = _Normal(source)
    with localcontext(Context(prec=DIGITS)):
        prompts, answers = _Lognormal.of(requests.prompt), _Lognormal.of(requests.answer, biased=True)
        found = []
        for _ in range(batch):
            length = prompts.draw(normal)
            if decoding:
                # The last token of an answer is never cached; `int` of an exact product needs no rounding rule.
                length += int(Decimal(source.random()) * answers.draw(normal))
            found.append(min(length, longest))
    return tuple(found)
