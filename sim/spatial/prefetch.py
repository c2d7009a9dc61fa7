"""Weights of the next section, read while one still runs: as many pieces as find room and time beside it.

A section that reads ahead has a port more for each load, which begins when the section's own weights should be there.
The next one then reads the rest. Both stay streaming graphs, evaluated like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sim.spatial.fabric import LOAD, STORE_TILES, Fabric, Node, Work
from sim.spatial.machine import StreamMachine
from sim.spatial.mapper import Section
from sim.spatial.rates import up


@dataclass(frozen=True)
class Ahead:
    """The first `pieces` of the load into node `held` of the next section."""

    held: str
    pieces: int


def plan(machine: StreamMachine, fabric: Fabric, there: tuple[Ahead, ...], following: Fabric) -> tuple[Ahead, ...]:
    """What a section reads for the one after it, in the order of its loads; `there`: what it has got ahead itself.

    Kept to: bytes of the memory tiles, ports, channels, addresses, and the bytes that the memory could move in the time
    of the section's slowest node beside the section's own.
    """
    left = _loaded(fabric, there)
    moved = sum(n.work.dram_read + n.work.dram_write for n in fabric.ports.values()) - (_loaded(fabric, ()) - left)
    cycles = max(n.fires * n.ii for n in fabric.nodes.values())
    time = int(cycles * machine.peak_bytes_per_s / machine.clock) - moved
    room = machine.sram_bytes - fabric.sram_bytes
    ports = min(machine.ports.count - len(fabric.ports), machine.fifo.count - len(fabric.links))
    addresses = machine.dram.capacity_bytes_per_channel - fabric.end
    found: list[Ahead] = []
    for port, hold in following.weights:
        each, span = up(port.work.dram_read, port.fires), port.keys["bursts"] * machine.dram.burst_bytes
        pieces = max(0, min(port.fires, room // max(each, 1), time // max(each, 1), addresses // span))
        if pieces and len(found) < ports:
            found.append(Ahead(hold.name, pieces))
            room, time, addresses = room - pieces * each, time - pieces * each, addresses - pieces * span
        if pieces < port.fires:
            break
    return tuple(found)


def reading_ahead(
    machine: StreamMachine, fabric: Fabric, there: tuple[Ahead, ...], following: Fabric | None, ahead: tuple[Ahead, ...]
) -> Fabric:
    """`fabric` without the pieces that are `there`, and with ports for those that it reads for the `following` one."""
    made = fabric.copy()
    for one in there:
        _spare(machine, made, one)
    start = up(_loaded(fabric, there) * int(machine.clock), int(machine.peak_bytes_per_s))
    known = {hold.name: port for port, hold in following.weights} if following is not None else {}
    for one in ahead:
        _read(machine, made, one, known[one.held], start)
    return made


def estimate(machine: StreamMachine, sections: Sequence[Section], loads: bool = True) -> float:
    """Seconds of a layer among others like it: the slowest node of each section, and what of the weights can't be read
    ahead in the section before (`loads`: otherwise nothing). Fill and drain are left out.
    """
    total = 0.0
    for before, section in zip([sections[-1], *sections[:-1]], sections, strict=True):
        fabric = section.fabric
        total += max(n.fires * n.ii for n in fabric.nodes.values()) / machine.clock
        if loads:
            ahead = plan(machine, before.fabric, (), fabric) if machine.mapping.prefetch else ()
            total += _loaded(fabric, ahead) / machine.peak_bytes_per_s
        total += int(machine.reconfigure) * 1e-12 if len(sections) > 1 else 0.0
    return total


def _loaded(fabric: Fabric, there: tuple[Ahead, ...]) -> int:
    """Bytes of weights that the section still has to load."""
    got = {one.held: one.pieces for one in there}
    return sum(p.work.dram_read - _share(p, got.get(hold.name, 0)) for p, hold in fabric.weights)


def _share(port: Node, pieces: int) -> int:
    """Bytes of the first `pieces` tokens of a load."""
    return port.work.dram_read * pieces // port.fires


def _spare(machine: StreamMachine, fabric: Fabric, one: Ahead) -> None:
    """Take the pieces that are there out of a load; nothing is left of one that is there as a whole."""
    hold = fabric.nodes[one.held]
    (link,) = hold.inputs
    port = fabric.nodes[link.writer]
    left = port.fires - one.pieces
    if left == 0:
        del fabric.nodes[port.name], fabric.ports[port.name]
        fabric.links.remove(link)
        hold.kind, hold.keys, hold.inputs, hold.fires, hold.ii = "source", {"count": 1}, [], 1, 1
        return
    bytes_left = port.work.dram_read - _share(port, one.pieces)
    port.work = Work(sram_write=bytes_left, dram_read=bytes_left)
    port.keys["address"] += one.pieces * port.keys["bursts"] * machine.dram.burst_bytes
    port.keys["outstanding"] = min(port.keys["outstanding"], left)
    port.fires = port.keys["count"] = hold.fires = hold.keys["every"] = left


def _read(machine: StreamMachine, fabric: Fabric, one: Ahead, load: Node, start: int) -> None:
    """A port that reads the first pieces of the next section's `load` from cycle `start` on."""
    amount = _share(load, one.pieces)
    keys = load.keys | {"address": fabric.end, "count": one.pieces, "start": start}
    keys["outstanding"] = min(keys["outstanding"], one.pieces)
    fabric.end += one.pieces * load.keys["bursts"] * machine.dram.burst_bytes
    port = fabric.add(Node(f"next: {load.name}", "dram_read", LOAD, load.op, one.pieces, ii=load.ii, keys=keys,
                           work=Work(sram_write=amount, dram_read=amount), ahead=True))  # fmt: skip
    fabric.ports[port.name] = port
    kept = fabric.add(Node(f"next: {one.held}", "sink", STORE_TILES, load.op, one.pieces, ii=load.ii, ahead=True))
    fabric.join(port, kept, 0, 1 + min(one.pieces, 8))
