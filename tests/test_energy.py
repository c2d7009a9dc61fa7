"""Energy: tables with sources, numbers worked by hand, rows that sum to the total, and nothing lost between views."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_cases import counts, hbm2, machine, one_pass, op

from sim.dram_energy import dram_energies, dram_rows, interface_rows
from sim.energy import energy_rows, operator_energy_j, total_counts
from sim.energy_row import COMPONENTS
from sim.energy_tables import family_of, load_interfaces, load_table, mac_cost, source_text
from sim.errors import ConfigError
from sim.joins import work_by_operator

TABLES = ("7nm", "16nm", "45nm")


def joules(rows, component, subcomponent=None):
    return math.fsum(r.energy_j for r in rows if r.component == component and subcomponent in (None, r.subcomponent))


@pytest.mark.parametrize("name", TABLES)
def test_every_value_of_a_table_says_where_it_comes_from(name):
    table, document = load_table(name)
    assert table.name == name
    for fmt in table.mac:
        assert document.source_of(f"mac.{fmt}.energy")
    for key in (
        "vector.operation",
        "register.pipeline_per_byte",
        "register.file_per_byte",
        "accumulator.energy_per_byte",
        "sram.points.0.read",
        "sram.macro",
        "wire.energy",
        "leakage.sram_per_mib",
        "leakage.mac_lane",
    ):
        assert document.source_of(key), key


def test_every_interface_term_says_where_it_comes_from():
    interfaces, document = load_interfaces()
    for family in interfaces.families:
        for term in ("movement", "tsv", "io"):
            assert document.source_of(f"families.{family}.{term}")


@pytest.mark.parametrize(("name", "fmt", "pj"), [("45nm", "int8", 0.3), ("45nm", "fp32", 4.6), ("7nm", "bf16", 0.59)])
def test_a_multiply_accumulate_is_its_multiply_and_its_add(name, fmt, pj):
    assert load_table(name)[0].mac[fmt].energy == pytest.approx(pj)


def test_the_interpolated_node_lies_between_its_neighbours():
    small, middle, large = (load_table(name)[0] for name in ("7nm", "16nm", "45nm"))
    for fmt in small.mac:
        assert small.mac[fmt].energy < middle.mac[fmt].energy < large.mac[fmt].energy
        weight = math.log(16 / 7) / math.log(45 / 7)
        expected = small.mac[fmt].energy ** (1 - weight) * large.mac[fmt].energy ** weight
        assert middle.mac[fmt].energy == pytest.approx(expected, rel=0.006)


def test_a_format_with_a_variant_uses_its_family_and_an_unknown_one_is_named():
    table, _ = load_table("7nm")
    assert mac_cost(table, "fp8_e4m3")[0] == "fp8"
    with pytest.raises(ConfigError, match=r"energy table 7nm.*mac.*'bf61', nearest is 'bf16'"):
        mac_cost(table, "bf61")


def test_an_unknown_table_names_the_nearest():
    with pytest.raises(ConfigError, match="'7mn', nearest is '7nm'"):
        load_table("7mn")


def test_a_table_without_rising_sizes_is_refused(tmp_path: Path):
    path = tmp_path / "odd.yaml"
    text = load_table("7nm")[1].path.read_text()
    path.write_text(text.replace("size: 32 KiB", "size: 4 KiB"))
    with pytest.raises(ConfigError, match="rising size"):
        load_table(str(path))


@pytest.mark.parametrize("name", TABLES)
def test_sram_passes_through_its_points_and_rises_between_them(name):
    sram = load_table(name)[0].sram
    for point in sram.points:
        assert sram.access_pj_per_byte(point.size) == (point.read / 8, point.write / 8)
    energies = [sram.access_pj_per_byte(2**k)[0] for k in range(10, 21)]
    assert energies == sorted(energies)
    assert sram.access_pj_per_byte(64 << 20) == sram.access_pj_per_byte(sram.macro)


def test_halfway_in_log_size_is_the_geometric_mean():
    sram = load_table("45nm")[0].sram  # 20 pJ at 32 KiB, 100 pJ at 1 MiB: 181 KiB is halfway
    assert sram.access_pj_per_byte(2**17)[0] * 8 == pytest.approx(20 * 5 ** (2 / 5))


def test_dram_commands_by_hand():
    found = dram_energies(hbm2())
    assert found.command_pj == pytest.approx({"activate": 828, "read": 804, "write": 1068, "refresh all banks": 60840})
    assert found.standby_mw == pytest.approx({"active": 66, "precharged": 48, "refresh": 66})


@pytest.mark.parametrize(
    ("name", "activate", "read", "refresh"),
    [("hbm2-neupims", 828, 804, 60_840), ("ddr4-3200", 4234, 2806, 670_602)],
)
def test_the_memories_that_ship_agree_with_published_energies(name, activate, read, refresh):
    from sim.standards import load_memory

    found = dram_energies(load_memory(name)).command_pj
    assert found["activate"] == pytest.approx(activate, rel=0.01)
    assert found["read"] == pytest.approx(read, rel=0.01)
    assert found["refresh all banks"] == pytest.approx(refresh, rel=0.01)


def test_a_streaming_read_of_hbm2_lands_at_the_published_energy_a_bit():
    # 64 B every 2 ns for 1 ms, an activate a 1 KB row, refresh every 3.9 us, one rank always open: 3.92 pJ/bit
    # published.
    bursts, time_ps = 500_000, 10**9
    stream = counts(
        64 * bursts, commands={"ACT": bursts // 16, "RD": bursts, "REF": 256}, standby_ps={"active": time_ps}
    )
    total = sum(row.energy_j for row in dram_rows(hbm2(), stream))
    assert total / (512 * bursts) * 1e12 == pytest.approx(3.92, rel=0.03)


def test_standby_and_leakage_are_power_times_time():
    rows = dram_rows(hbm2(), counts(standby_ps={"active": 10**12, "precharged": 2 * 10**12, "refresh": 0}))
    assert joules(rows, "dram", "standby active") == pytest.approx(0.066)
    assert joules(rows, "dram", "standby precharged") == pytest.approx(0.096)
    second = one_pass([op("a")], [(0, 0, 0, 10**12, {})])
    rows = energy_rows(machine(), [second])
    assert joules(rows, "leakage", "on-chip memory") == pytest.approx(10 * 0.010)  # 10 MiB at 10 mW
    assert joules(rows, "leakage", "array lanes") == pytest.approx(131_072e-6)


def test_on_chip_events_by_hand():
    work = {"macs": 1000, "vector_ops": 100, "sram_read_bytes": 64, "sram_write_bytes": 32, "accumulator_bytes": 16}
    rows = energy_rows(machine(), [one_pass([op("a")], [(0, 0, 0, 5, work)], repeat=3)])
    pj = {(r.component, r.subcomponent): (r.count, r.energy_j * 1e12) for r in rows}
    assert pj["array", "mac bf16"] == (3000, pytest.approx(3000 * 0.59))
    assert pj["array", "pipeline registers bf16"] == (24_000, pytest.approx(240))
    assert pj["vector", "arithmetic"] == (300, pytest.approx(300 * 0.845))
    assert pj["vector", "register file"] == (3600, pytest.approx(3600 * 0.0675))
    assert pj["scratchpad", "read"] == (192, pytest.approx(192 * 1.75))  # 8 MiB of 1 MiB macros, 14 pJ per 8 B
    assert pj["scratchpad", "write"] == (96, pytest.approx(96 * 1.75))
    assert pj["accumulator", "access"] == (48, pytest.approx(48 * 0.9375))
    assert pj["wire", "scratchpad to units"] == (288, pytest.approx(288 * 8 * 2 * 0.059))


def test_macs_are_charged_in_the_format_of_their_operator():
    passes = [one_pass([op("a"), op("b", format="int8")], [(0, 0, 0, 1, {"macs": 10}), (0, 1, 1, 2, {"macs": 20})])]
    rows = {r.subcomponent: r.count for r in energy_rows(machine(), passes) if r.unit == "MAC"}
    assert rows == {"mac bf16": 10, "mac int8": 20}


def test_the_machine_may_state_its_own_interface_energy():
    rows = {r.subcomponent: r for r in interface_rows("hbm2", 1000, io_pj_per_bit=0.25)}
    assert rows["io"].pj_each == 0.25 and "machine" in rows["io"].source
    assert rows["tsv"].pj_each == 0.5


@pytest.mark.parametrize(
    ("name", "family"), [("ddr4-3200-matched", "ddr4"), ("hbm2-pc-matched", "hbm2"), ("sram", None)]
)
def test_family_is_what_the_name_begins_with(name, family):
    assert family_of(name, load_interfaces()[0].families) == family


def test_single_bank_refreshes_without_their_current_are_an_error():
    with pytest.raises(ConfigError, match="IDD5PB"):
        dram_rows(hbm2(), counts(commands={"REFpb": 1}))


def test_rows_are_ordered_and_say_their_source():
    work = {"macs": 8, "vector_ops": 8, "sram_read_bytes": 8, "accumulator_bytes": 8, "dram_read_bytes": 64}
    rows = energy_rows(machine(), [one_pass([op("a")], [(0, 0, 0, 5, work)])])
    order = [COMPONENTS.index(r.component) for r in rows]
    assert order == sorted(order) and {COMPONENTS[i] for i in order} == set(COMPONENTS) - {"link"}
    assert all(r.count and r.source for r in rows)
    assert "Jouppi" in next(r.source for r in rows if r.subcomponent == "mac bf16")
    assert source_text(load_table("7nm")[1], "wire.energy").startswith("7nm: ")


def test_counts_of_repeated_passes_add_up():
    a = one_pass([op("a")], [(2, 0, 0, 5, {"dram_read_bytes": 128})], repeat=3)
    b = one_pass([op("a")], [(3, 0, 0, 5, {"dram_write_bytes": 64})])
    found = total_counts([a, b])
    assert (found.bytes_read, found.bytes_written) == (384, 64)
    assert found.commands == {"ACT": 4, "RD": 6, "WR": 1}


amounts = st.integers(0, 10**6)
tasks = st.lists(st.tuples(st.integers(0, 2), amounts, amounts, amounts, amounts, amounts), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(tasks, st.integers(1, 5), st.sampled_from(TABLES))
def test_operators_and_rows_hold_the_same_energy(found, repeat, table):
    ops = [op("a"), op("b", format="int8"), op("c", format="fp8_e5m2")]
    rows = [
        (
            0,
            o,
            10 * i,
            10 * i + 7,
            {"macs": m, "vector_ops": v, "sram_read_bytes": s, "accumulator_bytes": a, "dram_read_bytes": d},
        )
        for i, (o, m, v, s, a, d) in enumerate(found)
    ]
    passes = [one_pass(ops, rows, repeat=repeat)]
    on = machine(table=table)
    work = [work_by_operator(p) for p in passes]
    account = energy_rows(on, passes, work)
    by_operator = operator_energy_j(on, passes, work, account)
    for component in COMPONENTS:
        expected = joules(account, component)
        assert float(np.sum([p[component].sum() for p in by_operator])) == pytest.approx(expected, rel=1e-9, abs=1e-24)
