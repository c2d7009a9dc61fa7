"""One device's part of a model: heads, feed-forward width and vocabulary cut over a tensor-parallel group, layers over
a pipeline, experts over groups that have requests of their own.

The part is a Model again, so everything that builds operators works on it as on a whole one; what the devices of a
group have to tell each other is added where the layer is built.
"""

from __future__ import annotations

from collections.abc import Sequence

from sim.config import ConfigError
from workloads.models import Model
from workloads.schema import Schema, Size


class Parallel(Schema):
    """Over how many devices a model is cut: each layer (tensor), the list of layers (pipeline), and the experts
    (expert), beside which each device has all else and its share of the requests.
    """

    tensor: Size = 1
    pipeline: Size = 1
    expert: Size = 1

    @property
    def devices(self) -> int:
        """Devices in all."""
        return self.tensor * self.pipeline * self.expert


WHOLE = Parallel()


def shard(model: Model, parallel: Parallel) -> Model:
    """The part of `model` on one device (of a pipeline, on one of its devices). Raises ConfigError for a degree that
    does not divide what it cuts.

    Key/value heads fewer than devices are held by several of them; the vocabulary is filled up to a multiple, as
    Megatron-LM does.
    """
    degree = parallel.tensor
    attention = model.attention
    if attention.heads % degree:
        raise ConfigError(
            f"is {degree}, but {model.name} has {attention.heads} heads, which that does not divide",
            key="parallel.tensor",
        )
    kv_heads = attention.kv_heads
    if kv_heads % degree and degree % kv_heads:
        raise ConfigError(
            f"is {degree}, but {model.name} has {kv_heads} key/value heads: one must divide the other",
            key="parallel.tensor",
        )
    widths = {"ffn.hidden": model.ffn.hidden if model.ffn else 0}
    if model.moe:
        widths |= {"moe.hidden": model.moe.hidden, "moe.shared_hidden": model.moe.shared_hidden}
    for key, width in widths.items():
        if width % degree:
            raise ConfigError(
                f"is {degree}, but {model.name} has {key} {width}, which that does not divide", key="parallel.tensor"
            )
    if model.layers % parallel.pipeline:
        raise ConfigError(
            f"is {parallel.pipeline}, but {model.name} has {model.layers} layers, which that does not divide",
            key="parallel.pipeline",
        )
    if parallel.pipeline > 1 and len(set(model.layer_kinds())) > 1:
        raise ConfigError(
            f"is {parallel.pipeline}, but the layers of {model.name} are not all alike, and neither would be its parts",
            key="parallel.pipeline",
        )
    if parallel.expert > 1 and (model.moe is None or model.moe.experts % parallel.expert):
        experts = "no experts" if model.moe is None else f"{model.moe.experts} experts, which that does not divide"
        raise ConfigError(f"is {parallel.expert}, but {model.name} has {experts}", key="parallel.expert")
    heads = {"heads": attention.heads // degree, "kv_heads": max(kv_heads // degree, 1)}
    parts = {
        "attention": attention.model_copy(update=heads),
        "layers": model.layers // parallel.pipeline,
        "ffn": model.ffn and model.ffn.model_copy(update={"hidden": model.ffn.hidden // degree}),
        "moe": model.moe
        and model.moe.model_copy(
            update={"hidden": model.moe.hidden // degree, "shared_hidden": model.moe.shared_hidden // degree}
        ),
        "vocab": model.vocab and -(-model.vocab // degree),
    }
    return model.model_copy(update=parts)


def micro_batches(lengths: Sequence[int], stages: int) -> list[tuple[int, ...]]:
    """The requests dealt out over the stages of a pipeline, so that each has some of all lengths.

    Each stage works on one of these parts while the others are elsewhere. Raises ConfigError for fewer requests than
    stages.
    """
    if len(lengths) < stages:
        raise ConfigError(
            f"is {stages}, but a batch of {len(lengths)} keeps no more than {len(lengths)} stages busy",
            key="parallel.pipeline",
        )
    return deal(lengths, stages)


def shares(lengths: Sequence[int], devices: int) -> list[tuple[int, ...]]:
    """The requests of each of the `devices` that share the experts, the one with most first. Raises ConfigError for
    fewer requests than devices.
    """
    if len(lengths) < devices:
        raise ConfigError(
            f"is {devices}, but a batch of {len(lengths)} leaves some of the devices without a request",
            key="parallel.expert",
        )
    return deal(lengths, devices)


def deal(lengths: Sequence[int], parts: int) -> list[tuple[int, ...]]:
    """The requests dealt out by length; the first part is the longest."""
    ordered = sorted(lengths, reverse=True) if parts > 1 else list(lengths)
    return [tuple(ordered[i::parts]) for i in range(parts)]
