"""Whole passes with attention in memory: exact savings, books, traffic, published cycles, what is refused."""

from __future__ import annotations

import csv
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from machines import SMALL

import sim.execute
from bench._measure import equal
from sim.engine import Engine, simulate
from sim.errors import ConfigError
from sim.hardware import Hardware
from sim.kernels.dram_tables import LOGGED
from sim.kinds import load_hardware
from sim.passes import PassResult
from sim.pim.check import check_pim_log
from sim.standards import new_state
from workloads.build import Builder, decode_passes, prefill_passes
from workloads.models import Model
from workloads.scenario import make_workload
from workloads.trace import Pass

DATA = Path(__file__).parent / "data" / "pim" / "systems.csv"
LENGTHS = (70, 3, 130, 64, 31, 200, 0, 96)


def model(layers: int = 3, hidden: int = 64, heads: int = 4, **changes: Any) -> Model:
    data: dict[str, Any] = {
        "schema": "opcycle/model/1", "name": "t", "layers": layers, "hidden": hidden, "vocab": 96, "max_position": 4096,
        "position": "none", "attention": {"heads": heads, "kv_heads": heads, "head_dim": hidden // heads},
        "ffn": {"hidden": 4 * hidden, "activation": "gelu"}, "norm": {"kind": "layernorm"},
    }  # fmt: skip
    return Model.model_validate({**data, **changes})


def decode(lengths: tuple[int, ...] = LENGTHS, **changes: Any) -> Pass:
    return decode_passes(Builder(model(**changes)), lengths)[0]


@cache
def machine(name: str = "neupims", **settings: Any) -> Hardware:
    """A small NPU with four channels of the named machine's memory; `pim_interleave` stands for `pim.interleave`."""
    asked = {key.replace("_", ".", 1): value for key, value in settings.items()}
    found = load_hardware(name, {**SMALL, "pim.interleave": "never", **asked})
    assert isinstance(found, Hardware)
    return found


def run(work: Pass, name: str = "neupims", **settings: Any) -> PassResult:
    return Engine(machine(name, **settings)).run(work)


@pytest.mark.parametrize("interleave", ["never", "always"])
@pytest.mark.parametrize("lengths", [LENGTHS, (64,) * 8])
def test_savings_change_nothing(interleave: str, lengths: tuple[int, ...]) -> None:
    work = decode(lengths)
    results = [
        Engine(machine(pim_interleave=interleave), symmetry=bool(symmetry), reuse=bool(reuse), steady=bool(steady)).run(
            work
        )
        for symmetry, reuse, steady in ((1, 1, 1), (0, 1, 1), (1, 0, 1), (1, 1, 0))
    ]
    assert all(equal(results[0], other) for other in results[1:])
    assert sum(results[0].schedule.memory.pim_busy_ps) > 0


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("neupims", {"pim.interleave": "never"}),
        ("neupims", {"pim.interleave": "always"}),
        ("neupims-blocked", {}),
        ("neupims-artifact", {"pim.interleave": "always"}),
        ("aim-gddr6", {}),
        ("attacc-like", {"pim.operators": "[attention]"}),
    ],
)
def test_no_command_breaks_a_rule(name: str, settings: dict[str, str]) -> None:
    states = []

    def logging(*arguments: Any, **keys: Any) -> Any:
        states.append(new_state(*arguments, **keys, log=60_000))
        return states[-1]

    asked = load_hardware(name, {**SMALL, **settings})
    assert isinstance(asked, Hardware)
    with mock.patch.object(sim.execute, "new_state", logging):
        result = Engine(asked).run(decode(layers=2))
    logs = [s.log[c, : s.scalar[c, LOGGED]] for s in states for c in range(len(s.log))]
    memory = asked.dram
    assert max(map(len, logs)) < 60_000
    assert sum(map(len, logs)) > 1000
    assert [check_pim_log(memory, log).count for log in logs] == [0] * len(logs)
    assert result.schedule.memory.commands["G_ACT"] > 0


