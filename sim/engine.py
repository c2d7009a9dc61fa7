"""Simulates a workload on a machine: one pass after another, each from an idle machine, equal passes once.

A pass starts when the one before has ended (a token must be known before the next step), with an idle machine and the
memory's refresh at its start. So a pass has one result wherever it stands, and equal passes are simulated once
(`reuse=False` runs each; a test shows that the results are equal).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from sim.capacity import check_capacity, check_tiers
from sim.execute import execute
from sim.hardware import Hardware
from sim.hints import check_hints
from sim.kinds import PassRunner, engine_for
from sim.lower import lower_pass
from sim.machine import Machine
from sim.mapper import SimulatedMapper
from sim.passes import PassResult
from sim.pipeline_fill import filled
from workloads.trace import Block, Pass

if TYPE_CHECKING:
    from sim.result import Report
    from workloads import Workload

Progress = Callable[[str, int, int], None]


class Engine:
    """One machine and what was found out about it: tilings and passes."""

    def __init__(self, machine: Hardware, *, symmetry: bool = True, steady: bool = True, reuse: bool = True) -> None:
        self.machine = machine
        self.symmetry, self.steady, self.reuse = symmetry, steady, reuse
        self.mapper = SimulatedMapper(machine)
        self._known: dict[tuple[Block, ...], PassResult] = {}

    def run(self, work: Pass) -> PassResult:
        """Simulate one pass."""
        known = self._known.get(work.blocks) if self.reuse else None
        if known is not None:
            ops = tuple(replace(row, pass_name=work.name, phase=work.phase) for row in known.ops)
            return replace(
                known, name=work.name, phase=work.phase, tokens=work.tokens, generated=work.generated,
                repeat=work.repeat, ops=ops,
            )  # fmt: skip
        result = self._run(work) if self.machine.pim is None else self._run_with_pim(work)
        if self.reuse:
            self._known[work.blocks] = result
        return result

    def _run(self, work: Pass) -> PassResult:
        lowered = lower_pass(self.machine, work, self.mapper, self.symmetry)
        schedule = execute(lowered.linked, self.machine.dram, self.steady)
        return PassResult(
            name=work.name, phase=work.phase, tokens=work.tokens, generated=work.generated, repeat=work.repeat,
            ops=lowered.ops, units=lowered.units, tasks=lowered.linked.table(), schedule=schedule,
        )  # fmt: skip

    def _run_with_pim(self, work: Pass) -> PassResult:
        from sim.pim.engine import PimRunner

        return PimRunner(self.machine, self.mapper, self.symmetry, self.steady, self.reuse).run(work)


def simulate(
    machine: Machine, workload: Workload, progress: Progress | None = None, engine: PassRunner | None = None
) -> Report:
    """Simulate all passes of `workload` on `machine` and return the Report.

    `progress` is called with (what, done, total). Raises ConfigError if the model does not fit in the memory or needs a
    unit that the machine lacks.
    """
    from sim.result import Report

    began = time.perf_counter()
    trace = workload.trace()
    check_capacity(machine, trace)
    check_tiers(machine, trace)
    check_hints(machine, trace)
    engine = engine or engine_for(machine)
    passes = []
    for number, work in enumerate(trace.passes):
        if progress:
            progress(work.name, number, len(trace.passes))
        passes.append(filled(work, engine.run(work), engine.run))
    if progress:
        progress("done", len(trace.passes), len(trace.passes))
    return Report(machine, workload, tuple(passes), wall_s=time.perf_counter() - began, hints=trace.hints)
