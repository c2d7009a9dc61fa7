"""Puts results on disk so that nothing half-written ever looks whole.

A result is written into a hidden folder beside its target and takes the target's name only when it is complete; a
manifest inside says which files belong to it, so that a later run replaces its own files and never someone else's.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from sim.errors import ConfigError

T = TypeVar("T")

MANIFEST: Final = ".opcycle.json"
SCHEMA: Final = "opcycle/result/1"


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in one step: readers see the old file or the whole new one. Raises ConfigError."""
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name when the block ends well. Raises ConfigError if it cannot."""
    path = Path(path)
    if path.is_dir():
        raise ConfigError("is a folder, but a file is to be written", file=path)
    handle, name = _try(path, lambda: tempfile.mkstemp(prefix=f".{path.name}.", dir=make_parent(path)))
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        _try(path, lambda: temporary.replace(path))
    finally:
        temporary.unlink(missing_ok=True)


def check_target(target: str | Path) -> None:
    """Refuse, before anything long starts, a result folder that could not be written or holds other files."""
    target = Path(target)
    if target.exists() and not target.is_dir():
        raise ConfigError("is a file, but a result is a folder", file=target)
    foreign = _foreign(target)
    if foreign:
        what = "holds no opcycle result" if not (target / MANIFEST).exists() else "holds files of others"
        raise ConfigError(f"{what} (such as {foreign[0]!r}), so it is not replaced; name a new folder", file=target)
    _try(target, lambda: _beside(target)).rmdir()


@contextmanager
def result_folder(target: str | Path) -> Iterator[Path]:
    """A folder to fill, which becomes `target` when the block ends well and vanishes when it does not.

    An earlier result at `target` is replaced as a whole. Raises ConfigError where `check_target` would.
    """
    target = Path(target)
    check_target(target)
    if target.is_symlink():
        target = target.resolve()
    temporary = _try(target, lambda: _beside(target))
    try:
        yield temporary
        files = sorted(path.name for path in temporary.iterdir())
        manifest = json.dumps({"schema": SCHEMA, "files": files}, indent=1)
        (temporary / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
        temporary.chmod(0o777 & ~_umask())
        _try(target, lambda: _take_place(temporary, target))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_place(temporary: Path, target: Path) -> None:
    if not target.exists():
        temporary.rename(target)
        return
    old = _beside(target)
    target.rename(old / "old")
    try:
        temporary.rename(target)
    except BaseException:
        (old / "old").rename(target)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _foreign(target: Path) -> list[str]:
    """Names in an existing folder that its manifest, if it has one, does not list."""
    if not target.is_dir():
        return []
    own: set[str] = set()
    try:
        manifest = json.loads((target / MANIFEST).read_text(encoding="utf-8"))
        if manifest["schema"] == SCHEMA:
            own = {MANIFEST, *manifest["files"]}
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return sorted(path.name for path in target.iterdir() if path.name not in own)


def make_parent(path: Path) -> Path:
    """The folder that `path` lies in, made where it is missing. Raises ConfigError."""
    try:
        _try(path, lambda: path.parent.mkdir(parents=True, exist_ok=True))
    except ConfigError:
        blocking = next((folder for folder in path.parents if folder.exists() and not folder.is_dir()), None)
        if blocking is None:
            raise
        raise ConfigError(f"cannot be written ({blocking} is no folder)", file=path) from None
    return path.parent


def _try(path: Path, action: Callable[[], T]) -> T:
    """The outcome of `action`; a refusal by the system becomes a sentence about `path`."""
    try:
        return action()
    except OSError as error:
        raise ConfigError(f"cannot be written ({error.strerror or error})", file=path) from None


def _beside(target: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=make_parent(target)))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
