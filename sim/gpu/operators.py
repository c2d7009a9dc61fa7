"""Single operators and decoder layers by their sizes, as people measure them: kind and shape become Costs.

An operator without weights is repeated on the same operands, so those that fit wait in L2; weights are not reused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sim.gpu.attention import Attend, attention
from sim.gpu.cost import Cost, chain, launched
from sim.gpu.gemm import Product, bytes_of, gemm
from sim.gpu.rows import elementwise, fits_l2, reduction

if TYPE_CHECKING:
    from sim.gpu.schema import Gpu
    from sim.operators.shapes import LayerShape

ELEMENTWISE_READS = {"add": 2, "mul": 2, "mul_half": 2}
"""Operands of elementwise functions that have more than one."""


def vector_cost(gpu: Gpu, function: str, rows: int, columns: int, number_format: str, warm: bool | None = None) -> Cost:
    """A row-wise or elementwise function over (rows x columns). `warm` None: by whether L2 holds what it touches."""
    size = rows * columns * bytes_of(number_format)
    reads, writes = ELEMENTWISE_READS.get(function, 1) * size, size
    held = fits_l2(gpu, reads + writes) if warm is None else warm
    if function in gpu.library.rows:
        return reduction(gpu, function, rows, columns, reads, writes, held)
    return elementwise(gpu, function, rows * columns, reads, writes, held)
