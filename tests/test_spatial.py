"""Streaming machines: cycles worked out by hand, what sections must keep to, conservation, bounds, refusals."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from machines import PASSES

from sim.energy import energy_rows, total_counts
from sim.errors import ConfigError
from sim.joins import work_by_operator
from sim.kinds import engine_for, load_hardware
from sim.machine import Machine
from sim.passes import PassResult
from sim.spatial.engine import StreamEngine
from sim.spatial.fabric import COMPUTE
from sim.spatial.machine import ComputeTiles, StreamMachine
from sim.spatial.mapper import sections_of
from sim.spatial.rates import Lanewise, Product, lanewise
from sim.spatial.section import Ran, run_section
from sim.spatial.visible import key_tiles, steps_of_blocks
from sim.stream.engine import run_graph
from sim.stream.schema import read_graph
from workloads.single import encoder_attention as attention
from workloads.single import gemm, reduction
from workloads.trace import (
    CAUSAL,
    FULL,
    Block,
    CustomAttrs,
    ElementwiseAttrs,
    Mask,
    Op,
    OpKind,
    Pass,
    RequestSpan,
    Role,
    Tensor,
)

SMALL: dict[str, Any] = {
    "compute_tiles.rows": 4,
    "compute_tiles.columns": 8,
    "memory_tiles.count": 64,
    "memory_tiles.capacity": "256 KiB",
    "memory.channels": 32,
    "mapping.blocks": 16,
    "mapping.key_tile": 32,
    "mapping.sections": "fewest",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "whole": {},
    "tight": {
        "memory_tiles.count": 4,
        "memory_tiles.capacity": "48 KiB",
        "ports.window": "8 KiB",
        "memory.channels": 2,
    },
    "one_each": {"mapping.tiles": "one"},
    "shallow": {"fifo.depth": 1, "network.hop": 3, "compute_tiles.stages": 4, "memory.channels": 3},
}
TILES = ComputeTiles(rows=1, columns=1, lanes=16, stages=6, formats={"bf16": Fraction(1)})


@cache
def machine(name: str = "whole") -> StreamMachine:
    found: Machine = load_hardware("plasticine-like", SMALL | VARIANTS[name])
    assert isinstance(found, StreamMachine)
    return found


@cache
def result(variant: str, work: str) -> PassResult:
    return StreamEngine(machine(variant)).run(PASSES[work]())


CASES = [(variant, work) for variant in VARIANTS for work in PASSES]


# Rates, by hand


@pytest.mark.parametrize(
    ("shape", "given", "cycles"),
    [
        ((1, 6, 32, 64), 1, 4 * 32),  # 64 columns in 16 lanes are 4 pieces of 32 cycles each
        ((1, 6, 32, 64), 2, 2 * 32),
        ((1, 6, 32, 64), 3, 4 * 11),  # four pieces after the other, each in three parts of at most 11 steps
        ((1, 6, 32, 64), 4, 32),
        ((1, 6, 32, 64), 8, 16),  # the inner dimension in two halves
        ((1, 7, 32, 64), 4, 2 * 32),  # the seventh row fills six stages again
        ((2, 6, 32, 10), 1, 2 * 32),  # two products; 10 columns take a whole tile
        ((1, 6, 5, 16), 64, 1),  # never less than a cycle
    ],
)
def test_a_product_takes_its_pieces_times_the_inner_dimension(
    shape: tuple[int, int, int, int], given: int, cycles: int
) -> None:
    product = Product(*shape, Fraction(1))
    assert product.cycles(TILES, given) == cycles
    assert Product(*shape, Fraction(1, 2)).cycles(TILES, given) == 2 * cycles


def test_a_product_counts_the_lanes_and_stages_that_are_filled_up() -> None:
    assert Product(2, 7, 32, 10, Fraction(1)).executed_macs(TILES) == 2 * 12 * 16 * 32


def test_more_tiles_are_never_slower_and_never_beat_their_lanes() -> None:
    for shape in ((1, 6, 100, 300), (3, 13, 37, 41), (8, 1, 64, 128)):
        product = Product(*shape, Fraction(2))
        cycles = [product.cycles(TILES, given) for given in range(1, 200)]
        assert cycles == sorted(cycles, reverse=True)
        units, rows, inner, columns = shape
        work = units * rows * inner * columns
        assert all(c * given * 16 * 6 * 2 >= work for given, c in enumerate(cycles, 1))


def test_vector_functions_take_a_sweep_for_each_pipeline_and_each_reduction() -> None:
    assert lanewise(TILES, "add", 160) == Lanewise(160, 1)
    assert lanewise(TILES, "add", 160).cycles(TILES, 2) == 5
    assert lanewise(TILES, "gelu", 16).cycles(TILES, 1) == 2  # 8 primitives in 6 stages
    assert lanewise(TILES, "rmsnorm", 16).cycles(TILES, 1) == 2  # the sum of squares, then the scaling
    assert lanewise(TILES, "layernorm", 16).cycles(TILES, 1) == 3
    assert lanewise(TILES, "topk", 16, keep=4).cycles(TILES, 1) == 4 * lanewise(TILES, "topk", 16).cycles(TILES, 1)


# Sections, by hand


def sections(machine: StreamMachine, work: Pass) -> list[Ran]:
    return [run_section(machine, s.fabric) for s in sections_of(machine, work.blocks[0], {"c", "d"})]


def cycle_of(ran: Ran, name: str) -> int:
    return next(end for node, end in zip(ran.nodes, ran.ends_ps, strict=True) if node.name == name) // 1000


MANY_ROWS = {"memory.channels": 32, "compute_tiles.rows": 1, "compute_tiles.columns": 1, "network.hop": 0}


def test_one_product_starts_with_its_weights_and_takes_its_interval_for_each_token() -> None:
    tile = load_hardware("plasticine-like", MANY_ROWS)
    assert isinstance(tile, StreamMachine)
    (ran,) = sections(tile, gemm(60, 64, 128, "bf16"))
    node = next(n for n in ran.nodes if n.name == "product")
    assert (node.fires, node.ii, node.tiles) == (10, 4 * 128, 1)  # 6 rows a token
    loaded = next(n for n in ran.nodes if n.name == "product weights")
    # The weights' last part is taken, handed on a cycle later, said to be there another cycle later.
    there = cycle_of(ran, "product weights") - loaded.ii + 2
    assert cycle_of(ran, "product") == there + 10 * 512


def test_an_operator_behind_a_product_adds_its_latency_only() -> None:
    tile = load_hardware("plasticine-like", MANY_ROWS | {"compute_tiles.columns": 2, "mapping.tiles": "one"})
    assert isinstance(tile, StreamMachine)
    work = gemm(60, 64, 128, "bf16")
    (op,) = work.blocks[0].ops
    more = Op("relu", OpKind.ELEMENTWISE, "ffn", op.outputs, (replace(op.outputs[0], name="d"),),
              ElementwiseAttrs("relu", 60 * 64))  # fmt: skip
    (ran,) = sections(tile, replace(work, blocks=(replace(work.blocks[0], ops=(op, more)),)))
    product, relu = (next(n for n in ran.nodes if n.name == name) for name in ("product", "relu"))
    assert relu.ii == 6 * 64 // 16
    last_begins = cycle_of(ran, "product") - product.ii
    assert product.latency == product.ii + 6  # the token is whole after the interval, and has passed 6 stages
    assert cycle_of(ran, "relu") == last_begins + product.latency + relu.ii


def test_few_rows_stay_and_weights_stream_at_the_memory_s_rate() -> None:
    work = gemm(2, 4096, 4096, "bf16")
    made = load_hardware("plasticine-like", SMALL | {"memory.channels": 2})
    assert isinstance(made, StreamMachine)
    (ran,) = sections(made, work)
    assert any(n.kind == "dram_read" and n.fires > 16 for n in ran.nodes)
    bound_ps = 4096 * 4096 * 2 / made.peak_bytes_per_s * 1e12
    assert bound_ps <= ran.end_ps < 1.15 * bound_ps


def test_weights_that_do_not_fit_are_worked_off_in_parts_that_add_up() -> None:
    # 2 MiB of weights, 192 KiB of memory tiles: at least 11 parts, each of which reads all rows.
    done = StreamEngine(machine("tight")).run(gemm(600, 1024, 1000, "bf16"))
    sums = work_by_operator(done)
    parts = int(done.ops[0].decisions["parts"])
    assert parts >= 11
    assert sums["macs"][0] >= 600 * 1024 * 1000
    assert sums["dram_read_bytes"][0] == 1024 * 1000 * 2 + parts * 600 * 1000 * 2
    assert sums["dram_write_bytes"][0] == 600 * 1024 * 2


def test_sections_that_differ_cost_a_reconfiguration_and_equal_ones_do_not() -> None:
    slow = load_hardware("plasticine-like", SMALL | {"reconfigure": "1 ms"})
    work = PASSES["gqa_prefill"]()
    fast_ps = result("whole", "gqa_prefill").schedule.makespan_ps
    slow_ps = engine_for(slow).run(work).schedule.makespan_ps
    # Embedding, one section for both layers, one for the last row and one for the head after it.
    distinct = {(op.block, op.decisions["section"]) for op in result("whole", "gqa_prefill").ops}
    assert slow_ps - fast_ps == len(distinct) * (10**9 - int(machine().reconfigure))


# Attention


@pytest.mark.parametrize(
    ("mask", "sees"),
    [
        (CAUSAL, lambda p, j, n: j <= p),
        (FULL, lambda p, j, n: j < n),
        (Mask("window", window=10), lambda p, j, n: p - 10 < j <= p),
        (Mask("window", window=10, sinks=3), lambda p, j, n: p - 10 < j <= p or j < 3),
        (Mask("chunk", window=12), lambda p, j, n: p // 12 * 12 <= j <= p),
        (Mask("block", block=7), lambda p, j, n: j < (p // 7 + 1) * 7),
    ],
)
def test_tiles_are_those_that_any_row_sees(mask: Mask, sees: Any) -> None:
    total = 50
    for first in range(0, total, 3):
        for end in range(first + 1, min(first + 9, total + 1)):
            seen = {j // 8 for p in range(first, end) for j in range(total) if sees(p, j, total)}
            assert key_tiles(mask, first, end, total, 8) == len(seen), (first, end)


def test_a_causal_mask_skips_the_tiles_above_the_diagonal() -> None:
    assert steps_of_blocks(CAUSAL, (RequestSpan(1, 32),), 8, 8) == ([1, 2, 3, 4], 8)
    assert steps_of_blocks(FULL, (RequestSpan(1, 32),), 8, 8) == ([4, 4, 4, 4], 8)
    # Two requests of 6 rows in blocks of 8: together, and apart.
    assert steps_of_blocks(CAUSAL, (RequestSpan(2, 6),), 8, 8) == ([2, 1], 6)
    assert steps_of_blocks(CAUSAL, (RequestSpan(2, 6),), 8, 8, apart=True) == ([1, 1], 6)


def test_attention_alone_streams_its_tiles_without_a_row_of_scores() -> None:
    done = StreamEngine(machine()).run(attention(2, 96, 32, "bf16"))
    chosen = done.ops[0].decisions
    assert chosen["attention"] == "memory-free"
    assert chosen["steps"] == str(16 * 3)  # 16 blocks of 6 rows, 96 keys in tiles of 32
    assert work_by_operator(done)["macs"][0] == 96 * 96 * 2 * 2 * 32


def test_the_abstract_machine_makes_a_score_a_cycle() -> None:
    """Memory-free attention takes N^2 cycles, as in the paper, and beside them only the load of keys and a fill."""
    made = load_hardware("sdpa-abstract")
    for n in (512, 1024):
        cycles = engine_for(made).run(attention(1, n, 128, "fp16")).schedule.makespan_ps // 1000
        assert n * n + 2 * n * 128 * 2 * 1e9 / made.peak_bytes_per_s < cycles < 1.01 * n * n


# Whole passes


@pytest.mark.parametrize(("variant", "work"), CASES)
def test_work_and_bytes_add_up(variant: str, work: str) -> None:
    done = result(variant, work)
    sums = work_by_operator(done)
    counts = done.schedule.memory
    for i, op in enumerate(done.ops):
        assert 2 * sums["macs"][i] >= op.flops, op.name
        assert sums["vector_ops"][i] == op.vector_ops, op.name
    moved = int(sums["dram_read_bytes"].sum() + sums["dram_write_bytes"].sum())
    hits = counts.bytes_forwarded + counts.bytes_merged
    assert counts.bytes_read + counts.bytes_written + hits >= moved
    burst, channels = machine(variant).dram.burst_bytes, machine(variant).memory.channels
    assert counts.bytes_read % (burst * channels) == counts.bytes_written % (burst * channels) == 0


@pytest.mark.parametrize(("variant", "work"), CASES)
def test_no_roof_is_exceeded(variant: str, work: str) -> None:
    done, made = result(variant, work), machine(variant)
    end_s = done.schedule.makespan_ps * 1e-12
    counts = done.schedule.memory
    assert end_s >= sum(op.flops for op in done.ops) / made.peak_flops_per_s("bf16")
    assert end_s >= (counts.bytes_read + counts.bytes_written) / made.peak_bytes_per_s
    assert end_s >= sum(op.vector_ops for op in done.ops) / (made.lanes * int(made.clock))
    assert max(counts.channel_busy_ps) <= done.schedule.makespan_ps
    assert (done.schedule.start_ps >= 0).all()
    assert (done.schedule.start_ps <= done.schedule.finish_ps).all()
    assert (done.schedule.finish_ps <= done.schedule.makespan_ps).all()


@pytest.mark.parametrize("work", ["gqa_prefill", "gqa_decode", "encoder"])
def test_weights_are_read_once_where_a_layer_is_one_section(work: str) -> None:
    done = result("whole", work)
    sums = work_by_operator(done)
    layers = [i for i, op in enumerate(done.ops) if op.block == "layers" and op.kind == "matmul"]
    assert all(op.decisions["section"] == "1 of 1" for op in done.ops if op.block == "layers")
    blocks = {op.name: op for block in PASSES[work]().blocks for op in block.ops}
    for i in layers:
        weights = sum(t.bytes for t in blocks[done.ops[i].name].inputs if t.role is Role.WEIGHT)
        stays = 0 if done.ops[i].name != "qkv" or work != "encoder" else blocks["qkv"].inputs[0].bytes
        assert sums["dram_read_bytes"][i] == weights + stays, done.ops[i].name


@pytest.mark.parametrize("work", ["gqa_prefill", "moe_decode"])
def test_equal_sections_run_once_or_each_time_give_the_same(work: str) -> None:
    again = StreamEngine(machine(), reuse=False).run(PASSES[work]())
    first = result("whole", work)
    assert first.schedule.memory == again.schedule.memory
    assert first.ops == again.ops
    for name in ("start_ps", "finish_ps"):
        assert np.array_equal(getattr(first.schedule, name), getattr(again.schedule, name))


@pytest.mark.parametrize("work", ["gqa_prefill", "encoder"])
def test_one_channel_does_what_each_of_several_does(work: str) -> None:
    """A section whose ports are copied to a second channel, each with its own part, takes the same cycles."""
    made = machine()
    section = max(sections_of(made, PASSES[work]().blocks[1], {"x"}), key=lambda s: len(s.fabric.nodes))
    one = section.fabric.graph()
    two = section.fabric.graph()
    two["memory"]["channels"] = 2
    for node in list(two["nodes"]):
        if node["kind"] not in ("dram_read", "dram_write"):
            continue
        copy = {**node, "name": node["name"] + " b", "channel": 1}
        side = "out" if node["kind"] == "dram_read" else "in"
        copy[side] = [f"{c} b" for c in node[side]]
        for name in node[side]:
            two["channels"][f"{name} b"] = two["channels"][name]
            other = next(n for n in two["nodes"] if name in n.get("in" if side == "out" else "out", []))
            # The same node takes, or makes, both parts of a token.
            place = other["in" if side == "out" else "out"]
            place.insert(place.index(name) + 1, f"{name} b")
        two["nodes"].append(copy)
    alone, both = run_graph(read_graph(one)), run_graph(read_graph(two))
    assert both.cycles == alone.cycles
    assert both.memory is not None and alone.memory is not None
    assert both.memory["bytes_read"] == 2 * alone.memory["bytes_read"]


def test_tokens_pass_through_a_section_together() -> None:
    """A layer as one section is faster than its products one after the other on the same tiles."""
    done = result("whole", "gqa_prefill")
    in_layer = [op.block == "layers" and op.layer == 0 for op in done.ops]
    mine = np.array(in_layer)[done.tasks.op] & (done.tasks.unit == [u.name for u in done.units].index(COMPUTE))
    busy = (done.schedule.finish_ps - done.schedule.start_ps)[mine]
    assert busy.sum() > 2 * (done.schedule.finish_ps[mine].max() - done.schedule.start_ps[mine].min())


def test_energy_counts_what_the_tasks_did() -> None:
    done = result("whole", "gqa_prefill")
    rows = {(row.component, row.subcomponent): row.count for row in energy_rows(machine(), [done])}
    (machine_format,) = {op.format for op in done.ops if op.flops}
    assert rows["array", f"mac {machine_format}"] == done.tasks.macs.sum()
    assert rows["vector", "arithmetic"] == done.tasks.vector_ops.sum()
    assert rows["scratchpad", "read"] == done.tasks.sram_read_bytes.sum()
    assert total_counts([done]).commands["ACT"] > 0


# What is refused


def refusal(overrides: dict[str, Any], work: Pass) -> ConfigError:
    made = load_hardware("plasticine-like", SMALL | overrides)
    with pytest.raises(ConfigError) as caught:
        engine_for(made).run(work)
    return caught.value


@pytest.mark.parametrize(
    ("overrides", "key", "says"),
    [
        ({"memory_tiles.count": 1, "memory_tiles.capacity": "1 KiB"}, "memory_tiles.capacity", "hold 1024 B"),
        ({"ports.count": 1}, "ports.count", r"needs \d+ DRAM ports, but there are 1"),
        ({"fifo.count": 2}, "fifo.count", r"needs \d+ channels, but a section may have 2"),
    ],
)
def test_an_operator_that_fits_no_section_is_named_with_the_budget(
    overrides: dict[str, Any], key: str, says: str
) -> None:
    error = refusal(overrides, gemm(600, 64, 4096, "bf16"))
    assert error.key == key
    assert "operator product fits no section of plasticine-like" in error.message
    assert re.search(says, error.message)


def test_attention_needs_a_tile_for_each_of_its_nodes() -> None:
    error = refusal({"compute_tiles.rows": 1, "compute_tiles.columns": 3}, attention(2, 32, 32, "bf16"))
    assert error.key == "compute_tiles.rows"
    assert "operator attention" in error.message
    assert "each of 4 operators, but there are 3" in error.message


def test_formats_and_operators_without_a_unit_are_refused() -> None:
    assert "multiplies int4, but plasticine-like multiplies only fp32" in refusal({}, gemm(8, 8, 8, "int4")).message
    tensor = Tensor("a", (8, 8), "bf16", Role.ACTIVATION)
    custom = Op("mine", OpKind.CUSTOM, "ffn", (tensor,), (tensor,), CustomAttrs(2, 0, 1, 1))
    error = refusal({}, Pass("p", "encode", (Block("b", 1, (custom,)),), 8))
    assert error.key == "b.mine"
    assert "without a shape" in error.message


def test_an_unknown_primitive_is_named_with_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("base: plasticine-like\ncompute_tiles: {primitives: {expp: 2}}\n")
    with pytest.raises(ConfigError, match=r"m\.yaml.*primitives.*'expp'.*'exp'"):
        load_hardware(file)


# What ships


@pytest.mark.parametrize("name", ["sdpa-abstract", "plasticine-like", "streaming-hbm", "fpga-u280"])
def test_machines_that_ship_run_a_layer(name: str) -> None:
    made = load_hardware(name)
    done = engine_for(made).run(PASSES["gqa_prefill"]())
    assert done.schedule.makespan_ps > 0
    vectors = engine_for(made).run(reduction("softmax", 64, 64, "fp32"))
    assert vectors.schedule.makespan_ps > 0


def test_the_figures_of_the_parts_they_follow() -> None:
    def flops(name: str, number_format: str) -> float:
        return load_hardware(name).peak_flops_per_s(number_format) / 1e12

    assert flops("streaming-hbm", "bf16") == pytest.approx(638, rel=0.01)  # SambaNova SN40L, Hot Chips 2024
    assert flops("plasticine-like", "fp32") == pytest.approx(12.3, rel=0.01)  # Plasticine, ISCA 2017
    assert load_hardware("fpga-u280").peak_bytes_per_s == pytest.approx(460e9, rel=0.01)  # AMD DS963
    streaming = load_hardware("streaming-hbm")
    assert streaming.chip.sram_bytes == 520 * 2**20
    assert streaming.capacity_bytes == 64 * 2**30


@pytest.mark.parametrize(("scenario", "low", "high"), [("llama3-8b-decode", 1.0, 1.1), ("llama3-8b-prefill", 1.0, 1.6)])
def test_whole_models_stand_near_their_roof(scenario: str, low: float, high: float) -> None:
    from workloads import load_workload

    made = load_hardware("streaming-hbm")
    (work,) = load_workload(scenario).trace().passes
    done = engine_for(made).run(work)
    moved = done.schedule.memory.bytes_read + done.schedule.memory.bytes_written
    floor_s = max(work.flops / made.peak_flops_per_s("bf16"), moved / made.peak_bytes_per_s)
    assert low <= done.schedule.makespan_ps * 1e-12 / floor_s < high
