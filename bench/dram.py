"""Requests a second of single memory channels, beside bars and a baseline of the same run: `python -m bench.dram`.

The baseline is the same requests with the steady-state shortcut switched off and offered one by one, which must take
the same cycles and the same commands. A second table says what share of the peak a stream reaches on every memory that
ships; `--write` puts it into docs/memory.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench._measure import best
from sim.dram_unit import Replay, Requests, replay_requests, summary
from sim.output import write_text
from sim.standards import Memory, Refresh, load_memory

MEMORIES = ("ddr4-3200", "ddr4-3200-matched", "hbm2", "hbm2-neupims")
RANDOM, STREAM = 200_000, 4_000_000
"""Requests of a run; the capacity of a channel may allow fewer."""
IDLE_CLOCKS = 10**9
ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "memory.md"
SHARED = 200_000
"""Bursts of the streams whose share of the peak is compared."""
BARS = {"random reads": 3e6, "stream of reads": 30e6, "stream of writes": 30e6}
"""Requests a second on one channel of DDR4, one core, kernels loaded."""
PEERS = {"random reads": "DRAMsim3, Ramulator 2: about 1e5 requests a CPU second (published runs: 1e3 to 4e5)"}


def columns(burst: np.ndarray, is_write: np.ndarray, memory: Memory) -> Requests:
    """Requests for bursts of a channel."""
    return Requests(
        burst.astype(np.int64) * memory.burst_bytes, is_write.astype(np.int64), np.zeros(len(burst), np.int64)
    )


def random_reads(memory: Memory) -> Requests:
    """Uniform over the channel."""
    burst = np.random.default_rng(2024).integers(0, memory.bursts_per_channel, RANDOM)
    return columns(burst, np.zeros(RANDOM), memory)


def mixed(memory: Memory) -> Requests:
    """The same with every third a write."""
    burst = np.random.default_rng(2025).integers(0, memory.bursts_per_channel, RANDOM)
    return columns(burst, np.arange(RANDOM) % 3 == 2, memory)


def stream(is_write: int, memory: Memory) -> Requests:
    """Consecutive bursts from address 0."""
    n = min(STREAM, memory.bursts_per_channel)
    return columns(np.arange(n), np.full(n, is_write), memory)


PATTERNS: dict[str, Callable[[Memory], Requests]] = {
    "random reads": random_reads,
    "2 reads, 1 write, random": mixed,
    "stream of reads": partial(stream, 0),
    "stream of writes": partial(stream, 1),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One pattern on one channel of a memory: requests a second with everything on and with nothing, and the result."""

    memory: str
    pattern: str
    requests: int
    per_s: float
    plain_per_s: float
    of_peak: float
    equal: bool


def _first(requests: Requests, n: int) -> Requests:
    return Requests(requests.address[:n], requests.is_write[:n], requests.earliest[:n])


def measure(name: str, pattern: str) -> Row:
    """The best of several runs; the wall time is that of the whole run without reading a file."""
    memory = load_memory(name)
    requests = PATTERNS[pattern](memory)
    n = len(requests.address)
    plain = requests if n <= RANDOM else _first(requests, RANDOM)

    def fast(what: Requests) -> Replay:
        return replay_requests(memory, what, 1, follow=False)

    def slow() -> Replay:
        return replay_requests(memory, plain, 1, follow=True, steady=False)

    fast(plain), slow()
    seconds, _ = best(lambda: fast(requests), 5)
    plain_s, stepped = best(slow, 3)
    on, off = (summary(memory, plain, each, check=False) for each in (fast(plain), stepped))
    compared = [key for key in on if key not in ("wall_s", "average_read_latency_ns")]
    whole = summary(memory, requests, fast(requests), check=False)
    return Row(
        name, pattern, n, n / seconds, len(plain.address) / plain_s,
        whole["bandwidth_bytes_per_s"] / memory.channel_peak_bytes_per_s, all(on[key] == off[key] for key in compared),
    )  # fmt: skip


