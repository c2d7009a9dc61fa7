"""Turns a memory's YAML rule table into a frozen Memory, and that into the integer tables of the channel kernel.

A file with `base:` states only how it differs from another memory. Everything derived from the table (gaps between
commands by level, the address decoder, refresh phases) is worked out here, once, and checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sim.base import load_based
from sim.config import Document, apply_overrides, build
from sim.errors import ConfigError, not_among
from sim.expression import evaluate
from sim.pim.schema import Pim, check_pim
from sim.units import Bytes, Current, Frequency, Voltage

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sim.kernels.dram_tables import ChannelState, DramTables

COMMANDS: Final = ("ACT", "PRE", "RD", "WR", "PREA", "REF", "REFpb", "REFsb")
"""In the order of the kernel's command numbers."""

RANK_COMMANDS: Final = frozenset({"PREA", "REF"})
COLUMN_COMMANDS: Final = frozenset({"RD", "WR"})

LEVELS: Final[Mapping[str, tuple[int, ...]]] = {
    "bank": (),
    "bank_group": (0,),
    "rank": (0, 1),
    "pseudo_channel": (0, 1, 2),
    "channel": (0, 1, 2, 3),
    "other_rank": (2,),
    "other_pseudo_channel": (3,),
}
"""Level of a rule: the relations of two bank groups that it covers (same, same rank, same pseudo-channel, other).

A same-bank refresh (REFsb) concerns one bank of every group: its rules at level bank hold for each of them.
"""

FIELDS: Final = {"ch": "channels", "pc": "pseudo_channels", "ra": "ranks", "bg": "bank_groups", "ba": "banks",
                 "ro": "rows", "co": "columns"}  # fmt: skip

SHORT_KEYS: Final = {
    "queue": ("controller.read_queue", "controller.write_queue"),
    "policy": ("controller.policy",),
    "cap": ("controller.cap",),
    "page": ("controller.page",),
    "age_limit": ("controller.age_limit",),
}
"""Settings with a short name."""

POLICY_SETTINGS: Final[Mapping[str, Mapping[str, Any]]] = {
    "ramulator": {
        "controller.read_queue": 32,
        "controller.write_queue": 32,
        "controller.drain_high": 26,
        "controller.drain_low": 6,
        "refresh": "together",
    },
    "dramsim3": {
        "controller.read_queue": 32,
        "controller.write_queue": 32,
        "controller.bank_queue": 8,
        "controller.drain_high": 32,
        "controller.drain_low": 8,
        "controller.cap": 4,
        "refresh": "staggered",
    },
}
"""What choosing a policy sets besides, as its simulator has it, where no other setting says otherwise; a memory's
`policies` section adds what that simulator states differently of the memory itself."""

TABLE_BITS: Final = 14
"""Largest part of an address that is decoded by one table."""


STRETCH: Final = 32
"""Bursts of a stretch that may be jumped over."""

MERGED_READS: Final = 256
"""Reads that the policy dramsim3 can serve along with others at a time."""

MOST_POSTPONED: Final = 8
"""Refreshes that may be put off: JESD79-4, JESD79-5."""

KNOWN_STATES: Final = 4096
"""States that the memo of the steady-state shortcut holds."""

MEMO: Final = ("memo_word", "memo_state", "memo_after", "memo_index", "memo_seen", "memo_count")
"""Arrays of a ChannelState that hold the memo."""

SERVED_LAST: Final = 512
"""Reads whose service a channel remembers, a power of two; more than any stretch that may be jumped over serves."""


class Policy(StrEnum):
    """Scheduler of the controller."""

    FRFCFS = "frfcfs"
    RAMULATOR = "ramulator"
    DRAMSIM3 = "dramsim3"


class PowerDown(StrEnum):
    """What a rank whose banks are all closed does, for its energy: stand by, power down, or refresh itself.

    Without `power_down_after`, entering and leaving take no time, so the two latter are what a controller can save at
    most.
    """

    NONE = "none"
    FAST = "fast"
    SELF_REFRESH = "self_refresh"


class Page(StrEnum):
    """Fate of an open row that no queued request wants: it stays, is closed at once, or after a while without use."""

    OPEN = "open"
    CLOSED = "closed"
    ADAPTIVE = "adaptive"


class BankHash(StrEnum):
    """What the bank and bank group of the mapping are combined with: nothing, or XOR with the low bits of the row."""

    NONE = "none"
    XOR = "xor"


