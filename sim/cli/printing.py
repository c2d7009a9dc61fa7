"""Prints for people and for programs: tables and progress, or one JSON value on standard output and nothing else."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console

PLAIN_WIDTH = 132
"""Columns to use where standard output is no terminal."""

COMPILING = "compiling the kernels, once for this version (one to two minutes) ..."

_PREFIXES = (
    *((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")),
    *((1.0, ""), (1e-3, "m"), (1e-6, "u"), (1e-9, "n"), (1e-12, "p")),
)


def print_json(value: Any) -> None:
    """One JSON value on standard output. Numbers that JSON lacks (NaN, infinity) are a mistake of ours and raise."""
    print(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    """Scalars of numpy and the like as numbers of Python."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no JSON form")


def console() -> Console:
    """The console on standard output."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False, soft_wrap=False)


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[str] = ()
) -> None:
    """A table with a heading; the columns named in `right` are aligned to the right."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    if title:
        print(f"\n{title}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        side: Any = "right" if column in right else "left"
        # A name is what a reader copies: it stays in one piece.
        table.add_column(column, justify=side, overflow="fold", no_wrap=column in ("name", "quantity", "latency"))
    for row in rows:
        table.add_row(*(escape(str(cell)) for cell in row))
    console().print(table)


def short_keys(keys: Sequence[str]) -> list[str]:
    """Dotted keys by as many of their last parts as tell them apart, for the heads of tables."""

    def last(key: str, parts: int) -> str:
        return ".".join(key.split(".")[-parts:])

    found = []
    for key in keys:
        parts = 1
        while sum(last(other, parts) == last(key, parts) for other in keys) > 1 and parts <= key.count("."):
            parts += 1
        found.append(last(key, parts))
    return found


def engineering(value: float | None, unit: str) -> str:
    """A number with three digits and a decimal prefix, for tables; None is a dash."""
    if value is None:
        return "-"
    if value == 0:
        return f"0 {unit}".strip()
    size, prefix = next(((s, p) for s, p in _PREFIXES if abs(value) >= s * 0.9995), _PREFIXES[-1])
    scaled = value / size
    digits = 0 if abs(scaled) >= 99.95 else 1 if abs(scaled) >= 9.995 else 2
    return f"{scaled:.{digits}f} {prefix}{unit}".strip()


def binary_size(size_bytes: float) -> str:
    """Bytes with a binary prefix, for tables."""
    for prefix in ("", "Ki", "Mi", "Gi"):
        if abs(size_bytes) < 1024:
            return f"{size_bytes:.4g} {prefix}B"
        size_bytes /= 1024
    return f"{size_bytes:.4g} TiB"


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on standard error, drawn only on a terminal: call what it yields with (what, done, total)."""
    if not sys.stderr.isatty():
        yield lambda what, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("preparing", total=None)

        def show(what: str, done: int, total: int) -> None:
            # One pass alone says nothing about how far it is: the bar pulses instead of standing at nought.
            known = total if total > 1 else None
            bar.update(task, completed=done, total=known, description=f"{what}, {min(done + 1, total)} of {total}")

        yield show


def say(notes: Iterable[str]) -> None:
    """Notes on standard error, a line each."""
    for note in notes:
        print(f"opcycle: {note}", file=sys.stderr, flush=True)


def say_if_kernels_are_new(entry: str) -> None:
    """One line on standard error where the kernel `entry` (`module.function`) must first be compiled, which takes long.

    Nothing is said where the cache holds it, or where kernels run as plain Python.
    """
    from sim.kernels.jit import cache_folder

    compiled = os.environ.get("NUMBA_DISABLE_JIT", "0") == "0"
    if compiled and next(cache_folder(entry.partition(".")[0]).glob(f"{entry}-*.nbi"), None) is None:
        print(COMPILING, file=sys.stderr, flush=True)
