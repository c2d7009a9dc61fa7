"""Turns counts of what happened into energy: on-chip events by a table of one technology node, DRAM by its currents.

Energy is worked out after the run from the same counts that the report shows, and never influences time. Every row
keeps the sentence that vouches for its energy per event, so that a total can be traced to its sources.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sim.arithmetic import unit_factors
from sim.document import Document
from sim.dram_energy import dram_rows
from sim.energy_row import COMPONENTS, EnergyRow
from sim.energy_tables import EnergyTable, load_table, mac_cost, source_text
from sim.joins import advances_ps, spans_ps, work_by_operator
from sim.passes import MemoryCounts, PassResult, sum_counts
from sim.pim.energy import PIM_ROWS
from sim.tiers import tier_document

if TYPE_CHECKING:
    from sim.machine import Chip, Machine

MIB = 2**20


@dataclass(frozen=True, slots=True)
class OnChipRates:
    """Picojoules per event of one machine's chip; what `energy_rows` and the shares by operator multiply."""

    table: EnergyTable
    document: Document
    sram_read_pj_per_byte: float
    sram_write_pj_per_byte: float
    wire_pj_per_byte: float
    wire_mm: float
    scratchpad_bytes: int
    sram_bytes: int
    lanes: int
    chip: Chip
    mac_energy: Mapping[str, float]

    def mac_pj(self, number_format: str) -> tuple[str, float, str]:
        """(entry's key, picojoules of a multiply-accumulate on the chip's kind of unit, remark) for a format."""
        key, cost = mac_cost(self.table, number_format)
        factor, _, remark = unit_factors(self.chip, number_format)
        asked = self.mac_energy.get(number_format, 1.0)
        if asked != 1.0:
            remark = "; ".join(part for part in (remark, f"energy x {asked:g} as the method asks") if part)
        return key, cost.energy * factor * asked, remark

    @property
    def leakage_w(self) -> tuple[float, float]:
        """Watts of all on-chip memory and of all lanes."""
        return self.table.leakage.sram_per_mib * self.sram_bytes / MIB, self.table.leakage.mac_lane * self.lanes


def on_chip_rates(machine: Machine, mac_energy: Mapping[str, float] | None = None) -> OnChipRates:
    """The rates of the table that `machine.energy` names, for the machine's sizes. Raises ConfigError.

    `mac_energy` scales the energy of a multiply-accumulate by number format.
    """
    table, document = load_table(machine.energy.table)
    chip = machine.chip
    read, write = table.sram.access_pj_per_byte(chip.sram_access_bytes)
    return OnChipRates(
        table=table,
        document=document,
        sram_read_pj_per_byte=read,
        sram_write_pj_per_byte=write,
        wire_pj_per_byte=8 * table.wire.energy * machine.energy.wire_length,
        wire_mm=machine.energy.wire_length,
        scratchpad_bytes=chip.sram_access_bytes,
        sram_bytes=chip.sram_bytes,
        lanes=chip.lanes,
        chip=chip,
        mac_energy=mac_energy or {},
    )


def on_chip_rows(rates: OnChipRates, macs: Mapping[str, int], work: Mapping[str, int], time_ps: int) -> list[EnergyRow]:
    """Rows of the chip: `macs` by number format, `work` by column of a TaskTable, leakage over `time_ps`."""
    table = rates.table

    def source(key: str) -> str:
        return source_text(rates.document, key)

    rows = []
    for name in sorted(macs):
        key, each, remark = rates.mac_pj(name)
        accumulate = table.mac[key].accumulate
        note = f"{key} with {accumulate} sum; " if key == name else f"{name} as {key} with {accumulate} sum; "
        text = note + source(f"mac.{key}") + (f"; {remark}" if remark else "")
        rows.append(EnergyRow("array", f"mac {name}", macs[name], "MAC", each, text))
    for name in sorted(macs):
        _, cost = mac_cost(table, name)
        bytes_moved = macs[name] * cost.register_bytes
        rows.append(
            EnergyRow(
                "array",
                f"pipeline registers {name}",
                bytes_moved,
                "byte",
                table.register_.pipeline_per_byte,
                source("register.pipeline_per_byte"),
            )
        )
    operations = work["vector_ops"]
    sram = f"memory of {min(rates.scratchpad_bytes, table.sram.macro)} B; "
    moved_bytes = work["sram_read_bytes"] + work["sram_write_bytes"]
    memory_w, lanes_w = rates.leakage_w
    rows += [
        EnergyRow("vector", "arithmetic", operations, "operation", table.vector.operation, source("vector.operation")),
        EnergyRow(
            "vector",
            "register file",
            operations * table.vector.register_bytes,
            "byte",
            table.register_.file_per_byte,
            source("register.file_per_byte"),
        ),
        EnergyRow(
            "accumulator",
            "access",
            work["accumulator_bytes"],
            "byte",
            table.accumulator.energy_per_byte,
            source("accumulator.energy_per_byte"),
        ),
        EnergyRow(
            "scratchpad",
            "read",
            work["sram_read_bytes"],
            "byte",
            rates.sram_read_pj_per_byte,
            sram + source("sram.points.0"),
        ),
        EnergyRow(
            "scratchpad",
            "write",
            work["sram_write_bytes"],
            "byte",
            rates.sram_write_pj_per_byte,
            sram + source("sram.points.0"),
        ),
        EnergyRow(
            "wire",
            "scratchpad to units",
            moved_bytes,
            "byte",
            rates.wire_pj_per_byte,
            f"{rates.wire_mm:g} mm; {source('wire.energy')}",
        ),
        EnergyRow(
            "leakage",
            "on-chip memory",
            time_ps,
            "ps",
            memory_w,
            f"{rates.sram_bytes / MIB:g} MiB; {source('leakage.sram_per_mib')}",
        ),
        EnergyRow(
            "leakage", "array lanes", time_ps, "ps", lanes_w, f"{rates.lanes} lanes; {source('leakage.mac_lane')}"
        ),
    ]
    return rows


