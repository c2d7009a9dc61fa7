"""Hand-made passes and a hand-made machine for the tests of report, energy and figures."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from sim.machine import Chip
from sim.passes import MemoryCounts, OpRow, PassResult, Schedule, TaskTable, UnitRow
from sim.result import Report
from sim.run_info import RunInfo
from sim.standards import Memory, load_memory


@cache
def hbm2() -> Memory:
    """HBM2 with the currents and timings of a published device file: 128-bit channel, one device, 64 B in 2 ns."""
    unstated = dict.fromkeys(("currents.IDD5PB", "currents.IDD2P", "currents.IDD3P", "currents.IDD6"))
    return load_memory("hbm2-neupims", {"name": "hbm2", **unstated})


def machine(dram: Any = None, table: str = "7nm", dram_io: float | None = None) -> Any:
    """One core of 8 arrays of 128 x 128 at 1 GHz: 262.144 TFLOP/s in bf16, twice that in int8, 1024 GB/s."""
    peaks = {"bf16": 262.144e12, "int8": 524.288e12}
    return SimpleNamespace(
        technology="7 nm",
        fabric="asic",
        die=100.0,
        clock=10**9,
        scratchpad_bytes_per_s=16.384e12,
        formats=("bf16", "int8"),
        facts={"preload_model": "double_buffered", "dataflow": "ws"},
        chip=Chip(sram_access_bytes=8 << 20, sram_bytes=10 << 20, lanes=8 * 128 * 128),
        energy=SimpleNamespace(table=table, wire_length=2.0, dram_io=dram_io),
        dram=dram or hbm2(),
        capacity_bytes=32 << 30,
        peak_bytes_per_s=1.024e12,
        peak_flops_per_s=peaks.__getitem__,
    )


UNITS = (
    UnitRow("array", "array", 8, 262.144e12, "flop"),
    UnitRow("vector", "vector", 8, 1.024e12, "vector"),
    UnitRow("dma.load", "dma", 2, 1.024e12, "byte"),
    UnitRow("dma.store", "dma", 1, 1.024e12, "byte"),
    UnitRow("sync", "sync", 2**40, 0.0, "none"),
)

COLUMNS = (
    "macs",
    "vector_ops",
    "sram_read_bytes",
    "sram_write_bytes",
    "accumulator_bytes",
    "dram_read_bytes",
    "dram_write_bytes",
    "link_bytes",
)


def op(name: str, layer: int = 0, **changes: Any) -> OpRow:
    """An operator of block `layers` without work, but for `changes`."""
    fields: dict[str, Any] = {
        "name": name,
        "kind": "matmul",
        "role": "ffn",
        "block": "layers",
        "layer": layer,
        "pass_name": "decode",
        "phase": "decode",
        "flops": 0,
        "vector_ops": 0,
        "read_bytes": 0,
        "write_bytes": 0,
        "format": "bf16",
        "decisions": {},
    }
    return OpRow(**(fields | changes))


def counts(read: int = 0, written: int = 0, **changes: Any) -> MemoryCounts:
    """Memory counts with one command per 64 B and nothing else, but for `changes`."""
    fields: dict[str, Any] = {
        "commands": {"ACT": 1, "RD": read // 64, "WR": written // 64},
        "standby_ps": {},
        "bytes_read": read,
        "bytes_written": written,
        "row_hits": 0,
        "row_misses": 0,
        "row_conflicts": 0,
    }
    return MemoryCounts(**(fields | changes))


def one_pass(
    ops: list[OpRow],
    tasks: list[tuple[int, int, int, int, dict[str, int]]],
    memory: MemoryCounts | None = None,
    **changes: Any,
) -> PassResult:
    """A pass from tasks (unit, operator, start_ps, finish_ps, {column: amount}); `late_ps` is how long results trail
    behind.
    """
    late_ps = changes.pop("late_ps", 0)
    table = {name: np.array([t[4].get(name, 0) for t in tasks], np.int64) for name in COLUMNS}
    unit, which, start, finish = (np.array([t[i] for t in tasks], np.int64) for i in range(4))
    release, finish = finish, finish + late_ps
    moved = {n: int(table[n].sum()) for n in ("dram_read_bytes", "dram_write_bytes")}
    memory = memory or counts(moved["dram_read_bytes"], moved["dram_write_bytes"])
    fields: dict[str, Any] = {
        "name": "decode",
        "phase": "decode",
        "tokens": 4,
        "generated": 4,
        "repeat": 1,
        "ops": tuple(ops),
        "units": UNITS,
        "tasks": TaskTable(unit=unit, op=which, **table),
        "schedule": Schedule(start, release, finish, int(finish.max(initial=0)), memory),
    }
    return PassResult(**(fields | changes))


def report(*passes: PassResult, on: Any = None, **info: Any) -> Report:
    """A report of `passes` on the machine of this module."""
    about = {
        "hardware": "npu-test",
        "workload": "two-layers",
        "hwconfig_yaml": "name: npu\n",
        "workload_yaml": "name: w\n",
    }
    return Report(on or machine(), RunInfo(**(about | info)), passes, wall_s=0.25)


def decoder(layers: int = 40, tiles: int = 400, hidden: int = 5120, batch: int = 64, context: int = 1024) -> PassResult:
    """A made-up decode step of the shape of GPT-3 13B: `layers` layers of about `8 * tiles` tasks, on the units above.

    Loads run ahead of compute by two tiles and are limited by DRAM; the times are plausible, not simulated.
    """
    kv = 2 * 2 * batch * context * hidden
    shape = (  # name, kind, role, weight bytes, macs, vector operations
        ("norm_1", "reduce", "norm", 0, 0, 8 * batch * hidden),
        ("qkv", "matmul", "attention", 2 * 3 * hidden**2, batch * 3 * hidden**2, 0),
        ("attention", "attention", "attention", kv, batch * 2 * context * hidden, 5 * batch * context * 40),
        ("out_proj", "matmul", "attention", 2 * hidden**2, batch * hidden**2, 0),
        ("add_1", "elementwise", "norm", 0, 0, batch * hidden),
        ("norm_2", "reduce", "norm", 0, 0, 8 * batch * hidden),
        ("up", "matmul", "ffn", 8 * hidden**2, 4 * batch * hidden**2, 0),
        ("gelu", "elementwise", "ffn", 0, 0, 32 * batch * hidden),
        ("down", "matmul", "ffn", 8 * hidden**2, 4 * batch * hidden**2, 0),
        ("add_2", "elementwise", "norm", 0, 0, batch * hidden),
    )
    ops: list[OpRow] = []
    rows: list[tuple[int, int, int, int, dict[str, int]]] = []
    loaded = computed = stored = 0
    for layer in range(layers):
        for name, kind, role, weight, macs, vector in shape:
            out = 2 * batch * hidden
            ops.append(
                op(
                    name,
                    layer,
                    kind=kind,
                    role=role,
                    flops=2 * macs,
                    vector_ops=vector,
                    read_bytes=weight + out,
                    write_bytes=out,
                    decisions={"attention": "flash"} if kind == "attention" else {"tile": "64x128x512"},
                )
            )
            n = tiles if weight else 1
            for _ in range(n):
                if weight:
                    size = weight // n
                    start, loaded = loaded, loaded + int(size / 0.93)
                    rows.append((2, len(ops) - 1, start, loaded, {"dram_read_bytes": size, "sram_write_bytes": size}))
                begin = max(computed, loaded)
                computed = begin + (macs // n * 1000 // 131_072 if macs else 0) + vector // n
                if macs:
                    work = {"macs": macs // n, "sram_read_bytes": weight // n, "accumulator_bytes": macs // n // 64}
                    rows.append((0, len(ops) - 1, begin, computed, work))
                if vector:
                    amount = {"vector_ops": vector // n, "sram_read_bytes": 2 * vector // n}
                    rows.append((1, len(ops) - 1, computed - vector // n, computed, amount))
            if name in ("qkv", "attention"):
                begin = max(stored, computed)
                stored = begin + out
                rows.append((3, len(ops) - 1, begin, stored, {"dram_write_bytes": out, "sram_read_bytes": out}))
    read = sum(r[4].get("dram_read_bytes", 0) for r in rows)
    written = sum(r[4].get("dram_write_bytes", 0) for r in rows)
    end = max(r[3] for r in rows)
    memory = counts(
        read,
        written,
        commands={"ACT": read // 1024, "RD": read // 64, "WR": written // 64, "REF": 64 * end // 3_900_000},
        standby_ps={"active": 60 * end, "precharged": 2 * end, "refresh": 2 * end},
        channel_busy_ps=tuple(int((read + written) / 1024e9 * 1e12) for _ in range(32)),
    )
    return one_pass(ops, rows, memory, tokens=batch, generated=batch)