class Refresh(StrEnum):
    """When ranks are refreshed: never, all at once, in turn over the interval, or so but put off while work waits; or
    bank by bank, or one bank number of every group at a time, while the others go on.
    """

    NONE = "none"
    TOGETHER = "together"
    STAGGERED = "staggered"
    POSTPONED = "postponed"
    PER_BANK = "per_bank"
    SAME_BANK = "same_bank"

    @property
    def command(self) -> str:
        """The command that does it."""
        return {Refresh.PER_BANK: "REFpb", Refresh.SAME_BANK: "REFsb"}.get(self, "REF")

    @property
    def suffix(self) -> str:
        """What the names of its timings end in: tREFI and tRFC, tREFIpb and tRFCpb, tREFIsb and tRFCsb."""
        return self.command.removeprefix("REF")


PowerOfTwo = Annotated[int, Field(gt=0, le=2**24)]
Ticks = Annotated[int, Field(ge=0, le=2**31)]
Entries = Annotated[int, Field(gt=0, le=1024)]


class Strict(BaseModel):
    """Base of every section: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))

    @cached_property
    def content(self) -> str:
        """Everything that it says, as text."""
        return self.model_dump_json(by_alias=True)


class Organisation(Strict):
    """One channel; `banks` are those of a bank group, `columns` counts bursts of a row."""

    pseudo_channels: PowerOfTwo
    ranks: PowerOfTwo
    bank_groups: PowerOfTwo
    banks: PowerOfTwo
    rows: PowerOfTwo
    columns: PowerOfTwo
    burst: Bytes

    @model_validator(mode="after")
    def _check(self) -> Organisation:
        for name, value in self:
            if value <= 0 or value & (value - 1):
                raise ValueError(f"{name} is {value}, but must be a power of two")
        return self


class Currents(Strict):
    """Supply and currents of one device, in the data sheet's names; `devices` of them make a rank.

    IDD5AB: refresh of all banks. IDD5PB: of one bank, or one of every group. IDD2P, IDD3P, IDD6: closed and open
    power-down, self refresh. IDD3N_one: active standby with one bank open, where IDD3N is with all of them open.
    """

    VDD: Voltage
    devices: Annotated[int, Field(gt=0, le=64)]
    IDD0: Current
    IDD2N: Current
    IDD3N: Current
    IDD4R: Current
    IDD4W: Current
    IDD5AB: Current
    IDD3N_one: Current | None = None
    IDD5PB: Current | None = None
    IDD2P: Current | None = None
    IDD3P: Current | None = None
    IDD6: Current | None = None

    @model_validator(mode="after")
    def _check(self) -> Currents:
        for name, floor in (
            ("IDD3N", "IDD2N"), ("IDD4R", "IDD3N"), ("IDD4W", "IDD3N"), ("IDD5AB", "IDD3N"), ("IDD5PB", "IDD2N"),
        ):  # fmt: skip
            if (current := getattr(self, name)) is not None and current < getattr(self, floor):
                raise ValueError(f"{name} is below {floor}, so that what it measures would yield energy")
        return self


class Controller(Strict):
    """Scheduler, queue depths, write drain marks, row hits served in a row while an older request waits, and the age in
    ticks from which a read goes before writes and before other ranks' reads (writes are posted: nobody waits for them).

    `power_down_after`: ticks after its last column command at which a rank, once closed, powers down or refreshes
    itself; its next command, a refresh too, then waits tXP or tXS for it to wake.

    `page_idle` is the time without use after which an adaptive page is closed, `bank_queue` the depth of the further
    queues of each bank under the policy dramsim3.
    """

    policy: Policy
    power_down: PowerDown = PowerDown.NONE
    power_down_after: Annotated[int, Field(ge=0, le=2**31)] | None = None
    read_queue: Entries
    write_queue: Entries
    drain_high: Entries
    drain_low: Annotated[int, Field(ge=0, le=1024)]
    cap: Annotated[int, Field(gt=0, le=2**31)]
    age_limit: Annotated[int, Field(gt=0, le=2**31)] = 2048
    bank_queue: Entries = 8
    page: Page = Page.OPEN
    page_idle: Annotated[int, Field(ge=0, le=2**15)] = 100

    @model_validator(mode="after")
    def _check(self) -> Controller:
        if not self.drain_low < self.drain_high <= self.write_queue:
            raise ValueError(
                f"drain_low {self.drain_low} must be below drain_high {self.drain_high}, "
                f"and that at most write_queue {self.write_queue}"
            )
        if self.power_down_after is not None:
            if self.power_down is PowerDown.NONE:
                raise ValueError("power_down_after says when ranks power down, but power_down is none")
            if self.policy is not Policy.FRFCFS:
                raise ValueError(f"power_down_after is what policy {self.policy} does not know; it never powers down")
        if self.page is not Page.OPEN and self.policy is not Policy.FRFCFS:
            raise ValueError(f"page {self.page} is not what policy {self.policy} does; it leaves pages open")
        return self


class Rule(NamedTuple):
    """At `level`, `after` may follow `before`, of `window` > 1 the window-th last, no earlier than by `gap` ticks."""

    level: str
    before: str
    after: str
    gap: int
    window: int = 1


class Memory(Strict):
    """A memory of any number of equal channels, as its file and the settings say."""

    schema_: Annotated[str, Field(alias="schema", pattern="^opcycle/memory/1$")]
    name: str
    clock: Frequency
    clock_ticks: Annotated[int, Field(gt=0, le=16)] = Field(description="ticks of `clock` a command clock has")
    organisation: Organisation
    timings: dict[str, Ticks] = Field(min_length=1)
    rules: tuple[tuple[Any, ...], ...] = Field(min_length=1)
    command_ticks: dict[str, Ticks] = Field(default_factory=dict, description="command bus occupancy where not 1")
    buses: Annotated[int, Field(ge=1, le=2)] = Field(description="2: row and column commands have buses of their own")
    refresh: Refresh
    refresh_first: Ticks | None = Field(default=None, description="tick of the first refresh, if not that of the rank")
    mapping: str
    bank_hash: BankHash = BankHash.NONE
    currents: Currents
    controller: Controller
    pim: Pim | None = None

    @model_validator(mode="after")
    def _check(self) -> Memory:
        if self.period.numerator * self.period.denominator >= 2**62:
            raise ValueError(f"clock is {self.clock} Hz, but must be a multiple of 1 kHz, for exact times")
        for name in ("BL", "CL", "CWL", "tRFC", "tREFI"):
            if name not in self.timings:
                raise ValueError(f"timings.{name} is missing")
        if self.refresh is not Refresh.NONE and self.timings["tREFI"] <= 2 * self.timings["tRFC"]:
            raise ValueError("timings.tREFI must be more than twice tRFC")
        if self.clock_ticks & (self.clock_ticks - 1):
            raise ValueError(f"clock_ticks is {self.clock_ticks}, but must be a power of two")
        for command, ticks in self.command_ticks.items():
            if command not in COMMANDS:
                raise ValueError(f"command_ticks: {not_among('command', command, COMMANDS)}")
            if ticks < 1:
                raise ValueError(f"command_ticks.{command} is {ticks}, but a command takes at least one tick")
        for rule in self.rule_rows:
            if rule.before in COLUMN_COMMANDS and rule.after in COLUMN_COMMANDS and rule.gap % self.clock_ticks:
                raise ValueError(
                    f"rules: {rule.before} to {rule.after} is {rule.gap} ticks, but column commands start with a "
                    f"clock, of {self.clock_ticks} ticks"
                )
        self._check_refresh()
        if self.exit_timing and self.exit_timing not in self.timings:
            raise ValueError(f"controller.power_down_after needs timings.{self.exit_timing}")
        if {"tRAS", "tRP"} <= set(self.timings) and self.activation_charge <= 0:
            raise ValueError(
                "currents: an activation would yield energy, as IDD0 is too low for this IDD3N; if that is with all "
                "banks open, IDD3N_one must say how much it is with one"
            )
        needed = {PowerDown.FAST: "IDD2P", PowerDown.SELF_REFRESH: "IDD6"}.get(self.controller.power_down)
        if needed and getattr(self.currents, needed) is None:
            raise ValueError(f"controller.power_down: {self.controller.power_down} needs currents.{needed}")
        _ = self.fields
        if self.pim is not None:
            check_pim(self)
        return self

    def _check_refresh(self) -> None:
        """Raise ValueError if the memory or its controller cannot be refreshed in the way that is asked for."""
        if self.refresh is Refresh.NONE:
            return
        command, suffix = self.refresh.command, self.refresh.suffix
        if self.refresh_first is not None and not 0 < self.refresh_first <= self.timings["tREFI"]:
            raise ValueError(f"refresh_first is {self.refresh_first}, but must be from 1 to tREFI")
        if not any((r.before, r.after) == (command, "ACT") for r in self.rule_rows):
            raise ValueError(f"refresh: {self.refresh} needs the command {command}, for which there are no rules")
        ours_only = self.refresh is Refresh.POSTPONED or suffix
        if ours_only and self.controller.policy is not Policy.FRFCFS:
            raise ValueError(f"refresh is {self.refresh}, which policy {self.controller.policy} never does")
        if not suffix:
            return
        for name in ("tRFC" + suffix, "tREFI" + suffix):
            if name not in self.timings:
                raise ValueError(f"refresh: {self.refresh} needs timings.{name}")
        if self.currents.IDD5PB is None:
            raise ValueError(f"refresh: {self.refresh} needs currents.IDD5PB")
        interval, units = self.refresh_interval, self.refresh_units
        if interval * units > self.timings["tREFI"]:
            raise ValueError(
                f"timings.tREFI{suffix} is {interval}, so that {units} refreshes of a rank's banks take "
                f"{interval * units} ticks, more than tREFI of {self.timings['tREFI']}"
            )
        gap = max((r.gap for r in self.rule_rows if r.before == r.after == command and r.level != "bank"), default=1)
        if interval <= gap or interval * units <= self.timings["tRFC" + suffix]:
            raise ValueError(f"timings.tREFI{suffix} is {interval}, but the refreshes of a rank cannot come that fast")

    @property
    def exit_timing(self) -> str:
        """The timing that a rank needs to wake, empty where none ever sleeps."""
        if self.controller.power_down_after is None:
            return ""
        return "tXS" if self.controller.power_down is PowerDown.SELF_REFRESH else "tXP"

    @property
    def standby_states(self) -> tuple[str, ...]:
        """The states that a channel counts the time of its ranks in."""
        states = ("active", "precharged", "refresh")
        return {"tXP": (*states, "precharged power-down"), "tXS": (*states, "self refresh")}.get(
            self.exit_timing, states
        )

    @property
    def refresh_interval(self) -> int:
        """Ticks between two refresh commands of a rank."""
        return self.timings["tREFI" + self.refresh.suffix]

    @property
    def refresh_units(self) -> int:
        """Refresh commands that it takes to refresh every bank of a rank once."""
        o = self.organisation
        return {Refresh.PER_BANK: o.bank_groups * o.banks, Refresh.SAME_BANK: o.banks}.get(self.refresh, 1)

    @property
    def burst_bytes(self) -> int:
        """Bytes of one burst, the unit of addresses."""
        return self.organisation.burst

    @property
    def period(self) -> Fraction:
        """A tick in picoseconds."""
        return Fraction(10**12, self.clock)

    @property
    def burst_ticks(self) -> int:
        """Ticks that a burst holds the data bus."""
        return self.timings["BL"]

    @property
    def channel_peak_bytes_per_s(self) -> float:
        """Of one channel, all its pseudo-channels together, without refresh."""
        return float(Fraction(self.burst_bytes * self.clock * self.organisation.pseudo_channels, self.burst_ticks))

    @property
    def bursts_per_channel(self) -> int:
        """Bursts that a channel holds."""
        o = self.organisation
        return o.pseudo_channels * o.ranks * o.bank_groups * o.banks * o.rows * o.columns

    @property
    def capacity_bytes_per_channel(self) -> int:
        """Bytes that a channel holds."""
        return self.bursts_per_channel * self.burst_bytes

    @property
    def interleave_bytes(self) -> int:
        """Contiguous bytes of one channel before the next channel's begin."""
        return self.burst_bytes << self.channel_position

    @property
    def activation_charge(self) -> float:
        """Of one device's activation with its precharge, above standby, in ampere ticks."""
        c, open_ticks, closed_ticks = self.currents, self.timings["tRAS"], self.timings["tRP"]
        standby = c.IDD3N if c.IDD3N_one is None else c.IDD3N_one
        return c.IDD0 * (open_ticks + closed_ticks) - standby * open_ticks - c.IDD2N * closed_ticks

    def timing_ps(self, name: str) -> float:
        """A timing of the table, in picoseconds."""
        return float(self.timings[name] * self.period)

    @cached_property
    def rule_rows(self) -> tuple[Rule, ...]:
        """The rule table, one row for each pair of commands, with gaps in ticks. Raises ValueError."""
        rows = []
        for i, row in enumerate(self.rules):
            if len(row) not in (4, 5):
                raise ValueError(f"rules.{i}: must be level, before, after, gap and, for a window, how many")
            level, before, after, gap = row[:4]
            window = row[4] if len(row) == 5 else 1
            if level not in LEVELS:
                raise ValueError(f"rules.{i}: {not_among('level', str(level), LEVELS)}")
            if isinstance(window, bool) or not isinstance(window, int) or not 1 <= window <= 64:
                raise ValueError(f"rules.{i}: window is {window}, but must be from 1 to 64")
            if isinstance(gap, bool) or not isinstance(gap, (int, str)):
                raise ValueError(f"rules.{i}: gap must be an integer or an expression of timings")
            try:
                ticks = evaluate(gap, self.timings)
            except ValueError as error:
                raise ValueError(f"rules.{i}: {error}") from None
            if ticks < 0:
                raise ValueError(f"rules.{i}: the gap {gap} is {ticks} ticks, but must not be negative")
            for first in before if isinstance(before, (list, tuple)) else (before,):
                for second in after if isinstance(after, (list, tuple)) else (after,):
                    for command in (first, second):
                        if command not in COMMANDS:
                            raise ValueError(f"rules.{i}: {not_among('command', str(command), COMMANDS)}")
                        if command in RANK_COMMANDS and level in ("bank", "bank_group"):
                            raise ValueError(f"rules.{i}: {command} concerns a whole rank, so its rules start at rank")
                        if command == "REFsb" and level == "bank_group":
                            raise ValueError(
                                f"rules.{i}: REFsb concerns every bank group, so its level is bank, or rank and above"
                            )
                    if window > 1 and level == "bank":
                        raise ValueError(f"rules.{i}: a window must span more than a bank")
                    rows.append(Rule(level, first, second, ticks, window))
        return tuple(rows)

    @cached_property
    def fields(self) -> tuple[tuple[str, int | None], ...]:
        """Address fields and their bits, from the most significant; the channel's bits are None where written `c`."""
        parsed: list[tuple[str, int | None]] = []
        totals = dict.fromkeys(FIELDS, 0)
        for text in self.mapping.split(","):
            name, colon, width = text.strip().partition(":")
            if name not in FIELDS:
                raise ValueError(f"mapping: {not_among('field', name, FIELDS)}")
            if name == "ch" and width == "c":
                bits = None
            elif colon and width.isdecimal() and int(width) <= 40:
                bits = int(width)
                totals[name] += bits
            else:
                raise ValueError(f"mapping: {text.strip()!r} must be a field and its bits, such as ba:2")
            parsed.append((name, bits))
        for name, part in FIELDS.items():
            if name == "ch":
                if sum(n == "ch" for n, _ in parsed) > 1:
                    raise ValueError("mapping: the channel field must not be split")
                continue
            want = getattr(self.organisation, part).bit_length() - 1
            if totals[name] != want:
                raise ValueError(f"mapping: {name} has {totals[name]} bits, but {part} needs {want}")
        return tuple(parsed)

    @cached_property
    def channel_position(self) -> int:
        """Address bits, above the burst, below the channel field; all of them where there is none."""
        position = 0
        for name, bits in reversed(self.fields):
            if name == "ch":
                return position
            position += bits or 0
        return position

    def check_channels(self, channels: int) -> None:
        """Raise ConfigError if the mapping's channel field cannot name `channels` channels."""
        bits = dict(self.fields).get("ch", 0)
        if bits is not None and channels != 1 << bits:
            raise ConfigError(f"has {bits} channel bits, so {1 << bits} channels, not {channels}", key="mapping")


