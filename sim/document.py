"""Turns YAML text into strict plain data that knows the line and the source comment of every value, and back.

Plain scalars follow YAML 1.2 and whatever versions of YAML disagree about is refused; so are duplicate keys, anchors
and tags. Whatever is wrong ends in one `ConfigError`, a single sentence. Nothing is repaired.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sim.errors import ConfigError

MAX_DEPTH = 64
"""Deepest nesting a file may have; real files stay below ten, so more is an accident or an attack."""


@dataclass(frozen=True, slots=True)
class Document:
    """One YAML file as plain data, with where each value stands and which comment vouches for it.

    `data` holds dicts with string keys, lists, str, int, float, bool and None. `lines` and `sources` are keyed by
    dotted path (`memory.timings.tRCD`, `rules.3.1`); `sources` holds trailing comments, and comments above a block that
    begin with `source:` or say `assumed`. The path of the whole file is the empty string. `heading` is the file's first
    line, where that is a comment.
    """

    path: Path | None
    data: dict[str, Any]
    sources: dict[str, str] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    overridden: frozenset[str] = frozenset()
    heading: str = ""

    def source_of(self, key: str) -> str | None:
        """The comment that vouches for `key`: its own, or that of the nearest block around it; None without one."""
        while True:
            if key in self.sources:
                return self.sources[key]
            if not key:
                return None
            key = key.rpartition(".")[0]

    def line_of(self, key: str) -> int | None:
        """The line of `key`, or of the nearest block around it that stands in the file; None for overridden keys."""
        while key and key not in self.lines:
            if key in self.overridden:
                return None
            key = key.rpartition(".")[0]
        return None if key in self.overridden else self.lines.get(key)

    @property
    def override(self) -> str:
        """What takes the file's place in an error about a value that an override set: the file is not to blame."""
        return f"override of {self.path.name}" if self.path is not None else "override"

    def error(self, message: str, key: str | None = None) -> ConfigError:
        """A `ConfigError` about `key` of this document."""
        if key is not None and any(f"{key}.".startswith(f"{o}.") or o.startswith(f"{key}.") for o in self.overridden):
            return ConfigError(message, file=self.override, key=key)
        return ConfigError(message, file=self.path, key=key, line=self.line_of(key) if key else None)


