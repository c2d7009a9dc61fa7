"""Which of many results no other beats, and how much of the space of results they cover."""

from __future__ import annotations

from collections.abc import Sequence


def pareto(values: Sequence[Sequence[float]], goals: Sequence[str]) -> list[int]:
    """Indices of the rows that no other is at least as good as in all, and better in one; of equals the first.

    `goals` says `min` or `max` of each column.
    """
    signed = [_signed(row, goals) for row in values]
    order = sorted(range(len(signed)), key=lambda i: (signed[i], i))
    front: list[int] = []
    if len(goals) == 2:
        # In order of the first goal, a row is on the front where it improves on the second.
        lowest = float("inf")
        for i in order:
            if signed[i][1] < lowest:
                lowest = signed[i][1]
                front.append(i)
        return sorted(front)
    for i in order:
        if not any(all(a <= b for a, b in zip(signed[j], signed[i], strict=True)) for j in front):
            front.append(i)
    return sorted(front)


def hypervolume(values: Sequence[Sequence[float]], goals: Sequence[str], reference: Sequence[float]) -> float:
    """Volume between the front of `values` and the `reference` point; what does not beat that in all is left out."""
    front = [_signed(values[i], goals) for i in pareto(values, goals)]
    corner = _signed(reference, goals)
    return _volume([p for p in front if all(a < b for a, b in zip(p, corner, strict=True))], corner)


def _signed(row: Sequence[float], goals: Sequence[str]) -> tuple[float, ...]:
    return tuple(-v if goal == "max" else v for v, goal in zip(row, goals, strict=True))


def _volume(front: list[tuple[float, ...]], corner: tuple[float, ...]) -> float:
    """By slices along the last goal; all values are to be small."""
    if not front:
        return 0.0
    if len(corner) == 1:
        return corner[0] - min(p[0] for p in front)
    total = 0.0
    front = sorted(front, key=lambda p: p[-1])
    for i, p in enumerate(front):
        above = front[i + 1][-1] if i + 1 < len(front) else corner[-1]
        if above > p[-1]:
            total += (above - p[-1]) * _volume([q[:-1] for q in front[: i + 1]], corner[:-1])
    return total
