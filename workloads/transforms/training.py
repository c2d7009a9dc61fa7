"""Training steps as graphs (`train`): forward, both gradients and the optimizer as nodes of their own.

A step is three passes: forward over all positions, backward through the layers in reverse, and the update. Names end
with _dx and _dw for the two gradients of a product. Variants leave the backward pass out: forward-only local losses,
forward-mode tangents, zeroth-order differences of two forward passes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from sim.config import ConfigError
from workloads.formats import storage_bytes
from workloads.names import FormatName
from workloads.schema import Schema, Size
from workloads.trace import (
    CARRIED,
    Block,
    CustomAttrs,
    ElementwiseAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    Pass,
    Role,
    Tensor,
    Trace,
)
from workloads.transforms.context import Context, pass_spans
from workloads.transforms.gradients import Gradients, is_adapter
from workloads.transforms.graph import number_layers
from workloads.transforms.rates import Density, portion
from workloads.transforms.where import RECOMPUTED, Where

Optimizer = Literal["sgd", "momentum", "adam"]
STATES: dict[Optimizer, int] = {"sgd": 0, "momentum": 1, "adam": 2}
UPDATE_VECTOR_OPS: dict[Optimizer, int] = {"sgd": 2, "momentum": 4, "adam": 12}
"""Scalar operations a weight. adam: two moments (3 each), two corrections, root, sum, quotient, step with decay."""


class Train(Schema):
    """A training step on the prompts of a prefill (or the inputs of an encode) scenario.

    backprop: forward, backward, update · local: each layer's own loss, weight gradients only, no chain, `forwards`
    passes (forward-forward: 2) · tangent: value and tangent through every operator, then the update · zeroth:
    `forwards` perturbed forward passes, the weights perturbed and restored by vector operations.

    `trainable` limits weight gradients and updates to a share of each matrix (selected heads and channels) or to
    adapters (weights made by `factor` lora, named _a and _b); `sample_input` and `sample_weight` are shares of the rows
    that the gradient products use; `recompute` runs layers forward once more before their backward.
    """

    mode: Literal["backprop", "local", "tangent", "zeroth"] = "backprop"
    forwards: Size = 1
    optimizer: Optimizer = "adam"
    trainable: Density | Literal["adapters"] = 1.0
    frozen: bool = Field(False, description="Selected weights (where) are frozen: gradients pass through them only.")
    states: FormatName = "fp32"
    master: FormatName | None = Field(
        "fp32", description="Format of the copy that is updated; null: the weights are it."
    )
    gradients: FormatName | None = Field(None, description="Format of gradients; default: that of activations.")
    sample_input: Density = 1.0
    sample_weight: Density = 1.0
    recompute: Literal["none", "attention", "layer"] = "none"
    where: Where = Where()

    @model_validator(mode="after")
    def _fits(self) -> Train:
        if self.mode == "zeroth" and self.forwards < 2 and "forwards" in self.model_fields_set:
            raise ValueError("a zeroth-order step needs at least two forwards")
        if self.mode in ("zeroth", "tangent") and (self.sample_input < 1 or self.sample_weight < 1):
            raise ValueError(f"mode {self.mode} has no gradient products to sample")
        if self.mode != "backprop" and self.recompute != "none":
            raise ValueError(f"mode {self.mode} stores no activations, so recompute has no place")
        return self


def forward_step(trace: Trace, params: Train, context: Context) -> Trace:
    """The trace with its prefill or encode passes as one forward pass over all positions, head included, without
    caches. Raises ConfigError for a scenario of another phase.
    """
    passes = [p for p in trace.passes if not p.model]
    spans = pass_spans(passes[0]) if passes else None
    if len(passes) != 1 or spans is None or passes[0].phase not in ("prefill", "encode", "denoise"):
        raise ConfigError(
            "needs one prefill, encode or denoise pass to train on; the passes are "
            + ", ".join(f"{p.name} ({p.phase})" for p in trace.passes[:6]),
            key="train",
        )
    rows = sum(s.tokens for s in spans)
    built = context.builder.build_pass("forward", "forward", spans, rows, "expanded")
    return replace(trace, passes=(replace(_without_cache(built), generated=0, repeat=1),))


def _without_cache(p: Pass) -> Pass:
    """Keys and values as activations: nothing is decoded afterwards."""
    blocks = []
    for block in p.blocks:
        ops = []
        for op in block.ops:
            if isinstance(op.attrs, MoveAttrs) and op.attrs.table == "kv_append":
                sources = {o.name: i for o, i in zip(op.outputs, op.inputs, strict=False)}
                continue
            if any(t.role is Role.KV for t in op.inputs):
                inputs = tuple(_uncached(t, sources) if t.role is Role.KV else t for t in op.inputs)
                op = replace(op, inputs=inputs)
            ops.append(op)
        blocks.append(replace(block, ops=tuple(ops)))
    return replace(p, blocks=tuple(blocks))


def _uncached(tensor: Tensor, sources: dict[str, Tensor]) -> Tensor:
    source = sources.get(tensor.name)
    name, form = (source.name, source.format) if source is not None else (tensor.name, tensor.format)
    return replace(tensor, name=name, format=form, role=Role.ACTIVATION, whole=None)


def train(trace: Trace, params: Train, context: Context) -> Trace:
    """Add what follows the forward pass.

    Closed form (backprop, all trainable): each product with a weight costs its forward work twice more, attention 2.5
    times (scores again, and four gradient products), the update `UPDATE_VECTOR_OPS` a weight and, a weight, gradient,
    master and states read, master, states and weight written.
    """
    trace = number_layers(trace)
    forward = trace.passes[0]
    weights = _weights(trace)
    if params.mode in ("zeroth", "tangent"):
        return _without_backward(trace, forward, params, weights)
    if params.mode == "local":
        runs = replace(forward, repeat=params.forwards)
        local = _backward(forward, params, chain=False)
        return replace(trace, passes=(runs, replace(local, repeat=params.forwards), _update(trace, params, weights)))
    return replace(trace, passes=(forward, _backward(forward, params, chain=True), _update(trace, params, weights)))


def _weights(trace: Trace) -> list[tuple[Tensor, int]]:
    """Weights of the trace's own model with how many copies there are of each."""
    return [(tensor, times) for (model, _), (tensor, times) in trace._weights().items() if model == trace.model]


