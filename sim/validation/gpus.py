"""GPU operators, layers and collectives against measurements."""

from __future__ import annotations

from functools import cache
from typing import Any
from zlib import crc32

from sim.kinds import load_hardware
from sim.operators.measure import Operators
from sim.operators.request import make_request, row_request
from sim.validation.points import Point
from sim.validation.simulators import read_rows

TRUSTED_S = 50e-6
"""Below this, times that were measured call by call from Python are mostly the host's."""


ALONE = {"launch.burst": None, "launch.operands": "cold"}
"""How h200_further was measured: replays of a long graph, whose start does not count, every operand past the L2."""


def _operators(machine: str, table: str, measured: dict[str, Any] | None = None) -> list[Point]:
    """Times, sustained times and power of a table in the columns of `unit operator --from`; `measured`: in what way."""
    operators = Operators(load_hardware(machine, measured))
    points = []
    for row in read_rows(table):
        request = row_request(row)
        answer = operators.measure(request)
        kind = row["op"] + (f" {row['dtype']}" if row["dtype"] == "fp8" else "")
        if row["op"] == "attention":
            kind += f" {row['note']}"
        name = " ".join([row["op"], row["dtype"], *(f"{k}={v}" for k, v in request.sizes.items() if k != "backend")])
        for quantity, column, key in (
            ("time", "time_s", "time_s"), ("sustained", "sustained_s", "sustained_s"), ("power", "power_w", "power_w")
        ):  # fmt: skip
            points.append(Point(kind, name, quantity, float(row[column]), float(answer[key])))
    return points


@cache
def h200_operators() -> tuple[Point, ...]:
    """The operators that the H200's factors were fitted on."""
    return tuple(_operators("h200", "h200_operators.csv"))


@cache
def h200_further() -> tuple[Point, ...]:
    """Operators of other sizes, measured on another board in another way, used for no fit."""
    return tuple(_operators("h200", "h200_further.csv", ALONE))


def _collectives(machine: str, table: str, devices: str, measured: str, alone: bool) -> list[Point]:
    operators = Operators(load_hardware(machine))
    points = []
    for row in read_rows(table):
        kind = {"allreduce": "all_reduce"}.get(row["op"], row["op"])
        answer = operators.measure(make_request(kind, {"bytes": row["bytes"], "gpus": row[devices]}))
        predicted = float(answer["decisions"]["on_device_s"]) if alone else answer["time_s"]
        points.append(Point(kind, f"{kind} {row['bytes']} B", "time", float(row[measured]), predicted))
    return points


@cache
def h200_collectives() -> tuple[Point, ...]:
    """NCCL called in a loop on two H200."""
    return tuple(_collectives("h200", "h200_x2_collectives.csv", "gpus", "time_s", False))


@cache
def h200_collectives_graph() -> tuple[Point, ...]:
    """NCCL inside launch graphs on two H200, without the host's part."""
    return tuple(_collectives("h200", "h200_x2_collectives_graph.csv", "gpus", "time_s", True))


@cache
def a100_allreduce() -> tuple[Point, ...]:
    """All-reduce over four A100."""
    return tuple(_collectives("a100-80g", "a100_x4_allreduce.csv", "devices", "measured_s", False))


def _sizes(op: str, row: dict[str, str], batch: str) -> tuple[str, dict[str, str]]:
    """Kind and sizes of a row with columns M, N, K."""
    if op == "gemm":
        return op, {"M": row["M"], "N": row["N"], "K": row["K"]}
    if op == "batched":
        return "bmm", {"B": row[batch], "M": row["M"], "N": row["N"], "K": row["K"]}
    return op, {"R": row["M"] if row["N"] else "1", "C": row["N"] or row["M"]}


def _public(machine: str, table: str, held: bool) -> list[Point]:
    """The rows that the part was fitted on, or those `held` back: chance decides, by a hash of a row's name."""
    operators = Operators(load_hardware(machine))
    points = []
    for row in read_rows(table):
        kind, sizes = _sizes(row["op"], row, "batch")
        name = " ".join([kind, *(f"{k}={v}" for k, v in sizes.items())])
        if crc32(name.encode()) % 2 != held:
            continue
        answer = operators.measure(make_request(kind, {**sizes, "dtype": "fp16"}))
        measured = float(row["measured_s"])
        group = kind if measured >= TRUSTED_S else f"{kind} under 50 us"
        points.append(Point(group, name, "time", measured, answer["time_s"]))
    return points


@cache
def a100_operators(held: bool) -> tuple[Point, ...]:
    """Operators on an A100."""
    return tuple(_public("a100-80g", "a100_operators.csv", held))


@cache
def mi210_operators(held: bool) -> tuple[Point, ...]:
    """Operators on an MI210."""
    return tuple(_public("mi210", "mi210_operators.csv", held))


@cache
def a100_layer() -> tuple[Point, ...]:
    """The operators of a GPT-3 layer on four A100, one device's part, and the whole layer."""
    operators = Operators(load_hardware("a100-80g"))
    points: list[Point] = []
    for row in read_rows("a100_gpt3_layer.csv"):
        op = row["kind"].split()[0]
        times = int(row["batch_or_count"]) if "x3" in row["kind"] else 1
        if op == "allreduce":
            size = 2 * int(row["M"]) * int(row["N"])
            request = make_request("all_reduce", {"bytes": size, "gpus": row["batch_or_count"]})
        else:
            kind, sizes = _sizes(op, row, "batch_or_count")
            request = make_request(kind, {**sizes, "dtype": "fp16"})
        predicted = times * operators.measure(request)["time_s"]
        points.append(
            Point(
                f"{row['phase']} operators", f"{row['phase']} {row['op']}", "time", float(row["measured_s"]), predicted
            )
        )
    layers = []
    for phase in ("prefill", "decode"):
        mine = [p for p in points if p.kind.startswith(phase)]
        layers.append(
            Point("layer", f"{phase} layer", "time", sum(p.measured for p in mine), sum(p.predicted for p in mine))
        )
    return (*points, *layers)
