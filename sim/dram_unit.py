"""Behind `opcycle unit dram`: turns a memory and a file of requests into cycles, counts, latency and energy."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, NamedTuple

from sim.document import read_text
from sim.errors import ConfigError
from sim.output import check_target
from sim.standards import MEMO, Memory, Policy, compile_memory, load_memory, new_state

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sim.kernels.dram_tables import ChannelState, DramTables


class Requests(NamedTuple):
    """A trace as columns, one entry a request: byte address, whether it writes, earliest clock, and its file's line."""

    address: NDArray[np.int64]
    is_write: NDArray[np.int64]
    earliest: NDArray[np.int64]
    line: NDArray[np.int64] | None = None


class Replay(NamedTuple):
    """What happened to a trace: the channels afterwards and, where single requests were followed, their ticks.

    `wall_s` is the time of the simulation proper: reading the file and setting up are left out.
    """

    tables: DramTables
    state: ChannelState
    accepted: NDArray[np.int64] | None
    done: NDArray[np.int64] | None
    wall_s: float


POSTED_CLOCKS = 2000
"""Clocks in which the writes that DRAMsim3's controller accepted last are served, as its published runs allowed."""

LONG_RUNS = 8
"""Mean length of the runs of consecutive bursts from which other policies serve a trace run by run."""

RUNS_AHEAD = 1024
"""Least number of runs handed over at once."""


def read_trace(path: str | Path) -> Requests:
    """Read `LD ADDRESS [CLOCK]` and `ST ADDRESS [CLOCK]` lines; blank lines and `#` comments are skipped.

    Raises ConfigError with file and line.
    """
    import numpy as np

    from sim.dram_text import parse_plain

    path = Path(path)
    text = read_text(path)
    plain = parse_plain(text.encode())
    if plain is not None:
        return Requests(*plain)
    lines = text.split("\n")
    address: list[int] = []
    is_write: list[int] = []
    earliest: list[int] = []
    where_from: list[int] = []
    kinds = {"LD": 0, "ST": 1}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0][0] == "#":
            continue
        try:
            kind, where, when = words if len(words) == 3 else (*words, "0")
            is_write.append(kinds[kind])
            address.append(int(where, 0))
            earliest.append(int(when))
            where_from.append(number)
        except (ValueError, KeyError):
            raise ConfigError(
                f"{shorten(line, 60)!r} is no request: write LD or ST, a byte address (decimal or 0x hex) and, if "
                "wanted, the earliest clock",
                file=path,
                line=number,
            ) from None
        for what, value in (("address", address[-1]), ("clock", earliest[-1])):
            if not 0 <= value < 2**56:
                written = where if what == "address" else when
                raise ConfigError(f"{what} {written} is out of range: 0 to 2^56 - 1", file=path, line=number)
    if not address:
        raise ConfigError("holds no request", file=path)
    return Requests(*(np.array(column, np.int64) for column in (address, is_write, earliest, where_from)))


def check_addresses(memory: Memory, requests: Requests, channels: int) -> None:
    """Raise ConfigError for an address beyond `channels` channels of `memory`."""
    import numpy as np

    capacity = memory.capacity_bytes_per_channel * channels
    beyond = np.flatnonzero(requests.address >= capacity)
    if len(beyond):
        i = int(beyond[0])
        raise ConfigError(
            f"request {i + 1} has address {int(requests.address[i]):#x}, but "
            + (f"{channels} channels of {memory.name} end" if channels > 1 else f"a channel of {memory.name} ends")
            + f" at {capacity:#x}",
            line=None if requests.line is None else int(requests.line[i]),
        )


def replay_requests(
    memory: Memory,
    requests: Requests,
    channels: int,
    in_flight: int = 0,
    log: int = 0,
    follow: bool = True,
    steady: bool = True,
) -> Replay:
    """Serve `requests` on `channels` channels of `memory`; `log` commands a channel are recorded.

    follow: note the accept and completion tick of every request; without, a channel may serve whole runs of consecutive
    bursts at once, and channels that are given the same requests in turn are served once, with the same cycles and
    counts. steady: allow the steady-state shortcut. Raises ConfigError for an address beyond the memory.
    """
    memory.check_channels(channels)
    check_addresses(memory, requests, channels)
    in_flight = min(in_flight, len(requests.address))
    tables = compile_memory(memory, steady)
    channel, local = _places(memory, requests.address, channels)
    if not follow and in_flight == 0 and not requests.earliest.any():
        replayed = _serve_alike(memory, tables, channel, local, requests.is_write, channels, log)
        if replayed is not None:
            return replayed
    return _serve_singly(tables, channel, local, requests, channels, log, in_flight)


