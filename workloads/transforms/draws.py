"""Random draws of methods: counter-based, so that a draw depends on the seed and on what it is for, and nothing else.

A stream is named by texts and whole numbers ("accept", 3). Streams of different names are independent, and how much one
of them has drawn does not move another. Only raw 64-bit words are taken from numpy (Philox 4x64-10, Salmon et al., SC
2011), so that the numbers do not depend on how numpy turns words into distributions.
"""

from __future__ import annotations

from collections.abc import Sequence
from zlib import crc32


class Stream:
    """A sequence of numbers in [0, 1), the same for the same `seed` and `name`."""

    def __init__(self, seed: int, *name: str | int) -> None:
        from numpy.random import Philox, SeedSequence

        words = [crc32(part.encode()) if isinstance(part, str) else part for part in name]
        self._bits = Philox(SeedSequence([seed, *words]))

    def uniforms(self, count: int) -> list[float]:
        """The next `count` numbers, each a multiple of 2^-53."""
        if count == 0:
            return []
        words = self._bits.random_raw(count)
        return [float(word) for word in (words >> 11) * 2.0**-53]

    def choices(self, weights: Sequence[float], count: int) -> list[int]:
        """`count` positions in `weights`, each drawn with its weight's share of their sum."""
        from bisect import bisect_right
        from itertools import accumulate

        sums = list(accumulate(weights))
        return [min(bisect_right(sums, u * sums[-1]), len(weights) - 1) for u in self.uniforms(count)]