def idle() -> tuple[float, int]:
    """Seconds for two reads a billion clocks apart, and the refreshes between them."""
    memory = load_memory("ddr4-3200")
    requests = Requests(np.array([0, 64]), np.array([0, 0]), np.array([0, IDLE_CLOCKS]))
    seconds, replayed = best(lambda: replay_requests(memory, requests, 1, follow=False), 5)
    return seconds, int(summary(memory, requests, replayed, check=False)["refreshes"])


def stream_share(memory: Memory, is_write: int, bursts: int = SHARED) -> float:
    """Share of the peak that a stream reaches, from the first request to the last beat of its data."""
    from sim.kernels import dram_tables as at

    n = min(bursts, memory.bursts_per_channel)
    state = replay_requests(memory, columns(np.arange(n), np.full(n, is_write), memory), 1, follow=False).state
    return n * memory.burst_ticks / memory.organisation.pseudo_channels / int(state.scalar[0, at.LAST_END])


STREAM_HEADS = ("memory", "refresh", "all banks at once leave", "stream of reads", "of writes")


def stream_rows() -> list[tuple[str, ...]]:
    """Rows under STREAM_HEADS, one for each memory that ships, with its default settings."""
    rows = []
    for name in sorted(path.stem for path in (ROOT / "hwconfigs" / "memories").glob("*.yaml")):
        memory = load_memory(name)
        left = 1 - memory.timings["tRFC"] / memory.timings["tREFI"]
        shares = (left, stream_share(memory, 0), stream_share(memory, 1))
        refresh = memory.refresh.value
        if memory.refresh is Refresh.STAGGERED and memory.organisation.ranks == 1:
            refresh = "all banks"
        rows.append((f"`{name}`", refresh, *(f"{100 * share:.1f} %" for share in shares)))
    return rows


def renewed(text: str) -> str:
    """The document with its table of streams as measured now."""
    head, begin, rest = text.partition("<!-- streams -->\n")
    _, end, tail = rest.partition("<!-- end streams -->")
    lines = [STREAM_HEADS, ("---",) * len(STREAM_HEADS), *stream_rows()]
    table = "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
    return head + begin + table + end + tail


def main() -> int:
    """Print the tables; 0 if all results are equal with the shortcuts on and off, 1 if not. Times are only shown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="only renew the table of streams in docs/memory.md")
    if parser.parse_args().write:
        write_text(DOCUMENT, renewed(DOCUMENT.read_text(encoding="utf-8")))
        return 0
    began = time.perf_counter()
    rows = [measure(name, pattern) for name in MEMORIES for pattern in PATTERNS]
    table = Table(title="opcycle: requests a second on one channel, one core")
    heads = ("memory", "pattern", "requests", "per second", "bar", "within", "one by one", "ratio", "of peak", "result")
    for head in heads:
        table.add_column(head, justify="left" if head in ("memory", "pattern", "result") else "right")
    for row in rows:
        bar = BARS.get(row.pattern) if row.memory.startswith("ddr4") else None
        table.add_row(
            row.memory, row.pattern, f"{row.requests:,}", f"{row.per_s / 1e6:.2f} M", f"{bar / 1e6:g} M" if bar else "",
            "" if bar is None else "yes" if row.per_s >= bar else "NO", f"{row.plain_per_s / 1e6:.2f} M",
            f"{row.per_s / row.plain_per_s:.1f} x", f"{row.of_peak:.1%}", "equal" if row.equal else "CHANGED",
        )  # fmt: skip
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    console.print("one by one: every request offered singly and followed, no steady-state shortcut")
    console.print("; ".join(f"Peers, published, {pattern}: {text}" for pattern, text in PEERS.items()))
    streams = Table(*STREAM_HEADS, title=f"Share of the peak that a stream of {SHARED:,} bursts reaches")
    for cells in stream_rows():
        streams.add_row(*cells)
    console.print(streams)
    seconds, refreshes = idle()
    console.print(f"Idle: {IDLE_CLOCKS:,} clocks with {refreshes:,} refreshes in {seconds * 1e3:.2f} ms")
    console.print(f"Whole bench: {time.perf_counter() - began:.0f} s")
    return 1 if any(not row.equal for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
