"""Mixtures of experts: routing with a skew, zero-computation and shared experts, dense layers turned into experts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.config import ConfigError
from workloads.emit import Emitter, FormatChoice
from workloads.ffn import balanced_loads, emit_experts
from workloads.models import Moe
from workloads.schema import Count, Schema, Size
from workloads.trace import MatmulAttrs, Op, OpKind, Role, Trace
from workloads.transforms.context import Context
from workloads.transforms.draws import Stream
from workloads.transforms.graph import Edited, Site, edit_layers, half, tokens_of, weights_of
from workloads.transforms.rates import Rate, portion
from workloads.transforms.structure import inner_width
from workloads.transforms.where import Where

ExpertActivation = Literal["relu", "gelu", "silu", "swiglu", "geglu", "swiglu_clamped"]


class Route(Schema):
    """Route the feed-forward halves of the selected layers.

    A dense half becomes `experts` of `hidden` neurons (default: its own neurons shared out evenly, so that all experts
    together hold its weights); a half with experts keeps them, and what is stated here is changed. Loads follow a Zipf
    law of exponent `skew` over the experts (0: balanced), as expected or as drawn.
    """

    experts: Size | None = Field(
        None, description="Number of experts; default: the layer's own (a dense one has none)."
    )
    top_k: Size | None = Field(None, description="Experts a token; default: the layer's own.")
    hidden: Size | None = Field(None, description="Neurons of an expert.")
    shared_hidden: Count | None = Field(None, description="Neurons of the expert that every token takes.")
    granularity: Size = Field(1, description="Split each expert in so many, and route to so many times as many.")
    zero_experts: Count = Field(0, description="Further experts that cost nothing (zero, copy, constant).")
    zero_share: Rate | None = Field(
        None, description="Share of choices that they get; default: their share of experts."
    )
    skew: Annotated[float, Field(ge=0)] = 0.0
    draw: Literal["mean", "sampled"] = "mean"
    position: Literal["ffn", "before_attention"] = Field("ffn", description="Where the router stands.")
    where: Where = Where()

    @model_validator(mode="after")
    def _fits(self) -> Route:
        if self.zero_share is not None and not self.zero_experts:
            raise ValueError("zero_share needs zero_experts, which get it")
        if self.experts is not None and self.top_k is not None and self.top_k > self.experts + self.zero_experts:
            raise ValueError(f"top_k ({self.top_k}) must not exceed the experts ({self.experts + self.zero_experts})")
        return self


def route(trace: Trace, params: Route, context: Context) -> Trace:
    """Closed form: matrix work of the experts is 2 x choices x weights of one expert, choices = tokens x top_k less
    those of zero experts; a dense half turned into experts keeps experts x hidden = its neurons unless stated.
    """

    def edit(ops: tuple[Op, ...], site: Site) -> Edited:
        part = half(ops, "ffn")
        if part is None:
            return Edited(ops)
        body = ops[part.start : part.stop]
        before = _known(body)
        if before is None and params.experts == 1 and params.top_k in (None, 1) and not params.zero_experts:
            return Edited(ops)  # one expert that every token takes is the dense half itself
        moe = _moe(params, before, ops, part)
        tokens = tokens_of(ops)
        loads = expert_loads_for(params, moe, tokens, context.seed, site)
        found, router = _emit(body, moe, loads, params.zero_experts, site.prefix)
        used = {t.name for t in weights_of((*router, *found))}
        idle = () if before is None else tuple(t for t in weights_of(body) if t.name not in used and not loads)
        if params.position == "before_attention" and router:
            first = half(ops, "attention")
            if first is not None and first.start < part.start:
                return Edited(
                    (
                        *ops[: first.start + 1],
                        *_fed_by(router, ops[first.start]),
                        *ops[first.start + 1 : part.start],
                        *found,
                        *ops[part.stop :],
                    ),
                    idle,
                )
        # The router reads what the experts read: the norm's result, or its modulation where there is one.
        lead = next(i for i, op in enumerate(found) if op.role != "norm")
        return Edited((*ops[: part.start], *found[:lead], *router, *found[lead:], *ops[part.stop :]), idle)

    return edit_layers(trace, params.where, edit, per_pass=params.draw == "sampled")


def _fed_by(router: tuple[Op, ...], norm: Op) -> tuple[Op, ...]:
    """The router on the result of another norm."""
    x = norm.outputs[0]
    first = router[0]
    return (replace(first, inputs=(replace(first.inputs[0], name=x.name), *first.inputs[1:])), *router[1:])


def _known(body: tuple[Op, ...]) -> Moe | None:
    """The experts of a half, read off its operators; None for a dense one."""
    products = [op for op in body if isinstance(op.attrs, MatmulAttrs) and op.attrs.group_m is not None]
    if not products:
        return None
    down = products[-1]
    weight = down.inputs[1]
    count, hidden, _ = weight.whole or weight.shape
    gates = next(op for op in body if op.name.endswith("topk"))
    activation = next(
        op for op in body if op.name.rpartition(".")[2].startswith("expert_") and op.kind is OpKind.ELEMENTWISE
    )
    shared = next((op for op in body if op.name.endswith("shared_down")), None)
    return Moe(
        experts=count,
        top_k=gates.outputs[0].shape[-1],
        hidden=hidden,
        activation=activation.name.rpartition(".")[2].removeprefix("expert_"),  # type: ignore[arg-type]
        shared_hidden=shared.attrs.k if shared is not None and isinstance(shared.attrs, MatmulAttrs) else 0,
        bias=len(down.inputs) > 2,
        scoring="sigmoid" if any(op.name.endswith("router_sigmoid") for op in body) else "softmax",
    )


def _moe(params: Route, before: Moe | None, ops: tuple[Op, ...], part: object) -> Moe:
    """The experts that the parameters ask for."""
    if before is None:
        dense = half(ops, "ffn")
        assert dense is not None
        neurons = inner_width(ops, dense)
        if params.experts is None or params.top_k is None:
            raise ConfigError("a dense layer needs experts and top_k to be routed", key="experts")
        body = ops[dense.start : dense.stop]
        act = next(op for op in body if op.kind is OpKind.ELEMENTWISE and op.role == "ffn")
        down = next(op for op in reversed(body) if isinstance(op.attrs, MatmulAttrs))
        left = neurons - (params.shared_hidden or 0)
        hidden = params.hidden or left // params.experts
        if params.hidden is None and (left < params.experts or left % params.experts):
            raise ConfigError(
                f"is {params.experts}, but {left} neurons cannot be shared out evenly; state hidden", key="experts"
            )
        before = Moe(
            experts=params.experts, top_k=1, hidden=hidden, bias=len(down.inputs) > 2,
            activation=act.name.rpartition(".")[2],  # type: ignore[arg-type]
        )  # fmt: skip
    g = params.granularity
    experts, hidden = params.experts or before.experts, params.hidden or before.hidden
    if hidden % g:
        raise ConfigError(f"is {g}, which does not divide the {hidden} neurons of an expert", key="granularity")
    top_k = (params.top_k or before.top_k) * g
    if top_k > experts * g + params.zero_experts:
        raise ConfigError(f"is {top_k}, but there are {experts * g + params.zero_experts} experts", key="top_k")
    shared = before.shared_hidden if params.shared_hidden is None else params.shared_hidden
    return Moe.model_construct(
        **{
            **before.model_dump(),
            "experts": experts * g,
            "top_k": top_k,
            "hidden": hidden // g,
            "shared_hidden": shared,
        }
    )


def expert_loads_for(params: Route, moe: Moe, tokens: int, seed: int, site: Site) -> tuple[int, ...]:
    """Rows of each expert that is hit, largest first."""
    choices = tokens * moe.top_k
    if params.zero_experts:
        everyone = moe.experts + params.zero_experts
        share = params.zero_share if params.zero_share is not None else params.zero_experts / everyone
        choices -= portion(choices, round(share, 12))
    if choices == 0:
        return ()
    if params.draw == "mean" and params.skew == 0:
        return balanced_loads(choices, moe.experts)
    weights = [(rank + 1) ** -params.skew for rank in range(moe.experts)]
    # No expert can be chosen twice by a token.
    most = tokens
    if params.draw == "mean":
        counts = _apportion(choices, weights, most)
    else:
        stream = Stream(seed, "route", site.work.name, site.layers[0])
        counts = _drawn(stream, weights, choices, most)
    return tuple(sorted((n for n in counts if n), reverse=True))


def _apportion(choices: int, weights: list[float], most: int) -> list[int]:
    """`choices` shared out by `weights`, at most `most` each, by largest remainders."""
    left, open_ = choices, list(range(len(weights)))
    counts = [0] * len(weights)
    while left and open_:
        total = sum(Fraction(weights[i]) for i in open_)
        ideal = {i: left * Fraction(weights[i]) / total for i in open_}
        full = [i for i in open_ if counts[i] + ideal[i] >= most]
        if full:
            for i in full:
                left -= most - counts[i]
                counts[i] = most
            open_ = [i for i in open_ if i not in full]
            continue
        for i in open_:
            counts[i] += int(ideal[i])
        left -= sum(int(ideal[i]) for i in open_)
        for i in sorted(open_, key=lambda i: (int(ideal[i]) - ideal[i], i))[:left]:
            counts[i] += 1
        left = 0
    return counts


def _drawn(stream: Stream, weights: list[float], choices: int, most: int) -> list[int]:
    """`choices` draws by `weights`; what exceeds `most` a expert goes to the least loaded."""
    counts = [0] * len(weights)
    for expert in stream.choices(weights, choices):
        counts[expert] += 1
    over = sum(max(n - most, 0) for n in counts)
    counts = [min(n, most) for n in counts]
    while over:
        least = min(range(len(counts)), key=lambda i: (counts[i], i))
        counts[least] += 1
        over -= 1
    return counts


def _emit(
    body: tuple[Op, ...], moe: Moe, loads: tuple[int, ...], free: int, prefix: str
) -> tuple[tuple[Op, ...], tuple[Op, ...]]:
    """The half with experts: (norm, experts and what follows them), and the router's operators apart."""
    fed = next(op for op in body if op.role in ("ffn", "router") and op.kind is OpKind.MATMUL)
    x = next(t for t in fed.inputs if t.role is Role.ACTIVATION)
    lead = list(body[: body.index(fed)])
    tail = [op for op in body if op.role not in ("ffn", "router") and body.index(op) > body.index(fed)]
    weight = next(t for op in body if op.role == "ffn" for t in op.inputs if t.role is Role.WEIGHT)
    formats = FormatChoice(weights=weight.format, experts=weight.format, activations=x.format)
    name = next(op.name for op in body if any(t is weight for t in op.inputs)).removeprefix(prefix)
    owner = weight.name.removesuffix(f"{name}.weight").removesuffix(f"{name}.bias").removesuffix(prefix)
    e = Emitter(owner.rstrip("."), formats, prefix)
    emit_experts(e, moe, x, loads or (1,), free)
    ops = e.ops
    if not loads:
        raise ConfigError("leaves no choice for an expert that computes; zero_share is too high", key="zero_share")
    router = tuple(op for op in ops if op.role == "router")
    rest = tuple(op for op in ops if op.role != "router")
    return (*lead, *rest, *tail), router


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """Rows of the experts of one operator: how many experts are hit, and how uneven they are."""

    pass_name: str
    block: str
    operator: str
    experts: int
    hit: int
    rows: int
    largest: int

    @property
    def imbalance(self) -> float:
        """Largest load over the mean load of all experts."""
        return self.largest * self.experts / self.rows


def expert_loads(trace: Trace) -> list[ExpertLoad]:
    """The loads of every grouped product of a trace, one entry a pass, block and operator."""
    found = []
    for p in trace.passes:
        for block in p.blocks:
            for op in block.ops:
                loads = op.attrs.group_m if isinstance(op.attrs, MatmulAttrs) else None
                if loads is not None:
                    weight = next(t for t in op.inputs if t.role is Role.WEIGHT)
                    count = (weight.whole or weight.shape)[0]
                    found.append(ExpertLoad(p.name, block.name, op.name, count, len(loads), sum(loads), max(loads)))
    return found


def load_facts(trace: Trace) -> dict[str, int]:
    """Facts for a trace's meta: how many experts the layers hit on average and how much the busiest of them gets."""
    loads = expert_loads(trace)
    if not loads:
        return {}
    return {"experts.largest_load": max(x.largest for x in loads), "experts.fewest_hit": min(x.hit for x in loads)}
