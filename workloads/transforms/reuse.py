"""Outputs of earlier steps used again (`cache`): halves or layers of a pass read a cached result instead of running."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from sim.config import ConfigError
from workloads.formats import storage_bytes
from workloads.schema import Count, Schema, Size
from workloads.trace import (
    CARRIED,
    AttentionAttrs,
    Block,
    ElementwiseAttrs,
    MoveAttrs,
    Op,
    OpKind,
    Pass,
    Role,
    Tensor,
    Trace,
)
from workloads.transforms.context import Context
from workloads.transforms.draws import Stream
from workloads.transforms.graph import (
    Edited,
    Half,
    Site,
    edit_layers,
    half,
    halves,
    layers_of,
    number_layers,
    tokens_of,
    weights_of,
)
from workloads.transforms.rates import Rate
from workloads.transforms.remask import remask
from workloads.transforms.where import Where


class Cache(Schema):
    """In some steps the selected parts of the selected layers are not computed but taken from a cache.

    unit: a half, a whole layer, all selected layers at once (stretch: one cached result stands for them), or the part
    of attention to keys outside of the new positions (external). A step computes in full every `interval`-th time, or
    at the steps of `schedule` (repeated), or where a gate closes (it opens with `probability` in all steps but the
    first). reuse reads one result; delta adds it to the input; extrapolate continues a Taylor series of `order` from
    order + 1 of them. Cached results take memory, as cache tensors.
    """

    unit: Literal["attention", "ffn", "layer", "stretch", "external"]
    action: Literal["reuse", "delta", "extrapolate"] = "reuse"
    order: Size = 1
    interval: Size | None = None
    schedule: tuple[Count, ...] | None = Field(None, description="Steps of a period that compute, 0 among them.")
    period: Size | None = Field(None, description="Steps after which the schedule begins again; default: never.")
    probability: Rate | None = None
    where: Where = Where()

    @model_validator(mode="after")
    def _one_of(self) -> Cache:
        given = [n for n in ("interval", "schedule", "probability") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"needs one of interval, schedule, probability; has {' and '.join(given) or 'none'}")
        if self.schedule is not None and 0 not in self.schedule:
            raise ValueError("the schedule must hold step 0: nothing is cached before it")
        return self

    @property
    def reads(self) -> int:
        """Cached results that one use reads."""
        return self.order + 1 if self.action == "extrapolate" else 1


def cache(trace: Trace, params: Cache, context: Context) -> Trace:
    """Closed form: cached steps lose the work of the selected parts and gain `reads` results read and added; full steps
    gain one result written a part.
    """
    if params.interval == 1 or params.probability == 0:
        return trace
    trace = number_layers(trace)
    full, cached = _variants(trace, params)
    passes: list[Pass] = []
    at = 0
    stream = Stream(context.seed, "cache")
    place = ""
    for p, whole, part in zip(trace.passes, full, cached, strict=True):
        if not params.where.takes_pass(p):
            passes.append(p)
            continue
        # Blocks of block diffusion are made one after another; each begins with a full step.
        name = ".".join(p.name.split(".")[:2])
        if params.unit == "external" and name != place:
            at, place = 0, name
        for _ in range(p.repeat):
            computes = _computes(params, at, stream)
            new = replace(whole, repeat=1) if computes else replace(part, repeat=1, name=f"{part.name}.cached")
            if passes and passes[-1].blocks is new.blocks and passes[-1].name == new.name:
                passes[-1] = replace(passes[-1], repeat=passes[-1].repeat + 1)
            else:
                passes.append(new)
            at += 1
    return replace(trace, passes=tuple(passes))


def _computes(params: Cache, step: int, stream: Stream) -> bool:
    if params.interval is not None:
        return step % params.interval == 0
    if params.schedule is not None:
        return (step % params.period if params.period else step) in params.schedule
    assert params.probability is not None
    drawn = stream.uniforms(1)[0]
    return step == 0 or drawn >= params.probability


def _variants(trace: Trace, params: Cache) -> tuple[list[Pass], list[Pass]]:
    """Each pass as a full step, which keeps its results, and as a cached one."""
    if params.unit == "stretch":
        return _stretches(trace, params)
    keep = edit_layers(trace, params.where, lambda ops, site: Edited(_keeping(ops, site, params)))
    use = edit_layers(trace, params.where, lambda ops, site: _using(ops, site, params))
    counts = [len(t.passes) for t in (trace, keep, use)]
    if len(set(counts)) > 1:
        raise ConfigError("chooses steps by itself; where.steps has no place here", key="where.steps")
    return list(keep.passes), list(use.passes)


def _parts(ops: tuple[Op, ...], params: Cache) -> list[Half]:
    return [
        h
        for h in halves(ops)
        if params.unit in ("layer", h.kind) or (params.unit == "external" and h.kind == "attention")
    ]


def _result(ops: tuple[Op, ...], part: Half) -> Tensor:
    """What a half adds to the residual stream."""
    add = next(op for op in reversed(ops[part.start : part.stop]) if op.role == "residual")
    return add.inputs[1]


def _kept(result: Tensor, prefix: str, kind: str, copies: int) -> Tensor:
    shape = (copies * result.elements // result.shape[-1], result.shape[-1])
    return Tensor(f"{prefix}{kind}_cached", shape, result.format, Role.KV)


def _keeping(ops: tuple[Op, ...], site: Site, params: Cache) -> tuple[Op, ...]:
    found = ops
    for part in reversed(_parts(ops, params)):
        result = _external(ops, part) if params.unit == "external" else _result(ops, part)
        rows, size = result.elements // result.shape[-1], storage_bytes((result.shape[-1],), result.format)
        whole = _kept(result, site.prefix, part.kind, params.reads)
        target = _kept(result, site.prefix, part.kind, 1)
        target = replace(target, whole=None if whole.shape == target.shape else whole.shape)
        keep = Op(
            f"{site.prefix}{part.kind}_keep", OpKind.SCATTER, "cache", (replace(result, whole=None),), (target,),
            MoveAttrs("feature_cache", rows, size),
        )  # fmt: skip
        at = part.stop - 1
        while ops[at].role != "residual":
            at -= 1
        found = (*found[:at], keep, *found[at:])
    return found


def _external(ops: tuple[Op, ...], part: Half) -> Tensor:
    return next(op.outputs[0] for op in ops[part.start : part.stop] if isinstance(op.attrs, AttentionAttrs))


def _using(ops: tuple[Op, ...], site: Site, params: Cache) -> Edited:
    found: tuple[Op, ...] = ops
    idle: list[Tensor] = []
    for part in reversed(_parts(ops, params)):
        body = ops[part.start : part.stop]
        if params.unit == "external":
            found = (*found[: part.start], *_inside(body, site.prefix), *found[part.stop :])
            continue
        result = _result(ops, part)
        add = next(op for op in reversed(body) if op.role == "residual")
        rest = tuple(op for op in body[body.index(add) + 1 :])
        x = add.inputs[0]
        stored = _kept(result, site.prefix, part.kind, params.reads)
        # One sum a cached result: a Taylor series of order n costs n more, each with its factor.
        function = "add" if params.action != "extrapolate" else "gate_add"
        made: list[Op] = []
        for turn in range(params.reads):
            inputs = (
                x,
                replace(
                    stored,
                    shape=(stored.shape[0] // params.reads, stored.shape[1]),
                    whole=None if params.reads == 1 else stored.shape,
                ),
            )
            out = (
                add.outputs[0]
                if turn == params.reads - 1
                else replace(add.outputs[0], name=f"{part.kind}_series{turn}")
            )
            kind = ElementwiseAttrs(function, out.elements)
            name = add.name if turn == params.reads - 1 else f"{add.name}_series{turn}"
            made.append(replace(add, name=name, inputs=inputs, outputs=(out,), attrs=kind))
            x = out
        idle.extend(weights_of(body))
        found = (*found[: part.start], *made, *rest, *found[part.stop :])
    return Edited(found, tuple(idle))


def _inside(body: tuple[Op, ...], prefix: str) -> tuple[Op, ...]:
    """Attention among the new positions only, joined with the cached attention to all others."""
    i = next(n for n, op in enumerate(body) if isinstance(op.attrs, AttentionAttrs))
    op = body[i]
    attrs = op.attrs
    assert isinstance(attrs, AttentionAttrs)
    spans = tuple(replace(s, past=0) for s in attrs.requests)
    out = op.outputs[0]
    near = replace(remask(op, requests=spans, keep=True), outputs=(replace(out, name="o_inside"),))
    stored = _kept(out, prefix, "attention", 1)
    join = Op(
        f"{op.name}_join", OpKind.ELEMENTWISE, op.role, (near.outputs[0], stored), (out,),
        ElementwiseAttrs("gate_add", out.elements),
    )  # fmt: skip
    return (*body[:i], near, join, *body[i + 1 :])


def _stretches(trace: Trace, params: Cache) -> tuple[list[Pass], list[Pass]]:
    """All selected layers in a row as one: their common result is the difference of the residual stream."""
    full: list[Pass] = []
    cached: list[Pass] = []
    marked = edit_layers(trace, params.where, lambda ops, site: Edited(ops))
    for before, p in zip(trace.passes, marked.passes, strict=True):
        if not params.where.takes_pass(before):
            full.append(before)
            cached.append(before)
            continue
        layers = [b for b in p.blocks if b.first_layer is not None]
        chosen = params.where.numbers(max(n for b in layers for n in layers_of(b)) + 1)
        keep_blocks: list[Block] = []
        use_blocks: list[Block] = []
        number = 0
        inside = False
        for block in p.blocks:
            if block.first_layer is None or not set(layers_of(block)) <= chosen:
                if inside:
                    keep_blocks.append(_stretch_keep(keep_blocks[-1], number, params))
                inside = False
                keep_blocks.append(block)
                use_blocks.append(block)
                continue
            if not inside:
                number += 1
                use_blocks.append(_stretch_use(block, number, params))
            inside = True
            keep_blocks.append(block)
        if inside:
            keep_blocks.append(_stretch_keep(keep_blocks[-1], number, params))
        full.append(replace(p, blocks=tuple(keep_blocks)))
        cached.append(replace(p, blocks=tuple(use_blocks)))
    return full, cached


def _stream(block: Block) -> Tensor:
    rows = tokens_of(block.ops)
    x = next(t for op in block.ops for t in (*op.outputs, *op.inputs) if t.name == CARRIED)
    return replace(x, shape=(rows, x.shape[-1]), whole=None)


def _stretch_keep(block: Block, number: int, params: Cache) -> Block:
    x = _stream(block)
    stored = Tensor(
        f"stretch{number}_cached",
        (x.shape[0], x.shape[1]),
        x.format,
        Role.KV,
        whole=None if params.reads == 1 else (params.reads * x.shape[0], x.shape[1]),
    )
    keep = Op(
        "stretch_keep",
        OpKind.SCATTER,
        "cache",
        (x,),
        (stored,),
        MoveAttrs("feature_cache", x.shape[0], storage_bytes((x.shape[1],), x.format)),
    )
    return Block(f"stretch{number}_keep", 1, (keep,))


def _stretch_use(block: Block, number: int, params: Cache) -> Block:
    x = _stream(block)
    whole = None if params.reads == 1 else (params.reads * x.shape[0], x.shape[1])
    stored = Tensor(f"stretch{number}_cached", x.shape, x.format, Role.KV, whole=whole)
    function = "gate_add" if params.action == "extrapolate" else "add"
    ops = [
        Op(f"stretch_use{turn}", OpKind.ELEMENTWISE, "cache", (x, stored), (x,), ElementwiseAttrs(function, x.elements))
        for turn in range(params.reads)
    ]
    return Block(f"stretch{number}", 1, tuple(ops))


__all__ = ["Cache", "cache", "half"]
