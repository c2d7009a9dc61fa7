"""Storage formats counted bit by bit, patterns as asked for, number formats, transforms and arithmetic units."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sim.arithmetic import load_unit, unit_factors
from sim.energy import on_chip_rates
from sim.energy_tables import load_table, mac_cost
from sim.errors import ConfigError
from sim.kinds import load_hardware
from sim.sparse import pattern as patterns
from sim.sparse.pattern import Pattern, balanced, draw, nm, parse
from sim.sparse.storage import Encoding, conversion_cycles, expected_run_entries, index_bits, measure, stored
from workloads.formats import FORMATS, PRECISIONS, format_bits, precision, storage_bytes
from workloads.trace import OpKind, Role, Sparsity, Tensor
from workloads.transforms.rotations import hadamard, hadamard_ops, rotation, rotation_macs

SMALL = np.array([[1, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 1, 1, 0, 1], [0, 0, 0, 1, 0]], np.bool_)
EIGHT = Fraction(8)


@pytest.mark.parametrize(
    ("name", "value_bits", "metadata_bits"),
    [
        ("dense", 20 * 8, 0),
        ("bitmap", 5 * 8, 20),
        ("csr", 5 * 8, 5 * 3 + 5 * 3),  # five pointers to 0..5, five columns of 0..4
        ("csc", 5 * 8, 6 * 3 + 5 * 2),
        ("coordinate", 5 * 8, 5 * (2 + 3)),
        ("run_length", 5 * 8, 5 * 2),  # runs 0, 1, 0, 1 and 3 fit two bits; zeros at a row's end are not stored
        ("n:m", 2 * 2 * 5 * 8, 2 * 2 * 5 * 1),  # two groups of two rows, two slots each in five columns
    ],
)
def test_bits_are_counted_exactly(name, value_bits, metadata_bits):
    found = measure(Encoding(name, 2, 2, run_bits=2), SMALL, EIGHT)
    assert (found.value_bits, found.metadata_bits) == (value_bits, metadata_bits)
    assert found.bytes == -(-(value_bits + metadata_bits) // 8)


def test_long_runs_take_stored_zeros():
    row = np.zeros((1, 12), np.bool_)
    row[0, 11] = True
    # Eleven zeros with runs of at most three: two escapes of three zeros and a stored one each, then three before it.
    assert measure(Encoding("run_length", run_bits=2), row, EIGHT).entries == 3


@settings(deadline=None)
@given(
    rows=st.integers(1, 12), columns=st.integers(1, 40), density=st.floats(0.05, 1), bits=st.integers(1, 4),
    seed=st.integers(0, 9),
)  # fmt: skip
def test_a_run_length_code_tells_every_position(rows, columns, density, bits, seed):
    mask = draw(Pattern("random", density), (rows, columns), 1, seed)
    longest, entries = (1 << bits) - 1, 0
    for row in mask:
        at = -1
        for position in np.flatnonzero(row):
            while position - at - 1 > longest:
                at += longest + 1
                entries += 1
            at = position
            entries += 1
    assert measure(Encoding("run_length", run_bits=bits), mask, EIGHT).entries == entries


def test_the_mean_of_a_run_length_code():
    mask = draw(Pattern("random", 0.05), (200, 4000), 1, 1)
    counted = measure(Encoding("run_length", run_bits=4), mask, EIGHT).entries
    assert expected_run_entries(mask.shape, 0.05, 4) == pytest.approx(counted, rel=0.02)


def test_index_widths():
    assert [index_bits(n) for n in (1, 2, 4, 5, 8, 9)] == [1, 1, 2, 3, 3, 4]
    assert [index_bits(n, True) for n in (4, 6, 8, 300)] == [2, 4, 4, 16]
    # NVIDIA's 2:4 in fp16: 36 bits for four values, 56.25 % of dense.
    four = stored(Encoding("n:m", 2, 4), (4, 1), 2, Fraction(16))
    assert four.bits == 36
    with pytest.raises(ConfigError, match="unknown storage format 'crs', nearest is 'csr'"):
        stored(Encoding("crs"), (4, 4), 2, EIGHT)


def test_conversion_reads_one_side_while_it_writes_the_other():
    csr, bitmap = (measure(Encoding(name), SMALL, EIGHT) for name in ("csr", "bitmap"))
    assert conversion_cycles(csr, bitmap, 20, 1, False) == csr.entries == 9
    assert conversion_cycles(csr, bitmap, 20, 4, True) == 5


@settings(deadline=None)
@given(
    ratio=st.sampled_from([(1, 2), (2, 4), (1, 4), (2, 8), (4, 16)]),
    groups=st.integers(1, 9),
    others=st.integers(1, 9),
    along=st.integers(0, 1),
    seed=st.integers(0, 5),
)
def test_n_m_masks_keep_exactly_n_of_every_m(ratio, groups, others, along, seed):
    n, m = ratio
    shape = (groups * m, others) if along == 0 else (others, groups * m)
    mask = draw(nm(n, m), shape, along, seed)
    by_group = np.moveaxis(mask, along, 0).reshape(groups, m, others).sum(axis=1)
    assert (by_group == n).all()
    assert (mask == draw(nm(n, m), shape, along, seed)).all()
    assert patterns.violation(mask, n, m, along) is None


def test_the_last_group_keeps_what_fits():
    mask = draw(nm(2, 4), (9, 50), 0, 0)
    assert (mask[8:].sum(axis=0) == 1).all()
    assert (draw(nm(2, 4), (7, 50), 0, 0)[4:].sum(axis=0) == 2).all()


def test_other_patterns():
    top = draw(Pattern("topk", 0.25), (30, 80), 1, 0)
    assert (top.sum(axis=1) == 20).all()
    blocks = draw(Pattern("block", 0.25, block=(16, 8)), (64, 64), 0, 0)
    whole = blocks.reshape(4, 16, 8, 8).sum(axis=(1, 3))
    assert sorted(np.unique(whole)) == [0, 128]
    assert (whole > 0).sum() == 8
    assert draw(Pattern("random", 0.3), (300, 300), 0, 4).mean() == pytest.approx(0.3, abs=0.01)
    assert balanced(16, 64) == Pattern("balanced", 1 / 16, 4, 64)


@pytest.mark.parametrize(
    ("text", "operand", "said"),
    [
        ("5:4", "weights", "'5:4' keeps 5 of 4, but N must be at least 1 and at most M"),
        ("2-4", "weights", "--weights 2-4 is no pattern; allowed: dense, N:M such as 2:4, random:DENSITY"),
        ("randm:0.1", "weights", "nearest is 'random'"),
        ("random:1.5", "weights", "keeps 1.5 of the values, but the kept part must be above 0 and at most 1"),
        ("random:", "weights", "must be written random:DENSITY"),
        ("block:4:0.5", "weights", "must be written block:ROWSxCOLUMNS:DENSITY"),
        ("balanced:3:64", "weights", "needs a block that the degree divides"),
        ("topk:0.1", "weights", "is no pattern"),
        ("block:4x4:0.5", "activations", "is no pattern"),
    ],
)
def test_patterns_that_are_refused(text, operand, said):
    with pytest.raises(ConfigError) as error:
        parse(text, operand)
    assert said in str(error.value)


@pytest.mark.parametrize("text", ["dense", "2:4", "random:0.1", "block:16x8:0.25", "balanced:16:64"])
def test_patterns_are_written_as_they_are_read(text):
    assert str(parse(text, "weights")) == text


def test_a_traces_sparsity_is_a_pattern():
    assert patterns.of_sparsity(None) == patterns.DENSE
    assert patterns.of_sparsity(Sparsity("n:m", 0.5, 2, 4)) == nm(2, 4)
    assert patterns.of_sparsity(Sparsity("block", 0.25, block=(16, 8))) == Pattern("block", 0.25, block=(16, 8))
    assert patterns.of_sparsity(Sparsity("unstructured", 0.1)) == Pattern("random", 0.1)


def test_masks_from_files(tmp_path):
    mask = SMALL
    np.save(tmp_path / "a.npy", mask.astype(np.float32))
    np.savez(tmp_path / "b.npz", mask)
    np.savez(tmp_path / "c.npz", x=mask, y=mask)
    (tmp_path / "d.npz").write_text("no array")
    for name in ("a.npy", "b.npz"):
        assert (draw(parse(str(tmp_path / name), "weights"), (4, 5), 0, 0) == mask).all()
    for name, shape, said in (
        ("a.npy", (5, 4), "has shape 4 x 5, but must be 5 x 4; the transposed one has the right shape"),
        ("a.npy", (4, 6), "has shape 4 x 5, but must be 4 x 6"),
        ("c.npz", (4, 5), "holds x, y, but must hold one array, or one named 'mask'"),
        ("d.npz", (4, 5), "is no array file of numpy"),
        ("e.npz", (4, 5), "no such file"),
    ):
        with pytest.raises(ConfigError) as error:
            draw(parse(str(tmp_path / name), "weights"), shape, 0, 0)
        assert said in str(error.value)


@pytest.mark.parametrize(
    ("name", "bits"),
    [("binary", 1), ("ternary", Fraction(5, 4)), ("mxfp6", Fraction(25, 4)), ("nvfp4", Fraction(9, 2)),
     ("mxint8", Fraction(33, 4)), ("bfp12", Fraction(9, 2)), ("bfp16", Fraction(17, 2)), ("tf32", 32), ("int2", 2)],
)  # fmt: skip
def test_scales_and_packing_are_in_the_bits(name, bits):
    assert format_bits(name) == bits


def test_ternary_packs_four_weights_with_one_zero_in_five_bits():
    assert 4 * 2**3 == 2**5  # which of four is zero, and three signs
    assert storage_bytes((4096, 4096), "ternary") == 4096 * 4096 * 5 // 32


def test_every_floating_format_is_as_wide_as_its_parts():
    for f in FORMATS.values():
        if f.family == "float" and f.name != "tf32":
            assert 1 + f.exponent + f.mantissa == f.element_bits, f.name
        if f.family == "shared":
            assert 1 + f.exponent + f.mantissa == f.element_bits
            assert f.scale_bits == 8


def test_precisions_name_known_formats():
    for p in PRECISIONS.values():
        for role in ("weight", "activation", "kv", "gradient", "optimizer"):
            assert p.of(role) in FORMATS
    assert [precision("w2a8kv4").of(r) for r in ("weight", "activation", "kv")] == ["int2", "int8", "int4"]
    assert precision("W4A4KV4").activations == "int4"
    with pytest.raises(ValueError, match="unknown precision 'W2A8KV5'.*nearest: W2A8KV4"):
        precision("W2A8KV5")


def test_a_hadamard_transform_is_log2_stages_of_butterflies():
    assert hadamard_ops(3, 8) == 3 * 8 * 3 + 3 * 8
    assert hadamard_ops(1, 11008) == 11008 * 8 + 11008  # 11008 = 2^8 x 43: blocks of 256
    with pytest.raises(ValueError, match="blocks of 2 to 256 .* not 512"):
        hadamard_ops(1, 11008, 512)
    x = Tensor("x", (2, 16, 64), "fp16", Role.ACTIVATION)
    op = hadamard("h", x)
    assert (op.vector_ops, op.macs) == (32 * 64 * 7, 0)
    assert op.read_bytes == op.write_bytes == 2 * 16 * 64 * 2


def test_a_rotation_is_a_product_with_a_square_matrix():
    x = Tensor("x", (2, 16, 64), "fp16", Role.ACTIVATION)
    op = rotation("r", x)
    assert op.kind is OpKind.MATMUL
    assert op.macs == rotation_macs(32, 64) == 32 * 64 * 64
    assert rotation("r", x, 16).macs == 32 * 64 * 16
    with pytest.raises(ValueError, match="need.* blocks that divide"):
        rotation_macs(1, 64, 24)


def test_units_scale_energy_and_area_between_their_published_sizes():
    unit, document = load_unit("en_t")
    assert unit.factors(1024) == (0.851, 0.891)
    assert unit.factors(64) == unit.factors(256) == (0.885, 0.920)
    energy, area = unit.factors(2048)
    assert energy == pytest.approx((0.851 + 0.866) / 2)
    assert 0.891 < area < 0.901
    # The abstract's gains: 17.5 % more energy efficiency and 12.2 % more area efficiency at 1 TOPS.
    assert pytest.approx(1.175, abs=0.001) == 1 / 0.851
    assert pytest.approx(1.122, abs=0.001) == 1 / 0.891
    assert "2404.11887" in (document.source_of("points.0.energy") or "")


def test_a_unit_changes_energy_only_of_the_formats_it_is_built_for():
    plain = load_hardware("edge-npu-ddr4")
    encoded = load_hardware("edge-npu-ddr4", {"array.unit": "en_t"})
    assert on_chip_rates(encoded).mac_pj("int8")[1] == pytest.approx(0.851 * on_chip_rates(plain).mac_pj("int8")[1])
    assert on_chip_rates(encoded).mac_pj("fp16")[1] == on_chip_rates(plain).mac_pj("fp16")[1]
    rough = load_hardware("npu-hbm2", {"array.unit": "approx_norm"})
    assert unit_factors(rough.chip, "bf16")[:2] == (0.87, 0.84)
    assert unit_factors(rough.chip, "fp16")[:2] == (1, 1)
    with pytest.raises(ConfigError, match=r"array.unit: unknown arithmetic unit 'ent', nearest is 'en_t'"):
        load_hardware("npu-hbm2", {"array.unit": "ent"})


@pytest.mark.parametrize("table", ["7nm", "16nm", "45nm"])
def test_every_format_has_energy_and_area(table):
    energies, _ = load_table(table)
    for name in FORMATS:
        _, mac = mac_cost(energies, name)
        assert mac.energy > 0
        assert mac.area is not None
        assert mac.area > 0
    narrow = [mac_cost(energies, f"int8*{w}")[1].energy for w in ("int2", "int4", "int8")]
    assert narrow == sorted(narrow)
    assert mac_cost(energies, "fp16*int4")[0] == "fp16"
