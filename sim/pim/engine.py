"""Runs a pass on a machine with units in its memory: section by section, equal sections once, and puts the results end
to end.

What a pass costs with its batch in two halves, and whether that is faster than in one, is found out by running both.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace

import numpy as np

from sim.errors import ConfigError
from sim.execute import execute
from sim.hardware import Hardware
from sim.lower.block import lower_block
from sim.lower.homes import on_chip
from sim.lower.link import Linked, link
from sim.lower.lowering import (
    activation_bytes,
    align_bytes,
    op_rows,
    scratchpad_bytes,
    unit_rows,
    units,
    write_units,
)
from sim.lower.scope import Context, Mapper
from sim.passes import MemoryCounts, OpRow, PassResult, Schedule, TaskTable, UnitRow, sum_counts
from sim.pim.planning import BlockPlan, plan_pass, why_not
from sim.pim.schedule import Section, Stretch, handed_on, interleaved, layer_by_layer, plain
from sim.pim.use import Interleave
from workloads.trace import OpKind, Pass


@dataclass(frozen=True)
class Ran:
    """A section that was simulated: its operators' rows for a first layer of 0, its tasks and its schedule."""

    rows: tuple[OpRow, ...]
    table: TaskTable
    schedule: Schedule


class PimRunner:
    """Runs passes on one machine. `symmetry`, `steady`, `reuse`: the exact savings, as in `sim.engine.Engine`."""

    def __init__(self, machine: Hardware, mapper: Mapper, symmetry: bool, steady: bool, reuse: bool) -> None:
        assert machine.pim is not None
        self.machine, self.mapper, self.pim = machine, mapper, machine.pim
        self.symmetry, self.steady, self.reuse = symmetry, steady, reuse

    def run(self, work: Pass) -> PassResult:
        """Simulate one pass. Raises ConfigError where it does not fit or cannot be overlapped as asked."""
        try:
            return self._fastest(work)
        except ConfigError as error:
            place = error.file or f"pass {work.name} on {self.machine.name}"
            raise ConfigError(error.message, file=place, key=error.key, line=error.line) from None

    def _fastest(self, work: Pass) -> PassResult:
        if self.pim.interleave is Interleave.ALWAYS:
            return self._run(work, overlap=True)
        one = self._run(work, overlap=False)
        memory = self.machine.dram.pim
        if self.pim.interleave is Interleave.NEVER or memory is None or memory.mode == "blocked":
            return one
        try:
            two = self._faster(work, overlap=True, below_ps=one.schedule.makespan_ps)
        except ConfigError:
            return one
        return two or one

    def _run(self, work: Pass, overlap: bool) -> PassResult:
        result = self._faster(work, overlap, math.inf)
        assert result is not None
        return result

    def _faster(self, work: Pass, overlap: bool, below_ps: float) -> PassResult | None:
        """The pass in one or two parts; None as soon as it is plain that it takes `below_ps` or longer."""
        plans = plan_pass(self.machine, work, overlap)
        if overlap:
            _check_overlap(work, plans)
        stretches: list[Stretch] = []
        for block in work.blocks:
            plan = plans.get(block.name)
            if plan is None:
                stretches += plain(block)
            elif overlap:
                stretches += interleaved(block, plan.parts, self.machine.operators == "serial")
            else:
                stretches += layer_by_layer(block, self.machine.operators == "serial")
        sections = [section for stretch in stretches for section in stretch.sections]
        carried = handed_on(sections)
        share = activation_bytes(self.machine)
        kept = on_chip([section.block for section in sections], share, frozenset(carried), self.machine.riding)
        passed_on = tuple(carried.items())

        def simulated(section: Section) -> Ran:
            return self._section(work, section, plans.get(section.home), kept[section.block.name], passed_on)

        known: dict[tuple[int, str], Ran] = {}
        sure_ps = 0
        # Those that come most often first: they tell soonest that the whole is too slow.
        for number, stretch in sorted(enumerate(stretches), key=lambda item: -item[1].repeat):
            times = Counter(section.block.name for section in stretch.sections)
            for section in stretch.sections:
                name = section.block.name
                if (number, name) in known:
                    continue
                ran = known[number, name] = simulated(section)
                sure_ps += stretch.repeat * times[name] * ran.schedule.makespan_ps
                if sure_ps >= below_ps:
                    return None
        pieces = [
            (known[number, section.block.name] if self.reuse else simulated(section), stretch.layer + turn)
            for number, stretch in enumerate(stretches)
            for turn in range(stretch.repeat)
            for section in stretch.sections
        ]
        rows = [row for piece, _ in pieces for row in piece.rows]
        return _joined(work, pieces, unit_rows(self.machine, {row.format for row in rows if row.flops}))

    def _section(
        self, work: Pass, section: Section, plan: BlockPlan | None, kept: frozenset[str],
        carried: tuple[tuple[str, int], ...],
    ) -> Ran:  # fmt: skip
        machine = self.machine
        context = Context(
            machine, self.mapper, scratchpad_bytes(machine, activation_bytes(machine) > 0), align_bytes(machine), kept,
            carried, plan.plan if plan else None,
        )  # fmt: skip
        block = section.block
        template = lower_block(block, context)
        for number, op in enumerate(block.ops):
            if op.kind is OpKind.ATTENTION and (why := why_not(machine, op)):
                template.decisions.setdefault(number, {})["unit"] = f"npu: {why}"
        linked = link(
            [(template, block.repeat, len(block.ops))], machine.dram, machine.memory.channels, units(machine),
            write_units(machine), self.symmetry, plan.plan.group_of_channel if plan else None,
        )  # fmt: skip
        rows: list[OpRow] = []
        for layer in range(block.repeat):
            layers = [layer + ahead for ahead in section.layers]
            rows += op_rows(machine, block, template, work, layers, section.home)
        return Ran(tuple(rows), linked.table(), self._schedule(linked))

    def _schedule(self, linked: Linked) -> Schedule:
        return execute(linked, self.machine.dram, self.steady)


