"""Memories by name or file: loads one with its settings, and is where other parts find what belongs to a memory.

A file with `base:` states only how it differs from another memory. `sim.dram_schema` says what a file may hold,
`sim.dram_compile` and `sim.dram_channels` make of it what the channel kernel works on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sim.base import load_based
from sim.config import Document, apply_overrides, build
from sim.dram_channels import MEMO, new_state
from sim.dram_compile import compile_memory
from sim.dram_schema import (
    COMMANDS,
    LEVELS,
    RANK_COMMANDS,
    Memory,
    Page,
    Policy,
    PowerDown,
    Refresh,
    Rule,
)
from sim.errors import ConfigError, not_among

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = [
    "COMMANDS",
    "LEVELS",
    "MEMO",
    "RANK_COMMANDS",
    "Memory",
    "Page",
    "Policy",
    "PowerDown",
    "Refresh",
    "Rule",
    "compile_memory",
    "load_memory",
    "new_state",
    "split_range",
]

SHORT_KEYS: Final = {
    "queue": ("controller.read_queue", "controller.write_queue"),
    "policy": ("controller.policy",),
    "cap": ("controller.cap",),
    "page": ("controller.page",),
    "age_limit": ("controller.age_limit",),
    "power_down": ("controller.power_down",),
    "power_down_after": ("controller.power_down_after",),
}
"""Settings with a short name."""

POLICY_SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "ramulator": {
        "controller.read_queue": 32,
        "controller.write_queue": 32,
        "controller.drain_high": 26,
        "controller.drain_low": 6,
        "refresh": "together",
    },
    "dramsim3": {
        "controller.read_queue": 32,
        "controller.write_queue": 32,
        "controller.bank_queue": 8,
        "controller.drain_high": 32,
        "controller.drain_low": 8,
        "controller.cap": 4,
        "refresh": "staggered",
    },
}
"""What choosing a policy sets besides, as its simulator has it, where no other setting says otherwise; a memory's
`policies` section adds what that simulator states differently of the memory itself."""


def load_memory(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Memory:
    """The memory of that name or file, with dotted `overrides` (`timings.tRFC`, or short: queue, policy, cap) applied.

    Raises ConfigError for anything wrong in the file, in those it is based on, or in the overrides.
    """
    document = load_based("memory", name_or_path)
    asked = dict(overrides or {})
    what = f"{document.path} {json.dumps(asked, default=str)}"
    known = _KNOWN.get(what)
    if known is None or known[0] != document.data:
        if len(_KNOWN) >= KEPT:
            _KNOWN.clear()
        known = _KNOWN[what] = (document.data, _load(document, asked))
    return known[1]


KEPT = 64
"""Memories that are remembered; a sweep asks for the same few again and again."""
_KNOWN: dict[str, tuple[Mapping[str, Any], Memory]] = {}


def _load(document: Document, asked: dict[str, Any]) -> Memory:
    policy = str(asked.get("policy", asked.get("controller.policy", "")))
    data = dict(document.data)
    own = data.pop("policies", {})
    document = replace(document, data=data)
    changes: dict[str, Any] = dict(POLICY_SETTINGS.get(policy, {}))
    if isinstance(own, dict):
        changes.update(own.get(policy, {}))
    for key, value in asked.items():
        _check_setting(document, key)
        for target in SHORT_KEYS.get(key, (key,)):
            changes[target] = value
        if key == "queue" and str(value).isdecimal():
            high, low = _marks(policy, int(value))
            changes["controller.drain_high"] = high
            changes["controller.drain_low"] = low
    return build(Memory, apply_overrides(document, changes))


def _marks(policy: str, entries: int) -> tuple[int, int]:
    """Drain marks of a write queue: four fifths and one fifth of it, as each policy counts them."""
    if policy == Policy.DRAMSIM3:
        return entries, min(8, entries - 1)
    if policy == Policy.RAMULATOR:  # more than four fifths, less than one fifth
        return entries * 4 // 5 + 1, (entries - 1) // 5
    return max(1, entries * 4 // 5), entries // 5


def _check_setting(document: Document, key: str) -> None:
    """Refuse a setting whose name is no section and no short key, or a timing that the file does not have."""
    first, _, rest = key.partition(".")
    sections = {field.alias or name for name, field in Memory.model_fields.items()}
    if first not in sections and key not in SHORT_KEYS:
        message = not_among("key", first, [*SHORT_KEYS, *sections])
        raise ConfigError(f"{message} (set by an override)", file=document.path, key=key)
    timings = document.data.get("timings")
    if first == "timings" and isinstance(timings, dict) and rest and rest not in timings:
        message = not_among("timing", rest, timings, most=40)
        raise ConfigError(f"{message} (set by an override)", file=document.path, key=key)


def split_range(
    memory: Memory, channels: int, start_burst: Any, n_bursts: Any
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Contiguous global bursts [start, start + n) as contiguous local bursts of each channel.

    start_burst, n_bursts: integers or arrays of one shape [ranges]. Returns (lo, n), each [ranges, channels]
    ([channels] for scalars). Any number of channels; the channel field may stand anywhere in the mapping.
    """
    import numpy as np

    memory.check_channels(channels)
    start = np.asarray(start_burst, np.int64)[..., None]
    end = start + np.asarray(n_bursts, np.int64)[..., None]
    if channels == 1:
        return start, end - start
    block = np.int64(1) << memory.channel_position
    offset = np.arange(channels, dtype=np.int64) * block

    def below(position: NDArray[np.int64]) -> NDArray[np.int64]:
        whole, rest = np.divmod(position, block * channels)
        inside: NDArray[np.int64] = np.clip(rest - offset, 0, block)
        return whole * block + inside

    lo = below(start)
    return lo, below(end) - lo
