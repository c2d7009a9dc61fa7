"""Sparse engines: closed forms against kernels, hand-worked cases, invariants, and published curves."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training_sets import encoder, resnet18

from sim.errors import ConfigError
from sim.kernels import sparse_counts as counts
from sim.kinds import load_hardware
from sim.sparse.arrays import fold_mask, structured_closed
from sim.sparse.case import case
from sim.sparse.cost import cost_of, matmul_cost, pattern_cost
from sim.sparse.dual import mean_steps
from sim.sparse.pattern import DENSE, Pattern, balanced, draw, nm
from sim.sparse.training import training_cycles, training_step

SAT = load_hardware("sat-vcu1525")
S4 = load_hardware("s4-antoum")
SHARED = [(512, 256, 1024, 0.82), (2048, 512, 64, 0.34), (512, 128, 1024, 0.56), (128, 1152, 1024, 0.44),
          (512, 1024, 256, 0.27)]  # fmt: skip
"""Layers of Sparseloop's tensor-core study: outputs, reduction, tokens, density of activations."""


def mask(pattern, shape, along=0, seed=3):
    return draw(pattern, shape, along, seed)


@pytest.mark.kernels
@settings(max_examples=30, deadline=None)
@given(
    ratio=st.sampled_from([(2, 4), (1, 4), (2, 8), (1, 8), (2, 16)]),
    k=st.integers(1, 200),
    n=st.integers(1, 70),
    m=st.integers(1, 40),
)
def test_the_closed_form_of_n_m_weights_is_the_kernels_answer(ratio, k, n, m):
    weights = mask(nm(*ratio), (k, n))
    closed = structured_closed(case(SAT, m, n, k, nm(*ratio)), *ratio)
    found = fold_mask(case(SAT, m, n, k, weights), ratio[1])
    assert closed.detail["folds"] == int(found[0].sum())
    assert int(found[1].sum()) == k * -(-n // 32)
    assert closed.imbalance == 1.0
    assert closed.macs == m * int(weights.sum())


@pytest.mark.kernels
@settings(max_examples=30, deadline=None)
@given(degree=st.sampled_from([2, 4, 8, 16, 32]), k=st.integers(1, 400), n=st.integers(1, 130))
def test_balanced_weights_cost_the_same_by_formula_and_by_mask(degree, k, n):
    pattern = balanced(degree, 64)
    weights = mask(pattern, (k, n))
    try:
        by_mask = matmul_cost(S4, 8, n, k, weights)
    except ConfigError:
        return  # a short last group may keep less than the degree asks for
    assert matmul_cost(S4, 8, n, k, pattern).parts["array"] == by_mask.parts["array"]


@pytest.mark.kernels
def test_a_fold_by_hand():
    # Blocks of 2 positions, 3 lanes, panels of 2 columns. Column counts a block: (2, 0), (1, 2), (0, 1), (0, 0).
    found = counts.folds(np.array([[2, 0], [1, 2], [0, 1], [0, 0]], np.int32), np.full(4, 2, np.int64), 3, 2)
    # The first three blocks fill the lanes exactly (3 and 3); the empty one is neither read nor held.
    assert [int(x[0]) for x in found] == [1, 6, 3]
    over = counts.folds(np.array([[5, 1]], np.int32), np.full(1, 8, np.int64), 2, 2)
    # Five of one column need three passes of two lanes, each over all eight positions.
    assert [int(x[0]) for x in over] == [3, 24, 5]


@pytest.mark.parametrize("degree", [2, 8, 32])
def test_high_degrees_pay_off_when_balanced(degree):
    cost = matmul_cost(S4, 1024, 4096, 4096, balanced(degree, 64))
    dense = matmul_cost(S4, 1024, 4096, 4096)
    assert dense.cycles / cost.cycles == pytest.approx(degree, rel=0.01)
    assert cost.imbalance == 1.0


def test_what_happens_when_blocks_are_not_balanced():
    even = matmul_cost(S4, 256, 512, 2048, balanced(16, 64))
    uneven = matmul_cost(S4, 256, 512, 2048, Pattern("random", 1 / 16))
    assert uneven.imbalance > 1.2
    assert uneven.cycles > 1.2 * even.cycles


def test_sparser_than_the_machine_supports_is_refused():
    with pytest.raises(ConfigError, match=r"one value in 64, but s4-antoum supports up to one in 32"):
        matmul_cost(S4, 64, 64, 256, nm(1, 64))
    with pytest.raises(ConfigError, match=r"2:5 has no unit.*allowed: dense, 2:4, 1:4, 2:8"):
        matmul_cost(SAT, 64, 64, 256, nm(2, 5))


@pytest.mark.kernels
def test_a_mask_that_breaks_the_pattern_is_shown_where():
    weights = mask(nm(2, 4), (64, 32))
    weights[8:11, 5] = True
    with pytest.raises(ConfigError, match=r"keeps [34] weights at positions 8 to 11 of column 5, .* at most 2 of 4"):
        matmul_cost(SAT, 16, 32, 64, weights)
    by_mask = matmul_cost(SAT, 16, 32, 64, mask(nm(2, 8), (64, 32)))
    assert by_mask.cycles == matmul_cost(SAT, 16, 32, 64, nm(2, 8)).cycles


def test_the_shared_memory_limits_beyond_2_4_by_itself():
    machine = load_hardware("tensorcore-flexible")
    cost = {r: matmul_cost(machine, 1024, 512, 256, nm(2, r)) for r in (4, 6, 8)}
    # Sparseloop's artifact: (64 stream + 8 weight + 4 index bytes) a cycle over 42 in 32,768 cycles: 59,295.
    assert cost[8].parts["scratchpad"] == math.ceil(32768 * 76 / 42) == 59295
    assert cost[4].bound() == "array"
    assert cost[6].bound() == cost[8].bound() == "scratchpad"


@pytest.mark.parametrize(("outputs", "k", "tokens", "published"), [(2048, 512, 64, 34329), (512, 1024, 256, 59295)])
def test_single_layers_at_2_8_are_sparseloops(outputs, k, tokens, published):
    machine = load_hardware("tensorcore-flexible")
    assert matmul_cost(machine, tokens, outputs, k, nm(2, 8)).cycles == published


def ratio_to_dense(machine, m, activations):
    """Cycles of all layers at 2:m over those of dense ones."""
    total = 0
    for outputs, k, tokens, density in SHARED:
        pattern = Pattern("random", density) if activations else DENSE
        total += matmul_cost(machine, tokens, outputs, k, nm(2, m), pattern).streamed_cycles
    return total / sum(matmul_cost(machine, t, o, k).streamed_cycles for o, k, t, _ in SHARED)


@pytest.mark.parametrize(("m", "published"), [(4, 0.50), (6, 0.505), (8, 0.45)])
def test_the_n_m_curve_is_sparseloops(m, published):
    assert ratio_to_dense(load_hardware("tensorcore-flexible"), m, False) == pytest.approx(published, rel=0.05)


@pytest.mark.parametrize(("m", "published"), [(6, 0.385), (8, 0.32)])
def test_compressing_the_activations_too_gives_the_bandwidth_back(m, published):
    machine = load_hardware("tensorcore-flexible", {"sparse.activations": "bitmap"})
    assert ratio_to_dense(machine, m, True) == pytest.approx(published, rel=0.05)


def dual_ratio(a, b, size=512, **settings):
    machine = load_hardware("dstc-like", settings)
    patterns = [Pattern("random", d) if d < 1 else DENSE for d in (b, a)]
    return matmul_cost(machine, size, size, size, *patterns).cycles / matmul_cost(machine, size, size, size).cycles


# Sparseloop's own model of DSTC (fig. 13 of its artifact), normalised to dense; it takes no time to find positions.
@pytest.mark.parametrize(
    ("a", "b", "modelled"),
    [(0.9, 1, 0.90), (0.7, 1, 0.72), (0.5, 1, 0.54), (0.3, 1, 0.36), (0.9, 0.4, 0.48), (0.7, 0.4, 0.38),
     (0.5, 0.4, 0.29)],
)  # fmt: skip
def test_the_dual_sided_curve_is_sparseloops(a, b, modelled):
    assert dual_ratio(a, b, **{"sparse.position_cycles": 0}) == pytest.approx(modelled, rel=0.05)


# Times that Sparseloop's artifact reads off figure 21 of the DSTC paper; 4600 for dense operands.
@pytest.mark.parametrize(
    ("a", "b", "measured"),
    [(0.9, 1, 4163), (0.7, 1, 3300), (0.5, 1, 2690), (0.3, 1, 1930), (1, 0.4, 2500), (0.9, 0.4, 2300),
     (0.7, 0.4, 1820), (0.5, 0.4, 1480), (0.3, 0.4, 1100)],
)  # fmt: skip
def test_the_dual_sided_curve_is_near_the_measured_one(a, b, measured):
    assert dual_ratio(a, b) == pytest.approx(measured / 4600, rel=0.065)


def test_dual_steps_by_hand_and_in_the_mean():
    machine = load_hardware("dstc-like")
    a, b = np.zeros((32, 1), np.bool_), np.zeros((1, 32), np.bool_)
    a[:9], b[0, :16] = True, True
    cost = matmul_cost(machine, 32, 32, 1, b, a)
    assert cost.detail["steps"] == 2 * 1  # nine entries are two units of eight, sixteen one of sixteen
    assert cost.parts["array"] == 2 + 1  # and a quarter of a cycle, rounded up for the tile, to find them
    assert cost.effective_macs == 144
    drawn = counts.quanta_rows(mask(Pattern("random", 0.3), (512, 400)), 32, 8)
    assert drawn.mean() == pytest.approx(mean_steps(32, 8, 0.3), rel=0.01)
    assert mean_steps(32, 8, 1) == 4


# SAM's SpMM graph (i-j-k, 16 blocks, unbounded queues), cycles as its simulator printed them.
@pytest.mark.kernels
@pytest.mark.parametrize(
    ("n", "zeros", "cycles"),
    [(16, 0, 4381), (16, 0.5, 3370), (32, 0, 33837), (32, 0.5, 25518), (32, 0.8, 13006), (32, 0.9, 7183),
     (64, 0.8, 98319), (64, 0.9, 54110), (64, 0.95, 28794)],
)  # fmt: skip
def test_two_fingers_take_union_steps(n, zeros, cycles):
    random = np.random.default_rng(n)
    left, right = [(random.integers(1, 9, (n, n)), random.random((n, n)) >= zeros)[1] for _ in range(2)]
    cost = matmul_cost(load_hardware("edge-intersect"), n, n, n, right, left)
    assert cost.parts["array"] == cycles
    assert cost.effective_macs == int((left.astype(int) @ right.astype(int)).sum())


@pytest.mark.kernels
def test_other_ways_to_intersect():
    left = np.array([[1, 1, 0, 0], [0, 0, 0, 0]], np.bool_)
    right = np.array([[1, 0], [0, 1], [1, 1], [1, 0]], np.bool_)
    # One stored row of two, stored columns of three and two, two matches: merges of 4 and 3 steps, or two steps a pair.
    options = {"two_finger": 4 + 3 + 2, "leader_follower": 2 + 2 + 2, "bitmap": 1 + 1 + 2 + 2}
    for method, cycles in options.items():
        machine = load_hardware("edge-intersect", {"sparse.method": method, "sparse.start_cycles": 0})
        assert matmul_cost(machine, 2, 2, 4, right, left).parts["array"] == cycles


@pytest.mark.kernels
def test_row_wise_and_outer_products_by_hand():
    left = np.array([[1, 1, 0], [0, 0, 1]], np.bool_)
    right = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], np.bool_)
    rows = load_hardware("edge-gustavson", {"sparse.elements": 1, "sparse.lanes": 2})
    # The first row takes three weights in two cycles and one in one; the second finds an empty row of weights.
    assert matmul_cost(rows, 2, 5, 3, right, left).parts["array"] == 3
    outer = load_hardware("edge-outer", {"sparse.elements": 1, "sparse.lanes": 2, "sparse.merge_per_cycle": 1})
    cost = matmul_cost(outer, 2, 5, 3, right, left)
    # Products 3, 1 and 0; one merge pass over two partial matrices.
    assert cost.detail["products"] == cost.effective_macs == 4
    assert cost.parts["array"] == 2 + 1 + 4


