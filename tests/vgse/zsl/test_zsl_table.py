"""The protocol: what validation may look at, what the table says, and that controls fail."""

import io
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from numpy.testing import assert_allclose
from rich.console import Console

from vgse.config import EvaluationConfig, RelationConfig
from vgse.knowledge.sources import Knowledge, Source
from vgse.relations import solve_relations
from vgse.relations.predict import ChosenKnowledge, choose_knowledge, selection_summary
from vgse.zsl import table as zsl_table
from vgse.zsl.folds import class_means, final_fold, prepare, validation_fold, validation_folds
from vgse.zsl.hyperparameters import (
    Choice,
    choose,
    cross_validate,
    final_result,
    generalised_scores,
)
from vgse.zsl.metrics import calibrated_stacking
from vgse.zsl.models import MODELS
from vgse.zsl.rows import RowInputs, assembled, derangement, external_rows, table_rows
from vgse.zsl.show import evaluation_table
from vgse.zsl.summary import summary_sentence
from zsl_toy import make_toy

TOY = make_toy()
DATA = TOY.data
CONFIG = EvaluationConfig(models=["eszsl", "prototype"])
RELATIONS = RelationConfig()
ROWS = {row.name: row for row in table_rows(RELATIONS, 0)}


def chosen_of(words, relations=RELATIONS):
    knowledge = Knowledge(DATA.class_names, [Source("words", np.nan_to_num(words), None)])

    def choose(embeddings, seen):
        return choose_knowledge(knowledge, words, seen, embeddings, relations, 0)

    return choose


def evaluate(data, own, words, config, relations, seed, **options):
    rows = partial(table_rows, relations)
    options.setdefault("choose_knowledge", chosen_of(words, relations))
    return zsl_table.evaluate(data, rows, own, words, config, seed, **options)


@pytest.fixture(scope="module")
def table():
    return evaluate(DATA, TOY.own, TOY.words, CONFIG, RELATIONS, 0)


def test_the_rows_share_one_relation_a_fold_alpha_and_ridge(monkeypatch):
    solved = []
    monkeypatch.setattr(
        "vgse.relations.smo.solve_relations",
        lambda *vectors, **options: solved.append(options) or solve_relations(*vectors, **options),
    )
    evaluate(DATA, TOY.own, TOY.words, CONFIG, RELATIONS, 0)
    assert sorted(options["alpha"] for options in solved) == 6 * [-1.0] + 12 * [0.0]


def _zsl(table, row, model="eszsl"):
    return next(r for r in table["rows"] if r["name"] == row)["results"][model]["zsl"]


def test_the_validation_fold_holds_training_images_only():
    fold = validation_fold(DATA, 0.2)
    images = np.concatenate([fold.train, fold.test_seen, fold.test_unseen])
    assert np.array_equal(np.sort(images), np.sort(DATA.train))
    assert np.array_equal(fold.unseen, DATA.val)
    assert not np.isin(DATA.labels[fold.train], DATA.val).any()
    assert np.isin(DATA.labels[fold.test_unseen], DATA.val).all()


def test_the_share_held_out_is_that_of_every_class():
    fold = validation_fold(DATA, 1 / 3)
    assert set(np.bincount(DATA.labels[fold.test_seen])[fold.seen]) == {3}
    assert set(np.bincount(DATA.labels[fold.train])[fold.seen]) == {6}


def test_holding_out_repeats_with_its_seed():
    first = validation_fold(DATA, 0.2, 1)
    assert np.array_equal(first.test_seen, validation_fold(DATA, 0.2, 1).test_seen)
    assert not np.array_equal(first.test_seen, validation_fold(DATA, 0.2, 2).test_seen)


def test_the_folds_take_turns_over_all_seen_classes_and_the_first_is_that_of_the_validation():
    folds = validation_folds(DATA, 0.2, count=5)
    assert np.array_equal(folds[0].unseen, DATA.val)
    turns = np.concatenate([fold.unseen for fold in folds])
    assert np.array_equal(np.sort(turns), DATA.seen) and len(folds) == 5
    for fold in folds:
        images = np.concatenate([fold.train, fold.test_seen, fold.test_unseen])
        assert np.array_equal(np.sort(images), np.sort(DATA.train))
        assert not np.isin(DATA.labels[fold.train], fold.unseen).any()
    assert len(validation_folds(DATA, 0.2, count=1)) == 1
    halves = validation_folds(replace(DATA, val=DATA.seen[:15]), 0.2, count=5)
    assert [len(fold.unseen) for fold in halves] == [15, 15]  # about as many as in the first


