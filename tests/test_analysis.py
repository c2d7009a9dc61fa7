"""Analysis of many designs and systems: tables by hand, pictures that say what they should and fit on their page."""

from __future__ import annotations

import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_cases import decoder, report

import analysis
from analysis.bars import speedup_figure, speedup_rows, utilisation_figure, utilisation_rows
from analysis.design_figures import front_figure, heat_map_figure, tornado_figure
from analysis.designs import design_rows, front_rows, goals_of, sensitivity_rows, steps_of, unit_of
from analysis.hierarchy import hierarchical_roofline, level_table, levels
from analysis.style import save
from sim.errors import ConfigError
from sim.sweep.store import table
from tests.conftest import Outcome

GOALS = {"time_s": "min", "area_mm2": "min"}


def grid() -> list[dict[str, Any]]:
    """Twelve points: time falls with 1 / rows and doubles with batch, area grows with rows; capacity does nothing."""
    return [
        {"point": 0, "hw.array.rows": r, "workload.batch": b, "hw.scratchpad.capacity": c, "status": "ok",
         "error": None, "time_s": 0.064 * b / r, "area_mm2": float(r)}
        for r in (32, 64, 128) for b in (1, 2) for c in ("8 MiB", "16 MiB")
    ]  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("systems")
    return [report(decoder(layers=n, tiles=12)).write(base / f"s{n}", pictures=False) for n in (1, 2)]


def fits(drawn: Any) -> bool:
    drawn.canvas.draw()
    ink = drawn.get_tightbbox(drawn.canvas.get_renderer())
    wide, tall = drawn.get_size_inches()
    return bool(ink.x0 >= 0 and ink.y0 >= 0 and ink.x1 <= wide and ink.y1 <= tall)


def test_the_front_of_rows_is_sorted_and_leaves_out_what_failed() -> None:
    rows = [*grid(), {"status": "impossible", "error": "no"}]
    assert len(design_rows(rows)) == 12
    found = front_rows(rows, GOALS)
    assert [(row["time_s"], row["area_mm2"]) for row in found] == [(0.0005, 128.0), (0.001, 64.0), (0.002, 32.0)]


def test_sensitivities_by_hand() -> None:
    found = {row["axis"]: row for row in sensitivity_rows(grid(), "time_s")}
    rows = found["hw.array.rows"]
    assert (rows["low_step"], rows["high_step"]) == (128, 32)
    # 1/32, 1/64, 1/128 around their geometric mean of 1/64.
    assert (rows["low"], rows["high"], rows["swing"]) == pytest.approx((0.5, 2, 4))
    assert found["workload.batch"]["swing"] == pytest.approx(2)
    assert found["workload.batch"]["high"] == pytest.approx(math.sqrt(2))
    assert found["hw.scratchpad.capacity"]["swing"] == 1
    assert list(found)[:2] == ["hw.array.rows", "workload.batch"]


def test_only_settings_with_all_steps_of_an_axis_count() -> None:
    rows = [row for row in grid() if not (row["hw.array.rows"] == 32 and row["workload.batch"] == 2)]
    found = {row["axis"]: row for row in sensitivity_rows(rows, "time_s")}
    assert found["hw.array.rows"]["settings"] == 2
    assert found["workload.batch"]["settings"] == 4


def test_steps_go_by_size_not_by_letters() -> None:
    rows = [{"x": x, "status": "ok"} for x in ("16 MiB", "8 MiB", "1 GiB", "512 KiB")]
    assert steps_of(rows, "x") == ["512 KiB", "8 MiB", "16 MiB", "1 GiB"]
    assert steps_of([{"x": "ws"}, {"x": "os"}], "x") == ["ws", "os"]
    assert (unit_of("tokens_per_s"), unit_of("time_s"), unit_of("area_mm2"), unit_of("utilization.x_s")) == (
        "/s", "s", "mm²", "",
    )  # fmt: skip


def test_pictures_of_designs_fit_and_are_the_same_bytes_again(tmp_path: Path) -> None:
    drawings: dict[str, Callable[[], Any]] = {
        "front": lambda: front_figure(grid(), GOALS),
        "three": lambda: front_figure(grid(), {**GOALS, "workload.batch": "max"}),
        "progress": lambda: front_figure(grid(), {"time_s": "min"}),
        "heat": lambda: heat_map_figure(grid(), "hw.array.rows", "workload.batch", "time_s"),
        "tornado": lambda: tornado_figure(grid(), "time_s"),
    }
    for name, draw in drawings.items():
        drawn = draw()
        assert fits(drawn), name
        for ending in ("png", "svg", "pdf"):
            save(drawn, tmp_path / f"{name}.{ending}")
        save(draw(), tmp_path / "again.svg")
        assert (tmp_path / "again.svg").read_bytes() == (tmp_path / f"{name}.svg").read_bytes()


def test_a_heat_map_shows_the_best_of_what_shares_a_cell() -> None:
    drawn = heat_map_figure(grid(), "hw.array.rows", "hw.scratchpad.capacity", "time_s")
    shown = {text.get_text() for text in drawn.axes[0].texts}
    assert shown == {"2", "1", "0.5"}  # ms with batch 1; batch 2 takes twice as long


