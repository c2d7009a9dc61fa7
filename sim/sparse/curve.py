"""The curve of speedup against sparsity: a series of costs, and what eats the difference to the ideal line.

Each point splits its time into the ideal (the dense time times the part of the products that is left) and what a
predictor, imbalance, unfilled hardware, bandwidth, metadata and vector work add to it. The folder written holds
everything that the picture shows.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sim.output import check_target, result_folder
from sim.sparse.case import Case, case
from sim.sparse.cost import SparseCost, cost_of
from sim.sparse.pattern import DENSE, Pattern, balanced, nm
from sim.sparse.schema import Balanced, Gather, Structured, parse_ratio

if TYPE_CHECKING:
    from sim.hardware import Hardware

SCHEMA = "opcycle/sparse-curve/1"
DENSITIES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05)
LOSSES = ("predictor", "imbalance", "unfilled", "bandwidth", "metadata", "vector")
"""What a point's time holds beyond the ideal, in the order in which it is charged."""


def points(machine: Hardware, weights: Pattern, activations: Pattern) -> list[tuple[Pattern, Pattern]]:
    """(weights, activations) of each point: what the machine's engine is made for, or the given kind of pattern.

    A kind with a density is taken through DENSITIES with the other operand fixed; N:M arrays go through their ratios,
    balanced ones through powers of two up to their degree.
    """
    engine = machine.sparse
    if weights.kind in ("random", "block"):
        series = [Pattern(weights.kind, d, block=weights.block) for d in DENSITIES]
    elif isinstance(engine, Structured):
        ratios = sorted((parse_ratio(r) for r in engine.ratios), key=lambda r: -r[0] / r[1])
        series = [nm(n, m) for n, m in ratios]
    elif isinstance(engine, Balanced):
        degrees = [1 << i for i in range(1, engine.degree.bit_length()) if 1 << i <= engine.degree]
        series = [balanced(degree, engine.block) for degree in degrees if engine.block % degree == 0]
    elif isinstance(engine, Gather):
        kind = activations.kind if activations.kind in ("relu", "topk", "random") else "topk"
        return [(weights, DENSE), *((weights, Pattern(kind, d)) for d in DENSITIES)]
    else:
        series = [Pattern("random", d) for d in DENSITIES]
    return [(DENSE, activations), *((pattern, activations) for pattern in series)]


def losses(made: Case, cost: SparseCost, dense_cycles: int, with_dram: bool) -> dict[str, int]:
    """Cycles of the point beyond the ideal, by cause; with `ideal` they add up to its time."""
    total = made.m * made.n * made.k
    array = cost.parts["array"]
    ideal = min(array, -(-dense_cycles * cost.effective_macs // total))
    guessing = min(array - ideal, int(cost.detail.get("predictor_cycles", 0)))
    uneven = min(array - ideal - guessing, round((array - guessing) * (1 - 1 / cost.imbalance)))
    moving = ("scratchpad", "dram") if with_dram else ("scratchpad",)
    values = max(array, *(cost.value_parts[name] for name in moving))
    everything = max(values, *(cost.parts[name] for name in ("metadata", "converter", *moving)))
    return {
        "ideal": ideal,
        "predictor": guessing,
        "imbalance": uneven,
        "unfilled": array - ideal - guessing - uneven,
        "bandwidth": values - array,
        "metadata": everything - values,
        "vector": max(everything, cost.parts["vector"]) - everything,
    }


def curve(
    machine: Hardware,
    m: int,
    n: int,
    k: int,
    weights: Pattern = DENSE,
    activations: Pattern = DENSE,
    *,
    weight_format: str | None = None,
    activation_format: str | None = None,
    epilogue: str | None = None,
    seed: int = 0,
    with_dram: bool = False,
) -> dict[str, Any]:
    """All points as plain data: for each the densities, the speedup over dense operands, the ideal, and the losses."""
    rows = []
    dense = 0
    for w, a in points(machine, weights, activations):
        made = case(machine, m, n, k, w, a, weight_format, activation_format, seed)
        cost = cost_of(made, epilogue=epilogue)
        if not dense:
            base = cost_of(made.dense(), epilogue=epilogue)
            dense = base.streamed_cycles if with_dram else base.cycles
        cycles = cost.streamed_cycles if with_dram else cost.cycles
        rows.append(
            {
                "weights": str(w),
                "activations": str(a),
                "weight_density": made.weights.nonzeros / (k * n),
                "activation_density": made.activations.nonzeros / (m * k),
                "sparsity": 1 - cost.effective_macs / (m * n * k),
                "cycles": cycles,
                "speedup": dense / cycles,
                "ideal_speedup": m * n * k / max(1, cost.effective_macs),
                "bound": cost.bound(with_dram),
                **losses(made, cost, dense, with_dram),
            }
        )
    return {
        "schema": SCHEMA,
        "hardware": machine.name,
        "engine": machine.sparse.engine if machine.sparse else None,
        "m": m,
        "n": n,
        "k": k,
        "operands": "dram" if with_dram else "scratchpad",
        "epilogue": epilogue,
        "dense_cycles": dense,
        "points": rows,
    }


def write_curve(folder: str | Path, data: dict[str, Any]) -> None:
    """Write `sparse.json`, `points.csv` and the picture into a result folder. Raises ConfigError."""
    check_target(folder)
    with result_folder(folder) as target:
        (target / "sparse.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        names = list(data["points"][0])
        lines = [",".join(names), *(",".join(str(row[name]) for name in names) for row in data["points"])]
        (target / "points.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        from analysis.figures import draw_all

        draw_all(target)
