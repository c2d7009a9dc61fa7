"""Lowers one block of the Trace to a Template: hands each operator, in order, to the module for its kind."""

from __future__ import annotations

from fractions import Fraction

from sim.capacity import without_tier
from sim.config import ConfigError
from sim.lower import attention, matmul
from sim.lower.builder import Space, Template, Unit, Work
from sim.lower.compute import Bits, plain, unit_format, whole
from sim.lower.homes import Home, groups
from sim.lower.in_memory import (
    append_in_memory,
    append_last,
    attention_in_memory,
    in_memory,
    multiply_in_memory,
    part_number,
    product_in_memory,
)
from sim.lower.moves import Operand, lower_collective, lower_custom, lower_move, lower_scatter, lower_vector
from sim.lower.scope import Context, Scope, accumulator_bytes, where, width
from sim.lower.transfer import lower_transfer
from sim.lower.zeros import describe, in_op, predict, usable
from sim.tiers import DEVICE
from workloads.trace import (
    AttentionAttrs,
    Block,
    CollectiveAttrs,
    CustomAttrs,
    ElementwiseAttrs,
    MatmulAttrs,
    MoveAttrs,
    Op,
    OpKind,
    ReduceAttrs,
    Role,
    Tensor,
    TransferAttrs,
)

# Knuth's multiplicative hash: which rows of a table are looked up is data; a fixed spread stands for it.
_SPREAD = 2654435761


def lower_block(block: Block, context: Context) -> Template:
    """Lower the operators of `block` once; `link` repeats it. Raises ConfigError for work that the machine has no unit
    for.
    """
    scope = Scope(block, context)
    scope.builder.template.shared_weights = block.weights_shared
    serial = context.machine.operators == "serial"
    ends: tuple[int, ...] = ()
    ended: dict[int, tuple[int, ...]] = {}
    for group in groups(scope.ops, scope.carried, context.machine.riding):
        scope.builder.current_op = group.ops[0]
        part = part_number(scope.ops[group.ops[0]])
        scope.gate = ended.get(part, (scope.first,)) if serial else ()
        try:
            ends = _lower(scope, group.ops)
            if serial:
                ended[part] = (scope.builder.sync(dict.fromkeys((*ends, *scope.gate))),)
        except MemoryError as error:
            raise ConfigError(
                f"operator {scope.ops[group.ops[0]].name} finds no room on chip: {error}; a larger scratchpad or a "
                "smaller activation_share would help",
                key="scratchpad.capacity",
            ) from None
    handed_on = [task for name in sorted(scope.carried) for task in scope.homes[name].ready]
    handed_on += [task for tasks in ended.values() for task in tasks]
    handed_on += append_last(scope)
    last = scope.builder.sync(dict.fromkeys((*ends, *handed_on)))
    return scope.builder.finish(last)


def _lower(scope: Scope, numbers: tuple[int, ...]) -> tuple[int, ...]:
    op = scope.ops[numbers[0]]
    if op.kind is OpKind.TRANSFER:
        return _transfer(scope, op)
    for tensor in (t for i in numbers for o in (scope.ops[i],) for t in (*o.inputs, *o.outputs)):
        if tensor.tier != DEVICE:
            raise ConfigError(
                f"operator {op.name} works on {tensor.name}, which lives in tier {tensor.tier!r}; move it to or from "
                "the device with a transfer",
                key=f"{scope.block_name}.{op.name}",
            )
    if op.kind is OpKind.MATMUL:
        return multiply_in_memory(scope, op) if product_in_memory(scope, op) else _matmul(scope, numbers)
    if op.kind is OpKind.ATTENTION:
        return attention_in_memory(scope, op) if in_memory(scope, op) else _attention(scope, op)
    if op.kind in (OpKind.REDUCE, OpKind.ELEMENTWISE):
        return _vector(scope, op)
    if op.kind in (OpKind.GATHER, OpKind.SCATTER):
        return _move(scope, numbers[0], op)
    if op.kind is OpKind.CUSTOM:
        return _custom(scope, op)
    return _collective(scope, op)


