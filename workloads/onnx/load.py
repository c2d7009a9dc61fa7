"""An ONNX file as a Trace of one pass, with notes on what was taken for granted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sim.config import ConfigError, not_among, show
from workloads.formats import FORMATS, unknown_format
from workloads.onnx.graph import Graph, read_graph
from workloads.onnx.layers import fold
from workloads.onnx.translate import translate
from workloads.trace import Pass, Trace
from workloads.trace_check import check_trace

KEYS = ("dims", "format", "mask")
MASKS: dict[str, bool | None] = {"auto": None, "causal": True, "full": False}


def load_onnx(path: Path, settings: Mapping[str, Any]) -> tuple[Trace, list[str]]:
    """The trace of the file, and what a user should know of it.

    `settings`: `dims.NAME` for symbolic dimensions, `format` of all real numbers in place of the file's, `mask` (auto,
    causal or full) for attention. Raises ConfigError for any other key, and what `read_graph` and `translate` refuse.
    """
    dims: dict[str, int] = {}
    mask, number_format = "auto", None
    for key, value in settings.items():
        first, _, rest = key.partition(".")
        if first == "dims" and rest:
            dims[rest] = _size(path, key, value)
        elif key == "mask":
            mask = str(value)
            if mask not in MASKS:
                raise ConfigError(not_among("mask", mask, MASKS), file=path, key="mask")
        elif key == "format":
            number_format = str(value)
            if number_format not in FORMATS:
                raise ConfigError(unknown_format(number_format), file=path, key=key)
        else:
            raise ConfigError(not_among("key", first, KEYS, inside="an ONNX workload"), file=path, key=key)
    graph = read_graph(path, dims, number_format)
    try:
        found = translate(graph, MASKS[mask])
    except ConfigError as error:
        raise ConfigError(error.message, file=path) from None
    blocks = fold(found.ops)
    batch, tokens = _sizes(graph)
    meta: tuple[tuple[str, str | int], ...] = (
        ("custom", ", ".join(f"{op} x {count}" for op, count in sorted(found.custom.items()))),
        ("masks", ", ".join(f"{kind} x {count}" for kind, count in sorted(found.masks.items()))),
        ("source", path.name),
        ("workload", path.stem),
    )
    work = Pass("graph", "encode", blocks, tokens)
    trace = Trace(graph.name, batch, (work,), meta=tuple((key, value) for key, value in meta if value != ""))
    check_trace(trace)
    notes, facts = [], dict(meta)
    if found.custom:
        notes.append(
            f"{path.name}: no operator covers {facts['custom']}; counted as custom operators with their bytes and one "
            "vector operation an element"
        )
    if found.masks and mask == "auto":
        notes.append(
            f"{path.name}: attention is taken as {facts['masks']} by its masks; --set workload.mask=full says otherwise"
        )
    return trace, notes


def _size(path: Path, key: str, value: Any) -> int:
    try:
        number = int(str(value))
    except ValueError:
        number = 0
    if number < 1 or isinstance(value, (bool, float)):
        raise ConfigError(f"is {show(value)}, but must be a whole number of at least 1", file=path, key=key)
    return number


def _sizes(graph: Graph) -> tuple[int, int]:
    """(requests, positions in all): of the first input, rows x columns for token numbers, else its first size."""
    value = graph.values[graph.inputs[0]]
    batch = value.shape[0] if value.shape else 1
    return batch, value.elements if not value.real and len(value.shape) == 2 else batch
