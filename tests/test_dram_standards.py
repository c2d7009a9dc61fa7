"""Memories as data: what ships, what follows from it, how ranges spread over channels, and what is refused."""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.dram import renewed, stream_share
from sim.config import ConfigError, parse_yaml
from sim.expression import evaluate
from sim.kernels.dram_tables import bank_and_row
from sim.standards import Memory, compile_memory, load_memory, split_range

GIB = 1 << 30


@pytest.mark.parametrize(
    ("name", "peak_gb", "capacity", "period_ps"),
    [
        ("ddr4-3200", 25.6, 16 * GIB, Fraction(625)),
        ("ddr4-3200-matched", 25.6, 8 * GIB, Fraction(625)),
        ("hbm2", 16, GIB // 4, Fraction(1000)),
        ("hbm2-pc-matched", 16, GIB // 4, Fraction(1000)),
        ("hbm2-neupims", 32, GIB, Fraction(1000)),
        ("hbm-onnxim", 38.4, GIB // 2, Fraction(2500, 3)),
        ("ddr5-4800", 19.2, 8 * GIB, Fraction(1250, 3)),
        ("ddr5-6400", 25.6, 8 * GIB, Fraction(625, 2)),
        ("hbm2e", 28.8, GIB, Fraction(5000, 9)),
        ("hbm3", 25.6, GIB // 2, Fraction(625, 2)),
        ("hbm3e", 36.8, GIB, Fraction(5000, 23)),
        ("lpddr4x", 8.532, 2 * GIB, Fraction(10**6, 2133)),
        ("lpddr5-6400", 12.8, GIB, Fraction(1250)),
        ("gddr6", 28, GIB // 2, Fraction(4000, 7)),
    ],
)
def test_what_ships(name: str, peak_gb: float, capacity: int, period_ps: Fraction) -> None:
    memory = load_memory(name)
    assert memory.channel_peak_bytes_per_s == pytest.approx(peak_gb * 1e9)
    assert memory.capacity_bytes_per_channel == capacity
    assert memory.period == period_ps
    assert memory.timing_ps("tRC") == float(memory.timings["tRC"] * period_ps)


@given(
    channels=st.sampled_from([1, 2, 5, 8, 80]),
    start=st.integers(0, 3000),
    n=st.integers(0, 3000),
    mapping=st.sampled_from(["ro:14,ba:2,co:5,bg:2,ch:c", "ro:14,ba:2,ch:c,co:5,bg:2", "ch:c,ro:14,ba:2,co:5,bg:2"]),
)
def test_split_range(channels: int, start: int, n: int, mapping: str) -> None:
    memory = load_memory("hbm2", {"mapping": mapping})
    block = 1 << memory.channel_position
    local: list[list[int]] = [[] for _ in range(channels)]
    for burst in range(start, start + n):
        whole, rest = divmod(burst, block * channels)
        channel, inside = divmod(rest, block)
        local[channel].append(whole * block + inside)
    lo, count = split_range(memory, channels, start, n)
    for c in range(channels):
        assert list(range(int(lo[c]), int(lo[c] + count[c]))) == local[c]
    many_lo, many_count = split_range(memory, channels, np.array([start, 7]), np.array([n, 100]))
    assert many_lo.shape == many_count.shape == (2, channels)
    assert many_lo[0].tolist() == lo.tolist()
    assert many_count.sum(axis=1).tolist() == [n, 100]


@pytest.mark.parametrize(
    "mapping",
    ["ro:14,ba:2,co:5,bg:2,ch:c", "ba:2,ro:4,co:3,bg:1,ro:10,bg:1,co:2,ch:c", "ro:4,bg:2,ro:10,ba:2,co:5,ch:c"],
)
def test_decoding(mapping: str) -> None:
    memory = load_memory("hbm2", {"mapping": mapping})
    t = compile_memory(memory)
    seen = set()
    for burst in range(0, memory.bursts_per_channel, 977):
        values = dict.fromkeys(("ro", "ba", "bg", "co"), 0)
        filled = dict(values)
        rest = burst
        for name, bits in reversed(memory.fields):
            if bits is not None:
                values[name] |= (rest & ((1 << bits) - 1)) << filled[name]
                filled[name] += bits
                rest >>= bits
        assert bank_and_row(t, burst) == (4 * values["bg"] + values["ba"], values["ro"])
        seen.add(tuple(values.values()))
    assert len(seen) == -(-memory.bursts_per_channel // 977)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"timings.tRFC": -1}, "timings.tRFC"),
        ({"timings.tREFI": 100}, "tREFI must be more than twice tRFC"),
        ({"organisation.banks": 3}, "banks is 3, but must be a power of two"),
        ({"mapping": "ro:14,ba:2,co:5,bg:1,ch:c"}, "mapping: bg has 1 bits, but bank_groups needs 2"),
        ({"mapping": "ro:14,ba:2,co:5,bx:2,ch:c"}, "unknown field 'bx'"),
        ({"mapping": "ro:14,ba:2,co,bg:2"}, "must be a field and its bits"),
        ({"policy": "fifo"}, "frfcfs"),
        ({"queue": 0}, "controller.read_queue"),
        ({"controller.drain_low": 60}, "drain_low 60 must be below drain_high"),
        ({"rules": [["bank", "ACT", "RD", "tRCD"]]}, "unknown timing 'tRCD', nearest is 'tRC'"),
        ({"rules": [["bank", "ACT", "RE", 3]]}, "unknown command 'RE'"),
        ({"rules": [["bunk", "ACT", "RD", 3]]}, "unknown level 'bunk', nearest is 'bank'"),
        ({"rules": [["bank", "ACT", "RD", "CL - 50"]]}, "the gap CL - 50 is -36 ticks, but must not be negative"),
        ({"rules": [["bank", "PREA", "ACT", 3]]}, "PREA concerns a whole rank"),
        ({"rules": [["bank", "ACT", "RD"]]}, "rules.0"),
        ({"rules": [["bank_group", "REFsb", "ACT", 3]]}, "REFsb concerns every bank group"),
        ({"colour": 3}, "unknown key 'colour'"),
        ({"rules": [["bank", "ACT", "RD", 3]]}, "refresh: per_bank needs the command REFpb, for which there are no"),
        ({"rules": [["bank", "ACT", "RD", 3]], "refresh": "staggered"}, "refresh: staggered needs the command REF, "),
        ({"refresh": "same_bank"}, "refresh: same_bank needs the command REFsb, for which there are no rules"),
        ({"refresh": "each"}, "same_bank"),
        ({"refresh": "per_bank", "policy": "dramsim3"}, "refresh is per_bank, which policy dramsim3 never does"),
        ({"timings.tREFIpb": 244}, "tREFIpb is 244, so that 16 refreshes of a rank's banks take 3904 ticks, more than"),
        ({"timings.tREFIpb": 8}, "tREFIpb is 8, but the refreshes of a rank cannot come that fast"),
        ({"currents.IDD5PB": None}, "refresh: per_bank needs currents.IDD5PB"),
        ({"clock_ticks": 3}, "clock_ticks is 3, but must be a power of two"),
        ({"clock_ticks": 4}, "WR to RD is 15 ticks, but column commands start with a clock, of 4 ticks"),
        ({"command_ticks": {"ACT": 0}}, "command_ticks.ACT is 0, but a command takes at least one tick"),
        ({"command_ticks": {"ACTIVATE": 1}}, "unknown command 'ACTIVATE'"),
        ({"currents.IDD4R": "20 mA"}, "IDD4R is below IDD3N"),
        ({"currents.IDD5PB": "5 mA"}, "IDD5PB is below IDD2N"),
        ({"currents.IDD0": "20 mA"}, "an activation would yield energy"),
        ({"controller.power_down": "deep"}, "none"),
    ],
)
def test_refusals(overrides: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        load_memory("hbm2", overrides)


def test_a_power_down_needs_its_current() -> None:
    for state, current in (("fast", "IDD2P"), ("self_refresh", "IDD6")):
        assert load_memory("hbm2", {"controller.power_down": state}).controller.power_down == state
        with pytest.raises(ConfigError, match=f"controller.power_down: {state} needs currents.{current}"):
            load_memory("hbm2", {"controller.power_down": state, f"currents.{current}": None})


def test_ranks_that_sleep_need_their_timings() -> None:
    choice = {"controller.power_down": "fast", "controller.power_down_after": 100}
    assert load_memory("hbm2", choice).exit_timing == "tXP"
    for changes, words in (
        ({**choice, "controller.power_down": "none"}, "power_down_after says when ranks power down, but power_down is"),
        ({**choice, "policy": "ramulator"}, "power_down_after is what policy ramulator does not know"),
        ({**choice, "timings": {"tXP": None}}, "timings"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_memory("hbm2", changes)


def test_refreshes_that_a_standard_lacks() -> None:
    for name, refresh, command in (
        ("ddr4-3200", "per_bank", "REFpb"), ("ddr4-3200", "same_bank", "REFsb"), ("ddr5-4800", "per_bank", "REFpb"),
        ("hbm3", "same_bank", "REFsb"), ("lpddr5-6400", "same_bank", "REFsb"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=f"{name}.yaml: refresh: {refresh} needs the command {command}"):
            load_memory(name, {"refresh": refresh})
    rules = [["bank", "REFpb", "ACT", 300]]
    with pytest.raises(ConfigError, match="refresh: per_bank needs timings.tRFCpb"):
        load_memory("ddr4-3200", {"refresh": "per_bank", "rules": rules})


def test_channel_field() -> None:
    fixed = load_memory("hbm2", {"mapping": "ro:14,ba:2,co:5,bg:2,ch:3"})
    fixed.check_channels(8)
    with pytest.raises(ConfigError, match="3 channel bits, so 8 channels, not 16"):
        fixed.check_channels(16)


def test_queue_sets_both_queues_and_the_marks() -> None:
    c = load_memory("hbm2", {"queue": "10"}).controller
    assert (c.read_queue, c.write_queue, c.drain_high, c.drain_low) == (10, 10, 8, 2)
    assert load_memory("hbm2", {"queue": 1}).controller.drain_high == 1


def test_base(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("schema: opcycle/memory/1\nname: mine\nbase: hbm2\ntimings: {tRP: 15}\n", encoding="ascii")
    mine, base = load_memory(path), load_memory("hbm2")
    assert mine.timings == {**base.timings, "tRP": 15}
    assert mine.model_copy(update={"name": base.name, "timings": base.timings}) == base
    path.write_text(f"schema: opcycle/memory/1\nname: mine\nbase: {path}\n", encoding="ascii")
    with pytest.raises(ConfigError, match="is based on itself"):
        load_memory(path)


DOCUMENT = (Path(__file__).parent.parent / "docs" / "memory.md").read_text(encoding="utf-8")


def test_the_file_that_the_docs_show(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```yaml\n(schema: .*?)```", DOCUMENT, re.DOTALL)
    path = tmp_path / "slow.yaml"
    path.write_text(shown, encoding="ascii")
    slow, base = load_memory(path), load_memory("hbm3")
    assert slow.timings == {**base.timings, "tRFC": 1760}
    assert slow.controller.power_down == "fast"


def test_the_rules_that_the_docs_show() -> None:
    (shown,) = re.findall(r"```yaml\n(rules:.*?)```", DOCUMENT, re.DOTALL)
    rules = parse_yaml(shown).data["rules"]
    rows = load_memory("ddr4-3200").rule_rows
    assert {row[:3] for row in load_memory("ddr4-3200", {"rules": rules, "refresh": "none"}).rule_rows} <= {
        row[:3] for row in rows
    }
    both = load_memory("lpddr5-6400", {"command_ticks": "{ACT: 2, RD: 2, WR: 2}"})
    assert both.command_ticks == {"ACT": 2, "RD": 2, "WR": 2}


def test_the_memories_that_the_docs_list() -> None:
    table = DOCUMENT.partition("<!-- memories -->")[2].partition("<!-- end memories -->")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if "`" in line]
    assert len(rows) == 10
    for name, _, peak, capacity in rows:
        memory = load_memory(name.strip("`"))
        assert peak == f"{memory.channel_peak_bytes_per_s / 1e9:.4g}"
        assert capacity == f"{memory.capacity_bytes_per_channel / GIB:g}"
    shipped = {path.stem for path in (Path(__file__).parent.parent / "hwconfigs" / "memories").glob("*.yaml")}
    assert {name for name in shipped if f"`{name}`" not in DOCUMENT} == set()


def test_the_streams_that_the_docs_list() -> None:
    assert renewed(DOCUMENT) == DOCUMENT, "python -m bench.dram --write renews the table"


@pytest.mark.parametrize("is_write", [0, 1])
def test_streams_reach_95_per_cent_with_default_settings(is_write: int) -> None:
    ours = ("ddr4-3200", "ddr5-4800", "ddr5-6400", "hbm2", "hbm2e", "hbm3", "hbm3e", "lpddr4x", "lpddr5-6400", "gddr6")
    shares = {name: stream_share(load_memory(name), is_write) for name in ours}
    assert {name: share for name, share in shares.items() if share < 0.95} == {}


def test_memory_is_frozen() -> None:
    memory = load_memory("hbm2")
    with pytest.raises(ValueError, match="frozen"):
        memory.name = "other"
    assert isinstance(memory, Memory)


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("a + 2 * b", 12), ("max(1, a - b)", 1), ("-1 + a", None), ("a / b", None)]
)
def test_expressions(text: str, value: int | None) -> None:
    names = {"a": 2, "b": 5}
    if value is None:
        with pytest.raises(ValueError, match="allowed"):
            evaluate(text, names)
    else:
        assert evaluate(text, names) == value