def load_memory(name_or_path: str | Path, overrides: Mapping[str, Any] | None = None) -> Memory:
    """The memory of that name or file, with dotted `overrides` (`timings.tRFC`, or short: queue, policy, cap) applied.

    Raises ConfigError for anything wrong in the file, in those it is based on, or in the overrides.
    """
    document = load_based("memory", name_or_path)
    asked = dict(overrides or {})
    what = f"{document.path} {json.dumps(asked, default=str)}"
    known = _KNOWN.get(what)
    if known is None or known[0] != document.data:
        if len(_KNOWN) >= KEPT:
            _KNOWN.clear()
        known = _KNOWN[what] = (document.data, _load(document, asked))
    return known[1]


KEPT = 64
"""Memories that are remembered; a sweep asks for the same few again and again."""
_KNOWN: dict[str, tuple[Mapping[str, Any], Memory]] = {}


def _load(document: Document, asked: dict[str, Any]) -> Memory:
    policy = str(asked.get("policy", asked.get("controller.policy", "")))
    data = dict(document.data)
    own = data.pop("policies", {})
    document = replace(document, data=data)
    changes: dict[str, Any] = dict(POLICY_SETTINGS.get(policy, {}))
    if isinstance(own, dict):
        changes.update(own.get(policy, {}))
    for key, value in asked.items():
        _check_setting(document, key)
        for target in SHORT_KEYS.get(key, (key,)):
            changes[target] = value
        if key == "queue" and str(value).isdecimal():
            high, low = _marks(policy, int(value))
            changes["controller.drain_high"] = high
            changes["controller.drain_low"] = low
    return build(Memory, apply_overrides(document, changes))


