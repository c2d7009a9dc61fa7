"""What crosses the border into the task executor: a Program of integer columns, and the room for its Schedule.

A Program has one row per task. Compute tasks occupy a unit for a fixed time; memory tasks hand segments (contiguous
ranges of channel-local bursts) and PIM jobs (vectors times tiles of rows, computed in the memory) to the channels and
take as long as the channels need: to the last data of the last segment and the last result of the last job. Segments
of a class are served side by side with its jobs, command by command; jobs one after another, as their tasks start.
"""

from typing import NamedTuple

import numpy as np

NEVER = np.int64(2**62)


class Program(NamedTuple):
    """Tasks and units as columns; n tasks, u units, m memory tasks, c channel classes, s segments.

    Times are int64 picoseconds.
    """

    unit: np.ndarray  # int32[n]   unit that runs the task
    # int64[n]   time on the unit; for a memory task the delay from start until its requests are visible
    ticks: np.ndarray
    tail: np.ndarray  # int64[n]   time after the unit is free (or the data is there) until successors may start
    cold: np.ndarray  # int64[n]   extra time on the unit when it stood idle just before
    waits: np.ndarray  # int32[n]   predecessors
    ptr: np.ndarray  # int64[n+1] successors of task i: succ[ptr[i]:ptr[i+1]]
    succ: np.ndarray  # int32[edges]
    memory: np.ndarray  # int32[n]   index among the memory tasks, -1 for a compute task
    write: np.ndarray  # int64[m]   1: towards memory
    seg_ptr: np.ndarray  # int64[c, m+1] segments of memory task j in class c: seg_ptr[c, j]:seg_ptr[c, j+1]
    seg_lo: np.ndarray  # int64[s]   first channel-local burst
    seg_n: np.ndarray  # int64[s]   bursts
    size: np.ndarray  # int64[n]   bytes that a memory task moves
    slots: np.ndarray  # int64[u]   tasks that a unit runs at once; the last unit joins tasks and has no limit
    window: np.ndarray  # int64[u]   beyond two tasks, bytes that a unit has under way at once (0: no limit)
    # int64[c, m+1] PIM jobs of memory task j in class c: pim_ptr[c, j]:pim_ptr[c, j+1]; (0, 1): there are none at all
    pim_ptr: np.ndarray = np.zeros((0, 1), np.int64)
    pim_job: np.ndarray = np.zeros((0, 12), np.int64)  # int64[jobs, JOB_FIELDS], columns as in `pim_tables`


class Result(NamedTuple):
    """Filled by the executor: when each task started and when its result could be used, in picoseconds."""

    start: np.ndarray  # int64[n]
    release: np.ndarray  # int64[n]   unit free again (memory: last data)
    finish: np.ndarray  # int64[n]   release + tail
