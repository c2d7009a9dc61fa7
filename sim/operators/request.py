"""What may be asked of `unit operator`: kinds, the sizes that each needs, and rows of a table of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sim.errors import ConfigError, not_among
from workloads.attrs import COLLECTIVES
from workloads.formats import format_bits

SIZES: Mapping[str, tuple[str, ...]] = {
    "gemm": ("M", "N", "K"),
    "gemm_2:4": ("M", "N", "K"),
    "bmm": ("B", "M", "N", "K"),
    "attention": ("B", "Hq", "Hkv", "Lq", "Lk", "D"),
    **dict.fromkeys(("softmax", "layernorm", "rmsnorm", "gelu", "silu", "add", "copy"), ("R", "C")),
    "layer": ("model", "B", "Lq", "ctx"),
    **dict.fromkeys(COLLECTIVES, ("bytes", "gpus")),
}
"""The keys that each kind must have."""

FURTHER: Mapping[str, Mapping[str, Any]] = {"attention": {"causal": False, "backend": ""}, "layer": {"backend": ""}}
"""Keys that a kind may have, with what holds without them."""

MOST = 2**40
"""Largest size; beyond it products of sizes would leave 64-bit numbers."""

DTYPE = "bf16"
NAMES = {"fp8": "fp8_e4m3", "half": "fp16", "float16": "fp16", "bfloat16": "bf16"}
"""Other names of number formats."""


@dataclass(frozen=True, slots=True)
class Request:
    """One operator: `kind` is a key of SIZES, `format` a number format, `sizes` its keys and values."""

    kind: str
    format: str
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, key: str) -> int:
        return int(self.sizes[key])


def held_bytes(request: Request) -> int:
    """Bytes of the operands and results that a device must hold for the operator; 0 for a whole layer."""
    kind, bits = request.kind, format_bits(request.format)
    if kind in COLLECTIVES:
        return request["bytes"] * (request["gpus"] if kind == "all_gather" else 1)
    if kind in ("gemm", "gemm_2:4", "bmm"):
        m, n, k = request["M"], request["N"], request["K"]
        elements = (m * k + n * k + m * n) * int(request.sizes.get("B", 1))
    elif kind == "attention":
        rows = request["Hq"] * request["Lq"] + request["Hkv"] * request["Lk"]
        elements = 2 * request["B"] * rows * request["D"]
    elif kind == "layer":
        return 0
    else:
        elements = (3 if kind == "add" else 2) * request["R"] * request["C"]
    return int(elements * bits) // 8


def make_request(kind: str, values: Mapping[str, Any], hint: str = "") -> Request:
    """A Request from text or JSON values; `hint` may name an attention back end, as the notes of tables do.

    Raises ConfigError for unknown kinds and keys, missing keys, and values that are no positive whole numbers.
    """
    if kind not in SIZES:
        raise ConfigError(not_among("operator kind", kind, SIZES, most=30))
    given = dict(values)
    number_format = str(given.pop("dtype", None) or DTYPE)
    further = FURTHER.get(kind, {})
    known = [*SIZES[kind], *further]
    for key in given:
        if key not in known:
            raise ConfigError(not_among("key", str(key), [*known, "dtype"], inside=kind))
    missing = [key for key in SIZES[kind] if key not in given]
    if missing:
        raise ConfigError(f"{kind} lacks {', '.join(missing)}; it needs {', '.join(SIZES[kind])}")
    sizes: dict[str, Any] = dict(further)
    if hint and "backend" in sizes:
        sizes["backend"] = f"?{hint}"
    for key, value in given.items():
        sizes[key] = _value(kind, key, value)
    if kind == "attention" and sizes["Hq"] % sizes["Hkv"]:
        raise ConfigError(
            f"attention has {sizes['Hq']} query heads (Hq), which {sizes['Hkv']} KV heads (Hkv) don't divide"
        )
    if kind == "attention" and sizes["causal"] and sizes["Lq"] > sizes["Lk"]:
        raise ConfigError(
            f"causal attention needs as many keys (Lk) as queries (Lq), not {sizes['Lk']} and {sizes['Lq']}"
        )
    number_format = NAMES.get(number_format, number_format)
    try:
        format_bits(number_format)
    except ValueError as error:
        raise ConfigError(f"{kind}: {error}") from None
    return Request(kind, number_format, sizes)


def _value(kind: str, key: str, value: Any) -> Any:
    if key in ("model", "backend"):
        return str(value)
    if key == "causal":
        if str(value).lower() in ("true", "1", "yes"):
            return True
        if str(value).lower() in ("false", "0", "no"):
            return False
        raise ConfigError(f"{kind}: causal is {value!r}, but must be true or false")
    least = 0 if key in ("ctx", "bytes") else 1
    try:
        # Tables written by programs have 128.0 for 128.
        number = int(value) if isinstance(value, float) and value.is_integer() else int(str(value))
    except ValueError:
        raise ConfigError(f"{kind}: {key} is {value!r}, but must be a whole number") from None
    if not least <= number <= MOST:
        bound = f"at least {least}" if number < least else f"at most {MOST} (2^40)"
        raise ConfigError(f"{kind}: {key} is {number}, but must be {bound}")
    return number


def row_request(row: Mapping[str, str]) -> Request:
    """The Request of a row of a table: columns `op`, `dtype` and `shape` (JSON), or `op` and a column a key."""
    kind = (row.get("op") or "").strip()
    values: dict[str, Any]
    if row.get("shape"):
        try:
            values = json.loads(row["shape"])
        except json.JSONDecodeError:
            raise ConfigError(f"shape {row['shape']!r} is no JSON object") from None
        if not isinstance(values, dict):
            raise ConfigError(f"shape {row['shape']!r} is no JSON object")
    else:
        keys = [*SIZES.get(kind, ()), *FURTHER.get(kind, {})]
        values = {key: row[key] for key in keys if row.get(key)}
    if row.get("dtype"):
        values["dtype"] = row["dtype"]
    return make_request(kind, values, (row.get("note") or "").strip())
