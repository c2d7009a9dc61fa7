"""The timeline of a run: who worked for which operator from when to when, as a table and as a Chrome trace for
Perfetto.

Each pass stands there once, however often it repeats, and the passes follow each other. Work of one unit for one
operator that leaves no gap becomes one slice; when that leaves too many, short gaps are bridged, the least that is
needed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sim.joins import Ints, density, merge, spans_ps, tracks
from sim.passes import PassResult
from sim.report_tables import unit_names

MOST_SLICES = 60_000
"""Slices of units that a timeline holds at most, about 8 MB of file."""
BINS = 480
"""Stretches of a pass for which the file states how busy each unit is."""


@dataclass(frozen=True, slots=True)
class Timeline:
    """Slices of all passes, sorted by unit and start: int64 arrays of one length, times in ps since the run began.

    `unit` indexes `units`; `result` and `op` name the pass and its operator. `bridged_ps` is the longest gap inside a
    slice.
    """

    units: tuple[str, ...]
    unit: Ints
    result: Ints
    op: Ints
    start_ps: Ints
    end_ps: Ints
    offsets_ps: tuple[int, ...]
    bridged_ps: int


def build_timeline(passes: Sequence[PassResult], most: int = MOST_SLICES) -> Timeline:
    """The timeline of `passes`, with at most `most` slices unless there are more pairs of unit and operator.

    A memory that no task names (its traffic belongs to the DMA's tasks) has no line of its own.
    """
    used = {result.units[i].name for result in passes for i in np.unique(result.tasks.unit).tolist()}
    memories = {unit.name for result in passes for unit in result.units if unit.kind == "memory"}
    units = [name for name in unit_names(passes) if name in used or name not in memories]
    offsets = [0]
    for result in passes:
        offsets.append(offsets[-1] + result.schedule.makespan_ps)
    exact = [_slices(result, units, 0) for result in passes]
    gap = 0
    merged = exact
    while sum(len(s[0]) for s in merged) > most and gap < offsets[-1]:
        gap = max(2 * gap, offsets[-1] // 100_000, 1)
        merged = [_slices(result, units, gap) for result in passes]
    number = np.concatenate([np.full(len(s[0]), i, np.int64) for i, s in enumerate(merged)] or [np.zeros(0, np.int64)])
    columns = [np.concatenate([s[c] for s in merged] or [np.zeros(0, np.int64)]) for c in range(4)]
    shift = np.array(offsets, np.int64)[number] if len(number) else number
    unit, op, start, end = columns[0], columns[1], columns[2] + shift, columns[3] + shift
    order = np.lexsort((end, start, unit))
    return Timeline(
        units=tuple(units),
        unit=unit[order],
        result=number[order],
        op=op[order],
        start_ps=start[order],
        end_ps=end[order],
        offsets_ps=tuple(offsets),
        bridged_ps=gap,
    )


def _slices(result: PassResult, units: Sequence[str], gap_ps: int) -> tuple[Ints, Ints, Ints, Ints]:
    """(unit, operator, start, end) of one pass; tasks that take no time leave no slice."""
    ops = max(len(result.ops), 1)
    number = np.array([units.index(unit.name) if unit.name in units else -1 for unit in result.units], np.int64)
    tasks, schedule = result.tasks, result.schedule
    shown = (schedule.release_ps > schedule.start_ps) & (number[tasks.unit] >= 0)
    group = number[tasks.unit[shown]] * ops + tasks.op[shown]
    merged = merge(group, schedule.start_ps[shown], schedule.release_ps[shown], gap_ps)
    return merged.group // ops, merged.group % ops, merged.start_ps, merged.end_ps


def unit_density(result: PassResult, bins: int = BINS) -> NDArray[np.float64]:
    """How busy each unit of a pass is over time: float64[units, bins], 0 to 1."""
    schedule = result.schedule
    union = merge(result.tasks.unit, schedule.start_ps, schedule.release_ps)
    return density(union, len(result.units), schedule.makespan_ps, bins)


def dram_traffic(result: PassResult, bins: int = BINS) -> NDArray[np.float64] | None:
    """DRAM traffic of a pass over time as a share of the memory's peak: float64[bins]; None without a memory.

    The bytes of each transfer are spread evenly from its start to its finish, so the shares sum to all bytes moved.
    """
    peak_per_s = sum(unit.peak_per_s for unit in result.units if unit.kind == "memory")
    tasks, schedule = result.tasks, result.schedule
    if not peak_per_s or not schedule.makespan_ps:
        return None
    moved = tasks.dram_read_bytes + tasks.dram_write_bytes
    mine = moved > 0
    amount = moved[mine].astype(np.float64)
    start = schedule.start_ps[mine].astype(np.float64)
    end = np.maximum(schedule.finish_ps[mine].astype(np.float64), start + 1)
    edges = np.linspace(0.0, float(schedule.makespan_ps), bins + 1)
    # Bytes moved before an edge: rate x (edge - start) of all transfers begun, less what those that ended did not move.
    rate = amount / (end - start)

    def before(at: NDArray[np.float64]) -> NDArray[np.float64]:
        order = np.argsort(at, kind="stable")
        count = np.searchsorted(at[order], edges, side="right")
        rates = np.concatenate(([0.0], np.cumsum(rate[order])))[count]
        offsets = np.concatenate(([0.0], np.cumsum((rate * at)[order])))[count]
        return rates * edges - offsets

    bytes_before = before(start) - before(end)
    return np.maximum(np.diff(bytes_before), 0.0) / (np.diff(edges) * 1e-12 * peak_per_s)


def chrome_trace(passes: Sequence[PassResult], timeline: Timeline) -> Iterator[str]:
    """Lines of a Chrome trace (JSON object format): passes, operators, units and how busy the units are; times in us.

    Processes are 1 `passes`, 2 `operators`, 3 `units`; slices that overlap on one unit lie on tracks of their own.
    """
    yield (
        '{"displayTimeUnit":"ns","otherData":'
        + _dump({"bridged_gap_us": timeline.bridged_ps / 1e6, "schema": "opcycle/timeline/1"})
        + ',"traceEvents":['
    )
    events = _events(passes, timeline)
    last = next(events, None)
    for event in events:
        assert last is not None
        yield last + ","
        last = event
    if last is not None:
        yield last
    yield "]}"


def _events(passes: Sequence[PassResult], timeline: Timeline) -> Iterator[str]:
    for pid, process in ((1, "passes"), (2, "operators"), (3, "units")):
        yield _meta("process_name", pid, 0, {"name": process})
        yield _meta("process_sort_index", pid, 0, {"sort_index": pid})
    yield from _pass_events(passes, timeline)
    yield from _operator_events(passes, timeline)
    yield from _unit_events(passes, timeline)
    yield from _density_events(passes, timeline)


def _pass_events(passes: Sequence[PassResult], timeline: Timeline) -> Iterator[str]:
    yield _meta("thread_name", 1, 1, {"name": "passes"})
    for result, offset in zip(passes, timeline.offsets_ps, strict=False):
        args = {"phase": result.phase, "repeat": result.repeat, "tokens": result.tokens, "generated": result.generated}
        yield _complete(_dump(result.name), 1, 1, offset, result.schedule.makespan_ps, _dump(args))


def _operator_events(passes: Sequence[PassResult], timeline: Timeline) -> Iterator[str]:
    most = 0
    lines = []
    for result, offset in zip(passes, timeline.offsets_ps, strict=False):
        start, finish = spans_ps(result.tasks.op, result.schedule, len(result.ops))
        shown = np.flatnonzero(finish > start)
        order = shown[np.lexsort((finish[shown], start[shown]))]
        track = tracks(np.zeros(len(order), np.int64), start[order], finish[order])
        most = max(most, int(track.max(initial=-1)) + 1)
        for i, tid in zip(order.tolist(), track.tolist(), strict=True):
            op = result.ops[i]
            args = {"block": op.block, "kind": op.kind, "layer": op.layer, "role": op.role} | op.decisions
            lines.append(
                _complete(_dump(op.name), 2, tid + 1, offset + int(start[i]), int(finish[i] - start[i]), _dump(args))
            )
    for tid in range(most):
        yield _meta("thread_name", 2, tid + 1, {"name": "operators" if tid == 0 else f"operators, overlap {tid}"})
    yield from lines


def _unit_events(passes: Sequence[PassResult], timeline: Timeline) -> Iterator[str]:
    track = tracks(timeline.unit, timeline.start_ps, timeline.end_ps)
    width = np.zeros(len(timeline.units), np.int64)
    np.maximum.at(width, timeline.unit, track + 1)
    first = np.concatenate(([0], np.cumsum(np.maximum(width, 1)))) + 1
    for unit, name in enumerate(timeline.units):
        for k in range(max(int(width[unit]), 1)):
            tid = int(first[unit]) + k
            yield _meta("thread_name", 3, tid, {"name": name if k == 0 else f"{name}, overlap {k}"})
            yield _meta("thread_sort_index", 3, tid, {"sort_index": tid})
    texts = [
        [(_dump(op.name), f'{{"layer":{op.layer},"role":{_dump(op.role)},"unit":', "}") for op in result.ops]
        for result in passes
    ]
    unit_text = [_dump(name) for name in timeline.units]
    columns = (
        timeline.result.tolist(),
        timeline.op.tolist(),
        timeline.unit.tolist(),
        (first[timeline.unit] + track).tolist(),
        timeline.start_ps.tolist(),
        (timeline.end_ps - timeline.start_ps).tolist(),
    )
    for result, op, unit, tid, start, length in zip(*columns, strict=True):
        name, before, after = texts[result][op]
        yield _complete(name, 3, tid, start, length, before + unit_text[unit] + after)


def _density_events(passes: Sequence[PassResult], timeline: Timeline) -> Iterator[str]:
    for result, offset in zip(passes, timeline.offsets_ps, strict=False):
        shares = unit_density(result)
        edges = np.linspace(0, result.schedule.makespan_ps, BINS + 1).astype(np.int64).tolist()
        for unit, row in zip(result.units, shares.tolist(), strict=True):
            if unit.name not in timeline.units:
                continue
            name = _dump(f"{unit.name} busy")
            for at, share in zip(edges, row, strict=False):
                args = f'{{"busy":{round(share, 4)!r}}}'
                yield f'{{"args":{args},"name":{name},"ph":"C","pid":3,"ts":{(offset + at) / 1e6!r}}}'
        traffic = dram_traffic(result)
        for at, share in zip(edges, [] if traffic is None else traffic.tolist(), strict=False):
            args = f'{{"of_peak":{round(share, 4)!r}}}'
            yield f'{{"args":{args},"name":"DRAM traffic","ph":"C","pid":3,"ts":{(offset + at) / 1e6!r}}}'


def _complete(name: str, pid: int, tid: int, start_ps: int, length_ps: int, args: str) -> str:
    when = f'"dur":{length_ps / 1e6!r},"name":{name},"ph":"X","pid":{pid},"tid":{tid},"ts":{start_ps / 1e6!r}'
    return f'{{"args":{args},{when}}}'


def _meta(name: str, pid: int, tid: int, args: dict[str, object]) -> str:
    return _dump({"args": args, "name": name, "ph": "M", "pid": pid, "tid": tid, "ts": 0})


def _dump(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))
