"""What each kind of operator is told about its work, and how many operations follow from it.

One frozen class a kind, each with `macs` (multiply-accumulates of matrix work) and `vector_ops` (all other arithmetic).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from workloads.masks import Mask, RequestSpan, visible_keys, visible_pairs


class OpKind(StrEnum):
    """The closed set of operator kinds."""

    MATMUL = "matmul"
    ATTENTION = "attention"
    REDUCE = "reduce"
    ELEMENTWISE = "elementwise"
    GATHER = "gather"
    SCATTER = "scatter"
    COLLECTIVE = "collective"
    TRANSFER = "transfer"
    CUSTOM = "custom"


# Scalar operations an element, each transcendental counted as one. Multiply-accumulates are not among them.
ELEMENTWISE_VECTOR_OPS: dict[str, int] = {
    "add": 1,
    "mul": 1,
    "bias": 1,
    "scale": 1,
    "relu": 1,
    "cast": 1,
    "copy": 0,
    "tanh": 1,
    "sigmoid": 3,  # exp, add, reciprocal
    "quantize": 3,  # scale, round, clamp
    "dequantize": 1,
    "modulate": 2,  # scale and shift
    "gate_add": 2,  # scale by a gate, add to the residual
    "softcap": 3,  # divide, tanh, multiply
    "rotary": 3,  # two products and a sum an output
    "silu": 4,  # sigmoid and product
    "gelu": 8,  # tanh form: cube (2), scale, add, scale, tanh, add one, product
    "swiglu": 5,  # silu and product
    "geglu": 9,  # gelu and product
    "swiglu_clamped": 9,  # two clamps, scaled sigmoid (4), product, add one, product
}
REDUCE_VECTOR_OPS: dict[str, int] = {
    "softmax": 5,  # max, subtract, exp, sum, scale
    "rmsnorm": 4,  # square, sum, scale, gain
    "layernorm": 7,  # sum, subtract, square, sum, scale, gain, offset
    "topk": 1,  # a comparison, for each of the `keep` sweeps
    "sum": 1,
    "mean": 1,
    "max": 1,
    "argmax": 1,
}
SOFTMAX_VECTOR_OPS = REDUCE_VECTOR_OPS["softmax"]
SOFTCAP_VECTOR_OPS = ELEMENTWISE_VECTOR_OPS["softcap"]


@dataclass(frozen=True, slots=True)
class MatmulAttrs:
    """`batch` products (m x k)(k x n). With `group_m`, m is the total and batch member i has group_m[i] of the rows."""

    batch: int
    m: int
    k: int
    n: int
    group_m: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if min(self.batch, self.m, self.k, self.n) < 1:
            raise ValueError(f"matmul sizes must be positive, got {self.batch} x {self.m} x {self.k} x {self.n}")
        if self.group_m is not None and (len(self.group_m) != self.batch or sum(self.group_m) != self.m):
            raise ValueError(f"group_m must have {self.batch} entries that add up to {self.m}")

    @property
    def macs(self) -> int:
        rows = self.m if self.group_m is not None else self.batch * self.m
        return rows * self.k * self.n

    @property
    def vector_ops(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class AttentionAttrs:
    """Scores, softmax and weighted sum of values, for all heads and requests; `latent`: values are part of the keys."""

    heads: int
    kv_heads: int
    head_dim: int
    v_head_dim: int
    mask: Mask
    requests: tuple[RequestSpan, ...]
    latent: bool = False
    softcap: bool = False

    def __post_init__(self) -> None:
        if self.kv_heads < 1 or self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads do not share {self.kv_heads} key/value heads evenly")
        if not self.requests:
            raise ValueError("attention needs at least one request")

    @property
    def pairs(self) -> int:
        """Visible (query, key) pairs of one head, over all requests."""
        return sum(r.count * visible_pairs(self.mask, r.query, r.past) for r in self.requests)

    @property
    def keys(self) -> int:
        """Key positions that are read, over all requests (a request's keys are read once, whatever its queries)."""
        return sum(r.count * visible_keys(self.mask, r.query, r.past) for r in self.requests)

    @property
    def tokens(self) -> int:
        """New positions, over all requests."""
        return sum(r.tokens for r in self.requests)

    @property
    def macs(self) -> int:
        return self.pairs * self.heads * (self.head_dim + self.v_head_dim)

    @property
    def vector_ops(self) -> int:
        return self.pairs * self.heads * (SOFTMAX_VECTOR_OPS + self.softcap * SOFTCAP_VECTOR_OPS)


@dataclass(frozen=True, slots=True)
class ReduceAttrs:
    """A reduction (or normalisation) along each of `rows` rows of `columns` elements; `keep` values stay of a topk."""

    function: str
    rows: int
    columns: int
    keep: int = 1

    def __post_init__(self) -> None:
        if self.function not in REDUCE_VECTOR_OPS:
            raise ValueError(f"reduce function {self.function!r} is none of {', '.join(REDUCE_VECTOR_OPS)}")
        if min(self.rows, self.columns, self.keep) < 1:
            raise ValueError(f"reduce sizes must be positive, got {self.rows} x {self.columns}, keep {self.keep}")

    @property
    def macs(self) -> int:
        return 0

    @property
    def vector_ops(self) -> int:
        sweeps = self.keep if self.function == "topk" else 1
        return self.rows * self.columns * REDUCE_VECTOR_OPS[self.function] * sweeps


@dataclass(frozen=True, slots=True)
class ElementwiseAttrs:
    """One function on `elements` results; the gated ones (swiglu, geglu) read twice as many."""

    function: str
    elements: int

    def __post_init__(self) -> None:
        if self.function not in ELEMENTWISE_VECTOR_OPS:
            raise ValueError(f"elementwise function {self.function!r} is none of {', '.join(ELEMENTWISE_VECTOR_OPS)}")
        if self.elements < 1:
            raise ValueError(f"elementwise needs elements >= 1, got {self.elements}")

    @property
    def macs(self) -> int:
        return 0

    @property
    def vector_ops(self) -> int:
        return self.elements * ELEMENTWISE_VECTOR_OPS[self.function]


@dataclass(frozen=True, slots=True)
class MoveAttrs:
    """Gather or scatter of `rows` rows of `row_bytes`; `vector_ops` where rows are weighted and added on the way."""

    table: str
    rows: int
    row_bytes: int
    vector_ops: int = 0

    def __post_init__(self) -> None:
        if min(self.rows, self.row_bytes) < 1 or self.vector_ops < 0:
            raise ValueError(f"a move needs positive rows and row_bytes, got {self.rows}, {self.row_bytes}")

    @property
    def macs(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class CollectiveAttrs:
    """A collective over `group` devices; `bytes` is the payload on each of them."""

    algorithm_kind: str
    bytes: int
    group: int

    def __post_init__(self) -> None:
        if self.algorithm_kind not in COLLECTIVES:
            raise ValueError(f"collective {self.algorithm_kind!r} is none of {', '.join(COLLECTIVES)}")
        if self.bytes < 0 or self.group < 1:
            raise ValueError(f"a collective needs bytes >= 0 and group >= 1, got {self.bytes}, {self.group}")

    @property
    def macs(self) -> int:
        return 0

    @property
    def vector_ops(self) -> int:
        return 0


COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv")


@dataclass(frozen=True, slots=True)
class TransferAttrs:
    """`bytes` moved from one memory tier to another."""

    source_tier: str
    target_tier: str
    bytes: int

    def __post_init__(self) -> None:
        if self.bytes < 0:
            raise ValueError(f"a transfer needs bytes >= 0, got {self.bytes}")

    @property
    def macs(self) -> int:
        return 0

    @property
    def vector_ops(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class CustomAttrs:
    """Work stated by its user: `flops` (even: two a multiply-accumulate), vector operations, bytes, where it runs."""

    flops: int
    vector_ops: int
    read_bytes: int
    write_bytes: int
    placement: str = "vector"

    def __post_init__(self) -> None:
        if min(self.flops, self.vector_ops, self.read_bytes, self.write_bytes) < 0 or self.flops % 2:
            raise ValueError("a custom operator needs amounts >= 0 and an even number of flops")

    @property
    def macs(self) -> int:
        return self.flops // 2


OpAttrs = (
    MatmulAttrs
    | AttentionAttrs
    | ReduceAttrs
    | ElementwiseAttrs
    | MoveAttrs
    | CollectiveAttrs
    | TransferAttrs
    | CustomAttrs
)

ATTRS_OF_KIND: dict[OpKind, type] = {
    OpKind.MATMUL: MatmulAttrs,
    OpKind.ATTENTION: AttentionAttrs,
    OpKind.REDUCE: ReduceAttrs,
    OpKind.ELEMENTWISE: ElementwiseAttrs,
    OpKind.GATHER: MoveAttrs,
    OpKind.SCATTER: MoveAttrs,
    OpKind.COLLECTIVE: CollectiveAttrs,
    OpKind.TRANSFER: TransferAttrs,
    OpKind.CUSTOM: CustomAttrs,
}
