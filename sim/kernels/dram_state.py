"""Writes a channel's state in words that are equal where its future is: relative to clock and stream.

Ticks count from now, rows from the one that the stream comes by next in their bank, and banks are named by the order in
which it will come by them (`DramTables.phase_banks`). Of rows that it will not come by soon only counts which of them
are equal; of requests of the other direction, which lie still, to which rows they go. The words make a state again.
"""

import numpy as np

from sim.kernels.dram_issue import choose
from sim.kernels.dram_tables import (
    ACT,
    ADDRESS,
    AGE,
    ARRIVAL,
    BACK,
    BUS_COLUMN,
    BUS_ROW,
    CLOSE_FROM,
    CURSOR,
    DEBT,
    ENTRY_BANK,
    ENTRY_ROW,
    FIRST_AGE,
    FORWARD,
    FREE_R,
    FRONT,
    HEAD_R,
    HEAD_W,
    HIT_R,
    HIT_W,
    MODE,
    N_COMMANDS,
    NEVER,
    NEXT_AGE,
    OPEN,
    OVERDUE,
    OWNER,
    PRE,
    QUEUED_R,
    REF,
    REFB,
    REFRESHED,
    ROUND,
    ROW,
    SEGMENT,
    SINCE,
    STALE,
    STREAK,
    TAIL_R,
    TOUCHED,
    URGENT_FROM,
    WR,
    bank_and_row,
)
from sim.kernels.jit import inlined, leaf

# Codes of rows: the difference to the one come by next plus NEAR_ROWS, or one of these. Entries whose rows are far from
# that and not open either have SAME_AS plus the place in the bank's list of the first entry of that row.
NEAR_ROWS = 8
FAR_ROW, NO_ROW, SAME_AS, UNLIKE = 16, 17, 18, 255

APART = 20
"""In place of the code of the row of a bank apart (`dram_apart`), of which nothing is written down."""

KEPT = 0xFFFFFF
"""In place of how often a row was used that lies still: what it was, as long as it does."""

NEVER_USED = 1 << 10
"""In place of the order of use of a bank that has not been used yet."""

BUSY_BANKS, SCALARS = 3, 4
"""Words before those of ranks and banks: class of the phase; direction, mode and queue lengths; front end and buses; in
which banks requests are queued, in bits, where some are left out."""

BANK_WORDS = 1 + (N_COMMANDS + 3 >> 2)
"""Words of a bank: its row and what else there is one of, and its ticks by command, four in a word."""

TICK_BITS = 16
"""Bits of a tick counted from now; states with later ones are not described."""


@inlined
def phase_of(t, burst):
    """The phase of the address period at a burst."""
    return (burst & (1 << t.period_bits) - 1) >> t.steady_bits


@inlined
def kinds_of(t, phase):
    """The class of a phase; where banks are left out that are apart, along with that of the next."""
    kind = t.phase_kind[phase]
    if t.apart > 0:
        kind |= t.phase_kind[(phase + 1) & (t.phase_kind.shape[0] - 1)] << 32
    return kind


@inlined
def row_code(row, base):
    """The code of a row by its distance to `base`, or FAR_ROW."""
    ahead = row - base
    return ahead + NEAR_ROWS if -NEAR_ROWS <= ahead < NEAR_ROWS else np.int64(FAR_ROW)


@inlined
def bursts_before(t, row, base):
    """Bursts that the stream may go on before `row`, a far one, becomes a near one of its bank."""
    periods = ((row - base - NEAR_ROWS) >> t.period_shift) - 1
    if row < base:
        return np.int64(NEVER)
    return periods << t.period_bits if periods > 0 else np.int64(0)


@inlined
def pack(word, n, ticks, first, count, now):
    """Pack `count` ticks from place `first`, four a word; returns (next place in `word`, all of them or-ed)."""
    wide = np.int64(0)
    for k in range(0, count, 4):
        packed = np.int64(0)
        for i in range(k, min(k + 4, count)):
            ahead = max(ticks[first + i] - now, np.int64(0))
            wide |= ahead
            packed |= ahead << TICK_BITS * (i - k)
        word[n] = packed
        n += 1
    return n, wide


