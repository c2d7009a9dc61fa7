"""What a primitive may know besides the Trace: the model, how to build more passes, and the seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from sim.config import ConfigError
from workloads.build import Builder
from workloads.emit import FormatChoice
from workloads.models import Model
from workloads.trace import AttentionAttrs, Block, Op, OpKind, Pass, RequestSpan, Trace


@dataclass(frozen=True, slots=True)
class Context:
    """The workload around a trace. `load` finds a model by name or path, as the scenario's key `model` does."""

    builder: Builder
    seed: int
    load: Callable[[str], Model]
    builders: dict[tuple[str, FormatChoice], Builder] = field(default_factory=dict, compare=False)

    @property
    def model(self) -> Model:
        return self.builder.model

    def other(self, name: str, formats: FormatChoice, key: str) -> Builder:
        """Builder of another model. Raises ConfigError, at `key`, for one that does not ship."""
        if (name, formats) not in self.builders:
            try:
                self.builders[(name, formats)] = Builder(self.load(name), formats)
            except ConfigError as error:
                raise error if error.file else ConfigError(error.message, key=key) from None
        return self.builders[(name, formats)]


@dataclass(frozen=True, slots=True)
class Decoding:
    """What the decode passes of a trace do: cached positions of each request before the first, and tokens to make."""

    contexts: tuple[int, ...]
    steps: int


def decoding_of(trace: Trace, what: str) -> Decoding:
    """Read off the decode passes of a trace. Raises ConfigError if it has none, or not one token a request a pass."""
    passes = [p for p in trace.passes if p.phase == "decode" and not p.model]
    if not passes:
        phases = ", ".join(dict.fromkeys(p.phase for p in trace.passes))
        raise ConfigError(f"needs decode steps to work on, but {what} finds only passes of phase {phases}")
    spans = pass_spans(passes[0])
    if spans is None or any(s.query != 1 for s in spans):
        raise ConfigError(f"needs plain decode steps, but pass {passes[0].name} is changed already")
    contexts = tuple(s.past for s in spans for _ in range(s.count))
    return Decoding(contexts, sum(p.repeat for p in passes))


def instead_of_decoding(trace: Trace, passes: Sequence[Pass], batch: int | None = None) -> Trace:
    """The trace with other passes in the place of its decode steps."""
    first = next(i for i, p in enumerate(trace.passes) if p.phase == "decode" and not p.model)
    rest = [p for p in trace.passes if p.phase != "decode" or p.model]
    return replace(trace, passes=(*rest[:first], *passes, *rest[first:]), batch=batch or trace.batch)


def pass_spans(p: Pass) -> tuple[RequestSpan, ...] | None:
    """The requests that a pass works on, read off its first attention operator."""
    for block in p.blocks:
        for op in block.ops:
            if isinstance(op.attrs, AttentionAttrs):
                return op.attrs.requests
    return None


def group(pairs: Sequence[tuple[int, int]]) -> list[RequestSpan]:
    """Spans of requests given as (query, past), those alike together, in order of first appearance."""
    counts: dict[tuple[int, int], int] = {}
    for pair in pairs:
        counts[pair] = counts.get(pair, 0) + 1
    return [RequestSpan(count, query, past) for (query, past), count in counts.items()]


def check_room(builder: Builder, needed: int, what: str) -> None:
    """Raise ConfigError if a model has fewer positions than `needed`."""
    if needed > builder.model.max_position:
        raise ConfigError(
            f"{what} needs {needed} positions, but {builder.model.name} has max_position {builder.model.max_position}"
        )


def map_attention(p: Pass, edit: Callable[[Op], Op]) -> Pass:
    """The pass with every attention operator edited."""
    blocks: list[Block] = []
    for block in p.blocks:
        if any(op.kind is OpKind.ATTENTION for op in block.ops):
            block = replace(block, ops=tuple(edit(op) if op.kind is OpKind.ATTENTION else op for op in block.ops))
        blocks.append(block)
    return replace(p, blocks=tuple(blocks))
