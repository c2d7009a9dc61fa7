"""The report of a run: what was asked, how long each pass took, where the time and the energy went, and the files of
it.

A report is a set of queries on the passes' tables. Amounts of the whole run count each pass `repeat` times; everything
but `wall_s` is a function of the inputs alone, byte for byte.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sim.area import area_mm2, cost_usd
from sim.energy import total_counts
from sim.energy_row import COMPONENTS, EnergyRow
from sim.hints import mac_energy, told
from sim.joins import busy_ps, merge, work_by_operator
from sim.kinds import EXACT, account_of
from sim.output import result_folder
from sim.passes import PassResult
from sim.report_tables import PS, Columns, Roofs, operator_columns, unit_names
from sim.run_info import RunInfo, run_info
from sim.sparse_report import saved_bytes, sparsity_summary, zero_totals
from sim.timeline import Timeline, build_timeline, chrome_trace

if TYPE_CHECKING:
    from pandas import DataFrame

    from sim.machine import Machine
    from workloads import Workload
    from workloads.trace import Hint

SCHEMA = "opcycle/summary/1"


@dataclass(frozen=True)
class Report:
    """The result of a run of `passes` on `machine`; `wall_s` is how long the simulation took on the host."""

    machine: Machine
    workload: Workload | RunInfo
    passes: tuple[PassResult, ...]
    wall_s: float = 0.0
    hints: tuple[Hint, ...] = ()
    fidelity: str = EXACT

    @cached_property
    def info(self) -> RunInfo:
        """Names and inputs of the run."""
        return self.workload if isinstance(self.workload, RunInfo) else run_info(self.machine, self.workload)

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The totals of the run, as in `summary.json`; every key is explained in docs/report.md."""
        time_s = self._time_ps / PS
        energy_j = math.fsum(row.energy_j for row in self.energy_rows)
        flops, done = self._sum_of_ops("flops"), self._sum_of_ops("done_flops")
        dram_bytes = self._counts.bytes_read + self._counts.bytes_written
        tokens = self._tokens
        step_s, ttft_s = self._mean_s("decode"), self._total_s("prefill")
        peak, bandwidth = self._peak_flops_per_s, self._roofs.bytes_per_s
        area, cost = area_mm2(self.machine), cost_usd(self.machine)
        return {
            "schema": SCHEMA,
            "hardware": self.info.hardware,
            "workload": self.info.workload,
            "model": self.info.model,
            "batch": self.info.batch,
            "methods": list(self.info.methods),
            "hints": told(self.machine, self.hints),
            "time_s": time_s,
            "energy_j": energy_j,
            "power_w": energy_j / time_s if time_s else None,
            "flops": flops,
            "vector_ops": self._sum_of_ops("vector_ops"),
            "dram_bytes": dram_bytes,
            "weights_bytes": self.info.weights_bytes,
            "kv_bytes": self.info.kv_bytes,
            "memory_capacity_bytes": self.machine.capacity_bytes,
            "tokens": tokens,
            "tokens_per_s": tokens / time_s if time_s else None,
            "time_per_step_s": step_s,
            "ttft_s": ttft_s,
            "tpot_s": self._tpot_s,
            "utilization": self._utilization,
            "busiest_unit": self._busiest_unit,
            "mac_utilization": (done - self._pim_flops) / (peak * time_s) if peak and time_s else 0.0,
            "memory_bandwidth_utilization": dram_bytes / (bandwidth * time_s) if bandwidth and time_s else 0.0,
            "energy_breakdown_j": {
                component: math.fsum(row.energy_j for row in self.energy_rows if row.component == component)
                for component in COMPONENTS
            },
            "roofline": {
                "peak_flops_per_s": peak,
                "peak_bytes_per_s": bandwidth,
                "peak_scratchpad_bytes_per_s": self.machine.scratchpad_bytes_per_s,
                "peak_vector_ops_per_s": self._roofs.vector_ops_per_s,
                "peak_flops_per_s_by_format": dict(self._roofs.flops_per_s),
                "intensity_flop_per_byte": done / dram_bytes if dram_bytes else None,
                "achieved_flops_per_s": done / time_s if time_s else None,
                "bound": self._roofs.bound(self._flops_by_format, self._sum_of_ops("vector_ops"), dram_bytes),
            },
            "overheads": self._overheads,
            "sparsity": sparsity_summary(self.machine, self.passes),
            "memory": {
                "bytes_read": self._counts.bytes_read,
                "bytes_written": self._counts.bytes_written,
                "bytes_forwarded": self._counts.bytes_forwarded,
                "bytes_merged": self._counts.bytes_merged,
                "commands": dict(self._counts.commands),
                "row_hits": self._counts.row_hits,
                "row_misses": self._counts.row_misses,
                "row_conflicts": self._counts.row_conflicts,
            },
            "passes": [
                {
                    "name": p.name,
                    "phase": p.phase,
                    "repeat": p.repeat,
                    "time_s": p.schedule.makespan_ps / PS,
                    "tokens": p.tokens,
                    "generated": p.generated,
                    "tasks": len(p.tasks.unit),
                }
                for p in self.passes
            ],
            "pim": self._pim(time_s),
            "attention": self._decided("attention"),
            **self.machine.facts,
            "area_mm2": None if area is None else math.fsum(area.values()),
            "area_breakdown_mm2": area,
            "cost_usd": None if cost is None else math.fsum(cost.values()),
            "cost_breakdown_usd": cost,
            "energy_table": self.machine.energy.table,
            "technology": self.machine.technology,
            "fidelity": self.fidelity,
            "provenance": dict(self.info.provenance),
            "wall_s": self.wall_s,
        }

    @cached_property
    def operators(self) -> DataFrame:
        """One row for equal operators of a block's repetitions, as in docs/report.md; missing values are NaN."""
        from pandas import DataFrame

        missing = {name for name, values in self.operator_columns.items() if None in values}
        return DataFrame(self.operator_columns).astype(dict.fromkeys(missing, "float64"))

    @cached_property
    def energy(self) -> DataFrame:
        """The rows of energy.csv: component, subcomponent, count, unit, pj_each, energy_j, share, source."""
        from pandas import DataFrame

        return DataFrame(self.energy_columns)

    @cached_property
    def timeline(self) -> DataFrame:
        """Who worked for which operator when: unit, operator, start_s, end_s, and pass, block, layer."""
        from pandas import DataFrame

        line = self._timeline
        ops = [self.passes[r].ops[o] for r, o in zip(line.result.tolist(), line.op.tolist(), strict=True)]
        return DataFrame(
            {
                "unit": np.array(line.units, object)[line.unit],
                "operator": [op.name for op in ops],
                "start_s": line.start_ps / PS,
                "end_s": line.end_ps / PS,
                "pass": np.array([p.name for p in self.passes], object)[line.result],
                "block": [op.block for op in ops],
                "layer": [op.layer for op in ops],
            }
        )

    @cached_property
    def energy_rows(self) -> tuple[EnergyRow, ...]:
        """The energy account; its rows sum to `energy_j` exactly."""
        account = account_of(self.machine)
        return tuple(account.energy_rows(self.machine, self.passes, self._work, self._mac_energy))

    @cached_property
    def operator_columns(self) -> Columns:
        """The table of operators as plain columns."""
        account = account_of(self.machine)
        joules = account.operator_energy_j(self.machine, self.passes, self._work, self.energy_rows, self._mac_energy)
        return operator_columns(self.passes, self._work, joules, self._roofs)

    @cached_property
    def energy_columns(self) -> Columns:
        """The energy account as plain columns, with each row's share of the total."""
        total = math.fsum(row.energy_j for row in self.energy_rows)
        columns: Columns = {
            name: [getattr(row, name) for row in self.energy_rows]
            for name in ("component", "subcomponent", "count", "unit", "pj_each", "energy_j")
        }
        columns["share"] = [row.energy_j / total if total else 0.0 for row in self.energy_rows]
        columns["source"] = [row.source for row in self.energy_rows]
        return columns

    def write(self, folder: str | Path, pictures: bool = True, page: bool = False) -> Path:
        """Write all files of docs/report.md into `folder`, which appears complete or not at all; returns it.

        `page` adds report.html, which holds all of it in one file.

        Raises ConfigError where the folder cannot be written or holds something else.
        """
        with result_folder(folder) as target:
            (target / "operators.csv").write_text(csv_text(self.operator_columns), encoding="utf-8")
            write_parquet(self.operator_columns, target / "operators.parquet")
            (target / "energy.csv").write_text(csv_text(self.energy_columns), encoding="utf-8")
            text = "\n".join(chrome_trace(self.passes, self._timeline)) + "\n"
            (target / "timeline.json").write_text(text, encoding="utf-8")
            (target / "hwconfig.yaml").write_text(self.info.hwconfig_yaml, encoding="utf-8")
            (target / "workload.yaml").write_text(self.info.workload_yaml, encoding="utf-8")
            (target / "summary.json").write_text(json_text(self.summary), encoding="utf-8")
            if pictures:
                from analysis.figures import draw_all

                draw_all(target)
            if page:
                from analysis.pages import run_page

                (target / "report.html").write_text(run_page(target), encoding="utf-8")
        return Path(folder)

    @cached_property
    def _mac_energy(self) -> dict[str, float]:
        return mac_energy(self.hints)

    @cached_property
    def _work(self) -> list[dict[str, Any]]:
        return [work_by_operator(p) for p in self.passes]

    @cached_property
    def _timeline(self) -> Timeline:
        return build_timeline(self.passes)

    @cached_property
    def _counts(self) -> Any:
        return total_counts(self.passes)

    @cached_property
    def _time_ps(self) -> int:
        return sum(p.repeat * p.schedule.makespan_ps for p in self.passes)

    @property
    def _tokens(self) -> int:
        """Tokens generated, or processed where no pass after a prefill generates any."""
        if any(p.phase == "decode" for p in self.passes) or self._generating:
            return sum(p.repeat * p.generated for p in self.passes)
        return sum(p.repeat * p.tokens for p in self.passes)

    @property
    def _generating(self) -> bool:
        """Whether tokens come from other passes than prefills: decode steps, verified drafts, denoised blocks."""
        return any(p.generated for p in self.passes if p.phase != "prefill")

    @property
    def _tpot_s(self) -> float | None:
        """Mean time of a request's token after the first pass; drafts that are verified count as their passes do.

        A decode pass gives each request that is still there a token, or several where tokens are guessed in parallel.
        """
        step_s = self._mean_s("decode")
        if step_s is not None:
            steps = self._of_phase("decode")
            most = (self.info.batch or 0) * sum(p.repeat for p in steps)
            return step_s / max(1.0, sum(p.repeat * p.generated for p in steps) / most if most else 1.0)
        if not self._generating:
            return None
        later = [p for p in self.passes if p.phase != "prefill"]
        time_ps = sum(p.repeat * p.schedule.makespan_ps for p in later)
        return time_ps / PS * (self.info.batch or 1) / sum(p.repeat * p.generated for p in later)

    def _of_phase(self, phase: str) -> list[PassResult]:
        return [p for p in self.passes if p.phase == phase]

    def _total_ps(self, phase: str) -> int:
        return sum(p.repeat * p.schedule.makespan_ps for p in self._of_phase(phase))

    def _total_s(self, phase: str) -> float | None:
        return self._total_ps(phase) / PS if self._of_phase(phase) else None

    def _mean_s(self, phase: str) -> float | None:
        found = self._of_phase(phase)
        return self._total_ps(phase) / (PS * sum(p.repeat for p in found)) if found else None

    def _sum_of_ops(self, name: str) -> int:
        return sum(p.repeat * sum(getattr(op, name) for op in p.ops) for p in self.passes)

    @cached_property
    def _flops_by_format(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for p in self.passes:
            for op in p.ops:
                if op.flops:
                    found[op.format] = found.get(op.format, 0) + p.repeat * op.done_flops
        return dict(sorted(found.items()))

    @cached_property
    def _roofs(self) -> Roofs:
        vector = {u.name: u.peak_per_s for p in self.passes for u in p.units if u.work == "vector"}
        formats = self._flops_by_format or dict.fromkeys(sorted(self.machine.formats)[:1], 0)
        return Roofs(
            flops_per_s={name: self.machine.peak_flops_per_s(name) for name in formats},
            vector_ops_per_s=sum(vector.values()),
            bytes_per_s=self.machine.peak_bytes_per_s,
        )

    @property
    def _peak_flops_per_s(self) -> float:
        """The peak for the run's mix of formats: the rate at which the arrays would do all its FLOPs back to back."""
        peaks = self._roofs.flops_per_s
        if len(set(peaks.values())) == 1:
            return next(iter(peaks.values()))
        return sum(self._flops_by_format.values()) / sum(n / peaks[f] for f, n in self._flops_by_format.items())

    @cached_property
    def _utilization(self) -> dict[str, float]:
        """Share of the run in which each unit has a task under way; the memory's is that of its data buses."""
        busy = dict.fromkeys(unit_names(self.passes), 0.0)
        for p in self.passes:
            schedule = p.schedule
            union = busy_ps(merge(p.tasks.unit, schedule.start_ps, schedule.release_ps), len(p.units))
            channels = schedule.memory.channel_busy_ps
            for i, unit in enumerate(p.units):
                if unit.name not in busy:
                    continue
                # Of the memory and the units in it, the mean over channels.
                each = {"memory": channels, "pim": schedule.memory.pim_busy_ps}.get(unit.kind, ())
                busy[unit.name] += p.repeat * (sum(each) / len(each) if each else int(union[i]))
        return {name: ps / self._time_ps if self._time_ps else 0.0 for name, ps in busy.items()}

    @cached_property
    def _pim_flops(self) -> int:
        """FLOPs of the operators that ran in memory."""
        return sum(
            p.repeat * op.flops
            for p, work in zip(self.passes, self._work, strict=True)
            for op, macs in zip(p.ops, work["pim_macs"].tolist(), strict=True)
            if macs
        )

    def _pim(self, time_s: float) -> dict[str, Any] | None:
        """What units in the memory did; None for a machine without any."""
        units = {unit.name: unit.peak_per_s for p in self.passes for unit in p.units if unit.kind == "pim"}
        if not units:
            return None
        (name, peak), *_ = units.items()
        return {
            "peak_flops_per_s": peak,
            "flops": self._pim_flops,
            "executed_macs": sum(
                p.repeat * int(w["pim_macs"].sum()) for p, w in zip(self.passes, self._work, strict=True)
            ),
            "utilization": self._utilization.get(name, 0.0),
            "mac_utilization": self._pim_flops / (peak * time_s) if peak and time_s else 0.0,
            "operators": sorted(
                {op.name for p in self.passes for op in p.ops if op.decisions.get("unit") == "memory" and op.flops}
            ),
            "interleaved": any("#" in op.name for p in self.passes for op in p.ops),
        }

    @property
    def _busiest_unit(self) -> str | None:
        """The unit with the highest utilisation, the first of equals; None where nothing worked.

        DMA engines are left out: one is busy while its transfer waits for the memory.
        """
        engines = {unit.name for p in self.passes for unit in p.units if unit.kind == "dma"}
        busy = {name: share for name, share in self._utilization.items() if name not in engines and share}
        return max(busy, key=lambda unit: busy[unit], default=None)

    @cached_property
    def _overheads(self) -> dict[str, int]:
        """What the machine did beyond the trace, so that both add up.

        executed MACs = flops / 2 + padding_macs + predictor_macs - skipped_macs; dram_bytes = compulsory_bytes
        - left_out_bytes + metadata_bytes + refetched_bytes - kept_on_chip_bytes + burst_padding_bytes
        - write_queue_hit_bytes: zeros that are not stored and what says where they are; what filled up bursts, and
        whole bursts that the write queue answered or took without a DRAM command.
        """
        executed = compulsory = refetched = kept = 0
        zeros = zero_totals(self.passes)
        for p, work in zip(self.passes, self._work, strict=True):
            executed += p.repeat * int(work["macs"].sum() + work["pim_macs"].sum())
            moved = work["dram_read_bytes"] + work["dram_write_bytes"]
            dense = np.array([op.read_bytes + op.write_bytes for op in p.ops], np.int64)
            wanted = dense - np.array([saved_bytes(op) for op in p.ops], np.int64)
            compulsory += p.repeat * int(dense.sum())
            refetched += p.repeat * int(np.maximum(moved - wanted, 0).sum())
            kept += p.repeat * int(np.maximum(wanted - moved, 0).sum())
        moved_bytes = compulsory - zeros["left_out_bytes"] + zeros["metadata_bytes"] + refetched - kept
        queue_hits = self._counts.bytes_forwarded + self._counts.bytes_merged
        return {
            "executed_macs": executed,
            "padding_macs": executed + zeros["skipped_macs"] - zeros["predictor_macs"] - self._sum_of_ops("flops") // 2,
            "predictor_macs": zeros["predictor_macs"],
            "skipped_macs": zeros["skipped_macs"],
            "compulsory_bytes": compulsory,
            "left_out_bytes": zeros["left_out_bytes"],
            "metadata_bytes": zeros["metadata_bytes"],
            "refetched_bytes": refetched,
            "kept_on_chip_bytes": kept,
            "burst_padding_bytes": self._counts.bytes_read + self._counts.bytes_written + queue_hits - moved_bytes,
            "write_queue_hit_bytes": queue_hits,
        }

    def _decided(self, kind: str) -> str | None:
        """The decision named `kind` of the operators of that kind; `mixed` where they differ, None without any."""
        chosen = {op.decisions.get(kind) for p in self.passes for op in p.ops if op.kind == kind} - {None}
        return next(iter(chosen)) if len(chosen) == 1 else ("mixed" if chosen else None)


def json_text(value: Any) -> str:
    """JSON with sorted keys and no values that JSON lacks."""
    return json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n"


def csv_text(columns: Columns) -> str:
    """Columns as CSV with a header; missing values are empty, floats are written so that they read back equal."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*columns.values(), strict=True))
    return out.getvalue()


def write_parquet(columns: Columns, path: Path) -> None:
    """Columns as Parquet, typed by their values. The CSV reader fills the table: other ways in would import pandas."""
    import pyarrow as pa
    import pyarrow.csv as pc
    import pyarrow.parquet as pq

    types = {name: _arrow_type(pa, values) for name, values in columns.items()}
    text = io.BytesIO(csv_text(columns).encode())
    table = pc.read_csv(text, convert_options=pc.ConvertOptions(column_types=types)) if columns else pa.table({})
    pq.write_table(table, path)


def _arrow_type(pa: Any, values: Sequence[object]) -> Any:
    kinds = {type(value) for value in values} - {type(None)}
    if kinds == {int} and all(abs(value) < 2**63 for value in values if isinstance(value, int)):
        return pa.int64()
    return pa.float64() if kinds <= {float, int} else pa.string()
