"""Which keys a query sees: attention masks and the exact count of (query, key) pairs and keys under each of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from math import ceil


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """`count` requests alike: `query` new positions each, after `past` positions that are cached already."""

    count: int
    query: int
    past: int = 0

    def __post_init__(self) -> None:
        if self.count < 1 or self.query < 1 or self.past < 0:
            raise ValueError(
                f"a span needs count >= 1, query >= 1, past >= 0; got {self.count}, {self.query}, {self.past}"
            )

    @property
    def tokens(self) -> int:
        """New positions of all `count` requests."""
        return self.count * self.query

    @property
    def length(self) -> int:
        """Positions of one request after the pass, the new ones included."""
        return self.past + self.query


MASK_KINDS = ("causal", "full", "window", "chunk", "block", "tree", "top_k", "block_sparse", "lists", "pooled")


@dataclass(frozen=True, slots=True)
class Mask:
    """Which keys a query at absolute position p sees.

    causal: 0..p · full: every position · window: the last `window` ones, itself included, and the first `sinks` ones
    · chunk: those of its own chunk of `window` positions, up to p · block: every block of `block` positions up to its
    own, its own to the end (block diffusion) · tree: all past ones, its ancestors in `parents` (index of each new
    position's parent, -1 for a root) and itself; the first `cached` of the parents' positions are no new ones but the
    last cached ones, and with a `window` it sees the past no further back than that · top_k: the best `top_k` of 0..p ·
    block_sparse: ceil(`density` x blocks up to its own) blocks of `block` positions, its own (up to p) always among
    them · lists: of its own block i of `block` positions the blocks in `lists`[i], its own up to p · pooled: its own
    block up to p, and of the blocks before a share at each of the `levels` (pool, share): `pool` positions as one
    entry. `both`: a window, top_k, block_sparse or pooled mask chooses among the positions after p as well (encoders,
    images).
    """

    kind: str
    window: int | None = None
    sinks: int = 0
    block: int | None = None
    density: float | None = None
    top_k: int | None = None
    parents: tuple[int, ...] | None = None
    cached: int = 0
    lists: tuple[tuple[int, ...], ...] | None = None
    levels: tuple[tuple[int, float], ...] | None = None
    both: bool = False

    def __post_init__(self) -> None:
        needs = {
            "window": "window", "chunk": "window", "block": "block", "top_k": "top_k", "block_sparse": "block",
            "lists": "block", "pooled": "block",
        }  # fmt: skip
        if self.kind not in MASK_KINDS:
            raise ValueError(f"mask kind {self.kind!r} is none of {', '.join(MASK_KINDS)}")
        needed = needs.get(self.kind)
        if needed and (getattr(self, needed) is None or getattr(self, needed) < 1):
            raise ValueError(f"a {self.kind} mask needs {needed} >= 1, got {getattr(self, needed)}")
        if self.kind == "block_sparse" and (self.density is None or not 0 < self.density <= 1):
            raise ValueError(f"a block_sparse mask needs 0 < density <= 1, got {self.density}")
        if self.kind == "tree" and not _is_forest(self.parents or ()):
            raise ValueError("a tree mask needs parents, each -1 or the index of an earlier position")
        if self.cached and not (self.kind == "tree" and 0 < self.cached < len(self.parents or ())):
            raise ValueError(f"cached counts the first positions of a tree, not all of them, got {self.cached}")
        if self.kind == "lists" and not _are_lists(self.lists or ()):
            raise ValueError("a lists mask needs lists, each of rising numbers of blocks that ends with its own")
        if self.kind == "pooled" and not _are_levels(self.levels or ()):
            raise ValueError("a pooled mask needs levels of a pool >= 1 and a share; the shares add up to 1 at most")
        if self.both and self.kind not in ("window", "top_k", "block_sparse", "pooled"):
            raise ValueError(f"a {self.kind} mask says itself which way it looks; both has no place")
        if self.sinks < 0 or (self.sinks and self.kind != "window"):
            raise ValueError(f"sinks belong to a window mask and are not negative, got {self.sinks} with {self.kind}")


def _is_forest(parents: tuple[int, ...]) -> bool:
    return bool(parents) and all(-1 <= parent < i for i, parent in enumerate(parents))


def _are_lists(lists: tuple[tuple[int, ...], ...]) -> bool:
    return bool(lists) and all(
        row and row[-1] == own and row[0] >= 0 and all(a < b for a, b in pairwise(row))
        for own, row in enumerate(lists)
    )


def _are_levels(levels: tuple[tuple[int, float], ...]) -> bool:
    shares = [_exact(share) for _, share in levels]
    return bool(levels) and all(pool >= 1 for pool, _ in levels) and min(shares) >= 0 and sum(shares) <= 1


def _exact(number: float) -> Fraction:
    """The decimal that was written, not the binary number next to it."""
    return Fraction(str(number))


CAUSAL = Mask("causal")
FULL = Mask("full")


def _triangle(n: int) -> int:
    return n * (n + 1) // 2


def _capped(past: int, query: int, limit: int) -> int:
    """Sum of min(position + 1, limit) over the new positions."""
    below = min(max(limit - past, 0), query)
    return below * past + _triangle(below) + (query - below) * limit


def _block_sparse_rows(mask: Mask, query: int, past: int) -> Iterator[int]:
    """Visible keys of each new position under a block-sparse mask."""
    assert mask.block is not None
    assert mask.density is not None
    density = _exact(mask.density)
    for position in range(past, past + query):
        kept = ceil(density * (position // mask.block + 1))
        yield (kept - 1) * mask.block + position % mask.block + 1


def _listed(mask: Mask, total: int) -> tuple[tuple[int, ...], ...]:
    assert mask.block is not None
    assert mask.lists is not None
    if total > len(mask.lists) * mask.block:
        raise ValueError(f"{len(mask.lists)} lists of blocks of {mask.block} cannot mask {total} positions")
    return mask.lists


def _pooled_rows(mask: Mask, query: int, past: int) -> Iterator[int]:
    """Entries that each new position sees under a pooled mask."""
    assert mask.block is not None
    assert mask.levels is not None
    kept = sum((_exact(share) * mask.block / pool for pool, share in mask.levels), Fraction(0))
    for position in range(past, past + query):
        yield ceil(kept * (position // mask.block)) + position % mask.block + 1


def _rows_both_ways(mask: Mask, query: int, past: int) -> Iterator[int]:
    """Visible keys of each new position where later positions count as well."""
    total = past + query
    if mask.kind == "window":
        assert mask.window is not None
        for p in range(past, total):
            start = max(0, p + 1 - mask.window)
            yield min(p + mask.window, total) - start + min(mask.sinks, start)
        return
    if mask.kind == "top_k":
        assert mask.top_k is not None
        same = min(mask.top_k, total)
    else:
        assert mask.block is not None
        blocks = -(-total // mask.block)
        if mask.kind == "block_sparse":
            assert mask.density is not None
            same = min(ceil(_exact(mask.density) * blocks) * mask.block, total)
        else:
            assert mask.levels is not None
            kept = sum((_exact(share) * mask.block / pool for pool, share in mask.levels), Fraction(0))
            same = min(mask.block + ceil(kept * (blocks - 1)), total)
    yield from (same for _ in range(query))


def _tree_rows(mask: Mask, query: int, past: int) -> tuple[list[int], list[int], int]:
    """Depth of each position of the tree, the new ones among them, and how many cached positions are no tree's."""
    parents = mask.parents
    assert parents is not None
    if len(parents) - mask.cached != query:
        raise ValueError(f"a tree of {len(parents) - mask.cached} new positions cannot mask {query} new positions")
    if mask.cached > past:
        raise ValueError(f"a tree with {mask.cached} cached positions needs as many, but {past} are cached")
    depth: list[int] = []
    for parent in parents:
        depth.append(1 if parent < 0 else depth[parent] + 1)
    return depth, list(range(mask.cached, len(parents))), past - mask.cached


@lru_cache(maxsize=65536)
def visible_pairs(mask: Mask, query: int, past: int) -> int:
    """Exact number of (query, key) pairs that `mask` lets through: `query` new positions after `past` cached ones."""
    total = past + query
    if mask.both:
        return sum(_rows_both_ways(mask, query, past))
    if mask.kind == "causal":
        return query * past + _triangle(query)
    if mask.kind == "full":
        return query * total
    if mask.kind == "window":
        assert mask.window is not None
        return _capped(past, query, mask.window + mask.sinks)
    if mask.kind == "top_k":
        assert mask.top_k is not None
        return _capped(past, query, mask.top_k)
    if mask.kind == "chunk":
        assert mask.window is not None
        size = mask.window

        def below(n: int) -> int:
            return n // size * _triangle(size) + _triangle(n % size)

        return below(total) - below(past)
    if mask.kind == "block":
        assert mask.block is not None
        size = mask.block

        def up_to(n: int) -> int:
            whole, rest = divmod(n, size)
            return size * size * _triangle(whole) + rest * (whole + 1) * size

        last = total // size * size
        unfinished = total - max(last, past) if total % size else 0
        return up_to(total) - up_to(past) - unfinished * (last + size - total)
    if mask.kind == "tree":
        depth, new, trunk = _tree_rows(mask, query, past)
        if mask.window is None:
            return query * trunk + sum(depth[i] for i in new)
        return sum(min(mask.window, trunk + depth[i]) for i in new)
    if mask.kind == "lists":
        assert mask.block is not None
        lists, size = _listed(mask, total), mask.block
        return sum((len(lists[p // size]) - 1) * size + p % size + 1 for p in range(past, total))
    if mask.kind == "pooled":
        return sum(_pooled_rows(mask, query, past))
    return sum(_block_sparse_rows(mask, query, past))


@lru_cache(maxsize=65536)
def visible_keys(mask: Mask, query: int, past: int) -> int:
    """Number of distinct key positions that at least one of the new positions sees (those that must be read).

    For top_k and block_sparse, whose choice is not known, the choices of different queries are taken to overlap as
    little as they can: the smaller of all positions and the visible pairs. So are those of pooled, among the entries of
    all levels.
    """
    total = past + query
    if mask.kind == "tree":
        depth, new, trunk = _tree_rows(mask, query, past)
        seen: set[int] = set()
        assert mask.parents is not None
        for i in new:
            node, left = i, mask.window or len(depth)
            while node >= 0 and left > 0:
                seen.add(node)
                node, left = mask.parents[node], left - 1
        reach = trunk if mask.window is None else max(mask.window - min(depth[i] for i in new), 0)
        return len(seen) + min(trunk, reach)
    if mask.kind == "lists":
        assert mask.block is not None
        lists, size = _listed(mask, total), mask.block
        blocks = {b for own in range(past // size, (total - 1) // size + 1) for b in lists[own]}
        return sum(min(size, total - b * size) for b in blocks)
    if mask.kind == "pooled":
        assert mask.levels is not None
        assert mask.block is not None
        pooled = sum(total // pool for pool, share in mask.levels if share and pool > 1)
        plain = any(share and pool == 1 for pool, share in mask.levels)
        start = 0 if plain else past // mask.block * mask.block
        return min(pooled + total - start, visible_pairs(mask, query, past))
    if mask.kind == "window":
        assert mask.window is not None
        # Looking both ways, the last new position is the last there is: nothing lies after it.
        start = max(0, past + 1 - mask.window)
        return total - start + min(mask.sinks, start)
    if mask.kind == "chunk":
        assert mask.window is not None
        return total - past // mask.window * mask.window
    if mask.kind in ("top_k", "block_sparse"):
        return min(total, visible_pairs(mask, query, past))
    return total
