"""Time of a collective by algorithm and protocol: bytes over the busiest link, bytes that kernels touch, and steps.

Data is cut into pieces that follow each other. Links and kernels are busy for the time of all bytes, and wait for the
first piece and for the latency of each step. The fastest algorithm and protocol is taken, as libraries do.
"""

from __future__ import annotations

from math import ceil, log2
from typing import TYPE_CHECKING, NamedTuple

from sim.errors import ConfigError, not_among
from sim.links.schema import Protocol
from sim.links.topology import exchange_load, neighbour_load
from workloads.attrs import COLLECTIVES

if TYPE_CHECKING:
    from sim.links.schema import Links

KINDS = COLLECTIVES
CHOSEN = ("all_reduce", "reduce_scatter", "all_gather")
"""Collectives for which `links.algorithms` says what the library has; the others have one way that all of them take."""


class Plan(NamedTuple):
    """One algorithm: bytes that a device sends, that its kernels load and store (what it sends is stored, too), steps
    after each other, flows that share the busiest link, hops of a step. `pairs`: it is made of sends and receives;
    `waits`: nothing else moves while the first piece does.
    """

    name: str
    sent: float
    loaded: float
    stored: float
    steps: int
    sharing: float
    hops: int
    pairs: bool = False
    waits: bool = True


class Collective(NamedTuple):
    """The chosen algorithm and protocol, seconds on the devices, seconds between calls, bytes that a device sends."""

    algorithm: str
    protocol: str
    time_s: float
    call_s: float
    sent_bytes: float
    bound: str


def collective(links: Links, kind: str, payload: int, n: int) -> Collective:
    """A collective with `payload` bytes on each of `n` devices: of an all-gather what each contributes, of all others
    what each holds before. Raises ConfigError for unknown kinds and for more devices than there are.
    """
    if kind not in KINDS:
        raise ConfigError(not_among("collective", kind, KINDS))
    if n < 1 or payload < 0:
        raise ConfigError(f"a collective needs bytes >= 0 and gpus >= 1, not {payload} and {n}")
    if n == 1:
        return Collective("none", "none", 0.0, 0.0, 0.0, "none")
    if links.devices is None or n <= links.devices:
        return _flat(links, kind, payload, n)
    if links.beyond is None:
        raise ConfigError(f"{n} devices are asked for, but the links join {links.devices}", key="links.devices")
    return _layered(links, links.beyond, kind, payload, n, links.devices)


def plans(links: Links, kind: str, payload: float, n: int) -> list[Plan]:
    """The algorithms for a collective within one level, with the bytes that kernels load and store on the way.

    In a step of an adding ring a device loads what came and its own part, adds, and stores the sum at the next device,
    and at last in its result. What was sent lies in a buffer and is copied from there.
    """
    near, every = neighbour_load(links, n), exchange_load(links, n)
    part = payload / n
    found = []
    if kind == "all_reduce":
        each = (4 + 3 * (n - 2)) * part
        found.append(Plan("ring", 2 * (n - 1) * part, each, each, 2 * (n - 1), near.sharing, near.hops))
        levels = ceil(log2(n))
        # Two trees, each of half of the payload: a device is a leaf in one and inside the other.
        each = (3 * n - 2) * part
        found.append(Plan("tree", 2 * payload, each, each, 2 * levels, near.sharing, max(near.hops, every.hops)))
        each = (2 * n - 1) * part
        found.append(Plan("direct", 2 * (n - 1) * part, each, each, 2, every.sharing, every.hops))
    elif kind == "reduce_scatter":
        found.append(Plan("ring", (n - 1) * part, (2 * n - 1) * part, payload, n - 1, near.sharing, near.hops))
        found.append(Plan("direct", (n - 1) * part, (2 * n - 1) * part, payload, 1, every.sharing, every.hops))
    elif kind == "all_gather":
        sent, stored = (n - 1) * payload, (2 * n - 1) * payload
        found.append(Plan("ring", sent, n * payload, stored, n - 1, near.sharing, near.hops))
        found.append(Plan("direct", sent, payload, n * payload, 1, every.sharing, every.hops))
    elif kind == "all_to_all":
        each = (2 * n - 1) * part
        found.append(Plan("direct", (n - 1) * part, each, each, 1, every.sharing, every.hops, True))
    elif kind == "broadcast":
        longest = max(near.hops, every.hops)
        found.append(Plan("ring", payload, payload, 2 * payload, n - 1, near.sharing, near.hops))
        found.append(Plan("tree", 2 * payload, payload, 2 * payload, ceil(log2(n)), near.sharing, longest))
    else:
        # Sending and receiving do not depend on each other, so that there is no pipeline to fill.
        found.append(Plan("direct", payload, 2 * payload, 2 * payload, 1, 1.0, near.hops, True, False))
    return found


