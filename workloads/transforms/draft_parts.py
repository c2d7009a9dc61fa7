"""Pieces of passes that speculation needs: some layers of a pass, draft heads, look-ups, moves inside the cache."""

from __future__ import annotations

from dataclasses import replace

from workloads.build import Builder
from workloads.emit import Emitter
from workloads.formats import storage_bytes
from workloads.models import Model
from workloads.trace import (
    CARRIED,
    Block,
    CustomAttrs,
    MoveAttrs,
    Op,
    OpKind,
    Pass,
    ReduceAttrs,
    Role,
    Tensor,
    Trace,
)
from workloads.transforms.graph import cut, layers_of, number_layers, prefix_of, unique_names


def take_layers(p: Pass, chosen: frozenset[int]) -> Pass:
    """The pass with only the chosen layers (numbers of the model); what is no layer stays."""
    (p,) = number_layers(Trace("", 1, (p,))).passes
    blocks: list[Block] = []
    for block in p.blocks:
        if block.first_layer is None:
            blocks.append(block)
            continue
        period = len(block.prefixes)
        turns = layers_of(block)[::period]
        signatures = [tuple(n + i in chosen for i in range(period)) for n in turns]
        marks = [turns[i] for i in range(1, len(turns)) if signatures[i] != signatures[i - 1]]
        for part in cut(block, marks):
            assert part.first_layer is not None
            kept = [prefix for i, prefix in enumerate(part.prefixes) if part.first_layer + i in chosen]
            ops = tuple(op for op in part.ops if prefix_of(op) in kept)
            if ops:
                blocks.append(replace(part, ops=ops))
    return replace(p, blocks=unique_names(blocks))


def exit_states(p: Pass, rows: int) -> Block:
    """Read the hidden states that the drafting layers left: `rows` rows of the residual stream."""
    x = next(t for b in p.blocks for op in b.ops for t in op.outputs if t.name == CARRIED)
    saved = Tensor("exit_states", (rows, x.shape[1]), x.format, Role.ACTIVATION)
    move = MoveAttrs("exit_states", rows, storage_bytes((x.shape[1],), x.format))
    return Block("exit_states", 1, (Op("exit_states", OpKind.GATHER, "embed", (saved,), (x,), move),))


def draft_heads(target: Builder, rows: int, heads: int, layers: int, sequential: bool) -> list[Block]:
    """`heads` further heads on the last hidden state of `rows` requests: `layers` square layers with a residual sum,
    then a vocabulary of its own (Medusa: https://arxiv.org/abs/2401.10774).

    sequential: head i also reads the embeddings of the i + 1 tokens before it (Hydra: https://arxiv.org/abs/2402.05109).
    """
    model = target.model
    assert model.vocab is not None
    hidden, blocks = model.hidden, []
    widths = [hidden * (i + 2) for i in range(heads)] if sequential else [hidden]
    for number, width in enumerate(widths):
        name = f"draft_heads.{number}" if sequential else "draft_heads"
        e = Emitter(name, target.formats)
        state = e.activation("draft_state", rows, width)
        for layer in range(layers):
            inner = e.linear(f"head_up{layer}", "head", state, hidden, f"head_inner{layer}", True)
            act = e.activation(f"head_act{layer}", rows, hidden)
            e.elementwise(f"head_silu{layer}", "head", "silu", (inner,), act)
            before = e.activation(state.name, rows, hidden)
            state = e.add(f"head_add{layer}", "head", before, act, f"head_sum{layer}")
        scores = e.linear("head_vocab", "head", state, model.vocab, "draft_logits")
        token = Tensor("draft_tokens", (rows,), "int32", Role.INDEX)
        e.emit("draft_sample", OpKind.REDUCE, "head", (scores,), (token,), ReduceAttrs("argmax", rows, model.vocab))
        blocks.append(Block(name, 1 if sequential else heads, tuple(e.ops)))
    return blocks


def lookup(read_bytes: int) -> Block:
    """A look-up that reads `read_bytes` and compares them byte by byte."""
    attrs = CustomAttrs(0, read_bytes, read_bytes, 0, "vector")
    return Block("lookup", 1, (Op("lookup", OpKind.CUSTOM, "draft", (), (), attrs),))


def compaction(model: Model, p: Pass, positions: int) -> list[Block]:
    """Move the cache entries of `positions` accepted positions together, in every layer: each is read and written."""
    cache = {t.name.rpartition(".")[2]: t for b in p.blocks for op in b.ops for t in op.outputs if t.role is Role.KV}
    ops = []
    for name, tensor in cache.items():
        rows = replace(tensor, name=name, shape=(positions, *tensor.shape[1:]), whole=None)
        move = MoveAttrs("kv_compact", positions, storage_bytes(tensor.shape[1:], tensor.format))
        ops.append(
            Op(f"{name}_compact", OpKind.GATHER, "attention", (replace(rows, name=f"{name}_drafted"),), (rows,), move)
        )
    return [Block("kv_compact", model.layers, tuple(ops))]
