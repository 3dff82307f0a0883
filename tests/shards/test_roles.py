"""Roles given at run time: what moves, what stays, and that no unseen image is left in training."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.manifest import SPLITS, Manifest, load_labels, load_manifest, manifest_json
from shards.roles import Roles, asked_roles, with_roles
from shards.sampler import select
from tiny import NAMES, UNSEEN, make_tiny
from vgse.errors import UserError

# texturea leaves the seen classes, texturek joins them.
OTHERS = ["texturea", *UNSEEN[1:]]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_tiny(tmp_path_factory.mktemp("roles"), train=6, test=5)


@pytest.fixture(scope="module")
def moved(packed: Manifest) -> Manifest:
    return with_roles(packed, asked_roles(packed, OTHERS, None))


def places(manifest: Manifest, split: str, name: str) -> set[tuple[str, int]]:
    """Shard and place of a class's images in a split."""
    selection, found = select(manifest, split), set()
    counts = manifest.shards.counts
    labels = np.split(load_labels(manifest), np.cumsum(counts)[:-1])
    labels_of = dict(zip((shard.file for shard in manifest.shards), labels, strict=True))
    for number, shard in enumerate(selection.shards):
        inside = selection.stored(number, np.arange(selection.counts[number]))
        own = inside[labels_of[shard.file][inside] == manifest.labels[name]]
        found |= {(shard.file, int(row)) for row in own}
    return found


@pytest.mark.parametrize(("there", "asked"), [("é", "e\u0301"), ("e\u0301", "é")])
def test_an_accent_may_be_spelled_in_two_ways(packed: Manifest, there: str, asked: str) -> None:
    classes = [replace(e, name=e.name.replace("texturea", there)) for e in packed.classes]
    roles = asked_roles(replace(packed, classes=classes), [asked, *UNSEEN[1:]], None)
    assert roles is not None and there in roles.unseen


def test_every_image_is_in_one_split_and_that_of_its_class(moved: Manifest) -> None:
    everything = [place for s in SPLITS for name in NAMES for place in places(moved, s, name)]
    assert len(everything) == len(set(everything)) == sum(s.count for s in moved.shards)
    for name in NAMES:
        unseen = name in OTHERS
        assert bool(places(moved, "test_unseen", name)) == unseen
        assert bool(places(moved, "train", name)) == bool(places(moved, "test_seen", name))
        assert bool(places(moved, "train", name)) != unseen


def test_a_class_that_stays_on_its_side_keeps_its_splits(packed: Manifest, moved: Manifest) -> None:
    for name in set(NAMES) - {"texturea", "texturek"}:
        for split in SPLITS:
            assert places(moved, split, name) == places(packed, split, name)


def test_all_images_of_a_class_that_becomes_unseen_are_test_images(
    packed: Manifest, moved: Manifest
) -> None:
    before = places(packed, "train", "texturea") | places(packed, "test_seen", "texturea")
    assert places(moved, "test_unseen", "texturea") == before


def test_images_of_a_class_that_becomes_seen_are_divided_as_those_of_the_others(
    packed: Manifest, moved: Manifest
) -> None:
    train, test = places(moved, "train", "texturek"), places(moved, "test_seen", "texturek")
    assert train | test == places(packed, "test_unseen", "texturek")
    assert len(test) == round(5 / 11 * 5)  # the share of test images among those of seen classes


def test_counts_follow_the_images(moved: Manifest) -> None:
    for split in SPLITS:
        counts = {name: len(places(moved, split, name)) for name in NAMES}
        assert moved.class_counts[split] == {name: n for name, n in counts.items() if n}
        assert moved.num_images(split) == sum(counts.values())


def test_a_selection_by_class_holds_none_of_another_split(moved: Manifest) -> None:
    label = moved.labels["texturek"]
    assert select(moved, "train", [label]).total == len(places(moved, "train", "texturek"))


def test_the_same_roles_divide_alike_and_others_have_another_fingerprint(
    packed: Manifest, moved: Manifest
) -> None:
    again = with_roles(load_manifest(packed.url), asked_roles(packed, OTHERS, None))
    assert again.fingerprint == moved.fingerprint != packed.fingerprint
    assert places(again, "train", "texturek") == places(moved, "train", "texturek")
    # How a class is divided does not hang on the others.
    alone = with_roles(packed, Roles(tuple(UNSEEN[1:]), ("textureb",)))
    assert places(alone, "train", "texturek") == places(moved, "train", "texturek")


def test_a_seed_draws_as_many_unseen_classes_and_a_share_for_validation(packed: Manifest) -> None:
    drawn = [asked_roles(packed, None, seed) for seed in range(4)]
    assert drawn == [asked_roles(packed, None, seed) for seed in range(4)]
    assert len({roles.unseen for roles in drawn if roles}) == 4
    for roles in drawn:
        assert roles is not None
        assert len(roles.unseen) == len(packed.unseen) and len(roles.val) == len(packed.val)
        assert not set(roles.unseen) & set(roles.val)


def test_classes_whose_training_images_are_not_packed_are_warned_of_as_they_become_seen(
    packed: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    asked_roles(packed, OTHERS, None)
    (record,) = caplog.records
    assert "without 24 training images of the classes" in record.getMessage()
    assert "1 are seen now; shards packed with --all_unseen true" in record.getMessage()
    caplog.clear()
    asked_roles(packed, [*UNSEEN, "texturea"], None)  # none becomes seen
    asked_roles(replace(packed, left_out={}), OTHERS, None)
    assert not caplog.records


def test_a_file_of_the_stored_unseen_classes_changes_nothing(
    packed: Manifest, tmp_path: Path
) -> None:
    (tmp_path / "unseen.txt").write_text("\n".join(UNSEEN) + "\n")
    assert asked_roles(packed, str(tmp_path / "unseen.txt"), None) is None
    assert with_roles(packed, None) is packed
    assert asked_roles(packed, UNSEEN, 0) is not None  # validation classes are drawn


@pytest.mark.parametrize(
    ("unseen", "problem"),
    [
        (["texturez"], "did you mean"),
        ([], "0 unseen"),
        (NAMES[1:], "1 seen classes"),
        ("nowhere.txt", "no such file"),
    ],
)
def test_roles_that_cannot_be_are_refused(
    packed: Manifest, unseen: list[str] | str, problem: str
) -> None:
    with pytest.raises(UserError, match=problem):
        asked_roles(packed, unseen, None)


def test_a_division_is_never_stored(packed: Manifest, moved: Manifest) -> None:
    back = replace(moved, classes=packed.classes, class_counts=packed.class_counts)
    assert manifest_json(back) == manifest_json(packed)
