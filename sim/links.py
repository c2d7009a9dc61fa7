"""Links between devices of one machine kind, and what a collective over them costs on each device.

Devices form a ring, and each sends to one neighbour while it receives from the other. Costs are those of the ring
algorithms (Patarasuk and Yuan, J. Parallel and Distributed Computing 69, 2009): the bytes that a device sends, and one
latency a step.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from sim.machine import Strict
from sim.units import Bandwidth, BitEnergy, Time

if TYPE_CHECKING:
    from workloads.trace import CollectiveAttrs


class Links(Strict):
    """What connects a device to the others of its group."""

    topology: Literal["ring"] = Field(default="ring", description="ring: each device has two neighbours")
    bandwidth: Bandwidth = Field(gt=0, description="of one device in each direction")
    latency: Time = Field(ge=0, description="of one step: from the last byte sent until the neighbour may use it")
    energy: BitEnergy = Field(description="per bit sent, both ends")


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
