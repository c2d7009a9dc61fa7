"""The decoder layer that `layer` stands for: a chain of operators, none fused with another, in one launch graph."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from sim.errors import ConfigError, nearest

if TYPE_CHECKING:
    from workloads.models import Model


def _plain(name: str) -> str:
    return "".join(c for c in name.casefold() if c.isalnum())


@lru_cache(maxsize=1)
def _models() -> dict[str, str]:
    """Models that ship by their names without separators, and by those without the minor version (llama3 is 3.1)."""
    from workloads.models import model_aliases, model_names

    found: dict[str, str] = {}
    for name in model_names():
        found.setdefault(_plain(name.replace("-3.1-", "-3-")), name)
    for alias, name in model_aliases().items():
        found.setdefault(_plain(alias), name)
    for name in model_names():
        found[_plain(name)] = name
    return found


@lru_cache(maxsize=256)
def layer_model(name: str) -> Model:
    """The model that `name` means, with or without separators (`llama3_8b`), or a file.

    Raises ConfigError for unknown ones and for those whose layers are no plain chain (experts, latent attention).
    """
    from workloads.models import load_model

    known = _models()
    if "/" in name or name.endswith((".yaml", ".json")):
        model = load_model(name)
    elif _plain(name) in known:
        model = load_model(known[_plain(name)])
    else:
        near = nearest(_plain(name), known)
        hint = f", nearest is {known[near]!r}" if near else ""
        raise ConfigError(f"unknown model {name!r}{hint} (opcycle list models)")
    if model.ffn is None or model.moe is not None or model.attention.latent is not None:
        raise ConfigError(f"a layer of {model.name} is no plain chain of operators (experts or latent attention)")
    return model