def _collective(scope: Scope, op: Op) -> tuple[int, ...]:
    attrs = op.attrs
    assert isinstance(attrs, CollectiveAttrs)
    targets = [(t, scope.target(t)) for t in op.outputs]
    if attrs.group == 1:
        return scope.settle(targets, [scope.builder.sync(scope.waits(op.inputs))])
    links = scope.machine.links
    if links is None:
        raise ConfigError(
            f"operator {op.name} is a {op.kind} over {attrs.group} devices, but {scope.machine.name} is one device and "
            "has no links to others (links)",
            key=f"{scope.block_name}.{op.name}",
        )
    start = scope.start((op,)) or (scope.first,)
    ends = lower_collective(
        scope.builder, links, attrs, [scope.operand(t) for t in op.inputs],
        [Operand(home, t.bytes) for t, home in targets], start,
    )  # fmt: skip
    scope.builder.decide(collective=f"{attrs.algorithm_kind} over {attrs.group}, {links.topology}")
    return scope.settle(targets, ends)


def _transfer(scope: Scope, op: Op) -> tuple[int, ...]:
    """Over a link from or to the device; it begins with its block, when what it moves is there."""
    b, attrs = scope.builder, op.attrs
    assert isinstance(attrs, TransferAttrs)
    key = f"{scope.block_name}.{op.name}"
    ends = (attrs.source_tier, attrs.target_tier)
    away = [name for name in ends if name != DEVICE]
    if len(away) != 1:
        raise ConfigError(
            f"operator {op.name} moves from {ends[0]!r} to {ends[1]!r}, but every link ends at {DEVICE!r}", key=key
        )
    name = away[0]
    if name not in scope.machine.tiers:
        raise ConfigError(
            f"operator {op.name} moves from {ends[0]!r} to {ends[1]!r}, but {without_tier(scope.machine)}", key=key
        )
    for side, tensors in zip(ends, (op.inputs, op.outputs), strict=True):
        for tensor in tensors:
            if tensor.tier != side:
                raise ConfigError(
                    f"operator {op.name} moves from {ends[0]!r} to {ends[1]!r}, but {tensor.name} is in "
                    f"{tensor.tier!r}",
                    key=key,
                )
    into = attrs.target_tier == DEVICE
    homes = [_arrival(scope, t) for t in op.outputs] if into else [scope.home(t) for t in op.inputs]
    start = [scope.first]
    for tensor in op.inputs:
        known = tensor.tier == DEVICE or tensor.name in scope.homes
        start.extend(scope.home(tensor).ready if known else ())
    start = [b.sync(dict.fromkeys(start), launch)] if (launch := int(scope.machine.software.launch)) else start
    here = op.outputs if into else op.inputs
    pieces: list[tuple[Space, int, int]] | None = [
        (home.space, home.offset, t.bytes) for home, t in zip(homes, here, strict=True) if not home.on_chip
    ]
    if homes and all(home.on_chip for home in homes):
        pieces = None
    elif pieces is not None and sum(size for _, _, size in pieces) != attrs.bytes:
        pieces = [(Space.ACTIVATION, b.region(Space.ACTIVATION, attrs.bytes), attrs.bytes)]
    tasks = lower_transfer(b, name, into, attrs.bytes, pieces, dict.fromkeys(start))
    b.decide(link=name, direction="read" if into else "write")
    if not into:
        # A tensor that keeps its name stays where it is as well; what has a new one can be fetched back.
        kept = {t.name for t in op.inputs}
        away_only = [t for t in op.outputs if t.name not in kept and t.role is not Role.KV]
        return scope.settle([(t, Home(False)) for t in away_only], tasks)
    done = scope.settle(list(zip(op.outputs, homes, strict=True)), tasks)
    for tensor in op.outputs:
        if tensor.role in (Role.WEIGHT, Role.KV):
            scope.arrived[tensor.name] = done
    return done


