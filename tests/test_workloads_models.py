"""The zoo against published figures, and Hugging Face configurations against the zoo."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from sim.config import ConfigError, load_yaml
from workloads.huggingface import supported_types
from workloads.models import MODEL_FOLDER, load_model, model_aliases, model_names

TABLE = list(csv.DictReader((Path(__file__).parent / "data" / "models.csv").open(encoding="utf-8")))
NAMES = {"GPT-3-175B": "gpt3-175b", "DeepSeek-V3 / R1": "deepseek-v3", "Gemma-3-27B (text)": "gemma-3-27b"}


def zoo_name(row: dict[str, str]) -> str:
    return NAMES.get(row["model"], row["model"].lower())


@pytest.mark.parametrize("row", TABLE, ids=zoo_name)
def test_row_of_the_published_table(row: dict[str, str]) -> None:
    model = load_model(zoo_name(row))
    weights = model.parameters()
    assert weights.total == pytest.approx(float(row["params_published_B"]) * 1e9, rel=5e-4)
    assert weights.active == pytest.approx(float(row["params_active_B"]) * 1e9, rel=5e-4)
    assert 2 * model.kv_elements_per_token() == int(row["kv_bytes_per_token_16bit"])
    assert sum(kind.local for kind in model.layer_kinds()) == int(row["local_layers"] or 0)
    assert model.max_position == int(row["max_position"])


@pytest.mark.parametrize("name", model_names())
def test_every_model_states_and_meets_its_published_count(name: str) -> None:
    model = load_model(name)
    assert model.name == name
    assert model.published is not None
    assert model.parameters().total == pytest.approx(model.published.parameters, rel=5e-4)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("bert-large", 335_141_888), ("vit-b", 86_567_656), ("vit-l", 304_326_632), ("dit-xl-2", 675_129_632)],
)
def test_exact_counts_of_checkpoints(name: str, parameters: int) -> None:
    assert load_model(name).parameters().total == parameters


@pytest.mark.parametrize(
    ("name", "layers", "heads", "hidden"),
    [("gpt3-7b", 32, 32, 4096), ("gpt3-13b", 40, 40, 5120), ("gpt3-30b", 48, 56, 7168), ("gpt3-175b", 96, 96, 12288)],
)
def test_gpt3_family(name: str, layers: int, heads: int, hidden: int) -> None:
    model = load_model(name)
    assert (model.layers, model.attention.heads, model.hidden) == (layers, heads, hidden)
    assert model.ffn is not None
    assert model.ffn.hidden == 4 * hidden


def test_aliases_are_unique_and_found() -> None:
    stated = [alias for path in MODEL_FOLDER.glob("*.yaml") for alias in load_yaml(path).data.get("aliases", [])]
    assert len(stated) == len(set(stated))
    assert not set(stated) & set(model_names())
    assert set(model_aliases()) == set(stated)
    assert load_model("llama3-8b") is load_model("llama-3.1-8b")


LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "hidden_act": "silu",
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "head_dim": None,
    "rope_scaling": None,
}
DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek_v2",
    "num_hidden_layers": 27,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "q_lora_rank": None,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "vocab_size": 102400,
    "max_position_embeddings": 163840,
}
# Each describes a model of the zoo in the words of its family; what the keys leave out is the family's to know.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama-3.1-8b": LLAMA,
    "mistral-7b-v0.1": {
        **LLAMA,
        "model_type": "mistral",
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    },
    "mixtral-8x7b": {
        **LLAMA,
        "model_type": "mixtral",
        "vocab_size": 32000,
        "max_position_embeddings": 32768,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
    "qwen2.5-7b": {
        **LLAMA,
        "model_type": "qwen2",
        "num_hidden_layers": 28,
        "hidden_size": 3584,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "intermediate_size": 18944,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
        "use_sliding_window": False,
        "sliding_window": 131072,
    },
    "qwen3-0.6b": {
        **LLAMA,
        "model_type": "qwen3",
        "num_hidden_layers": 28,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "head_dim": 128,
        "intermediate_size": 3072,
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": True,
    },
    "qwen3-30b-a3b": {
        **LLAMA,
        "model_type": "qwen3_moe",
        "num_hidden_layers": 48,
        "hidden_size": 2048,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts": 128,
        "num_experts_per_tok": 8,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "vocab_size": 151936,
        "max_position_embeddings": 40960,
    },
    "deepseek-v2-lite": DEEPSEEK,
    "deepseek-v3": {
        **DEEPSEEK,
        "model_type": "deepseek_v3",
        "num_hidden_layers": 61,
        "hidden_size": 7168,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "intermediate_size": 18432,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "first_k_dense_replace": 3,
        "q_lora_rank": 1536,
        "vocab_size": 129280,
    },
    "gemma-2-9b": {
        "model_type": "gemma2",
        "num_hidden_layers": 42,
        "hidden_size": 3584,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 256,
        "intermediate_size": 14336,
        "vocab_size": 256000,
        "max_position_embeddings": 8192,
        "sliding_window": 4096,
    },
    "gpt-oss-20b": {
        "model_type": "gpt_oss",
        "num_hidden_layers": 24,
        "hidden_size": 2880,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "intermediate_size": 2880,
        "num_local_experts": 32,
        "experts_per_token": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 12,
        "sliding_window": 128,
        "vocab_size": 201088,
        "max_position_embeddings": 131072,
    },
    "llama-4-scout-17b-16e": {
        "model_type": "llama4",
        "text_config": {
            "model_type": "llama4_text",
            "num_hidden_layers": 48,
            "hidden_size": 5120,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "head_dim": 128,
            "intermediate_size": 8192,
            "intermediate_size_mlp": 16384,
            "interleave_moe_layer_step": 1,
            "num_local_experts": 16,
            "num_experts_per_tok": 1,
            "no_rope_layers": [],
            "attention_chunk_size": 8192,
            "use_qk_norm": True,
            "vocab_size": 202048,
            "max_position_embeddings": 10485760,
        },
    },
    "opt-6.7b": {
        "model_type": "opt",
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "ffn_dim": 16384,
        "activation_function": "relu",
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "word_embed_proj_dim": 4096,
    },
    "gpt-2-xl": {
        "model_type": "gpt2",
        "n_layer": 48,
        "n_embd": 1600,
        "n_head": 25,
        "n_inner": None,
        "n_positions": 1024,
        "activation_function": "gelu_new",
        "vocab_size": 50257,
    },
    "phi-3-mini": {
        **LLAMA,
        "model_type": "phi3",
        "hidden_size": 3072,
        "num_key_value_heads": 32,
        "intermediate_size": 8192,
        "vocab_size": 32064,
        "max_position_embeddings": 4096,
    },
    "bert-large": {
        "model_type": "bert",
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "hidden_act": "gelu",
        "vocab_size": 30522,
        "max_position_embeddings": 512,
        "type_vocab_size": 2,
    },
    "vit-b": {
        "model_type": "vit",
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "hidden_act": "gelu",
        "image_size": 224,
        "patch_size": 16,
        "num_channels": 3,
        "id2label": {str(i): f"label {i}" for i in range(1000)},
    },
}
IDENTITY = {"name", "aliases", "family", "published", "schema_"}


def write(folder: Path, config: dict[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", CONFIGS)
def test_hugging_face_config_gives_the_model_of_the_zoo(name: str, tmp_path: Path) -> None:
    read, known = load_model(write(tmp_path, CONFIGS[name])), load_model(name)
    assert read.parameters() == known.parameters()
    assert read.model_dump(exclude=IDENTITY) == known.model_dump(exclude=IDENTITY)


def test_gemma3_leaves_most_keys_to_its_class(tmp_path: Path) -> None:
    text = {"hidden_size": 5376, "intermediate_size": 21504, "num_attention_heads": 32, "num_hidden_layers": 62}
    text |= {"num_key_value_heads": 16, "head_dim": 128, "sliding_window": 1024}
    model = load_model(str(write(tmp_path, {"model_type": "gemma3", "text_config": text}).parent))
    assert model.attention == load_model("gemma-3-27b").attention
    assert model.parameters().total == pytest.approx(27.009e9, rel=1e-4)


@pytest.mark.parametrize(
    ("change", "key", "words"),
    [
        ({"model_type": "mamba"}, "model_type", "supported: bert"),
        ({"model_type": "lama"}, "model_type", "nearest is 'llama'"),
        ({"hidden_size": -4}, "hidden_size", "at least 1"),
        ({"hidden_size": None}, "hidden_size", "is missing"),
        ({"hidden_size": 4100}, "hidden_size", "32 heads do not divide"),
        ({"num_key_value_heads": 7}, "attention", "multiple of kv_heads"),
        ({"hidden_act": "mish"}, "hidden_act", "must be one of"),
        ({"tie_word_embeddings": "yes"}, "tie_word_embeddings", "true or false"),
    ],
)
def test_wrong_config_is_one_sentence(change: dict[str, Any], key: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path, {**LLAMA, **change})
    with pytest.raises(ConfigError, match=words) as caught:
        load_model(path)
    assert caught.value.file == str(path)
    assert caught.value.key == key


def test_config_that_is_no_json(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"model_type": }', encoding="utf-8")
    with pytest.raises(ConfigError, match="is broken JSON"):
        load_model(path)


def test_supported_types_are_those_of_the_tests_and_wrappers() -> None:
    covered = {config["model_type"] for config in CONFIGS.values()} | {"gemma", "gemma3", "gemma3_text", "llama4_text"}
    assert set(supported_types()) == covered | {"kimi_k2"}


def test_unknown_name_tells_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown model 'llama3-9b'.*nearest is 'llama3-8b'"):
        load_model("llama3-9b")
    with pytest.raises(ConfigError, match="no such model file"):
        load_model("./nowhere/config.json")


def test_a_model_file_of_ones_own(tmp_path: Path) -> None:
    text = (MODEL_FOLDER / "llama-3.1-8b.yaml").read_text(encoding="utf-8").replace("layers: 32", "layers: 4")
    path = tmp_path / "small.yaml"
    path.write_text(text, encoding="utf-8")
    assert load_model(path).layers == 4
    path.write_text(text.replace("kv_heads: 8", "kv_headz: 8"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"kv_heads"):
        load_model(path)
    path.write_text(text.replace("model/1", "model/2"), encoding="utf-8")
    with pytest.raises(ConfigError, match="opcycle/model/1"):
        load_model(path)
