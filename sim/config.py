"""Turns plain data into frozen pydantic models: dotted overrides first, then strict validation.

The first thing wrong ends in one `ConfigError`, a sentence that names file, line, key, value, what is allowed and the
nearest right name. Reading and writing YAML itself is in `sim.document`, whose public names are given again here.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, overload

from sim.document import Document, dump_yaml, join, load_yaml, parse_scalar, parse_yaml
from sim.errors import ConfigError, nearest, not_among, show

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound="BaseModel")

__all__ = [
    "ConfigError",
    "Document",
    "apply_overrides",
    "build",
    "dump_yaml",
    "load_yaml",
    "nearest",
    "not_among",
    "parse_scalar",
    "parse_yaml",
    "show",
]


@overload
def apply_overrides(data: Document, overrides: Mapping[str, Any] | None, create: bool = True) -> Document: ...


@overload
def apply_overrides(
    data: Mapping[str, Any], overrides: Mapping[str, Any] | None, create: bool = True
) -> dict[str, Any]: ...


def apply_overrides(
    data: Document | Mapping[str, Any], overrides: Mapping[str, Any] | None, create: bool = True
) -> Document | dict[str, Any]:
    """A copy of `data` with dotted keys set, strings typed as YAML would type them (`"16"` is an int, `"1 GHz"` text).

    Text that begins with `[`, `{` or a quote is read as YAML. A key that is not there yet is made, for `build` to
    accept or refuse by the model's own names; with `create=False` it is refused here. A Document stays one, and
    remembers which keys no longer come from its file. Raises ConfigError.
    """
    if isinstance(data, Document):
        try:
            changed = apply_overrides(data.data, overrides, create)
        except ConfigError as error:
            raise ConfigError(error.message, file=data.override, key=error.key) from None
        return replace(data, data=changed, overridden=data.overridden | set(overrides or ()))
    result: dict[str, Any] = copy.deepcopy(dict(data))
    for key, value in (overrides or {}).items():
        _set(result, key, _typed(key, value), create)
    return result


def _typed(key: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text[:1] not in ("[", "{", '"', "'"):
        try:
            return parse_scalar(text)
        except ValueError as error:
            raise ConfigError(str(error), key=key) from None
    try:
        return parse_yaml(f"value: {text}").data["value"]
    except ConfigError as error:
        raise ConfigError(f"{text}: {error.message}", key=key) from None


def _set(root: dict[str, Any], key: str, value: Any, create: bool) -> None:
    names = key.split(".")
    if not all(names):
        raise ConfigError(f"override key {key!r} must be names joined by dots", key=key)
    at: Any = root
    for depth, name in enumerate(names):
        last = depth == len(names) - 1
        here = ".".join(names[:depth]) or "the top level"
        if isinstance(at, list):
            if not name.isdecimal() or int(name) >= len(at):
                raise ConfigError(f"{here} is a list, so {name!r} must be a number below {len(at)}", key=key)
            index: Any = int(name)
        elif isinstance(at, dict):
            index = name
            if name not in at:
                if not create:
                    raise ConfigError(not_among("key", name, at), key=key)
                at[name] = {}
        else:
            raise ConfigError(f"{here} is {show(at)}, which has no keys inside it", key=key)
        if last:
            at[index] = value
        at = at[index]


def build(model_cls: type[Model], document: Document | Mapping[str, Any]) -> Model:
    """Validate `document` as a `model_cls`, strictly: no text becomes a number, no number a truth value.

    Lists become tuples and names become enum members, as JSON Schema would have it. The first error of pydantic is told
    as one ConfigError with file, line, key, value, what is allowed and, for unknown names, the nearest one.
    """
    from pydantic import ValidationError

    if not isinstance(document, Document):
        document = Document(None, dict(document))
    try:
        return model_cls.model_validate_json(json.dumps(document.data), strict=True)
    except ValidationError as error:
        raise _explain(model_cls, document, error) from None


_WANTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "text",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "dataclass_type": "a mapping of keys to values",
    "tuple_type": "a list",
    "list_type": "a list",
    "none_required": "null",
    "finite_number": "a finite number",
}
_BOUND = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
    "multiple_of": ("multiple_of", "a multiple of"),
}


_LENGTH = {
    "too_short": ("min_length", "at least"),
    "too_long": ("max_length", "at most"),
    "string_too_short": ("min_length", "at least"),
    "string_too_long": ("max_length", "at most"),
}


def _explain(model_cls: type[BaseModel], document: Document, error: ValidationError) -> ConfigError:
    """The first of pydantic's errors as a sentence; an unknown key goes first, as it often explains a missing one."""
    problems = error.errors(include_url=False)
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    kind, context, value = first["type"], first.get("ctx", {}), first["input"]
    names = _present(document.data, first["loc"], field_last=kind in ("extra_forbidden", "missing"))
    key = ".".join(names)
    if kind == "extra_forbidden":
        parent, name = names[:-1], str(first["loc"][-1])
        siblings = _fields(model_cls, document.data, parent)
        return document.error(not_among("key", name, siblings, inside=".".join(parent)), key)
    if kind == "missing":
        name = str(first["loc"][-1])
        known = _fields(model_cls, document.data, names[:-1])
        unknown = [k for k in _at(document.data, names[:-1]) or () if k not in known]
        near = nearest(name, unknown)
        return document.error("is missing" + (f"; is {near!r} a misspelling of it?" if near else ""), key)
    if kind in ("value_error", "assertion_error"):
        cause = context.get("error")
        if isinstance(cause, ConfigError):
            inner = ".".join(part for part in (key, cause.key) if part)
            return document.error(cause.message, inner) if cause.file is None else cause
        return document.error(str(cause or first["msg"]), key)
    if kind in ("enum", "literal_error"):
        allowed = re.findall(r"'([^']*)'", str(context.get("expected", "")))
        if isinstance(value, str) and allowed:
            return document.error(not_among("value", value, allowed, most=40), key)
        return document.error(f"is {show(value)}, but must be {context.get('expected')}", key)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tag = str(context.get("discriminator", "kind")).strip("'")
        allowed = re.findall(r"'([^']*)'", str(context.get("expected_tags", "")))
        if kind == "union_tag_not_found":
            return document.error("is missing", join(key, tag))
        return document.error(not_among("value", str(context.get("tag")), allowed, most=40), join(key, tag))
    if kind in _BOUND:
        name, words = _BOUND[kind]
        return document.error(f"is {show(value)}, but must be {words} {show(context[name])}", key)
    if kind in _WANTED:
        return document.error(f"is {show(value)}, but must be {_WANTED[kind]}", key)
    if kind in _LENGTH:
        bound, words = _LENGTH[kind]
        one, many = ("character", "characters") if kind.startswith("string") else ("entry", "entries")
        count = context[bound]
        return document.error(f"is {show(value)}, but must have {words} {count} {one if count == 1 else many}", key)
    message = first["msg"]
    return document.error(f"is {show(value)}: {message[:1].lower()}{message[1:]}", key)


