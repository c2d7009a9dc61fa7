"""The lowering: places on chip, and what must hold of every pass on every kind of machine whatever the mapper chose."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from machines import MACHINES, PASSES, Run, small_run

from sim.kernels import dram_tables as at
from sim.lower.buffers import Ring
from sim.lower.builder import PER_CORE, Space, Unit
from sim.lower.homes import CARRIED, groups, on_chip, versions
from sim.lower.lowering import scratchpad_bytes, units, write_units
from workloads.trace import AttentionAttrs, MatmulAttrs, Op, OpKind, Role

# The ring of on-chip buffers


def test_places_follow_each_other_and_wrap():
    ring = Ring(100)
    a, b = ring.take(40), ring.take(40)
    assert [(x.span.low, x.span.high) for x in (a, b)] == [(0, 40), (40, 80)]
    ring.free(a, (1,))
    c = ring.take(30)  # the 20 bytes at the end are too few: around to the place of `a`
    assert (c.span.low, c.span.high) == (0, 30)
    assert c.waits == (1,)
    assert c.external == ()


def test_a_place_waits_for_all_who_had_a_part_of_it():
    ring = Ring(100)
    for task, size in enumerate((30, 30, 40)):
        ring.free(ring.take(size), (task, task + 10))
    assert ring.take(50).waits == (0, 10, 1, 11)
    # Of the second buffer 10 bytes are left, and they still belong to its users.
    assert ring.take(20).waits == (1, 11, 2, 12)


def test_buffers_in_use_are_stepped_over():
    ring = Ring(100)
    a, b, c = ring.take(30), ring.take(30), ring.take(40)
    ring.free(a, (1,))
    ring.free(c, (3,))
    assert ring.take(30).span.low == 0
    assert (ring.take(35).span.low, b.span.low) == (60, 30)


def test_a_full_ring_is_an_error():
    ring = Ring(100)
    ring.take(60)
    with pytest.raises(MemoryError, match="50 of 100"):
        ring.take(50)


def test_what_ran_before_owns_every_place_until_it_is_taken():
    ring = Ring(100)
    assert ring.take(30).external == ((0, 30),)
    ring.free(ring.take(70), (5,))
    assert [(s.low, s.high) for s in ring.touched()] == [(0, 30), (30, 100)]


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(0, 5)), min_size=1, max_size=60))
def test_no_byte_has_two_owners_and_waits_are_exact(requests):
    """Against a list of bytes, each with its last user."""
    ring = Ring(128)
    owner: list[tuple[int, ...] | None] = [(-1,)] * 128
    held = []
    for number, (size, frees) in enumerate(requests):
        for _ in range(min(frees, len(held))):
            buffer, users = held.pop(0)
            ring.free(buffer, users)
            owner[buffer.span.low : buffer.span.high] = [users] * (buffer.span.high - buffer.span.low)
        try:
            buffer = ring.take(size)
        except MemoryError:
            runs, free = 0, 0
            for byte in owner:
                runs = 0 if byte is None else runs + 1
                free = max(free, runs)
            assert free < size
            continue
        low, high = buffer.span.low, buffer.span.high
        assert high - low == size
        assert None not in owner[low:high]
        before = {task for users in owner[low:high] for task in users or ()}
        assert set(buffer.waits) == before - {-1}
        assert sum(b - a for a, b in buffer.external) == owner[low:high].count((-1,))
        owner[low:high] = [None] * size
        held.append((buffer, (number, number + 1000)))


# Runs

CASES = [
    *[("ws", p) for p in PASSES],
    *[("tight", p) for p in ("listed_decode", "chunked_prefill", "mla_prefill", "moe_prefill", "window_decode")],
    *[("four_cores", p) for p in ("gqa_decode", "listed_prefill", "moe_decode", "encoder")],
    *[("unfused", p) for p in ("listed_decode", "chunked_prefill", "mla_decode", "window_decode", "encoder")],
    *[(m, "listed_decode") for m in MACHINES if m not in ("ws", "tight", "four_cores", "unfused")],
    *[(m, "moe_prefill") for m in ("os", "is_serial", "ddr4")],
]


@pytest.fixture(params=CASES, ids="-".join, scope="module")
def run(request) -> Run:
    return small_run(*request.param)


def test_every_task_ran_once_for_its_time(run):
    program, s = run.lowered.linked.program, run.schedule
    assert (s.start_ps >= 0).all()
    length = s.release_ps - s.start_ps
    compute = program.memory < 0
    cold = length - program.ticks
    assert ((cold == 0) | (cold == program.cold))[compute].all()
    assert (cold >= 0).all()
    joins = program.unit == len(program.slots) - 1
    assert (s.finish_ps - s.release_ps == np.where(joins, 0, program.tail)).all()
    assert s.makespan_ps >= s.finish_ps.max()


def test_tasks_start_after_all_that_they_wait_for(run):
    program, s = run.lowered.linked.program, run.schedule
    before = np.repeat(np.arange(len(program.unit)), np.diff(program.ptr))
    assert (before < program.succ).all()
    assert (s.finish_ps[before] <= s.start_ps[program.succ]).all()
    assert (np.bincount(program.succ, minlength=len(program.unit)) == program.waits).all()


def test_no_unit_runs_more_than_its_slots_or_its_window(run):
    program, s = run.lowered.linked.program, run.schedule
    for unit, (slots, window) in enumerate(units(run.machine)[:-1]):
        mine = np.flatnonzero(program.unit == unit)
        ends = [(int(s.release_ps[i]), 0, -1, -int(program.size[i])) for i in mine]
        starts = [(int(s.start_ps[i]), 1, 1, int(program.size[i])) for i in mine]
        tasks = moving = 0
        for _, _, more, size in sorted(e for e in ends + starts):
            tasks += more
            moving += size
            assert tasks <= slots
            assert tasks <= 2 or not window or moving <= window
        assert (tasks, moving) == (0, 0)


def test_no_two_live_buffers_share_a_byte_of_the_chip(run):
    s, machine = run.schedule, run.machine
    share = machine.cores == 1 and machine.scratchpad.activation_share > 0
    rings = [scratchpad_bytes(machine, share)] * machine.cores + [int(machine.accumulator.capacity)] * machine.cores
    assert run.places
    for ring, capacity in enumerate(rings):
        events = []
        for number, place in enumerate(p for p in run.places if p.ring == ring):
            assert 0 <= place.low <= place.high <= capacity
            begin = min(int(s.start_ps[task]) for task in place.first)
            end = max(int(s.release_ps[user]) for user in place.users)
            assert max(int(s.start_ps[task]) for task in place.first) <= end
            if place.low < place.high and begin < end:
                events += [(begin, 1, number, place), (end, 0, number, place)]
        live: dict[int, tuple[int, int]] = {}
        for _, starts, number, place in sorted(events, key=lambda e: e[:3]):
            if not starts:
                del live[number]
                continue
            assert all(high <= place.low or place.high <= low for low, high in live.values())
            live[number] = (place.low, place.high)
            assert sum(high - low for low, high in live.values()) <= capacity


def _ops(run: Run) -> list[Op]:
    """The operator of each row of the report."""
    return [op for block in run.work.blocks for _ in range(block.repeat) for op in block.ops]


def test_the_channels_carry_the_bursts_of_the_tasks(run):
    linked = run.lowered.linked
    program, burst = linked.program, run.machine.dram.burst_bytes
    per_task = np.zeros(len(program.unit), np.int64)
    for c, weight in enumerate(linked.weight):
        bursts = np.diff(np.concatenate(([0], np.cumsum(program.seg_n)))[program.seg_ptr[c]])
        per_task[program.memory >= 0] += weight * bursts
    read, written = linked.dram_read_bytes, linked.dram_write_bytes
    assert (per_task[(read == 0) & (written == 0)] == 0).all()
    assert (per_task * burst >= read + written).all()
    pieces = np.zeros(len(program.unit), np.int64)
    shift = 0
    for template, repeat, _ in run.templates:
        once = np.bincount(template.seg_task, minlength=len(template.unit))
        pieces[shift : shift + repeat * len(once)] = np.tile(once, repeat)
        shift += repeat * len(once)
    assert (per_task * burst <= read + written + pieces * 2 * (burst - 1)).all()

    counts = linked.weight @ run.state.count
    memory = run.schedule.memory
    assert counts[at.RD] + counts[at.FORWARDED] == per_task[read > 0].sum()
    assert counts[at.WR] + counts[at.ABSORBED] == per_task[written > 0].sum()
    assert memory.bytes_read == counts[at.RD] * burst
    assert memory.bytes_written == counts[at.WR] * burst
    stores = np.isin(program.unit, list(write_units(run.machine)))
    assert not read[stores].any()
    assert not written[~stores].any()


def test_the_arrays_do_the_products_of_the_trace(run):
    linked = run.lowered.linked
    done = np.bincount(linked.op, linked.work["macs"], minlength=len(run.lowered.ops)).astype(np.int64)
    for row, op, macs in zip(run.lowered.ops, _ops(run), done, strict=True):
        assert row.name == op.name and row.flops == op.flops
        if isinstance(op.attrs, AttentionAttrs):
            # Masked pairs inside a step are computed and thrown away; a single query that sees all masks none.
            assert macs >= op.macs, op.name
            if op.attrs.mask.kind == "full" or all(r.query == 1 for r in op.attrs.requests):
                assert macs == op.macs, op.name
        else:
            assert macs == op.macs, op.name


def test_vector_units_do_the_operations_of_the_trace(run):
    linked = run.lowered.linked
    done = np.bincount(linked.op, linked.work["vector_ops"], minlength=len(run.lowered.ops)).astype(np.int64)
    for op, amount in zip(_ops(run), done, strict=True):
        if isinstance(op.attrs, AttentionAttrs):
            assert amount >= op.vector_ops, op.name
        else:
            assert amount == op.vector_ops, op.name


def test_nothing_beats_the_roofline_or_the_longest_chain(run):
    program, s = run.lowered.linked.program, run.schedule
    seconds = s.makespan_ps / 1e12
    flops = sum(op.flops / run.machine.peak_flops_per_s("fp16") for op in _ops(run) if op.flops)
    assert flops <= seconds
    assert (s.memory.bytes_read + s.memory.bytes_written) / run.machine.peak_bytes_per_s <= seconds
    assert max(s.memory.channel_busy_ps) <= s.makespan_ps
    least = (program.ticks + np.where(program.unit == len(program.slots) - 1, 0, program.tail)).tolist()
    ptr, succ = program.ptr.tolist(), program.succ.tolist()
    earliest = [0] * len(least)
    for i, length in enumerate(least):
        end = earliest[i] + length
        for successor in succ[ptr[i] : ptr[i + 1]]:
            earliest[successor] = max(earliest[successor], end)
    assert (np.array(earliest) <= s.start_ps).all()
    for unit, (slots, _) in enumerate(units(run.machine)[:-1]):
        mine = program.unit == unit
        assert program.ticks[mine].sum() <= slots * s.makespan_ps


def _covered(ranges: list[tuple[int, int]]) -> int:
    total = reached = 0
    for low, high in sorted(ranges):
        total += max(0, high - max(low, reached))
        reached = max(reached, high)
    return total


def test_weights_and_past_keys_are_all_read(run):
    for (template, _, _), block in zip(run.templates, run.work.blocks, strict=True):
        read: dict[int, list[tuple[int, int]]] = {space: [] for space in Space}
        segments = zip(template.seg_task, template.seg_space, template.seg_offset, template.seg_bytes, strict=True)
        for task, space, offset, size in segments:
            if template.unit[task] % PER_CORE != Unit.STORE:
                read[space].append((offset, offset + size))
        weights = {t.name: t.bytes for op in block.ops for t in op.inputs if t.role is Role.WEIGHT}
        looked_up = {t.name for op in block.ops if op.kind is OpKind.GATHER for t in op.inputs}
        needed = sum(size for name, size in weights.items() if name not in looked_up)
        assert _covered(read[Space.WEIGHT]) >= needed
        for op in block.ops:
            if isinstance(op.attrs, AttentionAttrs) and op.attrs.mask.kind == "causal":
                past = sum(r.count * r.past for r in op.attrs.requests)
                cached = sum(t.bytes // op.attrs.keys for t in op.inputs if t.role is Role.KV)
                assert sum(high - low for low, high in read[Space.KV]) >= past * cached


def test_kept_activations_fit_in_their_share(run):
    """At no moment do activations that stay on chip need more than their part of the scratchpad."""
    machine, s, linked = run.machine, run.schedule, run.lowered.linked
    share = 0 if machine.cores > 1 else int(machine.scratchpad.capacity * machine.scratchpad.activation_share)
    kept = on_chip(run.work.blocks, share)
    works = np.isin(linked.program.unit % PER_CORE, (Unit.ARRAY, Unit.VECTOR, Unit.STORE))
    works &= linked.program.unit < machine.cores * PER_CORE
    events: list[tuple[int, int]] = []
    first_op = 0
    for block in run.work.blocks:
        ops = versions(block.ops)
        inside = {o.name for g in groups(ops) for i in g.ops[:-1] for o in ops[i].outputs}
        for _ in range(block.repeat):
            for name in kept[block.name] - {CARRIED} - inside:
                makers = [i for i, op in enumerate(ops) if any(t.name == name for t in op.outputs)]
                users = [i for i, op in enumerate(ops) if any(t.name == name for t in op.inputs)]
                size = max(t.resident_bytes for op in ops for t in (*op.inputs, *op.outputs) if t.name == name)
                made = works & np.isin(linked.op, [first_op + i for i in makers])
                used = works & np.isin(linked.op, [first_op + i for i in users])
                if made.any() and used.any():
                    begin, end = int(s.release_ps[made].min()), int(s.release_ps[used].max())
                    events += [(begin, size), (end, -size)]
            first_op += len(ops)
    carried = max(t.resident_bytes for b in run.work.blocks for op in b.ops for t in op.outputs if t.name == CARRIED)
    now = carried if all(CARRIED in names for names in kept.values()) else 0
    most = now
    for _, size in sorted(events):
        now += size
        most = max(most, now)
    assert most <= share or not events


def test_equal_layers_do_equal_work(run):
    """Each repetition of a block has the tasks of the first, at addresses moved by one stride a space."""
    linked = run.lowered.linked
    first = 0
    for template, repeat, _ in run.templates:
        n = len(template.unit)
        for column in (linked.program.unit, linked.program.ticks, linked.work["macs"], linked.dram_read_bytes):
            layers = column[first : first + repeat * n].reshape(repeat, n)
            assert (layers == layers[0]).all()
        first += repeat * n
    assert first == len(linked.op)


def test_the_trace_of_a_grouped_product_is_computed_group_by_group():
    run = small_run("ws", "moe_prefill")
    grouped = [op for op in _ops(run) if isinstance(op.attrs, MatmulAttrs) and op.attrs.group_m]
    assert grouped
    linked = run.lowered.linked
    for number, op in enumerate(_ops(run)):
        if op in grouped:
            arrays = (linked.op == number) & (linked.work["macs"] > 0)
            assert arrays.sum() >= len(op.attrs.group_m)


def test_a_tiling_that_fits_alone_fits_after_others():
    assert small_run("four_cores", "chunked_prefill").schedule.makespan_ps > 0


def test_a_channel_has_room_for_all_transfers_under_way():
    assert small_run("four_cores", "mla_prefill").schedule.makespan_ps > 0
