"""What a collective costs each device of a plain ring: bytes that it sends, steps that follow each other.

These are the costs of the ring algorithms (Patarasuk and Yuan, J. Parallel and Distributed Computing 69, 2009), exact,
for machines that simulate the steps themselves.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sim.links.schema import Links
    from workloads.trace import CollectiveAttrs


class RingCost(NamedTuple):
    """What one device does in a collective: bytes that it sends, steps that follow each other."""

    bytes: Fraction
    steps: int


def ring_cost(attrs: CollectiveAttrs) -> RingCost:
    """Bytes and steps of a collective with `attrs.bytes` of payload on each of `attrs.group` devices.

    A reduce-scatter passes n - 1 parts of n on, an all-gather n - 1 whole payloads, an all-reduce is both on parts; in
    an all-to-all each part goes as many hops as its target is away; a broadcast is passed on in a pipeline.
    """
    n, payload = attrs.group, attrs.bytes
    hops = n - 1
    part = Fraction(payload, n)
    costs = {
        "all_reduce": RingCost(2 * hops * part, 2 * hops),
        "reduce_scatter": RingCost(hops * part, hops),
        "all_gather": RingCost(Fraction(hops * payload), hops),
        "all_to_all": RingCost(part * hops * n / 2, hops),
        "broadcast": RingCost(Fraction(payload), hops),
        "send_recv": RingCost(Fraction(payload), 1),
    }
    return costs[attrs.algorithm_kind]


def transfer_ps(links: Links, sent: Fraction) -> int:
    """Picoseconds in which a device sends so many bytes, rounded up."""
    return -int(-sent * 10**12 // links.bandwidth)
