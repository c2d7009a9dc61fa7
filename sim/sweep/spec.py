"""What a sweep file says: `opcycle/sweep/1`, with axes as lists, ranges or named variants, and the reader of it."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    field_validator,
    model_validator,
)

from sim.document import Document, load_yaml
from sim.errors import ConfigError, not_among, show
from sim.sweep.condition import Condition

SCHEMA: Final = "opcycle/sweep/1"
ROOTS: Final = ("hw", "workload")
FILES: Final = ("hardware", "workload")
"""Keys whose values may be paths."""
VARIANT: Final = "variant"
MOST_POINTS: Final = 10**8
"""A larger space needs the user's word that it is meant."""
MOST_VALUES: Final = 10**6
"""An axis is laid out in memory, so it may not have more values."""
MOST_FACTORS: Final = 10**4
"""The same for ranges by a factor, whose values are exact fractions that grow."""

Number = StrictInt | StrictFloat
Value = bool | int | float | str | list[Any] | dict[str, Any] | None


class Strict(BaseModel):
    """Base of every section: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Range(Strict):
    """Values from one end to the other, both included, by a step (linear) or a factor (logarithmic).

    Ends and step may carry a unit, which all three share: `{from: 4 MiB, to: 64 MiB, factor: 2}`.
    """

    from_: Number | StrictStr = Field(alias="from")
    to: Number | StrictStr
    step: Number | StrictStr | None = None
    factor: Number | None = None
    when: str | None = Field(default=None, description="the axis exists only where this condition on others holds")

    @model_validator(mode="after")
    def _check(self) -> Range:
        if (self.step is None) == (self.factor is None):
            raise ValueError("a range has either a step or a factor")
        if self.count() <= MOST_VALUES:
            self.values()
        return self

    def count(self) -> int:
        """How many values there are. Raises ValueError for a range that is empty or never ends."""
        (low, unit), (high, other) = _split(self.from_), _split(self.to)
        if unit != other:
            raise ValueError(f"from {self.from_!r} and to {self.to!r} have different units")
        if low > high:
            raise ValueError(f"the range from {self.from_} to {self.to} is empty")
        if self.factor is None:
            step, own = _split(self.step)
            if own not in ("", unit):
                raise ValueError(f"step {self.step!r} has another unit than {self.from_!r}")
            if step <= 0:
                raise ValueError(f"a range's step must be above 0, not {self.step}")
            return int((high - low) / step) + 1
        factor = Fraction(str(self.factor))
        if factor <= 1 or low <= 0:
            raise ValueError(f"a range by factor needs a start above 0 and a factor above 1, not {self.factor}")
        if math.log(high / low) / math.log1p(factor - 1) > MOST_FACTORS:
            raise ValueError(f"a factor of {self.factor} gives more than {MOST_FACTORS:,} values")
        count, last = 1, low
        while last * factor <= high:
            count, last = count + 1, last * factor
        return count

    def values(self) -> list[Value]:
        """The values in order; equal ends and steps give equal values, whatever a float would make of them."""
        low, unit = _split(self.from_)
        ratio = None if self.factor is None else Fraction(str(self.factor))
        step = Fraction(0) if self.step is None else _split(self.step)[0]
        found = [low + i * step if ratio is None else low * ratio**i for i in range(self.count())]
        return [_joined(value, unit) for value in found]


class Values(Strict):
    """A list of values with a condition."""

    values: list[Value] = Field(min_length=1)
    when: str | None = Field(default=None, description="the axis exists only where this condition on others holds")


class Spec(Strict):
    """A sweep: what is varied around which machine and workload."""

    schema_: Literal["opcycle/sweep/1"] = Field(SCHEMA, alias="schema")
    name: str = Field(default="", description="what results are called; the file's name by default")
    hardware: str = Field(description="a machine's name or YAML path")
    workload: str = Field(description="a workload's name, YAML path or trace")
    axes: dict[str, list[Value] | Range | Values] = Field(
        default_factory=dict, description="dotted key (hw.* or workload.*), or `hardware`, `workload`: its values"
    )
    zip: list[list[str]] = Field(default_factory=list, description="groups of axes that move together")
    variants: dict[str, dict[str, Value]] = Field(
        default_factory=dict, description="a further axis: named sets of values, {name: {dotted key: value}}"
    )
    constraints: list[str] = Field(default_factory=list, description="conditions that every point must meet")
    set: dict[str, Value] = Field(default_factory=dict, description="values that all points share")
    fidelity: Literal["exact", "sampled"] = Field(
        default="exact", description="sampled: layers and channels that are alike stand for each other (docs/sweep.md)"
    )

    objectives: dict[str, Literal["min", "max"]] = Field(
        default_factory=dict, description="for a search: result columns to make small or large"
    )

    @field_validator("axes", mode="before")
    @classmethod
    def _forms(cls, axes: Any) -> Any:
        """Tells a range from a list with a condition by its keys, so that complaints are about the right one."""
        if not isinstance(axes, dict):
            return axes
        return {key: _form(str(key), axis) for key, axis in axes.items()}

    @field_validator("axes")
    @classmethod
    def _axes(cls, axes: dict[str, Any]) -> dict[str, Any]:
        for key, values in axes.items():
            _check_key(key)
            if isinstance(values, list) and not values:
                raise ValueError(f"axis {key} has no values")
        return axes

    @field_validator("set")
    @classmethod
    def _set(cls, values: dict[str, Any]) -> dict[str, Any]:
        for key in values:
            _check_key(key)
        return values

    @field_validator("constraints")
    @classmethod
    def _constraints(cls, texts: list[str]) -> list[str]:
        for text in texts:
            Condition(text)
        return texts

    @model_validator(mode="after")
    def _together(self) -> Spec:
        if not self.axes and not self.variants:
            raise ValueError("has neither axes nor variants, so there is nothing to sweep")
        grouped: dict[str, int] = {}
        for number, group in enumerate(self.zip):
            if len(group) < 2:
                raise ValueError(f"zip.{number} needs two axes or more")
            for key in group:
                if key not in self.axes:
                    raise ValueError(f"zip.{number} names {key}, which is no axis of this sweep")
                if key in grouped:
                    raise ValueError(f"{key} is in two groups of zip")
                grouped[key] = number
            lengths = {key: count_of(self.axes[key]) for key in group}
            if len(set(lengths.values())) > 1:
                each = ", ".join(f"{key} has {n}" for key, n in lengths.items())
                raise ValueError(f"zip.{number} joins axes of different lengths: {each}")
            if any(condition_of(self.axes[key]) is not None for key in group):
                raise ValueError(f"zip.{number}: an axis with a condition cannot be zipped")
        for name, values in self.variants.items():
            for key in values:
                _check_key(key)
                if key in self.axes:
                    raise ValueError(f"{key} is an axis and is set by variant {name} too")
        for key in self.set:
            if key in self.axes or any(key in values for values in self.variants.values()):
                raise ValueError(f"set.{key} is also varied")
        varied = {*self.axes, *self.set, *(key for values in self.variants.values() for key in values)}
        for key, axis in self.axes.items():
            text = condition_of(axis)
            for name in Condition(text).names if text else ():
                if name == key or name not in varied:
                    raise ValueError(f"axis {key}: its condition asks for {name}, which is no other axis of this sweep")
                if name in self.axes and condition_of(self.axes[name]) is not None:
                    raise ValueError(f"axis {key}: its condition asks for {name}, which has a condition itself")
        return self


def named(spec: Spec, key: str) -> list[Value]:
    """Every value that some point has at `key`, one of FILES."""
    own = [getattr(spec, key), *(values_of(spec.axes[key]) if key in spec.axes else [])]
    return [*own, *(keys[key] for keys in (spec.set, *spec.variants.values()) if key in keys)]


def _form(key: str, axis: Any) -> list[Value] | Range | Values:
    if isinstance(axis, (list, Range, Values)):
        return axis
    if not isinstance(axis, dict):
        raise ValueError(
            f"axis {key}: is {show(axis)}, but must be a list, a range {{from, to, step or factor}}, or "
            "{values, when}"
        )
    form: type[Range] | type[Values] = Values if "values" in axis else Range
    try:
        return form.model_validate(axis)
    except ValidationError as error:
        # A key that is not known tells more than the one that is missing because it was misspelt.
        first = min(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
        at = ".".join(map(str, first["loc"][:1]))
        match first["type"]:
            case "extra_forbidden":
                allowed = [field.alias or name for name, field in form.model_fields.items()]
                said = not_among("key", at, allowed)
            case "missing":
                said = f"{at} is missing"
            case "too_short":
                said = "has no values"
            case "value_error":
                said = first["msg"].removeprefix("Value error, ")
            case _:
                wanted = "text" if at == "when" else "a list" if at == "values" else "a number, or one with a unit"
                said = f"{at} is {show(axis[at])}, but must be {wanted}"
        raise ValueError(f"axis {key}: {said}") from None


def values_of(axis: list[Value] | Range | Values) -> list[Value]:
    """The values of an axis in order. Raises ConfigError for more than can be laid out."""
    if isinstance(axis, list):
        return axis
    if isinstance(axis, Values):
        return axis.values
    if axis.count() > MOST_VALUES:
        raise ConfigError(f"an axis has {axis.count():,} values, but at most {MOST_VALUES:,} can be laid out")
    return axis.values()


def count_of(axis: list[Value] | Range | Values) -> int:
    """How many values an axis has."""
    return axis.count() if isinstance(axis, Range) else len(axis if isinstance(axis, list) else axis.values)


def points_of(spec: Spec) -> int:
    """How many points a spec has, those without an axis that its condition takes away counted as often as with it."""
    zipped = {key for group in spec.zip for key in group[1:]}
    axes = [count_of(axis) for key, axis in spec.axes.items() if key not in zipped]
    return math.prod(axes) * max(1, len(spec.variants))


def condition_of(axis: list[Value] | Range | Values) -> str | None:
    """The condition of an axis, if it has one."""
    return None if isinstance(axis, list) else axis.when


def load_spec(path: str | Path) -> Spec:
    """Read a sweep file; paths of machines and workloads in it are relative to it. Raises ConfigError."""
    from sim.catalog import is_path
    from sim.config import build

    document: Document = load_yaml(Path(path))
    spec = build(Spec, document)

    def found(name: Any, at: str) -> Any:
        if not isinstance(name, str) or not is_path(name):
            return name
        full = (Path(path).parent / name).resolve()
        if not full.is_file():
            raise document.error(f"{name!r}: no such file", at)
        return str(full)

    def beside(values: dict[str, Any], at: str) -> dict[str, Any]:
        return {key: found(value, f"{at}.{key}") if key in FILES else value for key, value in values.items()}

    axes = dict(spec.axes)
    for key in FILES:
        if key in axes:
            names = [found(name, f"axes.{key}") for name in values_of(axes[key])]
            axes[key] = Values(values=names, when=condition_of(axes[key])) if condition_of(axes[key]) else names
    return spec.model_copy(
        update={
            "name": spec.name or Path(path).stem,
            **{key: found(getattr(spec, key), key) for key in FILES},
            "axes": axes,
            "set": beside(spec.set, "set"),
            "variants": {name: beside(keys, f"variants.{name}") for name, keys in spec.variants.items()},
        }
    )


def _check_key(key: str) -> None:
    root, _, rest = key.partition(".")
    if key not in FILES and (root not in ROOTS or not rest):
        raise ValueError(f"{key!r} is no key: keys begin with 'hw.' or 'workload.', or are 'hardware' or 'workload'")


def _split(value: int | float | str | None) -> tuple[Fraction, str]:
    """A number and its unit."""
    text = str(value).strip()
    number, _, unit = text.partition(" ")
    try:
        return Fraction(number), unit.strip()
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{text!r} is no number, nor a number, a space and a unit") from None


def _joined(value: Fraction, unit: str) -> Value:
    number: int | float = int(value) if value.denominator == 1 else float(value)
    return f"{number} {unit}" if unit else number


def refuse_large(points: int, limit: int = MOST_POINTS) -> None:
    """Raise ConfigError for a space of more than `limit` points."""
    if points > limit:
        raise ConfigError(f"the sweep has {points:,} points, more than {limit:,}; say --yes if that is meant")