def _check_overlap(work: Pass, plans: Mapping[str, BlockPlan]) -> None:
    if not plans:
        raise ConfigError(
            f"is always, but pass {work.name} has no attention that runs in memory to overlap with",
            key="pim.interleave",
        )
    for name, plan in plans.items():
        if any(not part.lengths for part in plan.parts):
            raise ConfigError(
                f"is always, but the batch of block {name}, {plan.parts[0].tokens} in all, does not make two parts; "
                "use never or auto, or a larger batch",
                key="pim.interleave",
            )


def _joined(work: Pass, pieces: Iterable[tuple[Ran, int]], unit_list: tuple[UnitRow, ...]) -> PassResult:
    """The sections end to end as one pass; each comes with the layer that it begins in."""
    rows: list[OpRow] = []
    columns: dict[str, list[np.ndarray]] = {f.name: [] for f in fields(TaskTable)}
    times: dict[str, list[np.ndarray]] = {"start_ps": [], "release_ps": [], "finish_ps": []}
    counts: list[MemoryCounts] = []
    now = 0
    for ran, layer in pieces:
        for name, values in columns.items():
            column = getattr(ran.table, name)
            values.append(column + len(rows) if name == "op" else column)
        rows += [replace(row, layer=row.layer + layer) for row in ran.rows]
        for name, values in times.items():
            values.append(getattr(ran.schedule, name) + now)
        counts.append(ran.schedule.memory)
        now += ran.schedule.makespan_ps
    joined = {name: np.concatenate(values) for name, values in times.items()}
    return PassResult(
        name=work.name, phase=work.phase, tokens=work.tokens, generated=work.generated, repeat=work.repeat,
        ops=tuple(rows), units=unit_list,
        tasks=TaskTable(**{name: np.concatenate(values) for name, values in columns.items()}),
        schedule=Schedule(**joined, makespan_ps=now, memory=sum_counts([(1, each) for each in counts])),
    )  # fmt: skip
