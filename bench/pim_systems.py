"""NPU alone, NPU+PIM blocked, with two row buffers, and interleaved: the NeuPIMs study's cases beside its claims.

`python -m bench.pim_systems [--models 7b,13b] [--write]` simulates one decode step of 256 requests (and of 512, of the
smallest model) on one device of each model's cut, and prints speedups, how busy each part is, and simulated memory
cycles per CPU second. `--write` renews the tables of docs/pim_systems.md.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from sim.engine import simulate
from sim.kinds import load_hardware
from workloads import load_workload

PAGE = Path(__file__).resolve().parent.parent / "docs" / "pim_systems.md"
MODELS = ("7b", "13b", "30b", "175b")
SETS = ("sharegpt", "alpaca")
BATCH, LARGE = 256, 512
SYSTEMS = {
    "NPU only": ("npu-hbm2", {}),
    "blocked": ("neupims-blocked", {}),
    "dual": ("neupims", {"pim.interleave": "never"}),
    "dual, interleaved": ("neupims", {"pim.interleave": "always"}),
}
CLAIMS = {"NPU only": 2.4, "blocked": 1.6}
"""How many times as fast as these NeuPIMs is on average, by its paper (models, data sets and batches together)."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One system on one workload. `cycles`: memory clocks of the step."""

    step_s: float
    npu: float
    pim: float | None
    bus: float
    cycles: int
    wall_s: float
    cpu_s: float


def measure(system: str, workload: str, batch: int) -> Measured:
    """Simulate a decode step, the mapper's search included; kernels are loaded already."""
    name, settings = SYSTEMS[system]
    machine = load_hardware(name, dict(settings))
    wall, cpu = time.perf_counter(), time.process_time()
    s = simulate(machine, load_workload(workload, batch=batch)).summary
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    pim = s["pim"]["utilization"] if s["pim"] else None
    cycles = int(s["time_s"] * machine.dram.clock)
    return Measured(s["time_s"], s["utilization"]["array"], pim, s["utilization"]["memory"], cycles, wall, cpu)


def rows(models: list[str]) -> tuple[list[str], dict[tuple[str, str, int], dict[str, Measured]]]:
    """The table's lines, and what was measured by (model, data set, requests) and system."""
    lines = [
        "| model, lengths, batch | system | step | speedup | NPU busy | PIM busy | bus busy | wall | Mcycles / CPU s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    found: dict[tuple[str, str, int], dict[str, Measured]] = {}
    cases = [(model, BATCH) for model in models] + [(model, LARGE) for model in models if model == MODELS[0]]
    for model, batch in cases:
        for lengths in SETS:
            workload = f"gpt3-{model}-decode-{lengths}"
            here = found[model, lengths, batch] = {system: measure(system, workload, batch) for system in SYSTEMS}
            for system, m in here.items():
                speedup = here["NPU only"].step_s / m.step_s
                pim = "" if m.pim is None else f"{m.pim:.0%}"
                cells = [
                    f"{model.upper()}, {lengths}, {batch}", system, f"{m.step_s * 1e3:.2f} ms", f"{speedup:.2f}x",
                    f"{m.npu:.0%}", pim, f"{m.bus:.0%}", f"{m.wall_s:.1f} s", f"{m.cycles / m.cpu_s / 1e6:.2f}",
                ]  # fmt: skip
                lines.append(f"| {' | '.join(cells)} |")
                print(lines[-1], flush=True)
    return lines, found


def claims(found: dict[tuple[str, str, int], dict[str, Measured]]) -> list[str]:
    """Average speedups of NeuPIMs, with or without halves as is faster, beside the paper's."""
    lines = []
    for system, claim in CLAIMS.items():
        gains = [
            here[system].step_s / min(here["dual"].step_s, here["dual, interleaved"].step_s) for here in found.values()
        ]
        lines.append(
            f"- over {system}: {statistics.mean(gains):.2f}x on average here ({min(gains):.2f} to {max(gains):.2f}), "
            f"{claim}x in the paper"
        )
    return lines


def main() -> int:
    """Print the tables; with --write also into the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    for name, settings in SYSTEMS.values():
        simulate(load_hardware(name, dict(settings)), load_workload("gpt3-7b-decode-alpaca", batch=2))
    lines, found = rows(asked.models.split(","))
    lines += ["", "NeuPIMs is as many times as fast:", "", *claims(found)]
    print("\n".join(lines[-4:]))
    if asked.write:
        text = PAGE.read_text(encoding="utf-8")
        before, _, rest = text.partition("<!-- systems -->\n")
        _, _, after = rest.partition("<!-- end systems -->")
        body = "\n".join(lines)
        PAGE.write_text(f"{before}<!-- systems -->\n{body}\n<!-- end systems -->{after}", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