def _marks(policy: str, entries: int) -> tuple[int, int]:
    """Drain marks of a write queue: four fifths and one fifth of it, as each policy counts them."""
    if policy == Policy.DRAMSIM3:
        return entries, min(8, entries - 1)
    if policy == Policy.RAMULATOR:  # more than four fifths, less than one fifth
        return entries * 4 // 5 + 1, (entries - 1) // 5
    return max(1, entries * 4 // 5), entries // 5


def _check_setting(document: Document, key: str) -> None:
    """Refuse a setting whose name is no section and no short key, or a timing that the file does not have."""
    first, _, rest = key.partition(".")
    sections = {field.alias or name for name, field in Memory.model_fields.items()}
    if first not in sections and key not in SHORT_KEYS:
        message = not_among("key", first, [*SHORT_KEYS, *sections])
        raise ConfigError(f"{message} (set by an override)", file=document.path, key=key)
    timings = document.data.get("timings")
    if first == "timings" and isinstance(timings, dict) and rest and rest not in timings:
        message = not_among("timing", rest, timings, most=40)
        raise ConfigError(f"{message} (set by an override)", file=document.path, key=key)


def split_range(
    memory: Memory, channels: int, start_burst: Any, n_bursts: Any
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Contiguous global bursts [start, start + n) as contiguous local bursts of each channel.

    start_burst, n_bursts: integers or arrays of one shape [ranges]. Returns (lo, n), each [ranges, channels]
    ([channels] for scalars). Any number of channels; the channel field may stand anywhere in the mapping.
    """
    import numpy as np

    memory.check_channels(channels)
    start = np.asarray(start_burst, np.int64)[..., None]
    end = start + np.asarray(n_bursts, np.int64)[..., None]
    if channels == 1:
        return start, end - start
    block = np.int64(1) << memory.channel_position
    offset = np.arange(channels, dtype=np.int64) * block

    def below(position: NDArray[np.int64]) -> NDArray[np.int64]:
        whole, rest = np.divmod(position, block * channels)
        inside: NDArray[np.int64] = np.clip(rest - offset, 0, block)
        return whole * block + inside

    lo = below(start)
    return lo, below(end) - lo


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
    stretch = min(STRETCH, 1 << period_bits) if leaps else 0
    bank, row = _decode(pieces, hash_bank, 1 << period_bits) if leaps else (integers([0]), integers([0]))
    period_shift = pieces[-1].to + above if pieces else 0
    shape = (o.pseudo_channels, ranks, groups, banks) if leaps else (1, 1, 1, 1)
    phases = find_phases(
        bank, row, stretch or 1, 1 << period_shift, shape, c.page is Page.OPEN, memory.refresh is Refresh.SAME_BANK
    )

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
        renamed=int(c.page is Page.OPEN),
        refresh_reach=2 * timings["tRFC"] + 1024,
        pim=pim_tables(memory),
    )


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


def _new_memo(tables: DramTables, used: bool) -> dict[str, NDArray[np.int64]]:
    """The empty memo of the steady-state shortcut: a state's words, known states, what followed them, hash tables."""
    import numpy as np

    from sim.kernels import dram_tables as k

    entries = tables.read_pool + tables.write_pool
    windows = len(tables.window_size)
    size = int(tables.window_size.max()) if windows else 1
    known = KNOWN_STATES if tables.steady and used else 1
    ticks = (k.N_COMMANDS + 3) // 4
    words = 3 + tables.banks * (1 + ticks) + tables.groups * ticks + tables.ranks
    words += windows * tables.groups * ((size + 3) // 4) + entries
    arrays = (
        np.zeros(max(words, 3 * entries), np.int64),
        np.zeros((known, words + 1), np.int64),
        np.zeros((known, 17 + k.N_COUNTS + 5 * tables.ranks + tables.banks + k.MOST_SERVED), np.int64),
        np.full(4 * known, -1, np.int64),
        np.full(16 * known, -1, np.int64),
        np.zeros(2, np.int64),
    )
    return dict(zip(MEMO, arrays, strict=True))


def new_state(
    tables: DramTables,
    classes: int,
    ring: int,
    log: int = 0,
    requests: int = 0,
    known: ChannelState | None = None,
    jobs: int = 1,
) -> ChannelState:
    """Idle channels at tick 0: `classes` of them, `ring` segments under way and `log` commands recorded in each.

    requests: length of a trace offered one by one (see `offer`). known: a former state of the same tables, whose memo
    of the steady-state shortcut goes on to be used; what it holds changes no result. jobs: PIM jobs under way in each.
    """
    import numpy as np

    from sim.kernels import dram_tables as k
    from sim.pim.tables import pim_state

    long_ago = -(2**40)
    entries = tables.read_pool + tables.write_pool
    windows = len(tables.window_size)
    size = int(tables.window_size.max()) if windows else 1
    state = k.ChannelState(
        scalar=np.zeros((classes, k.N_SCALARS), np.int64),
        bank=np.full((classes, k.N_BANK, tables.banks), -1, np.int64),
        ready=np.zeros((classes, tables.banks, k.N_COMMANDS), np.int64),
        near=np.zeros((classes, tables.groups * k.N_COMMANDS), np.int64),
        rank=np.zeros((classes, k.N_RANK, tables.ranks), np.int64),
        ring=np.full((classes, windows, tables.groups, size + 1), long_ago, np.int64),
        entry=np.full((classes, k.N_ENTRY, entries), -1, np.int64),
        segment=np.zeros((classes, k.N_SEGMENT, ring), np.int64),
        count=np.zeros((classes, k.N_COUNTS), np.int64),
        done_task=np.zeros((classes, ring + jobs), np.int64),
        done_tick=np.zeros((classes, ring + jobs), np.int64),
        done_count=np.zeros(classes, np.int64),
        log=np.zeros((classes, log, k.LOG_FIELDS), np.int64),
        request_done=np.full(requests, k.NEVER, np.int64),
        served=np.zeros((classes, SERVED_LAST, 2), np.int64),
        mark=np.zeros((classes, 7 + k.N_COUNTS + 4 * tables.ranks + tables.banks), np.int64),
        **(_new_memo(tables, not log) if known is None else {name: getattr(known, name) for name in MEMO}),
        pim=pim_state(tables, classes, jobs),
    )
    for w, window in enumerate(tables.window_size):
        state.ring[:, w, :, window] = 0
    free = np.arange(1, entries + 1)
    free[tables.read_pool - 1] = -1
    free[entries - 1] = -1
    state.entry[:, k.FORWARD, :] = free
    state.scalar[:, k.FREE_R] = 0
    state.scalar[:, k.FREE_W] = tables.read_pool
    state.bank[:, [k.STREAK, k.ORDER_R, k.ORDER_W, k.WANT_R, k.WANT_W, k.NEAR_R, k.NEAR_W], :] = 0
    state.bank[:, [k.FROM_R, k.FROM_W], :] = k.FAR
    state.scalar[:, k.STALE] = 1
    state.scalar[:, k.BEST_TICK] = k.NEVER
    state.scalar[:, [k.TRANS_HEAD_R, k.TRANS_HEAD_W, k.TRANS_TAIL_R, k.TRANS_TAIL_W]] = -1
    state.bank[:, [k.DEPTH, k.HALTED, k.REFRESHED], :] = 0
    state.scalar[:, k.MARK] = -1
    state.scalar[:, k.OVERDUE] = -1
    state.rank[:, k.NEXT_DUE, :] = tables.refresh_phase
    state.rank[:, k.SLEEP_FROM, :] = tables.sleep_after
    state.scalar[:, k.DUE] = tables.refresh_phase.min()
    return state
