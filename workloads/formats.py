"""Number formats: the bits that one stored element takes, block scales included, and which tensors use which.

Turns a format's name into an exact number of bits (a Fraction, because a scale shared by a block adds a part of a bit
to each element) and element counts into bytes. Tensors of the Trace name their format; what arithmetic costs in it is
the machine's business.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import prod


@dataclass(frozen=True, slots=True)
class NumberFormat:
    """One way to store a number: `element_bits` each, plus `scale_bits` for every block of `block` elements.

    element_bits: a Fraction where a code word holds several elements (ternary). family: `integer`, `float`, or
    `shared` where a block shares its exponent or scale. exponent, mantissa: bits of one element of a float.
    """

    name: str
    element_bits: int | Fraction
    source: str
    block: int = 1
    scale_bits: int = 0
    family: str = "float"
    exponent: int = 0
    mantissa: int = 0

    @property
    def bits(self) -> Fraction:
        """Bits an element takes in memory, its share of the block's scale included."""
        return Fraction(self.element_bits) + Fraction(self.scale_bits, self.block)


_INTEGER = "two's complement, width in the name; scales per tensor or channel are not counted"
_IEEE = "IEEE 754-2019"
_OCP8 = "OCP 8-bit Floating Point Specification (OFP8) 1.0"
_MX = "OCP Microscaling Formats (MX) Specification 1.0, table 1: blocks of 32, one E8M0 scale of 8 bits"
_NVFP4 = "NVIDIA Blackwell NVFP4: E2M1 in blocks of 16 with one E4M3 scale; the scale per tensor is not counted"
_TERNARY = (
    "3:4 fine-grained ternary packing: one zero in every four weights, so 4 positions x 2^3 signs = 32 = 2^5 codes, "
    "5 bits for 4 weights; the scale per channel is not counted"
)
_BINARY = "BinaryConnect (Courbariaux et al., NeurIPS 2015): weights of -1 or 1, one sign bit; scales are not counted"
_BFP = "block floating point as Microsoft's MSFP12 and MSFP16 (Darvish Rouhani et al., NeurIPS 2020): blocks of 16"


def _integer(bits: int) -> NumberFormat:
    return NumberFormat(f"int{bits}", bits, _INTEGER, family="integer")


def _float(name: str, bits: int, exponent: int, mantissa: int, source: str) -> NumberFormat:
    return NumberFormat(name, bits, source, exponent=exponent, mantissa=mantissa)


def _shared(name: str, bits: int, exponent: int, mantissa: int, source: str, block: int = 32) -> NumberFormat:
    return NumberFormat(name, bits, source, block, 8, "shared", exponent, mantissa)


FORMATS: dict[str, NumberFormat] = {
    f.name: f
    for f in (
        NumberFormat("binary", 1, _BINARY, family="integer"),
        NumberFormat("ternary", Fraction(5, 4), _TERNARY, family="integer"),
        *(_integer(bits) for bits in (2, 4, 8, 16, 32)),
        _float("fp8_e4m3", 8, 4, 3, _OCP8),
        _float("fp8_e5m2", 8, 5, 2, _OCP8),
        _float("fp16", 16, 5, 10, _IEEE),
        _float("bf16", 16, 8, 7, "Google Brain float: 8 exponent and 7 mantissa bits"),
        _float("tf32", 32, 8, 10, "NVIDIA A100 white paper: 19 bits of arithmetic, stored in 32"),
        _float("fp32", 32, 8, 23, _IEEE),
        _shared("mxfp8", 8, 4, 3, _MX),
        _shared("mxfp6", 6, 2, 3, _MX),
        _shared("mxfp4", 4, 2, 1, _MX),
        _shared("mxint8", 8, 0, 7, _MX),
        _shared("nvfp4", 4, 2, 1, _NVFP4, block=16),
        _shared("bfp12", 4, 0, 3, _BFP, block=16),
        _shared("bfp16", 8, 0, 7, _BFP, block=16),
    )
}


@dataclass(frozen=True, slots=True)
class Precision:
    """The format of each class of tensors; `gradients` and `optimizer` matter to training only."""

    name: str
    weights: str
    activations: str
    kv: str
    source: str
    gradients: str = "bf16"
    optimizer: str = "fp32"

    def of(self, role: str) -> str:
        """The format of tensors of a role (`weight`, `activation`, `kv`, `gradient`, `optimizer`).

        Raises KeyError for a role that has none.
        """
        return {
            "weight": self.weights,
            "activation": self.activations,
            "kv": self.kv,
            "gradient": self.gradients,
            "optimizer": self.optimizer,
        }[role]


PRECISIONS: dict[str, Precision] = {
    p.name: p
    for p in (
        Precision("W16A16KV16", "fp16", "fp16", "fp16", "half precision throughout"),
        Precision("W8A8KV8", "int8", "int8", "int8", "SmoothQuant (Xiao et al., ICML 2023), with an 8-bit cache"),
        Precision("W4A16KV16", "int4", "fp16", "fp16", "weights only: GPTQ (ICLR 2023), AWQ (MLSys 2024)"),
        Precision("W4A8", "int4", "int8", "fp16", "4-bit weights, 8-bit activations; the cache is left in fp16"),
        Precision("W4A8KV4", "int4", "int8", "int4", "QServe (Lin et al., MLSys 2025)"),
        Precision("W4A4KV4", "int4", "int4", "int4", "QuaRot (NeurIPS 2024), with online Hadamard transforms"),
        Precision("W2A8KV4", "int2", "int8", "int4", "AccLLM (Liang et al., 2025, arXiv 2505.03745)"),
        Precision("BF16-mixed", "bf16", "bf16", "bf16", "mixed-precision training (Micikevicius et al., ICLR 2018)"),
    )
}
"""Named choices of formats by tensor class."""


def precision(name: str) -> Precision:
    """The Precision of that name, whatever its case; ValueError with the nearest name if there is none."""
    folded = {known.casefold(): p for known, p in PRECISIONS.items()}
    found = folded.get(name.casefold())
    if found is None:
        near = difflib.get_close_matches(name.casefold(), folded, n=1)
        hint = f"; nearest: {folded[near[0]].name}" if near else ""
        raise ValueError(f"unknown precision {name!r}, allowed: {', '.join(PRECISIONS)}{hint}")
    return found


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
