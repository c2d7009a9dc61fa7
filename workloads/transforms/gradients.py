"""The gradients of operators: what the operators of one block become in the backward pass of a training step."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, Protocol

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
    ReduceAttrs,
    Role,
    Tensor,
)
from workloads.transforms.rates import portion
from workloads.transforms.rows import with_rows
from workloads.transforms.where import INPUT_GRADIENT, WEIGHT_GRADIENT, Where, plain


class Step(Protocol):
    """The parameters of a training step that gradients depend on."""

    @property
    def trainable(self) -> float | Literal["adapters"]: ...
    @property
    def frozen(self) -> bool: ...
    @property
    def gradients(self) -> str | None: ...
    @property
    def sample_input(self) -> float: ...
    @property
    def sample_weight(self) -> float: ...
    @property
    def where(self) -> Where: ...


def is_adapter(tensor: Tensor) -> bool:
    """Whether a weight is a factor of an adapter (`factor` lora)."""
    return tensor.name.endswith(("_a.weight", "_b.weight"))


class Gradients:
    """Turns the operators of one block into those of their gradients."""

    def __init__(self, params: Step, block: Block, chain: bool, tokens: int) -> None:
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
        adapters = p.trainable == "adapters" and not is_adapter(w)
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
