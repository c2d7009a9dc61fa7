"""Refreshes of single banks beside a stream: fits their commands into a stretch that is jumped over, if nobody notices.

Where banks are refreshed singly, which of them has been is a long story, and when it happens drifts against a stream
that turns from rank to rank: states that contain both hardly recur. So banks in which nothing is queued and which the
stream does not come by in the next stretch, banks *apart*, are left out of what `dram_state` writes down and stay in
the arrays as they are. A refresh that falls due in a stretch is carried out by itself if its bank is apart, that choice
is beyond doubt, and neither its commands nor those of the stretch would come a tick later with the other there. If not,
`dram_context` may know what comes of it.
"""

import numpy as np

from sim.kernels.dram_issue import choose, end_round, forget_row, next_due, plan_refresh
from sim.kernels.dram_state import (
    APART,
    BANK_WORDS,
    BUSY_BANKS,
    FAR_ROW,
    NEAR_ROWS,
    NO_ROW,
    SCALARS,
    TICK_BITS,
    kinds_of,
    pack,
    pack_bank,
    phase_of,
    row_of_bank,
    streak_of,
    unpack,
    was_apart,
)
from sim.kernels.dram_tables import (
    ACT,
    BUS_ROW,
    CLOSE_FROM,
    EMPTIED,
    HALTED,
    HIT_R,
    HIT_W,
    MARK_TICK,
    MOST_ROWS,
    MOST_SHADOWS,
    N_COMMANDS,
    NEVER,
    NEXT_DUE,
    OPEN,
    PENDING,
    PLAN,
    PLAN_BANK,
    PLAN_CLOSED,
    PLAN_PENDING,
    PLAN_RANK,
    PLANS,
    PRE,
    REFB,
    REFRESHED,
    ROW,
    ROW_LOG,
    ROWS_LOGGED,
    SHADOW,
    SHADOWS,
    STREAK,
    TIME_ACTIVE,
    TIME_PRECHARGED,
    UNIT,
    WAITING_REFRESH,
    WAITS,
)
from sim.kernels.jit import inlined, leaf

# What is known of a stretch besides: the bank refreshed in it (THE_APART: the one chosen of those apart), the ticks of
# that and of its precharge, its row commands (tick, kind, group), the banks used in it (bank, last use, tick at which
# nothing was queued any more), the banks that are apart since (bank, row and uses; ticks), and those that no longer
# are. Banks and groups by their names, ticks from its start, -1 for none.
OF_BANK, OF_TICK, OF_PRE, ROW_COMMANDS = 0, 1, 2, 3
USED = ROW_COMMANDS + 1 + MOST_ROWS
NOT_EMPTIED = 0xFFFFFF
LEFT_AS_IT_IS = 0xFFFFFF
MOST_BANKS = 62
THE_APART = 63
PARKED_WORDS = BANK_WORDS


@inlined
def name_of(names, phase, number):
    """The name that a bank, group or rank has at a phase."""
    k = np.int64(0)
    while names[phase, k] != number:
        k += 1
    return k


@inlined
def parked_at(t):
    """Where the banks that are apart since the stretch begin."""
    return USED + 1 + t.banks


@inlined
def unparked_at(t):
    """Where the banks that are no longer apart begin."""
    return parked_at(t) + 1 + PARKED_WORDS * t.banks


@inlined
def words_beside(t):
    """Words of all that."""
    return unparked_at(t) + 1 + t.banks


@inlined
def gap_to(t, before, after):
    """Ticks that command `after` has to keep from `before`, both written as tick, kind and group (16, 8, 8 bits)."""
    kind = before >> 8 & 255
    place = (after & 255) * N_COMMANDS + (after >> 8 & 255)
    return max(t.gap_near[kind, before & 255, place], t.command_ticks[kind])


@inlined
def row_command(t, beside, i, phase, now):
    """Row command `i` of a stretch that begins at `now`, written as in `gap_to`."""
    packed = beside[ROW_COMMANDS + 1 + i]
    return now + (packed >> 16) << 16 | packed & 0xFF00 | t.phase_groups[phase, packed & 255]


