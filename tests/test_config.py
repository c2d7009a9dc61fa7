"""Strict YAML, overrides and the sentences that wrong input gets."""

from __future__ import annotations

import math
from contextlib import suppress
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, model_validator

from sim.config import ConfigError, apply_overrides, build, dump_yaml, load_yaml, nearest, not_among, parse_yaml
from sim.units import Bytes, Frequency


class Order(StrEnum):
    FIRST = "first"
    LAST = "last"


class Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Array(Strict):
    kind: Literal["array"]
    rows: int = Field(gt=0)
    clock: Frequency
    order: Order = Order.FIRST


class Lanes(Strict):
    kind: Literal["lanes"]
    count: int = Field(ge=1, le=64)
    shape: tuple[int, ...] = ()


class Buffer(Strict):
    size: Bytes
    share: float = 0.5
    shared: bool = False

    @model_validator(mode="after")
    def _share(self) -> Buffer:
        if self.share > 1:
            raise ConfigError(f"is {self.share}, but a share is at most 1", key="share")
        return self


class Machine(Strict):
    name: str
    units: tuple[Annotated[Array | Lanes, Field(discriminator="kind")], ...]
    buffer: Buffer

    @model_validator(mode="after")
    def _fits(self) -> Machine:
        if self.buffer.size < 16:
            raise ValueError("buffer.size must hold 16 B")
        return self


TEXT = """\
# A machine for tests.
name: x  # its own
units:
  - {kind: array, rows: 4, clock: 1 GHz, order: last}  # data sheet, table 3
  # source: measured
  - kind: lanes
    count: 8
    shape: [2, 4]
buffer:
  # This one is assumed.
  size: 16 KiB
  share: 0.25  # a "#" in a comment
"""


def machine(**overrides: Any) -> Machine:
    return build(Machine, apply_overrides(parse_yaml(TEXT, Path("m.yaml")), overrides))


def test_reads_values_lines_and_sources() -> None:
    document = parse_yaml(TEXT, Path("m.yaml"))
    assert document.data == {
        "name": "x",
        "units": [
            {"kind": "array", "rows": 4, "clock": "1 GHz", "order": "last"},
            {"kind": "lanes", "count": 8, "shape": [2, 4]},
        ],
        "buffer": {"size": "16 KiB", "share": 0.25},
    }
    assert document.lines["units.0.rows"] == 4
    assert document.lines["units.1"] == 6
    assert document.lines["buffer"] == 9
    assert document.source_of("units.0.rows") == "data sheet, table 3"
    assert document.source_of("units.1.shape.1") == "measured"
    assert document.source_of("buffer.size") == "This one is assumed."
    assert document.source_of("buffer.share") == 'a "#" in a comment'
    assert document.source_of("units") is None


def test_hash_inside_quotes_is_no_comment() -> None:
    document = parse_yaml("a: \"x # no\"  # yes\nb: '#'\nc: |\n  # text\nd: x#y\n")
    assert document.data == {"a": "x # no", "b": "#", "c": "# text\n", "d": "x#y"}
    assert document.sources == {"a": "yes"}


def test_source_at_the_top_vouches_for_the_whole_file() -> None:
    document = parse_yaml("# source: a paper\na: 1\nb: {c: 2}\n")
    assert document.source_of("b.c") == "a paper"


