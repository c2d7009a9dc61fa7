"""Builds the Trace of a model: which blocks of layers a pass runs through, and which passes make up a scenario.

`build_pass` turns a model and a list of request spans into one Pass; `prefill_passes`, `decode_passes`, ... are the
loops around it. Operators that do not depend on the length of the cache are shared between passes, so that long
decodes stay small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from workloads.attention import LatentForm, Positions, emit_attention
from workloads.emit import Emitter, FormatChoice
from workloads.ffn import INDEX_FORMAT, emit_ffn
from workloads.models import LayerKind, Model
from workloads.shards import WHOLE, Parallel, deal, micro_batches
from workloads.trace import (
    CARRIED,
    Block,
    CollectiveAttrs,
    Op,
    OpKind,
    Pass,
    ReduceAttrs,
    RequestSpan,
    Role,
    Tensor,
    Trace,
)

MAX_PERIOD = 16
"""Longest stretch of different layers that is looked for as a repeating pattern; known models have at most 6."""

CANDIDATE_BYTES = 8
"""What a device sends of each row for the choice of the next token: its best score and where that is."""


@dataclass(slots=True)
class Builder:
    """Builds passes of one model in one choice of formats, sharing equal operators and blocks between them.

    `model` is what one device has of it, as `shards.shard` cuts it for `parallel`. Of a pipeline it is the last stage
    that is built: it has the head, and no stage has more to do.
    """

    model: Model
    formats: FormatChoice = field(default_factory=FormatChoice)
    parallel: Parallel = WHOLE
    _ops: dict[Op, Op] = field(default_factory=dict)
    _blocks: dict[tuple[str, int, tuple[int, ...]], Block] = field(default_factory=dict)

    def build_pass(
        self,
        name: str,
        phase: str,
        spans: Sequence[RequestSpan],
        head_rows: int | None = None,
        latent_form: LatentForm = "expanded",
        repeat: int = 1,
    ) -> Pass:
        """One pass over `spans` (requests of any mix of lengths).

        `head_rows`: for how many positions the head is computed; None is one for each request, 0 leaves the head out
        (a chunk that is not the last). A decoder generates one token for each of them, at most one a request.
        """
        model, at = self.model, Positions(tuple(spans), latent_form)
        rows = at.requests if head_rows is None else head_rows
        if model.kind == "vision":
            blocks = [self._patches(at), *self._layers(at), self._vision_head(at)]
        elif model.kind == "diffusion":
            blocks = [self._patches(at), self._conditioning(at), *self._layers(at), self._denoise_head(at)]
        elif model.kind == "encoder":
            blocks = [self._embedding(at), *self._layers(at), *self._pooler(at)]
        else:
            first = self._embedding(at) if self.parallel.pipeline == 1 else self._receive(at)
            blocks = [first, *self._layers(at), *self._text_head(at, rows)]
        generated = min(rows, at.requests) if model.kind == "decoder" else 0
        return Pass(name, phase, tuple(blocks), at.tokens, generated, repeat)

    def _block(self, name: str, ops: Sequence[Op], repeat: int = 1) -> Block:
        shared = tuple(self._ops.setdefault(op, op) for op in ops)
        key = (name, repeat, tuple(map(id, shared)))
        known = self._blocks.get(key)
        if known is None:
            known = self._blocks[key] = Block(name, repeat, shared)
        return known

    def _emitter(self, block: str, prefix: str = "") -> Emitter:
        return Emitter(block, self.formats, prefix)

    def _layers(self, at: Positions) -> list[Block]:
        blocks = []
        for run in layer_runs(self.model.layer_kinds()):
            ops: list[Op] = []
            for prefix, kind in zip(run.prefixes, run.kinds, strict=True):
                e = self._emitter(run.name, prefix)
                self._layer(e, kind, at)
                ops.extend(e.ops)
            blocks.append(self._block(run.name, ops, run.repeat))
        return blocks

    def _joined(self, e: Emitter, name: str, part: Tensor, out: str) -> Tensor:
        """The sum of `part` over the devices that share the layer; `part` itself where one has it all."""
        if self.parallel.tensor == 1:
            return part
        result = e.activation(out, *part.shape)
        attrs = CollectiveAttrs("all_reduce", part.bytes, self.parallel.tensor)
        e.emit(f"{name}_all_reduce", OpKind.COLLECTIVE, "collective", (part,), (result,), attrs)
        return result

    def _attention(self, e: Emitter, kind: LayerKind, at: Positions, x: Tensor) -> Tensor:
        return self._joined(e, "attn", emit_attention(e, self.model, kind, at, x), "attn_joined")

    def _ffn(self, e: Emitter, kind: LayerKind, x: Tensor) -> Tensor:
        return self._joined(e, "ffn", emit_ffn(e, self.model, kind, x, self.parallel.expert), "ffn_joined")

    def _receive(self, at: Positions) -> Block:
        """The residual stream comes from the stage before."""
        e = self._emitter("receive")
        x = e.activation(CARRIED, at.tokens, self.model.hidden)
        e.emit("receive", OpKind.COLLECTIVE, "collective", (), (x,), CollectiveAttrs("send_recv", x.bytes, 2))
        return self._block("receive", e.ops)

    def _layer(self, e: Emitter, kind: LayerKind, at: Positions) -> None:
        model = self.model
        norm, x = model.norm, e.activation(CARRIED, at.tokens, model.hidden)

        def before(half: str, hidden: Tensor) -> Tensor:
            return e.norm(f"{half}_norm", "norm", hidden, f"{half}_in", norm.kind, norm.affine)

        if norm.place == "post":
            attended = e.add("attn_add", "residual", x, self._attention(e, kind, at, x), "attn_sum")
            x = e.norm("attn_norm", "norm", attended, "ffn_in", norm.kind, norm.affine)
            fed = e.add("ffn_add", "residual", x, self._ffn(e, kind, x), "ffn_sum")
            e.norm("ffn_norm", "norm", fed, CARRIED, norm.kind, norm.affine)
            return
        if model.conditioning is not None:
            self._conditioned_layer(e, kind, at, x)
            return
        out = self._attention(e, kind, at, before("attn", x))
        if norm.place == "sandwich":
            out = e.norm("attn_post_norm", "norm", out, "attn_normed", norm.kind, norm.affine)
        x = e.add("attn_add", "residual", x, out)
        out = self._ffn(e, kind, before("ffn", x))
        if norm.place == "sandwich":
            out = e.norm("ffn_post_norm", "norm", out, "ffn_normed", norm.kind, norm.affine)
        e.add("ffn_add", "residual", x, out)

    def _conditioned_layer(self, e: Emitter, kind: LayerKind, at: Positions, x: Tensor) -> None:
        """A layer with adaptive norms: shift, scale and gate of both halves come from the conditioning vector."""
        model, images = self.model, at.requests
        e.linear(
            "adaln", "conditioning", e.activation("condition", images, model.hidden), 6 * model.hidden, "adaln", True
        )
        for half in ("attn", "ffn"):
            normed = e.norm(f"{half}_norm", "norm", x, f"{half}_normed", model.norm.kind, model.norm.affine)
            moved = e.elementwise(
                f"{half}_modulate",
                "norm",
                "modulate",
                (normed, e.activation("adaln", images, 2 * model.hidden)),
                e.activation(f"{half}_in", *x.shape),
            )
            out = self._attention(e, kind, at, moved) if half == "attn" else self._ffn(e, kind, moved)
            gate = e.activation("adaln", images, model.hidden)
            x = e.elementwise(f"{half}_add", "residual", "gate_add", (x, out, gate), e.activation(CARRIED, *x.shape))

    def _table(self, name: str, rows: int, whole: int) -> Tensor:
        """`rows` rows of a table with `whole` of them, each as wide as the model; not part of any layer."""
        d = self.model.hidden
        size = None if rows == whole else (whole, d)
        return Tensor(name, (rows, d), self.formats.embeddings, Role.WEIGHT, whole=size)

    def _add_positions(self, e: Emitter, at: Positions, x: Tensor) -> Tensor:
        model = self.model
        if model.position not in ("learned", "fixed"):
            return x
        table = self._table("positions.weight", distinct_positions(at.spans), model.position_rows or model.max_position)
        return e.add("position_add", "embed", x, table)

    def _embedding(self, at: Positions) -> Block:
        model, e = self.model, self._emitter("embed")
        assert model.vocab is not None
        ids = Tensor("tokens", (at.tokens,), INDEX_FORMAT, Role.INDEX)
        # A token that occurs twice is read twice: which ones do is not known. There are no more rows than the table's.
        rows = self._table("embedding.weight", min(at.tokens, model.vocab), model.vocab)
        out = CARRIED if self.parallel.tensor == 1 else "embedded"
        x = e.gather("embedding", "embed", "embedding", (ids, rows), e.activation(out, at.tokens, model.hidden))
        x = self._joined(e, "embedding", x, CARRIED)
        if model.embedding_scale:
            x = e.elementwise("embedding_scale", "embed", "scale", (x,), e.activation(CARRIED, *x.shape))
        x = self._add_positions(e, at, x)
        if model.token_types:
            x = e.add("type_add", "embed", x, self._table("types.weight", model.token_types, model.token_types))
        if model.embedding_norm:
            e.norm("embedding_norm", "norm", x, CARRIED, model.norm.kind, model.norm.affine)
        return self._block("embed", e.ops)

    def _patches(self, at: Positions) -> Block:
        model, e = self.model, self._emitter("embed")
        patch = model.patch
        assert patch is not None
        pixels = e.activation("pixels", at.tokens - at.requests * patch.class_token, patch.pixels)
        x = e.linear("patch_embedding", "embed", pixels, model.hidden, "patches", True)
        if patch.class_token:
            token = self._table("class_token.weight", 1, 1)
            x = e.elementwise(
                "class_token", "embed", "copy", (x, token), e.activation(CARRIED, at.tokens, model.hidden)
            )
        self._add_positions(e, at, x)
        return self._block("embed", e.ops)

    def _conditioning(self, at: Positions) -> Block:
        """The conditioning vector of each image: a two-layer network on the time step, plus the label's embedding."""
        model, e, images = self.model, self._emitter("conditioning"), at.requests
        assert model.conditioning is not None
        width, labels = model.hidden, model.conditioning.classes + 1
        step = e.activation("timestep", images, model.conditioning.frequencies)
        inner = e.linear("time_up", "conditioning", step, width, "time_inner", True)
        act = e.elementwise("time_silu", "conditioning", "silu", (inner,), e.activation("time_act", images, width))
        time = e.linear("time_down", "conditioning", act, width, "time", True)
        ids = Tensor("labels", (images,), INDEX_FORMAT, Role.INDEX)
        rows = self._table("labels.weight", min(images, labels), labels)
        label = e.gather("label_embedding", "embed", "embedding", (ids, rows), e.activation("label", images, width))
        both = e.add("condition_add", "conditioning", time, label, "condition_sum")
        e.elementwise("condition_silu", "conditioning", "silu", (both,), e.activation("condition", images, width))
        return self._block("conditioning", e.ops)

    def _select(self, e: Emitter, at: Positions, rows: int, out: str) -> Tensor:
        """`rows` rows of the residual stream; itself if that is all of them."""
        if rows == at.tokens:
            return e.activation(CARRIED, rows, self.model.hidden)
        part = e.activation(CARRIED, rows, self.model.hidden)
        return e.gather(f"{out}_rows", "head", "select", (part,), e.activation(out, rows, self.model.hidden))

    def _pooler(self, at: Positions) -> list[Block]:
        if not self.model.pooler:
            return []
        e = self._emitter("head")
        pooled = e.linear(
            "pooler", "head", self._select(e, at, at.requests, "first"), self.model.hidden, "pooled", True
        )
        e.elementwise("pooler_tanh", "head", "tanh", (pooled,), e.activation("pooled_tanh", *pooled.shape))
        return [self._block("head", e.ops)]

    def _text_head(self, at: Positions, rows: int) -> list[Block]:
        model, e = self.model, self._emitter("head")
        if rows == 0:
            return []
        assert model.vocab is not None
        x = self._select(e, at, rows, "last")
        if model.norm.place != "post":
            x = e.norm("final_norm", "norm", x, "final", model.norm.kind, model.norm.affine)
        name = "embedding.weight" if model.tied_embeddings else "head.weight"
        weight = Tensor(name, (model.hidden, model.vocab), self.formats.embeddings, Role.WEIGHT)
        scores = e.linear_with("lm_head", "head", x, weight, "logits")
        if model.logit_softcap:
            scores = e.elementwise("logit_softcap", "head", "softcap", (scores,), e.activation("capped", *scores.shape))
        token = Tensor("next_tokens", (rows,), INDEX_FORMAT, Role.INDEX)
        e.emit("sample", OpKind.REDUCE, "head", (scores,), (token,), ReduceAttrs("argmax", rows, model.vocab))
        if self.parallel.tensor > 1:
            best = Tensor("best_tokens", (rows,), INDEX_FORMAT, Role.INDEX)
            attrs = CollectiveAttrs("all_gather", rows * CANDIDATE_BYTES, self.parallel.tensor)
            e.emit("sample_all_gather", OpKind.COLLECTIVE, "collective", (token,), (best,), attrs)
        return [self._block("head", e.ops)]

    def _vision_head(self, at: Positions) -> Block:
        model, e = self.model, self._emitter("head")
        x = (
            self._select(e, at, at.requests, "first")
            if model.classes
            else e.activation(CARRIED, at.tokens, model.hidden)
        )
        x = e.norm("final_norm", "norm", x, "final", model.norm.kind, model.norm.affine)
        if model.classes:
            e.linear("classifier", "head", x, model.classes, "logits", True)
        return self._block("head", e.ops)

    def _denoise_head(self, at: Positions) -> Block:
        model, e, images = self.model, self._emitter("head"), at.requests
        assert model.conditioning is not None
        assert model.patch is not None
        x = e.activation(CARRIED, at.tokens, model.hidden)
        e.linear(
            "final_adaln",
            "conditioning",
            e.activation("condition", images, model.hidden),
            2 * model.hidden,
            "final_adaln",
            True,
        )
        x = e.norm("final_norm", "norm", x, "final_normed", model.norm.kind, model.norm.affine)
        shift = e.activation("final_adaln", images, 2 * model.hidden)
        x = e.elementwise("final_modulate", "norm", "modulate", (x, shift), e.activation("final", *x.shape))
        e.linear("to_pixels", "head", x, model.patch.size**2 * model.conditioning.out_channels, "noise", True)
        return self._block("head", e.ops)


