"""Operators of one's own (`operator`): FLOPs, bytes and placement stated, for what no other operator covers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sim.config import ConfigError
from workloads.schema import Count, Schema
from workloads.trace import CustomAttrs, Op, OpKind, Role, Tensor, Trace
from workloads.transforms.graph import Edited, Site, edit_layers, prefix_of, tokens_of
from workloads.transforms.where import Where, plain, stem

PerToken = Annotated[float, Field(ge=0)]


class Operator(Schema):
    """An operator put before or after another one of each selected layer.

    Amounts are per layer and pass, `*_per_token` those for each position besides. It reads the input of the operator
    that it stands beside and writes nothing that others read, unless `replace`: then it takes that operator's place.
    """

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    at: str = Field(description="The operator beside which it stands.")
    side: Literal["before", "after"] = "before"
    replace: bool = False
    flops: Count = 0
    flops_per_token: PerToken = 0.0
    vector_ops: Count = 0
    vector_ops_per_token: PerToken = 0.0
    read_bytes: Count = 0
    read_bytes_per_token: PerToken = 0.0
    write_bytes: Count = 0
    write_bytes_per_token: PerToken = 0.0
    placement: Literal["array", "vector"] = "vector"
    where: Where = Where()


def operator(trace: Trace, params: Operator) -> Trace:
    """Closed form: each selected layer gains (or has instead) the amounts stated. Raises ConfigError if no selected
    layer has the operator `at`.
    """
    placed = []

    def edit(ops: tuple[Op, ...], site: Site) -> Edited:
        i = next((n for n, op in enumerate(ops) if stem(plain(op.name)) == params.at), None)
        if i is None:
            return Edited(ops)
        placed.append(site)
        rows, beside = tokens_of(ops), ops[i]
        flops = params.flops + round(params.flops_per_token * rows)
        attrs = CustomAttrs(
            flops + flops % 2,
            params.vector_ops + round(params.vector_ops_per_token * rows),
            params.read_bytes + round(params.read_bytes_per_token * rows),
            params.write_bytes + round(params.write_bytes_per_token * rows),
            params.placement,
        )
        x = tuple(t for t in beside.inputs if t.role is Role.ACTIVATION)[:1]
        name = prefix_of(beside) + params.name
        if params.replace:
            return Edited(
                (*ops[:i], Op(name, OpKind.CUSTOM, beside.role, beside.inputs, beside.outputs, attrs), *ops[i + 1 :])
            )
        if params.side == "after":
            x = tuple(t for t in beside.outputs if t.role is Role.ACTIVATION)[:1]
            i += 1
        out = Tensor(f"{params.name}_out", x[0].shape, x[0].format, Role.ACTIVATION) if x else None
        added = Op(name, OpKind.CUSTOM, "custom", x, (out,) if out else (), attrs)
        return Edited((*ops[:i], added, *ops[i:]))

    result = edit_layers(trace, params.where, edit)
    if not placed:
        known = sorted({stem(plain(op.name)) for p in trace.passes for b in p.blocks for op in b.ops})
        raise ConfigError(f"is {params.at!r}, which no selected layer has; there are {', '.join(known)}", key="at")
    return result
