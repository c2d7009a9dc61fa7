"""Keys and values made again from cached inputs of layers, instead of being cached themselves."""

from __future__ import annotations

from dataclasses import replace

from sim.config import ConfigError
from workloads.formats import storage_bytes
from workloads.trace import (
    CARRIED,
    AttentionAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    ReduceAttrs,
    RequestSpan,
    Role,
    Tensor,
    Trace,
)
from workloads.transforms.graph import Edited, Site, edit_layers, half, layer_count
from workloads.transforms.rows import with_rows
from workloads.transforms.where import Where


def cached_attention(ops: tuple[Op, ...]) -> tuple[int, Op, AttentionAttrs] | None:
    for i, op in enumerate(ops):
        if isinstance(op.attrs, AttentionAttrs) and any(t.role is Role.KV for t in op.inputs):
            return i, op, op.attrs
    return None


def recomputed(ops: tuple[Op, ...], site: Site) -> tuple[Op, ...]:
    """Cached bytes a position are those of one vector of the model's width; each pass multiplies all cached positions
    with the key and value columns: 2 x positions x hidden x (key + value columns) more.
    """
    found, part = cached_attention(ops), half(ops, "attention")
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


def rerun(trace: Trace, where: Where, interval: int) -> Trace:
    """One cached vector a position for `interval` layers: all of them but the last run for all positions again, as in a
    prefill, and the last one makes its keys and values from what they give.
    """
    layers = sorted(where.numbers(max(layer_count(p) for p in trace.passes if where.takes_pass(p))))
    last = {n for i, n in enumerate(layers) if i % interval == interval - 1 or i == len(layers) - 1}
    first = {n for i, n in enumerate(layers) if i % interval == 0}

    def edit(ops: tuple[Op, ...], site: Site) -> Edited:
        if site.layers[0] in last:
            made = recomputed(ops, site)
            return Edited(made if site.layers[0] in first else tuple(_passing(op) for op in made))
        found = cached_attention(ops)
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
            trace = edit_layers(trace, where.model_copy(update={"layers": tuple(sorted(part)), "every": 1}), edit)
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
