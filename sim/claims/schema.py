"""Claims as data: one YAML file a paper, with what the paper says, under which setting, and the runs that test it.

A number says in a comment on its line whether the paper states it or whether it is assumed, as in a preset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import Field, model_validator

from sim.claims.formula import runs_of
from sim.config import ConfigError, Document, build, load_yaml, nearest, not_among
from workloads.methods import Paper, load_method
from workloads.schema import Schema, Size

FOLDER = Path(__file__).parent / "data"
CLAIMS_SCHEMA: Final = "opcycle/claims/1"
Number = int | float


class AttentionGraph(Schema):
    """An attention graph on the abstract streaming machine, as `opcycle unit stream --attention` runs it."""

    variant: Literal["naive", "max_subtracted", "reordered", "no_max", "memory_free"]
    n: Size
    d: Size


class Run(Schema):
    """One run: a workload on a machine, a workload's trace alone, one operator, or an attention graph.

    `set` are overrides with dotted keys, as for `--set`: `hw.` for the machine, `workload.` for the workload.
    """

    hardware: str | None = None
    workload: str | None = None
    operator: str | None = Field(None, description="One operator with its sizes: gemm M=1 N=4096 K=4096.")
    attention_graph: AttentionGraph | None = None
    set: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_kind(self) -> Run:
        kinds = [self.workload is not None, self.operator is not None, self.attention_graph is not None]
        if sum(kinds) != 1:
            raise ConfigError("needs one of workload, operator and attention_graph")
        if self.operator is not None and self.hardware is None:
            raise ConfigError("needs hardware, on which the operator runs")
        if self.attention_graph is not None and (self.hardware is not None or self.set):
            raise ConfigError("has an attention graph, which takes neither hardware nor settings")
        return self


class Claim(Schema):
    """One figure. `limit` says what kind of figure the paper gives; `why` is what explains a difference from ours."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    claim: str = Field(min_length=1, description="The paper's words and numbers.")
    value: Number | tuple[Number, Number] = Field(description="The claimed figure, or the two ends of a range.")
    limit: Literal["exact", "about", "average", "up_to", "at_least", "range"]
    unit: str = Field("x", description="x is a ratio.")
    setting: str = Field(min_length=1, description="Under which conditions the paper claims it.")
    ours: str = Field(description="Formula over figures of the runs.")
    here: str = Field(min_length=1, description="What is run here in place of the paper's setting.")
    why: str = Field(min_length=1, description="One sentence for readers who see the two differ.")


class Claims(Schema):
    """The claims of one paper and their runs."""

    schema_: Literal["opcycle/claims/1"] = Field(CLAIMS_SCHEMA, alias="schema")
    method: str | None = Field(None, description="The preset that models the paper's method, and names the paper.")
    paper: Paper | None = Field(None, description="The paper, where no preset names it.")
    claims: tuple[Claim, ...] = Field(min_length=1)
    runs: dict[str, Run] = Field(min_length=1)

    @model_validator(mode="after")
    def _runs_exist(self) -> Claims:
        if (self.method is None) == (self.paper is None):
            raise ConfigError("needs either method or paper")
        used: set[str] = set()
        for claim in self.claims:
            for name in runs_of(claim.ours):
                if name not in self.runs:
                    raise ConfigError(f"claim {claim.id}: {not_among('run', name, self.runs)}")
                used.add(name)
            if (claim.limit == "range") != isinstance(claim.value, tuple):
                raise ConfigError(f"claim {claim.id}: a range has two ends, any other figure one value")
        if idle := sorted(set(self.runs) - used):
            raise ConfigError(f"run {idle[0]} is in no claim's formula")
        return self


@dataclass(frozen=True, slots=True)
class Source:
    """A claim with the file that it stands in."""

    claim: Claim
    file: Claims
    document: Document

    @property
    def paper(self) -> Paper:
        """Where the claim is published."""
        if self.file.paper is not None:
            return self.file.paper
        assert self.file.method is not None
        return load_method(self.file.method).method.paper

    @property
    def name(self) -> str:
        """The file's name without its ending, which calls for all of its claims."""
        assert self.document.path is not None
        return self.document.path.stem


def read_claims(path: Path) -> tuple[Source, ...]:
    """The claims of one file. Raises ConfigError."""
    document = load_yaml(path)
    version = document.data.get("schema")
    if version != CLAIMS_SCHEMA:
        raise document.error(f"is {version!r}, but this version of opcycle reads {CLAIMS_SCHEMA!r}", "schema")
    file = build(Claims, document)
    for run in file.runs.values():
        model = run.set.get("workload.model")
        if isinstance(model, str) and model.endswith(".yaml"):
            run.set["workload.model"] = str(path.parent / model)
    return tuple(Source(claim, file, document) for claim in file.claims)


@cache
def all_claims() -> tuple[Source, ...]:
    """Every claim that ships, file by file."""
    return tuple(claim for path in sorted(FOLDER.glob("*.yaml")) for claim in read_claims(path))


def chosen(names: Sequence[str]) -> list[Source]:
    """The claims of these IDs, file names, presets or YAML files, each once; all without any. Raises ConfigError."""
    if not names:
        return list(all_claims())
    found: dict[tuple[str, str], Source] = {}
    for name in names:
        here = read_claims(Path(name)) if name.endswith((".yaml", ".yml")) else _named(name)
        found |= {(str(source.document.path), source.claim.id): source for source in here}
    return list(found.values())


def _named(name: str) -> tuple[Source, ...]:
    found = tuple(s for s in all_claims() if name in (s.claim.id, s.name, s.file.method))
    if not found:
        known = {n for s in all_claims() for n in (s.claim.id, s.name)}
        near = nearest(name, known)
        hint = f"; nearest is {near!r}" if near else ""
        raise ConfigError(f"unknown claim {name!r}{hint}; `opcycle claims --list` shows all")
    return found
