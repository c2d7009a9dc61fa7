"""Operators on NPUs against other simulators and a real TPU: ONNXim's GEMMs, cycles measured on a TPU v3, SCALE-Sim.

Each function runs a whole table; what it returns holds published and own figures side by side.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from sim.engine import Engine
from sim.hardware import Hardware
from sim.kinds import load_hardware
from sim.lower import lower_pass
from sim.lower.builder import PER_CORE, Unit
from sim.passes import PassResult
from workloads.trace import Pass

DATA = Path(__file__).resolve().parent / "data"

SIMULATORS = ("mnpusim", "timeloop", "maestro", "scalesim_v3")
SINGLE = ("gemm", "conv", "attention")
"""Kinds of operators that every simulator of the file has."""

LAYERS = {"base": (768, 12), "large": (1024, 16), "xlarge": (2048, 32)}
"""Hidden size and heads of the measured layers; 512 positions (experiments/BERT.py of PyTorchSim)."""
POSITIONS = 512


def read_rows(name: str) -> list[dict[str, str]]:
    """Rows of a table that ships; lines that begin with # say where it is from."""
    with (DATA / name).open(encoding="utf-8") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def cycles(machine: Hardware, result: PassResult) -> float:
    """Length of a pass in cycles of the machine's clock."""
    return result.schedule.makespan_ps * int(machine.clock) / 10**12


def floor_cycles(machine: Hardware, work: Pass, result: PassResult, number_format: str) -> float:
    """Cycles that no machine of these arrays and this memory can beat: FLOPs or moved bytes at their peak rates."""
    flops = sum(block.flops for block in work.blocks)
    moved = result.schedule.memory.bytes_read + result.schedule.memory.bytes_written
    seconds = max(flops / machine.peak_flops_per_s(number_format), moved / machine.peak_bytes_per_s)
    return seconds * int(machine.clock)


@dataclass(frozen=True, slots=True)
class OnnximRow:
    """One GEMM on ONNXim and here; `array` cycles of each core's arrays, `total` cycles to the last byte written."""

    cores: int
    side: int
    m: int
    n: int
    k: int
    tile: str
    array: tuple[int, ...]
    published_array: int
    total: float
    published_total: int
    floor: float
    bandwidth: float

    @property
    def deviation(self) -> float:
        return self.total / self.published_total - 1


def _array_cycles(machine: Hardware, engine: Engine, work: Pass) -> tuple[int, ...]:
    """Cycles for which each core's arrays are occupied."""
    program = lower_pass(machine, work, engine.mapper).linked.program
    period_ps = 10**12 // int(machine.clock)
    busy = np.bincount(program.unit, program.ticks, minlength=machine.cores * PER_CORE)
    return tuple(int(busy[core * PER_CORE + Unit.ARRAY]) // period_ps for core in range(machine.cores))


@cache
def onnxim_rows() -> tuple[OnnximRow, ...]:
    """All rows of onnxim.csv on `ws128-onnxim`, with the file's array and cores."""
    rows = []
    for row in read_rows("onnxim.csv"):
        geometry = row["array"].split()
        side = int(geometry[0].split("x")[0])
        cores = int(geometry[1][1:]) if len(geometry) > 1 else 1
        machine = load_hardware("ws128-onnxim", {"array.rows": side, "array.columns": side, "cores": cores})
        assert isinstance(machine, Hardware)
        m, n, k = (int(row[name]) for name in "MNK")
        work = _build("gemm", (m, n, k), "fp16", 0)
        engine = Engine(machine)
        result = engine.run(work)
        total = cycles(machine, result)
        moved = result.schedule.memory.bytes_read + result.schedule.memory.bytes_written
        rows.append(
            OnnximRow(
                cores, side, m, n, k, result.ops[0].decisions["tile"], _array_cycles(machine, engine, work),
                int(row["compute_cycles"]), total, int(row["total_cycles"]),
                floor_cycles(machine, work, result, "fp16"),
                moved * int(machine.clock) / total / machine.peak_bytes_per_s,
            )
        )  # fmt: skip
    return tuple(rows)


@dataclass(frozen=True, slots=True)
class TpuRow:
    """One operator on a TPU v3: measured, here, and on the simulators that have it. All in cycles of 940 MHz."""

    workload: str
    kind: str
    measured: int
    ours: float
    floor: float
    others: dict[str, int]


KINDS = ("gemm", "conv", "attention", "layernorm", "softmax", "bert")


def _build(kind: str, sizes: tuple[int, ...], number_format: str, patches_bytes: int) -> Pass:
    """The pass of a row of tpuv3_cycles.csv."""
    from workloads import single

    if kind in ("layernorm", "softmax"):
        return single.reduction(kind, sizes[0], sizes[1], number_format)
    builders: dict[str, Callable[..., Pass]] = {
        "gemm": single.gemm, "attention": single.encoder_attention, "bert": single.encoder_layer,
        "conv": single.convolution,
    }  # fmt: skip
    further = (patches_bytes,) if kind == "conv" else ()
    return builders[kind](*sizes, number_format, *further)


@cache
def tpu_rows(number_format: str = "fp32") -> tuple[TpuRow, ...]:
    """All operators and transformer layers of tpuv3_cycles.csv on `tpu-v3-like`, tensors in `number_format`."""
    machine = load_hardware("tpu-v3-like")
    assert isinstance(machine, Hardware)
    engine = Engine(machine)
    # Patches of a convolution take half of what activations may: while one part is used, the next is laid out.
    patches = int(machine.scratchpad.capacity * machine.scratchpad.activation_share) // 2
    rows = []
    for row in read_rows("tpuv3_cycles.csv"):
        kind, _, shape = row["workload"].partition("_")
        if kind not in KINDS:
            continue
        sizes: tuple[int, ...] = (*LAYERS[shape], POSITIONS) if kind == "bert" else tuple(map(int, shape.split("x")))
        work = _build(kind, sizes, number_format, patches)
        result = engine.run(work)
        others = {name: int(row[f"{name}_cycles"]) for name in SIMULATORS if row[f"{name}_cycles"]}
        rows.append(
            TpuRow(
                row["workload"], kind, int(row["tpuv3_measured_cycles"]), cycles(machine, result),
                floor_cycles(machine, work, result, number_format), others,
            )
        )  # fmt: skip
    return tuple(rows)


def errors(rows: Iterable[TpuRow], simulator: str) -> tuple[float, float] | None:
    """Mean absolute relative error, here and of `simulator`, over the rows that it has; None if it has none of them."""
    pairs = [
        (abs(row.ours / row.measured - 1), abs(row.others[simulator] / row.measured - 1))
        for row in rows
        if simulator in row.others
    ]
    if not pairs:
        return None
    return sum(ours for ours, _ in pairs) / len(pairs), sum(theirs for _, theirs in pairs) / len(pairs)


def own_error(rows: Sequence[TpuRow]) -> float:
    """Mean absolute relative error here."""
    return sum(abs(row.ours / row.measured - 1) for row in rows) / len(rows)


def groups(rows: Sequence[TpuRow]) -> dict[str, list[TpuRow]]:
    """The rows of each kind, then those of all single operators that every simulator has, then these and the layers."""
    found = {kind: [row for row in rows if row.kind == kind] for kind in KINDS}
    found[" + ".join(SINGLE)] = [row for row in rows if row.kind in SINGLE]
    found[" + ".join((*SINGLE, "bert"))] = [row for row in rows if row.kind in (*SINGLE, "bert")]
    return found
