"""Changes which keys an attention operator sees, and with it the part of the cache that it reads and keeps."""

from __future__ import annotations

from dataclasses import replace

from workloads.trace import AttentionAttrs, Mask, Op, RequestSpan, Role, Tensor


def mask_of(op: Op) -> Mask:
    """The mask of an attention operator."""
    assert isinstance(op.attrs, AttentionAttrs)
    return op.attrs.mask


def remask(op: Op, mask: Mask | None = None, requests: tuple[RequestSpan, ...] | None = None, keep: bool = False) -> Op:
    """An attention operator with another mask or other requests (of as many new positions).

    Tensors of keys and values follow: they hold the keys that some query sees. `keep`: what is no longer read stays in
    the cache all the same.
    """
    attrs = op.attrs
    assert isinstance(attrs, AttentionAttrs)
    changed = replace(attrs, mask=mask or attrs.mask, requests=requests or attrs.requests)
    before, after = attrs.keys, changed.keys
    if (before, attrs) == (after, changed):
        return op

    def part(tensor: Tensor) -> Tensor:
        cached = tensor.role is Role.KV
        if before not in tensor.shape or not (cached or _is_keys(op, tensor)):
            return tensor
        axis = tensor.shape.index(before)
        shape = (*tensor.shape[:axis], after, *tensor.shape[axis + 1 :])
        whole = tensor.whole
        if cached and keep and after < before:
            whole = whole or tensor.shape
        elif whole is not None:
            whole = (after, *whole[1:])
        return replace(tensor, shape=shape, whole=None if whole == shape else whole)

    return replace(op, attrs=changed, inputs=tuple(part(t) for t in op.inputs))


def _is_keys(op: Op, tensor: Tensor) -> bool:
    """Whether an activation is the keys or the values (no cache: encoders, expanded latent attention)."""
    attrs = op.attrs
    assert isinstance(attrs, AttentionAttrs)
    return tensor.role is Role.ACTIVATION and tensor in op.inputs[1:3] and tensor.shape[0] == attrs.keys


def in_tree(mask: Mask, parents: tuple[int, ...], cached: int = 0) -> Mask:
    """The mask of a tree of new positions over a layer's own mask: causal, or a window."""
    if mask.kind == "window" and not mask.sinks:
        return Mask("tree", parents=parents, cached=cached, window=mask.window)
    if mask.kind != "causal":
        raise ValueError(f"a tree of drafts cannot be verified under a {mask.kind} mask")
    return Mask("tree", parents=parents, cached=cached)
