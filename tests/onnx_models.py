"""Transformers as ONNX graphs the way exporters write them: shapes computed from inputs, norms spelled out."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class Maker:
    """Collects nodes and initializers; every method returns the name of the tensor that it makes."""

    def __init__(self) -> None:
        import onnx

        self.onnx = onnx
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self._count = 0

    def name(self, stem: str) -> str:
        self._count += 1
        return f"{stem}_{self._count}"

    def weight(self, stem: str, *shape: int) -> str:
        size = 1
        for each in shape:
            size *= each
        name = self.name(stem)
        self.initializers.append(self.onnx.helper.make_tensor(name, 1, shape, b"\0" * (4 * size), raw=True))
        return name

    def ints(self, *values: int) -> str:
        name = self.name("i")
        self.initializers.append(self.onnx.helper.make_tensor(name, 7, [len(values)], values))
        return name

    def scalar(self, value: float) -> str:
        name = self.name("s")
        self.initializers.append(self.onnx.helper.make_tensor(name, 1, [], [value]))
        return name

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attrs: Any) -> Any:
        made = [self.name(kind.lower()) for _ in range(outputs)]
        self.nodes.append(self.onnx.helper.make_node(kind, list(inputs), made, name=self.name(f"n{kind}"), **attrs))
        return made[0] if outputs == 1 else made

    def size(self, tensor: str, axis: int) -> str:
        """One size of a tensor as exporters ask for it, as a tensor of one element."""
        picked = self.op("Gather", self.op("Shape", tensor), self.ints(axis), axis=0)
        return str(picked)

    def linear(self, x: str, k: int, n: int, bias: bool = False) -> str:
        out = self.op("MatMul", x, self.weight("w", k, n))
        return str(self.op("Add", self.weight("b", n), out) if bias else out)

    def layer_norm(self, x: str, width: int) -> str:
        mean = self.op("ReduceMean", x, self.ints(-1))
        centred = self.op("Sub", x, mean)
        variance = self.op("ReduceMean", self.op("Pow", centred, self.scalar(2.0)), self.ints(-1))
        root = self.op("Sqrt", self.op("Add", variance, self.scalar(1e-5)))
        scaled = self.op("Mul", self.op("Div", centred, root), self.weight("gain", width))
        return str(self.op("Add", scaled, self.weight("offset", width)))

    def rms_norm(self, x: str, width: int) -> str:
        mean = self.op("ReduceMean", self.op("Pow", x, self.scalar(2.0)), self.ints(-1))
        root = self.op("Reciprocal", self.op("Sqrt", self.op("Add", mean, self.scalar(1e-5))))
        return str(self.op("Mul", self.weight("gain", width), self.op("Mul", x, root)))

    def gelu(self, x: str) -> str:
        half = self.op("Add", self.op("Erf", self.op("Div", x, self.scalar(1.4142))), self.scalar(1.0))
        return str(self.op("Mul", self.op("Mul", x, half), self.scalar(0.5)))

    def gelu_tanh(self, x: str) -> str:
        cube = self.op("Mul", self.op("Pow", x, self.scalar(3.0)), self.scalar(0.0447))
        inner = self.op("Mul", self.op("Add", x, cube), self.scalar(0.7979))
        outer = self.op("Add", self.op("Tanh", inner), self.scalar(1.0))
        return str(self.op("Mul", self.op("Mul", x, self.scalar(0.5)), outer))

    def heads(self, x: str, heads: int, dim: int) -> str:
        """(batch, length, heads x dim) as (batch, heads, length, dim), by sizes read off the input."""
        shape = self.op("Concat", self.size(x, 0), self.size(x, 1), self.ints(heads, dim), axis=0)
        return str(self.op("Transpose", self.op("Reshape", x, shape), perm=[0, 2, 1, 3]))

    def repeated(self, x: str, kv_heads: int, times: int, dim: int) -> str:
        """Each of `kv_heads` heads `times` times, as exporters of grouped-query attention write it."""
        wide = self.op("Unsqueeze", x, self.ints(2))
        batch, length = self.size(x, 0), self.size(x, 2)
        shape = self.op("Concat", batch, self.ints(kv_heads, times), length, self.ints(dim), axis=0)
        flat = self.op("Concat", batch, self.ints(kv_heads * times), length, self.ints(dim), axis=0)
        return str(self.op("Reshape", self.op("Expand", wide, shape), flat))

    def rotary(self, x: str, angles: tuple[str, str], dim: int) -> str:
        ends = self.ints(-1)
        first = self.op("Slice", x, self.ints(0), self.ints(dim // 2), ends)
        second = self.op("Slice", x, self.ints(dim // 2), self.ints(dim), ends)
        turned = self.op("Concat", self.op("Neg", second), first, axis=-1)
        return str(self.op("Add", self.op("Mul", x, angles[0]), self.op("Mul", turned, angles[1])))

    def attention(self, q: str, k: str, v: str, dim: int, mask: str | None) -> str:
        scores = self.op("MatMul", q, self.op("Transpose", k, perm=[0, 1, 3, 2]))
        scores = self.op("Div", scores, self.scalar(dim**0.5))
        if mask is not None:
            scores = self.op("Add", scores, mask)
        mixed = self.op("MatMul", self.op("Softmax", scores, axis=-1), v)
        back = self.op("Transpose", mixed, perm=[0, 2, 1, 3])
        shape = self.op("Concat", self.size(back, 0), self.size(back, 1), self.ints(-1), axis=0)
        return str(self.op("Reshape", back, shape))

    def save(self, path: Path, inputs: list[tuple[str, int, list[Any]]], output: str) -> Path:
        helper = self.onnx.helper
        graph = helper.make_graph(
            self.nodes, "tiny", [helper.make_tensor_value_info(*each) for each in inputs],
            [helper.make_tensor_value_info(output, 1, None)], self.initializers,
        )  # fmt: skip
        self.onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), str(path))
        return path


def encoder(
    path: Path, layers: int, hidden: int, heads: int, ffn: int, vocab: int, positions: int, tanh: bool = False
) -> Path:
    """A BERT-like encoder with a pooler, of (batch, sequence) token numbers."""
    m = Maker()
    dim = hidden // heads
    x = m.op("Gather", m.weight("table", vocab, hidden), "tokens", axis=0)
    place = m.op("Slice", m.weight("places", positions, hidden), m.ints(0), m.size("tokens", 1), m.ints(0))
    x = m.layer_norm(m.op("Add", x, place), hidden)
    for _ in range(layers):
        q, k, v = (m.heads(m.linear(x, hidden, hidden, True), heads, dim) for _ in range(3))
        out = m.linear(m.attention(q, k, v, dim, None), hidden, hidden, True)
        x = m.layer_norm(m.op("Add", out, x), hidden)
        up = m.linear(x, hidden, ffn, True)
        down = m.linear((m.gelu_tanh if tanh else m.gelu)(up), ffn, hidden, True)
        x = m.layer_norm(m.op("Add", down, x), hidden)
    first = m.op("Gather", x, m.ints(0), axis=1)
    pooled = m.op(
        "Tanh", m.op("Gemm", m.op("Flatten", first), m.weight("pool", hidden, hidden), m.weight("pb", hidden), transB=1)
    )
    return m.save(path, [("tokens", 7, ["batch", "sequence"])], pooled)


def decoder(
    path: Path,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    vocab: int,
    positions: int,
    extra: str = "",
) -> Path:
    """A Llama-like decoder over (batch, sequence) token numbers, whose head sees the last position."""
    m = Maker()
    dim = hidden // heads
    x = m.op("Gather", m.weight("table", vocab, hidden), "tokens", axis=0)
    length = m.size("tokens", 1)
    angles = tuple(
        str(m.op("Slice", m.weight(part, positions, dim), m.ints(0), length, m.ints(0))) for part in ("cos", "sin")
    )
    square = m.op("Concat", length, length, axis=0)
    mask = m.op(
        "Trilu",
        m.op("ConstantOfShape", square, value=m.onnx.helper.make_tensor("", 1, [1], [-1e9])),
        m.op("Constant", value_int=1),
    )
    for _ in range(layers):
        inner = m.rms_norm(x, hidden)
        q = m.rotary(m.heads(m.linear(inner, hidden, hidden), heads, dim), angles, dim)
        k = m.rotary(m.heads(m.linear(inner, hidden, kv_heads * dim), kv_heads, dim), angles, dim)
        v = m.heads(m.linear(inner, hidden, kv_heads * dim), kv_heads, dim)
        k, v = (m.repeated(each, kv_heads, heads // kv_heads, dim) for each in (k, v))
        x = m.op("Add", x, m.linear(m.attention(q, k, v, dim, mask), hidden, hidden))
        inner = m.rms_norm(x, hidden)
        gate = m.linear(inner, hidden, ffn)
        gate = m.op("Mul", gate, m.op("Sigmoid", gate))
        x = m.op("Add", x, m.linear(m.op("Mul", gate, m.linear(inner, hidden, ffn)), ffn, hidden))
        if extra:
            x = m.op(extra, x)
    last = m.op("Gather", m.rms_norm(x, hidden), m.ints(-1), axis=1)
    return m.save(path, [("tokens", 7, ["batch", "sequence"])], m.linear(last, hidden, vocab))