@dataclass(frozen=True, slots=True)
class LayerRun:
    """`repeat` times the layers `kinds`, in order; `prefixes` tell the layers apart inside the block."""

    name: str
    repeat: int
    kinds: tuple[LayerKind, ...]
    prefixes: tuple[str, ...]


@lru_cache(maxsize=256)
def layer_runs(kinds: tuple[LayerKind, ...]) -> tuple[LayerRun, ...]:
    """Cut a model's layers, in order, into repeated stretches: at each place the period that saves the most layers."""
    found: list[tuple[int, tuple[LayerKind, ...]]] = []
    start = 0
    while start < len(kinds):
        best, best_saved = 1, -1
        for period in range(1, min(MAX_PERIOD, len(kinds) - start) + 1):
            saved = (_repeats(kinds, start, period) - 1) * period
            if saved > best_saved:
                best, best_saved = period, saved
        repeat = _repeats(kinds, start, best)
        found.append((repeat, kinds[start : start + best]))
        start += repeat * best
    labels = {kind: _label(kind, kinds) for kind in set(kinds)}
    names: list[str] = []
    runs = []
    for repeat, stretch in found:
        base = "_".join(dict.fromkeys(labels[kind] for kind in stretch))
        name = base if base not in names else f"{base}_{names.count(base) + 1}"
        names.append(base)
        runs.append(LayerRun(name, repeat, stretch, _prefixes([labels[kind] for kind in stretch])))
    return tuple(runs)


