"""The random matrices of STONNE's test bench, rebuilt: glibc's rand() with its default seed, and the bench's quirks.

An element is zero when rand() % 100 <= the nominal sparsity (so "0 %" has one per cent of zeros); non-zeros draw a
second number for their value. Rows of the M x K matrix and columns of K x N with fewer than three non-zeros are padded
to three.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


def glibc_rand(seed: int = 1) -> Iterator[int]:
    """What rand() of the GNU C library returns after srand(seed): an additive feedback generator of order 31."""
    state = [seed]
    for _ in range(30):
        state.append(16807 * state[-1] % 2147483647)
    ring = [state[i % 31] for i in range(31)]
    at = 0  # ring[at] is r[i - 31], ring[at - 3] is r[i - 3]
    for _ in range(3):
        at = (at + 1) % 31
    discard = 310
    while True:
        value = (ring[at] + ring[at - 3]) & 0xFFFFFFFF
        ring[at] = value
        at = (at + 1) % 31
        if discard:
            discard -= 1
            continue
        yield value >> 1


def _dense(random: Iterator[int], rows: int, columns: int, sparsity: int) -> NDArray[np.bool_]:
    kept = np.zeros(rows * columns, np.bool_)
    for i in range(rows * columns):
        if next(random) % 100 > sparsity:
            next(random)
            kept[i] = True
    return kept.reshape(rows, columns)


def _padded(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """At least three entries in each row, filled from the left."""
    for row in mask:
        for j in range(min(3, len(row))):
            if row.sum() >= 3:
                break
            row[j] = True
    return mask


@lru_cache(maxsize=8)
def stonne_masks(m: int, n: int, k: int, left: int, right: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(M x K, K x N) masks of stored entries for nominal sparsities in per cent."""
    random = glibc_rand()
    a = _dense(random, m, k, left)
    b = _dense(random, k, n, right)
    return _padded(a), _padded(b.T.copy()).T