@leaf
def learn_apart(t, s, c, beside, words, ends, begin, phase, offset, marked, now):
    """Note in `beside` what the stretch up to `now` does, from phase `begin` to `phase`; False if it cannot be written.

    words, ends: of the states before and after it; offset: of the rows there. marked: by bank, its open row when it
    began, and in the lowest bits whether that was far and whether it lay still.
    """
    x = s.scalar[c]
    bank = s.bank[c]
    began = x[MARK_TICK]
    if x[ROWS_LOGGED] > MOST_ROWS:
        return False
    beside[ROW_COMMANDS] = x[ROWS_LOGGED]
    for i in range(x[ROWS_LOGGED]):
        command = x[ROW_LOG + i]
        name = name_of(t.phase_groups, begin, command & 255)
        beside[ROW_COMMANDS + 1 + i] = (command >> 16) - began << 16 | command & 0xFF00 | name
    beside[OF_BANK] = -1
    used = np.int64(0)
    for k in range(t.banks):
        b = t.phase_banks[begin, k]
        last = bank[CLOSE_FROM, b] - t.page_idle
        if last >= began:
            emptied = bank[EMPTIED, b] - began if bank[EMPTIED, b] >= began else np.int64(NOT_EMPTIED)
            used += 1
            beside[USED + used] = k << 48 | last - began << 24 | emptied
    beside[USED] = used
    parked = np.int64(0)
    unparked = np.int64(0)
    first = SCALARS + t.ranks
    to = parked_at(t) + 1
    for k in range(t.banks):
        b = t.phase_banks[phase, k]
        before = was_apart(t, words, begin, name_of(t.phase_banks, begin, b))
        is_now = ends[first + k * BANK_WORDS] & 255 == APART
        if is_now and not before:
            row = bank[ROW, b]
            code = row_of_bank(t, bank, phase, b, offset)
            if code == FAR_ROW and marked[b] >> 2 != row:
                return False
            kept = marked[b] & 1 == 1 and marked[b] >> 2 == row
            streak = np.int64(LEFT_AS_IT_IS) if kept else bank[STREAK, b]
            beside[to] = k << 40 | streak << 8 | code
            to, wide = pack(beside, to + 1, s.ready[c, b], np.int64(0), np.int64(N_COMMANDS), now)
            if wide >> TICK_BITS != 0:
                return False
            parked += 1
        elif before and not is_now:
            unparked += 1
            beside[unparked_at(t) + unparked] = k
    beside[parked_at(t)] = parked
    beside[unparked_at(t)] = unparked
    return True


@leaf
def undisturbed(t, beside, phase, now, command):
    """Whether the row commands of the stretch from `now` on may come after `command` when they do."""
    for i in range(beside[ROW_COMMANDS]):
        other = row_command(t, beside, i, phase, now)
        if other >> 16 >= command >> 16 and other >> 16 < (command >> 16) + gap_to(t, command, other):
            return False
    return True


@leaf
def soonest(t, x, ready, known, beside, phase, now, kind, b, start):
    """Tick from `start` on at which the rules let command `kind` of bank `b` come into the stretch from `now` on."""
    g = t.group_of[b]
    command = kind << 8 | g
    name = name_of(t.phase_groups, phase, g)
    near = SCALARS + t.ranks + t.banks * BANK_WORDS + name * (N_COMMANDS + 3 >> 2) + (kind >> 2)
    mask = (1 << TICK_BITS) - 1
    tick = max(max(start, ready[b, kind]), now + (known[near] >> TICK_BITS * (kind & 3) & mask))
    tick = max(tick, now + (known[2] >> TICK_BITS & mask))
    for i in range(x[SHADOWS]):
        before = x[SHADOW + i]
        tick = max(tick, (before >> 16) + gap_to(t, before, command))
    for i in range(x[PLANS]):
        before = x[PLAN + i]
        tick = max(tick, (before >> 16) + gap_to(t, before, command))
    for i in range(beside[ROW_COMMANDS]):
        before = row_command(t, beside, i, phase, now)
        if before >> 16 >= tick:
            break
        tick = max(tick, (before >> 16) + gap_to(t, before, command))
    return tick


@leaf
def last_used_apart(t, bank, words, phase, r):
    """The bank that `unit_to_refresh` chooses of the banks apart of rank `r`, or -1."""
    each = t.banks // t.ranks
    found = np.int64(-1)
    best = np.int64(-1)
    for k in range(t.banks):
        b = t.phase_banks[phase, k]
        if b // each == r and bank[REFRESHED, b] == 0 and bank[CLOSE_FROM, b] + 1 >= best:
            if was_apart(t, words, phase, k) and (bank[CLOSE_FROM, b] + 1 > best or b < found):
                found = b
                best = bank[CLOSE_FROM, b] + 1
    return found


@leaf
def surely(t, bank, words, beside, phase, now, found, due):
    """Whether `unit_to_refresh` chooses bank `found`, one apart, at `due`, and no bank that is not apart."""
    each = t.banks // t.ranks
    for k in range(t.banks):
        b = t.phase_banks[phase, k]
        if b // each == found // each and bank[REFRESHED, b] == 0 and not was_apart(t, words, phase, k):
            emptied = NEVER
            for i in range(1, beside[USED] + 1):
                if beside[USED + i] >> 48 == k and beside[USED + i] & NOT_EMPTIED != NOT_EMPTIED:
                    emptied = now + (beside[USED + i] & NOT_EMPTIED)
            # It had requests all the time, or had none at first and was last used before.
            busy = words[BUSY_BANKS] >> k & 1 == 1
            if due > emptied or not (busy or bank[CLOSE_FROM, b] < bank[CLOSE_FROM, found]):
                return False
    return True


