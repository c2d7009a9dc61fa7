"""The GPU model: products, attention and rows by hand, power that meets its limit, and whole passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.engine import simulate
from sim.errors import ConfigError
from sim.gpu.attention import Attend, _splits, attention
from sim.gpu.cost import Cost, launched, norm
from sim.gpu.energy import energy_rows
from sim.gpu.engine import GpuEngine
from sim.gpu.gemm import Product, gemm, stream_rate
from sim.gpu.power import burst, counted, sustained, voltage
from sim.gpu.rows import _together, elementwise, reduction
from sim.gpu.schema import Gpu
from sim.kinds import load_hardware
from workloads import load_model, load_workload
from workloads.single import decoder_layer, product

NAMES = ("h200", "h100-sxm", "a100-80g", "mi210", "gaudi2", "rtx4090", "jetson-orin")


def gpu(name: str = "h200", **overrides: object) -> Gpu:
    found = load_hardware(name, {key.replace("__", "."): value for key, value in overrides.items()})
    assert isinstance(found, Gpu)
    return found


@pytest.fixture(scope="module")
def one_tile(tmp_path_factory: pytest.TempPathFactory) -> Gpu:
    """An H200 with a single tile of 128 x 128, no overhead of a tile and perfect main loops."""
    path = tmp_path_factory.mktemp("kernels") / "one.yaml"
    path.write_text(
        "schema: opcycle/kernels/1\nbase: hopper\nname: one\n"
        "gemm: {long: [128], short: [128], splits: [1], group: [1]}\n",
        encoding="utf-8",
    )
    return gpu(kernels=str(path), fitted__tensor=1.0, fitted__tile=1, l2__bytes_per_clock=2**30)


@pytest.mark.parametrize(("tiles", "waves"), [(1, 1), (132, 1), (133, 2), (264, 2), (265, 3)])
def test_tiles_come_in_waves(one_tile: Gpu, tiles: int, waves: int) -> None:
    cost = gemm(one_tile, Product(128, 128 * tiles, 640, "bf16", "bf16"))
    # Ten steps of 64: 128 x 128 x 64 multiply-accumulates at 2048 a clock are 512 clocks; one clock of overhead a tile.
    assert cost.core_cycles == waves * (10 * 512 + 1)
    assert cost.macs == 128 * 128 * tiles * 640


def test_stream_k_cuts_the_last_wave(one_tile: Gpu, tmp_path: Path) -> None:
    path = tmp_path / "cut.yaml"
    path.write_text(Path(one_tile.kernels).read_text().replace("group: [1]", "group: [1], stream_k: true"))
    cut = gpu(kernels=str(path), fitted__tensor=1.0, fitted__tile=1, l2__bytes_per_clock=2**30)
    for tiles in (132, 264):
        work = Product(128, 128 * tiles, 6400, "bf16", "bf16")
        assert gemm(cut, work).core_cycles == gemm(one_tile, work).core_cycles
    whole, parts = (gemm(each, Product(128, 128 * 133, 6400, "bf16", "bf16")).core_cycles for each in (one_tile, cut))
    assert whole == 2 * (100 * 512 + 1)
    assert parts == pytest.approx(133 / 132 * 100 * 512, rel=0.01)


def test_padding_takes_time_but_switches_nothing(one_tile: Gpu) -> None:
    small, full = (gemm(one_tile, Product(m, m, 64, "bf16", "bf16")) for m in (136, 256))
    assert small.core_cycles == full.core_cycles
    assert small.macs == 136 * 136 * 64


def test_shared_memory_may_bound_a_tile(one_tile: Gpu) -> None:
    # FP8 halves the tensor time: 128 x 128 x 128 at 4096 a clock are 512 clocks. The stacked operand's 16 KiB once and
    # the other's twice, 48 KiB at 128 B a clock, are 384.
    cost = gemm(one_tile, Product(128, 128, 128, "fp8_e4m3", "bf16"))
    assert (cost.core_cycles, cost.core) == (513, "tensor")
    slow = one_tile.model_copy(update={"sm": one_tile.sm.model_copy(update={"shared_bytes_per_clock": 64})})
    cost = gemm(slow, Product(128, 128, 128, "fp8_e4m3", "bf16"))
    assert (cost.core_cycles, cost.core) == (769, "shared memory")


def test_operands_that_fit_in_l2_are_read_once_and_others_once_a_group(one_tile: Gpu) -> None:
    small = gemm(one_tile, Product(1024, 1024, 1024, "bf16", "bf16"))
    assert small.dram_read_bytes == 2 * 2 * 1024 * 1024
    assert small.dram_write_bytes == 2 * 1024 * 1024
    # 25 MiB of L2 hold neither operand of 128 MiB: one is read once a group of 128 rows or columns.
    large = gemm(one_tile, Product(8192, 8192, 8192, "bf16", "bf16"))
    assert large.dram_read_bytes == (1 + 8192 // 128) * 2 * 8192 * 8192


sizes = st.integers(1, 6000)


@settings(max_examples=60, deadline=None)
@given(m=sizes, n=sizes, k=sizes, name=st.sampled_from(NAMES))
def test_no_product_beats_the_roofs(m: int, n: int, k: int, name: str) -> None:
    part = gpu(name)
    cost = gemm(part, Product(m, n, k, "bf16", "bf16"))
    time_s = cost.time_s(part.clock.maximum)
    assert time_s >= 2 * m * n * k / part.peak_flops_per_s("bf16")
    assert time_s >= 2 * (m * k + n * k + m * n) / part.peak_bytes_per_s
    assert sum(c.macs for c in cost.kernels()) >= m * n * k
    assert sum(c.dram_read_bytes for c in cost.kernels()) >= 2 * (m * k + n * k)
    assert time_s <= cost.time_s(part.clock.minimum)


def test_rows_of_odd_length_cost_dearly() -> None:
    part = gpu()

    def at(n: int) -> float:
        return gemm(part, Product(700, n, 9472, "bf16", "bf16")).time_s(part.clock.maximum)

    assert at(3261) > 5 * at(3264)  # measured: 528 us against about 60
    assert at(3261) > at(3262) > at(3264)
    assert at(3260) == pytest.approx(at(3262), rel=1e-3)  # no kernel loads more than two elements at once


def test_sparse_weights_read_half_and_an_index_and_need_a_unit() -> None:
    cost = gemm(gpu(), Product(1024, 4096, 4096, "bf16", "bf16", sparse=True))
    assert cost.dram_read_bytes == 4096 * 4096 * 9 // 8 + 2 * 1024 * 4096
    dense = gemm(gpu(), Product(1024, 4096, 4096, "bf16", "bf16"))
    assert cost.time_s(1.98e9) < dense.time_s(1.98e9)
    with pytest.raises(ConfigError, match="mi210 has no unit for 2:4 weights"):
        gemm(gpu("mi210"), Product(1024, 4096, 4096, "bf16", "bf16", sparse=True))


def test_a_format_without_a_unit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sm\.tensor: a100-80g has no unit that multiplies fp8_e4m3; it multi"):
        gemm(gpu("a100-80g"), Product(16, 16, 16, "fp8_e4m3", "bf16"))


@pytest.mark.parametrize(
    ("blocks", "steps", "parts"),
    [(64, 16, 4), (32, 32, 7), (32, 16, 8), (8, 128, 32), (64, 4, 4), (128, 128, 2), (212, 64, 1)],
)
def test_keys_are_split_as_flash_attention_splits_them(blocks: int, steps: int, parts: int) -> None:
    assert _splits(blocks, 264, steps) == parts  # grids seen in profiles of FlashAttention-2 on 132 multiprocessors


def test_a_tile_of_queries_costs_as_much_as_a_full_one() -> None:
    part = gpu()

    def core(queries: int, heads: int = 512) -> float:
        return attention(part, Attend(1, heads, heads, queries, 1024, 128, 128, False, "bf16", "flash")).core_cycles

    assert core(2) == core(128) == core(129) / 2


def test_queries_of_a_kv_head_share_a_tile_when_decoding() -> None:
    part = gpu()
    shared = attention(part, Attend(512, 32, 4, 1, 1024, 128, 128, False, "bf16", "flash"))
    alone = attention(part, Attend(512, 4, 4, 1, 1024, 128, 128, False, "bf16", "flash"))
    assert shared.core_cycles == alone.core_cycles
    assert shared.dram_read_bytes - alone.dram_read_bytes == 2 * 512 * (32 - 4) * 128


def test_a_causal_mask_saves_almost_half() -> None:
    part = gpu()
    full, causal = (
        attention(part, Attend(4, 64, 64, 4096, 4096, 128, 128, mask, "bf16", "cudnn")).core_cycles
        for mask in (False, True)
    )
    assert 0.5 < causal / full < 0.56


def test_unknown_back_end_is_told() -> None:
    with pytest.raises(ConfigError, match="unknown attention back end 'cudn' .*nearest is 'cudnn'"):
        attention(gpu(), Attend(1, 1, 1, 1, 1, 64, 64, False, "bf16", "cudn"))


def test_one_row_is_a_chain_and_many_are_bound_by_throughput() -> None:
    part = gpu()
    row = reduction(part, "layernorm", 1, 4096, 8192, 8192, True)
    kernel = part.library.rows["layernorm"][0]
    loads = kernel.passes * -(-4096 // (kernel.threads * kernel.vector))
    assert row.core_cycles == pytest.approx((kernel.row + loads * kernel.iteration) * 1e-12 * 1.98e9)
    assert row.core == "latency"
    many = reduction(part, "layernorm", 1 << 17, 4096, 2**30, 2**30, False)
    assert many.core == "issue"
    assert many.memory_s == pytest.approx(2**31 / stream_rate(part, 2**30, 2**30))


def test_a_row_past_the_l2_waits_for_each_load_of_its_first_pass() -> None:
    part = gpu()
    cold, warm = (reduction(part, "rmsnorm", 1, 4096, 8192, 8192, held) for held in (False, True))
    kernel = part.library.rows["rmsnorm"][0]
    waits = 8 * (part.sustained.latency - kernel.iteration)
    assert cold.core_cycles - warm.core_cycles == pytest.approx(waits * 1e-12 * 1.98e9)
    # Softmax asks for a whole row at once.
    cold, warm = (reduction(part, "softmax", 1, 4096, 8192, 8192, held) for held in (False, True))
    assert cold.core_cycles == warm.core_cycles


def test_thread_blocks_hide_half_of_each_others_waiting() -> None:
    part = gpu()
    assert _together(part, 1, 16, 1000, 300) == (1000, "latency")
    assert _together(part, 132, 16, 1000, 300) == (1000, "latency")
    # Four on a multiprocessor issue for 1200 clocks; three of them beside the first, half of which it does not hide.
    assert _together(part, 4 * 132, 16, 1000, 300) == (1200 + 900 / 2, "issue")
    # 32 of so few instructions start anew once.
    assert _together(part, 32 * 132, 16, 1000, 10) == (2000 + 310 / 2, "latency")


def test_another_kernel_costs_a_change() -> None:
    part = gpu()
    cost = gemm(part, Product(8, 4096, 4096, "bf16", "bf16"))
    alone, changed = (launched(part, cost, "gemm", mode).time_s(1.98e9) for mode in ("graph", "chain"))
    assert changed - alone == pytest.approx(len(cost.kernels()) * 1.4e-6)


def test_narrow_sparse_products_wait_for_their_weights() -> None:
    part = gpu()
    narrow, wide = (gemm(part, Product(m, 28672, 4096, "bf16", "bf16", sparse=True)) for m in (16, 256))
    weights = 28672 * 4096 * (1 + 1 / 8)
    assert narrow.memory_s > weights / 1.07e12
    assert narrow.time_s(1.98e9) > 1.5 * wide.time_s(1.98e9)


def test_steps_have_a_least_time_and_few_tiles_are_split(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text(
        "schema: opcycle/kernels/1\nbase: hopper\nname: two\n"
        "gemm: {long: [128], short: [128], splits: [1, 4], group: [1], wait: 1 us, split_below: 0.25}\n",
        encoding="utf-8",
    )
    part = gpu(kernels=str(path))
    # Ten steps of 1 us, split in four parts where tiles are fewer than a quarter of 132 multiprocessors.
    few, many = (gemm(part, Product(128, 128 * tiles, 640, "bf16", "bf16")) for tiles in (32, 33))
    assert (few.kernels()[0].decisions["split"], many.decisions["split"]) == ("4", "1")
    assert many.core_cycles == pytest.approx(10 * 1980 + part.fitted.tile)


def test_rows_that_overflow_l1_and_l2_are_read_again() -> None:
    part = gpu()
    size = 4096 * 8192 * 2
    fits, spills = (reduction(part, "rmsnorm", 4096 * 8192 // c, c, size, size, False) for c in (4096, 16384))
    assert (fits.dram_read_bytes, spills.dram_read_bytes) == (size, 2 * size)


def test_elements_that_wait_in_l2_touch_no_memory() -> None:
    warm = elementwise(gpu(), "add", 1 << 16, 2**18, 2**17, True)
    assert (warm.memory_s, warm.dram_read_bytes, warm.dram_write_bytes) == (0.0, 0, 0)


@given(a=st.floats(1e-9, 1e3), b=st.floats(1e-9, 1e3), p=st.floats(1, 16))
def test_the_norm_lies_between_the_longer_and_the_sum(a: float, b: float, p: float) -> None:
    joined = norm(a, b, p)
    assert max(a, b) <= joined * (1 + 1e-12)
    assert joined <= (a + b) * (1 + 1e-12)
    assert joined == norm(b, a, p)


def test_the_clock_falls_until_power_meets_the_limit() -> None:
    part = gpu()
    heavy = counted([gemm(part, Product(8192, 8192, 8192, "bf16", "bf16"))])
    long, short = sustained(part, heavy), burst(part, heavy)
    assert long.power_w == pytest.approx(700, abs=0.1)
    assert short.power_w == pytest.approx(part.power.burst, abs=0.1)
    assert part.clock.minimum < long.clock_hz < short.clock_hz < part.clock.maximum
    assert long.time_s > short.time_s
    light = sustained(part, counted([elementwise(part, "add", 1 << 12, 2**14, 2**13, True)]))
    assert light.clock_hz == part.clock.maximum
    assert 79 < light.power_w < 250


def test_power_by_hand() -> None:
    part = gpu()
    clock = float(part.clock.maximum)
    cost = Cost(core_cycles=clock, format="bf16", macs=10**13, dram_read_bytes=10**12)  # one second
    (kernel,) = counted([cost])
    found = sustained(part, [kernel])
    assert found.power_w == pytest.approx(79 + 105 + 10**13 * 2.03e-12 + 10**12 * 73e-12)
    assert voltage(part, clock) == 1.0
    assert voltage(part, clock / 2) == pytest.approx(1 - 0.56 / 2)
    assert voltage(part, 0.0) == 0.6


def test_equal_kernels_are_counted() -> None:
    one, other = Cost(core_cycles=1.0), Cost(core_cycles=2.0)
    assert [times for _, times in counted([one, other, one, one])] == [3, 1]


def test_a_pass_conserves_work_and_follows_its_kernels() -> None:
    part = gpu()
    work = decoder_layer(load_model("llama-3.1-8b"), 4, 128, 0, "bf16")
    result = GpuEngine(part).run(work)
    assert sum(row.flops for row in result.ops) == sum(block.flops for block in work.blocks)
    assert 2 * int(result.tasks.macs.sum()) >= sum(row.flops for row in result.ops)
    schedule = result.schedule
    assert np.all(schedule.start_ps <= schedule.finish_ps)
    assert schedule.finish_ps.max() == schedule.makespan_ps
    for unit in range(len(result.units)):
        mine = result.tasks.unit == unit
        assert np.all(schedule.start_ps[mine][1:] >= schedule.finish_ps[mine][:-1]), result.units[unit].name
    assert schedule.memory.bytes_read == int(result.tasks.dram_read_bytes.sum())
    assert schedule.makespan_ps * 1e-12 > sum(row.flops for row in result.ops) / part.peak_flops_per_s("bf16")


def test_equal_passes_are_run_once_and_named_anew() -> None:
    engine = GpuEngine(gpu())
    work = product(64, 64, 64, "bf16")
    first, second = engine.run(work), engine.run(work)
    assert first.schedule is second.schedule


def test_a_trace_runs_and_its_energy_adds_up() -> None:
    report = simulate(gpu(), load_workload("llama3-8b-prefill"))
    summary = report.summary
    assert summary["power_w"] == pytest.approx(700, rel=1e-3)  # bound by compute, so the cap holds
    assert sum(summary["energy_breakdown_j"].values()) == pytest.approx(summary["energy_j"])
    assert sum(report.operator_columns["advance_s"]) == pytest.approx(summary["time_s"])
    assert sum(report.operator_columns["energy_j"]) == pytest.approx(summary["energy_j"])
    assert summary["busiest_unit"] == "tensor"
    # 29.7 TFLOP at the 600 to 700 TFLOP/s that an H200 sustains.
    assert 29.7e12 / 700e12 < summary["time_s"] < 29.7e12 / 500e12


def test_power_of_a_pass_is_that_of_its_energy() -> None:
    part = gpu()
    result = GpuEngine(part).run(product(4096, 4096, 4096, "bf16"))
    joules = sum(row.energy_j for row in energy_rows(part, [result]))
    assert joules / (result.schedule.makespan_ps * 1e-12) == pytest.approx(part.power.cap, rel=1e-3)


def test_quarter_precision_weights_are_read_as_stored() -> None:
    part = gpu()
    engine = GpuEngine(part)
    wide = engine.run(product(1, 8192, 8192, "bf16"))
    from dataclasses import replace

    work = product(1, 8192, 8192, "bf16")
    (op,) = work.blocks[0].ops
    narrow_op = replace(op, inputs=(op.inputs[0], replace(op.inputs[1], format="int4")))
    narrow = engine.run(replace(work, blocks=(replace(work.blocks[0], ops=(narrow_op,)), *work.blocks[1:])))
    saved = wide.schedule.memory.bytes_read - narrow.schedule.memory.bytes_read
    assert saved == pytest.approx(8192 * 8192 * 3 / 2, rel=1e-6)
    assert narrow.schedule.makespan_ps < wide.schedule.makespan_ps


@pytest.mark.parametrize("name", NAMES)
def test_every_part_runs_a_layer_at_most_at_its_peak(name: str) -> None:
    part = gpu(name)
    work = decoder_layer(load_model("llama-3.1-8b"), 1, 2048, 0, "fp16")
    time_s = GpuEngine(part).run(work).schedule.makespan_ps * 1e-12
    floor_s = sum(block.flops for block in work.blocks) / part.peak_flops_per_s("fp16")
    assert floor_s < time_s < 4 * floor_s


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("power.cap", "50 W", "needs idle < cap <= burst"),
        ("clock.minimum", "3 GHz", "minimum of 3000000000 Hz is above maximum"),
        ("kernels", "hoper", "unknown kernels 'hoper', nearest is 'hopper'"),
        ("sm.tensor.int4", 8192, "energy.mac lacks int4"),
        ("l2.share", 2, "l2.share"),
        ("sm.lane", 3, "nearest is 'lanes'"),
    ],
)
def test_wrong_descriptions_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _ = gpu(**{key.replace(".", "__"): value}).library


def test_libraries_say_what_they_are_based_on(tmp_path: Path) -> None:
    assert gpu("rtx4090").library.name == "ada"
    assert gpu("rtx4090").library.rows == gpu("a100-80g").library.rows


def test_a_machine_with_unknown_kernels_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"h200\.yaml.* kernels: unknown kernels 'hoper', nearest is 'hopper'"):
        gpu(kernels="hoper")
