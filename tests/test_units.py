"""Quantities with units, exact; and the one rounding rule of time."""

from __future__ import annotations

import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from sim import units
from sim.config import ConfigError, build
from sim.units import Bandwidth, BitEnergy, Bytes, Current, Energy, Frequency, Length, Power, Time, cycles_to_ps


class Q(BaseModel):
    f: Frequency = 1
    b: Bytes = 0
    t: Time = 0
    w: Bandwidth = 1
    e: Energy = 0.0
    eb: BitEnergy = 0.0
    p: Power = 0.0
    l: Length = 0.0  # noqa: E741
    i: Current = 0.0


@pytest.mark.parametrize(
    ("field", "text", "value"),
    [
        ("f", "1 GHz", 10**9), ("f", "933.333333 MHz", 933333333), ("f", "1.5e3 kHz", 1_500_000),
        ("b", "16 MiB", 2**24), ("b", "64B", 64), ("b", "1.5 KiB", 1536), ("b", "1 kB", 1000), ("b", "0 B", 0),
        ("t", "1.5 ns", 1500), ("t", "7.8 us", 7_800_000), ("t", "1 s", 10**12),
        ("w", "512 GB/s", 512 * 10**9), ("w", "1 TiB/s", 2**40), ("w", "6.4 Gbit/s", 800_000_000),
        ("e", "0.59 pJ", 0.59), ("e", "3 fJ", 0.003), ("e", "2 nJ", 2000.0), ("eb", "3.9 pJ/bit", 3.9),
        ("p", "150 mW", 0.15), ("l", "500 um", 0.5), ("i", "65 mA", 0.065),
    ],
)  # fmt: skip
def test_reads_units_exactly(field: str, text: str, value: float) -> None:
    assert getattr(build(Q, {field: text}), field) == value


@pytest.mark.parametrize(
    ("field", "text", "says"),
    [
        ("f", 5, "f: 5 lacks its unit: a frequency is written like '1 GHz', with one of Hz, kHz, MHz, GHz"),
        ("f", "5", "f: '5' lacks its unit: a frequency is written with one of Hz, kHz, MHz, GHz"),
        ("f", "0 Hz", "f: '0 Hz' is zero, but a frequency must be more than that"),
        ("f", "1.5 Hz", "f: '1.5 Hz' is no whole number of Hz, in which a frequency is counted"),
        ("b", "-1 B", "b: '-1 B' is negative, but a size must not be"),
        ("b", "1 KB", "b: '1 KB' has the unknown unit 'KB', nearest is 'kB'; a size has one of "),
        ("b", "4 bytes", "b: '4 bytes' has the unknown unit 'bytes'"),
        ("b", "0.5 B", "b: '0.5 B' is no whole number of bytes"),
        ("b", "1 B 2", "b: '1 B 2' is not a size: write a number and a unit, one of "),
        ("b", "", "b: '' is not a size"),
        ("b", True, "b: must be a size with its unit, such as '16 MiB'"),
        ("b", [1], "b: must be a size with its unit, such as '16 MiB'"),
        ("t", "0.5 ps", "t: '0.5 ps' is no whole number of picoseconds"),
        ("w", "1 GBps", "w: '1 GBps' has the unknown unit 'GBps', nearest is 'GB/s'"),
        ("e", "nan pJ", "e: 'nan pJ' is not an energy"),
        ("e", "1 pj", "e: '1 pj' has the unknown unit 'pj', nearest is 'pJ'"),
    ],
)
def test_refuses_in_one_sentence(field: str, text: object, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Q, {field: text})
    assert str(caught.value).startswith(says)


def test_cycles_round_up_once() -> None:
    assert cycles_to_ps(1, 10**9) == 1000
    assert cycles_to_ps(1, 1_750_000_000) == 572  # 571.43 ps
    assert cycles_to_ps(7, 1_750_000_000) == 4000
    assert cycles_to_ps(0, 3) == 0
    assert cycles_to_ps(10**15, 3) == -(-(10**27) // 3)


@given(st.integers(0, 10**15), st.integers(1, 10**11))
def test_cycles_to_time_is_the_least_that_holds_them(cycles: int, clock_hz: int) -> None:
    exact = Fraction(cycles * 10**12, clock_hz)
    assert 0 <= cycles_to_ps(cycles, clock_hz) - exact < 1


@given(st.integers(1, 10**13), st.integers(0, 2**50), st.integers(0, 10**16), st.floats(0, 1e12))
def test_written_quantities_read_back_equal(clock: int, size: int, time_ps: int, energy_pj: float) -> None:
    built = Q(f=f"{clock} Hz", b=f"{size} B", t=f"{time_ps} ps", e=f"{energy_pj!r} pJ")
    again = build(Q, built.model_dump(mode="json"))
    assert (again.f, again.b, again.t) == (clock, size, time_ps)
    assert again.e == pytest.approx(energy_pj, rel=1e-15)


@pytest.mark.parametrize(
    ("value", "table", "text"),
    [
        (1_500_000_000, units.FREQUENCY_UNITS, "1.5 GHz"), (24 * 2**20, units.BYTES_UNITS, "24 MiB"),
        (100_000, units.BYTES_UNITS, "100 kB"), (0, units.BYTES_UNITS, "0 B"), (1500, units.TIME_UNITS, "1.5 ns"),
        (512 * 10**9, units.BANDWIDTH_UNITS, "512 GB/s"), (0.59, units.ENERGY_UNITS, "590 fJ"),
    ],
)  # fmt: skip
def test_written_in_a_readable_unit(value: float, table: dict[str, Fraction], text: str) -> None:
    assert units.format_quantity(value, table) == text


def test_json_schema_accepts_what_is_read() -> None:
    properties = Q.model_json_schema()["properties"]
    assert properties["f"]["type"] == "string"
    assert re.search(properties["f"]["pattern"], "1.5 GHz")
    assert not re.search(properties["f"]["pattern"], "1.5")
    assert not re.search(properties["b"]["pattern"], "1 KB")
    assert properties["b"]["examples"] == ["16 MiB"]
