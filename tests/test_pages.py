"""Report pages: one file without anything from elsewhere, and in a real browser they zoom, sort and filter."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from report_cases import decoder, report

from analysis.pages import run_page, sweep_page
from analysis.pages.frame import data_text
from sim.errors import ConfigError
from sim.sweep.store import table
from tests.browser import chromium
from tests.conftest import Outcome
from tests.test_analysis import grid

pytestmark = pytest.mark.usefixtures("own_cache")

pytest.importorskip("plotly")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "run"
    return report(decoder(layers=3, tiles=12)).write(folder, pictures=False, page=True)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep's folder: twelve points and one that cannot exist, whose reason tries to leave its script."""
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("page")
    rows = [{**row, "point": i} for i, row in enumerate(grid())]
    keys = [key for key in rows[0] if key.startswith(("hw.", "workload."))]
    wrong = {"point": 12, **dict.fromkeys(keys, 1), "status": "impossible", "error": "</script><b id=x>"}
    wrong["hw.scratchpad.capacity"] = "8 MiB"
    pq.write_table(table([*rows, wrong]), folder / "results.parquet")
    asked = {"objectives": {"time": "min", "area": "min"}, "hardware": "m"}
    about = {"schema": "opcycle/sweep-result/1", "name": "grid", "spec": asked}
    (folder / "sweep.json").write_text(json.dumps(about))
    (folder / "report.html").write_text(sweep_page(folder), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


def outside(page: str) -> list[str]:
    """What a page would load from elsewhere: sources and links of its own elements."""
    return re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=", page)


def test_a_page_is_one_file_and_the_same_bytes_again(run: Path, sweep: Path) -> None:
    for folder, draw in ((run, run_page), (sweep, sweep_page)):
        page = (folder / "report.html").read_text()
        assert not outside(page)
        assert draw(folder) == page
        assert "Plotly" in page
    assert "hwconfig.yaml" in (run / "report.html").read_text()


def test_of_many_points_the_front_and_the_best_are_shown(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("analysis.pages.sweep.MOST", 5)
    page = sweep_page(sweep)
    (data,) = re.findall(r"const data = (\{.*\});$", page, re.MULTILINE)
    found = json.loads(data)
    at = [column["name"] for column in found["columns"]].index
    # The front is three machines of growing area; two more that are as fast as the fastest fill the page.
    marked = [found["rows"][i] for i in found["marked"]]
    assert [(row[at("area_mm2")], row[at("time_s")]) for row in marked] == [(32, 0.002), (64, 0.001), (128, 0.0005)]
    assert len(found["rows"]) == 5
    assert "5 of 13 points" in page


def test_data_cannot_leave_its_script(sweep: Path) -> None:
    assert "</script><b" not in (sweep / "report.html").read_text()
    assert data_text({"a": float("nan"), "b": "</script>"}) == '{"a":null,"b":"<\\/script>"}'


def clean(browser: Any) -> bool:
    return not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_run_is_zoomed_and_sorted_in_a_browser(run: Path, browser: Any) -> None:
    from selenium.webdriver import ActionChains

    browser.get((run / "report.html").as_uri())
    assert clean(browser)
    assert browser.execute_script("return document.querySelectorAll('.plot .main-svg').length") >= 3
    before = browser.execute_script("return document.getElementById('timeline')._fullLayout.xaxis.range")
    area = browser.find_element("css selector", "#timeline .nsewdrag")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", area)
    drag = ActionChains(browser).move_to_element_with_offset(area, -100, 0).click_and_hold()
    drag.move_by_offset(100, 0).move_by_offset(60, 0).release().perform()
    after = browser.execute_script("return document.getElementById('timeline')._fullLayout.xaxis.range")
    assert before[0] < after[0] < after[1] < before[1]

    heading = browser.find_element("css selector", "#operators th:nth-child(8) button")
    assert heading.text == "time_s"
    rows = browser.execute_script("return document.querySelector('#operators tbody').rows.length")
    names = "return [...document.querySelectorAll('#operators tbody tr')].map((row) => row.cells[2].textContent)"
    heading.click()
    falling = browser.execute_script(names)
    heading.click()
    assert browser.execute_script(names) != falling
    assert len(falling) == rows
    import analysis

    longest = max(analysis.read_result(run).operators, key=lambda row: row["time_s"])
    assert falling[0] == longest["operator"]
    assert clean(browser)


def test_points_are_filtered_and_axes_chosen_in_a_browser(sweep: Path, browser: Any) -> None:
    from selenium.webdriver.support.ui import Select

    browser.get((sweep / "report.html").as_uri())
    assert clean(browser)
    traces = "return document.getElementById('scatter').data.filter((each) => each.name !== 'front')"
    drawn = f"{traces}.flatMap((each) => each.x).length"
    count = "return document.querySelectorAll('#points tbody tr').length"
    assert (browser.execute_script(drawn), browser.execute_script(count)) == (13, 13)
    assert browser.execute_script("return document.querySelectorAll('#points tr.front').length") == 3
    field = browser.find_element("css selector", "input[aria-label='filter hw.array.rows']")
    field.send_keys(">= 64")
    assert (browser.execute_script(drawn), browser.execute_script(count)) == (8, 8)
    field.clear()
    field.send_keys("32..64")
    assert browser.execute_script(count) == 8
    field = browser.find_element("css selector", "input[aria-label='filter status']")
    field.send_keys("imposs")
    assert browser.execute_script(count) == 0
    browser.find_element("css selector", "input[aria-label='filter hw.array.rows']").clear()
    browser.find_element("css selector", "input[aria-label='filter hw.array.rows']").send_keys("x\b")
    assert browser.execute_script(count) == 1
    field.clear()
    field.send_keys("ok")
    Select(browser.find_element("id", "choose-x")).select_by_value("area_mm2")
    xs = browser.execute_script(f"{traces}.flatMap((each) => each.x)")
    assert sorted(xs) == sorted(row["area_mm2"] for row in grid())
    Select(browser.find_element("id", "choose-colour")).select_by_value("hw.scratchpad.capacity")
    groups = browser.execute_script(f"{traces}.map((each) => [each.name, each.marker.color])")
    assert [name for name, _ in groups] == ["8 MiB", "16 MiB"] and groups[0][1] != groups[1][1]
    ringed = browser.execute_script("return document.getElementById('scatter').data.find((t) => t.name === 'front').x")
    assert sorted(ringed) == [32, 64, 128]
    scale = "return document.getElementById('scatter')._fullLayout.xaxis.type"
    assert browser.execute_script(scale) == "linear"
    browser.find_element("id", "log-x").click()
    assert browser.execute_script(scale) == "log"
    assert clean(browser)


def test_the_commands_write_pages(
    spec_file: Path, tmp_path: Path, opcycle: Callable[..., Outcome], refused: Callable[..., str]
) -> None:
    out = tmp_path / "run"
    tiny = tmp_path / "tiny-decode.yaml"
    assert opcycle("simulate", "a100-roofline", tiny, "-o", out, "--html", "--json").code == 0
    assert (out / "report.html").is_file()
    assert opcycle("simulate", "a100-roofline", tiny, "-o", out, "--json").code == 0
    assert not (out / "report.html").exists()
    data = yaml.safe_load(spec_file.read_text())
    data |= {"hardware": "a100-roofline", "axes": {"workload.batch": [1, 2]}, "set": {}}
    spec_file.write_text(yaml.safe_dump(data))
    assert "report.html" in opcycle("sweep", spec_file, "-o", tmp_path / "sweep", "--html").out
    assert "there is no -o" in refused("simulate", "a100-roofline", tiny, "--html")
    with pytest.raises(ConfigError, match="holds no sweep"):
        sweep_page(tmp_path)
