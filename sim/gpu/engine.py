"""Runs a pass of a Trace on a GPU: one kernel after another in a launch graph, at the clock that the cap allows.

Equal operators are costed once, however many layers repeat them. The clock is that of the whole pass in steady
repetition, since power is limited on average over many kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from sim.capacity import without_tier
from sim.errors import ConfigError
from sim.gpu.cost import Cost, chain, launched
from sim.gpu.halves import alternated, halved
from sim.gpu.lower import lower
from sim.gpu.overlap import Overlapped, left_over, overlapped, pairs, shared
from sim.gpu.power import Running, counted, sustained
from sim.gpu.schema import Gpu
from sim.kinds import EXACT
from sim.links.collectives import collective
from sim.passes import MemoryCounts, OpRow, PassResult, Schedule, TaskTable, UnitRow
from sim.sparse.plain import plain_row
from sim.units import PS_PER_S
from workloads.trace import Block, CollectiveAttrs, Op, Pass, TransferAttrs

TENSOR, VECTOR, MEMORY, LINK, LAUNCH = range(5)
"""Numbers of the units."""


class _Step(NamedTuple):
    """One operator costed: its kernels, or the time and bytes of a link. `beside`: the pair of operators that it is one
    of, cut into parts that overlap; the first of the two `leads`.
    """

    cost: Cost | None
    link_ps: int
    link_bytes: int
    decisions: dict[str, str]
    beside: Overlapped | None = None
    leads: bool = False


_Placed = tuple[Block, int, Op, _Step]
"""A step with its block, layer and operator."""
_Table = tuple[int, list[dict[str, int]]]
"""Length in ps, and tasks with times from the operator's start."""