def test_operators_in_memory_carry_the_energy_of_its_units() -> None:
    report = simulate(load_hardware("neupims", {"pim.interleave": "never"}), workload())
    rows = report.energy[report.energy["component"] == "dram"].set_index("subcomponent")["energy_j"]
    own = rows[[name for name in rows.index if name.startswith("pim ")]].sum()
    table = report.operators.set_index("operator")
    share = table["dram_bytes"] / table["dram_bytes"].sum()
    alone = table["energy_dram_j"] - share * (rows.sum() - own)
    assert alone["attention"] == pytest.approx(own)
    assert alone.drop("attention").abs().max() < 1e-9 * own


def test_a_bus_carries_data_for_as_long_as_its_bytes_take() -> None:
    """AttAcc's channels have two pseudo-channels with a data bus each."""
    summary = simulate(load_hardware("attacc-like"), workload()).summary
    assert summary["utilization"]["memory"] == pytest.approx(summary["memory_bandwidth_utilization"], rel=1e-3)
    assert summary["utilization"]["memory"] > 0.01


def workload(**keys: Any) -> Any:
    base = {"schema": "opcycle/workload/1", "name": "t", "model": "gpt3-7b", "phase": "decode", "batch": 16}
    return make_workload({**base, "context": 64, "parallel": {"tensor": 32}, **keys})


@pytest.mark.parametrize("interleave", ["never", "always"])
def test_the_books_close_and_say_what_ran_where(interleave: str) -> None:
    report = simulate(load_hardware("neupims", {"pim.interleave": interleave}), workload())
    summary, table = report.summary, report.operators
    over = summary["overheads"]
    assert over["executed_macs"] == summary["flops"] // 2 + over["padding_macs"]
    assert min(over.values()) >= 0
    assert summary["flops"] == workload().trace().flops
    assert summary["energy_j"] == pytest.approx(report.energy["energy_j"].sum())
    assert table["energy_j"].sum() == pytest.approx(summary["energy_j"])
    in_memory = table[table["decision_unit"] == "memory"]
    assert {name.partition("#")[0] for name in in_memory["operator"]} == {"attention", "kv_append"}
    assert set(in_memory[in_memory["kind"] == "attention"]["bound"]) == {"pim"}
    assert summary["pim"]["interleaved"] == (interleave == "always")
    assert {"GWRITE", "G_ACT", "PIM_PRE", "COMPS_READRES"} <= set(summary["memory"]["commands"])
    assert 0 < summary["pim"]["mac_utilization"] < summary["utilization"]["pim"] < 1
    names = set(report.energy["subcomponent"])
    assert {"pim load", "pim activate", "pim compute", "pim readout"} <= names
    assert "pim" in set(report.timeline["unit"])


def test_a_step_is_no_shorter_than_the_busiest_channel_s_units() -> None:
    result = run(decode())
    assert max(result.schedule.memory.pim_busy_ps) < result.schedule.makespan_ps
    # The same jobs take as long when nothing overlaps them: the units work through them in either schedule.
    other = run(decode(), pim_interleave="always")
    assert result.schedule.memory.commands["COMP"] == other.schedule.memory.commands["COMP"]


def appended(lengths: tuple[int, ...], append: str) -> int:
    """Bursts that appending in each layer takes, by itself."""
    counts = []
    for how in (append, "none"):
        memory = run(decode(lengths), pim_append=how).schedule.memory
        counts.append(memory.bytes_written + memory.bytes_merged)
    return (counts[0] - counts[1]) // 64


def test_new_values_are_written_to_a_row_of_each_element() -> None:
    """Four heads of 16: a key is 128 bytes in one row; a value has 64 elements, each in a burst of its own."""
    assert appended((64, 40), "rows") == 3 * 2 * (2 + 64)


