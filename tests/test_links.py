"""Collectives by hand, topologies with contention, groups of groups, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from math import prod
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sim.errors import ConfigError
from sim.kinds import load_hardware
from sim.links import Links, ring_cost
from sim.links.collectives import KINDS, collective, plans
from sim.links.topology import _grid, exchange_load, neighbour_load
from workloads.trace import CollectiveAttrs


def links(**keys: Any) -> Links:
    return Links.model_validate({"topology": "ring", "bandwidth": "100 GB/s", "latency": "1 us", **keys})


def test_a_ring_by_hand() -> None:
    # 4 devices, 400 kB: parts of 100 kB go round 6 times, 6 us of bandwidth and 6 us of latency.
    found = collective(links(algorithms=["ring"]), "all_reduce", 400_000, 4)
    assert found.sent_bytes == 600_000
    assert found.time_s == pytest.approx(12e-6)
    assert found.algorithm == "ring"


def test_the_first_piece_is_waited_for() -> None:
    cut = {"start": "5 us", "step": "1 us", "efficiency": 0.5, "pieces": 4, "piece": "100 kB"}
    both = links(protocols={"Simple": cut}, algorithms=["ring"])
    # 800 kB go out at 50 GB/s: 16 us, in 4 pieces and one more for each 100 kB; two steps.
    found = collective(both, "all_reduce", 800_000, 2)
    assert found.time_s == pytest.approx(5e-6 + 2e-6 + 16e-6 * (1 + 1 / 12))
    # Sending and receiving are independent: one step, and no pipeline to fill.
    assert collective(both, "send_recv", 800_000, 2).time_s == pytest.approx(5e-6 + 1e-6 + 16e-6)


def test_a_plain_ring_is_the_exact_one() -> None:
    plain = links(algorithms=["ring"])
    for kind in ("all_reduce", "all_gather", "reduce_scatter", "send_recv"):
        exact = ring_cost(CollectiveAttrs(kind, 2520, 5))
        want = float(exact.bytes) / plain.bandwidth + exact.steps * 1e-6
        assert collective(plain, kind, 2520, 5).time_s == pytest.approx(want), kind


@pytest.mark.parametrize("kind", ["all_reduce", "all_gather", "reduce_scatter"])
@pytest.mark.parametrize("n", [2, 3, 8])
def test_ring_plans_send_what_the_ring_algorithms_send(kind: str, n: int) -> None:
    exact = ring_cost(CollectiveAttrs(kind, 2520, n))
    (ring,) = (plan for plan in plans(links(), kind, 2520, n) if plan.name == "ring")
    assert (Fraction(ring.sent).limit_denominator(), ring.steps) == exact


def test_bytes_touched_bound_where_copies_are_slow() -> None:
    copies = {"rate": "10 GB/s", "rings": 10, "pairs": 20}
    slow = links(topology="switch", copies=copies, algorithms=["ring"])
    assert collective(slow, "all_reduce", 10**9, 2).bound == "copy"
    # Two devices: an all-reduce touches 4 bytes a byte, an all-gather 5, a reduce-scatter 2.5.
    times = [collective(slow, kind, 10**9, 2).time_s for kind in ("all_reduce", "all_gather", "reduce_scatter")]
    assert times == pytest.approx([0.04, 0.05, 0.025], rel=0.03)
    # Stores at half of the cost: two loads and two stores, two and three; pairs have twice the thread blocks.
    posted = links(topology="switch", copies={**copies, "store": 0.5}, algorithms=["ring"])
    times = [collective(posted, kind, 10**9, 2).time_s for kind in ("all_reduce", "all_gather", "all_to_all")]
    assert times == pytest.approx([0.03, 0.035, 0.01125], rel=0.01)


def test_the_fastest_protocol_is_taken() -> None:
    both = links(protocols={
        "LL": {"start": "5 us", "step": "500 ns", "efficiency": 0.4},
        "Simple": {"start": "10 us", "step": "2 us", "efficiency": 0.9},
    })  # fmt: skip
    assert collective(both, "all_reduce", 1000, 2).protocol == "LL"
    assert collective(both, "all_reduce", 10**9, 2).protocol == "Simple"


def test_trees_win_for_small_payloads_on_many_devices() -> None:
    many = links(topology="switch")
    assert collective(many, "all_reduce", 1000, 256).algorithm == "tree"
    assert collective(many, "all_reduce", 10**9, 4).algorithm == "ring"


def test_the_host_sets_the_pace_of_calls() -> None:
    slow = links(call={"all_reduce": "30 us", "other": "40 us"})
    assert collective(slow, "all_reduce", 8, 2).call_s == pytest.approx(30e-6)
    assert collective(slow, "all_gather", 8, 2).call_s == pytest.approx(40e-6)
    large = collective(slow, "all_reduce", 10**9, 2)
    assert large.call_s == large.time_s > 1e-3


def test_flows_share_the_links_of_a_line() -> None:
    line = links(topology="graph", edges=[[0, 1], [1, 2], [2, 3]])
    # The last device's flow to the first goes back over every link, alone in its direction.
    assert neighbour_load(line, 4) == (1.0, 3)
    # Four ordered pairs cross the middle each way; each is a third of what a device sends.
    assert exchange_load(line, 4) == (4 / 3, 3)


def test_a_torus_has_shorter_ways_than_a_mesh() -> None:
    mesh, torus = links(topology="mesh", shape=[4, 4]), links(topology="torus", shape=[4, 4])
    assert neighbour_load(mesh, 16).hops > neighbour_load(torus, 16).hops
    assert exchange_load(mesh, 16).sharing > exchange_load(torus, 16).sharing


@pytest.mark.parametrize(("topology", "shape"), [("mesh", [5]), ("torus", [5]), ("torus", [4]), ("torus", [3, 3])])
def test_closed_forms_are_what_routing_finds(topology: str, shape: list[int]) -> None:
    closed = links(topology=topology, shape=shape)
    routed = links(topology="graph", edges=_grid(shape, topology == "torus"))
    n = prod(shape)
    # Routing takes one way of two equally long ones, and no more than twice the flows of an even share.
    found, even = exchange_load(routed, n), exchange_load(closed, n)
    assert found.hops == even.hops
    assert even.sharing <= found.sharing <= (2 if shape == [4] else 1) * even.sharing
    assert neighbour_load(closed, n) == neighbour_load(routed, n)


def test_a_square_by_hand() -> None:
    # Along its first dimension each device sends to one neighbour for itself and for the other corner: two of three.
    assert exchange_load(links(topology="mesh", shape=[2, 2]), 4) == (2 / 3, 2)
    # The middle of 64 lines of 64 is crossed by 32 x 32 pairs of each line, times 64.
    assert exchange_load(links(topology="mesh", shape=[64, 64]), 4096).sharing == pytest.approx(64 * 1024 / 4095)


def test_a_full_mesh_divides_its_bandwidth() -> None:
    full, switch = links(topology="full", algorithms=["ring"]), links(topology="switch", algorithms=["ring"])
    slow, fast = (collective(each, "all_reduce", 10**10, 8).time_s for each in (full, switch))
    assert slow == pytest.approx(7 * fast, rel=0.02)
    direct = links(topology="full", algorithms=["ring", "direct"])
    assert collective(direct, "all_reduce", 10**10, 8).time_s < 1.1 * fast
    assert collective(full, "all_to_all", 10**9, 8).time_s == collective(switch, "all_to_all", 10**9, 8).time_s


def test_groups_of_groups() -> None:
    outer = {"topology": "switch", "bandwidth": "10 GB/s", "latency": "2 us"}
    inner = links(topology="switch", devices=8, beyond=outer)
    flat = links(topology="switch")
    got = collective(inner, "all_reduce", 8 * 10**8, 32)
    beyond = Links.model_validate(outer)
    want = (
        collective(flat, "reduce_scatter", 8 * 10**8, 8).time_s
        + collective(beyond, "all_reduce", 10**8, 4).time_s
        + collective(flat, "all_gather", 10**8, 8).time_s
    )
    assert got.time_s == pytest.approx(want)
    assert collective(inner, "all_reduce", 10**6, 8 * 4096).time_s < 1


@given(kind=st.sampled_from(KINDS), n=st.integers(2, 64), small=st.integers(0, 10**9), more=st.integers(1, 10**9))
def test_more_bytes_take_no_less_time(kind: str, n: int, small: int, more: int) -> None:
    for each in (links(), links(topology="switch", copies={"rate": "50 GB/s", "rings": 20, "pairs": 30})):
        assert collective(each, kind, small, n).time_s <= collective(each, kind, small + more, n).time_s


def test_one_device_needs_no_link() -> None:
    assert collective(links(), "all_reduce", 10**9, 1).time_s == 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"topology": "graph", "edges": [[0, 1], [2, 3]]}, "device 2 cannot be reached from device 0"),
        ({"topology": "graph", "edges": [[0, 1]], "devices": 3}, "device 2 cannot be reached"),
        ({"topology": "graph", "edges": [[0, 1], [1, 5]], "devices": 3}, "an edge names device 5, but there are 3"),
        ({"topology": "graph", "edges": [[1, 1]]}, "edges join two different devices"),
        ({"topology": "graph"}, "edges belong to topology graph"),
        ({"topology": "mesh"}, "shape belongs to topologies mesh and torus"),
        ({"beyond": {"bandwidth": "1 GB/s", "latency": "1 us"}}, "devices must say how large the groups are"),
    ],
)
def test_wrong_links_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        links(**keys)


def test_wrong_requests_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown collective 'all_reduc', nearest is 'all_reduce'"):
        collective(links(), "all_reduc", 1, 2)
    with pytest.raises(ConfigError, match="9 devices are asked for, but the links join 8"):
        collective(links(devices=8), "all_reduce", 1, 9)
    with pytest.raises(ConfigError, match="12 devices are no whole number of groups of 8"):
        collective(links(devices=8, beyond={"bandwidth": "1 GB/s", "latency": "1 us"}), "all_reduce", 1, 12)
    with pytest.raises(ConfigError, match="17 devices are asked for, but the mesh has 16"):
        collective(links(topology="mesh", shape=[4, 4]), "all_reduce", 1, 17)


def test_an_unreachable_device_in_a_machine_is_refused_with_the_place() -> None:
    keys = {"links.topology": "graph", "links.edges": [[0, 1], [2, 3]], "links.devices": 4}
    with pytest.raises(ConfigError, match=r"override of h200\.yaml: links.*device 2 cannot be reached"):
        load_hardware("h200", keys)
