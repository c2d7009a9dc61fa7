"""Workloads: a model, a phase, a batch and number formats, read from YAML and turned into a Trace.

`load_workload` is the door: a scenario that ships, by bare name, a scenario file of one's own, or a trace file. Any
key of a scenario can be set anew on the way in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field

from sim.config import ConfigError, Document, apply_overrides, build, load_yaml, nearest, show
from workloads.build import Builder, decode_passes, denoise_passes, encode_passes, make_trace, prefill_passes
from workloads.distributions import draw_lengths, load_length_set
from workloads.emit import FormatChoice
from workloads.formats import precision
from workloads.method_use import apply_methods, scenario_steps, set_parameters, split_parameters
from workloads.models import Model, load_model
from workloads.names import FormatName
from workloads.requests import batch_lengths, read_lengths
from workloads.schema import Count, Schema, Size
from workloads.shards import WHOLE, Parallel, micro_batches, shard, shares
from workloads.sparsity import ActivationPattern, WeightPattern
from workloads.trace import Pass, Trace
from workloads.transforms.compose import check_contradictions

SCENARIO_FOLDER = Path(__file__).parent / "scenarios"
SCENARIO_SCHEMA: Final = "opcycle/workload/1"
PREFIX = "workload."


Phase = Literal["prefill", "decode", "generate", "encode", "denoise"]


class Formats(Schema):
    """Number format of each class of tensors; experts and embeddings follow the weights unless stated."""

    weights: FormatName = "fp16"
    activations: FormatName = "fp16"
    kv: FormatName = "fp16"
    experts: FormatName | None = None
    embeddings: FormatName | None = None

    def choice(self) -> FormatChoice:
        """The formats with nothing left open."""
        return FormatChoice(
            self.weights, self.activations, self.kv, self.experts or self.weights, self.embeddings or self.weights
        )


def _preset(value: Any) -> Any:
    """A preset by name, alone or under `preset` beside formats that differ from it, as its formats.

    Embeddings and head of a preset take the format of the activations: the papers leave them out.
    """
    name = value.get("preset") if isinstance(value, Mapping) else value
    if not isinstance(name, str):
        return value
    chosen = precision(name)
    stated = {
        "weights": chosen.weights,
        "activations": chosen.activations,
        "kv": chosen.kv,
        "embeddings": chosen.activations,
    }
    return stated | {k: v for k, v in (value.items() if isinstance(value, Mapping) else ()) if k != "preset"}


class Scenario(Schema):
    """What a workload file says. `PHASES` lists the keys that each phase takes; any other is refused."""

    schema_: Literal["opcycle/workload/1"] = Field(SCENARIO_SCHEMA, alias="schema")
    name: str = Field(min_length=1)
    model: str = Field(min_length=1, description="A model that ships, a model YAML, or a Hugging Face config.json.")
    phase: Phase
    batch: Size | None = Field(None, description="Requests at once; 1 unless lengths says otherwise.")
    prompt: Size | None = Field(None, description="Positions of each request to process (prefill, generate, encode).")
    context: Count | None = Field(None, description="Positions of each request that are cached before the first pass.")
    steps: Size | None = Field(None, description="Decode steps (tokens generated a request) or denoising steps.")
    chunk: Size | None = Field(None, description="Most positions of a request in one prefill pass.")
    lengths: tuple[Size, ...] | str | None = Field(
        None,
        description="A length for each request, a CSV file of them, or a set to draw them from (sharegpt, alpaca), in "
        "place of prompt (decode: of context).",
    )
    parallel: Parallel = Field(WHOLE, description="Over how many devices the model is cut; one of them is simulated.")
    formats: Annotated[Formats, BeforeValidator(_preset, json_schema_input_type=Formats | str)] = Field(
        default=Formats(), description="Formats by class of tensors, or a preset such as W2A8KV4."
    )
    methods: tuple[str | dict[str, Any], ...] = Field(
        (), description="Methods, in order: names of presets, {use: NAME, set: {...}}, or primitives with parameters."
    )
    sparsity: WeightPattern | dict[str, WeightPattern] | None = Field(
        None, description="Zeros in weights: a pattern (2:4), or patterns by role or operator of linear layers."
    )
    activation_sparsity: ActivationPattern | dict[str, ActivationPattern] | None = Field(
        None, description="Zeros in activations: a pattern (relu:0.1), or patterns by role or operator that reads them."
    )
    seed: Count = Field(0, description="Start of the generator that draws lengths.")


@dataclass(frozen=True, slots=True)
class PhaseRule:
    """What a phase means: the kinds of model that have it, the key that its lengths replace, further keys it takes."""

    kinds: tuple[str, ...]
    length: str | None
    optional: tuple[str, ...] = ()


PHASES: dict[str, PhaseRule] = {
    "prefill": PhaseRule(("decoder",), "prompt", ("context", "chunk")),
    "decode": PhaseRule(("decoder",), "context", ("steps",)),
    "generate": PhaseRule(("decoder",), "prompt", ("steps", "chunk")),
    "encode": PhaseRule(("encoder", "vision"), "prompt"),
    "denoise": PhaseRule(("diffusion",), None, ("steps",)),
}


@dataclass(frozen=True)
class Workload:
    """A scenario with its model, or a trace from a file; `trace()` is what a machine runs.

    `scenario` and `model` are None for a trace file. `source` is where it came from, None if it was made in Python.
    `notes` are what a user should know of how it was read.
    """

    name: str
    scenario: Scenario | None
    model: Model | None
    lengths: tuple[int, ...] = ()
    source: Path | None = None
    notes: tuple[str, ...] = ()
    _built: list[Trace] = field(default_factory=list, compare=False, repr=False)

    def trace(self) -> Trace:
        """The operator graph; built at the first call, the same object afterwards."""
        if not self._built:
            self._built.append(_build(self))
        return self._built[0]

    def resolved(self) -> dict[str, Any]:
        """The scenario as plain data with every override in it, ready to be written as YAML and to be loaded again."""
        if self.scenario is None:
            raise ConfigError("a workload from a trace file has no scenario; write its trace instead", file=self.source)
        data: dict[str, Any] = self.scenario.model_dump(mode="json", by_alias=True, exclude_none=True)
        if isinstance(self.scenario.lengths, str):
            data["lengths"] = list(self.lengths)
        model = Path(_beside(self.scenario.model, self.source))
        if model.exists():
            data["model"] = str(model.resolve())
        return data


def workload_names() -> list[str]:
    """Names of the scenarios that ship, sorted."""
    return sorted(path.stem for path in SCENARIO_FOLDER.glob("*.yaml"))


def load_workload(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None, /, **keys: Any) -> Workload:
    """The workload of that name, or of a scenario file, a trace file or an ONNX file, with keys set anew.

    `overrides` has dotted keys, with or without `workload.` in front ({"workload.batch": "8", "formats.kv": "int8"});
    text is typed as YAML types it. `keys` are the same by keyword (`batch=8`, `formats={"kv": "int8"}`). Raises
    ConfigError for an unknown name (with the nearest), for anything wrong in a file, and for keys that contradict the
    phase or the model.
    """
    changes = _changes(overrides, keys)
    path = _find(name_or_path)
    if path.suffix == ".onnx":
        return _load_onnx(path, changes)
    if _is_json(path):
        return _load_trace(path, changes)
    document = load_yaml(path)
    version = document.data.get("schema")
    if version != SCENARIO_SCHEMA:
        raise document.error(f"is {version!r}, but this version of opcycle reads {SCENARIO_SCHEMA!r}", "schema")
    own, parameters = split_parameters(changes)
    return make_workload(set_parameters(apply_overrides(document, own), parameters))


def make_workload(document: Document | Mapping[str, Any]) -> Workload:
    """The workload that a scenario document (or plain data) describes, checked against its model."""
    if not isinstance(document, Document):
        document = Document(None, dict(document))
    scenario = build(Scenario, document)
    try:
        return _resolve(scenario, document.path)
    except ConfigError as error:
        if error.file is not None:
            raise
        raise document.error(error.message, error.key) from None


def _changes(overrides: Mapping[str, Any] | None, keys: Mapping[str, Any]) -> dict[str, Any]:
    """All overrides under dotted keys; mappings are merged key by key."""
    flat: dict[str, Any] = {}
    for key, value in {**(overrides or {}), **keys}.items():
        key = key.removeprefix(PREFIX)
        if isinstance(value, Mapping):
            flat.update({f"{key}.{inner}": v for inner, v in value.items()})
        elif isinstance(value, tuple):
            flat[key] = list(value)
        else:
            flat[key] = str(value) if isinstance(value, Path) else value
    return flat


def _find(name_or_path: str | Path) -> Path:
    text = str(name_or_path)
    path = Path(text)
    if isinstance(name_or_path, str) and "/" not in text and path.suffix not in (".yaml", ".yml", ".json", ".onnx"):
        known = SCENARIO_FOLDER / f"{text}.yaml"
        if known.is_file():
            return known
        if not path.exists():
            near = nearest(text, workload_names())
            hint = f"; nearest is {near!r}" if near else ""
            raise ConfigError(
                f"unknown workload {text!r}: neither one that ships (`opcycle list workloads`), "
                f"nor a scenario or trace file{hint}"
            )
    if path.is_dir():
        raise ConfigError("is a folder, but a workload is a scenario or trace file", file=path)
    if not path.is_file():
        raise ConfigError("no such workload file", file=path)
    return path


def _is_json(path: Path) -> bool:
    """Whether a file is a trace, by its first character: traces may have any file ending."""
    try:
        with path.open("rb") as file:
            return file.read(256).lstrip().startswith(b"{")
    except OSError as error:
        raise ConfigError(f"cannot be read ({error.strerror})", file=path) from None


def _load_trace(path: Path, changes: Mapping[str, Any]) -> Workload:
    from workloads.trace_file import read_trace

    trace = read_trace(path)
    if changes:
        raise ConfigError(
            "cannot be set: a trace file is fixed; override the scenario that it was built from",
            file=path,
            key=next(iter(changes)),
        )
    stated = dict(trace.meta).get("workload")
    name = stated if isinstance(stated, str) and stated else path.stem
    return Workload(name, None, None, source=path, _built=[trace])


def _load_onnx(path: Path, changes: Mapping[str, Any]) -> Workload:
    from workloads.onnx.load import load_onnx

    trace, notes = load_onnx(path, changes)
    return Workload(path.stem, None, None, source=path, notes=tuple(notes), _built=[trace])


def _resolve(scenario: Scenario, path: Path | None) -> Workload:
    """Load the model and check what no single key shows: phase, lengths, positions, methods."""
    try:
        model = load_model(_beside(scenario.model, path))
    except ConfigError as error:
        if error.file is not None:
            raise
        raise ConfigError(error.message, key="model") from None
    rule = PHASES[scenario.phase]
    if model.kind not in rule.kinds:
        fitting = ", ".join(name for name, r in PHASES.items() if model.kind in r.kinds)
        raise ConfigError(
            f"is {scenario.phase!r}, but {model.name} is of kind {model.kind}, whose phases are: {fitting}", key="phase"
        )
    # Images have one length, which the model states.
    length_key = None if model.patch is not None else rule.length
    _check_keys(scenario, model, length_key, rule)
    lengths = _lengths(scenario, model, length_key, path)
    _check_positions(scenario, model, lengths, length_key)
    _check_parallel(scenario, model, lengths)
    steps, _ = scenario_steps(scenario, path)
    check_contradictions(steps, model.layers, model.name)
    return Workload(scenario.name, scenario, model, lengths, path)


def _beside(name: str, path: Path | None) -> str:
    """A relative path in a scenario file is meant from that file's folder, if there is such a file there."""
    if path is not None and ("/" in name or Path(name).suffix) and (path.parent / name).exists():
        return str(path.parent / name)
    return name


