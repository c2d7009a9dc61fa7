"""Wall time and memory of this process and of commands, and whether two simulated passes are exactly equal."""

from __future__ import annotations

import gc
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from sim.passes import PassResult

ROOT = Path(__file__).resolve().parent.parent
Value = TypeVar("Value")


def best(call: Callable[[], Value], times: int) -> tuple[float, Value]:
    """Shortest wall time of `times` calls in seconds, and the last result. Others disturb it least."""
    shortest = float("inf")
    for _ in range(times):
        gc.collect()
        began = time.perf_counter()
        value = call()
        shortest = min(shortest, time.perf_counter() - began)
    return shortest, value


def peak_bytes() -> int:
    """Most memory that this process has held so far (resident)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def command(arguments: Sequence[str], times: int = 5) -> float:
    """Median wall time in seconds of a command run from the checkout, after one run that does not count.

    Raises CalledProcessError if it fails.
    """
    walls = []
    for _ in range(times + 1):
        began = time.perf_counter()
        subprocess.run(arguments, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        walls.append(time.perf_counter() - began)
    return statistics.median(walls[1:])


def equal(one: PassResult, other: PassResult) -> bool:
    """Whether two results agree: every task's times and work, the end, every count of the memory."""
    times = ("start_ps", "release_ps", "finish_ps")
    columns = ("unit", "op", "macs", "vector_ops", "dram_read_bytes", "dram_write_bytes")
    return (
        one.schedule.makespan_ps == other.schedule.makespan_ps
        and one.schedule.memory == other.schedule.memory
        and all(np.array_equal(getattr(one.schedule, name), getattr(other.schedule, name)) for name in times)
        and all(np.array_equal(getattr(one.tasks, name), getattr(other.tasks, name)) for name in columns)
    )
