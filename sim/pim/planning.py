"""Decides for a pass which attention runs in memory, where its requests are, and whether all of it has room."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from sim.capacity import passing_bytes
from sim.errors import ConfigError
from sim.hardware import Hardware
from sim.pim.address import RowAddresses
from sim.pim.parts import Part, cut_lengths, named
from sim.pim.placement import KvLayout, Placement, Request, deal, halves, place
from sim.pim.plan import Ints, JobMaker, PimPlan, ProductRows
from sim.pim.use import Operators
from workloads.formats import format_bits
from workloads.trace import AttentionAttrs, Block, MatmulAttrs, Op, OpKind, Pass, Role

CAUSAL = ("causal", "full")
"""Masks under which a decode step sees all that is cached."""


@dataclass(frozen=True)
class BlockPlan:
    """Plan of one block: of its attention in memory, and the parts of its batch."""

    plan: PimPlan
    parts: tuple[Part, ...]


def why_not(machine: Hardware, op: Op) -> str | None:
    """Why an attention operator does not run in memory; None if it does."""
    attrs = op.attrs
    assert isinstance(attrs, AttentionAttrs)
    assert machine.pim is not None
    if Operators.ATTENTION not in machine.pim.operators:
        return "not among pim.operators"
    if any(span.query != 1 for span in attrs.requests):
        return "several positions of a request at once"
    if attrs.mask.kind not in CAUSAL:
        return f"mask {attrs.mask.kind}"
    if attrs.latent:
        return "latent attention"
    if any(t.role is Role.WEIGHT for t in op.inputs) or attrs.softcap:
        return "scores are changed before the softmax"
    if any(t.role is not Role.KV for t in op.inputs[1:3]):
        return "keys are no cache"
    return None


def plan_pass(machine: Hardware, work: Pass, overlap: bool) -> dict[str, BlockPlan]:
    """Plans by block name, for the blocks with attention in memory. `overlap`: the batch in two parts.

    Raises ConfigError where the layout does not hold a head, the format is not the units', or rows run out.
    """
    memory = machine.dram
    wanted: dict[str, Op] = {}
    for block in work.blocks:
        found = [op for op in block.ops if op.kind is OpKind.ATTENTION and why_not(machine, op) is None]
        if found and len({op.attrs for op in found}) == 1:
            wanted[block.name] = found[0]
    if not wanted:
        return {}
    assert memory.pim is not None
    addresses = RowAddresses(memory)
    blocks = {block.name: block for block in work.blocks}
    first = addresses.first_free_row(_ordinary_bursts(machine, work, wanted))
    row = first
    placed: dict[str, tuple[JobMaker, Placement, tuple[Part, ...]]] = {}
    for name, op in wanted.items():
        maker = _maker(machine, op)
        layout = maker.layout
        attrs = op.attrs
        assert isinstance(attrs, AttentionAttrs)

        @cache
        def estimate(past: int, maker: JobMaker = maker) -> int:
            return estimate_ticks(maker, past)

        lengths = cut_lengths(attrs.requests)
        dealt = deal(lengths, machine.memory.channels, machine.pim.placement, estimate) if machine.pim else []
        shares = list(halves(dealt, estimate)) if overlap else [dealt]
        parts = tuple(
            Part(number, tuple(past for channel in share for past in channel), len(lengths))
            for number, share in enumerate(shares)
        )

        def vectors(past: int, maker: JobMaker = maker, banks: int = addresses.banks) -> int:
            return -(-maker.vector_count(past) // banks)

        placement = place(shares, layout, vectors, estimate, row)
        copies = sum(1 for o in blocks[name].ops if o.kind is OpKind.ATTENTION and why_not(machine, o) is None)
        row += placement.kv_rows * blocks[name].repeat * copies
        placed[name] = (maker, placement, parts)
    products: dict[str, ProductRows] = {}
    vectors_of_products = 0
    for name in wanted:
        row, vectors_here = _place_products(machine, blocks[name], addresses, row, products)
        vectors_of_products = max(vectors_of_products, vectors_here)
    needed = row - first + max(vectors_of_products, *(placement.vector_rows for _, placement, _ in placed.values()))
    if first + needed > addresses.rows:
        _refuse(machine, addresses, first, needed, placed)
    return {
        name: BlockPlan(
            PimPlan(maker, addresses, placement, row, _caches(blocks[name], parts, machine), products), parts
        )
        for name, (maker, placement, parts) in placed.items()
    }


def product_in_memory(machine: Hardware, op: Op) -> bool:
    """Whether an operator is a product with weights that runs in memory."""
    attrs = op.attrs
    return (
        machine.pim is not None
        and Operators.FC_DECODE in machine.pim.operators
        and isinstance(attrs, MatmulAttrs)
        and attrs.batch == 1
        and attrs.group_m is None
        and op.inputs[1].role is Role.WEIGHT
    )


def _place_products(
    machine: Hardware, block: Block, addresses: RowAddresses, row: int, products: dict[str, ProductRows]
) -> tuple[int, int]:
    """Give weights rows from `row` on; the first row behind all layers' weights, and rows for the vectors of a product.

    Raises ConfigError for weights in another format than the units'.
    """
    pim = machine.dram.pim
    assert pim is not None
    element = int(pim.element)
    vectors = layer = 0
    for op in block.ops:
        if not product_in_memory(machine, op):
            continue
        attrs, weight = op.attrs, op.inputs[1]
        assert isinstance(attrs, MatmulAttrs)
        if format_bits(weight.format) != 8 * element:
            raise ConfigError(
                f"operator {op.name} has weights in {weight.format}, but the units in {machine.memory.standard} "
                f"work on elements of {8 * element} bits",
                key="pim.operators",
            )
        elements = min(addresses.row_bytes, int(pim.vector)) // element
        shape = ProductRows(attrs.k, attrs.n, machine.memory.channels, addresses.banks, elements, row + layer)
        products[weight.name] = shape
        layer += shape.rows
        vectors = max(vectors, -(-attrs.m * shape.chunks // addresses.banks))
    return row + layer * block.repeat, vectors


def estimate_ticks(maker: JobMaker, past: int) -> int:
    """Ticks that a request of `past` cached positions keeps its channel's units busy, by the memory's own timing."""
    if not past:
        return 0
    request = Request(past, 0, 0, 0, 0)
    keys = maker.keys(request, _nowhere(maker.query_vectors))
    values = maker.values(request, _nowhere(maker.vector_count(past) - maker.query_vectors))
    return maker.ticks(keys) + maker.ticks(values)


def _nowhere(count: int) -> Ints:
    return np.zeros((count, 2), np.int64)


def _maker(machine: Hardware, op: Op) -> JobMaker:
    memory, attrs = machine.dram, op.attrs
    assert isinstance(attrs, AttentionAttrs)
    pim = memory.pim
    assert pim is not None
    cache = op.inputs[1]
    bits = format_bits(cache.format)
    if bits != 8 * pim.element:
        raise ConfigError(
            f"attention {op.name} has its cache in {cache.format} ({bits} bits an element), but the units in "
            f"{machine.memory.standard} work on elements of {8 * pim.element} bits",
            key="pim.operators",
        )
    o = memory.organisation
    layout = KvLayout(
        banks=o.pseudo_channels * o.ranks * o.bank_groups * o.banks,
        row_elements=min(o.columns * memory.burst_bytes, int(pim.vector)) // int(pim.element),
        heads=attrs.kv_heads,
        head_dim=attrs.head_dim,
        value_dim=attrs.v_head_dim,
        collected=memory.burst_bytes // int(pim.element) if machine.pim and machine.pim.append == "collected" else 1,
    )
    return JobMaker(memory, layout, attrs.heads // attrs.kv_heads)


def _caches(block: Block, parts: tuple[Part, ...], machine: Hardware) -> frozenset[str]:
    names = {
        t.name
        for op in block.ops
        if op.kind is OpKind.ATTENTION and why_not(machine, op) is None
        for t in op.inputs[1:3]
    }
    if len(parts) == 1:
        return frozenset(names)
    return frozenset(named(name, part.number) for name in names for part in parts)


def _ordinary_bursts(machine: Hardware, work: Pass, wanted: Mapping[str, Op]) -> int:
    """Bursts of a channel for everything else: weights, other caches, twice the largest operator's activations."""
    weights: dict[str, int] = {}
    caches = 0
    for block in work.blocks:
        own: dict[str, int] = {}
        kept = {t.name for t in wanted[block.name].inputs[1:3]} if block.name in wanted else set()
        for op in block.ops:
            for tensor in (*op.inputs, *op.outputs):
                if tensor.role is Role.WEIGHT and not (block.name in wanted and product_in_memory(machine, op)):
                    times = 1 if block.weights_shared else block.repeat
                    weights[tensor.name] = max(weights.get(tensor.name, 0), times * tensor.resident_bytes)
                elif tensor.role is Role.KV and tensor.name not in kept:
                    own[tensor.name] = max(own.get(tensor.name, 0), tensor.resident_bytes)
        caches += block.repeat * sum(own.values())
    passing = 2 * max(passing_bytes(op) for block in work.blocks for op in block.ops)
    total = sum(weights.values()) + caches + passing
    return -(-total // (machine.memory.channels * machine.dram.burst_bytes))


def _refuse(
    machine: Hardware, addresses: RowAddresses, first: int, needed: int,
    placed: Mapping[str, tuple[JobMaker, Placement, tuple[Part, ...]]],
) -> None:  # fmt: skip
    gib = 2**30
    row = addresses.row_bytes * addresses.banks
    requests = max(sum(len(part.lengths) for part in parts) for _, _, parts in placed.values())
    raise ConfigError(
        f"the KV cache of {requests} requests needs {needed} rows ({needed * row / gib:.2f} GiB) in the fullest "
        f"channel, but {addresses.rows - first} of its {addresses.rows} rows "
        f"({(addresses.rows - first) * row / gib:.2f} GiB) are left beside weights and activations; fewer requests, "
        f"more channels ({machine.memory.channels} now) or another placement would help",
        key="memory.channels",
    )
