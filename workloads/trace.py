"""The Trace: a transformer's work as a small operator graph with repeats, and the exact arithmetic on it.

A Trace is a tuple of passes, a Pass a tuple of blocks, a Block a chain of operators that repeats layer after layer.
Every operator knows its multiply-accumulates, its vector operations and the bytes it cannot avoid to move. No
hardware is known here; `docs/trace.md` explains the conventions, `workloads/trace_file.py` writes and reads the file
format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import prod

from workloads.attrs import ATTRS_OF_KIND as ATTRS_OF_KIND
from workloads.attrs import SOFTCAP_VECTOR_OPS as SOFTCAP_VECTOR_OPS
from workloads.attrs import SOFTMAX_VECTOR_OPS as SOFTMAX_VECTOR_OPS
from workloads.attrs import AttentionAttrs as AttentionAttrs
from workloads.attrs import CollectiveAttrs as CollectiveAttrs
from workloads.attrs import CustomAttrs as CustomAttrs
from workloads.attrs import ElementwiseAttrs as ElementwiseAttrs
from workloads.attrs import MatmulAttrs as MatmulAttrs
from workloads.attrs import MoveAttrs as MoveAttrs
from workloads.attrs import OpAttrs as OpAttrs
from workloads.attrs import OpKind as OpKind
from workloads.attrs import ReduceAttrs as ReduceAttrs
from workloads.attrs import TransferAttrs as TransferAttrs
from workloads.formats import storage_bytes
from workloads.masks import CAUSAL as CAUSAL
from workloads.masks import FULL as FULL
from workloads.masks import Mask as Mask
from workloads.masks import RequestSpan as RequestSpan
from workloads.masks import visible_keys as visible_keys
from workloads.masks import visible_pairs as visible_pairs

CARRIED = "x"
"""Name of the residual stream: what a block takes from the block before it and hands to the next."""

SHARED = "shared."
"""What the name of a cache tensor begins with that belongs to another layer: it takes no memory of its own."""


class Role(StrEnum):
    """What a tensor is to the model, which decides where it lives and how long."""

    WEIGHT = "weight"
    ACTIVATION = "activation"
    KV = "kv"
    GRADIENT = "gradient"
    OPTIMIZER = "optimizer"
    INDEX = "index"


@dataclass(frozen=True, slots=True)
class Sparsity:
    """Zeros of a tensor: `n:m` (n kept of m), `block` (whole blocks kept) or `unstructured`; `density` is the kept
    part.

    It describes values only. `Tensor.bytes` stays dense: which bytes a machine saves depends on how it stores them.
    `seed`: the draw that stands for where the zeros are, for machines on which that matters.
    """

    pattern: str
    density: float
    n: int | None = None
    m: int | None = None
    block: tuple[int, int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.pattern not in SPARSITY_PATTERNS:
            raise ValueError(f"sparsity pattern {self.pattern!r} is none of {', '.join(SPARSITY_PATTERNS)}")
        if not 0 <= self.density <= 1:
            raise ValueError(f"sparsity density {self.density} is not in 0..1")
        if self.pattern == "n:m" and (self.n is None or self.m is None or not 0 < self.n <= self.m):
            raise ValueError(f"n:m sparsity needs 0 < n <= m, got {self.n}:{self.m}")
        if self.pattern == "block" and (self.block is None or min(self.block) < 1):
            raise ValueError(f"block sparsity needs a block of two positive sizes, got {self.block}")


SPARSITY_PATTERNS = ("n:m", "block", "unstructured")


@dataclass(frozen=True, slots=True)
class Tensor:
    """The part of a named buffer that one operator touches.

    `shape` counts the elements touched (dense); `whole` is the shape of the complete buffer where the operator
    touches only a part of it (the rows looked up in an embedding table, the experts hit, the visible part of a KV
    cache). Tensors of the same name are the same buffer.
    """

    name: str
    shape: tuple[int, ...]
    format: str
    role: Role
    sparsity: Sparsity | None = None
    tier: str = "device"
    whole: tuple[int, ...] | None = None

    @property
    def elements(self) -> int:
        """Elements touched."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes touched, dense, block scales included."""
        return storage_bytes(self.shape, self.format)

    @property
    def resident_elements(self) -> int:
        """Elements of the complete buffer."""
        return prod(self.whole or self.shape)

    @property
    def resident_bytes(self) -> int:
        """Bytes of the complete buffer."""
        return storage_bytes(self.whole or self.shape, self.format)


