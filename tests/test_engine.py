"""Passes from end to end: times and bytes worked out by hand, and what the engine refuses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from machines import SMALL, machine, model, run_pass, small_run

from sim.capacity import check_capacity
from sim.config import ConfigError
from sim.engine import Engine
from sim.hardware import Hardware
from sim.kernels import dram_tables as at
from sim.kinds import load_hardware
from sim.lower.builder import Unit
from sim.lower.matmul import Tiling
from workloads.build import Builder, decode_passes
from workloads.emit import FormatChoice
from workloads.trace import (
    Block,
    CollectiveAttrs,
    CustomAttrs,
    ElementwiseAttrs,
    MatmulAttrs,
    Op,
    OpKind,
    Pass,
    Role,
    Tensor,
    Trace,
    TransferAttrs,
)

NS = 1000


class Fixed:
    """A mapper that always takes one tiling."""

    def __init__(self, tiling: Tiling) -> None:
        self.chosen = tiling

    def tiling(self, product):
        return self.chosen

    def split(self, job):
        return None


def gemm(m: int, n: int, k: int) -> Pass:
    """y = x w, all three in DRAM."""
    x, w, y = (
        Tensor(name, shape, "fp16", role)
        for name, shape, role in (
            ("x", (m, k), Role.ACTIVATION),
            ("w", (k, n), Role.WEIGHT),
            ("y", (m, n), Role.ACTIVATION),
        )
    )
    op = Op("gemm", OpKind.MATMUL, "ffn", (x, w), (y,), MatmulAttrs(1, m, k, n))
    return Pass("gemm", "prefill", (Block("one", 1, (op,)),), m)


def plain(**changes: str | int) -> Hardware:
    """Four channels of a burst of 64 B every 2 ns, nothing kept on chip, set-up 50 ns, one 32 x 32 array at 1 GHz."""
    return load_hardware("npu-hbm2", {**SMALL, "scratchpad.activation_share": 0, **changes})


# In ticks of 1 ns: a stream of N bursts a channel that opens the rows of four bank groups as it goes. The first data
# command follows its ACT by 14; then one every 2; each is complete 14 + 2 later.
def stream_ns(bursts: int) -> int:
    return 14 + 2 * (bursts - 1) + 14 + 2


def test_a_product_of_one_tile():
    run = run_pass(plain(), gemm(32, 32, 32), Fixed(Tiling(32, 32, 32, "m", True)))
    program, s = run.lowered.linked.program, run.schedule
    left, right = np.flatnonzero(program.unit == Unit.LOAD)
    (tile,) = np.flatnonzero(program.unit == Unit.ARRAY)
    (store,) = np.flatnonzero(program.unit == Unit.STORE)
    # 2 KiB each: 8 bursts on each of 4 channels; both loads start at 0 and are served in order.
    assert s.start_ps[left] == s.start_ps[right] == 0
    assert s.release_ps[left] == (50 + stream_ns(8)) * NS
    loaded = 50 + stream_ns(16)
    assert s.release_ps[right] == loaded * NS
    # The empty array takes 2 R - 1 = 63 cycles to fill and 32 to stream; the last result leaves R + C - 2 = 62 later.
    assert s.start_ps[tile] == loaded * NS
    assert s.release_ps[tile] == (loaded + 63 + 32) * NS
    ready = loaded + 63 + 32 + 62
    assert s.finish_ps[tile] == ready * NS
    # Writes are posted, one burst a clock: the store is done when the eighth is taken.
    assert s.start_ps[store] == ready * NS
    assert s.finish_ps[store] == (ready + 50 + 7) * NS
    # The memory is busy for longer: eight writes to open rows, 2 apart, each with its data CWL + BL = 4 + 2 later.
    assert s.makespan_ps == (ready + 50 + 7 * 2 + 4 + 2) * NS
    assert (s.memory.bytes_read, s.memory.bytes_written) == (2 * 2048, 2048)
    assert s.memory.commands == {"ACT": 4 * 4, "RD": 64, "WR": 32}


def test_the_second_tile_is_loaded_while_the_first_is_computed():
    run = run_pass(plain(), gemm(32, 64, 32), Fixed(Tiling(32, 32, 32, "m", True)))
    program, s = run.lowered.linked.program, run.schedule
    loads = np.flatnonzero(program.unit == Unit.LOAD)
    first, second = np.flatnonzero(program.unit == Unit.ARRAY)
    assert s.release_ps[loads].tolist() == [(50 + stream_ns(n)) * NS for n in (8, 16, 24)]
    loaded = 50 + stream_ns(16)
    assert s.start_ps[first] == loaded * NS
    # Its operands were there long before the array is free; it follows at once and needs no filling.
    assert s.start_ps[second] == s.release_ps[first] == (loaded + 63 + 32) * NS
    assert s.release_ps[second] == (loaded + 63 + 32 + 32) * NS
    stores = np.flatnonzero(program.unit == Unit.STORE)
    assert s.start_ps[stores].tolist() == s.finish_ps[[first, second]].tolist()


def test_one_dma_slot_loads_one_tile_after_the_other():
    run = run_pass(plain(**{"dma.loads": 1}), gemm(32, 32, 32), Fixed(Tiling(32, 32, 32, "m", True)))
    program, s = run.lowered.linked.program, run.schedule
    left, right = np.flatnonzero(program.unit == Unit.LOAD)
    first = 50 + stream_ns(8)
    assert s.start_ps[right] == s.release_ps[left] == first * NS
    # The rows are open: 8 reads 2 apart from the moment they are asked for.
    assert s.release_ps[right] == (first + 50 + 2 * 7 + 14 + 2) * NS


def test_a_sum_in_pieces_is_stored_after_all_of_them():
    """Whichever piece's operands come first, the store waits for every piece."""
    run = run_pass(plain(), gemm(32, 32, 128), Fixed(Tiling(32, 32, 32, "m", True)))
    program, s = run.lowered.linked.program, run.schedule
    pieces = np.flatnonzero(program.unit == Unit.ARRAY)
    (store,) = np.flatnonzero(program.unit == Unit.STORE)
    assert len(pieces) == 4
    assert s.start_ps[store] == s.finish_ps[pieces].max()
    waits = {int(b) for b in range(len(program.unit)) if store in program.succ[program.ptr[b] : program.ptr[b + 1]]}
    assert set(pieces.tolist()) <= waits


