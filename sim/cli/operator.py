"""The command `unit operator`: one operator on any machine, or a table of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sim.cli.printing import print_json, print_table, progress
from sim.errors import ConfigError


def operator(
    hardware: Annotated[str, typer.Argument(metavar="HWCONFIG", help="A machine that ships, or a YAML file.")],
    kind: Annotated[str | None, typer.Argument(metavar="KIND", help="gemm, attention, softmax, layer ...")] = None,
    sizes: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Sizes: M=256 N=4096 K=4096 dtype=bf16.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="FILE.csv", help="A table: columns op, dtype, shape (JSON), note.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="OUT.csv", help="The table with times added.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Replace a value of the machine: hw.power.cap='500 W'.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run one operator on a machine: its time cold and in a burst, sustained, its power and what bounds it."""
    from sim.cli.settings import settings
    from sim.kinds import load_hardware
    from sim.operators.measure import Operators, answer_table, read_table, table_text
    from sim.operators.request import make_request
    from sim.output import write_text

    if (kind is None) == (source is None):
        raise ConfigError("give either an operator's KIND with its sizes, or a table with --from FILE.csv")
    if (source is None) != (output is None):
        raise ConfigError("--from FILE.csv and -o OUT.csv go together")
    overrides = settings(set_ or [], ("hw",))["hw"]
    if source is not None and output is not None:
        columns, rows = read_table(source)
        machine = load_hardware(hardware, overrides)
        with progress() as show:
            answers = answer_table(machine, rows, show)
        write_text(output, table_text(columns, answers))
        done = sum(1 for row in answers if not row["reason"])
        told = {"rows": len(rows), "answered": done, "refused": len(rows) - done, "output": str(output)}
        if json:
            print_json(told)
        else:
            print(f"{done} of {len(rows)} rows answered: {output}")
        return
    assert kind is not None
    request = make_request(kind, _pairs(sizes or []))
    machine = load_hardware(hardware, overrides)
    asked = {"hardware": machine.name, "operator": kind, "dtype": request.format}
    answer = {**asked, **Operators(machine).measure(request)}
    if json:
        print_json(answer)
        return
    rows_ = [(key, _shown(value)) for key, value in answer.items() if key != "decisions"]
    rows_ += [(f"chosen {key}", str(value)) for key, value in answer["decisions"].items()]
    print_table(f"{kind} {' '.join(sizes or [])} on {machine.name}", ["quantity", "value"], rows_, right=["value"])


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _pairs(sizes: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in sizes:
        key, equals, value = text.partition("=")
        if not equals or not key or not value:
            raise ConfigError(f"{text!r} must be written KEY=VALUE, as in M=256")
        if key in found:
            raise ConfigError(f"{key} is given twice")
        found[key] = value
    return found