@pytest.mark.kernels
@pytest.mark.parametrize(
    ("policy", "expected"), [(counts.STATIC, [11, 2]), (counts.ROUND_ROBIN, [10, 3]), (counts.GREEDY, [9, 4])]
)
def test_work_queues(policy, expected):
    # Greedy: 9 to the first, 2 and 1 to the second, then the second is still free first.
    loads = {counts.STATIC: [9, 2, 1, 1], counts.ROUND_ROBIN: [9, 2, 1, 1], counts.GREEDY: [9, 2, 1, 1]}[policy]
    assert counts.assign(np.array(loads, np.int64), 2, policy).tolist() == expected


@pytest.mark.kernels
@settings(deadline=None)
@given(loads=st.lists(st.integers(0, 50), min_size=1, max_size=40), workers=st.integers(1, 9))
def test_a_shared_queue_is_never_worse_than_twice_the_mean_and_the_longest(loads, workers):
    for policy in (counts.STATIC, counts.ROUND_ROBIN, counts.GREEDY):
        shared = counts.assign(np.array(loads, np.int64), workers, policy)
        assert int(shared.sum()) == sum(loads)
    assert int(shared.max()) <= sum(loads) / workers + max(loads)


@pytest.mark.kernels
def test_gathered_positions_are_a_union_over_the_chunk():
    machine = load_hardware("edge-gather", {"sparse.predictor": "null", "sparse.chunk": "2"})
    active = np.zeros((4, 64), np.bool_)
    active[0, 0:20], active[1, 10:40], active[2, 5], active[3, 5] = True, True, True, True
    cost = matmul_cost(machine, 4, 32, 64, DENSE, active)
    # Chunks need 40 and 1 positions: two folds and one of 32 lanes, each loaded in 32 cycles; dense would take two.
    assert cost.detail["folds"] == 3
    assert cost.macs == (40 * 2 + 1 * 2) * 32
    assert cost.effective_macs == int(active.sum()) * 32