# Plain scalars follow the YAML 1.2 core schema, without the surprises of 1.1: `1:30` is text, `1e9` is a number.
_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_OLD_BOOL = re.compile(r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|True|TRUE|False|FALSE")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_LEADING_ZERO = re.compile(r"[-+]?0[0-9_]+(\.[0-9]*)?")


def parse_scalar(text: str) -> str | int | float | bool | None:
    """The value of an unquoted scalar. Raises ValueError where YAML versions disagree about its meaning."""
    if text in ("null", "~"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if text == "":
        raise ValueError("has no value; write a value, or null if that is meant")
    if _OLD_BOOL.fullmatch(text):
        raise ValueError(f"is {text}, text to some and a truth value to others; write true or false, or quote it")
    if _LEADING_ZERO.fullmatch(text):
        raise ValueError(f"is {text}, which reads as octal to some; write it without the leading zero, or quote it")
    if _NOT_FINITE.fullmatch(text):
        raise ValueError(f"is {text}, but numbers must be finite")
    if _INT.fullmatch(text):
        return int(text, 16) if text[:2] == "0x" else int(text)
    if _FLOAT.fullmatch(text):
        value = float(text)
        if value in (float("inf"), float("-inf")):
            raise ValueError(f"is {text}, but numbers must be finite")
        return value
    return text


_READ: dict[Path, tuple[tuple[int, ...], Document]] = {}
"""Files as they were read last, each with what tells whether it has changed since."""


def load_yaml(path: str | Path) -> Document:
    """Read one YAML file; its top level must be a mapping. Raises ConfigError.

    A file is parsed again when it has changed. All who ask for it share the document, so nobody may change its data.
    """
    path = Path(path)
    try:
        about = path.stat()
        state: tuple[int, ...] = (about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
    except OSError:
        return parse_yaml(read_text(path), path)
    known = _READ.get(path)
    if known is None or known[0] != state:
        known = _READ[path] = (state, parse_yaml(read_text(path), path))
    return known[1]


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file. Raises ConfigError, in the same words whatever the file is read for."""
    path = Path(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError("no such file", file=path) from None
    except IsADirectoryError:
        raise ConfigError("is a folder, but a file is wanted", file=path) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"is not UTF-8 text (byte {error.start})", file=path) from None
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from None


def read_json(path: str | Path) -> Any:
    """The value in a JSON file. Raises ConfigError for a file that is none, or has a key twice in one object."""
    text = read_text(path)
    try:
        return json.loads(text, object_pairs_hook=_no_duplicates)
    except json.JSONDecodeError as error:
        message = f"is broken JSON: {error.msg[:1].lower()}{error.msg[1:]} at column {error.colno}"
        raise ConfigError(message, file=path, line=error.lineno) from None
    except RecursionError:
        raise ConfigError("is broken JSON: nested too deeply", file=path) from None
    except ValueError as error:
        raise ConfigError(f"is broken JSON: {error}", file=path) from None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"key {twice!r} stands twice in one object")
    return found


def parse_yaml(text: str, path: Path | None = None) -> Document:
    """Read YAML text; `path` only names it in errors. Raises ConfigError."""
    reader = _Reader(text, path)
    data = reader.read()
    if not isinstance(data, dict):
        raise ConfigError("the top level must be a mapping of keys to values", file=path, line=1)
    heading = text.lstrip().partition("\n")[0]
    return Document(
        path, data, reader.sources(), reader.lines, heading=heading[1:].strip() if heading.startswith("#") else ""
    )


class _Reader:
    """Composes YAML events into plain data, noting the line of every path and the span of every quoted scalar."""

    def __init__(self, text: str, path: Path | None) -> None:
        self.text = text
        self.path = path
        self.lines: dict[str, int] = {}
        self.starts: dict[str, int] = {}  # first line of a block's content, where it differs from the line of its key
        self.spans: list[tuple[int, int, int, int]] = []  # quoted and block scalars: line, column to line, column

    def error(self, message: str, line: int, key: str = "") -> ConfigError:
        return ConfigError(message, file=self.path, key=key, line=line)

    def read(self) -> Any:
        loader = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
        try:
            events = iter(list(yaml.parse(self.text, Loader=loader)))
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise self.error(self._syntax(error, mark), mark.line + 1 if mark else 1) from None
        except yaml.YAMLError as error:  # a character that YAML does not allow
            position = getattr(error, "position", 0)
            line = self.text.count("\n", 0, position) + 1 if isinstance(position, int) else 1
            raise self.error("holds a character that YAML does not allow", line) from None
        next(events)  # the stream starts
        if isinstance(next(events), yaml.StreamEndEvent):
            raise self.error("the file is empty", 1)
        data = self._node(next(events), events, "", 0)
        next(events)  # the document ends
        after: Any = next(events)
        if not isinstance(after, yaml.StreamEndEvent):
            raise self.error("a second document begins here, but a file holds one", after.start_mark.line + 1)
        return data

    def _syntax(self, error: yaml.MarkedYAMLError, mark: Any) -> str:
        row = self.text.splitlines()[mark.line] if mark and mark.line < len(self.text.splitlines()) else ""
        indent = row[: len(row) - len(row.lstrip())]
        if "\t" in indent or (mark and row[mark.column : mark.column + 1] == "\t"):
            return "broken YAML: a tab is used for indentation; use spaces"
        context = f" {error.context}" if error.context else ""
        at = f" at column {mark.column + 1}" if mark else ""
        return f"broken YAML: {error.problem}{context}{at}"

    def _node(self, event: Any, events: Iterator[Any], key: str, depth: int) -> Any:
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise self.error("anchors and aliases (& and *) are not supported; write the value out", line, key)
        if event.tag is not None and event.tag != "!":
            raise self.error(f"tags such as {event.tag} are not supported", line, key)
        if depth > MAX_DEPTH:
            raise self.error(f"nested deeper than {MAX_DEPTH} levels", line)
        self.lines.setdefault(key, line)
        self.starts[key] = line
        if isinstance(event, yaml.ScalarEvent):
            return self._scalar(event, key, line)
        if isinstance(event, yaml.SequenceStartEvent):
            items: list[Any] = []
            while not isinstance(event := next(events), yaml.SequenceEndEvent):
                items.append(self._node(event, events, join(key, len(items)), depth + 1))
            return items
        return self._mapping(events, key, depth)

    def _mapping(self, events: Iterator[Any], key: str, depth: int) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(events), yaml.MappingEndEvent):
            line = event.start_mark.line + 1
            if not isinstance(event, yaml.ScalarEvent) or event.anchor is not None or event.value == "":
                raise self.error("a key must be a plain name", line, key)
            name = event.value
            path = join(key, name)
            if name in mapping:
                raise self.error(f"duplicate key, first given on line {self.lines[path]}", line, path)
            if name == "<<" and not event.style:
                raise self.error("merge keys (<<) are not supported; write the values out", line, key)
            self.lines[path] = line
            mapping[name] = self._node(next(events), events, path, depth + 1)
        return mapping

    def _scalar(self, event: Any, key: str, line: int) -> Any:
        if not event.style and event.tag is None:
            try:
                return parse_scalar(event.value)
            except ValueError as error:
                raise self.error(str(error), line, key) from None
        start, end = event.start_mark, event.end_mark
        self.spans.append((start.line, start.column, end.line, end.column))
        return event.value

    def sources(self) -> dict[str, str]:
        """Trailing comments by the paths that stand on their line, and `source:` comments above blocks."""
        trailing, above = self._comments()
        found: dict[str, str] = {}
        for path, line in self.lines.items():
            if line in trailing and path:
                found[path] = trailing[line]
        for path, start in self.starts.items():
            for line in dict.fromkeys((self.lines[path], start)):
                if path not in found and line in above:
                    found[path] = above[line]
        return found

    def _comments(self) -> tuple[dict[int, str], dict[int, str]]:
        """Comments by 1-based line: those that end a line, and vouching ones by the line they stand above."""
        trailing: dict[int, str] = {}
        above: dict[int, str] = {}
        block: list[str] = []
        for number, row in enumerate(self.text.splitlines()):
            at = self._comment_column(number, row)
            if at is not None and not row[:at].strip():
                block.append(row[at + 1 :].strip())
                continue
            if at is not None and row[at + 1 :].strip():
                trailing[number + 1] = row[at + 1 :].strip()
            text = " ".join(part for part in block if part)
            if re.search(r"(^|\s)source:|\bassumed\b", text, re.IGNORECASE):
                above[number + 1] = re.split(r"(?:^|\s)source:\s*", text, maxsplit=1, flags=re.IGNORECASE)[-1]
            block = []
        return trailing, above

    def _comment_column(self, number: int, row: str) -> int | None:
        for match in re.finditer(r"(?:^|(?<=\s))#", row):
            here = (number, match.start())
            if not any((l0, c0) <= here < (l1, c1) for l0, c0, l1, c1 in self.spans):
                return match.start()
        return None


def join(key: str, name: object) -> str:
    """The dotted path of `name` inside `key`, which is empty for the top level."""
    return f"{key}.{name}" if key else str(name)


class _Dumper(yaml.SafeDumper):
    """Writes YAML that `load_yaml` reads back equal: every string that this reader would type or refuse is quoted."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        plain = text.isprintable() and text != "<<" and isinstance(parse_scalar(text), str)
    except ValueError:
        plain = False
    return yaml.ScalarNode("tag:yaml.org,2002:str", text, style=None if plain else '"')


def _represent_number(dumper: _Dumper, value: float) -> yaml.ScalarNode:
    if value != value or value in (float("inf"), float("-inf")):
        raise ValueError(f"{value} has no place in a data file: numbers must be finite")
    return yaml.ScalarNode("tag:yaml.org,2002:float", repr(value))


_Dumper.yaml_implicit_resolvers = {}
_Dumper.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"null$"), ["n"])
_Dumper.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"(true|false)$"), ["t", "f"])
_Dumper.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(rf"({_INT.pattern})$"), None)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"({_FLOAT.pattern})$"), None)
_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(float, _represent_number)


def dump_yaml(data: Mapping[str, Any]) -> str:
    """YAML text of plain data, in the order given, which `parse_yaml` reads back equal."""
    text: str = yaml.dump(dict(data), Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)
    return text
