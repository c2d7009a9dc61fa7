"""Small machines, models and passes on which every property of a run can be checked, and a recorder of what a run did.

A machine is a shipped one made small by overrides; models have two layers; a `Run` keeps what the lowering and the
executor leave behind that reports do not show: on-chip buffers, memory segments, the state of the channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from unittest import mock

import sim.execute
import sim.lower.lowering
from sim.hardware import Hardware
from sim.kinds import load_hardware
from sim.lower.builder import Builder, Template
from sim.lower.lowering import Lowered, lower_pass
from sim.mapper import SimulatedMapper
from sim.passes import Schedule
from workloads.build import Builder as ModelBuilder
from workloads.build import decode_passes, encode_passes, prefill_passes
from workloads.models import Model
from workloads.trace import Pass

SMALL = {
    "name": "small",
    "array.count": 1,
    "array.rows": 32,
    "array.columns": 32,
    "vector.count": 1,
    "vector.lanes": 32,
    "scratchpad.capacity": "256 KiB",
    "scratchpad.read_bytes_per_cycle": 256,
    "scratchpad.write_bytes_per_cycle": 256,
    "accumulator.capacity": "64 KiB",
    "dma.loads": 4,
    "dma.stores": 2,
    "memory.channels": 4,
}

MACHINES: dict[str, dict[str, Any]] = {
    "ws": {},
    "ws_serial": {"array.preload": "fold_serial"},
    "os": {"array.dataflow": "os"},
    "os_serial": {"array.dataflow": "os", "array.preload": "fold_serial", "array.drain": "true"},
    "is": {"array.dataflow": "is", "array.reload": "tile"},
    "is_serial": {"array.dataflow": "is", "array.preload": "fold_serial"},
    "tight": {"scratchpad.capacity": "24 KiB", "accumulator.capacity": "12 KiB"},
    "no_share": {"scratchpad.activation_share": 0},
    "four_cores": {"cores": 4, "scratchpad.capacity": "64 KiB", "accumulator.capacity": "16 KiB"},
    "two_arrays": {"array.count": 2, "memory.channels": 3},
    "unfused": {"attention": "unfused"},
    "one_slot": {"dma.loads": 1, "dma.stores": 1, "dma.setup": "0 ns", "memory.channels": 1},
    "ddr4": {"memory.standard": "ddr4-3200", "memory.settings": {}, "memory.channels": 2, "clock": "700 MHz"},
    "launch": {"software.launch": "1 us"},
}


@cache
def machine(name: str) -> Hardware:
    """A small machine: `npu-hbm2` with SMALL and what MACHINES says of `name`."""
    return load_hardware("npu-hbm2", {**SMALL, **MACHINES[name]})


def model(**changes: Any) -> Model:
    """A decoder of two layers, hidden size 256; `changes` replace keys, mappings are merged."""
    facts: dict[str, Any] = {
        "name": "tiny",
        "layers": 2,
        "hidden": 256,
        "vocab": 512,
        "max_position": 4096,
        "attention": {"heads": 4, "kv_heads": 2, "head_dim": 64},
        "ffn": {"hidden": 512, "activation": "swiglu"},
        "norm": {"kind": "rmsnorm"},
    }
    for key, value in changes.items():
        facts[key] = {**facts[key], **value} if isinstance(facts.get(key), dict) and isinstance(value, dict) else value
    return Model.model_validate(facts)


LATENT = {"heads": 4, "kv_heads": 4, "head_dim": 48, "v_head_dim": 32, "latent": {"kv_rank": 64, "rope_dim": 16}}
MOE = {"experts": 8, "top_k": 2, "hidden": 128, "shared_hidden": 128, "first_dense": 1}


def _decode(facts: Model, contexts: Sequence[int]) -> Pass:
    return decode_passes(ModelBuilder(facts), contexts)[0]


def _prefill(facts: Model, lengths: Sequence[int], chunk: int | None = None, number: int = 0) -> Pass:
    return prefill_passes(ModelBuilder(facts), lengths, chunk)[number]


def _encode(facts: Model, lengths: Sequence[int]) -> Pass:
    return encode_passes(ModelBuilder(facts), lengths)[0]


def _window(kind: str = "sliding") -> dict[str, Any]:
    return {"window": {"kind": kind, "size": 48, "pattern": ("local", "global")}}


PASSES: dict[str, Callable[[], Pass]] = {
    "gqa_decode": lambda: _decode(model(), [100] * 3),
    "gqa_prefill": lambda: _prefill(model(), [96]),
    "listed_decode": lambda: _decode(model(), [17, 130, 64, 64]),
    "listed_prefill": lambda: _prefill(model(), [40, 7]),
    "chunked_prefill": lambda: _prefill(model(), [100], chunk=40, number=1),
    "mla_decode": lambda: _decode(model(attention=LATENT), [90, 33]),
    "mla_prefill": lambda: _prefill(model(attention=LATENT), [70]),
    "moe_decode": lambda: _decode(model(moe=MOE), [50, 20]),
    "moe_prefill": lambda: _prefill(model(moe=MOE), [33]),
    "window_decode": lambda: _decode(model(attention=_window()), [150]),
    "window_prefill": lambda: _prefill(model(attention=_window()), [130]),
    "chunk_mask": lambda: _decode(model(attention=_window("chunk")), [70]),
    "encoder": lambda: _encode(
        model(
            kind="encoder", position="learned", attention={"kv_heads": 4, "qkv_bias": True, "out_bias": True},
            ffn={"activation": "gelu", "bias": True}, norm={"kind": "layernorm", "place": "post"}, pooler=True,
        ),
        [50, 50, 21],
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """An on-chip buffer: bytes [low, high) of a ring (scratchpads of the cores, then their accumulators), from the
    first start of the tasks in `first` to the end of all tasks in `users`.
    """

    ring: int
    low: int
    high: int
    first: tuple[int, ...]
    users: tuple[int, ...]


@dataclass(frozen=True)
class Run:
    """One pass on one machine with everything there is to know about it."""

    machine: Hardware
    work: Pass
    lowered: Lowered
    places: tuple[Place, ...]
    templates: tuple[tuple[Template, int, int], ...]
    schedule: Schedule
    state: Any  # of the memory channels


class _Recorder:
    """Notes the buffers of every template while it is built."""

    def __init__(self) -> None:
        self.buffers: dict[int, dict[int, list[Any]]] = {}
        self.templates: list[tuple[Template, int, int]] = []
        self.keep: list[Any] = []  # so that no identity is used twice
        enter, release, link = Builder._enter, Builder.release, sim.lower.lowering.link

        def noted_enter(builder: Builder, ring: int, buffer: Any, number: int) -> None:
            self.keep.append((builder.template, buffer.span))
            span = buffer.span
            noted = self.buffers.setdefault(id(builder.template), {})
            noted.setdefault(id(span), [ring, span.low, span.high, [], ()])[3].append(number)
            enter(builder, ring, buffer, number)

        def noted_release(builder: Builder, core: int, buffer: Any, tasks: Any, accumulator: bool = False) -> None:
            tasks = tuple(tasks)
            self.buffers[id(builder.template)][id(buffer.span)][4] = tasks
            release(builder, core, buffer, tasks, accumulator)

        def noted_link(templates: Any, *rest: Any, **options: Any) -> Any:
            self.templates = list(templates)
            return link(templates, *rest, **options)

        self.patches = [
            mock.patch.object(Builder, "_enter", noted_enter),
            mock.patch.object(Builder, "release", noted_release),
            mock.patch.object(sim.lower.lowering, "link", noted_link),
        ]

    def places(self) -> tuple[Place, ...]:
        """All buffers of the pass, with the task numbers of the linked program."""
        found = []
        shift = 0
        for template, repeat, _ in self.templates:
            for layer in range(repeat):
                for ring, low, high, first, users in self.buffers.get(id(template), {}).values():
                    at = shift + layer * len(template.unit)
                    moved = (tuple(task + at for task in tasks) for tasks in (first, users))
                    found.append(Place(ring, low, high, *moved))
            shift += repeat * len(template.unit)
        return tuple(found)


@cache
def mapper(name: str) -> SimulatedMapper:
    """The mapper of a machine, shared so that equal products are searched once."""
    return SimulatedMapper(machine(name))


def run_pass(hardware: Hardware, work: Pass, search: Any = None, symmetry: bool = True, steady: bool = True) -> Run:
    """Simulate `work` on `hardware` and keep everything."""
    search = search or SimulatedMapper(hardware)
    recorder = _Recorder()
    for patch in recorder.patches:
        patch.start()
    try:
        lowered = lower_pass(hardware, work, search, symmetry)
    finally:
        for patch in recorder.patches:
            patch.stop()
    states = []
    make = sim.execute.new_state

    def noted_state(*arguments: Any, **options: Any) -> Any:
        states.append(make(*arguments, **options))
        return states[-1]

    with mock.patch.object(sim.execute, "new_state", noted_state):
        schedule = sim.execute.execute(lowered.linked, hardware.dram, steady)
    return Run(hardware, work, lowered, recorder.places(), tuple(recorder.templates), schedule, states[0])


@cache
def small_run(name: str, what: str) -> Run:
    """PASSES[what] on machine(name)."""
    return run_pass(machine(name), PASSES[what](), mapper(name))
