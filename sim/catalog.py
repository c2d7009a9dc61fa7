"""Finds the data that ships: machines, memories, energy tables, models and workloads, by their bare names.

In a checkout the hardware data is the top-level folder `hwconfigs`; an installed wheel carries it in `sim/_data`. A
name with a slash or a file ending is a path and is taken as such.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from sim.errors import ConfigError, not_among

FOLDERS: Final = {
    "hardware": ("hwconfigs", "machines"),
    "kernels": ("hwconfigs", "kernels"),
    "memory": ("hwconfigs", "memories"),
    "tier": ("hwconfigs", "tiers"),
    "energy": ("hwconfigs", "energy"),
    "graph": ("hwconfigs", "graphs"),
    "unit": ("hwconfigs", "units"),
    "area": ("hwconfigs", "area"),
    "model": ("workloads", "models"),
    "workload": ("workloads", "scenarios"),
}
"""Kind of data: the package or data root, and the folder inside it."""


def folder(kind: str) -> Path:
    """Where the files of `kind` (a key of FOLDERS) are, in a checkout or in an installation."""
    root, name = FOLDERS[kind]
    if root == "hwconfigs":
        package = Path(__file__).parent
        checkout = package.parent / root
        return (checkout if checkout.is_dir() else package / "_data" / root) / name
    spec = find_spec(root)
    assert spec is not None, f"package {root} is not installed"
    assert spec.origin is not None, f"package {root} has no folder"
    return Path(spec.origin).parent / name


def names(kind: str) -> list[str]:
    """The names of `kind` that ship, sorted."""
    return sorted(path.stem for path in folder(kind).glob("*.yaml"))


def is_path(name_or_path: str | Path) -> bool:
    """Whether the argument is meant as a path: it has a folder or a file ending."""
    text = str(name_or_path)
    return isinstance(name_or_path, Path) or "/" in text or text.endswith((".yaml", ".yml", ".json"))


def find(kind: str, name_or_path: str | Path) -> Path:
    """The file that `name_or_path` means. Raises ConfigError, with the nearest name, where there is none."""
    if is_path(name_or_path):
        path = Path(name_or_path)
        if path.is_file():
            return path
        problem = "is a folder, but a file is wanted" if path.is_dir() else "no such file"
        raise ConfigError(problem, file=path)
    path = folder(kind) / f"{name_or_path}.yaml"
    if path.name not in {known.name for known in folder(kind).glob("*.yaml")}:
        raise ConfigError(not_among(kind, str(name_or_path), names(kind), most=40))
    return path