def _check_keys(scenario: Scenario, model: Model, length_key: str | None, rule: PhaseRule) -> None:
    taken = {length_key, *rule.optional} | ({"lengths"} if length_key else set())
    for key in ("prompt", "context", "steps", "chunk", "lengths"):
        if getattr(scenario, key) is not None and key not in taken:
            others = ", ".join(["batch", *sorted(k for k in taken if k)])
            length = f"; the length of its requests is {length_key!r}" if length_key else ""
            raise ConfigError(
                f"is {show(getattr(scenario, key))}, but phase {scenario.phase} of {model.name} takes no {key}{length}"
                f"; keys that apply: {others}",
                key=key,
            )
    if length_key is None:
        return
    if scenario.lengths is None and getattr(scenario, length_key) is None:
        raise ConfigError(f"is missing; phase {scenario.phase} needs it, or lengths", key=length_key)
    if scenario.lengths is not None and getattr(scenario, length_key) is not None:
        raise ConfigError(f"states lengths a second time; give either {length_key} or lengths", key="lengths")


def _lengths(scenario: Scenario, model: Model, length_key: str | None, path: Path | None) -> tuple[int, ...]:
    if length_key is None:
        assert model.patch is not None
        return batch_lengths(scenario.batch, model.patch.tokens, None, False)
    listed = scenario.lengths
    if isinstance(listed, str):
        file = Path(_beside(listed, path))
        if file.suffix in (".yaml", ".yml") or not (file.suffix or "/" in listed or file.exists()):
            return _drawn(scenario, model, str(file), length_key)
        return batch_lengths(scenario.batch, None, read_lengths(file), True)
    if listed is not None and not listed:
        raise ConfigError("lists no requests", key="lengths")
    return batch_lengths(scenario.batch, getattr(scenario, length_key), listed, False)


