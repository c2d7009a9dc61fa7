"""What the `pim` section of a memory may say: the commands that its units understand, their rules and the policy.

Commands have fixed names by what they do; a design's own names for them are only shown. Rules are rows as in the
memory's table, over these commands and the ordinary ones; a gap after COMPS_READRES may depend on its `dots`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sim.errors import not_among
from sim.expression import evaluate
from sim.units import ENERGY_UNITS, Bytes, reader

if TYPE_CHECKING:
    from sim.standards import Memory

PIM_COMMANDS: Final = ("HEADER", "GWRITE", "G_ACT", "PIM_PRE", "COMP", "READRES", "COMPS_READRES", "PWRITE")
"""In the order of the kernel's command numbers: announce a tile; load a vector; open rows; close them; one dot product
step; read a result; COMP as often as it says and READRES in one; write results back to the rows.
"""

ORDINARY: Final = ("ACT", "PRE", "RD", "WR", "PREA", "REF")
"""Ordinary commands that rules of PIM may name."""

PIM_LEVELS: Final = ("buffer", "bank", "bank_group", "rank", "channel")
"""Two commands are related at a level if there is a bank (group ...) that both concern; at `buffer`, a row buffer."""

STEP_COMMANDS: Final = ("GWRITE", "COMP", "READRES", "COMPS_READRES", "PWRITE")


class Mode(StrEnum):
    """Whether a channel serves PIM or requests at a time, or both at once with a second row buffer in each bank."""

    BLOCKED = "blocked"
    DUAL = "dual"


class Completion(StrEnum):
    """When the result of a composite command is read out: after its last dot product, or at its issue."""

    LAST_DOT = "last_dot"
    ISSUE = "issue"


class Scope(StrEnum):
    """Banks that one command opens or closes; `lockstep`: the same bank of every pseudo-channel."""

    BANK = "bank"
    LOCKSTEP = "lockstep"
    BANK_GROUP = "bank_group"
    SET = "set"


class LoadFrom(StrEnum):
    """Where a load takes its vector from: a row of a bank, or the data bus."""

    BANK = "bank"
    HOST = "host"


Expression = int | str


class Strict(BaseModel):
    """Base of every section: frozen, no unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, ignored_types=(cached_property,))


class PimRule(NamedTuple):
    """At `level`, `after` may follow `before` no earlier than by `gaps[dots]` ticks (one entry: whatever the dots)."""

    level: str
    before: str
    after: str
    gaps: tuple[int, ...]


class Step(NamedTuple):
    """A step of a template: `times` commands (None: as many as the job has dots) in bank set `side` (None: the tile's)
    with the tile's row plus `offset`, row `row`, or no row (`needs_row` False) open.
    """

    command: str
    times: int | None
    side: int | None = None
    row: int | None = None
    offset: int = 0
    needs_row: bool = True


class Template(Strict):
    """What a kind of job does: `load` steps for each vector, `tile` steps for each result of each tile."""

    load: tuple[tuple[Any, ...], ...] = ()
    tile: tuple[tuple[Any, ...], ...] = Field(min_length=1)


class Deadline(Strict):
    """Ticks that a tile or load is taken to last; it only begins if that is less than to the next refresh.

    A tile: `fixed` + `precharge` for each bank to close + `activation` for each activation of a rank (ranks work side
    by side) + `dot` for each dot, at least `least_dots` of them, + `readout` for each result after the first. A load:
    `load`, with `load_open` more if its row is closed and `load_conflict` if another is open.
    """

    fixed: Expression
    precharge: Expression
    activation: Expression
    dot: Expression
    least_dots: int = 0
    readout: Expression
    load: Expression = 0
    load_open: Expression = 0
    load_conflict: Expression = 0


class Slack(Strict):
    """What ordinary commands may use of the slack that a tile leaves before the next refresh.

    None at all below `any`; an ACT needs more than `activate` and uses that; a PRE needs more than `precharge` and uses
    `precharge_cost`.
    """

    any: Expression
    activate: Expression
    precharge: Expression
    precharge_cost: Expression