def test_wrong_columns_are_told_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown column 'time', nearest is 'time_s'"):
        front_rows(grid(), {"time": "min"})
    with pytest.raises(ConfigError, match="unknown column 'hw.array.row', nearest is 'hw.array.rows'"):
        heat_map_figure(grid(), "hw.array.row", "workload.batch", "time_s")
    with pytest.raises(ConfigError, match="no point of these"):
        design_rows([{"status": "impossible"}])


def test_a_folder_of_a_sweep_is_drawn_by_its_goals(tmp_path: Path, opcycle: Callable[..., Outcome]) -> None:
    import pyarrow.parquet as pq

    pq.write_table(table(grid()), tmp_path / "results.parquet")
    about = {"schema": "opcycle/sweep-result/1", "spec": {"objectives": {"time": "min", "area": "min"}}}
    (tmp_path / "sweep.json").write_text(json.dumps(about))
    assert goals_of(tmp_path) == GOALS
    assert opcycle("plot", tmp_path).code == 0
    assert (tmp_path / "front.png").is_file() and (tmp_path / "sensitivity.png").is_file()
    assert opcycle("plot", tmp_path, "--format", "pdf", "--format", "svg").code == 0
    assert (tmp_path / "front.pdf").read_bytes().startswith(b"%PDF") and (tmp_path / "front.svg").is_file()
    assert "unknown format 'eps'" in opcycle("plot", tmp_path, "--format", "eps").err
    assert list(analysis.design_table(tmp_path)["area_mm2"]) == [row["area_mm2"] for row in grid()]


def test_a_report_is_as_good_as_its_folder(tmp_path: Path) -> None:
    made = report(decoder(layers=1, tiles=12))
    folder = made.write(tmp_path / "npu-test", pictures=False)
    assert utilisation_rows([made]) == utilisation_rows([folder])
    assert analysis.compare_table([made, made]).equals(analysis.compare_table([folder, folder]))
    for draw in (analysis.roofline_figure, analysis.timeline_figure, analysis.energy_figure):
        for number, source in enumerate((made, folder)):
            save(draw(source), tmp_path / f"{number}.svg")
        assert (tmp_path / "0.svg").read_bytes() == (tmp_path / "1.svg").read_bytes()
    assert list(analysis.summaries([made])["folder"]) == ["npu-test"]


def test_rows_come_as_tables_and_frames_too() -> None:
    made = table(grid())
    assert front_rows(made, GOALS) == front_rows(grid(), GOALS)
    assert [dict(row) for row in front_rows(made.to_pandas(), GOALS)] == front_rows(grid(), GOALS)


def test_no_public_name_is_hidden_by_a_module() -> None:
    for path in Path(analysis.__file__).parent.glob("*.py"):
        importlib.import_module(f"analysis.{path.stem}")
    assert [name for name in analysis.__all__ if not callable(getattr(analysis, name))] == []


def test_levels_are_work_over_bytes_under_their_roofs(folders: list[Path]) -> None:
    found = levels(folders[:1])
    result = analysis.read_result(folders[0])
    whole = {x.memory: x for x in found if not x.what}
    flops = sum(row["flops"] for row in result.operators)
    for memory in ("dram", "scratchpad"):
        moved = sum(row[f"{memory}_bytes"] for row in result.operators)
        assert whole[memory].intensity == pytest.approx(flops / moved)
    assert whole["dram"].flops_per_s == whole["scratchpad"].flops_per_s
    assert all(x.flops_per_s <= x.roof_flops_per_s * (1 + 1e-9) for x in found if not x.what)
    assert len(level_table(folders)) == len(levels(folders))


def test_pictures_of_systems_fit(folders: list[Path]) -> None:
    assert fits(hierarchical_roofline(folders[:1]))
    assert fits(hierarchical_roofline(folders))
    assert fits(utilisation_figure(folders))
    assert fits(speedup_figure(folders, {"s2": (0.4, 0.6)}))


def test_speedups_stand_beside_what_was_published(folders: list[Path]) -> None:
    ours = speedup_rows(folders)[1]["speedup"]
    found = {name: speedup_rows(folders, {"s2": claim})[1]["off"] for name, claim in {
        "inside": (ours / 2, ours * 2), "below": ours * 2, "above": (ours / 4, ours / 2),
    }.items()}  # fmt: skip
    assert found == {"inside": 0, "below": pytest.approx(-0.5), "above": pytest.approx(1)}
    with pytest.raises(ConfigError, match="unknown system 's3'; allowed: s1, s2"):
        speedup_rows(folders, {"s3": 1.0})


def test_utilisation_is_that_of_the_summaries(folders: list[Path]) -> None:
    for row, folder in zip(utilisation_rows(folders), folders, strict=True):
        assert {k: v for k, v in row.items() if k != "system"} == analysis.read_result(folder).summary["utilization"]


def test_compare_draws_them(folders: list[Path], tmp_path: Path, opcycle: Callable[..., Outcome]) -> None:
    assert opcycle("compare", *folders, "-o", tmp_path / "out").code == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"{n}.{e}" for n in ("systems", "roofline", "utilisation") for e in ("png", "svg")} <= names
