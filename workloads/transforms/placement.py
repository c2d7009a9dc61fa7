"""Where tensors and work live: `memory` (offload, streaming, sharding, snapshots), `schedule` and `serve`.

What the Trace can say it says as operators (transfers, collectives, smaller shards); what only a machine can do (order
of a pipeline, streams side by side, fused kernels, arrivals) becomes a hint.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from pydantic import Field, model_validator

from sim.config import ConfigError
from workloads.schema import Schema, Size
from workloads.trace import (
    Block,
    CollectiveAttrs,
    CustomAttrs,
    Hint,
    Op,
    OpKind,
    Pass,
    Role,
    Tensor,
    Trace,
    TransferAttrs,
)
from workloads.transforms.graph import Edited, Site, edit_layers, edit_ops, map_passes
from workloads.transforms.rates import Density, portion
from workloads.transforms.training import saved_tensors
from workloads.transforms.where import Where

_MEMORY = {
    "weights": {"tier"},
    "activations": {"tier", "share"},
    "shard": {"devices", "stage"},
    "snapshot": {"tier", "interval", "share"},
}


class Memory(Schema):
    """weights: weights of the selected layers live in `tier` and are fetched for each pass · activations: of a training
    step, the `share` of saved activations goes to `tier` in the forward pass and comes back for the backward pass ·
    shard: data-parallel `devices` hold optimizer states (stage 1), gradients (2) and weights (3) in parts, gathered and
    reduced when needed · snapshot: every `interval` steps the weights and states are copied to `tier`.
    """

    what: Literal["weights", "activations", "shard", "snapshot"]
    tier: str | None = None
    share: Density = 1.0
    devices: Size | None = None
    stage: Literal[1, 2, 3] = 3
    interval: Size | None = None
    where: Where = Where(model="all")

    @model_validator(mode="after")
    def _fits(self) -> Memory:
        extra = sorted(self.model_fields_set - _MEMORY[self.what] - {"what", "where"})
        if extra:
            raise ValueError(
                f"{self.what} takes no {extra[0]}; keys that apply: {', '.join(sorted(_MEMORY[self.what]))}"
            )
        needed = {"weights": "tier", "activations": "tier", "shard": "devices", "snapshot": "interval"}[self.what]
        if getattr(self, needed) is None:
            raise ValueError(f"{self.what} needs {needed}")
        return self


def memory(trace: Trace, params: Memory) -> Trace:
    """Closed form: weights adds a transfer of each weight's bytes to each pass; activations two of share x saved bytes;
    shard divides what it shards by `devices` and adds gathers and reductions of whole weights and gradients.
    """
    if params.what == "weights":
        return _stream_weights(trace, params)
    if params.what == "activations":
        return _offload_activations(trace, params)
    if params.what == "shard":
        assert params.devices is not None
        return trace if params.devices == 1 else _shard(trace, params, params.devices)
    assert params.interval is not None
    settings: tuple[tuple[str, str | int | float], ...] = (
        ("interval", params.interval),
        ("tier", params.tier or "host"),
        ("bytes", portion(trace.weight_bytes, params.share)),
    )
    return replace(trace, hints=(*trace.hints, Hint("snapshot", settings)))


def _stream_weights(trace: Trace, params: Memory) -> Trace:
    assert params.tier is not None
    tier = params.tier

    def edit(ops: tuple[Op, ...], site: Site) -> Edited:
        found: list[Op] = []
        here: set[str] = set()
        for op in ops:
            for tensor in op.inputs if params.where.takes_op(op) else ():
                if (
                    tensor.role is Role.WEIGHT
                    and tensor.tier == "device"
                    and tensor.name not in here
                    and len(tensor.shape) > 1
                ):
                    here.add(tensor.name)
                    away = replace(tensor, tier=tier)
                    name = f"{op.name}_fetch" + (f"_{len(here)}" if tensor is not op.inputs[1] else "")
                    move = TransferAttrs(tier, "device", tensor.bytes)
                    found.append(Op(name, OpKind.TRANSFER, op.role, (away,), (tensor,), move))
            found.append(op)
        # Transfers first: a machine begins them with the layer, in this order.
        return Edited(
            (*(o for o in found if o.kind is OpKind.TRANSFER), *(o for o in found if o.kind is not OpKind.TRANSFER))
        )

    return edit_layers(trace, params.where, edit)


def _offload_activations(trace: Trace, params: Memory) -> Trace:
    assert params.tier is not None
    forward = next((p for p in trace.passes if p.phase == "forward"), None)
    backward = next((p for p in trace.passes if p.phase == "backward"), None)
    if forward is None or backward is None:
        raise ConfigError("needs a training step with a backward pass (primitive train)", key="memory.what")
    saved: dict[str, tuple[Tensor, ...]] = {}
    blocks: list[Block] = []
    for block in backward.blocks:
        kept = saved_tensors(block)
        saved[block.name.removesuffix(".backward")] = kept
        fetches = []
        for tensor in kept:
            here = _share_of(tensor, params.share)
            away = replace(here, tier=params.tier, name=f"{params.tier}.{here.name}")
            fetch = TransferAttrs(params.tier, "device", away.bytes)
            fetches.append(
                Op(f"{tensor.name.replace('.', '_')}_fetch", OpKind.TRANSFER, "memory", (away,), (here,), fetch)
            )
        blocks.append(replace(block, ops=(*fetches, *block.ops)) if block.first_layer is not None else block)
    front: list[Block] = []
    for block in forward.blocks:
        stores = []
        made = {t.name: t for op in block.ops for t in op.outputs}
        for tensor in saved.get(block.name, ()):
            source = made.get(tensor.name.removeprefix("saved.").partition(".")[0])
            if source is not None and block.first_layer is not None:
                part = _share_of(replace(source, shape=tensor.shape, whole=None), params.share)
                attrs = TransferAttrs("device", params.tier, part.bytes)
                stores.append(
                    Op(
                        f"{tensor.name.replace('.', '_')}_store",
                        OpKind.TRANSFER,
                        "memory",
                        (part,),
                        (replace(part, tier=params.tier, name=f"{params.tier}.{tensor.name}"),),
                        attrs,
                    )
                )
        front.append(replace(block, ops=(*block.ops, *stores)))
    passes = tuple(
        replace(p, blocks=tuple(front)) if p is forward else replace(p, blocks=tuple(blocks)) if p is backward else p
        for p in trace.passes
    )
    return replace(trace, passes=passes)


def _share_of(tensor: Tensor, share: float) -> Tensor:
    return tensor if share == 1 else replace(tensor, shape=(max(portion(tensor.elements, share), 1),), whole=None)


def _shard(trace: Trace, params: Memory, devices: int) -> Trace:
    """Each device updates its part; weights are gathered before use and gradients reduced to the device that keeps
    them.
    """
    if not any(p.phase == "update" for p in trace.passes):
        raise ConfigError("needs a training step (primitive train), whose states are sharded", key="memory.what")

    def gather(block: Block, gradients: bool) -> Block:
        found: list[Op] = []
        for op in block.ops:
            for tensor in op.inputs:
                if tensor.role is Role.WEIGHT and len(tensor.shape) > 1 and params.stage == 3:
                    name = f"{op.name}_gather"
                    if all(o.name != name for o in found):
                        found.append(
                            Op(
                                name,
                                OpKind.COLLECTIVE,
                                "collective",
                                (),
                                (),
                                CollectiveAttrs("all_gather", tensor.bytes, devices),
                            )
                        )
            found.append(op)
            for tensor in op.outputs if gradients else ():
                if tensor.role is Role.GRADIENT:
                    kind = "reduce_scatter" if params.stage >= 2 else "all_reduce"
                    found.append(
                        Op(
                            f"{op.name}_reduce",
                            OpKind.COLLECTIVE,
                            "collective",
                            (tensor,),
                            (),
                            CollectiveAttrs(kind, tensor.bytes, devices),
                        )
                    )
        return replace(block, ops=tuple(found))

    passes: list[Pass] = []
    for p in trace.passes:
        if p.phase == "update":
            passes.append(replace(p, blocks=tuple(_divided(b, devices) for b in p.blocks)))
        else:
            passes.append(replace(p, blocks=tuple(gather(b, p.phase == "backward") for b in p.blocks)))
    return replace(trace, passes=tuple(passes))


def _divided(block: Block, devices: int) -> Block:
    """Updates of a part of the weights."""
    ops = []
    for op in block.ops:
        a = op.attrs
        assert isinstance(a, CustomAttrs), "an update is stated work"
        part = replace(
            a,
            vector_ops=-(-a.vector_ops // devices),
            read_bytes=-(-a.read_bytes // devices),
            write_bytes=-(-a.write_bytes // devices),
        )
        shapes = tuple(replace(t, shape=(*t.shape[:-1], -(-t.shape[-1] // devices))) for t in op.inputs)
        ops.append(replace(op, attrs=part, inputs=shapes))
    return replace(block, ops=tuple(ops))


class Schedule(Schema):
    """collective: after the selected operators their results are combined over `devices` (payload `share` of the bytes)
    · place: the selected passes run on `device`; operators can be placed by a hint only · overlap, fuse, pipeline:
    hints for the machine, with `settings`.
    """

    kind: Literal["collective", "place", "overlap", "fuse", "pipeline"]
    collective: Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv"] = (
        "all_reduce"
    )
    devices: Size | None = None
    device: str | None = None
    share: Density = 1.0
    settings: dict[str, str | int | float] = Field(default_factory=dict)
    required: bool = False
    where: Where = Where(model="all")

    @model_validator(mode="after")
    def _fits(self) -> Schedule:
        if self.kind == "collective" and self.devices is None:
            raise ValueError("a collective needs devices, how many take part")
        if self.kind == "place" and self.device is None:
            raise ValueError("place needs device")
        if self.settings and self.kind in ("collective",):
            raise ValueError("a collective takes no settings")
        return self


def schedule(trace: Trace, params: Schedule) -> Trace:
    """Closed form: a collective adds an operator of share x result bytes after each selected one; hints add no work."""
    if params.kind == "collective":
        assert params.devices is not None
        devices = params.devices

        def edit(op: Op, p: Pass) -> tuple[Op, ...]:
            out = op.outputs[0]
            attrs = CollectiveAttrs(params.collective, portion(out.bytes, params.share), devices)
            return op, Op(f"{op.name}_{params.collective}", OpKind.COLLECTIVE, "collective", (out,), (out,), attrs)

        if params.where.operators is None:
            raise ConfigError("needs where.operators, whose results are combined", key="where.operators")
        return trace if devices == 1 else edit_ops(trace, params.where, edit)
    where = params.where
    settings = tuple(sorted(params.settings.items()))
    if params.kind == "place":
        assert params.device is not None
        if where.operators is None and where.roles is None:
            device = params.device
            return map_passes(trace, where, lambda p: replace(p, device=device))
        settings = (("device", params.device), *settings)
    chosen = " ".join((*(where.operators or ()), *(where.roles or ())))
    if chosen:
        settings = (*settings, ("operators", chosen))
    return replace(trace, hints=(*trace.hints, Hint(params.kind, settings, params.required)))


class Serve(Schema):
    """How requests reach the passes: for a machine that serves (arrivals, sub-batches, pools, a latency target)."""

    settings: dict[str, str | int | float] = Field(min_length=1)
    required: bool = False


def serve(trace: Trace, params: Serve) -> Trace:
    """A hint; the passes stay."""
    return replace(trace, hints=(*trace.hints, Hint("serve", tuple(sorted(params.settings.items())), params.required)))


__all__ = ["Memory", "Schedule", "Serve", "memory", "schedule", "serve"]
