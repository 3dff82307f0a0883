"""The page of a search, as a file."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser_page import Tags
from search_folder import (
    DEFAULT,
    drawn,
    final_row,
    make_search,
    one_trial,
    write,
    write_trial,
    write_trials,
)
from tune.report.analyse import analyse

EVIL = '<script>alert("x")</script>'
FINALS = [
    final_row("default", 0.30, 0.25),
    final_row("0007", 0.39, 0.28),
    final_row("0011", 0.38, 0.27),
]


def shown(folder: Path) -> str:
    """The text of the page, without its tags, scripts and styles."""
    return Tags(analyse(folder).read_text(encoding="utf-8")).text


def data_of(page: str, ident: str) -> Any:
    """What a data block of the page holds."""
    found = re.search(rf'<script type="application/json" id="{ident}">(.*?)</script>', page)
    assert found
    return json.loads(found[1])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_search(tmp_path_factory.mktemp("pages") / "demo-search", finals=FINALS)
    params = drawn(np.random.default_rng(9))
    write_trial(folder, params, state="failed", cause="CUDA out of memory")
    write_trial(folder, DEFAULT, [0.05], state="collapsed", cause="5 of 100 clusters are in use")
    write_trials(folder, [one_trial(drawn(np.random.default_rng(n)), [0.1, 0.2]) for n in (1, 2)])
    return folder


@pytest.fixture(scope="module")
def page(whole: Path) -> str:
    return analyse(whole).read_text(encoding="utf-8")


def test_the_page_has_all_sections(page: str) -> None:
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "Validation against test", "What good trials have in common",
        "Which hyper-parameters matter", "One hyper-parameter at a time", "Learning curves",
        "All trials", "What went wrong", "Best configuration",
    ]  # fmt: skip
    assert Tags(page).text.count("No trial") == 0


def test_no_two_elements_share_an_id(page: str) -> None:
    found = re.findall(r' id="([^"]+)"', page)
    assert len(found) == len(set(found)) > 10


def test_every_trial_is_in_every_figure_and_in_the_table(page: str) -> None:
    figures = data_of(page, "search-figures")
    measured = [f"{t:04d}" for t in range(64) if t != 60]  # which failed at once
    assert len(re.findall(r'<tr class="[^"]*" data-t=', page)) == 64
    assert figures["parallel"]["data"][0]["customdata"] == measured
    lines = figures["curves"]["data"]
    assert sorted(line["customdata"][0] for line in lines) == measured
    slices = [figure for name, figure in figures.items() if name.startswith("slice ")]
    assert len(slices) == page.count('class="drawn slice"') == 4
    for figure in slices:
        assert sorted(figure["data"][0]["customdata"]) == measured


def test_the_page_shows_causes_facts_and_the_best_configuration(page: str) -> None:
    text = " ".join(Tags(page).text.split())
    assert "CUDA out of memory 0060" in text and "5 of 100 clusters are in use 0061" in text
    assert "12.5 2 at the same time" in text and "5 min" in text
    assert "entropy: 0.5" in text and "data-copy" in page
    assert "1 collapsed, 1 failed" in text


def test_plotly_is_in_the_page_once_and_the_page_below_six_million_bytes(page: str) -> None:
    assert page.count("* plotly.js v") == 1
    assert len(page.encode()) < 6_000_000


def test_the_page_may_ask_nothing_of_a_network(page: str) -> None:
    assert "default-src 'none'" in page
    sources = [
        value
        for _, attributes in Tags(page).tags
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "data", "action")
    ]
    assert sources and all(value and value.startswith(("#", "data:")) for value in sources)


def test_the_same_search_gives_the_same_page(whole: Path, page: str) -> None:
    assert analyse(whole).read_text(encoding="utf-8") == page


def test_texts_of_strangers_stay_text(tmp_path: Path) -> None:
    rows = [final_row("default", 0.2, 0.2), final_row(EVIL, 0.3, 0.3, model=EVIL, cause=EVIL)]
    folder = make_search(tmp_path / f"s{EVIL.replace('/', '')}", trials=12, finals=rows)
    for number in range(12, 16):
        params = {**drawn(np.random.default_rng(number)), EVIL: EVIL, "_x": '"><img src=x>'}
        state = "failed" if number < 14 else "finished"
        write_trial(folder, params, [0.2], state=state, cause=f"{EVIL} \ud800 {number}")
    (folder / "best.yaml").write_text(f"# {EVIL}")
    content = json.loads((folder / "final.json").read_text())
    content["rows"][1]["test"][EVIL] = 0.1
    write(folder / "final.json", {**content, "objective": "zsl"})
    page = analyse(folder).read_text(encoding="utf-8")
    tags = Tags(page)
    scripts = [attributes.get("type") for tag, attributes in tags.tags if tag == "script"]
    assert sorted(map(str, scripts)) == ["None"] * 2 + ["application/json"]
    assert not [tag for tag, _ in tags.tags if tag == "img"]
    assert tags.text.count(EVIL) >= 8  # a control: the texts did reach the page
    assert EVIL not in page


def test_a_search_that_has_just_begun_gives_a_page(tmp_path: Path) -> None:
    folder = make_search(tmp_path / "s", trials=0)
    assert "0 trials, and none has finished an epoch yet." in shown(folder)
    write_trial(folder, state="running")
    assert "1 trial, and none has finished an epoch yet." in shown(folder)
    write_trial(folder, curve=[0.2], state="running")
    assert "Objective by epoch" in shown(folder)


def test_a_search_of_words_and_switches_is_drawn(tmp_path: Path) -> None:
    folder = make_search(tmp_path / "s", trials=0)
    params = [{"model.kind": kind, "model.flag": flag} for kind in "ab" for flag in (True, False)]
    write_trials(folder, [one_trial(each, [0.1 + n / 10]) for n, each in enumerate(params)])
    figures = data_of(analyse(folder).read_text(encoding="utf-8"), "search-figures")
    assert figures["slice model.kind"]["layout"]["xaxis"]["ticktext"] == ["a", "b"]
    flags, kinds, _ = figures["parallel"]["data"][0]["dimensions"]
    assert kinds["values"] == [0, 0, 1, 1] and [text.strip() for text in flags["ticktext"]] == [
        "False",
        "True",
    ]


def test_a_trial_without_a_hyper_parameter_is_left_out_of_its_figures_alone(tmp_path: Path) -> None:
    folder = make_search(tmp_path / "s", trials=12)
    write_trial(folder, {"model.temperature": 0.1}, [0.3])
    figures = data_of(analyse(folder).read_text(encoding="utf-8"), "search-figures")
    assert "0012" in figures["slice model.temperature"]["data"][0]["customdata"]
    assert "0012" not in figures["slice loss.entropy"]["data"][0]["customdata"]
    assert "0012" not in figures["parallel"]["data"][0]["customdata"]
