"""What scheduling masks costs, and how near the engines come to their oracles: `python -m bench.sparse`.

Masks of 8192 x 8192 at a tenth of the values go through every engine; closed forms are timed at the same size. The
second table gives the errors against STONNE, SAM and Sparseloop and the speedups of training.
"""

from __future__ import annotations

import csv
import sys

from rich.console import Console
from rich.table import Table

from bench._measure import ROOT, best
from sim.hardware import Hardware
from sim.kinds import load_hardware
from sim.sparse.case import case
from sim.sparse.cost import cost_of
from sim.sparse.flexible import mesh_cycles
from sim.sparse.pattern import DENSE, Mask, Pattern, balanced, draw, nm
from sim.sparse.training import training_cycles
from tests.stonne_masks import stonne_masks
from tests.training_sets import encoder, resnet18

SIZE = 8192
MASK_BAR_S, CLOSED_BAR_S = 1.0, 0.010
BY_MASK = ("s4-antoum", "sigma-like", "edge-gather", "edge-gustavson", "edge-outer", "edge-intersect", "dstc-like")
CLOSED = (("tensorcore-2to4", nm(2, 4)), ("sat-vcu1525", nm(2, 8)), ("s4-antoum", balanced(32, 64)))


def time_of(machine: Hardware, weights: Pattern | Mask, activations: Pattern | Mask, size: int, times: int) -> float:
    """Shortest wall time of one cost, from the masks (or patterns) to the cycles."""
    return best(lambda: cost_of(case(machine, size, size, size, weights, activations)), times)[0]


def speeds() -> tuple[list[tuple[str, str, str, str]], bool]:
    """(rows, whether all are within their bars)."""
    weights = draw(Pattern("random", 0.1), (SIZE, SIZE), 0, 1)
    activations = draw(Pattern("random", 0.1), (SIZE, SIZE), 1, 2)
    rows, good = [], True
    for name in BY_MASK:
        machine = load_hardware(name)
        moving = DENSE if name in ("s4-antoum", "sigma-like") else activations
        time_of(machine, weights[:64, :64].copy(), DENSE if moving is DENSE else activations[:64, :64].copy(), 64, 1)
        taken = time_of(machine, weights, moving, SIZE, 2)
        good &= taken < MASK_BAR_S
        shown = (f"{taken:.2f} s", f"< {MASK_BAR_S:g} s", str(taken < MASK_BAR_S))
        rows.append((f"masks {SIZE} x {SIZE}, {name}", *shown))
    for name, pattern in CLOSED:
        machine = load_hardware(name)
        taken = time_of(machine, pattern, DENSE, SIZE, 5)
        good &= taken < CLOSED_BAR_S
        shown = (f"{1e3 * taken:.2f} ms", f"< {1e3 * CLOSED_BAR_S:g} ms", str(taken < CLOSED_BAR_S))
        rows.append((f"closed form {SIZE}^3, {name} {pattern}", *shown))
    return rows, good


def accuracy() -> list[tuple[str, str, str]]:
    """(what, ours, reference) of the oracles."""
    with (ROOT / "tests" / "data" / "stonne.csv").open(encoding="utf-8", newline="") as file:
        runs = list(csv.DictReader(file))
    errors, meshes = [], 0
    for run in runs:
        m, n, k = (int(run[c]) for c in ("M", "N", "K"))
        cycles = int(run["cycles"])
        if run["op"] == "DenseGEMM":
            side = int(int(run["num_ms"]) ** 0.5)
            meshes += mesh_cycles(side, side, int(run["dn_bw"]), m, n, k) == cycles
            continue
        left, right = stonne_masks(m, n, k, int(run["MK_sparsity"]), int(run["KN_sparsity"]))
        settings = {
            "sparse.multipliers": run["num_ms"],
            "sparse.ports": run["dn_bw"],
            "sparse.lines": run["rn_bw"],
            "sparse.stationary": "activations" if run["dataflow"] == "MK_STA_KN_STR" else "weights",
            "sparse.order": "packed" if run["extra"] == "optimize=1" else "given",
        }
        cost = cost_of(case(load_hardware("sigma-like", settings), m, n, k, right, left))
        errors.append(cost.parts["array"] / cycles - 1)
    worst = max(errors, key=abs)
    exact = sum(e == 0 for e in errors)
    mean = sum(map(abs, errors)) / len(errors)
    rows = [
        ("STONNE SparseGEMM, cycles", f"mean {mean:.2%}, worst {worst:+.2%}, {exact} exact", f"{len(errors)} runs"),
        ("STONNE mesh, cycles", f"{meshes} exact", f"{sum(r['op'] == 'DenseGEMM' for r in runs)} runs"),
    ]
    machine, twin = load_hardware("sat-vcu1525"), load_hardware("sat-vcu1525-dense")
    for name, gemms in (("BERT-base, 8 x 512", encoder(512, 8, 768, 12, 12)), ("ResNet-18, 32 images", resnet18(32))):
        gain = training_cycles(twin, gemms, nm(2, 8))["cycles"] / training_cycles(machine, gemms, nm(2, 8))["cycles"]
        rows.append((f"SAT 2:8 training, {name}", f"{gain:.2f}x", "1.75x on average (paper)"))
    return rows


def main() -> int:
    """Print both tables; 1 where a time misses its bar."""
    console = Console(width=None if sys.stdout.isatty() else 150)
    rows, good = speeds()
    for title, heads, body in (
        ("opcycle: scheduling sparse masks", ("what", "measured", "bar", "within"), rows),
        ("opcycle: sparse engines against their oracles", ("what", "ours", "reference"), accuracy()),
    ):
        table = Table(title=title)
        for head in heads:
            table.add_column(head)
        for row in body:
            table.add_row(*row)
        console.print(table)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
