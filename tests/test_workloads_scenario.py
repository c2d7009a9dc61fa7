"""Scenario files: what they may say, how keys are set anew, and one sentence for everything that is wrong."""

from __future__ import annotations

import doctest
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from sim.config import ConfigError, dump_yaml, parse_yaml
from workloads import build_trace, load_workload, make_workload, workload_names
from workloads.huggingface import supported_types
from workloads.models import load_model

REQUIRED = [
    "gpt3-7b-decode", "gpt3-13b-decode", "llama3-8b-prefill", "llama3-8b-decode", "llama3-8b-chunked-prefill",
    "mixtral-8x7b-decode", "deepseek-v2-lite-decode", "gemma-2-9b-decode", "bert-large-encode", "vit-l-encode",
    "dit-xl-denoise", "gpt-oss-20b-decode", "llama3-70b-decode",
]  # fmt: skip


def workload(**keys: Any) -> Any:
    return make_workload({"schema": "opcycle/workload/1", "name": "t", **keys})


def decode(**keys: Any) -> Any:
    return workload(**{"model": "llama-3.2-1b", "phase": "decode", "context": 10, **keys})


def test_scenarios_that_others_rely_on_ship() -> None:
    assert set(REQUIRED) <= set(workload_names())
    for name in workload_names():
        assert load_workload(name).name == name


def test_scenarios_of_methods_build() -> None:
    with_methods = [w for w in map(load_workload, workload_names()) if w.scenario and w.scenario.methods]
    assert len(with_methods) >= 36
    for loaded in with_methods:
        assert loaded.scenario is not None
        trace = loaded.trace()
        first = loaded.scenario.methods[0]
        name = first if isinstance(first, str) else first.get("use", next(iter(first)))
        assert trace.methods[0] == name, loaded.name
        assert trace.flops > 0


def test_gpt3_13b_decode_is_the_stated_one() -> None:
    loaded = load_workload("gpt3-13b-decode")
    assert loaded.scenario is not None
    assert (loaded.scenario.batch, loaded.scenario.context, loaded.scenario.steps) == (64, 1024, 1)
    assert loaded.trace().batch == 64


def test_trace_is_built_once() -> None:
    loaded = decode()
    assert loaded.trace() is loaded.trace()


def test_keys_set_anew() -> None:
    by_keyword = load_workload("gpt3-7b-decode", batch=3, formats={"kv": "int8"})
    dotted = load_workload("gpt3-7b-decode", {"workload.batch": "3", "workload.formats.kv": "int8"})
    short = load_workload("gpt3-7b-decode", {"batch": "3", "formats.kv": "int8"})
    assert by_keyword == dotted == short
    assert by_keyword.scenario is not None
    assert (by_keyword.scenario.batch, by_keyword.scenario.formats.kv) == (3, "int8")
    assert by_keyword.scenario.formats.weights == "fp16"
    assert load_workload("gpt3-7b-decode", model="opt-6.7b").trace().model == "opt-6.7b"
    assert build_trace("gpt3-7b-decode", batch=3, formats={"kv": "int8"}) == by_keyword.trace()


def test_resolved_scenario_loads_again(tmp_path: Path) -> None:
    loaded = load_workload("gpt-oss-20b-decode", batch=2, context=77)
    path = tmp_path / "workload.yaml"
    path.write_text(dump_yaml(loaded.resolved()), encoding="utf-8")
    again = load_workload(path)
    assert again.scenario == loaded.scenario
    assert again.trace() == loaded.trace()


def test_lengths_listed_or_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "requests.csv").write_text("arrival_s,input_tokens\n0.0,5\n0.5,9\n1.0,5\n", encoding="utf-8")
    text = "schema: opcycle/workload/1\nname: t\nmodel: llama-3.2-1b\nphase: decode\nlengths: requests.csv\n"
    (tmp_path / "w.yaml").write_text(text, encoding="utf-8")
    from_file = load_workload(tmp_path / "w.yaml")
    assert from_file.lengths == (5, 9, 5)
    assert from_file.trace().passes == decode(context=None, lengths=[5, 9, 5]).trace().passes
    assert load_workload(tmp_path / "w.yaml", batch=2).lengths == (5, 9)
    assert from_file.resolved()["lengths"] == [5, 9, 5]


def test_model_beside_the_scenario(tmp_path: Path) -> None:
    model = load_model("llama-3.2-1b").model_dump(mode="json", by_alias=True, exclude_none=True) | {"layers": 2}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(model), encoding="utf-8")
    text = "schema: opcycle/workload/1\nname: t\nmodel: tiny.yaml\nphase: prefill\nprompt: 4\n"
    (tmp_path / "w.yaml").write_text(text, encoding="utf-8")
    loaded = load_workload(tmp_path / "w.yaml")
    assert loaded.trace().passes[0].blocks[1].repeat == 2
    assert Path(loaded.resolved()["model"]).is_absolute()