@pytest.mark.kernels
@settings(deadline=None)
@given(rows=st.integers(1, 70), columns=st.integers(1, 70), group=st.integers(1, 9), block=st.integers(1, 5))
def test_counting_along_either_axis_agrees(rows, columns, group, block):
    drawn = mask(Pattern("random", 0.2), (rows, columns))
    turned = counts.transposed(drawn)
    assert (turned == drawn.T).all()
    assert (counts.active_columns(drawn, group, block) == counts.active_rows(turned, group, block)).all()
    assert (counts.quanta_columns(drawn, group, block) == counts.quanta_rows(turned, group, block)).all()
    for a, b in zip(counts.compressed_columns(drawn), counts.compressed(turned), strict=True):
        assert (a == b).all()


def test_whole_blocks_of_weights_drop_out_for_all_tokens():
    machine = load_hardware("edge-gather", {"sparse.predictor": "null"})
    cost = matmul_cost(machine, 256, 256, 1024, Pattern("block", 0.25, block=(32, 32)))
    dense = matmul_cost(machine, 256, 256, 1024)
    assert dense.cycles / cost.cycles == pytest.approx(4, rel=0.15)  # panels differ by a few blocks
    assert cost.effective_macs == 256 * 256 * 1024 // 4


def test_the_predictor_costs_two_thin_products():
    without = load_hardware("edge-gather", {"sparse.predictor": "null"})
    pattern = Pattern("topk", 0.05)
    extra = matmul_cost(load_hardware("edge-gather"), 32, 256, 512, DENSE, pattern).detail["predictor_cycles"]
    assert matmul_cost(without, 32, 256, 512, DENSE, pattern).detail["predictor_cycles"] == 0
    from sim.cost import array_tile

    thin = [array_tile(without.array, 1, 32, n, k)[:3] for n, k in ((64, 256), (512, 64))]
    assert extra == sum(int(sum(t)) for t in thin)


