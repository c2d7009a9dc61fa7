"""GEMMs of one training step: a transformer encoder and a residual network, as lists of layers."""

from __future__ import annotations

from sim.sparse.training import Gemm


def encoder(tokens: int, batch: int, hidden: int, heads: int, layers: int) -> list[Gemm]:
    """The matmuls of a BERT-like encoder; scores and weighted values have no weights."""
    m, per_head = tokens * batch, hidden // heads
    products = layers * batch * heads
    return [
        Gemm("qkv", m, 3 * hidden, hidden, repeat=layers),
        Gemm("out", m, hidden, hidden, repeat=layers),
        Gemm("up", m, 4 * hidden, hidden, repeat=layers),
        Gemm("down", m, hidden, 4 * hidden, repeat=layers),
        Gemm("scores", tokens, tokens, per_head, weights=False, repeat=products),
        Gemm("values", tokens, per_head, tokens, weights=False, repeat=products),
    ]


def resnet18(batch: int) -> list[Gemm]:
    """ResNet-18 at 224 x 224 as matmuls by im2col; the first convolution and the classifier stay dense."""
    gemms = [Gemm("conv1", batch * 112 * 112, 64, 3 * 49, weights=False)]
    channels = 64
    for out, side in ((64, 56), (128, 28), (256, 14), (512, 7)):
        m = batch * side * side
        gemms += [Gemm(f"{out}.1", m, out, 9 * channels), Gemm(f"{out}.2", m, out, 9 * out, repeat=3)]
        if channels != out:
            gemms.append(Gemm(f"{out}.shortcut", m, out, channels))
        channels = out
    return [*gemms, Gemm("classifier", batch, 1000, 512, weights=False)]
