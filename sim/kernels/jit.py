"""The one way to compile a kernel: turns a plain function over numpy arrays into a cached numba function.

numba's own cache looks only at the file a function stands in, so an edit in a helper module would go unnoticed, and at
the file's place, so a second checkout would compile all again. Each module's cache folder is therefore named by a hash
of its source and of those it imports from, of the numba and Python versions and of the flags that change the machine
code, and by nothing else. With NUMBA_DISABLE_JIT=1 the functions stay plain Python, with the same results.
"""

import hashlib
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numba
from numba.core import caching

Function = TypeVar("Function", bound=Callable[..., Any])

_FOLDER = Path(__file__).parent
_IMPORT = re.compile(rb"^from sim\.kernels\.(\w+) import", re.MULTILINE)


def _sources(module: str, seen: dict[str, bytes]) -> None:
    if module in seen:
        return
    seen[module] = (_FOLDER / f"{module}.py").read_bytes()
    for found in _IMPORT.findall(seen[module]):
        _sources(found.decode(), seen)


@cache
def source_key(module: str) -> str:
    """Hash of everything that the machine code of a module of this package depends on, this module included."""
    seen: dict[str, bytes] = {}
    _sources(module, seen)
    _sources(Path(__file__).stem, seen)
    digest = hashlib.sha256()
    for name, source in sorted(seen.items()):
        digest.update(name.encode())
        digest.update(source)
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


def cache_folder(module: str) -> Path:
    """Folder for a module's compiled kernels, in $OPCYCLE_CACHE, else the user's cache, else a temporary folder."""
    chosen = os.environ.get("OPCYCLE_CACHE")
    if chosen:
        base = Path(chosen)
    else:
        user = os.environ.get("XDG_CACHE_HOME")
        base = (Path(user) if user else Path("~").expanduser() / ".cache") / "opcycle"
    folder = base / "kernels" / source_key(module)
    if _writable(folder):
        return folder
    return Path(tempfile.gettempdir()) / f"opcycle-{os.getuid() if hasattr(os, 'getuid') else 0}" / source_key(module)


class _BySource(caching._CacheLocator):
    """Where numba keeps a kernel: in the folder of its module's hash, which says all that makes a copy stale."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._module = function.__module__.rpartition(".")[2]
        self._line = function.__code__.co_firstlineno

    def get_cache_path(self) -> str:
        return str(cache_folder(self._module))

    def get_source_stamp(self) -> str:
        return source_key(self._module)

    def get_disambiguator(self) -> str:
        return str(self._line)

    @classmethod
    def from_function(cls, function: Callable[..., Any], _file: str) -> "_BySource":
        return cls(function)


class _Files(caching.CompileResultCacheImpl):
    def __init__(self, function: Callable[..., Any]) -> None:
        self._locator_classes: list[Any] = [_BySource]
        super().__init__(function)


class _Cache(caching.FunctionCache):
    _impl_class = _Files


def _compiled(function: Function, **options: Any) -> Function:
    compiled: Any = numba.njit(error_model="numpy", nogil=True, **options)(function)
    if compiled is not function:  # NUMBA_DISABLE_JIT=1 gives the function back
        compiled._cache = _Cache(function)
    return compiled


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
