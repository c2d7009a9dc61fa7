"""Random requests on every memory that ships, replayed against its rule table: `python -m bench.violations`.

Prints, for each memory, how many commands were checked and how many break a rule; exits with 1 if any does. Requests
are reads and writes at random places and times, a tenth of them to the neighbour of the one before.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from sim.dram_check import check_log
from sim.dram_unit import Requests, replay_requests
from sim.kernels import dram_tables as at
from sim.standards import Memory, load_memory

MEMORIES = Path(__file__).resolve().parent.parent / "hwconfigs" / "memories"
PART = 50_000
"""Requests of one replay: logs are held in memory."""


def random_requests(memory: Memory, count: int, seed: int) -> Requests:
    """`count` requests of one channel; the pauses between them are now and then longer than a refresh interval."""
    numbers = np.random.default_rng(seed)
    burst = numbers.integers(0, memory.bursts_per_channel, count)
    near = np.flatnonzero(numbers.random(count) < 0.1)
    near = near[near > 0]
    burst[near] = np.minimum(burst[near - 1] + 1, memory.bursts_per_channel - 1)
    pause = numbers.integers(0, 12, count)
    pause[numbers.random(count) < 1e-4] = 3 * memory.timings["tREFI"]
    writes = (numbers.random(count) < 0.35).astype(np.int64)
    return Requests(burst * memory.burst_bytes, writes, np.cumsum(pause))


def check(memory: Memory, count: int) -> tuple[int, int, tuple[str, ...]]:
    """(commands, violations, the first in words) of `count` random requests."""
    commands = violations = 0
    examples: tuple[str, ...] = ()
    for seed in range(-(-count // PART)):
        requests = random_requests(memory, min(PART, count - seed * PART), seed)
        replayed = replay_requests(memory, requests, 1, log=8 * PART, follow=False)
        logged = int(replayed.state.scalar[0, at.LOGGED])
        if logged >= 8 * PART:
            raise RuntimeError(f"{memory.name}: the log is full")
        found = check_log(memory, replayed.state.log[0, :logged])
        commands, violations = commands + logged, violations + found.count
        examples = examples or found.examples
    return commands, violations, examples


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("memories", nargs="*", help="names; all that ship without any")
    parser.add_argument("--requests", type=int, default=1_000_000, help="of each memory")
    options = parser.parse_args()
    table = Table("memory", "requests", "commands", "violations", "seconds")
    broken = False
    for name in options.memories or sorted(path.stem for path in MEMORIES.glob("*.yaml")):
        started = time.perf_counter()
        commands, violations, examples = check(load_memory(name), options.requests)
        broken |= violations > 0
        table.add_row(
            name, f"{options.requests:,}", f"{commands:,}", f"{violations:,}", f"{time.perf_counter() - started:.1f}"
        )
        for text in examples[:3]:
            table.add_row("", "", text, "", "")
    Console().print(table)
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
