"""Conditional work: halves of layers that run for a part of the tokens, chosen at run time (`skip`).

What a skipped token costs is its decision: the gate stays, and keys and values where later positions need them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Literal

from pydantic import Field, model_validator

from workloads.formats import storage_bytes
from workloads.schema import Schema, Size
from workloads.trace import (
    CARRIED,
    AttentionAttrs,
    ElementwiseAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    Pass,
    ReduceAttrs,
    RequestSpan,
    Role,
    Tensor,
    Trace,
)
from workloads.transforms.context import Context
from workloads.transforms.draws import Stream
from workloads.transforms.graph import Edited, Half, Site, edit_layers, halves, spans_of, tokens_of, weights_of
from workloads.transforms.rates import Rate, exact
from workloads.transforms.rows import spread, thin, with_rows
from workloads.transforms.where import Where


class Skip(Schema):
    """Leave out a half (or both) of a layer for the tokens that a gate picks: each with `probability`, or all but a
    fixed `capacity`.

    kv write: skipped tokens still get keys and values; none: they are no keys in these layers at all. Which layers run
    for which tokens is data and does not matter for time: the rows kept are counted over all selected layers, so that
    they are rounded once, and layers alike stand together.
    """

    unit: Literal["ffn", "attention", "block"] = "ffn"
    probability: Rate | None = Field(None, description="Share of tokens (a layer each) that skip.")
    capacity: Rate | None = Field(None, description="Share of tokens that do not skip; the choice is a top-k.")
    gate: Literal["none", "cosine", "linear", "mlp"] = Field("linear", description="What the decision computes.")
    gate_width: Size = Field(64, description="Inner width of the gate (mlp).")
    kv: Literal["write", "none"] = "write"
    draw: Literal["mean", "sampled"] = "mean"
    where: Where = Where()

    @model_validator(mode="after")
    def _one_of(self) -> Skip:
        if (self.probability is None) == (self.capacity is None):
            raise ValueError("needs either probability or capacity")
        return self

    @property
    def keep(self) -> Fraction:
        """Share of tokens that run."""
        if self.capacity is not None:
            return exact(self.capacity)
        assert self.probability is not None
        return 1 - exact(self.probability)


def skip(trace: Trace, params: Skip, context: Context) -> Trace:
    """Closed form: rows of the halves fall to `keep` of their tokens x layers, and each layer gains its gate."""
    if params.keep == 1:
        return trace
    kept: dict[int, tuple[int, int]] = {}

    def rows_of(p: Pass, layers: int) -> int:
        """Notes how many rows run in each layer of a pass; returns how many layers have one more."""
        tokens = tokens_of(op for block in p.blocks for op in block.ops if block.first_layer is not None)
        rows, more, _ = spread(tokens, params.keep, layers)
        if params.draw == "sampled":
            stream = Stream(context.seed, "skip", p.name, *(params.where.layers or ()))
            rows, more = divmod(sum(u < params.keep for u in stream.uniforms(tokens * layers)), layers)
        kept[id(p)] = (rows, more)
        return more

    def edit(ops: tuple[Op, ...], site: Site) -> Edited:
        rows, more = kept[id(site.work)]
        rows += site.order < more
        found, first = ops, True
        idle: list[Tensor] = []
        for part in reversed(halves(ops)):
            if params.unit in ("block", part.kind):
                body, unused = shrink(ops, part, rows, site.prefix, params.kv == "write", params.kv == "none")
                found = (*found[: part.start], *body, *found[part.stop :])
                idle.extend(unused)
        for part in halves(ops):
            if params.unit in ("block", part.kind) and first:
                found = (*found[: part.start], *gate(ops, part, params, site.prefix), *found[part.start :])
                first = False
        return Edited(found, tuple(idle))

    return edit_layers(trace, params.where, edit, per_pass=True, together=rows_of)


def gate(ops: Sequence[Op], part: Half, params: Skip, prefix: str) -> tuple[Op, ...]:
    """The operators that decide: a score for each token, and with a capacity the best of them."""
    x = ops[part.start].inputs[0]
    tokens, hidden = x.shape[0], x.shape[-1]
    x = replace(x, shape=(tokens, hidden))
    name = f"{prefix}{part.kind}_gate"
    score = Tensor(f"{part.kind}_score", (tokens, 1), x.format, Role.ACTIVATION)
    found: list[Op] = []
    if params.gate == "cosine":
        product = Tensor(f"{part.kind}_gate_product", (tokens, hidden), x.format, Role.ACTIVATION)
        found.append(
            Op(
                f"{name}_mul",
                OpKind.ELEMENTWISE,
                "router",
                (x, x),
                (product,),
                ElementwiseAttrs("mul", product.elements),
            )
        )
        found.append(Op(name, OpKind.REDUCE, "router", (product,), (score,), ReduceAttrs("sum", tokens, hidden)))
    elif params.gate in ("linear", "mlp"):
        base = f"{_owner(ops, prefix)}{prefix}{part.kind}_gate"
        if params.gate == "mlp":
            inner = Tensor(f"{part.kind}_gate_inner", (tokens, params.gate_width), x.format, Role.ACTIVATION)
            weight = Tensor(f"{base}_up.weight", (hidden, params.gate_width), x.format, Role.WEIGHT)
            found.append(
                Op(
                    f"{name}_up",
                    OpKind.MATMUL,
                    "router",
                    (x, weight),
                    (inner,),
                    MatmulAttrs(1, tokens, hidden, params.gate_width),
                )
            )
            x = inner
        weight = Tensor(f"{base}.weight", (x.shape[1], 1), x.format, Role.WEIGHT)
        found.append(Op(name, OpKind.MATMUL, "router", (x, weight), (score,), MatmulAttrs(1, tokens, x.shape[1], 1)))
    if found and params.capacity is not None:
        chosen = Tensor(f"{part.kind}_chosen", (tokens,), "int32", Role.INDEX)
        found.append(Op(f"{name}_topk", OpKind.REDUCE, "router", (score,), (chosen,), ReduceAttrs("topk", 1, tokens)))
    return tuple(found)


def _owner(ops: Sequence[Op], prefix: str) -> str:
    """What names of this layer's weights begin with, up to the prefix: `layers.`."""
    for op in ops:
        for tensor in op.inputs:
            if tensor.role is Role.WEIGHT:
                head, dot, _ = tensor.name.rpartition("." + op.name.removeprefix(prefix))
                if dot:
                    return (head.removesuffix(prefix.rstrip(".")) if prefix else head + ".").rstrip(".") + "."
    return "layers."


