"""Conditions over the keys of a point, such as `hw.array.rows * hw.array.columns <= 65536`.

A condition is arithmetic, comparison and logic over dotted names that begin with `hw`, `workload` or `result`, numbers,
quoted text and the size words below. It is read once and then asked for many points.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from enum import Enum
from fractions import Fraction
from typing import Any, Final

from pydantic import BaseModel

from sim.errors import ConfigError, not_among

SIZES: Final[Mapping[str, int]] = {
    "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kHz": 10**3, "MHz": 10**6, "GHz": 10**9,
}  # fmt: skip
"""Words for sizes and clocks: machine keys count bytes and hertz."""

_SIZED: Final = re.compile(rf"([0-9.]+) *({'|'.join(SIZES)})\b")

_BINARY: Final[Mapping[type[ast.operator], Callable[[Any, Any], Any]]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_COMPARE: Final[Mapping[type[ast.cmpop], Callable[[Any, Any], bool]]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge, ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}  # fmt: skip
RESULT: Final = "result"
"""Names under it are columns of the result row, known when the point has been simulated."""
_ROOTS: Final = ("hw", "workload", RESULT)
_ALLOWED: Final = "numbers, quoted text, hw.*, workload.* and result.* keys, + - * / // %, comparisons, and, or, not"

Lookup = Callable[[str], Any]


class Condition:
    """One condition; `names` are the dotted keys that it asks for."""

    def __init__(self, text: str) -> None:
        """Raises ValueError where `text` is no condition."""
        self.text = text
        try:
            self._tree = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError):
            told = next((f"; {n} {unit} is written {n} * {unit}" for n, unit in _SIZED.findall(text)), "")
            raise ValueError(f"{text!r} is no condition of {_ALLOWED}{told}") from None
        self.names: tuple[str, ...] = tuple(dict.fromkeys(self._check(self._tree)))

    @property
    def of_result(self) -> bool:
        """Whether it asks for what only a simulation tells."""
        return any(name.startswith(f"{RESULT}.") for name in self.names)

    def holds(self, lookup: Lookup) -> bool:
        """Whether it holds for the values that `lookup` gives by dotted key. Raises ConfigError for values that do
        not compare.
        """
        try:
            return bool(self._value(self._tree, lookup))
        except (TypeError, ZeroDivisionError) as error:
            raise ConfigError(f"{self.text!r} cannot be worked out: {error}") from None

    def _check(self, node: ast.expr) -> list[str]:
        match node:
            case ast.Constant(value=bool() | int() | float() | str()):
                return []
            case ast.Name(id=name) if name in SIZES:
                return []
            case ast.Attribute() | ast.Name():
                return [_dotted(node, self.text)]
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
                return self._check(left) + self._check(right)
            case ast.UnaryOp(op=ast.USub() | ast.Not(), operand=operand):
                return self._check(operand)
            case ast.BoolOp(values=values):
                return [name for value in values for name in self._check(value)]
            case ast.Compare(left=left, ops=ops, comparators=rest) if all(type(op) in _COMPARE for op in ops):
                return [name for value in (left, *rest) for name in self._check(value)]
        raise ValueError(f"{self.text!r}: only {_ALLOWED} are allowed")

    def _value(self, node: ast.expr, lookup: Lookup) -> Any:
        match node:
            case ast.Constant(value=value):
                return value
            case ast.Name(id=name) if name in SIZES:
                return SIZES[name]
            case ast.Attribute() | ast.Name():
                return lookup(_dotted(node, self.text))
            case ast.BinOp(left=left, op=op, right=right):
                return _BINARY[type(op)](self._value(left, lookup), self._value(right, lookup))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return not self._value(operand, lookup)
            case ast.UnaryOp(operand=operand):
                return -self._value(operand, lookup)
            case ast.BoolOp(op=ast.And(), values=values):
                return all(self._value(value, lookup) for value in values)
            case ast.BoolOp(values=values):
                return any(self._value(value, lookup) for value in values)
            case ast.Compare(left=left, ops=ops, comparators=rest):
                values = [self._value(value, lookup) for value in (left, *rest)]
                return all(_COMPARE[type(op)](a, b) for op, a, b in zip(ops, values, values[1:], strict=False))
        raise AssertionError(ast.dump(node))


def _dotted(node: ast.expr, text: str) -> str:
    parts: list[str] = []
    at = node
    while isinstance(at, ast.Attribute):
        parts.append(at.attr)
        at = at.value
    if not isinstance(at, ast.Name) or at.id not in _ROOTS or not parts:
        name = at.id if isinstance(at, ast.Name) else ast.unparse(node)
        raise ValueError(f"{text!r}: {name!r} is no key; keys begin with 'hw.', 'workload.' or 'result.'")
    return ".".join([at.id, *reversed(parts)])


def value_at(root: Any, key: str, names: str) -> Any:
    """The value of the dotted `key` in a model, its properties, dicts and lists; enums as text, rates as numbers.

    `names` is what to call the root. Raises ConfigError with the nearest name for a key that is not there.
    """
    at, inside = root, names
    for part in key.split("."):
        if isinstance(at, BaseModel):
            fields = {field.alias or name: name for name, field in type(at).model_fields.items()}
            known = {*fields, *(n for n in dir(type(at)) if isinstance(getattr(type(at), n, None), property))}
            if part not in known:
                raise ConfigError(not_among("key", part, sorted(fields), inside=inside), key=f"{names}.{key}")
            at = getattr(at, fields.get(part, part))
        elif isinstance(at, Mapping):
            if part not in at:
                raise ConfigError(not_among("key", part, map(str, at), inside=inside), key=f"{names}.{key}")
            at = at[part]
        elif isinstance(at, (list, tuple)) and part.isdecimal() and int(part) < len(at):
            at = at[int(part)]
        else:
            raise ConfigError(f"has no key {part!r} inside it", key=f"{names}.{key}")
        inside = f"{inside}.{part}"
    if isinstance(at, Enum):
        return str(at.value)
    return float(at) if isinstance(at, Fraction) else at
