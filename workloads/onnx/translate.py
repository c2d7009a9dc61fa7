"""Turns an ONNX graph into operators of a Trace: products, attention, norms, elementwise work, look-ups.

Views cost nothing and are followed to the tensor that they look at. Arithmetic on indices and masks is left out, as the
Trace leaves it out everywhere. What no operator covers becomes a custom one with its bytes and one vector operation an
element, and is told.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from math import prod

from sim.config import ConfigError
from workloads.formats import storage_bytes
from workloads.onnx.graph import Graph, Node
from workloads.onnx.patterns import VIEWS, Attention, Fused, find_attention, find_curve, find_norm, heads_shared, origin
from workloads.trace import (
    CAUSAL,
    FULL,
    AttentionAttrs,
    CustomAttrs,
    ElementwiseAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpAttrs,
    OpKind,
    ReduceAttrs,
    RequestSpan,
    Role,
    Tensor,
)

_ELEMENTWISE = {
    "Add": "add", "Sub": "add", "Mul": "mul", "Div": "mul", "Pow": "mul", "Max": "relu", "Min": "relu", "Neg": "scale",
    "Abs": "relu", "Relu": "relu", "Clip": "relu", "Where": "mul", "Sqrt": "tanh", "Reciprocal": "tanh", "Exp": "tanh",
    "Log": "tanh", "Erf": "tanh", "Tanh": "tanh", "Cos": "tanh", "Sin": "tanh", "Sigmoid": "sigmoid", "Gelu": "gelu",
    "Silu": "silu", "Swish": "silu", "HardSwish": "silu", "Softplus": "silu", "LeakyRelu": "relu", "Cast": "cast",
    "Concat": "copy", "com.microsoft.Gelu": "gelu", "com.microsoft.FastGelu": "gelu", "com.microsoft.BiasGelu": "gelu",
    "com.microsoft.QuickGelu": "silu",
}  # fmt: skip
"""Functions by ONNX operator; each transcendental is one vector operation."""
_NORMS = {
    "LayerNormalization": "layernorm", "RMSNormalization": "rmsnorm", "SimplifiedLayerNormalization": "rmsnorm",
    "com.microsoft.SkipLayerNormalization": "layernorm", "com.microsoft.SkipSimplifiedLayerNormalization": "rmsnorm",
    "InstanceNormalization": "layernorm", "GroupNormalization": "layernorm",
}  # fmt: skip
_REDUCTIONS = {
    "Softmax": "softmax", "LogSoftmax": "softmax", "ReduceMean": "mean", "ReduceSum": "sum", "ReduceMax": "max",
    "ReduceMin": "max", "ArgMax": "argmax", "ArgMin": "argmax", "GlobalAveragePool": "mean",
}  # fmt: skip


@dataclass(slots=True)
class Translation:
    """The operators so far, and what is to be told: operators made custom, whether attention is causal."""

    graph: Graph
    causal: bool | None
    ops: list[Op] = field(default_factory=list)
    custom: Counter[str] = field(default_factory=Counter)
    masks: Counter[str] = field(default_factory=Counter)
    names: Counter[str] = field(default_factory=Counter)
    biased: set[str] = field(default_factory=set)
    alias: dict[str, str] = field(default_factory=dict)


def translate(graph: Graph, causal: bool | None = None) -> Translation:
    """All operators of the graph in order. `causal`: what to take for the mask of attention; None: as it looks.

    Raises ConfigError for a graph without any product.
    """
    t = Translation(graph, causal)
    starts, covered = _patterns(graph)
    for node in graph.nodes:
        found = starts.get(node.name)
        if isinstance(found, Attention):
            _attention(t, found)
        elif found is not None:
            _fused(t, found)
        elif node.name not in covered:
            _node(t, node)
    if not any(op.kind is OpKind.MATMUL for op in t.ops):
        raise ConfigError("has no matrix product, so it is no transformer")
    return t


def _patterns(graph: Graph) -> tuple[dict[str, Attention | Fused], set[str]]:
    """Patterns by the name of their last node, where they are emitted, and the names of all nodes inside one."""
    last: dict[str, Attention | Fused] = {}
    covered: set[str] = set()
    finders = (
        (find_attention, ("Softmax",)), (find_norm, ("ReduceMean",)), (find_curve, ("Erf", "Tanh", "Sigmoid")),
    )  # fmt: skip
    for find, kinds in finders:
        for node in graph.nodes:
            if node.op not in kinds or node.name in covered:
                continue
            found = find(graph, node)
            if found is None or any(part.name in covered for part in found.nodes):
                continue
            maker = graph.makers[found.output]
            last[maker.name] = found
            covered |= {part.name for part in found.nodes}
    return last, covered


def _tensor(t: Translation, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
    """The tensor behind a name: views are looked through; `shape` is the part that is touched, else the name's own."""
    value = t.graph.values[name]
    if t.graph.fixed(name):
        return Tensor(name, shape or value.shape or (1,), value.format, Role.WEIGHT)
    root = origin(t.graph, name)
    root = t.alias.get(root, root)
    role = Role.ACTIVATION if value.real else Role.INDEX
    touched = shape or value.shape or (1,)
    return Tensor(root, touched, value.format, role)