def _present(data: Any, loc: Iterable[str | int], field_last: bool) -> list[str]:
    """The parts of a pydantic location that are keys of the data; names of union members in between are left out."""
    parts = list(loc)
    names: list[str] = []
    for position, part in enumerate(parts):
        inside = (isinstance(data, dict) and part in data) or (isinstance(data, list) and isinstance(part, int))
        if inside:
            data = data[part]
        elif not (field_last and position == len(parts) - 1):
            continue
        names.append(str(part))
    return names


def _at(data: Any, names: Iterable[str]) -> Any:
    for name in names:
        data = data[int(name)] if isinstance(data, list) else data.get(name)
    return data


def _fields(model_cls: type[BaseModel], data: Any, names: Iterable[str]) -> list[str]:
    """The keys that the model allows at a dotted place, found in its JSON schema (which resolves unions and tags)."""
    schema: dict[str, Any] = model_cls.model_json_schema()
    definitions = schema.get("$defs", {})

    def variants(node: dict[str, Any], value: Any) -> Iterator[dict[str, Any]]:
        if "$ref" in node:
            yield from variants(definitions[node["$ref"].rpartition("/")[2]], value)
            return
        tag = node.get("discriminator")
        if tag and isinstance(value, dict) and value.get(tag["propertyName"]) in tag["mapping"]:
            yield from variants({"$ref": tag["mapping"][value[tag["propertyName"]]]}, value)
            return
        options = [*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())]
        for option in options:
            yield from variants(option, value)
        if not options:
            yield node

    nodes = list(variants(schema, data))
    for name in names:
        data = data[int(name)] if isinstance(data, list) else data.get(name)
        inner: list[dict[str, Any]] = []
        for node in nodes:
            child = node.get("properties", {}).get(name) or node.get("items") or node.get("additionalProperties")
            if isinstance(child, dict):
                inner.extend(variants(child, data))
        nodes = inner
    return sorted({name for node in nodes for name in node.get("properties", {})})
