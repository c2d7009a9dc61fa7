"""Puts the operators of a section into its fabric: products, vector functions and moves; `attend` has attention."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from sim.spatial.fabric import COMPUTE, STORE_TILES, VECTOR, Fabric, Node, Work
from sim.spatial.machine import StreamMachine
from sim.spatial.rates import Lanewise, Product, lanewise, up
from sim.spatial.shapes import Layout, groups_of, leaves
from workloads.trace import (
    AttentionAttrs,
    Block,
    ElementwiseAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    ReduceAttrs,
    Role,
    Tensor,
)


class CutError(Exception):
    """An operator needs what the section makes only as a whole, so it must begin another section."""


@dataclass(frozen=True)
class Plan:
    """Operators first..last of a block as one section.

    streamed: weights pass by held rows, instead of rows by held weights. columns: of the result of a product that is
    worked off in parts, from `at` on; 0: all.
    """

    first: int
    last: int
    layout: Layout
    streamed: bool
    columns: int = 0
    at: int = 0


class Builder:
    """One section under construction; `outside`: names that other blocks, or the next layer, read."""

    def __init__(self, machine: StreamMachine, block: Block, plan: Plan, outside: set[str]) -> None:
        self.machine, self.block, self.plan, self.outside = machine, block, plan, outside
        self.tiles = machine.compute_tiles
        self.blocks = plan.layout.blocks
        self.fabric = Fabric(machine, self.blocks)
        self.makers: dict[str, Node] = {}
        self.written: dict[str, tuple[Node, Tensor, int]] = {}
        self.streams: dict[tuple[str, int], Node] = {}

    def build(self) -> Fabric:
        """The fabric, its budgets checked. Raises TooLargeError, or CutError."""
        plan = self.plan
        for number in range(plan.first, plan.last + 1):
            op = self.block.ops[number]
            self.fabric.decisions[number] = {"rows": str(plan.layout.block)}
            if op.kind is OpKind.MATMUL:
                node = self._matmul(number, op)
            elif op.kind is OpKind.ATTENTION:
                from sim.spatial.attend import attention

                node = attention(self, number, op)
            else:
                node = self._vector(number, op)
            for tensor in op.outputs:
                self.makers[tensor.name] = node
                self.written[tensor.name] = (node, tensor, number)
        for name, (node, tensor, number) in self.written.items():
            if leaves(self.block, plan.last, name, tensor.role, self.outside):
                total = self.part(tensor.bytes)
                port = self.fabric.port(f"{self.block.ops[number].name} writes {name}", number, self.blocks,
                                        self.share(total), total, write=True)  # fmt: skip
                self.fabric.join(node, port, self.share(total))
        for node in list(self.fabric.nodes.values()):
            if not node.outputs and node.kind != "dram_write":
                sink = self.fabric.add(Node(f"{node.name} end", "sink", STORE_TILES, node.op, self.blocks, ii=0))
                self.fabric.join(node, sink, 0)
        self.fabric.fit()
        return self.fabric

    def share(self, size: int | Fraction) -> int:
        """Bytes of one token of a tensor."""
        return up(int(-(-size // 1)), self.blocks)

    def part(self, size: int) -> int:
        """Bytes of the columns that are worked on, of a tensor with all of them."""
        plan = self.plan
        if not plan.columns:
            return size
        attrs = self.block.ops[plan.first].attrs
        assert isinstance(attrs, MatmulAttrs)
        end = min(plan.at + plan.columns, attrs.n)
        return size * end // attrs.n - size * plan.at // attrs.n

    def feed(self, node: Node, tensor: Tensor, op: Op) -> None:
        """Give `node` a token of `tensor` for each block: from its maker, or from memory."""
        token = self.share(tensor.bytes)
        if tensor.name in self.makers:
            self.fabric.join(self.makers[tensor.name], node, token)
        elif tensor.role is Role.WEIGHT and op.kind is not OpKind.GATHER:
            self.fabric.join(self.once(node, tensor), node, 0)
        else:
            known = self.streams.get((tensor.name, tensor.bytes))
            if known is None:
                known = self.fabric.port(f"{op.name} reads {tensor.name}", node.op, self.blocks, token, tensor.bytes)
                self.streams[tensor.name, tensor.bytes] = known
            self.fabric.join(known, node, token)

    def once(self, node: Node, tensor: Tensor) -> Node:
        """A small weight: loaded once, there for each token."""
        hold = self.fabric.load(
            f"{node.name} {tensor.name}", node.op, 1, tensor.bytes, tensor.bytes, weights=tensor.role is Role.WEIGHT
        )
        return self.again(hold, [self.blocks])

    def again(self, hold: Node, rows: list[int]) -> Node:
        """Says that what `hold` holds is there, for `rows` tokens each time."""
        node = self.fabric.add(Node(f"{hold.name} there", "repeat", STORE_TILES, hold.op, sum(rows), ii=0,
                                    keys={"every": same(rows)}))  # fmt: skip
        self.fabric.join(hold, node, 0, 1)
        return node

    def _matmul(self, number: int, op: Op) -> Node:
        attrs, plan = op.attrs, self.plan
        assert isinstance(attrs, MatmulAttrs)
        left, right, *rest = op.inputs
        if right.name in self.makers:
            raise CutError(right.name)
        groups = groups_of(op)
        layout = plan.layout
        if len(groups) == 1 and len(layout.groups) > 1:
            layout = Layout(groups, layout.block)
        parts = layout.per_group if len(layout.groups) > 1 else [self.blocks]
        columns = min(plan.columns, attrs.n - plan.at) if plan.columns else attrs.n
        rows = min(layout.block, max(layout.groups))
        rate = self.machine.compute_tiles.formats[left.format]
        weights = self.part(right.bytes)
        widths = [Fraction(t.bytes, t.elements) for t in (left, right, op.outputs[0])]
        if not plan.streamed:
            copies = 2 if len(parts) > 1 else 1
            hold = self.fabric.load(f"{op.name} weights", number, len(parts), weights, copies * up(weights, len(parts)),
                                    weights=right.role is Role.WEIGHT)  # fmt: skip
            product = Product(1, rows, attrs.k, columns, rate)
            node = self._product(op.name, "map", number, self.blocks, product, widths)
            self.feed(node, left, op)
            self.fabric.join(self.again(hold, parts), node, 0)
            for tensor in rest:
                self.feed(node, tensor, op)
            self.fabric.decisions[number] |= {"stationary": "weights"}
            if plan.columns:
                self.fabric.decisions[number] |= {"parts": str(up(attrs.n, plan.columns))}
            return node
        slab = self._slab(attrs.k, columns, widths[1])
        slabs = up(columns, slab)
        fires = self.blocks * slabs
        # Blocks of one group after the other each see all of the group's weights.
        total = sum(up(weights, len(parts)) * n for n in parts) if sum(parts) > len(parts) else weights
        port = self.fabric.port(f"{op.name} weights", number, fires, up(total, fires), total)
        node = self._product(op.name, "broadcast", number, fires, Product(1, rows, attrs.k, slab, rate), widths)
        node.keys["every"] = slabs
        self.fabric.join(port, node, up(total, fires))
        self.feed(node, left, op)
        for tensor in rest:
            self.feed(node, tensor, op)
        out = up(self.part(op.outputs[0].bytes), self.blocks)
        gather = self.fabric.add(Node(f"{op.name} rows", "reduce", STORE_TILES, number, fires, ii=0,
                                      keys={"every": slabs}, holds=out))  # fmt: skip
        self.fabric.join(node, gather, up(out, slabs))
        self.fabric.decisions[number] |= {"stationary": "activations", "weight tokens": str(slabs)}
        return gather

    def _product(self, name: str, kind: str, op: int, fires: int, product: Product, widths: list[Fraction]) -> Node:
        tiles = self.tiles
        left, right, result = widths
        weights = up(product.rows, tiles.stages) * product.columns * product.inner * right
        rows = up(product.columns, tiles.lanes) * product.rows * product.inner * left
        work = Work(macs=fires * product.executed_macs(tiles), sram_read=int(fires * product.units * (weights + rows)),
                    sram_write=int(fires * product.units * product.rows * product.columns * result))  # fmt: skip
        return self.fabric.add(Node(name, kind, COMPUTE, op, fires, product, work=work))

    def _slab(self, inner: int, columns: int, width: Fraction) -> int:
        """Columns of one token of weights: an eighth of a port's window, whole lanes."""
        lanes = self.tiles.lanes
        fit = int(self.machine.ports.window / (8 * inner * width)) // lanes * lanes
        return min(max(fit, lanes), columns)

    def _vector(self, number: int, op: Op) -> Node:
        attrs, tiles = op.attrs, self.tiles
        if isinstance(attrs, ReduceAttrs):
            rated = lanewise(tiles, attrs.function, up(attrs.rows * attrs.columns, self.blocks), attrs.keep)
        elif isinstance(attrs, ElementwiseAttrs):
            rated = lanewise(tiles, attrs.function, up(attrs.elements, self.blocks))
        elif isinstance(attrs, MoveAttrs):
            elements = max((t.elements for t in op.outputs), default=1)
            each = up(attrs.vector_ops, max(elements, 1))
            rated = Lanewise(up(elements, self.blocks), max(up(each, tiles.stages), 1))
        else:
            rated = Lanewise(1, 1)
        assert not isinstance(attrs, (MatmulAttrs, AttentionAttrs))
        read, write = sum(t.bytes for t in op.inputs), sum(t.bytes for t in op.outputs)
        work = Work(vector_ops=op.vector_ops, sram_read=read * rated.sweeps, sram_write=write)
        node = self.fabric.add(Node(op.name, "map", VECTOR, number, self.blocks, rated, work=work))
        seen = set()
        for tensor in op.inputs:
            if (tensor.name, tensor.bytes) not in seen or tensor.name in self.makers:
                self.feed(node, tensor, op)
            seen.add((tensor.name, tensor.bytes))
        return node


def same(rows: list[int]) -> int | list[int]:
    """Lengths of rows as a graph has them: one number where they are all alike."""
    return rows[0] if len(set(rows)) == 1 else rows
