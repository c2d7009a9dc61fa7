"""Models as data: the facts that define a transformer's operator graph, where to find them, and how many weights they
mean.

A model is a YAML file of the zoo (by bare name or alias), a YAML file of one's own, or a `config.json` as Hugging
Face writes it; all become the same frozen `Model`. Parameter counts are worked out here in closed form, apart from
the graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final, Literal

from pydantic import Field, model_validator

from sim.config import ConfigError, build, load_yaml, nearest, parse_yaml
from workloads.schema import Count, Schema, Size

MODEL_FOLDER = Path(__file__).parent / "models"
MODEL_SCHEMA: Final = "opcycle/model/1"

GATED = ("swiglu", "geglu", "swiglu_clamped")


class Latent(Schema):
    """Multi-head latent attention: ranks of the compressed query (absent: none) and key/value, and the rotary part."""

    kv_rank: Size
    rope_dim: Size
    q_rank: Size | None = None


class Window(Schema):
    """Local layers: `sliding` sees the last `size` positions, `chunk` its own chunk; `pattern` is tiled over layers."""

    kind: Literal["sliding", "chunk"] = "sliding"
    size: Size
    pattern: tuple[Literal["local", "global"], ...] = Field(("local",), min_length=1)


class Attention(Schema):
    """Heads and what is done to them. `qk_norm`: per head, with a gain (weighted) or without."""

    heads: Size
    kv_heads: Size
    head_dim: Size
    v_head_dim: Size | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: Literal["none", "weighted", "unweighted"] = "none"
    softcap: bool = False
    sink_logits: bool = False
    latent: Latent | None = None
    window: Window | None = None

    @model_validator(mode="after")
    def _heads_fit(self) -> Attention:
        if self.heads % self.kv_heads:
            raise ValueError(f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})")
        if self.latent is not None and self.latent.rope_dim >= self.head_dim:
            raise ValueError(f"latent.rope_dim ({self.latent.rope_dim}) must be below head_dim ({self.head_dim})")
        return self

    @property
    def value_dim(self) -> int:
        """Width of one head's value."""
        return self.v_head_dim or self.head_dim


class Ffn(Schema):
    """A dense feed-forward block; swiglu and geglu are gated (three matrices), the others have two."""

    hidden: Size
    activation: Literal["relu", "gelu", "silu", "swiglu", "geglu", "swiglu_clamped"]
    bias: bool = False


class Moe(Schema):
    """Experts of width `hidden`; layers before `first_dense`, and all but every `every`-th, are dense."""

    experts: Size
    top_k: Size
    hidden: Size
    activation: Literal["relu", "gelu", "silu", "swiglu", "geglu", "swiglu_clamped"] = "swiglu"
    shared_hidden: Count = 0
    first_dense: Count = 0
    every: Size = 1
    bias: bool = False
    router_bias: bool = False
    scoring: Literal["softmax", "sigmoid"] = "softmax"

    @model_validator(mode="after")
    def _experts_suffice(self) -> Moe:
        if self.top_k > self.experts:
            raise ValueError(f"top_k ({self.top_k}) must not exceed experts ({self.experts})")
        return self


class Norm(Schema):
    """Normalisation: before each half of a layer (pre), after its residual (post), or around each half (sandwich)."""

    kind: Literal["rmsnorm", "layernorm"]
    place: Literal["pre", "post", "sandwich"] = "pre"
    affine: bool = True