def test_a_class_with_one_image_keeps_it_for_training():
    label = np.setdiff1d(DATA.seen, DATA.val)[0]
    images = DATA.train[DATA.labels[DATA.train] == label]
    fold = validation_fold(replace(DATA, train=np.setdiff1d(DATA.train, images[1:])), 0.2)
    assert images[0] in fold.train and label not in DATA.labels[fold.test_seen]
    first = np.unique(DATA.labels[DATA.train], return_index=True)[1]
    with pytest.raises(ValueError, match="every seen class has one training image"):
        validation_fold(replace(DATA, train=DATA.train[first]), 0.2)


def test_validation_without_validation_classes_is_refused():
    with pytest.raises(ValueError, match="0 of 30 seen classes are validation classes"):
        validation_fold(replace(DATA, val=DATA.val[:0]), 0.2)


@pytest.mark.parametrize(
    "name",
    [
        *("words", "knowledge", "paper_wavg", "paper_smo", "paper_smo_negative"),
        *("smo", "knowledge_smo", "onehot_smo", "image_smo"),
    ],
)
def test_predicted_rows_do_not_look_at_the_unseen_classes_own_embeddings(name):
    fold = validation_fold(DATA, 0.2)
    means = class_means(DATA.features, DATA.labels, DATA.train, 40)
    chosen = chosen_of(TOY.words)(TOY.own[fold.seen], fold.seen)
    inputs = RowInputs(fold.seen, fold.unseen, TOY.own, TOY.words, means, chosen=chosen)
    own, other = TOY.own.copy(), means.copy()
    own[DATA.val], other[DATA.val] = np.nan, np.nan
    found = ROWS[name].embed(replace(inputs, own=own, image_means=other))
    for block, expected in zip(found, ROWS[name].embed(inputs), strict=True):
        assert np.isfinite(block).all()
        assert np.array_equal(block, expected)


def test_the_oracle_does_look_at_them():
    fold = validation_fold(DATA, 0.2)
    own = TOY.own.copy()
    own[DATA.val] = np.nan
    (block,) = ROWS["oracle"].embed(RowInputs(fold.seen, fold.unseen, own))
    assert np.isnan(block[len(fold.seen) :]).all()


def test_validation_rows_are_mixtures_of_the_remaining_seen_classes():
    fold = validation_fold(DATA, 0.2)
    (block,) = ROWS["paper_smo"].embed(RowInputs(fold.seen, fold.unseen, TOY.own, TOY.words))
    weights = solve_relations(TOY.words[DATA.val], TOY.words[fold.seen]).weights
    assert_allclose(block[len(fold.seen) :], weights @ TOY.own[fold.seen], atol=1e-12)
    assert_allclose(block[: len(fold.seen)], TOY.own[fold.seen])


def test_the_one_hot_control_holds_the_relation_alone():
    chosen = ChosenKnowledge(TOY.words, 0.1)
    inputs = RowInputs(DATA.seen, DATA.unseen, TOY.own, chosen=chosen)
    (block,) = ROWS["onehot_smo"].embed(inputs)
    weights = solve_relations(TOY.words[DATA.unseen], TOY.words[DATA.seen], ridge=0.1).weights
    assert np.array_equal(block[: len(DATA.seen)], np.eye(len(DATA.seen)))
    assert_allclose(block[len(DATA.seen) :], weights)


def test_random_rows_of_a_class_are_the_same_in_every_fold():
    (final,) = ROWS["random"].embed(RowInputs(DATA.seen, DATA.unseen, TOY.own))
    (other,) = ROWS["random"].embed(RowInputs(DATA.seen[3:], DATA.unseen, TOY.own))
    assert np.array_equal(final[3:], other)


@pytest.mark.parametrize("count", [2, 3, 50])
def test_a_derangement_moves_every_row(count):
    moved = derangement(count, 0)
    assert sorted(moved) == list(range(count))
    assert (moved != np.arange(count)).all()


