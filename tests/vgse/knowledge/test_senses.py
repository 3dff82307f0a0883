"""Which sense of a noun a class has, by the company that its word vector keeps."""

import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest

from vgse.knowledge.hierarchy import ancestor_weights
from vgse.knowledge.senses import FEWEST_RELATIVES, Weights, weigh_senses

ANIMALS = [f"animal{i}" for i in range(8)]
CLOTHES = [f"garment{i}" for i in range(8)]
SEEN = [*ANIMALS, *CLOTHES]
LIVING, WORN, TURTLE, COLLAR = 1, 2, 3, 4
PARENTS = {TURTLE: [LIVING], COLLAR: [WORN]}
SENSES: dict[str, list[int]] = {"turtle": [COLLAR, TURTLE]}
for number, (name, parent) in enumerate(
    [(n, LIVING) for n in ANIMALS] + [(n, WORN) for n in CLOTHES], 10
):
    SENSES[name], PARENTS[number] = [number], [parent]


def word_vectors(seed: int = 0) -> dict[str, np.ndarray]:
    """Animals near to one axis, garments to another, and the turtle among animals."""
    rng = np.random.default_rng(seed)
    axes = {name: np.eye(6)[0] for name in [*ANIMALS, "turtle"]}
    axes |= {name: np.eye(6)[1] for name in CLOTHES}
    return {name: axis + 0.3 * rng.normal(size=6) for name, axis in axes.items()}


def weigh(
    senses: dict[str, list[int]] = SENSES,
    vectors: dict[str, np.ndarray] | None = None,
    seen: Sequence[str] = SEEN,
    agreement: float = 3.0,
    sense_decay: float = 0.6,
) -> dict[str, Weights]:
    return weigh_senses(
        *(senses, lambda node: PARENTS.get(node, []), vectors or word_vectors(), seen),
        sense_decay=sense_decay,
        decay=0.9,
        agreement=agreement,
    )


def test_a_sense_of_the_kind_that_the_word_vector_is_near_to_comes_first() -> None:
    weights = weigh()["turtle"]
    assert list(weights) == [TURTLE, COLLAR] and weights[TURTLE] == 1
    assert weights[COLLAR] < 0.2


def test_a_word_vector_among_garments_leaves_the_collar_first() -> None:
    vectors = word_vectors()
    weights = weigh(vectors=vectors | {"turtle": vectors["garment0"]})["turtle"]
    assert list(weights) == [COLLAR, TURTLE] and weights[TURTLE] < 0.1


def test_word_vectors_without_order_leave_nearly_the_order_of_wordnet() -> None:
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        vectors = {name: rng.normal(size=50) for name in SENSES}
        found.append(weigh(vectors=vectors)["turtle"][TURTLE])
    assert 0.3 < np.median(found) < 1  # 0.6 without an agreement


@pytest.mark.parametrize("how", ["off", "no vector", "few"])
def test_without_word_vectors_the_order_of_wordnet_stays(how: str) -> None:
    vectors, seen, agreement = word_vectors(), SEEN, 3.0
    if how == "off":
        agreement = 0.0
    elif how == "no vector":
        del vectors["turtle"]
    else:
        seen = [*ANIMALS[:5], *CLOTHES[: FEWEST_RELATIVES - 6]]
    assert weigh(vectors=vectors, seen=seen, agreement=agreement)["turtle"] == {
        COLLAR: 1.0,
        TURTLE: 0.6,
    }
    assert all(len(weights) == 1 for name, weights in weigh().items() if name != "turtle")


def test_only_names_of_seen_classes_tell_the_sense_of_another() -> None:
    before = weigh()["turtle"]
    far = {f"unseen{i}": np.eye(6)[1] * 9 for i in range(30)}
    senses = SENSES | {name: [COLLAR, 2] for name in far}
    assert weigh(senses, word_vectors() | far)["turtle"] == before
    assert weigh(senses, word_vectors() | far, [*SEEN, *far])["turtle"] != before