def _repeats(kinds: tuple[LayerKind, ...], start: int, period: int) -> int:
    """How often the stretch of `period` layers at `start` occurs in a row."""
    count = 1
    while kinds[start + count * period : start + (count + 1) * period] == kinds[start : start + period]:
        count += 1
    return count


def _label(kind: LayerKind, kinds: tuple[LayerKind, ...]) -> str:
    """What distinguishes this kind of layer from the model's others; "layers" if nothing does."""
    parts = []
    if len({k.moe for k in kinds}) > 1:
        parts.append("moe" if kind.moe else "dense")
    if len({k.local for k in kinds}) > 1:
        parts.append("local" if kind.local else "global")
    return "_".join(parts) or "layers"


def _prefixes(labels: list[str]) -> tuple[str, ...]:
    if len(labels) == 1:
        return ("",)
    out = []
    for i, label in enumerate(labels):
        number = f"{labels[: i + 1].count(label)}" if labels.count(label) > 1 else ""
        out.append(f"{label}{number}.")
    return tuple(out)


def distinct_positions(spans: Sequence[RequestSpan]) -> int:
    """Number of different absolute positions among the new ones."""
    total = reached = 0
    for low, high in sorted((s.past, s.length) for s in spans):
        low = max(low, reached)
        if high > low:
            total += high - low
            reached = high
    return total


