"""An ONNX file as a plain graph: nodes in order, every tensor with its shape and format, constants folded.

Symbolic dimensions take the values given. Shapes that the file computes (Shape, Gather, Concat ... before a Reshape)
are worked out with the reference implementation of `onnx`; large weights are never read, only their shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from sim.config import ConfigError, not_among

SMALL = 4096
"""Elements up to which an initializer is read: indices, shapes, epsilons, but no weights."""

_FORMATS = {
    "FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16", "DOUBLE": "fp32", "INT8": "int8", "UINT8": "int8",
    "INT16": "int16", "UINT16": "int16", "INT32": "int32", "UINT32": "int32", "INT64": "int32", "UINT64": "int32",
    "BOOL": "int8", "INT4": "int4", "UINT4": "int4", "FLOAT8E4M3FN": "fp8_e4m3", "FLOAT8E5M2": "fp8_e5m2",
}  # fmt: skip
_REAL = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "FLOAT8E4M3FN", "FLOAT8E5M2")


@dataclass(frozen=True, slots=True)
class Value:
    """A tensor: its shape, our name for its number format, and whether it holds real numbers (not indices)."""

    shape: tuple[int, ...]
    format: str
    real: bool

    @property
    def elements(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True, slots=True)
class Node:
    """One operator of the file; `attrs` are its attributes as Python values."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Graph:
    """Nodes that remain to be done, all tensors, which of these are weights, small constants, inputs and outputs."""

    name: str
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    weights: frozenset[str]
    constants: Mapping[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dims: Mapping[str, int]
    makers: dict[str, Node] = field(default_factory=dict)
    readers: dict[str, list[Node]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.nodes:
            self.makers.update(dict.fromkeys(node.outputs, node))
            for name in dict.fromkeys(node.inputs):
                self.readers.setdefault(name, []).append(node)

    def fixed(self, name: str) -> bool:
        """Whether a tensor is the same for all inputs: a weight or a constant."""
        return name in self.weights or name in self.constants


def read_graph(path: Path, dims: Mapping[str, int], number_format: str | None = None) -> Graph:
    """The graph of an ONNX file with `dims` for its symbolic dimensions, and `number_format` for its real numbers.

    Raises ConfigError without the package `onnx`, for a file that is none, for a symbolic dimension without a value or
    a value without a dimension, and for a tensor whose shape cannot be worked out.
    """
    try:
        import onnx
    except ImportError:
        raise ConfigError("needs the package onnx: pip install 'opcycle[onnx]'", file=path) from None
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # what protobuf raises depends on its version
        raise ConfigError(f"is no ONNX file ({type(error).__name__})", file=path) from None
    if not model.graph.node:
        raise ConfigError("is no ONNX file, or one without operators", file=path)
    _bind(model.graph, dims, path)
    weights = _without_weights(model)
    model = _folded(model)
    return _plain(model, weights, dims, path, number_format)


def _bind(graph: Any, dims: Mapping[str, int], path: Path) -> None:
    """Put values in the place of symbolic dimensions of the graph's inputs."""
    known: dict[str, None] = {}
    initial = {tensor.name for tensor in graph.initializer}
    for given in graph.input:
        if given.name in initial:
            continue
        for place, dim in enumerate(given.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                continue
            name = dim.dim_param or f"{given.name}.{place}"
            known.setdefault(name)
            if name not in dims:
                raise ConfigError(
                    f"has the symbolic dimension {name!r} (of input {given.name}); give it a value: "
                    f"--set workload.dims.{name}=128",
                    file=path, key=f"dims.{name}",
                )  # fmt: skip
            dim.dim_value = dims[name]
    for name in dims:
        if name not in known:
            what = not_among("symbolic dimension", name, known) if known else "the file has no symbolic dimension"
            raise ConfigError(what, file=path, key=f"dims.{name}")
    for value in (*graph.output, *graph.value_info):
        # Shapes of a file that was exported with other values would contradict those inferred here.
        value.type.tensor_type.ClearField("shape")


def _without_weights(model: Any) -> frozenset[str]:
    """Turn initializers of many elements into inputs, so that nobody copies them; the names of all weights."""
    import onnx

    graph = model.graph
    kept, names = [], set()
    listed = {value.name for value in graph.input}
    for tensor in graph.initializer:
        large = prod(tensor.dims) > SMALL or bool(tensor.external_data)
        if large or (onnx.TensorProto.DataType.Name(tensor.data_type) in _REAL and prod(tensor.dims) > 1):
            names.add(tensor.name)
        if not large:
            kept.append(tensor)
        elif tensor.name not in listed:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return frozenset(names)


def _folded(model: Any) -> Any:
    """Infer shapes and compute what depends on shapes and small constants alone, until nothing more follows."""
    import onnx

    while True:
        del model.graph.value_info[:]
        model = onnx.shape_inference.infer_shapes(model, data_prop=True)
        if not _fold_once(model):
            return model


def _fold_once(model: Any) -> bool:
    import onnx
    from onnx.reference import ReferenceEvaluator

    graph = model.graph
    shapes = {v.name: _shape(v) for v in (*graph.input, *graph.value_info, *graph.output)}
    constants = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    shapes |= {name: tuple(array.shape) for name, array in constants.items()}
    rest, found = [], {}
    for node in graph.node:
        given = [name for name in node.input if name]
        known = shapes.get(node.input[0]) if node.op_type == "Shape" else None
        if known is not None:
            found[node.output[0]] = constants[node.output[0]] = _run_shape(node, known)
        elif all(name in constants for name in given) and node.op_type not in ("RandomNormal", "RandomUniform"):
            info = onnx.helper.make_tensor_value_info
            inputs = [info(n, _type(constants[n]), None) for n in dict.fromkeys(given)]
            single = onnx.helper.make_graph([node], "one", inputs, [info(n, 0, None) for n in node.output if n])
            try:
                alone = onnx.helper.make_model(single, opset_imports=list(model.opset_import))
                results = ReferenceEvaluator(alone).run(None, {n: constants[n] for n in given})
            except Exception:  # an operator that the reference lacks is left as it is
                rest.append(node)
                continue
            if any(getattr(r, "size", SMALL + 1) > 16 * SMALL for r in results):
                rest.append(node)
                continue
            for name, result in zip([n for n in node.output if n], results, strict=True):
                found[name] = constants[name] = result
        else:
            rest.append(node)
    if not found:
        return False
    del graph.node[:]
    graph.node.extend(rest)
    graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in found.items())
    return True


def _run_shape(node: Any, shape: tuple[int, ...]) -> Any:
    """The value of a Shape node, with its `start` and `end`."""
    import onnx

    attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    part = shape[slice(attrs.get("start", 0), attrs.get("end"))]
    return onnx.numpy_helper.to_array(onnx.helper.make_tensor("", onnx.TensorProto.INT64, [len(part)], part))


def _type(array: Any) -> int:
    import onnx

    return int(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))


def _shape(value: Any) -> tuple[int, ...] | None:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in kind.shape.dim]
    return None if None in sizes else tuple(size for size in sizes if size is not None)