def _cost(value: Any) -> Any:
    """A number is a multiple of the ordinary command's energy, a text an energy of its own."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("must be a multiple of the ordinary command's energy, such as 4, or an energy, such as 12 pJ")
    if isinstance(value, str):
        return EnergyOf(reader("an energy", ENERGY_UNITS)(value))
    if value < 0:
        raise ValueError("must not be negative")
    return float(value)


class EnergyOf(NamedTuple):
    """An energy of one command, in picojoules."""

    pj: float


Cost = Annotated[float | EnergyOf, BeforeValidator(_cost)]


class PimEnergy(Strict):
    """Energy of PIM commands, all banks that one concerns together.

    A number is a multiple of the ordinary command's energy: `load` of a READ for a GWRITE, `activate` of an ACT for a
    G_ACT, `compute` of a READ for a COMP, `readout` of a READ for a READRES, `write_back` of a WRITE for a PWRITE. A
    text such as 12 pJ says it outright. second_background: the second row buffers draw standby current of their own.
    """

    load: Cost
    activate: Cost
    compute: Cost
    readout: Cost
    write_back: Cost = 0.0
    second_background: bool = False


class Pim(Strict):
    """The PIM part of a memory."""

    mode: Mode
    sets: Annotated[int, Field(gt=0, le=64)] = Field(
        default=1, description="bank sets that compute at different times: bank number modulo this"
    )
    activate: Scope = Field(description="banks that one G_ACT opens")
    precharge: Scope = Field(description="banks that one PIM_PRE closes")
    load: LoadFrom
    header: bool = Field(default=False, description="a tile begins with a HEADER command")
    ahead: bool = Field(default=False, description="rows of the next set are opened while this one computes")
    spread: bool = Field(default=False, description="the dots of a tile take turns over the sets, in a row of each")
    close_unused: bool = Field(default=False, description="sets that the step under way does not use are closed")
    completion: Completion = Completion.LAST_DOT
    element: Bytes = Field(description="bytes of a vector element")
    macs: Annotated[int, Field(gt=0, le=4096)] = Field(description="elements that one COMP takes from each bank")
    lanes: Annotated[int, Field(gt=0, le=4096)] = Field(
        default=1, description="results that a unit keeps side by side (1: it adds all its products)"
    )
    registers: Annotated[int, Field(gt=0, le=4096)] = Field(
        default=1, description="results, of `lanes` each, that a unit keeps at once"
    )
    vector: Bytes = Field(description="bytes of the vector that one load brings")
    kernels: dict[str, Template] = Field(min_length=1)
    rules: tuple[tuple[Any, ...], ...] = Field(min_length=1)
    command_ticks: dict[str, Annotated[int, Field(gt=0, le=64)]] = Field(default_factory=dict)
    readout: Expression = Field(default=0, description="ticks from COMPS_READRES to its read-out, by `dots`")
    load_ticks: Expression = Field(description="ticks from GWRITE until the vector is there")
    deadline: Deadline | None = None
    slack: Slack | None = None
    energy: PimEnergy
    names: dict[str, str] = Field(default_factory=dict, description="what the design calls a command")

    @model_validator(mode="after")
    def _names_known(self) -> Pim:
        for section, keys in (("command_ticks", self.command_ticks), ("names", self.names)):
            for command in keys:
                if command not in PIM_COMMANDS:
                    raise ValueError(f"{section}: {not_among('command', command, PIM_COMMANDS)}")
        if self.sets > 1 and (self.activate is not Scope.SET or self.precharge is not Scope.SET):
            raise ValueError("sets: with more than one bank set, `activate` and `precharge` must be set")
        if self.slack is not None and self.deadline is None:
            raise ValueError("slack: needs a `deadline`, before which it is left")
        return self

    def kernel_number(self, name: str) -> int:
        """Index of the template `name`. Raises ValueError."""
        if name not in self.kernels:
            raise ValueError(not_among("kernel", name, self.kernels))
        return list(self.kernels).index(name)

    def name_of(self, command: str) -> str:
        """What the design calls `command`."""
        return self.names.get(command, command)


def max_dots(memory: Memory) -> int:
    """Most dots of one composite command: those of a row."""
    pim = memory.pim
    assert pim is not None
    row_bytes = memory.organisation.columns * memory.burst_bytes
    return max(1, row_bytes // (pim.macs * pim.element))


def check_pim(memory: Memory) -> None:
    """Raise ValueError, beginning with the key, if the PIM section does not go with the rest of the memory."""
    from sim.standards import Page, Policy, Refresh

    pim = memory.pim
    assert pim is not None
    o = memory.organisation
    if memory.controller.policy is not Policy.FRFCFS:
        raise ValueError(f"pim: the controller's policy must be frfcfs, not {memory.controller.policy}")
    if memory.controller.page is not Page.OPEN:
        raise ValueError(f"pim: the controller must leave pages open, not page {memory.controller.page}")
    if memory.refresh not in (Refresh.NONE, Refresh.TOGETHER, Refresh.STAGGERED):
        raise ValueError(f"pim: refresh must be none, together or staggered beside PIM, not {memory.refresh}")
    if memory.exit_timing:
        raise ValueError("pim: ranks with units do not power down after a while; leave out controller.power_down_after")
    banks = o.pseudo_channels * o.ranks * o.bank_groups * o.banks
    if banks % pim.sets:
        raise ValueError(f"pim.sets: {banks} banks cannot be dealt to {pim.sets} sets evenly")
    if pim.sets > 1 and pim.mode is Mode.DUAL:
        raise ValueError("pim.sets: more than one bank set with a second row buffer is not modelled")
    row_bytes = o.columns * memory.burst_bytes
    if pim.vector % pim.element or row_bytes % (pim.macs * pim.element):
        raise ValueError(f"pim.macs: a row of {row_bytes} B must hold whole steps of {pim.macs} elements")
    for name in pim.kernels:
        template_steps(memory, name)
    _ = pim_rules(memory)
    for key, value in (("readout", pim.readout), ("load_ticks", pim.load_ticks)):
        ticks(memory, f"pim.{key}", value, 1)
    for part in ("deadline", "slack"):
        section = getattr(pim, part)
        for key in type(section).model_fields if section is not None else ():
            ticks(memory, f"pim.{part}.{key}", getattr(section, key), negative=key == "fixed")


def ticks(memory: Memory, key: str, value: Expression, dots: int = 0, negative: bool = False) -> int:
    """An expression of the section in ticks. Raises ValueError that names `key`."""
    pim = memory.pim
    assert pim is not None
    names: dict[str, int] = {**memory.timings, "dots": dots, "last_dot": int(pim.completion is Completion.LAST_DOT)}
    try:
        result = evaluate(value, names)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    if result < 0 and not negative:
        raise ValueError(f"{key}: {value} is {result} ticks, but must not be negative")
    return result


def template_steps(memory: Memory, name: str) -> tuple[tuple[Step, ...], tuple[Step, ...]]:
    """Load steps and tile steps of a template. Raises ValueError."""
    pim = memory.pim
    assert pim is not None
    template = pim.kernels[name]
    return (
        tuple(_step(memory, f"pim.kernels.{name}.load.{i}", row) for i, row in enumerate(template.load)),
        tuple(_step(memory, f"pim.kernels.{name}.tile.{i}", row) for i, row in enumerate(template.tile)),
    )


def _step(memory: Memory, key: str, row: tuple[Any, ...]) -> Step:
    pim = memory.pim
    assert pim is not None
    if len(row) not in (2, 3):
        raise ValueError(f"{key}: must be a command, a count or `dots`, and where it works if not in the tile's row")
    command, count = row[:2]
    place: Mapping[str, Any] = row[2] if len(row) == 3 else {}
    if command not in STEP_COMMANDS:
        raise ValueError(f"{key}: {not_among('command', str(command), STEP_COMMANDS)}")
    if count != "dots" and (isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= 4096):
        raise ValueError(f"{key}: the count is {count}, but must be from 1 to 4096, or dots")
    if not isinstance(place, Mapping):
        raise ValueError(f"{key}: the third entry must say set, row or offset")
    for word in place:
        if word not in ("set", "row", "offset"):
            raise ValueError(f"{key}: {not_among('key', str(word), ('set', 'row', 'offset'))}")
    side, at, offset = place.get("set"), place.get("row"), place.get("offset", 0)
    rows = memory.organisation.rows
    for word, value, end in (("set", side, pim.sets), ("row", at, rows), ("offset", offset, rows)):
        if value is None or (word == "row" and value == "none"):
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < end:
            raise ValueError(f"{key}: {word} is {value}, but must be from 0 to {end - 1}")
    return Step(
        command, None if count == "dots" else count, side, None if at == "none" else at, offset, needs_row=at != "none"
    )


def pim_rules(memory: Memory) -> tuple[PimRule, ...]:
    """The rule table of the section, one row for each pair of commands. Raises ValueError."""
    pim = memory.pim
    assert pim is not None
    rows = []
    for i, row in enumerate(pim.rules):
        key = f"pim.rules.{i}"
        if len(row) != 4:
            raise ValueError(f"{key}: must be level, before, after and gap")
        level, before, after, gap = row
        if level not in PIM_LEVELS:
            raise ValueError(f"{key}: {not_among('level', str(level), PIM_LEVELS)}")
        for first in before if isinstance(before, (list, tuple)) else (before,):
            for second in after if isinstance(after, (list, tuple)) else (after,):
                for command in (first, second):
                    if command not in PIM_COMMANDS and command not in ORDINARY:
                        raise ValueError(f"{key}: {not_among('command', str(command), (*PIM_COMMANDS, *ORDINARY))}")
                    if command in ("PREA", "REF") and level in ("buffer", "bank", "bank_group"):
                        raise ValueError(f"{key}: {command} concerns a whole rank, so its rules start at rank")
                if first not in PIM_COMMANDS and second not in PIM_COMMANDS:
                    raise ValueError(f"{key}: {first} to {second} has no command of PIM; it belongs in `rules`")
                if first == "COMPS_READRES":
                    gaps = tuple(ticks(memory, key, gap, dots) for dots in range(1, max_dots(memory) + 1))
                    gaps = (gaps[0], *gaps)
                    gaps = gaps[:1] if len(set(gaps)) == 1 else gaps
                else:
                    gaps = (ticks(memory, key, gap),)
                rows.append(PimRule(level, first, second, gaps))
    return tuple(rows)
