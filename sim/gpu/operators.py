"""Single operators and decoder layers by their sizes, as people measure them: kind and shape become Costs.

An operator without weights is repeated on the same operands, so those that fit wait in L2; weights are not reused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sim.errors import ConfigError
from sim.gpu.attention import Attend, attention
from sim.gpu.cost import Cost, chain, launched
from sim.gpu.gemm import Product, bytes_of, gemm
from sim.gpu.power import burst, counted, sustained
from sim.gpu.rows import elementwise, fits_l2, reduction
from sim.links.collectives import KINDS as COLLECTIVES
from sim.links.collectives import collective
from sim.operators.layers import layer_model

if TYPE_CHECKING:
    from sim.gpu.schema import Gpu
    from sim.operators.request import Request

READS = {"add": 2, "mul": 2, "mul_half": 2}
"""Operands of elementwise functions that have more than one."""
HALF = {"silu": "silu_half", "gelu": "gelu_half", "mul": "mul_half"}
"""The functions on half of the columns of a gated product: rows do not adjoin, so addresses take instructions."""
NARROW_RESULT = "bf16"
"""Number format of results of 8-bit products, as libraries have it for transformers."""


class Measured(NamedTuple):
    """What would be measured of an operator: burst and sustained times, power and clock of the sustained run."""

    time_s: float
    sustained_s: float
    power_w: float
    burst_clock_hz: float
    clock_hz: float
    bound: str
    decisions: dict[str, str]


def vector_cost(gpu: Gpu, function: str, rows: int, columns: int, number_format: str, warm: bool | None = None) -> Cost:
    """A row-wise or elementwise function over (rows x columns). `warm` None: by whether L2 holds what it touches."""
    size = rows * columns * bytes_of(number_format)
    reads, writes = READS.get(function, 1) * size, size
    held = fits_l2(gpu, reads + writes) if warm is None else warm
    if function in gpu.library.rows:
        return reduction(gpu, function, rows, columns, reads, writes, held)
    return elementwise(gpu, function, rows * columns, reads, writes, held)


def result_format(number_format: str) -> str:
    """Number format of the result of a product."""
    return NARROW_RESULT if bytes_of(number_format) < 2 and number_format.startswith("fp") else number_format


def operator_cost(gpu: Gpu, request: Request) -> tuple[Cost, float]:
    """(cost with launches, bytes of weights) of an operator that is no collective. Raises ConfigError."""
    kind, number_format = request.kind, request.format
    mode = gpu.launch.operator
    if kind == "layer":
        costs = layer_costs(gpu, request)
        # A layer's own weights leave nothing of it in L2, so that bursts of layers are as long as any.
        return chain([launched(gpu, cost, kind, "chain") for cost in costs]), 0.0
    weights = 0.0
    if kind in ("gemm", "gemm_2:4"):
        sparse = kind != "gemm"
        out = result_format(number_format)
        cost = gemm(gpu, Product(request["M"], request["N"], request["K"], number_format, out, 1, sparse))
        size = bytes_of(number_format)
        weights = request["N"] * request["K"] * (size / 2 + 1 / 8 if sparse else size)
    elif kind == "bmm":
        out = result_format(number_format)
        cost = gemm(gpu, Product(request["M"], request["N"], request["K"], number_format, out, request["B"]))
    elif kind == "attention":
        cost = attention(gpu, Attend(
            request["B"], request["Hq"], request["Hkv"], request["Lq"], request["Lk"], request["D"], request["D"],
            bool(request.sizes["causal"]), number_format, _backend(gpu, request),
        ))  # fmt: skip
    else:
        warm = False if gpu.launch.operands == "cold" else None
        cost = vector_cost(gpu, kind, request["R"], request["C"], number_format, warm)
    return launched(gpu, cost, kind, mode), weights


def _backend(gpu: Gpu, request: Request) -> str:
    """The attention back end asked for; one that only a table's note hints at counts where the library has it."""
    name = str(request.sizes["backend"])
    if name.startswith("?"):
        return name[1:] if name[1:] in gpu.library.attention else ""
    return name


def layer_costs(gpu: Gpu, request: Request) -> list[Cost]:
    """The kernels of a decoder layer in order, without launches."""
    model = layer_model(str(request.sizes["model"]))
    number_format = request.format
    heads, hidden = model.attention, model.hidden
    assert model.ffn is not None
    batch, queries, past = request["B"], request["Lq"], request["ctx"]
    rows = batch * queries

    def product(n: int, k: int) -> Cost:
        return gemm(gpu, Product(rows, n, k, number_format, result_format(number_format)))

    def vector(function: str, columns: int) -> Cost:
        return vector_cost(gpu, function, rows, columns, number_format)

    width = heads.heads * heads.head_dim
    attend = Attend(
        batch, heads.heads, heads.kv_heads, queries, past + queries, heads.head_dim, heads.value_dim, past == 0,
        number_format, _backend(gpu, request),
    )  # fmt: skip
    costs = [
        vector(model.norm.kind, hidden),
        product(width + heads.kv_heads * (heads.head_dim + heads.value_dim), hidden),
        attention(gpu, attend),
        product(hidden, heads.heads * heads.value_dim),
        vector("add", hidden),
        vector(model.norm.kind, hidden),
    ]
    ffn = model.ffn
    if ffn.activation in ("swiglu", "geglu", "swiglu_clamped"):
        inner = "gelu" if ffn.activation == "geglu" else "silu"
        costs += [product(2 * ffn.hidden, hidden), vector(HALF[inner], ffn.hidden), vector(HALF["mul"], ffn.hidden)]
    else:
        costs += [product(ffn.hidden, hidden), vector(ffn.activation, ffn.hidden)]
    costs += [product(hidden, ffn.hidden), vector("add", hidden)]
    return costs


def measure(gpu: Gpu, request: Request) -> Measured:
    """Times, power and clock of one operator. Raises ConfigError where the part lacks a unit, kernel or link for it."""
    if request.kind in COLLECTIVES:
        return _collective(gpu, request)
    if request.format not in gpu.formats and request.kind in ("gemm", "gemm_2:4", "bmm", "attention", "layer"):
        gpu.macs_per_clock(request.format)
    cost, weights = operator_cost(gpu, request)
    load = counted([cost])
    short, long = burst(gpu, load), sustained(gpu, load)
    beside = gpu.launch.burst.share_s(weights) if gpu.launch.burst is not None else 0.0
    decisions = cost.kernels()[0].decisions if request.kind != "layer" else {"kernels": str(len(cost.kernels()))}
    return Measured(
        short.time_s + beside, long.time_s, long.power_w, short.clock_hz, long.clock_hz, cost.bound(short.clock_hz),
        dict(decisions),
    )  # fmt: skip


def _collective(gpu: Gpu, request: Request) -> Measured:
    if gpu.links is None:
        raise ConfigError(f"{gpu.name} has no links to other devices", key="links")
    found = collective(gpu.links, request.kind, request["bytes"], request["gpus"])
    power = gpu.power.idle + gpu.power.active
    if found.call_s:
        power += found.sent_bytes * (8 * gpu.links.energy + 2 * gpu.energy.dram_byte) * 1e-12 / found.call_s
    clock = float(gpu.clock.maximum)
    told = {"algorithm": found.algorithm, "protocol": found.protocol, "on_device_s": f"{found.time_s:.3e}"}
    bound = "host" if found.call_s > found.time_s else found.bound
    return Measured(found.call_s, found.call_s, power, clock, clock, bound, told)
