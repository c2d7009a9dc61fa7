"""Evaluates what a claim compares: arithmetic over figures of runs, `dense.time_s / method.time_s`."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from sim.errors import ConfigError, nearest, show

_OPERATORS: Final[Mapping[type[ast.operator], Callable[[float, float], float]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_GRAMMAR = "numbers, figures of runs (RUN.FIGURE), + - * /, parentheses, min() and max()"


def runs_of(text: str) -> list[str]:
    """The runs whose figures a formula takes, in order. Raises ConfigError for what is no formula."""
    return list(dict.fromkeys(name.partition(".")[0] for name in _names(_parse(text), text)))


def evaluate(text: str, figures: Mapping[str, Mapping[str, float]]) -> float:
    """The value of a formula; `figures` are those of each run. Raises ConfigError for a figure that a run lacks."""

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int(number) | float(number)):
                return float(number)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                try:
                    return _OPERATORS[type(op)](value(left), value(right))
                except ZeroDivisionError:
                    raise ConfigError(f"{text!r} divides by a figure that is 0") from None
            case ast.Call(func=ast.Name(id="max" | "min" as which), args=[_, *_] as arguments, keywords=[]):
                return (max if which == "max" else min)(value(argument) for argument in arguments)
            case ast.Attribute():
                return _figure(_dotted(node, text), figures, text)
        raise _no_formula(text)

    return value(_parse(text))


def _figure(name: str, figures: Mapping[str, Mapping[str, float]], text: str) -> float:
    run, _, figure = name.partition(".")
    found = figures[run].get(figure)
    if found is None:
        near = nearest(figure, figures[run])
        hint = f"; nearest is {near!r}" if near else ""
        raise ConfigError(f"{text!r} takes {figure!r} of run {run!r}, which has no such figure{hint}")
    return found


def _parse(text: str) -> ast.expr:
    try:
        return ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        raise _no_formula(text) from None


def _names(node: ast.AST, text: str) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        yield _dotted(node, text)
        return
    for child in ast.iter_child_nodes(node):
        yield from _names(child, text)


def _dotted(node: ast.expr, text: str) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value, text)}.{node.attr}"
    raise _no_formula(text)


def _no_formula(text: str) -> ConfigError:
    return ConfigError(f"is {show(text)}, but must be made of {_GRAMMAR}")
