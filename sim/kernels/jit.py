"""The one way to compile a kernel: turns a plain function over numpy arrays into a cached numba function.

numba's own cache looks only at the file a function stands in, so an edit in a helper module would go unnoticed. The
cache folder is therefore named by a hash of all kernel sources, the numba and Python versions and the flags that
change the machine code. With NUMBA_DISABLE_JIT=1 the functions stay plain Python, with the same results.
"""

import hashlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import config as numba_config

Function = TypeVar("Function", bound=Callable[..., Any])


def source_key() -> str:
    """Hash of everything the machine code depends on: kernel sources, versions, processor and numba flags."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.name.encode())
        digest.update(path.read_bytes())
    flags = sorted(f"{name}={value}" for name, value in os.environ.items() if name.startswith("NUMBA_"))
    digest.update(repr((numba.__version__, sys.version, platform.machine(), flags)).encode())
    return digest.hexdigest()[:16]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def cache_folder() -> Path:
    """Folder for compiled kernels: $OPCYCLE_CACHE, else the user's cache folder, else a temporary one."""
    chosen = os.environ.get("OPCYCLE_CACHE")
    if chosen:
        base = Path(chosen)
    else:
        user = os.environ.get("XDG_CACHE_HOME")
        base = (Path(user) if user else Path("~").expanduser() / ".cache") / "opcycle"
    folder = base / "kernels" / source_key()
    if _writable(folder):
        return folder
    return Path(tempfile.gettempdir()) / f"opcycle-{os.getuid() if hasattr(os, 'getuid') else 0}" / source_key()


_CACHE_FOLDER = str(cache_folder())


def _compiled(function: Function, **options: Any) -> Function:
    settings: Any = numba_config
    before = settings.CACHE_DIR
    settings.CACHE_DIR = _CACHE_FOLDER
    try:
        return numba.njit(cache=True, error_model="numpy", nogil=True, **options)(function)
    finally:
        settings.CACHE_DIR = before


def kernel(function: Function) -> Function:
    """Compile `function` on first call, with an on-disk cache; the GIL is released and integer division is unchecked.

    Arguments are arrays, integers and NamedTuples of them; never Python objects or other functions (those would not be
    cached).
    """
    return _compiled(function, no_cfunc_wrapper=True)


def leaf(function: Function) -> Function:
    """As `kernel`, for functions that create no arrays: without reference counting they are several times faster."""
    return _compiled(function, _nrt=False, no_cfunc_wrapper=True)


def inlined(function: Function) -> Function:
    """As `leaf`, for a part always compiled into its caller, as passing many arrays costs more than small parts do."""
    return _compiled(function, forceinline=True, _nrt=False, no_cfunc_wrapper=True)
