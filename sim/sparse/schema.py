"""The section `sparse:` of a machine: which engine skips zeros, how operands are stored, what decoding and predicting
cost.

Each engine has fields of its own; `engine` says which. docs/sparse.md explains the engines.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, model_validator

from sim.machine import Positive, Strict

StorageName = Literal["dense", "bitmap", "csr", "csc", "coordinate", "run_length", "n:m"]
Assignment = Literal["static", "round_robin", "greedy"]


def parse_ratio(text: str) -> tuple[int, int]:
    """`2:4` as (2, 4). Raises ValueError where it is no ratio, or keeps more than there are."""
    match = re.fullmatch(r"([0-9]+):([0-9]+)", text)
    if match is None:
        raise ValueError(f"{text!r} is no N:M ratio such as 2:4")
    n, m = int(match[1]), int(match[2])
    if not 0 < n <= m:
        raise ValueError(f"{text!r} keeps {n} of {m}, but N must be at least 1 and at most M")
    return n, m


class Predictor(Strict):
    """Guesses which activations will matter: a low-rank pair of matrices, run on the dense array before the product."""

    rank: Positive = Field(description="width between the two matrices; work is rows x rank x (inputs + positions)")


class Update(Strict):
    """What training needs beside the array: a vector engine that updates weights, and one that makes N:M masks."""

    lanes: Positive = Field(description="weights that the update engine finishes in a cycle")
    state_bytes: Positive = Field(description="optimizer state of a weight, read and written with it")
    mask_lanes: Positive = Field(description="weights that the mask engine ranks in a cycle, for both directions")
    interleaved: bool = Field(
        default=True, description="updates and masks of one layer run beside the array's work on another"
    )


class _Engine(Strict):
    skip: bool = Field(default=True, description="false: zeros are multiplied like other numbers (the dense twin)")
    weights: StorageName = Field(default="dense", description="how sparse weights are stored")
    activations: StorageName = Field(default="dense", description="how sparse activations are stored")
    index_bits: Literal["least", "power_of_two"] = Field(
        default="least", description="width of a stored index: as few bits as needed, or rounded up to 1, 2, 4, 8, ..."
    )
    run_bits: Annotated[int, Field(ge=1, le=16)] = Field(default=4, description="bits of a run in run_length")
    decode_entries_per_cycle: Positive | None = Field(
        default=None, description="metadata entries that the decoders finish in a cycle; default: never a limit"
    )
    metadata_bytes_per_cycle: Positive | None = Field(
        default=None, description="metadata has a scratchpad port of its own of this width; default: the common one"
    )
    convert_entries_per_cycle: Positive | None = Field(
        default=None, description="entries of a storage format that the converter finishes in a cycle; default: none"
    )
    predictor: Predictor | None = None
    update: Update | None = None


class _OnArray(_Engine):
    stream_tile: Positive | None = Field(
        default=None, description="stream rows for which a stationary tile stays; default: as the array's `reload`"
    )


class Structured(_OnArray):
    """N:M weights on the machine's arrays: each lane holds one kept weight and selects its operand among M."""

    engine: Literal["structured"]
    ratios: tuple[str, ...] = Field(min_length=1, description="N:M ratios the arrays accept, such as 2:4")
    select_per_cycle: Positive | None = Field(
        default=None, description="stream elements that reach the selectors of one array in a cycle; default: enough"
    )

    @model_validator(mode="after")
    def _ratios(self) -> Structured:
        for ratio in self.ratios:
            parse_ratio(ratio)
        return self


class Balanced(_OnArray):
    """Weights of any pattern, best with equally many in each block of a column; a block waits for its fullest
    column."""

    engine: Literal["balanced"]
    block: Positive = Field(description="positions along K that are handed to the lanes together")
    degree: Positive = Field(description="highest sparsity: at least one weight in `degree` is kept")


class Gather(_OnArray):
    """Dense arrays behind a gather unit: K positions without weights for a panel, or activations for a chunk, go."""

    engine: Literal["gather"]
    block: Positive = Field(default=1, description="K positions that are skipped together")
    chunk: Positive = Field(description="tokens that share one gathered set of positions")


class Flexible(_Engine):
    """SIGMA's kind: rows of non-zeros packed on multipliers between a distribution and a reduction network."""

    engine: Literal["flexible"]
    multipliers: Positive
    ports: Positive = Field(description="values that enter the distribution network in a cycle")
    lines: Positive = Field(description="results that leave the reduction network in a cycle")
    stationary: Literal["weights", "activations"] = "weights"
    order: Literal["given", "packed"] = Field(
        default="given", description="of the stationary rows; packed: the longest that fits comes next, chosen offline"
    )

    @model_validator(mode="after")
    def _powers(self) -> Flexible:
        for name in ("multipliers", "ports", "lines"):
            value = getattr(self, name)
            if value & (value - 1):
                raise ValueError(f"{name} is {value}, but must be a power of two")
        if self.ports > self.multipliers:
            raise ValueError(f"ports is {self.ports}, but must be at most the {self.multipliers} multipliers")
        return self


class Mesh(_Engine):
    """STONNE's output-stationary mesh: the dense partner of `flexible`, with as many multipliers."""

    engine: Literal["mesh"]
    rows: Positive
    columns: Positive
    ports: Positive = Field(description="operands that enter the mesh in a cycle")


class Queued(_Engine):
    """What the unstructured engines share: equal processing elements that take rows from work queues."""

    elements: Positive = Field(description="processing elements")
    assignment: Assignment = Field(description="static, round_robin or greedy (one shared queue)")


class Intersect(Queued):
    """Inner products: each element merges a row of activations with a column of weights."""

    engine: Literal["intersect"]
    method: Literal["two_finger", "leader_follower", "bitmap"] = "two_finger"
    width: Positive = Field(default=64, description="bitmap: positions that are compared in a cycle")
    start_cycles: int = Field(default=14, ge=0, description="cycles from start to the first merge step, once")


class Gustavson(Queued):
    """Row-wise products: each non-zero of an activation row scales a row of weights into a row of sums."""

    engine: Literal["gustavson"]
    lanes: Positive = Field(description="multipliers of an element: weights of a row that it takes in a cycle")


class Outer(Queued):
    """Outer products: each K position is a column times a row; partial matrices are merged afterwards."""

    engine: Literal["outer"]
    lanes: Positive = Field(description="multipliers of an element")
    merge_ways: Annotated[int, Field(ge=2)] = Field(description="partial results that one merge pass takes together")
    merge_per_cycle: Positive = Field(description="entries that all mergers finish in a cycle")


class Dual(_Engine):
    """Both operands condensed for an outer-product unit: columns of A and rows of B in units of its two sides."""

    engine: Literal["dual"]
    units: Positive = Field(default=1, description="outer-product units, each on an output tile of its own")
    tile: tuple[Positive, Positive] = Field(description="output tile of a unit: rows of A, columns of B")
    quantum: tuple[Positive, Positive] = Field(description="entries of a column of A and a row of B in one step")
    accumulate_per_cycle: Positive = Field(description="sums that the accumulators of a unit take in a cycle")
    position_cycles: Annotated[float, Field(ge=0, le=2**20)] = Field(
        default=0, description="cycles that a unit takes at each position of K to find the steps that zeros leave"
    )


SparseArray = Annotated[
    Structured | Balanced | Gather | Flexible | Mesh | Intersect | Gustavson | Outer | Dual,
    Field(discriminator="engine"),
]
ENGINES = ("structured", "balanced", "gather", "flexible", "mesh", "intersect", "gustavson", "outer", "dual")
