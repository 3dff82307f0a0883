"""The report of a run: what it says, what it leaves out, and that it is safe to open."""

import base64
import io
import json
import re
import shutil
from dataclasses import make_dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from browser_page import Tags
from report_run import make_run, write_json
from vgse.knowledge.sources import Knowledge, Source
from vgse.report import write_report
from vgse.report.charts import ticks
from vgse.report.montages import cluster_order
from vgse.report.page import number, percent
from vgse.report.patch_map import patch_map, thumbnail_rows
from vgse.report.pictures import sheet, strip
from vgse.report.relation_cards import own_image_ranks, terms_of
from vgse.report.run_files import MADE_BY, load_run
from vgse.report.similarity import centred_cosine, odd_pairs, palette
from vgse.run_folder import write_knowledge

EVIL = '<script>alert("x")</script>'


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "shapes")


@pytest.fixture(scope="module")
def page(whole: Path) -> str:
    return write_report(whole).read_text(encoding="utf-8")


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "shapes"
    shutil.copytree(whole, copy, ignore=shutil.ignore_patterns("report.html"))
    return copy


def rewrite(path: Path, **changes: np.ndarray) -> None:
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(path, **{**arrays, **changes})


def test_a_whole_run_gives_all_sections_and_no_notice(page: str) -> None:
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == [
        "Zero-shot accuracy", "Unseen from seen", "What the clusters show", "Map of patches",
        "Who resembles whom", "Training", "Health", "Files",
    ]  # fmt: skip
    assert 'class="notice"' not in page


def test_the_head_tells_result_data_classes_images_and_licence(page: str) -> None:
    text = Tags(page).text
    assert "gained 4.6 points over word vectors" in text
    for fact in ("13 seen, 3 unseen", "3 of the seen for validation", "192", "efficientnet-lite0"):
        assert fact in text
    assert "CC0 drawings" in text and "demo" in text


def test_the_page_asks_nothing_of_a_network(page: str) -> None:
    assert not re.search(r"https?:|//[a-z]+\.", re.sub(r"base64,[A-Za-z0-9+/=]+", "", page))
    for tag, attributes in Tags(page).tags:
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    assert all(url.startswith("data:") for url in re.findall(r"url\((.*?)\)", page))
    assert "default-src 'none'" in page


def test_every_picture_of_the_page_can_be_decoded(page: str) -> None:
    pictures = re.findall(r"data:image/(?:webp|png);base64,([A-Za-z0-9+/=]+)", page)
    assert len(pictures) > 2 * 6 + 2  # strips, heatmaps, then sheets and thumbnails
    for picture in pictures:
        Image.open(io.BytesIO(base64.b64decode(picture, validate=True))).load()


def test_the_same_run_gives_the_same_page(run: Path, page: str) -> None:
    assert write_report(run).read_text(encoding="utf-8") == page


def test_nothing_but_the_report_is_left_behind(run: Path) -> None:
    before = {path.name for path in run.iterdir()}
    assert write_report(run) == run / "report.html"
    assert {path.name for path in run.iterdir()} - before == {"report.html"}


def test_names_and_configuration_of_strangers_stay_text(tmp_path: Path) -> None:
    quotes = {"lime disc": '"><img src=x> \ud800', "orange disc": "' onclick='x"}
    run = make_run(tmp_path / "evil", rename={"red disc": EVIL, **quotes})
    for file in ("evaluation.json", "health.json", "config.yaml"):
        text = (run / file).read_text(encoding="utf-8")
        quoted = json.dumps(EVIL)[1:-1]
        for old in ("word vectors", "The clusters gained", "dead clusters", "1 cluster holds"):
            text = text.replace(old, quoted)
        text = text.replace("CC0 drawings", EVIL).replace("demo/shards", f"'{EVIL}'")
        (run / file).write_text(text, encoding="utf-8")
    page = write_report(run).read_text(encoding="utf-8")
    tags = Tags(page)
    scripts = [attributes.get("type") for tag, attributes in tags.tags if tag == "script"]
    assert sorted(map(str, scripts)) == ["None", "application/json"]
    assert all(attributes.get("src") != "x" for _, attributes in tags.tags)
    assert all("onclick" not in attributes for _, attributes in tags.tags)
    assert tags.text.count(EVIL) >= 8  # a control: the names did reach the page
    assert EVIL not in page


