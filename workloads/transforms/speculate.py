"""Draft and verify: `draft` says where proposals come from and what they cost, `accept` how much of them stays.

One loop serves all of them: an iteration drafts (passes of another model, of some layers, of heads, or none), verifies
in one pass of the target, commits what is accepted and forgets the rest. Requests of a batch advance on their own, so
lengths grow ragged; one that has its tokens leaves.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from typing import Literal

from pydantic import Field, model_validator

from sim.config import ConfigError
from workloads.build import Builder
from workloads.schema import Count, Schema, Size
from workloads.trace import CAUSAL, FULL, Hint, Op, Pass, RequestSpan, Trace
from workloads.transforms.context import (
    Context,
    Decoding,
    check_room,
    decoding_of,
    group,
    instead_of_decoding,
    map_attention,
)
from workloads.transforms.draft_parts import compaction, draft_heads, exit_states, lookup, take_layers
from workloads.transforms.draws import Stream
from workloads.transforms.rates import Rate, Shares
from workloads.transforms.remask import in_tree, mask_of, remask
from workloads.transforms.where import LayerRange, Where


class Draft(Schema):
    """Where proposals come from. `length` 0 drafts nothing and leaves the decode steps as they are.

    model: another model, one pass a depth · parallel: all positions in `passes` passes, of another model or (no
    `model`) of the same weights · layers: a pass a position through some layers of the same model · heads: further
    heads on the target's last hidden state · same_pass: look-ahead positions ride in the verify pass · lookup: no
    model.
    """

    source: Literal["model", "parallel", "layers", "heads", "same_pass", "lookup"]
    model: str | None = Field(None, description="The drafting model (model, parallel).")
    length: Count | tuple[Count, ...] = Field(4, description="Units proposed; a list is taken in turn.")
    by_batch: tuple[tuple[Size, Count], ...] | None = Field(
        None, description="(requests, length): this length while at most so many requests are active; rising."
    )
    tree: tuple[Size, ...] | None = Field(None, description="Nodes at each depth; in place of length.")
    unit: Size = Field(1, description="Tokens of a unit: 1, or a reasoning step, or a block of video.")
    passes: Size = Field(1, description="Passes a proposal (parallel): denoising steps of the drafter.")
    bidirectional: bool = Field(False, description="Drafted positions see each other (parallel).")
    layers: tuple[LayerRange, ...] | None = Field(None, description="Layers that draft (layers).")
    shared: bool = Field(True, description="The verify pass goes on from the state of the drafting layers (layers).")
    head_layers: Count = Field(1, description="Square layers of a draft head before its vocabulary (heads).")
    sequential: bool = Field(False, description="A head reads the tokens drafted before it as well (heads).")
    lookup_bytes: Count = Field(0, description="Bytes that a look-up reads for a request (lookup).")
    device: str = Field("main", description="Where the draft runs.")
    overlap: bool = Field(False, description="Drafting goes on while the target verifies.")
    weights: str | None = Field(None, description="Number format of the drafting model's weights.")

    @model_validator(mode="after")
    def _fits(self) -> Draft:
        if (self.source == "model") and self.model is None:
            raise ValueError("source model needs model, the name of the drafting one")
        if self.model is not None and self.source not in ("model", "parallel"):
            raise ValueError(f"source {self.source} drafts with the target itself, so model has no place")
        if self.source == "layers" and self.layers is None:
            raise ValueError("source layers needs layers, those that draft")
        if self.tree is not None and self.source in ("parallel", "same_pass", "layers"):
            raise ValueError(f"source {self.source} proposes a chain; tree has no place")
        if self.tree is not None and (self.unit > 1 or self.by_batch is not None):
            raise ValueError("a tree proposes single tokens of a fixed shape: unit and by_batch have no place")
        if self.by_batch is not None and any(a[0] >= b[0] for a, b in pairwise(self.by_batch)):
            raise ValueError("by_batch must list rising numbers of requests")
        if isinstance(self.length, tuple) and not self.length:
            raise ValueError("length lists nothing")
        return self

    def units(self, turn: int, active: int) -> int:
        """Units (of a tree: depths) proposed to a request in iteration `turn` with `active` requests."""
        if self.tree is not None:
            return len(self.tree)
        if self.by_batch is not None:
            return next((length for limit, length in self.by_batch if active <= limit), 0)
        return self.length[turn % len(self.length)] if isinstance(self.length, tuple) else self.length


class Accept(Schema):
    """How many of the proposed units stay: by a rate a unit (one, or one for each place), by the shares of the numbers
    0, 1, 2 ..., or as recorded, in turn.

    expected: the mean, carried from iteration to iteration, instead of a draw. compact: the accepted positions of a
    tree are moved together in the cache. lockstep: all requests advance by the smallest number. rewrite: the target
    writes a rejected unit itself, token by token or, as it denoises a block, in `rewrite_passes` over all of it.
    """

    rate: Rate | tuple[Rate, ...] | None = None
    distribution: Shares | None = None
    recorded: tuple[Count, ...] | None = Field(None, min_length=1)
    draw: Literal["sampled", "expected"] = "sampled"
    rollback: Literal["free", "compact"] = "free"
    batch: Literal["ragged", "lockstep"] = "ragged"
    on_reject: Literal["token", "rewrite"] = "token"
    rewrite_passes: Size | None = Field(
        None, description="Passes over a whole unit that the target writes it in (rewrite); default: one a token."
    )

    @model_validator(mode="after")
    def _one_of(self) -> Accept:
        given = [n for n in ("rate", "distribution", "recorded") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"needs one of rate, distribution, recorded; has {' and '.join(given) or 'none'}")
        if isinstance(self.rate, tuple) and not self.rate:
            raise ValueError("rate lists nothing")
        if self.rewrite_passes is not None and self.on_reject != "rewrite":
            raise ValueError("rewrite_passes needs on_reject: rewrite")
        return self

    def shares(self, units: int) -> list[Fraction]:
        """Probability of each number 0..units of accepted units; what is beyond `units` counts as all of them."""
        if self.distribution is not None:
            exact = [Fraction(str(p)) for p in self.distribution]
            total = sum(exact, Fraction(0))
            head = exact[:units] + [Fraction(0)] * max(units - len(exact), 0)
            return [p / total for p in [*head, total - sum(head, Fraction(0))]]
        assert self.rate is not None
        rates = self.rate if isinstance(self.rate, tuple) else (self.rate,)
        found: list[Fraction] = []
        reached = Fraction(1)
        for place in range(units):
            rate = Fraction(str(rates[min(place, len(rates) - 1)]))
            found.append(reached * (1 - rate))
            reached *= rate
        found.append(reached)
        return found


def expected_accepted(accept: Accept, units: int) -> Fraction:
    """Mean number of accepted units of `units` proposed."""
    return sum((n * p for n, p in enumerate(accept.shares(units))), Fraction(0))


@dataclass(slots=True)
class _Request:
    """`length` positions are known, the last of them not yet processed by the target; `drafted` are in the draft's
    cache.
    """

    length: int
    drafted: int
    left: int
    owed: Fraction = Fraction(0)


@dataclass(slots=True)
class _Counter:
    """How many units the next request accepts."""

    accept: Accept
    stream: Stream
    used: int = 0
    shares: dict[int, list[Fraction]] = field(default_factory=dict)

    def next(self, requests: list[_Request], units: int) -> list[int]:
        accept = self.accept
        if accept.recorded is not None:
            found = [accept.recorded[(self.used + i) % len(accept.recorded)] for i in range(len(requests))]
            self.used += len(requests)
            over = next((n for n in found if n > units), None)
            if over is not None:
                raise ConfigError(f"lists {over} accepted units, but {units} are proposed", key="accept.recorded")
        else:
            if units not in self.shares:
                self.shares[units] = accept.shares(units)
            shares = self.shares[units]
            if accept.draw == "sampled":
                found = self.stream.choices([float(p) for p in shares], len(requests))
            else:
                mean = sum((n * p for n, p in enumerate(shares)), Fraction(0))
                found = []
                for request in requests:
                    request.owed += mean
                    whole = min(int(request.owed + Fraction(1, 2)), units)
                    request.owed -= whole
                    found.append(whole)
        return [min(found)] * len(found) if accept.batch == "lockstep" else found


def speculate(trace: Trace, draft: Draft, accept: Accept, context: Context) -> Trace:
    """The trace with its decode steps replaced by draft-and-verify iterations until every request has its tokens.

    Raises ConfigError where there are no decode steps, for a draft of another vocabulary, layers beyond the model, and
    positions beyond either model.
    """
    decoding = decoding_of(trace, "draft")
    if (
        draft.tree is None
        and draft.by_batch is None
        and not any((draft.length,) if isinstance(draft.length, int) else draft.length)
    ):
        return trace
    loop = _Loop(draft, accept, context, decoding)
    result = instead_of_decoding(trace, loop.run())
    hints = trace.hints
    if draft.overlap:
        hints += (Hint("overlap", (("passes", "draft verify"), ("device", draft.device))),)
    return replace(result, hints=hints)


class _Loop:
    def __init__(self, draft: Draft, accept: Accept, context: Context, decoding: Decoding) -> None:
        self.draft, self.accept, self.context = draft, accept, context
        self.target, self.decoding = context.builder, decoding
        self.drafter = self._drafter()
        self.counter = _Counter(accept, Stream(context.seed, "accept"))
        self.exit = self._exit_layers()

    def _drafter(self) -> Builder:
        draft, target = self.draft, self.target
        if draft.model is None:
            return target
        formats = target.formats
        if draft.weights is not None:
            formats = replace(formats, weights=draft.weights, experts=draft.weights, embeddings=draft.weights)
        drafter = self.context.other(draft.model, formats, "draft.model")
        if drafter.model.kind != "decoder" or drafter.model.vocab != target.model.vocab:
            raise ConfigError(
                f"is {draft.model!r} with a vocabulary of {drafter.model.vocab}, but the target {target.model.name} "
                f"has {target.model.vocab}: drafts must be tokens of the target (model: {target.model.name})",
                key="draft.model",
            )
        return drafter

    def _exit_layers(self) -> frozenset[int]:
        if self.draft.source != "layers":
            return frozenset()
        chosen = Where(layers=self.draft.layers).numbers(self.target.model.layers)
        if self.draft.shared and sorted(chosen) != list(range(len(chosen))):
            raise ConfigError(
                "a verify pass can go on from the first layers only; state `shared: false`, or layers from 0 on",
                key="draft.layers",
            )
        if self.draft.shared and len(chosen) == self.target.model.layers:
            raise ConfigError("leaves no layer to verify with", key="draft.layers")
        return chosen

    def run(self) -> list[Pass]:
        d, decoding = self.draft, self.decoding
        room = d.units(0, 1) * d.unit if d.tree is None else sum(d.tree)
        needed = max(decoding.contexts) + decoding.steps + room + 1
        check_room(self.target, needed, "speculation")
        check_room(self.drafter, needed, "drafting")
        active = [_Request(c + 1, c, decoding.steps) for c in decoding.contexts]
        passes: list[Pass] = []
        turn = 0
        while active:
            units = d.units(turn, len(active))
            if units == 0:
                passes.append(self._plain(active, turn))
                accepted = [0] * len(active)
            else:
                passes.extend(self._propose(active, turn, units))
                passes.append(self._verify(active, turn, units))
                accepted = self.counter.next(active, units)
            passes[-1] = self._commit(active, accepted, units, passes[-1])
            passes.extend(self._rewrite([r for r, n in zip(active, accepted, strict=True) if n < units], turn))
            active = [r for r in active if r.left]
            turn += 1
        return passes

    def _commit(self, active: list[_Request], accepted: list[int], units: int, verify: Pass) -> Pass:
        """Advance the requests; returns the verify pass with the tokens that it yields."""
        unit, yielded, moved = self.draft.unit, 0, 0
        cached = units * unit - 1 if self.draft.source in ("model", "layers") and self.draft.tree is None else 0
        for request, count in zip(active, accepted, strict=True):
            kept = count * unit
            tokens = min(kept + 1, request.left)
            moved += min(kept, request.left)
            request.drafted = request.length + min(cached, kept)
            request.length += tokens
            request.left -= tokens
            yielded += tokens
        verify = replace(verify, generated=yielded)
        if self.accept.rollback == "compact" and moved:
            verify = replace(verify, blocks=(*verify.blocks, *compaction(self.target.model, verify, moved)))
        return verify

    def _rewrite(self, rejected: list[_Request], turn: int) -> list[Pass]:
        """The target's own writing of rejected units, whose first token the verify pass gave."""
        passes: list[Pass] = []
        if self.accept.rewrite_passes is not None:
            return self._rewrite_at_once([r for r in rejected if r.left], turn, self.accept.rewrite_passes)
        for step in range(self.draft.unit - 1 if self.accept.on_reject == "rewrite" else 0):
            writing = [r for r in rejected if r.left]
            if not writing:
                break
            spans = group([(1, r.length - 1) for r in writing])
            passes.append(self.target.build_pass(f"rewrite.{turn}.{step}", "verify", spans, latent_form="absorbed"))
            for request in writing:
                request.length += 1
                request.left -= 1
        return passes

    def _rewrite_at_once(self, rejected: list[_Request], turn: int, times: int) -> list[Pass]:
        """As a denoiser writes: each pass runs all that is missing of the unit, its positions seeing each other; the
        last one yields them.
        """
        missing = [min(self.draft.unit - 1, r.left) for r in rejected]
        if not sum(missing):
            return []
        spans = group([(n, r.length - 1) for n, r in zip(missing, rejected, strict=True)])
        work = self.target.build_pass(f"rewrite.{turn}", "verify", spans, sum(missing), "absorbed")
        work = replace(map_attention(work, _both_ways), generated=0)
        for request, n in zip(rejected, missing, strict=True):
            request.length += n
            request.left -= n
        last = replace(work, repeat=1, generated=sum(missing))
        return [*([replace(work, repeat=times - 1)] if times > 1 else []), last]

    def _plain(self, active: list[_Request], turn: int) -> Pass:
        spans = group([(1, r.length - 1) for r in active])
        return self.target.build_pass(f"verify.{turn}", "decode", spans, latent_form="absorbed")

    def _propose(self, active: list[_Request], turn: int, units: int) -> list[Pass]:
        d = self.draft
        if d.source in ("heads", "same_pass", "lookup"):
            return []
        if d.source == "layers":
            return [self._layer_pass(active, turn, step) for step in range(units * d.unit)]
        catch_up = [(r.length - r.drafted, r.drafted) for r in active]
        if d.source == "parallel":
            more = units * d.unit - (not d.bidirectional)
            if d.model is None:
                catch_up = [(1, r.length - 1) for r in active]
            spans = group([(query + more, past) for query, past in catch_up])
            work = self._draft_pass(f"draft.{turn}", spans, units * d.unit * len(active))
            if d.bidirectional:
                work = map_attention(work, _both_ways)
            return [replace(work, repeat=d.passes)]
        passes = [self._draft_pass(f"draft.{turn}.0", group(catch_up), len(active))]
        if d.tree is not None:
            parents = _tree(d.tree)
            for depth in range(1, len(d.tree)):
                before, nodes = sum(d.tree[: depth - 1]), d.tree[depth - 1]
                spans = group([(nodes, r.length + before) for r in active])
                work = self._draft_pass(f"draft.{turn}.{depth}", spans, nodes * len(active))
                known = parents[: before + nodes]
                passes.append(_in_tree(work, known, before))
            return passes
        for step in range(1, units * d.unit):
            spans = group([(1, r.length + step - 1) for r in active])
            passes.append(self._draft_pass(f"draft.{turn}.{step}", spans, len(active)))
        return passes

    def _draft_pass(self, name: str, spans: list[RequestSpan], rows: int) -> Pass:
        model = "" if self.drafter is self.target else self.drafter.model.name
        work = self.drafter.build_pass(name, "draft", spans, min(rows, sum(s.tokens for s in spans)), "absorbed")
        return replace(work, generated=0, model=model, device=self.draft.device)

    def _layer_pass(self, active: list[_Request], turn: int, step: int) -> Pass:
        spans = group([(1, r.length - 1 + step) for r in active])
        work = self.target.build_pass(f"draft.{turn}.{step}", "draft", spans, latent_form="absorbed")
        return replace(take_layers(work, self.exit), generated=0, device=self.draft.device)

    def _verify(self, active: list[_Request], turn: int, units: int) -> Pass:
        d, target = self.draft, self.target
        proposed = units * d.unit if d.tree is None else sum(d.tree)
        extra = proposed if d.source == "same_pass" else 0
        rows = (proposed + 1 + extra) * len(active)
        spans = group([(proposed + 1 + extra, r.length - 1) for r in active])
        work = target.build_pass(f"verify.{turn}", "verify", spans, rows, "absorbed")
        if d.tree is not None:
            work = _in_tree(work, (-1, *(0 if p < 0 else p + 1 for p in _tree(d.tree))), 0)
        if d.source == "layers" and d.shared:
            last = group([(1, r.length - 1 + proposed) for r in active])
            first = target.build_pass(work.name, "verify", last, rows, "absorbed")
            rest = frozenset(range(len(self.exit), target.model.layers))
            early, late = take_layers(first, self.exit), take_layers(work, rest)
            states = exit_states(work, proposed * len(active))
            before = [b for b in early.blocks if b.name != "head"]
            after = [b for b in late.blocks if b.name != "embed"]
            work = replace(work, blocks=(*before, states, *after))
        elif d.source == "layers":
            work = take_layers(work, frozenset(range(target.model.layers)))
        if d.source == "heads":
            heads = draft_heads(target, len(active), d.units(turn, len(active)), d.head_layers, d.sequential)
            work = replace(work, blocks=(*work.blocks, *heads))
        if d.source == "lookup" and d.lookup_bytes:
            work = replace(work, blocks=(lookup(d.lookup_bytes * len(active)), *work.blocks))
        return work


def _both_ways(op: Op) -> Op:
    """A causal attention operator whose new positions see each other; others (windows) stay as they are."""
    return remask(op, FULL) if mask_of(op) == CAUSAL else op


def _in_tree(work: Pass, parents: tuple[int, ...], cached: int) -> Pass:
    try:
        return map_attention(work, lambda op: remask(op, in_tree(mask_of(op), parents, cached)))
    except ValueError as error:
        raise ConfigError(str(error), key="draft.tree") from None


def _tree(widths: tuple[int, ...]) -> tuple[int, ...]:
    """Parent of each node: nodes of a depth share the nodes of the depth before evenly; -1 at depth 0."""
    parents: list[int] = [-1] * widths[0]
    start = 0
    for above, here in pairwise(widths):
        parents.extend(start + node * above // here for node in range(here))
        start += above
    return tuple(parents)
