"""What whole models and start-up cost, each beside its bar and a baseline from the same run: `python -m bench.spine`.

The baseline of a simulation is itself with the exact savings switched off (all channels simulated, no steady-state
shortcut), on the same or a smaller case with tilings already known; the results of both must be equal.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, replace
from functools import partial

from rich.console import Console
from rich.table import Table

from bench._measure import best, command, equal, peak_bytes
from bench.validation import read_rows
from sim.engine import Engine, simulate
from sim.hardware import Hardware
from sim.kinds import load_hardware
from workloads import load_workload
from workloads import single as operators
from workloads.trace import Pass

OPCYCLE = (sys.executable, "-c", "from sim.cli import main; main()")
SMALL = ("simulate", "npu-hbm2", "bert-large-encode", "--set", "workload.batch=1", "--set", "workload.prompt=128")
GEMV = (1, 4096, 4096)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: what was measured, its bar, the baseline and how many times as much that took."""

    what: str
    measured: str
    bar: str
    within: bool
    baseline: str
    ratio: float | None = None
    peers: str = ""


@dataclass(frozen=True, slots=True)
class Proof:
    """A case with the savings on and off: wall times of the executor's part, and which savings changed the result."""

    case: str
    on_s: float
    off_s: float
    changed_by: tuple[str, ...]

    @property
    def text(self) -> str:
        return f"{self.case}, savings off {self.off_s:.2f} s, on {self.on_s:.3f} s"


def proof(case: str, machine: Hardware, work: Pass) -> Proof:
    """Run `work` with all savings, without the steady-state shortcut, then without symmetry too; tilings are known."""
    engine = Engine(machine, reuse=False)
    engine.run(work)
    on_s, on = best(lambda: engine.run(work), 3)
    engine.steady = False
    stepped = engine.run(work)
    engine.symmetry = False
    off_s, off = best(lambda: engine.run(work), 1)
    pairs = {"steady state": (on, stepped), "symmetry": (stepped, off)}
    return Proof(case, on_s, off_s, tuple(name for name, pair in pairs.items() if not equal(*pair)))


def short(work: Pass, layers: int) -> Pass:
    """The pass with at most `layers` repetitions of each block."""
    return replace(work, blocks=tuple(replace(block, repeat=min(block.repeat, layers)) for block in work.blocks))


def warm_up(*machines: Hardware) -> None:
    """Load the compiled kernels: a small product on each machine."""
    for machine in machines:
        Engine(machine).run(operators.gemm(64, 64, 64, "fp16"))


def models(npu: Hardware) -> tuple[list[Row], list[Proof]]:
    """The decode step, the prefill. The first to be measured, so that the peak memory is theirs."""
    rows, proofs = [], []
    decode = load_workload("gpt3-13b-decode", batch=64, context=1024)
    seconds, report = best(partial(simulate, npu, decode), 2)
    held = peak_bytes()
    works = {"GPT-3 13B decode": decode.trace().passes[0]}
    assert sum(block.repeat for block in works["GPT-3 13B decode"].blocks) >= 40
    prefill = load_workload("llama3-8b-prefill", prompt=2048)
    prefill_s, _ = best(partial(simulate, npu, prefill), 2)
    works["Llama 3 8B prefill"] = prefill.trace().passes[0]
    for name, work in works.items():
        proofs.append(proof(f"{name}, 1 layer", npu, short(work, 1)))
    slow = "ONNXim: about 380 CPU-s for the weights of one GPT-3 6.7B layer, at its rate"
    rows.append(_timed(f"GPT-3 13B decode, batch 64, context 1024, 40 layers ({report.summary['time_s'] * 1e3:.1f} ms)",
                       seconds, 5.0, proofs[0], slow))  # fmt: skip
    rows.append(Row("the same: peak memory of the process", f"{held / 1e6:.0f} MB", "< 1000 MB", held < 1e9, ""))
    slow = "SCALE-Sim: about 10,000 CPU-s for the largest GEMM of a 512-token prefill of GPT-3 6.7B, by its rate"
    rows.append(_timed("Llama 3 8B prefill, 2048 tokens, 32 layers", prefill_s, 5.0, proofs[1], slow))
    return rows, proofs


def gemv(machine: Hardware) -> tuple[Row, Proof]:
    """A matrix times a vector with DRAM, the mapper's search included."""
    work = operators.gemm(*GEMV, "fp16")
    seconds, _ = best(lambda: Engine(machine).run(work), 5)
    shown = proof("the same without search", machine, work)
    wanted = tuple(map(str, GEMV))
    theirs = next(r for r in read_rows("onnxim.csv") if (r["M"], r["N"], r["K"]) == wanted and "x4" not in r["array"])
    peers = f"ONNXim {float(theirs['cpu_s']):.0f} CPU-s, SCALE-Sim 107 CPU-s, ZigZag's mapper 3.6 s"
    return _timed("GEMV 1 x 4096 x 4096, one 128x128 array, DRAM, mapper included", seconds, 0.1, shown, peers), shown


def start_up() -> list[Row]:
    """The command line as a user waits for it."""
    bare = command([sys.executable, "-c", "pass"])
    arrays = command([sys.executable, "-c", "import numpy, numba"])
    seconds = command([*OPCYCLE, "--help"])
    help_row = Row(
        "opcycle --help", f"{seconds:.2f} s", "< 0.5 s", seconds < 0.5, f"a bare interpreter {bare:.3f} s",
        bare / seconds,
    )  # fmt: skip
    seconds = command([*OPCYCLE, *SMALL])
    return [
        help_row,
        Row(
            "opcycle simulate, BERT-large, 128 tokens", f"{seconds:.2f} s", "< 3 s", seconds < 3,
            f"importing numpy and numba {arrays:.2f} s", arrays / seconds,
        ),
    ]  # fmt: skip


def _timed(what: str, seconds: float, bar: float, shown: Proof, peers: str) -> Row:
    measured = f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"
    return Row(what, measured, f"< {bar:g} s", seconds < bar, shown.text, shown.off_s / shown.on_s, peers)


def main() -> int:
    """Print the table; 0 if all results are equal with the savings on and off, 1 if not. Times are only shown."""
    began = time.perf_counter()
    npu, alone = load_hardware("npu-hbm2"), load_hardware("ws128-onnxim")
    warm_up(npu, alone)
    rows, proofs = models(npu)
    row, shown = gemv(alone)
    rows.append(row)
    proofs.append(replace(shown, case="GEMV"))
    rows.extend(start_up())

    table = Table(title="opcycle: cost of the spine", show_lines=True)
    for head in ("what", "measured", "bar", "within", "baseline, this run", "baseline / measured", "peers, published"):
        table.add_column(head, justify="right" if head in ("measured", "bar", "baseline / measured") else "left")
    for each in rows:
        ratio = f"{each.ratio:.2g} x" if each.ratio is not None else ""
        table.add_row(
            each.what, each.measured, each.bar, "yes" if each.within else "NO", each.baseline, ratio, each.peers
        )
    console = Console(width=None if sys.stdout.isatty() else 170)
    console.print(table)
    results = (f"{p.case} {'CHANGED by ' + ' and '.join(p.changed_by) if p.changed_by else 'equal'}" for p in proofs)
    console.print(f"Times of all tasks and counts of the memory with the savings on and off: {', '.join(results)}")
    console.print(f"Whole bench: {time.perf_counter() - began:.0f} s")
    return 1 if any(each.changed_by for each in proofs) else 0


if __name__ == "__main__":
    sys.exit(main())