def shrink(
    ops: Sequence[Op], part: Half, rows: int, prefix: str, write_kv: bool, thin_past: bool
) -> tuple[tuple[Op, ...], tuple[Tensor, ...]]:
    """A half of a layer with `rows` of its tokens, and the weights that are then idle.

    write_kv: the other tokens' keys and values are computed and cached all the same; the rows that run are then taken
    to be the last positions, so they see all keys. thin_past: cached positions are thinned in the same proportion.
    """
    body = tuple(ops[part.start : part.stop])
    tokens = tokens_of(ops)
    if rows == tokens:
        return body, ()
    spans = spans_of(body)
    rest = _kv_only(body, tokens - rows) if write_kv and spans is not None else ()
    if rows == 0:
        used = {t.name for t in weights_of(rest)}
        return rest, tuple(t for t in weights_of(body) if t.name not in used)
    if spans is not None:
        kept = thin(spans, rows)
        if write_kv:
            kept = tuple(_at_the_end(spans, kept))
        if thin_past:
            kept = tuple(replace(s, past=s.past * rows // tokens) for s in kept)
        spans = kept
    taken = body[0].inputs[0]
    picked = f"{part.kind}_picked"
    row_bytes = storage_bytes((taken.shape[-1],), taken.format)
    part_of = replace(taken, shape=(rows, taken.shape[-1]), whole=taken.whole or taken.shape)
    compact = replace(part_of, name=picked, whole=None)
    pick = Op(
        f"{prefix}{picked}", OpKind.GATHER, body[0].role, (part_of,), (compact,), MoveAttrs("pick", rows, row_bytes)
    )
    made: set[str] = set()
    found = [pick]
    for op in body:
        changed = with_rows(op, tokens, rows, spans if isinstance(op.attrs, AttentionAttrs) else None)
        if isinstance(op.attrs, AttentionAttrs):
            changed = _still_cached(op, changed, Fraction(rows, tokens) if thin_past else Fraction(1))
        if op.role != "residual":
            inputs = tuple(
                replace(t, name=picked, whole=None) if t.name == taken.name and t.name not in made else t
                for t in changed.inputs
            )
            changed = replace(changed, inputs=inputs)
        made.update(t.name for t in op.outputs)
        found.append(changed)
    return (*rest, *found), ()


def _still_cached(before: Op, op: Op, share: Fraction) -> Op:
    """The attention operator with the cache of all requests resident, `share` of each, whichever of them it reads."""
    inputs = []
    for old, new in zip(before.inputs, op.inputs, strict=True):
        if new.role is Role.KV:
            shape = old.whole or old.shape
            whole = (max(int(shape[0] * share), new.shape[0]), *shape[1:])
            new = replace(new, whole=None if whole == new.shape else whole)
        inputs.append(new)
    return replace(op, inputs=tuple(inputs))


def _at_the_end(spans: Sequence[RequestSpan], kept: Sequence[RequestSpan]) -> list[RequestSpan]:
    """`kept` positions as the last ones of their requests."""
    longest = {s.past: s.length for s in spans}
    return [replace(s, past=max(longest.get(s.past, s.length) - s.query, 0)) for s in kept]


def _kv_only(body: Sequence[Op], rows: int) -> tuple[Op, ...]:
    """Keys and values of `rows` tokens that do not attend: their columns of the projection, rotated and appended."""
    attention = next(op for op in body if isinstance(op.attrs, AttentionAttrs))
    attrs = attention.attrs
    assert isinstance(attrs, AttentionAttrs)
    tokens = attrs.tokens
    found: list[Op] = []
    for op in body:
        name = op.name.rpartition(".")[2]
        if (op.kind is OpKind.REDUCE and op is body[0]) or name == "attn_modulate":
            found.append(_skipped(with_rows(op, tokens, rows)))
        elif name == "qkv" and isinstance(op.attrs, MatmulAttrs):
            n = op.attrs.n - attrs.heads * attrs.head_dim
            x, weight = op.inputs[0], op.inputs[1]
            part = replace(weight, shape=(weight.shape[0], n), whole=weight.whole or weight.shape)
            inputs = (replace(x, shape=(rows, x.shape[-1]), whole=None), part)
            out = replace(op.outputs[0], shape=(rows, n))
            found.append(
                _skipped(replace(op, inputs=inputs, outputs=(out,), attrs=MatmulAttrs(1, rows, op.attrs.k, n)))
            )
        elif name in ("kv_down", "kv_norm") or (isinstance(op.attrs, MoveAttrs) and op.attrs.table == "kv_append"):
            found.append(_skipped(with_rows(op, tokens, rows)))
    names = {t.name for op in found for t in op.outputs}
    return tuple(replace(op, inputs=tuple(_from(t, names, found) for t in op.inputs)) for op in found)


def _skipped(op: Op) -> Op:
    outputs = tuple(replace(t, name=f"{t.name}_skipped") if t.role is Role.ACTIVATION else t for t in op.outputs)
    return replace(op, name=f"{op.name}_skipped", outputs=outputs)


def _from(tensor: Tensor, names: set[str], found: Sequence[Op]) -> Tensor:
    """An input of a skipped tokens' operator: the skipped tokens' own buffer where there is one.

    Rotary is left out of the chain (its few vector operations go with the rows that run), so keys come as projected.
    """
    if tensor.role is not Role.ACTIVATION:
        return tensor
    own = f"{tensor.name}_skipped"
    if own in names:
        return replace(tensor, name=own)
    if tensor.name in ("k", "k_rope", "qk") and tensor.name not in names:
        source = next((n for n in ("qkv_skipped", "kv_down_skipped") if n in names), None)
        return tensor if source is None else replace(tensor, name=source)
    return replace(tensor, whole=None) if tensor.name == CARRIED else tensor