def test_collected_values_go_to_their_rows_a_head_at_a_time() -> None:
    """Four heads of 16 take turns, 8 positions apart, each with 32 positions. Beside two bursts of the key and two of
    the value in order of positions:

    After 63 the first head writes positions 32 to 63, a burst in each of 16 rows. Of its 63 positions the units work on
    32, 40, 48 and 56 for the heads, so that one head's probabilities take a burst less. After 64 no head's turn comes.
    After 71 it is the second head's, with positions 40 to 71 in two bursts of each row; 64, 40, 48 and 56 positions
    are two bursts of probabilities each, where 71 would be three.
    """
    assert appended((63,), "collected") == 3 * (2 + 2 + 16 - 1)
    assert appended((64,), "collected") == 3 * (2 + 2)
    assert appended((71,), "collected") == 3 * (2 + 2 + 32 - 4)


def test_a_shared_port_passes_an_instruction_a_cycle() -> None:
    alone = run(decode((64,) * 8), "neupims-blocked")
    shared = run(decode((64,) * 8), "neupims-blocked", pim_issue_port="shared")
    port = next(i for i, unit in enumerate(shared.units) if unit.name == "pim.port")
    busy = (shared.schedule.release_ps - shared.schedule.start_ps)[shared.tasks.unit == port].sum()
    c = shared.schedule.memory.commands
    # Instructions of the blocked mode: loads, a header a tile, activations, steps, read-outs.
    assert busy // 1000 == c["GWRITE"] + c["HEADER"] + c["G_ACT"] + c["COMP"] + c["READRES"]
    assert shared.schedule.makespan_ps > alone.schedule.makespan_ps


def test_auto_takes_the_faster() -> None:
    for lengths, layers in ((LENGTHS, 3), ((900,) * 16, 4)):
        ends = {
            how: run(decode(lengths, layers=layers), pim_interleave=how).schedule.makespan_ps
            for how in ("never", "always", "auto")
        }
        assert ends["auto"] == min(ends["never"], ends["always"])


def test_two_row_buffers_are_no_slower_than_one() -> None:
    work = decode((300,) * 16, hidden=256, heads=2)
    blocked, dual = run(work, "neupims-blocked"), run(work)
    assert dual.schedule.makespan_ps < blocked.schedule.makespan_ps


def test_attention_that_memory_cannot_do_stays_on_the_npu() -> None:
    window = {"heads": 4, "kv_heads": 4, "head_dim": 16, "window": {"size": 32, "pattern": ("local", "global")}}
    result = run(decode(layers=2, attention=window))
    units = {f"{op.block}.{op.name}": op.decisions["unit"] for op in result.ops if op.kind == "attention"}
    assert units == {"local.attention": "npu: mask window", "global.attention": "memory"}
    prefill = prefill_passes(Builder(model()), (40, 40))[0]
    assert {op.decisions.get("unit") for op in run(prefill).ops if op.kind == "attention"} == {
        "npu: several positions of a request at once"
    }
    assert "COMP" not in run(prefill).schedule.memory.commands