def _emit(
    t: Translation, name: str, kind: OpKind, role: str, ins: list[Tensor], outs: list[Tensor], attrs: OpAttrs
) -> None:
    t.names[name] += 1
    unique = name if t.names[name] == 1 else f"{name}.{t.names[name]}"
    t.ops.append(Op(unique, kind, role, tuple(ins), tuple(outs), attrs))


def _attention(t: Translation, found: Attention) -> None:
    values = t.graph.values
    q, k, v, o = (values[name].shape for name in (found.query, found.key, found.value, found.output))
    *batch, queries, dim = q
    keys, v_dim = v[-2], v[-1]
    heads = batch[-1] if batch else 1
    count = prod(batch[:-1]) if batch else 1
    shared = heads_shared(t.graph, found.value)
    if heads % shared:
        shared = 1
    causal = found.causal if t.causal is None else t.causal
    t.masks["causal" if causal else "full"] += 1
    span = RequestSpan(count, queries, max(0, keys - queries))
    # Queries at the end of the keys see all of the earlier ones; other lengths mean two sequences.
    attrs = AttentionAttrs(heads, heads // shared, dim, v_dim, CAUSAL if causal and keys >= queries else FULL, (span,))
    del k, o
    cached = keys > queries
    kv = []
    for name, width in ((found.key, dim), (found.value, v_dim)):
        tensor = _tensor(t, name, (count * span.length, heads // shared, width))
        kv.append(Tensor(tensor.name, tensor.shape, tensor.format, Role.KV) if cached else tensor)
    query = _tensor(t, found.query, (count * queries, heads * dim))
    result = _tensor(t, found.output, (count * queries, heads * v_dim))
    _emit(t, "attention", OpKind.ATTENTION, "attention", [query, *kv], [result], attrs)


def _fused(t: Translation, found: Fused) -> None:
    shape = t.graph.values[found.output].shape
    ins = [_tensor(t, found.source), *(_tensor(t, name) for name in found.weights)]
    out = _tensor(t, found.output)
    if found.function in ("rmsnorm", "layernorm"):
        attrs = ReduceAttrs(found.function, prod(shape[:-1]), shape[-1])
        _emit(t, "norm", OpKind.REDUCE, "norm", ins, [out], attrs)
    else:
        _emit(t, found.function, OpKind.ELEMENTWISE, "ffn", ins, [out], ElementwiseAttrs(found.function, prod(shape)))


def _node(t: Translation, node: Node) -> None:
    graph, values = t.graph, t.graph.values
    out = values[node.outputs[0]]
    if node.op in VIEWS or node.name in t.biased:
        return
    if node.op in ("MatMul", "Gemm"):
        _product(t, node)
    elif node.op == "Conv":
        _convolution(t, node)
    elif node.op == "Gather" and out.real:
        _gather(t, node)
    elif not out.real and node.op not in _REDUCTIONS:
        return  # arithmetic on indices and masks
    elif node.op in _NORMS:
        shape = values[node.inputs[0]].shape
        attrs = ReduceAttrs(_NORMS[node.op], prod(shape[:-1]), shape[-1])
        _emit(t, "norm", OpKind.REDUCE, "norm", _inputs(t, node), [_tensor(t, node.outputs[0])], attrs)
    elif node.op in _REDUCTIONS:
        shape = values[node.inputs[0]].shape
        axis = int(node.attrs.get("axis", -1))
        columns = shape[axis] if shape else 1
        reduced = ReduceAttrs(_REDUCTIONS[node.op], max(1, prod(shape) // columns), columns)
        role = "head" if node.op == "ArgMax" else "norm"
        _emit(t, node.op.lower(), OpKind.REDUCE, role, _inputs(t, node), [_tensor(t, node.outputs[0])], reduced)
    elif node.op in _ELEMENTWISE:
        _elementwise(t, node)
    else:
        _custom(t, node)
    del graph


def _inputs(t: Translation, node: Node) -> list[Tensor]:
    """What a node reads of activations and weights; scalars and indices aside."""
    return [_tensor(t, i) for i in node.inputs if i and t.graph.values[i].real and t.graph.values[i].elements > 1]


def _elementwise(t: Translation, node: Node) -> None:
    values = t.graph.values
    ins = _inputs(t, node)
    activations = [i for i in ins if i.role is Role.ACTIVATION]
    if not activations:
        return
    function = _ELEMENTWISE[node.op]
    residual = node.op == "Add" and len(activations) == 2
    elements = values[node.outputs[0]].elements
    name = "residual_add" if residual else node.op.rpartition(".")[2].lower()
    role = "residual" if residual else "ffn"
    out = _tensor(t, node.outputs[0])
    _emit(t, name, OpKind.ELEMENTWISE, role, ins, [out], ElementwiseAttrs(function, max(1, elements)))


def _gather(t: Translation, node: Node) -> None:
    out = t.graph.values[node.outputs[0]]
    table, width = t.graph.values[node.inputs[0]], out.shape[-1] if out.shape else 1
    rows = max(1, out.elements // width)
    fixed = t.graph.fixed(node.inputs[0])
    held = min(rows, max(1, table.elements // width))  # a row that is asked for twice is still one of the table's
    source = Tensor(
        node.inputs[0] if fixed else _tensor(t, node.inputs[0]).name, (held, width), table.format,
        Role.WEIGHT if fixed else Role.ACTIVATION, whole=table.shape,
    )  # fmt: skip
    move = MoveAttrs("embedding" if fixed else "rows", rows, storage_bytes((width,), table.format))
    _emit(t, "embedding" if fixed else "rows", OpKind.GATHER, "embed", [source], [_tensor(t, node.outputs[0])], move)


def _product(t: Translation, node: Node) -> None:
    """A MatMul or Gemm, with the addition of a bias that follows it."""
    graph, values = t.graph, t.graph.values
    left, right = node.inputs[0], node.inputs[1]
    a, b = values[left].shape, values[right].shape
    k = a[-2] if node.attrs.get("transA") else a[-1]
    n = b[-2] if node.attrs.get("transB") else b[-1]
    output = node.outputs[0]
    bias = [node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] else []
    if not bias and (following := _bias_of(t, output)) is not None:
        added, name = following
        bias, output = [name], added.outputs[0]
        t.biased.add(added.name)
    if graph.fixed(right) or len(b) == 2:
        m, batch = values[left].elements // k, 1
        ins = [_tensor(t, left, (m, k)), _tensor(t, right, (k, n))]
        out = _tensor(t, output, (m, n))
    else:
        batch = prod(values[output].shape[:-2])
        m = a[-2]
        wide = a if prod(a[:-2]) == batch else (batch, m, k)
        ins = [_tensor(t, left, (batch, m, k) if wide is not a else a), _tensor(t, right, (batch, k, n))]
        out = _tensor(t, output, (batch, m, n))
    ins += [_tensor(t, name) for name in bias]
    role = _role(t, node, output)
    name = "lm_head" if role == "head" else "linear" if graph.fixed(right) else "product"
    _emit(t, name, OpKind.MATMUL, role, ins, [out], MatmulAttrs(batch, m, k, n))


def _bias_of(t: Translation, name: str) -> tuple[Node, str] | None:
    """The addition of one row of weights that alone reads a product, and the row."""
    readers = t.graph.readers.get(name, [])
    if len(readers) != 1 or name in t.graph.outputs or readers[0].op != "Add":
        return None
    other = next((i for i in readers[0].inputs if i != name), name)
    width = t.graph.values[name].shape[-1]
    return (readers[0], other) if t.graph.fixed(other) and t.graph.values[other].elements == width else None


def _role(t: Translation, node: Node, output: str) -> str:
    """head: the result leaves the graph; attention: it leads into attention or comes straight out of it; else ffn."""
    graph = t.graph
    if output in graph.outputs:
        return "head"
    made = origin(graph, node.inputs[0])
    if any(op.kind is OpKind.ATTENTION and op.outputs[0].name == made for op in t.ops[-4:]):
        return "attention"
    names, seen = [output], 0
    while names and seen < 24:
        seen += 1
        for reader in graph.readers.get(names.pop(), []):
            if reader.op == "MatMul" and not any(graph.fixed(i) for i in reader.inputs):
                return "attention"
            if reader.op in (*VIEWS, "Add", "Mul", "Neg", "Concat", "Cast", "Div"):
                names += list(reader.outputs)
    return "ffn"


def _convolution(t: Translation, node: Node) -> None:
    """Patches that do not overlap are a product; any other convolution is custom, with its exact products."""
    values = t.graph.values
    image, weight, out = (values[name].shape for name in (node.inputs[0], node.inputs[1], node.outputs[0]))
    k, n = prod(weight[1:]), weight[0]
    m = out[0] * prod(out[2:])
    flat = int(node.attrs.get("group", 1)) == 1 and list(node.attrs.get("strides", [])) == list(weight[2:])
    if flat and m * k == prod(image):
        ins = [_tensor(t, node.inputs[0], (m, k)), _tensor(t, node.inputs[1], (k, n))]
        ins += [_tensor(t, name) for name in node.inputs[2:3] if name]
        _emit(t, "patches", OpKind.MATMUL, "embed", ins, [_tensor(t, node.outputs[0], (m, n))], MatmulAttrs(1, m, k, n))
        return
    _custom(t, node, 2 * m * n * k)


def _custom(t: Translation, node: Node, flops: int = 0) -> None:
    t.custom[node.op] += 1
    ins = _inputs(t, node)
    outs = [_tensor(t, name) for name in node.outputs]
    elements = sum(tensor.elements for tensor in outs)
    attrs = CustomAttrs(
        flops,
        0 if flops else elements,
        sum(x.bytes for x in ins),
        sum(x.bytes for x in outs),
        "array" if flops else "vector",
    )
    _emit(t, node.op.rpartition(".")[2].lower(), OpKind.CUSTOM, "other", ins, outs, attrs)