@inlined
def pack_bank(t, word, n, own, row, now):
    """As `pack`, of a bank with open row `row` (-1: closed), without ticks that say nothing.

    No activation or refresh comes before the precharge, which allows it no earlier than so much later; nor does a
    precharge or a column before the activation.
    """
    wide = np.int64(0)
    before = PRE if row >= 0 else ACT
    first = max(own[before], now)
    for k in range(0, N_COMMANDS, 4):
        packed = np.int64(0)
        for i in range(k, k + 4):
            later = i == ACT or i >= REFB if row >= 0 else PRE <= i <= WR
            ahead = max(own[i] - now, np.int64(0))
            if later and own[i] <= first + t.gap_bank[before, i]:
                ahead = np.int64(0)
            wide |= ahead
            packed |= ahead << TICK_BITS * (i - k)
        word[n] = packed
        n += 1
    return n, wide


@inlined
def unpack(word, n, ticks, first, count, now):
    """The reverse of `pack`; returns the next place in `word`."""
    for k in range(0, count, 4):
        for i in range(k, min(k + 4, count)):
            ticks[first + i] = now + (word[n] >> TICK_BITS * (i - k) & (1 << TICK_BITS) - 1)
        n += 1
    return n


@inlined
def entry_code(bank, entry, e, b, d, base):
    """The code of the row of entry `e` in bank `b`, compared with the open one and with those of direction `d`."""
    row = entry[ENTRY_ROW, e]
    code = row_code(row, base)
    if code == FAR_ROW and row != bank[ROW, b]:
        code = np.int64(SAME_AS)
        f = bank[HEAD_R + d, b]
        while f >= 0 and entry[ENTRY_ROW, f] != row and code < UNLIKE:
            code += 1
            f = entry[FORWARD, f]
        if f < 0:
            code = np.int64(UNLIKE)
    return code


@inlined
def wanted(bank, entry, row, b, d):
    """Whether a waiting request of direction `d` goes to `row` of bank `b`."""
    e = bank[HEAD_R + d, b]
    while e >= 0 and entry[ENTRY_ROW, e] != row:
        e = entry[FORWARD, e]
    return e >= 0


@inlined
def lies_still(t, bank, b, code):
    """Whether the open row of bank `b`, of that code, is one that nobody waits for and the stream does not come by."""
    away = code == FAR_ROW or code < NEAR_ROWS
    return away and t.page_idle < 0 and bank[HIT_R, b] < 0 and bank[HIT_W, b] < 0


@inlined
def row_of_bank(t, bank, phase, b, offset):
    """The code of the open row of bank `b`, or NO_ROW."""
    if bank[ROW, b] < 0:
        return np.int64(NO_ROW)
    return row_code(bank[ROW, b], t.phase_rows[phase, b] + offset)


@inlined
def streak_of(t, bank, b, code):
    """How often the open row of bank `b`, of that code, was used, or KEPT."""
    return np.int64(KEPT) if lies_still(t, bank, b, code) else bank[STREAK, b]


@inlined
def was_apart(t, words, phase, k):
    """Whether in a state bank `k`, by its name, was apart: nothing queued, and not in the stream's next stretch."""
    return words[BUSY_BANKS] >> k & 1 == 0 and t.phase_first[phase, t.phase_banks[phase, k]] >= t.steady


@inlined
def first_of_unit(t, b):
    """The first of the banks that are refreshed along with bank `b`, which stands for all of them."""
    each = t.banks // t.ranks
    return b // each * each + b % (each // t.unit_banks)


@inlined
def comparable(t, bank, now):
    """Whether the order in which the banks were used says which is refreshed next, whatever their names."""
    if now < 2 * NEVER_USED:
        return False
    each = t.banks // t.ranks
    for r in range(t.ranks):
        unused = np.int64(0)
        for b in range(r * each, (r + 1) * each):
            unused += bank[CLOSE_FROM, b] < 0
        if unused > 1 and t.renamed == 1:
            return False
    return True


@inlined
def order_of_use(t, bank, b):
    """How many banks of the rank of bank `b` were used before it was, or NEVER_USED."""
    each = t.banks // t.ranks
    begin = b // each * each
    used = bank[CLOSE_FROM, b]
    before = np.int64(0)
    for other in range(begin, begin + each):
        before += bank[CLOSE_FROM, other] < used
    return before if used >= 0 else np.int64(NEVER_USED)