def _plain(
    model: Any, weights: frozenset[str], dims: Mapping[str, int], path: Path, number_format: str | None
) -> Graph:
    import onnx

    graph = model.graph
    values: dict[str, Value] = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = _shape(value)
        if shape is not None:
            values[value.name] = _value(shape, value.type.tensor_type.elem_type, number_format)
    constants = {}
    for tensor in graph.initializer:
        values[tensor.name] = _value(tuple(tensor.dims), tensor.data_type, number_format)
        constants[tensor.name] = onnx.numpy_helper.to_array(tensor)
    nodes = []
    fixed = set(weights) | {n for n in constants if values[n].real and values[n].elements > 1}
    for number, node in enumerate(graph.node):
        name = node.name or f"{node.op_type}_{number}"
        for made in node.output:
            if made and made not in values:
                raise ConfigError(
                    f"the shape of {made!r}, made by {node.op_type} {name}, does not follow from the inputs; export "
                    "with fixed sizes, or fold constants first",
                    file=path,
                )
        if all(given in fixed or given in constants for given in node.input if given):
            fixed.update(node.output)  # another view or format of a weight
            continue
        attrs = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        domain = "" if node.domain in ("", "ai.onnx") else f"{node.domain}."
        nodes.append(Node(name, domain + node.op_type, tuple(node.input), tuple(n for n in node.output if n), attrs))
    inputs = tuple(v.name for v in graph.input if v.name not in weights and v.name not in constants)
    outputs = tuple(v.name for v in graph.output)
    return Graph(
        graph.name or path.stem, tuple(nodes), values, frozenset(fixed), constants, inputs, outputs, dict(dims)
    )


def _value(shape: tuple[int, ...], kind: int, number_format: str | None) -> Value:
    import onnx

    name = onnx.TensorProto.DataType.Name(kind)
    real = name in _REAL
    return Value(shape, number_format if real and number_format else _FORMATS.get(name, "fp32"), real)
