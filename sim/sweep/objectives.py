"""What a search aims at: columns of result rows, each to be small or large, under short names too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from sim.errors import ConfigError, not_among
from sim.sweep.point import Row

SHORT: Final = {
    "time": "time_s",
    "energy": "energy_j",
    "area": "area_mm2",
    "cost": "cost_usd",
    "edp": "edp_js",
    "tokens_per_s_per_w": "tokens_per_j",
}
"""Names for objectives that are told by other words than their columns: tokens/s per W is tokens per joule."""

BETTER_HIGH: Final = frozenset(
    {"tokens_per_s", "tokens_per_j", "mac_utilization", "memory_bandwidth_utilization", "achieved_flops_per_s"}
)
"""Columns that are better when larger; any other is meant to be small unless it says `:max`."""


def read_objectives(texts: Sequence[str]) -> dict[str, str]:
    """{column: min or max} of `column`, `column:max` or a short name. Raises ConfigError."""
    found: dict[str, str] = {}
    for text in texts:
        name, _, goal = text.partition(":")
        name = SHORT.get(name, name)
        goal = goal or ("max" if name in BETTER_HIGH else "min")
        if goal not in ("min", "max"):
            raise ConfigError(f"--objective {text!r}: {not_among('direction', goal, ('min', 'max'))}")
        if name in found:
            raise ConfigError(f"--objective {name!r} is given twice")
        found[name] = goal
    return found


def goal_value(row: Row, name: str) -> float:
    """The number of an objective in a row. Raises ConfigError with the nearest name where there is none."""
    value = row.get(name)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if name in row:
        raise ConfigError(f"objective {name!r} has no value for this workload and machine")
    numeric = [k for k, v in row.items() if isinstance(v, (int, float)) and not isinstance(v, bool)]
    raise ConfigError(f"objective {name!r}: {not_among('column', name, [*numeric, *SHORT], most=40)}")
