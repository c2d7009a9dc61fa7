"""Further memories: their data, the time and energy of transfers over their links, and what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from machines import SMALL

from sim.capacity import check_tiers
from sim.catalog import names
from sim.config import ConfigError
from sim.energy import energy_rows, operator_energy_j
from sim.engine import Engine
from sim.hardware import Hardware
from sim.joins import work_by_operator
from sim.kinds import load_hardware
from sim.passes import PassResult
from sim.tiers import load_tier
from workloads.trace import Block, CustomAttrs, MatmulAttrs, Op, OpKind, Pass, Role, Tensor, Trace, TransferAttrs

MIB = 1 << 20
CHUNK = 256 * 1024


def small(**changes: Any) -> Hardware:
    """The small machine of the other tests with the tiers of `npu-hbm2-offload`."""
    return load_hardware("npu-hbm2-offload", {**SMALL, "dma.setup": "0 ns", **changes})


def move(
    name: str, size: int, source: str = "host", target: str = "device", role: Role = Role.ACTIVATION, tensor: str = ""
) -> Op:
    """A transfer of `size` bytes from a tensor of one tier to one of another."""
    before = Tensor(f"{tensor or name}.in", (size,), "int8", role, tier=source)
    after = Tensor(f"{tensor or name}.out", (size,), "int8", role, tier=target)
    return Op(name, OpKind.TRANSFER, "link", (before,), (after,), TransferAttrs(source, target, size))


def run(machine: Hardware, *ops: Op, repeat: int = 1) -> PassResult:
    return Engine(machine).run(Pass("p", "prefill", (Block("moves", repeat, ops),), 1))


def tasks_of(result: PassResult, unit: str) -> np.ndarray:
    return np.flatnonzero(result.tasks.unit == [row.name for row in result.units].index(unit))


# Data


@pytest.mark.parametrize("name", names("tier"))
def test_tiers_that_ship(name: str) -> None:
    tier = load_tier(name)
    assert tier.name == name
    for towards in (True, False):
        assert tier.transfer_ps(0, towards) == tier.latency_ps(towards)
        assert (
            tier.transfer_ps(10**9, towards) >= tier.latency_ps(towards) + 10**21 // tier.direction(towards).bandwidth
        )
        assert tier.memory_pj_per_bit(towards) > 0


def test_time_is_latency_plus_bytes_over_bandwidth() -> None:
    pcie = load_tier("host-ddr5-pcie5")
    assert pcie.transfer_ps(57_600, True) == 900_000 + 10**6
    assert pcie.transfer_ps(1, False) == 450_000 + 18  # 17.4 ps, rounded up
    assert load_tier("flash-nvme4").transfer_ps(7_000_000, True) == 60_000_000 + 10**9


def test_sram_by_size() -> None:
    assert load_tier("sram").latency_ps(True) == 18_000
    mib = load_tier("sram", {"capacity": "1 MiB"})
    assert (mib.latency_ps(False), mib.memory_pj_per_bit(True)) == (3_500, pytest.approx(0.219))
    assert load_tier("sram", {"capacity": "1025 KiB"}).latency_ps(True) == 7_000
    with pytest.raises(ConfigError, match="sizes end at 536870912 B, but capacity is 1073741824 B"):
        load_tier("sram", {"capacity": "1 GiB"})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"read.bandwith": "1 GB/s"}, "unknown key 'bandwith' in read, nearest is 'bandwidth'"),
        ({"read.bandwidth": 5}, "read.bandwidth: 5 lacks its unit"),
        ({"read.latency": "-1 ns"}, "negative"),
        ({"capacity": "0 B"}, "capacity"),
        ({"duplex": "perhaps"}, "must be true or false"),
        ({"sizes": [{"capacity": "2 TiB", "latency": "1 ns", "energy": "1 pJ/bit"}] * 2}, "order of rising capacity"),
    ],
)
def test_wrong_tiers(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_tier("host-cxl2", changes)


def test_machines_name_their_tiers() -> None:
    assert load_hardware("npu-hbm2").tiers == {}
    assert list(load_hardware("npu-hbm2-offload").tier_data) == ["host", "flash"]
    slow = small(**{"tiers.host.settings": {"read.latency": "5 us"}})
    assert slow.tier_data["host"].read.latency == 5_000_000
    with pytest.raises(ConfigError, match="unknown tier 'host-ddr5-pcie', nearest is 'host-ddr5-pcie5'"):
        small(**{"tiers.host.tier": "host-ddr5-pcie"})
    with pytest.raises(ConfigError, match="'device' is the machine's own memory"):
        small(**{"tiers.device": {"tier": "sram"}})
    with pytest.raises(ConfigError, match="tiers.host: unknown key|unknown key 'chunks' in tiers.host"):
        small(**{"tiers.host.chunks": "1 KiB"})


# Transfers


def test_one_transfer_towards_the_device() -> None:
    machine, size = small(), 4 * MIB + 1000
    tier = machine.tier_data["host"]
    result = run(machine, move("fetch", size))
    link = tasks_of(result, "link.host.read")
    assert len(link) == -(-size // CHUNK)
    schedule = result.schedule
    assert int((schedule.release_ps - schedule.start_ps)[link].sum()) == tier.occupancy_ps(size, True)
    assert int(schedule.finish_ps[link].max()) == tier.transfer_ps(size, True)
    # DRAM takes a chunk in less time than the link, so only the last chunk's writes come on top.
    writes = tasks_of(result, "port.write")
    alone = CHUNK / machine.peak_bytes_per_s * 1e12
    assert 0 < schedule.makespan_ps - tier.transfer_ps(size, True) < 3 * alone
    assert int(result.tasks.dram_write_bytes[writes].sum()) == size and not result.tasks.dram_read_bytes.any()
    assert size <= schedule.memory.bytes_written <= size + 2 * machine.dram.burst_bytes
    assert int(result.tasks.link_bytes.sum()) == size
    for previous, following in pairwise(link):
        assert schedule.start_ps[following] >= schedule.release_ps[previous]
    for chunk, write in zip(link, writes, strict=True):
        assert schedule.start_ps[write] >= schedule.finish_ps[chunk]


def test_one_transfer_from_the_device() -> None:
    machine, size = small(**{"scratchpad.activation_share": 0}), 2 * MIB
    tier = machine.tier_data["host"]
    result = run(machine, move("evict", size, "device", "host"))
    link, reads = tasks_of(result, "link.host.write"), tasks_of(result, "port.read")
    assert int(result.tasks.dram_read_bytes[reads].sum()) == size and not result.tasks.dram_write_bytes.any()
    assert (result.schedule.start_ps[link] >= result.schedule.finish_ps[reads]).all()
    late = result.schedule.makespan_ps - tier.transfer_ps(size, False)
    assert 0 < late < 3 * CHUNK / machine.peak_bytes_per_s * 1e12


def test_transfers_share_a_link_and_pass_each_other_on_a_duplex_one() -> None:
    machine, size = small(**{"scratchpad.activation_share": 0}), 2 * MIB
    tier = machine.tier_data["host"]
    alone = run(machine, move("a", size)).schedule.makespan_ps
    both = run(machine, move("a", size), move("b", size)).schedule.makespan_ps
    assert both - alone == pytest.approx(tier.occupancy_ps(size, True), rel=1e-3)
    across = run(machine, move("a", size), move("b", size, "device", "host")).schedule.makespan_ps
    assert across < 1.05 * alone  # only the first and the last chunk meet in the DRAM
    flash = machine.tier_data["flash"]
    shared = run(machine, move("a", size, "flash"), move("b", size, "device", "flash"))
    busy = flash.occupancy_ps(size, True) + flash.occupancy_ps(size, False)
    assert shared.schedule.makespan_ps >= busy
    moved = tasks_of(shared, "link.flash")
    assert int((shared.schedule.release_ps - shared.schedule.start_ps)[moved].sum()) == busy


def test_a_slow_dram_holds_the_link_back() -> None:
    machine = small(**{"memory.channels": 1, "memory.standard": "ddr4-3200", "memory.settings": {}})
    size = 8 * MIB
    result = run(machine, move("fetch", size))
    assert machine.peak_bytes_per_s < machine.tier_data["host"].read.bandwidth
    assert result.schedule.makespan_ps > size / machine.peak_bytes_per_s * 1e12
    link, writes = tasks_of(result, "link.host.read"), tasks_of(result, "port.write")
    for chunk, write in zip(link[2:], writes, strict=False):
        assert result.schedule.start_ps[chunk] >= result.schedule.finish_ps[write]


def test_a_product_waits_for_weights_from_the_host_and_layers_for_each_other() -> None:
    machine, n = small(), 512
    size = 2 * n * n
    host, here = (Tensor("w", (n, n), "fp16", Role.WEIGHT, tier=tier) for tier in ("host", "device"))
    x, y = (Tensor(name, (1, n), "fp16", Role.ACTIVATION) for name in ("x", "x"))
    fetch = Op("fetch", OpKind.TRANSFER, "link", (host,), (here,), TransferAttrs("host", "device", size))
    product = Op("product", OpKind.MATMUL, "ffn", (x, here), (y,), MatmulAttrs(1, 1, n, n))
    result = run(machine, fetch, product, repeat=3)
    schedule, tasks = result.schedule, result.tasks
    begin = [int(schedule.start_ps[tasks_of(result, "link.host.read")][k * 2]) for k in range(3)]
    for layer in range(3):
        arrived = schedule.finish_ps[(tasks.op == 2 * layer) & (tasks.dram_write_bytes > 0)].max()
        loads = (tasks.op == 2 * layer + 1) & (tasks.dram_read_bytes > 0)
        assert int(tasks.dram_read_bytes[loads].sum()) >= size
        assert schedule.start_ps[loads & (tasks.dram_read_bytes > 4096)].min() >= arrived
        if layer:
            assert begin[layer] >= schedule.finish_ps[tasks.op == 2 * layer - 1].max()
    tier = machine.tier_data["host"]
    assert schedule.makespan_ps > 3 * tier.transfer_ps(size, True)
    trace = Trace("m", 1, (Pass("p", "prefill", (Block("b", 3, (fetch, product)),), 1),))
    assert trace.weight_bytes_by_tier == {"host": 3 * size}


def test_energy_of_a_link() -> None:
    machine, size = small(), MIB
    result = run(machine, move("a", size), move("b", 2 * size, "flash"))
    rows = {row.subcomponent: row for row in energy_rows(machine, [result]) if row.component == "link"}
    host = machine.tier_data["host"]
    assert rows["host link"].energy_j == pytest.approx(8 * size * host.link_energy * 1e-12)
    assert rows["host read"].energy_j == pytest.approx(8 * size * host.read.energy * 1e-12)
    assert rows["flash link"].count == 16 * size and "host write" not in rows
    assert "TPUv4i" in rows["host read"].source
    work = [work_by_operator(result)]
    account = energy_rows(machine, [result], work)
    (shares,) = operator_energy_j(machine, [result], work, account)
    assert shares["link"].sum() == pytest.approx(sum(row.energy_j for row in rows.values()))


def test_tiers_change_nothing_for_others() -> None:
    n = 256
    x = Tensor("x", (4, n), "fp16", Role.ACTIVATION)
    w = Tensor("w", (n, n), "fp16", Role.WEIGHT)
    product = Op("product", OpKind.MATMUL, "ffn", (x, w), (x,), MatmulAttrs(1, 4, n, n))
    with_tiers = run(small(), product)
    without = run(load_hardware("npu-hbm2", {**SMALL, "dma.setup": "0 ns"}), product)
    assert np.array_equal(with_tiers.schedule.finish_ps, without.schedule.finish_ps)
    assert with_tiers.schedule.memory == without.schedule.memory


# Refusals


def test_transfers_that_no_link_serves() -> None:
    with pytest.raises(ConfigError, match="a moves from 'disk' to 'device', but small has host and flash"):
        run(small(), move("a", 64, "disk"))
    with pytest.raises(ConfigError, match="a moves from 'flash' to 'host', but every link ends at 'device'"):
        run(small(), move("a", 64, "flash", "host"))
    wrong = Op("a", OpKind.TRANSFER, "link", (Tensor("x", (8,), "int8", Role.ACTIVATION),), (),
               TransferAttrs("host", "device", 8))  # fmt: skip
    with pytest.raises(ConfigError, match="a moves from 'host' to 'device', but x is in 'device'"):
        run(small(), wrong)


def test_work_on_what_lives_in_a_tier() -> None:
    x = Tensor("x", (1, 64), "fp16", Role.ACTIVATION)
    w = Tensor("w", (64, 64), "fp16", Role.WEIGHT, tier="host")
    product = Op("product", OpKind.MATMUL, "ffn", (x, w), (x,), MatmulAttrs(1, 1, 64, 64))
    with pytest.raises(ConfigError, match="product works on w, which lives in tier 'host'; move it"):
        run(small(), product)


def test_weights_must_fit_in_their_tier() -> None:
    machine = small()

    def trace(tier: str, size: int) -> Trace:
        weight = Tensor("w", (size,), "int8", Role.WEIGHT, tier=tier)
        x = Tensor("x", (1,), "int8", Role.ACTIVATION)
        custom = Op("touch", OpKind.CUSTOM, "ffn", (weight,), (x,), CustomAttrs(0, 1, 0, 0))
        return Trace("m", 1, (Pass("p", "encode", (Block("b", 1, (custom,)),), 1),))

    check_tiers(machine, trace("host", 1 << 39))
    with pytest.raises(
        ConfigError, match=r"m \(batch 1\) has 512\.0 GiB of weights.*but host-ddr5-pcie5 of small holds 512\.0 GiB"
    ):
        check_tiers(machine, trace("host", (1 << 39) + 1))
    with pytest.raises(ConfigError, match=r"m \(batch 1\) has weights in tier 'disk', but small has host and flash"):
        check_tiers(machine, trace("disk", 1))
