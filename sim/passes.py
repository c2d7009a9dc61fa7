"""The tables that one simulated pass leaves behind: its operators, its units, its tasks and their schedule.

The engine fills these, the report and the energy model only read them. All of them are frozen; the task columns and the
schedule are numpy int64 arrays of one length, one entry a task, so that everything reported is a join over them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy import ndarray


@dataclass(frozen=True, slots=True)
class ZeroRow:
    """What the zeros of an operator's operands came to. MACs of matrix work: `useful_macs` have two kept values (as if
    the zeros of both operands fell independently), `skipped_macs` were left out, `predictor_macs` were done to know
    which.

    Bytes count each operand once: `left_out_bytes` of zeros that are not stored, `metadata_bytes` that say where they
    are. `cycles` of the engine by cause, in the order of `sim.sparse.zeros.Split`, summed over tiles and cores.
    """

    useful_macs: int = 0
    skipped_macs: int = 0
    predictor_macs: int = 0
    left_out_bytes: int = 0
    metadata_bytes: int = 0
    cycles: tuple[int, ...] = (0, 0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class OpRow:
    """One operator instance (one operator of one layer) with the work that the trace asks for, before any overhead.

    `flops` counts matrix work only (2 per multiply-accumulate), `vector_ops` scalar vector operations; `read_bytes` and
    `write_bytes` are compulsory: every tensor once. `decisions` says what the mapper chose (tile, order, fused ...).
    """

    name: str
    kind: str
    role: str
    block: str
    layer: int
    pass_name: str
    phase: str
    flops: int
    vector_ops: int
    read_bytes: int
    write_bytes: int
    format: str
    decisions: dict[str, str] = field(default_factory=dict)
    zeros: ZeroRow | None = None

    @property
    def done_flops(self) -> int:
        """FLOPs that are left when products of zeros are skipped."""
        return self.flops - 2 * self.zeros.skipped_macs if self.zeros else self.flops


@dataclass(frozen=True, slots=True)
class UnitRow:
    """One kind of unit of the machine: how many alike (`slots`) and what all of them together do at best.

    `work` names the unit of `peak_per_s`: "flop" (FLOP/s), "vector" (scalar operations/s) or "byte" (bytes/s).
    """

    name: str
    kind: str
    slots: int
    peak_per_s: float
    work: str


@dataclass(frozen=True, slots=True)
class TaskTable:
    """What each task is and does: int64 columns of one length. `unit` and `op` index the pass's `units` and `ops`."""

    unit: ndarray
    op: ndarray
    macs: ndarray
    vector_ops: ndarray
    sram_read_bytes: ndarray
    sram_write_bytes: ndarray
    accumulator_bytes: ndarray
    dram_read_bytes: ndarray
    dram_write_bytes: ndarray
    link_bytes: ndarray
    pim_macs: ndarray = field(default_factory=lambda: np.zeros(0, np.int64))  # of units in the memory; none if empty

    def __post_init__(self) -> None:
        if len(self.pim_macs) != len(self.macs):
            object.__setattr__(self, "pim_macs", np.zeros_like(self.macs))


@dataclass(frozen=True, slots=True)
class MemoryCounts:
    """What the memory did in one pass, summed over all real channels.

    `commands` counts by command name (ACT, RD, WR, REFab ...); `standby_ps` holds picoseconds in the states `active`
    (any bank of the rank open), `precharged` (all closed) and `refresh`, summed over channels x ranks;
    `channel_busy_ps` is the time each real channel's data bus (its pseudo-channels' buses on average) carried data, one
    entry a channel. `bytes_forwarded` are reads answered from the write queue, `bytes_merged` writes that replaced one
    still waiting there: whole bursts that needed no DRAM command and are in neither `bytes_read` nor `bytes_written`.
    `pim_busy_ps` is the time in which the units in each real channel had work under way, one entry a channel of a
    memory that has such units.
    """

    commands: dict[str, int]
    standby_ps: dict[str, int]
    bytes_read: int
    bytes_written: int
    row_hits: int
    row_misses: int
    row_conflicts: int
    channel_busy_ps: tuple[int, ...] = ()
    bytes_forwarded: int = 0
    bytes_merged: int = 0
    pim_busy_ps: tuple[int, ...] = ()


def sum_counts(parts: Sequence[tuple[int, MemoryCounts]]) -> MemoryCounts:
    """Counts of several stretches together, each as often as its number says; times by channel add up by channel."""

    def named(name: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for times, counts in parts:
            for key, value in getattr(counts, name).items():
                found[key] = found.get(key, 0) + times * int(value)
        return found

    def total(name: str) -> int:
        return sum(times * int(getattr(counts, name)) for times, counts in parts)

    def by_channel(name: str) -> tuple[int, ...]:
        columns = [[times * value for value in getattr(counts, name)] for times, counts in parts]
        return tuple(map(sum, zip(*columns, strict=True)))

    return MemoryCounts(
        commands=named("commands"),
        standby_ps=named("standby_ps"),
        bytes_read=total("bytes_read"),
        bytes_written=total("bytes_written"),
        row_hits=total("row_hits"),
        row_misses=total("row_misses"),
        row_conflicts=total("row_conflicts"),
        channel_busy_ps=by_channel("channel_busy_ps"),
        bytes_forwarded=total("bytes_forwarded"),
        bytes_merged=total("bytes_merged"),
        pim_busy_ps=by_channel("pim_busy_ps"),
    )


@dataclass(frozen=True, slots=True)
class Schedule:
    """When each task started, freed its unit and finished (int64 ps, one entry a task), the end of the pass, the
    memory's counts.

    A unit is busy from start to release; the result may be used from finish on (pipelined units deliver later).
    """

    start_ps: ndarray
    release_ps: ndarray
    finish_ps: ndarray
    makespan_ps: int
    memory: MemoryCounts


@dataclass(frozen=True, slots=True)
class PassResult:
    """One simulated pass. It occurs `repeat` times in the run, `tokens` and `generated` count one occurrence."""

    name: str
    phase: str
    tokens: int
    generated: int
    repeat: int
    ops: tuple[OpRow, ...]
    units: tuple[UnitRow, ...]
    tasks: TaskTable
    schedule: Schedule
