"""What a DRAM channel kernel reads and writes: command numbers, table and state layouts, and the address decoder.

A compiled standard is a `DramTables` (integers only). The state of all channel classes is a `ChannelState`: a few
integer arrays with the class as leading axis, whose rows are named by the constants here.
"""

from typing import NamedTuple

import numpy as np

from sim.kernels.jit import inlined

NEVER = 2**62

# Commands. RD + direction and the fields named _R + direction rely on read = 0, write = 1.
ACT, PRE, RD, WR, PREA, REF, REFB, REFS = 0, 1, 2, 3, 4, 5, 6, 7
N_COMMANDS = 8

# Relations of two bank groups: the same, of one rank, of one pseudo-channel, of two pseudo-channels.
SAME_GROUP, SAME_RANK, SAME_PSEUDO, OTHER_PSEUDO = 0, 1, 2, 3
N_RELATIONS = 4

# Order of commands that nobody waits for among those of their class.
LAST_AGE = 2**36 - 1

# Schedulers.
FRFCFS, RAMULATOR, DRAMSIM3 = 0, 1, 2

# Scalars of a channel (`ChannelState.scalar`).
CLOCK, FRONT, BUS_ROW, BUS_COLUMN, MODE = 0, 1, 2, 3, 4
QUEUED_R, QUEUED_W, FREE_R, FREE_W, NEXT_AGE = 5, 6, 7, 8, 9
SEGMENT, SEGMENTS, LAST_END, LAST_WRITE, LOGGED = 10, 11, 12, 13, 14
WAITING_REFRESH, DUE, LAST_READ_END, BEST_TICK, BEST, STALE = 15, 16, 17, 18, 19, 20
MARK, MARK_TICK, MARK_BURST, MARK_ERA = 21, 22, 23, 24
# Direction that the next command serves, the entry past the age limit (-1: none), no later than the next one will be.
SIDE, OVERDUE, URGENT_FROM = 25, 26, 27
# Of the other simulators' controllers: requests beyond the queues, queues that one left in the last clock (bits),
# writes of the batch still to move, bank last served in turn, and the transaction queues.
HELD, LEFT, DRAINING, POINTER = 28, 29, 30, 31
TRANS_HEAD_R, TRANS_HEAD_W, TRANS_TAIL_R, TRANS_TAIL_W = 32, 33, 34, 35
# Ticks after the completion of a segment before which no work can arrive in response to it, and reads served so far.
GRACE, SERVED = 36, 37
# Of refreshes beside a stream (`dram_apart`): row commands since the marked state, the rank whose refresh is under way
# (-1: none), refresh commands whose rules may still bind, those planned for a stretch, with what they concern, and the
# last refresh carried out since the marked state: its bank, its tick and that of its precharge (-1: none).
ROWS_LOGGED, ROW_LOG = 38, 39
MOST_ROWS = 24
PENDING, SHADOWS, SHADOW = 63, 64, 65
MOST_SHADOWS = 6
PLANS, PLAN, PLAN_RANK, PLAN_BANK, PLAN_PENDING, PLAN_CLOSED = 71, 72, 74, 75, 76, 77
DONE_BANK, DONE_TICK, DONE_PRE = 78, 79, 80
N_SCALARS = 81

# Per bank (`ChannelState.bank`): open row (-1: closed), column commands since ACT, request lists and, for either
# direction, what the bank's best request wants: command, entry, its order among commands that are ready at once (class,
# age, bank: see ORDER_BITS), the earliest tick by rules of the same bank (FAR: nothing to do) and where all other rules
# stand in `near`.
ROW, STREAK, HEAD_R, HEAD_W, TAIL_R, TAIL_W, HIT_R, HIT_W = 0, 1, 2, 3, 4, 5, 6, 7
WANT_R, WANT_W, PICK_R, PICK_W, ORDER_R, ORDER_W, FROM_R, FROM_W, NEAR_R, NEAR_W = 8, 9, 10, 11, 12, 13, 14, 15, 16, 17
# Of the other simulators' controllers: first requests to other rows, request the row was opened for, queue length.
MISS_R, MISS_W, ACTIVE, DEPTH = 18, 19, 20, 21
# Tick from which the open row may be closed unasked; whether the bank takes no commands until it is refreshed; whether
# it was refreshed in this round, where single banks are.
CLOSE_FROM, HALTED, REFRESHED = 22, 23, 24
# Tick at which the last request was taken out of its lists for the first time since the marked state.
EMPTIED = 25
N_BANK = 26
FAR = 2**59

