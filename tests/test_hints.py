"""What methods ask of a machine: refused where it is required and missing, an energy factor where a unit has one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sim.energy import energy_rows
from sim.engine import simulate
from sim.errors import ConfigError
from sim.hints import check_hints, honoured, mac_energy, told
from sim.kinds import load_hardware
from tests.machines import SMALL
from workloads.single import gemm
from workloads.trace import Hint, Trace


def asking(*hints: Hint) -> Trace:
    """A trace of one small product with hints."""
    return Trace("m", 1, (gemm(16, 64, 64, "bf16"),), ("some-method",), (), hints)


def test_a_required_engine_that_is_not_there_is_named() -> None:
    machine = load_hardware("npu-hbm2", SMALL)
    with pytest.raises(ConfigError, match=r"some-method needs .* 'pim' \(row_buffers 2\).*it is: systolic"):
        check_hints(machine, asking(Hint("engine", (("kind", "pim"), ("row_buffers", 2)), required=True)))
    check_hints(machine, asking(Hint("engine", (("kind", "pim"),)), Hint("dvfs", (("clock", 0.8),))))


def test_machines_say_what_they_are() -> None:
    assert load_hardware("npu-hbm2").abilities == {"systolic"}
    assert load_hardware("s4-antoum").abilities == {"systolic", "sparse", "nm"}
    assert "fpga" in load_hardware("sat-vcu1525").abilities


def test_a_cheaper_multiplier_lowers_the_energy_of_its_format_only() -> None:
    machine = load_hardware("npu-hbm2", SMALL)

    class Work:
        name, scenario, source = "w", None, None

        def trace(self) -> Trace:
            return asking(Hint("mac", (("energy", 0.5), ("format", "bf16")), required=True))

    report = simulate(machine, Work())
    plain = {r.subcomponent: r.energy_j for r in energy_rows(machine, report.passes)}
    cheap = {r.subcomponent: r.energy_j for r in report.energy_rows}
    assert cheap["mac bf16"] == pytest.approx(plain["mac bf16"] / 2)
    assert {k: v for k, v in cheap.items() if k != "mac bf16"} == {k: v for k, v in plain.items() if k != "mac bf16"}
    assert sum(report.operator_columns["energy_j"]) == pytest.approx(sum(r.energy_j for r in report.energy_rows))
    assert mac_energy((*report.hints, *report.hints)) == {"bf16": 0.25}


def test_the_summary_tells_what_was_passed_over() -> None:
    machine = load_hardware("npu-hbm2", SMALL)
    hints = (Hint("engine", (("kind", "systolic"),)), Hint("overlap", (("sub_batches", 2),)))
    assert [row["honoured"] for row in told(machine, hints)] == [True, False]
    assert not honoured(machine, replace(hints[0], settings=(("kind", "stream"),)))
