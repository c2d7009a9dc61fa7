"""The validation sets that ship, by name. Another one is a function that returns Points, and a line here."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from sim.errors import ConfigError, not_among
from sim.validation import gpus, simulators
from sim.validation.points import Point, ValidationSet


def _onnxim() -> Sequence[Point]:
    found = []
    for row in simulators.onnxim_rows():
        name = f"{row.cores} x {row.side}x{row.side} M={row.m} N={row.n} K={row.k}"
        kind = "one core" if row.cores == 1 else "four cores"
        found.append(Point(kind, name, "cycles", row.published_total, row.total))
    return found


def _tpu() -> Sequence[Point]:
    return [
        Point(row.kind, row.workload, "cycles", row.measured, row.ours, row.others) for row in simulators.tpu_rows()
    ]


def _scalesim() -> Sequence[Point]:
    from sim.cost import unit_gemm

    found = []
    for row in simulators.read_rows("scalesim.csv"):
        rows, columns = (int(side) for side in row["array"].split("x"))
        m, n, k = (int(row[name]) for name in "MNK")
        ours = unit_gemm(rows, columns, cast("Any", row["dataflow"]), m, n, k, "fold_serial")["cycles"]
        assert isinstance(ours, int)
        name = f"{row['array']} {row['dataflow']} M={m} N={n} K={k}"
        found.append(Point(row["dataflow"], name, "cycles", float(row["formula_cycles"]), float(ours)))
    return found


LLMCOMPASS = "LLMCompass (ISCA 2024) reports 9 to 12 % by operator"
BY_OPERATOR = dict.fromkeys(("gemm", "softmax", "layernorm", "gelu"), LLMCOMPASS)
BY_LAYER = {"layer": "LLMCompass (ISCA 2024) reports 4 % for inference"}

_ALL = (
    ValidationSet("h200-operators", "an H200, on which its factors were fitted", gpus.h200_operators),
    ValidationSet("h200-further", "other sizes on another H200, used for no fit", gpus.h200_further),
    ValidationSet("h200-collectives", "NCCL in a loop on two H200", gpus.h200_collectives),
    ValidationSet("h200-collectives-graph", "NCCL in launch graphs on two H200", gpus.h200_collectives_graph),
    ValidationSet(
        "a100-operators",
        "operators on an A100, the half for its factors",
        partial(gpus.a100_operators, False),
        BY_OPERATOR,
    ),
    ValidationSet(
        "a100-operators-held", "operators on an A100, the other half", partial(gpus.a100_operators, True), BY_OPERATOR
    ),
    ValidationSet("a100-gpt3-layer", "a GPT-3 layer on four A100", gpus.a100_layer, BY_LAYER),
    ValidationSet("a100-allreduce", "all-reduce over four A100", gpus.a100_allreduce),
    ValidationSet(
        "mi210-operators", "operators on an MI210, the half for its factors", partial(gpus.mi210_operators, False)
    ),
    ValidationSet("mi210-operators-held", "operators on an MI210, the other half", partial(gpus.mi210_operators, True)),
    ValidationSet("onnxim", "GEMMs with memory against ONNXim", _onnxim),
    ValidationSet("scalesim", "array cycles against SCALE-Sim", _scalesim),
    ValidationSet("tpuv3", "operators and layers against a TPU v3", _tpu),
)
SETS = {each.name: each for each in _ALL}


def chosen(names: Sequence[str]) -> list[ValidationSet]:
    """The sets of those names, all of them for none. Raises ConfigError for an unknown one."""
    for name in names:
        if name not in SETS:
            raise ConfigError(not_among("validation set", name, SETS))
    return [SETS[name] for name in (names or SETS)]
