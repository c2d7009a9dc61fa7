"""Energy of a run on a GPU: events at the voltage of the clock that they ran at, the memory's bytes, and what always
flows.

The account has the same rows as that of other machines and serves the same reports.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sim.energy_row import COMPONENTS, EnergyRow
from sim.gpu.power import active_w, voltage
from sim.gpu.schema import Gpu
from sim.joins import advances_ps, spans_ps, work_by_operator
from sim.passes import PassResult

Work = Mapping[str, NDArray[np.int64]]
SOURCE = "energy section of the machine, at the voltage of {clock:.0f} MHz"


def clock_hz(gpu: Gpu, result: PassResult) -> float:
    """The clock that a pass ran at; the highest where no kernel ran."""
    told = next((op.decisions["clock"] for op in result.ops if "clock" in op.decisions), None)
    return float(told.split()[0]) * 1e6 if told else float(gpu.clock.maximum)


def energy_rows(
    machine: Gpu,
    passes: Sequence[PassResult],
    work: Sequence[Work] | None = None,
    mac_energy: Mapping[str, float] | None = None,
) -> list[EnergyRow]:
    """Every row of the energy of a run, in the order of COMPONENTS; rows without events are left out.

    `mac_energy` scales the energy of a multiply-accumulate by number format.
    """
    energy, asked = machine.energy, mac_energy or {}
    rows = []
    for result, sums in zip(passes, work or [work_by_operator(p) for p in passes], strict=True):
        clock = clock_hz(machine, result)
        scale = voltage(machine, clock) ** 2
        source = SOURCE.format(clock=clock / 1e6)
        times = result.repeat
        macs: dict[str, int] = {}
        for op, count in zip(result.ops, sums["macs"].tolist(), strict=True):
            if count:
                macs[op.format] = macs.get(op.format, 0) + times * count
        for name, count in sorted(macs.items()):
            rows.append(
                EnergyRow("array", f"mac {name}", count, "MAC", energy.mac[name] * asked.get(name, 1.0) * scale, source)
            )
        for component, name, column, unit, each in (
            ("vector", "instructions", "vector_ops", "result", energy.vector * scale),
            ("wire", "L2 to multiprocessors", "sram_read_bytes", "byte", energy.l2_byte * scale),
        ):
            rows.append(EnergyRow(component, name, times * int(sums[column].sum()), unit, each, source))
        moved = int(sums["dram_read_bytes"].sum() + sums["dram_write_bytes"].sum())
        told = "energy.dram_byte of the machine"
        rows.append(EnergyRow("dram", "read and write", times * moved, "byte", energy.dram_byte, told))
        rows.append(EnergyRow(
            "link", "interconnect", 8 * times * int(sums["link_bytes"].sum()), "bit", _link_pj(machine),
            "links.energy of the machine",
        ))  # fmt: skip
        time_ps = times * result.schedule.makespan_ps
        rows.append(EnergyRow("leakage", "idle", time_ps, "ps", machine.power.idle, "power.idle of the machine"))
        # Before its first kernel a device waits for others, as in a pipeline.
        told = "power.active, " + source
        active_ps = time_ps - times * int(result.schedule.start_ps.min(initial=result.schedule.makespan_ps))
        rows.append(EnergyRow("leakage", "active", active_ps, "ps", active_w(machine, clock), told))
    return sorted(_merged(rows), key=lambda row: COMPONENTS.index(row.component))


def _merged(rows: Sequence[EnergyRow]) -> list[EnergyRow]:
    """Rows that differ in their count only are one; rows without events are left out."""
    found: dict[tuple[str, str, float], EnergyRow] = {}
    for row in rows:
        key = (row.component, row.subcomponent, row.pj_each)
        known = found.get(key)
        count = row.count + (known.count if known else 0)
        found[key] = EnergyRow(row.component, row.subcomponent, count, row.unit, row.pj_each, row.source)
    return [row for row in found.values() if row.count]


def _link_pj(gpu: Gpu) -> float:
    return gpu.links.energy if gpu.links is not None else 0.0


def operator_energy_j(
    machine: Gpu,
    passes: Sequence[PassResult],
    work: Sequence[Work],
    rows: Sequence[EnergyRow],
    mac_energy: Mapping[str, float] | None = None,
) -> list[dict[str, NDArray[np.float64]]]:
    """Energy of each operator with all repeats of its pass: for each pass {component: float64[operators]}, in joules.

    What always flows is shared out by the time that each operator added to the run; `rows` are those of `energy_rows`.
    """
    energy, asked, parts = machine.energy, mac_energy or {}, []
    for result, sums in zip(passes, work, strict=True):
        clock = clock_hz(machine, result)
        scale = voltage(machine, clock) ** 2
        once = 1e-12 * result.repeat
        mac = np.array([energy.mac.get(op.format, 0.0) * asked.get(op.format, 1.0) for op in result.ops], np.float64)
        advance = advances_ps(spans_ps(result.tasks.op, result.schedule, len(result.ops))[1])
        always = machine.power.idle + active_w(machine, clock)
        joules = {
            "array": once * sums["macs"] * mac * scale,
            "vector": once * sums["vector_ops"] * energy.vector * scale,
            "wire": once * sums["sram_read_bytes"] * energy.l2_byte * scale,
            "dram": once * (sums["dram_read_bytes"] + sums["dram_write_bytes"]) * energy.dram_byte,
            "link": once * 8 * sums["link_bytes"] * _link_pj(machine),
            "leakage": once * advance * always,
        }
        none = np.zeros(len(result.ops))
        parts.append({name: np.asarray(joules.get(name, none), np.float64) for name in COMPONENTS})
    return parts
