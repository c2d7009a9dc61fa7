"""Policies of the key/value cache (`kv`): budgets, erasure, entries of another size, recomputation, reuse, tiers."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Literal

from pydantic import model_validator

from sim.config import ConfigError
from workloads.formats import storage_bytes
from workloads.schema import Count, Schema, Size
from workloads.trace import (
    CARRIED,
    AttentionAttrs,
    Block,
    ElementwiseAttrs,
    Mask,
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
    TransferAttrs,
)
from workloads.transforms.context import Context, decoding_of, group, instead_of_decoding, pass_spans
from workloads.transforms.graph import Edited, Site, edit_layers, half, layer_count, number_layers, with_rows
from workloads.transforms.rates import Density
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
    edits = {"budget": _budget, "entry": _entry, "share": _share, "recompute": _recompute, "tier": _tier}
    one = edits[params.policy]
    if params.tokens == 1 or params.group == 1:
        return trace
    where = params.where
    if params.policy == "share":
        trace = number_layers(trace)
        layers = sorted(where.numbers(max(layer_count(p) for p in trace.passes if where.takes_pass(p))))
        followers = tuple(n for i, n in enumerate(layers) if i % (params.group or 1))
        where = where.model_copy(update={"layers": followers, "every": 1})
    if params.policy == "recompute" and params.interval > 1:
        return _rerun(number_layers(trace), params)
    return edit_layers(trace, where, lambda ops, site: Edited(one(ops, params, site)))


def _attention(ops: tuple[Op, ...]) -> tuple[int, Op, AttentionAttrs] | None:
    for i, op in enumerate(ops):
        if isinstance(op.attrs, AttentionAttrs) and any(t.role is Role.KV for t in op.inputs):
            return i, op, op.attrs
    return None


def _budget(ops: tuple[Op, ...], params: Kv, site: Site) -> tuple[Op, ...]:
    """Keys seen and kept are at most `budget` a request: min(budget, positions), for each new position."""
    found = _attention(ops)
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
    found = _attention(ops)
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
    found = _attention(ops)
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


def _recompute(ops: tuple[Op, ...], params: Kv, site: Site) -> tuple[Op, ...]:
    """Cached bytes a position are those of one vector of the model's width; each pass multiplies all cached positions
    with the key and value columns: 2 x positions x hidden x (key + value columns) more.
    """
    found, part = _attention(ops), half(ops, "attention")
    if found is None or part is None:
        return ops
    i, op, attrs = found
    if attrs.latent or len(op.inputs) != 3:
        raise ConfigError("recomputation needs keys and values of their own, not latent attention", key="policy")
    fed = next(o for o in ops if o.name.rpartition(".")[2] == "qkv")
    x, weight = fed.inputs[0], fed.inputs[1]
    hidden = x.shape[-1]
    columns = attrs.kv_heads * (attrs.head_dim + attrs.v_head_dim)
    old = sum(s.count * s.past for s in attrs.requests)
    append = next(o for o in ops if isinstance(o.attrs, MoveAttrs) and o.attrs.table == "kv_append")
    prefix = op.name.removesuffix("attention")
    form = append.outputs[0].format
    cache = Tensor(f"{prefix}x_cache", (attrs.tokens, hidden), form, Role.KV)
    move = MoveAttrs("kv_append", attrs.tokens, storage_bytes((hidden,), form))
    keep_x = replace(append, inputs=(x,), outputs=(cache,), attrs=move)
    new: list[Op] = [keep_x if o is append else o for o in ops[:i]]
    positions = op.inputs[1].shape[0]
    if old:
        known = replace(cache, shape=(old, hidden), whole=(positions, hidden))
        normed = Tensor("x_old", (old, hidden), x.format, Role.ACTIVATION)
        norm = ops[part.start]
        if norm.kind is OpKind.REDUCE and isinstance(norm.attrs, ReduceAttrs):
            gains = tuple(t for t in norm.inputs if t.role is Role.WEIGHT)
            again = ReduceAttrs(norm.attrs.function, old, hidden)
            new.append(Op(f"{prefix}x_norm", OpKind.REDUCE, "norm", (known, *gains), (normed,), again))
            known = normed
        kv_weight = replace(weight, shape=(hidden, columns), whole=weight.whole or weight.shape)
        out = Tensor("kv_old", (old, columns), x.format, Role.ACTIVATION)
        new.append(
            Op(
                f"{prefix}kv_again",
                OpKind.MATMUL,
                op.role,
                (known, kv_weight),
                (out,),
                MatmulAttrs(1, old, hidden, columns),
            )
        )
    made = "kv_old" if old else fed.outputs[0].name
    inputs = (
        op.inputs[0],
        Tensor(made, (positions, attrs.kv_heads * attrs.head_dim), x.format, Role.ACTIVATION),
        Tensor(made, (positions, attrs.kv_heads * attrs.v_head_dim), x.format, Role.ACTIVATION),
    )
    return (*new, replace(op, inputs=inputs), *ops[i + 1 :])


def _rerun(trace: Trace, params: Kv) -> Trace:
    """One cached vector a position for `interval` layers: all of them but the last run for all positions again, as in a
    prefill, and the last one makes its keys and values from what they give.
    """
    layers = sorted(params.where.numbers(max(layer_count(p) for p in trace.passes if params.where.takes_pass(p))))
    last = {n for i, n in enumerate(layers) if i % params.interval == params.interval - 1 or i == len(layers) - 1}
    first = {n for i, n in enumerate(layers) if i % params.interval == 0}

    def edit(ops: tuple[Op, ...], site: Site) -> Edited:
        if site.layers[0] in last:
            made = _recompute(ops, params, site)
            return Edited(made if site.layers[0] in first else tuple(_passing(op) for op in made))
        found = _attention(ops)
        if found is None:
            return Edited(ops)
        _, op, attrs = found
        if attrs.latent or len(op.inputs) != 3:
            raise ConfigError("recomputation needs keys and values of their own, not latent attention", key="policy")
        whole = tuple(RequestSpan(s.count, s.length) for s in attrs.requests)
        rows, tokens = sum(s.tokens for s in whole), attrs.tokens
        body = _uncached([with_rows(o, tokens, rows, whole if o is op else None) for o in ops])
        body = [replace(o, inputs=_plain(o.inputs), outputs=_plain(o.outputs)) for o in body]
        if site.layers[0] not in first:
            return Edited(tuple(body))
        x = next(t for o in ops for t in o.inputs if t.name == CARRIED)
        append = next(o for o in ops if isinstance(o.attrs, MoveAttrs) and o.attrs.table == "kv_append")
        form, size = append.outputs[0].format, storage_bytes((x.shape[-1],), append.outputs[0].format)
        cache = Tensor(f"{site.prefix}x_cache", (rows, x.shape[-1]), form, Role.KV)
        new = replace(cache, shape=(tokens, x.shape[-1]), whole=cache.shape)
        keep = Op(
            f"{site.prefix}x_keep", OpKind.SCATTER, "attention", (x,), (new,), MoveAttrs("kv_append", tokens, size)
        )
        read = Op(
            f"{site.prefix}x_read", OpKind.GATHER, "attention", (cache,), (replace(x, shape=(rows, x.shape[-1])),),
            MoveAttrs("x_cache", rows, size),
        )  # fmt: skip
        return Edited((keep, read, *body))

    # An edit stands for all layers alike, so each kind of place in an interval has its own turn.
    for part in (first - last, last & first, last - first, set(layers) - first - last):
        if part:
            trace = edit_layers(
                trace, params.where.model_copy(update={"layers": tuple(sorted(part)), "every": 1}), edit
            )
    return trace


def _plain(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """All rows of the residual stream are at hand."""
    return tuple(replace(t, whole=None) if t.name == CARRIED else t for t in tensors)


def _passing(op: Op) -> Op:
    """The last layer of an interval reads its inputs from the stream instead of from a cache of its own."""

    def change(tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(
            replace(t, role=Role.ACTIVATION, name=CARRIED if len(t.shape) == 2 else t.name, whole=None)
            if t.role is Role.KV
            else t
            for t in tensors
        )

    if isinstance(op.attrs, MoveAttrs) and op.attrs.table == "kv_append":
        kept = replace(op.inputs[0], name="x_last")
        return replace(op, outputs=(kept,), attrs=replace(op.attrs, table="copy"))
    return replace(op, inputs=change(op.inputs))


def _uncached(ops: list[Op]) -> list[Op]:
    """Keys and values as activations that nobody keeps."""
    sources: dict[str, Tensor] = {}
    found = []
    for op in ops:
        if isinstance(op.attrs, MoveAttrs) and op.attrs.table == "kv_append":
            sources = {o.name: i for o, i in zip(op.outputs, op.inputs, strict=False)}
            continue
        inputs = tuple(
            replace(t, role=Role.ACTIVATION, name=sources[t.name].name, format=sources[t.name].format, whole=None)
            if t.role is Role.KV and t.name in sources
            else t
            for t in op.inputs
        )
        found.append(replace(op, inputs=inputs))
    return found


def _tier(ops: tuple[Op, ...], params: Kv, site: Site) -> tuple[Op, ...]:
    """Each pass fetches share x (cached positions - window) entries over the tier's link, and writes the new ones
    back.
    """
    found = _attention(ops)
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
