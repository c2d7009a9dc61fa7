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
    AttentionAttrs,
    Block,
    CustomAttrs,
    ElementwiseAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    Pass,
    ReduceAttrs,
    Role,
    Tensor,
    Trace,
)
from workloads.transforms.context import Context, pass_spans
from workloads.transforms.graph import number_layers, with_rows
from workloads.transforms.rates import Density, portion
from workloads.transforms.where import INPUT_GRADIENT, RECOMPUTED, WEIGHT_GRADIENT, Where, plain

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
            if not _adapter(tensor):
                continue
        elif params.trainable < 1:
            size = portion(size, params.trainable)
        if params.frozen and any(part in tensor.name for part in params.where.operators or ()):
            continue
        if size:
            found.append((replace(tensor, shape=(size,), whole=None), times))
    return found


def _adapter(tensor: Tensor) -> bool:
    return tensor.name.endswith(("_a.weight", "_b.weight"))


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
        maker = _Gradients(params, block, chain, forward.tokens)
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


class _Gradients:
    """Turns the operators of one block into those of their gradients."""

    def __init__(self, params: Train, block: Block, chain: bool, tokens: int) -> None:
        self.params, self.block, self.chain, self.tokens = params, block, chain, tokens
        self.made_again: set[str] = set()

    def saved(self, tensor: Tensor, op: Op) -> Tensor:
        """What the forward pass kept for `op`, or made again. The residual stream has a value for each reader."""
        if tensor.name in self.made_again:
            return replace(tensor, name=f"again.{tensor.name}", whole=None)
        reader = f".{plain(op.name)}" if tensor.name == CARRIED else ""
        return replace(tensor, name=f"saved.{tensor.name}{reader}", whole=None)

    def gradient(self, tensor: Tensor) -> Tensor:
        """The gradient of an activation; that of the residual stream is what the backward pass carries."""
        name = CARRIED if tensor.name == CARRIED else f"d_{tensor.name}"
        form = self.params.gradients or tensor.format
        return replace(tensor, name=name, format=form, sparsity=None, whole=None, role=Role.ACTIVATION)

    def of(self, op: Op) -> list[Op]:
        attrs = op.attrs
        if isinstance(attrs, MatmulAttrs):
            return self.product(op, attrs)
        if not self.chain:
            return []
        if isinstance(attrs, AttentionAttrs):
            return [self.attention(op, attrs)]
        if isinstance(attrs, ElementwiseAttrs):
            return self.elementwise(op, attrs)
        if isinstance(attrs, ReduceAttrs):
            return self.reduction(op, attrs)
        if isinstance(attrs, MoveAttrs) and attrs.table != "kv_append":
            return self.move(op, attrs)
        return []

    def pass_on(self, ops: tuple[Op, ...]) -> Op:
        """A local step hands on no gradient; the stream's buffer stays as it is."""
        x = next(t for op in ops for t in (*op.outputs, *op.inputs) if t.name == CARRIED)
        x = replace(x, whole=None)
        return Op("hand_on", OpKind.ELEMENTWISE, "residual", (x,), (x,), ElementwiseAttrs("copy", x.elements))

    def product(self, op: Op, a: MatmulAttrs) -> list[Op]:
        x, w, y = op.inputs[0], op.inputs[1], op.outputs[0]
        p, found = self.params, []
        dy = self.gradient(y)
        weight = w.role is Role.WEIGHT
        if self.chain and (x.role is Role.ACTIVATION) and plain(op.name) not in ("patch_embedding",):
            turned = replace(w, shape=(*w.shape[:-2], w.shape[-1], w.shape[-2]), whole=_turned(w.whole))
            dx = Op(
                op.name + INPUT_GRADIENT, OpKind.MATMUL, op.role, (dy, turned), (self.gradient(x),),
                replace(a, k=a.n, n=a.k),
            )  # fmt: skip
            rows = max(portion(a.m, p.sample_input), 1)
            found.append(dx if rows == a.m else with_rows(dx, a.m, rows))
        frozen = p.frozen and p.where.takes_op(op)
        adapters = p.trainable == "adapters" and not _adapter(w)
        if weight and not frozen and not adapters:
            found.extend(self.weight_gradients(op, a, x, w, dy))
            if len(op.inputs) > 2 and a.group_m is None:
                db = replace(op.inputs[2], role=Role.GRADIENT, name=f"d_{op.inputs[2].name}")
                flat = replace(dy, shape=(a.n, a.m * a.batch))
                found.append(
                    Op(f"{op.name}_db", OpKind.REDUCE, op.role, (flat,), (db,), ReduceAttrs("sum", a.n, a.m * a.batch))
                )
        elif not weight and self.chain:
            other = Op(
                f"{op.name}_dy", OpKind.MATMUL, op.role,
                (replace(self.saved(x, op), shape=(a.batch, a.k, a.m)), replace(dy, shape=(a.batch, a.m, a.n))),
                (self.gradient(w),), MatmulAttrs(a.batch, a.k, a.m, a.n),
            )  # fmt: skip
            found.append(other)
        return found

    def weight_gradients(self, op: Op, a: MatmulAttrs, x: Tensor, w: Tensor, dy: Tensor) -> list[Op]:
        """dW = X^T dY: one product, or for experts one for each number of rows that some of them have."""
        p = self.params
        columns = a.n if isinstance(p.trainable, str) else max(portion(a.n, p.trainable), 1)
        form = p.gradients or x.format
        sizes: dict[int, int] = {}
        for rows in a.group_m if a.group_m is not None else (a.m,) * a.batch:
            kept = max(portion(rows, p.sample_weight), 1)
            sizes[kept] = sizes.get(kept, 0) + 1
        found = []
        for number, (rows, count) in enumerate(sizes.items()):
            mark = f".{number}" if len(sizes) > 1 else ""
            left = replace(self.saved(x, op), shape=(count, a.k, rows))
            right = replace(dy, shape=(count, rows, columns))
            grad = Tensor(
                f"d_{w.name}{mark}", (count, a.k, columns) if count > 1 else (a.k, columns), form, Role.GRADIENT
            )
            name = op.name + (f"{number}" if mark else "") + WEIGHT_GRADIENT
            found.append(
                Op(name, OpKind.MATMUL, op.role, (left, right), (grad,), MatmulAttrs(count, a.k, rows, columns))
            )
        return found

    def attention(self, op: Op, a: AttentionAttrs) -> Op:
        """Scores again, then gradients of scores, values, queries and keys, as one fused kernel does it (Dao et al.,
        https://arxiv.org/abs/2205.14135): multiply-accumulates pairs x heads x (3 key + 2 value sizes).
        """
        saved = tuple(self.saved(t, op) if t.role is Role.ACTIVATION else t for t in op.inputs)
        out, dy = self.saved(op.outputs[0], op), self.gradient(op.outputs[0])
        inputs = (*saved, out, dy)
        outputs = tuple(self.gradient(t) for t in op.inputs if t.role is Role.ACTIVATION)
        macs = a.pairs * a.heads * (3 * a.head_dim + 2 * a.v_head_dim)
        # Softmax again, and its derivative: a product and a difference a pair, and a sum a row.
        vector = op.vector_ops + 3 * a.pairs * a.heads
        attrs = CustomAttrs(2 * macs, vector, sum(t.bytes for t in inputs), sum(t.bytes for t in outputs), "array")
        return Op(op.name + INPUT_GRADIENT, OpKind.CUSTOM, op.role, inputs, outputs, attrs)

    def elementwise(self, op: Op, a: ElementwiseAttrs) -> list[Op]:
        dy = self.gradient(op.outputs[0])
        if a.function in ("add", "bias", "copy", "cast"):
            # Gradients of a sum pass on as they are; where the residual stream meets its branch they are added.
            targets = [
                self.gradient(t) for t in op.inputs if t.role is Role.ACTIVATION and t.name != op.outputs[0].name
            ]
            found = []
            for number, target in enumerate(targets):
                if target.name != dy.name and target.elements == dy.elements:
                    name = f"{op.name}{INPUT_GRADIENT}{number or ''}"
                    found.append(
                        Op(
                            name,
                            OpKind.ELEMENTWISE,
                            op.role,
                            (dy,),
                            (target,),
                            ElementwiseAttrs("copy", target.elements),
                        )
                    )
            return found
        inputs = [t for t in op.inputs if t.role is Role.ACTIVATION]
        grads = tuple(dict.fromkeys(self.gradient(t) for t in inputs if t.name != CARRIED))
        if not grads:
            return []
        elements = sum(t.elements for t in grads)
        saved = tuple(self.saved(t, op) for t in inputs)
        if a.function in ("rotary", "scale"):
            outs = tuple(self.gradient(t) for t in op.outputs)
            return [
                Op(
                    op.name + INPUT_GRADIENT,
                    OpKind.ELEMENTWISE,
                    op.role,
                    outs,
                    grads,
                    ElementwiseAttrs(a.function, elements),
                )
            ]
        return [
            Op(
                op.name + INPUT_GRADIENT,
                OpKind.ELEMENTWISE,
                op.role,
                (dy, *saved),
                grads,
                ElementwiseAttrs(a.function, elements),
            )
        ]

    def reduction(self, op: Op, a: ReduceAttrs) -> list[Op]:
        x = op.inputs[0]
        if op.outputs[0].role is Role.INDEX or a.function in ("topk", "argmax"):
            return []
        dy = self.gradient(op.outputs[0])
        if dy.elements != x.elements:
            return []
        grad = self.gradient(x)
        own = grad if x.name != CARRIED else replace(grad, name=f"d_{op.outputs[0].name}_in")
        name = op.name + INPUT_GRADIENT
        found = [
            Op(
                name,
                OpKind.REDUCE,
                op.role,
                (replace(dy, shape=(a.rows, a.columns)), self.saved(x, op)),
                (own,),
                ReduceAttrs(a.function, a.rows, a.columns),
            )
        ]
        if x.name == CARRIED:
            found.append(
                Op(
                    f"{name}_add",
                    OpKind.ELEMENTWISE,
                    "residual",
                    (grad, own),
                    (grad,),
                    ElementwiseAttrs("add", grad.elements),
                )
            )
        for number, gain in enumerate(t for t in op.inputs[1:] if t.role is Role.WEIGHT):
            if self.params.trainable == "adapters":
                break
            flat = replace(dy, shape=(a.columns, a.rows))
            d = replace(gain, name=f"d_{gain.name}", role=Role.GRADIENT)
            if gain.elements == a.columns:
                found.append(
                    Op(
                        f"{op.name}{number or ''}_dgain",
                        OpKind.REDUCE,
                        op.role,
                        (flat,),
                        (d,),
                        ReduceAttrs("sum", a.columns, a.rows),
                    )
                )
        return found

    def move(self, op: Op, a: MoveAttrs) -> list[Op]:
        dy = self.gradient(op.outputs[0])
        source = next((t for t in op.inputs if t.role is Role.ACTIVATION), None)
        table = next((t for t in op.inputs if t.role is Role.WEIGHT), None)
        if table is not None:
            if self.params.trainable == "adapters" or self.params.frozen:
                return []
            d = replace(table, name=f"d_{table.name}", role=Role.GRADIENT, format=self.params.gradients or dy.format)
            attrs = MoveAttrs(f"{a.table}_gradient", a.rows, a.row_bytes, vector_ops=dy.elements)
            return [Op(op.name + WEIGHT_GRADIENT, OpKind.SCATTER, op.role, (dy,), (replace(d, whole=None),), attrs)]
        if source is None:
            return []
        # A gather's gradient is a scatter that adds, and the other way round.
        kind = OpKind.SCATTER if op.kind is OpKind.GATHER else OpKind.GATHER
        grad = self.gradient(source)
        return [
            Op(
                op.name + INPUT_GRADIENT,
                kind,
                op.role,
                (dy,),
                (grad,),
                MoveAttrs(a.table, a.rows, a.row_bytes, a.vector_ops),
            )
        ]


def _turned(shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
    return None if shape is None else (*shape[:-2], shape[-1], shape[-2])


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
