"""Random requests on every memory that ships, replayed against its rule table: `python -m bench.violations`.

Every scheduler serves its share on every memory, in parts that take all the ways of refreshing and of closing pages in
turn. Prints how many commands were checked and how many break a rule; exits with 1 if any does. Requests are reads and
writes at random places and times, a tenth of them to the neighbour of the one before.
"""

from __future__ import annotations

import argparse
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from sim.dram_check import check_log
from sim.dram_unit import Requests, replay_requests
from sim.errors import ConfigError
from sim.kernels import dram_tables as at
from sim.standards import Memory, Page, Policy, Refresh, load_memory

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


def kinds(name: str, policy: str) -> list[Memory]:
    """The memory with every way of refreshing and of closing pages that it and the scheduler know, defaults first.

    None where it cannot have that scheduler.
    """
    try:
        found = [load_memory(name, {"policy": policy})]
    except ConfigError:
        return []  # units that compute in memory have a controller of their own
    for refresh, page in product(Refresh, Page):
        try:
            found.append(load_memory(name, {"policy": policy, "refresh": refresh.value, "page": page.value}))
        except ConfigError:
            continue  # the memory has no such command, or the scheduler never does that
    return found


def check(name: str, policy: str, count: int) -> tuple[int, int, int, tuple[str, ...]]:
    """(kinds, commands, violations, the first in words) of `count` random requests dealt out to the kinds in parts."""
    memories = kinds(name, policy)
    part = min(PART, -(-count // len(memories)))
    commands = violations = 0
    examples: list[str] = []
    for seed in range(-(-count // part)):
        memory = memories[seed % len(memories)]
        requests = random_requests(memory, min(part, count - seed * part), seed)
        replayed = replay_requests(memory, requests, 1, log=8 * part, follow=False)
        logged = int(replayed.state.scalar[0, at.LOGGED])
        if logged >= 8 * part:
            raise RuntimeError(f"{memory.name}: the log is full")
        found = check_log(memory, replayed.state.log[0, :logged])
        commands, violations = commands + logged, violations + found.count
        examples += [f"{memory.refresh}, {memory.controller.page}: {text}" for text in found.examples[:3]]
    return len(memories), commands, violations, tuple(examples)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("memories", nargs="*", help="names; all that ship without any")
    parser.add_argument("--requests", type=int, default=1_000_000, help="of each memory and scheduler")
    options = parser.parse_args()
    began = time.perf_counter()
    table = Table("memory", "scheduler", "kinds", "requests", "commands", "violations", "seconds")
    broken = False
    for name in options.memories or sorted(path.stem for path in MEMORIES.glob("*.yaml")):
        for policy in Policy:
            started = time.perf_counter()
            if not kinds(name, policy.value):
                continue
            tried, commands, violations, examples = check(name, policy.value, options.requests)
            broken |= violations > 0
            table.add_row(
                name, policy.value, str(tried), f"{options.requests:,}", f"{commands:,}", f"{violations:,}",
                f"{time.perf_counter() - started:.1f}",
            )  # fmt: skip
            for text in examples[:3]:
                table.add_row("", "", "", "", text, "", "")
    console = Console(width=None if sys.stdout.isatty() else 150)
    console.print(table)
    console.print(
        f"kinds: ways of refreshing ({', '.join(Refresh)}) and of closing pages ({', '.join(Page)}) that both know; "
        f"{time.perf_counter() - began:.0f} s"
    )
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