@pytest.mark.parametrize(
    ("base", "weights"),
    [("sat-vcu1525", "2:8"), ("s4-antoum", "balanced"), ("sigma-like", "random"), ("tensorcore-2to4", "2:4")],
)
def test_a_dense_twin_differs_in_nothing_but_zeros(base, weights):
    pattern = {"2:8": nm(2, 8), "2:4": nm(2, 4), "balanced": balanced(4, 64), "random": Pattern("random", 0.2)}[weights]
    machine, twin = load_hardware(base), load_hardware(f"{base}-dense")
    assert matmul_cost(twin, 64, 128, 256, pattern).cycles == matmul_cost(machine, 64, 128, 256).cycles
    assert matmul_cost(machine, 64, 128, 256, pattern).cycles < matmul_cost(machine, 64, 128, 256).cycles
    changed = {name for name in type(machine).model_fields if getattr(machine, name) != getattr(twin, name)}
    assert changed <= {"name", "description", "sparse"}


@pytest.mark.kernels
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_more_zeros_never_take_longer_and_useful_work_is_exact(data):
    name = data.draw(st.sampled_from(["sigma-like", "edge-gustavson", "edge-outer", "dstc-like", "edge-intersect"]))
    m, n, k = (data.draw(st.integers(1, 40)) for _ in range(3))
    seed = data.draw(st.integers(0, 99))
    machine = load_hardware(name)
    left, right = mask(Pattern("random", 0.5), (m, k), 1, seed), mask(Pattern("random", 0.5), (k, n), 0, seed + 1)
    fewer = right & mask(Pattern("random", 0.5), (k, n), 0, seed + 2)
    more, less = matmul_cost(machine, m, n, k, right, left), matmul_cost(machine, m, n, k, fewer, left)
    assert more.effective_macs == int((left.astype(int) @ right.astype(int)).sum())
    assert more.effective_macs <= more.macs <= m * n * k
    assert 0 <= more.utilization <= 1
    assert more.imbalance >= 1
    if name != "sigma-like":  # fewer weights may pack into rounds of more groups, which share bus lines
        assert less.parts["array"] <= more.parts["array"]


