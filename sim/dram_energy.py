"""Energy of a DRAM from its command counts, its standby times and the currents of its data sheet.

A command costs what it draws above the standby current of the state that it happens in, times its duration; standby is
charged for every rank and picosecond by state. Interface terms that no data-sheet current contains come from a table of
memory families and stay rows of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sim.energy_row import EnergyRow
from sim.energy_tables import family_of, load_interfaces, source_text
from sim.errors import ConfigError
from sim.passes import MemoryCounts

if TYPE_CHECKING:
    from sim.standards import Memory


@dataclass(frozen=True, slots=True)
class DramEnergies:
    """Of one rank, all its devices together: picojoules by command class and milliwatts by standby state."""

    command_pj: dict[str, float]
    standby_mw: dict[str, float]


COMMAND_CLASSES = (
    ("activate", ("ACT",), "VDD x (IDD0 (tRAS + tRP) - IDD3N tRAS - IDD2N tRP), activate with its precharge"),
    ("read", ("RD", "RDA"), "VDD x (IDD4R - IDD3N) x burst"),
    ("write", ("WR", "WRA"), "VDD x (IDD4W - IDD3N) x burst"),
    ("refresh all banks", ("REF", "REFab"), "VDD x (IDD5AB - IDD3N) x tRFC"),
    ("refresh one bank", ("REFpb", "REFsb"), "VDD x (IDD5PB - IDD3N) x tRFC of one bank"),
)
"""Rows of an account: name, the commands that it counts, and how one is worked out. A precharge is paid with its
activate.
"""

STANDBY = (
    ("active", "VDD x IDD3N while any bank of the rank is open"),
    ("precharged", "VDD x IDD2N while all banks are closed"),
    ("refresh", "VDD x IDD3N below the refresh, which is charged above it"),
)


def dram_energies(memory: Memory) -> DramEnergies:
    """Energies of `memory` from its currents (A, of one device), supply (V), devices a rank, and timings.

    VDD in V, currents in mA and times in ns give pJ. Raises ConfigError where a timing that this needs is missing.
    """
    currents = memory.currents
    power_mw = {
        name: currents.VDD * getattr(currents, name) * 1000 * currents.devices
        for name in ("IDD0", "IDD2N", "IDD3N", "IDD4R", "IDD4W", "IDD5AB", "IDD5PB")
        if getattr(currents, name) is not None
    }
    active, closed = power_mw["IDD3N"], power_mw["IDD2N"]
    open_ns, close_ns = _timing_ns(memory, "tRAS"), _timing_ns(memory, "tRP")
    burst_ns = float(memory.burst_ticks * memory.period) / 1000
    command = {
        "activate": power_mw["IDD0"] * (open_ns + close_ns) - active * open_ns - closed * close_ns,
        "read": (power_mw["IDD4R"] - active) * burst_ns,
        "write": (power_mw["IDD4W"] - active) * burst_ns,
        "refresh all banks": (power_mw["IDD5AB"] - active) * _timing_ns(memory, "tRFC"),
    }
    if "IDD5PB" in power_mw:
        name = "tRFCsb" if "tRFCsb" in memory.timings else "tRFCpb"
        command["refresh one bank"] = (power_mw["IDD5PB"] - active) * _timing_ns(memory, name)
    return DramEnergies(command, {"active": active, "precharged": closed, "refresh": active})


def _timing_ns(memory: Memory, name: str) -> float:
    if name not in memory.timings:
        raise ConfigError(
            f"timings.{name} is missing, which the energy of its commands needs", file=f"memory {memory.name}"
        )
    return float(memory.timings[name] * memory.period) / 1000


def dram_rows(memory: Memory, counts: MemoryCounts, io_pj_per_bit: float | None = None) -> list[EnergyRow]:
    """Rows of a memory: commands, standby by state, and the interface terms of its family for every bit moved.

    `io_pj_per_bit` replaces the family's I/O term. Rows without events are there too, with a count of 0.
    """
    energies = dram_energies(memory)
    rows = []
    for name, commands, formula in COMMAND_CLASSES:
        count = sum(counts.commands.get(c, 0) for c in commands)
        if name in energies.command_pj:
            source = f"{memory.name} currents: {formula}"
            rows.append(EnergyRow("dram", name, count, "command", energies.command_pj[name], source))
        elif count:
            raise ConfigError(
                "currents.IDD5PB is missing, which refreshes of single banks need", file=f"memory {memory.name}"
            )
    for state, formula in STANDBY:
        row = EnergyRow(
            "dram",
            f"standby {state}",
            counts.standby_ps.get(state, 0),
            "rank ps",
            energies.standby_mw[state] / 1000,
            f"{memory.name} currents: {formula}",
        )
        rows.append(row)
    return rows + interface_rows(memory.name, 8 * (counts.bytes_read + counts.bytes_written), io_pj_per_bit)


def interface_rows(memory_name: str, bits: int, io_pj_per_bit: float | None = None) -> list[EnergyRow]:
    """On-die movement, vias and I/O of `bits` moved, by the family that the memory's name begins with."""
    interfaces, document = load_interfaces()
    family = family_of(memory_name, interfaces.families)
    rows = []
    if family is not None:
        terms = interfaces.families[family]
        for name in ("movement", "tsv", "io"):
            if name == "io" and io_pj_per_bit is not None:
                continue
            key = f"families.{family}.{name}"
            rows.append(EnergyRow("dram", name, bits, "bit", getattr(terms, name), source_text(document, key)))
    if io_pj_per_bit is not None:
        rows.append(EnergyRow("dram", "io", bits, "bit", io_pj_per_bit, "machine: energy.dram_io"))
    return rows
