"""The directions of import, read off the syntax trees: who may know whom, and what stays out of start-up."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted(path for package in ("sim", "workloads", "analysis") for path in (ROOT / package).rglob("*.py"))


@dataclass(frozen=True)
class Import:
    """One imported module: where, whether at the top of its module, whether for the type checker only."""

    path: Path
    line: int
    module: str
    at_top: bool
    for_types: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line} imports {self.module}"


def imports_of(path: Path) -> Iterator[Import]:
    def walk(node: ast.AST, at_top: bool, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(path, child.lineno, alias.name, at_top, for_types)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: relative import"
                for alias in child.names:
                    yield Import(path, child.lineno, f"{child.module}.{alias.name}", at_top, for_types)
            elif isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                for inner in child.body:
                    yield from walk(ast.Module([inner], []), at_top, True)
                for inner in child.orelse:
                    yield from walk(ast.Module([inner], []), at_top, for_types)
            else:
                inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
                yield from walk(child, at_top and not inside, for_types)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True, False)


IMPORTS = [found for path in FILES for found in imports_of(path)]


def within(found: Import, *packages: str) -> bool:
    """Whether the importing file lies in one of the packages or is one of the modules, named by dots."""
    name = ".".join(found.path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    return any(name == package or name.startswith(package + ".") for package in packages)


def names(found: Import, *modules: str) -> bool:
    """Whether the imported module is one of `modules` or inside one."""
    return any(found.module == module or found.module.startswith(module + ".") for module in modules)


def none_of(offenders: list[Import]) -> None:
    assert not offenders, "; ".join(map(str, offenders))


def test_finds_the_packages() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == {"sim", "workloads", "analysis"}
    assert any(found.module.startswith("numba") for found in IMPORTS)


def test_kernels_name_the_modules_they_import_from_as_the_cache_reads_them() -> None:
    inside = [i for i in IMPORTS if within(i, "sim.kernels") and names(i, "sim")]
    assert inside
    for found in inside:
        line = found.path.read_text(encoding="utf-8").splitlines()[found.line - 1]
        assert re.match(r"from sim\.kernels\.\w+ import ", line), found


def test_only_kernels_import_numba() -> None:
    none_of([i for i in IMPORTS if names(i, "numba", "llvmlite") and not within(i, "sim.kernels")])


def test_kernels_import_only_numpy_numba_and_themselves() -> None:
    allowed = ("numpy", "numba", "sim.kernels")
    none_of(
        [
            i
            for i in IMPORTS
            if within(i, "sim.kernels")
            and not names(i, *allowed)
            and i.module.partition(".")[0] not in sys.stdlib_module_names
        ]
    )


def test_only_analysis_imports_matplotlib() -> None:
    none_of([i for i in IMPORTS if names(i, "matplotlib") and not within(i, "analysis")])


def test_pandas_is_imported_by_analysis_or_when_used() -> None:
    none_of([i for i in IMPORTS if names(i, "pandas") and i.at_top and not (within(i, "analysis") or i.for_types)])


def test_only_the_server_imports_simpy() -> None:
    none_of([i for i in IMPORTS if names(i, "simpy") and not within(i, "sim.serve")])


def test_workloads_know_no_hardware() -> None:
    allowed = ("sim.config", "sim.units", "sim.document", "sim.errors")
    none_of([i for i in IMPORTS if within(i, "workloads") and names(i, "sim") and not names(i, *allowed)])
    none_of([i for i in IMPORTS if within(i, "workloads") and names(i, "analysis", "pandas")])
    # Random draws use numpy's bit generators, loaded when something is drawn.
    drawn = [i for i in IMPORTS if within(i, "workloads") and names(i, "numpy")]
    none_of([i for i in drawn if not within(i, "workloads.transforms.draws") or i.at_top])


def test_configuration_needs_no_arrays() -> None:
    light = (
        "sim.config",
        "sim.units",
        "sim.document",
        "sim.errors",
        "sim.catalog",
        "sim.output",
        "sim.cli",
        "sim.__init__",
    )
    none_of([i for i in IMPORTS if within(i, *light) and i.at_top and names(i, "numpy", "numba", "pandas", "pyarrow")])


def test_simulator_meets_models_only_through_the_trace() -> None:
    # The command line composes both sides; the rest of the simulator reads traces and must not build them.
    trace = ("workloads.trace", "workloads.attrs", "workloads.formats")
    known = [i for i in IMPORTS if within(i, "sim") and names(i, "workloads") and not within(i, "sim.cli")]
    none_of([i for i in known if not names(i, *trace) and not i.for_types and i.at_top])


def test_analysis_reads_results_only() -> None:
    inner = ("sim.kernels", "sim.lower", "sim.engine", "sim.hardware", "sim.cost", "workloads")
    none_of([i for i in IMPORTS if within(i, "analysis") and names(i, *inner) and not i.for_types])


def loaded_by(*arguments: str) -> set[str]:
    """The top-level modules that a process has loaded when it ends."""
    program = (
        "import sys, json, io, contextlib\n"
        "from sim.cli import run\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        f"    code = run({list(arguments)!r})\n"
        "print(json.dumps([code, sorted({name.partition('.')[0] for name in sys.modules})]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    code, modules = json.loads(done.stdout)
    assert code == 0, arguments
    return set(modules)


HEAVY = {"numpy", "numba", "pandas", "matplotlib", "pyarrow", "simpy"}


@pytest.mark.parametrize("arguments", [("--help",), ("simulate", "--help"), ("--version",)])
def test_help_needs_nothing_heavy(arguments: tuple[str, ...]) -> None:
    assert not loaded_by(*arguments) & (HEAVY | {"yaml"})


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "hwconfigs/energy/7nm.yaml", "workloads/models/gpt3-13b.yaml"),
        ("list", "models"),
        ("list", "hardware"),
        ("list", "memories"),
        ("schema", "hardware"),
    ],
)
def test_looking_at_data_needs_no_compiler(arguments: tuple[str, ...]) -> None:
    assert not loaded_by(*arguments) & {"numba", "pandas", "matplotlib", "pyarrow", "simpy"}


def test_importing_the_packages_costs_nothing() -> None:
    program = "import sys, sim, workloads; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & HEAVY