def test_longest_context_that_fits() -> None:
    limit = load_model("gpt3-7b").max_position
    assert load_workload("gpt3-7b-decode", context=limit - 4, steps=4).lengths[0] == limit - 4
    with pytest.raises(ConfigError, match=f"needs {limit + 1} positions.*max_position {limit}"):
        load_workload("gpt3-7b-decode", context=limit - 3, steps=4)


@pytest.mark.parametrize(
    ("keys", "key", "words"),
    [
        ({"batch": -1}, "batch", "at least 1"),
        ({"batch": 0}, "batch", "at least 1"),
        ({"batch": "8"}, "batch", "whole number"),
        ({"batch": 2.5}, "batch", "whole number"),
        ({"steps": 0}, "steps", "at least 1"),
        ({"context": -5}, "context", "at least 0"),
        ({"contxt": 5}, "contxt", "context"),
        ({"phase": "decoding"}, "phase", "decode"),
        ({"phase": "encode"}, "phase", "is of kind decoder, whose phases are: prefill, decode, generate"),
        ({"phase": "prefill"}, "context|prompt", "is missing"),
        ({"context": None}, "context", "is missing; phase decode needs it, or lengths"),
        ({"prompt": 4}, "prompt", "is 4, but phase decode of llama-3.2-1b takes no prompt"),
        ({"chunk": 4}, "chunk", "is 4, but phase decode of llama-3.2-1b takes no chunk"),
        ({"lengths": [3, 4]}, "lengths", "give either context or lengths"),
        ({"context": None, "lengths": [3, 4], "batch": 3}, "batch", "lengths lists 2 requests"),
        ({"context": None, "lengths": []}, "lengths", "lists no requests"),
        ({"context": None, "lengths": [3, 0]}, "lengths.1", "at least 1"),
        ({"context": None, "lengths": "nowhere.csv"}, None, "cannot be read"),
        ({"context": 200_000}, "context", "max_position 131072"),
        ({"context": None, "lengths": [200_000]}, "lengths", "max_position 131072"),
        ({"formats": {"kv": "fp17"}}, "formats.kv", "unknown number format 'fp17'.*nearest: fp16"),
        ({"formats": {"cache": "fp16"}}, "formats.cache", "kv"),
        ({"methods": ["speculative"]}, "methods.0", "unknown method .speculative."),
        ({"model": "llama-3.2-2b"}, None, "nearest is 'llama-3.2-1b'"),
        ({"model": "./nowhere.json"}, None, "no such model file"),
        ({"schema": "opcycle/workload/9"}, "schema", "opcycle/workload/1"),
    ],
)
def test_wrong_keys_are_one_sentence(keys: dict[str, Any], key: str | None, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        decode(**keys)
    assert "\n" not in str(caught.value)
    if key is not None:
        assert caught.value.key in key.split("|")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"model": "vit-b", "phase": "encode", "prompt": 5}, "prompt: is 5, but phase encode of vit-b takes no prompt"),
        (
            {"model": "dit-xl", "phase": "denoise", "context": 5},
            "phase denoise of dit-xl-2 takes no context",
        ),
        ({"model": "bert-large", "phase": "encode", "prompt": 513}, "max_position 512"),
        ({"model": "bert-large", "phase": "decode", "context": 5}, "phases are: encode"),
    ],
)
def test_keys_that_a_model_has_no_use_for(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        workload(**keys)


def test_unknown_workload_tells_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown workload 'gpt3-7b-decod'.*nearest is 'gpt3-7b-decode'"):
        load_workload("gpt3-7b-decod")
    with pytest.raises(ConfigError, match="no such workload file"):
        load_workload("./gpt3-7b-decode.yaml")


def test_error_names_file_line_and_key(tmp_path: Path) -> None:
    path = tmp_path / "w.yaml"
    text = "schema: opcycle/workload/1\nname: t\nmodel: llama-3.2-1b\nphase: decode\ncontext: 5\nbatch: -3\n"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_workload(path)
    assert str(caught.value).startswith(f"{path}:6: batch: ")
    path.write_text(text.replace("batch: -3", "chunk: 3"), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_workload(path)
    assert str(caught.value).startswith(f"{path}:6: chunk: ")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seq,channel\n5,1\n", "none of these columns in its first line: length, input_tokens, seq_len, prompt"),
        ("length\n5\nmany\n", "length: is 'many'"),
        ("length\n5\n-1\n", "length: is '-1'"),
        ("length\n", "lists no requests"),
    ],
)
def test_wrong_request_files(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as caught:
        decode(context=None, lengths=str(path))
    assert caught.value.file == str(path)


def test_documentation_is_true() -> None:
    path = Path(__file__).resolve().parent.parent / "docs" / "workloads.md"
    text = path.read_text(encoding="utf-8")
    outcome = doctest.testfile(str(path), module_relative=False)
    assert outcome.attempted >= 4
    assert outcome.failed == 0
    (example,) = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert make_workload(parse_yaml(example)).trace().generated == 32
    assert ", ".join(supported_types()) in text
