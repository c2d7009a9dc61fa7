"""Attention in a section: scores, running softmax and weighted values at the granularity of tiles of keys.

A token of queries meets, one after the other, the tiles of keys that its mask lets it see; unseen tiles are no tokens.
Only a running maximum, a running sum and one row of values are kept (Milakov and Gimelshein 2018; Sohn, Zhang and
Olukotun 2024), so no channel must hold a row of scores.
"""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

from sim.spatial.fabric import STORE_TILES, VECTOR, Node, Work
from sim.spatial.rates import Lanewise, Product, lanewise, up
from sim.spatial.visible import LOOKS_AHEAD, steps_of_blocks
from workloads.trace import AttentionAttrs, Op, Role

if TYPE_CHECKING:
    from sim.spatial.build import Builder


def attention(b: Builder, number: int, op: Op) -> Node:
    """Add the nodes of an attention operator; returns the one that hands on its result. Raises CutError."""
    from sim.spatial.build import same

    attrs = op.attrs
    assert isinstance(attrs, AttentionAttrs)
    query, others = op.inputs[0], op.inputs[1:]
    longest = max(span.length for span in attrs.requests)
    columns = min(b.machine.mapping.key_tile, longest)
    layout = b.plan.layout
    steps, rows = steps_of_blocks(attrs.mask, attrs.requests, layout.block, columns, len(layout.groups) > 1)
    total_steps = sum(steps)
    ready = b.fabric.add(Node(f"{op.name} query", "map", STORE_TILES, number, b.blocks, ii=0))
    b.feed(ready, query, op)
    streamed = _keys(b, number, op, ready, steps, columns)
    for tensor in others:
        if tensor.role is Role.WEIGHT:
            b.feed(ready, tensor, op)

    group = attrs.heads // attrs.kv_heads
    rate = b.tiles.formats[query.format]
    width, out = Fraction(query.bytes, query.elements), Fraction(op.outputs[0].bytes, op.outputs[0].elements)
    every = {"every": same(steps)}
    first = Product(attrs.kv_heads, rows * group, attrs.head_dim, columns, rate)
    second = Product(attrs.kv_heads, rows * group, columns, attrs.v_head_dim, rate)
    elements = attrs.heads * rows * columns
    soft = lanewise(b.tiles, "softmax", elements)
    if attrs.softcap:
        soft = Lanewise(elements, soft.sweeps + lanewise(b.tiles, "softcap", elements).sweeps, soft.reductions)
    score_bytes = up(int(elements * width * 1), 1)
    widths = [width, width, width]
    scores = b._product(f"{op.name} scores", "broadcast" if streamed else "repeat", number, total_steps, first, widths)
    softmax = b.fabric.add(Node(f"{op.name} softmax", "scan", VECTOR, number, total_steps, soft,
                                work=Work(vector_ops=op.vector_ops, sram_read=total_steps * score_bytes * soft.sweeps,
                                          sram_write=total_steps * score_bytes)))  # fmt: skip
    values = b._product(f"{op.name} values", "memory_reduce", number, total_steps, second, widths)
    # The result is written once a token, not once a step.
    values.work.sram_write = op.outputs[0].bytes
    for node in (scores, softmax, values):
        node.keys |= every
    if streamed:
        b.fabric.join(streamed, scores, streamed.keys["token_bytes"])
        del streamed.keys["token_bytes"]
    b.fabric.join(ready, scores, b.share(query.bytes))
    b.fabric.join(scores, softmax, score_bytes)
    b.fabric.join(softmax, values, score_bytes)
    per_token = up(attrs.tokens, b.blocks) * attrs.heads * attrs.v_head_dim
    divide = b.fabric.add(Node(f"{op.name} division", "map", VECTOR, number, b.blocks, Lanewise(per_token, 1),
                               work=Work(sram_read=op.outputs[0].bytes, sram_write=op.outputs[0].bytes)))  # fmt: skip
    b.fabric.join(values, divide, up(int(per_token * out), 1))
    b.fabric.decisions[number] |= {"attention": "memory-free", "key tile": str(columns), "steps": str(total_steps)}
    return divide


def _keys(b: Builder, number: int, op: Op, ready: Node, steps: list[int], columns: int) -> Node | None:
    """Have `ready` wait for keys and values in memory tiles; the port that streams them instead, if they don't stay."""
    attrs = op.attrs
    assert isinstance(attrs, AttentionAttrs)
    keys = [t for t in op.inputs[1:] if t.role is not Role.WEIGHT]
    size = sum(t.bytes for t in keys)
    made = [t for t in keys if t.name in b.makers]
    fresh = all(span.past == 0 for span in attrs.requests) and len(made) == len(keys)
    chosen = b.fabric.decisions[number]
    if fresh:
        per = _waits(b, attrs)
        largest = max(span.length for span in attrs.requests)
        held = min(size, 2 * up(size * largest, attrs.keys)) if per < b.blocks or per == 1 else size
        keep = b.fabric.add(Node(f"{op.name} keys", "reduce" if per > 1 else "map", STORE_TILES, number, b.blocks, ii=0,
                                 holds=held, barrier=per))  # fmt: skip
        for maker in {b.makers[t.name].name: b.makers[t.name] for t in made}.values():
            mine = sum(t.bytes for t in made if b.makers[t.name] is maker)
            b.fabric.join(maker, keep, b.share(mine))
        if per > 1:
            keep.keys["every"] = per
            keep = b.again(keep, [per] * (b.blocks // per))
        b.fabric.join(keep, ready, 0)
        chosen["stationary"] = "keys and values"
        return None
    if made and b.blocks > 1:
        from sim.spatial.build import CutError

        raise CutError(made[0].name)
    for maker in {b.makers[t.name].name: b.makers[t.name] for t in made}.values():
        b.fabric.join(maker, ready, 0)
    if b.blocks > 1 and 4 * size <= b.machine.sram_bytes:
        hold = b.fabric.load(f"{op.name} keys", number, 1, size, size)
        b.fabric.join(b.again(hold, [b.blocks]), ready, 0)
        chosen["stationary"] = "keys and values"
        return None
    count = sum(steps)
    token = up(size, count) if b.blocks == 1 else up(size * columns, attrs.keys)
    port = b.fabric.port(f"{op.name} keys", number, count, token, size if b.blocks == 1 else count * token)
    port.keys["token_bytes"] = token
    chosen["stationary"] = "queries"
    return port


def _waits(b: Builder, attrs: AttentionAttrs) -> int:
    """Tokens of keys that must be there before the first query of a request may go on."""
    if attrs.mask.kind not in LOOKS_AHEAD:
        return 1
    each = set(b.plan.layout.per_group)
    return each.pop() if len(each) == 1 else b.blocks
