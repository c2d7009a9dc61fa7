"""Weights that a section reads for the next one, and layers cut in two: what may be, and that only time changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from machines import PASSES

from sim.joins import work_by_operator
from sim.kinds import load_hardware
from sim.passes import PassResult
from sim.spatial.engine import StreamEngine
from sim.spatial.machine import StreamMachine
from sim.spatial.mapper import sections_of
from sim.spatial.prefetch import Ahead, plan, reading_ahead
from sim.spatial.section import run_section
from workloads.single import gemm

ROOMY: dict[str, Any] = {
    "compute_tiles.rows": 4, "compute_tiles.columns": 8, "memory_tiles.count": 64, "memory_tiles.capacity": "256 KiB",
    "memory.channels": 32, "mapping.blocks": 16, "mapping.key_tile": 32, "mapping.sections": "fewest",
}  # fmt: skip
TIGHT = ROOMY | {"memory_tiles.count": 4, "memory_tiles.capacity": "48 KiB", "ports.window": "8 KiB",
                 "memory.channels": 2}  # fmt: skip


def machine(settings: dict[str, Any]) -> StreamMachine:
    made = load_hardware("plasticine-like", settings)
    assert isinstance(made, StreamMachine)
    return made


def runs(settings: dict[str, Any], work: str) -> tuple[PassResult, PassResult]:
    """Without and with reading ahead."""
    alone, ahead = (StreamEngine(machine(settings | {"mapping.prefetch": on})) for on in (False, True))
    return alone.run(PASSES[work]()), ahead.run(PASSES[work]())


@pytest.mark.parametrize(("settings", "work"), [(ROOMY, "gqa_prefill"), (TIGHT, "gqa_prefill"), (ROOMY, "encoder")])
def test_the_same_bytes_and_products_in_no_more_time(settings: dict[str, Any], work: str) -> None:
    alone, ahead = runs(settings, work)
    ours, theirs = work_by_operator(ahead), work_by_operator(alone)
    for name in theirs:
        assert np.array_equal(ours[name], theirs[name]), name
    assert ahead.schedule.memory.bytes_read == alone.schedule.memory.bytes_read
    assert ahead.schedule.memory.bytes_written == alone.schedule.memory.bytes_written
    gain = alone.schedule.makespan_ps - ahead.schedule.makespan_ps
    assert gain > 0 if settings is ROOMY else gain == 0  # the tight machine has no bytes to spare
    assert (ahead.schedule.start_ps >= 0).all()
    assert (ahead.schedule.finish_ps <= ahead.schedule.makespan_ps).all()


def test_sections_run_once_or_each_time_give_the_same() -> None:
    first, again = (StreamEngine(machine(TIGHT), reuse=reuse).run(PASSES["gqa_prefill"]()) for reuse in (True, False))
    assert first.schedule.memory == again.schedule.memory
    assert np.array_equal(first.schedule.finish_ps, again.schedule.finish_ps)


def product(settings: dict[str, Any], rows: int = 4096) -> Any:
    """A machine, and the section of a product whose weights are 256 KiB."""
    made = machine(settings)
    (section,) = sections_of(made, gemm(rows, 512, 256, "bf16").blocks[0], set())
    return made, section.fabric


def test_weights_that_are_there_take_no_time() -> None:
    made, fabric = product(ROOMY)
    ahead = plan(made, fabric, (), fabric)
    ((port, hold),) = fabric.weights
    assert ahead == (Ahead(hold.name, port.fires),)
    whole = run_section(made, reading_ahead(made, fabric, ahead, None, ()))
    alone = run_section(made, fabric)
    weights = 512 * 256 * 2
    assert alone.memory.bytes_read - whole.memory.bytes_read == weights
    saved = alone.end_ps - whole.end_ps
    assert saved >= 0.9 * weights / made.peak_bytes_per_s * 1e12
    # A section in the middle reads as much as it was spared.
    middle = run_section(made, reading_ahead(made, fabric, ahead, fabric, ahead))
    assert middle.memory.bytes_read == alone.memory.bytes_read
    assert {node.op for node in middle.nodes if node.ahead} == {0}


@pytest.mark.parametrize(
    ("change", "pieces"),
    [
        ({}, 8),
        ({"memory_tiles.count": 2}, 1),  # the section takes 472 of 512 KiB
        ({"memory_tiles.count": 4}, 0),  # with larger tokens it takes all of a MiB
        ({"ports.count": 3}, 0),  # activations in, weights in, results out
        ({"mapping.prefetch": False}, 8),  # the engine's choice, not the plan's
    ],
)
def test_what_is_read_ahead_keeps_to_what_is_left(change: dict[str, Any], pieces: int) -> None:
    made, fabric = product(ROOMY | {"ports.window": "256 KiB"} | change)
    found = plan(made, fabric, (), fabric)
    assert sum(one.pieces for one in found) == pieces
    assert fabric.sram_bytes + pieces * 2**15 <= made.sram_bytes


def test_part_of_a_load_is_read_ahead_where_no_more_finds_room() -> None:
    made, fabric = product(ROOMY | {"ports.window": "256 KiB", "memory_tiles.count": 3})
    (one,) = plan(made, fabric, (), fabric)
    assert one.pieces == (made.sram_bytes - fabric.sram_bytes) // 2**15 == 3
    rest = reading_ahead(made, fabric, (one,), None, ())
    ((port, hold),) = rest.weights
    assert port.work.dram_read == (8 - one.pieces) * 2**15
    assert hold.keys["every"] == port.fires == 8 - one.pieces
    assert run_section(made, rest).end_ps < run_section(made, fabric).end_ps


def test_a_section_bound_by_its_memory_reads_nothing_ahead() -> None:
    made, fabric = product(ROOMY | {"memory.channels": 1})
    assert plan(made, fabric, (), fabric) == ()


def cut(work: str, **mapping: Any) -> PassResult:
    """A pass on the roomy machine, which reconfigures in 10 ns unless told otherwise."""
    settings = {"reconfigure": "10 ns", "mapping.sections": "fastest"} | mapping
    return StreamEngine(machine(ROOMY | settings)).run(PASSES[work]())


def sections_of_layers(done: PassResult) -> set[str]:
    return {op.decisions["section"] for op in done.ops if op.block == "layers"}


def test_a_layer_is_cut_in_two_where_that_takes_less() -> None:
    # Attention waits for the keys of all rows, so half of one section's tiles stand still at any time.
    fewest, fastest = (cut("encoder", **{"mapping.sections": how}) for how in ("fewest", "fastest"))
    assert sections_of_layers(fewest) == {"1 of 1"}
    assert sections_of_layers(fastest) == {"1 of 2", "2 of 2"}
    assert fastest.schedule.makespan_ps < 0.95 * fewest.schedule.makespan_ps
    ours, theirs = work_by_operator(fastest), work_by_operator(fewest)
    for name in ("vector_ops", "macs"):
        assert (ours[name] > 0).tolist() == (theirs[name] > 0).tolist()
    assert ours["vector_ops"].sum() == theirs["vector_ops"].sum()


def test_a_dear_reconfiguration_keeps_a_layer_whole() -> None:
    assert sections_of_layers(cut("encoder", reconfigure="10 ms")) == {"1 of 1"}


def test_weights_that_stream_by_are_never_cut() -> None:
    fewest, fastest = (cut("gqa_decode", **{"mapping.sections": how}) for how in ("fewest", "fastest"))
    assert fewest.schedule.makespan_ps == fastest.schedule.makespan_ps
