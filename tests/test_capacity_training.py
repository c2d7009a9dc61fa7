"""What a training step keeps in memory: states, gradients and saved activations count against the capacity."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim import load_hardware, simulate
from sim.capacity import training_bytes
from sim.config import ConfigError
from tests.method_cases import DECODER, small
from workloads import load_workload

WEIGHTS = 8 * (64 * (8 + 2 * 4) * 16 + 64 * 8 * 16 + 3 * 64 * 256)
"""Weights of the small decoder's matrices."""


def test_states_by_hand(tmp_path: Path) -> None:
    plain = small(tmp_path, "prefill").trace()
    step = small(tmp_path, "prefill", [{"train": {"optimizer": "adam", "master": "fp32", "gradients": "fp32"}}]).trace()
    assert training_bytes(plain) == (0, 0)
    saved, states = training_bytes(step)
    # Two moments, a master copy and a gradient of four bytes for each weight, norms and embeddings included.
    assert states == 16 * plain.weight_elements
    assert plain.weight_elements > WEIGHTS
    tokens, hidden, layers = 2 * 160, DECODER["hidden"], DECODER["layers"]
    assert saved > layers * tokens * hidden * 2 * 4, "at least four tensors of the width in each layer"


def test_recomputing_and_offloading_keep_less(tmp_path: Path) -> None:
    kept = {
        name: training_bytes(small(tmp_path, "prefill", methods).trace())[0]
        for name, methods in {
            "all": [{"train": {}}],
            "again": [{"train": {"recompute": "layer"}}],
            "half": [{"train": {}}, {"memory": {"what": "activations", "tier": "host", "share": 0.5}}],
            "none": [{"train": {}}, {"memory": {"what": "activations", "tier": "host"}}],
        }.items()
    }
    assert kept["again"] < kept["all"] / 4
    assert kept["none"] < kept["half"] < kept["all"]


def test_a_step_that_does_not_fit_is_refused() -> None:
    h200 = load_hardware("h200")
    assert simulate(h200, load_workload("llama3-8b-prefill", batch=1)).summary["time_s"] > 0
    with pytest.raises(ConfigError, match="GiB of gradients and optimizer states, .* GiB of saved activations"):
        simulate(h200, load_workload("llama3-8b-prefill", batch=4, methods=[{"train": {"optimizer": "adam"}}]))
