"""opcycle: a cycle-level simulator of transformer accelerators, from the model down to DRAM commands.

The public names are imported when first used, so that `import sim` costs nothing and needs neither numpy nor numba.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sim.engine import simulate as simulate
    from sim.errors import ConfigError as ConfigError
    from sim.hardware import Hardware as Hardware
    from sim.kinds import load_hardware as load_hardware
    from sim.result import Report as Report

__version__ = "0.1.0"

_HOME = {
    "ConfigError": "sim.errors",
    "Hardware": "sim.hardware",
    "Report": "sim.result",
    "load_hardware": "sim.kinds",
    "simulate": "sim.engine",
}
__all__ = ["ConfigError", "Hardware", "Report", "load_hardware", "simulate"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sim' has no attribute {name!r}; public names: {', '.join(sorted(_HOME))}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
