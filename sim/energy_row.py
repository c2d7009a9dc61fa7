"""One line of an energy account, and the names of the parts of a machine that lines are grouped by."""

from __future__ import annotations

from dataclasses import dataclass

COMPONENTS = ("array", "vector", "accumulator", "scratchpad", "wire", "dram", "link", "leakage")
"""Where energy goes, from the arithmetic outwards; the order of every table and picture."""


@dataclass(frozen=True, slots=True)
class EnergyRow:
    """`count` events of `pj_each` picojoules. `unit` says what is counted, `source` who says so."""

    component: str
    subcomponent: str
    count: int
    unit: str
    pj_each: float
    source: str

    @property
    def energy_j(self) -> float:
        """Joules of all events."""
        return self.count * self.pj_each * 1e-12
