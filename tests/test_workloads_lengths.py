"""Lengths of requests: drawn from statistics, read from files of several styles."""

from __future__ import annotations

from math import exp, log
from pathlib import Path
from typing import Any

import pytest

from sim.config import ConfigError
from workloads.distributions import LengthSet, Statistics, draw_lengths, length_set_names, load_length_set
from workloads.requests import read_lengths
from workloads.scenario import make_workload

LONG = 10**9


def scenario(**keys: Any) -> dict[str, Any]:
    base = {"schema": "opcycle/workload/1", "name": "t", "model": "gpt3-7b", "phase": "decode", "batch": 64}
    return {**base, "lengths": "sharegpt", **keys}


def lengths_of(prompt: tuple[float, float, int], answer: tuple[float, float, int]) -> LengthSet:
    parts = {
        name: Statistics(mean=mean, median=median, longest=longest)
        for name, (mean, median, longest) in (("prompt", prompt), ("answer", answer))
    }
    return LengthSet(schema_="opcycle/lengths/1", name="t", **parts)


def test_a_seed_gives_these_lengths_on_every_platform() -> None:
    """Worked out once; decimal arithmetic and the Mersenne Twister leave nothing to a platform."""
    drawn = draw_lengths(load_length_set("sharegpt"), 6, 0, True, 2047)
    assert drawn == (111, 78, 268, 220, 154, 335)
    assert draw_lengths(load_length_set("sharegpt"), 3, 0, True, 2047) == drawn[:3]
    assert draw_lengths(load_length_set("sharegpt"), 6, 1, True, 2047) != drawn


@pytest.mark.parametrize("name", length_set_names())
def test_prompts_have_the_published_median_and_mean(name: str) -> None:
    wanted = load_length_set(name).prompt
    found = sorted(draw_lengths(load_length_set(name), 4000, 3, False, LONG))
    # The median of 4000 varies by 3.5 % (spread 1.76), and lengths are whole.
    assert found[2000] == pytest.approx(wanted.median, abs=0.5 + 0.07 * wanted.median)
    spread = (2 * log(wanted.mean / wanted.median)) ** 0.5
    # 97.7 % of a lognormal lie below two standard deviations.
    assert sum(length <= wanted.median * exp(2 * spread) for length in found) / 4000 == pytest.approx(0.977, abs=0.01)


def test_a_running_batch_holds_long_answers_more_often_than_they_begin() -> None:
    """Prompts of one token; answers with mean 40 and median 30 have, met in proportion to their length, the mean
    40 * (40 / 30)**2; a uniform place in one is half of that, less half a token for rounding down.
    """
    found = draw_lengths(lengths_of((1, 1, 1), (40, 30, LONG)), 6000, 5, True, LONG)
    assert sum(found) / 6000 - 1 == pytest.approx(40 * (40 / 30) ** 2 / 2 - 0.5, rel=0.04)


def test_equal_mean_and_median_are_one_length_and_cuts_hold() -> None:
    assert set(draw_lengths(lengths_of((7, 7, 9), (1, 1, 1)), 20, 0, False, LONG)) == {7}
    assert set(draw_lengths(lengths_of((7, 7, 5), (1, 1, 1)), 20, 0, False, LONG)) == {5}
    assert set(draw_lengths(lengths_of((7, 7, 9), (1, 1, 1)), 20, 0, False, 3)) == {3}


def test_a_scenario_draws_with_its_seed_and_keeps_what_it_drew() -> None:
    first, again, other = (make_workload(scenario(seed=seed)) for seed in (1, 1, 2))
    assert first.lengths == again.lengths != other.lengths
    assert len(first.lengths) == 64
    assert max(first.lengths) <= 2047
    # A resolved scenario lists the lengths, so a run repeats from its folder whatever becomes of the set.
    assert make_workload(first.resolved()).lengths == first.lengths
    prompts = make_workload(scenario(phase="prefill", seed=1)).lengths
    assert sorted(prompts)[32] < sorted(first.lengths)[32] / 4


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"lengths": "sharegtp"}, "no set of lengths that ships .alpaca, sharegpt. and no CSV .*nearest is 'sharegpt'"),
        ({"batch": None}, "batch: is missing"),
        ({"lengths": "none.yaml"}, "no such file of lengths"),
        ({"steps": 2048}, "steps: leaves no position"),
    ],
)
def test_wrong_sets(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_workload({k: v for k, v in scenario(**keys).items() if v is not None})


def test_a_set_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = "schema: opcycle/lengths/1\nname: mine\nprompt: {mean: 5, median: 5, longest: 9}\n"
    path.write_text(text + "answer: {mean: 2, median: 2, longest: 1}\n", encoding="utf-8")
    assert set(make_workload(scenario(phase="prefill", lengths=str(path))).lengths) == {5}
    path.write_text(text + "answer: {mean: 2, median: 3, longest: 9}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"answer: mean \(2\) must not be below median"):
        make_workload(scenario(lengths=str(path)))


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("length\n5\n7\n", (5, 7)),
        ("seq_len,ch_idx\n2048,26\n12,0\n", (2048, 12)),
        ("id,prompt,generated\na,10,0\nb,3,4\n", (10, 7)),
        ("input_tokens,output_tokens\n9,100\n", (9,)),
    ],
)
def test_files_of_several_styles(text: str, lengths: tuple[int, ...], tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text(text, encoding="utf-8")
    assert read_lengths(path) == lengths


def test_a_file_may_not_hold_a_request_without_prompt(tmp_path: Path) -> None:
    path = tmp_path / "requests.csv"
    path.write_text("prompt,generated\n0,4\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="prompt: is '0', but must be a whole number of at least 1"):
        read_lengths(path)
