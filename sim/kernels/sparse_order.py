"""The order in which rows of non-zeros are packed on multipliers so that few stay empty."""

import numpy as np

from sim.kernels.jit import kernel


@kernel
def packed_order(sizes, multipliers):
    """int64[rows]: rows in the order in which STONNE's compiler pass packs them (Munoz-Martinez et al., IISWC 2021).

    sizes: int64[rows], non-zeros of each row. Rows longer than all multipliers come first, as they are; then round
    after round is filled with the longest row that still fits, the first of equals. A row that is chosen changes places
    with the one that stands where it belongs, which is what decides between equals later.
    """
    rows = len(sizes)
    order = np.arange(rows)
    left = sizes.copy()
    placed = np.int64(0)
    for i in range(rows):
        if left[i] > multipliers:
            left[i], left[placed] = left[placed], left[i]
            order[i], order[placed] = order[placed], order[i]
            placed += 1
    free = np.int64(multipliers)
    while placed < rows:
        chosen = np.int64(-1)
        for i in range(placed, rows):
            if left[i] <= free and (chosen < 0 or left[i] > left[chosen]):
                chosen = np.int64(i)
                if left[i] == free:
                    break
        if chosen < 0:
            free = np.int64(multipliers)
            continue
        free -= left[chosen]
        left[chosen], left[placed] = left[placed], left[chosen]
        order[chosen], order[placed] = order[placed], order[chosen]
        placed += 1
    return order