class GpuEngine:
    """One GPU and the passes that it ran."""

    fidelity = EXACT

    def __init__(self, machine: Gpu) -> None:
        self.machine = machine
        self._known: dict[tuple[Block, ...], PassResult] = {}

    def run(self, work: Pass) -> PassResult:
        """Simulate one pass. Raises ConfigError for a format or a function that the part has no unit for."""
        known = self._known.get(work.blocks)
        if known is None:
            known = self._known[work.blocks] = self._simulate(work)
        ops = tuple(replace(row, pass_name=work.name, phase=work.phase) for row in known.ops)
        return replace(
            known, name=work.name, phase=work.phase, tokens=work.tokens, generated=work.generated, repeat=work.repeat,
            ops=ops,
        )  # fmt: skip

    def _simulate(self, work: Pass) -> PassResult:
        rule = self.machine.overlap
        whole = self._in_turn(work)
        if rule is None or rule.batches is None:
            return whole
        halves = self._halves(work, rule.multiprocessors)
        return halves if halves and halves.schedule.makespan_ps < whole.schedule.makespan_ps else whole

    def _halves(self, work: Pass, held: int) -> PassResult | None:
        """The pass with its requests in two halves, one of which computes while the other communicates; None where it
        has no collective, or work that cannot be halved.
        """
        gpu = left_over(self.machine, held)
        steps: dict[int, _Step] = {}
        linked_s = computed_s = 0.0
        for block in work.blocks:
            for op in block.ops:
                half = halved(op)
                if half is None:
                    return None
                step = steps[id(op)] = _step(gpu, half)
                linked_s += block.repeat * step.link_ps / PS_PER_S
                computed_s += (
                    block.repeat * step.cost.time_s(float(gpu.clock.maximum)) if step.cost is not None else 0.0
                )
        if not linked_s:
            return None
        beside = min(1.0, linked_s / computed_s) if computed_s else 0.0
        for key, step in steps.items():
            cost = shared(gpu, step.cost, beside) if step.cost is not None else None
            steps[key] = step._replace(cost=cost, decisions=step.decisions | {"overlap": "two halves of the requests"})
        order = [
            (block, layer, op, steps[id(op)])
            for block in work.blocks
            for layer in range(block.repeat)
            for op in block.ops
        ]
        costs = [step.cost for *_, step in order if step.cost is not None]
        running = sustained(self.machine, counted([*costs, *costs]))
        tables = {id(step): _tasks(step, running) for step in steps.values()}
        lengths = [(tables[id(step)][0], step.cost is None and step.link_ps > 0) for *_, step in order]
        return self._result(work, order, running, tables, alternated(lengths))

    def _in_turn(self, work: Pass) -> PassResult:
        gpu = self.machine
        steps = {id(op): _step(gpu, op) for block in work.blocks for op in block.ops}
        placed = {id(block): self._placed(block.ops, steps) for block in work.blocks}
        order = [
            (block, layer, op, step)
            for block in work.blocks
            for layer in range(block.repeat)
            for op, step in zip(block.ops, placed[id(block)], strict=True)
        ]
        running = sustained(gpu, counted(step.cost for *_, step in order if step.cost is not None))
        tables = {id(step): _tasks(step, running) for some in placed.values() for step in some}
        ends = accumulate(tables[id(step)][0] for *_, step in order)
        return self._result(work, order, running, tables, ([0, *ends][: len(order)],))

    def _result(
        self, work: Pass, order: Sequence[_Placed], running: Running, tables: Mapping[int, _Table],
        starts: Sequence[Sequence[int]],
    ) -> PassResult:  # fmt: skip
        """The result of operators that begin at `starts`, once for each part of the pass that goes through them."""
        gpu = self.machine
        columns: dict[str, list[int]] = {name: [] for name in (*_WORK, "unit", "op", "start", "end")}
        read = written = now = 0
        for number, (*_, step) in enumerate(order):
            length, tasks = tables[id(step)]
            for begin in (some[number] for some in starts):
                for task in tasks:
                    for name, value in task.items():
                        columns[name].append(value + begin if name in ("start", "end") else value)
                    columns["op"].append(number)
                now = max(now, begin + length)
                for part in step.cost.kernels() if step.cost is not None else ():
                    read, written = read + part.dram_read_bytes, written + part.dram_write_bytes
        ops = [_row(op, block, layer, work, step, running) for block, layer, op, step in order]
        table = {name: np.array(values, np.int64) for name, values in columns.items()}
        busy = int((read + written) * PS_PER_S / gpu.peak_bytes_per_s)
        burst = gpu.dram.burst_bytes
        counts = {"RD": -(-read // burst), "WR": -(-written // burst)}
        memory = MemoryCounts(
            commands={name: count for name, count in counts.items() if count},
            standby_ps={}, bytes_read=read, bytes_written=written, row_hits=0, row_misses=0, row_conflicts=0,
            channel_busy_ps=(busy,) * gpu.memory.channels,
        )  # fmt: skip
        return PassResult(
            name=work.name, phase=work.phase, tokens=work.tokens, generated=work.generated, repeat=work.repeat,
            ops=tuple(ops), units=units(gpu, running.clock_hz),
            tasks=TaskTable(unit=table["unit"], op=table["op"], **{name: table[name] for name in _WORK}),
            schedule=Schedule(table["start"], table["end"], table["end"], now, memory),
        )  # fmt: skip

    def _placed(self, ops: Sequence[Op], known: dict[int, _Step]) -> list[_Step]:
        """The steps of a block in order; products and collectives that are faster cut into parts that overlap are so
        cut.
        """
        gpu = self.machine
        steps = [known[id(op)] for op in ops]
        if gpu.overlap is None:
            return steps
        for i, product_first in pairs(ops).items():
            at, other = (i, i + 1) if product_first else (i + 1, i)
            product, carried = steps[at], steps[other]
            assert product.cost is not None
            whole_s = product.cost.time_s(float(gpu.clock.maximum)) + carried.link_ps / PS_PER_S
            found = overlapped(gpu, ops[at], ops[other], product_first, whole_s)
            if found is None:
                continue
            told = f"{len(found.parts)} parts beside "
            steps[at] = _Step(
                chain(found.parts), 0, 0, found.parts[0].kernels()[0].decisions | {"overlap": told + ops[other].name},
                found, product_first,
            )  # fmt: skip
            steps[other] = _Step(
                None, 0, 0, carried.decisions | {"overlap": told + ops[at].name, "algorithm": found.each.algorithm,
                                                 "protocol": found.each.protocol},
                found, not product_first,
            )  # fmt: skip
        return steps


def _step(gpu: Gpu, op: Op) -> _Step:
    """One operator costed. Raises ConfigError."""
    attrs = op.attrs
    if isinstance(attrs, CollectiveAttrs):
        if attrs.group == 1:
            return _Step(None, 0, 0, {})
        if gpu.links is None:
            raise ConfigError(f"{gpu.name} has no links to other devices, which {op.name} needs", key="links")
        found = collective(gpu.links, attrs.algorithm_kind, attrs.bytes, attrs.group)
        told = {"collective": f"{attrs.algorithm_kind} over {attrs.group}", "algorithm": found.algorithm,
                "protocol": found.protocol}  # fmt: skip
        return _Step(None, round(found.time_s * PS_PER_S), round(found.sent_bytes), told)
    if isinstance(attrs, TransferAttrs):
        inward = attrs.target_tier == "device"
        name = attrs.source_tier if inward else attrs.target_tier
        if name not in gpu.tiers:
            raise ConfigError(f"operator {op.name} needs tier {name!r}, but {without_tier(gpu)}", key="tiers")
        told = {"link": name, "direction": "read" if inward else "write"}
        return _Step(None, gpu.tier_data[name].transfer_ps(attrs.bytes, inward), attrs.bytes, told)
    cost = lower(gpu, op)
    if cost is None:
        return _Step(None, 0, 0, {})
    return _Step(launched(gpu, cost, str(op.kind), "chain"), 0, 0, cost.kernels()[0].decisions)


_WORK = (
    "macs", "vector_ops", "sram_read_bytes", "sram_write_bytes", "accumulator_bytes", "dram_read_bytes",
    "dram_write_bytes", "link_bytes",
)  # fmt: skip


def units(gpu: Gpu, clock_hz: float) -> tuple[UnitRow, ...]:
    """The units of a GPU; rates of tensor and vector units are those at the highest clock."""
    best = max(gpu.formats, key=gpu.peak_flops_per_s)
    vector = float(gpu.sm.count * gpu.sm.lanes * gpu.clock.maximum)
    link = float(gpu.links.bandwidth) if gpu.links is not None else 0.0
    return (
        UnitRow("tensor", "array", gpu.sm.count, gpu.peak_flops_per_s(best), "flop"),
        UnitRow("vector", "vector", gpu.sm.count, vector, "vector"),
        UnitRow("memory", "memory", gpu.memory.channels, gpu.peak_bytes_per_s, "byte"),
        UnitRow("interconnect", "interconnect", 1, link, "byte"),
        UnitRow("launch", "sync", 1, 0.0, "none"),
    )


def _tasks(step: _Step, running: Running) -> tuple[int, list[dict[str, int]]]:
    """(length in ps, tasks with times from the operator's start) of one operator.

    Of each kernel, launch and start come first; then compute and memory work side by side, the longer until the end.
    """
    if step.beside is not None:
        return _beside(step, step.beside, running)
    if step.cost is None:
        if not step.link_ps:
            return 0, [_task(LAUNCH, 0, 0)]
        return step.link_ps, [_task(LINK, 0, step.link_ps, link_bytes=step.link_bytes)]
    return _kernels(step.cost, running)


def _beside(step: _Step, pair: Overlapped, running: Running) -> tuple[int, list[dict[str, int]]]:
    """The same for one operator of a pair that overlaps: the leading one has the length of both, in which the other's
    tasks lie too.
    """
    total = round(pair.time_s(running.clock_hz) * PS_PER_S)
    origin = 0 if step.leads else -total
    tasks: list[dict[str, int]] = []
    for part, (start, _, sends, carried) in zip(pair.parts, pair.spans_s(running.clock_hz), strict=True):
        if step.cost is None:
            sent = round(pair.each.sent_bytes)
            tasks.append(_task(LINK, *(origin + round(at * PS_PER_S) for at in (sends, carried)), link_bytes=sent))
            continue
        begin = round(start * PS_PER_S)
        for task in _kernels(part, running)[1]:
            # Each time is rounded on its own; none may leave the pair's.
            times = {key: origin + min(total, begin + task[key]) for key in ("start", "end")}
            tasks.append({**task, **times})
    return (total if step.leads else 0), tasks


def _kernels(cost: Cost, running: Running) -> tuple[int, list[dict[str, int]]]:
    """Kernels after each other: (length in ps, tasks)."""
    tasks, now = [], 0
    for part in cost.kernels():
        fixed = round((part.fixed_s + part.fixed_cycles / running.clock_hz) * PS_PER_S)
        end = now + max(round(part.time_s(running.clock_hz) * PS_PER_S), fixed)
        core, memory = part.core_cycles / running.clock_hz, part.memory_s
        begin = now + fixed
        tasks.append(_task(LAUNCH, now, begin))
        length = end - begin
        unit = TENSOR if part.macs else VECTOR
        core_ps = length if core >= memory else min(length, round(core * PS_PER_S))
        memory_ps = length if memory > core else min(length, round(memory * PS_PER_S))
        tasks.append(_task(
            unit, begin, begin + core_ps, macs=part.macs, vector_ops=part.vector_results, sram_read_bytes=part.l2_bytes
        ))  # fmt: skip
        if part.dram_read_bytes or part.dram_write_bytes:
            tasks.append(_task(
                MEMORY, begin, begin + memory_ps, dram_read_bytes=part.dram_read_bytes,
                dram_write_bytes=part.dram_write_bytes,
            ))  # fmt: skip
        now = end
    return now, tasks


def _task(unit: int, start: int, end: int, **work: int) -> dict[str, int]:
    return {**dict.fromkeys(_WORK, 0), "unit": unit, "start": start, "end": end, **work}


def _row(op: Op, block: Block, layer: int, work: Pass, step: _Step, running: Running) -> OpRow:
    decisions = dict(step.decisions)
    if step.cost is not None:
        decisions["clock"] = f"{running.clock_hz / 1e6:.1f} MHz"
        decisions["bound"] = step.cost.bound(running.clock_hz)
    number_format = next((part.format for part in step.cost.kernels() if part.format), "") if step.cost else ""
    zeros, told = plain_row(op)
    if zeros is not None and decisions.get("weights") == "2:4":
        weights = op.inputs[1]
        told = {}
        zeros = replace(
            zeros, skipped_macs=op.macs - op.macs // 2, left_out_bytes=weights.bytes // 2,
            metadata_bytes=weights.elements // 8,
        )  # fmt: skip
    return OpRow(
        name=op.name, kind=str(op.kind), role=op.role, block=block.name, layer=layer, pass_name=work.name,
        phase=work.phase, flops=op.flops, vector_ops=op.vector_ops, read_bytes=op.read_bytes,
        write_bytes=op.write_bytes, format=number_format or _format(op), decisions={**decisions, **told}, zeros=zeros,
    )  # fmt: skip


def _format(op: Op) -> str:
    tensors = (*op.inputs, *op.outputs)
    return tensors[0].format if tensors else ""
