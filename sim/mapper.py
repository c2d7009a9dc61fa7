"""Chooses tile shapes, loop orders and attention steps: ranks the candidates roughly, then keeps the one that simulates
fastest.

Each candidate is simulated alone, with the machine's real memory; equal operators are searched once. `ranked_only`, a
part of the opt-in approximation of `sim.sampling`, takes the first of the ranking that fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import islice
from typing import TypeVar

from sim.config import ConfigError
from sim.execute import execute
from sim.hardware import Hardware
from sim.lower import align_bytes, scratchpad_bytes, units, write_units
from sim.lower.attention import Job, KeyPlace, Split, lower_flash
from sim.lower.attention import Places as AttentionPlaces
from sim.lower.attention import candidates as split_candidates
from sim.lower.builder import Builder, Space, Template
from sim.lower.link import link
from sim.lower.matmul import Places, Product, TileCosts, Tiling, layout_bytes, lower_product
from sim.lower.tilings import candidates, estimate_ps, steps, traffic_bytes
from workloads.trace import RequestSpan

SIMULATED = 6
"""Candidates that are simulated, of those that are ranked."""

NEAR = Fraction(102, 100)
"""Candidates ranked this close to the best are as good; less DRAM traffic and fewer steps come first among them."""

TIE = Fraction(1005, 1000)
"""Simulated times this close are a tie; less DRAM traffic wins it, then fewer tasks."""

ROUNDS = 3
"""Times that the tiles of a product go around the scratchpad before they are taken to fit for good."""

Choice = TypeVar("Choice", Tiling, Split)


class SimulatedMapper:
    """Searches for one machine and remembers what it found."""

    def __init__(self, machine: Hardware, ranked_only: bool = False) -> None:
        self.machine = machine
        self.ranked_only = ranked_only
        self.scratchpad = scratchpad_bytes(machine, machine.cores == 1 and machine.scratchpad.activation_share > 0)
        self.align = align_bytes(machine)
        self._tilings: dict[Product, Tiling] = {}
        self._splits: dict[Job, Split | None] = {}

    def tiling(self, product: Product) -> Tiling:
        """The fastest tiling of `product` among those simulated. Raises ConfigError if no tile fits on chip."""
        if product not in self._tilings:
            found = self._search_tiling(product)
            if found is None:
                raise ConfigError(
                    f"no tile of a {max(product.groups)} x {product.k} by {product.k} x {product.n} product fits in "
                    f"{self.scratchpad} B of scratchpad and {self.machine.accumulator.capacity} B of accumulators",
                    key="scratchpad.capacity",
                )
            self._tilings[product] = found
        return self._tilings[product]

    def split(self, job: Job) -> Split | None:
        """The fastest step sizes of fused attention among those simulated; None if none fits on chip."""
        if job not in self._splits:
            self._splits[job] = self._search_split(job)
        return self._splits[job]

    def _search_tiling(self, product: Product) -> Tiling | None:
        machine = self.machine

        costs = TileCosts(machine, product)
        found = []
        for tiling in candidates(machine, product, self.scratchpad):
            traffic = traffic_bytes(product, tiling)
            found.append((estimate_ps(product, tiling, costs, traffic), traffic, steps(product, tiling), tiling))
        limit = NEAR * min((item[0] for item in found), default=0)
        found.sort(key=lambda item: ((0, *item[1:3]) if item[0] <= limit else (1, *item[:2]), item[0], str(item[3])))
        ranked = (item[3] for item in found)
        if self.ranked_only:
            return next((tiling for tiling in ranked if self._fits(product, tiling)), None)
        return self._fastest(islice(ranked, SIMULATED), lambda t: self._product_template(product, t))

    def _fits(self, product: Product, tiling: Tiling) -> bool:
        """Whether the tiles find room between each other, tried on a few rounds through the scratchpad."""
        step = max(int(tiling.n * product.k * product.size.right), 1)
        columns = tiling.n * max(8, ROUNDS * self.scratchpad // step)
        few = replace(product, groups=product.groups[:2], n=min(product.n, columns), epilogues=())
        try:
            self._product_template(few, tiling)
        except MemoryError:
            return False
        return True

    def _product_template(self, product: Product, tiling: Tiling) -> Template:
        b = Builder(self.machine, self.scratchpad, self.align)
        first = b.sync(())
        rows = sum(product.groups)
        left = b.region(Space.ACTIVATION, int(rows * product.k * product.size.left)) if product.left_in_dram else 0
        right = b.region(Space.WEIGHT, layout_bytes(product, tiling, self.align)) if product.right_in_dram else 0
        size = int(rows * product.columns_out * product.size.result)
        pieces = ((Space.ACTIVATION, b.region(Space.ACTIVATION, size), size),) if product.result_in_dram else ()
        extra = tuple(
            (Space.ACTIVATION, b.region(Space.ACTIVATION, int(rows * e.columns_out * width)), (first,))
            for e in product.epilogues
            for _, width in e.extra
        )
        places = Places(left, Space.ACTIVATION, (first,), right, Space.WEIGHT, (), pieces, extra, (first,))
        ends = lower_product(b, product, tiling, places, (0,) * (1 + len(product.epilogues)))
        return b.finish(b.sync(ends))

    def _search_split(self, job: Job) -> Split | None:
        # Requests alike repeat the same steps: a few of them are enough to tell which steps are best.
        few = tuple(replace(span, count=min(span.count, 2)) for span in _spread(job.attrs.requests))
        shorter = replace(job, attrs=replace(job.attrs, requests=few))
        choices = split_candidates(self.machine, job, self.scratchpad)
        # The longest steps come first, and one query each leaves little else to choose.
        first = self.ranked_only and all(span.query == 1 for span in job.attrs.requests)
        return self._fastest(choices, lambda split: self._split_template(shorter, split), first)

    def _split_template(self, job: Job, split: Split) -> Template:
        b = Builder(self.machine, self.scratchpad, self.align)
        first = b.sync(())
        a, size = job.attrs, job.size
        query = b.region(Space.ACTIVATION, int(a.tokens * a.heads * a.head_dim * size.query) + 1)
        result = b.region(Space.ACTIVATION, int(a.tokens * a.heads * a.v_head_dim * size.result) + 1)
        positions = sum(s.count * s.length for s in a.requests) * a.kv_heads
        keys = b.region(Space.KV, int(positions * a.head_dim * size.key) + 1)
        values = b.region(Space.KV, int(positions * a.v_head_dim * size.value) + 1)
        places = AttentionPlaces(
            (Space.ACTIVATION, query, (first,)), KeyPlace(Space.KV, keys, (), ()), KeyPlace(Space.KV, values, (), ()),
            (Space.ACTIVATION, result), (first,),
        )  # fmt: skip
        return b.finish(b.sync(lower_flash(b, job, split, places)))

    def _fastest(
        self, choices: Iterable[Choice], template: Callable[[Choice], Template], first: bool = False
    ) -> Choice | None:
        """The choice whose template simulates fastest; ties go to less DRAM traffic, then to fewer tasks.

        `first`: the first that fits, unsimulated.
        """
        results: list[tuple[int, int, int, Choice]] = []
        for choice in choices:
            try:
                lowered = template(choice)
            except MemoryError:
                continue
            if first:
                return choice
            results.append((self._time(lowered), sum(lowered.moved), len(lowered.unit), choice))
        if not results:
            return None
        limit = TIE * min(result[0] for result in results)
        return min((r for r in results if r[0] <= limit), key=lambda r: r[1:3])[3]

    def _time(self, template: Template) -> int:
        machine = self.machine
        linked = link([(template, 1, 1)], machine.dram, machine.memory.channels, units(machine), write_units(machine))
        return execute(linked, machine.dram).makespan_ps


def _spread(spans: Sequence[RequestSpan]) -> Sequence[RequestSpan]:
    """At most eight of the spans, evenly over their lengths, the longest among them."""
    ordered = sorted(spans, key=lambda s: (s.length, s.query), reverse=True)
    step = -(-len(ordered) // 8)
    return ordered[::step]
