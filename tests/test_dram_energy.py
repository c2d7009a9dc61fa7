"""DRAM energy: against a published simulator's own command counts, by hand, and in the states of idle time."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from sim.config import ConfigError
from sim.dram_energy import dram_energies, dram_rows, with_power_down
from sim.energy_tables import load_interfaces
from sim.passes import MemoryCounts
from sim.standards import Memory, load_memory

DATA = Path(__file__).parent / "data" / "dram"
WIDE = {"currents.IDD0": "65 mA", "currents.IDD2N": "40 mA", "currents.IDD3N": "55 mA", "currents.IDD4R": "390 mA",
        "currents.IDD4W": "500 mA", "currents.IDD5AB": "250 mA", "currents.IDD5PB": None}  # fmt: skip
SYSTEMS = {
    "ds3_ddr4_1ch": ("ddr4-3200", {"clock": "1587302 kHz"}),
    "ds3_ddr4_8ch": ("ddr4-3200", {"clock": "1587302 kHz"}),
    "ds3_ddr4_1ch_m": ("ddr4-3200-matched", {}),
    "ds3_ddr4_8ch_m": ("ddr4-3200-matched", {}),
    "ds3_hbm2": ("hbm2-neupims", {}),
    "ds3_hbm2pc_m": ("hbm2-pc-matched", WIDE),
}
"""The memory whose currents and timings each system had: DRAMsim3 rounds DDR4's clock period to 0.63 ns, and its
matched HBM2 charges the currents of 128 bit to every channel of 64 bit.
"""
STANDARDS = ("ddr4-3200", "ddr5-4800", "ddr5-6400", "hbm2", "hbm2e", "hbm3", "hbm3e", "lpddr4x", "lpddr5-6400", "gddr6")


def published() -> list[dict[str, str]]:
    with (DATA / "energy_runs.csv").open(encoding="ascii") as file:
        return list(csv.DictReader(file))


def counts(memory: Memory, commands: dict[str, int], standby_ps: dict[str, int] | None = None) -> MemoryCounts:
    return MemoryCounts(
        commands=commands,
        standby_ps=standby_ps or {},
        bytes_read=commands.get("RD", 0) * memory.burst_bytes,
        bytes_written=commands.get("WR", 0) * memory.burst_bytes,
        row_hits=0,
        row_misses=0,
        row_conflicts=0,
    )


def picojoules(memory: Memory, found: MemoryCounts) -> dict[str, float]:
    return {row.subcomponent: row.count * row.pj_each for row in dram_rows(memory, found)}


@pytest.mark.parametrize("row", published(), ids=lambda row: f"{row['system']} {row['pattern']}")
def test_equal_to_a_published_simulator_from_its_counts(row: dict[str, str]) -> None:
    name, overrides = SYSTEMS[row["system"]]
    memory = load_memory(name, overrides)
    commands = {"ACT": int(row["ACT"]), "RD": int(row["RD"]), "WR": int(row["WR"]), "REFab": int(row["REF_all_bank"])}
    # Of the ranks' time only the energy is published, not its split by state: the split must exist and give the total.
    ranks = 2 if row["system"] in ("ds3_ddr4_1ch", "ds3_ddr4_8ch") else 1
    counted = int(row["cycles"]) + (2000 if commands["WR"] else 0)  # runs with writes were read out that much later
    time_ns = counted * float(row["tCK_ns"]) * int(row["channels"]) * ranks
    power = dram_energies(memory).standby_mw
    share = (float(row["energy_standby_pJ"]) / time_ns - power["precharged"]) / (power["active"] - power["precharged"])
    assert 0 <= share <= 1
    active = round(share * time_ns * 1000)
    found = picojoules(
        memory, counts(memory, commands, {"active": active, "precharged": round(time_ns * 1000) - active, "refresh": 0})
    )
    for term, column in (("activate", "act"), ("read", "read"), ("write", "write"), ("refresh all banks", "refresh")):
        assert found[term] == pytest.approx(float(row[f"energy_{column}_pJ"]), rel=1e-3), term
    interface = sum(found[name] for name in ("movement", "tsv", "io"))
    assert sum(found.values()) - interface == pytest.approx(float(row["energy_total_pJ"]), rel=1e-3)


def test_every_system_with_published_energies_is_compared() -> None:
    assert {row["system"] for row in published()} == set(SYSTEMS)
    assert len(published()) == 24


@pytest.mark.parametrize("name", STANDARDS)
def test_every_term_is_positive_and_named(name: str) -> None:
    memory = load_memory(name)
    energies = dram_energies(memory)
    assert min(energies.command_pj.values()) > 0
    assert set(energies.command_pj) >= {"activate", "read", "write", "refresh all banks"}
    assert ("refresh one bank" in energies.command_pj) == (name != "ddr4-3200")
    states = energies.standby_mw
    assert states["precharged power-down"] < states["precharged"] <= states["active"]
    assert states["active power-down"] < states["active"]
    rows = picojoules(memory, counts(memory, {"ACT": 1, "RD": 16, "WR": 4, "REFab": 1}))
    assert {"movement", "tsv", "io"} <= set(rows)
    assert (rows["tsv"] > 0) == name.startswith("hbm")


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("hbm2", 3.5, 4.4), ("hbm2e", 3.5, 6.0), ("hbm3", 3.0, 4.5), ("hbm3e", 3.0, 4.5), ("gddr6", 5.5, 7.5),
     ("ddr4-3200", 15, 21), ("ddr5-4800", 10, 20), ("lpddr4x", 3, 6), ("lpddr5-6400", 2, 5)],
)  # fmt: skip
def test_a_streaming_read_costs_what_is_published(name: str, low: float, high: float) -> None:
    """Published: HBM2 3.92 pJ/bit, HBM2E 4.3 to 6.0, HBM3 3.59, HBM3E 3.44, GDDR6 5.5 to 7.5, DDR4 about 20; the others
    are assumed."""
    memory = load_memory(name)
    o = memory.organisation
    bursts = 1_000_000
    time_ps = int(bursts * memory.burst_ticks * memory.period)
    refreshes = o.ranks * time_ps // int(memory.timings["tREFI"] * memory.period)
    found = counts(
        memory, {"ACT": bursts // o.columns, "RD": bursts, "REFab": refreshes}, {"active": time_ps * o.ranks}
    )
    assert low <= sum(picojoules(memory, found).values()) / (8 * memory.burst_bytes * bursts) <= high


def test_terms_of_the_bank_by_hand() -> None:
    energies = dram_energies(load_memory("hbm3"))
    assert energies.bank_pj["activate"] == energies.command_pj["activate"]
    assert energies.bank_pj["read"] == pytest.approx(0.44 * 256)
    assert energies.bank_pj["refresh one bank"] == energies.command_pj["refresh one bank"]
    assert "refresh all banks" not in energies.bank_pj
    for name in STANDARDS:
        energies = dram_energies(load_memory(name))
        assert all(0 < pj <= energies.command_pj[term] for term, pj in energies.bank_pj.items())


def test_refresh_of_one_bank_by_hand() -> None:
    # 1.1 V x (135 - 92) mA x 130 ns x 4 devices; 1.2 V x (26.1 - 20) mA x 160 ns.
    assert dram_energies(load_memory("ddr5-4800")).command_pj["refresh one bank"] == pytest.approx(24_596)
    assert dram_energies(load_memory("hbm2")).command_pj["refresh one bank"] == pytest.approx(1171.2)
    hbm2 = load_memory("hbm2")
    assert picojoules(hbm2, counts(hbm2, {"REFpb": 16}))["refresh one bank"] == pytest.approx(16 * 1171.2)


def test_closed_ranks_may_power_down() -> None:
    fast = load_memory("hbm2", {"controller.power_down": "fast"})
    plain = load_memory("hbm2")
    found = counts(plain, {"REFab": 5}, {"active": 10**9, "precharged": 3 * 10**9, "refresh": 10**6})
    rows, usual = picojoules(fast, found), picojoules(plain, found)
    assert rows["standby precharged"] == 0
    assert rows["standby precharged power-down"] == pytest.approx(3 * 10**6 * 1.2 * 14)
    assert usual["standby precharged"] == pytest.approx(3 * 10**6 * 1.2 * 20)
    assert rows["refresh all banks"] == usual["refresh all banks"]
    assert "standby precharged power-down" not in usual


def test_self_refresh_replaces_standby_and_refreshes_of_whole_intervals() -> None:
    memory = load_memory("hbm2", {"controller.power_down": "self_refresh", "refresh": "staggered"})
    between, during = 3_740_000, 160_000
    found = counts(memory, {"REFab": 12}, {"active": 10**6, "precharged": 10 * between + 77, "refresh": 12 * during})
    after = with_power_down(memory, found)
    assert after.commands == {"REFab": 2}
    assert after.standby_ps == {
        "active": 10**6, "precharged": 77, "refresh": 2 * during, "self refresh": 10 * (between + during),
    }  # fmt: skip
    assert sum(after.standby_ps.values()) == sum(found.standby_ps.values())
    never = load_memory("hbm2", {"controller.power_down": "self_refresh", "refresh": "none"})
    assert with_power_down(never, counts(never, {}, {"precharged": 500})).standby_ps == {
        "precharged": 0, "self refresh": 500,
    }  # fmt: skip


def test_self_refresh_replaces_whole_rounds_of_refreshes_of_banks() -> None:
    memory = load_memory("hbm2", {"controller.power_down": "self_refresh", "refresh": "per_bank"})
    found = counts(memory, {"REFpb": 40}, {"active": 10**6, "precharged": 10 * 3_900_000 + 77, "refresh": 0})
    after = with_power_down(memory, found)
    assert after.commands == {"REFpb": 8}  # 40 are two rounds of 16, and a half
    assert after.standby_ps == {
        "active": 10**6, "precharged": 8 * 3_900_000 + 77, "refresh": 0, "self refresh": 2 * 3_900_000,
    }  # fmt: skip


def test_states_given_from_outside_are_charged_or_refused() -> None:
    memory = load_memory("hbm2")
    assert picojoules(memory, counts(memory, {}, {"active power-down": 10**6}))["standby active power-down"] == (
        pytest.approx(1.2 * 20 * 1000)
    )
    without = load_memory("hbm2", {"currents.IDD3P": None})
    with pytest.raises(ConfigError, match="active power-down is missing"):
        picojoules(without, counts(without, {}, {"active power-down": 1}))


def test_every_family_states_all_terms() -> None:
    interfaces, document = load_interfaces()
    for family in interfaces.families:
        for term in ("bank", "movement", "tsv", "io"):
            assert document.source_of(f"families.{family}.{term}")
