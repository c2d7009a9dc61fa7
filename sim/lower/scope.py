"""Where the tensors of one block are while it is being lowered: activations, KV caches, and who produced them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Protocol

from sim.hardware import Hardware
from sim.lower import attention, matmul
from sim.lower.builder import Builder, Space
from sim.lower.homes import Home, readers, versions
from sim.lower.moves import Operand
from sim.pim.plan import PimPlan
from sim.sparse.zeros import stored_bytes
from workloads.formats import format_bits
from workloads.trace import AttentionAttrs, Block, Op, RequestSpan, Role, Tensor


class Mapper(Protocol):
    """Chooses tile sizes; `sim.mapper` does so by simulated time."""

    def tiling(self, product: matmul.Product) -> matmul.Tiling:
        """The tiling of a matrix product."""
        ...

    def split(self, job: attention.Job) -> attention.Split | None:
        """The step sizes of fused attention, None where it does not fit on chip."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """What the lowering of a block needs to know: the machine, how tiles are chosen, what stays on chip.

    `carried`: the tensors that blocks hand on to each other, with their bytes, the same for all blocks of a pass.
    """

    machine: Hardware
    mapper: Mapper
    scratchpad_bytes: int
    align_bytes: int
    kept: frozenset[str]
    carried: tuple[tuple[str, int], ...]
    pim: PimPlan | None = None


def width(machine: Hardware, tensor: Tensor) -> Fraction:
    """Bytes an element of a tensor, zeros included, as the machine stores it."""
    return Fraction(stored_bytes(machine, tensor), tensor.elements)


def where(home: Home) -> str:
    """Where a tensor is, in words."""
    return "on chip" if home.on_chip else "DRAM"


def accumulator_bytes(machine: Hardware) -> Fraction:
    """Bytes of one partial sum."""
    return format_bits(machine.array.accumulate) / 8


class Scope:
    """The homes of a block's tensors. Tensors of one name are one value (see `homes.versions`).

    Indices (token numbers, chosen experts) are kept by the controller and never go through DRAM.
    """

    def __init__(self, block: Block, context: Context) -> None:
        self.context, self.machine = context, context.machine
        self.carried = frozenset(name for name, _ in context.carried)
        self.ops: tuple[Op, ...] = versions(block.ops, self.carried)
        self.block_name = block.name
        self.readers = readers(self.ops)
        self.builder = Builder(context.machine, context.scratchpad_bytes, context.align_bytes)
        self.first = self.builder.sync(())
        self.homes = {
            name: Home(
                name in context.kept, Space.ACTIVATION, self.builder.region(Space.ACTIVATION, size), (self.first,)
            )
            for name, size in context.carried
        }
        self.appended: dict[str, tuple[int, ...]] = {}
        self.arrived: dict[str, tuple[int, ...]] = {}  # weights and KV caches that a transfer brings
        self.written_in_place: set[int] = set()
        self.later: list[tuple[int, tuple[int, ...]]] = []  # operators to be lowered last, and what they wait for
        self.gate: tuple[int, ...] = ()  # tasks before anything of the operator at hand may begin
        self._kv: dict[str, int] = {}
        self._kv_bytes: dict[str, int] = {}
        for op in self.ops:
            for tensor in (*op.inputs, *op.outputs):
                if tensor.role is Role.KV:
                    known = self._kv_bytes.get(tensor.name, 0)
                    self._kv_bytes[tensor.name] = max(known, tensor.resident_bytes)

    def home(self, tensor: Tensor) -> Home:
        """Where an input is, and from when it may be read; what no operator of the block made was in DRAM before."""
        home = self._home(tensor)
        return replace(home, ready=(*home.ready, *self.gate)) if self.gate else home

    def _home(self, tensor: Tensor) -> Home:
        if tensor.role is Role.KV:
            return Home(False, Space.KV, self.kv_region(tensor), self.appended.get(tensor.name, ()))
        if tensor.name not in self.homes:
            weight = tensor.role is Role.WEIGHT
            space = Space.WEIGHT if weight else Space.ACTIVATION
            offset = self.builder.region(space, self._room(tensor))
            on_chip = tensor.role is Role.INDEX or (not weight and tensor.name in self.context.kept)
            self.homes[tensor.name] = Home(on_chip, space, offset, () if weight else (self.first,))
        return self.homes[tensor.name]

    def operand(self, tensor: Tensor) -> Operand:
        """A streamed input."""
        return Operand(self.home(tensor), self.stored(tensor))

    def stored(self, tensor: Tensor) -> int:
        """Bytes that a tensor takes, zeros left out where the machine's storage does so."""
        return stored_bytes(self.machine, tensor)

    def _room(self, tensor: Tensor) -> int:
        """Bytes of DRAM for a tensor; one with few zeros may take more than a dense one, for its metadata."""
        return max(tensor.resident_bytes, self.stored(tensor))

    def target(self, tensor: Tensor) -> Home:
        """Where an output goes."""
        if tensor.role is Role.KV:
            return Home(False, Space.KV, self.kv_region(tensor))
        if tensor.role is Role.INDEX or tensor.name in self.context.kept:
            return Home(True)
        if tensor.name in self.homes:
            return self.homes[tensor.name]
        return Home(False, Space.ACTIVATION, self.builder.region(Space.ACTIVATION, self._room(tensor)))

    def waits(self, tensors: Iterable[Tensor]) -> tuple[int, ...]:
        """Tasks that produce the activations among `tensors`, or bring any of them from a further memory."""
        tensors = tuple(tensors)
        passing = (t for t in tensors if t.role not in (Role.WEIGHT, Role.KV))
        ready = dict.fromkeys(task for t in passing for task in self.home(t).ready)
        return tuple(ready | dict.fromkeys(task for t in tensors for task in self.arrived.get(t.name, ())))

    def start(self, ops: Iterable[Op]) -> tuple[int, ...]:
        """What the compute tasks of an operator wait for: its operands, and the launch if that costs anything."""
        waits = (*self.waits(t for op in ops for t in op.inputs), *self.gate)
        launch = int(self.machine.software.launch)
        return (self.builder.sync(waits, launch),) if launch else waits

    def settle(self, outputs: Sequence[tuple[Tensor, Home]], ends: Sequence[int]) -> tuple[int, ...]:
        """Note that `outputs` are ready after `ends`, joined to one task."""
        done = (self.builder.sync(dict.fromkeys(ends)),) if len(ends) > 1 else tuple(ends)
        for tensor, home in outputs:
            if tensor.role is Role.KV:
                self.appended[tensor.name] = done
            else:
                self.homes[tensor.name] = Home(home.on_chip, home.space, home.offset, done)
        return done

    def kv_region(self, tensor: Tensor) -> int:
        """Offset of a KV cache of this layer."""
        if tensor.name not in self._kv:
            self._kv[tensor.name] = self.builder.region(Space.KV, self._kv_bytes[tensor.name])
        return self._kv[tensor.name]

    def append_pieces(self, op: Op) -> list[tuple[Space, int, int]]:
        """Where the new entries of each request go in the KV caches that `op` appends to: (space, offset, bytes)."""
        pieces: list[tuple[Space, int, int]] = []
        for tensor in op.outputs:
            base = self.kv_region(tensor)
            spans = self._spans(tensor)
            tokens = sum(span.tokens for span in spans)
            positions = sum(span.count * span.length for span in spans)
            whole = self._kv_bytes[tensor.name]
            at = done = 0
            for span in spans:
                for _ in range(span.count):
                    size = tensor.bytes * (done + span.query) // tokens - tensor.bytes * done // tokens
                    # A cache that holds less than all positions (a window) is a ring; its fill level stands for the
                    # place.
                    row = max(tensor.bytes // tokens, 1)
                    offset = min(whole * (at + span.past) // positions, whole - size) // row * row
                    pieces.append((Space.KV, base + offset, size))
                    done += span.query
                    at += span.length
        return pieces

    def _spans(self, cache: Tensor) -> tuple[RequestSpan, ...]:
        for op in self.ops:
            if isinstance(op.attrs, AttentionAttrs) and any(t.name == cache.name for t in op.inputs):
                return op.attrs.requests
        for op in self.ops:
            if isinstance(op.attrs, AttentionAttrs):
                return op.attrs.requests
        return (RequestSpan(1, max(cache.shape[0], 1)),)
