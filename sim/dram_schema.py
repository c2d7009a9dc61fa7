"""What a memory's file says: organisation, timings, table of rules, refresh, mapping, currents and controller, checked.

A rule table becomes one row for each pair of commands with a gap in ticks, a mapping its fields; all else that follows
from the file is worked out from these (`sim.dram_compile`).
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from fractions import Fraction
from functools import cached_property
from typing import Annotated, Any, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sim.errors import ConfigError, not_among
from sim.expression import evaluate
from sim.pim.schema import Pim, check_pim
from sim.units import Bytes, Current, Frequency, Voltage

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
