"""Energy of a DRAM from its command counts, its standby times and the currents of its data sheet.

A command costs what it draws above the standby current of the state that it happens in, times its duration; standby is
charged for every rank and picosecond by state. Interface terms that no data-sheet current contains come from a table of
memory families and stay rows of their own. What a command costs within its bank is known apart: a unit beside the bank
pays that, and nothing of the way out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from sim.energy_row import EnergyRow
from sim.energy_tables import family_of, load_interfaces, source_text
from sim.errors import ConfigError
from sim.passes import MemoryCounts

if TYPE_CHECKING:
    from sim.standards import Memory


@dataclass(frozen=True, slots=True)
class DramEnergies:
    """Of one rank, all its devices together: picojoules by command class and milliwatts by standby state.

    bank_pj: of `command_pj`, what stays within the bank: all of an activation and of a bank's refresh, and the part of
    a read or write between the cells and the edge of the bank (the family's `bank` term). Empty without a known family.
    """

    command_pj: dict[str, float]
    standby_mw: dict[str, float]
    bank_pj: dict[str, float]


COMMAND_CLASSES = (
    (
        "activate",
        ("ACT",),
        "VDD x (IDD0 (tRAS + tRP) - IDD3N tRAS - IDD2N tRP), with IDD3N_one where given; with its precharge",
    ),
    ("read", ("RD", "RDA"), "VDD x (IDD4R - IDD3N) x burst"),
    ("write", ("WR", "WRA"), "VDD x (IDD4W - IDD3N) x burst"),
    ("refresh all banks", ("REF", "REFab"), "VDD x (IDD5AB - IDD3N) x tRFC"),
    ("refresh one bank", ("REFpb", "REFsb"), "VDD x (IDD5PB - IDD2N) x tRFCpb, or tRFCsb for one bank of every group"),
)
"""Rows of an account: name, the commands that it counts, and how one is worked out. A precharge is paid with its
activate.
"""

STANDBY = (
    ("active", "VDD x IDD3N while any bank of the rank is open"),
    ("precharged", "VDD x IDD2N while all banks are closed"),
    ("refresh", "VDD x IDD3N below the refresh, which is charged above it"),
    ("precharged power-down", "VDD x IDD2P while all banks are closed and the rank is in power-down"),
    ("active power-down", "VDD x IDD3P while a bank is open and the rank is in power-down"),
    ("self refresh", "VDD x IDD6 while the rank refreshes itself"),
)
"""Rows of an account: state and how its power is worked out. The last three appear where they have any time."""

USUAL_STATES = ("active", "precharged", "refresh")


def dram_energies(memory: Memory) -> DramEnergies:
    """Energies of `memory` from its currents (A, of one device), supply (V), devices a rank, and timings.

    VDD in V, currents in mA and times in ns give pJ. Raises ConfigError where a timing that this needs is missing.
    """
    currents = memory.currents
    power_mw = {
        name: currents.VDD * getattr(currents, name) * 1000 * currents.devices
        for name in ("IDD2N", "IDD2P", "IDD3N", "IDD3P", "IDD4R", "IDD4W", "IDD5AB", "IDD5PB", "IDD6")
        if getattr(currents, name) is not None
    }
    active, closed = power_mw["IDD3N"], power_mw["IDD2N"]
    burst_ns = float(memory.burst_ticks * memory.period) / 1000
    command = {
        "activate": memory.activation_charge * currents.VDD * currents.devices * float(memory.period),
        "read": (power_mw["IDD4R"] - active) * burst_ns,
        "write": (power_mw["IDD4W"] - active) * burst_ns,
        "refresh all banks": (power_mw["IDD5AB"] - active) * _timing_ns(memory, "tRFC"),
    }
    if "IDD5PB" in power_mw:
        # Measured with all other banks closed, so that the floor is IDD2N; above IDD3N it could be negative.
        name = "tRFCsb" if "tRFCsb" in memory.timings else "tRFCpb"
        command["refresh one bank"] = (power_mw["IDD5PB"] - closed) * _timing_ns(memory, name)
    states = {"active": active, "precharged": closed, "refresh": active}
    for state, name in (
        ("precharged power-down", "IDD2P"), ("active power-down", "IDD3P"), ("self refresh", "IDD6"),
    ):  # fmt: skip
        if name in power_mw:
            states[state] = power_mw[name]
    return DramEnergies(command, states, _inside_the_bank(memory, command))


def _inside_the_bank(memory: Memory, command_pj: dict[str, float]) -> dict[str, float]:
    interfaces, _ = load_interfaces()
    family = family_of(memory.name, interfaces.families)
    if family is None:
        return {}
    column = 8 * memory.burst_bytes * interfaces.families[family].bank
    inside = {"read": column, "write": column}
    return {
        name: min(inside.get(name, pj), pj)
        for name, pj in command_pj.items()
        if name in ("activate", "read", "write", "refresh one bank")
    }


def with_power_down(memory: Memory, counts: MemoryCounts) -> MemoryCounts:
    """The counts with the time of closed ranks in the state that `controller.power_down` puts them in.

    `fast`: all of it is power-down. `self_refresh`: whole refresh intervals of it are self refresh, which also replaces
    the refreshes that fell into them; what is left stays standby. Entering and leaving take no time here, so both are
    the most that a controller can save. With `power_down_after` the counts say already how long ranks slept.
    """
    if memory.exit_timing:
        return counts
    choice = memory.controller.power_down
    closed = counts.standby_ps.get("precharged", 0)
    standby, commands = dict(counts.standby_ps), dict(counts.commands)
    if choice == "fast":
        standby["precharged power-down"] = standby.get("precharged power-down", 0) + closed
        standby["precharged"] = 0
    elif choice == "self_refresh":
        refreshes = next((name for name in ("REFab", "REF", "REFpb", "REFsb") if commands.get(name)), None)
        # A rank is in the state of refresh only where all its banks are.
        ticks = 0 if refreshes in ("REFpb", "REFsb") else memory.timings["tRFC"]
        between = int((memory.timings["tREFI"] - ticks) * memory.period)
        during = int(ticks * memory.period)
        intervals = min(closed // between, commands[refreshes] // memory.refresh_units if refreshes else 0)
        spared = min(intervals * during, standby.get("refresh", 0))
        asleep = intervals * between + spared if refreshes else closed
        if refreshes:
            commands[refreshes] -= intervals * memory.refresh_units
            standby["refresh"] = standby.get("refresh", 0) - spared
        standby["precharged"] = closed - (asleep - spared)
        standby["self refresh"] = standby.get("self refresh", 0) + asleep
    return replace(counts, standby_ps=standby, commands=commands)


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
    counts = with_power_down(memory, counts)
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
        if state not in USUAL_STATES and not counts.standby_ps.get(state):
            continue
        if state not in energies.standby_mw:
            raise ConfigError(
                f"the current of a rank in {state} is missing", file=f"memory {memory.name}", key="currents"
            )
        row = EnergyRow(
            "dram",
            f"standby {state}",
            counts.standby_ps.get(state, 0),
            "rank ps",
            energies.standby_mw[state] / 1000,
            f"{memory.name} currents: {formula}",
        )
        rows.append(row)
    bits = 8 * (counts.bytes_read + counts.bytes_written)
    if memory.pim is not None:
        from sim.pim.energy import bits_moved, pim_rows

        rows += pim_rows(memory, counts)
        bits += bits_moved(memory, counts)
    return rows + interface_rows(memory.name, bits, io_pj_per_bit)


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
