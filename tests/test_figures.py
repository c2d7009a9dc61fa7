"""Pictures: drawn from stored files alone, the same bytes each time, with what they must show and nothing cut off."""

from __future__ import annotations

from pathlib import Path

import pytest
from report_cases import decoder, one_pass, op, report

from analysis.compare import compare_rows, compare_table
from analysis.figures import FIGURES, draw_all
from analysis.roofline import points
from analysis.style import ROLES, role_colours, scaled, short
from analysis.tables import read_result, summaries
from analysis.timeline import close_up, unit_tracks
from sim.errors import ConfigError


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return report(decoder(layers=3, tiles=12)).write(tmp_path_factory.mktemp("figures") / "run", pictures=False)


def test_pictures_are_drawn_again_from_the_folder_alone_to_the_byte(folder: Path):
    first = {p.name: p.read_bytes() for p in draw_all(folder)}
    assert set(first) == {"roofline.png", "timeline.png", "energy.png"}
    assert {p.name: p.read_bytes() for p in draw_all(folder)} == first
    assert all(data.startswith(b"\x89PNG") for data in first.values())


def test_vector_formats_are_drawn_when_asked_for(folder: Path, tmp_path: Path):
    names = {p.name for p in draw_all(folder, formats=("svg", "pdf"))}
    assert names == {f"{name}.{ending}" for name in FIGURES for ending in ("svg", "pdf")}
    svg = (folder / "roofline.svg").read_bytes()
    draw_all(folder, formats=("svg",))
    assert (folder / "roofline.svg").read_bytes() == svg


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_leaves_the_page(folder: Path, name: str):
    drawn = FIGURES[name](read_result(folder))
    drawn.canvas.draw()
    ink = drawn.get_tightbbox(drawn.canvas.get_renderer())
    wide, tall = drawn.get_size_inches()
    assert ink.x0 >= 0 and ink.y0 >= 0 and ink.x1 <= wide and ink.y1 <= tall


def test_every_operator_is_a_point_under_its_roof(folder: Path):
    result = read_result(folder)
    found = points(result)
    assert {p.name for p in found} == {row["operator"] for row in result.operators}
    assert sum(p.share for p in found) == pytest.approx(1.0)
    roof = result.summary["roofline"]
    for p in found:
        peak = roof["peak_vector_ops_per_s"] if p.vector else roof["peak_flops_per_s"]
        memory = peak if p.x is None else p.x * roof["peak_bytes_per_s"]
        assert p.y <= min(peak, memory) * (1 + 1e-9), p.name


def test_close_up_shows_the_middle_layer(folder: Path):
    window = close_up(read_result(folder).events)
    assert window is not None and (window.block, window.layer) == ("layers", 1)
    assert window.pass_span[0] <= window.start_us < window.end_us <= window.pass_span[1]


def test_units_are_found_with_their_tracks(folder: Path):
    assert list(unit_tracks(read_result(folder).events)) == ["array", "vector", "dma.load", "dma.store"]


def test_a_run_without_work_is_drawn(tmp_path: Path):
    empty = report(one_pass([op("a")], []))
    assert len(draw_all(empty.write(tmp_path / "r", pictures=False))) == 3


def test_write_draws(tmp_path: Path):
    folder = report(one_pass([op("a", flops=2)], [(0, 0, 0, 10, {"macs": 1})])).write(tmp_path / "r")
    assert {p.name for p in folder.glob("*.png")} == {"roofline.png", "timeline.png", "energy.png"}


def test_known_roles_have_fixed_colours_and_unknown_ones_distinct():
    colours = role_colours(["mystery", "ffn", "other", "attention"])
    assert colours["ffn"] == ROLES["ffn"] and colours["attention"] == ROLES["attention"]
    assert len(set(colours.values())) == 4


@pytest.mark.parametrize(("value", "text"), [(0.0848, "84.8 ms"), (0.9999, "1 s"), (1.5e-9, "1.5 ns"), (0, "0 s")])
def test_quantities_are_short(value, text):
    assert short(value, "s") == text


def test_scale_keeps_the_largest_below_a_thousand():
    assert scaled(999.4e-6, "s") == (pytest.approx(1e6), "µs")


def test_compare_gives_ratios_to_the_first(folder: Path, tmp_path: Path):
    slow = report(decoder(layers=6, tiles=12)).write(tmp_path / "slow", pictures=False)
    rows = {(r["quantity"], r["kind"]): r for r in compare_rows([folder, slow])}
    assert rows["flops", ""]["slow / run"] == pytest.approx(2.0)
    assert rows["energy_j", "attention"]["slow / run"] == pytest.approx(2.0, rel=0.05)
    assert rows["ttft_s", ""]["run"] is None and rows["ttft_s", ""]["slow / run"] is None
    assert list(compare_table([folder, folder]).columns[:4]) == ["quantity", "kind", "run (1)", "run (2)"]


def test_summaries_put_runs_in_one_table(folder: Path):
    table = summaries([folder, folder])
    assert len(table) == 2 and table["roofline.bound"].tolist() == ["memory", "memory"]


def test_a_folder_without_result_and_one_of_another_version_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match="no summary.json"):
        draw_all(tmp_path)
    (tmp_path / "summary.json").write_text('{"schema": "opcycle/summary/9"}')
    with pytest.raises(ConfigError, match="opcycle/summary/9.*opcycle/summary/1"):
        draw_all(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        draw_all(tmp_path)
