import csv
import random
import statistics

import numpy as np
import pytest

from s0_dataset_generation.ratings import (
    RatedSentence,
    agreement_of,
    agreement_text,
    ratings_path,
    write_ratings,
)


def rated(*ratings, intended=None):
    return RatedSentence("One.", ratings, intended)


@pytest.mark.parametrize(
    ("ratings", "judged", "is_tie", "agreement"),
    [
        ((2,), 2, False, None),
        ((3, 3), 3, False, 1.0),
        ((3, 2), None, True, 0.0),
        ((1, 3), None, True, 0.0),  # not 2, which nobody gave
        ((0, 1, 3), 1, False, 0.0),
        ((3, 0, 3), 3, False, 1 / 3),
        ((0, 2, 2, 3), 2, False, 1 / 6),
        ((0, 0, 3, 3), None, True, 2 / 6),
        ((2, None, 2), None, False, 1.0),
        ((None,), None, False, None),
    ],
)
def test_median_ties_and_agreement(ratings, judged, is_tie, agreement):
    item = rated(*ratings)
    assert (item.judged, item.is_tie) == (judged, is_tie)
    assert item.agreement == (None if agreement is None else pytest.approx(agreement, abs=1e-12))


def test_property_the_judged_label_is_a_median_that_some_rater_gave():
    draw = random.Random(2)
    for _ in range(2000):
        ratings = [draw.randrange(4) for _ in range(draw.randrange(1, 8))]
        judged = rated(*ratings).judged
        low, high = statistics.median_low(ratings), statistics.median_high(ratings)
        assert judged == (low if low == high else None)
        assert judged is None or judged in ratings
        assert rated(*draw.sample(ratings, len(ratings))).judged == judged


def test_kappas_against_their_definition():
    draw = np.random.default_rng(0)
    intended = draw.integers(0, 4, 200)
    judged = np.clip(intended + draw.integers(-1, 2, 200), 0, 3)
    items = [rated(int(j), intended=int(i)) for i, j in zip(intended, judged, strict=True)]
    observed = np.zeros((4, 4))
    for one, other in zip(intended, judged, strict=True):
        observed[one, other] += 1
    expected = np.outer(observed.sum(1), observed.sum(0)) / 200
    found = agreement_of([*items, rated(0, 3, intended=1), rated(2)])  # neither of the last two counts
    assert found.intended_by_judged == observed.astype(int).tolist()
    for kappa, weights in (
        (found.cohens_kappa, 1 - np.eye(4)),
        (found.quadratic_weighted_kappa, np.subtract.outer(np.arange(4), np.arange(4)) ** 2),
    ):
        assert kappa == pytest.approx(1 - (weights * observed).sum() / (weights * expected).sum(), abs=1e-12)
    assert found.cohens_kappa < found.quadratic_weighted_kappa  # here judges miss by one at most


def test_what_is_undefined_is_none_and_said():
    alike = [rated(2, intended=2), rated(2, intended=2)]
    assert agreement_of(alike).cohens_kappa is None
    assert agreement_text(alike).count("kappa: undefined") == 2
    assert agreement_of([rated(3, intended=0)] * 2).quadratic_weighted_kappa == 0.0
    assert agreement_text([rated(2), rated(1)]) == ""  # one rater, nothing intended: nothing to compare
    assert agreement_text([rated(2, 2), rated(1, 3)]) == (
        "2 raters: 50.0% of pairs of ratings are equal; 1 sentences without label because of a tie"
    )


def test_sidecar_holds_every_rating_and_ends_with_the_dropped(tmp_path):
    path = ratings_path(tmp_path / "new" / "data.csv")
    items = [
        RatedSentence("Tied.", (0, 3), 3),
        RatedSentence('She said "yes", twice.', (2, 2), 3),
        RatedSentence("Refused.", (1, None), 1),
        RatedSentence("Clear.", (0, 0), 0),
    ]
    write_ratings(path, items)
    with path.open(newline="") as handle:
        rows = list(csv.reader(handle))
    assert path.name == "data_ratings.csv"
    assert rows == [
        ["sentence", "intended_label", "rating_1", "rating_2", "judged_label", "agreement"],
        ['She said "yes", twice.', "3", "2", "2", "2", "1"],
        ["Clear.", "0", "0", "0", "0", "1"],
        ["Tied.", "3", "0", "3", "", "0"],
        ["Refused.", "1", "1", "", "", ""],
    ]
    write_ratings(path, [RatedSentence("One.", (2,))])
    assert path.read_text() == "sentence,rating_1,judged_label,agreement\nOne.,2,2,\n"