# The next command is the least of (ticks from now, class, age, bank) packed into one integer: refresh commands have
# class 0, ACT 1, column commands 2, PRE 3. An ACT costs a column command ready at the same tick a slot of the command
# bus but no data; the other way round it would cost every later ACT of the window.
BANK_BITS = 8
CLASS_SHIFT = 44
ORDER_BITS = 46
ORDER_MASK = 2**ORDER_BITS - 1
MOST_AHEAD = 2**16 - 1

# In place of a command: look again, as a read may be overdue. After refreshes and before all others; of bank 0.
RECHECK = 1 << BANK_BITS

# Per rank (`ChannelState.rank`).
OPEN, SINCE, NEXT_DUE, WAITS, TIME_ACTIVE, TIME_PRECHARGED, TIME_REFRESH, DEBT = 0, 1, 2, 3, 4, 5, 6, 7
# DEBT: refreshes put off. UNIT: first bank of those to be refreshed; NEXT_...: the next command towards that, its bank
# (-1: the rank), the earliest tick by rules of the same bank and where all other rules stand in `near`. ROUND: units
# refreshed since all were.
UNIT, NEXT_KIND, NEXT_BANK, NEXT_FROM, NEXT_NEAR, ROUND = 8, 9, 10, 11, 12, 13
# Where idle ranks sleep: from when on it may, how long it did, and from when to (that tick and one; 0: the log says so)
# when it did last.
SLEEP_FROM, TIME_ASLEEP, SLEPT_FROM, WOKEN = 14, 15, 16, 17
N_RANK = 18

# Per queue entry (`ChannelState.entry`).
ADDRESS, ENTRY_ROW, ENTRY_BANK, AGE, OWNER, ARRIVAL, FORWARD, BACK, TOUCHED = 0, 1, 2, 3, 4, 5, 6, 7, 8
MERGED, IS_A_WRITE = 9, 10  # next request served along with this one; direction
N_ENTRY = 11

# Per segment of the ring (`ChannelState.segment`). WANTED: bursts not yet served. FIRST_AGE: of the first request, of
# reads under way.
CURSOR, REMAINING, IS_WRITE, TASK, VISIBLE, WANTED, DATA_END, FIRST_AGE = 0, 1, 2, 3, 4, 5, 6, 7
N_SEGMENT = 8

# Counters (`ChannelState.count`): commands at 0..7, then these.
HITS, MISSES, CONFLICTS, BUSY, READ_LATENCY, READS_DONE, FORWARDED, ABSORBED = 8, 9, 10, 11, 12, 13, 14, 15
N_COUNTS = 16

LOG_FIELDS = 6

# In the log in place of a command: from when to when a rank slept, before the first command that it took then.
LOG_ASLEEP, LOG_AWAKE = -1, -2

# Most reads served in a stretch that `dram_steady` remembers.
MOST_SERVED = 320


