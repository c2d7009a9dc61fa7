"""What sweeps and searches cost: throughput of one and two jobs, cost of a point beyond its simulation, memory, fronts.

`python -m bench.sweep [throughput] [fidelity] [overhead] [memory] [search] [--points N]`; all of them by default. Every
sweep is without the cache of points, in one run on one machine; all but the search take the number of points given.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from bench._measure import peak_bytes
from sim.roofline_machine import RooflineEngine
from sim.sweep.front import hypervolume, pareto
from sim.sweep.local import Task, solve, solve_all
from sim.sweep.run import run_sweep
from sim.sweep.search import run_search
from sim.sweep.space import Space
from sim.sweep.spec import Spec
from sim.sweep.study import Sampler

DECODE = Spec(
    name="decode",
    hardware="npu-hbm2",
    workload="llama3-8b-decode",
    axes={
        "hw.array.rows": [32, 64, 128, 256],
        "hw.array.columns": [32, 64, 128, 256],
        "hw.scratchpad.capacity": ["8 MiB", "16 MiB", "32 MiB", "64 MiB", "128 MiB"],
        "hw.memory.channels": [8, 16, 32, 64, 128],
        "workload.batch": [1, 2, 4, 8, 16],
    },
    set={"workload.steps": 1},
)
"""2,000 points of one decode step of Llama-3 8B."""

CHEAP = Spec(
    name="cheap",
    hardware="a100-roofline",
    workload="bert-large-encode",
    axes={
        "hw.memory.channels": [8, 16, 32, 64, 128],
        "hw.vector_ops_per_cycle": {"from": 256, "to": 16384, "factor": 2},
        "hw.cache": {"from": "1 MiB", "to": "64 MiB", "factor": 2},
        "hw.clock": {"from": "0.5 GHz", "to": "2 GHz", "step": 0.125},
        "workload.batch": [1, 2, 4, 8, 16, 32, 64],
        "workload.prompt": [128, 256, 512, 1024, 2048, 4096, 8192],
    },
    set={"hw.die": None},
)
"""Points that take next to no time: what is left is the sweep itself."""

MACS = list(range(16384, 278529, 16384))
FORMATS = {"tf32": 0.5, "bf16": 1, "fp16": 1, "int8": 2}
DESIGN = Spec(
    name="design",
    hardware="a100-roofline",
    workload="vit-b-encode",
    axes={
        "hw.memory.channels": {"from": 16, "to": 144, "step": 16},
        **{f"hw.macs_per_cycle.{name}": [int(rate * macs) for macs in MACS] for name, rate in FORMATS.items()},
        "hw.vector_ops_per_cycle": {"from": 1024, "to": 7168, "step": 1024},
        "hw.cache": {"from": "4 MiB", "to": "28 MiB", "step": 4},
        "hw.clock": ["0.8 GHz", "1.2 GHz", "1.6 GHz"],
    },
    zip=[[f"hw.macs_per_cycle.{name}" for name in FORMATS]],
    set={"hw.die": None, "workload.batch": 64},
)
"""A space of time against area, cheap enough to be tried whole."""
GOALS = {"time_s": "min", "area_mm2": "min"}
PART = 0.02
"""Part of the points that a search may try."""

Rows = list[tuple[str, str, str, bool]]


ROUNDS = 4
"""Most parts in which one job and two take turns; each has fifty points or more, beside which a start is little."""
SAMPLED = DECODE.model_copy(update={"fidelity": "sampled"})


def throughput(points: int) -> Rows:
    """Points a second with one job and with two, on the same points, spread over the space: sampled, and exact."""
    rows: Rows = []
    for spec, part in ((SAMPLED, points), (DECODE, max(points // 20, 1))):
        tasks = sample(spec, part)
        walls = {1: 0.0, 2: 0.0}
        for _ in solve_all(spec, iter(tasks[:2]), 1, None):
            pass  # kernels and files are warm
        # In turns, so that whatever else the machine does meets both alike.
        rounds = max(1, min(ROUNDS, len(tasks) // 50))
        for first in range(rounds):
            for jobs in walls:
                began = time.perf_counter()
                done = sum(1 for _ in solve_all(spec, iter(tasks[first::rounds]), jobs, None))
                walls[jobs] += time.perf_counter() - began
                assert done == len(tasks[first::rounds])
        whole = walls[2] * Space(spec).size / len(tasks)
        gain = walls[1] / walls[2]
        what = f"{Space(spec).size:,} points of a decode step, {spec.fidelity}, two jobs, from {len(tasks):,}"
        rows.append((what, f"{whole:.0f} s", "60 s", whole < 60))
        rows.append((f"two jobs over one, {spec.fidelity}", f"{gain:.2f}", "1.7", gain >= 1.7))
    return rows


def fidelity(points: int) -> Rows:
    """How far sampled points are from exact ones."""
    apart: dict[str, list[float]] = {"time_s": [], "energy_j": [], "dram_bytes": []}
    for _, keys in sample(DECODE, points):
        rows = [solve(spec, keys, None) or {} for spec in (SAMPLED, DECODE)]
        if {row["status"] for row in rows} == {"ok"}:
            for name, errors in apart.items():
                errors.append(abs(rows[0][name] / rows[1][name] - 1))
    count = len(apart["time_s"])
    return [
        (f"sampled against exact, {count} points: {name}, mean and worst", f"{mean:.2%}, {max(errors):.2%}", "1 %",
         mean <= 0.01)
        for name, errors in apart.items() for mean in [sum(errors) / count]
    ]  # fmt: skip


def overhead(points: int) -> Rows:
    """Milliseconds of a point beyond the engine that simulates it."""
    spent = 0.0
    run = RooflineEngine.run

    def timed(engine: RooflineEngine, work: Any) -> Any:
        nonlocal spent
        began = time.process_time()
        result = run(engine, work)
        spent += time.process_time() - began
        return result

    tasks = sample(CHEAP, min(points, 1000))
    for _, keys in tasks[:20]:
        solve(CHEAP, keys, None)
    with mock.patch.object(RooflineEngine, "run", timed):
        began = time.process_time()
        for _, keys in tasks:
            solve(CHEAP, keys, None)
        each = (time.process_time() - began - spent) / len(tasks)
    return [("a point beyond its simulation", f"{1e3 * each:.2f} ms", "5 ms", each < 0.005)]


def memory(points: int) -> Rows:
    """Resident bytes of this process while a sweep of cheap points runs, and at its end."""
    points = Space(shortened(points)).size
    held: list[int] = []

    def watch(done: int, of: int) -> None:
        if done % max(points // 20, 1) == 0:
            gc.collect()
            held.append(resident_bytes())

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        run_sweep(shortened(points), Path(folder) / "out", jobs=2, cached=False, progress=watch)
        wall = time.perf_counter() - began
    grown = held[-1] - held[len(held) // 4]
    peak = peak_bytes()
    return [
        (f"{points:,} points in {wall:.0f} s: memory gained over the last three quarters", f"{grown / 1e6:.0f} MB",
         "50 MB", grown < 50e6),
        ("most memory of the process", f"{peak / 1e9:.2f} GB", "1 GB", peak < 1e9),
    ]  # fmt: skip


def search() -> Rows:
    """Part of the exhaustive front's hypervolume that a search finds with 2 % of the points, and draws of as many.

    Measured from just beyond the worst of the front in each goal: points far from it count for nothing.
    """
    space = Space(DESIGN)
    tasks = [(number, space.point(number) or {}) for number in range(space.size)]
    began = time.perf_counter()
    rows = [row for _, row in solve_all(DESIGN, iter(tasks), 2, None) if row["status"] == "ok"]
    told: Rows = []
    trials = int(PART * space.size)
    what = f"{trials:,} of {space.size:,} points, all in {time.perf_counter() - began:.0f} s"
    for aims in (GOALS, {**GOALS, "energy_j": "min"}):
        goals = list(aims.values())
        values = [[row[name] for name in aims] for row in rows]
        best = [values[i] for i in pareto(values, goals)]
        corner = [max(column) * 1.01 for column in zip(*best, strict=True)]
        whole = hypervolume(best, goals, corner)
        worst = {}
        for sampler in (Sampler.TPE, Sampler.RANDOM):
            parts = []
            for seed in range(3):
                with tempfile.TemporaryDirectory() as folder:
                    found = run_search(
                        DESIGN, folder, trials=trials, objectives=aims, sampler=sampler, seed=seed, cached=False
                    )
                    mine = [[row[name] for name in aims] for row in found.front.to_pylist()]
                    parts.append(hypervolume(mine, goals, corner) / whole)
            worst[sampler] = min(parts)
        tpe, drawn = worst[Sampler.TPE], worst[Sampler.RANDOM]
        heading = f"hypervolume, {len(aims)} objectives, {what}; random draws {drawn:.1%}; worst of 3 seeds"
        told.append((heading, f"{tpe:.2%}", "98 %", tpe >= 0.98))
    return told


def sample(spec: Spec, points: int) -> list[Task]:
    """`points` points spread evenly at random over a space, in order of their numbers."""
    space = Space(spec)
    chosen = sorted(random.Random(1).sample(range(space.size), min(points, space.size)))
    return [(number, keys) for number in chosen if (keys := space.point(number)) is not None]


def shortened(points: int) -> Spec:
    """The cheap space with as many clocks as make `points` points or a few more."""
    each = Space(CHEAP).size // 13
    clocks = [f"{500 + 10 * i} MHz" for i in range(max(1, -(-points // each)))]
    return CHEAP.model_copy(update={"axes": {**CHEAP.axes, "hw.clock": clocks}})


def resident_bytes() -> int:
    """Memory that this process holds now; its peak where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return peak_bytes()
    return pages * 4096


def main() -> int:
    """Print what was asked for beside the bars; 1 if one is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", choices=["throughput", "fidelity", "overhead", "memory", "search", []])
    parser.add_argument("--points", type=int, default=0)
    asked = parser.parse_args()
    parts: dict[str, Callable[[], Rows]] = {
        "throughput": lambda: throughput(asked.points or 2000),
        "fidelity": lambda: fidelity(asked.points or 200),
        "overhead": lambda: overhead(asked.points or 1000),
        "memory": lambda: memory(asked.points or 100_000),
        "search": search,
    }
    table = Table("", "measured", "bar", "")
    missed = 0
    for name in asked.what or parts:
        for what, measured, bar, met in parts[name]():
            table.add_row(what, measured, bar, "met" if met else "missed")
            missed += not met
    Console(width=150).print(table)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