def test_two_buffers_of_a_tile_make_the_third_load_wait():
    """A scratchpad of six tiles: the left one and those of five steps; the sixth step's waits for the first to end."""
    tight = plain(**{"scratchpad.capacity": "12 KiB", "dma.loads": 16, "dma.window": "0 B"})
    run = run_pass(tight, gemm(32, 32 * 8, 32), Fixed(Tiling(32, 32, 32, "m", True)))
    program, s = run.lowered.linked.program, run.schedule
    loads, tiles = np.flatnonzero(program.unit == Unit.LOAD), np.flatnonzero(program.unit == Unit.ARRAY)
    assert (s.start_ps[loads[:6]] == 0).all()
    assert s.start_ps[loads[6:]].tolist() == s.finish_ps[tiles[:3]].tolist()


@pytest.fixture(scope="module")
def decode() -> Pass:
    return decode_passes(Builder(model()), [100])[0]


def _attention_bytes(run) -> tuple[int, int]:
    linked = run.lowered.linked
    mine = linked.op == next(i for i, op in enumerate(run.lowered.ops) if op.kind == "attention")
    return int(linked.dram_read_bytes[mine].sum()), int(linked.dram_write_bytes[mine].sum())


def test_fused_attention_moves_keys_and_values_once(decode):
    """100 cached positions of 2 heads x 64 x 2 B, keys and values; the new position, query and result stay on chip."""
    run = run_pass(machine("ws"), decode)
    assert _attention_bytes(run) == (100 * 2 * 64 * 2 * 2, 0)
    assert run.lowered.ops[[op.kind for op in run.lowered.ops].index("attention")].decisions["attention"] == "flash"


def test_unfused_attention_moves_scores_four_times(decode):
    """All 101 positions are read; 4 heads x 101 scores of 2 B go out, in, out and in."""
    run = run_pass(machine("unfused"), decode)
    scores = 4 * 101 * 2
    assert _attention_bytes(run) == (101 * 2 * 64 * 2 * 2 + 2 * scores, 2 * scores)


def test_a_launch_delays_every_operator(decode):
    """One microsecond for each group of operators that is started, on the critical path here: a chain of operators."""
    plain_run, launched = run_pass(machine("ws"), decode), run_pass(machine("launch"), decode)
    delay = launched.schedule.makespan_ps - plain_run.schedule.makespan_ps
    program = launched.lowered.linked.program
    joins = program.ticks[program.unit == program.slots.shape[0] - 1]
    assert set(joins.tolist()) == {0, 1_000_000}
    assert 0 < delay <= int(joins.sum())


def test_more_channels_never_slow_a_pass_down_much():
    """Tile choice depends on the machine, so only bounds: not slower, and not faster than four times, within 5 %."""
    times = [Engine(plain(**{"memory.channels": n})).run(gemm(64, 256, 256)).schedule.makespan_ps for n in (1, 4)]
    assert times[0] / 4 <= times[1] * 1.05
    assert times[1] <= times[0] * 1.05


def test_the_result_names_pass_operators_and_units(decode):
    result = Engine(machine("four_cores")).run(replace(decode, repeat=3))
    assert (result.name, result.phase, result.tokens, result.generated, result.repeat) == ("decode", "decode", 1, 1, 3)
    assert [u.name for u in result.units[:4]] == ["core0.array", "core0.vector", "core0.dma.load", "core0.dma.store"]
    assert len(result.ops) == sum(b.repeat * len(b.ops) for b in decode.blocks)
    assert result.tasks.unit.max() < len(result.units)
    assert set(result.tasks.op) <= set(range(len(result.ops)))
    assert sum(op.flops for op in result.ops) == decode.flops


