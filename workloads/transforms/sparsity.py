"""Sparse values: weights in a pattern (`wsparse`), activations by neuron or by input channel (`asparse`).

`wsparse` says which weights are zero and leaves work and bytes as they are: what is saved depends on what the machine
can skip and how it stores the rest. `asparse` removes rows and columns that nobody needs, which saves on any machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from pydantic import Field, model_validator

from sim.config import ConfigError
from workloads.schema import Schema, Size
from workloads.sparsity import WeightPattern, parse_sparsity
from workloads.trace import (
    CustomAttrs,
    ElementwiseAttrs,
    MatmulAttrs,
    Op,
    OpKind,
    Pass,
    ReduceAttrs,
    Role,
    Sparsity,
    Tensor,
    Trace,
)
from workloads.transforms.graph import Edited, Half, edit_layers, edit_ops, half, prefix_of, tokens_of
from workloads.transforms.rates import Density, exact, portion
from workloads.transforms.where import Where


class WSparse(Schema):
    """Weights of a pattern, in the selected operators and, in a training step, the selected products (`where.gemms`).

    `search_every`: the mask is searched anew once in so many steps (a training step pays its part: one comparison and
    one read of each weight).
    """

    pattern: WeightPattern
    search_every: Size | None = None
    where: Where = Where()


def wsparse(trace: Trace, params: WSparse) -> Trace:
    """Closed form: work and bytes stay; the selected weights (and gradients of weights) carry the pattern."""
    pattern = parse_sparsity(params.pattern)
    if pattern is None or pattern.density == 1:
        return trace

    def edit(op: Op, p: Pass) -> Sequence[Op]:
        if op.kind is not OpKind.MATMUL:
            return (op,)
        inputs = tuple(
            replace(t, sparsity=pattern) if t.role is Role.WEIGHT and len(t.shape) >= 2 else t for t in op.inputs
        )
        return (replace(op, inputs=inputs),)

    where = params.where
    if where.operators is None and where.roles is None:
        where = where.model_copy(update={"roles": ("attention", "ffn")})
    result = edit_ops(trace, where, edit)
    return _with_search(result, params.search_every) if params.search_every else result


def _with_search(trace: Trace, every: int) -> Trace:
    """Add the search of masks to the optimizer's pass, one part in `every` of its work."""
    if not any(p.phase == "update" for p in trace.passes):
        raise ConfigError("needs a training step (primitive train), in which masks are searched", key="search_every")
    masked: dict[str, tuple[Tensor, int]] = {}
    for p in trace.passes:
        for block in p.blocks:
            for op in block.ops:
                for t in op.inputs:
                    if t.role is Role.WEIGHT and t.sparsity is not None and p.phase == "forward":
                        masked[f"{block.name}.{t.name}"] = (t, block.repeat)
    elements = sum(t.elements * times for t, times in masked.values())
    size = sum(t.bytes * times for t, times in masked.values())
    attrs = CustomAttrs(0, -(-elements // every), -(-size // every), -(-elements // (8 * every)), "vector")
    from workloads.trace import Block

    search = Block("mask_search", 1, (Op("mask_search", OpKind.CUSTOM, "optimizer", (), (), attrs),))
    passes = tuple(replace(p, blocks=(*p.blocks, search)) if p.phase == "update" else p for p in trace.passes)
    return replace(trace, passes=passes)


def effective_flops(trace: Trace) -> int:
    """FLOPs of the trace with products of zeros left out: what a machine that skips all of them would do.

    Each matrix product counts by the densities of its operands, as if their zeros fell independently; rounded to the
    nearest whole number once.
    """
    total = Fraction(0)
    known: dict[int, Fraction] = {}
    for p in trace.passes:
        for block in p.blocks:
            for op in block.ops:
                if id(op) not in known:
                    share = Fraction(1)
                    for tensor in op.inputs if op.kind is OpKind.MATMUL else ():
                        share *= exact(tensor.sparsity.density) if tensor.sparsity is not None else 1
                    known[id(op)] = op.flops * share
                total += p.repeat * block.repeat * known[id(op)]
    return int(total + Fraction(1, 2))


class ASparse(Schema):
    """Only some inputs of linears, or neurons of feed-forward halves, are needed for a token.

    inputs: each token keeps its best `density` of the inputs of the selected linears; neurons: `density` of the neurons
    are active. Rows of the weights that no token of the pass needs are not read: with `union` that share is stated,
    else the tokens' choices are taken as independent, or as alike within `chunk` positions.
    """

    of: Literal["inputs", "neurons"]
    density: Density
    union: Density | None = Field(None, description="Share of rows that the tokens of a pass need together.")
    chunk: Size = Field(1, description="Tokens in a row that choose alike.")
    predictor: Literal["none", "linear", "low_rank", "partial"] = "none"
    rank: Size = Field(256, description="Rank of the predictor (low_rank), or dimensions it reads (partial).")
    threshold: bool = Field(True, description="Chosen by a threshold (one comparison an entry), else by a sort.")
    where: Where = Where()

    @model_validator(mode="after")
    def _fits(self) -> ASparse:
        if self.union is not None and self.union < self.density:
            raise ValueError(f"union ({self.union}) cannot be below density ({self.density}), what one token needs")
        if self.of == "inputs" and self.predictor != "none":
            raise ValueError("inputs are known before the product, so a predictor has no place")
        return self

    def together(self, tokens: int) -> Fraction:
        """Share of rows that `tokens` tokens need together."""
        if tokens == 1:
            return exact(self.density)
        if self.union is not None:
            return exact(self.union)
        return 1 - (1 - exact(self.density)) ** -(-tokens // self.chunk)


def asparse(trace: Trace, params: ASparse) -> Trace:
    """Closed form: matrix work and weights of the selected linears shrink to the union; what is left is sparse in each
    token by density / union.
    """
    if params.density == 1:
        return trace
    if params.of == "neurons":
        return edit_layers(trace, params.where, lambda ops, site: Edited(_neurons(ops, params)))
    where = params.where
    if where.operators is None:
        names = {op.name.rpartition(".")[2] for p in trace.passes for b in p.blocks for op in b.ops}
        where = where.model_copy(
            update={"operators": tuple(n for n in ("qkv", "out_proj", "gate_up", "up", "down") if n in names)}
        )

    def edit(op: Op, p: Pass) -> Sequence[Op]:
        attrs = op.attrs
        if not isinstance(attrs, MatmulAttrs) or attrs.batch != 1:
            raise ConfigError(f"{op.name} is no plain product with a weight", key="where.operators")
        share = params.together(attrs.m)
        k = max(portion(attrs.k, float(share)), 1)
        x, weight = op.inputs[0], op.inputs[1]
        kept = Tensor(f"{x.name}_kept", (attrs.m, k), x.format, Role.ACTIVATION, _rest(params.density, share))
        columns = Tensor(f"{op.name}_kept_columns", (k,), "int32", Role.INDEX)
        select = Op(
            f"{op.name}_select", OpKind.REDUCE, op.role, (x,), (kept, columns),
            ReduceAttrs("topk", attrs.m, attrs.k, keep=1 if params.threshold else k),
        )  # fmt: skip
        part = replace(weight, shape=(k, attrs.n), whole=weight.whole or weight.shape)
        inputs = (kept, part, *op.inputs[2:])
        return select, replace(op, inputs=inputs, attrs=replace(attrs, k=k))

    return edit_ops(trace, where, edit)


def _rest(density: float, share: Fraction) -> Sparsity | None:
    """The sparsity that is left in each token once rows that nobody needs are gone."""
    left = float(min(exact(density) / share, Fraction(1)))
    return None if left >= 1 else Sparsity("unstructured", left)


def _neurons(ops: tuple[Op, ...], params: ASparse) -> tuple[Op, ...]:
    part = half(ops, "ffn")
    if part is None:
        return ops
    body = list(ops[part.start : part.stop])
    tokens = tokens_of(ops)
    share = params.together(tokens)
    changed = _active(body, share, params)
    fed = next(op for op in body if op.role == "ffn" and op.kind is OpKind.MATMUL)
    before = body.index(fed)
    predicted = _predictor(fed, ops, part, params)
    return (*ops[: part.start], *changed[:before], *predicted, *changed[before:], *ops[part.stop :])


def _active(body: list[Op], share: Fraction, params: ASparse) -> list[Op]:
    """The half with `share` of its neurons (of every expert that is hit)."""
    inner: dict[str, int] = {}
    found = []
    for op in body:
        attrs = op.attrs
        if isinstance(attrs, MatmulAttrs) and op.role == "ffn":
            x, weight = op.inputs[0], op.inputs[1]
            if x.name in inner:
                k = inner[x.name]
                shape = (*weight.shape[:-2], k, weight.shape[-1])
                left = replace(x, shape=(*x.shape[:-1], k), sparsity=_rest(params.density, share))
                whole = weight.whole or weight.shape
                op = replace(
                    op,
                    inputs=(left, replace(weight, shape=shape, whole=whole), *op.inputs[2:]),
                    attrs=replace(attrs, k=k),
                )
            else:
                halves_ = 2 if op.name.endswith("gate_up") else 1
                n = max(portion(attrs.n // halves_, float(share)), 1) * halves_
                out = replace(op.outputs[0], shape=(*op.outputs[0].shape[:-1], n))
                inner[out.name] = n
                cut = tuple(replace(t, shape=(*t.shape[:-1], n), whole=t.whole or t.shape) for t in op.inputs[1:])
                op = replace(op, inputs=(x, *cut), outputs=(out,), attrs=replace(attrs, n=n))
        elif isinstance(attrs, ElementwiseAttrs) and op.inputs[0].name in inner:
            n = inner[op.inputs[0].name]
            x = replace(op.inputs[0], shape=(*op.inputs[0].shape[:-1], n))
            width = n // 2 if op.outputs[0].shape[-1] * 2 == op.inputs[0].shape[-1] else n
            out = replace(op.outputs[0], shape=(*op.outputs[0].shape[:-1], width))
            inner[out.name] = width
            op = replace(op, inputs=(x, *op.inputs[1:]), outputs=(out,), attrs=replace(attrs, elements=out.elements))
        found.append(op)
    return found


def _predictor(fed: Op, ops: Sequence[Op], part: Half, params: ASparse) -> tuple[Op, ...]:
    """Scores of all neurons for each token, and the choice."""
    if params.predictor == "none":
        return ()
    attrs, x = fed.attrs, fed.inputs[0]
    assert isinstance(attrs, MatmulAttrs)
    neurons = attrs.n // (2 if fed.name.endswith("gate_up") else 1)
    m, prefix = attrs.m, prefix_of(fed)
    base = fed.inputs[1].name.removesuffix(".weight")
    scores = Tensor("neuron_scores", (m, neurons), x.format, Role.ACTIVATION)
    found: list[Op] = []
    k = attrs.k
    if params.predictor == "low_rank":
        weight = Tensor(f"{base}_predict_a.weight", (k, params.rank), fed.inputs[1].format, Role.WEIGHT)
        middle = Tensor("neuron_low", (m, params.rank), x.format, Role.ACTIVATION)
        found.append(
            Op(f"{prefix}predict_a", OpKind.MATMUL, "router", (x, weight), (middle,), MatmulAttrs(1, m, k, params.rank))
        )
        x, k = middle, params.rank
    elif params.predictor == "partial":
        k = min(params.rank, k)
        x = replace(x, shape=(*x.shape[:-1], k))
    weight = Tensor(f"{base}_predict.weight", (k, neurons), fed.inputs[1].format, Role.WEIGHT)
    if params.predictor == "partial":
        # A part of the half's own weights scores the neurons; no further weights.
        weight = replace(fed.inputs[1], shape=(k, neurons), whole=fed.inputs[1].whole or fed.inputs[1].shape)
    found.append(Op(f"{prefix}predict", OpKind.MATMUL, "router", (x, weight), (scores,), MatmulAttrs(1, m, k, neurons)))
    chosen = Tensor("neurons_chosen", (max(portion(neurons, params.density), 1),), "int32", Role.INDEX)
    keep = 1 if params.threshold else chosen.elements
    found.append(
        Op(
            f"{prefix}predict_select",
            OpKind.REDUCE,
            "router",
            (scores,),
            (chosen,),
            ReduceAttrs("topk", m, neurons, keep=keep),
        )
    )
    return tuple(found)
