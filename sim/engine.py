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
from sim.kinds import EXACT, SAMPLED, PassRunner, engine_for
from sim.lower import lower_pass
from sim.lower.link import Linked
from sim.lower.lowering import Lowered
from sim.machine import Machine
from sim.mapper import SimulatedMapper
from sim.passes import PassResult
from sim.pipeline_fill import filled
from sim.sampling import Run, extended, one_channel, shortened
from workloads.trace import Block, Pass

if TYPE_CHECKING:
    from sim.result import Report
    from workloads import Workload

Progress = Callable[[str, int, int], None]


class Engine:
    """One machine and what was found out about it: tilings and passes.

    `symmetry`, `steady` and `reuse` are savings without a difference; `sampled` is the approximation of `sim.sampling`.
    """

    def __init__(
        self,
        machine: Hardware,
        *,
        symmetry: bool = True,
        steady: bool = True,
        reuse: bool = True,
        sampled: bool = False,
    ) -> None:
        self.machine = machine
        self.symmetry, self.steady, self.reuse, self.sampled = symmetry, steady, reuse, sampled
        self.fidelity = SAMPLED if sampled else EXACT
        self.mapper = SimulatedMapper(machine, ranked_only=sampled)
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
        if self.machine.pim is not None:
            result = self._run_with_pim(work)
        else:
            result = self._run_sampled(work) if self.sampled else self._run(work)
        if self.reuse:
            self._known[work.blocks] = result
        return result

    def _run(self, work: Pass) -> PassResult:
        lowered = lower_pass(self.machine, work, self.mapper, self.symmetry)
        return self._executed(work, lowered, lowered.linked)

    def _run_sampled(self, work: Pass) -> PassResult:
        part = shortened(work, self.machine.cores)
        try:
            lowered = lower_pass(self.machine, part, self.mapper, self.symmetry)
        except MemoryError:  # a tiling that was only ranked finds no room between the buffers of others
            lowered = lower_pass(self.machine, part, SimulatedMapper(self.machine), self.symmetry)
        result = self._executed(work, lowered, one_channel(lowered.linked))
        runs = [Run(n, len(b.ops), b.repeat) for n, b in zip(lowered.tasks, part.blocks, strict=True)]
        return extended(work, result, runs, lowered.linked, self.machine.dram)

    def _executed(self, work: Pass, lowered: Lowered, linked: Linked) -> PassResult:
        schedule = execute(linked, self.machine.dram, self.steady)
        return PassResult(
            name=work.name, phase=work.phase, tokens=work.tokens, generated=work.generated, repeat=work.repeat,
            ops=lowered.ops, units=lowered.units, tasks=linked.table(), schedule=schedule,
        )  # fmt: skip

    def _run_with_pim(self, work: Pass) -> PassResult:
        from sim.pim.engine import PimRunner

        return PimRunner(self.machine, self.mapper, self.symmetry, self.steady, self.reuse).run(work)


def simulate(
    machine: Machine,
    workload: Workload,
    progress: Progress | None = None,
    engine: PassRunner | None = None,
    fidelity: str = EXACT,
) -> Report:
    """Simulate all passes of `workload` on `machine` and return the Report.

    `progress` is called with (what, done, total). `fidelity`: `exact`, or `sampled` for the approximation of
    `sim.sampling`, where no engine is given. Raises ConfigError if the model does not fit in the memory or needs a unit
    that the machine lacks.
    """
    from sim.result import Report

    began = time.perf_counter()
    trace = workload.trace()
    check_capacity(machine, trace)
    check_tiers(machine, trace)
    check_hints(machine, trace)
    engine = engine or engine_for(machine, fidelity)
    passes = []
    for number, work in enumerate(trace.passes):
        if progress:
            progress(work.name, number, len(trace.passes))
        passes.append(filled(work, engine.run(work), engine.run))
    if progress:
        progress("done", len(trace.passes), len(trace.passes))
    return Report(
        machine,
        workload,
        tuple(passes),
        wall_s=time.perf_counter() - began,
        hints=trace.hints,
        fidelity=engine.fidelity,
    )
