"""The streaming graph as written in YAML: channels with a capacity, nodes of a closed set of kinds, all checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sim.config import apply_overrides, build
from sim.document import Document, load_yaml
from sim.errors import ConfigError, show
from sim.units import Frequency

SCHEMA = "opcycle/stream/1"
UNBOUNDED = "inf"
AUTO = "auto"
MOST = 2**40
"""Largest count or capacity; cycles of one step are at most 2**31."""


def _capacity(value: Any) -> Any:
    if value in (UNBOUNDED, AUTO) or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST):
        return value
    raise ValueError(f"is {show(value)}, but must be a whole number of at least 1, {UNBOUNDED} or {AUTO}")


def _every(value: Any) -> Any:
    lengths = value if isinstance(value, (list, tuple)) else [value]
    if lengths and all(isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= MOST for n in lengths):
        return tuple(value) if isinstance(value, list) else value
    raise ValueError(f"is {show(value)}, but must be a whole number of at least 1, or a list of them")


Capacity = Annotated[int | str, BeforeValidator(_capacity, json_schema_input_type=int | Literal["inf", "auto"])]
Every = Annotated[
    int | tuple[int, ...], BeforeValidator(_every, json_schema_input_type=int | list[Annotated[int, Field(ge=1)]])
]
Count = Annotated[int, Field(ge=1, le=MOST)]
Cycles = Annotated[int, Field(ge=0, le=2**31)]
Latency = Annotated[int, Field(ge=1, le=2**31)]
Name = Annotated[str, Field(min_length=1)]
Channels = Annotated[tuple[Name, ...], Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Channel(_Strict):
    """A FIFO from one output of a node to one input of a node."""

    capacity: Capacity = UNBOUNDED
    """Tokens it holds, from the moment one is written to the moment its response is back; `auto`: worked out."""
    send_latency: Latency = 1
    response_latency: Latency = 1
    initial: Annotated[int, Field(ge=0, le=MOST)] = 0
    """Tokens in it at cycle 0."""

    @model_validator(mode="after")
    def _fits(self) -> Channel:
        if isinstance(self.capacity, int) and self.initial > self.capacity:
            raise ConfigError(f"is {self.initial}, but the capacity is {self.capacity}", key="initial")
        return self


class _Node(_Strict):
    name: Name
    ii: Cycles = 1
    """Initiation interval: cycles from the end of a firing's outputs to the next firing."""
    latency: Cycles = 1
    start: Cycles = 0
    """Local time at which the node begins."""
    take: Literal["listed", "together"] = "listed"
    """`together`: no input is taken before all are there."""
    write: Literal["listed", "together"] = "listed"
    """`together`: no output is written before all have room."""


class Source(_Node):
    """Writes `count` tokens to each output."""

    kind: Literal["source"]
    count: Count
    outputs: Channels = Field(alias="out")


class Map(_Node):
    """Takes one token of each input and writes one to each output."""

    kind: Literal["map"]
    inputs: Channels = Field(alias="in")
    outputs: Channels = Field(alias="out")


class _Paced(_Node):
    row_cycles: Cycles = 0
    """Cycles that go by before each row."""


class _Rows(_Paced):
    every: Every
    """Firings in a row: a number, or a list for rows of several lengths by turns."""


class Scan(_Paced):
    """As `map`, with a state that is carried through a row and begins anew with each."""

    kind: Literal["scan"]
    every: Every | None = None
    """As of other kinds with rows; without it, all firings are one row."""
    inputs: Channels = Field(alias="in")
    outputs: Channels = Field(alias="out")


class Reduce(_Rows):
    """Takes one token of each input a firing; writes one to each output with the last firing of a row."""

    kind: Literal["reduce"]
    inputs: Channels = Field(alias="in")
    outputs: Channels = Field(alias="out")


class MemoryReduce(_Rows):
    """As `reduce`, of tokens that are vectors: the state is a memory of vectors."""

    kind: Literal["memory_reduce"]
    inputs: Channels = Field(alias="in")
    outputs: Channels = Field(alias="out")


class Broadcast(_Rows):
    """Takes its first input in every firing, the others in the first firing of a row; writes in every firing."""

    kind: Literal["broadcast"]
    inputs: Annotated[tuple[Name, ...], Field(min_length=2)] = Field(alias="in")
    outputs: Channels = Field(alias="out")


class Repeat(_Rows):
    """Takes one token in the first firing of a row and writes it in every firing."""

    kind: Literal["repeat"]
    inputs: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1)] = Field(alias="in")
    outputs: Channels = Field(alias="out")


Order = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class Merge(_Node):
    """Takes one token a firing, of the inputs by turns; writes it to each output."""

    kind: Literal["merge"]
    inputs: Annotated[tuple[Name, ...], Field(min_length=2)] = Field(alias="in")
    outputs: Channels = Field(alias="out")
    order: Order | None = None
    """Inputs in the order in which they are taken, again and again; one after the other without it."""

    @model_validator(mode="after")
    def _turns(self) -> Merge:
        _check_order(self.order, len(self.inputs), "inputs")
        return self


class Select(_Node):
    """Takes a token of the first input, which tells the values' side which of the others to take; then that one."""

    kind: Literal["select"]
    inputs: Annotated[tuple[Name, ...], Field(min_length=3)] = Field(alias="in")
    outputs: Channels = Field(alias="out")
    order: Order
    """What the first input says, again and again: 0 for the second input, 1 for the third ..."""

    @model_validator(mode="after")
    def _turns(self) -> Select:
        _check_order(self.order, len(self.inputs) - 1, "inputs after the first")
        return self


