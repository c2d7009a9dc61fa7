"""Loops of passes but draft and verify: samples, block diffusion, fixed-point sweeps, looped layers, given passes.

`loop` repeats passes or layers with the same weights; `passes` puts passes from outside (a server's batches, the scales
of an image model) in the place of all others.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import ceil
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.config import ConfigError
from workloads.schema import Count, Schema, Size
from workloads.trace import CAUSAL, FULL, Block, Pass, RequestSpan, Trace
from workloads.transforms.context import (
    Context,
    check_room,
    decoding_of,
    group,
    instead_of_decoding,
    map_attention,
    pass_spans,
)
from workloads.transforms.draws import Stream
from workloads.transforms.graph import cut, layer_count, layers_of, map_passes, number_layers, unique_names
from workloads.transforms.rates import Shares, exact
from workloads.transforms.remask import mask_of, remask
from workloads.transforms.where import Where

_KEYS = {
    "samples": {"count", "shares"},
    "denoise": {"block", "count", "tokens_per_pass", "cache", "refresh", "commit"},
    "sweeps": {"block", "count", "shares"},
    "layers": {"count"},
    "steps": {"count"},
}


class Loop(Schema):
    """Passes or layers run again and again. `over` says what for:

    samples: each request is decoded `count` times (or as often as drawn by `shares`) after one prefill · denoise:
    blocks of tokens are made in `count` passes each, or at `tokens_per_pass`, its positions seeing each other ·
    sweeps: blocks are made by `count` causal passes over all their positions (Jacobi iteration) · layers: the layers
    `where.layers` run `count` times with the same weights · steps: a diffusion model takes `count` steps.
    """

    over: Literal["samples", "denoise", "sweeps", "layers", "steps"]
    count: Size | None = None
    shares: Shares | None = Field(None, description="Relative probabilities of the counts 1, 2, 3 ...")
    block: Size | tuple[Size, ...] = Field(32, description="Positions of a block; a list is taken in turn.")
    tokens_per_pass: Annotated[float, Field(ge=1)] | None = None
    cache: Literal["prefix", "none", "periodic"] = Field(
        "prefix", description="prefix: finished blocks are cached; none: every pass runs the whole sequence; periodic: "
        "the rest of the sequence is cached, and computed anew every `refresh` passes."
    )  # fmt: skip
    refresh: Size = Field(8, description="Passes between two that run the whole sequence (periodic).")
    commit: bool = Field(False, description="One more causal pass over a finished block writes its cache entries.")
    where: Where = Where()

    @model_validator(mode="after")
    def _fits(self) -> Loop:
        takes = _KEYS[self.over] | {"over", "where"}
        extra = sorted(self.model_fields_set - takes)
        if extra:
            raise ValueError(f"over {self.over} takes no {extra[0]}; keys that apply: {', '.join(sorted(takes))}")
        ways = [n for n in ("count", "shares", "tokens_per_pass") if getattr(self, n) is not None]
        if len(ways) != 1:
            options = " or ".join(sorted(_KEYS[self.over] & {"count", "shares", "tokens_per_pass"}))
            raise ValueError(f"over {self.over} needs one of {options}; has {' and '.join(ways) or 'none'}")
        if self.over == "layers" and self.where.layers is None:
            raise ValueError("over layers needs where.layers, the ones that run again")
        return self


class PassSpec(Schema):
    """One pass as a server hands it in: `requests` of (count, new positions, cached positions)."""

    name: str = Field(min_length=1)
    phase: str = "decode"
    requests: tuple[tuple[Size, Size, Count], ...] = Field(min_length=1)
    repeat: Size = 1
    head_rows: Count | None = None


class Passes(Schema):
    """Passes given one by one, in the place of those of the scenario."""

    passes: tuple[PassSpec, ...] = Field(min_length=1)


def given_passes(trace: Trace, params: Passes, context: Context) -> Trace:
    """The trace with the given passes. Raises ConfigError for positions beyond the model."""
    found = []
    for spec in params.passes:
        spans = [RequestSpan(*request) for request in spec.requests]
        check_room(context.builder, max(s.length for s in spans), f"pass {spec.name}")
        form: Literal["absorbed", "expanded"] = "absorbed" if spec.phase in ("decode", "verify") else "expanded"
        found.append(context.builder.build_pass(spec.name, spec.phase, spans, spec.head_rows, form, spec.repeat))
    return replace(trace, passes=tuple(found), batch=max(sum(r[0] for r in s.requests) for s in params.passes))


def loop(trace: Trace, params: Loop, context: Context) -> Trace:
    """Dispatch on what is looped over."""
    if params.over == "samples":
        return _samples(trace, params, context)
    if params.over == "layers":
        assert params.count is not None
        return repeat_layers(trace, params.where, params.count)
    if params.over == "steps":
        assert params.count is not None
        return _steps(trace, params.where, params.count)
    return _blocks(trace, params, context)


def _samples(trace: Trace, params: Loop, context: Context) -> Trace:
    """Decode several samples of each request; the prompt is processed once and its cache entries are shared copies."""
    decoding = decoding_of(trace, "loop over samples")
    if params.shares is not None:
        stream = Stream(context.seed, "samples")
        counts = [n + 1 for n in stream.choices(params.shares, len(decoding.contexts))]
    else:
        assert params.count is not None
        counts = [params.count] * len(decoding.contexts)
    contexts = [c for c, n in zip(decoding.contexts, counts, strict=True) for _ in range(n)]
    if len(contexts) == len(decoding.contexts):
        return trace
    passes = []
    for number, p in enumerate(q for q in trace.passes if q.phase == "decode" and not q.model):
        spans = group([(1, c + number) for c in contexts])
        passes.append(context.builder.build_pass(p.name, "decode", spans, latent_form="absorbed", repeat=p.repeat))
    return instead_of_decoding(trace, passes, max(trace.batch, len(contexts)))


def _blocks(trace: Trace, params: Loop, context: Context) -> Trace:
    decoding = decoding_of(trace, f"loop over {params.over}")
    total = decoding.steps
    check_room(context.builder, max(decoding.contexts) + total, f"loop over {params.over}")
    sizes = (params.block,) if isinstance(params.block, int) else params.block
    stream = Stream(context.seed, "sweeps")
    passes: list[Pass] = []
    done = spent = number = 0
    while done < total:
        size = min(sizes[number % len(sizes)], total - done)
        if params.tokens_per_pass is not None:
            # Counted over all blocks, so that the mean holds although passes are whole.
            times = max(ceil((done + size) / exact(params.tokens_per_pass)) - spent, 1)
        elif params.shares is not None:
            times = min(stream.choices(params.shares, 1)[0] + 1, size)
        else:
            assert params.count is not None
            times = min(params.count, size) if params.over == "sweeps" else params.count
        spent += times
        passes.extend(_block_passes(params, context, decoding.contexts, total, (number, done, size, times)))
        done += size
        number += 1
    return instead_of_decoding(trace, passes)


def _block_passes(
    params: Loop, context: Context, contexts: tuple[int, ...], total: int, at: tuple[int, int, int, int]
) -> list[Pass]:
    """The passes of one block of `size` positions, `done` after the context, made in `times` passes."""
    number, done, size, times = at
    build, requests = context.builder.build_pass, len(contexts)
    name, phase = f"{params.over}.{number}", "denoise" if params.over == "denoise" else "decode"

    def both_ways(p: Pass) -> Pass:
        return map_attention(p, lambda op: remask(op, FULL) if mask_of(op) == CAUSAL else op)

    def run(label: str, spans: list[RequestSpan], repeat: int, causal: bool) -> Pass:
        made = build(label, phase, spans, size * requests, "absorbed", repeat)
        return replace(made if causal else both_ways(made), generated=0)

    part = group([(size, c + done) for c in contexts])
    whole = group([(c + total, 0) for c in contexts])
    found: list[Pass] = []
    if params.over == "sweeps" or params.cache == "prefix":
        found.append(run(name, part, times, params.over == "sweeps"))
    elif params.cache == "none":
        found.append(run(name, whole, times, False))
    else:
        fresh = ceil(times / params.refresh)
        found.append(run(f"{name}.refresh", whole, fresh, False))
        if times > fresh:
            rest = group([(size, c + total - size) for c in contexts])
            found.append(run(name, rest, times - fresh, False))
    if params.commit:
        made = build(f"{name}.commit", phase, part, 0, "absorbed")
        found.append(replace(made, generated=0))
    # The block is known after its last pass; that one alone yields its tokens.
    last = found[-1]
    yielding = replace(last, repeat=1, generated=size * requests)
    return [*found[:-1], *([replace(last, repeat=last.repeat - 1)] if last.repeat > 1 else []), yielding]


def _steps(trace: Trace, where: Where, count: int) -> Trace:
    if not any(p.phase == "denoise" for p in trace.passes):
        raise ConfigError("needs denoising steps of a diffusion model, but the trace has none", key="loop.over")
    kept = [p for p in trace.passes if p.phase != "denoise" or not where.takes_pass(p)]
    first = next(p for p in trace.passes if p.phase == "denoise" and where.takes_pass(p))
    at = trace.passes.index(first)
    return replace(trace, passes=(*kept[:at], replace(first, repeat=count), *kept[at:]))


def repeat_layers(trace: Trace, where: Where, count: int) -> Trace:
    """Run the layers `where.layers`, which must stand in a row, `count` times with the same weights; each time they
    have cache entries of their own.
    """
    if count == 1:
        return trace

    def edited(p: Pass) -> Pass:
        chosen = sorted(where.numbers(layer_count(p)))
        low, high = chosen[0], chosen[-1] + 1
        if chosen != list(range(low, high)):
            raise ConfigError("layers that loop must stand in a row", key="where.layers")
        before: list[Block] = []
        core: list[Block] = []
        after: list[Block] = []
        for block in p.blocks:
            if block.first_layer is None:
                (after if core else before).append(block)
                continue
            for part in cut(block, (low, high)):
                held = layers_of(part)
                inside = [n for n in held if low <= n < high]
                if inside and len(inside) < len(held):
                    raise ConfigError(
                        f"cut a group of {len(part.prefixes)} different layers in two; loop over whole groups of "
                        f"{len(part.prefixes)}, counted from {held[0]}",
                        key="where.layers",
                    )
                (core if inside else after if core else before).append(part)
        return replace(p, blocks=unique_names([*before, *(b for _ in range(count) for b in core), *after]))

    return map_passes(number_layers(trace), where, edited)


def mean_tokens_per_pass(trace: Trace) -> Fraction:
    """Tokens that a request gets from one forward pass, over the passes of the trace's own model but prefills."""
    passes = [p for p in trace.passes if not p.model and p.phase not in ("prefill", "draft")]
    runs = sum(p.repeat for p in passes)
    requests = max((sum(s.count for s in pass_spans(p) or ()) for p in passes), default=1)
    return Fraction(sum(p.generated * p.repeat for p in passes), max(runs * requests, 1))