@dataclass(frozen=True, slots=True)
class Op:
    """One operator: what it reads, what it writes, and how much work lies between.

    `role` says what the operator is for in the model (attention, ffn, norm, embed, head, router, ...), `kind` what it
    computes.
    """

    name: str
    kind: OpKind
    role: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    attrs: OpAttrs

    def __post_init__(self) -> None:
        if not isinstance(self.attrs, ATTRS_OF_KIND[self.kind]):
            raise ValueError(f"operator {self.name}: kind {self.kind} does not go with {type(self.attrs).__name__}")

    @property
    def macs(self) -> int:
        """Multiply-accumulates of matrix work (matmul, attention, custom)."""
        return self.attrs.macs

    @property
    def flops(self) -> int:
        """2 x macs; vector operations are not counted here."""
        return 2 * self.attrs.macs

    @property
    def vector_ops(self) -> int:
        """Scalar operations that are no multiply-accumulates of matrix work."""
        return self.attrs.vector_ops

    @property
    def read_bytes(self) -> int:
        """Bytes that must be read, each input once."""
        if isinstance(self.attrs, CustomAttrs):
            return self.attrs.read_bytes
        return sum(t.bytes for t in self.inputs)

    @property
    def write_bytes(self) -> int:
        """Bytes that must be written, each output once."""
        if isinstance(self.attrs, CustomAttrs):
            return self.attrs.write_bytes
        return sum(t.bytes for t in self.outputs)


@dataclass(frozen=True, slots=True)
class Work:
    """Amounts that add up over operators: flops, vector operations, compulsory bytes."""

    flops: int = 0
    vector_ops: int = 0
    read_bytes: int = 0
    write_bytes: int = 0

    def plus(self, other: Work, times: int = 1) -> Work:
        """This and `times` the other."""
        return Work(
            self.flops + times * other.flops,
            self.vector_ops + times * other.vector_ops,
            self.read_bytes + times * other.read_bytes,
            self.write_bytes + times * other.write_bytes,
        )


@dataclass(frozen=True, slots=True)
class Block:
    """`repeat` equal layers in a row, each with weights and KV cache of its own unless `weights_shared`.

    `first_layer` says which layer of the model the first repetition begins with, and `prefixes` by what the names of
    its operators tell the layers of one repetition apart. Where it is known, a weight is a name and a layer, so that
    blocks that hold the same layers share their weights. `idle` are weights that stay in memory although no operator of
    these layers reads them.
    """

    name: str
    repeat: int
    ops: tuple[Op, ...]
    weights_shared: bool = False
    first_layer: int | None = None
    prefixes: tuple[str, ...] = ("",)
    idle: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        if self.repeat < 1 or not self.ops:
            raise ValueError(f"block {self.name}: needs repeat >= 1 and at least one operator")
        if not self.prefixes or (self.first_layer is not None and self.first_layer < 0):
            raise ValueError(f"block {self.name}: needs prefixes, and first_layer >= 0 where it has one")

    @property
    def copies(self) -> tuple[int, ...]:
        """Which copies of its weights the block uses: the first layer of each repetition that has weights of its own.

        Without a known layer they are numbered from 0, as if no other block held the same weights.
        """
        first, times = self.first_layer or 0, 1 if self.weights_shared else self.repeat
        return tuple(range(first, first + times * len(self.prefixes), len(self.prefixes)))

    @property
    def work(self) -> Work:
        """Work of all repetitions."""
        return Work().plus(
            Work(
                sum(o.flops for o in self.ops),
                sum(o.vector_ops for o in self.ops),
                sum(o.read_bytes for o in self.ops),
                sum(o.write_bytes for o in self.ops),
            ),
            self.repeat,
        )

    @property
    def flops(self) -> int:
        return self.repeat * sum(o.flops for o in self.ops)

    @property
    def vector_ops(self) -> int:
        return self.repeat * sum(o.vector_ops for o in self.ops)

    @property
    def read_bytes(self) -> int:
        return self.repeat * sum(o.read_bytes for o in self.ops)

    @property
    def write_bytes(self) -> int:
        return self.repeat * sum(o.write_bytes for o in self.ops)