def _arrival(scope: Scope, tensor: Tensor) -> Home:
    """Where a tensor from a further memory goes: weights to a place that the next layer uses again."""
    if tensor.role is Role.WEIGHT:
        return Home(False, Space.ACTIVATION, scope.builder.region(Space.ACTIVATION, tensor.bytes))
    return scope.target(tensor)


def _matmul(scope: Scope, numbers: tuple[int, ...]) -> tuple[int, ...]:
    b = scope.builder
    ops = [scope.ops[i] for i in numbers]
    op, attrs = ops[0], ops[0].attrs
    assert isinstance(attrs, MatmulAttrs)
    left, right, *rest = op.inputs
    output = ops[-1].outputs[0]
    # Rotary changes some columns of the result in place: the other columns stay in the same buffer.
    partial = len(ops[-1].outputs) > 1 or ops[-1].outputs[0].elements < _columns_out(ops) * _rows(attrs)
    held = ops[-2].outputs[0] if partial else output
    target = scope.target(held)
    appends = [] if target.on_chip else _appends(scope, held, ops[-1].outputs if partial else ())
    epilogues, extras = _epilogues(scope, ops, attrs)
    left_home = scope.home(left)
    resident = right.role is Role.WEIGHT and right.name not in scope.arrived
    right_home = Home(False, Space.WEIGHT, ready=scope.gate) if resident else scope.home(right)
    product = matmul.Product(
        groups=attrs.group_m or (attrs.m,) * attrs.batch,
        n=attrs.n,
        k=attrs.k,
        number_format=unit_format(scope.machine, left.format, right.format),
        size=Bits(
            width(scope.machine, left), width(scope.machine, right), width(scope.machine, op.outputs[0]),
            accumulator_bytes(scope.machine),
        ),
        left_in_dram=not left_home.on_chip,
        right_in_dram=not right_home.on_chip,
        result_in_dram=not target.on_chip,
        right_shared=right.elements < attrs.batch * attrs.k * attrs.n,
        epilogues=epilogues,
        zeros=usable(scope.machine, left, right),
    )  # fmt: skip
    with in_op(op, product):
        tiling = scope.context.mapper.tiling(product)
    right_at = right_home.offset
    if right.role is Role.WEIGHT:
        right_at = b.region(right_home.space, matmul.layout_bytes(product, tiling, scope.context.align_bytes))
    places = matmul.Places(
        left_home.offset, left_home.space, left_home.ready, right_at, right_home.space, right_home.ready,
        _result_pieces(scope, held, target, appends), extras, predict(scope, product, op, scope.start(ops)),
    )  # fmt: skip
    ends = b.attempt(matmul.lower_product, product, tiling, places, numbers)
    describe(b, op, product, tiling)
    ends.extend(_small(scope, tensor) for tensor in rest)
    b.decide(
        tile=str(tiling), dataflow=scope.machine.array.dataflow.value, preload=scope.machine.array.preload.value,
        input=where(left_home), output=where(target),
    )  # fmt: skip
    for number in numbers[1:]:
        b.current_op = number
        b.decide(fused=f"with {op.name}")
    produced = [held, *ops[-1].outputs] if partial else [output]
    done = scope.settle([(tensor, target) for tensor in produced], ends)
    for number in appends:
        scope.written_in_place.add(number)
        for tensor in scope.ops[number].outputs:
            scope.appended[tensor.name] = done
    return done


def _rows(attrs: MatmulAttrs) -> int:
    return attrs.m if attrs.group_m else attrs.m * attrs.batch


def _columns_out(ops: list[Op]) -> int:
    """Columns of the result after the operators that halve it."""
    assert isinstance(ops[0].attrs, MatmulAttrs)
    rows, columns = _rows(ops[0].attrs), ops[0].attrs.n
    for op in ops[1:]:
        assert isinstance(op.attrs, ElementwiseAttrs)
        if len(op.outputs) == 1 and op.attrs.function != "rotary":
            columns = op.outputs[0].elements // rows
    return columns