def _flat(links: Links, kind: str, payload: float, n: int) -> Collective:
    protocols = links.protocols or {"plain": _plain(links.latency)}
    ways = [plan for plan in plans(links, kind, payload, n) if kind not in CHOSEN or plan.name in links.algorithms]
    options = [_timed(links, plan, name, protocol) for plan in ways for name, protocol in protocols.items()]
    best = min(options, key=lambda option: option.time_s)
    return best._replace(call_s=max(best.time_s, _host_s(links, kind)))


def _plain(latency_ps: int) -> Protocol:
    """Bytes at full rate and the latency of each step; pieces are so small that waiting for one costs nothing."""
    return Protocol.model_construct(start=0, step=latency_ps, efficiency=1.0, pieces=2**40, piece=None)


def _host_s(links: Links, kind: str) -> float:
    return links.call.get(kind, links.call.get("other", 0)) * 1e-12


def _timed(links: Links, plan: Plan, name: str, protocol: Protocol) -> Collective:
    wire = plan.sent * plan.sharing / (links.bandwidth * protocol.efficiency)
    copies = links.copies
    copied = 0.0
    if copies is not None:
        blocks = copies.pairs if plan.pairs else copies.rings
        copied = (plan.loaded + copies.store * plan.stored) / (blocks * copies.rate)
    bulk = max(wire, copied)
    step = protocol.step * 1e-12 + (plan.hops - 1) * links.latency * 1e-12
    pieces = protocol.pieces + (plan.sent / protocol.piece if protocol.piece else 0.0)
    first = bulk / pieces if plan.waits else 0.0
    time_s = protocol.start * 1e-12 + bulk + first + plan.steps * step
    bound = "latency" if bulk < time_s / 2 else "link" if wire >= copied else "copy"
    return Collective(plan.name, name, time_s, time_s, plan.sent, bound)


def _layered(links: Links, beyond: Links, kind: str, payload: int, n: int, group: int) -> Collective:
    """Groups of `group` devices alike: within each first, then device by device with the others, then within again."""
    if n % group:
        raise ConfigError(f"{n} devices are no whole number of groups of {group}", key="links.devices")
    groups = n // group
    if kind == "all_reduce":
        stages = [
            collective(links, "reduce_scatter", payload, group),
            collective(beyond, "all_reduce", -(-payload // group), groups),
            collective(links, "all_gather", -(-payload // group), group),
        ]
    elif kind == "reduce_scatter":
        stages = [
            collective(links, "reduce_scatter", payload, group),
            collective(beyond, "reduce_scatter", -(-payload // group), groups),
        ]
    elif kind == "all_gather":
        stages = [
            collective(beyond, "all_gather", payload, groups),
            collective(links, "all_gather", payload * groups, group),
        ]
    elif kind == "all_to_all":
        # First to the device of one's own group that has the target's number, then across: all of it twice but parts.
        stages = [collective(links, kind, payload, group), collective(beyond, kind, payload, groups)]
    elif kind == "broadcast":
        stages = [collective(beyond, kind, payload, groups), collective(links, kind, payload, group)]
    else:
        stages = [collective(beyond, kind, payload, 2)]
    time_s = sum(stage.time_s for stage in stages)
    slowest = max(stages, key=lambda stage: stage.time_s)
    return Collective(
        " + ".join(stage.algorithm for stage in stages),
        slowest.protocol,
        time_s,
        max(time_s, _host_s(links, kind)),
        sum(stage.sent_bytes for stage in stages),
        slowest.bound,
    )
