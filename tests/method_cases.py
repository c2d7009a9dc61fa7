"""Small models and workloads on which methods are tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sim.config import dump_yaml
from workloads import make_workload
from workloads.methods import load_method

DECODER = {
    "schema": "opcycle/model/1", "name": "tiny", "kind": "decoder", "layers": 8, "hidden": 64, "vocab": 4096,
    "max_position": 4096, "attention": {"heads": 8, "kv_heads": 4, "head_dim": 16},
    "ffn": {"hidden": 256, "activation": "swiglu"}, "norm": {"kind": "rmsnorm"},
}  # fmt: skip
DRAFT = {**DECODER, "name": "tiny-draft", "layers": 2, "hidden": 32, "ffn": {"hidden": 64, "activation": "swiglu"}}
EXPERTS = {**DECODER, "name": "tiny-experts", "moe": {"experts": 8, "top_k": 2, "hidden": 64}}
VISION = {
    "schema": "opcycle/model/1", "name": "tiny-vision", "kind": "vision", "layers": 12, "hidden": 64,
    "max_position": 64, "position": "learned", "classes": 10, "attention": {"heads": 4, "kv_heads": 4, "head_dim": 16},
    "ffn": {"hidden": 256, "activation": "gelu", "bias": True}, "norm": {"kind": "layernorm"},
    "patch": {"size": 4, "channels": 3, "image": 24},
}  # fmt: skip
DIFFUSION = {
    **VISION, "name": "tiny-diffusion", "kind": "diffusion", "classes": 0,
    "norm": {"kind": "layernorm", "affine": False},
    "patch": {"size": 4, "channels": 4, "image": 32},
    "conditioning": {"frequencies": 32, "classes": 10, "out_channels": 8},
}  # fmt: skip
SCENARIOS: dict[str, dict[str, Any]] = {
    "prefill": {"model": DECODER, "phase": "prefill", "batch": 2, "prompt": 160},
    "decode": {"model": DECODER, "phase": "decode", "batch": 3, "context": 160, "steps": 12},
    "generate": {"model": DECODER, "phase": "generate", "batch": 2, "prompt": 160, "steps": 12},
    "encode": {"model": VISION, "phase": "encode", "batch": 2},
    "denoise": {"model": DIFFUSION, "phase": "denoise", "batch": 1, "steps": 6},
}
SMALLER: dict[str, dict[str, Any]] = {
    "armor": {"factor": {"blocks": 4}},
    "block-low-rank": {"factor": {"rank": 8}},
    "elastic-dit": {},
    "flowcut": {"tokens": {"count": 100}},
    "structured-ffn": {"factor": {"rank": 8}},
    "prefix-grouper": {"mask": {"block": 32, "sinks": 32}},
    "generative-adapter": {"kv": {"prefix": 100}},
    "speculative-video-generation": {"draft": {"unit": 8}},
    "skip-vision": {"tokens": {"count": 100}},
    "easyspec": {"merge": {"group": 2}},
    "in-context-ranking": {"mask": {"block": 32, "sinks": 8, "tail": 16}},
}
"""Parameters of presets that are larger than the small models, by preset."""


def write_model(folder: Path, model: dict[str, Any]) -> str:
    """The file of a model in `folder`."""
    path = folder / f"{model['name']}.yaml"
    if not path.exists():
        path.write_text(dump_yaml(model), encoding="utf-8")
    return str(path)


def small(folder: Path, phase: str, methods: list[Any] | None = None, **keys: Any) -> Any:
    """The small workload of a phase, under `methods`."""
    scenario = {**SCENARIOS[phase], **keys}
    scenario["model"] = write_model(folder, scenario["model"])
    named = {"schema": "opcycle/workload/1", "name": f"small-{phase}", "methods": methods or []}
    return make_workload({**named, **scenario})


def small_preset(folder: Path, name: str, phase: str) -> Any:
    """A preset on the small workload of a phase, with a small drafting model where it has one."""
    changes = {key: dict(value) for key, value in SMALLER.get(name, {}).items()}
    for entry in load_method(name).document.data["primitives"]:
        for primitive, params in entry.items():
            if params.get("model") == "llama-3.2-1b":
                changes.setdefault(primitive, {})["model"] = write_model(folder, DRAFT)
    return small(folder, phase, [{"use": name, "set": changes}])
