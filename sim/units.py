"""Turns quantities written with their unit ("1 GHz", "16 MiB", "1.5 ns") into exact numbers, and cycles into time.

Time, sizes and rates become integers of one base unit each, by exact arithmetic: a quantity that is no whole number of
its base unit is refused, never rounded. Energies, powers and lengths never influence time and become floats.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeAlias

from pydantic import BeforeValidator, Field, PlainSerializer, WithJsonSchema

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PS_PER_S: Final = 10**12

_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?"
_QUANTITY = re.compile(rf"({_NUMBER}) ?([A-Za-zµ%][A-Za-z0-9µ/%]*)")


def cycles_to_ps(cycles: int, clock_hz: int) -> int:
    """The time of `cycles` at `clock_hz`, in picoseconds, rounded up once; exact at any size."""
    return -(-cycles * PS_PER_S // clock_hz)


def ps_to_s(time_ps: int) -> float:
    """Picoseconds as seconds, for reports only: no simulated time is ever computed from the result."""
    return time_ps / PS_PER_S


def parse_quantity(text: str, what: str, units: Mapping[str, Fraction]) -> Fraction:
    """`text` in the base unit of `units` ({unit: its size in base units}), exact. Raises ValueError in one sentence."""
    allowed = ", ".join(units)
    if re.fullmatch(rf"[-+]?{_NUMBER}|[-+]?\.[0-9]+", text.strip()):
        raise ValueError(f"{text.strip()!r} lacks its unit: {what} is written with one of {allowed}")
    if re.match(rf"-\s*{_NUMBER}", text.strip()):
        raise ValueError(f"{text.strip()!r} is negative, but {what} must not be")
    match = _QUANTITY.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not {what}: write a number and a unit, one of {allowed}")
    number, unit = match.groups()
    if unit not in units:
        from sim.errors import nearest

        near = nearest(unit, units)
        hint = f", nearest is {near!r}" if near else ""
        raise ValueError(f"{text.strip()!r} has the unknown unit {unit!r}{hint}; {what} has one of {allowed}")
    return Fraction(number) * units[unit]


def format_quantity(value: float, units: Mapping[str, Fraction]) -> str:
    """`value` base units in the largest unit that leaves a number of at least one and few digits; reads back equal."""
    exact = Fraction(value) if isinstance(value, int) else Fraction(repr(float(value)))
    best = ""
    if not exact:
        return f"0 {next(unit for unit, size in units.items() if size == 1)}"
    for unit, size in sorted(units.items(), key=lambda item: -item[1]):
        if unit.endswith("bit/s"):
            continue
        text = _decimal(exact / size)
        if text is None:
            continue
        if exact >= size and len(text.replace(".", "")) <= 6:
            return f"{text} {unit}"
        if not best or len(text) < len(best.partition(" ")[0]):
            best = f"{text} {unit}"
    return best


def _decimal(value: Fraction) -> str | None:
    """An exact decimal of `value`, or None where it has none."""
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return None
    digits = max(twos, fives)
    text = str(value.numerator * 10**digits // value.denominator).rjust(digits + 1, "0")
    return f"{text[:-digits]}.{text[-digits:]}" if digits else text


def _scaled(*pairs: tuple[str, Fraction | int]) -> dict[str, Fraction]:
    return {unit: Fraction(size) for unit, size in pairs}


_METRIC = {"f": Fraction(1, 10**15), "p": Fraction(1, 10**12), "n": Fraction(1, 10**9), "u": Fraction(1, 10**6),
           "m": Fraction(1, 1000), "": Fraction(1), "k": Fraction(1000), "M": Fraction(10**6), "G": Fraction(10**9),
           "T": Fraction(10**12), "P": Fraction(10**15)}  # fmt: skip
_BINARY = {"": 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def _metric(prefixes: str, unit: str, base: Fraction | int = 1) -> dict[str, Fraction]:
    """Units from prefixes named by their letters ("." is none), each measured in `base` of the unprefixed unit."""
    return {letter.strip(".") + unit: _METRIC[letter.strip(".")] / base for letter in prefixes}


FREQUENCY_UNITS: Final = _metric(".kMG", "Hz")
BYTES_UNITS: Final = {**_scaled(*((p + "B", size) for p, size in _BINARY.items())), **_metric("kMGT", "B")}
TIME_UNITS: Final = _metric("pnum.", "s", _METRIC["p"])
BANDWIDTH_UNITS: Final = {
    **_metric(".kMGTP", "B/s"),
    **_scaled(*((p + "B/s", size) for p, size in _BINARY.items() if p)),
    **{unit: size / 8 for unit, size in _metric("kMGT", "bit/s").items()},
}
ENERGY_UNITS: Final = _metric("fpnum.", "J", _METRIC["p"])
BIT_ENERGY_UNITS: Final = _metric("fpn", "J/bit", _METRIC["p"])
WIRE_ENERGY_UNITS: Final = _metric("fp", "J/bit/mm", _METRIC["p"])
POWER_UNITS: Final = _metric("num.k", "W")
LENGTH_UNITS: Final = {**_metric("num", "m", _METRIC["m"]), "cm": Fraction(10)}
AREA_UNITS: Final = {"um2": Fraction(1, 10**6), "mm2": Fraction(1), "cm2": Fraction(100)}
VOLTAGE_UNITS: Final = _metric("m.", "V")
CURRENT_UNITS: Final = _metric("um.", "A")


def quantity(
    what: str, units: Mapping[str, Fraction], base: str, *, whole: bool, positive: bool, examples: list[str]
) -> tuple[BeforeValidator, PlainSerializer, WithJsonSchema, Any]:
    """The pydantic annotations of a quantity: reads text with a unit, writes it back in JSON, has a JSON Schema.

    `whole`: an integer of base units, anything finer is refused. `positive`: zero is refused.
    """

    def read(value: Any) -> int | float:
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise ValueError(f"must be {what} with its unit, such as {examples[0]!r}")
        if not isinstance(value, str):
            allowed = ", ".join(units)
            raise ValueError(f"{value} lacks its unit: {what} is written like {examples[0]!r}, with one of {allowed}")
        exact = parse_quantity(value, what, units)
        if positive and exact == 0:
            raise ValueError(f"{value!r} is zero, but {what} must be more than that")
        if not whole:
            return float(exact)
        if exact.denominator != 1:
            raise ValueError(f"{value!r} is no whole number of {base}, in which {what} is counted")
        return int(exact)

    @lru_cache(maxsize=4096, typed=True)
    def write(value: float) -> str:
        return format_quantity(value, units)

    pattern = rf"^\s*{_NUMBER} ?({'|'.join(re.escape(unit) for unit in units)})\s*$"
    schema = {
        "type": "string",
        "pattern": pattern,
        "description": f"{what[0].upper()}{what[1:]} with its unit: {', '.join(units)}.",
        "examples": examples,
    }
    return (
        BeforeValidator(read),
        PlainSerializer(write, return_type=str, when_used="json"),
        WithJsonSchema(schema),
        Field(gt=0) if positive else Field(ge=0),
    )


def reader(what: str, units: Mapping[str, Fraction]) -> Callable[[str], int]:
    """A function from text with a unit to a whole number of base units, for command-line options."""

    def read(text: str) -> int:
        exact = parse_quantity(text, what, units)
        if exact.denominator != 1:
            raise ValueError(f"{text!r} is finer than {what} is counted")
        return int(exact)

    return read


def _of(
    what: str, units: Mapping[str, Fraction], base: str, example: str, *, whole: bool, positive: bool = False
) -> Any:
    return quantity(what, units, base, whole=whole, positive=positive, examples=[example])


if TYPE_CHECKING:
    # To the type checker a quantity is the number that it becomes.
    Frequency: TypeAlias = int
    Bytes: TypeAlias = int
    Time: TypeAlias = int
    Bandwidth: TypeAlias = int
    Energy: TypeAlias = float
    BitEnergy: TypeAlias = float
    WireEnergy: TypeAlias = float
    Power: TypeAlias = float
    Length: TypeAlias = float
    Area: TypeAlias = float
    Voltage: TypeAlias = float
    Current: TypeAlias = float
else:
    Frequency = Annotated[int, *_of("a frequency", FREQUENCY_UNITS, "Hz", "1 GHz", whole=True, positive=True)]
    """Hz."""
    Bytes = Annotated[int, *_of("a size", BYTES_UNITS, "bytes", "16 MiB", whole=True)]
    """Bytes; KiB is 1024 and kB 1000."""
    Time = Annotated[int, *_of("a time", TIME_UNITS, "picoseconds", "1.5 ns", whole=True)]
    """Picoseconds."""
    Bandwidth = Annotated[
        int, *_of("a bandwidth", BANDWIDTH_UNITS, "bytes per second", "512 GB/s", whole=True, positive=True)
    ]
    """Bytes per second; GB/s is 10^9."""
    Energy = Annotated[float, *_of("an energy", ENERGY_UNITS, "pJ", "0.59 pJ", whole=False)]
    """Picojoules."""
    BitEnergy = Annotated[float, *_of("an energy per bit", BIT_ENERGY_UNITS, "pJ/bit", "3.9 pJ/bit", whole=False)]
    """Picojoules per bit."""
    WireEnergy = Annotated[float, *_of("a wire energy", WIRE_ENERGY_UNITS, "pJ/bit/mm", "0.1 pJ/bit/mm", whole=False)]
    """Picojoules per bit and millimetre."""
    Power = Annotated[float, *_of("a power", POWER_UNITS, "W", "1.5 W", whole=False)]
    """Watts."""
    Length = Annotated[float, *_of("a length", LENGTH_UNITS, "mm", "2.5 mm", whole=False)]
    """Millimetres."""
    Area = Annotated[float, *_of("an area", AREA_UNITS, "mm2", "0.8 mm2", whole=False)]
    """Square millimetres."""
    Voltage = Annotated[float, *_of("a voltage", VOLTAGE_UNITS, "V", "1.2 V", whole=False)]
    """Volts."""
    Current = Annotated[float, *_of("a current", CURRENT_UNITS, "A", "65 mA", whole=False)]
    """Amperes."""
