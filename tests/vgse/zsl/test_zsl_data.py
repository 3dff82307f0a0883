"""The zero-shot data: what contradicts itself is refused, and test images are given out once."""

from dataclasses import replace

import numpy as np
import pytest

from vgse.zsl.data import with_validation
from vgse.zsl.folds import TestGuard
from zsl_toy import make_toy

TOY = make_toy()
DATA = TOY.data


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": DATA.labels[:-1]}, "give one row of features an image"),
        ({"labels": DATA.labels + 1}, "labels count from 0"),
        ({"features": np.ones_like(DATA.features)}, "the same for all images"),
        ({"class_names": ["a"] * 40}, "hold a name twice"),
        ({"unseen": DATA.seen[:1]}, "both seen and unseen: class"),
        ({"val": DATA.unseen[:1]}, "validation classes must be seen classes"),
        (
            {"seen": DATA.seen[1:], "val": DATA.val[:0]},
            "train holds images of classes that are not",
        ),
        (
            {"train": DATA.train[DATA.labels[DATA.train] != DATA.seen[0]]},
            "without a training image",
        ),
        ({"test_seen": DATA.train[:1]}, "stands in two of train, test_seen and test_unseen"),
        ({"test_unseen": DATA.test_unseen[:0]}, "test_unseen holds no image"),
        ({"train": DATA.train + 10_000}, "train points outside the 480 images"),
    ],
)
def test_contradictions_are_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        replace(DATA, **change)
    assert "\n" not in str(caught.value)


def test_nan_features_are_refused_with_their_row():
    features = DATA.features.copy()
    features[7, 3] = np.nan
    with pytest.raises(ValueError, match="in 1 rows, first 7"):
        replace(DATA, features=features)


def test_own_validation_classes_stay():
    assert with_validation(DATA) is DATA


def test_missing_validation_classes_are_a_seeded_fifth_of_the_seen_ones():
    without = replace(DATA, val=DATA.val[:0])
    chosen = with_validation(without, seed=3)
    assert len(chosen.val) == 6
    assert np.isin(chosen.val, DATA.seen).all()
    assert np.array_equal(chosen.val, with_validation(without, seed=3).val)
    assert not np.array_equal(chosen.val, with_validation(without, seed=4).val)


def test_the_guard_gives_test_images_out_once():
    guard = TestGuard(DATA)
    opened = guard.open("final table")
    assert np.array_equal(opened.test_unseen, DATA.test_unseen)
    assert np.array_equal(opened.test_seen, DATA.test_seen)
    with pytest.raises(ValueError, match="opened for final table: make every choice on validation"):
        guard.open("a second look")


def test_the_guard_writes_down_what_was_opened_for_what_and_after_what():
    guard = TestGuard(DATA)
    guard.note("33 choices")
    guard.open("final table")
    assert [entry["split"] for entry in guard.log] == ["test_seen", "test_unseen"]
    assert [entry["order"] for entry in guard.log] == [1, 2]
    assert guard.log[1]["images"] == len(DATA.test_unseen)
    assert guard.log[0]["purpose"] == "final table"
    assert guard.log[0]["after"] == ["33 choices"]


def test_nothing_can_be_chosen_after_opening():
    guard = TestGuard(DATA)
    guard.open("final table")
    with pytest.raises(ValueError, match="open already"):
        guard.note("one more choice")
