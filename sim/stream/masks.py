"""Which keys each query of an attention sees: all, the past, a window of it, or blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.errors import ConfigError

WRITTEN = "full, causal, window:KEYS or block:SIZE:DENSITY[:SEED]"


@dataclass(frozen=True, eq=False)
class Mask:
    """Which of `keys` keys each of `queries` queries sees.

    Those from `first` up to, not including, `end` (one entry a query); or those that `visible` (queries x keys) says;
    all without either.
    """

    queries: int
    keys: int
    first: NDArray[np.int64] | None = None
    end: NDArray[np.int64] | None = None
    visible: NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        counts = self._counts()
        blind = [] if counts is None else np.flatnonzero(counts < 1).tolist()
        if blind:
            raise ConfigError(f"query {blind[0]} sees no key, but must see one", key="mask")

    def _counts(self) -> NDArray[np.int64] | None:
        if self.visible is not None:
            counts: NDArray[np.int64] = self.visible.sum(axis=1, dtype=np.int64)
            return counts
        return None if self.first is None or self.end is None else self.end - self.first

    def lengths(self) -> int | list[int]:
        """Keys of each query: one number where all have as many."""
        counts = self._counts()
        if counts is None:
            return self.keys
        return int(counts[0]) if (counts == counts[0]).all() else [int(n) for n in counts]

    def seen(self, query: int) -> NDArray[np.int64]:
        """Keys that a query sees, in order."""
        if self.visible is not None:
            return np.flatnonzero(self.visible[query])
        if self.first is None or self.end is None:
            return np.arange(self.keys)
        return np.arange(self.first[query], self.end[query])

    def dense(self) -> NDArray[np.bool_]:
        """Whether query i sees key j, for all of them."""
        found = np.zeros((self.queries, self.keys), bool)
        for i in range(self.queries):
            found[i, self.seen(i)] = True
        return found


def full(queries: int, keys: int) -> Mask:
    """Every query sees every key."""
    return Mask(queries, keys)


def causal(queries: int, keys: int, window: int | None = None) -> Mask:
    """The last query sees the last key, each one before a key less; of those only the latest `window`, if given."""
    if queries > keys:
        raise ConfigError(f"a causal mask needs a key for each query, but has {keys} for {queries}", key="mask")
    end = np.arange(keys - queries, keys) + 1
    return Mask(queries, keys, np.maximum(end - (window or keys), 0), end)


def blocks(pattern: NDArray[np.bool_], size: int, queries: int, keys: int) -> Mask:
    """Block-sparse: `pattern[a, b]` says whether queries a * size ... see keys b * size ... Raises ConfigError."""
    wanted = (-(-queries // size), -(-keys // size))
    if pattern.shape != wanted:
        raise ConfigError(f"has {pattern.shape[0]} x {pattern.shape[1]} blocks, but {queries} queries and {keys} keys "
                          f"in blocks of {size} need {wanted[0]} x {wanted[1]}", key="mask")  # fmt: skip
    ones = np.ones((size, size), np.int8)
    return Mask(queries, keys, visible=np.kron(pattern, ones).astype(bool)[:queries, :keys])


def random_blocks(queries: int, keys: int, size: int, density: float, seed: int) -> Mask:
    """Blocks drawn at random with probability `density`, those on the diagonal always there."""
    shape = (-(-queries // size), -(-keys // size))
    pattern = np.random.default_rng(seed).random(shape) < density
    row = np.arange(shape[0])
    pattern[row, row * shape[1] // shape[0]] = True
    return blocks(pattern, size, queries, keys)


def read_mask(text: str, queries: int, keys: int) -> Mask:
    """A mask as written on the command line, see WRITTEN. Raises ConfigError."""
    if text == "full":
        return full(queries, keys)
    if text == "causal":
        return causal(queries, keys)
    if found := re.fullmatch(r"window:([1-9][0-9]*)", text):
        return causal(queries, keys, int(found[1]))
    if found := re.fullmatch(r"block:([1-9][0-9]*):(0?\.[0-9]+|[01]|[01]\.0*)(?::([0-9]+))?", text):
        return random_blocks(queries, keys, int(found[1]), float(found[2]), int(found[3] or 0))
    raise ConfigError(f"is {text!r}, but must be {WRITTEN}", key="mask")