def test_z_scores_are_over_the_folds_seen_classes_and_have_unit_length():
    block = np.random.default_rng(0).normal(3, 2, size=(12, 5))
    block[:, 4] = 1.0
    expected = (block - block[:9].mean(0))[:, :4] / block[:9, :4].std(0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = assembled([block], 9, "z")
    assert_allclose(found[:, :4], expected)
    assert not found[:, 4].any()


def test_blocks_beside_each_other_weigh_the_same():
    rng = np.random.default_rng(0)
    found = assembled([rng.normal(size=(12, 5)), 100 * rng.normal(size=(12, 50))], 9, "none")
    assert_allclose(np.square(found[:9, :5]).sum(), np.square(found[:9, 5:]).sum())


def test_the_table_holds_all_rows_in_order(table):
    names = [row["name"] for row in table["rows"]]
    assert names == [
        "random", "words", "knowledge", "paper_wavg", "paper_smo", "paper_smo_negative",
        "smo", "knowledge_smo", "onehot_smo", "image_smo", "permuted", "oracle", "image_oracle",
    ]  # fmt: skip
    assert table["chance"] == pytest.approx(0.1)
    assert table["models"] == ["eszsl", "prototype"]
    for row in table["rows"]:
        for result in row["results"].values():
            for key in ("zsl", "seen", "unseen", "harmonic_mean", "val_zsl"):
                assert 0 <= result[key] <= 1
            assert np.isfinite(result["gamma"])
            assert result["params"]


@pytest.mark.parametrize("model", ["eszsl", "prototype"])
def test_rows_that_know_the_classes_win_and_controls_fail(table, model):
    assert _zsl(table, "smo", model) > 0.6
    assert _zsl(table, "words", model) > 0.6
    assert _zsl(table, "oracle", model) > 0.75
    assert _zsl(table, "image_oracle", model) > 0.9
    assert _zsl(table, "random", model) < 0.35
    assert _zsl(table, "permuted", model) < 0.25


def test_choices_do_not_depend_on_test_images(table):
    features = DATA.features.copy()
    test = np.concatenate([DATA.test_seen, DATA.test_unseen])
    features[test] = np.random.default_rng(9).normal(size=features[test].shape)
    own = TOY.own.copy()
    own[DATA.unseen] = 0
    other = evaluate(replace(DATA, features=features), own, TOY.words, CONFIG, RELATIONS, 0)
    for row, changed in zip(table["rows"], other["rows"], strict=True):
        for model, result in row["results"].items():
            for key in ("params", "val_zsl", "val_harmonic_mean"):
                assert result[key] == changed["results"][model][key]
            if row["group"] != "oracle":  # oracles embed unseen classes by their test images
                assert result["gamma"] == changed["results"][model]["gamma"]
    # The control: what was changed does matter to the scores.
    assert _zsl(other, "oracle") < 0.5 < _zsl(table, "oracle")


def test_test_images_were_opened_once_and_after_all_choices(table):
    opened = table["test_opened"]
    assert [entry["split"] for entry in opened] == ["test_seen", "test_unseen"]
    assert opened[0]["after"] == ["26 choices of hyper-parameters on 5 folds of the seen classes"]


def test_repeating_over_seeds_gives_means_and_deviations_of_what_is_random():
    config = EvaluationConfig(models=["eszsl"])
    found = evaluate(DATA, TOY.own, TOY.words, config, RELATIONS, 0, num_seeds=3)
    rows = {row["name"]: row["results"]["eszsl"] for row in found["rows"]}
    assert rows["random"]["std"]["zsl"] > 0
    assert rows["smo"]["std"]["zsl"] == 0


def test_given_embeddings_are_compared_with_random_ones():
    found = zsl_table.evaluate(DATA, partial(external_rows, False), TOY.own, None, CONFIG, 0)
    assert [row["name"] for row in found["rows"]] == ["random", "given"]
    assert _zsl(found, "given") > 0.75
    assert "above random vectors" in found["summary"]


def test_embeddings_of_another_number_of_classes_are_refused():
    with pytest.raises(ValueError, match="give one row a class"):
        evaluate(DATA, TOY.own[1:], TOY.words, CONFIG, RELATIONS, 0)


def test_a_class_without_word_vector_is_named():
    words = TOY.words.copy()
    words[DATA.unseen[0]] = np.nan
    with pytest.raises(ValueError, match=f"class {DATA.unseen[0]:02d}|unseen"):
        evaluate(DATA, TOY.own, words, CONFIG, RELATIONS, 0)


def test_the_harmonic_mean_without_calibration_is_that_at_a_gamma_of_0():
    fold = prepare(DATA, validation_fold(DATA, 0.2))
    classes = np.concatenate([validation_fold(DATA, 0.2).seen, DATA.val])
    embeddings = assembled([TOY.own[classes]], fold.num_seen, "z")
    choice = Choice({"gamma": 1.0, "lam": 1.0}, "z", 2.0, 0.5, 0.5)
    result, curve = final_result(MODELS["eszsl"], fold, embeddings, choice, 0)
    score = MODELS["eszsl"].fit(fold.training, embeddings[: fold.num_seen], **choice.params)
    plain = calibrated_stacking(generalised_scores(score, fold, embeddings), 0.0)
    assert result.uncalibrated_harmonic_mean == plain.harmonic_mean != result.harmonic_mean
    assert result.uncalibrated_seen == plain.seen
    assert result.uncalibrated_unseen == plain.unseen
    assert result.unseen > plain.unseen and result.seen < plain.seen
    unseen, seen = zip(*curve, strict=True)
    assert 0 < result.ausuc < 1 and list(unseen) == sorted(unseen) and seen[0] > seen[-1]


def test_a_model_whose_authors_take_the_plain_arg_max_is_not_calibrated():
    folds = [prepare(DATA, fold) for fold in validation_folds(DATA, 0.2)]
    classes = [np.concatenate([f.seen, f.unseen]) for f in validation_folds(DATA, 0.2)]

    def embeddings(number, normalise):
        return assembled([TOY.own[classes[number]]], folds[number].num_seen, normalise)

    plain = replace(MODELS["eszsl"], calibrated=False)
    choice, calibrated = (choose(m, folds, embeddings, "z", 0) for m in (plain, MODELS["eszsl"]))
    assert choice.gamma == 0.0 != calibrated.gamma and choice.params == calibrated.params
    assert calibrated.val_harmonic_mean > choice.val_harmonic_mean
    assert not MODELS["cada_vae"].calibrated and all(MODELS[m].calibrated for m in ("sje", "sae"))


def test_the_normalisation_with_the_best_accuracy_on_the_folds_is_chosen():
    """One dimension of far larger scale that says nothing: z-scores take it in, raw rows do not."""
    folds = [prepare(DATA, fold) for fold in validation_folds(DATA, 0.2)]
    classes = [np.concatenate([f.seen, f.unseen]) for f in validation_folds(DATA, 0.2)]
    noise = 1e4 * np.random.default_rng(0).normal(size=(40, 1))
    spoilt = np.concatenate([TOY.own, noise], 1)

    def embeddings(number, normalise):
        return assembled([spoilt[classes[number]]], folds[number].num_seen, normalise)

    found = {
        how: choose(MODELS["prototype"], folds, embeddings, how, 0)
        for how in ("auto", "z", "l2", "none")
    }
    assert found["auto"].normalise == "z" and found["auto"] == found["z"]
    assert found["z"].val_zsl > found["none"].val_zsl + 0.1


def test_cross_validation_scores_a_fold_with_what_the_others_choose():
    """What a fold says of itself moves its own score and not the choice it is scored with."""
    folds = [prepare(DATA, fold) for fold in validation_folds(DATA, 0.2, count=2)]
    classes = [np.concatenate([f.seen, f.unseen]) for f in validation_folds(DATA, 0.2, count=2)]

    def embeddings(number, normalise):
        return assembled([TOY.own[classes[number]]], folds[number].num_seen, normalise)

    model = MODELS["eszsl"]
    expected = []
    for mine, other in ((0, 1), (1, 0)):
        choice = choose(model, [folds[other]], lambda _, how, i=other: embeddings(i, how), "z", 0)
        result, _ = final_result(model, folds[mine], embeddings(mine, "z"), choice, 0)
        expected.append((result.zsl, result.seen, result.unseen, result.harmonic_mean))
    zsl, stacked = cross_validate(model, folds, embeddings, "z", 0)
    found = (zsl, stacked.seen, stacked.unseen, stacked.harmonic_mean)
    assert found == pytest.approx(tuple(np.mean(expected, axis=0)))


def test_a_table_without_models_is_refused():
    with pytest.raises(ValueError, match=r"evaluation\.models is empty"):
        evaluate(DATA, TOY.own, TOY.words, EvaluationConfig(models=[]), RELATIONS, 0)


def test_the_summary_says_what_clusters_and_relation_gained(table):
    clusters = {
        "nmi": 0.303, "nmi_kmeans": 0.262,
        "nearest_class_mean": 0.373, "nearest_class_mean_kmeans": 0.27,
    }  # fmt: skip
    sentence = summary_sentence(table | {"clusters": clusters})
    assert "hold more of the classes than k-means alone (NMI 0.303 against 0.262" in sentence
    assert "37.3 % against 27.0 %" in sentence
    mean = {row["name"]: 100 * np.mean([r["zsl"] for r in row["results"].values()])
            for row in table["rows"]}  # fmt: skip
    names = mean["knowledge"] - mean["words"]
    relation = mean["onehot_smo"] - mean["knowledge"]
    clusters_alone = mean["smo"] - mean["onehot_smo"]
    assert f"({names:+.1f} by what else is known of the names, {relation:+.1f} by the" in sentence
    assert f"{clusters_alone:+.1f} by the clusters)" in sentence
    assert "the paper's VGSE-SMO" in sentence
    assert sentence.count(".\n") == 0


def test_the_summary_owns_up_to_clusters_that_gained_nothing(table):
    clusters = {"nmi": 0.2, "nmi_kmeans": 0.26, "nearest_class_mean": 0.2,
                "nearest_class_mean_kmeans": 0.2}  # fmt: skip
    assert "hold no more of the classes than" in summary_sentence(table | {"clusters": clusters})


def test_the_terminal_table_of_four_models_fits_80_columns(table):
    models = ["eszsl", "prototype", "cada_vae", "sje"]
    rows = [row | {"results": {**row["results"]}} for row in table["rows"]]
    for row in rows:
        row["results"] |= dict.fromkeys(models[2:], row["results"]["eszsl"])
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(evaluation_table(table | {"models": models, "rows": rows}))
    text = console.export_text()
    for row in table["rows"]:
        assert row["label"] in text
    assert max(len(line) for line in text.splitlines()) <= 80
    assert f"{100 * _zsl(table, 'smo'):.1f}".replace("100.0", "100") in text
    assert "…" not in text


def test_the_final_fold_is_that_of_the_data():
    fold = final_fold(DATA)
    assert np.array_equal(fold.train, DATA.train)
    assert np.array_equal(fold.unseen, DATA.unseen)


def _names(relations, **options):
    return [row.name for row in table_rows(relations, 0, **options)]


def test_rows_that_would_repeat_another_are_left_out():
    assert "knowledge" not in _names(RELATIONS, words_alone=True)
    assert "paper_smo" in _names(RELATIONS, words_alone=True)
    paper = RelationConfig(ridge=1e-8)
    assert "paper_smo" not in _names(paper, words_alone=True)
    assert len(_names(paper)) == 13


def test_the_papers_average_is_not_divided_by_its_weights():
    inputs = RowInputs(DATA.seen, DATA.unseen, TOY.own, TOY.words)
    (block,) = ROWS["paper_wavg"].embed(inputs)
    distances = np.linalg.norm(TOY.words[DATA.unseen[0]] - TOY.words[DATA.seen], axis=1)
    nearest = np.argsort(distances)[:5]
    expected = np.exp(-5 * distances[nearest]) @ TOY.own[DATA.seen[nearest]]
    assert_allclose(block[len(DATA.seen)], expected)


def test_images_and_words_of_unseen_classes_do_not_reach_the_choice():
    rng = np.random.default_rng(0)
    own, words = TOY.own.copy(), TOY.words.copy()
    own[DATA.unseen] = rng.normal(size=own[DATA.unseen].shape)
    words[DATA.unseen] = rng.normal(size=words[DATA.unseen].shape)
    before, after = (
        chosen_of(w)(o[DATA.seen], DATA.seen).selection
        for o, w in ((TOY.own, TOY.words), (own, words))
    )
    assert before == after and len(before.curve) > 5


def test_an_earlier_choice_is_taken_for_the_same_question_only():
    knowledge = Knowledge(DATA.class_names, [Source("words", TOY.words, None)])
    own = TOY.own[DATA.seen]
    found = choose_knowledge(knowledge, TOY.words, DATA.seen, own, RELATIONS, 0)
    kept = json.loads(json.dumps(selection_summary(knowledge, found, RELATIONS, 0)))
    nothing = np.zeros_like(own)
    again = choose_knowledge(knowledge, TOY.words, DATA.seen, nothing, RELATIONS, 0, earlier=kept)
    assert again.selection == found.selection
    assert_allclose(again.vectors, found.vectors)
    del kept["question"]["version"]  # as files of an earlier version have it
    other = choose_knowledge(knowledge, TOY.words, DATA.seen, nothing, RELATIONS, 0, earlier=kept)
    assert other.selection != found.selection
    other = choose_knowledge(knowledge, TOY.words, DATA.seen, nothing, RELATIONS, 1, earlier=kept)
    assert other.selection != found.selection


def test_words_alone_with_a_ridge_stay_as_the_paper_takes_them():
    found = chosen_of(TOY.words, RelationConfig(ridge=1e-8))(TOY.own[DATA.seen], DATA.seen)
    assert np.array_equal(found.vectors, TOY.words) and found.selection is None
