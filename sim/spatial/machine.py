"""What the description of a streaming machine may say: compute tiles, memory tiles, FIFOs, DRAM ports, a network.

A compute tile has `lanes` columns of `stages` pipelined units. A product puts columns of the result in the lanes and
rows in the stages and takes one step of the inner dimension a cycle; a vector function puts elements in the lanes and
one primitive in each stage.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.cost.vector import PRIMITIVES
from sim.errors import ConfigError, not_among
from sim.machine import Chip, Machine, Positive, Rate, Strict
from sim.units import Bytes, Frequency, Time


class ComputeTiles(Strict):
    """Tiles that compute, all alike, on a grid with the memory tiles between them."""

    rows: Positive = Field(description="rows of the grid of compute tiles")
    columns: Positive = Field(description="columns of the grid of compute tiles")
    lanes: Positive = Field(description="columns of a product, or elements of a vector, that a tile works on at once")
    stages: Positive = Field(description="rows of a product, or primitives in a pipeline, of each lane")
    formats: dict[str, Rate] = Field(
        description="number format: multiply-accumulates per lane, stage and cycle", min_length=1
    )
    primitives: dict[str, Positive] = Field(
        default_factory=dict, description="stages that a primitive takes (exp, tanh ...); 1 where it is not named"
    )

    @model_validator(mode="after")
    def _known(self) -> ComputeTiles:
        for name in self.primitives:
            if name not in PRIMITIVES:
                raise ConfigError(not_among("primitive", name, PRIMITIVES), key="primitives")
        return self

    @property
    def count(self) -> int:
        """Compute tiles of the machine."""
        return self.rows * self.columns


class MemoryTiles(Strict):
    """Scratchpads on the grid: weights that stay, keys and values, and the FIFOs between nodes."""

    count: Positive = Field(description="memory tiles")
    capacity: Bytes = Field(gt=0, description="of one tile")


class Fifo(Strict):
    """The channels between nodes; their tokens lie in memory tiles."""

    depth: Positive = Field(description="tokens that a channel holds where nothing asks for more")
    count: Positive = Field(description="channels that a section may have")


class DramPorts(Strict):
    """Where streams leave the chip for the memory."""

    count: Positive = Field(description="streams to and from DRAM that a section may have")
    bytes_per_cycle: Positive = Field(description="that one port hands on")
    window: Bytes = Field(gt=0, description="that one port has asked for and not yet handed on")


class Network(Strict):
    """The on-chip network between tiles."""

    hop: Annotated[int, Field(ge=0)] = Field(description="cycles from a tile to the next")


class Mapping(Strict):
    """Choices of the mapper that are no hardware."""

    tiles: Literal["balanced", "one"] = Field(
        default="balanced", description="balanced: tiles go to the slowest operators; one: a tile to each operator"
    )
    blocks: Positive = Field(default=512, description="tokens that the rows of a section are cut into, where they fit")
    key_tile: Positive = Field(default=128, description="keys of one step of attention")
    sections: Literal["fastest", "fewest"] = Field(
        default="fastest", description="fewest: as many operators as fit; fastest: a layer in two where that takes less"
    )
    prefetch: bool = Field(
        default=True, description="weights of the next section are read while one runs, where there is room and time"
    )


class StreamMachine(Machine):
    """A machine of compute tiles and memory tiles joined by FIFOs, with ports to DRAM."""

    kind: Literal["stream"] = "stream"
    clock: Frequency
    compute_tiles: ComputeTiles
    memory_tiles: MemoryTiles
    fifo: Fifo
    ports: DramPorts
    network: Network
    reconfigure: Time = Field(description="from the end of a section to the start of another")
    mapping: Mapping = Field(default_factory=Mapping)

    @property
    def formats(self) -> tuple[str, ...]:
        """Number formats that the tiles multiply."""
        return tuple(self.compute_tiles.formats)

    @property
    def lanes(self) -> int:
        """Multiply-accumulate lanes of all tiles."""
        tiles = self.compute_tiles
        return tiles.count * tiles.lanes * tiles.stages

    def peak_flops_per_s(self, number_format: str) -> float:
        """FLOP/s (two a multiply-accumulate) of all tiles in `number_format`."""
        return float(2 * self.lanes * self.clock * self.compute_tiles.formats[number_format])

    @property
    def sram_bytes(self) -> int:
        """Bytes of all memory tiles."""
        return self.memory_tiles.count * int(self.memory_tiles.capacity)

    @property
    def abilities(self) -> frozenset[str]:
        """Kinds of engine that methods may ask for."""
        return super().abilities | {"stream"}

    @property
    def chip(self) -> Chip:
        """A memory tile is what an access pays for."""
        return Chip(int(self.memory_tiles.capacity), self.sram_bytes, self.lanes)

    @property
    def compute(self) -> str:
        """Tiles and their shape."""
        tiles = self.compute_tiles
        return f"{tiles.count} tiles of {tiles.lanes}x{tiles.stages}"

    @property
    def facts(self) -> dict[str, str]:
        """How tiles are given to operators."""
        return {"tiles": self.mapping.tiles}
