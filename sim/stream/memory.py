"""The DRAM ports of a graph: their addresses checked and compiled, the memory channels they go to, and its counts."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sim.errors import ConfigError
from sim.kernels import dram_tables as dram
from sim.kernels.stream_dram import Ports
from sim.machine import dotted
from sim.standards import Memory, compile_memory, load_memory, new_state
from sim.stream.checks import firings
from sim.stream.schema import DramRead, DramWrite, Graph

if TYPE_CHECKING:
    from sim.stream.tables import Compiled


class Attached(NamedTuple):
    """The memory of a graph at work."""

    memory: Memory
    tables: dram.DramTables
    state: dram.ChannelState
    ports: Ports


def attach(graph: Graph, compiled: Compiled) -> Attached:
    """Idle memory channels for the ports of `graph`. Raises ConfigError, with the key, for addresses it lacks."""
    assert graph.memory is not None
    assert graph.clock is not None
    try:
        memory = load_memory(graph.memory.standard, dict(dotted(graph.memory.settings)))
        memory.check_channels(graph.memory.channels)
    except ConfigError as error:
        raise ConfigError(error.message, key="memory") from None
    fires = firings(graph)
    rows = []
    ring = 64
    for i, node in enumerate(graph.nodes):
        if isinstance(node, (DramRead, DramWrite)):
            rows.append(_port(memory, node, f"nodes.{i}", fires[node.name], compiled))
            ring += 2 * node.outstanding
    columns = np.array(rows, np.int64).reshape(-1, 5)
    ratio = Fraction(10**12, graph.clock) / memory.period
    tables = compile_memory(memory)
    state = new_state(tables, graph.memory.channels, ring)
    never = np.full(graph.memory.channels, dram.NEVER, np.int64)
    channel, is_write, lo, stride, bursts = columns.T.copy()
    sent = np.zeros(len(rows), np.int64)
    ports = Ports(channel, is_write, lo, stride, bursts, sent, never, ratio.numerator, ratio.denominator)
    return Attached(memory, tables, state, ports)


def _port(memory: Memory, node: DramRead | DramWrite, key: str, fires: int, compiled: Compiled) -> tuple[int, ...]:
    from sim.stream.tables import REQUESTS

    burst = memory.burst_bytes
    stride = node.bursts * burst if node.stride is None else node.stride
    for name, value in (("address", node.address), ("stride", stride)):
        if value % burst:
            wanted = f"a multiple of {memory.name}'s burst of {burst} B"
            raise ConfigError(f"is {value}, but must be {wanted}", key=f"{key}.{name}")
    end = node.address + (fires - 1) * stride + node.bursts * burst
    if end > memory.capacity_bytes_per_channel:
        raise ConfigError(
            f"leads to byte {end:#x}, but a channel of {memory.name} ends at {memory.capacity_bytes_per_channel:#x}",
            key=f"{key}.address",
        )
    channel = compiled.channels.index(node.name + REQUESTS)
    return channel, int(isinstance(node, DramWrite)), node.address // burst, stride // burst, node.bursts


def drain(attached: Attached) -> None:
    """Let the memory do everything that was asked of it."""
    from sim.kernels.dram import advance

    state = attached.state
    for c in range(len(state.count)):
        while advance(attached.tables, state, c, dram.NEVER) < dram.NEVER or state.done_count[c]:
            state.done_count[c] = 0


def counts(attached: Attached) -> dict[str, Any]:
    """What the memory has done once everything that was asked of it is done."""
    drain(attached)
    state, memory = attached.state, attached.memory
    total = state.count.sum(axis=0)
    return {
        "standard": memory.name,
        "bytes_read": int(total[dram.RD]) * memory.burst_bytes,
        "bytes_written": int(total[dram.WR]) * memory.burst_bytes,
        "activates": int(total[dram.ACT]),
        "row_hits": int(total[dram.HITS]),
        "row_misses": int(total[dram.MISSES]),
        "row_conflicts": int(total[dram.CONFLICTS]),
    }