@pytest.mark.parametrize("file", sorted(MADE_BY))
def test_a_missing_file_is_named_with_the_command_that_makes_it(run: Path, file: str) -> None:
    (run / file).unlink()
    text = Tags(write_report(run).read_text(encoding="utf-8")).text
    assert f"{file} is not there. This command makes it: {MADE_BY[file]}" in text


def test_a_run_with_its_configuration_alone_still_gives_a_page(run: Path) -> None:
    for path in run.iterdir():
        if path.name != "config.yaml":
            path.unlink()
    page = write_report(run).read_text(encoding="utf-8")
    assert page.count('class="notice"') >= 7
    assert "has not been evaluated yet" in page


def test_a_missing_field_is_named(run: Path) -> None:
    with np.load(run / "pictures.npz") as file:
        arrays = {name: file[name] for name in file.files if name != "tsne_features"}
    np.savez(run / "pictures.npz", **arrays)
    text = Tags(write_report(run).read_text(encoding="utf-8")).text
    assert "pictures.npz has no field tsne_features" in text


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no file of a run; give a folder that `python -m"):
        write_report(tmp_path)


@pytest.mark.parametrize("file", ["evaluation.json", "pictures.npz", "image_features.npz"])
def test_a_cut_off_file_is_named_with_the_remedy(run: Path, file: str) -> None:
    content = (run / file).read_bytes()
    (run / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"{file}: .*write it again") as error:
        write_report(run)
    assert "\n" not in str(error.value)
    assert not (run / "report.html").exists()


def test_the_last_line_of_a_killed_run_is_passed_over(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 4, "lo')
    assert len(load_run(run).metrics) == 3


def test_a_broken_line_in_the_middle_is_refused(run: Path) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join([lines[0], "{", lines[1]]))
    with pytest.raises(ValueError, match=r"metrics.jsonl: cannot be read \(line 2 "):
        write_report(run)


def test_class_pictures_of_another_run_are_refused(run: Path) -> None:
    rewrite(run / "pictures.npz", class_pictures=np.zeros((3, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"class_pictures has 3 rows for 16 class_names"):
        write_report(run)


def test_the_table_shows_every_row_and_the_gain_over_two_others(page: str) -> None:
    text = Tags(page).text
    assert "VGSE-SMO, unseen rows permuted" in text and "Must fall to chance" in text
    assert "against word vectors alone, in points: ESZSL +4.6" in text
    assert "against no vision, in points: ESZSL \N{MINUS SIGN}0.5" in text
    assert page.count("<td class=h>") == 11 * 3 * 2  # plain and calibrated


def test_models_that_are_not_known_and_missing_results_are_shown_plainly(run: Path) -> None:
    content = json.loads((run / "evaluation.json").read_text())
    content["models"] = ["eszsl", "newer"]
    write_json(run / "evaluation.json", content)
    text = Tags(write_report(run).read_text(encoding="utf-8")).text
    assert "newer" in text and "\N{EN DASH}" in text and "SJE" not in text


def test_models_are_called_as_in_the_terminal(run: Path) -> None:
    content = json.loads((run / "evaluation.json").read_text())
    content["models"] = ["ale", "cada_vae"]
    write_json(run / "evaluation.json", content)
    text = Tags(write_report(run).read_text(encoding="utf-8")).text
    assert "ALE" in text and "CADA-VAE" in text and "cada_vae" not in text


@pytest.mark.parametrize(
    ("alpha", "shown"), [(-0.05, "\N{MINUS SIGN}0.05"), (0.0, "0"), (-1.0, "\N{MINUS SIGN}1")]
)
def test_the_smallest_weight_allowed_is_not_rounded(run: Path, alpha: float, shown: str) -> None:
    content = json.loads((run / "evaluation.json").read_text())
    content["relations"]["alpha"] = alpha
    write_json(run / "evaluation.json", content)
    page = write_report(run).read_text(encoding="utf-8")
    assert f"(&alpha;)</th><td>{shown}</td>" in page


def test_a_relation_reads_as_a_sum_that_accounts_for_all_weights(run: Path) -> None:
    with np.load(run / "relations.npz") as file:
        smo, seen, unseen = file["smo"], file["seen"], file["unseen"]
    page = write_report(run).read_text(encoding="utf-8")
    card = next(c for c in page.split("<article class=") if f"<h3>{unseen[0]}</h3>" in c)
    first = int(np.argmax(smo[0]))
    assert f"<b>{smo[0, first]:.2f}</b> <span class=name>{seen[first]}</span>" in card
    shown = [float(weight) for weight in re.findall(r"<b>([\d.]+)</b>", card)]
    rest = re.findall(r"\+ ([\d.]+) from", card)
    assert sum(shown) + sum(map(float, rest)) == pytest.approx(1, abs=0.06)


def test_small_weights_are_left_out_and_negative_ones_kept() -> None:
    assert terms_of(np.array([0.001, -0.3, 0.9, 0.0])) == [2, 1]


def test_a_mixture_equal_to_its_own_images_ranks_first_and_an_exchanged_one_does_not() -> None:
    rng = np.random.default_rng(0)
    phi = rng.normal(size=(6, 4))
    arrays = {
        "class_names": np.array(list("abcdef")), "embeddings": phi, "own_embeddings": phi.copy(),
        "seen": np.arange(3), "unseen": np.arange(3, 6),
    }  # fmt: skip
    assert set(own_image_ranks(arrays).values()) == {1}
    arrays["own_embeddings"][3:] = phi[[4, 5, 3]]
    assert 1 not in own_image_ranks(arrays).values()


def test_clusters_come_by_share_and_plain_ones_last() -> None:
    rng = np.random.default_rng(0)
    seen = rng.integers(0, 255, (3, 2, 8, 8, 3), dtype=np.uint8)
    seen[1] = 250
    order = cluster_order({"cluster_seen": seen, "cluster_mass": np.array([0.1, 0.6, 0.3])})
    assert order == [2, 0, 1]


def test_more_clusters_and_relations_than_shown_are_folded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "more", num_shapes=10, num_colours=7, num_clusters=30, num_shown=30)
    page = write_report(run).read_text(encoding="utf-8")
    assert "Show 6 more clusters" in page and "Show the other 2 unseen classes" in page


def test_a_map_of_patches_repeats_exactly_and_keeps_groups_apart() -> None:
    rng = np.random.default_rng(0)
    group = np.repeat([0, 1], 20)
    features = (rng.normal(size=(40, 6)) + 8 * group[:, None]).astype(np.float32)
    first = patch_map(features)
    assert np.array_equal(first, patch_map(features))
    middle = np.stack([first[group == g].mean(axis=0) for g in (0, 1)])
    nearest = np.linalg.norm(first[:, None] - middle, axis=2).argmin(axis=1)
    assert np.array_equal(nearest, group)


def test_too_few_or_equal_patches_give_a_sentence_in_place_of_a_map(run: Path) -> None:
    rewrite(run / "pictures.npz", tsne_features=np.ones((60, 12), np.float32))
    assert "Too few different patches" in write_report(run).read_text(encoding="utf-8")


def test_thumbnails_do_not_overlap() -> None:
    points = np.random.default_rng(0).uniform(0, 300, (200, 2))
    wide = thumbnail_rows(points, 90)
    rows = wide + thumbnail_rows(points, 44, wide)
    apart = np.abs(points[rows][:, None] - points[rows][None]).max(axis=2)
    assert len(rows) > len(wide) > 3
    assert apart[~np.eye(len(rows), dtype=bool)].min() >= 44


def test_similarity_is_one_with_oneself_and_ignores_a_shared_offset() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 3))
    cosine = centred_cosine(rows, np.arange(4), scale=False)
    assert np.allclose(np.diag(cosine), 1)
    assert np.allclose(cosine, centred_cosine(rows + 7, np.arange(4), scale=False))
    scaled = centred_cosine(rows, np.arange(4), scale=True)
    assert np.allclose(scaled, centred_cosine(rows * [1, 50, 3], np.arange(4), scale=True))
    assert not np.allclose(cosine, centred_cosine(rows * [1, 50, 3], np.arange(4), scale=False))


def test_each_step_of_the_palette_can_be_read_back() -> None:
    assert len({tuple(colour) for colour in palette().tolist()}) == 256


def test_odd_pairs_use_every_class_once_and_the_largest_first() -> None:
    difference = np.zeros((5, 5))
    difference[0, 1], difference[0, 2], difference[2, 3], difference[1, 4] = 0.9, 0.8, 0.5, -1
    assert odd_pairs(difference, 6) == [(0, 1), (2, 3)]


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(-4.83, -4.58) == [-4.8, -4.7, -4.6]
    assert ticks(2, 2) == [2]


@pytest.mark.parametrize("num_epochs", [1, 2])
def test_a_curve_of_one_epoch_or_a_constant_is_drawn(run: Path, num_epochs: int) -> None:
    rows = [{"epoch": epoch, "loss": 0.5} for epoch in range(1, num_epochs + 1)]
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    page = write_report(run).read_text(encoding="utf-8")
    chart = re.search(r'<svg[^>]*aria-label="Loss by epoch".*?</svg>', page, re.DOTALL)
    assert chart and "nan" not in chart[0] and f"epoch {num_epochs}: 0.500" in chart[0]


def test_a_loss_of_the_configuration_gets_a_curve_under_its_field(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = make_dataclass("Losses", [("classification", float, 1.0), ("toy_loss", float, 0.0)])
    monkeypatch.setattr("vgse.config.LossConfig", losses)
    row = {"epoch": 1, "loss": 3.0, "classification": 1.0, "toy_loss": 2.0}
    (run / "metrics.jsonl").write_text(json.dumps(row))
    training = write_report(run).read_text(encoding="utf-8").split('id="curves"')[1]
    assert re.findall("<figcaption><b>(.*?)</b>", training) == [
        "Loss",
        "Classification",
        "Toy loss",
    ]


def test_epochs_without_a_finite_value_are_passed_over(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines[0]["nmi"], lines[1]["nmi"] = None, float("nan")
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert "epoch 3: " in write_report(run).read_text(encoding="utf-8").split("<b>NMI</b>")[1]


def test_figures_are_written_for_reading() -> None:
    assert [number(1234.5, 0), number(-0.001), number(None), number(float("nan"))] == [
        "1,234", "0.00", "\N{EN DASH}", "\N{EN DASH}",
    ]  # fmt: skip
    assert percent(0.3264) == "32.6"


def test_pictures_stand_side_by_side_and_in_rows() -> None:
    pictures = np.stack([np.full((2, 2, 3), value, np.uint8) for value in (10, 20, 30)])
    row = strip(pictures, gap=1)
    assert row.shape == (2, 9, 4)
    assert row[0, :, 0].tolist() == [10, 10, 10, 20, 20, 20, 30, 30, 30]
    assert row[0, :, 3].tolist() == [255, 255, 0] * 3
    assert (
        sheet(pictures, columns=2)[:, :, 0].tolist()
        == [[10, 10, 20, 20]] * 2 + [[30, 30, 128, 128]] * 2
    )


def test_the_choice_of_knowledge_and_what_classes_share_are_shown(run: Path) -> None:
    with np.load(run / "class_embeddings.npz") as file:
        names, seen = [str(name) for name in file["class_names"]], file["seen"]
    rows = np.ones((len(names), 2))
    rows[seen[:3], 0] = 0  # an ancestor of all says nothing
    entries = dict.fromkeys(names, "node")
    knowledge = Knowledge(
        names, [Source("Tree", rows, None, True, ["warm_blooded", "all"], entries)]
    )
    write_knowledge(run, knowledge)
    setting = {"weights": [1.0], "ridge": 0.1, "criterion": 0.296, "standard_error": 0.01}
    choice = {"sources": ["Tree"], "line": "Tree 1, ridge 0.1", "warning": "nothing is known"}
    choice |= {"weights": [1.0], "ridge": 0.1, "curve": [setting]}
    (run / "relations.json").write_text(json.dumps(choice))
    text = write_report(run).read_text(encoding="utf-8")
    assert "Tree 1, ridge 0.1" in text and "nothing is known" in text and "0.296" in text
    assert "in Tree: warm blooded" in text and "Taken in Tree: " in text
