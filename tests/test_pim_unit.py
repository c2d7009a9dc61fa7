"""`opcycle unit pim`: what it prints, its energy, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from sim.dram_energy import dram_energies, dram_rows
from sim.errors import ConfigError
from sim.kernels import pim_tables as at
from sim.passes import MemoryCounts
from sim.pim.shapes import Kernel, check_rows, jobs_of
from sim.standards import load_memory


@pytest.fixture
def unit_pim(opcycle: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """Runs `opcycle unit pim ... --json` and returns what it prints."""

    def call(machine: str, rows: int, cols: int, *more: object) -> dict[str, Any]:
        outcome = opcycle("unit", "pim", machine, "--rows", rows, "--cols", cols, "--json", *more)
        assert outcome.code == 0, outcome.err
        result: dict[str, Any] = json.loads(outcome.out)
        return result

    return call


NEUPIMS = ("--set", "hw.memory.standard=hbm2-neupims-pim")


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("machine", "more", "loads", "steps"),
    [
        # 4096 rows over 32 channels of 32 banks: 128 a channel, 4 in a bank; two chunks of 512 columns, 32 steps each.
        ("npu-hbm2", NEUPIMS, 32 * 2, 32 * 4 * 2 * 32),
        # A bank row holds 1024 columns and so the whole vector: 64 bursts a channel; 256 rows a channel in 16 banks.
        ("aim-gddr6", (), 16 * 64, 16 * 16 * 64),
        # 8 chunks of 128 columns, 8 registers each, and a tile of 4096 outputs in 64 channels; parking reads 18 more.
        ("hbm-pim", (), 64 * (8 * 8 + 4), 64 * (8 * 64 + 18)),
    ],
)
def test_commands_follow_from_the_layout(
    unit_pim: Callable[..., dict[str, Any]], machine: str, more: tuple[str, ...], loads: int, steps: int
) -> None:
    result = unit_pim(machine, 4096, 1024, *more)
    names = {"GWRITE": "WRGB", "COMP": "MACAB"} if machine == "aim-gddr6" else {}
    assert result["commands"][names.get("GWRITE", "GWRITE")] == loads
    assert result["commands"][names.get("COMP", "COMP")] == steps
    assert result["violations"] == 0
    assert result["macs"] == 4096 * 1024


@pytest.mark.kernels
def test_a_batch_is_one_vector_after_another(unit_pim: Callable[..., dict[str, Any]]) -> None:
    one, four = (unit_pim("npu-hbm2", 1024, 512, *NEUPIMS, "--batch", n) for n in (1, 4))
    assert four["commands"]["GWRITE"] == 4 * one["commands"]["GWRITE"]
    # Rows stay open, so that the three further vectors only pay for loads and steps; headers go by the other bus.
    assert four["cycles"] == one["cycles"] + 3 * (96 + 2 * 32)


@pytest.mark.kernels
def test_channels_share_the_rows(unit_pim: Callable[..., dict[str, Any]]) -> None:
    even, odd = (unit_pim("npu-hbm2", rows, 512, *NEUPIMS) for rows in (32, 33))
    # One row a channel; then one channel has two, in the same tile.
    assert even["cycles"] == odd["cycles"]
    assert even["commands"]["COMPS_READRES"] == odd["commands"]["COMPS_READRES"] == 32


@pytest.mark.kernels
def test_energy_is_the_published_multiple_of_ordinary_commands(unit_pim: Callable[..., dict[str, Any]]) -> None:
    memory = load_memory("hbm2-neupims-pim")
    # NeuPIMs, by DRAMsim3's currents, in pJ: a load 12,864, opening four banks 3,312, a step 3,216, a result 804.
    commands = {"GWRITE": 2, "G_ACT": 3, "COMP": 5, "READRES": 1, "COMPS_READRES": 6}
    counts = MemoryCounts(commands, {"active": 0, "precharged": 0, "refresh": 0}, 0, 0, 0, 0, 0)
    rows = {row.subcomponent: row.count * row.pj_each for row in dram_rows(memory, counts)}
    assert rows["pim load"] == pytest.approx(2 * 12864)
    assert rows["pim activate"] == pytest.approx(3 * 3312)
    assert rows["pim compute"] == pytest.approx(5 * 3216)
    assert rows["pim readout"] == pytest.approx(7 * 804)
    assert "pim standby active" not in rows
    # Read-outs leave the stack as bursts do: 7 of 64 B.
    bits = {row.subcomponent: row.count for row in dram_rows(memory, counts)}
    assert bits["io"] == 7 * 64 * 8
    twice = load_memory("hbm2-neupims-pim", {"pim.energy.second_background": True})
    busy = MemoryCounts(commands, {"active": 1000, "precharged": 500, "refresh": 0}, 0, 0, 0, 0, 0)
    rows = {row.subcomponent: row.count * row.pj_each for row in dram_rows(twice, busy)}
    assert rows["pim standby active"] == rows["standby active"] == pytest.approx(66)
    own = load_memory("hbm3-attacc")
    assert dram_energies(own).command_pj["read"] > 0
    rows = {row.subcomponent: row.pj_each for row in dram_rows(own, counts)}
    assert rows["pim compute"] == 7864


@pytest.mark.kernels
def test_dual_and_blocked_differ_by_what_they_issue(unit_pim: Callable[..., dict[str, Any]]) -> None:
    dual = unit_pim("npu-hbm2", 2048, 512, *NEUPIMS)
    blocked = unit_pim("npu-hbm2", 2048, 512, "--set", "hw.memory.standard=hbm2-neupims-pim-blocked")
    assert (dual["mode"], blocked["mode"]) == ("dual", "blocked")
    assert dual["commands"]["COMP"] == blocked["commands"]["COMP"]
    assert "COMPS_READRES" not in blocked["commands"]
    assert "READRES" not in dual["commands"]


@pytest.mark.kernels
def test_attention_in_aim_is_two_products(unit_pim: Callable[..., dict[str, Any]]) -> None:
    commands = unit_pim("aim-gddr6", 512, 128, "--kernel", "attention", "--heads", 16)["commands"]
    # A head a channel: 512 keys of 8 steps in 16 banks, 128 dimensions of 32 steps; a read-out a result of all banks.
    assert commands["MACAB"] == 16 * (512 // 16 * 8 + 128 // 16 * 32)
    assert commands["RDMAC"] == 16 * (512 // 16 + 128 // 16)


@pytest.mark.kernels
@pytest.mark.parametrize("rows", [1, 33, 64])
def test_standby_is_that_of_every_channel_until_the_last_row_is_closed(
    unit_pim: Callable[..., dict[str, Any]], rows: int
) -> None:
    result = unit_pim("npu-hbm2", rows, 64, *NEUPIMS)
    spent = {name: pj for name, pj in result["energy_pj"].items() if name.startswith("standby")}
    assert min(spent.values()) > 0
    # pJ of a rank and clock while active and while closed; 32 channels of two ranks, no refresh in so short a time.
    ticks = spent.pop("standby active") / 66 + spent.pop("standby precharged") / 48
    assert not spent
    clocks = ticks / (32 * 2)
    assert result["cycles"] <= clocks <= result["cycles"] + 60  # the rows of the last tile are closed one by one


@pytest.mark.kernels
def test_operands_of_elementwise_kernels_have_rows_of_their_own() -> None:
    memory = load_memory("hbm-pim")
    kernel = memory.pim.kernel_number("add") if memory.pim else -1
    (jobs,) = jobs_of(memory, 1, Kernel.ADD, 4 * 128 * 1024, 300 * 4, 1, 1)
    mine = jobs[jobs[:, at.KERNEL] == kernel]
    used = [
        int(row) + n + offset
        for row, tiles in mine[:, [at.ROW, at.TILES]]
        for n in range(tiles)
        for offset in (0, 128, 256)
    ]
    assert len(used) == len(set(used)) >= 3 * 300
    # The register rows begin at 4096: 1365 rows of each operand fit below, in stretches of 128.
    with pytest.raises(ConfigError, match="has 4096 rows a bank below those that its commands reserve"):
        check_rows(memory, jobs_of(memory, 1, Kernel.ADD, 128 * 16 * 64, 1400, 1, 1)[0])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("neupims", "--rows", 64, "--cols", 64, "--level", "bank"), "the memory of neupims is hbm2-neupims-pim"),
        (("neupims", "--rows", 64, "--cols", 64, "--heads", 2), "--heads 2 goes with --kernel attention"),
        (
            ("npu-hbm2", "--rows", 64, "--cols", 64),
            "has no units that compute in memory; its file has no `pim` section",
        ),
        (("aim-gddr6", "--rows", 64, "--cols", 64, "--kernel", "add"), "has no kernel add; it has gemv"),
        (
            ("attacc-like", "--rows", 64, "--cols", 100, "--kernel", "attention"),
            "a head dimension of 100 has no layout: it must be a multiple of the former",
        ),
        (("hbm-pim", "--rows", 64, "--cols", 128, "--kernel", "attention"), "attention has no layout in it"),
        (("aim-gddr6", "--rows", 2**22, "--cols", 2**16), "has 16384 rows a bank, but the operands need"),
        (("aim-gddr6", "--rows", 0, "--cols", 64), "--rows: is 0"),
        (("aim-gddr6", "--rows", 64, "--cols", 64, "--set", "hw.memory.settings.pim.mode=both"), "pim.mode"),
    ],
)
def test_what_has_no_layout_is_refused(refused: Callable[..., str], arguments: tuple[object, ...], words: str) -> None:
    assert words in refused("unit", "pim", *arguments)
