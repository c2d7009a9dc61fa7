"""Energy of PIM commands from their counts: multiples of the ordinary commands' energies, or energies of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.dram_energy import dram_energies
from sim.energy_row import EnergyRow
from sim.pim.schema import EnergyOf, LoadFrom

if TYPE_CHECKING:
    from sim.passes import MemoryCounts
    from sim.standards import Memory

ROWS = (
    ("pim load", "GWRITE", "load", "read"),
    ("pim activate", "G_ACT", "activate", "activate"),
    ("pim compute", "COMP", "compute", "read"),
    ("pim readout", "READRES", "readout", "read"),
    ("pim write back", "PWRITE", "write_back", "write"),
)
"""Rows of an account: name, the command that it counts, its key in the section, and the ordinary command's class. A
composite command counts as its steps and one read-out.
"""

PIM_ROWS = frozenset(row[0] for row in ROWS)
"""Names of these rows in an account of energy."""


def bits_moved(memory: Memory, counts: MemoryCounts) -> int:
    """Bits that PIM commands put on the data bus: a burst a read-out, and a load from the host."""
    names = ("READRES", "COMPS_READRES") + (("GWRITE",) if memory.pim and memory.pim.load is LoadFrom.HOST else ())
    return 8 * memory.burst_bytes * sum(counts.commands.get(name, 0) for name in names)


def pim_rows(memory: Memory, counts: MemoryCounts) -> list[EnergyRow]:
    """Rows of the PIM commands, none for a memory without them.

    Standby is charged with the ordinary rows: a rank is active while any buffer of any bank has a row open. Where
    `second_background` says so, the second buffers draw the same current once more.
    """
    pim = memory.pim
    if pim is None:
        return []
    energies = dram_energies(memory)
    done = dict(counts.commands)
    done["READRES"] = done.get("READRES", 0) + done.get("COMPS_READRES", 0)
    rows = []
    for name, command, key, like in ROWS:
        cost = getattr(pim.energy, key)
        if isinstance(cost, EnergyOf):
            each, source = cost.pj, f"memory {memory.name}: pim.energy.{key}"
        else:
            each = cost * energies.command_pj[like]
            source = f"memory {memory.name}: pim.energy.{key}, {cost:g} times the energy of one {like}"
        rows.append(EnergyRow("dram", name, done.get(command, 0), "command", each, source))
    if pim.energy.second_background:
        for state in ("active", "precharged"):
            rows.append(
                EnergyRow(
                    "dram", f"pim standby {state}", counts.standby_ps.get(state, 0), "rank ps",
                    energies.standby_mw[state] / 1000, f"memory {memory.name}: pim.energy.second_background",
                )
            )  # fmt: skip
    return rows