def test_products_with_weights_may_run_in_memory_too() -> None:
    both = "[attention, fc_decode]"
    work = decode((64,))
    result = run(work, pim_operators=both)
    assert {op.name for op in result.ops if op.decisions.get("unit") == "memory" and op.flops} == {
        "qkv", "attention", "out_proj", "up", "down",
    }  # fmt: skip
    on_npu = run(work)
    weights = 3 * 2 * 12 * 64 * 64
    assert on_npu.schedule.memory.bytes_read - result.schedule.memory.bytes_read >= weights
    macs = np.bincount(result.tasks.op, result.tasks.pim_macs, len(result.ops))
    assert all(macs[i] >= op.flops // 2 for i, op in enumerate(result.ops) if op.decisions.get("unit") == "memory")
    with pytest.raises(ConfigError, match="fc_decode goes with attention"):
        machine(pim_operators="[fc_decode]")


def test_aim_computes_attention_and_products_with_weights() -> None:
    summary = simulate(load_hardware("aim-gddr6"), workload(batch=2)).summary
    assert summary["pim"]["operators"] == ["attention", "down", "out_proj", "qkv", "up"]
    alone = simulate(load_hardware("aim-gddr6", {"pim.operators": "[attention]"}), workload(batch=2)).summary
    assert summary["memory"]["bytes_read"] < alone["memory"]["bytes_read"] / 4


def test_results_leave_units_that_do_not_read_them_out() -> None:
    """AttAcc's tiles have no read-out; a move brings a burst of 32 bytes from each of two pseudo-channels."""
    settings = {"memory.channels": 4, "pim.operators": "[attention]", "memory.settings": {}}
    result = Engine(load_hardware("attacc-like", settings)).run(decode((70,) * 4))
    c = result.schedule.memory.commands
    # A layer of a request: two rows of keys of 4 heads, one of values for each head; every bank has a result.
    banks, layers = 64, 3
    read_out = layers * 4 * (2 * 4 + 4) * banks * 2 // 64
    assert c["READRES"] == read_out


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pim.interleave": "always", "memory.standard": "hbm2-neupims-pim-blocked"}, "mode blocked"),
        ({"memory.standard": "hbm2-neupims"}, "hbm2-neupims has none"),
        ({"memory.standard": "hbm-pim", "memory.settings": {}}, "hbm-pim keep results side by side"),
    ],
)
def test_machines_that_contradict_themselves(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_hardware("neupims", settings)


def test_passes_that_do_not_fit() -> None:
    rows = {"memory.settings.organisation.rows": 64, "memory.settings.mapping": "ro:3,ra:1,ro:3,ba:2,co:4,bg:2,ch:c"}
    small = load_hardware("neupims", {**SMALL, "pim.interleave": "never", **rows})
    with pytest.raises(ConfigError, match=r"memory.channels: the KV cache of 8 requests needs \d+ rows"):
        Engine(small).run(decode((2000,) * 8, layers=8))
    with pytest.raises(ConfigError, match="pim.interleave: is always, but the batch of block layers, 1 in all"):
        run(decode((64,)), pim_interleave="always")
    with pytest.raises(ConfigError, match="has no attention that runs in memory to overlap with"):
        run(prefill_passes(Builder(model()), (40, 40))[0], pim_interleave="always")
    wide = decode(attention={"heads": 1, "kv_heads": 1, "head_dim": 1024})
    with pytest.raises(ConfigError, match="a head of 1024 elements does not fit in the 512 of a bank"):
        run(wide)


def one_layer(batch: int, length: int, layers: int = 1) -> Pass:
    work = decode((length,) * batch, layers=layers, hidden=1024, heads=8)
    return replace(work, blocks=tuple(b for b in work.blocks if b.name == "layers"))


def layer_cycles(system: str, batch: int, length: int) -> float:
    """Cycles of a layer by the rules of NeuPIMs' artifact; with two sub-batches those that a further layer takes."""
    settings = {"pim.interleave": "always" if system == "interleaved" else "never"}
    if system.startswith("blocked"):
        settings["memory.standard"] = "hbm2-neupims-pim-blocked"
    if system == "blocked_shared_port":
        settings["pim.issue_port"] = "shared"
    engine = Engine(load_hardware("neupims-artifact", settings))
    if system != "interleaved":
        return engine.run(one_layer(batch, length)).schedule.makespan_ps / 1000
    ends = [engine.run(one_layer(batch, length, n)).schedule.makespan_ps for n in (2, 3)]
    return (ends[1] - ends[0]) / 1000


@pytest.mark.parametrize("row", list(csv.DictReader(DATA.open())), ids=lambda row: f"{row['system']}-{row['length']}")
def test_a_layer_takes_what_it_takes_in_neupims(row: dict[str, str]) -> None:
    cycles = layer_cycles(row["system"], int(row["batch"]), int(row["length"]))
    assert cycles == pytest.approx(int(row["per_layer_cycles"]), rel=0.1)
