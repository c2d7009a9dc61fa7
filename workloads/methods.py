"""Methods as data: YAML presets over the primitives, found by name, explained, and turned into steps for a workload.

A preset says its paper, its primitives with every number `stated` (by the paper's abstract) or `assumed`, in a comment
on its line, and the claim with the setting under which it is made. A workload uses presets by name, changes their
parameters, or writes primitives down itself.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field

from sim.config import ConfigError, Document, build, load_yaml, nearest, not_among, show
from workloads.schema import Schema
from workloads.transforms.compose import Step
from workloads.transforms.registry import PRIMITIVES, Entry

METHOD_FOLDER = Path(__file__).parent / "methods"
METHOD_SCHEMA: Final = "opcycle/method/1"
FAMILIES: Final = {
    "accelerators": "Accelerators, arithmetic units, kernel fusion",
    "speculative-decoding": "Speculative decoding (draft and verify)",
    "block-diffusion": "Block and diffusion LLM decoding, other parallel decoding",
    "weight-sparsity": "N:M, block and unstructured weight sparsity",
    "activation-sparsity": "Activation sparsity, FFN skipping, conditional depth",
    "mixture-of-experts": "Mixture of experts",
    "sparse-attention": "Sparse, block and linear attention",
    "kv-cache": "KV cache reduction, replacement and reuse",
    "quantisation": "Quantisation formats for inference",
    "low-precision-training": "Low-precision and sampled training steps",
    "layer-pruning": "Layer pruning, merging, parallel and elastic layers",
    "low-rank": "Low-rank and structured matrices, sub-matrix tuning",
    "diffusion-caching": "Diffusion-transformer caching, adaptive compute, few-step sampling",
    "token-pruning": "Token pruning, merging and bypass",
    "parallel-training": "Pipeline, sequence and data parallel training, recompute, offload, shared rollouts",
    "forward-only-training": "Backpropagation-free and zeroth-order training",
    "energy-and-faults": "Energy, faults and checkpointing",
    "serving": "Serving, disaggregation and sharing",
    "looped-models": "Looped, parallel-stream and depth-wise models, test-time budgets",
}
Family = Literal[
    "accelerators", "speculative-decoding", "block-diffusion", "weight-sparsity", "activation-sparsity",
    "mixture-of-experts", "sparse-attention", "kv-cache", "quantisation", "low-precision-training", "layer-pruning",
    "low-rank", "diffusion-caching", "token-pruning", "parallel-training", "forward-only-training", "energy-and-faults",
    "serving", "looped-models",
]  # fmt: skip


class Paper(Schema):
    """Where a method is published."""

    title: str = Field(min_length=1)
    arxiv: str | None = Field(None, pattern=r"^[0-9]{4}\.[0-9]{4,5}$", description="arXiv number, as text.")
    year: int | None = Field(None, ge=1950, le=2100)


class Method(Schema):
    """A preset. `phases` are those of scenarios that it works on; `claim` is verbatim in numbers, `setting` says under
    which conditions it is made, `notes` how the method is modelled and what is left out.
    """

    schema_: Literal["opcycle/method/1"] = Field(METHOD_SCHEMA, alias="schema")
    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    paper: Paper
    family: Family
    relevance: int = Field(ge=1, le=3)
    phases: tuple[Literal["prefill", "decode", "generate", "encode", "denoise"], ...] = Field(min_length=1)
    primitives: tuple[Entry, ...] = Field(min_length=1)
    claim: str = Field(min_length=1)
    setting: str = Field(min_length=1)
    notes: str = ""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One number of a preset: where it stands, what it is, and who says so (`stated`, `assumed`) in which words."""

    key: str
    value: Any
    origin: str
    words: str


@dataclass(frozen=True, slots=True)
class Preset:
    """A preset as read, with the document that knows where everything stands."""

    method: Method
    document: Document

    @property
    def parameters(self) -> list[Parameter]:
        """The numbers of its primitives, in order."""
        return list(_parameters(self.document))


def method_names() -> list[str]:
    """Names of the presets that ship, sorted."""
    return sorted(path.stem for path in METHOD_FOLDER.glob("*.yaml"))


def load_method(name_or_path: str | Path) -> Preset:
    """The preset of that name, or of a YAML file. Raises ConfigError for an unknown name (with the nearest), for
    anything wrong in the file, and for a number of which no comment says `stated` or `assumed`.
    """
    text = str(name_or_path)
    path = Path(text)
    if isinstance(name_or_path, str) and "/" not in text and path.suffix not in (".yaml", ".yml"):
        known = METHOD_FOLDER / f"{text}.yaml"
        if not known.is_file():
            raise ConfigError(not_among("method", text, method_names(), most=20) + "; `opcycle list methods` shows all")
        path = known
    if not path.is_file():
        raise ConfigError("no such method file", file=path)
    stat = path.stat()
    return _read(path, (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=512)
def _read(path: Path, _stamp: tuple[int, int]) -> Preset:
    document = load_yaml(path)
    version = document.data.get("schema")
    if version != METHOD_SCHEMA:
        raise document.error(f"is {version!r}, but this version of opcycle reads {METHOD_SCHEMA!r}", "schema")
    method = build(Method, document)
    if path.parent == METHOD_FOLDER and method.name != path.stem:
        raise document.error(f"is {method.name!r}, but the file is {path.name}", "name")
    for parameter in _parameters(document):
        if not parameter.origin:
            raise document.error(
                f"is {show(parameter.value)}, but no comment on its line says `stated` (and what) or `assumed`",
                parameter.key,
            )
    return Preset(method, document)


def _parameters(document: Document) -> Iterator[Parameter]:
    def walk(value: Any, key: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, dict):
            for name, item in value.items():
                yield from walk(item, f"{key}.{name}")
        elif isinstance(value, list) and any(isinstance(item, (dict, list)) for item in value):
            for number, item in enumerate(value):
                yield from walk(item, f"{key}.{number}")
        else:
            items = value if isinstance(value, list) else [value]
            if any(_is_number(item) for item in items):
                yield key, value

    for key, value in walk(document.data.get("primitives", []), "primitives"):
        words = document.source_of(key) or ""
        found = re.match(r"(stated|assumed)\b[:;,]?\s*", words, re.IGNORECASE)
        yield Parameter(key, value, found[1].lower() if found else "", words[found.end() :] if found else "")


def _is_number(value: Any) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, (int, float)) or (
        isinstance(value, str) and bool(re.match(r"[0-9]|(random|block):", value))
    )


