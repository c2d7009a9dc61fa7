"""Collectives over a ring: bytes and steps by hand, their time on a machine, what is refused."""

from __future__ import annotations

from fractions import Fraction

import pytest

from sim.engine import simulate
from sim.errors import ConfigError
from sim.hardware import Hardware
from sim.kinds import load_hardware
from sim.links import ring_cost, transfer_ps
from workloads import load_workload
from workloads.attrs import COLLECTIVES
from workloads.trace import CollectiveAttrs

SMALL = {"steps": 1, "batch": 8, "context": 16, "parallel.tensor": 4}


@pytest.mark.parametrize(
    ("kind", "sent", "steps"),
    [
        ("all_reduce", 2 * 3 * 100, 6),  # 2 (n - 1) / n of 400 bytes, in 2 (n - 1) steps
        ("reduce_scatter", 300, 3),
        ("all_gather", 1200, 3),
        ("all_to_all", 100 * (1 + 2 + 3), 3),  # parts of 100 bytes go one, two and three hops
        ("broadcast", 400, 3),
        ("send_recv", 400, 1),
    ],
)
def test_what_a_ring_of_four_sends(kind: str, sent: int, steps: int) -> None:
    assert ring_cost(CollectiveAttrs(kind, 400, 4)) == (sent, steps)
    assert kind in COLLECTIVES


def test_two_devices_exchange_halves() -> None:
    assert ring_cost(CollectiveAttrs("all_reduce", 10, 2)) == (10, 2)


def test_time_is_rounded_up_to_a_picosecond() -> None:
    machine = load_hardware("npu-hbm2", {"links.bandwidth": "3 GB/s"})
    assert isinstance(machine, Hardware)
    assert machine.links is not None
    assert transfer_ps(machine.links, Fraction(1)) == 334


def test_a_layer_waits_for_its_sums() -> None:
    """An all-reduce of 8 x 4096 x 2 bytes over four: 98,304 bytes and 6 steps."""
    times = {}
    for latency in ("0 us", "100 us"):
        hardware = load_hardware("npu-hbm2", {"links.latency": latency, "links.bandwidth": "1 GB/s"})
        report = simulate(hardware, load_workload("gpt3-7b-decode", SMALL))
        times[latency] = report.summary["time_s"]
        table = report.operators.set_index("operator")
        row = table.loc["attn_all_reduce"]
        assert row["decision_collective"] == "all_reduce over 4, ring"
        assert row["busy_interconnect_s"] == pytest.approx(32 * 98304e-9)
        energy = report.energy[report.energy["subcomponent"] == "interconnect"]
        # Two sums a layer, one of the embedding, and an all-gather of 8 x 8 bytes.
        assert energy["count"].item() == 8 * (65 * 98304 + 3 * 64)
        assert report.energy["energy_j"].sum() == pytest.approx(report.summary["energy_j"])
    # 65 all-reduces of 6 steps and an all-gather of 3 follow each other.
    assert times["100 us"] - times["0 us"] == pytest.approx((65 * 6 + 3) * 100e-6, rel=1e-3)


def test_a_machine_without_links_refuses() -> None:
    with pytest.raises(ConfigError, match="collective over 4 devices, but npu-hbm2 is one device and has no links"):
        simulate(load_hardware("npu-hbm2", {"links": None}), load_workload("gpt3-7b-decode", SMALL))
