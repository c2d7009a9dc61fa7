"""What a description may say of the links of a device: topology, bandwidth, latency, protocols, what lies beyond."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.machine import Positive, Strict
from sim.units import Bandwidth, BitEnergy, Bytes, Time

Share = Annotated[float, Field(gt=0, le=1)]


class Protocol(Strict):
    """How data is handed over: small flagged words have a short step and waste bandwidth, large buffers the reverse."""

    start: Time = Field(description="of a collective, once")
    step: Time = Field(description="from the last byte of a piece sent until the receiver may pass it on")
    efficiency: Share = Field(description="part of the links' bandwidth that carries data")
    pieces: Positive = Field(default=3, description="that data is cut into at least; the first is waited for")
    piece: Bytes | None = Field(default=None, gt=0, description="largest piece of all thread blocks; none: no limit")


class Copies(Strict):
    """Kernels that carry data between a device's memory and its links: thread blocks that load and store."""

    rate: Bandwidth = Field(gt=0, description="bytes a second that one thread block loads")
    store: Share = Field(default=1.0, description="time of a byte stored, where one loaded takes 1")
    rings: Positive = Field(description="thread blocks of rings and trees")
    pairs: Positive = Field(description="thread blocks of sends and receives, and of what is made of them")

    @property
    def memory_rate(self) -> float:
        """Bytes a second that rings move from and to the memory, as many loaded as stored."""
        return 2 * self.rings * self.rate / (1 + self.store)


class Links(Strict):
    """What connects a device to the others of its group, and groups to each other (`beyond`).

    ring: two neighbours. switch: all of a device's bandwidth to any other. full: a link to each other, which share the
    bandwidth. mesh, torus: neighbours in `shape`. graph: the `edges`, each of `bandwidth`.
    """

    topology: Literal["ring", "switch", "full", "mesh", "torus", "graph"] = "ring"
    bandwidth: Bandwidth = Field(gt=0, description="of one device in each direction; of one edge in mesh, torus, graph")
    latency: Time = Field(ge=0, description="of one step: from the last byte sent until the neighbour may use it")
    energy: BitEnergy = Field(default=0.0, description="per bit sent, both ends")
    devices: Positive | None = Field(default=None, description="most devices of a group; none: as many as asked for")
    shape: tuple[Positive, ...] = Field(default=(), description="devices along each dimension of a mesh or torus")
    edges: tuple[tuple[int, int], ...] = Field(default=(), description="pairs of devices that a graph joins, both ways")
    copies: Copies | None = Field(default=None, description="kernels of collectives; none: they bound nothing")
    call: dict[str, Time] = Field(
        default_factory=dict, description="of the host, by collective; `other` for the rest: they follow no faster"
    )
    algorithms: tuple[Literal["ring", "tree", "direct"], ...] = Field(
        default=("ring", "tree"), min_length=1, description="of the library, for reductions and gathers"
    )
    protocols: dict[str, Protocol] = Field(default_factory=dict, description="the fastest is used")
    beyond: Links | None = Field(default=None, description="what joins groups of `devices`, bandwidth a device")

    @model_validator(mode="after")
    def _consistent(self) -> Links:
        if (self.topology == "graph") != bool(self.edges):
            raise ValueError("edges belong to topology graph, and to it only")
        if (self.topology in ("mesh", "torus")) != bool(self.shape):
            raise ValueError("shape belongs to topologies mesh and torus, and to them only")
        if self.beyond is not None and self.devices is None:
            raise ValueError("devices must say how large the groups are that beyond joins")
        if any(min(edge) < 0 or edge[0] == edge[1] for edge in self.edges):
            raise ValueError("edges join two different devices, counted from 0")
        if self.topology == "graph":
            from sim.links.topology import joined

            joined(self.edges, self.devices)
        return self
