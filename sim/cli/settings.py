"""Reads options that need more than a type: `--set prefix.key=value` as one dict of overrides for each prefix, `-o` as
a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sim.errors import ConfigError, nearest


def settings(options: Sequence[str], prefixes: Sequence[str]) -> dict[str, dict[str, str]]:
    """{prefix: {dotted key: text}} of `--set` options; every prefix is present. Raises ConfigError.

    With the single prefix "" keys are taken whole, as `unit dram --set queue=32` does.
    """
    found: dict[str, dict[str, str]] = {prefix: {} for prefix in prefixes}
    for option in options:
        key, equals, value = option.partition("=")
        key = key.strip()
        if not equals or not key:
            raise ConfigError(f"--set {option!r} must be written key=value")
        prefix, _, rest = ("", "", key) if prefixes == ("",) else key.partition(".")
        if prefix not in found or not rest:
            near = nearest(prefix, prefixes)
            hint = f", nearest is '{near}.'" if near and rest else ""
            allowed = " or ".join(f"'{p}.'" for p in prefixes)
            raise ConfigError(f"--set {key!r}{hint}: keys begin with {allowed}, then a dotted key")
        if rest in found[prefix]:
            raise ConfigError(f"--set {key!r} is given twice")
        found[prefix][rest] = value
    return found


def place(text: str) -> Path:
    """The path that `-o` names. Raises ConfigError for an empty one, which would silently mean the current folder."""
    if not text.strip():
        raise ConfigError("-o is empty, but must name where the result goes ('.' is the current folder)")
    return Path(text)
