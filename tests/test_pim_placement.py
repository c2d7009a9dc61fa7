"""Where requests are in a memory with PIM: rows of keys and values, channels, halves of a batch, addresses of rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import ConfigError
from sim.kernels.dram_tables import bank_and_row
from sim.pim.address import RowAddresses, runs
from sim.pim.placement import KvLayout, Policy, deal, halves, place
from sim.standards import Memory, compile_memory, load_memory

LENGTHS = st.lists(st.integers(0, 900), min_size=1, max_size=40)
EIGHT_HEADS = KvLayout(banks=32, row_elements=512, heads=8, head_dim=128, value_dim=128)


def memory(mapping: str = "", rows: int = 64) -> Memory:
    settings = {"organisation.rows": rows, "mapping": mapping or "ro:3,ra:1,ro:3,ba:2,co:4,bg:2,ch:c"}
    return load_memory("hbm2-neupims-pim", settings)


def test_rows_of_a_request_as_in_the_study() -> None:
    """GPT-3 7B on four devices, 512 positions: 32 tiles of keys and 32 of values."""
    assert (EIGHT_HEADS.heads_in_row, EIGHT_HEADS.key_chunks, EIGHT_HEADS.value_tiles) == (4, 2, 4)
    assert (EIGHT_HEADS.key_rows(512), EIGHT_HEADS.value_rows(512)) == (32, 32)
    # A position more begins a stretch of 32 in either of the two rows of keys, and rows of values for each head.
    assert (EIGHT_HEADS.key_rows(513), EIGHT_HEADS.value_rows(513)) == (34, 64)
    # Values cost the same for 1 and for 512 positions.
    assert EIGHT_HEADS.value_rows(1) == 32
    # Ten heads leave the third row of keys half empty.
    ten = KvLayout(32, 512, 10, 128, 128)
    assert (ten.key_chunks, ten.rows(64)) == (3, 2 * 3 + 10 * 4)


def test_collected_values_have_rows_of_their_own() -> None:
    layout = KvLayout(32, 512, 8, 128, 128, collected=32)
    # 32 positions x 1024 elements fill two rows of 32 banks x 512 elements.
    assert layout.tail_rows == 2
    assert layout.rows(512) == EIGHT_HEADS.rows(512) + 2
    # The first head writes to its rows at 32, 64 ..., the fourth at 12, 44, 76 ...
    assert [layout.settled(n, 0) for n in (0, 31, 32, 100)] == [0, 0, 32, 96]
    assert [layout.settled(n, 3) for n in (0, 11, 12, 100)] == [0, 0, 12, 76]
    assert EIGHT_HEADS.settled(31, 3) == 31


@given(st.integers(1, 40), st.integers(0, 600))
def test_every_value_is_collected_once_and_written_once(heads: int, length: int) -> None:
    layout = KvLayout(32, 512, heads, 16, 16, collected=32)
    for head in range(heads):
        steps = [layout.settled(n, head) for n in range(length + 33)]
        assert all(0 <= n - steps[n] <= 31 for n in range(length + 33))
        assert all(a == b or b == n + 1 for n, (a, b) in enumerate(pairwise(steps)))
    written = [layout.settled(length + 1, h) > layout.settled(length, h) for h in range(heads)]
    assert sum(written) <= -(-heads // 32) + (length == 0)


def test_a_head_wider_than_a_row_is_refused() -> None:
    with pytest.raises(ConfigError, match="a head of 576 elements does not fit in the 512 of a bank"):
        KvLayout(32, 512, 1, 576, 512)


def test_round_robin_takes_turns_and_greedy_the_least_loaded() -> None:
    lengths = [5, 9, 1, 7, 3]
    assert deal(lengths, 2, Policy.ROUND_ROBIN, lambda n: n) == [[5, 1, 3], [9, 7]]
    # 9 | 7, then 5 to 7, 3 to 9, 1 to either (12 each): the first.
    assert deal(lengths, 2, Policy.GREEDY, lambda n: n) == [[9, 3, 1], [7, 5]]


@given(LENGTHS, st.integers(1, 8))
def test_greedy_is_never_far_from_even(lengths: list[int], channels: int) -> None:
    dealt = deal(lengths, channels, Policy.GREEDY, lambda n: n + 3)
    assert sorted(n for channel in dealt for n in channel) == sorted(lengths)
    loads = [sum(n + 3 for n in channel) for channel in dealt]
    longest = sorted((n + 3 for n in lengths), reverse=True)[: channels + 1]
    # Of one more than there are channels, two must share one.
    pair = sum(longest[-2:]) if len(longest) > channels else 0
    least = max(sum(loads) / channels, longest[0], pair)
    # Graham's bound of longest processing time first, against a lower bound of the best.
    assert max(loads) <= (4 / 3 - 1 / (3 * channels)) * least + longest[0] / 3


@given(st.lists(LENGTHS, min_size=1, max_size=6))
def test_halves_are_even_on_every_channel_and_in_all(dealt: list[list[int]]) -> None:
    parts = halves(dealt, lambda n: n + 3)
    for lengths, first, second in zip(dealt, *parts, strict=True):
        assert sorted([*first, *second]) == sorted(lengths)
        loads = [sum(n + 3 for n in part) for part in (first, second)]
        assert abs(loads[0] - loads[1]) <= max(lengths) + 3
    counts = [sum(map(len, part)) for part in parts]
    widest = max(abs(len(a) - len(b)) for a, b in zip(*parts, strict=True))
    assert abs(counts[0] - counts[1]) <= max(widest, 1)


@given(st.lists(LENGTHS, min_size=1, max_size=5), st.integers(0, 100))
def test_requests_of_a_channel_share_no_row(dealt: list[list[int]], first: int) -> None:
    layout = KvLayout(32, 512, 2, 64, 64, collected=32)
    placement = place([dealt], layout, lambda n: 1, lambda n: n, first)
    assert sorted(c for group in placement.groups for c in group.channels) == list(range(len(dealt)))
    for group in placement.groups:
        assert all(dealt[channel] == dealt[group.channels[0]] for channel in group.channels)
        taken: set[int] = set()
        for request in group.parts[0]:
            length = request.past + 1
            rows = [
                *range(request.key_row, request.key_row + layout.key_rows(length)),
                *range(request.value_row, request.value_row + layout.value_rows(length)),
                *range(request.tail_row, request.tail_row + layout.tail_rows),
            ]
            assert not taken & set(rows)
            taken |= set(rows)
        assert taken <= set(range(first, first + placement.kv_rows))


MAPPINGS = ("", "ro:6,ra:1,bg:2,ba:2,ch:c,co:4", "ro:2,co:2,ro:4,ra:1,ba:2,bg:1,co:2,bg:1,ch:c")


@pytest.mark.parametrize("mapping", MAPPINGS)
def test_addresses_are_the_inverse_of_the_decoder(mapping: str) -> None:
    memory_ = memory(mapping)
    addresses, tables = RowAddresses(memory_), compile_memory(memory_)
    bank, row, column = (grid.ravel() for grid in np.indices((32, 64, 16)))
    bursts = addresses.bursts(bank, row, column)
    assert sorted(bursts.tolist()) == list(range(32 * 64 * 16))
    for b, r, burst in list(zip(bank.tolist(), row.tolist(), bursts.tolist(), strict=True))[::37]:
        assert bank_and_row(tables, np.int64(burst)) == (b, r)


@given(st.integers(0, 32 * 64 * 16))
def test_rows_set_apart_lie_behind_what_is_used(used: int) -> None:
    addresses = RowAddresses(memory())
    first = addresses.first_free_row(used)
    bank, row, column = (grid.ravel() for grid in np.indices((32, 64, 16)))
    behind = addresses.bursts(bank, row, column)[row >= first]
    assert behind.size == 0 or behind.min() >= used
    # Rows come free eight at a time with this mapping, and not one group is wasted.
    assert first <= -(-used // (32 * 8 * 16)) * 8


def test_rows_cannot_be_set_apart_under_any_mapping() -> None:
    with pytest.raises(ConfigError, match="mapping: is 'ba:2,ro:6.*most significant field is the row"):
        RowAddresses(memory("ba:2,ro:6,ra:1,co:4,bg:2,ch:c"))


def test_runs_join_what_is_consecutive() -> None:
    first, count = runs(np.array([4, 5, 6, 9, 8, 9]))
    assert (first.tolist(), count.tolist()) == ([4, 9, 8], [3, 1, 2])