@leaf
def plan_apart(t, s, c, known, beside, phase, now, end):
    """Plan the refreshes that fall due, or are under way, in the stretch from `now` to `end`; False: not to be taken.

    `known`: the words of the state at `now`. Nothing is done yet.
    """
    x = s.scalar[c]
    bank = s.bank[c]
    rank = s.rank[c]
    x[PLANS] = 0
    x[PLAN_RANK] = -1
    x[PLAN_PENDING] = 0
    x[PLAN_CLOSED] = -1
    for i in range(x[SHADOWS]):
        if not undisturbed(t, beside, phase, now, x[SHADOW + i]):
            return False
    r = x[PENDING]
    due = NEVER
    for q in range(t.ranks):
        if q != r:
            due = min(due, rank[NEXT_DUE, q])
    if r < 0:
        if due > end:
            return True
        if due == end:  # it comes before the request that is accepted then
            return False
        for q in range(t.ranks):
            if rank[NEXT_DUE, q] <= end:
                if r >= 0:
                    return False
                r = np.int64(q)
        b = last_used_apart(t, bank, known, phase, r)
        if b < 0 or not surely(t, bank, known, beside, phase, now, b, due):
            return False
        start = due
    else:
        b = rank[UNIT, r]
        if due <= end or t.phase_first[phase, b] < t.steady:
            return False
        start = now
    if x[SHADOWS] + 2 > MOST_SHADOWS:
        return False
    x[PLAN_RANK] = r
    x[PLAN_BANK] = b
    kind = np.int64(PRE if bank[ROW, b] >= 0 else REFB)
    while True:
        tick = soonest(t, x, s.ready[c], known, beside, phase, now, kind, b, start)
        if tick >= end:
            x[PLAN_PENDING] = 1
            return True
        command = tick << 16 | kind << 8 | t.group_of[b]
        if not undisturbed(t, beside, phase, now, command):
            return False
        if kind == PRE and not closes_alone(t, x, rank, known, beside, phase, r, tick):
            return False
        x[PLAN + x[PLANS]] = command
        x[PLANS] += 1
        if kind == REFB:
            return rank[NEXT_DUE, r] + t.refresh_interval > end
        start = max(start, tick + t.gap_bank[PRE, REFB])
        kind = np.int64(REFB)


@leaf
def closes_alone(t, x, rank, known, beside, phase, r, tick):
    """Whether it is plain how long rank `r` has open rows if one apart is closed at `tick`; notes if it is the last.

    As long as another bank apart is open it does not matter, nor where the stretch closes none or does nothing.
    """
    k = name_of(t.phase_ranks, phase, r)
    others = known[SCALARS + k] & (1 << TICK_BITS) - 1
    if rank[OPEN, r] - others > 1:
        return True
    closed = np.int64(0)
    opened = np.int64(0)
    for i in range(beside[ROW_COMMANDS]):
        packed = beside[ROW_COMMANDS + 1 + i]
        if t.rank_of[t.phase_groups[phase, packed & 255]] == r:
            closed += packed >> 8 & 255 == PRE
            opened += packed >> 8 & 255 == ACT
    if others > 0:
        return closed == 0
    if opened > 0:
        return False
    x[PLAN_CLOSED] = tick
    return True


