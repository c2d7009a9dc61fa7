"""The command `unit sparse`: one matmul with zeros on a machine's sparse engine, beside the same one without zeros."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sim.arithmetic import unit_factors
from sim.energy_tables import load_table, mac_cost
from sim.errors import ConfigError, not_among
from sim.hardware import Hardware
from sim.kinds import load_hardware
from sim.sparse.case import case
from sim.sparse.cost import SparseCost, cost_of
from sim.sparse.pattern import DENSE, Pattern, parse
from sim.sparse.storage import NAMES as STORAGE
from workloads.formats import precision

OPERANDS = ("scratchpad", "dram")


def run(
    hardware: str | Path,
    m: int,
    n: int,
    k: int,
    *,
    weights: str = "dense",
    activations: str = "dense",
    seed: int = 0,
    formats: tuple[str | None, str | None] = (None, None),
    epilogue: str | None = None,
    produced_as: str | None = None,
    operands: str = "scratchpad",
    overrides: dict[str, Any] | None = None,
    training: bool = False,
) -> dict[str, Any]:
    """The report of one matmul: cycles and speedup, useful work, metadata, imbalance, and what bounds it.

    formats: of activations and weights. operands: `scratchpad` counts cycles with everything on chip, `dram` reads
    every operand once and writes the result. produced_as: storage format in which the activations arrive. training:
    forward, both gradients and the update. Raises ConfigError.
    """
    machine = sparse_machine(hardware, overrides)
    if operands not in OPERANDS:
        raise ConfigError(f"--operands {not_among('place', operands, OPERANDS)}")
    if produced_as is not None and produced_as not in STORAGE:
        raise ConfigError(f"--produced-as {not_among('storage format', produced_as, STORAGE)}")
    w, a = parse(weights, "weights"), parse(activations, "activations")
    if training:
        return _training(machine, m, n, k, w, formats[1])
    made = case(machine, m, n, k, w, a, formats[1], formats[0], seed)
    cost = cost_of(made, epilogue=epilogue, produced_as=produced_as)
    dense = cost_of(made.dense(), epilogue=epilogue)
    with_dram = operands == "dram"
    cycles, dense_cycles = ((c.streamed_cycles if with_dram else c.cycles) for c in (cost, dense))
    return {
        "cycles": cycles,
        "dense_cycles": dense_cycles,
        "speedup": dense_cycles / cycles,
        "effective_macs": cost.effective_macs,
        "utilization": cost.utilization * cost.cycles / cycles,
        "metadata_bytes": cost.metadata_bytes,
        "imbalance": cost.imbalance,
        "bound": cost.bound(with_dram),
        "part_cycles": cost.parts,
        "macs": cost.macs,
        "weight_bytes": cost.weight_bytes,
        "activation_bytes": cost.activation_bytes,
        "output_bytes": cost.output_bytes,
        "time_ns": cycles * 1e9 / machine.clock,
        **_arithmetic(machine, cost, made.activations.number_format, made.weights.number_format),
        "hardware": machine.name,
        "engine": machine.sparse.engine if machine.sparse else None,
        "skip": made.skip,
        "weights": str(w),
        "activations": str(a),
        "weight_format": made.weights.number_format,
        "activation_format": made.activations.number_format,
        "operands": operands,
        "detail": cost.detail,
    }


def sparse_machine(hardware: str | Path, overrides: dict[str, Any] | None = None) -> Hardware:
    """A machine that has a sparse engine. Raises ConfigError."""
    machine = load_hardware(hardware, overrides)
    if not isinstance(machine, Hardware) or machine.sparse is None:
        from sim.catalog import names

        shipped = [name for name in names("hardware") if getattr(load_hardware(name), "sparse", None) is not None]
        raise ConfigError(
            f"{machine.name} has no section 'sparse', so it has no sparse engine; machines with one: "
            f"{', '.join(shipped)}"
        )
    return machine


def formats_of(
    machine: str | None, activation_format: str | None, weight_format: str | None
) -> tuple[str | None, str | None]:
    """(activation, weight) formats from a named precision such as W2A8KV4 and from single ones. Raises ConfigError."""
    if machine is None:
        return activation_format, weight_format
    try:
        named = precision(machine)
    except ValueError as error:
        raise ConfigError(f"--precision: {error}") from None
    return activation_format or named.activations, weight_format or named.weights


def _arithmetic(machine: Hardware, cost: SparseCost, activation_format: str, weight_format: str) -> dict[str, Any]:
    """Energy of the multiplications and area of the multipliers, by the machine's table and kind of unit."""
    table, _ = load_table(machine.energy.table)
    pair = f"{activation_format}*{weight_format}"
    key, mac = mac_cost(table, pair if pair in table.mac else activation_format)
    energy, area, _ = unit_factors(machine.chip, key)
    each = mac.energy * energy + mac.register_bytes * table.register_.pipeline_per_byte
    array = machine.array
    units = machine.cores * array.count * array.rows * array.columns
    return {
        "mac_energy_pj": cost.macs * each,
        "multiplier_area_mm2": None if mac.area is None else units * mac.area * area,
        "unit": array.unit,
    }


def _training(machine: Hardware, m: int, n: int, k: int, pattern: Pattern, number_format: str | None) -> dict[str, Any]:
    """Cycles of one training step of the matmul, with the pattern and dense."""
    from sim.sparse.training import Gemm, training_step

    gemm = Gemm("matmul", m, n, k)
    step = training_step(machine, gemm, pattern, number_format)
    dense = training_step(machine, gemm, DENSE, number_format)

    def parts(s: Any) -> dict[str, int]:
        return {name: getattr(s, name) for name in ("forward", "input_gradient", "weight_gradient", "update")}

    return {
        "cycles": step.cycles,
        "dense_cycles": dense.cycles,
        "speedup": dense.cycles / step.cycles,
        "pass_cycles": parts(step),
        "dense_pass_cycles": parts(dense),
        "bounds": dict(zip(("forward", "input_gradient", "weight_gradient"), step.bounds, strict=True)),
        "hardware": machine.name,
        "weights": str(pattern),
    }
