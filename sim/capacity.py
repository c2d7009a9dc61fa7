"""Refuses a workload whose weights, KV cache and activations do not fit in the memories of a machine."""

from __future__ import annotations

from dataclasses import replace

from sim.errors import ConfigError
from sim.machine import Machine
from sim.tiers import DEVICE
from workloads.trace import Op, OpKind, Role, Trace

SAVED = "saved."
"""What the names of tensors begin with that a backward pass reads of the forward pass."""


def check_capacity(machine: Machine, trace: Trace) -> None:
    """Raise ConfigError if weights, KV cache and the operands of the largest operator do not fit in the machine's
    memory, with what a training step keeps besides.
    """
    capacity = machine.capacity_bytes
    weight_bytes, kv_bytes = trace.weight_bytes_by_tier.get(DEVICE, 0) - _left_out(machine, trace), trace.kv_bytes
    activation_bytes = max((passing_bytes(op) for p in trace.passes for b in p.blocks for op in b.ops), default=0)
    saved_bytes, state_bytes = training_bytes(trace)
    what = f"{trace.model} (batch {trace.batch})"
    if weight_bytes + kv_bytes + activation_bytes + saved_bytes + state_bytes > capacity:
        gib = 2**30
        parts = [(weight_bytes, "weights"), (kv_bytes, "KV cache")]
        if saved_bytes + state_bytes:
            parts += [(state_bytes, "gradients and optimizer states"), (saved_bytes, "saved activations")]
        listed = ", ".join(f"{size / gib:.1f} GiB of {name}" for size, name in parts)
        raise ConfigError(
            f"{what} needs {listed} and {activation_bytes / gib:.1f} GiB of activations, but the memory of "
            f"{machine.name} ({machine.memory.channels} channels of {machine.memory.standard}) holds "
            f"{capacity / gib:.1f} GiB",
            key="memory.channels",
        )


def training_bytes(trace: Trace) -> tuple[int, int]:
    """Bytes that a training step keeps in the device's memory: activations saved for the backward pass, each once, and
    gradients with the optimizer's states. What a backward pass fetches from another tier is not among them.
    """
    saved = states = 0
    for p in trace.passes:
        for block in p.blocks:
            tensors = [tensor for op in block.ops for tensor in op.inputs if tensor.tier == DEVICE]
            if p.phase == "backward":
                largest: dict[str, int] = {}
                for tensor in tensors:
                    if tensor.name.startswith(SAVED):
                        largest[tensor.name] = max(largest.get(tensor.name, 0), tensor.bytes)
                moved = [t for op in block.ops if op.kind is OpKind.TRANSFER for t in op.outputs]
                fetched = sum(min(t.bytes, largest[t.name]) for t in moved if t.name in largest)
                saved += block.repeat * (sum(largest.values()) - fetched)
            elif p.phase == "update":
                states += sum(t.resident_bytes for t in tensors if t.role in (Role.GRADIENT, Role.OPTIMIZER))
    return saved, states


def _left_out(machine: Machine, trace: Trace) -> int:
    """Bytes by which the machine's storage of sparse weights is smaller than dense."""
    if not any(
        t.sparsity for p in trace.passes for b in p.blocks for op in b.ops for t in op.inputs if t.role is Role.WEIGHT
    ):
        return 0
    from sim.hardware import Hardware
    from sim.sparse.zeros import stored_bytes

    if not isinstance(machine, Hardware):
        return 0
    saved: dict[tuple[str, str], int] = {}
    for p in trace.passes:
        for block in p.blocks:
            for op in block.ops:
                for t in op.inputs:
                    if t.role is Role.WEIGHT and t.sparsity is not None and t.tier == DEVICE:
                        whole = replace(t, shape=t.whole or t.shape)
                        times = 1 if block.weights_shared else block.repeat
                        size = times * (whole.bytes - stored_bytes(machine, whole))
                        saved[p.model, t.name] = max(saved.get((p.model, t.name), 0), size)
    return sum(saved.values())


def passing_bytes(op: Op) -> int:
    """Bytes of the activations that an operator reads and writes."""
    return sum(t.resident_bytes for t in (*op.inputs, *op.outputs) if t.role is Role.ACTIVATION)


def check_tiers(machine: Machine, trace: Trace) -> None:
    """Raise ConfigError if weights live in a tier that the machine lacks, or that is too small for them."""
    what = f"{trace.model} (batch {trace.batch})"
    for name, size in trace.weight_bytes_by_tier.items():
        if name == DEVICE:
            continue
        if name not in machine.tiers:
            raise ConfigError(f"{what} has weights in tier {name!r}, but {without_tier(machine)}", key="tiers")
        capacity = machine.tier_data[name].capacity
        if size > capacity:
            raise ConfigError(
                f"{what} has {size / 2**30:.1f} GiB of weights in tier {name!r}, but {machine.tiers[name].tier} of "
                f"{machine.name} holds {capacity / 2**30:.1f} GiB",
                key=f"tiers.{name}",
            )


def without_tier(machine: Machine) -> str:
    """Says which further memories a machine has."""
    return f"{machine.name} has {' and '.join(machine.tiers) if machine.tiers else 'no further memory'} (tiers)"
