"""Turns a memory into the integer tables of the channel kernel, once: gaps, address decoder, refreshes, phases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sim.dram_schema import COMMANDS, LEVELS, BankHash, Memory, Page, Policy, Refresh

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sim.kernels.dram_tables import DramTables

TABLE_BITS: Final = 14
"""Largest part of an address that is decoded by one table."""


STRETCH: Final = 64
STRETCH_BESIDE: Final = 32
"""Bursts of a stretch that may be jumped over; where banks are left out of the state, short ones recur oftener."""

MERGED_READS: Final = 256
"""Reads that the policy dramsim3 can serve along with others at a time."""

MOST_POSTPONED: Final = 8
"""Refreshes that may be put off: JESD79-4, JESD79-5."""


def compile_memory(memory: Memory, steady: bool = True) -> DramTables:
    """The integer tables of one channel; `steady` False steps periodic stretches one command at a time."""
    import numpy as np

    from sim.dram_phases import LONGEST_PERIOD, find_phases
    from sim.kernels import dram_tables as k
    from sim.pim.tables import pim_tables

    o, timings = memory.organisation, memory.timings
    ranks = o.pseudo_channels * o.ranks
    groups = ranks * o.bank_groups
    banks = groups * o.banks
    group = np.arange(groups)
    rank = group // o.bank_groups
    pseudo = rank // o.ranks
    relation = np.where(
        group[:, None] == group,
        k.SAME_GROUP,
        np.where(
            rank[:, None] == rank,
            k.SAME_RANK,
            np.where(pseudo[:, None] == pseudo, k.SAME_PSEUDO, k.OTHER_PSEUDO),
        ),
    ).astype(np.int64)

    number = {name: i for i, name in enumerate(COMMANDS)}
    gap_bank = np.zeros((k.N_COMMANDS, k.N_COMMANDS), np.int64)
    gap_group = np.zeros((k.N_COMMANDS, k.N_RELATIONS, k.N_COMMANDS), np.int64)
    windows: list[tuple[int, int, int, int]] = []
    shared: list[NDArray[np.int64]] = []
    nodes = {"bank_group": group, "rank": rank, "pseudo_channel": pseudo, "channel": np.zeros(groups, np.int64)}
    for rule in memory.rule_rows:
        before, after = number[rule.before], number[rule.after]
        if rule.window > 1:
            node = nodes[rule.level]
            size = groups // (int(node[-1]) + 1)
            windows.append((before, after, rule.window, rule.gap))
            shared.append(np.stack([node, node * size, (node + 1) * size], axis=1))
        elif rule.level == "bank":
            gap_bank[before, after] = max(gap_bank[before, after], rule.gap)
        else:
            for r in LEVELS[rule.level]:
                gap_group[before, r, after] = max(gap_group[before, r, after], rule.gap)
    group_of = np.arange(banks, dtype=np.int64) // o.banks
    gap_near = gap_group[:, relation, :].reshape(k.N_COMMANDS, groups, groups * k.N_COMMANDS)

    pieces = _pieces(memory)
    low_bits, high_shift, low_bank, low_row = _low_tables(memory, pieces)
    hashed = (o.banks * o.bank_groups).bit_length() - 1 if memory.bank_hash is BankHash.XOR else 0
    if hashed >= o.rows.bit_length():
        hashed = o.rows.bit_length() - 1
    above = max(0, hashed - pieces[-1].to) if pieces else 0  # row bits of the topmost piece that the hash reads
    period_bits = pieces[-1].shift + above if pieces and pieces[-1].row else 0
    interval = 0 if memory.refresh is Refresh.NONE else memory.refresh_interval
    stagger = memory.refresh is not Refresh.TOGETHER
    refresh = memory.refresh.command
    between = [r.gap for r in memory.rule_rows if r.before == r.after == refresh and r.level not in ("bank", "rank")]
    first = interval - int(memory.controller.policy is Policy.RAMULATOR)  # it counts clocks from one
    phase = [interval * (r + 1) // ranks if stagger else first for r in range(ranks)]
    if memory.refresh_first is not None:
        phase = [tick - phase[0] + memory.refresh_first for tick in phase]
    window = np.asarray(windows, np.int64).reshape(-1, 4)
    command_ticks = [memory.command_ticks.get(name, 1) for name in COMMANDS]
    c = memory.controller
    beyond = {Policy.FRFCFS: 0, Policy.RAMULATOR: banks, Policy.DRAMSIM3: banks * c.bank_queue}[c.policy]

    def integers(values: Any) -> NDArray[np.int64]:
        return np.asarray(values, np.int64).reshape(-1)

    hash_bank = np.arange(1 << hashed, dtype=np.int64)
    leaps = steady and 4 <= period_bits <= LONGEST_PERIOD and c.policy is Policy.FRFCFS and not memory.exit_timing
    leaps = leaps and (c.page is Page.OPEN or not memory.refresh.suffix)  # both read when a bank was used last
    beside = memory.refresh is Refresh.PER_BANK and ranks > 1 and memory.buses == 2 and memory.pim is None
    stretch = min(STRETCH_BESIDE if beside else STRETCH, 1 << period_bits) if leaps else 0
    bank, row = _decode(pieces, hash_bank, 1 << period_bits) if leaps else (integers([0]), integers([0]))
    period_shift = pieces[-1].to + above if pieces else 0
    shape = (o.pseudo_channels, ranks, groups, banks) if leaps else (1, 1, 1, 1)
    phases = find_phases(
        bank, row, stretch or 1, 1 << period_shift, shape, c.page is Page.OPEN, memory.refresh is Refresh.SAME_BANK
    )

    apart = 0
    if leaps and beside:
        apart = _reach_beside(gap_bank, gap_near, window, command_ticks, banks)

    return k.DramTables(
        banks=banks,
        groups=groups,
        ranks=ranks,
        group_of=group_of,
        rank_of=rank.astype(np.int64),
        relation=relation,
        gap_bank=gap_bank,
        gap_near=np.ascontiguousarray(gap_near),
        window_before=np.ascontiguousarray(window[:, 0]),
        window_after=np.ascontiguousarray(window[:, 1]),
        window_size=np.ascontiguousarray(window[:, 2]),
        window_gap=np.ascontiguousarray(window[:, 3]),
        window_groups=np.asarray(shared, np.int64).reshape(len(windows), groups, 3),
        command_ticks=integers(command_ticks),
        two_buses=int(memory.buses == 2),
        read_ticks=timings["CL"] + timings["BL"],
        write_ticks=timings["CWL"] + timings["BL"],
        burst_ticks=timings["BL"],
        front_ticks=memory.clock_ticks,
        refresh_interval=interval,
        refresh_ticks=timings["tRFC" + memory.refresh.suffix] if interval else 0,
        refresh_command=number[refresh],
        unit_banks=o.bank_groups * o.banks // memory.refresh_units,
        unit_step=o.banks if memory.refresh is Refresh.SAME_BANK else 1,
        refresh_apart=max([command_ticks[number[refresh]], *between]),
        postponable=MOST_POSTPONED if memory.refresh is Refresh.POSTPONED else 0,
        refresh_phase=integers(phase if interval else [k.NEVER] * ranks),
        exit_ticks=timings[memory.exit_timing] if memory.exit_timing else 0,
        sleep_after=c.power_down_after or 0,
        self_refresh=int(memory.exit_timing == "tXS"),
        policy=list(Policy).index(c.policy),
        read_entries=c.read_queue,
        write_entries=c.write_queue,
        bank_entries=c.bank_queue,
        read_pool=c.read_queue + beyond + (MERGED_READS if c.policy is Policy.DRAMSIM3 else 0),
        write_pool=c.write_queue + beyond,
        cap=c.cap,
        age_limit=c.age_limit,
        page_idle={Page.OPEN: -1, Page.CLOSED: 0, Page.ADAPTIVE: c.page_idle}[c.page],
        drain_high=c.drain_high,
        drain_low=c.drain_low,
        low_bits=low_bits,
        low_bank=low_bank,
        low_row=low_row,
        high_shift=high_shift,
        hash_bank=hash_bank,
        piece_from=integers([p.shift for p in pieces]),
        piece_mask=integers([(1 << p.bits) - 1 for p in pieces]),
        piece_to=integers([p.to for p in pieces]),
        piece_row=integers([p.row for p in pieces]),
        bursts=memory.bursts_per_channel,
        steady=stretch,
        steady_bits=max(0, stretch.bit_length() - 1),
        period_bits=period_bits,
        period_shift=period_shift,
        phase_kind=phases.kind,
        phase_banks=phases.banks,
        phase_groups=phases.groups,
        phase_ranks=phases.ranks,
        phase_rows=phases.rows,
        phase_first=phases.first,
        renamed=int(c.page is Page.OPEN),
        refresh_reach=2 * timings["tRFC"] + 1024,
        apart=apart,
        pim=pim_tables(memory),
    )


def _reach_beside(
    gap_bank: NDArray[np.int64],
    gap_near: NDArray[np.int64],
    window: NDArray[np.int64],
    command_ticks: list[int],
    banks: int,
) -> int:
    """Ticks, and one, for which a refresh of one bank binds the row commands of others; 0 if it binds anything else.

    Rules for commands that are never given where banks are refreshed singly are taken out of the tables: they would
    only make states differ.
    """
    import numpy as np

    from sim.kernels import dram_tables as k
    from sim.kernels.dram_apart import MOST_BANKS

    for never in (k.PREA, k.REF, k.REFS):
        gap_bank[:, never] = 0
        gap_near[:, :, never :: k.N_COMMANDS] = 0
    steps = [k.PRE, k.REFB]
    by_command = gap_near.reshape(k.N_COMMANDS, -1, k.N_COMMANDS).max(axis=1)
    columns = by_command[steps][:, [k.RD, k.WR]].any() or by_command[[k.RD, k.WR]][:, steps].any()
    windowed = len(window) and bool(np.isin(window[:, :2], steps).any())
    if banks > MOST_BANKS or columns or windowed:
        return 0
    return int(max(by_command[steps].max(), max(command_ticks))) + 1


class Piece(NamedTuple):
    """`bits` address bits from `shift` that go to bit `to` of the row (row = 1) or of the bank number (row = 0)."""

    shift: int
    bits: int
    to: int
    row: int


def _pieces(memory: Memory) -> list[Piece]:
    """The channel-local address in pieces, from the least significant bit; columns are left out."""
    o = memory.organisation
    bank_bits = {"ba": o.banks, "bg": o.bank_groups, "ra": o.ranks, "pc": o.pseudo_channels}
    to: dict[str, int] = {"ro": 0}
    position = 0
    for name, size in bank_bits.items():
        to[name] = position
        position += size.bit_length() - 1
    pieces = []
    shift = 0
    for name, bits in reversed(memory.fields):
        if name == "ch" or bits is None:
            continue
        if name != "co" and bits:
            pieces.append(Piece(shift, bits, to[name], int(name == "ro")))
            to[name] += bits
        shift += bits
    return pieces


def _decode(pieces: list[Piece], hash_bank: NDArray[np.int64], bursts: int) -> tuple[Any, Any]:
    """Bank number and row of the first `bursts` bursts of a channel."""
    import numpy as np

    burst = np.arange(bursts, dtype=np.int64)
    places = np.zeros((2, bursts), np.int64)
    for p in pieces:
        places[p.row] |= ((burst >> p.shift) & ((1 << p.bits) - 1)) << p.to
    return places[0] ^ hash_bank[places[1] & (len(hash_bank) - 1)], places[1]


def _low_tables(memory: Memory, pieces: list[Piece]) -> tuple[int, int, NDArray[np.int64], NDArray[np.int64]]:
    """(bits, row bits among them, bank, row) of every value of the low bits, above which there are only row bits.

    bits is -1, and the tables are empty, where they would be too large: then addresses are decoded piece by piece.
    """
    import numpy as np

    top = memory.organisation.rows.bit_length() - 1
    high = [p for p in pieces if p.row and p.to + p.bits == top]
    bits = high[0].shift if high else memory.bursts_per_channel.bit_length() - 1
    if bits > TABLE_BITS or any(p.shift > bits for p in pieces):
        return -1, 0, np.zeros(1, np.int64), np.zeros(1, np.int64)
    low = np.arange(1 << bits, dtype=np.int64)
    places = np.zeros((2, 1 << bits), np.int64)
    for p in pieces:
        if p.shift < bits:
            places[p.row] |= ((low >> p.shift) & ((1 << p.bits) - 1)) << p.to
    return bits, high[0].to if high else 0, places[0], places[1]
