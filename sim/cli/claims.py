"""The command `claims`: published figures against ours, with what each rests on."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import wrap
from typing import TYPE_CHECKING, Annotated

import typer

from sim.cli.printing import print_json, print_table, progress, say_if_kernels_are_new
from sim.cli.settings import place

if TYPE_CHECKING:
    from sim.claims.compute import Result
    from sim.claims.schema import Source

WIDTH = 110


def claims(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Claims, methods, or YAML files of claims; none: all.")
    ] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="DIR", help="Folder for the table and a picture.")
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Only name the claims.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON list and nothing else.")] = False,
) -> None:
    """Compute published claims on the nearest machines: claim, ours, ratio, why they differ, what is assumed."""
    from sim.claims.compute import compute
    from sim.claims.schema import chosen
    from sim.output import check_target

    sources = chosen(ids or [])
    if list_:
        _list(sources, json)
        return
    target = None if output is None else place(output)
    if target is not None:
        check_target(target)
    say_if_kernels_are_new("machine.run")
    with progress() as show:
        results = list(compute(sources, show))
        show("done", len(sources), len(sources))
    if target is not None:
        from sim.claims.output import write

        write(results, target)
    if json:
        print_json([result.plain() for result in results])
        return
    _print(results)
    if target is not None:
        print(f"Results in {target}/: claims.csv, claims.json; picture: {target / 'claims.png'}")


def _list(sources: Sequence[Source], json: bool) -> None:
    if json:
        print_json([{"name": s.claim.id, "paper": s.paper.title, "claim": s.claim.claim} for s in sources])
        return
    rows = [(s.claim.id, s.claim.claim, s.paper.title) for s in sources]
    print_table("Claims", ["name", "claim", "paper"], rows)


def _print(results: Sequence[Result]) -> None:
    from sim.claims.words import claimed, figure, machines

    head = ["name", "claim", "claimed", "ours", "ratio", "on"]
    rows = []
    for each in results:
        c = each.source.claim
        rows.append([
            c.id, c.claim, claimed(c), figure(each.ours, c.unit), f"{each.ratio:.2f}",
            machines(each.source),
        ])  # fmt: skip
    print_table("Published claims and ours; ratio: ours over claimed", head, rows, right=["claimed", "ours", "ratio"])
    for each in results:
        told = each.plain()
        year = f" ({told['year']})" if told["year"] else ""
        print(f"{told['id']}: {told['paper']}{year}")
        for label, text in (
            ("Paper", f"{told['claim']}; {told['setting']}"),
            ("Here", told["here"]),
            ("Differs" if each.differs else "Agrees", told["sentence"]),
            ("Assumed", "; ".join(told["assumed"]) or "nothing"),
        ):
            print("\n".join(wrap(f"{label}: {text}", WIDTH, initial_indent="  ", subsequent_indent="    ")))
        if len(results) <= 3:
            for name, line in told["commands"].items():
                print(f"  Run {name}: {line}")
        print()