def energy_rows(
    machine: Machine,
    passes: Sequence[PassResult],
    work: Sequence[Mapping[str, NDArray[np.int64]]] | None = None,
    mac_energy: Mapping[str, float] | None = None,
) -> list[EnergyRow]:
    """Every row of the energy of a run, in the order of COMPONENTS; rows without events are left out.

    `work` may hold `work_by_operator` of each pass where the caller has it. Each pass counts `repeat` times. Raises
    ConfigError where the machine names an unknown table, or a number format that the table lacks.
    """
    rates = on_chip_rates(machine, mac_energy)
    totals: dict[str, int] = {}
    macs: dict[str, int] = {}
    time_ps = 0
    for result, sums in zip(passes, work or [work_by_operator(p) for p in passes], strict=True):
        for name, column in sums.items():
            totals[name] = totals.get(name, 0) + result.repeat * int(column.sum())
        for number_format, count in _macs_by_format(result, sums["macs"]).items():
            macs[number_format] = macs.get(number_format, 0) + result.repeat * count
        time_ps += result.repeat * result.schedule.makespan_ps
    rows = on_chip_rows(rates, macs, totals or dict.fromkeys(_NO_WORK, 0), time_ps)
    rows += dram_rows(machine.dram, total_counts(passes), machine.energy.dram_io)
    rows += link_rows(machine, passes)
    rows = [row for row in rows if row.count]
    return sorted(rows, key=lambda row: COMPONENTS.index(row.component))


def link_rows(machine: Machine, passes: Sequence[PassResult]) -> list[EnergyRow]:
    """Rows of further memories: for every bit moved the link, and the memory's side by direction; and what is sent to
    other devices.
    """
    bits: dict[tuple[str, bool], int] = {}
    for result in passes:
        for (name, read), column in _link_bits(result).items():
            bits[name, read] = bits.get((name, read), 0) + result.repeat * int(column.sum())
    rows = []
    for name in dict.fromkeys(name for name, _ in bits):
        tier, use = machine.tier_data[name], machine.tiers[name]
        document = tier_document(use.tier, dict(use.settings))
        moved = bits.get((name, True), 0) + bits.get((name, False), 0)
        rows.append(
            EnergyRow("link", f"{name} link", moved, "bit", tier.link_energy, source_text(document, "link_energy"))
        )
        for read, word in ((True, "read"), (False, "write")):
            each = tier.memory_pj_per_bit(read)
            text = source_text(document, f"{word}.energy")
            if tier.sizes:
                text += f"; {source_text(document, 'sizes')}"
            rows.append(EnergyRow("link", f"{name} {word}", bits.get((name, read), 0), "bit", each, text))
    sent = sum(result.repeat * int(_sent_bits(result).sum()) for result in passes)
    if sent:
        each = machine.interconnect_pj_per_bit
        rows.append(EnergyRow("link", "interconnect", sent, "bit", each, "links.energy of the machine"))
    return rows


def _sent_bits(result: PassResult) -> NDArray[np.int64]:
    """Bits that each operator sends to other devices: int64[operators]."""
    column = np.zeros(len(result.ops), np.int64)
    np.add.at(column, result.tasks.op, 8 * result.tasks.link_bytes)
    return np.where(["collective" in op.decisions for op in result.ops], column, 0)


def _link_bits(result: PassResult) -> dict[tuple[str, bool], NDArray[np.int64]]:
    """Bits that each operator moves over each link: {(tier, towards the device): int64[operators]}."""
    found: dict[tuple[str, bool], NDArray[np.int64]] = {}
    if not any(unit.kind == "link" for unit in result.units):
        return found
    column = np.zeros(len(result.ops), np.int64)
    np.add.at(column, result.tasks.op, 8 * result.tasks.link_bytes)
    for name in dict.fromkeys(op.decisions["link"] for op in result.ops if "link" in op.decisions):
        for read in (True, False):
            word = "read" if read else "write"
            of = [op.decisions.get("link") == name and op.decisions["direction"] == word for op in result.ops]
            found[name, read] = np.where(of, column, 0)
    return found


