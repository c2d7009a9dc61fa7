"""The commands that simulate and that read results back: `simulate`, `trace`, `compare` and `plot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.printing import binary_size, engineering, print_json, print_table, progress, say, say_if_kernels_are_new
from sim.cli.settings import place
from sim.errors import ConfigError, not_among
from sim.kinds import EXACT, FIDELITIES, SAMPLED

if TYPE_CHECKING:
    from sim.result import Report

Set = Annotated[
    list[str] | None, typer.Option("--set", help="Replace a value: hw.memory.channels=16, workload.batch=8.")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else on standard output.")]
TOP = 12
"""How many operators the table of a run shows."""


def simulate(
    hardware: Annotated[str, typer.Argument(metavar="HWCONFIG", help="A machine that ships, or a YAML file.")],
    workload: Annotated[
        str, typer.Argument(metavar="WORKLOAD", help="A workload that ships, a YAML file, a trace, or an ONNX file.")
    ],
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="DIR", help="Folder for tables, timeline, pictures.")
    ] = None,
    set_: Set = None,
    html: Annotated[bool, typer.Option("--html", help="Add a page, DIR/report.html, that holds everything.")] = False,
    fidelity: Annotated[
        str, typer.Option(help="exact, or sampled: layers and channels that are alike stand for each other.")
    ] = EXACT,
    json: Json = False,
) -> None:
    """Simulate a workload on a machine."""
    from sim.cli.settings import settings
    from sim.energy_tables import load_table
    from sim.kinds import load_hardware
    from sim.machine import OWN_TABLE
    from sim.output import check_target
    from workloads import load_workload

    if fidelity not in FIDELITIES:
        raise ConfigError(not_among("--fidelity", fidelity, FIDELITIES))
    overrides = settings(set_ or [], ("hw", "workload"))
    if html and output is None:
        raise ConfigError("--html writes a page into the folder of -o, but there is no -o")
    target = None if output is None else place(output)
    if target is not None:
        check_target(target)
    machine = load_hardware(hardware, overrides["hw"])
    work = load_workload(workload, overrides["workload"])
    say(work.notes)

    # Energy is worked out after the run; a table that does not exist is better told before.
    if machine.energy.table != OWN_TABLE:
        load_table(machine.energy.table)

    from sim.engine import simulate as run

    with progress() as show:

        def step(what: str, done: int, total: int) -> None:
            # The first step comes when the input has proved right, so that wrong input is told alone.
            if done == 0:
                say_if_kernels_are_new("machine.run")
            show(what, done, total)

        report = run(machine, work, progress=step, fidelity=fidelity)
    if target is not None:
        report.write(target, page=html)
    if json:
        print_json(report.summary)
        return
    _print_summary(report.summary)
    _print_operators(report)
    if target is not None:
        names = sorted(path.name for path in target.iterdir() if not path.name.startswith("."))
        print(f"Results in {target}/: {', '.join(n for n in names if not n.endswith('.png'))}")
        print(f"Pictures: {', '.join(str(target / n) for n in names if n.endswith('.png'))}")


def trace(
    workload: Annotated[str, typer.Argument(metavar="WORKLOAD", help="A workload that ships, a YAML or an ONNX file.")],
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FILE", help="File to write; `simulate` reads it back.")
    ],
    set_: Annotated[list[str] | None, typer.Option("--set", help="Replace a value: workload.batch=8.")] = None,
    json: Json = False,
) -> None:
    """Write the operators of a workload to a file, simulating nothing."""
    from sim.cli.settings import settings
    from sim.output import make_parent
    from workloads import load_workload, write_trace

    target = place(output)
    loaded = load_workload(workload, settings(set_ or [], ("workload",))["workload"])
    say(loaded.notes)
    built = loaded.trace()
    make_parent(target)
    write_trace(built, target)
    facts = {
        "file": str(target),
        "workload": loaded.name,
        "model": built.model,
        "passes": sum(each.repeat for each in built.passes),
        "tokens": built.tokens,
        "flops": built.flops,
        "read_bytes": built.read_bytes,
        "write_bytes": built.write_bytes,
        "weight_bytes": built.weight_bytes,
        "kv_bytes": built.kv_bytes,
    }
    if json:
        print_json(facts)
        return
    print(
        f"{loaded.name}: {facts['passes']} passes, {engineering(built.flops, 'FLOP')}, weights "
        f"{binary_size(built.weight_bytes)}, KV cache {binary_size(built.kv_bytes)}; written to {target}"
    )


def plot(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A result folder of any command.")],
    formats: Annotated[
        list[str] | None, typer.Option("--format", metavar="png|svg|pdf", help="May be given several times.")
    ] = None,
) -> None:
    """Draw the pictures again from stored results, as vectors for a paper too."""
    from analysis.figures import draw_all
    from analysis.style import FORMATS

    for name in formats or ():
        if name not in FORMATS:
            raise ConfigError(f"--format: {not_among('format', name, FORMATS)}")
    drawn = draw_all(folder, formats or ("png",))
    print(f"Drawn: {', '.join(str(path) for path in drawn)}")


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR DIR...", help="Result folders of `simulate`.")],
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="DIR", help="Folder for the tables and pictures.")
    ] = None,
    json: Json = False,
) -> None:
    """Put systems side by side: speedup, how busy their parts are, time and energy, both also by kind of operator."""
    from analysis.compare import column_names, compare_rows
    from analysis.systems import PARTS, system_rows, systems_figure

    rows, systems = compare_rows(folders), system_rows(folders)
    target = None if output is None else place(output)
    if target is not None:
        from analysis.bars import utilisation_figure
        from analysis.hierarchy import hierarchical_roofline
        from analysis.style import save
        from sim.output import result_folder
        from sim.result import csv_text

        with result_folder(target) as filled:
            for name, table in (("systems", systems), ("compare", rows)):
                columns: dict[str, list[object]] = {key: [row[key] for row in table] for key in table[0]}
                (filled / f"{name}.csv").write_text(csv_text(columns), encoding="utf-8")
            pictures = {
                "systems": systems_figure(systems),
                "roofline": hierarchical_roofline(folders),
                "utilisation": utilisation_figure(folders),
            }
            for name, drawn in pictures.items():
                for ending in ("png", "svg"):
                    save(drawn, filled / f"{name}.{ending}")
    if json:
        print_json({"folders": [str(folder) for folder in folders], "systems": systems, "rows": rows})
        return
    _print_systems(systems, {key: name for key, (name, _) in PARTS.items()})
    names = column_names(folders)
    ratios = [f"{name} / {names[0]}" for name in names[1:]]
    lines = [
        [row["kind"] or "all", row["quantity"]]
        + [_quantity(str(row["quantity"]), row[name]) for name in names]
        + ["-" if row[ratio] is None else f"{row[ratio]:.3f}" for ratio in ratios]
        for row in rows
    ]
    heads = ["ratio"] if len(ratios) == 1 else [f"{name}, ratio" for name in names[1:]]
    print_table("", ["", "quantity", *names, *heads], lines, right=[*names, *heads])
    if target is not None:
        print(f"Tables and pictures in {target}/")


def _print_systems(systems: Sequence[Mapping[str, Any]], shares: Mapping[str, str]) -> None:
    """A row a system: the first is what the others are compared with; `shares`: keys of shares, and their names."""
    told = {key: name for key, name in shares.items() if any(row[key] is not None for row in systems)}
    heads = ["system", "hardware", "latency", "tokens/s", "speedup", "J/token", *told.values()]
    table = [
        [
            row["system"],
            row["hardware"],
            f"{engineering(row['latency_s'], 's')} a {row['latency_of']}",
            engineering(row["tokens_per_s"], ""),
            "-" if row["speedup"] is None else f"{row['speedup']:.2f}x",
            engineering(row["energy_per_token_j"], "J"),
            *("-" if row[key] is None else f"{row[key]:.1%}" for key in told),
        ]
        for row in systems
    ]
    print_table("Systems", heads, table, right=heads[2:])


def _quantity(key: str, value: Any) -> str:
    """A value of a summary with the unit that its key names."""
    if value is None:
        return "-"
    if key.endswith("utilization"):
        return f"{value:.1%}"
    if key.endswith("_bytes"):
        return binary_size(value)
    units = {"tokens_per_s": "tokens/s", "flops": "FLOP", "power_w": "W"}
    ends = {"_s": "s", "_j": "J"}
    return engineering(value, units.get(key) or ends.get(key[-2:], ""))


def _print_summary(summary: dict[str, Any]) -> None:
    roof, most = summary["roofline"], summary["busiest_unit"]
    busy = sorted(summary["utilization"].items(), key=lambda item: -item[1])
    rows = [
        ("time", engineering(summary["time_s"], "s")),
        ("per step", engineering(summary["time_per_step_s"], "s")),
        ("time to first token", engineering(summary["ttft_s"], "s")),
        ("time per output token", engineering(summary["tpot_s"], "s")),
        ("tokens", f"{summary['tokens']:,} ({engineering(summary['tokens_per_s'], 'tokens/s')})"),
        ("energy", f"{engineering(summary['energy_j'], 'J')} ({engineering(summary['power_w'], 'W')})"),
        (
            "arithmetic",
            f"{engineering(summary['flops'], 'FLOP')} at {engineering(roof['achieved_flops_per_s'], 'FLOP/s')}",
        ),
        ("DRAM traffic", binary_size(summary["dram_bytes"])),
        ("in memory", _in_memory(summary.get("pim"))),
        ("zeros", _zeros(summary["sparsity"])),
        ("roofline", f"{roof['intensity_flop_per_byte'] or 0:.3g} FLOP/B, {roof['bound']} bound"),
        ("busiest unit", f"{most} {summary['utilization'][most]:.0%}" if most else "-"),
        ("utilization", ", ".join(f"{unit} {share:.1%}" for unit, share in busy)),
        ("area and cost", _silicon(summary)),
        ("simulated in", f"{summary['wall_s']:.2f} s{', sampled' if summary['fidelity'] == SAMPLED else ''}"),
    ]
    rows = [row for row in rows if row[1] != "-"]
    print_table(f"{summary['workload']} on {summary['hardware']}", ["", "value"], rows)


def _silicon(summary: dict[str, Any]) -> str:
    area, cost = summary["area_mm2"], summary["cost_usd"]
    parts = [] if area is None else [f"{area:,.0f} mm²"]
    return ", ".join([*parts, *([] if cost is None else [f"{cost:,.0f} USD"])]) + " (first order)" if parts else "-"


def _in_memory(found: dict[str, Any] | None) -> str:
    """Which operators units in the memory computed, and how far these were used."""
    if found is None:
        return "-"
    if not found["operators"]:
        return "nothing; decision_unit in the table of operators says why"
    turns = ", two halves of the batch in turn" if found["interleaved"] else ""
    used = f"units busy {found['utilization']:.1%}, {found['mac_utilization']:.1%} of their peak"
    return f"{', '.join(found['operators'])}; {used}{turns}"


def _zeros(found: dict[str, Any] | None) -> str:
    """What zeros came to: the part of the products that they left, and where the run's time is."""
    if found is None:
        return "-"
    share = found["executed_macs"] / found["dense_macs"]
    times = found["time_s"]
    whole = sum(times.values()) or 1.0
    where = ", ".join(f"{name.replace('_', ' ')} {value / whole:.0%}" for name, value in times.items())
    return (
        f"{share:.1%} of the products of {found['operators']} operators are done ({1 / found['ideal_speedup']:.1%} "
        f"useful), {binary_size(found['left_out_bytes'])} not stored for {binary_size(found['metadata_bytes'])} of "
        f"metadata; time: {where}"
    )


def _print_operators(report: Report) -> None:
    """The operators that take longest, each with its share of the sum of operator times (operators may overlap)."""
    columns = report.operator_columns
    table: list[dict[str, Any]] = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    whole = sum(row["time_s"] for row in table) or 1.0
    longest = sorted(table, key=lambda row: -row["time_s"])[:TOP]
    several = len({row["pass"] for row in table}) > 1
    heads = ["operator", "count", "time", "share", "FLOP/s", "DRAM", "FLOP/B", "bound", "energy"]
    rows = [
        [
            f"{row['pass']} {row['operator']}" if several else row["operator"],
            f"{row['count']:,}",
            engineering(row["time_s"], "s"),
            f"{row['time_s'] / whole:.1%}",
            engineering(row["achieved_flops_per_s"], ""),
            binary_size(row["dram_bytes"]),
            "-" if row["intensity_flop_per_byte"] is None else f"{row['intensity_flop_per_byte']:.3g}",
            row["bound"],
            engineering(row["energy_j"], "J"),
        ]
        for row in longest
    ]
    title = f"The {len(rows)} longest of {len(table)} operators" if len(rows) < len(table) else "Operators"
    print_table(title, heads, rows, right=[head for head in heads if head not in ("operator", "bound")])
