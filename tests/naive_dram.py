"""The DRAM controller once more, in plain Python, one tick at a time: the twin that the compiled one is tested against.

It shares nothing with the kernel but the rule table. Every tick it looks at all queued requests and at the whole
history of commands, so it is only fit for small cases.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from sim.standards import Memory, Refresh

READ, WRITE = 0, 1


@dataclass(eq=False)
class Entry:
    """A queued burst."""

    burst: int
    kind: int
    bank: tuple[int, int, int]
    row: int
    arrival: int
    age: int
    owner: int
    touched: str = ""


@dataclass
class Segment:
    """Contiguous bursts that the front end takes in order."""

    cursor: int
    left: int
    kind: int
    task: int
    visible: int
    wanted: int
    end: int = 0


@dataclass
class Naive:
    """One channel. `segments` must be given beforehand; `run` serves them all."""

    memory: Memory
    segments: list[Segment]
    tick: int = 0
    log: list[tuple[str, int, int, int, int, int]] = field(default_factory=list)
    done: list[tuple[int, int]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        o = self.memory.organisation
        self.ranks = o.pseudo_channels * o.ranks
        self.banks = [(r, g, b) for r in range(self.ranks) for g in range(o.bank_groups) for b in range(o.banks)]
        self.open: dict[tuple[int, int, int], int] = {}
        self.streak: dict[tuple[int, int, int], int] = defaultdict(int)
        self.queues: list[list[Entry]] = [[], []]
        self.draining = False
        self.age = 0
        self.front = 0
        self.bus = {"row": 0, "column": 0}
        refresh = self.memory.refresh
        self.refresh_command = {Refresh.PER_BANK: "REFpb", Refresh.SAME_BANK: "REFsb"}.get(refresh, "REF")
        self.interval = self.memory.timings["tREFI" + self.refresh_command[3:]]
        staggered = refresh is not Refresh.TOGETHER
        self.due = [self.interval * (r + 1) // self.ranks if staggered else self.interval for r in range(self.ranks)]
        if self.memory.refresh is Refresh.NONE:
            self.due = [2**62] * self.ranks
        self.waits = [False] * self.ranks
        self.halted: list[set[tuple[int, int, int]]] = [set() for _ in range(self.ranks)]
        self.refreshed: list[list[int]] = [[] for _ in range(self.ranks)]
        self.postpones = self.memory.refresh is Refresh.POSTPONED
        self.debt = [0] * self.ranks
        self.exit = self.memory.timings[self.memory.exit_timing] if self.memory.exit_timing else 0
        self.used_last = [self.memory.controller.power_down_after or 0] * self.ranks
        self.closed_last = [0] * self.ranks
        self.awake_from = [0] * self.ranks
        self.asleep_ticks = 0
        self.history: dict[tuple[str, str, tuple[int, ...]], list[int]] = defaultdict(list)

    def place(self, burst: int) -> tuple[tuple[int, int, int], int]:
        """Bank and row of a channel-local burst."""
        values: dict[str, int] = defaultdict(int)
        shifts: dict[str, int] = defaultdict(int)
        for name, bits in reversed(self.memory.fields):
            if name == "ch":
                continue
            assert bits is not None
            values[name] |= (burst & ((1 << bits) - 1)) << shifts[name]
            shifts[name] += bits
            burst >>= bits
        rank = values["pc"] * self.memory.organisation.ranks + values["ra"]
        if self.memory.bank_hash == "xor":
            o = self.memory.organisation
            values["ba"] ^= values["ro"] % o.banks
            values["bg"] ^= values["ro"] // o.banks % o.bank_groups
        return (rank, values["bg"], values["ba"]), values["ro"]

    def scope(self, level: str, bank: tuple[int, ...]) -> tuple[int, ...]:
        """What of its place a command shares with others at a level."""
        pseudo = bank[0] // self.memory.organisation.ranks
        shared = {"bank": bank, "bank_group": bank[:2], "rank": bank[:1], "pseudo_channel": (pseudo,), "channel": ()}
        return shared[level]

    def legal(self, command: str, bank: tuple[int, ...], tick: int) -> bool:
        """Whether the rules and the command bus allow `command` at `tick`."""
        two = self.memory.buses == 2
        bus = "column" if two and command in ("RD", "WR") else "row"
        if tick < self.awake_from[bank[0]]:
            return False
        if tick < self.bus[bus] or (command in ("RD", "WR") and tick % self.memory.clock_ticks):
            return False
        for rule in self.memory.rule_rows:
            if rule.after != command:
                continue
            if rule.level == "other_rank":
                pseudo = self.scope("pseudo_channel", bank)
                pasts = [
                    self.history[rule.before, "rank", (r,)]
                    for r in range(self.ranks)
                    if r != bank[0] and self.scope("pseudo_channel", (r,)) == pseudo
                ]
            elif rule.level == "other_pseudo_channel":
                pasts = [
                    self.history[rule.before, "pseudo_channel", (p,)]
                    for p in range(self.memory.organisation.pseudo_channels)
                    if (p,) != self.scope("pseudo_channel", bank)
                ]
            else:
                pasts = [self.history[rule.before, rule.level, self.scope(rule.level, bank)]]
            for past in pasts:
                if len(past) >= rule.window and tick < past[-rule.window] + rule.gap:
                    return False
        return True

    def issue(self, command: str, bank: tuple[int, ...], row: int) -> None:
        """Record a command."""
        levels = ("rank", "pseudo_channel", "channel")
        for level in levels if command in ("PREA", "REF", "REFsb") else ("bank", "bank_group", *levels):
            self.history[command, level, self.scope(level, bank)].append(self.tick)
        if command == "REFsb":
            for g in range(self.memory.organisation.bank_groups):
                self.history[command, "bank", (bank[0], g, bank[2])].append(self.tick)
        self.counts[command] += 1
        place = (bank[0], -1, bank[2]) if command == "REFsb" else (*bank, *(-1,) * (3 - len(bank)))
        self.log.append((command, self.tick, *place, row))
        if command in ("RD", "WR"):
            self.used_last[bank[0]] = self.tick + (self.memory.controller.power_down_after or 0)
        elif command.startswith("REF"):
            self.closed_last[bank[0]] = self.tick + self.memory.timings["tRFC" + command[3:]]
        elif command.startswith("PRE"):
            self.closed_last[bank[0]] = max(self.closed_last[bank[0]], self.tick)
        free = self.tick + self.memory.command_ticks.get(command, 1)
        if self.memory.buses == 2:
            self.bus["column" if command in ("RD", "WR") else "row"] = free
        else:
            self.bus = {"row": free, "column": free}

    def unit(self, r: int, number: int) -> list[tuple[int, int, int]]:
        """The banks of rank `r` that its refresh `number` of a round concerns."""
        o = self.memory.organisation
        if self.refresh_command == "REFpb":
            return [(r, number // o.banks, number % o.banks)]
        if self.refresh_command == "REFsb":
            return [(r, g, number) for g in range(o.bank_groups)]
        return [bank for bank in self.banks if bank[0] == r]

    def asleep(self, r: int) -> bool:
        """Whether rank `r` sleeps: closed, neither wanted nor due for a refresh, and used long enough ago."""
        after = self.memory.controller.power_down_after
        wanted = self.waits[r] or any(entry.bank[0] == r for queue in self.queues for entry in queue)
        if after is None or wanted or any(bank[0] == r for bank in self.open):
            return False
        return self.tick >= self.closed_last[r] and self.tick >= self.used_last[r]

    def wake(self, r: int) -> None:
        """Something is wanted of rank `r`."""
        if self.asleep(r):
            self.awake_from[r] = self.tick + self.exit

    def halt(self, r: int) -> None:
        """Rank `r` is to be refreshed: of its banks left in this round that used last which nobody waits for."""
        o = self.memory.organisation
        self.wake(r)
        self.waits[r] = True
        units = {"REFpb": o.bank_groups * o.banks, "REFsb": o.banks, "REF": 1}[self.refresh_command]
        if len(self.refreshed[r]) == units:
            self.refreshed[r] = []
        left = [n for n in range(units) if n not in self.refreshed[r]]
        wanted = {entry.bank for queue in self.queues for entry in queue}

        def preference(n: int) -> tuple[bool, int, int]:
            banks = self.unit(r, n)
            return not wanted & set(banks), max(self.used.get(bank, -1) for bank in banks), -n

        number = max(left, key=preference)
        self.refreshed[r].append(number)
        self.halted[r] = set(self.unit(r, number))

    def towards_refresh(self, r: int) -> tuple[str, tuple[int, ...]]:
        """The next command of rank `r`, which is to be refreshed, and its place."""
        still_open = sorted(bank for bank in self.halted[r] if bank in self.open)
        if self.refresh_command == "REF":
            return ("PREA" if still_open else "REF"), (r,)
        return ("PRE", still_open[0]) if still_open else (self.refresh_command, min(self.halted[r]))

    def may_refresh(self, command: str, bank: tuple[int, ...]) -> bool:
        """Whether the rules allow a command towards a refresh; a same-bank refresh in all banks that it concerns."""
        if command != "REFsb":
            return self.legal(command, bank, self.tick)
        return all(self.legal(command, each, self.tick) for each in self.halted[bank[0]])

    def hit(self, kind: int, bank: tuple[int, int, int]) -> Entry | None:
        """Oldest queued request of a direction to the open row of a bank."""
        row = self.open.get(bank)
        return next((e for e in self.queues[kind] if e.bank == bank and e.row == row), None)

    def set_mode(self) -> None:
        """Drain with hysteresis."""
        c = self.memory.controller
        reads, writes = map(len, self.queues)
        if not self.draining:
            self.draining = writes >= c.drain_high or (reads == 0 and writes > 0)
        elif writes == 0 or (writes <= c.drain_low and reads > 0):
            self.draining = False

    def accept(self) -> None:
        """Take at most one burst of the first segment."""
        c = self.memory.controller
        if not self.segments or self.tick < max(self.front, self.segments[0].visible):
            return
        if self.tick % self.memory.clock_ticks:
            return
        segment = self.segments[0]
        kind = segment.kind
        if len(self.queues[kind]) >= (c.write_queue if kind else c.read_queue):
            return
        self.front = self.tick + self.memory.clock_ticks
        burst = segment.cursor
        segment.cursor += 1
        segment.left -= 1
        if segment.left == 0:
            self.segments.pop(0)
        held = any(e.burst == burst for e in self.queues[WRITE])
        if held:
            self.counts["absorbed" if kind else "forwarded"] += 1
        else:
            bank, row = self.place(burst)
            self.wake(bank[0])
            self.queues[kind].append(Entry(burst, kind, bank, row, self.tick, self.age, id(segment)))
            self.owners[id(segment)] = segment
            self.age += 1
        if kind == WRITE:
            self.complete(segment, self.tick)
        elif held:
            self.complete(segment, self.tick + 1)
        if not held:
            self.set_mode()

    owners: dict[int, Segment] = field(default_factory=dict)
    used: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def complete(self, segment: Segment, tick: int) -> None:
        """One burst of a segment is served."""
        segment.end = max(segment.end, tick)
        segment.wanted -= 1
        if segment.wanted == 0:
            self.done.append((segment.task, segment.end))

    def overdue(self) -> Entry | None:
        """The oldest read, if it has waited as long as the age limit."""
        oldest = next(iter(self.queues[READ]), None)
        return oldest if oldest and self.tick - oldest.arrival >= self.memory.controller.age_limit else None

    def candidates(self) -> list[tuple[int, int, str, Entry | int | tuple[int, int, int]]]:
        """(class, age, command, what) of everything that may be issued now."""
        found: list[tuple[int, int, str, Entry | int | tuple[int, int, int]]] = []
        for r in range(self.ranks):
            if self.waits[r]:
                command, place = self.towards_refresh(r)
                if self.may_refresh(command, place):
                    found.append((0, r, command, r))
        late = self.overdue()
        kind = READ if late else int(self.draining)
        for bank in self.banks:
            mine = [e for e in self.queues[kind] if e.bank == bank]
            if bank in self.halted[bank[0]]:
                continue
            if not mine:
                if self.unwanted(bank) and self.legal("PRE", bank, self.tick):
                    found.append((3, 2**60 + self.banks.index(bank), "PRE", bank))
                continue
            entry = mine[0]
            hit, other = self.hit(kind, bank), self.hit(1 - kind, bank)
            if bank not in self.open:
                rank, command = 1, "ACT"
            elif hit and (hit is entry or self.streak[bank] < self.memory.controller.cap):
                rank, command, entry = 2, ("RD", "WR")[kind], hit
            elif other and self.streak[bank] == 0:
                rank, command, entry = 2, ("WR", "RD")[kind], other
            else:
                rank, command = 3, "PRE"
            if late and rank == 2 and bank[0] != late.bank[0]:
                continue
            if self.legal(command, bank, self.tick):
                found.append((rank, entry.age, command, entry))
        return found

    def unwanted(self, bank: tuple[int, int, int]) -> bool:
        """Whether the row of a bank is to be closed though nobody waits for another."""
        c = self.memory.controller
        if c.page == "open" or bank not in self.open or not self.streak[bank] or self.hit(0, bank) or self.hit(1, bank):
            return False
        return self.tick >= self.used[bank] + (c.page_idle if c.page == "adaptive" else 0)

    def act(self, command: str, what: Entry | int | tuple[int, int, int]) -> None:
        """Issue a command and change the state accordingly."""
        t = self.memory.timings
        if isinstance(what, int):
            _, place = self.towards_refresh(what)
            self.issue(command, place, self.open.get(place, -1) if len(place) == 3 else -1)
            if command == "PREA":
                self.open = {b: row for b, row in self.open.items() if b[0] != what}
            elif command == "PRE":
                del self.open[place[0], place[1], place[2]]
            else:
                self.waits[what] = False
                self.halted[what] = set()
                if not self.postpones:
                    self.due[what] += self.interval
                else:
                    self.debt[what] -= 1
                    if self.debt[what] >= 8 or (self.debt[what] > 0 and not any(self.queues)):
                        self.halt(what)
            return
        if isinstance(what, tuple):
            self.issue(command, what, self.open.pop(what))
            return
        bank = what.bank
        if command == "ACT":
            self.issue(command, bank, what.row)
            self.open[bank] = what.row
            self.streak[bank] = 0
            what.touched += "a"
        elif command == "PRE":
            self.issue(command, bank, self.open.pop(bank))
            what.touched += "p"
        else:
            self.issue(command, bank, what.row)
            self.streak[bank] += 1
            self.used[bank] = self.tick
            self.queues[what.kind].remove(what)
            kind = "conflicts" if "p" in what.touched else "misses" if what.touched else "hits"
            self.counts[kind] += 1
            if what.kind == READ:
                end = self.tick + t["CL"] + t["BL"]
                self.counts["read latency"] += end - what.arrival
                self.complete(self.owners[what.owner], end)
            self.set_mode()
            if not any(self.queues):
                for r, debt in enumerate(self.debt):
                    if debt > 0 and not self.waits[r]:
                        self.halt(r)

    def run(self, last: int = 200_000) -> None:
        """Serve everything."""
        closes = self.memory.controller.page != "open"
        while (self.segments or any(self.queues) or (closes and self.open)) and self.tick < last:
            for r in range(self.ranks):
                if self.due[r] <= self.tick and self.memory.exit_timing == "tXS" and self.asleep(r):
                    self.due[r] += self.interval
                elif self.due[r] <= self.tick and not self.waits[r] and not self.postpones:
                    self.halt(r)
                elif self.due[r] <= self.tick and self.postpones:
                    self.debt[r] += 1
                    self.due[r] += self.interval
                    if not self.waits[r] and (self.debt[r] >= 8 or not any(self.queues)):
                        self.halt(r)
            self.accept()
            while found := self.candidates():
                _, _, command, what = min(found, key=lambda f: f[:2])
                self.act(command, what)
            self.asleep_ticks += sum(map(self.asleep, range(self.ranks)))
            self.tick += 1
