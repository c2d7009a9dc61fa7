"""Online transforms that make activations easier to quantise: Hadamard transforms and rotations, as operators.

A Hadamard transform of a width 2^p is p stages of butterflies, an addition or subtraction an element and stage; a width
of 2^p times an odd rest keeps blocks of 2^p, each transformed alone. A rotation by an arbitrary orthogonal matrix is a
matrix product.
"""

from __future__ import annotations

from math import prod

from workloads.attrs import CustomAttrs, MatmulAttrs, OpKind
from workloads.trace import Op, Role, Tensor


def hadamard_ops(rows: int, width: int, block: int | None = None) -> int:
    """Additions and subtractions of a Hadamard transform of `rows` vectors of `width`, by blocks of `block`.

    rows * width * log2(block) for the butterflies, and one multiplication an element for the scale. `block`: a power
    of two that divides `width`; by default the largest. Raises ValueError otherwise.
    """
    if rows < 1 or width < 1:
        raise ValueError(f"a Hadamard transform needs positive sizes, not {rows} x {width}")
    largest = width & -width
    block = largest if block is None else block
    if block < 2 or block & (block - 1) or width % block:
        raise ValueError(
            f"a Hadamard transform of width {width} works on blocks of 2 to {largest} (a power of two), not {block}"
        )
    return rows * width * (block.bit_length() - 1) + rows * width


def rotation_macs(rows: int, width: int, block: int | None = None) -> int:
    """Multiply-accumulates of `rows` vectors of `width` times an orthogonal matrix, or one for each `block` elements.

    Raises ValueError where `block` does not divide `width`.
    """
    size = width if block is None else block
    if size < 1 or width % size:
        raise ValueError(f"a rotation of width {width} needs blocks that divide it, not {block}")
    return rows * width * size


def hadamard(name: str, x: Tensor, block: int | None = None) -> Op:
    """The operator that transforms the last dimension of `x`, in place of `x` in memory, on the vector units."""
    width = x.shape[-1]
    work = hadamard_ops(prod(x.shape[:-1]), width, block)
    result = Tensor(f"{x.name}.{name}", x.shape, x.format, Role.ACTIVATION, tier=x.tier)
    return Op(name, OpKind.CUSTOM, "transform", (x,), (result,), CustomAttrs(0, work, x.bytes, result.bytes))


def rotation(name: str, x: Tensor, block: int | None = None) -> Op:
    """The operator that multiplies the last dimension of `x` by an orthogonal matrix of its format, on the arrays."""
    width = x.shape[-1]
    rows = prod(x.shape[:-1])
    size = width if block is None else block
    rotation_macs(rows, width, size)
    matrix = Tensor(f"{name}.matrix", (size, size), x.format, Role.WEIGHT)
    result = Tensor(f"{x.name}.{name}", x.shape, x.format, Role.ACTIVATION, tier=x.tier)
    attrs = MatmulAttrs(1, rows * (width // size), size, size)
    return Op(name, OpKind.MATMUL, "transform", (x, matrix), (result,), attrs)