def _trained(weights: list[tuple[Tensor, int]], params: Train) -> list[tuple[Tensor, int]]:
    """The part of each weight that is updated."""
    found = []
    for tensor, times in weights:
        size = tensor.resident_elements
        if params.trainable == "adapters":
            if not is_adapter(tensor):
                continue
        elif params.trainable < 1:
            size = portion(size, params.trainable)
        if params.frozen and any(part in tensor.name for part in params.where.operators or ()):
            continue
        if size:
            found.append((replace(tensor, shape=(size,), whole=None), times))
    return found


def _update(trace: Trace, params: Train, weights: list[tuple[Tensor, int]]) -> Pass:
    """One operator that updates all trained weights, element by element."""
    trained = _trained(weights, params)
    if not trained:
        raise ConfigError(
            "trains nothing: there are no weights of the kind that trainable names", key="train.trainable"
        )
    elements = sum(t.elements * times for t, times in trained)
    grad = params.gradients or dict(trace.meta).get("format.activations", "fp16")
    weight_bytes = sum(t.bytes * times for t, times in trained)
    state = STATES[params.optimizer] * storage_bytes((elements,), params.states)
    master = storage_bytes((elements,), params.master) if params.master else weight_bytes
    written = weight_bytes if params.master else 0
    # Block-wise states of 8 bits are dequantised and quantised again: a product, and a product, a clamp and a rounding.
    extra = 4 * STATES[params.optimizer] if params.states in ("int8", "fp8_e4m3", "fp8_e5m2") else 0
    attrs = CustomAttrs(
        0, elements * (UPDATE_VECTOR_OPS[params.optimizer] + extra),
        storage_bytes((elements,), str(grad)) + state + master, state + master + written, "vector",
    )  # fmt: skip
    gradient = Tensor("all_gradients", (elements,), str(grad), Role.GRADIENT)
    inputs = [gradient]
    if STATES[params.optimizer]:
        inputs.append(Tensor("optimizer_states", (STATES[params.optimizer], elements), params.states, Role.OPTIMIZER))
    if params.master:
        inputs.append(Tensor("master_weights", (elements,), params.master, Role.OPTIMIZER))
    op = Op("update", OpKind.CUSTOM, "optimizer", tuple(inputs), (), attrs)
    return Pass("update", "update", (Block("update", 1, (op,)),), 0)