def _epilogues(
    scope: Scope, ops: list[Op], attrs: MatmulAttrs
) -> tuple[tuple[matmul.Epilogue, ...], tuple[tuple[Space, int, tuple[int, ...]], ...]]:
    """The vector operators that ride on a matmul, and the places of their further operands."""
    rows, columns = _rows(attrs), attrs.n
    result = ops[0].outputs[0].name
    found, extras = [], []
    for op in ops[1:]:
        assert isinstance(op.attrs, ElementwiseAttrs)
        out = columns if op.attrs.function == "rotary" else op.outputs[0].elements // rows
        operands = []
        for tensor in op.inputs:
            if tensor.name == result:
                continue
            home = scope.home(tensor)
            operands.append((not home.on_chip, plain(Fraction(scope.stored(tensor), rows * out))))
            extras.append((home.space, home.offset, home.ready))
        found.append(
            matmul.Epilogue(op.attrs.function, columns, out, op.attrs.elements, op.vector_ops, tuple(operands))
        )
        columns, result = out, op.outputs[0].name
    return tuple(found), tuple(extras)


def _appends(scope: Scope, held: Tensor, parts: tuple[Tensor, ...]) -> list[int]:
    """The KV appends whose sources all lie in the result `held` (or its `parts`): its own stores write them."""
    names = {held.name, *(t.name for t in parts)}
    numbers = {number for name in names for number in scope.readers.get(name, ())}
    return sorted(
        number
        for number in numbers
        if scope.ops[number].kind is OpKind.SCATTER
        and not in_memory(scope, scope.ops[number])
        and getattr(scope.ops[number].attrs, "table", "") == "kv_append"
        and all(t.name in names for t in scope.ops[number].inputs)
    )


def _result_pieces(scope: Scope, held: Tensor, target: Home, appends: list[int]) -> tuple[tuple[Space, int, int], ...]:
    """Where the stores of a result go: its own region, and for keys and values the KV cache."""
    if target.on_chip:
        return ()
    cache = [piece for number in appends for piece in scope.append_pieces(scope.ops[number])]
    rest = max(scope.stored(held) - sum(piece[2] for piece in cache), 0)
    return ((target.space, target.offset, rest), *cache)


def _small(scope: Scope, tensor: Tensor) -> int:
    """Load a bias or the like whole; returns the load."""
    home = scope.home(tensor)
    held = scope.builder.fetch(0, home.space, home.offset, tensor.bytes, home.ready)
    scope.builder.release(0, held.buffer, held.ready)
    return held.ready[0]


def _attention(scope: Scope, op: Op) -> tuple[int, ...]:
    b, attrs = scope.builder, op.attrs
    assert isinstance(attrs, AttentionAttrs)
    query, keys = op.inputs[0], op.inputs[1]
    values, rest = (keys, op.inputs[2:]) if attrs.latent else (op.inputs[2], op.inputs[3:])
    output = op.outputs[0]
    query_home, key_home, value_home, target = (*(scope.home(t) for t in (query, keys, values)), scope.target(output))
    query_bytes = query.bytes + sum(t.bytes for t in rest if t.role is Role.ACTIVATION)
    key_bytes = keys.bytes + sum(t.bytes for t in rest if t.role is Role.KV)
    cached = keys.role is Role.KV
    value_bytes = (
        Fraction(0) if attrs.latent else Fraction(values.bytes, attrs.keys * attrs.kv_heads * attrs.v_head_dim)
    )
    job = attention.Job(
        attrs=attrs,
        number_format=unit_format(scope.machine, query.format, keys.format),
        size=attention.Sizes(
            query=Fraction(query_bytes, attrs.tokens * attrs.heads * attrs.head_dim),
            key=Fraction(key_bytes, attrs.keys * attrs.kv_heads * attrs.head_dim),
            value=value_bytes,
            score=width(scope.machine, query),
            result=width(scope.machine, output),
            accumulator=accumulator_bytes(scope.machine),
        ),
        query_in_dram=not query_home.on_chip,
        keys_in_dram=not key_home.on_chip,
        fresh_in_dram=not (cached and query_home.on_chip),
        result_in_dram=not target.on_chip,
    )
    if job.number_format != query.format:
        b.template.formats[b.current_op] = job.number_format
    start = scope.start((op,))
    places = attention.Places(
        query=(query_home.space, query_home.offset, query_home.ready),
        keys=_key_place(scope, keys, key_home),
        values=_key_place(scope, values, value_home),
        result=(target.space, target.offset),
        start=start,
    )
    split = scope.context.mapper.split(job) if scope.machine.attention == "flash" else None
    if split is None:
        ends = _unfused(scope, job, places, op)
        b.decide(attention="unfused", input=where(query_home), output=where(target))
    else:
        ends = b.attempt(attention.lower_flash, job, split, places)
        b.decide(attention="flash", tile=str(split), input=where(query_home), output=where(target))
    ends.extend(_small(scope, tensor) for tensor in rest if tensor.role is Role.WEIGHT)
    return scope.settle([(output, target)], ends)