def _drawn(scenario: Scenario, model: Model, name: str, length_key: str) -> tuple[int, ...]:
    """Lengths from a set of requests, cut where the model has no more positions."""
    if scenario.batch is None:
        raise ConfigError(
            f"is missing; how many requests are drawn from {scenario.lengths!r} is not known", key="batch"
        )
    requests = load_length_set(name)
    longest = model.max_position - _further_positions(scenario, length_key)
    if longest < 1:
        raise ConfigError(f"leaves no position of the {model.max_position} of {model.name} for a request", key="steps")
    return draw_lengths(requests, scenario.batch, scenario.seed, scenario.phase == "decode", longest)


def _further_positions(scenario: Scenario, length_key: str | None) -> int:
    """Positions of a request beyond its length."""
    steps = (scenario.steps or 1) if scenario.phase in ("decode", "generate") else 0
    cached = (scenario.context or 0) if length_key == "prompt" else 0
    # A generated token is processed one step later: prompt, then all new tokens but the last of them.
    return cached + (steps - 1 if scenario.phase == "generate" else steps)


def _check_parallel(scenario: Scenario, model: Model, lengths: tuple[int, ...]) -> None:
    """Refuse a cut over devices that the model or the batch does not allow."""
    shard(model, scenario.parallel)
    if scenario.parallel.pipeline > 1:
        if scenario.phase not in ("prefill", "decode", "generate"):
            raise ConfigError(
                f"is {scenario.parallel.pipeline}, but only prefill, decode and generate can be cut into stages, not "
                f"{scenario.phase}",
                key="parallel.pipeline",
            )
        if scenario.phase != "prefill" and (scenario.steps or 1) > (scenario.phase == "generate"):
            micro_batches(shares(lengths, scenario.parallel.expert)[0], scenario.parallel.pipeline)
    shares(lengths, scenario.parallel.expert)
    if scenario.parallel.expert > 1 and scenario.methods:
        raise ConfigError(
            f"is {scenario.parallel.expert}, but methods do not know of experts on other devices; leave out either",
            key="parallel.expert",
        )


