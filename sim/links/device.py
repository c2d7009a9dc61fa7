"""What a collective costs a device whose links are a unit of its own: how long they are busy, and what follows.

A plain ring is exact; other topologies take the closed forms of `collectives`.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

from sim.links.ring import ring_cost, transfer_ps

if TYPE_CHECKING:
    from sim.links.schema import Links
    from workloads.trace import CollectiveAttrs


class DeviceCost(NamedTuple):
    """Bytes that a device sends, picoseconds of its links for them, and picoseconds until the result is there."""

    sent: Fraction
    busy_ps: int
    tail_ps: int


def device_cost(links: Links, attrs: CollectiveAttrs) -> DeviceCost:
    """The cost of a collective on each device of a group. Raises ConfigError for more devices than there are."""
    plain = links.topology == "ring" and links.beyond is None and not links.protocols
    if plain and attrs.group <= (links.devices or attrs.group):
        cost = ring_cost(attrs)
        return DeviceCost(cost.bytes, transfer_ps(links, cost.bytes), cost.steps * int(links.latency))
    from sim.links.collectives import collective

    found = collective(links, attrs.algorithm_kind, attrs.bytes, attrs.group)
    return DeviceCost(Fraction(found.sent_bytes), -int(-found.time_s * 1e12 // 1), 0)
