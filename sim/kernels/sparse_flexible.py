"""A flexible sparse engine in the manner of SIGMA: packs the stationary rows on multipliers and prices every round.

A round loads whole rows of non-zeros (or a piece of one long row) into the multipliers, sends each streaming vector's
values through the ports of the distribution network, adds up along a reduction tree with sideways links, and hands the
results to a bus of a few lines. docs/sparse.md derives the times; they follow STONNE's (Munoz-Martinez et al., IISWC
2021).
"""

import numpy as np

from sim.kernels.jit import kernel, leaf

ROUNDS, STATIONARY_READS, STREAM_READS, SUM_READS, SUM_WRITES, PRODUCTS, MOST_ROWS, PACKAGES = range(8)
"""What `rounds` counts beside the cycles, in the order of its second result. Packages are values that enter a port."""

# Cycles of a round that nothing overlaps: one to configure, then one each for multiplier, bus and memory. The levels of
# the reduction tree come on top, and one for the tree behind a port where it feeds more than one multiplier.
BEFORE_STREAM = 1
AFTER_STREAM = 3
DRAIN_WINDOW = 32
"""Cycles before the last result that the write port's queue is followed over; it forgets within a few."""


@leaf
def tree_exit(low, high, leaves, lines):
    """(levels, links from the left, links from the right, bus line) of the adder where multipliers low..high
    (inclusive) come together in a tree of `leaves`.

    Neighbours that don't share a parent have a link sideways: an end that would enter its parent alone goes over the
    link instead, which takes a cycle. Pairs of linked adders share a bus line, numbered from the root down; adders at
    the edges have lines of their own.
    """
    levels = np.int64(0)
    below_left = np.int64(0)
    below_right = np.int64(0)
    width = leaves
    pairs_above = np.int64(0)
    depth = np.int64(0)
    while (np.int64(1) << depth) < leaves:
        depth += 1
    level = depth
    while True:
        level -= 1
        width //= 2
        low //= 2
        high //= 2
        levels += 1
        if low < high:
            if high - low == 1:
                if low % 2 == 1:  # the pair itself is linked: the smaller part moves, and the group ends here
                    below_right += 1
                    high = low
            else:
                if low % 2 == 1:
                    low += 1
                    below_left += 1
                if high % 2 == 0:
                    high -= 1
                    below_right += 1
        if low == high or level == 0:
            break
    # Pairs on the levels between the root and this one: level i has 2^(i-1) - 1 of them.
    for i in range(1, level):
        pairs_above += (np.int64(1) << (i - 1)) - 1
    edge = low == 0 or low == width - 1
    if not edge:
        return levels, below_left, below_right, (pairs_above + (low - 1) // 2) % lines
    pairs = np.int64(0)
    for i in range(1, depth):
        pairs += (np.int64(1) << (i - 1)) - 1
    single = np.int64(0)
    if level > 0:
        single = 1 + 2 * (level - 1) + (1 if low > 0 else 0)
    return levels, below_left, below_right, (single + 2 * pairs) % lines


@leaf
def _due(bases, slopes, first, last, i):
    """When vector `i` of a group has reached all its ports."""
    latest = np.int64(0)
    for at in range(first, last):
        latest = max(latest, bases[at] + slopes[at] * i)
    return latest


@leaf
def _before(bases, slopes, first, last, limit, vectors):
    """How many of a group's vectors are due before `limit`."""
    fewest = vectors
    for at in range(first, last):
        short = limit - bases[at]
        fewest = min(fewest, max(0, -(-short // slopes[at])))
    return fewest


@leaf
def _line_end(members, count, bases, slopes, starts, delays, vectors):
    """When the last result of the groups `members` has left their common bus line, one a cycle.

    The line ends at the largest t + (results due from t on) - 1. Between the first and the last result of any group
    that sum is convex in t, as a group's results come ever slower, so only those ends need be tried.
    """
    end = np.int64(0)
    for a in range(count):
        g = members[a]
        for i in (0, vectors - 1):
            t = _due(bases, slopes, starts[g], starts[g + 1], np.int64(i)) + delays[g]
            left = np.int64(0)
            for b in range(count):
                h = members[b]
                left += vectors - _before(bases, slopes, starts[h], starts[h + 1], t - delays[h], vectors)
            end = max(end, t + left - 1)
    return end


@leaf
def _members(head, line_next, members):
    """Put the groups of a line into `members`; how many there are (none once the line's head is taken)."""
    count = np.int64(0)
    while head >= 0:
        members[count] = head
        count += 1
        head = line_next[head]
    return count


@leaf
def _sent(members, count, bases, slopes, starts, delays, vectors, end, horizon, sent):
    """Count in `sent` what the line of the groups `members` sends in each cycle after `horizon`, up to its `end`.

    One group sends when its results come; a line of several is taken to be busy until its end.
    """
    if count > 1:
        total = count * vectors
        for back in range(min(total, end - horizon)):
            sent[end - back - horizon] += 1
        return
    g = members[0]
    for back in range(vectors):
        t = _due(bases, slopes, starts[g], starts[g + 1], vectors - 1 - back) + delays[g]
        if t <= horizon:
            break
        sent[t - horizon] += 1


@kernel
def rounds(row_start, columns, stream_nonzero, vectors, multipliers, ports, lines):
    """(cycles, counts) of a stationary matrix against `vectors` streaming vectors.

    row_start, columns: the stationary matrix by rows (CSR), columns rising. stream_nonzero: int64[K], streaming
    vectors that have a non-zero at each position. Counts: int64[8], indexed by the names above. Empty rows cost
    nothing.
    """
    n_rows = len(row_start) - 1
    depth = len(stream_nonzero)
    counts = np.zeros(8, np.int64)
    upto = np.zeros(depth + 1, np.int64)
    for k in range(depth):
        upto[k + 1] = upto[k] + stream_nonzero[k]
    # For every (group, port): when its first vector is complete, and the cycles between vectors.
    bases = np.zeros(2 * multipliers + ports, np.int64)
    slopes = np.zeros(2 * multipliers + ports, np.int64)
    starts = np.zeros(multipliers + 2, np.int64)
    delays = np.zeros(multipliers + 1, np.int64)
    exits = np.zeros(multipliers + 1, np.int64)
    held = np.zeros(multipliers, np.int64)
    owner = np.zeros(multipliers, np.int64)
    members = np.zeros(multipliers + 1, np.int64)
    ends = np.zeros(multipliers + 1, np.int64)
    sent = np.zeros(DRAIN_WINDOW + 1, np.int64)
    line_head = np.full(lines, -1, np.int64)
    line_next = np.full(multipliers + 1, -1, np.int64)
    distinct = np.zeros(ports, np.int64)
    weights = np.zeros(ports, np.int64)
    per_port = multipliers // ports
    cycles = np.int64(0)
    row = np.int64(0)
    done = np.int64(0)  # non-zeros of `row` that earlier rounds have taken
    while row < n_rows:
        groups = np.int64(0)
        used = np.int64(0)
        folded = done > 0
        first_k = np.int64(0)
        last_k = depth
        if folded:
            used = np.int64(1)  # the first multiplier hands on the partial sum
        first = row_start[row] + done
        whole = row_start[row + 1] - first
        at = first
        if whole > multipliers - used or folded:
            take = min(whole, multipliers - used)
            for j in range(take):
                held[used + j] = columns[at + j]
                owner[used + j] = 0
            if folded:
                first_k = columns[first - 1] + 1
            if take < whole:
                last_k = columns[at + take - 1] + 1
                done += take
            else:
                row += 1
                done = np.int64(0)
            used += take
            groups = np.int64(1)
        else:
            while row < n_rows:
                size = row_start[row + 1] - row_start[row]
                if used + size > multipliers:
                    break
                for j in range(size):
                    held[used + j] = columns[row_start[row] + j]
                    owner[used + j] = groups
                used += size
                if size > 0:
                    groups += 1
                row += 1
        if groups == 0:
            continue
        stationary = used - (1 if folded else 0)
        counts[ROUNDS] += 1
        counts[STATIONARY_READS] += stationary
        counts[STREAM_READS] += upto[last_k] - upto[first_k]
        counts[SUM_READS] += vectors if folded else 0
        counts[SUM_WRITES] += groups * vectors
        counts[PRODUCTS] += stationary * vectors
        counts[MOST_ROWS] = max(counts[MOST_ROWS], groups)
        _arrivals(held, owner, used, folded, groups, vectors, per_port, distinct, weights, bases, slopes, starts)
        counts[PACKAGES] += stationary
        for p in range((used + per_port - 1) // per_port):
            counts[PACKAGES] += vectors * distinct[p]
        begin = np.int64(0)
        for g in range(groups):
            end = begin
            while end < used and owner[end] == g:
                end += 1
            delays[g], left, right, exits[g] = tree_exit(begin, end - 1, multipliers, lines)
            first_at, last_at = starts[g], starts[g + 1] - 1
            # An end's way sideways matters to the values that arrive there; they rise in position from left to right.
            if first_at == last_at:
                bases[last_at] += max(right, left - (end - begin - 1))
            else:
                bases[first_at] += left
                bases[last_at] += right
            line_next[g] = line_head[exits[g]]
            line_head[exits[g]] = g
            begin = end
        latest = np.int64(0)
        for g in range(groups):
            line = exits[g]
            count = _members(line_head[line], line_next, members)
            ends[g] = _line_end(members, count, bases, slopes, starts, delays, vectors)
            latest = max(latest, ends[g])
        horizon = latest - DRAIN_WINDOW
        sent[:] = 0
        for g in range(groups):
            line = exits[g]
            count = _members(line_head[line], line_next, members)
            if count > 0 and ends[g] > horizon:
                _sent(members, count, bases, slopes, starts, delays, vectors, ends[g], horizon, sent)
            line_head[line] = -1
        # Of what waits before the memory, half (rounded up) is written in a cycle.
        waiting = np.int64(0)
        for t in range(DRAIN_WINDOW + 1):
            waiting = (waiting + sent[t]) // 2
        while waiting > 0:
            waiting //= 2
            latest += 1
        cycles += BEFORE_STREAM + latest + AFTER_STREAM + (1 if per_port > 1 else 0)
    return cycles, counts


@kernel
def _arrivals(held, owner, used, folded, groups, vectors, per_port, distinct, weights, bases, slopes, starts):
    """Fill `bases` and `slopes`: vector i of group g is complete when all its ports have sent bases + slopes * i.

    A port sends one value a cycle: its weights first, then for every vector each distinct position that one of its
    multipliers needs, in rising order. Partial sums go before anything but the first weight.
    """
    busy_ports = (used + per_port - 1) // per_port
    order = np.empty(per_port, np.int64)
    at = np.int64(0)
    group = np.int64(-1)
    filled = np.int64(0)
    # Entries come group by group, ports rising inside a group; a port's ranks are found once and kept in `rank`.
    rank = np.empty(used, np.int64)
    for p in range(busy_ports):
        low = p * per_port
        if folded and low == 0:
            low = 1
        high = min(used, (p + 1) * per_port)
        weights[p] = max(0, high - low)
        size = weights[p]
        if size == 0:
            distinct[p] = 0
            continue
        if size == 1:
            rank[low] = 0
            distinct[p] = 1
            continue
        for j in range(size):
            order[j] = held[low + j]
        ordered = np.sort(order[:size])
        kinds = np.int64(1)
        for j in range(1, size):
            if ordered[j] != ordered[j - 1]:
                ordered[kinds] = ordered[j]
                kinds += 1
        distinct[p] = kinds
        for j in range(low, high):
            rank[j] = np.searchsorted(ordered[:kinds], held[j])
    if folded:
        # One group over all ports; the partial sums are on the first.
        starts[0] = 0
        bases[0] = 1
        slopes[0] = 1
        at = np.int64(1)
        for p in range(busy_ports):
            if weights[p] > 0:
                last = min(used, (p + 1) * per_port) - 1
                bases[at] = weights[p] + rank[last] + (vectors if p == 0 else 0)
                slopes[at] = distinct[p]
                at += 1
        starts[1] = at
        return
    for j in range(used):
        if owner[j] != group:
            group = owner[j]
            starts[group] = filled
        p = j // per_port
        if j + 1 == used or owner[j + 1] != group or (j + 1) // per_port != p:
            # The last element of the group in this port has its highest position.
            bases[filled] = weights[p] + rank[j]
            slopes[filled] = distinct[p]
            filled += 1
    starts[groups] = filled
