"""Workloads: models, scenarios and the Trace, the operator graph that machines run.

The public names below load their modules on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workloads.build import Builder as Builder
    from workloads.models import Model as Model
    from workloads.models import load_model as load_model
    from workloads.models import model_names as model_names
    from workloads.scenario import Workload as Workload
    from workloads.scenario import load_workload as load_workload
    from workloads.scenario import make_workload as make_workload
    from workloads.scenario import workload_names as workload_names
    from workloads.trace import Trace as Trace
    from workloads.trace_file import read_trace as read_trace
    from workloads.trace_file import write_trace as write_trace

_HOME = {
    "Builder": "build",
    "Model": "models",
    "Trace": "trace",
    "Workload": "scenario",
    "load_model": "models",
    "load_workload": "scenario",
    "make_workload": "scenario",
    "model_names": "models",
    "read_trace": "trace_file",
    "workload_names": "scenario",
    "write_trace": "trace_file",
}

__all__ = ["build_trace", *sorted(_HOME)]


def build_trace(workload: Any, **overrides: Any) -> Trace:
    """The Trace of a workload: a `Workload`, or the name or path of one, with keys set anew (`batch=8`)."""
    from workloads.scenario import Workload, load_workload

    if isinstance(workload, Workload):
        if overrides:
            raise TypeError("overrides go with a name or path; a Workload is fixed already")
        return workload.trace()
    return load_workload(workload, **overrides).trace()


def __getattr__(name: str) -> Any:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
