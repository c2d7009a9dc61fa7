"""Turns an operator of a Trace into the kernels that a GPU runs for it.

Activations that the L2 can hold stay there between operators, so what is small is read and written there; weights and
KV caches come from the memory.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING

from sim.errors import ConfigError
from sim.gpu.attention import Attend, attention
from sim.gpu.cost import Cost, chain
from sim.gpu.gemm import Product, bytes_of, gemm, stream_rate
from sim.gpu.operators import result_format
from sim.gpu.rows import elementwise, fits_l2, reduction
from workloads.trace import (
    AttentionAttrs,
    CustomAttrs,
    ElementwiseAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    ReduceAttrs,
    RequestSpan,
    Role,
    Tensor,
    visible_keys,
    visible_pairs,
)

if TYPE_CHECKING:
    from sim.gpu.schema import Gpu


def lower(gpu: Gpu, op: Op) -> Cost | None:
    """The kernels of `op` without their launches; None for one that needs none. Raises ConfigError."""
    attrs = op.attrs
    if isinstance(attrs, MatmulAttrs):
        return _matmul(gpu, op, attrs)
    if isinstance(attrs, AttentionAttrs):
        return _attention(gpu, op, attrs)
    moved = op.read_bytes, op.write_bytes
    warm = fits_l2(gpu, sum(moved))
    if isinstance(attrs, ReduceAttrs):
        if attrs.function in gpu.library.rows:
            return reduction(gpu, attrs.function, attrs.rows, attrs.columns, *moved, warm)
        return elementwise(gpu, attrs.function, attrs.rows * attrs.columns, *moved, warm)
    if isinstance(attrs, ElementwiseAttrs):
        return elementwise(gpu, attrs.function, attrs.elements, *moved, warm)
    if isinstance(attrs, MoveAttrs):
        # Rows of a table lie anywhere in the memory; what is scattered stays in L2 as other results do.
        from_memory = any(tensor.role in (Role.WEIGHT, Role.KV) for tensor in op.inputs)
        elements = max(1, attrs.rows * attrs.row_bytes // 2)
        return elementwise(gpu, "copy", elements, *moved, warm and not from_memory)
    if isinstance(attrs, CustomAttrs):
        return _custom(gpu, op, attrs)
    raise ConfigError(f"{gpu.name} has no kernel for operator {op.name} of kind {op.kind}")


def _weights_sparse(tensor: Tensor) -> bool:
    zeros = tensor.sparsity
    return zeros is not None and zeros.pattern == "n:m" and (zeros.n, zeros.m) == (2, 4)


def product_format(gpu: Gpu, op: Op) -> str:
    """The format that a product of the two operands is done in: the wider one's, which the narrower is turned into."""
    formats = [tensor.format for tensor in op.inputs[:2]]
    return max(formats, key=bytes_of)


def product_cost(gpu: Gpu, op: Op, parts: int = 1) -> Cost:
    """The kernels of a product, or of one of `parts` into which its rows are cut, without launches."""
    assert isinstance(op.attrs, MatmulAttrs)
    return _matmul(gpu, op, op.attrs, parts)


