"""Streaming dataflow: graphs of pipelined nodes joined by bounded channels, their exact times, values and deadlocks.

The public names are imported when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.stream.attention import Attention as Attention
    from sim.stream.attention import attention_graph as attention_graph
    from sim.stream.deadlock import explain as explain
    from sim.stream.engine import run_graph as run_graph
    from sim.stream.schema import Graph as Graph
    from sim.stream.schema import load_graph as load_graph
    from sim.stream.schema import read_graph as read_graph
    from sim.stream.sizing import capacities as capacities
    from sim.stream.values import Function as Function
    from sim.stream.values import execute as execute

_HOME = {
    "Attention": "attention",
    "Function": "values",
    "Graph": "schema",
    "attention_graph": "attention",
    "capacities": "sizing",
    "execute": "values",
    "explain": "deadlock",
    "load_graph": "schema",
    "read_graph": "schema",
    "run_graph": "engine",
}
__all__ = [
    "Attention",
    "Function",
    "Graph",
    "attention_graph",
    "capacities",
    "execute",
    "explain",
    "load_graph",
    "read_graph",
    "run_graph",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sim.stream' has no attribute {name!r}; public names: {', '.join(__all__)}")
    value = getattr(import_module(f"sim.stream.{_HOME[name]}"), name)
    globals()[name] = value
    return value
