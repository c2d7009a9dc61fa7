"""Patterns of zeros: what the command line says (`2:4`, `random:0.1`, a file) as a Pattern, and its mask for one
matrix.

A mask is a C-ordered bool array, True where a value is kept. Weights are K x N, activations M x K; the reduction
dimension K is the one that N:M groups, blocks' first size and balanced groups lie along. Densities are the kept part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from sim.errors import ConfigError, nearest
from sim.sparse.schema import parse_ratio

if TYPE_CHECKING:
    from workloads.trace import Sparsity

Mask = NDArray[np.bool_]

FORMS = {
    "dense": "dense",
    "n:m": "N:M such as 2:4",
    "random": "random:DENSITY",
    "relu": "relu:DENSITY",
    "topk": "topk:DENSITY",
    "block": "block:ROWSxCOLUMNS:DENSITY",
    "balanced": "balanced:DEGREE[:BLOCK]",
    "file": "FILE.npz or FILE.npy",
}
"""Kinds of patterns and how each is written."""
OF_OPERAND = {
    "weights": ("dense", "n:m", "random", "block", "balanced", "file"),
    "activations": ("dense", "n:m", "random", "relu", "topk", "file"),
}
MOST_ELEMENTS = 2**31
BALANCED_BLOCK = 64


@dataclass(frozen=True, slots=True)
class Pattern:
    """Which values are kept. `density`: the part kept, nominally; n, m, block: of the kinds that have them."""

    kind: str
    density: float = 1.0
    n: int = 0
    m: int = 0
    block: tuple[int, int] = (1, 1)
    path: str = ""

    def __str__(self) -> str:
        if self.kind == "n:m":
            return f"{self.n}:{self.m}"
        if self.kind == "block":
            return f"block:{self.block[0]}x{self.block[1]}:{self.density:g}"
        if self.kind == "balanced":
            return f"balanced:{self.m // self.n}:{self.m}"
        if self.kind == "file":
            return self.path
        return self.kind if self.kind == "dense" else f"{self.kind}:{self.density:g}"


DENSE = Pattern("dense")


def nm(n: int, m: int) -> Pattern:
    """Exactly n of every m along K."""
    return Pattern("n:m", n / m, n, m)


def balanced(degree: int, block: int = BALANCED_BLOCK) -> Pattern:
    """One of `degree` kept, equally many in every `block` positions of a column: an N:M pattern with long groups."""
    if degree < 1 or block % degree:
        raise ConfigError(f"balanced:{degree}:{block} needs a block that the degree divides")
    return Pattern("balanced", 1 / degree, block // degree, block)


def of_sparsity(sparsity: Sparsity | None) -> Pattern:
    """The pattern that a tensor of a Trace states; DENSE where it states none."""
    if sparsity is None:
        return DENSE
    if sparsity.pattern == "n:m":
        assert sparsity.n is not None
        assert sparsity.m is not None
        return nm(sparsity.n, sparsity.m)
    if sparsity.pattern == "block":
        assert sparsity.block is not None
        return Pattern("block", sparsity.density, block=sparsity.block)
    return Pattern("random", sparsity.density) if sparsity.density < 1 else DENSE


def parse(text: str, operand: str) -> Pattern:
    """The pattern that an option's `text` means for `operand` (`weights` or `activations`). Raises ConfigError."""
    allowed = OF_OPERAND[operand]
    word, _, rest = text.partition(":")
    place = f"--{operand} {text}"
    if text.endswith((".npz", ".npy")):
        return Pattern("file", path=text)
    if text == "dense":
        return DENSE
    if word.isdecimal():
        try:
            return nm(*parse_ratio(text))
        except ValueError as error:
            raise ConfigError(f"--{operand} {error}") from None
    if word not in allowed:
        near = nearest(word, allowed)
        hint = f", nearest is {near!r}" if near else ""
        raise ConfigError(f"{place} is no pattern{hint}; allowed: {', '.join(FORMS[kind] for kind in allowed)}")
    if word in ("random", "relu", "topk"):
        return Pattern(word, _density(rest, place, FORMS[word]))
    if word == "balanced":
        parts = rest.split(":")
        if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
            raise ConfigError(f"{place} must be written {FORMS[word]}, such as balanced:16:64")
        return balanced(int(parts[0]), int(parts[1]) if len(parts) == 2 else max(BALANCED_BLOCK, int(parts[0])))
    size, _, density = rest.partition(":")
    sides = size.split("x")
    if len(sides) != 2 or not all(side.isdecimal() and int(side) for side in sides):
        raise ConfigError(f"{place} must be written {FORMS['block']}, such as block:16x16:0.25")
    return Pattern("block", _density(density, place, FORMS["block"]), block=(int(sides[0]), int(sides[1])))


