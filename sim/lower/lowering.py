"""Lowers a pass: divides the scratchpad, lowers each block once, links them, and names operators and units for the
report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sim.hardware import Hardware
from sim.lower.block import lower_block
from sim.lower.builder import PER_CORE, UNLIMITED, Template, Unit, further_units, link_units
from sim.lower.homes import CARRIED, on_chip
from sim.lower.link import Linked, link
from sim.lower.scope import Context, Mapper
from sim.passes import OpRow, UnitRow, ZeroRow
from sim.sparse.zeros import stored_tensor
from workloads.trace import Block, Op, Pass, Role


@dataclass(frozen=True)
class Lowered:
    """A pass ready to run, and what the report needs besides."""

    linked: Linked
    ops: tuple[OpRow, ...]
    units: tuple[UnitRow, ...]
    tasks: tuple[int, ...]  # of one repetition of each block


def align_bytes(machine: Hardware) -> int:
    """Stripe of all channels: a tile that starts on a multiple of it loads them evenly."""
    return machine.memory.channels * machine.dram.interleave_bytes


def scratchpad_bytes(machine: Hardware, keeps_activations: bool) -> int:
    """Bytes of a core's scratchpad that tiles may use."""
    capacity = int(machine.scratchpad.capacity)
    return capacity - int(capacity * machine.scratchpad.activation_share) if keeps_activations else capacity


def units(machine: Hardware) -> list[tuple[int, int]]:
    """Tasks at once and window in bytes of each unit: the cores', those they share, the one that joins."""
    dma = machine.dma
    window = int(dma.window)
    core = {Unit.ARRAY: (1, 0), Unit.VECTOR: (1, 0), Unit.LOAD: (dma.loads, window), Unit.STORE: (dma.stores, window)}
    cores = [core[unit] for _ in range(machine.cores) for unit in Unit]
    return [*cores, *((row.slots, 0) for row in further_units(machine)), (UNLIMITED, 0)]


def write_units(machine: Hardware) -> frozenset[int]:
    """Numbers of the units that write to DRAM."""
    port = {machine.cores * PER_CORE + len(further_units(machine)) - 1} if link_units(machine) else set()
    return frozenset({core * PER_CORE + Unit.STORE for core in range(machine.cores)} | port)


def activation_bytes(machine: Hardware) -> int:
    """Bytes of the scratchpad that hold activations between operators.

    None on a machine of several cores: they have no path to each other's scratchpad.
    """
    return 0 if machine.cores > 1 else int(machine.scratchpad.capacity * machine.scratchpad.activation_share)


def lower_pass(machine: Hardware, work: Pass, mapper: Mapper, symmetry: bool = True) -> Lowered:
    """Lower `work` for `machine`. Raises ConfigError for formats and operators that the machine has no unit for."""
    share = activation_bytes(machine)
    kept = on_chip(work.blocks, share, riding=machine.riding)
    streaming = scratchpad_bytes(machine, share > 0)
    carried = max(
        (t.resident_bytes for b in work.blocks for op in b.ops for t in (*op.inputs, *op.outputs) if t.name == CARRIED),
        default=0,
    )
    templates = []
    ops: list[OpRow] = []
    for block in work.blocks:
        context = Context(machine, mapper, streaming, align_bytes(machine), kept[block.name], ((CARRIED, carried),))
        template = lower_block(block, context)
        templates.append((template, block.repeat, len(block.ops)))
        rows = op_rows(machine, block, template, work, [0] * len(block.ops), block.name)
        for layer in range(block.repeat):
            ops.extend(replace(row, layer=layer) for row in rows)
    linked = link(templates, machine.dram, machine.memory.channels, units(machine), write_units(machine), symmetry)
    tasks = tuple(len(template.unit) for template, _, _ in templates)
    return Lowered(linked, tuple(ops), unit_rows(machine, {row.format for row in ops if row.flops}), tasks)


def op_rows(
    machine: Hardware, block: Block, template: Template, work: Pass, layers: Sequence[int], name: str
) -> list[OpRow]:
    """The report's rows of one repetition of a block: `layers` of each operator, `name` of the trace's block."""
    return [
        _op_row(machine, op, name, layer, work, template, i)
        for i, (op, layer) in enumerate(zip(block.ops, layers, strict=True))
    ]


def _op_row(machine: Hardware, op: Op, block: str, layer: int, work: Pass, template: Template, number: int) -> OpRow:
    data = next(
        (t.format for t in op.inputs if t.role in (Role.ACTIVATION, Role.KV)), op.inputs[0].format if op.inputs else ""
    )
    return OpRow(
        name=op.name, kind=op.kind.value, role=op.role, block=block, layer=layer, pass_name=work.name, phase=work.phase,
        flops=op.flops, vector_ops=op.vector_ops, read_bytes=op.read_bytes, write_bytes=op.write_bytes,
        format=template.formats.get(number, data), decisions=template.decisions.get(number, {}),
        zeros=_zeros(machine, op, template.zeros.get(number)),
    )  # fmt: skip


def _zeros(machine: Hardware, op: Op, known: ZeroRow | None) -> ZeroRow | None:
    """What is known of the operator's products, with the bytes of all its tensors that have zeros."""
    left_out = metadata = 0
    for tensor in (*op.inputs, *op.outputs):
        stored = stored_tensor(machine, tensor)
        if stored is not None:
            # Whole bytes once, so that values and metadata add up to what is moved.
            metadata += stored.metadata_bytes
            left_out += tensor.bytes - (stored.bytes - stored.metadata_bytes)
            known = known or ZeroRow()
    return replace(known, left_out_bytes=left_out, metadata_bytes=metadata) if known else None


def unit_rows(machine: Hardware, formats: set[str]) -> tuple[UnitRow, ...]:
    """The machine's units as the report names them; `formats`: number formats of the pass's products."""
    rates = [machine.peak_flops_per_s(f) for f in formats if f in machine.array.formats]
    flops = max(rates, default=machine.peak_flops_per_s(next(iter(machine.array.formats)))) / machine.cores
    vector = float(machine.vector.count * machine.vector.lanes * machine.vector.simple_slots * machine.clock)
    memory = machine.peak_bytes_per_s
    rows: list[UnitRow] = []
    for core in range(machine.cores):
        prefix = f"core{core}." if machine.cores > 1 else ""
        rows.extend(
            (
                UnitRow(f"{prefix}array", "array", 1, flops, "flop"),
                UnitRow(f"{prefix}vector", "vector", 1, vector, "vector"),
                UnitRow(f"{prefix}dma.load", "dma", machine.dma.loads, memory, "byte"),
                UnitRow(f"{prefix}dma.store", "dma", machine.dma.stores, memory, "byte"),
            )
        )
    return (
        *rows,
        *further_units(machine),
        UnitRow("sync", "sync", UNLIMITED, 0.0, "none"),
        UnitRow("memory", "memory", machine.memory.channels, memory, "byte"),
    )