def _matmul(gpu: Gpu, op: Op, attrs: MatmulAttrs, parts: int = 1) -> Cost:
    number_format = product_format(gpu, op)
    sparse = len(op.inputs) > 1 and _weights_sparse(op.inputs[1])
    sparse = sparse and gpu.sm.sparse is not None and gpu.library.sparse is not None
    rows = attrs.m if attrs.group_m is None else -(-attrs.m // attrs.batch)
    out = op.outputs[0].format if op.outputs else result_format(number_format)
    rows = -(-rows // parts)
    product = Product(rows, attrs.n, attrs.k, number_format, out, attrs.batch, sparse)
    cost = gemm(gpu, product)
    narrow = op.inputs[1].bytes / (prod(op.inputs[1].shape) * bytes_of(number_format)) if len(op.inputs) > 1 else 1.0
    return _thinner(gpu, cost, narrow, op) if narrow < 1.0 and not sparse else cost


def _thinner(gpu: Gpu, cost: Cost, share: float, op: Op) -> Cost:
    """Weights stored in fewer bits than they are multiplied in: read as stored, widened on the way."""
    main, *others = cost.kernels()
    read = main.dram_read_bytes - int((1 - share) * min(main.dram_read_bytes, op.inputs[1].bytes / share))
    main = replace(
        main,
        dram_read_bytes=read,
        memory_s=(read + main.dram_write_bytes) / stream_rate(gpu, read, main.dram_write_bytes),
        vector_results=main.vector_results + op.inputs[1].elements,
    )
    return chain([main, *others])


def _attention(gpu: Gpu, op: Op, attrs: AttentionAttrs) -> Cost:
    number_format = op.inputs[0].format
    kv_format = op.inputs[1].format if len(op.inputs) > 1 else number_format
    kv_heads = 1 if attrs.latent else attrs.kv_heads
    kind = attrs.mask.kind
    costs = []
    for alike in _launches(attrs.requests):
        seen = [_keys(attrs, span) for span in alike]
        count, query = sum(span.count for span in alike), alike[0].query
        mean = max(1, round(sum(span.count * keys for span, keys in zip(alike, seen, strict=True)) / count))
        window = mean if kind == "window" and attrs.mask.window is not None else 0
        keys = round(sum(span.count * span.length for span in alike) / count) if window else mean
        causal = kind in ("causal", "window") and query > 1
        heads = attrs.heads
        if attrs.latent and not window:
            # All heads read the one latent cache, so that a kernel takes them as rows of one product.
            heads, query, causal = 1, heads * query, False
        costs.append(attention(gpu, Attend(
            count, heads, kv_heads, query, max(keys, query if causal else 1), attrs.head_dim,
            attrs.v_head_dim, causal, number_format, "", window, kv_format,
        )))  # fmt: skip
    return chain(costs)


def _launches(requests: tuple[RequestSpan, ...]) -> list[list[RequestSpan]]:
    """Requests of one kernel: those with as many new positions, however many are cached before.

    A kernel for batches of unequal lengths takes them together; each counts with the mean length, so that products and
    bytes are those of all together, while blocks of unequal work are not told apart.
    """
    found: dict[int, list[RequestSpan]] = {}
    for span in requests:
        found.setdefault(span.query, []).append(span)
    return list(found.values())


def _keys(attrs: AttentionAttrs, span: RequestSpan) -> int:
    """Keys that a query of the request sees: of a causal mask all, of a window at most its size."""
    kind = attrs.mask.kind
    if kind == "window" and attrs.mask.window is not None:
        return min(span.length, attrs.mask.window + attrs.mask.sinks)
    if kind in ("causal", "full", "window"):
        return span.length
    # Any other mask skips whole blocks of keys: as many as its visible pairs need.
    pairs = visible_pairs(attrs.mask, span.query, span.past)
    return max(1, min(visible_keys(attrs.mask, span.query, span.past), -(-pairs // span.query)))


def _custom(gpu: Gpu, op: Op, attrs: CustomAttrs) -> Cost:
    number_format = op.inputs[0].format if op.inputs else gpu.formats[0]
    rate = gpu.macs_per_clock(number_format) * gpu.fitted.tensor * gpu.sm.count if attrs.macs else 1.0
    vector = attrs.vector_ops / (gpu.sm.lanes * gpu.sm.count * gpu.fitted.vector)
    moved = attrs.read_bytes + attrs.write_bytes
    return Cost(
        core_cycles=max(attrs.macs / rate, vector),
        memory_s=moved / stream_rate(gpu, attrs.read_bytes, attrs.write_bytes),
        fixed_s=gpu.fitted.start * 1e-12,
        overlap=gpu.fitted.overlap,
        core="tensor" if attrs.macs / rate >= vector else "issue",
        format=number_format if attrs.macs else "",
        macs=attrs.macs,
        vector_results=attrs.vector_ops,
        l2_bytes=moved,
        dram_read_bytes=attrs.read_bytes,
        dram_write_bytes=attrs.write_bytes,
    )