@leaf
def take_apart(t, s, c, beside, phase, burst, now, end):
    """Bring the banks apart from `now`, at `phase`, to `end`, before `burst`, with what was planned for them."""
    x = s.scalar[c]
    bank = s.bank[c]
    rank = s.rank[c]
    ready = s.ready[c]
    for i in range(1, beside[USED] + 1):
        used = beside[USED + i]
        b = t.phase_banks[phase, used >> 48]
        bank[CLOSE_FROM, b] = now + (used >> 24 & NOT_EMPTIED) + t.page_idle
    r = x[PLAN_RANK]
    kept = np.int64(0)
    for i in range(x[SHADOWS]):
        if (x[SHADOW + i] >> 16) + t.apart > end:
            x[SHADOW + kept] = x[SHADOW + i]
            kept += 1
    if r >= 0:
        b = x[PLAN_BANK]
        rank[UNIT, r] = b if x[PLAN_PENDING] == 1 else 0
        for i in range(x[PLANS]):
            command = x[PLAN + i]
            tick = command >> 16
            kind = command >> 8 & 255
            s.count[c, kind] += 1
            for k in range(N_COMMANDS):
                ready[b, k] = max(ready[b, k], tick + t.gap_bank[kind, k])
            if kind == PRE:
                forget_row(bank, b)
                rank[OPEN, r] -= 1
                if x[PLAN_CLOSED] >= 0:
                    rank[TIME_ACTIVE, r] -= end - tick
                    rank[TIME_PRECHARGED, r] += end - tick
            else:
                rank[NEXT_DUE, r] += t.refresh_interval
                end_round(t, bank, rank, r, b)
            if tick + t.apart > end:
                x[SHADOW + kept] = command
                kept += 1
        x[PENDING] = r if x[PLAN_PENDING] == 1 else -1
        next_due(t, x, rank)
    x[SHADOWS] = kept
    then = phase_of(t, burst)
    offset = burst >> t.period_bits << t.period_shift
    n = parked_at(t) + 1
    for _ in range(beside[n - 1]):
        packed = beside[n]
        b = t.phase_banks[then, packed >> 40]
        code = packed & 255
        bank[HIT_R, b] = -1
        bank[HIT_W, b] = -1
        if code == NO_ROW:
            bank[ROW, b] = -1
        elif code != FAR_ROW:
            bank[ROW, b] = t.phase_rows[then, b] + offset + code - NEAR_ROWS
        if packed >> 8 & LEFT_AS_IT_IS != LEFT_AS_IT_IS:
            bank[STREAK, b] = packed >> 8 & LEFT_AS_IT_IS
        n = unpack(beside, n + 1, ready[b], np.int64(0), np.int64(N_COMMANDS), end)


@leaf
def describe_unparked(t, s, c, known, nexts, beside, burst, end):
    """Write what the state after the stretch of state `known` turns on into `memo_word`; (words, equal, names).

    That is the phase, whether ranks have open banks apart, and how the banks are that no longer are apart (names: their
    bits). nexts: the words of a state that once came after it. equal: it is that state. No words: it cannot be told.
    """
    bank = s.bank[c]
    word = s.memo_word
    then = phase_of(t, burst)
    offset = burst >> t.period_bits << t.period_shift
    mask = (1 << TICK_BITS) - 1
    word[0] = -1 - known
    n = np.int64(1 + t.ranks)
    equal = nexts[0] == kinds_of(t, then)
    names = np.int64(0)
    far = False
    for k in range(t.ranks):
        word[1 + k] = s.rank[c, OPEN, t.phase_ranks[then, k]] - (nexts[SCALARS + k] & mask)
    each = t.banks // t.ranks
    place = unparked_at(t)
    for i in range(1, beside[place] + 1):
        k = beside[place + i]
        b = t.phase_banks[then, k]
        names |= np.int64(1) << k
        was = SCALARS + t.ranks + k * BANK_WORDS
        code = row_of_bank(t, bank, then, b, offset)
        word[n] = code | streak_of(t, bank, b, code) << 32
        n, wide = pack_bank(t, word, n + 1, s.ready[c, b], bank[ROW, b], end)
        far = far or code == FAR_ROW or wide >> TICK_BITS != 0
        for j in range(BANK_WORDS):
            equal = equal and word[n - BANK_WORDS + j] == nexts[was + j]
        word[1 + k // each] += np.int64(nexts[was] & 255 != NO_ROW) - np.int64(code != NO_ROW)
    for k in range(t.ranks):
        word[1 + k] = word[1 + k] > 0
        equal = equal and word[1 + k] == nexts[SCALARS + k] >> TICK_BITS & 1
    word[1] |= kinds_of(t, then) << 1
    return np.int64(0) if far else n, equal, names


@leaf
def land_apart(t, s, c):
    """Hand what is still under way of refreshes over to the controller, after the state has been restored."""
    x = s.scalar[c]
    bank = s.bank[c]
    rank = s.rank[c]
    near = s.near[c]
    for i in range(x[SHADOWS]):
        command = x[SHADOW + i]
        kind = command >> 8 & 255
        for k in range(near.shape[0]):
            near[k] = max(near[k], (command >> 16) + t.gap_near[kind, command & 255, k])
        x[BUS_ROW] = max(x[BUS_ROW], (command >> 16) + t.command_ticks[kind])
    r = x[PENDING]
    if r >= 0:
        b = rank[UNIT, r]
        rank[WAITS, r] = 1
        x[WAITING_REFRESH] += 1
        bank[HALTED, b] = 1
        plan_refresh(t, bank, s.ready[c], rank, r)
        choose(t, bank, s.ready[c], rank, s.entry[c], b, np.int64(0))
        choose(t, bank, s.ready[c], rank, s.entry[c], b, np.int64(1))
        next_due(t, x, rank)
