"""Writes a Trace as JSON and reads one back, refusing whatever is not exactly a Trace.

The file repeats the dataclasses of `workloads.trace` key by key, leaves defaults out, sorts keys, and keeps one
operator a line, so that two traces can be compared line by line. `docs/trace.md` explains it by example.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields, is_dataclass
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from sim.config import ConfigError, not_among, show
from sim.document import read_json
from workloads.trace import ATTRS_OF_KIND, AttentionAttrs, Block, Mask, Op, OpKind, Pass, Sparsity, Tensor, Trace
from workloads.trace_check import check_trace

SCHEMA_FAMILY = "opcycle/trace/"
SCHEMA_VERSION = 2
TRACE_SCHEMA = f"{SCHEMA_FAMILY}{SCHEMA_VERSION}"
SECOND = {
    Trace: ("hints",),
    Block: ("first_layer", "prefixes", "idle"),
    Mask: ("lists", "levels", "cached", "both"),
    Sparsity: ("seed",),
}
"""What version 2 brought. A file says the lowest version that holds all of it, so that older readers take what they
can."""


@dataclass(frozen=True, slots=True)
class _FieldSpec:
    name: str
    hint: Any
    default: Any


@lru_cache(maxsize=64)
def _specs(cls: type) -> tuple[_FieldSpec, ...]:
    hints = get_type_hints(cls)
    return tuple(_FieldSpec(f.name, hints[f.name], f.default) for f in fields(cls))


def _plain(value: Any) -> Any:
    """Dataclasses as dicts without their defaults, enums as text, tuples as lists."""
    if isinstance(value, StrEnum):
        return value.value
    if is_dataclass(value) and not isinstance(value, type):
        out: dict[str, Any] = {}
        for spec in _specs(type(value)):
            item = getattr(value, spec.name)
            if spec.default is MISSING or item != spec.default:
                out[spec.name] = _plain(item)
        return out
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value


def _line(data: Any) -> str:
    return json.dumps(data, sort_keys=True, ensure_ascii=False)


def _members(data: dict[str, Any], nested: str, indent: str) -> Iterator[str]:
    """`"key": value` lines of an object, without the one nested key that is written out below."""
    for key in sorted(data):
        if key != nested:
            yield f"{indent}{json.dumps(key)}: {_line(data[key])},"


def trace_text(trace: Trace) -> str:
    """The file's text: sorted keys, one operator a line, a newline at the end. Equal traces give equal text."""
    lines_of: dict[int, str] = {}

    def op_line(op: Op) -> str:
        if id(op) not in lines_of:
            lines_of[id(op)] = _line(_plain(op))
        return lines_of[id(op)]

    head = {spec.name: getattr(trace, spec.name) for spec in _specs(Trace) if spec.name not in ("passes", "meta")}
    plain = {key: _plain(value) for key, value in head.items() if key not in ("methods", "hints") or value}
    plain["meta"] = dict(trace.meta)
    plain["schema"] = f"{SCHEMA_FAMILY}{_lowest_version(trace)}"
    out = ["{", *_members(plain, "", "  "), '  "passes": [']
    for i, p in enumerate(trace.passes):
        out += ["    {", *_members(_shell(p, "blocks"), "blocks", "      "), '      "blocks": [']
        for j, block in enumerate(p.blocks):
            out += ["        {", *_members(_shell(block, "ops"), "ops", "          "), '          "ops": [']
            out += [f"            {op_line(op)}," for op in block.ops]
            out[-1] = out[-1].rstrip(",")
            out += ["          ]", "        }" + ("," if j + 1 < len(p.blocks) else "")]
        out += ["      ]", "    }" + ("," if i + 1 < len(trace.passes) else "")]
    return "\n".join([*out, "  ]", "}"]) + "\n"


