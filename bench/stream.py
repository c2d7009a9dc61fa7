"""Channel events a second of streaming graphs, beside bars and baselines of the same run: `python -m bench.stream`.

Times are processor time of one core, setting up included, the best of several runs. One baseline is the plain-Python
twin of the tests on a small graph of the same kind; the other, for the closed form, is the same graph token by token,
which must give the same cycles, firings and tokens in flight. Exits with 1 if not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rich.console import Console
from rich.table import Table

from bench._measure import peak_bytes
from sim.stream.attention import Attention, Variant, attention, attention_graph
from sim.stream.engine import Outcome, run_graph
from sim.stream.masks import causal
from sim.stream.schema import Graph
from tests.naive_stream import simulate

EVENTS_BAR = 40e6
"""Channel events a second, token by token, on one core."""
SECONDS_BARS = {("memory_free", 1024): (0.4, 0.4), ("memory_free", 8192): (25.0, 1.0)}
"""Seconds token by token, and with stretches in closed form."""
TWIN = 24
"""Queries of the twin's graph."""


Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Row:
    """One graph: run times with and without closed form, events, and the twin's events a second."""

    name: str
    events: int
    plain_s: float
    steady_s: float
    twin_per_s: float
    equal: bool
    bars: tuple[float, float] | None


def best(call: Callable[[], Value], times: int) -> tuple[float, Value]:
    """Shortest processor time of `times` calls in seconds, and the last result."""
    shortest = float("inf")
    for _ in range(times):
        began = time.process_time()
        value = call()
        shortest = min(shortest, time.process_time() - began)
    return shortest, value


def same(one: Outcome, other: Outcome) -> bool:
    """Whether two runs agree in everything but what they took."""
    return (one.cycles, one.fires, one.times, one.peak_in_flight, one.waits) == (
        other.cycles, other.fires, other.times, other.peak_in_flight, other.waits,
    )  # fmt: skip


def measure(name: str, graph: Graph, small: Graph, bars: tuple[float, float] | None = None, times: int = 3) -> Row:
    """Time `graph` both ways, and the twin on `small`."""
    run_graph(small)
    plain_s, plain = best(lambda: run_graph(graph, steady=False), times)
    steady_s, steady = best(lambda: run_graph(graph), times)
    twin_s, _ = best(lambda: simulate(small), 2)
    rate = run_graph(small).events / twin_s
    return Row(name, plain.events, plain_s, steady_s, rate, same(plain, steady), bars)


def rows(large: bool) -> list[Row]:
    """The graphs of the table; with `large` 8192 queries too, which take several seconds token by token."""
    kinds: tuple[Variant, ...] = ("naive", "max_subtracted", "reordered", "no_max", "memory_free")
    found = []
    for kind in kinds:
        small = attention_graph(attention(kind, TWIN, 64))
        graph = attention_graph(attention(kind, 1024, 64))
        found.append(measure(f"{kind}, 1024", graph, small, SECONDS_BARS.get((kind, 1024))))
    small = attention_graph(attention("memory_free", TWIN, 64))
    short = attention_graph(attention("memory_free", 1024, 64, short=2))
    found.append(measure("memory_free, 1024, capacities 2", short, small))
    masked = attention_graph(Attention("memory_free", 64, causal(2048, 2048)))
    found.append(measure("memory_free, 2048, causal", masked, small))
    lanes = attention_graph(attention("memory_free", 512, 64, heads=8, kv_heads=2, lanes=4))
    found.append(measure("memory_free, 512, 8 heads on 4 lanes", lanes, small))
    if large:
        graph = attention_graph(attention("memory_free", 8192, 64))
        found.append(measure("memory_free, 8192", graph, small, SECONDS_BARS["memory_free", 8192], times=1))
    return found


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.stream", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the graph of 8192 queries")
    large = not parser.parse_args().quick
    table = Table(
        "graph", "events", "token by token", "M events/s", "bar", "x twin", "closed form", "bar", "x faster", "equal"
    )
    measured = rows(large)
    for row in measured:
        rate = row.events / row.plain_s
        bars = [f"{bar:g} s" for bar in row.bars] if row.bars else [f"{EVENTS_BAR / 1e6:.0f} M/s", ""]
        table.add_row(
            row.name, f"{row.events:,}", f"{row.plain_s:.3f} s", f"{rate / 1e6:.0f}", bars[0],
            f"{rate / row.twin_per_s:,.0f}", f"{row.steady_s:.4f} s", bars[1], f"{row.plain_s / row.steady_s:,.0f}",
            "yes" if row.equal else "NO",
        )  # fmt: skip
    Console(width=150).print(table)
    print(f"Most memory held by this process: {peak_bytes() / 2**20:.0f} MiB")
    return 0 if all(row.equal for row in measured) else 1


if __name__ == "__main__":
    sys.exit(main())