def test_the_class_itself_is_no_relative_of_its_senses() -> None:
    seen = weigh(seen=[*SEEN, "turtle"])["turtle"]
    assert list(seen) == [TURTLE, COLLAR]
    vectors = word_vectors()
    alone = {name: vector * 0 + 1.0 for name, vector in vectors.items()} | {"turtle": np.eye(6)[0]}
    assert weigh(vectors=alone, seen=[*SEEN, "turtle"])["turtle"] == {COLLAR: 1.0, TURTLE: 0.6}


def made_nouns(num_classes: int) -> tuple[dict[str, list[int]], dict[int, list[int]]]:
    """Class -> five senses, and node -> parents in a tree four deep."""
    rng = np.random.default_rng(0)
    parents = {node: [node // 4] if node > 3 else [] for node in range(1, 400)}
    senses = {
        f"class{i}": rng.choice(np.arange(100, 400), 5, replace=False).tolist()
        for i in range(num_classes)
    }
    return senses, parents


def test_senses_weigh_by_pearsons_correlation_whatever_the_order_of_classes() -> None:
    senses, parents = made_nouns(40)
    rng = np.random.default_rng(1)
    vectors = {name: rng.normal(size=8) for name in senses}
    seen = list(senses)[:25]
    options = {"sense_decay": 0.6, "decay": 0.9, "agreement": 3.0}
    found = weigh_senses(senses, lambda n: parents[n], vectors, seen, **options)

    def row(starts: Weights) -> np.ndarray:
        weights = ancestor_weights(starts, lambda n: parents[n], 0.9)
        return np.array([weights.get(node, 0.0) for node in range(400)])

    context = np.array([row({n: 0.6**i for i, n in enumerate(senses[name])}) for name in seen])
    content = np.log(len(seen) / np.maximum((context > 0).sum(0), 1))
    context = np.sqrt(content) * context
    context /= np.linalg.norm(context, axis=1, keepdims=True)
    centre = np.mean([vectors[name] for name in seen], 0)
    for name in (seen[0], seen[24], "class30"):  # two of the context and another
        others = [i for i, other in enumerate(seen) if other != name]
        units = np.array([vectors[seen[i]] - centre for i in others])
        cosines = units @ (vectors[name] - centre) / np.linalg.norm(units, axis=1)
        shared = context[others] @ (np.sqrt(content) * [row({n: 1.0}) for n in senses[name]]).T
        rho = np.array([np.corrcoef(column, cosines)[0, 1] for column in shared.T])
        expected = 0.6 ** np.arange(5) * np.exp(3 * rho)
        weights = [found[name][n] for n in senses[name]]
        np.testing.assert_allclose(weights, expected / expected.max(), rtol=1e-5)

    turned = dict(reversed(senses.items()))
    again = weigh_senses(turned, lambda n: parents[n], vectors, seen[::-1], **options)
    for name, weights in found.items():
        assert list(again[name]) == list(weights)
        np.testing.assert_allclose(list(again[name].values()), list(weights.values()))


def test_senses_of_thousands_of_classes_are_compared_in_little_memory() -> None:
    senses, parents = made_nouns(1000)
    rng = np.random.default_rng(1)
    vectors = {name: rng.normal(size=8) for name in senses}
    tracemalloc.start()
    weigh_senses(
        *(senses, lambda n: parents[n], vectors, senses), sense_decay=0.6, decay=0.9, agreement=3.0
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * 5 * 1000 * 1000  # a float32 for every sense and class


def test_a_sense_that_is_listed_twice_counts_once() -> None:
    senses = SENSES | {"turtle": [COLLAR, COLLAR, TURTLE]}
    assert weigh(senses) == weigh()


def test_senses_that_start_alike_or_not_at_all_stay_finite_under_the_largest_agreement() -> None:
    for agreement in (3.0, 100.0):
        alike = weigh(sense_decay=1, agreement=agreement)["turtle"]
        assert list(alike) == [TURTLE, COLLAR] and 0 <= alike[COLLAR] < 0.1
        first = weigh(sense_decay=0, agreement=agreement)["turtle"]
        assert first == {COLLAR: 1.0, TURTLE: 0.0}