@leaf
def describe(t, s, c, burst, d, now):
    """Describe class `c`, about to accept `burst` of direction `d` at `now`, in `s.memo_word`.

    Returns (words, bursts that the stream may go on before it meets a far row or a waiting write, marks of the waiting
    requests of the other direction); 0 words where the state cannot be described.
    """
    x = s.scalar[c]
    bank = s.bank[c]
    rank = s.rank[c]
    ring = s.ring[c]
    entry = s.entry[c]
    word = s.memo_word
    phase = phase_of(t, burst)
    offset = burst >> t.period_bits << t.period_shift
    none = np.int64(0)
    if kinds_of(t, phase) < 0 or x[OVERDUE] >= 0 or (d == 1 and x[QUEUED_R] > 0):
        return none, none, none
    rows = t.phase_rows[phase]
    reach = np.int64(NEVER)
    marks = np.int64(0)
    ahead = max(x[FRONT] - now, np.int64(0))
    row_bus = max(x[BUS_ROW] - now, np.int64(0))
    column_bus = max(x[BUS_COLUMN] - now, np.int64(0))
    wide = ahead | row_bus | column_bus
    word[0] = kinds_of(t, phase)
    still = x[QUEUED_R + 1 - d]
    word[1] = d | x[MODE] << 1 | x[QUEUED_R + d] << 2 | (still if x[MODE] != d else min(still, 1)) << 32
    word[2] = ahead | row_bus << TICK_BITS | column_bus << 2 * TICK_BITS
    word[BUSY_BANKS] = 0
    n = np.int64(SCALARS)
    single = t.refresh_command != REF
    if single and t.apart == 0 and not comparable(t, bank, now):
        return none, none, none
    for k in range(t.ranks):
        r = t.phase_ranks[phase, k]
        since = max(rank[SINCE, r] - now, np.int64(0))
        wide |= since
        word[n] = since << 2 * TICK_BITS
        if t.apart == 0:
            word[n] |= rank[OPEN, r] | min(rank[DEBT, r], 1) << TICK_BITS
        n += 1
    for k in range(t.banks):
        b = t.phase_banks[phase, k]
        if t.apart > 0:
            # Of its open banks a rank's word counts those that are not apart, and whether there are others.
            of_rank = SCALARS + k // (t.banks // t.ranks)
            word[BUSY_BANKS] |= np.int64(bank[HEAD_R, b] >= 0 or bank[HEAD_W, b] >= 0) << k
            if was_apart(t, word, phase, k):
                word[of_rank] |= (bank[ROW, b] >= 0) << TICK_BITS
                word[n] = APART
                for _ in range(BANK_WORDS - 1):
                    n += 1
                    word[n] = 0
                n += 1
                continue
            word[of_rank] += bank[ROW, b] >= 0
        code = row_of_bank(t, bank, phase, b, offset)
        if code == FAR_ROW:
            reach = min(reach, bursts_before(t, bank[ROW, b], rows[b] + offset))
        if t.apart > 0:
            # With a request of the other direction, which lies still, the bank will not be apart either.
            word[n] = code | np.int64(bank[HEAD_W - d, b] >= 0) << 8 | streak_of(t, bank, b, code) << 32
            n, found = pack_bank(t, word, n + 1, s.ready[c, b], bank[ROW, b], now)
            wide |= found
            continue
        close = order_of_use(t, bank, b) if single else max(bank[CLOSE_FROM, b] - now, np.int64(0))
        refreshed = bank[REFRESHED, first_of_unit(t, b)]
        streak = streak_of(t, bank, b, code)
        word[n] = code | close << 8 | refreshed << 8 + TICK_BITS | streak << 32
        if single and bank[HEAD_W - d, b] >= 0:  # that is refreshed after banks with nothing queued
            word[n] |= 1 << 9 + TICK_BITS
        n, found = pack(word, n + 1, s.ready[c, b], np.int64(0), np.int64(N_COMMANDS), now)
        wide |= found | close
    for k in range(t.groups):
        n, found = pack(word, n, s.near[c], t.phase_groups[phase, k] * N_COMMANDS, np.int64(N_COMMANDS), now)
        wide |= found
    for w in range(ring.shape[0]):
        size = t.window_size[w]
        gap = t.window_gap[w]
        each = t.window_groups[w, 0, 2] - t.window_groups[w, 0, 1]
        wide |= gap
        for k in range(0, t.groups, each):
            node = t.window_groups[w, t.phase_groups[phase, k], 0]
            place = ring[w, node, size]
            for i in range(size):
                if i & 3 == 0:
                    word[n] = 0
                    n += 1
                since = max(ring[w, node, place] - now, -gap) + gap
                wide |= since
                word[n - 1] |= since << TICK_BITS * (i & 3)
                place = place + 1 if place + 1 < size else np.int64(0)
    if wide >> TICK_BITS != 0:
        return none, none, none
    for q in range(2 if x[QUEUED_R + 1 - d] > 0 else 1):
        side = d if q == 0 else 1 - d
        for k in range(t.banks):
            b = t.phase_banks[phase, k]
            e = bank[HEAD_R + side, b]
            while e >= 0:
                code = entry_code(bank, entry, e, b, d, rows[b] + offset)
                if code >= SAME_AS or code == FAR_ROW:
                    reach = min(reach, bursts_before(t, entry[ENTRY_ROW, e], rows[b] + offset))
                if side == 1 and entry[ADDRESS, e] >= burst:
                    reach = min(reach, entry[ADDRESS, e] - burst)
                word[n] = code | k << 8 | entry[TOUCHED, e] << 16
                if q == 1:
                    marks += entry[TOUCHED, e]
                    # A row that nobody will open is of no concern.
                    behind = code < NEAR_ROWS and entry[ENTRY_ROW, e] != bank[ROW, b]
                    if code == UNLIKE or (behind and not wanted(bank, entry, entry[ENTRY_ROW, e], b, d)):
                        n -= 1
                else:
                    age = x[NEXT_AGE] - entry[AGE, e]
                    waited = now - entry[ARRIVAL, e]
                    if entry[OWNER, e] < 0 or code == UNLIKE or age >> 16 != 0 or waited >> 24 != 0:
                        return none, none, none
                    word[n] |= age << 18 | waited << 34
                n += 1
                e = entry[FORWARD, e]
    return n, reach, marks


