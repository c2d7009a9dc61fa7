"""The command `unit sparse`: what it prints, what it refuses, and the curve's folder and picture."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

KEYS = ("cycles", "dense_cycles", "speedup", "effective_macs", "utilization", "metadata_bytes", "imbalance")


def test_it_prints_what_outside_checks_read(opcycle, tmp_path):
    mask = np.random.default_rng(0).random((96, 64)) < 0.2
    np.savez(tmp_path / "w.npz", mask)
    done = opcycle("unit", "sparse", "sigma-like", 40, 64, 96, "--weights", tmp_path / "w.npz", "--json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert set(KEYS) <= set(found)
    assert found["effective_macs"] == 40 * int(mask.sum())
    assert found["speedup"] == found["dense_cycles"] / found["cycles"]
    assert found["metadata_bytes"] == 96 * 64 // 8
    assert found["bound"] in found["part_cycles"]


def test_the_same_seed_gives_the_same_bytes(opcycle):
    patterns = ("--weights", "random:0.3", "--activations", "relu:0.5", "--json")
    command = ("unit", "sparse", "dstc-like", 64, 64, 64, *patterns, "--seed")
    first, again, other = (opcycle(*command, seed).out for seed in (1, 1, 2))
    assert first == again != other


def test_precision_and_table(opcycle):
    shown = opcycle("unit", "sparse", "accllm-u280", 8, 256, 256, "--weights", "2:4", "--precision", "W2A8KV4")
    assert shown.code == 0
    assert "int2" in shown.out
    assert "mac_energy_pj" in shown.out


def test_operands_in_dram_are_the_slower_case(opcycle):
    base = ("unit", "sparse", "s4-antoum", 64, 512, 512, "--weights", "balanced:32:64", "--json")
    near, far = (json.loads(opcycle(*base, "--operands", o).out) for o in ("scratchpad", "dram"))
    assert far["cycles"] >= near["cycles"]
    assert far["bound"] == "dram"


def test_training_steps(opcycle):
    arguments = ("unit", "sparse", "sat-vcu1525", 512, 256, 256, "--weights", "2:8", "--training", "--json")
    found = json.loads(opcycle(*arguments).out)
    assert 1.5 < found["speedup"] <= 2
    assert found["pass_cycles"]["weight_gradient"] == found["dense_pass_cycles"]["weight_gradient"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("npu-hbm2", 8, 8, 8), "npu-hbm2 has no section 'sparse', so it has no sparse engine; machines with one: acc"),
        (("sigma-lik", 8, 8, 8), "unknown hardware 'sigma-lik', nearest is 'sigma-like'"),
        (("tensorcore-2to4", 8, 8, 8, "--weights", "4:2"), "'4:2' keeps 4 of 2"),
        (("tensorcore-2to4", 8, 8, 8, "--weights", "1:4"), "1:4 has no unit on this machine"),
        (("tensorcore-2to4", 8, 8, 8, "--weights", "random:0.5"), "take N:M weights, not random:0.5"),
        (("tensorcore-2to4", 8, 8, 8, "--weight-format", "fp64"), "unknown number format 'fp64'"),
        (("tensorcore-2to4", 8, 8, 8, "--activation-format", "fp16"), "have units for int8 only"),
        (("s4-antoum", 8, 8, 640, "--weights", "balanced:64:64"), "supports up to one in 32"),
        (("sigma-like", 8, 8, 8, "--precision", "W3A3"), "unknown precision 'W3A3'"),
        (("sigma-like", 8, 8, 8, "--operands", "hbm"), "unknown place 'hbm'; allowed: dram, scratchpad"),
        (("sigma-like", 8, 8, 8, "--epilogue", "glu"), "unknown function 'glu'"),
        (("sigma-like", 8, 8, 8, "-o", "x"), "-o names a folder for --curve"),
        (("sigma-like", 8, 8, 8, "--produced-as", "bitmab"), "unknown storage format 'bitmab', nearest is 'bitmap'"),
        (("sat-vcu1525", 8, 8, 8, "--training", "--curve"), "--curve and --training don't go together"),
        (("sat-vcu1525", 8, 8, 8, "--training", "--activations", "2:4"), "--training takes --weights alone"),
        (("sigma-like", 8, 8, 2**24 + 1), "K: is 16777217, but must be at most 16777216"),
        (("edge-intersect", 2**24, 2**24, 2**24), "are more products than can be counted"),
        (("sigma-like", 8, 8, 8, "--set", "hw.sparse.ports=512"), "ports is 512, but must be at most the 256"),
        (("sigma-like", 8, 8, 8, "--set", "hw.sparse.port=8"), "unknown key 'port' in sparse"),
        (("sigma-like", 8, 8, 8, "--set", "hw.sparse.engine=flexibel"), "nearest is 'flexible'"),
    ],
)
def test_what_is_refused(refused, arguments, said):
    assert said in refused("unit", "sparse", *arguments)


def test_a_mask_of_the_wrong_shape_is_refused(refused, tmp_path):
    np.save(tmp_path / "m.npy", np.ones((8, 4), np.bool_))
    said = refused("unit", "sparse", "sigma-like", 2, 8, 4, "--weights", tmp_path / "m.npy")
    assert "has shape 8 x 4, but must be 4 x 8; the transposed one has the right shape" in said


def test_a_mask_of_no_numbers_is_refused(refused, tmp_path):
    np.save(tmp_path / "m.npy", np.array([[1.0, np.nan], [0.0, 1.0]]))
    assert "no numbers (NaN)" in refused("unit", "sparse", "sigma-like", 2, 2, 2, "--weights", tmp_path / "m.npy")


@pytest.mark.parametrize(
    ("machine", "options"),
    [("tensorcore-flexible", ()), ("s4-antoum", ("--operands", "dram", "--epilogue", "gelu")),
     ("edge-gustavson", ("--activations", "random:0.5")), ("edge-gather", ())],
)  # fmt: skip
def test_a_curve_is_drawn_and_its_parts_add_up(opcycle, tmp_path, machine, options):
    folder = tmp_path / "curve"
    done = opcycle("unit", "sparse", machine, 128, 128, 256, "--curve", "-o", folder, "--json", *options)
    assert done.code == 0, done.err
    assert {p.name for p in folder.iterdir()} == {"sparse.json", "points.csv", "speedup.png", ".opcycle.json"}
    data = json.loads((folder / "sparse.json").read_text())
    assert data == json.loads(done.out)
    assert data["points"][0]["weights"] == "dense"
    assert (data["points"][0]["speedup"] == 1) == ("--activations" not in options)
    for point in data["points"]:
        names = ("ideal", "predictor", "imbalance", "unfilled", "bandwidth", "metadata", "vector")
        parts = [point[name] for name in names]
        assert min(parts) >= 0
        assert sum(parts) == point["cycles"]
        assert point["speedup"] <= point["ideal_speedup"] * 1.001
        assert (point["predictor"] > 0) == point["activations"].startswith("topk")
    with (folder / "points.csv").open(newline="") as file:
        assert [row["cycles"] for row in csv.DictReader(file)] == [str(p["cycles"]) for p in data["points"]]
    picture = (folder / "speedup.png").read_bytes()
    (folder / "speedup.png").unlink()
    assert opcycle("plot", folder).code == 0
    assert (folder / "speedup.png").read_bytes() == picture


def test_a_damaged_curve_is_refused(refused, tmp_path):
    (tmp_path / "sparse.json").write_text('{"schema": "opcycle/sparse-curve/9"}')
    assert "this version reads 'opcycle/sparse-curve/1'" in refused("plot", tmp_path)
