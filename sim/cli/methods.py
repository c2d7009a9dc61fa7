"""How `opcycle list methods` shows presets: by family, searched for a text, or one of them on a screen."""

from __future__ import annotations

from textwrap import wrap
from typing import Any

from sim.cli.printing import print_json, print_table
from sim.errors import ConfigError, nearest, show

WIDTH = 100


def method_rows() -> list[dict[str, Any]]:
    """One row a preset, family by family."""
    from workloads.methods import FAMILIES, load_method, method_names

    presets = [load_method(name).method for name in method_names()]
    order = list(FAMILIES)
    return [
        {
            "name": m.name,
            "family": m.family,
            "year": m.paper.year,
            "phases": " ".join(m.phases),
            "primitives": " ".join(dict.fromkeys(entry.name for entry in m.primitives)),
            "description": m.paper.title,
        }
        for m in sorted(presets, key=lambda m: (order.index(m.family), m.name))
    ]


def show_methods(text: str, json: bool) -> None:
    """Explain the preset of that name; else list those in which the text occurs. Raises ConfigError for none."""
    from workloads.methods import load_method, method_names

    if text in method_names() or text.endswith((".yaml", ".yml")):
        _explain(text, json)
        return
    words = text.casefold().split()
    found = []
    for row in method_rows():
        method = load_method(row["name"]).method
        whole = " ".join((*map(str, row.values()), method.claim, method.setting, method.notes)).casefold()
        if all(word in whole for word in words):
            found.append(row)
    if not found:
        near = nearest(text, method_names())
        raise ConfigError(
            f"no method is called {text!r}, and none mentions it"
            + (f"; nearest is {near!r}" if near else "; `opcycle list methods` shows all")
        )
    if json:
        print_json(found)
        return
    print_methods(found)


def print_methods(rows: list[dict[str, Any]]) -> None:
    """The table of presets, under a line for each family."""
    from workloads.methods import FAMILIES

    for family in dict.fromkeys(row["family"] for row in rows):
        table = [
            [row["name"], str(row["year"] or "-"), row["primitives"], row["description"]]
            for row in rows
            if row["family"] == family
        ]
        print_table(FAMILIES[family], ["name", "year", "primitives", "paper"], table)


def _explain(name: str, json: bool) -> None:
    from workloads.methods import FAMILIES, load_method
    from workloads.transforms.registry import PRIMITIVES

    preset = load_method(name)
    method, document = preset.method, preset.document
    if json:
        parameters = [{"key": p.key, "value": p.value, "origin": p.origin, "words": p.words} for p in preset.parameters]
        print_json([{"name": method.name, "file": str(document.path), "data": document.data, "parameters": parameters}])
        return
    paper = method.paper
    source = ", ".join(str(part) for part in (f"arXiv {paper.arxiv}" if paper.arxiv else None, paper.year) if part)
    print(f"{method.name}: {paper.title}" + (f" ({source})" if source else ""))
    print(f"{FAMILIES[method.family]}; for {', '.join(method.phases)}")
    for label, text in (("Claim", method.claim), ("Setting", method.setting), ("Model", method.notes)):
        if text:
            print()
            print("\n".join(wrap(f"{label}: {text}", WIDTH, subsequent_indent="  ")))
    print()
    known = {p.key: p for p in preset.parameters}
    rows: list[list[str]] = []

    def walk(value: Any, key: str, shown: str) -> None:
        if isinstance(value, dict):
            for inner, item in value.items():
                walk(item, f"{key}.{inner}", f"{shown}.{inner}")
            return
        parameter = known.get(key)
        origin = "" if parameter is None else f"{parameter.origin}{': ' + parameter.words if parameter.words else ''}"
        rows.append([shown, value if isinstance(value, str) else show(value), origin])

    for number, entry in enumerate(document.data["primitives"]):
        (primitive,) = entry
        for inner, item in entry[primitive].items():
            walk(item, f"primitives.{number}.{primitive}.{inner}", f"{primitive}.{inner}")
    print_table("", ["parameter", "value", "who says so"], rows)
    for primitive in dict.fromkeys(next(iter(entry)) for entry in document.data["primitives"]):
        print("\n".join(wrap(f"{primitive}: {PRIMITIVES[primitive].summary}", WIDTH, subsequent_indent="  ")))
    print(f"File: {document.path}. Change a parameter: --set workload.methods.{method.name}.{rows[0][0]}=...")
