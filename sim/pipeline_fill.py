"""The wait of a pipeline's last stage for its first work: a pass begins later by the time of the stages before.

n stages alike that work on parts of a batch one after another end when the last stage has done all parts and waited
n - 1 times for the longest of them: the length of a flow shop whose machines are alike, in any order of parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from sim.passes import PassResult, Schedule
from workloads.trace import Block, Pass


def filled(work: Pass, result: PassResult, run: Callable[[Pass], PassResult]) -> PassResult:
    """`result` of `work` after `work.fill` stages have worked on its first part, which must be the longest.

    The device is idle meanwhile: its memory stands by with closed banks, and nothing is counted.
    """
    if not work.fill:
        return result
    lead = run(Pass(f"{work.name}.fill", work.phase, _stage(work.blocks), 0))
    wait_ps = work.fill * lead.schedule.makespan_ps
    was = result.schedule
    standby = dict(was.memory.standby_ps)
    if standby and was.makespan_ps:
        ranks = round(sum(standby.values()) / was.makespan_ps)
        standby["precharged"] = standby.get("precharged", 0) + ranks * wait_ps
    return replace(
        result,
        schedule=Schedule(
            was.start_ps + wait_ps, was.release_ps + wait_ps, was.finish_ps + wait_ps, was.makespan_ps + wait_ps,
            replace(was.memory, standby_ps=standby),
        ),
    )  # fmt: skip


def _stage(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    """What each stage does with the first part: its blocks but for the head, which the last stage alone has."""
    first, _, _ = blocks[0].name.partition(".")
    return tuple(b for b in blocks if b.name.startswith(f"{first}.") and not b.name.endswith(".head"))
