"""When a node uses each of its channels: in every firing, the first or last of a row, or by turns; and how often."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from sim.stream.schema import (
    Broadcast,
    MemoryReduce,
    Merge,
    Node,
    Reduce,
    Repeat,
    Scan,
    Select,
    Split,
    inputs_of,
    outputs_of,
)

EACH, FIRST, LAST, IN_TURN = 0, 1, 2, 3


class Port(NamedTuple):
    """One use of a channel by a node."""

    channel: str
    when: int
    member: int = 0


ENDLESS = 2**62
"""Length of a row that never ends."""


class Rhythm:
    """Rows and turns of a node, which repeat for ever."""

    def __init__(self, rows: Sequence[int], turns: Sequence[int]) -> None:
        self.rows, self.turns = tuple(rows), tuple(turns)
        self.ends = list(accumulate(self.rows))

    def uses(self, port: Port, firings: int) -> int:
        """Tokens that `port` has passed after `firings`."""
        if port.when == EACH:
            return firings
        if port.when == IN_TURN:
            whole, rest = divmod(firings, len(self.turns))
            return whole * self.turns.count(port.member) + self.turns[:rest].count(port.member)
        whole, rest = divmod(firings, self.ends[-1])
        complete = bisect_right(self.ends, rest)
        begun = complete + (rest > (self.ends[complete - 1] if complete else 0))
        return whole * len(self.rows) + (begun if port.when == FIRST else complete)

    def firings(self, port: Port, tokens: int) -> int:
        """Firings after which `port` has passed `tokens` and, where it is used once a row, the last row is complete."""
        if port.when == EACH:
            return tokens
        whole, rest = divmod(tokens, len(self.rows))
        return whole * self.ends[-1] + (self.ends[rest - 1] if rest else 0)

    def whole(self, firings: int) -> bool:
        """Whether a row is complete after `firings`, or never is to be."""
        if self.rows == (ENDLESS,):
            return True
        rest = firings % self.ends[-1]
        return rest == 0 or rest in self.ends


def rhythm_of(node: Node) -> Rhythm:
    """Lengths of a node's rows, one of 1 without any, and its turns."""
    every = getattr(node, "every", 1) or ENDLESS
    turns: Sequence[int] = ()
    if isinstance(node, Merge):
        turns = node.order or range(len(node.inputs))
    elif isinstance(node, Select):
        turns = node.order
    elif isinstance(node, Split):
        turns = node.order or range(len(node.outputs))
    return Rhythm([every] if isinstance(every, int) else every, turns)


def ports_of(node: Node) -> tuple[list[Port], list[Port]]:
    """(inputs, outputs) of a node, in the order in which a firing deals with them."""
    inputs = [Port(name, EACH) for name in inputs_of(node)]
    outputs = [Port(name, EACH) for name in outputs_of(node)]
    if isinstance(node, Broadcast):
        inputs[1:] = [Port(p.channel, FIRST) for p in inputs[1:]]
    elif isinstance(node, Repeat):
        inputs = [Port(p.channel, FIRST) for p in inputs]
    elif isinstance(node, (Reduce, MemoryReduce)):
        outputs = [Port(p.channel, LAST) for p in outputs]
    elif isinstance(node, Merge):
        inputs = [Port(p.channel, IN_TURN, i) for i, p in enumerate(inputs)]
    elif isinstance(node, Select):
        inputs[1:] = [Port(p.channel, IN_TURN, i) for i, p in enumerate(inputs[1:])]
    elif isinstance(node, Split):
        outputs = [Port(p.channel, IN_TURN, i) for i, p in enumerate(outputs)]
    return inputs, outputs


def has_rows(node: Node) -> bool:
    """Whether the node's timing depends on where in a row it is."""
    rows = isinstance(node, (Broadcast, Repeat, Reduce, MemoryReduce))
    return rows or (isinstance(node, Scan) and node.row_cycles > 0)