@dataclass(frozen=True, slots=True)
class Pass:
    """One run through (part of) the model: `tokens` positions processed, `generated` new tokens, `repeat` times over.

    `model` names another model than the trace's (a draft), `device` another device than the main one. `fill` stages of
    a pipeline work on the first part of the batch before this one does, which waits for them.
    """

    name: str
    phase: str
    blocks: tuple[Block, ...]
    tokens: int
    generated: int = 0
    repeat: int = 1
    model: str = ""
    device: str = "main"
    fill: int = 0

    def __post_init__(self) -> None:
        if self.repeat < 1 or self.tokens < 0 or self.generated < 0 or self.fill < 0:
            raise ValueError(f"pass {self.name}: needs repeat >= 1, tokens >= 0, generated >= 0, fill >= 0")

    @property
    def work(self) -> Work:
        """Work of one of the `repeat` runs."""
        total = Work()
        for block in self.blocks:
            total = total.plus(block.work)
        return total

    @property
    def flops(self) -> int:
        return sum(b.flops for b in self.blocks)

    @property
    def vector_ops(self) -> int:
        return sum(b.vector_ops for b in self.blocks)

    @property
    def read_bytes(self) -> int:
        return sum(b.read_bytes for b in self.blocks)

    @property
    def write_bytes(self) -> int:
        return sum(b.write_bytes for b in self.blocks)

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV cache that must be resident during the pass, all layers and requests."""
        total = 0
        for block in self.blocks:
            largest: dict[str, int] = {}
            for tensor in _tensors(block):
                if tensor.role is Role.KV and not tensor.name.startswith(SHARED):
                    largest[tensor.name] = max(largest.get(tensor.name, 0), tensor.resident_bytes)
            total += block.repeat * sum(largest.values())
        return total


@dataclass(frozen=True, slots=True)
class Hint:
    """What a method asks of the machine beyond the operators: `kind` names the ability, `settings` its parameters.

    A machine honours a hint or, if it is `required`, refuses the trace; one that is not required may be passed over,
    and the run is then what it is without it.
    """

    kind: str
    settings: tuple[tuple[str, str | int | float], ...] = ()
    required: bool = False

    def __post_init__(self) -> None:
        if self.kind not in HINT_KINDS:
            raise ValueError(f"hint kind {self.kind!r} is none of {', '.join(HINT_KINDS)}")


HINT_KINDS = ("overlap", "fuse", "pipeline", "place", "serve", "engine", "mac", "dvfs", "fault", "snapshot")


@dataclass(frozen=True, slots=True)
class Trace:
    """A model's passes in order. `batch` requests; `methods` applied, in order; `meta` free facts (key, value).

    `hints` are what the methods ask of the machine.
    """

    model: str
    batch: int
    passes: tuple[Pass, ...]
    methods: tuple[str, ...] = ()
    meta: tuple[tuple[str, str | int], ...] = ()
    hints: tuple[Hint, ...] = ()

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"a trace needs batch >= 1, got {self.batch}")

    @property
    def work(self) -> Work:
        """Work of all passes, their repeats included."""
        total = Work()
        for p in self.passes:
            total = total.plus(p.work, p.repeat)
        return total

    @property
    def flops(self) -> int:
        return sum(p.repeat * p.flops for p in self.passes)

    @property
    def vector_ops(self) -> int:
        return sum(p.repeat * p.vector_ops for p in self.passes)

    @property
    def read_bytes(self) -> int:
        return sum(p.repeat * p.read_bytes for p in self.passes)

    @property
    def write_bytes(self) -> int:
        return sum(p.repeat * p.write_bytes for p in self.passes)

    @property
    def tokens(self) -> int:
        """Positions processed."""
        return sum(p.repeat * p.tokens for p in self.passes)

    @property
    def generated(self) -> int:
        """New tokens."""
        return sum(p.repeat * p.generated for p in self.passes)

    @property
    def kv_bytes(self) -> int:
        """Largest KV cache that any pass of a model needs resident, added up over the models (a draft has its own)."""
        largest: dict[str, int] = {}
        known: dict[tuple[int, ...], int] = {}
        for p in self.passes:
            key = tuple(map(id, p.blocks))
            if key not in known:
                known[key] = p.kv_bytes
            largest[p.model] = max(largest.get(p.model, 0), known[key])
        return sum(largest.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights that the trace uses, held once however many passes use them; tied ones counted once."""
        return sum(times * tensor.resident_bytes for tensor, times in self._weights().values())

    @property
    def weight_elements(self) -> int:
        """Number of weights that the trace uses, tied ones counted once."""
        return sum(times * tensor.resident_elements for tensor, times in self._weights().values())

    @property
    def weight_bytes_by_tier(self) -> dict[str, int]:
        """Bytes of all weights by the tier that they live in; copies that transfers make are not counted again."""
        made = {
            (p.model or self.model, tensor.name)
            for p in self.passes
            for block in p.blocks
            for op in block.ops
            if op.kind is OpKind.TRANSFER
            for tensor in op.outputs
        }
        found: dict[str, int] = {}
        for key, (tensor, times) in self._weights().items():
            if tensor.tier != "device" or key not in made:
                found[tensor.tier] = found.get(tensor.tier, 0) + times * tensor.resident_bytes
        return found

    def _weights(self) -> dict[tuple[str, str], tuple[Tensor, int]]:
        """Weight tensor and number of copies, by (model, name)."""
        largest: dict[tuple[str, str], Tensor] = {}
        copies: dict[tuple[str, str], set[int]] = {}
        seen: set[tuple[int, tuple[int, ...], str]] = set()
        for p in self.passes:
            for block in p.blocks:
                held = block.copies

                def note(
                    tensors: tuple[Tensor, ...], model: str = p.model or self.model, held: tuple[int, ...] = held
                ) -> None:
                    for tensor in tensors:
                        if tensor.role is Role.WEIGHT:
                            key = (model, tensor.name)
                            known = largest.get(key)
                            if known is None or known.resident_bytes < tensor.resident_bytes:
                                largest[key] = tensor
                            copies.setdefault(key, set()).update(held)

                note(block.idle)
                for op in block.ops:
                    # Passes share operator objects: the weights of most of them are known from an earlier pass.
                    visit = (id(op), held, p.model)
                    if visit not in seen:
                        seen.add(visit)
                        note(op.inputs)
        return {key: (tensor, len(copies[key])) for key, tensor in largest.items()}


def _tensors(block: Block) -> Iterator[Tensor]:
    for op in block.ops:
        yield from op.inputs
        yield from op.outputs
