"""Reads a `config.json` as Hugging Face transformers writes it, offline, into a Model.

What the file leaves to the code of a model class (biases, gated or not, number of norms, defaults) stands in one
table, by `model_type`. A type that is not in the table is refused: guessing it would give a wrong operator graph
without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sim.config import ConfigError, build, nearest
from sim.document import read_json
from workloads.models import Model

# Keys that mean the same in different families, most common first.
SYNONYMS: dict[str, tuple[str, ...]] = {
    "hidden_size": ("hidden_size", "n_embd", "d_model"),
    "num_hidden_layers": ("num_hidden_layers", "n_layer"),
    "num_attention_heads": ("num_attention_heads", "n_head"),
    "intermediate_size": ("intermediate_size", "ffn_dim", "n_inner"),
    "max_position_embeddings": ("max_position_embeddings", "n_positions", "n_ctx"),
    "num_experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "num_experts_per_tok": ("num_experts_per_tok", "experts_per_token", "num_experts_per_token"),
    "hidden_act": ("hidden_act", "hidden_activation", "activation_function"),
}

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
}
GATED_FORM = {"silu": "swiglu", "gelu": "geglu"}


@dataclass
class Config:
    """The keys of a config.json; null counts as absent. `defaults` are those of the model class in transformers."""

    path: Path
    data: dict[str, Any]
    defaults: dict[str, Any] = field(default_factory=dict)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of `key` or of a synonym; else the class default; else `default`."""
        for name in SYNONYMS.get(key, (key,)):
            if self.data.get(name) is not None:
                return self.data[name]
        return self.defaults.get(key, default)

    def size(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self.get(key, default)
        names = " or ".join(SYNONYMS.get(key, (key,)))
        if value is None:
            raise ConfigError(f"is missing; the operator graph needs {names}", file=self.path, key=key)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ConfigError(f"is {value!r}, but must be a whole number of at least 1", file=self.path, key=key)
        return value

    def count(self, key: str, default: int = 0) -> int:
        """A whole number, zero allowed."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"is {value!r}, but must be a whole number of at least 0", file=self.path, key=key)
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise ConfigError(f"is {value!r}, but must be true or false", file=self.path, key=key)
        return value

    def refuse(self, message: str, key: str) -> ConfigError:
        return ConfigError(message, file=self.path, key=key)

    def activation(self, gated: bool) -> str:
        value = self.get("hidden_act")
        plain = ACTIVATIONS.get(value) if isinstance(value, str) else None
        if plain is None or (gated and plain not in GATED_FORM):
            raise self.refuse(f"is {value!r}, but must be one of {', '.join(ACTIVATIONS)}", "hidden_act")
        return GATED_FORM[plain] if gated else plain


def _attention(c: Config, **facts: Any) -> dict[str, Any]:
    hidden, heads = c.size("hidden_size"), c.size("num_attention_heads")
    if c.get("head_dim") is None and hidden % heads:
        raise c.refuse(f"is {hidden}, which {heads} heads do not divide, and head_dim is absent", "hidden_size")
    return {
        "heads": heads,
        "kv_heads": c.size("num_key_value_heads", heads),
        "head_dim": c.size("head_dim", hidden // heads),
        **facts,
    }


def _base(c: Config, **facts: Any) -> dict[str, Any]:
    return {
        "layers": c.size("num_hidden_layers"),
        "hidden": c.size("hidden_size"),
        "vocab": c.size("vocab_size"),
        "max_position": c.size("max_position_embeddings"),
        "tied_embeddings": c.flag("tie_word_embeddings", False),
        "norm": {"kind": "rmsnorm"},
        **facts,
    }


def _gated(c: Config, bias: bool = False) -> dict[str, Any]:
    return {"hidden": c.size("intermediate_size"), "activation": c.activation(True), "bias": bias}


def _pattern(c: Config, rule: Callable[[int], bool]) -> list[str]:
    """Local or global for each layer: from `layer_types` if the file has it, else by the family's rule."""
    layers = c.size("num_hidden_layers")
    types = c.get("layer_types")
    if types is None:
        return ["local" if rule(i) else "global" for i in range(layers)]
    if not isinstance(types, list) or len(types) != layers:
        raise c.refuse(f"must list one type for each of the {layers} layers", "layer_types")
    for name in types:
        if name not in ("sliding_attention", "chunked_attention", "full_attention"):
            raise c.refuse(
                f"has {name!r}; allowed: sliding_attention, chunked_attention, full_attention", "layer_types"
            )
    return ["global" if name == "full_attention" else "local" for name in types]


def _shortest(pattern: list[str]) -> list[str]:
    """The shortest stretch that, tiled, gives the pattern."""
    for period in range(1, len(pattern) + 1):
        if all(name == pattern[i % period] for i, name in enumerate(pattern)):
            return pattern[:period]
    return pattern


def _window(c: Config, rule: Callable[[int], bool], key: str = "sliding_window", kind: str = "sliding") -> Any:
    """The window, or None where the file has none or no layer uses it."""
    if c.get(key) is None:
        return None
    pattern = _shortest(_pattern(c, rule))
    return {"kind": kind, "size": c.size(key), "pattern": pattern} if "local" in pattern else None


def _llama(c: Config) -> dict[str, Any]:
    bias = c.flag("attention_bias", False)
    return _base(
        c,
        attention=_attention(c, qkv_bias=bias, out_bias=bias),
        ffn=_gated(c, c.flag("mlp_bias", False)),
    )


def _mistral(c: Config) -> dict[str, Any]:
    # An absent sliding_window means the class default of 4096; an explicit null means none.
    size = c.data.get("sliding_window", 4096)
    window = None if size is None else {"size": size, "pattern": ["local"]}
    return _base(c, attention=_attention(c, window=window), ffn=_gated(c))


def _mixtral(c: Config) -> dict[str, Any]:
    moe = {
        "experts": c.size("num_experts"),
        "top_k": c.size("num_experts_per_tok"),
        "hidden": c.size("intermediate_size"),
        "activation": c.activation(True),
    }
    return _base(c, attention=_attention(c, window=_window(c, lambda i: True)), moe=moe)


def _qwen_window(c: Config) -> Any:
    if not c.flag("use_sliding_window", False):
        return None
    first = c.count("max_window_layers", 28)
    return _window(c, lambda i: i >= first)


def _qwen2(c: Config) -> dict[str, Any]:
    return _base(c, attention=_attention(c, qkv_bias=True, window=_qwen_window(c)), ffn=_gated(c))


def _qwen3(c: Config) -> dict[str, Any]:
    bias = c.flag("attention_bias", False)
    attention = _attention(c, qkv_bias=bias, out_bias=bias, qk_norm="weighted", window=_qwen_window(c))
    return _base(c, attention=attention, ffn=_gated(c))


def _qwen3_moe(c: Config) -> dict[str, Any]:
    facts = _qwen3(c)
    dense = c.get("mlp_only_layers", [])
    if dense != list(range(len(dense))):
        raise c.refuse(f"is {dense}; only the first layers can be dense here", "mlp_only_layers")
    facts["moe"] = {
        "experts": c.size("num_experts"),
        "top_k": c.size("num_experts_per_tok"),
        "hidden": c.size("moe_intermediate_size"),
        "activation": c.activation(True),
        "first_dense": len(dense),
        "every": c.size("decoder_sparse_step", 1),
    }
    if not dense and facts["moe"]["every"] == 1:
        del facts["ffn"]
    return facts


def _deepseek(c: Config, scoring: str, router_bias: bool) -> dict[str, Any]:
    heads, rope = c.size("num_attention_heads"), c.size("qk_rope_head_dim")
    if c.size("moe_layer_freq", 1) != 1:
        raise c.refuse(f"is {c.get('moe_layer_freq')}; only 1 is known of this family", "moe_layer_freq")
    width = c.size("moe_intermediate_size")
    first_dense = c.count("first_k_dense_replace")
    bias = c.flag("attention_bias", False)
    return _base(
        c,
        attention={
            "heads": heads,
            "kv_heads": heads,
            "head_dim": c.size("qk_nope_head_dim") + rope,
            "v_head_dim": c.size("v_head_dim"),
            "out_bias": bias,
            "latent": {"kv_rank": c.size("kv_lora_rank"), "rope_dim": rope, "q_rank": c.get("q_lora_rank")},
        },
        ffn=_gated(c) if first_dense else None,
        moe={
            "experts": c.size("num_experts"),
            "top_k": c.size("num_experts_per_tok"),
            "hidden": width,
            "activation": c.activation(True),
            "shared_hidden": width * c.count("n_shared_experts"),
            "first_dense": first_dense,
            "scoring": scoring,
            "router_bias": router_bias,
        },
    )


def _gemma(c: Config) -> dict[str, Any]:
    return _base(c, attention=_attention(c), ffn=_gated(c), embedding_scale=True)


def _gemma2(c: Config) -> dict[str, Any]:
    return _base(
        c,
        attention=_attention(
            c, softcap=c.get("attn_logit_softcapping") is not None, window=_window(c, lambda i: i % 2 == 0)
        ),
        ffn=_gated(c),
        norm={"kind": "rmsnorm", "place": "sandwich"},
        embedding_scale=True,
        logit_softcap=c.get("final_logit_softcapping") is not None,
    )


def _gemma3(c: Config) -> dict[str, Any]:
    every = c.size("sliding_window_pattern", 6)
    facts = _gemma2(c)
    facts["attention"] = _attention(c, qk_norm="weighted", window=_window(c, lambda i: (i + 1) % every != 0))
    return facts


def _gpt_oss(c: Config) -> dict[str, Any]:
    return _base(
        c,
        attention=_attention(
            c, qkv_bias=True, out_bias=True, sink_logits=True, window=_window(c, lambda i: i % 2 == 0)
        ),
        moe={
            "experts": c.size("num_experts"),
            "top_k": c.size("num_experts_per_tok"),
            "hidden": c.size("intermediate_size"),
            "activation": "swiglu_clamped",
            "bias": True,
            "router_bias": True,
        },
    )


def _llama4(c: Config) -> dict[str, Any]:
    # Layers marked 1 have rotary positions and chunked attention, those marked 0 neither.
    layers = c.size("num_hidden_layers")
    interval = c.size("no_rope_layer_interval", 4)
    rotary = c.get("no_rope_layers") or [(i + 1) % interval != 0 for i in range(layers)]
    if not isinstance(rotary, list) or len(rotary) != layers:
        raise c.refuse(f"must list one mark for each of the {layers} layers", "no_rope_layers")
    width, step = c.size("intermediate_size"), c.size("interleave_moe_layer_step", 1)
    facts = _base(
        c,
        attention=_attention(
            c,
            qk_norm="unweighted" if c.flag("use_qk_norm", True) else "none",
            window=_window(c, lambda i: bool(rotary[i]), "attention_chunk_size", "chunk"),
        ),
        moe={
            "experts": c.size("num_experts"),
            "top_k": c.size("num_experts_per_tok"),
            "hidden": width,
            "activation": c.activation(True),
            "shared_hidden": width,
            "every": step,
            "scoring": "sigmoid",
        },
        position="rotary_local",
    )
    if step > 1:
        facts["ffn"] = {"hidden": c.size("intermediate_size_mlp"), "activation": c.activation(True)}
    return facts


def _phi3(c: Config) -> dict[str, Any]:
    return _base(c, attention=_attention(c, window=_window(c, lambda i: True)), ffn=_gated(c))


def _learned(c: Config, **facts: Any) -> dict[str, Any]:
    hidden = c.size("hidden_size")
    return _base(
        c,
        attention=_attention(c, qkv_bias=True, out_bias=True),
        ffn={"hidden": c.size("intermediate_size", 4 * hidden), "activation": c.activation(False), "bias": True},
        norm={"kind": "layernorm"},
        position="learned",
        **facts,
    )


def _opt(c: Config) -> dict[str, Any]:
    for key, wanted in (("do_layer_norm_before", True), ("word_embed_proj_dim", c.size("hidden_size"))):
        if c.get(key, wanted) != wanted:
            raise c.refuse(f"is {c.get(key)!r}; only {wanted!r} is supported", key)
    # The table of positions has two rows more than positions, as the padding index shifts it.
    return _learned(c, position_rows=c.size("max_position_embeddings") + 2)


def _bert(c: Config) -> dict[str, Any]:
    facts = _learned(c, kind="encoder", token_types=c.size("type_vocab_size", 2), embedding_norm=True, pooler=True)
    facts["norm"] = {"kind": "layernorm", "place": "post"}
    # There is no head that could be tied.
    facts["tied_embeddings"] = False
    return facts


def _vit(c: Config) -> dict[str, Any]:
    patch = {
        "size": c.size("patch_size", 16),
        "channels": c.size("num_channels", 3),
        "image": c.size("image_size", 224),
        "class_token": True,
    }
    tokens = (patch["image"] // patch["size"]) ** 2 + 1
    return {
        "kind": "vision",
        "layers": c.size("num_hidden_layers"),
        "hidden": c.size("hidden_size"),
        "attention": _attention(c, qkv_bias=c.flag("qkv_bias", True), out_bias=True),
        "ffn": {"hidden": c.size("intermediate_size"), "activation": c.activation(False), "bias": True},
        "norm": {"kind": "layernorm"},
        "position": "learned",
        "max_position": tokens,
        "patch": patch,
        "classes": len(c.get("id2label") or ()),
    }


_GEMMA = {"hidden_act": "gelu_pytorch_tanh", "tie_word_embeddings": True, "head_dim": 256}
_TYPES: dict[str, tuple[Callable[[Config], dict[str, Any]], dict[str, Any]]] = {
    "llama": (_llama, {"hidden_act": "silu"}),
    "mistral": (_mistral, {"hidden_act": "silu"}),
    "mixtral": (_mixtral, {"hidden_act": "silu"}),
    "qwen2": (_qwen2, {"hidden_act": "silu"}),
    "qwen3": (_qwen3, {"hidden_act": "silu", "head_dim": 128}),
    "qwen3_moe": (_qwen3_moe, {"hidden_act": "silu"}),
    "deepseek_v2": (lambda c: _deepseek(c, "softmax", False), {"hidden_act": "silu"}),
    "deepseek_v3": (lambda c: _deepseek(c, "sigmoid", True), {"hidden_act": "silu"}),
    "kimi_k2": (lambda c: _deepseek(c, "sigmoid", True), {"hidden_act": "silu"}),
    "gemma": (_gemma, _GEMMA),
    "gemma2": (
        _gemma2,
        {**_GEMMA, "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3_text": (
        _gemma3,
        {
            **_GEMMA,
            "sliding_window": 4096,
            "vocab_size": 262208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "hidden_size": 2304,
            "intermediate_size": 9216,
            "num_hidden_layers": 26,
            "max_position_embeddings": 131072,
        },
    ),
    "gpt_oss": (_gpt_oss, {"hidden_act": "silu", "head_dim": 64, "sliding_window": 128}),
    "llama4_text": (_llama4, {"hidden_act": "silu", "head_dim": 128}),
    "phi3": (_phi3, {"hidden_act": "silu"}),
    "opt": (_opt, {"hidden_act": "relu", "tie_word_embeddings": True}),
    "gpt2": (_learned, {"hidden_act": "gelu_new", "tie_word_embeddings": True}),
    "bert": (_bert, {"hidden_act": "gelu", "tie_word_embeddings": True}),
    "vit": (_vit, {"hidden_act": "gelu"}),
}
# Wrappers of a text model with other modalities, whose text part says what it is under `text_config`.
_TEXT_OF = {"gemma3": "gemma3_text", "llama4": "llama4_text"}


def supported_types() -> list[str]:
    """The `model_type` values that can be read."""
    return sorted([*_TYPES, *_TEXT_OF])


def load_huggingface(path: Path) -> Model:
    """The model that the config.json at `path` describes (of a multimodal one, its text part). Raises ConfigError."""
    data = read_json(path)
    if not isinstance(data, dict):
        raise ConfigError("is not a JSON object", file=path)
    kind = data.get("model_type")
    text = data.get("text_config")
    if isinstance(text, dict):
        inner = text.get("model_type") or _TEXT_OF.get(str(kind))
        data = {**{k: v for k, v in data.items() if k == "tie_word_embeddings"}, **text}
        kind = inner
    if kind not in _TYPES:
        near = nearest(str(kind), _TYPES)
        hint = f"; nearest is {near!r}" if near else ""
        raise ConfigError(
            f"is {kind!r}, which is not among the supported: {', '.join(supported_types())}{hint}",
            file=path,
            key="model_type",
        )
    read, defaults = _TYPES[kind]
    facts = read(Config(path, data, defaults))
    facts["name"] = _name(data, path)
    facts["family"] = kind
    try:
        return build(Model, facts)
    except ConfigError as error:
        raise ConfigError(error.message, file=path, key=error.key) from None


def _name(data: dict[str, Any], path: Path) -> str:
    given = data.get("_name_or_path")
    if isinstance(given, str) and given.strip("./ "):
        return given.rstrip("/").rpartition("/")[2].lower()
    return path.resolve().parent.name.lower() or path.stem
