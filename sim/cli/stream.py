"""The command `unit stream`: a streaming graph from a file, or an attention graph, token by token."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sim.cli.printing import print_json, print_table, say_if_kernels_are_new
from sim.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sim.stream.schema import Graph


class Variant(StrEnum):
    """Which attention graph."""

    naive = "naive"
    max_subtracted = "max_subtracted"
    reordered = "reordered"
    no_max = "no_max"
    memory_free = "memory_free"


class Size(StrEnum):
    """What capacities are worked out for."""

    throughput = "throughput"
    live = "live"


def stream(
    graph: Annotated[
        str | None, typer.Argument(help="A YAML file of nodes and channels, or a name that ships.")
    ] = None,
    attention: Annotated[
        Variant | None, typer.Option(help="Instead of a file: the attention graph of this kind.")
    ] = None,
    n: Annotated[int, typer.Option(help="Queries; keys too, without --keys.", min=1, max=2**20)] = 64,
    keys: Annotated[int | None, typer.Option(help="Keys and values.", min=1, max=2**20)] = None,
    d: Annotated[int, typer.Option(help="Length of a query, key and value.", min=1, max=2**20)] = 64,
    mask: Annotated[str, typer.Option(help="full, causal, window:KEYS or block:SIZE:DENSITY[:SEED].")] = "full",
    heads: Annotated[int, typer.Option(help="Query heads.", min=1, max=4096)] = 1,
    kv_heads: Annotated[int | None, typer.Option(help="Key-value heads; default: as many as heads.", min=1)] = None,
    lanes: Annotated[int, typer.Option(help="Copies of the graph that the heads are spread over.", min=1)] = 1,
    short: Annotated[str | None, typer.Option(help="Capacity of the short channels: a number, inf or auto.")] = None,
    long: Annotated[str | None, typer.Option(help="Capacity of the long channels, likewise.")] = None,
    latency: Annotated[list[str] | None, typer.Option(help="Latency of a compute node: exp=5.")] = None,
    ii: Annotated[list[str] | None, typer.Option(help="Initiation interval of a compute node: qk=2.")] = None,
    multipliers: Annotated[int | None, typer.Option(help="Multipliers of a dot product; default: d.", min=1)] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="Replace a value: channels.s.capacity=4.")] = None,
    size: Annotated[
        Size | None, typer.Option(help="Work out the capacity of every channel: full throughput, or no deadlock.")
    ] = None,
    critical: Annotated[bool, typer.Option("--critical", help="Find the loop that limits the throughput.")] = False,
    values: Annotated[bool, typer.Option("--values", help="Execute on random data, against numpy.")] = False,
    seed: Annotated[int, typer.Option(help="Of the random data.", min=0)] = 0,
    steady: Annotated[bool, typer.Option(help="Advance periodic stretches in closed form.")] = True,
    write: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the graph as YAML.")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", "--plot", metavar="DIR", help="Folder for tables, a dot file, pictures."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Run a graph of pipelined nodes joined by bounded channels; find deadlocks, capacities and the critical loop."""
    from sim.cli.settings import settings
    from sim.stream.unit import Job, run_attention, run_file

    if graph is None and attention is None:
        raise ConfigError("unit stream: needs a GRAPH or --attention")
    if graph is not None and attention is not None:
        raise ConfigError(f"unit stream: takes GRAPH ({graph}) or --attention ({attention.value}), not both")
    job = Job(
        size=None if size is None else size.value, critical=critical, values=values, seed=seed, steady=steady,
        write=write, output=output, before=_announce, overrides=settings(set_ or [], ("",))[""],
    )  # fmt: skip
    if graph is not None:
        result = run_file(graph, job)
    else:
        from sim.stream.attention import Attention
        from sim.stream.masks import read_mask

        assert attention is not None
        spec = Attention(
            variant=attention.value, d=d, mask=_told("--mask", lambda: read_mask(mask, n, keys or n)),
            short=_capacity("--short", short), long=_capacity("--long", long), latency=_numbers("--latency", latency),
            ii=_numbers("--ii", ii), multipliers=multipliers, heads=heads, kv_heads=kv_heads, lanes=lanes,
        )  # fmt: skip
        result = run_attention(spec, job)
    if json:
        print_json(result)
        return
    _print(result, output)


def _announce(graph: Graph) -> None:
    say_if_kernels_are_new("stream.run*" if graph.memory is None else "stream_dram.run_with_memory*")


def _told(option: str, read: Callable[[], Any]) -> Any:
    try:
        return read()
    except ConfigError as error:
        raise ConfigError(f"{option} {error.message}") from None


def _capacity(option: str, text: str | None) -> int | str | None:
    if text is None or text in ("inf", "auto"):
        return text
    if not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"{option} is {text!r}, but must be a whole number of at least 1, inf or auto")
    return int(text)


def _numbers(option: str, given: Sequence[str] | None) -> dict[str, int]:
    found = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals or not value.isdecimal():
            raise ConfigError(f"{option} {text!r} must be written NODE=CYCLES")
        found[name] = int(value)
    return found


def _print(result: dict[str, Any], output: Path | None) -> None:
    cycles = f"{result['cycles']:,} cycles"
    if result["deadlock"]:
        print(f"\n{result['graph']}: deadlock at {cycles}")
        print(f"  {result['explanation']['sentence']}")
        rows = [(w["node"], w["channel"], w["state"], f"{w['occupancy']:,}", f"{w['time']:,}") for w in result["waits"]]
        heads = ["node", "on channel", "which is", "tokens", "at cycle"]
        print_table("Who waits", heads, rows, right=heads[3:])
    else:
        wall_s = result["wall_s"]
        rate = result["events"] / wall_s / 1e6 if wall_s else 0.0
        events = f"{result['events']:,} channel events in {wall_s:.3g} s ({rate:,.0f} M/s)"
        print(f"\n{result['graph']}: {cycles}, {events}")
    found = result.get("capacities", {})
    columns = ["channel", "most in flight", *(["capacity worked out"] if found else [])]
    rows = [
        (name, f"{peak:,}", *([f"{found[name]:,}" if name in found else "-"] if found else []))
        for name, peak in result["peak_in_flight"].items()
    ]
    print_table("", columns, rows, right=columns[1:])
    print_table("", ["node", "firings"], [(name, f"{n:,}") for name, n in result["fires"].items()], right=["firings"])
    if result.get("critical"):
        print(f"Critical loop: {result['critical']['sentence']}")
    if "max_abs_error" in result and result["max_abs_error"] is not None:
        print(f"Largest error against numpy in float64: {result['max_abs_error']:.2e}")
    if "memory" in result:
        m = result["memory"]
        rows_hit = f"{m['row_hits']:,} row hits, {m['row_misses']:,} misses, {m['row_conflicts']:,} conflicts"
        print(f"{m['standard']}: {m['bytes_read']:,} B read, {m['bytes_written']:,} B written, {rows_hit}")
    if output is not None:
        names = sorted(path.name for path in output.iterdir() if not path.name.startswith("."))
        print(f"Results in {output}/: {', '.join(names)}")
