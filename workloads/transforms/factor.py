"""Weights as products of structured factors: low rank, block-diagonal, Monarch, BLAST, LoRA, wrappers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from sim.config import ConfigError
from workloads.formats import storage_bytes
from workloads.schema import Schema, Size
from workloads.trace import ElementwiseAttrs, MatmulAttrs, MoveAttrs, Op, OpKind, Pass, Role, Tensor, Trace
from workloads.transforms.graph import edit_ops
from workloads.transforms.where import Where

LINEARS = ("qkv", "out_proj", "gate_up", "up", "down", "q_down", "q_up", "kv_down")


class Factor(Schema):
    """Replace the weight (k x n) of each selected linear.

    low_rank: (k x rank)(rank x n) · block_diagonal: `blocks` blocks of k/blocks x n/blocks · monarch: `blocks` blocks
    of k/blocks x rank, a permutation, `blocks` blocks of rank x n/blocks · blast: shared bases of `rank` around
    `blocks` x `blocks` diagonal couplings · lora: the weight stays, and (k x rank)(rank x n) is added · wrap: the
    weight stays between a block-diagonal k x k and a block-diagonal n x n. merged: the product is formed beforehand,
    nothing changes.
    """

    kind: Literal["low_rank", "block_diagonal", "monarch", "blast", "lora", "wrap"]
    rank: Size | None = None
    blocks: Size | None = None
    merged: bool = False
    where: Where = Field(Where(), description="Without operators: all linears of the layers.")

    @model_validator(mode="after")
    def _fits(self) -> Factor:
        needs = {
            "low_rank": ("rank",), "lora": ("rank",), "block_diagonal": ("blocks",), "wrap": ("blocks",),
            "monarch": ("rank", "blocks"), "blast": ("rank", "blocks"),
        }[self.kind]  # fmt: skip
        for name in ("rank", "blocks"):
            if (getattr(self, name) is not None) != (name in needs):
                raise ValueError(f"{self.kind} {'needs' if name in needs else 'takes no'} {name}")
        return self


def factor(trace: Trace, params: Factor) -> Trace:
    """Closed forms a row of m (multiply-accumulates = weights): low_rank and lora rank (k + n), block_diagonal k n /
    blocks, monarch rank (k + n), blast rank (k + n) and blocks^2 rank vector products, wrap (k^2 + n^2) / blocks.
    """
    if params.merged:
        return trace
    where = params.where
    if where.operators is None:
        names = {op.name.rpartition(".")[2] for p in trace.passes for b in p.blocks for op in b.ops}
        where = where.model_copy(update={"operators": tuple(n for n in LINEARS if n in names)})

    def edit(op: Op, p: Pass) -> Sequence[Op]:
        attrs = op.attrs
        if not isinstance(attrs, MatmulAttrs) or attrs.batch != 1 or op.inputs[1].role is not Role.WEIGHT:
            raise ConfigError(f"{op.name} is no plain product with a weight", key="where.operators")
        return _Parts(op, attrs, params).ops()

    return edit_ops(trace, where, edit)


class _Parts:
    def __init__(self, op: Op, attrs: MatmulAttrs, params: Factor) -> None:
        self.op, self.attrs, self.params = op, attrs, params
        self.base = op.inputs[1].name.removesuffix(".weight")

    def weight(self, part: str, *shape: int) -> Tensor:
        return Tensor(f"{self.base}_{part}.weight", shape, self.op.inputs[1].format, Role.WEIGHT)

    def middle(self, name: str, *shape: int) -> Tensor:
        return Tensor(f"{self.op.outputs[0].name}_{name}", shape, self.op.inputs[0].format, Role.ACTIVATION)

    def product(self, part: str, x: Tensor, w: Tensor, out: Tensor, batch: int, m: int, k: int, n: int) -> Op:
        return Op(f"{self.op.name}_{part}", OpKind.MATMUL, self.op.role, (x, w), (out,), MatmulAttrs(batch, m, k, n))

    def split(self, size: int, what: str) -> int:
        assert self.params.blocks is not None
        if size % self.params.blocks:
            raise ConfigError(
                f"is {self.params.blocks}, which does not divide the {size} {what} of {self.op.name}", key="blocks"
            )
        return size // self.params.blocks

    def last(self, part: str, x: Tensor, w: Tensor, batch: int, m: int, k: int, n: int) -> Op:
        """The product that gives the linear's result, under its own name and with its bias."""
        inputs = (x, w, *self.op.inputs[2:])
        return replace(self.op, inputs=inputs, attrs=MatmulAttrs(batch, m, k, n))

    def ops(self) -> tuple[Op, ...]:
        a, x, out, p = self.attrs, self.op.inputs[0], self.op.outputs[0], self.params
        m, k, n = a.m, a.k, a.n
        rank, blocks = p.rank or 1, p.blocks or 1
        if p.kind == "low_rank":
            middle = self.middle("mid", m, rank)
            first = self.product("a", x, self.weight("a", k, rank), middle, 1, m, k, rank)
            return first, self.last("b", middle, self.weight("b", rank, n), 1, m, rank, n)
        if p.kind == "lora":
            middle, added = self.middle("mid", m, rank), self.middle("low", m, n)
            plain = self.middle("plain", m, n)
            return (
                replace(self.op, outputs=(plain,)),
                self.product("a", x, self.weight("a", k, rank), middle, 1, m, k, rank),
                self.product("b", middle, self.weight("b", rank, n), added, 1, m, rank, n),
                Op(
                    f"{self.op.name}_add",
                    OpKind.ELEMENTWISE,
                    self.op.role,
                    (plain, added),
                    (out,),
                    ElementwiseAttrs("add", m * n),
                ),
            )
        if p.kind == "block_diagonal":
            kb, nb = self.split(k, "rows"), self.split(n, "columns")
            return (self.last("", x, self.weight("blocks", blocks, kb, nb), blocks, m, kb, nb),)
        if p.kind == "wrap":
            kb, nb = self.split(k, "rows"), self.split(n, "columns")
            turned, raw = self.middle("turned", m, k), self.middle("raw", m, n)
            return (
                self.product("in", x, self.weight("in", blocks, kb, kb), turned, blocks, m, kb, kb),
                Op(f"{self.op.name}_core", OpKind.MATMUL, self.op.role, (turned, self.op.inputs[1]), (raw,), a),
                self.last("", raw, self.weight("out", blocks, nb, nb), blocks, m, nb, nb),
            )
        kb, nb = self.split(k, "rows"), self.split(n, "columns")
        left, right = self.middle("left", m, blocks * rank), self.middle("right", m, blocks * rank)
        first = self.product("in", x, self.weight("in", blocks, kb, rank), left, blocks, m, kb, rank)
        if p.kind == "monarch":
            row = storage_bytes((blocks * rank,), left.format)
            between = Op(
                f"{self.op.name}_permute", OpKind.GATHER, self.op.role, (left,), (right,), MoveAttrs("permute", m, row)
            )
        else:
            # Each of the blocks of the result is a sum over all blocks of the input, scaled element by element.
            row = storage_bytes((blocks * rank,), left.format)
            couplings = self.weight("couple", blocks, blocks, rank)
            between = Op(
                f"{self.op.name}_couple",
                OpKind.GATHER,
                self.op.role,
                (left, couplings),
                (right,),
                MoveAttrs("couple", m, row, vector_ops=2 * m * blocks * blocks * rank),
            )
        return first, between, self.last("", right, self.weight("out", blocks, rank, nb), blocks, m, rank, nb)
