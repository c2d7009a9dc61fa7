"""Number formats: the bits that one stored element takes, block scales included.

Turns a format's name into an exact number of bits (a Fraction, because a scale shared by a block adds a part of a bit
to each element) and element counts into bytes. Tensors of the Trace name their format; nothing else is known about it
here.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import prod


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """One way to store a number: `element_bits` each, plus `scale_bits` for every block of `block` elements."""

    name: str
    element_bits: int
    source: str
    block: int = 1
    scale_bits: int = 0

    @property
    def bits(self) -> Fraction:
        """Bits an element takes in memory, its share of the block's scale included."""
        return Fraction(self.element_bits) + Fraction(self.scale_bits, self.block)


_INTEGER = "two's complement, width in the name; scales per tensor or channel are not counted"
_IEEE = "IEEE 754-2019"
_OCP8 = "OCP 8-bit Floating Point Specification (OFP8) 1.0"
_MX = "OCP Microscaling Formats (MX) Specification 1.0, table 1: blocks of 32, one E8M0 scale of 8 bits"
_NVFP4 = "NVIDIA Blackwell NVFP4: E2M1 in blocks of 16 with one E4M3 scale; the scale per tensor is not counted"

FORMATS: dict[str, NumberFormat] = {
    f.name: f
    for f in (
        NumberFormat("int2", 2, _INTEGER),
        NumberFormat("int4", 4, _INTEGER),
        NumberFormat("int8", 8, _INTEGER),
        NumberFormat("int16", 16, _INTEGER),
        NumberFormat("int32", 32, _INTEGER),
        NumberFormat("fp8_e4m3", 8, _OCP8),
        NumberFormat("fp8_e5m2", 8, _OCP8),
        NumberFormat("fp16", 16, _IEEE),
        NumberFormat("bf16", 16, "Google Brain float: 8 exponent and 7 mantissa bits"),
        NumberFormat("tf32", 32, "NVIDIA A100 white paper: 19 bits of arithmetic, stored in 32"),
        NumberFormat("fp32", 32, _IEEE),
        NumberFormat("mxfp8", 8, _MX, block=32, scale_bits=8),
        NumberFormat("mxfp6", 6, _MX, block=32, scale_bits=8),
        NumberFormat("mxfp4", 4, _MX, block=32, scale_bits=8),
        NumberFormat("mxint8", 8, _MX, block=32, scale_bits=8),
        NumberFormat("nvfp4", 4, _NVFP4, block=16, scale_bits=8),
    )
}


def format_bits(name: str) -> Fraction:
    """Bits per stored element of format `name`; ValueError with the nearest name if there is no such format."""
    known = FORMATS.get(name)
    if known is None:
        raise ValueError(unknown_format(name))
    return known.bits


def unknown_format(name: object) -> str:
    """The sentence that tells a user that `name` is no format, and which ones are."""
    near = difflib.get_close_matches(str(name), FORMATS, n=1)
    hint = f"; nearest: {near[0]}" if near else ""
    return f"unknown number format {name!r}, allowed: {', '.join(FORMATS)}{hint}"


@lru_cache(maxsize=65536)
def storage_bytes(shape: tuple[int, ...], name: str) -> int:
    """Bytes that a dense tensor of `shape` takes in format `name`, rounded up to whole bytes."""
    bits = format_bits(name)
    return -(-prod(shape) * bits.numerator // (8 * bits.denominator))