def group_lengths(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """(length, how many requests have it), in order of first appearance."""
    counts: dict[int, int] = {}
    for length in lengths:
        counts[length] = counts.get(length, 0) + 1
    return list(counts.items())


def prefill_passes(builder: Builder, lengths: Sequence[int], chunk: int | None = None, context: int = 0) -> list[Pass]:
    """Process prompts of `lengths` after `context` cached positions each, at most `chunk` positions of a request a
    pass. In a pipeline, a stage works on parts of the batch in turn, as many as there are stages or requests.

    Requests advance together and a shorter one drops out. A pass computes the head for the requests that it finishes.
    """
    longest = max(lengths)
    step = min(chunk or longest, longest)
    starts = range(0, longest, step)
    stages = builder.parallel.pipeline
    parts = deal(lengths, min(stages, len(lengths)))
    passes = []
    for number, start in enumerate(starts):
        name = "prefill" if len(starts) == 1 else f"prefill.{number}"
        turns = [_prefill_chunk(builder, name, part, start, step, context) for part in parts if max(part) > start]
        passes.append(turns[0] if stages == 1 else _in_turn(turns))
    if stages == 1:
        return passes
    # The stages before do the longest part once each before the last stage has work: the first part of one chunk.
    first_flops = [sum(b.flops for b in each.blocks if b.name.startswith("part0.")) for each in passes]
    slowest = first_flops.index(max(first_flops))
    return [replace(each, fill=stages - 1) if i == slowest else each for i, each in enumerate(passes)]


def _prefill_chunk(builder: Builder, name: str, lengths: Sequence[int], start: int, step: int, context: int) -> Pass:
    """Positions from `start` on, at most `step` of each request."""
    left = [(length - start, count) for length, count in group_lengths(lengths) if length > start]
    # Requests that are longer than this chunk look alike in it.
    counts: dict[int, int] = {}
    for length, count in left:
        counts[min(step, length)] = counts.get(min(step, length), 0) + count
    spans = [RequestSpan(count, query, context + start) for query, count in counts.items()]
    finished = sum(count for length, count in left if length <= step)
    return builder.build_pass(name, "prefill", spans, finished, "expanded")


def _in_turn(turns: Sequence[Pass]) -> Pass:
    """A stage of a pipeline works on the parts of a batch in turn.

    Caches are known by name within their block: each part has its own, and all are resident.
    """
    blocks = [replace(block, name=f"part{i}.{block.name}") for i, turn in enumerate(turns) for block in turn.blocks]
    tokens, generated = sum(turn.tokens for turn in turns), sum(turn.generated for turn in turns)
    return replace(turns[0], blocks=tuple(blocks), tokens=tokens, generated=generated)


def decode_passes(builder: Builder, contexts: Sequence[int], steps: int = 1) -> list[Pass]:
    """`steps` passes of one new token for each request; step i finds `context + i` cached positions.

    In a pipeline of n stages, a stage works on n parts of the batch in turn, each while the others are elsewhere.
    """
    parts = [group_lengths(part) for part in micro_batches(contexts, builder.parallel.pipeline)]
    passes = []
    for step in range(steps):
        spans = [[RequestSpan(count, 1, context + step) for context, count in groups] for groups in parts]
        name = "decode" if steps == 1 else f"decode.{step}"
        if len(parts) == 1:
            passes.append(builder.build_pass(name, "decode", spans[0], latent_form="absorbed"))
            continue
        turns = [builder.build_pass(name, "decode", part, latent_form="absorbed") for part in spans]
        passes.append(_in_turn(turns))
    return passes


def encode_passes(builder: Builder, lengths: Sequence[int]) -> list[Pass]:
    """One forward pass of an encoder, or of a vision model, over inputs of `lengths` positions."""
    spans = [RequestSpan(count, length) for length, count in group_lengths(lengths)]
    return [builder.build_pass("encode", "encode", spans)]


def denoise_passes(builder: Builder, images: int, steps: int = 1) -> list[Pass]:
    """`steps` equal denoising steps over `images` latents, as one pass that repeats."""
    assert builder.model.patch is not None
    spans = [RequestSpan(images, builder.model.patch.tokens)]
    return [builder.build_pass("denoise", "denoise", spans, repeat=steps)]


def make_trace(builder: Builder, batch: int, passes: Sequence[Pass], **meta: str | int) -> Trace:
    """The passes as a Trace of the builder's model, with `meta`, formats and a cut over devices as its free facts."""
    chosen = builder.formats
    facts: dict[str, str | int] = {f"format.{name}": getattr(chosen, name) for name in FormatChoice.__slots__}
    if builder.parallel != WHOLE:
        facts |= {f"parallel.{name}": getattr(builder.parallel, name) for name in type(builder.parallel).model_fields}
    facts.update(meta)
    return Trace(builder.model.name, batch, tuple(passes), meta=tuple(sorted(facts.items())))