def test_standby_time_adds_up_to_all_ranks():
    run = small_run("ws", "gqa_decode")
    organisation = run.machine.dram.organisation
    ranks = organisation.ranks * organisation.pseudo_channels * run.machine.memory.channels
    standby = run.schedule.memory.standby_ps
    ticks = -(-run.schedule.makespan_ps // 1000)
    assert sum(standby.values()) == ticks * 1000 * ranks
    assert all(t >= 0 for t in standby.values())


def test_refreshes_fall_due_while_the_memory_is_idle_too():
    slow = plain(**{"software.launch": "100 us"})
    run = run_pass(slow, gemm(32, 32, 32), Fixed(Tiling(32, 32, 32, "m", True)))
    interval = run.machine.dram.timings["tREFI"] * 1000
    ranks = run.machine.dram.organisation.ranks * 4
    done = run.schedule.memory.commands["REFab"]
    assert abs(done - run.schedule.makespan_ps // interval * ranks) <= ranks
    assert run.state.count[:, at.REF].sum() > 0


# Refusals


def _single(op: Op) -> Pass:
    return Pass("p", "prefill", (Block("odd", 1, (op,)),), 1)


def test_a_format_without_a_unit_is_refused():
    work = decode_passes(Builder(model(), FormatChoice(activations="fp32")), [8])[0]
    with pytest.raises(ConfigError, match="fp32.*small have units for fp16"):
        Engine(machine("ws")).run(work)


def test_work_between_devices_is_refused():
    x, y = (Tensor(n, (4, 4), "fp16", Role.ACTIVATION) for n in "xy")
    reduce = CollectiveAttrs("all_reduce", 32, 2)
    alone = load_hardware("npu-hbm2", {**SMALL, "links": None})
    with pytest.raises(ConfigError, match="reduce is a collective.*no links"):
        Engine(alone).run(_single(Op("reduce", OpKind.COLLECTIVE, "comm", (x,), (y,), reduce)))
    with pytest.raises(ConfigError, match="fetch moves from 'host' to 'device', but small has no further memory"):
        move = TransferAttrs("host", "device", 32)
        Engine(machine("ws")).run(_single(Op("fetch", OpKind.TRANSFER, "comm", (x,), (y,), move)))


def test_a_collective_of_one_device_costs_nothing():
    x, y = (Tensor(n, (4, 4), "fp16", Role.ACTIVATION) for n in "xy")
    alone = Op("reduce", OpKind.COLLECTIVE, "comm", (x,), (y,), CollectiveAttrs("all_reduce", 32, 1))
    assert Engine(machine("ws")).run(_single(alone)).schedule.makespan_ps == 0


def test_custom_work_takes_its_units_and_its_bytes():
    x, y = (Tensor(n, (4, 4), "fp16", Role.ACTIVATION) for n in "xy")
    attrs = CustomAttrs(flops=2 * 32 * 32 * 10, vector_ops=640, read_bytes=4096, write_bytes=1024)
    result = Engine(plain()).run(_single(Op("own", OpKind.CUSTOM, "other", (x,), (y,), attrs)))
    busy = (result.schedule.release_ps - result.schedule.start_ps) * (result.tasks.unit <= Unit.VECTOR)
    assert int(busy[result.tasks.unit == Unit.ARRAY].sum()) == 10 * NS  # 32 x 32 multiply-accumulates a cycle
    assert int(busy[result.tasks.unit == Unit.VECTOR].sum()) == 20 * NS  # 32 lanes
    assert int(result.tasks.dram_read_bytes.sum()) == 4096
    assert int(result.tasks.dram_write_bytes.sum()) == 1024


def test_a_model_that_does_not_fit_is_refused_with_its_size():
    small = machine("ws")
    rows = small.capacity_bytes // 2 // 1024

    def trace(tokens):
        x = Tensor("x", (tokens, 512), "fp16", Role.ACTIVATION)
        weight = Tensor("w", (rows, 512), "fp16", Role.WEIGHT)
        copy = Op("copy", OpKind.ELEMENTWISE, "ffn", (x, weight), (x,), ElementwiseAttrs("copy", x.elements))
        return Trace("m", 1, (Pass("p", "encode", (Block("b", 1, (copy,)),), tokens),))

    check_capacity(small, trace(rows // 2))
    with pytest.raises(ConfigError, match=r"needs 8\.0 GiB of weights.* and 16\.0 GiB of activ.*holds 16"):
        check_capacity(small, trace(rows))


def test_a_segment_that_many_small_ones_overtake() -> None:
    """Four cores write single bursts while a read waits for its row: more segments are under way than is usual."""
    work = decode_passes(Builder(model(layers=9)), [100] * 3)[0]
    result = Engine(machine("four_cores")).run(work)
    assert (result.schedule.finish_ps >= result.schedule.start_ps).all()
    assert (result.schedule.start_ps >= 0).all()