def _places(
    memory: Memory, address: NDArray[np.int64], channels: int
) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
    """Channel (None: the only one) and channel-local burst of byte addresses."""
    import numpy as np

    burst = address >> (memory.burst_bytes.bit_length() - 1)
    if channels == 1:
        return None, burst
    position = memory.channel_position
    whole, channel = np.divmod(burst >> position, channels)
    return channel, whole << position | burst & (1 << position) - 1


def _serve_singly(
    tables: DramTables,
    channel: NDArray[np.int64] | None,
    local: NDArray[np.int64],
    requests: Requests,
    channels: int,
    log: int,
    in_flight: int = 0,
) -> Replay:
    """Offer requests for the bursts `local` of `channel`, in order, each as soon as the one before is accepted."""
    import numpy as np

    from sim.kernels.dram_trace import replay

    if channel is None:
        channel = np.zeros(len(local), np.int64)
    earliest = requests.earliest * tables.front_ticks
    state = new_state(tables, channels, ring=1, log=log, requests=len(channel))
    accepted = np.zeros(len(channel), np.int64)
    under = np.zeros(in_flight, np.int64)
    none = channel[:0]
    replay(tables, state, none, none, none, none, in_flight, under, none)  # compiles or loads the kernel
    started = time.perf_counter()
    replay(tables, state, channel, local, requests.is_write, earliest, in_flight, under, accepted)
    return Replay(tables, state, accepted, state.request_done, time.perf_counter() - started)


def _serve_alike(
    memory: Memory,
    tables: DramTables,
    channel: NDArray[np.int64] | None,
    local: NDArray[np.int64],
    is_write: NDArray[np.int64],
    channels: int,
    log: int,
) -> Replay | None:
    """Serve requests that go round all channels, each time for the same burst, as runs of consecutive bursts of one.

    All channels then do the same at the same time, and accept the requests of a round in one clock. The last round may
    leave out channels: these are served apart. None if the requests are not of that kind or cannot be served so.
    """
    import numpy as np

    from sim.kernels.dram_tables import GRACE, NEVER
    from sim.kernels.dram_trace import replay_runs

    rounds = len(local) // channels
    first, writes, last = local, is_write, local[:0]
    if channel is not None:
        whole = rounds * channels
        first, writes, last = local[::channels], is_write[::channels], channel[whole:]
        for each, column in ((local, first), (is_write, writes)):
            if not np.array_equal(each, np.repeat(column, channels)[: len(each)]):
                return None
        turns = np.sort(channel[:whole].reshape(rounds, channels), axis=1)
        if (turns != np.arange(channels)).any() or len(np.unique(last)) < len(last):
            return None
    new_run = (first[1:] != first[:-1] + 1) | (writes[1:] != writes[:-1])
    begin = np.concatenate([[0], np.flatnonzero(new_run) + 1])
    if len(first) < LONG_RUNS * len(begin) and memory.controller.policy is not Policy.FRFCFS:
        return None
    served = np.full(channels, rounds)
    served[last] += 1
    kinds, place = np.unique(served, return_inverse=True)
    none = first[:0]
    seconds = 0.0
    states: list[ChannelState] = []
    for n in kinds.tolist():
        lo = begin[begin < n]
        ring = max(RUNS_AHEAD, 2 * (tables.read_entries + tables.write_entries))
        state = new_state(tables, 1, ring, log=log, known=states[-1] if states else None)
        state.scalar[:, GRACE] = NEVER // 2  # all is handed over as soon as there is room for it
        replay_runs(tables, state, none, none, none)  # compiles or loads the kernel
        started = time.perf_counter()
        if not replay_runs(tables, state, first[lo], np.diff(np.append(lo, n)), writes[lo]):
            return None
        seconds += time.perf_counter() - started
        states.append(state)
    if channels == 1:
        return Replay(tables, states[0], None, None, seconds)
    shared = {"request_done", *MEMO}
    merged = {
        name: getattr(states[0], name)
        if name in shared
        else np.concatenate([getattr(state, name) for state in states])[place]
        for name in type(states[0])._fields
    }
    return Replay(tables, type(states[0])(**merged), None, None, seconds)