def _check_positions(scenario: Scenario, model: Model, lengths: tuple[int, ...], length_key: str | None) -> None:
    """Refuse positions that the model has none of."""
    further = _further_positions(scenario, length_key)
    cached = (scenario.context or 0) if length_key == "prompt" else 0
    extra = further - cached
    needed = max(lengths) + further
    if needed > model.max_position:
        key = "lengths" if scenario.lengths is not None else (length_key or "model")
        raise ConfigError(
            f"needs {needed} positions ({max(lengths)}{f' + {cached} cached' if cached else ''}"
            f"{f' + {extra} steps' if extra else ''}), but {model.name} has max_position {model.max_position}",
            key=key,
        )


def _build(workload: Workload) -> Trace:
    scenario, model, lengths = workload.scenario, workload.model, workload.lengths
    assert scenario is not None
    assert model is not None
    builder = Builder(shard(model, scenario.parallel), scenario.formats.choice(), scenario.parallel)
    turns = [_passes(builder, scenario, share) for share in shares(lengths, scenario.parallel.expert)]
    # The device with the longest requests is built; tokens are those of all that share the experts.
    passes = []
    for number, mine in enumerate(turns[0]):
        alike = [turn[number] for turn in turns if number < len(turn)]
        all_tokens, all_generated = sum(p.tokens for p in alike), sum(p.generated for p in alike)
        passes.append(replace(mine, tokens=all_tokens, generated=all_generated))
    trace = make_trace(builder, len(lengths), passes, workload=scenario.name, phase=scenario.phase)
    return apply_methods(trace, workload, builder)


def _passes(builder: Builder, scenario: Scenario, lengths: tuple[int, ...]) -> list[Pass]:
    """The passes of a scenario's phase over requests of `lengths`."""
    steps = scenario.steps or 1
    if scenario.phase == "prefill":
        return prefill_passes(builder, lengths, scenario.chunk, scenario.context or 0)
    if scenario.phase == "decode":
        return decode_passes(builder, lengths, steps)
    if scenario.phase == "generate":
        first = prefill_passes(builder, lengths, scenario.chunk)
        return first + (decode_passes(builder, lengths, steps - 1) if steps > 1 else [])
    if scenario.phase == "encode":
        return encode_passes(builder, lengths)
    return denoise_passes(builder, len(lengths), steps)
