"""What the tests of the DRAM channel share: serving work, in one go or in parts, and what can be seen of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from sim.kernels import dram_tables as at
from sim.kernels.dram import NEVER, advance, push, settle, standby
from sim.standards import COMMANDS, Memory, compile_memory, new_state

MEMORIES = ("hbm2", "ddr4-3200", "hbm2-neupims", "ddr4-3200-matched", "hbm-onnxim")
FINE_GRAINED = ("hbm2", "hbm3", "ddr5-4800", "lpddr4x")  # refreshed bank by bank, or one bank of every group
Work = list[tuple[int, int, int, int]]  # first burst, bursts, is_write, visible tick


def finish(t: Any, s: Any, until: int = NEVER) -> list[tuple[int, int]]:
    """Advance class 0 to `until` and return the completions (task, tick) in order."""
    done = []
    while True:
        following = advance(t, s, 0, until)
        done += [(int(s.done_task[0, k]), int(s.done_tick[0, k])) for k in range(s.done_count[0])]
        s.done_count[0] = 0
        if following >= until:
            return done


def serve(
    memory: Memory, work: Work, log: int = 20_000, steady: bool = False
) -> tuple[Any, Any, list[tuple[int, int]]]:
    """Tables, state and completions of a channel that served all of `work`."""
    t = compile_memory(memory, steady)
    s = new_state(t, 1, len(work) + 1, log=log)
    for task, (lo, n, is_write, tick) in enumerate(work):
        assert push(t, s, 0, lo, n, is_write, task, tick)
    return t, s, finish(t, s)


def serve_in_parts(
    memory: Memory, work: Work, cuts: Sequence[int], log: int = 20_000, steady: bool = False
) -> tuple[Any, ...]:
    """Tables, state and completions of a channel that is advanced to one limit after another, `cuts` apart.

    Asserts that no logged command lies at or beyond the limit that it was reached under.
    """
    t = compile_memory(memory, steady)
    s = new_state(t, 1, len(work) + 1, log=log)
    for task, (lo, n, is_write, tick) in enumerate(work):
        assert push(t, s, 0, lo, n, is_write, task, tick)
    done: list[tuple[int, int]] = []
    until = 0
    for cut in cuts:
        until += cut
        done += finish(t, s, until)
        assert all(row[1] < until for row in commands(s))
    return t, s, done + finish(t, s)


def commands(s: Any, *names: str) -> list[tuple[Any, ...]]:
    """The logged commands of these names, all without names: (name, tick, rank, group, bank, row)."""
    rows = s.log[0, : s.scalar[0, at.LOGGED]]
    rows = rows[rows[:, 0] >= 0]  # the others say when ranks slept
    logged = [(COMMANDS[row[0]], *map(int, row[1:])) for row in rows]
    return [row for row in logged if not names or row[0] in names]


@st.composite
def works(draw: st.DrawFn, most: int = 14) -> Work:
    """Segments of few or many bursts, close together or far apart in address and time."""
    span = draw(st.sampled_from([200, 1 << 12, 1 << 20]))
    tick = 0
    work = []
    for _ in range(draw(st.integers(1, most))):
        tick += draw(st.sampled_from([0, 0, 0, 1, 60, 900, 6000]))
        work.append(
            (draw(st.integers(0, span)), draw(st.sampled_from([1, 1, 2, 5, 30])), draw(st.integers(0, 1)), tick)
        )
    return work


def end_of(memory: Memory, work: Work, steady: bool) -> tuple[Any, ...]:
    """All that can be seen of a channel that got each segment of `work` at its tick and was then left alone."""
    t = compile_memory(memory, steady)
    s = new_state(t, 1, len(work) + 1)
    done = []
    for task, (lo, n, is_write, tick) in enumerate(work):
        done += finish(t, s, tick)
        assert push(t, s, 0, lo, n, is_write, task, tick)
    done += finish(t, s)
    end = int(s.scalar[0, at.LAST_END]) + 1000
    settle(t, s, 0, end)
    ends = [int(s.scalar[0, k]) for k in (at.LAST_END, at.LAST_READ_END, at.LAST_WRITE, at.NEXT_AGE)]
    rows = s.bank[0, [at.ROW, at.STREAK]].tolist()
    return done, s.count[0].tolist(), ends, rows, [int(n) for n in standby(t, s, 0, end)]
