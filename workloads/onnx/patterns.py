"""Finds what several ONNX nodes are together: attention, normalisations, activation functions.

A pattern is a set of nodes that becomes one operator. What is grown here depends on one tensor and constants only, so
that it cannot swallow a residual sum or another branch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from workloads.onnx.graph import Graph, Node

VIEWS = frozenset({
    "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", "Expand", "Slice", "Split",
    "Tile",
})  # fmt: skip
"""Nodes that only say how a tensor is looked at, or which part of it; kernels read their input where it lies."""
_SCALED = frozenset({"Mul", "Div", "Add", "Sub", "Where", "Cast", "Max", "Min", "Clip", *VIEWS})
_NORM = frozenset({"ReduceMean", "Sub", "Pow", "Add", "Sqrt", "Div", "Mul", "Reciprocal", "Cast"})
_CURVE = frozenset({"Mul", "Div", "Add", "Sub", "Pow", "Erf", "Tanh", "Sigmoid", "Cast"})
_COMPARES = frozenset({"Trilu", "Less", "LessOrEqual", "Greater", "GreaterOrEqual"})


@dataclass(frozen=True, slots=True)
class Attention:
    """Attention found around a softmax: the tensors that it takes and makes, whether its mask looks causal."""

    nodes: tuple[Node, ...]
    query: str
    key: str
    value: str
    output: str
    causal: bool


@dataclass(frozen=True, slots=True)
class Fused:
    """Nodes that are one row-wise or elementwise function of `source`."""

    nodes: tuple[Node, ...]
    function: str
    source: str
    output: str
    weights: tuple[str, ...] = ()


def only_reader(graph: Graph, name: str) -> Node | None:
    """The one node that reads a tensor, None where there are others or it leaves the graph."""
    readers = graph.readers.get(name, [])
    return readers[0] if len(readers) == 1 and name not in graph.outputs else None


def find_attention(graph: Graph, softmax: Node) -> Attention | None:
    """The products before and after a softmax of scores, None where it is another softmax."""
    after: list[Node] = []
    name = softmax.outputs[0]
    while True:
        reader = only_reader(graph, name)
        if reader is None:
            return None
        if reader.op == "MatMul" and reader.inputs[0] == name and not graph.fixed(reader.inputs[1]):
            break
        if reader.op not in {"Cast", "Dropout", "Identity", "Where"}:
            return None
        after.append(reader)
        name = reader.outputs[0]
    before: list[Node] = []
    masks: list[str] = []
    name = softmax.inputs[0]
    while True:
        maker = graph.makers.get(name)
        if maker is None:
            return None
        if maker.op == "MatMul" and not any(graph.fixed(i) for i in maker.inputs):
            break
        if maker.op not in _SCALED or maker.op == "Split":
            return None
        # Of a sum or a choice the scores are the input of the result's own size that a product made.
        real = [i for i in maker.inputs if i and not graph.fixed(i) and graph.values[i].real]
        big = [i for i in real if graph.values[i].elements == graph.values[maker.outputs[0]].elements]
        scores = next((i for i in big if _from_product(graph, i)), None)
        if scores is None:
            return None
        masks += [i for i in maker.inputs if i and i != scores]
        before.append(maker)
        name = scores
    causal = any(_looks_causal(graph, mask) for mask in masks)
    nodes = (maker, *before, softmax, *after, reader)
    return Attention(nodes, maker.inputs[0], maker.inputs[1], reader.inputs[1], reader.outputs[0], causal)


def _from_product(graph: Graph, name: str) -> bool:
    """Whether a product of two activations lies before a tensor, with only scaling and masking between."""
    seen: set[str] = set()
    stack = [name]
    while stack and len(seen) < 64:
        here = stack.pop()
        maker = graph.makers.get(here)
        if maker is None or here in seen:
            continue
        seen.add(here)
        if maker.op == "MatMul":
            return not any(graph.fixed(i) for i in maker.inputs)
        if maker.op in _SCALED:
            stack += [i for i in maker.inputs if i and graph.values[i].real]
    return False


def _looks_causal(graph: Graph, name: str) -> bool:
    """Whether a mask is lower-triangular (a constant), or comes from a comparison of positions or a Trilu."""
    if name in graph.constants:
        array = graph.constants[name]
        if array.ndim < 2 or array.shape[-1] < 2 or array.shape[-2] < 2:
            return False
        last = array.reshape(-1, *array.shape[-2:])[0]
        return bool(last[0, 0] != last[0, -1] and (last[0, -1] == last[0, 1]) and last[-1, 0] == last[0, 0])
    seen: set[str] = set()
    stack = [name]
    while stack:
        maker = graph.makers.get(stack.pop())
        if maker is None or maker.name in seen:
            continue
        seen.add(maker.name)
        if maker.op in _COMPARES:
            return True
        if maker.op in {"MatMul", "Gemm", "LayerNormalization"}:
            continue
        stack += [i for i in maker.inputs if i]
        stack = [i for i in stack if i not in graph.constants or _looks_causal(graph, i)]
        if any(i in graph.constants for i in stack):
            return True
    return False


def heads_shared(graph: Graph, name: str) -> int:
    """How many times an Expand or a Tile repeats keys on their way into attention: heads that share one."""
    while (maker := graph.makers.get(name)) is not None and maker.op in (*VIEWS, "Mul", "Div", "Cast"):
        source = next((i for i in maker.inputs if i and not graph.fixed(i)), None)
        if source is None:
            return 1
        if maker.op in ("Expand", "Tile"):
            times = graph.values[maker.outputs[0]].elements // max(1, graph.values[source].elements)
            if times > 1:
                return times
        name = source
    return 1


def origin(graph: Graph, name: str) -> str:
    """The tensor that a chain of views begins with."""
    while (maker := graph.makers.get(name)) is not None and maker.op in VIEWS:
        name = maker.inputs[0]
    return name


def find_norm(graph: Graph, mean: Node) -> Fused | None:
    """A layer norm (its first mean is of the input itself) or an RMS norm (of its squares), written out."""
    source = mean.inputs[0]
    maker = graph.makers.get(source)
    squares = maker is not None and (maker.op == "Pow" or (maker.op == "Mul" and maker.inputs[0] == maker.inputs[1]))
    if squares and maker is not None:
        if graph.makers.get(maker.inputs[0]) is not None and graph.makers[maker.inputs[0]].op == "Sub":
            return None  # the variance of a layer norm, which is found from its first mean
        source = maker.inputs[0]
    region = _grown(graph, source, _NORM, graph.nodes)
    means = [node for node in region if node.op == "ReduceMean"]
    if not any(node.op == "Sqrt" for node in region) or mean not in region or len(means) > 2:
        return None
    return _fused(graph, region, source, "rmsnorm" if squares else "layernorm")


def find_curve(graph: Graph, seed: Node) -> Fused | None:
    """gelu written with Erf or Tanh, silu with Sigmoid; None where the function stands alone."""
    source = seed.inputs[0]
    while (maker := graph.makers.get(source)) is not None and maker.op in _CURVE - {"Erf", "Tanh", "Sigmoid"}:
        free = list(dict.fromkeys(i for i in maker.inputs if not graph.fixed(i)))
        if len(free) != 1 or any(i in graph.weights for i in maker.inputs):
            break
        source = free[0]
    candidates = [source]
    if seed.op == "Tanh" and maker is not None and maker.op in ("Add", "Mul"):
        # The tanh form sums the input and its cube: the input is one of the tensors that this leads back to.
        candidates += [name for i in maker.inputs if not graph.fixed(i) for name in _behind(graph, i)]
    best: Fused | None = None
    for start in candidates:
        region = _grown(graph, start, _CURVE, graph.nodes)
        if seed in region and any(node.op == "Mul" and start in node.inputs for node in region):
            found = _fused(graph, region, start, "silu" if seed.op == "Sigmoid" else "gelu")
            if found is not None and not found.weights and (best is None or len(found.nodes) > len(best.nodes)):
                best = found
    return best


def _behind(graph: Graph, name: str) -> list[str]:
    """A tensor and those that simple arithmetic made it from, nearest first."""
    found = [name]
    for here in found:
        maker = graph.makers.get(here)
        if maker is not None and maker.op in _CURVE and len(found) < 16:
            found += [i for i in maker.inputs if not graph.fixed(i) and i not in found]
    return found


def _grown(graph: Graph, source: str, ops: Collection[str], nodes: Collection[Node]) -> list[Node]:
    """All nodes of these kinds that depend on `source` and fixed tensors alone, in order."""
    known = {source}
    found = []
    for node in nodes:
        free = [i for i in node.inputs if i and not graph.fixed(i)]
        if node.op in ops and free and all(i in known for i in free):
            found.append(node)
            known.update(node.outputs)
    return found


def _fused(graph: Graph, region: list[Node], source: str, function: str) -> Fused | None:
    """The region up to the last node whose result alone leaves it; None where several results do."""
    names = {node.name for node in region}
    leaving: Callable[[Node], bool] = lambda node: any(  # noqa: E731
        name in graph.outputs or any(reader.name not in names for reader in graph.readers.get(name, []))
        for name in node.outputs
    )
    outs = [node for node in region if leaving(node)]
    if len(outs) != 1:
        return None
    weights = tuple(dict.fromkeys(i for node in region for i in node.inputs if i in graph.weights))
    return Fused(tuple(region), function, source, outs[0].outputs[0], weights)
