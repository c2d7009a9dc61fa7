"""Cycle-by-cycle systolic arrays that move real operands from PE to PE: the twin of sim.cost.systolic.

Nothing here knows a formula. A run returns the product that came out of the array and the cycle count, or raises
Hazard when a register or a port would have had to hold two things at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.int64]
NONE = -1


class Hazard(Exception):
    """Two values met in one register or port, or a value was used before it was there."""


@dataclass(frozen=True)
class Run:
    """The product and the number of cycles it took."""

    product: Matrix
    cycles: int


def pad(block: Matrix, rows: int, columns: int) -> Matrix:
    """`block` in the upper left corner of a zero matrix: partial folds drive the whole array."""
    full = np.zeros((rows, columns), dtype=np.int64)
    full[: block.shape[0], : block.shape[1]] = block
    return full


def stationary_fold(stationary: Matrix, stream: Matrix) -> Run:
    """One fold with a stationary operand and no shadow registers: shift it in, stream rows of `stream`, wait for the
    last result."""
    rows, columns = stationary.shape
    steps = stream.shape[0]
    weight = np.zeros((rows, columns), dtype=np.int64)
    for row in range(rows - 1, -1, -1):
        weight[1:] = weight[:-1].copy()
        weight[0] = stationary[row]
    operand = np.zeros((rows, columns), dtype=np.int64)
    partial = np.zeros((rows, columns), dtype=np.int64)
    product = np.zeros((steps, columns), dtype=np.int64)
    missing = steps * columns
    cycle = 0
    while missing:
        operand[:, 1:] = operand[:, :-1].copy()
        for row in range(rows):
            step = cycle - row
            operand[row, 0] = stream[step, row] if 0 <= step < steps else 0
        above = np.vstack([np.zeros((1, columns), dtype=np.int64), partial[:-1]])
        partial = above + operand * weight
        for column in range(columns):
            step = cycle - (rows - 1) - column
            if 0 <= step < steps:
                product[step, column] = partial[rows - 1, column]
                missing -= 1
        cycle += 1
    return Run(product, rows + cycle)


def output_fold(left: Matrix, right: Matrix, drain: bool) -> Run:
    """One output-stationary fold: `left` enters row by row from the side, `right` column by column from the top."""
    rows, steps = left.shape
    columns = right.shape[1]
    sideways = np.zeros((rows, columns), dtype=np.int64)
    downwards = np.zeros((rows, columns), dtype=np.int64)
    total = np.zeros((rows, columns), dtype=np.int64)
    done = np.zeros((rows, columns), dtype=np.int64)
    alive = np.zeros((rows, columns), dtype=np.int64)
    cycle = 0
    while done.min() < steps:
        sideways[:, 1:] = sideways[:, :-1].copy()
        alive[:, 1:] = alive[:, :-1].copy()
        downwards[1:] = downwards[:-1].copy()
        for row in range(rows):
            step = cycle - row
            alive[row, 0] = 0 <= step < steps
            sideways[row, 0] = left[row, step] if 0 <= step < steps else 0
        for column in range(columns):
            step = cycle - column
            downwards[0, column] = right[step, column] if 0 <= step < steps else 0
        total += sideways * downwards
        done += alive
        cycle += 1
    if not drain:
        return Run(total, cycle)
    product = np.zeros((rows, columns), dtype=np.int64)
    for row in range(rows - 1, -1, -1):
        product[row] = total[rows - 1]
        total[1:] = total[:-1].copy()
        total[0] = 0
        cycle += 1
    return Run(product, cycle)


def fold_serial(dataflow: str, left: Matrix, right: Matrix, rows: int, columns: int, drain: bool = False) -> Run:
    """left (M x K) times right (K x N), fold after fold, none overlapping another."""
    if dataflow == "is":
        run = fold_serial("ws", right.T, left.T, rows, columns)
        return Run(run.product.T, run.cycles)
    (m, k), n = left.shape, right.shape[1]
    product = np.zeros((m, n), dtype=np.int64)
    cycles = 0
    for column in range(0, n, columns):
        for row in range(0, k if dataflow == "ws" else m, rows):
            if dataflow == "ws":
                fold = stationary_fold(
                    pad(right[row : row + rows, column : column + columns], rows, columns),
                    pad(left[:, row : row + rows], m, rows),
                )
                product[:, column : column + columns] += fold.product[:, : n - column]
            else:
                fold = output_fold(
                    pad(left[row : row + rows], rows, k), pad(right[:, column : column + columns], k, columns), drain
                )
                product[row : row + rows, column : column + columns] = fold.product[: m - row, : n - column]
            cycles += fold.cycles
    return Run(product, cycles)


def stationary_pipeline(tiles: list[tuple[Matrix, Matrix]], starts: list[int]) -> tuple[list[Matrix], int]:
    """Tiles (stationary R x C, stream s x R) through an array with a shadow register per PE.

    Tile j's first stream row enters PE (0, 0) in cycle starts[j]; its stationary rows are issued, last row first, in
    the R cycles before, each column one cycle after its left neighbour. A weight travels down and stays in the shadow
    of its row; the first stream row carries a mark that makes each PE take the shadow over. Returns the products and
    the cycles until the last result.
    """
    rows, columns = tiles[0][0].shape
    loads: dict[int, tuple[int, int]] = {}
    issues: dict[int, tuple[int, int]] = {}
    for tile, (_, stream) in enumerate(tiles):
        for row in range(rows):
            _reserve(loads, starts[tile] - 1 - row, (tile, row), "stationary port")
        for step in range(stream.shape[0]):
            _reserve(issues, starts[tile] + step, (tile, step), "stream port")
    shape = (rows, columns)
    operand, partial, active, shadow, moving = (np.zeros(shape, dtype=np.int64) for _ in range(5))
    operand_tile, operand_step, active_tile, shadow_tile, moving_tile, moving_row = (
        np.full(shape, NONE, dtype=np.int64) for _ in range(6)
    )
    products = [np.zeros((stream.shape[0], columns), dtype=np.int64) for _, stream in tiles]
    missing = sum(product.size for product in products)
    cycle = min(loads)
    while missing:
        for plane in (operand, operand_tile, operand_step):
            plane[:, 1:] = plane[:, :-1].copy()
        for row in range(rows):
            tile, step = issues.get(cycle - row, (NONE, NONE))
            operand_tile[row, 0], operand_step[row, 0] = tile, step
            operand[row, 0] = tiles[tile][1][step, row] if tile != NONE else 0
        takes = (operand_step == 0) & (operand_tile != NONE)
        if np.any(shadow_tile[takes] != operand_tile[takes]):
            raise Hazard("a PE takes over a stationary value that is not there yet")
        active[takes], active_tile[takes] = shadow[takes], shadow_tile[takes]
        shadow_tile[takes] = NONE
        busy = operand_tile != NONE
        if np.any(active_tile[busy] != operand_tile[busy]):
            raise Hazard("a PE multiplies with another tile's stationary value")
        above = np.vstack([np.zeros((1, columns), dtype=np.int64), partial[:-1]])
        partial = above + np.where(busy, operand * active, 0)
        for column in range(columns):
            tile, step = int(operand_tile[-1, column]), int(operand_step[-1, column])
            if tile != NONE:
                products[tile][step, column] = partial[-1, column]
                missing -= 1
        for plane in (moving, moving_tile, moving_row):
            plane[1:] = plane[:-1].copy()
        for column in range(columns):
            tile, row = loads.get(cycle - column, (NONE, NONE))
            moving_tile[0, column], moving_row[0, column] = tile, row
            moving[0, column] = tiles[tile][0][row, column] if tile != NONE else 0
        lands = (moving_tile != NONE) & (moving_row == np.arange(rows)[:, None])
        if np.any(shadow_tile[lands] != NONE):
            raise Hazard("a shadow register is overwritten before its PE took it over")
        shadow[lands], shadow_tile[lands] = moving[lands], moving_tile[lands]
        cycle += 1
    return products, cycle - min(loads)


def output_pipeline(tiles: list[tuple[Matrix, Matrix]], starts: list[int]) -> tuple[list[Matrix], int]:
    """Tiles (left R x K, right K x C) through an output-stationary array with a drain register per PE.

    A finished sum moves to the drain register of its PE; once the bottom PE of a column has finished, the column's
    sums of that tile move down one row a cycle and leave at the bottom. Returns the products and the cycles until the
    last sum has left.
    """
    rows, columns = tiles[0][0].shape[0], tiles[0][1].shape[1]
    issues: dict[int, tuple[int, int]] = {}
    for tile, (left, _) in enumerate(tiles):
        for step in range(left.shape[1]):
            _reserve(issues, starts[tile] + step, (tile, step), "stream port")
    shape = (rows, columns)
    sideways, downwards, total, drain = (np.zeros(shape, dtype=np.int64) for _ in range(4))
    tile_at, step_at, drain_tile = (np.full(shape, NONE, dtype=np.int64) for _ in range(3))
    drain_row = np.zeros(shape, dtype=np.int64)
    leaving = [NONE] * columns
    products = [np.zeros(shape, dtype=np.int64) for _ in tiles]
    missing = len(tiles) * rows * columns
    cycle = min(issues)
    while missing:
        for column in range(columns):
            tile = leaving[column]
            if tile == NONE:
                continue
            if drain_tile[-1, column] != tile:
                raise Hazard("the column drains, but its bottom register has nothing of the tile")
            products[tile][drain_row[-1, column], column] = drain[-1, column]
            missing -= 1
            if drain_row[-1, column] == 0:
                leaving[column] = NONE
            for row in range(rows - 1, -1, -1):
                if row and drain_tile[row - 1, column] == tile:
                    for plane in (drain, drain_tile, drain_row):
                        plane[row, column] = plane[row - 1, column]
                elif drain_tile[row, column] == tile:
                    drain_tile[row, column] = NONE
        for plane in (sideways, tile_at, step_at):
            plane[:, 1:] = plane[:, :-1].copy()
        downwards[1:] = downwards[:-1].copy()
        for row in range(rows):
            tile, step = issues.get(cycle - row, (NONE, NONE))
            tile_at[row, 0], step_at[row, 0] = tile, step
            sideways[row, 0] = tiles[tile][0][row, step] if tile != NONE else 0
        for column in range(columns):
            tile, step = issues.get(cycle - column, (NONE, NONE))
            downwards[0, column] = tiles[tile][1][step, column] if tile != NONE else 0
        total = np.where(step_at == 0, 0, total) + sideways * downwards
        for row in range(rows):
            for column in range(columns):
                tile = int(tile_at[row, column])
                if tile == NONE or step_at[row, column] != tiles[tile][0].shape[1] - 1:
                    continue
                if drain_tile[row, column] != NONE:
                    raise Hazard("a drain register is overwritten before its sum has left")
                drain[row, column], drain_tile[row, column] = total[row, column], tile
                drain_row[row, column] = row
                if row == rows - 1:
                    if leaving[column] != NONE:
                        raise Hazard("a column has to drain two tiles at once")
                    leaving[column] = tile
        cycle += 1
    return products, cycle - min(issues)


def _reserve(port: dict[int, tuple[int, int]], cycle: int, item: tuple[int, int], name: str) -> None:
    if cycle in port:
        raise Hazard(f"the {name} is asked for two rows in cycle {cycle}")
    port[cycle] = item
