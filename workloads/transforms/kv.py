"""Policies of the key/value cache (`kv`): budgets, erasure, entries of another size, recomputation, reuse, tiers."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Literal

from pydantic import model_validator

from sim.config import ConfigError
from workloads.schema import Count, Schema, Size
from workloads.trace import (
    Block,
    ElementwiseAttrs,
    Mask,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    Pass,
    RequestSpan,
    Role,
    Tensor,
    Trace,
    TransferAttrs,
)
from workloads.transforms.context import Context, decoding_of, group, instead_of_decoding, pass_spans
from workloads.transforms.graph import Edited, Site, edit_layers, layer_count, number_layers
from workloads.transforms.rates import Density
from workloads.transforms.recompute import cached_attention, recomputed, rerun
from workloads.transforms.remask import remask
from workloads.transforms.where import Where

_TAKES = {
    "budget": {"budget", "sinks", "evict", "where"},
    "erase": {"trigger", "keep"},
    "entry": {"tokens", "where"},
    "share": {"group", "where"},
    "recompute": {"interval", "where"},
    "prefix": {"prefix"},
    "replace": {"prefix"},
    "fill": {"model"},
    "tier": {"tier", "share", "window", "where"},
}


class Kv(Schema):
    """budget: a request keeps at most `budget` positions, the first `sinks` among them (evict: the rest is forgotten;
    otherwise it stays in memory unread) · erase: every `trigger` new tokens only `keep` of them remain, encoded again ·
    entry: `tokens` positions share one entry · share: `group` layers in a row use the entries of the first · recompute:
    only the layer's input is cached; keys and values are made from it for each pass; with an
    `interval` only every so many-th layer's input is, and the layers between run again for all positions ·
    prefix: the first `prefix` positions of a prompt are cached already · replace: the first `prefix` positions leave no
    entries (adapters stand for them) · fill: another model processes the prompt and its cache is mapped · tier: entries
    but the last `window` positions live in another memory and are fetched for each pass (`share` of them).
    """

    policy: Literal["budget", "erase", "entry", "share", "recompute", "prefix", "replace", "fill", "tier"]
    budget: Size | None = None
    sinks: Count = 0
    evict: bool = True
    trigger: Size | None = None
    keep: Count | None = None
    tokens: Size | None = None
    group: Size | None = None
    window: Count = 0
    prefix: Count | None = None
    model: str | None = None
    tier: str | None = None
    share: Density = 1.0
    interval: Size = 1
    where: Where = Where()

    @model_validator(mode="after")
    def _fits(self) -> Kv:
        takes = _TAKES[self.policy]
        extra = sorted(self.model_fields_set - takes - {"policy"})
        if extra:
            raise ValueError(f"policy {self.policy} takes no {extra[0]}; keys that apply: {', '.join(sorted(takes))}")
        needed = {
            "budget": ("budget",), "erase": ("trigger", "keep"), "entry": ("tokens",), "share": ("group",),
            "prefix": ("prefix",), "replace": ("prefix",), "fill": ("model",), "tier": ("tier",), "recompute": (),
        }[self.policy]  # fmt: skip
        for name in needed:
            if getattr(self, name) is None:
                raise ValueError(f"policy {self.policy} needs {name}")
        if self.policy == "budget" and self.budget is not None and self.sinks >= self.budget:
            raise ValueError(f"sinks ({self.sinks}) must be below the budget ({self.budget})")
        if self.policy == "erase" and (self.keep or 0) >= (self.trigger or 1):
            raise ValueError(f"keep ({self.keep}) must be below trigger ({self.trigger})")
        return self


def kv(trace: Trace, params: Kv, context: Context) -> Trace:
    """Dispatch on the policy; each has its closed form below."""
    if params.policy == "erase":
        return _erase(trace, params, context)
    if params.policy in ("prefix", "replace"):
        return _without_prefix(trace, params, context)
    if params.policy == "fill":
        return _fill(trace, params, context)
    if params.policy == "recompute" and params.interval == 1:
        return edit_layers(trace, params.where, lambda ops, site: Edited(recomputed(ops, site)))
    if params.policy == "recompute":
        return rerun(number_layers(trace), params.where, params.interval)
    one = {"budget": _budget, "entry": _entry, "share": _share, "tier": _tier}[params.policy]
    if params.tokens == 1 or params.group == 1:
        return trace
    where = params.where
    if params.policy == "share":
        trace = number_layers(trace)
        layers = sorted(where.numbers(max(layer_count(p) for p in trace.passes if where.takes_pass(p))))
        followers = tuple(n for i, n in enumerate(layers) if i % (params.group or 1))
        where = where.model_copy(update={"layers": followers, "every": 1})
    return edit_layers(trace, where, lambda ops, site: Edited(one(ops, params, site)))


def _budget(ops: tuple[Op, ...], params: Kv, site: Site) -> tuple[Op, ...]:
    """Keys seen and kept are at most `budget` a request: min(budget, positions), for each new position."""
    found = cached_attention(ops)
    assert params.budget is not None
    if found is None:
        return ops
    i, op, attrs = found
    if attrs.mask.kind not in ("causal", "window"):
        raise ConfigError(
            f"a budget cannot be put on {attrs.mask.kind} attention of pass {site.work.name}", key="policy"
        )
    inner = attrs.mask.window if attrs.mask.kind == "window" else None
    if inner is not None and inner <= params.budget:
        return ops
    new = Mask("window", window=params.budget - params.sinks, sinks=params.sinks)
    return (*ops[:i], remask(op, new, keep=not params.evict), *ops[i + 1 :])


def _entry(ops: tuple[Op, ...], params: Kv, site: Site) -> tuple[Op, ...]:
    """A request with n cached positions has ceil(n / tokens) entries."""
    found = cached_attention(ops)
    if found is None:
        return ops
    i, op, attrs = found
    assert params.tokens is not None
    spans = tuple(replace(s, past=-(-s.past // params.tokens)) for s in attrs.requests)
    return (*ops[:i], remask(op, requests=spans), *ops[i + 1 :])


def _share(ops: tuple[Op, ...], params: Kv, site: Site) -> tuple[Op, ...]:
    """A follower projects no keys and values, appends none and reads those of the first of its group.

    Tensors named `shared.` are another layer's and take no memory of their own.
    """
    found = cached_attention(ops)
    if found is None:
        return ops
    i, op, attrs = found
    kept: list[Op] = []
    for other in ops[:i]:
        name = other.name.rpartition(".")[2]
        if isinstance(other.attrs, MoveAttrs) and other.attrs.table == "kv_append":
            continue
        if name == "qkv" and isinstance(other.attrs, MatmulAttrs):
            n = attrs.heads * attrs.head_dim
            inputs = (other.inputs[0], *(replace(t, shape=(*t.shape[:-1], n)) for t in other.inputs[1:]))
            outputs = (replace(other.outputs[0], shape=(*other.outputs[0].shape[:-1], n)),)
            other = replace(other, inputs=inputs, outputs=outputs, attrs=replace(other.attrs, n=n))
        elif name == "rotary":
            q = other.outputs[0]
            turned = replace(other.inputs[0], shape=(*other.inputs[0].shape[:-1], q.shape[-1]))
            other = replace(other, inputs=(turned,), outputs=(q,), attrs=ElementwiseAttrs("rotary", q.elements))
        kept.append(other)
    inputs = tuple(replace(t, name=f"shared.{t.name}") if t.role is Role.KV else t for t in op.inputs)
    return (*kept, replace(op, inputs=inputs), *ops[i + 1 :])


def _tier(ops: tuple[Op, ...], params: Kv, site: Site) -> tuple[Op, ...]:
    """Each pass fetches share x (cached positions - window) entries over the tier's link, and writes the new ones
    back.
    """
    found = cached_attention(ops)
    if found is None:
        return ops
    assert params.tier is not None
    i, op, attrs = found
    before: list[Op] = []
    after: list[Op] = []
    for tensor in op.inputs:
        if tensor.role is not Role.KV:
            continue
        old = sum(int(s.count * max(s.past - params.window, 0) * Fraction(str(params.share))) for s in attrs.requests)
        name = tensor.name.rpartition(".")[2]
        if old:
            away = replace(tensor, shape=(old, *tensor.shape[1:]), tier=params.tier, whole=None)
            here = replace(away, tier="device")
            fetch = TransferAttrs(params.tier, "device", away.bytes)
            before.append(Op(f"{op.name}_fetch_{name}", OpKind.TRANSFER, op.role, (away,), (here,), fetch))
        new = replace(tensor, shape=(attrs.tokens, *tensor.shape[1:]), whole=None)
        keep = TransferAttrs("device", params.tier, new.bytes)
        after.append(
            Op(f"{op.name}_keep_{name}", OpKind.TRANSFER, op.role, (new,), (replace(new, tier=params.tier),), keep)
        )
    return (*ops[:i], *before, op, *after, *ops[i + 1 :])


def _erase(trace: Trace, params: Kv, context: Context) -> Trace:
    """A saw-tooth: after every `trigger` new tokens all but `keep` of them leave the cache; these are encoded again."""
    assert params.trigger is not None
    assert params.keep is not None
    decoding = decoding_of(trace, "kv policy erase")
    passes: list[Pass] = []
    grown = 0
    base = list(decoding.contexts)
    for step in range(decoding.steps):
        spans = group([(1, c + grown) for c in base])
        passes.append(context.builder.build_pass(f"decode.{step}", "decode", spans, latent_form="absorbed"))
        grown += 1
        if grown == params.trigger:
            if params.keep:
                again = group([(params.keep, c) for c in base])
                passes.append(context.builder.build_pass(f"encode.{step}", "prefill", again, 0))
            base = [c + params.keep for c in base]
            grown = 0
    return instead_of_decoding(trace, passes)


def _without_prefix(trace: Trace, params: Kv, context: Context) -> Trace:
    """prefix: prefills start after it, and see it; replace: nothing sees it, neither prefills nor decode steps."""
    assert params.prefix is not None
    gone = params.prefix
    if gone == 0:
        return trace
    passes: list[Pass] = []
    for p in trace.passes:
        spans = pass_spans(p)
        if p.model or spans is None or p.phase not in ("prefill", "decode"):
            passes.append(p)
            continue
        new: list[RequestSpan] = []
        for s in spans:
            low = min(s.length, max(s.past, gone))
            if s.length - low < 1:
                if s.length < gone or s.query == 1:
                    raise ConfigError(
                        f"is {gone}, but a request of pass {p.name} has {s.length} positions", key="prefix"
                    )
                continue
            past = low if params.policy == "prefix" else low - gone
            new.append(RequestSpan(s.count, s.length - low, past))
        if not new:
            continue
        if tuple(new) == spans:
            passes.append(p)
            continue
        form: Literal["absorbed", "expanded"] = "absorbed" if p.phase == "decode" else "expanded"
        built = context.builder.build_pass(p.name, p.phase, new, p.generated or 0, form, p.repeat)
        passes.append(replace(built, generated=p.generated))
    return replace(trace, passes=tuple(passes))


def _fill(trace: Trace, params: Kv, context: Context) -> Trace:
    """Prefills run on the other model; then its cache entries are mapped, layer by layer, by one product each:
    2 x positions x (its entry) x (the model's entry) more. The model itself starts to decode.
    """
    assert params.model is not None
    other = context.other(params.model, context.builder.formats, "kv.model")
    if other.model.vocab != context.model.vocab:
        raise ConfigError(
            f"is {params.model!r} with a vocabulary of {other.model.vocab}, but {context.model.name} has "
            f"{context.model.vocab}",
            key="kv.model",
        )
    if not any(p.phase == "prefill" for p in trace.passes):
        raise ConfigError("needs prefill passes, which the other model takes over; the trace has none", key="policy")
    entry = other.model.kv_elements_per_token() // other.model.layers
    own = context.model.kv_elements_per_token() // context.model.layers
    form = context.builder.formats
    passes: list[Pass] = []
    for p in trace.passes:
        spans = pass_spans(p)
        if p.phase != "prefill" or p.model or spans is None:
            passes.append(p)
            continue
        small = other.build_pass(p.name, "prefill", spans, p.generated, "expanded")
        passes.append(replace(small, generated=0, model=other.model.name))
        tokens = sum(s.tokens for s in spans)
        source = Tensor("small_cache", (tokens, entry), form.kv, Role.KV)
        weight = Tensor("kv_map.weight", (entry, own), form.weights, Role.WEIGHT)
        target = Tensor("kv_mapped", (tokens, own), form.kv, Role.KV)
        op = Op("kv_map", OpKind.MATMUL, "attention", (source, weight), (target,), MatmulAttrs(1, tokens, entry, own))
        mapped = Block("kv_map", context.model.layers, (op,))
        passes.append(Pass(f"{p.name}.map", "prefill", (mapped,), tokens))
        if p.generated:
            # The first new token comes from the model itself, which reads the last position of each prompt.
            last = [RequestSpan(s.count, 1, s.length - 1) for s in spans]
            passes.append(context.builder.build_pass(f"{p.name}.first", "decode", last, latent_form="absorbed"))
    return replace(trace, passes=tuple(passes))
