"""What a validation set is made of: predicted and published figures side by side, and statistics of their errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Point:
    """One figure: `kind` groups it, `name` tells it apart, `quantity` is what it is (time, sustained, power, cycles).

    `others` holds what other simulators said of it.
    """

    kind: str
    name: str
    quantity: str
    measured: float
    predicted: float
    others: Mapping[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """Relative error, signed."""
        return self.predicted / self.measured - 1.0


@dataclass(frozen=True, slots=True)
class ValidationSet:
    """A table that ships: how its points are worked out, and what peers published for the like of it, by kind."""

    name: str
    description: str
    points: Callable[[], Sequence[Point]]
    peers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Errors:
    """Statistics of the relative errors of one kind and quantity; `worst` are the three largest."""

    kind: str
    quantity: str
    rows: int
    mean: float
    median: float
    p95: float
    bias: float
    worst: tuple[Point, ...]
    others: Mapping[str, float]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "kind": self.kind, "quantity": self.quantity, "rows": self.rows, "mean": self.mean, "median": self.median,
            "p95": self.p95, "bias": self.bias, "others_mean": dict(self.others),
            "worst": [
                {"name": p.name, "measured": p.measured, "predicted": p.predicted, "error": p.error} for p in self.worst
            ],
        }  # fmt: skip


def statistics(kind: str, quantity: str, points: Sequence[Point]) -> Errors:
    """The statistics of `points`, of which there must be one at least."""
    sizes = sorted(abs(p.error) for p in points)
    n = len(sizes)
    middle = (sizes[(n - 1) // 2] + sizes[n // 2]) / 2
    names = dict.fromkeys(name for p in points for name in p.others)
    others = {}
    for name in names:
        theirs = [abs(p.others[name] / p.measured - 1.0) for p in points if name in p.others]
        others[name] = sum(theirs) / len(theirs)
    return Errors(
        kind, quantity, n, sum(sizes) / n, middle, sizes[min(n - 1, -(-95 * n // 100) - 1)],
        sum(p.error for p in points) / n, tuple(sorted(points, key=lambda p: -abs(p.error))[:3]), others,
    )  # fmt: skip


def by_kind(points: Iterable[Point]) -> list[Errors]:
    """Statistics of each kind and quantity in order of appearance, and of all kinds where there are several."""
    grouped: dict[tuple[str, str], list[Point]] = {}
    every: dict[str, list[Point]] = {}
    for point in points:
        grouped.setdefault((point.quantity, point.kind), []).append(point)
        every.setdefault(point.quantity, []).append(point)
    found = []
    for quantity, all_points in every.items():
        kinds = {kind: some for (of, kind), some in grouped.items() if of == quantity}
        found += [statistics(kind, quantity, some) for kind, some in kinds.items()]
        if len(kinds) > 1:
            found.append(statistics("all", quantity, all_points))
    return found
