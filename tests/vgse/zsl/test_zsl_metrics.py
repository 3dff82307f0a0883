"""Metrics against counts by hand and against brute force."""

from dataclasses import astuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vgse.zsl.metrics import (
    GeneralisedScores,
    best_gamma,
    calibrated_stacking,
    harmonic_mean,
    per_class_top1,
    seen_unseen_area,
    stacking_curve,
)


def test_per_class_top1_is_a_mean_over_classes_and_not_over_images():
    labels = [0, 0, 0, 0, 1, 1, 3]
    predictions = [0, 0, 0, 1, 1, 0, 3]
    assert per_class_top1(predictions, labels) == pytest.approx((3 / 4 + 1 / 2 + 1) / 3)


def test_a_class_without_images_does_not_count():
    assert per_class_top1([5, 5], [5, 5]) == 1


def test_harmonic_mean_by_hand():
    assert harmonic_mean(0.6, 0.3) == pytest.approx(0.4)
    assert harmonic_mean(0.6, 0.0) == 0
    assert harmonic_mean(0.0, 0.0) == 0


def _scores(rng: np.random.Generator, num_seen: int, num_unseen: int, images: int, scale: float):
    total = num_seen + num_unseen
    labels_seen = rng.integers(0, num_seen, images)
    labels_unseen = rng.integers(num_seen, total, images)
    of_seen, of_unseen = scale * rng.normal(size=(2, images, total))
    of_seen[np.arange(images), labels_seen] += scale
    of_unseen[np.arange(images), labels_unseen] += scale
    of_unseen[:, :num_seen] += scale  # the usual bias towards seen classes
    return GeneralisedScores(of_seen, of_unseen, labels_seen, labels_unseen, num_seen)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-4, 1.0, 1e4]))
def test_the_chosen_gamma_is_the_best_of_all_at_any_scale(seed, scale):
    scores = _scores(np.random.default_rng(seed), 4, 3, 25, scale)
    gamma, best = best_gamma(stacking_curve([(scores, 1.0)]))
    both = np.concatenate([scores.of_seen, scores.of_unseen])
    margins = np.sort(both[:, :4].max(1) - both[:, 4:].max(1))  # an image changes sides there only
    between = (margins[1:] + margins[:-1]) / 2
    every = [margins[0] - scale, *between, margins[-1] + scale, *np.linspace(-8, 8, 50) * scale]
    assert astuple(best) == pytest.approx(astuple(calibrated_stacking(scores, gamma)))
    others = max(calibrated_stacking(scores, g).harmonic_mean for g in every)
    assert best.harmonic_mean >= others - 1e-12


def test_calibration_helps_where_scores_lean_towards_seen_classes():
    scores = _scores(np.random.default_rng(0), 6, 4, 400, 1.0)
    gamma, best = best_gamma(stacking_curve([(scores, 1.0)]))
    plain = calibrated_stacking(scores, 0.0)
    assert gamma > 0.3
    assert best.harmonic_mean > plain.harmonic_mean + 0.02


def test_equal_scores_do_not_hide_a_gamma():
    constant = np.ones((6, 4))
    labels = np.array([0, 0, 1, 1, 0, 1])
    scores = GeneralisedScores(constant, constant, labels, labels + 2, 2)
    gamma, best = best_gamma(stacking_curve([(scores, 1.0)]))
    assert np.isfinite(gamma)
    assert best.harmonic_mean == 0


def test_the_curve_holds_what_stacking_gives_at_any_gamma():
    scores = _scores(np.random.default_rng(1), 5, 3, 40, 1.0)
    curve = stacking_curve([(scores, 2.0)])
    for gamma in (-3.0, -0.2, 0.0, 0.7, 4.0):
        expected = calibrated_stacking(scores, 2.0 * gamma)
        assert astuple(curve.at(gamma)) == pytest.approx(astuple(expected))


def test_folds_weigh_the_same_whatever_their_images_and_units():
    large, small = (_scores(np.random.default_rng(i), 5, 3, n, 1.0) for i, n in ((2, 90), (3, 15)))
    curve = stacking_curve([(large, 1.0), (small, 0.5)])
    expected = [calibrated_stacking(large, 0.6), calibrated_stacking(small, 0.3)]
    assert curve.at(0.6).seen == pytest.approx(np.mean([part.seen for part in expected]))
    assert curve.at(0.6).unseen == pytest.approx(np.mean([part.unseen for part in expected]))


def test_the_area_under_the_curve_is_one_for_perfect_scores_and_small_for_chance():
    scores = _scores(np.random.default_rng(0), 6, 4, 400, 1.0)
    perfect = GeneralisedScores(
        np.eye(10)[scores.labels_seen], np.eye(10)[scores.labels_unseen],
        scores.labels_seen, scores.labels_unseen, 6,
    )  # fmt: skip
    assert seen_unseen_area(stacking_curve([(perfect, 1.0)])) == pytest.approx(1.0)
    wrong = GeneralisedScores(
        *np.random.default_rng(1).normal(size=(2, 400, 10)),
        scores.labels_seen, scores.labels_unseen, 6,
    )  # fmt: skip
    assert seen_unseen_area(stacking_curve([(wrong, 1.0)])) < 0.1
    points = stacking_curve([(scores, 1.0)]).points(11)
    assert len(points) == 11 and points == sorted(points) and points[0][0] == 0.0
