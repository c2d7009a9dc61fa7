"""Evaluates the small arithmetic of rule tables (`CWL + BL + tWR`, `max(1, BL - 2)`) over named integers."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Final

from sim.errors import not_among

_OPERATORS: Final[Mapping[type[ast.operator], Callable[[int, int], int]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
}


def evaluate(text: str | int, names: Mapping[str, int]) -> int:
    """Value of `text`: integers, names, + - *, parentheses, min() and max(). Raises ValueError in one sentence."""
    if isinstance(text, int):
        return text
    try:
        tree = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, RecursionError):
        raise ValueError(f"{text!r} is no expression of timing names, integers, + - *, min() and max()") from None

    def value(node: ast.expr) -> int:
        match node:
            case ast.Constant(value=int(number)) if not isinstance(number, bool):
                return number
            case ast.Name(id=name):
                if name not in names:
                    raise ValueError(f"{text!r}: {not_among('timing', name, names, most=40)}")
                return names[name]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
                return _OPERATORS[type(op)](value(left), value(right))
            case ast.Call(func=ast.Name(id="max" | "min" as which), args=[_, *_] as arguments, keywords=[]):
                return (max if which == "max" else min)(value(argument) for argument in arguments)
        raise ValueError(f"{text!r}: only timing names, integers, + - *, min() and max() are allowed")

    return value(tree)
