"""The attention half of a layer as operators: grouped-query attention, and multi-head latent attention in both its
forms.

Grouped-query: qkv, head norms, rotary, cache append, attention, output projection. Latent attention caches one
compressed row a position; `expanded` turns the rows back into keys and values (cheap for many queries), `absorbed`
moves those products to the query and the result and attends to the compressed rows themselves (cheap for few).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from workloads.emit import Emitter
from workloads.formats import storage_bytes
from workloads.models import LayerKind, Model
from workloads.trace import (
    FULL,
    AttentionAttrs,
    ElementwiseAttrs,
    Mask,
    MatmulAttrs,
    MoveAttrs,
    OpKind,
    ReduceAttrs,
    RequestSpan,
    Tensor,
)

ROLE = "attention"
LatentForm = Literal["expanded", "absorbed"]


@dataclass(frozen=True, slots=True)
class Positions:
    """The new and cached positions that a pass works on, and how it may treat them."""

    spans: tuple[RequestSpan, ...]
    latent_form: LatentForm = "expanded"

    @property
    def tokens(self) -> int:
        """New positions of all requests."""
        return sum(s.tokens for s in self.spans)

    @property
    def requests(self) -> int:
        """Number of requests."""
        return sum(s.count for s in self.spans)


def layer_mask(model: Model, kind: LayerKind) -> Mask:
    """Which keys the layer's queries see."""
    if model.kind != "decoder":
        return FULL
    window = model.attention.window
    if window is None or not kind.local:
        return Mask("causal")
    return Mask("window" if window.kind == "sliding" else "chunk", window=window.size)


def emit_attention(e: Emitter, model: Model, kind: LayerKind, at: Positions, x: Tensor) -> Tensor:
    """Operators from the normalised input x (tokens, hidden) to the output projection (tokens, hidden)."""
    if model.attention.latent is not None:
        o = _latent_attention(e, model, layer_mask(model, kind), at, x)
    else:
        o = _grouped_attention(e, model, kind, at, x)
    return e.linear("out_proj", ROLE, o, model.hidden, "attn_out", model.attention.out_bias)


def _grouped_attention(e: Emitter, model: Model, kind: LayerKind, at: Positions, x: Tensor) -> Tensor:
    a, tokens = model.attention, at.tokens
    q_width, k_width, v_width = a.heads * a.head_dim, a.kv_heads * a.head_dim, a.kv_heads * a.value_dim
    e.linear("qkv", ROLE, x, q_width + k_width + v_width, "qkv", a.qkv_bias)
    rotary = model.rotary_dim and (model.position == "rotary" or kind.local)
    # Until a later operator rewrites them, q and k are parts of the buffer `qkv`; v stays one.
    q, k = e.activation("qkv", tokens, q_width), e.activation("qkv", tokens, k_width)
    v = e.activation("qkv", tokens, v_width)

    def head_norm(both: Tensor) -> Tensor:
        gains: tuple[Tensor, ...] = ()
        if a.qk_norm == "weighted":
            gains = tuple(e.weight(f"{n}.weight", (a.head_dim,), kind="activations") for n in ("q_norm", "k_norm"))
        out = e.activation("qk", tokens, q_width + k_width)
        rows = tokens * (a.heads + a.kv_heads)
        e.emit("qk_norm", OpKind.REDUCE, "norm", (both, *gains), (out,), ReduceAttrs("rmsnorm", rows, a.head_dim))
        return out

    both = e.activation("qkv", tokens, q_width + k_width)
    if a.qk_norm == "weighted" or (a.qk_norm == "unweighted" and rotary):
        both = head_norm(both)
        q, k = e.activation(both.name, tokens, q_width), e.activation(both.name, tokens, k_width)
    if rotary:
        q, k = e.activation("q", tokens, q_width), e.activation("k", tokens, k_width)
        turned = tokens * (a.heads + a.kv_heads) * model.rotary_dim
        e.emit("rotary", OpKind.ELEMENTWISE, ROLE, (both,), (q, k), ElementwiseAttrs("rotary", turned))

    attrs = AttentionAttrs(
        a.heads, a.kv_heads, a.head_dim, a.value_dim, layer_mask(model, kind), at.spans, softcap=a.softcap
    )
    if model.kind == "decoder":
        append = (
            e.cache("k_cache", tokens, a.kv_heads, a.head_dim),
            e.cache("v_cache", tokens, a.kv_heads, a.value_dim),
        )
        row_bytes = sum(storage_bytes(t.shape[1:], t.format) for t in append)
        e.emit("kv_append", OpKind.SCATTER, ROLE, (k, v), append, MoveAttrs("kv_append", tokens, row_bytes))
        k = e.cache("k_cache", attrs.keys, a.kv_heads, a.head_dim)
        v = e.cache("v_cache", attrs.keys, a.kv_heads, a.value_dim)
    inputs: tuple[Tensor, ...] = (q, k, v)
    if a.sink_logits:
        inputs += (e.weight("sinks.weight", (a.heads,), kind="activations"),)
    o = e.activation("o", tokens, a.heads * a.value_dim)
    e.emit("attention", OpKind.ATTENTION, ROLE, inputs, (o,), attrs)
    return o