@inlined
def owner_of(segment, p, age):
    """The segment, from `p` back, to which the request of `age` belongs."""
    while segment[FIRST_AGE, p] > age:
        p = p - 1 if p > 0 else np.int64(segment.shape[1] - 1)
    return p


@leaf
def restore(t, s, c, known, d, now, age, names):
    """Make the state of class `c` that of the words `known`, at `now` and the place that its front end has reached.

    Banks apart, and those named by the bits of `names`, are in that state already.
    `age`: of the first request that is newer than those queued in the arrays. Those of direction `d` that are still
    waiting keep their address and owner, the others follow from the stream; those of the other direction lie as they
    were, and so does a far row that is open.
    """
    x = s.scalar[c]
    bank = s.bank[c]
    rank = s.rank[c]
    ring = s.ring[c]
    entry = s.entry[c]
    scratch = s.memo_word
    burst = s.segment[c, CURSOR, x[SEGMENT]]
    phase = phase_of(t, burst)
    offset = burst >> t.period_bits << t.period_shift
    mask = np.int64((1 << TICK_BITS) - 1)
    x[MODE] = known[1] >> 1 & 1
    x[FRONT] = now + (known[2] & mask)
    x[BUS_ROW] = now + (known[2] >> TICK_BITS & mask)
    x[BUS_COLUMN] = now + (known[2] >> 2 * TICK_BITS & mask)
    x[STALE] = 1
    x[URGENT_FROM] = now
    old = np.int64(0)
    for b in range(t.banks):
        e = bank[HEAD_R + d, b]
        while e >= 0:
            scratch[old] = entry[AGE, e]
            scratch[old + 1] = entry[ADDRESS, e]
            scratch[old + 2] = entry[OWNER, e]
            old += 3
            after = entry[FORWARD, e]
            entry[FORWARD, e] = x[FREE_R + d]
            x[FREE_R + d] = e
            e = after
        bank[HEAD_R + d, b] = -1
        bank[TAIL_R + d, b] = -1
        bank[HIT_R + d, b] = -1
    n = np.int64(SCALARS)
    for k in range(t.ranks):
        if t.apart == 0:
            rank[OPEN, t.phase_ranks[phase, k]] = known[n] & mask
            rank[ROUND, k] = 0
        n += 1
    for k in range(t.banks):
        b = t.phase_banks[phase, k]
        code = known[n] & 255
        if code == APART or names >> k & 1 == 1:
            n += BANK_WORDS
            continue
        if code == NO_ROW:
            bank[ROW, b] = -1
        elif code != FAR_ROW:
            bank[ROW, b] = t.phase_rows[phase, b] + offset + code - NEAR_ROWS
        if t.apart == 0:
            if t.refresh_command == REF:
                bank[CLOSE_FROM, b] = now + (known[n] >> 8 & mask)
            elif known[n] >> 8 & mask != NEVER_USED:
                bank[CLOSE_FROM, b] = now - NEVER_USED + (known[n] >> 8 & mask)
            refreshed = known[n] >> 8 + TICK_BITS & 1
            rank[ROUND, t.rank_of[t.group_of[b]]] += refreshed if first_of_unit(t, b) == b else 0
            bank[REFRESHED, first_of_unit(t, b)] = refreshed
        if known[n] >> 32 != KEPT:
            bank[STREAK, b] = known[n] >> 32
        n = unpack(known, n + 1, s.ready[c, b], np.int64(0), np.int64(N_COMMANDS), now)
    for k in range(t.groups):
        n = unpack(known, n, s.near[c], t.phase_groups[phase, k] * N_COMMANDS, np.int64(N_COMMANDS), now)
    for w in range(ring.shape[0]):
        size = t.window_size[w]
        each = t.window_groups[w, 0, 2] - t.window_groups[w, 0, 1]
        for k in range(0, t.groups, each):
            node = t.window_groups[w, t.phase_groups[phase, k], 0]
            n = unpack(known, n, ring[w, node], np.int64(0), size, now - t.window_gap[w])
            ring[w, node, size] = 0
    x[QUEUED_R + d] = known[1] >> 2 & (1 << 30) - 1
    for _ in range(x[QUEUED_R + d]):
        e = x[FREE_R + d]
        x[FREE_R + d] = entry[FORWARD, e]
        own = x[NEXT_AGE] - (known[n] >> 18 & 0xFFFF)
        if own >= age:
            entry[ADDRESS, e] = burst - (x[NEXT_AGE] - own)
            # Nobody asks for the owner of a write, which completed when it was accepted.
            entry[OWNER, e] = x[SEGMENT] if d == 1 else owner_of(s.segment[c], x[SEGMENT], own)
        else:
            i = np.int64(0)
            while scratch[i] != own:
                i += 3
            entry[ADDRESS, e] = scratch[i + 1]
            entry[OWNER, e] = scratch[i + 2]
        b, row = bank_and_row(t, entry[ADDRESS, e])
        entry[ENTRY_ROW, e] = row
        entry[ENTRY_BANK, e] = b
        entry[AGE, e] = own
        entry[ARRIVAL, e] = now - (known[n] >> 34)
        entry[TOUCHED, e] = known[n] >> 16 & 3
        entry[FORWARD, e] = -1
        tail = bank[TAIL_R + d, b]
        entry[BACK, e] = tail
        if tail < 0:
            bank[HEAD_R + d, b] = e
        else:
            entry[FORWARD, tail] = e
        bank[TAIL_R + d, b] = e
        if bank[HIT_R + d, b] < 0 and bank[ROW, b] == row:
            bank[HIT_R + d, b] = e
        n += 1
    for b in range(t.banks):
        e = bank[HEAD_W - d, b]
        while e >= 0 and entry[ENTRY_ROW, e] != bank[ROW, b]:
            e = entry[FORWARD, e]
        bank[HIT_R + 1 - d, b] = e
        choose(t, bank, s.ready[c], rank, entry, b, np.int64(0))
        choose(t, bank, s.ready[c], rank, entry, b, np.int64(1))