def test_builds_a_frozen_model() -> None:
    built = machine()
    first, second = built.units
    assert isinstance(first, Array)
    assert (first.clock, first.order) == (10**9, Order.LAST)
    assert isinstance(second, Lanes)
    assert second.shape == (2, 4)
    assert built.buffer.size == 16384


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1), ("-7", -7), ("+7", 7), ("0", 0), ("0x1F", 31), ("1e9", 1e9), ("1.5", 1.5), (".5", 0.5), ("2.", 2.0),
        ("true", True), ("false", False), ("null", None), ("~", None), ("1:30", "1:30"), ("2024-01-01", "2024-01-01"),
        ("1_000", "1_000"), ("0o17", "0o17"), ("1 GHz", "1 GHz"), ("'5'", "5"), ('"on"', "on"), ("y", "y"), ("=", "="),
        ("0.5", 0.5), ("[1, a]", [1, "a"]), ("{a: 1}", {"a": 1}), ("''", ""),
    ],
)  # fmt: skip
def test_plain_scalars_follow_yaml_1_2(text: str, value: object) -> None:
    read = parse_yaml(f"key: {text}").data["key"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\na: 2", "f.yaml:2: a: duplicate key, first given on line 1"),
        ("a:\n  b: 1\n  b: 1", "f.yaml:3: a.b: duplicate key, first given on line 2"),
        ("a: [1\nb: 3", "f.yaml:2: broken YAML: "),
        ("a:\n\t- 3", "f.yaml:2: broken YAML: a tab is used for indentation; use spaces"),
        ("a: &x 3", "f.yaml:1: a: anchors and aliases"),
        ("a: *x", "f.yaml:1: a: anchors and aliases"),
        ("a: 3\n---\nb: 3", "f.yaml:2: a second document"),
        ("- 3", "f.yaml:1: the top level must be a mapping"),
        ("", "f.yaml:1: the file is empty"),
        ("# only a comment", "f.yaml:1: the file is empty"),
        ("a: !!python/object:os.x 3", "f.yaml:1: a: tags such as"),
        ("a: .nan", "f.yaml:1: a: is .nan, but numbers must be finite"),
        ("a: -.inf", "f.yaml:1: a: is -.inf, but numbers must be finite"),
        ("a: 1e999", "f.yaml:1: a: is 1e999, but numbers must be finite"),
        ("a: 010", "f.yaml:1: a: is 010, which reads as octal"),
        ("a: yes", "f.yaml:1: a: is yes, "),
        ("a: [1, Off]", "f.yaml:1: a.1: is Off, "),
        ("a: True", "f.yaml:1: a: is True, "),
        ("a:\nb: 3", "f.yaml:1: a: has no value"),
        ("a: \x01", "f.yaml:1: holds a character"),
        ("? [1]: 3", "f.yaml:1: a key must be a plain name"),
        ("<<: {a: 3}", "f.yaml:1: merge keys"),
        ("a: 'b", "f.yaml:1: broken YAML: "),
        ("a: b: c", "f.yaml:1: broken YAML: "),
        ("a: " + "[" * 200 + "]" * 200, "f.yaml:1: nested deeper than 64 levels"),
        ("a: " + "9" * 5000, "f.yaml:1: a: "),
    ],
)
def test_refuses_unclear_yaml_with_file_and_line(text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, Path("f.yaml"))
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ConfigError):
        parse_yaml(text)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"a: \xe4")
    for name, says in [("none.yaml", "no such file"), (".", "is a folder"), ("latin.yaml", "is not UTF-8 text")]:
        with pytest.raises(ConfigError, match=says):
            load_yaml(tmp_path / name)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"units.0.rows": "0"}, "units.0.rows: is 0, but must be greater than 0"),
        ({"units.0.rows": "4.0"}, "units.0.rows: is 4.0, but must be a whole number"),
        ({"units.0.rows": "true"}, "units.0.rows: is true, but must be a whole number"),
        ({"units.0.rows": "'4'"}, 'units.0.rows: is "4", but must be a whole number'),
        ({"units.1.count": "65"}, "units.1.count: is 65, but must be at most 64"),
        (
            {"units.0.rowz": "4"},
            "units.0.rowz: unknown key 'rowz' in units.0, nearest is 'rows'; allowed: clock, kind, order, rows",
        ),
        ({"units.0.clock": "4"}, "units.0.clock: 4 lacks its unit: a frequency is written like '1 GHz', with one of "),
        ({"units.0.clock": "4 Ghz"}, "units.0.clock: '4 Ghz' has the unknown unit 'Ghz', nearest is 'GHz'; "),
        ({"units.0.order": "frist"}, "units.0.order: unknown value 'frist', nearest is 'first'; allowed: first, last"),
        ({"units.1.kind": "lane"}, "units.1.kind: unknown value 'lane', nearest is 'lanes'; allowed: array, lanes"),
        ({"units.1.shape": "[3, a]"}, 'units.1.shape.1: is "a", but must be a whole number'),
        ({"units.1": "{count: 3}"}, "units.1.kind: is missing"),
        ({"units.9": "{count: 3}"}, "units.9: units is a list, so '9' must be a number below 2"),
        ({"buffr.size": "1 B"}, "buffr: unknown key 'buffr', nearest is 'buffer'; allowed: buffer, name, units"),
        ({"buffer.size": "-3 B"}, "buffer.size: '-3 B' is negative, but a size must not be"),
        ({"buffer.size": "3 B"}, "buffer.size must hold 16 B"),
        ({"buffer.share": "1.5"}, "buffer.share: is 1.5, but a share is at most 1"),
        ({"buffer.shared": "1"}, "buffer.shared: is 1, but must be true or false"),
        ({"buffer.shared": "yes"}, "buffer.shared: is yes, text to some"),
        ({"buffer": "3"}, "buffer: is 3, but must be a mapping of keys to values"),
        ({"name.x": "3"}, 'name.x: name is "x", which has no keys inside it'),
        ({"name": "3"}, "name: is 3, but must be text"),
        ({"name..x": "3"}, "name..x: override key 'name..x' must be names joined by dots"),
        ({"name": ""}, "name: has no value"),
        ({"units": "[1"}, "units: [1: broken YAML: "),
    ],
)
def test_wrong_values_are_told_in_one_sentence(overrides: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        machine(**overrides)
    # A rule about several keys has no single one to blame, so it is told of the file.
    place = "override of m.yaml" if caught.value.key else "m.yaml"
    assert str(caught.value).startswith(f"{place}: {says}")
    assert "\n" not in str(caught.value)


def test_errors_name_the_line() -> None:
    with pytest.raises(ConfigError) as caught:
        build(Machine, parse_yaml(TEXT.replace("count: 8", "cuont: 8"), Path("m.yaml")))
    assert str(caught.value) == (
        "m.yaml:7: units.1.cuont: unknown key 'cuont' in units.1, nearest is 'count'; allowed: count, kind, shape"
    )
    assert (caught.value.file, caught.value.line, caught.value.key) == ("m.yaml", 7, "units.1.cuont")


def test_missing_key_is_told_at_its_block() -> None:
    with pytest.raises(ConfigError) as caught:
        build(Machine, parse_yaml(TEXT.replace("  size: 16 KiB\n", ""), Path("m.yaml")))
    assert str(caught.value) == "m.yaml:9: buffer.size: is missing"


def test_overrides_are_typed_and_leave_the_document_alone() -> None:
    document = parse_yaml(TEXT)
    changed = apply_overrides(document, {"units.1.count": "0x10", "buffer.shared": "true", "name": "a: b"})
    assert changed.data["units"][1]["count"] == 16
    assert changed.data["buffer"]["shared"] is True
    assert changed.data["name"] == "a: b"
    assert document.data["units"][1]["count"] == 8
    assert changed.line_of("units.1.count") is None
    assert apply_overrides({"a": 1}, {"a": 2.5}) == {"a": 2.5}
    with pytest.raises(ConfigError, match="unknown key 'b'"):
        apply_overrides({"a": 1}, {"b": "2"}, create=False)


def test_nearest_ignores_case_and_gives_up_on_noise() -> None:
    assert nearest("chanels", ["channels", "capacity"]) == "channels"
    assert nearest("GHZ", ["GHz", "MHz"]) == "GHz"
    assert nearest("zzz", ["channels"]) is None
    assert not_among("key", "x", [f"k{i:02}" for i in range(40)], most=3) == (
        "unknown key 'x'; allowed: k00, k01, k02 and 37 more"
    )


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(min_size=1, max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(min_size=1, max_size=6), PLAIN, min_size=1, max_size=4))
def test_what_is_dumped_reads_back_equal(data: dict[str, Any]) -> None:
    try:
        text = dump_yaml(data)
        read = parse_yaml(text).data
    except ConfigError:
        raise AssertionError(dump_yaml(data)) from None
    assert read == data
    assert not any(isinstance(v, float) and math.isnan(v) for v in read.values())
