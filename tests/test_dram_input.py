"""Wrong input of `opcycle unit dram`: exit code 2, one sentence that says what and where, and nothing written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome

Refused = Callable[..., str]


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    path = tmp_path / "good.trace"
    path.write_text("LD 0\nLD 64\nST 0x80 100\n", encoding="ascii")
    return path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("LD 0\n# far\nLD 0x400000000\n", ":3: request 2 has address 0x400000000, but a channel of ddr4-3200 ends"),
        ("LD 0\nRD 64\n", ":2: 'RD 64' is no request: write LD or ST, a byte address (decimal or 0x hex) and"),
        ("LD 0\n\nld 64\n", ":3: 'ld 64' is no request"),
        ("LD\n", ":1: 'LD' is no request"),
        ("LD 0x40 7 9\n", ":1: 'LD 0x40 7 9' is no request"),
        ("LD -64\n", ":1: address -64 is out of range: 0 to 2^56 - 1"),
        ("LD 64.0\n", ":1: 'LD 64.0' is no request"),
        ("LD 1 -5\n", ":1: clock -5 is out of range: 0 to 2^56 - 1"),
        ("LD " + "9" * 20 + "\n", ":1: address 99999999999999999999 is out of range: 0 to 2^56 - 1"),
        ("LD 0\n" + "x y z " * 1000 + "\n", ":2: 'x y z x y z "),
        ("LD 0\n\x00\x00\n", ":2: "),
        ("", ": holds no request"),
        ("# nothing\n\n   \n", ": holds no request"),
    ],
)  # fmt: skip
def test_traces(refused: Refused, tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.trace"
    path.write_text(text, encoding="ascii")
    said = refused("unit", "dram", "ddr4-3200", path, "--json", "-o", tmp_path / "out")
    assert said.startswith(f"{path}{says}")
    assert len(said) < len(str(path)) + 250
    assert not (tmp_path / "out").exists()


def test_a_binary_file_and_no_file(refused: Refused, tmp_path: Path) -> None:
    path = tmp_path / "binary"
    path.write_bytes(b"LD 0\n\x7fELF\xff\xfe")
    assert refused("unit", "dram", "ddr4-3200", path) == f"{path}: is not UTF-8 text (byte 9)"
    assert refused("unit", "dram", "ddr4-3200", tmp_path).startswith(f"{tmp_path}: is a folder")
    assert refused("unit", "dram", "ddr4-3200", tmp_path / "none") == f"{tmp_path / 'none'}: no such file"


@pytest.mark.parametrize("number", ["0", "-1", "many", "1.5"])
def test_in_flight(refused: Refused, trace: Path, number: str) -> None:
    assert "--in-flight" in refused("unit", "dram", "ddr4-3200", trace, "--in-flight", number)


def test_more_in_flight_than_requests_is_no_limit(opcycle: Callable[..., Outcome], trace: Path) -> None:
    assert opcycle("unit", "dram", "ddr4-3200", trace, "--in-flight", 10**15, "--json").code == 0


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("quue=32", "quue: unknown key 'quue', nearest is 'queue'; allowed: "),
        ("polcy=frfcfs", "polcy: unknown key 'polcy', nearest is 'policy'; allowed: "),
        ("controler.cap=4", "controler.cap: unknown key 'controler', nearest is 'controller'"),
        ("controller.capp=4", "controller.capp: unknown key 'capp' in controller, nearest is 'cap'"),
        ("timings.tRFX=4", "timings.tRFX: unknown timing 'tRFX', nearest is 'tR"),
        ("timings.CL=-1", "timings.CL: is -1, but must be at least 0"),
        ("timings.CL=fast", 'timings.CL: is "fast", but must be a whole number'),
        ("policy=frfcf", "controller.policy: unknown value 'frfcf', nearest is 'frfcfs'; allowed: "),
        ("queue=0", "controller.read_queue: is 0, but must be greater than 0"),
        ("queue=many", 'controller.read_queue: is "many", but must be a whole number'),
        ("refresh=sometimes", "refresh: unknown value 'sometimes'"),
        ("mapping=ro:16,ra:1,ba:2,co:7,bg:1,ch:c", "mapping: bg has 1 bits, but bank_groups needs 2"),
        ("mapping=ro:16,ra:1,ba:2,co:7,bq:2,ch:c", "mapping: unknown field 'bq'"),
        ("queue", "--set 'queue' must be written key=value"),
    ],
)
def test_settings(refused: Refused, trace: Path, setting: str, says: str) -> None:
    assert says in refused("unit", "dram", "ddr4-3200", trace, "--set", setting)


def test_channels(refused: Refused, trace: Path) -> None:
    four_bits = "mapping=ro:14,ba:2,bg:2,co:5,ch:4"
    said = refused("unit", "dram", "hbm2-pc-matched", trace, "--channels", 8, "--set", four_bits)
    assert said == "memory hbm2-pc-matched: mapping: has 4 channel bits, so 16 channels, not 8"
    none = "mapping=ro:16,ra:1,ba:2,co:7,bg:2"
    assert "so 1 channels, not 2" in refused("unit", "dram", "ddr4-3200", trace, "--channels", 2, "--set", none)
    for number in (0, -3, 10**9):
        assert "--channels" in refused("unit", "dram", "ddr4-3200", trace, "--channels", number)


def test_window_and_folder(refused: Refused, trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "there is no -o" in refused("unit", "dram", "ddr4-3200", trace, "--window", "1 us")
    assert "--window '5' lacks its unit" in refused("unit", "dram", "ddr4-3200", trace, "-o", out, "--window", "5")
    assert "--window '0 ns' is zero" in refused("unit", "dram", "ddr4-3200", trace, "-o", out, "--window", "0 ns")
    assert refused("unit", "dram", "ddr4-3200", trace, "-o", trace) == f"{trace}: is a file, but a result is a folder"
    assert not out.exists()


def test_names(refused: Refused, trace: Path) -> None:
    assert refused("unit", "dram", "ddr4-320", trace).startswith("unknown memory 'ddr4-320', nearest is 'ddr4-3200'")
    assert "no such option '--chanels', nearest is '--channels'" in refused(
        "unit", "dram", "ddr4-3200", trace, "--chanels", 2
    )