def _link_pj(machine: Machine, result: PassResult) -> NDArray[np.float64]:
    """Picojoules of each operator's transfers."""
    sent = _sent_bits(result)
    total = np.asarray(sent * machine.interconnect_pj_per_bit if sent.any() else np.zeros(len(sent)), np.float64)
    for (name, read), bits in _link_bits(result).items():
        tier = machine.tier_data[name]
        total += bits * (tier.link_energy + tier.memory_pj_per_bit(read))
    return total


_NO_WORK = ("vector_ops", "sram_read_bytes", "sram_write_bytes", "accumulator_bytes")


def _macs_by_format(result: PassResult, macs: NDArray[np.int64]) -> dict[str, int]:
    found: dict[str, int] = {}
    for operator, count in zip(result.ops, macs.tolist(), strict=True):
        if count:
            found[operator.format] = found.get(operator.format, 0) + count
    return found


def total_counts(passes: Sequence[PassResult]) -> MemoryCounts:
    """The memory's counts of a whole run: those of each pass times its repeats, summed."""
    return sum_counts([(p.repeat, p.schedule.memory) for p in passes])


def operator_energy_j(
    machine: Machine,
    passes: Sequence[PassResult],
    work: Sequence[Mapping[str, NDArray[np.int64]]],
    rows: Sequence[EnergyRow],
    mac_energy: Mapping[str, float] | None = None,
) -> list[dict[str, NDArray[np.float64]]]:
    """Energy of each operator with all repeats of its pass: for each pass {component: float64[operators]}, in joules.

    On-chip events are the operator's own. What belongs to no single operator is shared out: the commands of units in
    the memory by the products done there, the DRAM's other energy by DRAM bytes (by advances where nothing was moved),
    leakage by advances, the time that each operator added to the run.
    `rows` are those of `energy_rows`; shares sum to them.
    """
    rates = on_chip_rates(machine, mac_energy)
    table = rates.table
    vector_pj = table.vector.operation + table.vector.register_bytes * table.register_.file_per_byte
    advances = [p.repeat * advances_ps(spans_ps(p.tasks.op, p.schedule, len(p.ops))[1]) for p in passes]
    moved = [p.repeat * (w["dram_read_bytes"] + w["dram_write_bytes"]) for p, w in zip(passes, work, strict=True)]
    total = {c: math.fsum(row.energy_j for row in rows if row.component == c) for c in ("dram", "leakage")}
    pim_j = math.fsum(row.energy_j for row in rows if row.component == "dram" and row.subcomponent in PIM_ROWS)
    in_memory = [p.repeat * w["pim_macs"] for p, w in zip(passes, work, strict=True)]
    dram = _shares(moved if any(m.any() for m in moved) else advances)
    pim = _shares(in_memory) if any(m.any() for m in in_memory) else dram
    leakage = _shares(advances)
    parts = []
    for i, (result, sums) in enumerate(zip(passes, work, strict=True)):
        once = 1e-12 * result.repeat
        reads, writes = sums["sram_read_bytes"], sums["sram_write_bytes"]
        joules = {
            "array": once * sums["macs"] * _mac_pj(rates, result, sums["macs"]),
            "vector": once * sums["vector_ops"] * vector_pj,
            "accumulator": once * sums["accumulator_bytes"] * table.accumulator.energy_per_byte,
            "scratchpad": once * (reads * rates.sram_read_pj_per_byte + writes * rates.sram_write_pj_per_byte),
            "wire": once * (reads + writes) * rates.wire_pj_per_byte,
            "dram": (total["dram"] - pim_j) * dram[i] + pim_j * pim[i],
            "link": once * _link_pj(machine, result),
            "leakage": total["leakage"] * leakage[i],
        }
        parts.append({component: np.asarray(joules[component], np.float64) for component in COMPONENTS})
    return parts


def _mac_pj(rates: OnChipRates, result: PassResult, macs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Picojoules of one multiply-accumulate of each operator with its pipeline registers; 0 where it has none."""
    each: dict[str, float] = {}
    for number_format in {o.format for o, count in zip(result.ops, macs.tolist(), strict=True) if count}:
        key, energy, _ = rates.mac_pj(number_format)
        table = rates.table
        each[number_format] = energy + table.mac[key].register_bytes * table.register_.pipeline_per_byte
    return np.array([each.get(o.format, 0.0) for o in result.ops], np.float64)


def _shares(amounts: Sequence[NDArray[np.int64]]) -> list[NDArray[np.float64]]:
    total = sum(int(a.sum()) for a in amounts)
    return [a / total if total else np.zeros(len(a)) for a in amounts]
