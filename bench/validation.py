"""Compares operators with ONNXim and with cycles measured on a TPU v3, and prints the tables of docs/validation.md.

`python -m bench.validation` prints them, `--write` renews them and the pictures in the document. The tests
assert on the same rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from sim.output import write_text
from sim.validation.points import by_kind
from sim.validation.sets import SETS
from sim.validation.simulators import SIMULATORS as SIMULATORS
from sim.validation.simulators import SINGLE as SINGLE
from sim.validation.simulators import OnnximRow as OnnximRow
from sim.validation.simulators import TpuRow as TpuRow
from sim.validation.simulators import errors as errors
from sim.validation.simulators import groups as groups
from sim.validation.simulators import onnxim_rows as onnxim_rows
from sim.validation.simulators import own_error as own_error
from sim.validation.simulators import read_rows as read_rows
from sim.validation.simulators import tpu_rows as tpu_rows

GPU_SETS = (
    "h200-operators", "h200-further", "h200-collectives", "h200-collectives-graph", "a100-operators",
    "a100-operators-held",
    "a100-gpt3-layer", "a100-allreduce", "mi210-operators", "mi210-operators-held",
)  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "validation.md"
PICTURES = ROOT / "docs" / "validation"
DRAWN = {
    "h200-further": "time", "h200-collectives-graph": "time", "a100-operators-held": "time",
    "mi210-operators-held": "time",
    "onnxim": "cycles", "tpuv3": "cycles",
}  # fmt: skip
"""Sets that the document shows a picture of, and the quantity."""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(str(cell) for cell in line)} |" for line in lines)


def _percent(value: float, sign: bool = False) -> str:
    return f"{100 * value:{'+' if sign else ''}.1f} %"


def onnxim_table() -> str:
    """Markdown: each GEMM of ONNXim."""
    head = (
        "cores x array", "M, N, K", "array cycles, ONNXim", "array cycles, here", "total, ONNXim", "total, here",
        "deviation of the total", "of peak bandwidth, here", "tile",
    )  # fmt: skip
    return _table(
        head,
        (
            (
                f"{row.cores} x {row.side}", f"{row.m}, {row.n}, {row.k}", row.published_array,
                f"{sum(row.array) / row.cores:.0f}", row.published_total, f"{row.total:.0f}",
                _percent(row.deviation, sign=True), _percent(row.bandwidth), row.tile,
            )
            for row in onnxim_rows()
        ),
    )  # fmt: skip


def tpu_table() -> str:
    """Markdown: each operator measured on the TPU v3, and the deviation of every simulator."""
    head = ("operator", "measured", "opcycle", "deviation", *SIMULATORS)
    return _table(
        head,
        (
            (
                row.workload, row.measured, f"{row.ours:.0f}", _percent(row.ours / row.measured - 1, sign=True),
                *(
                    _percent(row.others[name] / row.measured - 1, sign=True) if name in row.others else ""
                    for name in SIMULATORS
                ),
            )
            for row in tpu_rows()
        ),
    )  # fmt: skip


def error_table() -> str:
    """Markdown: mean absolute error by kind, ours in fp32 and bf16, and of every simulator."""
    head = ("kind", "rows", "opcycle", "opcycle, were tensors bf16", *SIMULATORS)
    half = groups(tpu_rows("bf16"))
    lines = []
    for kind, rows in groups(tpu_rows()).items():
        theirs = [errors(rows, name) for name in SIMULATORS]
        cells = [_percent(pair[1]) if pair else "" for pair in theirs]
        lines.append((kind, len(rows), _percent(own_error(rows)), _percent(own_error(half[kind])), *cells))
    return _table(head, lines)


def gpu_table() -> str:
    """Markdown: errors of each set of GPU operators and collectives, by kind."""
    lines = []
    for name in GPU_SETS:
        for found in by_kind(SETS[name].points()):
            peers = SETS[name].peers.get(found.kind, "")
            figures = (found.rows, _percent(found.mean), _percent(found.median), _percent(found.bias, sign=True))
            if found.kind == "all" or found.quantity == "time":
                lines.append((name, found.kind, found.quantity, *figures, peers))
    return _table(("set", "kind", "of", "rows", "mean", "median", "bias", "peers"), lines)


TABLES: dict[str, Callable[[], str]] = {
    "gpu": gpu_table, "onnxim": onnxim_table, "tpu": tpu_table, "errors": error_table,
}  # fmt: skip


def renewed(text: str) -> str:
    """`text` with the tables between its `<!-- NAME -->` and `<!-- end NAME -->` lines worked out anew."""
    for name, table in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        assert text.count(begin) == text.count(end) == 1, f"{DOCUMENT.name} needs one place for the table {name}"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}\n{table()}\n{end}{rest.partition(end)[2]}"
    return text


def draw_all() -> None:
    """Draw the document's pictures anew."""
    from analysis.validation import draw

    PICTURES.mkdir(exist_ok=True)
    for each in SETS.values():
        if each.name in DRAWN:
            points = [point for point in each.points() if point.quantity == DRAWN[each.name]]
            draw(points, each.name, PICTURES / each.name, "svg")


def main() -> None:
    """Print the tables, or put them and the pictures into the document."""
    parser = argparse.ArgumentParser(prog="python -m bench.validation", description=__doc__)
    what = f"renew the tables and pictures of {DOCUMENT.relative_to(ROOT)}"
    parser.add_argument("--write", action="store_true", help=what)
    if parser.parse_args().write:
        write_text(DOCUMENT, renewed(DOCUMENT.read_text(encoding="utf-8")))
        draw_all()
        return
    for name, table in TABLES.items():
        print(f"{name}\n\n{table()}\n")


if __name__ == "__main__":
    main()
