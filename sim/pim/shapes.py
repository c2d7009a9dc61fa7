"""Cuts one operator into PIM jobs of a channel, for each way in which units share out a matrix.

Units that add all their products (one lane) take a row of the matrix each; where a DRAM row is longer than a row of the
matrix, several of these stand in it. Units that keep lanes apart take several rows of the matrix at once, with the
vector's elements by lane.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from sim.errors import ConfigError
from sim.pim.jobs import as_table, job, moves, reads_out
from sim.pim.schema import LoadFrom, template_steps

if TYPE_CHECKING:
    from sim.pim.jobs import Ints
    from sim.pim.schema import Pim, Step
    from sim.standards import Memory


class Kernel(StrEnum):
    """Operators that units may run."""

    GEMV = "gemv"
    ADD = "add"
    MUL = "mul"
    RELU = "relu"
    ATTENTION = "attention"


def jobs_of(memory: Memory, channels: int, kernel: Kernel, rows: int, cols: int, batch: int, heads: int) -> list[Ints]:
    """Jobs of each kind of channel (those that have most and, where it differs, least to do).

    gemv: rows x cols times a vector, `batch` vectors one after another. add, mul, relu: rows x cols elements.
    attention: one query of `cols` elements over `rows` tokens in each of `heads` heads. Raises ConfigError.
    """
    pim = _pim(memory)
    if kernel is Kernel.ATTENTION:
        most, least = -(-heads // channels), heads // channels
        return [as_table(_attention(memory, n, rows, cols) * batch) for n in sorted({most, least} - {0}, reverse=True)]
    if kernel is not Kernel.GEMV:
        name = "add" if kernel is Kernel.MUL else kernel.value
        if name not in pim.kernels:
            offered = ", ".join(sorted({*pim.kernels} & {k.value for k in Kernel} | {"gemv"}))
            raise ConfigError(f"has no kernel {kernel.value}; it has {offered}", key="pim.kernels")
        return [as_table(_elementwise(memory, channels, name, rows * cols) * batch)]
    if pim.lanes > 1:
        return [as_table(_gemv_by_lanes(memory, channels, rows, cols, batch))]
    most, least = -(-rows // channels), rows // channels
    return [
        as_table(_gemv_by_rows(memory, n, cols) * batch) for n in sorted({most, least} - {0}, reverse=True)
    ]  # fmt: skip


def _pim(memory: Memory) -> Pim:
    if memory.pim is None:
        raise ConfigError("has no units that compute in memory; its file has no `pim` section", key="pim")
    return memory.pim


def _banks(memory: Memory) -> int:
    o = memory.organisation
    return o.pseudo_channels * o.ranks * o.bank_groups * o.banks


def _row_elements(memory: Memory) -> int:
    return memory.organisation.columns * memory.burst_bytes // _pim(memory).element


def check_rows(memory: Memory, jobs: Ints) -> None:
    """Raise ConfigError if a job goes beyond the rows that hold data: those below any that a template reserves."""
    from sim.kernels import pim_tables as k

    steps = [_steps_of(memory, name) for name in _pim(memory).kernels]
    reserved = [step.row for own in steps for step in own if step.row is not None]
    rows = min(memory.organisation.rows, *reserved, memory.organisation.rows)
    further = np.array([max((step.offset for step in own), default=0) for own in steps], np.int64)
    last = jobs[:, k.ROW] + (jobs[:, k.TILES] - 1) * jobs[:, k.STEP] + further[jobs[:, k.KERNEL]]
    if len(jobs) and int(last.max()) >= rows:
        raise ConfigError(
            f"has {rows} rows a bank" + (" below those that its commands reserve" if reserved else "")
            + f", but the operands need {int(last.max()) + 1}",
            key="organisation.rows",
        )  # fmt: skip


def _steps_of(memory: Memory, kernel: str) -> list[Step]:
    """Steps of loads and tiles of a template."""
    return [step for steps in template_steps(memory, kernel) for step in steps]


def _gemv_by_rows(memory: Memory, rows: int, cols: int, first: int = 1) -> list[list[int]]:
    """A row of the matrix in each bank: tiles of one DRAM row in all banks of a set, from row `first` on."""
    pim = _pim(memory)
    result: list[list[int]] = []
    chunk = min(pim.vector // pim.element, _row_elements(memory))
    for begin in range(0, cols, chunk):
        width = min(chunk, cols - begin)
        dots = -(-width // pim.macs)
        if pim.spread:
            part = _streamed(memory, -(-rows // memory.organisation.pseudo_channels) * dots, first, rows)
        else:
            part = _tiled(memory, rows, dots, first)
        result += part
        first = max(row[5] + row[2] * row[6] for row in part)
    return result


def _tiled(memory: Memory, rows: int, dots: int, first: int) -> list[list[int]]:
    """Tiles with as many rows of the matrix in a DRAM row as fit, and one more with the rest."""
    pim = _pim(memory)
    units = _banks(memory) // pim.sets
    groups = max(1, _row_elements(memory) // (dots * pim.macs))
    tiles, rest = divmod(rows, units * groups)
    side = -1 if pim.sets > 1 else 0
    moved = 0 if reads_out(memory) else moves(memory, rows)
    jobs = []
    if tiles:
        jobs.append(
            job(memory, "gemv", loads=1, tiles=tiles, groups=groups, dots=dots, row=first, side=side, moves_out=moved)
        )
    if rest:
        jobs.append(
            job(memory, "gemv", loads=0 if tiles else 1, tiles=1, groups=-(-rest // units), dots=dots,
                row=first + -(-tiles // pim.sets), side=side, moves_out=0 if tiles else moved)
        )  # fmt: skip
    return jobs


def _streamed(memory: Memory, dots: int, first: int, results: int, loads: int = 1) -> list[list[int]]:
    """Steps one after another over all bank sets, a tile being one DRAM row in each."""
    pim = _pim(memory)
    per_tile = pim.sets * _row_elements(memory) // pim.macs
    tiles, rest = divmod(dots, per_tile)
    moved = moves(memory, results)
    jobs = []
    if tiles:
        jobs.append(job(memory, "gemv", loads=loads, tiles=tiles, dots=per_tile, row=first, moves_out=moved))
    if rest:
        jobs.append(
            job(memory, "gemv", loads=0 if tiles else loads, dots=rest, row=first + tiles,
                moves_out=0 if tiles else moved)
        )  # fmt: skip
    return jobs


def _gemv_by_lanes(memory: Memory, channels: int, rows: int, cols: int, batch: int) -> list[list[int]]:
    """`registers` rows of the matrix in each unit, the vector's elements by lane; chunks alternate between bank sets.

    All chunks of a set come before those of the next, and results are written back once a tile of outputs is done.
    """
    pim = _pim(memory)
    outputs = channels * _banks(memory) // pim.sets * pim.registers
    chunk = pim.vector // pim.element
    steps = pim.registers * -(-chunk // pim.macs)
    per_row = _row_elements(memory) // pim.macs
    chunks = -(-cols // chunk)
    rows_of_chunk = -(-steps // per_row)
    jobs = [job(memory, "enter")]
    row = 0
    for _ in range(-(-rows // outputs)):
        for _ in range(batch):
            for side in range(pim.sets):
                for n, _ in enumerate(range(side, chunks, pim.sets)):
                    dots = min(steps, per_row)
                    jobs.append(
                        job(memory, "gemv", loads=1, tiles=rows_of_chunk, groups=max(1, dots // pim.registers),
                            dots=min(dots, pim.registers), row=row + n * rows_of_chunk, side=side)
                    )  # fmt: skip
            jobs.append(job(memory, "store", dots=pim.registers, row=row + chunks * rows_of_chunk, side=1))
        row += -(-chunks // pim.sets) * rows_of_chunk
    return [*jobs, job(memory, "leave")]


def _elementwise(memory: Memory, channels: int, kernel: str, elements: int) -> list[list[int]]:
    """Elements over all banks, `registers` bursts of each bank at a time.

    The template's offsets say how many rows each operand has before the next one's begin; what is longer goes on behind
    the last operand's.
    """
    pim = _pim(memory)
    per_run = channels * _banks(memory) * pim.registers * pim.lanes
    runs = -(-elements // per_run)
    in_row = _row_elements(memory) // (pim.lanes * pim.registers)
    tiles, rest = divmod(runs, in_row)
    offsets = {step.offset for step in _steps_of(memory, kernel)}
    room = min(offsets - {0}, default=memory.organisation.rows)
    jobs = [job(memory, "enter")]
    for first in range(0, tiles, room):
        row = first // room * (max(offsets) + room)
        jobs.append(job(memory, kernel, tiles=min(room, tiles - first), groups=in_row, row=row))
    if rest:
        row = tiles // room * (max(offsets) + room) + tiles % room
        jobs.append(job(memory, kernel, groups=rest, row=row))
    return [*jobs, job(memory, "leave")]


def _attention(memory: Memory, heads: int, length: int, dim: int) -> list[list[int]]:
    """Scores and weighted values of `heads` heads on one channel."""
    pim = _pim(memory)
    if pim.lanes > 1:
        raise ConfigError("has units whose lanes stay apart, so that attention has no layout in it", key="pim.lanes")
    if dim % pim.macs or dim > _row_elements(memory):
        raise ConfigError(
            f"takes {pim.macs} elements a step from rows of {_row_elements(memory)}, in which a head dimension of "
            f"{dim} has no layout: it must be a multiple of the former and at most the latter",
            key="pim.macs",
        )
    if not reads_out(memory):
        return _attention_streamed(memory, heads, length, dim)
    cut = _attention_from_rows if pim.load is LoadFrom.BANK else _attention_as_products
    return cut(memory, heads, length, dim)


def _attention_as_products(memory: Memory, heads: int, length: int, dim: int) -> list[list[int]]:
    """For each head its keys times the query, then its values, a row for each dimension, times the probabilities."""
    jobs: list[list[int]] = []
    for _ in range(heads):
        for rows, cols in ((length, dim), (dim, length)):
            first = max((entry[5] + entry[2] * entry[6] for entry in jobs), default=1)
            jobs += _gemv_by_rows(memory, rows, cols, first)
    return jobs


def _attention_from_rows(memory: Memory, heads: int, length: int, dim: int) -> list[list[int]]:
    """A token's keys of several heads in a row of a bank; a dimension's values of many tokens in a row of a bank."""
    pim = _pim(memory)
    units, elements = _banks(memory), _row_elements(memory)
    per_row = elements // dim
    jobs = []
    row = 1
    for begin in range(0, heads, per_row):
        tiles = -(-length // units)
        jobs.append(
            job(memory, "gemv", loads=1, tiles=tiles, groups=min(per_row, heads - begin), dots=dim // pim.macs, row=row)
        )
        row += tiles
    for _ in range(heads):
        for begin in range(0, length, elements):
            tiles = -(-dim // units)
            dots = -(-min(elements, length - begin) // pim.macs)
            jobs.append(job(memory, "gemv", loads=1, tiles=tiles, dots=dots, row=row))
            row += tiles
    return jobs


def _attention_streamed(memory: Memory, heads: int, length: int, dim: int) -> list[list[int]]:
    """Head after head: keys and values by bursts over the units; vectors of the next stage are moved in meanwhile.

    A burst of each bank that computes at a time takes `macs` products; results leave a burst at a time.
    """
    pim = _pim(memory)
    o = memory.organisation
    together = 1 if pim.spread else _banks(memory) // pim.sets // o.pseudo_channels
    jobs = []
    row = 1
    query = -(-dim * pim.element // memory.burst_bytes)
    for head in range(heads):
        for stage in range(2):
            products = -(-length // (o.pseudo_channels * together)) * (dim // pim.macs)
            if pim.sets == 1 and not pim.spread:
                # Each bank of a group takes a part of the dimension.
                split = min(o.banks, dim // pim.macs)
                products = -(-length * split // (o.pseudo_channels * together)) * (dim // pim.macs // split)
            moves_out = moves(memory, length if stage == 0 else dim * together)
            moves_in = moves(memory, length) if stage == 0 else query
            if pim.spread:
                part = _streamed(memory, products, row, 1)
            else:
                part = _rows_of_dots(memory, products, row)
            part[0][1] = int(head == 0 and stage == 0)
            part[0][8], part[0][9] = moves_out, moves_in
            jobs += part
            row = max(entry[5] + entry[2] for entry in part)
    return jobs


def _rows_of_dots(memory: Memory, dots: int, first: int) -> list[list[int]]:
    """Steps one after another, a DRAM row at a time."""
    pim = _pim(memory)
    per_row = _row_elements(memory) // pim.macs
    tiles, rest = divmod(dots, per_row)
    side = -1 if pim.sets > 1 else 0
    jobs = []
    if tiles:
        jobs.append(job(memory, "gemv", tiles=tiles, dots=per_row, row=first, side=side))
    if rest:
        jobs.append(job(memory, "gemv", dots=rest, row=first + -(-tiles // pim.sets), side=side))
    return jobs