def test_mixed_formats_and_their_rates():
    machine = load_hardware("accllm-u280")
    rates = {w: case(machine, 1, 64, 64, DENSE, DENSE, w, "int8").rate for w in ("int8", "int4", "int2")}
    assert rates == {"int8": 1, "int4": 2, "int2": 4}
    assert case(machine, 1, 64, 64, DENSE, DENSE, "int4", "fp16").rate == Fraction(1, 4)
    quarter = matmul_cost(machine, 8, 64, 64, weight_format="int2", activation_format="int8")
    assert quarter.weight_bytes == 64 * 64 // 4
    with pytest.raises(ConfigError, match=r"fp32 activations times int8 weights .* units for int8, int8\*int4"):
        matmul_cost(machine, 8, 64, 64, weight_format="int8", activation_format="fp32")
    with pytest.raises(ConfigError, match="unknown number format 'int9'"):
        matmul_cost(machine, 8, 64, 64, weight_format="int9")


def test_decoders_and_metadata_ports_can_be_the_limit():
    slow = load_hardware("tensorcore-2to4", {"sparse.decode_entries_per_cycle": "1"})
    cost = matmul_cost(slow, 128, 64, 256, nm(2, 4))
    assert cost.parts["metadata"] == 128 * 64  # one entry a cycle for every kept weight
    assert cost.bound() == "metadata"
    narrow = load_hardware("tensorcore-2to4", {"sparse.metadata_bytes_per_cycle": "1"})
    assert matmul_cost(narrow, 128, 64, 256, nm(2, 4)).parts["metadata"] == 128 * 64 * 2 // 8


def test_vector_work_beside_the_array_can_be_the_limit():
    bare = cost_of(case(S4, 512, 4096, 512, balanced(32, 64)))
    gelu = cost_of(case(S4, 512, 4096, 512, balanced(32, 64)), epilogue="gelu")
    assert bare.parts["vector"] == 0
    assert gelu.bound() == "vector"
    assert gelu.cycles > bare.cycles