def run(
    memory: str | Path,
    trace: str | Path,
    channels: int = 1,
    overrides: Mapping[str, Any] | None = None,
    in_flight: int = 0,
    check: bool = False,
    before: Callable[[], None] | None = None,
    output: str | Path | None = None,
    window_ps: int | None = None,
) -> dict[str, Any]:
    """Serve the file `trace` on `memory` and return what `opcycle unit dram --json` prints.

    `overrides` are settings of the memory (`policy`, `queue`, `mapping`, `timings.tRFC` ...); `in_flight` limits the
    requests under way; `check` counts rule violations with the independent checker; `before` is called when the input
    has proved right and the simulation begins. Into the folder `output` go tables by channel, bank and window of
    `window_ps`, and pictures (see `sim.dram_report`). Raises ConfigError.
    """
    loaded = load_memory(memory, overrides)
    try:
        loaded.check_channels(channels)
    except ConfigError as error:
        raise ConfigError(error.message, file=f"memory {loaded.name}", key=error.key) from None
    if output is not None:
        check_target(output)
    requests = read_trace(trace)
    try:
        check_addresses(loaded, requests, channels)
        if before is not None:
            before()
        record = check or output is not None
        log = 16 * len(requests.address) + 4096 if record else 0
        replayed = replay_requests(loaded, requests, channels, in_flight, log, follow=False)
        while record and (replayed.state.scalar[:, _logged()] >= log).any():
            log *= 2
            replayed = replay_requests(loaded, requests, channels, in_flight, log, follow=False)
    except ConfigError as error:
        raise ConfigError(error.message, file=error.file or trace, key=error.key, line=error.line) from None
    result = summary(loaded, requests, replayed, check)
    if output is not None:
        from sim.dram_report import write_report

        write_report(output, loaded, Path(trace).name, replayed, result, window_ps)
    return result


def _logged() -> int:
    from sim.kernels.dram_tables import LOGGED

    return LOGGED


def summary(memory: Memory, requests: Requests, replayed: Replay, check: bool) -> dict[str, Any]:
    """The keys of `opcycle unit dram --json`; `cycles` counts clocks of the command bus.

    Commands are counted up to the last completion, under the policy dramsim3, whose writes complete when accepted, up
    to POSTED_CLOCKS later if there are writes.
    """
    import numpy as np

    from sim.dram_energy import dram_rows
    from sim.kernels import dram_tables as at
    from sim.kernels.dram import settle, standby
    from sim.passes import MemoryCounts

    tables, state = replayed.tables, replayed.state
    reads = requests.is_write == 0
    end = int(max(state.scalar[:, at.LAST_READ_END].max(), state.scalar[:, at.LAST_WRITE].max()))
    period = memory.period
    for c in range(state.scalar.shape[0]):
        settle(tables, state, c, end)
    spent = np.array([standby(tables, state, c, end) for c in range(state.scalar.shape[0])]).sum(axis=0)
    if memory.controller.policy is Policy.DRAMSIM3 and not reads.all():
        for c in range(state.scalar.shape[0]):
            settle(tables, state, c, end + POSTED_CLOCKS * tables.front_ticks)
    counts = state.count.sum(axis=0)
    read_bytes, write_bytes = int(counts[at.RD]) * memory.burst_bytes, int(counts[at.WR]) * memory.burst_bytes
    memory_counts = MemoryCounts(
        commands={"ACT": int(counts[at.ACT]), "RD": int(counts[at.RD]), "WR": int(counts[at.WR]),
                  "REFab": int(counts[at.REF]), "REFpb": int(counts[at.REFB]), "REFsb": int(counts[at.REFS])},
        standby_ps={name: int(n * period) for name, n in zip(memory.standby_states, spent, strict=False)},
        bytes_read=read_bytes,
        bytes_written=write_bytes,
        row_hits=int(counts[at.HITS]),
        row_misses=int(counts[at.MISSES]),
        row_conflicts=int(counts[at.CONFLICTS]),
    )  # fmt: skip
    time_ps = end * period
    if replayed.done is not None and replayed.accepted is not None:
        latency = int((replayed.done - replayed.accepted)[reads].sum())
    else:
        latency = int(counts[at.READ_LATENCY] + counts[at.FORWARDED])
    result: dict[str, Any] = {
        "cycles": -(-end // tables.front_ticks),
        "time_ns": float(time_ps / 1000),
        "reads": int(reads.sum()),
        "writes": int((~reads).sum()),
        "activates": int(counts[at.ACT]),
        "precharges": int(counts[at.PRE] + counts[at.PREA]),
        "refreshes": int(counts[at.REF] + counts[at.REFB] + counts[at.REFS]),
        "row_hits": memory_counts.row_hits,
        "row_misses": memory_counts.row_misses,
        "row_conflicts": memory_counts.row_conflicts,
        "bandwidth_bytes_per_s": float(len(reads) * memory.burst_bytes * 10**12 / time_ps) if end else 0.0,
        "average_read_latency_ns": float(latency * period / 1000 / int(reads.sum())) if reads.any() else 0.0,
        "energy_pj": {row.subcomponent: row.count * row.pj_each for row in dram_rows(memory, memory_counts)},
        "violations": None,
    }
    if check:
        from sim.dram_check import check_log

        found = [check_log(memory, state.log[c, : state.scalar[c, at.LOGGED]]) for c in range(state.scalar.shape[0])]
        result["violations"] = sum(f.count for f in found)
        if result["violations"]:
            result["violation_examples"] = [text for f in found for text in f.examples][:10]
    result["wall_s"] = replayed.wall_s
    return result
