"""The points of a sweep, by number: nothing is laid out in memory, whatever the size of the space."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from sim.errors import ConfigError
from sim.sweep.condition import Condition
from sim.sweep.spec import VARIANT, Spec, Value, condition_of, values_of


@dataclass(frozen=True, slots=True)
class Axis:
    """Steps that a point may take along one direction: each sets some keys. `when` may take the axis away."""

    label: str
    steps: tuple[Mapping[str, Value], ...]
    names: tuple[str, ...]
    when: Condition | None = None


class Space:
    """All combinations of the axes of a spec. A point's number counts them, the last axis fastest."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.axes = tuple(_axes(spec))
        self.size = prod(len(axis.steps) for axis in self.axes)

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns that tell points apart: axis keys, and `variant`."""
        return tuple(dict.fromkeys(key for axis in self.axes for key in _columns(axis)))

    def choices(self, number: int) -> tuple[int, ...]:
        """The step taken along each axis by point `number`."""
        found = []
        for axis in reversed(self.axes):
            number, step = divmod(number, len(axis.steps))
            found.append(step)
        return tuple(reversed(found))

    def at(self, choices: tuple[int, ...]) -> dict[str, Value] | None:
        """The keys that a point sets; None where an axis is taken away and another point says the same."""
        keys: dict[str, Value] = dict(self.spec.set)
        conditional = []
        for axis, step in zip(self.axes, choices, strict=True):
            if axis.when is None:
                keys.update(axis.steps[step])
            else:
                conditional.append((axis, step))
        for axis, step in conditional:
            assert axis.when is not None
            if axis.when.holds(_lookup(keys)):
                keys.update(axis.steps[step])
            elif step:
                return None
        return keys

    def point(self, number: int) -> dict[str, Value] | None:
        """As `at`, by number."""
        return self.at(self.choices(number))

    def number(self, choices: Sequence[int]) -> int:
        """The point that takes these steps."""
        number = 0
        for axis, step in zip(self.axes, choices, strict=True):
            number = number * len(axis.steps) + step
        return number

    def named(self, choices: tuple[int, ...]) -> int:
        """The point with the same keys that exists: along axes that are taken away it takes the first step."""
        keys: dict[str, Value] = dict(self.spec.set)
        for axis, step in zip(self.axes, choices, strict=True):
            if axis.when is None:
                keys.update(axis.steps[step])
        gone = [axis.when is not None and not axis.when.holds(_lookup(keys)) for axis in self.axes]
        return self.number([0 if away else step for away, step in zip(gone, choices, strict=True)])

    def row(self, choices: tuple[int, ...]) -> dict[str, Value | None]:
        """The values of `columns` for a point; None for an axis that is taken away."""
        keys = self.at(choices) or {}
        names = {a.label: a.names[s] for a, s in zip(self.axes, choices, strict=True) if a.label == VARIANT}
        return {key: names.get(key, keys.get(key)) for key in self.columns}

    def __iter__(self) -> Iterator[tuple[int, dict[str, Value]]]:
        """Number and keys of every point that exists."""
        for number in range(self.size):
            keys = self.point(number)
            if keys is not None:
                yield number, keys


def _axes(spec: Spec) -> Iterator[Axis]:
    if spec.variants:
        yield Axis(VARIANT, tuple(spec.variants.values()), tuple(spec.variants))
    group_of = {key: group for group in spec.zip for key in group}
    done: set[str] = set()
    for key, axis in spec.axes.items():
        if key in done:
            continue
        group = group_of.get(key, [key])
        done.update(group)
        columns = [values_of(spec.axes[name]) for name in group]
        steps = tuple(dict(zip(group, values, strict=True)) for values in zip(*columns, strict=True))
        text = condition_of(axis)
        when = Condition(text) if text is not None else None
        yield Axis(" + ".join(group), steps, tuple(map(str, range(len(steps)))), when)


def _columns(axis: Axis) -> tuple[str, ...]:
    keys = tuple(dict.fromkeys(key for step in axis.steps for key in step))
    return (VARIANT, *keys) if axis.label == VARIANT else keys


def _lookup(keys: Mapping[str, Value]) -> Any:
    def value(name: str) -> Value:
        if name not in keys:
            raise ConfigError(f"{name} has no value at a point whose variant does not set it", key=name)
        return keys[name]

    return value
