"""The table of operators of a report: one row for all equal operators of a block's repetitions, with time, work and
bounds.

Columns are plain lists keyed by name, so that files can be written without pandas. Every amount is that of the whole
run: summed over the operator's instances and the repeats of its pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.energy_row import COMPONENTS
from sim.joins import Ints, advances_ps, busy_ps, merge, spans_ps
from sim.passes import OpRow, PassResult

Columns = dict[str, list[object]]
"""A table: column name to values, all of one length."""

PS = 1e12


@dataclass(frozen=True, slots=True)
class Roofs:
    """What the machine does at best: FLOP/s by number format, vector operations/s, DRAM bytes/s; 0 for none."""

    flops_per_s: dict[str, float]
    vector_ops_per_s: float
    bytes_per_s: float

    def bound(self, flops: Mapping[str, int], vector_ops: int, dram_bytes: int) -> str:
        """Which roof takes longest for this work: `compute`, `vector` or `memory`; `none` without any work."""
        seconds = {
            "memory": dram_bytes / self.bytes_per_s if self.bytes_per_s else 0.0,
            "compute": sum(n / self.flops_per_s[f] for f, n in flops.items() if n),
            "vector": vector_ops / self.vector_ops_per_s if self.vector_ops_per_s else 0.0,
        }
        longest = max(seconds, key=lambda name: seconds[name])
        return longest if seconds[longest] > 0 else "none"


def unit_column(unit: str) -> str:
    """The operators' column of the busy time of `unit`: `dma.load` becomes `busy_dma_load_s`."""
    return f"busy_{unit.replace('.', '_').replace(' ', '_')}_s"


def unit_names(passes: Sequence[PassResult]) -> list[str]:
    """Names of all units that do work, in the order of the passes."""
    return list(dict.fromkeys(unit.name for result in passes for unit in result.units if unit.work != "none"))


def operator_columns(
    passes: Sequence[PassResult],
    work: Sequence[Mapping[str, Ints]],
    energy_j: Sequence[Mapping[str, NDArray[np.float64]]],
    roofs: Roofs,
) -> Columns:
    """The table of operators, rows in the order of passes and first appearance.

    `work` and `energy_j` are those of `work_by_operator` and `operator_energy_j`, one entry a pass.
    """
    units = unit_names(passes)
    rows: list[dict[str, object]] = []
    decisions: list[dict[str, str]] = []
    for result, sums, joules in zip(passes, work, energy_j, strict=True):
        group, members = _groups(result.ops)
        total = _summer(group, len(members), result.repeat)
        start, finish = spans_ps(result.tasks.op, result.schedule, len(result.ops))
        span_ps, advance_ps = total(finish - start), total(advances_ps(finish))
        time_ps = total(_active(result))
        busy = {name: total(ps) for name, ps in _busy_by_operator(result).items()}
        tasks = total(np.bincount(result.tasks.op, minlength=len(result.ops)))
        amount = {name: total(column) for name, column in sums.items()}
        part_j = {name: np.bincount(group, weights=column, minlength=len(members)) for name, column in joules.items()}
        of = {
            name: total(np.array([getattr(op, name) for op in result.ops], np.int64))
            for name in ("flops", "done_flops", "vector_ops", "read_bytes", "write_bytes")
        }
        for g, first in enumerate(members):
            op = result.ops[first]
            time_s, dram_bytes = time_ps[g] / PS, amount["dram_read_bytes"][g] + amount["dram_write_bytes"][g]
            flops, done, vector_ops = of["flops"][g], of["done_flops"][g], of["vector_ops"][g]
            row: dict[str, object] = {
                "pass": result.name,
                "phase": result.phase,
                "block": op.block,
                "operator": op.name,
                "kind": op.kind,
                "role": op.role,
                "format": op.format,
                "count": result.repeat * int(np.count_nonzero(group == g)),
                "tasks": tasks[g],
                "time_s": time_s,
                "span_s": span_ps[g] / PS,
                "advance_s": advance_ps[g] / PS,
            }
            row |= {unit_column(unit): busy[unit][g] / PS if unit in busy else 0.0 for unit in units}
            row |= {
                "flops": flops,
                "vector_ops": vector_ops,
                "compulsory_bytes": of["read_bytes"][g] + of["write_bytes"][g],
                "dram_bytes": dram_bytes,
                "dram_read_bytes": amount["dram_read_bytes"][g],
                "dram_write_bytes": amount["dram_write_bytes"][g],
                "scratchpad_bytes": amount["sram_read_bytes"][g] + amount["sram_write_bytes"][g],
                "executed_macs": amount["macs"][g] + amount["pim_macs"][g],
                "skipped_macs": (flops - done) // 2,
                "pim_macs": amount["pim_macs"][g],
                "intensity_flop_per_byte": done / dram_bytes if dram_bytes else None,
                "achieved_flops_per_s": done / time_s if time_s else None,
                "bound": "pim" if amount["pim_macs"][g] else roofs.bound({op.format: done}, vector_ops, dram_bytes),
                "energy_j": float(sum(part_j[c][g] for c in COMPONENTS)),
            }
            row |= {f"energy_{c}_j": float(part_j[c][g]) for c in COMPONENTS}
            rows.append(row)
            decisions.append(_decisions([result.ops[i] for i in np.flatnonzero(group == g)]))
    names = sorted({name for chosen in decisions for name in chosen})
    for row, chosen in zip(rows, decisions, strict=True):
        row |= {f"decision_{name}": chosen.get(name, "") for name in names}
    return {name: [row[name] for row in rows] for name in rows[0]} if rows else {}


def _groups(ops: Sequence[OpRow]) -> tuple[Ints, list[int]]:
    """The group of each operator (equal block and name), and the first operator of each group."""
    number: dict[tuple[str, str], int] = {}
    members: list[int] = []
    group = np.empty(len(ops), np.int64)
    for i, op in enumerate(ops):
        key = (op.block, op.name)
        if key not in number:
            number[key] = len(members)
            members.append(i)
        group[i] = number[key]
    return group, members


def _summer(group: Ints, groups: int, repeat: int) -> Callable[[NDArray[np.integer]], list[int]]:
    def total(column: NDArray[np.integer]) -> list[int]:
        sums = np.zeros(groups, np.int64)
        np.add.at(sums, group, column)
        return [repeat * int(value) for value in sums]

    return total


def _busy_by_operator(result: PassResult) -> dict[str, Ints]:
    """For each unit, the time in which it works for each operator: {unit: int64[operators]} in ps."""
    tasks, schedule, ops = result.tasks, result.schedule, len(result.ops)
    union = merge(tasks.unit * ops + tasks.op, schedule.start_ps, schedule.release_ps)
    busy = busy_ps(union, ops * len(result.units)).reshape(len(result.units), ops)
    return {unit.name: busy[i] for i, unit in enumerate(result.units)}


def _active(result: PassResult) -> Ints:
    """Time in which any unit works for each operator: int64[operators] in ps."""
    works = np.array([unit.work != "none" for unit in result.units], bool)[result.tasks.unit]
    schedule = result.schedule
    union = merge(result.tasks.op[works], schedule.start_ps[works], schedule.release_ps[works])
    return busy_ps(union, len(result.ops))


def _decisions(ops: Sequence[OpRow]) -> dict[str, str]:
    """What the mapper chose for the operators of a group; choices that differ are joined by ` | ` in order of
    appearance.
    """
    found: dict[str, dict[str, None]] = {}
    for op in ops:
        for name, value in op.decisions.items():
            found.setdefault(name, {})[str(value)] = None
    return {name: " | ".join(values) for name, values in found.items()}
