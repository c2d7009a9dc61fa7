"""Runs one operator, or each row of a table, on a machine of any kind.

A GPU's model answers for operators directly; any other machine simulates a pass of one operator with its own engine.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.errors import ConfigError
from sim.operators.request import Request, held_bytes, row_request

if TYPE_CHECKING:
    from sim.kinds import PassRunner
    from sim.machine import Machine
    from workloads.trace import Pass

Answer = dict[str, Any]
COLUMNS = ("model_time_s", "model_sustained_s", "model_power_w")
"""What a table of answers adds to a row; `reason` follows."""


class Operators:
    """A machine that is asked for one operator after another; its engine keeps what it learned."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self._engine: PassRunner | None = None

    def measure(self, request: Request) -> Answer:
        """Times, power, energy and bound of one operator. Raises ConfigError where the machine cannot run it."""
        needed, have = held_bytes(request), self.machine.capacity_bytes
        if needed > have:
            raise ConfigError(
                f"{request.kind} needs {needed / 2**30:,.1f} GiB for operands and results, but the memory of "
                f"{self.machine.name} holds {have / 2**30:,.1f} GiB"
            )
        if self.machine.kind == "gpu":
            return self._on_gpu(request)
        return self._on_engine(request)

    def _on_gpu(self, request: Request) -> Answer:
        from sim.gpu.operators import measure
        from sim.gpu.schema import Gpu

        assert isinstance(self.machine, Gpu)
        found = measure(self.machine, request)
        return {
            "time_s": found.time_s,
            "sustained_s": found.sustained_s,
            "power_w": found.power_w,
            "energy_j": found.power_w * found.sustained_s,
            "bound": found.bound,
            "clock_hz": found.clock_hz,
            "burst_clock_hz": found.burst_clock_hz,
            "decisions": found.decisions,
        }

    def _on_engine(self, request: Request) -> Answer:
        from sim.kinds import account_of, engine_for
        from sim.operators.layers import layer_model
        from sim.passes import PassResult
        from sim.report_tables import Roofs
        from workloads import single
        from workloads.attrs import COLLECTIVES

        kind, number_format = request.kind, request.format
        if kind in COLLECTIVES:
            return self._collective(request)
        work: Pass
        if kind in ("gemm", "gemm_2:4"):
            weights = "dense" if kind == "gemm" else "2:4"
            work = single.product(request["M"], request["N"], request["K"], number_format, 1, weights)
        elif kind == "bmm":
            work = single.product(request["M"], request["N"], request["K"], number_format, request["B"])
        elif kind == "attention":
            work = single.attention(
                request["B"], request["Hq"], request["Hkv"], request["Lq"], request["Lk"], request["D"],
                bool(request.sizes["causal"]), number_format,
            )  # fmt: skip
        elif kind == "layer":
            model = layer_model(str(request.sizes["model"]))
            work = single.decoder_layer(model, request["B"], request["Lq"], request["ctx"], number_format)
        elif kind in ("softmax", "layernorm", "rmsnorm"):
            work = single.reduction(kind, request["R"], request["C"], number_format)
        else:
            work = single.elementwise(kind, request["R"], request["C"], number_format)
        if self._engine is None:
            self._engine = engine_for(self.machine)
        result: PassResult = self._engine.run(work)
        time_s = result.schedule.makespan_ps * 1e-12
        energy_j = math.fsum(row.energy_j for row in account_of(self.machine).energy_rows(self.machine, [result]))
        flops: dict[str, int] = {}
        for op in result.ops:
            if op.flops:
                flops[op.format] = flops.get(op.format, 0) + op.flops
        moved = result.schedule.memory.bytes_read + result.schedule.memory.bytes_written
        vector = sum(unit.peak_per_s for unit in result.units if unit.work == "vector")
        peaks = {name: self.machine.peak_flops_per_s(name) for name in flops}
        roofs = Roofs(peaks, vector, self.machine.peak_bytes_per_s)
        return {
            "time_s": time_s,
            "sustained_s": time_s,
            "power_w": energy_j / time_s if time_s else 0.0,
            "energy_j": energy_j,
            "bound": roofs.bound(flops, sum(op.vector_ops for op in result.ops), moved),
            "decisions": dict(max(result.ops, key=lambda op: op.flops + op.vector_ops).decisions),
        }

    def _collective(self, request: Request) -> Answer:
        from sim.links.collectives import collective

        links = getattr(self.machine, "links", None)
        if links is None:
            raise ConfigError(f"{self.machine.name} has no links to other devices", key="links")
        found = collective(links, request.kind, request["bytes"], request["gpus"])
        energy_j = 8 * found.sent_bytes * links.energy * 1e-12
        return {
            "time_s": found.call_s,
            "sustained_s": found.call_s,
            "power_w": energy_j / found.call_s if found.call_s else 0.0,
            "energy_j": energy_j,
            "bound": found.bound,
            "decisions": {"algorithm": found.algorithm, "protocol": found.protocol},
        }


def read_table(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """(columns, rows) of a CSV file; lines that begin with # are left out. Raises ConfigError."""
    from sim.document import read_text

    lines = [line for line in read_text(path).splitlines() if not line.startswith("#")]
    reader = csv.DictReader(lines)
    columns = list(reader.fieldnames or [])
    if "op" not in columns:
        raise ConfigError(f"lacks the column op; its columns are {', '.join(columns) or 'none'}", file=path)
    rows = []
    for number, row in enumerate(reader):
        if None in row or None in row.values():
            raise ConfigError(f"row {number + 1} has another number of values than columns", file=path)
        rows.append(row)
    return columns, rows


def answer_table(
    machine: Machine, rows: list[dict[str, str]], progress: Callable[[str, int, int], None] | None = None
) -> list[dict[str, str]]:
    """The rows with COLUMNS and `reason` added: a row that cannot be run has a reason and no times."""
    operators = Operators(machine)
    answers = []
    for number, row in enumerate(rows):
        if progress:
            progress(row["op"], number, len(rows))
        found: Mapping[str, Any] = {}
        reason = ""
        try:
            found = operators.measure(row_request(row))
        except ConfigError as error:
            reason = str(error)
        told = [repr(found[key]) if found else "" for key in ("time_s", "sustained_s", "power_w")]
        answers.append({**row, **dict(zip(COLUMNS, told, strict=True)), "reason": reason})
    if progress:
        progress("done", len(rows), len(rows))
    return answers


def table_text(columns: list[str], answers: list[dict[str, str]]) -> str:
    """The answered table as CSV."""
    out = io.StringIO()
    names = [*columns, *(name for name in (*COLUMNS, "reason") if name not in columns)]
    writer = csv.DictWriter(out, names, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows(answers)
    return out.getvalue()
