"""The command `validate`: errors against measurements and other simulators, by kind of operator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.printing import print_json, print_table, progress

if TYPE_CHECKING:
    from sim.validation.points import Errors, ValidationSet


def validate(
    names: Annotated[list[str] | None, typer.Argument(metavar="SET", help="Sets to run; none: all.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder for pictures, predicted against measured."),
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="Only name the sets.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare with measurements and other simulators; prints errors by kind of operator."""
    from sim.validation.points import by_kind
    from sim.validation.sets import chosen

    sets = chosen(names or [])
    if list_:
        if json:
            print_json([{"name": each.name, "description": each.description} for each in sets])
        else:
            print_table("validation sets", ["set", "what"], [(each.name, each.description) for each in sets])
        return
    results = []
    with progress() as show:
        for number, each in enumerate(sets):
            show(each.name, number, len(sets))
            results.append((each, each.points()))
        show("done", len(sets), len(sets))
    pictures: dict[str, list[str]] = {}
    if output is not None:
        from analysis.validation import draw

        output.mkdir(parents=True, exist_ok=True)
        for each, points in results:
            pictures[each.name] = [str(path) for path in draw(points, each.name, output / each.name)]
    if json:
        print_json({
            "schema": "opcycle/validation/1",
            "sets": [
                {
                    "name": each.name, "description": each.description, "rows": len(points), "peers": dict(each.peers),
                    "errors": [errors.plain() for errors in by_kind(points)], "pictures": pictures.get(each.name, []),
                }
                for each, points in results
            ],
        })  # fmt: skip
        return
    for each, points in results:
        _print(each, by_kind(points))
    for made in pictures.values():
        print("Pictures: " + ", ".join(made))


def _print(each: ValidationSet, found: list[Errors]) -> None:
    others = list(dict.fromkeys(name for errors in found for name in errors.others))
    head = ["kind", "of", "rows", "mean", "median", "p95", "bias", "worst row", *others, "peers"]
    rows: list[tuple[Any, ...]] = []
    for errors in found:
        worst = errors.worst[0]
        rows.append((
            errors.kind, errors.quantity, str(errors.rows), _percent(errors.mean), _percent(errors.median),
            _percent(errors.p95), _percent(errors.bias, "+"), f"{worst.name}: {_percent(worst.error, '+')}",
            *(_percent(errors.others[name]) if name in errors.others else "" for name in others),
            each.peers.get(errors.kind, ""),
        ))  # fmt: skip
    print_table(
        f"{each.name}: {each.description}", head, rows, right=["rows", "mean", "median", "p95", "bias", *others]
    )


def _percent(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f} %"
