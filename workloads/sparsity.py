"""Zeros of a workload: the short form of a scenario (`2:4`, a mapping by role or operator) marks tensors of its trace.

Nothing is removed: work and bytes stay those of dense tensors. What zeros save is the machine's business.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Annotated

from pydantic import AfterValidator, Field

from sim.config import ConfigError, not_among
from workloads.trace import CARRIED, Block, Op, OpKind, Role, Sparsity, Tensor, Trace

FORMS = {
    "weights": "dense, N:M (2:4), balanced:DEGREE[:BLOCK] (balanced:16:64), block:ROWSxCOLUMNS:DENSITY "
    "(block:16x16:0.25) or random:DENSITY (random:0.1)",
    "activations": "dense, N:M (2:4), relu:DENSITY or random:DENSITY (relu:0.1)",
}
UNTOUCHED = ("embed", "head", "router")
"""Roles of operators that a pattern without a mapping leaves dense."""

BALANCED_BLOCK = 64
_DENSITY = r"([0-9]*\.?[0-9]+)"


def parse_sparsity(text: str, operand: str = "weights") -> Sparsity | None:
    """The Sparsity that `text` says for `operand` (`weights` or `activations`), None for dense. Raises ValueError."""
    if text == "dense":
        return None
    if found := re.fullmatch(r"([0-9]+):([0-9]+)", text):
        n, m = int(found[1]), int(found[2])
        if not 0 < n <= m:
            raise ValueError(f"is {text!r}, which keeps {n} of {m}, but N must be at least 1 and at most M")
        return Sparsity("n:m", n / m, n, m) if n < m else None
    if operand == "weights":
        if found := re.fullmatch(r"balanced:([1-9][0-9]*)(?::([1-9][0-9]*))?", text):
            degree = int(found[1])
            block = int(found[2] or max(BALANCED_BLOCK, degree))
            if block % degree:
                raise ValueError(f"is {text!r}, but the degree must divide the block of {block}")
            return Sparsity("n:m", 1 / degree, block // degree, block) if degree > 1 else None
        if found := re.fullmatch(rf"block:([1-9][0-9]*)x([1-9][0-9]*):{_DENSITY}", text):
            return _drawn("block", found[3], text, (int(found[1]), int(found[2])))
    kinds = "random" if operand == "weights" else "random|relu"
    if found := re.fullmatch(rf"(?:{kinds}):{_DENSITY}", text):
        return _drawn("unstructured", found[1], text)
    raise ValueError(f"is {text!r}, but must be {FORMS[operand]}")


def _drawn(kind: str, density: str, text: str, block: tuple[int, int] | None = None) -> Sparsity | None:
    kept = float(density)
    if not 0 < kept <= 1:
        raise ValueError(f"is {text!r}, but the part that is kept must be above 0 and at most 1")
    return Sparsity(kind, kept, block=block) if kept < 1 else None


def _weights(text: str) -> str:
    parse_sparsity(text, "weights")
    return text


def _activations(text: str) -> str:
    parse_sparsity(text, "activations")
    return text


WeightPattern = Annotated[str, AfterValidator(_weights), Field(description=FORMS["weights"])]
ActivationPattern = Annotated[str, AfterValidator(_activations), Field(description=FORMS["activations"])]
Rule = str | Mapping[str, str] | None
"""A pattern for the operators that are meant by default, or patterns by role (`ffn`) or operator (`down`)."""


def mark(trace: Trace, weights: Rule, activations: Rule, seed: int) -> Trace:
    """The trace with zeros in the weights and the activations of its linear layers.

    One pattern goes to all weights but those of embeddings, head and router, and to the inputs of `down`. A mapping
    goes by role or operator, of which the operator comes first. Raises ConfigError for what fits no operator.
    """
    if weights is None and activations is None:
        return trace
    for key, rule in (("sparsity", weights), ("activation_sparsity", activations)):
        _check(trace, key, rule)
    known: dict[int, Block] = {}
    ops: dict[Op, Op] = {}

    def block(old: Block) -> Block:
        if id(old) not in known:
            new = _block(old, weights, activations, seed)
            known[id(old)] = replace(old, ops=tuple(ops.setdefault(op, op) for op in new))
        return known[id(old)]

    passes = tuple(replace(p, blocks=tuple(block(b) for b in p.blocks)) for p in trace.passes)
    return replace(trace, passes=passes)


def _block(block: Block, weights: Rule, activations: Rule, seed: int) -> list[Op]:
    zeros: dict[str, Sparsity] = {}
    for op in block.ops:
        text = _of(op, activations, op.name.rpartition(".")[2].endswith("down") and op.role == "ffn")
        found = parse_sparsity(text, "activations") if text else None
        if not _linear(op) or found is None:
            continue
        x = op.inputs[0]
        if x.name == CARRIED:
            raise ConfigError(
                f"gives zeros to the input of {op.name}, but that is the residual stream, which has none",
                key="activation_sparsity",
            )
        zeros[x.name] = replace(found, seed=seed)

    def tensor(t: Tensor, pattern: Sparsity | None) -> Tensor:
        if t.role is Role.ACTIVATION and t.name in zeros:
            return replace(t, sparsity=zeros[t.name])
        if t.role is Role.WEIGHT and len(t.shape) >= 2 and pattern is not None:
            return replace(t, sparsity=pattern)
        return t

    result = []
    for op in block.ops:
        text = _of(op, weights, op.role not in UNTOUCHED) if _linear(op) else None
        found = parse_sparsity(text, "weights") if text else None
        pattern = replace(found, seed=seed) if found is not None else None
        inputs = tuple(tensor(t, pattern) for t in op.inputs)
        outputs = tuple(tensor(t, None) for t in op.outputs)
        same = inputs == op.inputs and outputs == op.outputs
        result.append(op if same else replace(op, inputs=inputs, outputs=outputs))
    return result


def _linear(op: Op) -> bool:
    return op.kind is OpKind.MATMUL and len(op.inputs) > 1 and op.inputs[1].role is Role.WEIGHT


def _of(op: Op, rule: Rule, default: bool) -> str | None:
    """The pattern that the rule gives to an operator."""
    if rule is None or isinstance(rule, str):
        return rule if default else None
    name = op.name.rpartition(".")[2]
    return next((rule[key] for key in rule if fnmatchcase(name, key)), rule.get(op.role))


def _check(trace: Trace, key: str, rule: Rule) -> None:
    if rule is None or isinstance(rule, str):
        return
    linear = [op for p in trace.passes for b in p.blocks for op in b.ops if _linear(op)]
    names = sorted({op.role for op in linear} | {op.name.rpartition(".")[2] for op in linear})
    for name in rule:
        if not any(fnmatchcase(known, name) for known in names):
            raise ConfigError(not_among("role or operator", name, names, most=40), key=f"{key}.{name}")
