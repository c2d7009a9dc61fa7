"""First-order area and cost of a machine: arithmetic by format, on-chip memory, memory interfaces, units in the memory.

The numbers are data in `hwconfigs/area`, each with its source. Neither influences time or energy. A description may
state the area of its die, which is then taken as it is; where neither a die nor a table is known, area is None.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from sim.arithmetic import unit_factors
from sim.catalog import find
from sim.config import build, load_yaml
from sim.energy_tables import family_of, load_table, mac_cost
from sim.machine import OWN_TABLE
from sim.units import Area, Length

if TYPE_CHECKING:
    from sim.machine import Machine
    from sim.standards import Memory

GIB = 2**30
BITS_PER_MIB = 8 * 2**20
UM2 = 1e-6
"""Square micrometres in square millimetres."""

Positive = Annotated[float, Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Logic(_Strict):
    """What a chip spends around arithmetic and bit cells."""

    layout: Positive = Field(description="area of a lane over its multiplier, adder and pipeline registers")
    cells: Positive = Field(description="area of a memory over its bit cells")
    rest: Annotated[float, Field(ge=0)] = Field(description="everything else on the die, over the parts that are told")


class Node(_Strict):
    """Cells of a technology node."""

    flip_flop: Area
    bit_cell: Area


class MemoryFamily(_Strict):
    """A memory family: its interface on the chip, and what its dies cost and take."""

    interface_per_gb_s: Area
    usd_per_gib: Positive
    die_per_gib: Area


class InMemory(_Strict):
    """Units in the memory."""

    node: str
    format: str
    second_row_buffer: Annotated[float, Field(ge=0, lt=1)]


class Yield(_Strict):
    """Dies of a wafer that work: negative binomial."""

    wafer_diameter: Length
    defects_per_cm2: Positive
    clustering: Positive


class Silicon(_Strict):
    """Schema `opcycle/area/1`."""

    schema_: Literal["opcycle/area/1"] = Field(alias="schema")
    logic: Logic
    engines: dict[str, Positive]
    nodes: dict[str, Node]
    memories: dict[str, MemoryFamily]
    pim: InMemory
    wafer_usd: dict[int, Positive]
    yield_: Yield = Field(alias="yield")
    assembly: Annotated[float, Field(ge=0)]


@lru_cache(maxsize=4)
def load_silicon(name_or_path: str = "silicon") -> Silicon:
    """The data that ships, or a YAML file. Raises ConfigError."""
    return build(Silicon, load_yaml(find("area", name_or_path)))


def area_mm2(machine: Machine) -> dict[str, float] | None:
    """Square millimetres by part: `die` where the description states it, else what it is estimated from; `pim`.

    `pim` is silicon on the memory's dies. None for an FPGA and for machines whose node has no table.
    """
    silicon = load_silicon()
    if machine.die is not None:
        return {"die": machine.die, **_pim(silicon, machine)}
    if machine.fabric == "fpga" or machine.energy.table == OWN_TABLE:
        return None
    table = load_table(machine.energy.table)[0]
    if table.name not in silicon.nodes or family_of(machine.dram.name, silicon.memories) is None:
        return None
    node, chip, logic = silicon.nodes[table.name], machine.chip, silicon.logic
    registers = 8 * node.flip_flop
    lanes = []
    for name in machine.formats:
        key, mac = mac_cost(table, name)
        if mac.area is None:
            return None
        each = mac.area * unit_factors(chip, key)[1] + mac.register_bytes * registers
        lanes.append(machine.peak_flops_per_s(name) / (2 * _clock(machine)) * each)
    vector = table.mac.get("fp32")
    if vector is None or vector.area is None:
        return None
    parts = {
        "arrays": max(lanes) * logic.layout * silicon.engines.get(chip.engine, 1.0),
        "vector": chip.vector_lanes * (vector.area + table.vector.register_bytes * registers) * logic.layout,
        "sram": chip.sram_bytes / 2**20 * BITS_PER_MIB * node.bit_cell * logic.cells,
        "interface": _family(silicon, machine.dram).interface_per_gb_s * machine.peak_bytes_per_s / 1e9,
    }
    parts["rest"] = logic.rest * math.fsum(parts.values())
    return {**parts, **_pim(silicon, machine)}


def cost_usd(machine: Machine) -> dict[str, float] | None:
    """US dollars of `die`, `memory` (units in it as a part of its dies) and `assembly`; None where area is."""
    parts = area_mm2(machine)
    silicon = load_silicon()
    if parts is None or family_of(machine.dram.name, silicon.memories) is None:
        return None
    extra = parts.get("pim", 0.0)
    die = die_usd(silicon, machine.technology, math.fsum(parts.values()) - extra)
    if die is None:
        return None
    family = _family(silicon, machine.dram)
    gib = machine.capacity_bytes / GIB
    memory = gib * family.usd_per_gib * (1 + extra / (gib * family.die_per_gib))
    return {"die": die, "memory": memory, "assembly": silicon.assembly * (die + memory)}


def die_usd(silicon: Silicon, technology: str, mm2: float) -> float | None:
    """US dollars of a working die of `mm2` at the nearest node with a known wafer price; None without a node."""
    found = re.match(r"([0-9.]+) ?nm", technology)
    if found is None:
        return None
    node = min(silicon.wafer_usd, key=lambda known: abs(math.log(known / float(found.group(1)))))
    y = silicon.yield_
    # Whole dies on a round wafer: its area over the die's, less those that its edge cuts.
    dies = math.pi * y.wafer_diameter**2 / 4 / mm2 - math.pi * y.wafer_diameter / math.sqrt(2 * mm2)
    if dies < 1:
        return None
    working: float = (1 + mm2 / 100 * y.defects_per_cm2 / y.clustering) ** -y.clustering
    return silicon.wafer_usd[node] / (dies * working)


def _pim(silicon: Silicon, machine: Machine) -> dict[str, float]:
    """Units beside the banks and second row buffers of all channels."""
    memory = machine.dram
    pim = memory.pim
    if pim is None:
        return {}
    o = memory.organisation
    banks = o.pseudo_channels * o.ranks * o.bank_groups * o.banks * machine.memory.channels
    table = load_table(silicon.pim.node)[0]
    mac = table.mac[silicon.pim.format]
    assert mac.area is not None
    lane = mac.area + mac.register_bytes * 8 * silicon.nodes[silicon.pim.node].flip_flop
    # Banks of different sets compute at different times, with the units between them.
    units = banks / pim.sets * pim.macs * lane * silicon.logic.layout
    if pim.mode == "dual":
        dies = machine.capacity_bytes / GIB * _family(silicon, memory).die_per_gib
        units += silicon.pim.second_row_buffer * dies
    return {"pim": units}


def _family(silicon: Silicon, memory: Memory) -> MemoryFamily:
    name = family_of(memory.name, silicon.memories)
    assert name is not None
    return silicon.memories[name]


def _clock(machine: Machine) -> int:
    clock: int = getattr(machine, "clock", 1)
    return clock