def _lowest_version(trace: Trace) -> int:
    """The version that a trace needs: 1 if nothing in it is newer."""
    values: list[Any] = [trace]
    seen: set[int] = set()
    for p in trace.passes:
        for block in p.blocks:
            if id(block) not in seen:
                seen.add(id(block))
                values.append(block)
                values += [op.attrs.mask for op in block.ops if isinstance(op.attrs, AttentionAttrs)]
                tensors = (t for op in block.ops for t in (*op.inputs, *op.outputs))
                values += [t.sparsity for t in tensors if t.sparsity is not None]
    for value in values:
        cls: type = type(value)
        for spec in _specs(cls):
            if spec.name in SECOND[cls] and getattr(value, spec.name) != spec.default:
                return 2
    return 1


def _shell(value: Pass | Block, nested: str) -> dict[str, Any]:
    """A pass or block without what it contains."""
    out: dict[str, Any] = {}
    cls: type = type(value)
    for spec in _specs(cls):
        item = getattr(value, spec.name)
        if spec.name != nested and (spec.default is MISSING or item != spec.default):
            out[spec.name] = _plain(item)
    return out


def write_trace(trace: Trace, path: str | Path) -> None:
    """Write `trace` to `path`, whole or not at all. Raises ConfigError if the place cannot be written."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError("is a folder, but a file is to be written", file=path)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_text(trace_text(trace), encoding="utf-8")
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise ConfigError(f"cannot be written: {error.strerror}", file=path) from None


def read_trace(path: str | Path) -> Trace:
    """The Trace in the file at `path`, checked (see `check_trace`). Raises ConfigError for anything that is not one."""
    path = Path(path)
    data = read_json(path)
    try:
        trace = _Reader().trace(data)
        check_trace(trace)
    except ConfigError as error:
        raise ConfigError(error.message, file=path, key=error.key) from None
    return trace


def _check_schema(found: Any) -> None:
    version = str(found).removeprefix(SCHEMA_FAMILY)
    known_family = isinstance(found, str) and found.startswith(SCHEMA_FAMILY) and version.isdecimal()
    if known_family and 1 <= int(version) <= SCHEMA_VERSION:
        return
    if known_family and int(version) > SCHEMA_VERSION:
        raise ConfigError(
            f"is {found!r}, written by a newer opcycle; this one reads up to {TRACE_SCHEMA!r}", key="schema"
        )
    raise ConfigError(f"is {show(found)}, but a trace has {TRACE_SCHEMA!r}", key="schema")


class _Reader:
    """Decodes plain data by the type hints of the dataclasses; equal operators and blocks become one object."""

    def __init__(self) -> None:
        self._known: dict[Any, Any] = {}

    def trace(self, data: Any) -> Trace:
        if not isinstance(data, dict):
            raise ConfigError("a trace is a JSON object")
        _check_schema(data.get("schema"))
        rest = {key: value for key, value in data.items() if key not in ("schema", "meta")}
        meta = data.get("meta", {})
        if not isinstance(meta, dict) or any(not isinstance(v, (str, int)) for v in meta.values()):
            raise ConfigError("must be an object of texts and whole numbers", key="meta")
        rest["meta"] = [[key, meta[key]] for key in sorted(meta)]
        trace: Trace = self._object(Trace, rest, "")
        return trace

    def _object(self, cls: type, data: Any, key: str, attrs: type | None = None) -> Any:
        if not isinstance(data, dict):
            raise ConfigError(f"is {show(data)}, but must be an object", key=key)
        specs = _specs(cls)
        names = [spec.name for spec in specs]
        for name in data:
            if name not in names:
                raise ConfigError(not_among("key", name, names), key=_join(key, name))
        if cls is Op:
            attrs = ATTRS_OF_KIND[self._value(OpKind, data.get("kind"), _join(key, "kind"))]
        values: dict[str, Any] = {}
        for spec in specs:
            inner = _join(key, spec.name)
            if spec.name in data:
                hint = attrs if cls is Op and spec.name == "attrs" else spec.hint
                values[spec.name] = self._value(hint, data[spec.name], inner)
            elif spec.default is MISSING:
                raise ConfigError("is missing", key=inner)
        try:
            made = cls(**values)
        except ValueError as error:
            raise ConfigError(str(error), key=key) from None
        if cls in (Op, Tensor):
            return self._known.setdefault(made, made)
        if cls is Block:
            identity = (
                made.name, made.repeat, made.weights_shared, made.first_layer, made.prefixes, made.idle,
                tuple(map(id, made.ops)),
            )  # fmt: skip
            return self._known.setdefault(identity, made)
        return made

    def _value(self, hint: Any, data: Any, key: str) -> Any:
        origin = get_origin(hint)
        if origin in (Union, UnionType):
            options = get_args(hint)
            if type(None) in options and data is None:
                return None
            plain = [option for option in options if option is not type(None)]
            if len(plain) == 1:
                return self._value(plain[0], data, key)
            if isinstance(data, bool) or not isinstance(data, tuple(plain)):
                raise ConfigError(
                    f"is {show(data)}, but must be one of {', '.join(o.__name__ for o in plain)}", key=key
                )
            return data
        if origin is tuple:
            return self._tuple(get_args(hint), data, key)
        if isinstance(hint, type) and is_dataclass(hint):
            return self._object(hint, data, key)
        if isinstance(hint, type) and issubclass(hint, StrEnum):
            if data not in [member.value for member in hint]:
                raise ConfigError(not_among("value", str(data), [member.value for member in hint]), key=key)
            return hint(data)
        return _scalar(hint, data, key)

    def _tuple(self, parts: tuple[Any, ...], data: Any, key: str) -> tuple[Any, ...]:
        if not isinstance(data, list):
            raise ConfigError(f"is {show(data)}, but must be a list", key=key)
        if parts[-1] is Ellipsis:
            if parts[0] is int and all(type(item) is int for item in data):
                return tuple(data)
            return tuple(self._value(parts[0], item, _join(key, str(i))) for i, item in enumerate(data))
        if len(data) != len(parts):
            raise ConfigError(f"has {len(data)} entries, but must have {len(parts)}", key=key)
        return tuple(self._value(part, item, key) for part, item in zip(parts, data, strict=True))


def _scalar(hint: type, data: Any, key: str) -> Any:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    allowed: tuple[type, ...] = (int, float) if hint is float else (hint,)
    if type(data) not in allowed:
        raise ConfigError(f"is {show(data)}, but must be {words[hint]}", key=key)
    return data


def _join(key: str, name: str) -> str:
    return f"{key}.{name}" if key else name


def trace_schema() -> dict[str, Any]:
    """JSON Schema of the file, worked out from the same dataclasses that read it."""
    definitions: dict[str, Any] = {}
    root = _schema_of_class(Trace, definitions)
    root["properties"]["meta"] = {"type": "object", "additionalProperties": {"type": ["string", "integer"]}}
    root["properties"]["schema"] = {"enum": [f"{SCHEMA_FAMILY}{n}" for n in range(1, SCHEMA_VERSION + 1)]}
    root["required"] = ["schema", *root["required"]]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "opcycle trace",
        **root,
        "$defs": dict(sorted(definitions.items())),
    }


def _schema_of_class(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {}
    for spec in _specs(cls):
        properties[spec.name] = _schema_of(spec.hint, definitions)
    return {
        "type": "object",
        "description": (cls.__doc__ or "").split("\n\n")[0].strip(),
        "properties": properties,
        "required": [spec.name for spec in _specs(cls) if spec.default is MISSING],
        "additionalProperties": False,
    }


def _schema_of(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return {"anyOf": [_schema_of(option, definitions) for option in get_args(hint)]}
    if origin is tuple:
        parts = get_args(hint)
        if parts[-1] is Ellipsis:
            return {"type": "array", "items": _schema_of(parts[0], definitions)}
        return {"type": "array", "prefixItems": [_schema_of(part, definitions) for part in parts], "items": False}
    if is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}
            definitions[hint.__name__] = _schema_of_class(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        return {"enum": [member.value for member in hint]}
    names = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
    return {"type": names[hint]}
