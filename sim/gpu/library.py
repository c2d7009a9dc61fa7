"""The kernel library of a GPU: which tiles, thread blocks and algorithms the vendor's and the framework's kernels have.

Facts of software, kept apart from the part: two parts of one generation share a library. Read from YAML like machines.
"""

from __future__ import annotations

from functools import cached_property, lru_cache
from typing import Annotated, Literal

from pydantic import Field

from sim.machine import Positive, Strict
from sim.units import Bandwidth, Bytes, Time

Share = Annotated[float, Field(gt=0, le=1)]


class GemmKernels(Strict):
    """A catalogue of thread-block tiles: every pair of the two lists, either way round, whose sums fit in registers."""

    long: tuple[Positive, ...] = Field(description="edge of a tile along which instructions are stacked", min_length=1)
    short: tuple[Positive, ...] = Field(description="the other edge", min_length=1)
    accumulators: Positive = Field(description="most elements of one tile")
    step: Bytes = Field(gt=0, description="bytes of the reduced dimension in one stage of the pipeline")
    stages: Positive = Field(description="fewest stages in shared memory")
    issue: Positive = Field(description="rows of one matrix instruction: another operand is read once for each")
    share: Positive = Field(default=1, description="tiles of a cluster that load a common operand once")
    splits: tuple[Positive, ...] = Field(description="parts of the reduced dimension that work side by side")
    stream_k: bool = Field(default=False, description="the last wave's tiles may be cut evenly over multiprocessors")
    split_below: Share | None = Field(default=None, description="it is split with fewer tiles a multiprocessor only")
    wait: Time = Field(default=0, ge=0, description="least time of a step, for loads that are asked for one step ahead")
    group: tuple[Positive, ...] = Field(description="tile rows that a rasterisation order may keep together")
    align: Bytes = Field(gt=0, description="alignment of rows that the fast kernels need")


class VectorKernel(Strict):
    """Products of a few rows or columns on the vector lanes, each element of the large operand loaded once."""

    most_rows: Positive = Field(description="of the shorter side")
    instructions: Positive = Field(description="an element of the large operand")
    row_instructions: Positive = Field(description="an element and row")


class UnalignedKernels(Strict):
    """What is used for rows of odd lengths: elements come through registers, one or two a load."""

    tiles: tuple[tuple[Positive, Positive], ...] = Field(min_length=1)
    blocks: Positive = Field(description="thread blocks of such a tile that are resident on a multiprocessor")
    pairs: tuple[tuple[Positive, Positive], ...] = Field(
        default=(), description="further tiles where two elements are loaded at once; one is resident"
    )
    loads: float = Field(gt=0, description="a clock of one multiprocessor, of one or two elements")
    splits: tuple[Positive, ...]
    vector: VectorKernel | None = None


class SparseKernel(Strict):
    """The library of 2:4 weights: one tile for all sizes."""

    tile: tuple[Positive, Positive] = Field(description="along the weights' rows, along the other operand's")
    splits: tuple[Positive, ...]
    split_from: Positive = Field(description="least length of the reduced dimension that is split")
    narrow: Time = Field(description="one step of 128 bytes where the dense operand fills under half a tile")
    narrow_rate: Bandwidth = Field(gt=0, description="of all weights there")


class AttentionKernel(Strict):
    """One fused attention kernel."""

    rows: Positive = Field(description="query rows of a tile; fewer cost as much")
    columns: Positive = Field(description="keys of a step")
    blocks: Positive = Field(description="thread blocks resident on a multiprocessor")
    rate: Share = Field(description="of the rate of fused attention (fitted.attention) that this kernel reaches")
    tile: Positive = Field(description="clocks of a tile beyond its steps: queries in, results out")
    pack: bool = Field(default=False, description="a single query: those of one KV head share a tile")
    split: bool = Field(default=False, description="keys are split until the part is full; used where that is so")
    most_rows: Positive | None = Field(default=None, description="used for so few query rows only")
    balanced: bool = Field(default=False, description="long and short tiles of a causal mask are dealt out evenly")
    merge: Time = Field(default=0, description="kernel that joins the parts of a split")


class RowKernel(Strict):
    """A row-wise kernel: `threads` take a row, `passes` times over its columns."""

    threads: Positive
    block_rows: Positive = Field(default=1, description="rows of a thread block")
    vector: Positive = Field(description="elements of one load")
    passes: Positive
    row: Time = Field(description="of one row alone: reductions across threads")
    iteration: Time = Field(description="of one load of all threads with what depends on it")
    instructions: Positive = Field(description="vector instructions an element")
    row_instructions: Positive = Field(description="vector instructions a thread and row: reductions, addresses")
    registers: Positive = Field(default=32, description="of one thread")
    ahead: bool = Field(default=False, description="loads are asked for together: no pass waits for each of them")
    spread: bool = Field(default=False, description="short rows get as many threads as they have loads, 32 at least")
    most_columns: Positive | None = Field(default=None, description="used for so few columns only")


class Block(Strict):
    """Thread blocks of elementwise kernels."""

    threads: Positive
    elements: Positive = Field(description="that one thread block takes")
    wait: Positive = Field(default=3, description="clocks from one instruction of a thread to the next")


class Library(Strict):
    """Schema `opcycle/kernels/1`."""

    schema_: Literal["opcycle/kernels/1"] = Field(alias="schema")
    name: str
    gemm: GemmKernels
    unaligned: UnalignedKernels
    sparse: SparseKernel | None = None
    attention: dict[str, tuple[AttentionKernel, ...]] = Field(description="by back end; the first that applies is used")
    rows: dict[str, tuple[RowKernel, ...]] = Field(description="by function; the first that applies is used")
    elementwise: dict[str, Positive] = Field(description="vector instructions an element, by function")
    elementwise_block: Block

    @cached_property
    def default_attention(self) -> str:
        """The back end that is meant where none is named."""
        return next(iter(self.attention))


@lru_cache(maxsize=64)
def load_library(name_or_path: str) -> Library:
    """The library of that name or file. Raises ConfigError."""
    from sim.base import load_based
    from sim.config import build

    return build(Library, load_based("kernels", name_or_path))