class Patch(Schema):
    """Image input: patches of `size` x `size` pixels of `channels` values, on a square of `image` pixels."""

    size: Size
    channels: Size
    image: Size
    class_token: bool = False

    @property
    def tokens(self) -> int:
        """Positions that an image becomes."""
        return (self.image // self.size) ** 2 + self.class_token

    @property
    def pixels(self) -> int:
        """Values in one patch."""
        return self.size * self.size * self.channels


class Conditioning(Schema):
    """Adaptive norms of a diffusion transformer: sinusoid width of the time step, class labels, output channels."""

    frequencies: Size
    classes: Size
    out_channels: Size


class Published(Schema):
    """The parameter count that the model's authors (or their checkpoint) state."""

    parameters: Size


class Model(Schema):
    """A transformer: everything that its operator graph and its parameter count depend on."""

    schema_: Literal["opcycle/model/1"] = Field(MODEL_SCHEMA, alias="schema")
    name: str = Field(min_length=1)
    aliases: tuple[str, ...] = ()
    family: str = ""
    kind: Literal["decoder", "encoder", "vision", "diffusion"] = "decoder"
    layers: Size
    hidden: Size
    attention: Attention
    ffn: Ffn | None = None
    moe: Moe | None = None
    norm: Norm
    max_position: Size
    position: Literal["rotary", "rotary_local", "learned", "fixed", "none"] = "rotary"
    position_rows: Size | None = None
    vocab: Size | None = None
    tied_embeddings: bool = False
    embedding_scale: bool = False
    embedding_norm: bool = False
    token_types: Count = 0
    logit_softcap: bool = False
    pooler: bool = False
    classes: Count = 0
    patch: Patch | None = None
    conditioning: Conditioning | None = None
    published: Published | None = None

    @model_validator(mode="after")
    def _parts_fit(self) -> Model:
        if self.kind in ("decoder", "encoder") and self.vocab is None:
            raise ValueError(f"a {self.kind} needs vocab")
        if self.kind in ("vision", "diffusion") and self.patch is None:
            raise ValueError(f"a {self.kind} model needs patch")
        if (self.kind == "diffusion") != (self.conditioning is not None):
            raise ValueError("conditioning belongs to a diffusion model, and such a model needs it")
        if self.ffn is None and self.moe is None:
            raise ValueError("a model needs ffn, moe or both")
        if self.moe is not None and self.ffn is None and (self.moe.first_dense or self.moe.every > 1):
            raise ValueError("dense layers (moe.first_dense, moe.every) need ffn")
        if self.moe is not None and self.moe.first_dense >= self.layers:
            raise ValueError(f"moe.first_dense ({self.moe.first_dense}) must be below layers ({self.layers})")
        return self

    @property
    def rotary_dim(self) -> int:
        """Width of the rotated part of a head; 0 without rotary positions."""
        if not self.position.startswith("rotary"):
            return 0
        return self.attention.latent.rope_dim if self.attention.latent else self.attention.head_dim

    def layer_kinds(self) -> tuple[LayerKind, ...]:
        """What each layer is, first to last."""
        window, moe = self.attention.window, self.moe
        pattern = window.pattern if window else ("global",)
        return tuple(
            LayerKind(
                local=pattern[i % len(pattern)] == "local",
                moe=moe is not None and i >= moe.first_dense and (i + 1) % moe.every == 0,
            )
            for i in range(self.layers)
        )

    def parameters(self) -> Parameters:
        """All weights, and those that one token uses."""
        return count_parameters(self)

    def kv_elements_per_token(self) -> int:
        """Elements that one position adds to the cache, all layers (a window does not shorten it)."""
        a = self.attention
        entry = a.latent.kv_rank + a.latent.rope_dim if a.latent else a.kv_heads * (a.head_dim + a.value_dim)
        return self.layers * entry


@dataclass(frozen=True, slots=True)
class LayerKind:
    """One layer's variant: windowed or not, experts or not."""

    local: bool
    moe: bool


@dataclass(frozen=True, slots=True)
class Parameters:
    """Number of weights: all, and those one token touches (every matrix but the experts not chosen)."""

    total: int
    active: int


def _linear(inputs: int, outputs: int, bias: bool = False) -> int:
    return inputs * outputs + bias * outputs


def _norm(model: Model, width: int) -> int:
    if not model.norm.affine:
        return 0
    return width * (2 if model.norm.kind == "layernorm" else 1)


def _attention_parameters(model: Model, kind: LayerKind) -> int:
    a, d = model.attention, model.hidden
    if a.latent is not None:
        nope = a.head_dim - a.latent.rope_dim
        rank = a.latent.q_rank
        query = _linear(d, a.heads * a.head_dim)
        if rank is not None:
            query = _linear(d, rank) + _norm(model, rank) + _linear(rank, a.heads * a.head_dim)
        down = _linear(d, a.latent.kv_rank + a.latent.rope_dim) + _norm(model, a.latent.kv_rank)
        up = _linear(a.latent.kv_rank, a.heads * (nope + a.value_dim))
        return query + down + up + _linear(a.heads * a.value_dim, d, a.out_bias)
    total = _linear(d, a.heads * a.head_dim + a.kv_heads * (a.head_dim + a.value_dim), a.qkv_bias)
    total += _linear(a.heads * a.value_dim, d, a.out_bias)
    total += 2 * a.head_dim * (a.qk_norm == "weighted")
    return total + a.heads * a.sink_logits


def _ffn_parameters(hidden: int, width: int, activation: str, bias: bool) -> int:
    inner = 2 * width if activation in GATED else width
    return _linear(hidden, inner, bias) + _linear(width, hidden, bias)


def count_parameters(model: Model) -> Parameters:
    """Count the weights of `model` matrix by matrix, from its shape alone."""
    d = model.hidden
    total = idle = 0
    for kind in model.layer_kinds():
        total += _attention_parameters(model, kind)
        total += _norm(model, d) * (4 if model.norm.place == "sandwich" else 2)
        if kind.moe:
            assert model.moe is not None
            moe = model.moe
            expert = _ffn_parameters(d, moe.hidden, moe.activation, moe.bias)
            total += moe.experts * expert + _linear(d, moe.experts, moe.router_bias)
            idle += (moe.experts - moe.top_k) * expert
            if moe.shared_hidden:
                total += _ffn_parameters(d, moe.shared_hidden, moe.activation, moe.bias)
        else:
            assert model.ffn is not None
            total += _ffn_parameters(d, model.ffn.hidden, model.ffn.activation, model.ffn.bias)
        if model.conditioning is not None:
            total += _linear(d, 6 * d, True)
    if model.vocab is not None:
        total += model.vocab * d * (1 if model.tied_embeddings or model.kind == "encoder" else 2)
    if model.position in ("learned", "fixed"):
        total += (model.position_rows or model.max_position) * d
    total += model.token_types * d + _norm(model, d) * model.embedding_norm
    if model.norm.place != "post":
        total += _norm(model, d)
    total += _linear(d, d, True) * model.pooler
    if model.patch is not None:
        total += _linear(model.patch.pixels, d, True) + d * model.patch.class_token
    if model.classes:
        total += _linear(d, model.classes, True)
    if model.conditioning is not None and model.patch is not None:
        c = model.conditioning
        # One more label than classes: the null label of classifier-free guidance.
        total += _linear(c.frequencies, d, True) + _linear(d, d, True) + (c.classes + 1) * d
        total += _linear(d, 2 * d, True) + _linear(d, model.patch.size**2 * c.out_channels, True)
    return Parameters(total, total - idle)


def model_names() -> list[str]:
    """Names of the models that ship, sorted."""
    return sorted(path.stem for path in MODEL_FOLDER.glob("*.yaml"))


@lru_cache(maxsize=1)
def model_aliases() -> dict[str, str]:
    """Other names of the models that ship: {alias: name}. Only the line that states them is read of each file."""
    found: dict[str, str] = {}
    for path in sorted(MODEL_FOLDER.glob("*.yaml")):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("aliases:"):
                found.update(dict.fromkeys(parse_yaml(line).data["aliases"], path.stem))
                break
    return found


def load_model(name_or_path: str | Path) -> Model:
    """The model of that name or alias, or of a YAML file, or of a `config.json` (or the folder that holds one).

    Raises ConfigError for a name that does not ship (with the nearest that does) and for anything wrong in a file.
    """
    text = str(name_or_path)
    path = Path(text)
    if isinstance(name_or_path, str) and "/" not in text and path.suffix not in (".yaml", ".yml", ".json"):
        known = MODEL_FOLDER / f"{text}.yaml"
        if known.is_file():
            return _load_yaml_model(known)
        alias = model_aliases().get(text)
        if alias is not None:
            return _load_yaml_model(MODEL_FOLDER / f"{alias}.yaml")
        if not path.exists():
            near = nearest(text, [*model_names(), *model_aliases()], cutoff=0.0)
            raise ConfigError(
                f"unknown model {text!r}: neither a model that ships (`opcycle list models`), "
                f"nor a YAML file, nor a config.json; nearest is {near!r}"
            )
    if path.is_dir():
        path = path / "config.json"
    if not path.is_file():
        raise ConfigError(f"no such model file: {path}")
    if path.suffix == ".json":
        from workloads.huggingface import load_huggingface

        return load_huggingface(path)
    return _load_yaml_model(path)


@lru_cache(maxsize=64)
def _parse_model(path: Path, _stamp: tuple[int, int]) -> Model:
    document = load_yaml(path)
    version = document.data.get("schema")
    if version != MODEL_SCHEMA:
        raise document.error(f"is {version!r}, but this version of opcycle reads {MODEL_SCHEMA!r}", "schema")
    return build(Model, document)


def _load_yaml_model(path: Path) -> Model:
    stat = path.stat()
    return _parse_model(path, (stat.st_mtime_ns, stat.st_size))