@pytest.mark.parametrize(
    ("name", "gemms"),
    [("transformer", encoder(512, 8, 768, 12, 12)), ("small transformer", encoder(197, 8, 384, 6, 12)),
     ("convolutions", resnet18(32)), ("one image", resnet18(1))],
)  # fmt: skip
def test_training_at_2_8_gains_what_sat_reports(name, gemms):
    sparse = training_cycles(SAT, gemms, nm(2, 8))
    dense = training_cycles(load_hardware("sat-vcu1525-dense"), gemms, nm(2, 8))
    assert dense["weight_gradient"] == sparse["weight_gradient"]
    # Two of three passes at a quarter of the work: at most 3 / (1/4 + 1/4 + 1) = 2.0; the paper's average is 1.75.
    assert 1.5 <= dense["cycles"] / sparse["cycles"] <= 2.0


def test_updates_hide_beside_the_array_only_when_interleaved():
    gemm = encoder(128, 1, 768, 12, 1)[2]
    hidden = training_step(SAT, gemm, nm(2, 8))
    shown = training_step(load_hardware("sat-vcu1525", {"sparse.update.interleaved": "false"}), gemm, nm(2, 8))
    assert hidden.update == 0
    weights = gemm.k * gemm.n
    moved = math.ceil(weights * (2 * (4 + 4) + 2) * 200e6 / SAT.peak_bytes_per_s)
    assert shown.update == max(weights // 32, moved)
    with pytest.raises(ConfigError, match="no update engine"):
        training_step(S4, gemm, nm(2, 8))


def test_a_converter_stands_between_two_formats():
    machine = load_hardware("edge-gustavson")
    left = mask(Pattern("random", 0.25), (64, 96), 1)
    held = int(left.sum())
    own = matmul_cost(machine, 64, 16, 96, DENSE, left)
    assert own.parts["converter"] == 0
    # CSC to CSR: entries and 96 column pointers read twice, as the rows are counted first; 32 entries a cycle.
    turned = matmul_cost(machine, 64, 16, 96, DENSE, left, produced_as="csc")
    assert turned.parts["converter"] == math.ceil(2 * (held + 96) / 32)
    assert matmul_cost(machine, 64, 16, 96, DENSE, left, produced_as="dense").parts["converter"] == 64 * 96 // 32
    with pytest.raises(ConfigError, match=r"come as csr, but sigma-like reads bitmap and has no converter"):
        matmul_cost(load_hardware("sigma-like"), 64, 16, 96, DENSE, left, produced_as="csr")
    with pytest.raises(ConfigError, match=r"unknown storage format 'cssr', nearest is 'csr'"):
        matmul_cost(machine, 64, 16, 96, DENSE, left, produced_as="cssr")


def test_remembered_costs_are_the_same():
    asked = (SAT, 64, 96, 128, nm(2, 8), DENSE, "fp16", "fp16")
    assert pattern_cost(*asked) == matmul_cost(*asked[:6], weight_format="fp16", activation_format="fp16")
    assert pattern_cost(*asked) is pattern_cost(*asked)


@pytest.mark.parametrize("name", ["sigma-like", "edge-gustavson", "edge-outer", "dstc-like", "edge-intersect"])
def test_a_matrix_of_zeros_costs_only_its_result(name):
    cost = matmul_cost(load_hardware(name), 8, 16, 32, np.zeros((32, 16), np.bool_))
    assert cost.effective_macs == 0
    assert cost.cycles >= 1
    assert cost.imbalance == 1
    assert cost.utilization == 0


def test_operands_are_stored_as_they_lie():
    left, right = mask(Pattern("random", 0.25), (5, 40), 1), mask(Pattern("random", 0.25), (40, 7), 0)
    machine = load_hardware("edge-gustavson")
    cost = matmul_cost(machine, 5, 7, 40, right, left)
    a, w = int(left.sum()), int(right.sum())
    # CSR: a pointer to each row and its end, a column for each value.
    activation_bits = 6 * max(1, a.bit_length()) + 6 * a
    weight_bits = 41 * w.bit_length() + 3 * w
    assert cost.metadata_bytes == -(-activation_bits // 8) + -(-weight_bits // 8)
    assert cost.activation_bytes == -(-(activation_bits + 8 * a) // 8)
