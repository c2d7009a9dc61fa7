"""Lowers a product with weights for units in the memory: every vector goes to all channels, each of which works out its
columns of the result; partial sums of the vector's stretches are added on the vector units.
"""

from __future__ import annotations

from fractions import Fraction

import numpy as np

from sim.lower.builder import PIM_PORT, Builder, Held, Work
from sim.lower.compute import vector_task, whole
from sim.lower.pim import Place
from sim.pim.address import runs
from sim.pim.plan import PimPlan, ProductRows


def lower_pim_product(
    builder: Builder, plan: PimPlan, shape: ProductRows, vectors: int, bias: bool, element: Fraction,
    source: Place | None, result: Place | None, start: tuple[int, ...],
) -> list[int]:  # fmt: skip
    """Add the tasks of `vectors` vectors times the weights at `shape`; returns those that end the product.

    source, result: None on chip; bias: one more row is added; element: bytes of a number.
    """
    maker, addresses = plan.maker, plan.addresses
    pim = addresses.memory.pim
    assert pim is not None
    channels = shape.channels
    groups = range(len(plan.placement.groups))
    size, out = whole(shape.k * element), whole(shape.n * element)
    burst = addresses.memory.burst_bytes
    ends = []
    for vector in range(vectors):
        ready = start
        held: Held | None = None
        if source is not None:
            held = builder.fetch(0, source.space, source.offset + vector * size, size, source.ready)
            ready = (*ready, *held.ready)
        slot = vector * shape.chunks + np.arange(shape.chunks)
        places = np.stack((slot % addresses.banks, plan.vector_row + slot // addresses.banks), 1)
        if pim.load == "bank":
            number = np.arange(-(-size // burst))
            chunk, column = np.divmod(number, whole(shape.row_elements * element) // burst)
            bursts = runs(addresses.bursts(places[chunk, 0], places[chunk, 1], column))
            ready = (builder.move_local(0, True, [(group, bursts) for group in groups], channels * size, ready),)
        if held is not None:
            builder.release(0, held.buffer, ready if pim.load == "bank" else held.ready)
        jobs = maker.product(shape, places)
        if PIM_PORT in builder.shared:
            ready = (builder.task(builder.shared[PIM_PORT], channels * maker.instructions(jobs), ready),)
        results = channels * maker.readouts(jobs) * whole(shape.banks * element)
        work = Work(sram_write=results, pim_macs=channels * maker.macs(jobs))
        done = builder.pim([(group, jobs) for group in groups], ready, work)
        sums = shape.chunks + bias - 1
        if sums:
            done = vector_task(builder, 0, "add", 1, sums * shape.n, ((sums + 1) * out, out), (done,), sums * shape.n)
        if result is not None:
            done = builder.move(0, True, [(result.space, result.offset + vector * out, out)], (done,))
        ends.append(done)
    return ends
