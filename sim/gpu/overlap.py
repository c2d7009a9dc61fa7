"""A product and the collective beside it, cut into parts along the product's rows: while the links carry one part, the
multiprocessors work on the next.

It is what libraries of overlapped tensor-parallel layers do (Jangda et al., CoCoNet, ASPLOS 2022). It has its price:
weights are read again for each part, a part fills fewer thread blocks, each part pays a collective's latency, and the
collective's kernels hold multiprocessors and memory bandwidth that the product then lacks. It is done where it pays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from sim.gpu.cost import Cost, chain, launched
from sim.gpu.gemm import stream_rate
from sim.gpu.lower import product_cost
from sim.links.collectives import Collective, collective
from workloads.trace import CollectiveAttrs, MatmulAttrs, Op

if TYPE_CHECKING:
    from sim.gpu.schema import Gpu


@dataclass(frozen=True, slots=True)
class Overlapped:
    """The parts of a product in order, each with its launch, and the collective of one part.

    `product_first`: a part's collective follows its product, otherwise its product follows its collective.
    """

    parts: tuple[Cost, ...]
    each: Collective
    product_first: bool

    def spans_s(self, clock_hz: float) -> Iterator[tuple[float, float, float, float]]:
        """(start and end of the product, start and end of the collective) of each part, in seconds."""
        work_free = link_free = 0.0
        for part in self.parts:
            if self.product_first:
                start, work_free = work_free, work_free + part.time_s(clock_hz)
                sends = max(work_free, link_free)
                link_free = sends + self.each.time_s
            else:
                sends, link_free = link_free, link_free + self.each.time_s
                start = max(work_free, link_free)
                work_free = start + part.time_s(clock_hz)
            yield start, work_free, sends, link_free

    def time_s(self, clock_hz: float) -> float:
        """Seconds from the first part's start to the last part's end."""
        return max(max(end, carried) for _, end, _, carried in self.spans_s(clock_hz))


def pairs(ops: Sequence[Op]) -> dict[int, bool]:
    """Positions of operators that form a pair with the next one; the value says whether the product is the first.

    A pair is a product and a collective of which one reads what the other has written. An operator is in one pair at
    most, the one that comes first.
    """
    found: dict[int, bool] = {}
    for i, (one, other) in enumerate(pairwise(ops)):
        kinds = isinstance(one.attrs, MatmulAttrs), isinstance(other.attrs, MatmulAttrs)
        links = isinstance(one.attrs, CollectiveAttrs), isinstance(other.attrs, CollectiveAttrs)
        matched = (kinds[0] and links[1]) or (links[0] and kinds[1])
        made = {tensor.name for tensor in one.outputs}
        if matched and i - 1 not in found and other.inputs and other.inputs[0].name in made:
            found[i] = kinds[0]
    return found


def left_over(gpu: Gpu, held: int) -> Gpu:
    """The part without the multiprocessors that collectives hold, for what runs beside them."""
    return gpu.model_copy(update={"sm": gpu.sm.model_copy(update={"count": gpu.sm.count - held}), "overlap": None})


def overlapped(gpu: Gpu, product: Op, carried: Op, product_first: bool, whole_s: float) -> Overlapped | None:
    """The pair cut into parts, or None where that takes no less than `whole_s` at the highest clock, or the machine has
    no `overlap`. Raises ConfigError as the product and the collective on their own do.
    """
    rule, attrs, sent = gpu.overlap, product.attrs, carried.attrs
    if rule is None or rule.chunks is None or gpu.links is None:
        return None
    assert isinstance(attrs, MatmulAttrs)
    assert isinstance(sent, CollectiveAttrs)
    if sent.group == 1 or attrs.m < rule.chunks:
        return None
    fewer = left_over(gpu, rule.multiprocessors)
    alone = launched(gpu, product_cost(gpu, product, rule.chunks), "gemm", "chain")
    beside = shared(gpu, launched(gpu, product_cost(fewer, product, rule.chunks), "gemm", "graph"))
    others = (beside,) * (rule.chunks - 1)
    # Nothing is carried yet beside the first product, or no more beside the last.
    parts = (alone, *others) if product_first else (*others, alone)
    each = collective(gpu.links, sent.algorithm_kind, -(-sent.bytes // rule.chunks), sent.group)
    found = Overlapped(parts, each, product_first)
    return found if found.time_s(float(gpu.clock.maximum)) < whole_s else None


def shared(gpu: Gpu, cost: Cost, beside: float = 1.0) -> Cost:
    """The cost where the memory also serves the kernels of collectives, which run for a part `beside` of the time."""
    assert gpu.links is not None
    taken = beside * gpu.links.copies.memory_rate if gpu.links.copies is not None else 0.0
    parts = []
    for part in cost.kernels():
        rate = stream_rate(gpu, part.dram_read_bytes, part.dram_write_bytes)
        parts.append(replace(part, memory_s=part.memory_s * rate / max(rate - taken, rate / 2)))
    return chain(parts)