def _latent_attention(e: Emitter, model: Model, mask: Mask, at: Positions, x: Tensor) -> Tensor:
    a, tokens = model.attention, at.tokens
    assert a.latent is not None
    rank, rope = a.latent.kv_rank, a.latent.rope_dim
    nope, value, heads = a.head_dim - rope, a.value_dim, a.heads
    norm = model.norm.kind

    query = x
    if a.latent.q_rank is not None:
        query = e.linear("q_down", ROLE, x, a.latent.q_rank, "q_down")
        query = e.norm("q_norm", "norm", query, "q_compressed", norm)
    e.linear("q_up", ROLE, query, heads * a.head_dim, "q")
    e.linear("kv_down", ROLE, x, rank + rope, "kv_down")
    latent = e.norm("kv_norm", "norm", e.activation("kv_down", tokens, rank), "latent", norm)
    q_rope, k_rope = e.activation("q_rope", tokens, heads * rope), e.activation("k_rope", tokens, rope)
    unturned = (e.activation("q", tokens, heads * rope), e.activation("kv_down", tokens, rope))
    turned = ElementwiseAttrs("rotary", tokens * (heads + 1) * rope)
    e.emit("rotary", OpKind.ELEMENTWISE, ROLE, unturned, (q_rope, k_rope), turned)
    append = e.cache("latent_cache", tokens, rank + rope)
    row_bytes = storage_bytes((rank + rope,), append.format)
    e.emit("kv_append", OpKind.SCATTER, ROLE, (latent, k_rope), (append,), MoveAttrs("kv_append", tokens, row_bytes))
    q_nope = e.activation("q", tokens, heads * nope)
    o = e.activation("o", tokens, heads * value)

    if at.latent_form == "expanded":
        attrs = AttentionAttrs(heads, heads, a.head_dim, value, mask, at.spans, softcap=a.softcap)
        entries = (attrs.keys, rank + rope)
        rows = e.cache("latent_cache", attrs.keys, rank, whole=entries)
        k = e.linear("k_up", ROLE, rows, heads * nope, "k")
        v = e.linear("v_up", ROLE, rows, heads * value, "v")
        k_parts = (q_rope, e.cache("latent_cache", attrs.keys, rope, whole=entries))
        e.emit("attention", OpKind.ATTENTION, ROLE, (q_nope, k, v, *k_parts), (o,), attrs)
        return o

    attrs = AttentionAttrs(heads, 1, rank + rope, rank, mask, at.spans, latent=True, softcap=a.softcap)
    # The same weights as above, one matrix a head, applied to the query and to the result instead of to the cache.
    k_up = e.weight("k_up.weight", (heads, nope, rank))
    v_up = e.weight("v_up.weight", (heads, rank, value))
    q_latent = e.activation("q_latent", heads, tokens, rank)
    by_head = e.activation("q", heads, tokens, nope)
    e.emit("k_up", OpKind.MATMUL, ROLE, (by_head, k_up), (q_latent,), MatmulAttrs(heads, tokens, nope, rank))
    o_latent = e.activation("o_latent", heads, tokens, rank)
    inputs = (q_latent, e.cache("latent_cache", attrs.keys, rank + rope), q_rope)
    e.emit("attention", OpKind.ATTENTION, ROLE, inputs, (o_latent,), attrs)
    e.emit("v_up", OpKind.MATMUL, ROLE, (o_latent, v_up), (o,), MatmulAttrs(heads, tokens, rank, value))
    return o