class Split(_Node):
    """Takes one token a firing and writes it to one of the outputs, by turns."""

    kind: Literal["split"]
    inputs: Annotated[tuple[Name, ...], Field(min_length=1, max_length=1)] = Field(alias="in")
    outputs: Annotated[tuple[Name, ...], Field(min_length=2)] = Field(alias="out")
    order: Order | None = None

    @model_validator(mode="after")
    def _turns(self) -> Split:
        _check_order(self.order, len(self.outputs), "outputs")
        return self


def _check_order(order: tuple[int, ...] | None, ports: int, what: str) -> None:
    wanted = set(range(ports))
    if order is None:
        return
    if set(order) - wanted:
        raise ConfigError(f"is {show(list(order))}, but its numbers must be below {ports}, one for each of the {what}",
                          key="order")  # fmt: skip
    if wanted - set(order):
        raise ConfigError(f"is {show(list(order))}, so number {min(wanted - set(order))} of the {what} is never used",
                          key="order")  # fmt: skip


class Sink(_Node):
    """Takes one token of each input."""

    kind: Literal["sink"]
    inputs: Channels = Field(alias="in")
    ii: Cycles = 0


class _Port(_Node):
    address: Annotated[int, Field(ge=0)] = 0
    """Byte address of the first token, in the memory channel."""
    bursts: Annotated[int, Field(ge=1, le=2**20)] = 1
    """Consecutive bursts that a token is."""
    stride: int | None = None
    """Bytes from one token to the next; without it, tokens lie side by side."""
    channel: Annotated[int, Field(ge=0)] = 0
    """Memory channel."""
    outstanding: Annotated[int, Field(ge=1, le=2**20)] = 64
    """Tokens asked for and not yet delivered, at most."""


class DramRead(_Port):
    """Reads one token a firing from memory; with an input, one for each token of it; `count` tokens otherwise."""

    kind: Literal["dram_read"]
    inputs: tuple[Name, ...] = Field((), alias="in")
    outputs: Channels = Field(alias="out")
    count: Count | None = None

    @model_validator(mode="after")
    def _counted(self) -> DramRead:
        if (self.count is None) != bool(self.inputs):
            raise ConfigError("needs either `count` or an input that asks for each token", key="count")
        return self


class DramWrite(_Port):
    """Writes one token a firing to memory; an output gets a token for each that the memory has accepted."""

    kind: Literal["dram_write"]
    inputs: Channels = Field(alias="in")
    outputs: tuple[Name, ...] = Field((), alias="out")


Node = (
    Source | Map | Scan | Reduce | MemoryReduce | Broadcast | Repeat | Merge | Select | Split | Sink | DramRead
    | DramWrite
)  # fmt: skip
KINDS = {kind.model_fields["kind"].annotation.__args__[0]: kind for kind in Node.__args__}


class Memory(_Strict):
    """The memory that DRAM ports go to."""

    standard: str
    channels: Annotated[int, Field(ge=1, le=4096)] = 1
    settings: dict[str, Any] = {}
    """Values that replace those of the memory's file."""


class Graph(_Strict):
    """A streaming graph that has passed every check that needs no simulation."""

    schema_: Literal["opcycle/stream/1"] = Field("opcycle/stream/1", alias="schema")
    name: str = ""
    clock: Frequency | None = None
    """Clock of the nodes; needed with a memory, which has its own."""
    memory: Memory | None = None
    channels: dict[Name, Channel] = {}
    """Channels that nodes name and that are not here are unbounded."""
    nodes: Annotated[tuple[Annotated[Node, Field(discriminator="kind")], ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _sound(self) -> Graph:
        from sim.stream.checks import check

        check(self)
        return self

    def all_channels(self) -> dict[str, Channel]:
        """Every channel in the order of the file, those that only nodes name last."""
        found = dict(self.channels)
        for node in self.nodes:
            for name in (*inputs_of(node), *outputs_of(node)):
                found.setdefault(name, Channel())
        return found

    def with_capacities(self, capacities: Mapping[str, int | str]) -> Graph:
        """The same graph with other capacities of some channels. Raises ConfigError for a channel that it lacks."""
        channels = self.all_channels()
        for name, capacity in capacities.items():
            if name not in channels:
                from sim.errors import not_among

                raise ConfigError(not_among("channel", name, channels))
            changed = channels[name].model_dump() | {"capacity": capacity}
            channels[name] = build(Channel, changed)
        return self.model_copy(update={"channels": channels})

    def plain(self) -> dict[str, Any]:
        """The graph as data for YAML, without what is left at its default but for capacities."""
        data = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        data["channels"] = {
            name: {"capacity": channel.capacity, **channel.model_dump(mode="json", exclude_defaults=True)}
            for name, channel in self.all_channels().items()
        }
        for i, node in enumerate(data["nodes"]):
            ends = {key: node.pop(key) for key in ("in", "out") if key in node}
            data["nodes"][i] = {"name": node.pop("name"), "kind": node.pop("kind"), **node, **ends}
        return {"schema": SCHEMA, **data}


def inputs_of(node: Node) -> tuple[str, ...]:
    """Names of the channels that a node reads."""
    return () if isinstance(node, Source) else node.inputs


def outputs_of(node: Node) -> tuple[str, ...]:
    """Names of the channels that a node writes."""
    return () if isinstance(node, Sink) else node.outputs


def load_graph(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Graph:
    """Read a graph from the YAML file `path`, or a graph that ships by its name. Raises ConfigError."""
    from sim.catalog import find

    return read_graph(apply_overrides(load_yaml(find("graph", path)), overrides))


def read_graph(document: Document | Mapping[str, Any]) -> Graph:
    """A graph of plain data. Raises ConfigError."""
    return build(Graph, document)
