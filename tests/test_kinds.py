"""Kinds of machine: each has a schema and an engine, and an unknown one is refused with the file and the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from sim.errors import ConfigError
from sim.kinds import KINDS, engine_for, hardware_schema, load_hardware, schema_of
from sim.machine import Machine


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_names_a_schema_that_states_it(kind: str) -> None:
    schema = schema_of(kind)
    assert issubclass(schema, Machine)
    assert schema.model_fields["kind"].default == kind


def test_a_machine_without_kind_is_an_npu_and_gets_its_engine() -> None:
    machine = load_hardware("npu-hbm2")
    assert machine.kind == "npu"
    assert type(engine_for(machine)).__name__ == "Engine"


def test_an_unknown_kind_is_named_with_file_and_nearest(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("base: npu-hbm2\nkind: npus\n")
    with pytest.raises(ConfigError, match=r"m\.yaml:2.*kind.*'npus', nearest is 'npu'"):
        load_hardware(file)


def test_the_json_schema_covers_every_kind() -> None:
    text = str(hardware_schema())
    assert all(f"'{kind}'" in text for kind in KINDS)