class DramTables(NamedTuple):
    """One memory channel, worked out to integers; times in ticks of the channel, addresses in bursts."""

    banks: int
    groups: int
    ranks: int
    group_of: np.ndarray  # [banks]
    rank_of: np.ndarray  # [groups], pseudo-channels counted as further ranks
    relation: np.ndarray  # [groups, groups]
    gap_bank: np.ndarray  # [before, after]: same bank
    gap_near: np.ndarray  # [before, group, groups * commands]: all other levels, from a command in one group to all
    window_before: np.ndarray  # [windows]
    window_after: np.ndarray
    window_size: np.ndarray
    window_gap: np.ndarray
    window_groups: np.ndarray  # [windows, groups, 3]: node number, first and end of the groups that share the window
    command_ticks: np.ndarray  # [commands]: command bus occupancy
    two_buses: int
    read_ticks: int  # command to last data beat
    write_ticks: int
    burst_ticks: int
    front_ticks: int  # ticks between two offers
    refresh_interval: int  # of a rank; 0: none
    refresh_ticks: int
    refresh_command: int  # REF, REFB or REFS
    unit_banks: int  # banks that one refresh concerns, of a rank's
    unit_step: int  # distance of their numbers; units begin with a rank's first banks
    refresh_apart: int  # ticks between refreshes of two ranks within which they may disturb each other
    postponable: int  # refreshes that may be put off while requests are queued
    refresh_phase: np.ndarray  # [ranks]: first due tick
    exit_ticks: int  # from waking a rank to its first command; 0: ranks never sleep
    sleep_after: int  # ticks after its last column command at which a closed rank sleeps
    self_refresh: int  # 1: a rank that sleeps needs no refresh commands
    policy: int
    read_entries: int
    write_entries: int
    bank_entries: int
    read_pool: int  # entries there are for reads and writes, in the queues and beyond
    write_pool: int
    cap: int
    age_limit: int
    page_idle: int  # ticks after its last use at which a row nobody waits for is closed; -1: it stays open
    drain_high: int
    drain_low: int
    low_bits: int  # -1: decode by pieces
    low_bank: np.ndarray  # [2**low_bits]
    low_row: np.ndarray
    high_shift: int  # row bits in low_row
    hash_bank: np.ndarray  # [2**k]: XORed into the bank, by the low row bits
    piece_from: np.ndarray
    piece_mask: np.ndarray
    piece_to: np.ndarray
    piece_row: np.ndarray  # 1: a piece of the row, 0: of the bank number
    bursts: int  # of the channel
    steady: int  # bursts between two points at which a stretch may be jumped over; 0: never
    steady_bits: int  # its logarithm
    period_bits: int  # adding 2**period_bits to an address only changes the row, by 2**period_shift
    period_shift: int
    phase_kind: np.ndarray  # [2**period_bits / steady] and the next four: see `sim.dram_phases`
    phase_banks: np.ndarray  # [phases, banks]
    phase_groups: np.ndarray  # [phases, groups]
    phase_ranks: np.ndarray  # [phases, ranks]
    phase_rows: np.ndarray  # [phases, banks]
    phase_first: np.ndarray  # [phases, banks]: bursts until the stream comes by the bank
    renamed: int  # 1: banks are named by phase
    refresh_reach: int  # ticks ahead up to which refreshes are told apart
    apart: int  # ticks for which a refresh binds the commands of other banks, and one; 0: none is done beside streams
    pim: np.ndarray  # see `pim_tables`: tables of processing in memory


class ChannelState(NamedTuple):
    """All channel classes of one memory; the leading axis of every array is the class, where nothing else is said."""

    scalar: np.ndarray  # [C, N_SCALARS]
    bank: np.ndarray  # [C, N_BANK, banks]
    ready: np.ndarray  # [C, banks, commands]: earliest tick by rules of the same bank
    near: np.ndarray  # [C, groups * commands]: earliest tick by all other rules
    rank: np.ndarray  # [C, N_RANK, ranks]
    ring: np.ndarray  # [C, windows, groups, size + 1]: last ticks of a window and the place of the oldest
    entry: np.ndarray  # [C, N_ENTRY, entries]
    segment: np.ndarray  # [C, N_SEGMENT, ring]
    count: np.ndarray  # type: ignore[assignment]  # [C, N_COUNTS]
    done_task: np.ndarray  # [C, ring]
    done_tick: np.ndarray
    done_count: np.ndarray  # [C]
    log: np.ndarray  # [C, capacity, LOG_FIELDS]: kind, tick, rank, bank group, bank, row
    request_done: np.ndarray  # [requests of a trace]
    served: np.ndarray  # [C, a power of two, 2]: age and tick of the reads served last, number n at place n
    mark: np.ndarray  # [C, words]: counters at the last point whose sequel is to be learnt, see `dram_steady`
    memo_word: np.ndarray  # [words]: the state looked for; this and all below are shared by the classes
    memo_state: np.ndarray  # [states, words + 1]: known states, and their length
    memo_after: np.ndarray  # [states, ...]: what followed each, see `dram_steady`
    memo_index: np.ndarray  # hash table of state numbers
    memo_seen: np.ndarray  # hashes of states met
    memo_count: np.ndarray  # [2]: known states, how often the memo was emptied
    pim: np.ndarray  # [C, words], see `pim_tables`


@inlined
def bank_and_row(t, burst):
    """Bank number in the channel and row of a channel-local burst."""
    if t.low_bits >= 0:
        low = burst & ((1 << t.low_bits) - 1)
        bank = t.low_bank[low]
        row = t.low_row[low] | (burst >> t.low_bits << t.high_shift)
    else:
        bank = np.int64(0)
        row = np.int64(0)
        for i in range(t.piece_from.shape[0]):
            part = ((burst >> t.piece_from[i]) & t.piece_mask[i]) << t.piece_to[i]
            if t.piece_row[i] == 1:
                row |= part
            else:
                bank |= part
    return bank ^ t.hash_bank[row & (t.hash_bank.shape[0] - 1)], row