def _density(text: str, place: str, form: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(f"{place} must be written {form}, with the kept part as a number from 0 to 1") from None
    if not 0 < value <= 1:
        raise ConfigError(f"{place} keeps {text} of the values, but the kept part must be above 0 and at most 1")
    return value


def draw(pattern: Pattern, shape: tuple[int, int], along: int, seed: int) -> Mask:
    """The mask of `pattern` for a matrix of `shape` whose axis `along` is the reduction; the same seed draws the same.

    Raises ConfigError for a file that does not fit.
    """
    if pattern.kind == "file":
        return load_mask(pattern.path, shape)
    if shape[0] * shape[1] > MOST_ELEMENTS:
        raise ConfigError(f"a mask of {shape[0]} x {shape[1]} is too large to draw; at most {MOST_ELEMENTS} elements")
    random = np.random.default_rng(seed)
    if pattern.kind == "dense":
        return np.ones(shape, np.bool_)
    if pattern.kind in ("random", "relu"):
        return random.random(shape, np.float32) < np.float32(pattern.density)
    if pattern.kind == "block":
        return _blocks(pattern, shape, along, random)
    length, others = shape[along], shape[1 - along]
    if pattern.kind == "topk":
        kept = max(1, round(pattern.density * length))
        drawn = np.zeros((others, length), np.bool_)
        # A random order of each row's positions; the first ones stand for the largest values.
        order = np.argpartition(random.random((others, length), np.float32), kept - 1, axis=1)[:, :kept]
        np.put_along_axis(drawn, order, True, axis=1)
        return np.ascontiguousarray(drawn if along == 1 else drawn.T)
    groups = -(-length // pattern.m)
    kept_of = np.empty((groups, pattern.m, others), np.bool_)
    needed = np.full((groups, others), pattern.n, np.int64)
    left = np.minimum(pattern.m, length - pattern.m * np.arange(groups))[:, None]
    needed = np.minimum(needed, left)
    for j in range(pattern.m):
        # Selection sampling: each position is kept with the part of the rest that is still wanted.
        kept_of[:, j] = random.random((groups, others), np.float32) * (left - j) < needed
        needed -= kept_of[:, j]
    mask = kept_of.reshape(groups * pattern.m, others)[:length]
    return np.ascontiguousarray(mask if along == 0 else mask.T)


def _blocks(pattern: Pattern, shape: tuple[int, int], along: int, random: np.random.Generator) -> Mask:
    sides = pattern.block if along == 0 else pattern.block[::-1]
    grid = tuple(-(-size // side) for size, side in zip(shape, sides, strict=True))
    kept = np.zeros(grid[0] * grid[1], np.bool_)
    kept[: max(1, round(pattern.density * len(kept)))] = True
    random.shuffle(kept)
    whole = np.repeat(np.repeat(kept.reshape(grid), sides[0], axis=0), sides[1], axis=1)
    return np.ascontiguousarray(whole[: shape[0], : shape[1]])


def load_mask(path: str | Path, shape: tuple[int, int]) -> Mask:
    """The mask in an .npy or .npz file: bool, or numbers that are kept where they are not zero. Raises ConfigError."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                names = list(loaded.files)
                if len(names) != 1 and "mask" not in names:
                    raise ConfigError(
                        f"holds {', '.join(names) or 'nothing'}, but must hold one array, or one named 'mask'",
                        file=path,
                    )
                array = loaded["mask" if "mask" in names else names[0]]
        else:
            array = loaded
    except FileNotFoundError:
        raise ConfigError("no such file", file=path) from None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"is no array file of numpy ({str(error).splitlines()[0]})", file=path) from None
    if array.shape != shape:
        hint = "; the transposed one has the right shape" if array.shape[::-1] == shape else ""
        given = " x ".join(map(str, array.shape)) or "no dimension"
        raise ConfigError(f"the mask has shape {given}, but must be {shape[0]} x {shape[1]}{hint}", file=path)
    if array.dtype.kind not in "biuf":
        raise ConfigError(f"the mask is of type {array.dtype}, but must hold truth values or numbers", file=path)
    if array.dtype.kind == "f" and np.isnan(array).any():
        raise ConfigError("the mask has values that are no numbers (NaN)", file=path)
    return np.ascontiguousarray(array != 0)


def violation(mask: Mask, n: int, m: int, along: int = 0) -> tuple[int, int, int] | None:
    """The first (group, line, kept) that keeps more than n of its m positions along `along`, or None."""
    from sim.kernels.sparse_counts import block_counts

    counts = block_counts(mask if along == 0 else np.ascontiguousarray(mask.T), m)
    if counts.max(initial=0) <= n:
        return None
    group, line = (int(i) for i in np.argwhere(counts > n)[0])
    return group, line, int(counts[group, line])


def check_ratio(pattern: Pattern, ratios: Sequence[str]) -> None:
    """Refuse an N:M pattern that the arrays don't take. Raises ConfigError."""
    if str(pattern) not in ratios:
        near = nearest(str(pattern), ratios, cutoff=0.3)
        raise ConfigError(
            f"the pattern {pattern} has no unit on this machine"
            + (f", nearest is {near!r}" if near else "")
            + f"; allowed: dense, {', '.join(ratios)}"
        )
