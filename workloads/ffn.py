"""The feed-forward half of a layer as operators: dense, gated, or a mixture of experts with shared ones.

Experts work as one grouped product over those that are hit. Routing is balanced and deterministic: the tokens'
choices are spread over the experts as evenly as whole tokens allow.
"""

from __future__ import annotations

from workloads.emit import Emitter
from workloads.formats import storage_bytes
from workloads.models import GATED, LayerKind, Model, Moe
from workloads.trace import CollectiveAttrs, ElementwiseAttrs, MatmulAttrs, MoveAttrs, OpKind, ReduceAttrs, Role, Tensor

ROLE = "ffn"
INDEX_FORMAT = "int32"


def balanced_loads(choices: int, experts: int) -> tuple[int, ...]:
    """Rows of each expert that is hit, when `choices` rows are spread evenly over `experts`; largest first."""
    each, rest = divmod(choices, experts)
    return (each + 1,) * rest + (each,) * (experts - rest if each else 0)


def emit_ffn(e: Emitter, model: Model, kind: LayerKind, x: Tensor, spread: int = 1) -> Tensor:
    """Operators from the normalised input x (tokens, hidden) to the half layer's result, of the same shape.

    spread: devices that share the experts.
    """
    if kind.moe:
        assert model.moe is not None
        return emit_experts(e, model.moe, x, spread=spread)
    assert model.ffn is not None
    return _dense(e, model.ffn.hidden, model.ffn.activation, model.ffn.bias, x)


def _dense(e: Emitter, width: int, activation: str, bias: bool, x: Tensor, prefix: str = "") -> Tensor:
    tokens, hidden = x.shape
    if activation in GATED:
        inner = e.linear(f"{prefix}gate_up", ROLE, x, 2 * width, f"{prefix}gate_up", bias)
    else:
        inner = e.linear(f"{prefix}up", ROLE, x, width, f"{prefix}up", bias)
    act = e.activation(f"{prefix}act", tokens, width)
    e.elementwise(f"{prefix}{activation}", ROLE, activation, (inner,), act)
    return e.linear(f"{prefix}down", ROLE, act, hidden, f"{prefix}ffn_out", bias)


def emit_experts(
    e: Emitter, moe: Moe, x: Tensor, loads: tuple[int, ...] | None = None, free: int = 0, spread: int = 1
) -> Tensor:
    """Router, experts and shared expert on x (tokens, hidden), with `loads` rows for each expert that is hit (default:
    balanced).

    `free` further experts cost nothing (zero, copy): the router scores them, and choices that `loads` leaves out are
    theirs. `spread` devices with as many tokens each share the experts: rows go to where their expert is and come back,
    a row for each choice, and the device has every `spread`-th expert from the most loaded on.
    """
    tokens, hidden = x.shape
    if loads is None:
        loads = balanced_loads(tokens * moe.top_k * spread, moe.experts)[::spread]
    choices, hit, scored_experts = sum(loads), len(loads), moe.experts + free
    held = moe.experts // spread
    sent = tokens * moe.top_k if spread > 1 else choices

    scores = e.linear("router", "router", x, scored_experts, "router", moe.router_bias)
    if moe.scoring == "softmax":
        scored = e.activation("scores", tokens, scored_experts)
        softmax = ReduceAttrs("softmax", tokens, scored_experts)
        e.emit("router_softmax", OpKind.REDUCE, "router", (scores,), (scored,), softmax)
    else:
        scored = e.elementwise(
            "router_sigmoid", "router", "sigmoid", (scores,), e.activation("scores", tokens, scored_experts)
        )
    chosen = Tensor("chosen", (tokens, moe.top_k), INDEX_FORMAT, Role.INDEX)
    gates = e.activation("gates", tokens, moe.top_k)
    best = ReduceAttrs("topk", tokens, scored_experts, keep=moe.top_k)
    e.emit("topk", OpKind.REDUCE, "router", (scored,), (gates, chosen), best)
    row_bytes = storage_bytes((hidden,), x.format)
    rows = e.activation("expert_in" if spread == 1 else "expert_sent", sent, hidden)
    e.emit("dispatch", OpKind.GATHER, ROLE, (chosen, x), (rows,), MoveAttrs("dispatch", sent, row_bytes))

    def exchanged(name: str, part: Tensor, out: str, count: int) -> Tensor:
        if spread == 1:
            return part
        result = e.activation(out, count, hidden)
        attrs = CollectiveAttrs("all_to_all", max(part.bytes, result.bytes), spread)
        e.emit(f"{name}_all_to_all", OpKind.COLLECTIVE, "collective", (part,), (result,), attrs)
        return result

    rows = exchanged("dispatch", rows, "expert_in", choices)

    def grouped(name: str, inputs: Tensor, k: int, n: int, out: str) -> Tensor:
        operands = [inputs, e.weight(f"{name}.weight", (hit, k, n), (held, k, n), "experts")]
        if moe.bias:
            operands.append(e.weight(f"{name}.bias", (hit, n), (held, n), "activations"))
        result = e.activation(out, choices, n)
        attrs = MatmulAttrs(hit, choices, k, n, group_m=loads)
        e.emit(name, OpKind.MATMUL, ROLE, tuple(operands), (result,), attrs)
        return result

    if moe.activation in GATED:
        inner = grouped("expert_gate_up", rows, hidden, 2 * moe.hidden, "expert_gate_up")
    else:
        inner = grouped("expert_up", rows, hidden, moe.hidden, "expert_up")
    act = e.activation("expert_act", choices, moe.hidden)
    attrs = ElementwiseAttrs(moe.activation, act.elements)
    e.emit(f"expert_{moe.activation}", OpKind.ELEMENTWISE, ROLE, (inner,), (act,), attrs)
    expert_out = grouped("expert_down", act, moe.hidden, hidden, "expert_out")
    expert_out = exchanged("combine", expert_out, "expert_back", sent)
    routed = e.activation("ffn_out" if not moe.shared_hidden else "routed_out", tokens, hidden)
    # Each expert's row is weighted by its gate and added to its token's row.
    move = MoveAttrs("combine", sent, row_bytes, vector_ops=2 * sent * hidden)
    e.emit("combine", OpKind.SCATTER, ROLE, (expert_out, gates, chosen), (routed,), move)
    if not moe.shared_hidden:
        return routed
    shared = _dense(e, moe.shared_hidden, moe.activation, moe.bias, x, "shared_")
    return e.add("shared_add", ROLE, routed, shared, "ffn_out")
