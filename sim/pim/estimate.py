"""What a job costs by the memory's own timing, worked out in closed form: ticks for balancing channels, and how many
instructions a shared port has to pass on.

A tile opens its rows (precharges one after another, then activations at their window) and then gives its results; loads
and tiles follow each other. Refresh, ordinary traffic and overlap between tiles are left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.kernels import pim_tables as at
from sim.pim.schema import Scope, Step, pim_rules, template_steps, ticks

if TYPE_CHECKING:
    from sim.standards import Memory

Ints = NDArray[np.int64]
COLUMNS = [at.KERNEL, at.LOADS, at.TILES, at.GROUPS, at.DOTS]


class JobCosts:
    """Costs of jobs of one memory, rows of `pim_tables` columns."""

    def __init__(self, memory: Memory) -> None:
        pim = memory.pim
        assert pim is not None
        o = memory.organisation
        self.memory, self.pim = memory, pim
        self.gaps = {(r.level, r.before, r.after): r.gaps for r in pim_rules(memory)}
        self.steps = [template_steps(memory, name) for name in pim.kernels]
        self.load_ticks = ticks(memory, "pim.load_ticks", pim.load_ticks)
        ranks = o.pseudo_channels * o.ranks
        banks = ranks * o.bank_groups * o.banks
        units = {Scope.BANK: banks, Scope.BANK_GROUP: banks // o.banks, Scope.SET: 1}
        self.activations = units[pim.activate]
        in_rank = -(-self.activations // ranks)
        self.opening = (
            units[pim.precharge] + (in_rank - 1) * self._gap("rank", "G_ACT", "G_ACT") + memory.timings.get("tRCDRD", 0)
        )
        self.known: dict[tuple[int, int], int] = {}

    def ticks(self, jobs: Ints) -> int:
        """Ticks of all jobs one after another."""
        total = 0
        for kernel, loads, tiles, groups, dots in jobs[:, COLUMNS].tolist():
            total += loads * self.load_ticks + tiles * (self.opening + groups * self._result(kernel, dots))
        return total

    def instructions(self, jobs: Ints) -> int:
        """PIM instructions of all jobs: loads; for each tile a header where there is one, activations, and the steps of
        each result.
        """
        total = 0
        for kernel, loads, tiles, groups, dots in jobs[:, COLUMNS].tolist():
            load, tile = self.steps[kernel]
            each = sum(_count(step, dots) for step in tile)
            opened = self.pim.header + self.activations
            total += loads * sum(_count(step, dots) for step in load) + tiles * (opened + groups * each)
        return total

    def _result(self, kernel: int, dots: int) -> int:
        """Ticks of one result: each command until the next of its kind may follow."""
        if (kernel, dots) not in self.known:
            self.known[kernel, dots] = sum(
                (1 if step.command == "COMPS_READRES" else _count(step, dots))
                * max(self._gap("channel", step.command, step.command, dots), 1)
                for step in self.steps[kernel][1]
            )
        return self.known[kernel, dots]

    def _gap(self, level: str, before: str, after: str, dots: int = 0) -> int:
        gaps = self.gaps.get((level, before, after), (0,))
        return gaps[min(dots, len(gaps) - 1)]


def _count(step: Step, dots: int) -> int:
    """Instructions of a step; a composite command is one, whatever its dots."""
    if step.command == "COMPS_READRES":
        return 1
    return dots if step.count is None else step.count