def _key_place(scope: Scope, tensor: Tensor, home: Home) -> attention.KeyPlace:
    if tensor.role is Role.KV:
        arrived = (*scope.arrived.get(tensor.name, ()), *scope.gate)
        return attention.KeyPlace(home.space, home.offset, arrived, scope.appended.get(tensor.name, ()))
    return attention.KeyPlace(home.space, home.offset, home.ready, ())


def _unfused(scope: Scope, job: attention.Job, places: attention.Places, op: Op) -> list[int]:
    """Scores to DRAM, softmax from and to DRAM, then the weighted values; one request length after another."""
    b, a, size = scope.builder, job.attrs, job.size
    mapper = scope.context.mapper
    ends: list[int] = []
    query_at, result_at = places.query[1], places.result[1]
    key_at, value_at = places.keys.offset, places.values.offset
    start = places.start
    ops_left, pairs_left = op.vector_ops, sum(s.count * s.query * s.length for s in a.requests)
    for span in a.requests:
        keys = sum(length for _, length in attention.key_ranges(a.mask, span))
        rows = span.query * (a.heads // a.kv_heads)
        members = span.count * a.kv_heads
        score_bytes = whole(members * rows * keys * size.score)
        scratch = b.region(Space.ACTIVATION, score_bytes)
        scores = matmul.Product(
            (rows,) * members, keys, a.head_dim, job.number_format,
            Bits(size.query, size.key, size.score, size.accumulator), job.query_in_dram, job.keys_in_dram, True, False,
        )  # fmt: skip
        first = b.attempt(
            matmul.lower_product, scores, mapper.tiling(scores),
            matmul.Places(
                query_at, places.query[0], places.query[2], key_at, places.keys.space,
                (*places.keys.ready, *places.keys.appended), ((Space.ACTIVATION, scratch, score_bytes),), (), start,
            ), (b.current_op,),
        )  # fmt: skip
        joined = (b.sync(first),)
        operand = Operand(Home(False, Space.ACTIVATION, scratch, joined), score_bytes)
        pairs = span.count * span.query * span.length
        share = ops_left * pairs // pairs_left
        ops_left, pairs_left = ops_left - share, pairs_left - pairs
        steps = lower_vector(b, "softmax", members * rows, keys, share, [operand], [operand], joined)
        joined = (b.sync(steps),)
        out = whole(members * rows * a.v_head_dim * size.result)
        weighted = matmul.Product(
            (rows,) * members, a.v_head_dim, keys, job.number_format,
            Bits(size.score, size.key if a.latent else size.value, size.result, size.accumulator), True,
            job.keys_in_dram, job.result_in_dram, False,
        )  # fmt: skip
        pieces = ((places.result[0], result_at, out),) if job.result_in_dram else ()
        last = b.attempt(
            matmul.lower_product, weighted, mapper.tiling(weighted),
            matmul.Places(
                scratch, Space.ACTIVATION, joined, value_at, places.values.space,
                (*places.values.ready, *places.values.appended), pieces, (), joined,
            ), (b.current_op,),
        )  # fmt: skip
        start = (b.sync(last),)
        ends.extend(start)
        positions = span.count * span.length * a.kv_heads
        query_at += whole(members * rows * a.head_dim * size.query)
        key_at += whole(positions * a.head_dim * size.key)
        value_at += whole(positions * a.v_head_dim * size.value)
        result_at += out
    return ends


def _vector(scope: Scope, op: Op) -> tuple[int, ...]:
    attrs = op.attrs
    targets = [scope.target(t) for t in op.outputs]
    if isinstance(attrs, ReduceAttrs):
        function, rows, columns, keep = attrs.function, attrs.rows, attrs.columns, attrs.keep
    else:
        assert isinstance(attrs, ElementwiseAttrs)
        function, rows, columns, keep = attrs.function, 1, attrs.elements, 1
    ends = lower_vector(
        scope.builder, function, rows, columns, op.vector_ops, [scope.operand(t) for t in op.inputs],
        [Operand(home, scope.stored(t)) for home, t in zip(targets, op.outputs, strict=True)], scope.start((op,)), keep,
    )  # fmt: skip
    scope.builder.decide(output=where(targets[0]))
    return scope.settle(list(zip(op.outputs, targets, strict=True)), ends)


def _move(scope: Scope, number: int, op: Op) -> tuple[int, ...]:
    attrs, b = op.attrs, scope.builder
    assert isinstance(attrs, MoveAttrs)
    if attrs.table == "kv_append" and in_memory(scope, op):
        return append_in_memory(scope, number)
    if attrs.table == "kv_append":
        if number in scope.written_in_place:
            b.decide(fused="written in place by its producer")
            return scope.appended[op.outputs[0].name]
        sources = [scope.operand(t) for t in op.inputs if t.role is Role.ACTIVATION]
        ends = lower_scatter(b, scope.append_pieces(op), sources, scope.start((op,)))
        return scope.settle([(t, scope.target(t)) for t in op.outputs], ends)
    output = op.outputs[0]
    target = scope.target(output)
    rows = None
    for table in op.inputs:
        if table.role is Role.WEIGHT:
            base = scope.home(table).offset
            count = max(table.resident_bytes // attrs.row_bytes, 1)
            rows = [(Space.WEIGHT, base + i * _SPREAD % count * attrs.row_bytes) for i in range(attrs.rows)]
    inputs = [scope.operand(t) for t in op.inputs if t.role is not Role.WEIGHT]
    ends = lower_move(
        b, rows, attrs.row_bytes, op.vector_ops, inputs, Operand(target, output.bytes), scope.start((op,))
    )
    b.decide(output=where(target))
    return scope.settle([(output, target)], ends)


def _custom(scope: Scope, op: Op) -> tuple[int, ...]:
    attrs, machine = op.attrs, scope.machine
    assert isinstance(attrs, CustomAttrs)
    array, vector = machine.array, machine.vector
    cycles: dict[Unit, int] = {}
    if attrs.flops:
        cycles[Unit.ARRAY] = whole(
            Fraction(attrs.macs) / (array.rows * array.columns * array.count * min(array.formats.values()))
        )
    if attrs.vector_ops:
        cycles[Unit.VECTOR] = -(-attrs.vector_ops // (vector.lanes * vector.count))
    offset = scope.builder.region(Space.ACTIVATION, max(attrs.read_bytes, attrs.write_bytes))
    ends = lower_custom(
        scope.builder, cycles, Work(macs=attrs.macs, vector_ops=attrs.vector_ops), attrs.read_bytes, attrs.write_bytes,
        (Space.ACTIVATION, offset), scope.start((op,)),
    )  # fmt: skip
    return scope.settle([(t, scope.target(t)) for t in op.outputs], ends)
