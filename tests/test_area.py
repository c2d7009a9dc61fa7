"""Area and cost: a case by hand, what grows with what, published dies, and that nothing else depends on them."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.area import area_mm2, cost_usd, die_usd, load_silicon
from sim.catalog import find, names
from sim.config import load_yaml
from sim.energy_tables import load_table
from sim.kinds import load_hardware


def parts(name: str, **changes: Any) -> dict[str, float]:
    found = area_mm2(load_hardware(name, {key.replace("__", "."): value for key, value in changes.items()}))
    assert found is not None
    return found


def test_an_npu_by_hand() -> None:
    mac = load_table("7nm")[0].mac
    found = parts("npu-hbm2")
    lanes = 8 * 128 * 128
    # 8-bit formats run at twice the rate of 16-bit ones: two fp8 lanes need more than one bf16 lane.
    wanted = max(2 * (mac["fp8"].area * 1e6 + 6 * 8 * 0.109), mac["bf16"].area * 1e6 + 8 * 8 * 0.109)
    assert found["arrays"] == pytest.approx(lanes * wanted * 4.9e-6, rel=1e-9)
    assert found["sram"] == pytest.approx(40 * 2**23 * 0.027e-6 * 3.75, rel=1e-9)
    assert found["interface"] == pytest.approx(1024 * 0.0325, rel=1e-9)
    assert found["rest"] == pytest.approx(0.47 * sum(v for k, v in found.items() if k != "rest"), rel=1e-9)
    assert "pim" not in found
    assert load_hardware("npu-hbm2").area_mm2 == pytest.approx(sum(found.values()))


@pytest.mark.parametrize(
    ("key", "low", "high", "part"),
    [
        ("array.rows", 64, 128, "arrays"),
        ("vector.lanes", 64, 128, "vector"),
        ("scratchpad.capacity", "16 MiB", "32 MiB", "sram"),
        ("memory.channels", 16, 32, "interface"),
    ],
)
def test_a_part_grows_with_what_it_is_made_of_and_no_other_does(key: str, low: Any, high: Any, part: str) -> None:
    small, large = (parts("npu-hbm2", **{key.replace(".", "__"): value}) for value in (low, high))
    assert {name for name in small if small[name] != large[name]} == {part, "rest"}
    assert large[part] > small[part]


def test_second_row_buffers_and_units_are_paid_for_in_the_memory() -> None:
    none, blocked, dual = (parts(name) for name in ("npu-hbm2", "neupims-blocked", "neupims"))
    assert {k: v for k, v in dual.items() if k != "pim"} == none
    # NeuPIMs: the second row buffer takes 3.11 % of the DRAM dies, here 128 GiB of 92 mm2 each.
    assert dual["pim"] - blocked["pim"] == pytest.approx(0.0311 * 128 * 92)
    costs = [cost_usd(load_hardware(name)) for name in ("npu-hbm2", "neupims-blocked", "neupims")]
    memory = [cost["memory"] for cost in costs if cost]
    assert memory == sorted(memory) and len(set(memory)) == 3


def test_a_stated_die_is_taken_as_it_is() -> None:
    assert area_mm2(load_hardware("a100-80g")) == {"die": 826.0}
    cost = load_hardware("h200").cost_usd
    assert cost is not None and cost > 1000  # 141 GB of HBM3 alone


@pytest.mark.parametrize("name", names("hardware"))
def test_a_variant_with_other_units_does_not_inherit_a_die(name: str) -> None:
    own = load_yaml(find("hardware", name)).data
    if "base" in own and "count" in own.get("sm", {}):
        assert "die" in own, "state its die, or null"


def test_the_first_tpu_comes_out_as_published() -> None:
    # The constants are of its floor plan: 65,536 int8 lanes take 24 % of 331 mm2, scaled from 28 nm to 45 nm.
    silicon, mac = load_silicon(), load_table("45nm")[0].mac["int8"]
    assert mac.area is not None
    lanes = 65536 * (mac.area + 6 * 8 * silicon.nodes["45nm"].flip_flop) * silicon.logic.layout * (28 / 45) ** 2
    assert lanes == pytest.approx(0.24 * 331, rel=0.02)


@given(st.floats(10, 800), st.floats(10, 800))
def test_a_larger_die_costs_more_per_area(one: float, other: float) -> None:
    small, large = sorted((one, other))
    silicon = load_silicon()
    costs = [die_usd(silicon, "7 nm", mm2) for mm2 in (small, large)]
    assert costs[0] is not None and costs[1] is not None
    assert costs[0] / small <= costs[1] / large * (1 + 1e-12)


def test_a_die_by_hand() -> None:
    # 300 mm wafer of 9346 USD, 100 mm2: 706.9 - 66.6 dies, 90.5 % work.
    found = die_usd(load_silicon(), "7 nm", 100.0)
    assert found == pytest.approx(9346 / ((706.858 - 66.643) * 1.01**-10), rel=1e-4)
    assert die_usd(load_silicon(), "unknown", 100.0) is None
    assert die_usd(load_silicon(), "7 nm", 80000.0) is None


@pytest.mark.parametrize("name", names("hardware"))
def test_every_machine_has_an_area_or_none(name: str) -> None:
    machine = load_hardware(name)
    found, cost = area_mm2(machine), cost_usd(machine)
    if machine.fabric == "fpga":
        assert found is None
    if found is not None:
        assert all(math.isfinite(value) and value >= 0 for value in found.values())
        assert cost is None or all(value > 0 for value in cost.values())
    else:
        assert cost is None
