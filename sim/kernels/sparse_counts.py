"""Counting kernels of the sparse engines: turn masks (bool, True where a value is stored) into the loads of hardware.

Masks are C-ordered bool arrays; every kernel passes over a mask once.
"""

import numpy as np

from sim.kernels.jit import kernel


@kernel
def transposed(mask):
    """The mask with its axes swapped, in C order; by small squares, so that both sides stay in the cache."""
    rows, columns = mask.shape
    turned = np.empty((columns, rows), np.bool_)
    for i in range(0, rows, 64):
        for j in range(0, columns, 64):
            for y in range(i, min(i + 64, rows)):
                for x in range(j, min(j + 64, columns)):
                    turned[x, y] = mask[y, x]
    return turned


@kernel
def block_counts(mask, block):
    """Non-zeros of each column in each block of `block` rows: int32[ceil(rows / block), columns]."""
    rows, columns = mask.shape
    counts = np.zeros(((rows + block - 1) // block, columns), np.int32)
    for i in range(rows):
        b = i // block
        for j in range(columns):
            counts[b, j] += mask[i, j]
    return counts


@kernel
def line_counts(mask):
    """Non-zeros of each row and of each column: int64[rows], int64[columns]."""
    rows, columns = mask.shape
    by_row = np.zeros(rows, np.int64)
    by_column = np.zeros(columns, np.int64)
    for i in range(rows):
        total = np.int64(0)
        for j in range(columns):
            total += mask[i, j]
            by_column[j] += mask[i, j]
        by_row[i] = total
    return by_row, by_column


@kernel
def compressed(mask):
    """The non-zeros by rows: starts int64[rows + 1], columns int32[non-zeros], rising in each row (CSR)."""
    rows, columns = mask.shape
    starts = np.zeros(rows + 1, np.int64)
    total = np.int64(0)
    for i in range(rows):
        for j in range(columns):
            total += mask[i, j]
        starts[i + 1] = total
    found = np.empty(total, np.int32)
    at = np.int64(0)
    for i in range(rows):
        for j in range(columns):
            if mask[i, j]:
                found[at] = j
                at += 1
    return starts, found


@kernel
def compressed_columns(mask):
    """As `compressed` by columns: starts int64[columns + 1], rows int32[non-zeros] (CSC)."""
    rows, columns = mask.shape
    starts = np.zeros(columns + 1, np.int64)
    for i in range(rows):
        for j in range(columns):
            starts[j + 1] += mask[i, j]
    for j in range(columns):
        starts[j + 1] += starts[j]
    at = starts[:columns].copy()
    found = np.empty(starts[columns], np.int32)
    for i in range(rows):
        for j in range(columns):
            if mask[i, j]:
                found[at[j]] = i
                at[j] += 1
    return starts, found


@kernel
def run_length_entries(mask, longest):
    """Entries of a run-length code by rows: each value with the zeros before it, at most `longest` of them.

    A longer run takes extra entries whose value is a stored zero; zeros at a row's end are not stored.
    """
    rows, columns = mask.shape
    entries = np.int64(0)
    for i in range(rows):
        run = np.int64(0)
        for j in range(columns):
            if mask[i, j]:
                entries += 1 + run // (longest + 1)
                run = np.int64(0)
            else:
                run += 1
    return entries


@kernel
def folds(counts, sizes, lanes, panel):
    """Pack each panel of `panel` columns into array folds: for every panel (folds, span, steps).

    counts: int32[blocks, columns] of block_counts. A fold is a run of whole blocks (or a piece of one block whose
    fullest column has more than `lanes` non-zeros) for which no column of the panel has more than `lanes` non-zeros.
    sizes: int64[blocks], positions a block covers. `span`: positions that the panel's folds read, counting a block
    once for every fold that takes a part of it. `steps`: non-zeros that the fullest column of each fold holds, summed.
    """
    blocks, columns = counts.shape
    panels = (columns + panel - 1) // panel
    n_folds = np.zeros(panels, np.int64)
    span = np.zeros(panels, np.int64)
    steps = np.zeros(panels, np.int64)
    held = np.zeros(panel, np.int64)
    for p in range(panels):
        first = p * panel
        width = min(panel, columns - first)
        held[:] = 0
        fullest = np.int64(0)
        is_open = False
        for b in range(blocks):
            most = np.int64(0)
            with_this = np.int64(0)
            for j in range(width):
                c = np.int64(counts[b, first + j])
                most = max(most, c)
                with_this = max(with_this, held[j] + c)
            if most == 0:
                continue
            if is_open and with_this > lanes:
                n_folds[p] += 1
                steps[p] += fullest
                held[:] = 0
                is_open = False
                with_this = most
            if with_this > lanes:
                # One block alone overfills the lanes: it takes several passes, each over the whole block.
                whole = (most - 1) // lanes
                n_folds[p] += whole
                steps[p] += whole * lanes
                span[p] += whole * sizes[b]
                for j in range(width):
                    held[j] = max(0, np.int64(counts[b, first + j]) - whole * lanes)
                fullest = most - whole * lanes
            else:
                for j in range(width):
                    held[j] += counts[b, first + j]
                fullest = with_this
            span[p] += sizes[b]
            is_open = True
        if is_open:
            n_folds[p] += 1
            steps[p] += fullest
    return n_folds, span, steps


@kernel
def active_rows(mask, group, block):
    """Blocks of columns with a non-zero in any of `group` neighbouring rows, as bits: uint64[groups, words]."""
    rows, columns = mask.shape
    blocks = (columns + block - 1) // block
    words = np.zeros(((rows + group - 1) // group, (blocks + 63) // 64), np.uint64)
    for i in range(rows):
        g = i // group
        for j in range(columns):
            if mask[i, j]:
                b = j // block
                words[g, b >> 6] |= np.uint64(1) << np.uint64(b & 63)
    return words


@kernel
def active_columns(mask, group, block):
    """As `active_rows` with the axes swapped: blocks of rows with a non-zero in any of `group` columns."""
    rows, columns = mask.shape
    blocks = (rows + block - 1) // block
    words = np.zeros(((columns + group - 1) // group, (blocks + 63) // 64), np.uint64)
    for i in range(rows):
        b = i // block
        bit = np.uint64(1) << np.uint64(b & 63)
        for g in range(words.shape[0]):
            for j in range(g * group, min(columns, (g + 1) * group)):
                if mask[i, j]:
                    words[g, b >> 6] |= bit
                    break
    return words


@kernel
def _ones(word):
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + ((word >> np.uint64(2)) & np.uint64(0x3333333333333333))
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    word = word + (word >> np.uint64(8))
    word = word + (word >> np.uint64(16))
    word = word + (word >> np.uint64(32))
    return np.int64(word & np.uint64(0x7F))


@kernel
def shared_positions(left, right):
    """Positions set in both, for every pair of bit rows: int64[len(left), len(right)]."""
    result = np.zeros((len(left), len(right)), np.int64)
    for i in range(len(left)):
        for j in range(len(right)):
            total = np.int64(0)
            for w in range(left.shape[1]):
                total += _ones(left[i, w] & right[j, w])
            result[i, j] = total
    return result


@kernel
def quanta_rows(mask, tile, quantum):
    """For each tile of `tile` rows and each column, its non-zeros in units of `quantum`, rounded up: int32[tiles,
    columns]."""
    rows, columns = mask.shape
    counts = np.zeros(((rows + tile - 1) // tile, columns), np.int32)
    for i in range(rows):
        t = i // tile
        for j in range(columns):
            counts[t, j] += mask[i, j]
    for t in range(counts.shape[0]):
        for j in range(columns):
            counts[t, j] = (counts[t, j] + quantum - 1) // quantum
    return counts


@kernel
def quanta_columns(mask, tile, quantum):
    """As `quanta_rows` with the axes swapped: tiles of columns, int32[tiles, rows]."""
    rows, columns = mask.shape
    counts = np.zeros(((columns + tile - 1) // tile, rows), np.int32)
    for i in range(rows):
        for t in range(counts.shape[0]):
            total = np.int64(0)
            for j in range(t * tile, min(columns, (t + 1) * tile)):
                total += mask[i, j]
            counts[t, i] = (total + quantum - 1) // quantum
    return counts


@kernel
def row_sums(starts, columns, weights):
    """For each row of a CSR matrix the sum of `weights` over its non-zeros: int64[rows]."""
    sums = np.zeros(len(starts) - 1, np.int64)
    for i in range(len(starts) - 1):
        for at in range(starts[i], starts[i + 1]):
            sums[i] += weights[columns[at]]
    return sums


STATIC, ROUND_ROBIN, GREEDY = range(3)


@kernel
def assign(loads, workers, policy):
    """Load of each worker after the tasks `loads` are handed out: int64[workers].

    STATIC: equal runs of neighbouring tasks; ROUND_ROBIN: one after another in turn; GREEDY: in order, each to the
    worker that is free first (a shared queue).
    """
    total = np.zeros(workers, np.int64)
    tasks = len(loads)
    if policy == STATIC:
        for t in range(tasks):
            total[t * workers // tasks] += loads[t]
        return total
    if policy == ROUND_ROBIN:
        for t in range(tasks):
            total[t % workers] += loads[t]
        return total
    # A heap of workers by load, ties by number: total[w] is kept apart so that the result is by worker.
    heap = np.arange(workers)
    for t in range(tasks):
        w = heap[0]
        total[w] += loads[t]
        at = np.int64(0)
        while True:
            child = 2 * at + 1
            if child >= workers:
                break
            if child + 1 < workers:
                a, b = heap[child], heap[child + 1]
                if total[b] < total[a] or (total[b] == total[a] and b < a):
                    child += 1
            c = heap[child]
            if total[c] < total[w] or (total[c] == total[w] and c < w):
                heap[at] = c
                at = child
            else:
                break
        heap[at] = w
    return total