def _without_backward(trace: Trace, forward: Pass, params: Train, weights: list[tuple[Tensor, int]]) -> Trace:
    if params.mode == "tangent":
        blocks = tuple(replace(b, ops=tuple(o for op in b.ops for o in _tangent(op))) for b in forward.blocks)
        return replace(trace, passes=(replace(forward, blocks=blocks), _update(trace, params, weights)))
    times = params.forwards if "forwards" in params.model_fields_set else 2
    trained = _trained(weights, params)
    elements = sum(t.elements * n for t, n in trained)
    size = sum(t.bytes * n for t, n in trained)
    # Before each forward pass every weight moves along a random direction, drawn anew from a seed: a draw, a product, a
    # sum; the update along it does the same.
    perturb = CustomAttrs(0, 3 * elements, size, size, "vector")
    moves = [
        Pass(
            f"perturb.{i}",
            "update",
            (Block("perturb", 1, (Op("perturb", OpKind.CUSTOM, "optimizer", (), (), perturb),)),),
            0,
        )
        for i in range(times)
    ]
    update = Pass(
        "update", "update", (Block("update", 1, (Op("update", OpKind.CUSTOM, "optimizer", (), (), perturb),)),), 0
    )
    passes = [q for i in range(times) for q in (moves[i], replace(forward, name=f"forward.{i}"))]
    return replace(trace, passes=(*passes, update))


def _tangent(op: Op) -> tuple[Op, ...]:
    """Value and tangent of an operator. The tangent of a product with a weight is two: of the input, and of the weight
    along its direction; other operators run once more.
    """
    if op.kind in (OpKind.SCATTER, OpKind.COLLECTIVE, OpKind.TRANSFER) or op.outputs[0].role is Role.INDEX:
        return (op,)

    def dual(tensor: Tensor) -> Tensor:
        return replace(tensor, name=f"{tensor.name}_t") if tensor.role is Role.ACTIVATION else tensor

    outputs = tuple(dual(t) for t in op.outputs)
    moved = replace(op, name=f"{op.name}_t", inputs=tuple(map(dual, op.inputs)), outputs=outputs)
    if isinstance(op.attrs, MatmulAttrs) and op.inputs[1].role is Role.WEIGHT:
        direction = replace(op.inputs[1], name=f"{op.inputs[1].name}.direction", role=Role.GRADIENT)
        part = replace(outputs[0], name=f"{op.outputs[0].name}_tw")
        along = replace(op, name=f"{op.name}_tw", inputs=(op.inputs[0], direction), outputs=(part,))
        whole = replace(outputs[0], name=f"{op.outputs[0].name}_ti")
        both = Op(
            f"{op.name}_tadd",
            OpKind.ELEMENTWISE,
            op.role,
            (whole, part),
            outputs,
            ElementwiseAttrs("add", part.elements),
        )
        return op, replace(moved, outputs=(whole,)), along, both
    return op, moved


def _backward(forward: Pass, params: Train, chain: bool) -> Pass:
    """Blocks in reverse order, operators in reverse order, each turned into its gradients."""
    blocks: list[Block] = []
    for block in reversed(forward.blocks):
        maker = Gradients(params, block, chain, forward.tokens)
        ops: list[Op] = []
        if params.recompute != "none" and block.first_layer is not None:
            roles = None if params.recompute == "layer" else ("attention",)
            again = [op for op in block.ops if roles is None or op.kind is OpKind.ATTENTION]
            ops.extend(_again(again))
            maker.made_again = {t.name for op in again for t in op.outputs}
        for op in reversed(block.ops):
            ops.extend(maker.of(op))
        if ops and block.first_layer is not None and not any(t.name == CARRIED for o in ops for t in o.outputs):
            ops.append(maker.pass_on(block.ops))
        if ops:
            blocks.append(replace(block, name=f"{block.name}.backward", ops=tuple(ops)))
    return Pass("backward", "backward", tuple(blocks), forward.tokens)


def _again(ops: list[Op]) -> list[Op]:
    """The operators once more, on what was saved; their results take the place of saved ones."""
    made: set[str] = set()
    found = []
    for op in ops:
        inputs = tuple(
            replace(t, name=f"again.{t.name}" if t.name in made else f"saved.{t.name}")
            if t.role is Role.ACTIVATION
            else t
            for t in op.inputs
        )
        outputs = tuple(replace(t, name=f"again.{t.name}") for t in op.outputs)
        made.update(t.name for t in op.outputs)
        found.append(replace(op, name=op.name + RECOMPUTED, inputs=inputs, outputs=outputs))
    return found


def saved_bytes(trace: Trace) -> int:
    """Bytes of activations that the forward pass must keep for the backward pass: all that it reads as `saved.`."""
    total = 0
    for p in trace.passes:
        if p.phase == "backward":
            for block in p.blocks:
                total += block.repeat * sum(t.bytes for t in saved_tensors(block))
    return total


def saved_tensors(block: Block) -> tuple[Tensor, ...]:
    """What a block of a backward pass reads of the forward pass, each buffer once, as much of it as is read at most."""
    found: dict[str, Tensor] = {}
    for op in block.ops:
        for tensor in op.inputs:
            if tensor.name.startswith("saved.") and (
                tensor.name not in found or found[tensor.name].bytes < tensor.bytes
            ):
                found[tensor.name] = tensor
    return tuple(found.values())