def steps_of(
    entries: tuple[str | dict[str, Any], ...], phase: str, beside: Path | None
) -> tuple[list[Step], list[str]]:
    """The steps of a workload's `methods`, and the names of the methods.

    An entry is a preset's name or file, `{use: NAME, set: {PRIMITIVE: {KEY: VALUE}}}`, or primitives written down:
    `{skip: {...}}`, several of them one after another. Raises ConfigError with the key in the workload.
    """
    steps: list[Step] = []
    names: list[str] = []
    for number, entry in enumerate(entries):
        place = f"methods.{number}"
        if isinstance(entry, str) or "use" in entry:
            found = _used(entry, place, phase, beside)
            steps.extend(found)
            names.append(found[0].method)
            continue
        for name, params in entry.items():
            data = {name: params}
            steps.append(_step(data, f"{place}.{name}", "", place))
            names.append(name)
    return steps, names


_NONE: Mapping[str, Any] = {}


def _used(entry: str | dict[str, Any], place: str, phase: str, beside: Path | None) -> list[Step]:
    if isinstance(entry, str):
        name, changes = entry, _NONE
    else:
        extra = sorted(set(entry) - {"use", "set"})
        if extra:
            raise ConfigError(not_among("key", extra[0], ["use", "set"], inside=place), key=f"{place}.{extra[0]}")
        name, changes = entry["use"], entry.get("set") or _NONE
        if not isinstance(name, str) or not isinstance(changes, Mapping):
            raise ConfigError("needs a name under use, and a mapping of primitives under set", key=place)
    if beside is not None and ("/" in name or name.endswith((".yaml", ".yml"))) and (beside.parent / name).exists():
        name = str(beside.parent / name)
    try:
        preset = load_method(name)
    except ConfigError as error:
        raise error if error.file else ConfigError(error.message, key=place) from None
    method = preset.method
    if phase not in method.phases:
        raise ConfigError(
            f"is {method.name}, a method for phase {' or '.join(method.phases)}, but the workload's phase is {phase}",
            key=place,
        )
    data = copy.deepcopy(preset.document.data["primitives"])
    for target, values in _nested(changes, place).items():
        _change(data, target, values, f"{place}.set")
    return [_step(item, f"{place}.{next(iter(item))}", method.name, place) for item in data]


def _nested(changes: Mapping[str, Any], place: str) -> dict[str, dict[str, Any]]:
    """{primitive: {key: value}}, whether written as nested mappings or with dotted keys."""
    found: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        target, dot, rest = key.partition(".")
        if dot:
            found.setdefault(target, {})[rest] = value
        elif isinstance(value, Mapping):
            found.setdefault(target, {}).update(value)
        else:
            raise ConfigError(
                f"is {show(value)}, but must be a mapping of parameters of {key}", key=f"{place}.set.{key}"
            )
    return found


def _change(data: list[dict[str, Any]], target: str, values: Mapping[str, Any], place: str) -> None:
    """Set parameters of the primitive `target` (`skip`, or `skip#2` for the second of that name)."""
    name, _, turn = target.partition("#")
    here = [item for item in data if next(iter(item)) == name]
    which = int(turn) - 1 if turn.isdecimal() else 0
    if not here or which >= len(here) or which < 0:
        raise ConfigError(not_among("primitive", target, [next(iter(item)) for item in data]), key=f"{place}.{target}")
    params = here[which][name]
    for key, value in values.items():
        at = params
        *path, last = key.split(".")
        for part in path:
            at = at.setdefault(part, {})
            if not isinstance(at, dict):
                raise ConfigError(f"{part} has no keys inside it", key=f"{place}.{target}.{key}")
        if isinstance(value, Mapping) and isinstance(at.get(last), dict):
            at[last].update(value)
        else:
            at[last] = value


def _step(data: dict[str, Any], place: str, method: str, outer: str) -> Step:
    name = next(iter(data))
    if name not in PRIMITIVES:
        raise ConfigError(not_among("primitive", name, [*PRIMITIVES, "use"], most=40), key=outer)
    try:
        entry = build(Entry, Document(None, data))
    except ConfigError as error:
        inner = (error.key or "").removeprefix(name).lstrip(".")
        raise ConfigError(error.message, key=f"{place}.{inner}" if inner else place) from None
    return Step(name, entry.params, place, method)


def nearest_method(text: str) -> str | None:
    """The preset that a search text is probably meant to be."""
    return nearest(text, method_names())
