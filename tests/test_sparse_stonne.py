"""SIGMA's rounds and the mesh against STONNE's own runs, and the pieces of the round's time against slow twins."""

from __future__ import annotations

import csv
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stonne_masks import glibc_rand, stonne_masks

from sim.kernels import sparse_flexible as kernel
from sim.kinds import load_hardware
from sim.sparse.case import case
from sim.sparse.cost import cost_of, matmul_cost
from sim.sparse.flexible import mesh_cycles

with (Path(__file__).parent / "data" / "stonne.csv").open(encoding="utf-8", newline="") as _file:
    ROWS = list(csv.DictReader(_file))
SPARSE = [r for r in ROWS if r["op"] == "SparseGEMM"]
MESH = [r for r in ROWS if r["op"] == "DenseGEMM"]
COUNTERS = {
    "rounds": "n_reconfigurations",
    "stationary_reads": "sram_weight_reads",
    "stream_reads": "sram_input_reads",
    "sum_reads": "sram_psum_reads",
    "sum_writes": "sram_psum_writes",
    "multiplications": "multiplications",
    "most_rows": "sta_vectors_max",
}


def label(row):
    return "-".join(row[k] for k in ("M", "N", "K", "num_ms", "dn_bw", "rn_bw", "MK_sparsity", "KN_sparsity"))


def test_random_numbers_are_those_of_the_c_library():
    # The first numbers of rand() without srand(), as glibc has printed them for decades.
    assert list(islice(glibc_rand(), 4)) == [1804289383, 846930886, 1681692777, 1714636915]


def small(row):
    """The run without the compiler keeps to the small ones."""
    return pytest.param(row, marks=[pytest.mark.kernels] if int(row["M"]) <= 64 else [], id=label(row))


@pytest.mark.parametrize("row", [small(row) for row in SPARSE])
def test_counters_are_stonnes_and_cycles_close(row):
    m, n, k = (int(row[c]) for c in ("M", "N", "K"))
    left, right = stonne_masks(m, n, k, int(row["MK_sparsity"]), int(row["KN_sparsity"]))
    machine = load_hardware(
        "sigma-like",
        {
            "sparse.multipliers": row["num_ms"],
            "sparse.ports": row["dn_bw"],
            "sparse.lines": row["rn_bw"],
            "sparse.stationary": "activations" if row["dataflow"] == "MK_STA_KN_STR" else "weights",
        },
    )
    cost = matmul_cost(machine, m, n, k, right, left)
    assert {ours: cost.detail[ours] for ours in COUNTERS} == {o: int(row[theirs]) for o, theirs in COUNTERS.items()}
    # The bar is 2 %; the rounds' times hold to well under one.
    assert cost.parts["array"] == pytest.approx(int(row["cycles"]), rel=0.007)


def test_cycles_are_mostly_exact():
    exact = 0
    for row in SPARSE:
        m, n, k, left, right = (int(row[c]) for c in ("M", "N", "K", "MK_sparsity", "KN_sparsity"))
        if m > 128:
            continue
        a, b = stonne_masks(m, n, k, left, right)
        held, stream = (a, b) if row["dataflow"] == "MK_STA_KN_STR" else (b.T, a.T)
        starts = np.concatenate(([0], np.cumsum(held.sum(1)))).astype(np.int64)
        columns = np.nonzero(held)[1].astype(np.int32)
        sizes = [int(row[c]) for c in ("num_ms", "dn_bw", "rn_bw")]
        cycles, _ = kernel.rounds(starts, columns, stream.sum(1).astype(np.int64), stream.shape[1], *sizes)
        exact += int(cycles) == int(row["cycles"])
    assert exact >= 14


@pytest.mark.parametrize("row", MESH, ids=label)
def test_the_mesh_is_stonnes_to_the_cycle(row):
    side = int(int(row["num_ms"]) ** 0.5)
    m, n, k = (int(row[c]) for c in ("M", "N", "K"))
    assert mesh_cycles(side, side, int(row["dn_bw"]), m, n, k) == int(row["cycles"])


def test_a_mesh_of_less_bandwidth_by_hand():
    # 128^3 on 16 x 16 fed by 16 ports: 64 tiles of 128 * 32 / 16 + 16 + 16 + 3; the study's run took 18,624.
    assert mesh_cycles(16, 16, 16, 128, 128, 128) == 64 * 291 == 18624


@pytest.mark.kernels
def test_dense_rounds_repeat():
    machine = load_hardware("sigma-like", {"sparse.multipliers": 64, "sparse.ports": 64, "sparse.lines": 64})
    for k in (16, 24, 100, 130):
        whole = np.ones((k, 37), np.bool_)
        full = cost_of(case(machine, 21, 37, k, whole)).parts["array"]
        assert matmul_cost(machine, 21, 37, k).parts["array"] == full


@pytest.mark.kernels
def test_a_round_by_hand():
    # Four multipliers with a port and a bus line each; two rows of two non-zeros stand side by side, three vectors.
    starts, columns = np.array([0, 2, 4], np.int64), np.array([0, 1, 0, 1], np.int32)
    cycles, counts = kernel.rounds(starts, columns, np.array([3, 3], np.int64), 3, 4, 4, 4)
    # Weights take cycle 0, vectors 1 to 3; a pair meets one level up, so results are due in cycles 2 to 4; the two
    # groups have lines of their own, and of two results a cycle one waits a cycle before the memory.
    assert int(cycles) == 1 + (3 + 1) + 3 + 1
    assert counts.tolist() == [1, 4, 6, 0, 6, 12, 2, 4 + 3 * 4]



@pytest.mark.kernels
@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(
        st.tuples(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 5)), min_size=1, max_size=3), st.integers(1, 6)),
        min_size=1,
        max_size=4,
    ),
    vectors=st.integers(1, 30),
)
def test_a_line_ends_as_if_its_results_were_queued_one_by_one(groups, vectors):
    bases, slopes, starts, delays = [], [], [0], []
    for ports, delay in groups:
        bases += [b for b, _ in ports]
        slopes += [s for _, s in ports]
        starts.append(len(bases))
        delays.append(delay)
    due = sorted(max(b + s * i for b, s in ports) + d for ports, d in groups for i in range(vectors))
    free = -1
    for t in due:
        free = max(free + 1, t)
    members = np.arange(len(groups))
    arrays = (np.array(x, np.int64) for x in (bases, slopes, starts, delays))
    end = int(kernel._line_end(members, len(groups), *arrays, np.int64(vectors)))
    # Convexity between whole cycles costs at most a cycle a group.
    assert free - len(groups) < end <= free


@pytest.mark.kernels
@settings(deadline=None)
@given(depth=st.integers(1, 6), ends=st.tuples(st.integers(0, 63), st.integers(0, 63)))
def test_groups_meet_in_the_tree(depth, ends):
    leaves = 1 << depth
    low, high = sorted(e % leaves for e in ends)
    levels, left, right, line = (int(x) for x in kernel.tree_exit(low, high, leaves, leaves))
    assert 1 <= levels <= depth
    assert 0 <= left + right <= 2 * depth
    assert 0 <= line < leaves
    size = high - low + 1
    assert levels + max(left, right) >= (size - 1).bit_length() - 1
    if low % (1 << (size - 1).bit_length()) == 0 and size > 1 and size & (size - 1) == 0:
        assert (levels, left, right) == (size.bit_length() - 1, 0, 0)  # a whole subtree needs no links
