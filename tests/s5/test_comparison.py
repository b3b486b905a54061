"""Paired tests between results, on predictions written by hand."""

import csv
import json
import re

import numpy as np
import pytest

from concept_evaluation.comparisons import holm, paired_bootstrap
from concept_evaluation.metrics import accuracy
from s5_classifier_training.framework import compare, train
from s5_classifier_training.framework.comparison import Entry, compare_with_best, main_score_of, n_tests
from tests.s5.conftest import RIDGE, synthetic_dataset

LABELS = [0, 1, 2, 3]


@pytest.fixture
def make_entry(tmp_path):
    """Writes predictions of 80 test rows in 40 groups, so many of them wrong, and returns the entry."""

    def make(name, n_wrong, cv_mean, main_score="accuracy", first="sentence", without=()):
        folder = tmp_path / name
        folder.mkdir()
        target = np.arange(80) % 4
        predicted = np.where(np.arange(80) < n_wrong, (target + 1) % 4, target)
        columns = ["split", "fold", "sentence_index", "group", "sentence", "target", "predicted"]
        rows = [["train", 1, 0, 999, "a train row", 3, ""]]
        rows += [
            ["test", "", row, row // 2, f"{first} {row}", target[row], predicted[row]] for row in range(80)
        ]
        kept = [place for place, column in enumerate(columns) if column not in without]
        with (folder / "predictions.csv").open("w", newline="") as handle:
            csv.writer(handle).writerows([row[place] for place in kept] for row in [columns, *rows])
        results = {"main_score": main_score, "cv_mean": cv_mean, "seed": 0, "labels": LABELS}
        return Entry("d3", name, folder, results)

    return make


def test_the_best_by_cv_mean_is_the_reference_and_holm_corrects(make_entry):
    """Not the best on test, which would be chosen by what is tested."""
    entries = [
        make_entry("v1_near", 9, cv_mean=0.7),
        make_entry("v2_best_by_cv", 8, cv_mean=0.9),
        make_entry("v3_bad", 50, cv_mean=0.4),
        make_entry("v4_best_on_test", 2, cv_mean=0.8),
    ]
    called = []
    standings, messages = compare_with_best(entries, lambda: called.append(1))
    assert len(called) == n_tests(entries) == 3
    assert all(standing.best is entries[1] for standing in standings)
    assert standings[1].comparison is None
    assert standings[1].adjusted_p is None
    rivals = [standing for standing in standings if standing.comparison is not None]
    assert [round(standing.comparison.difference * 80) for standing in rivals] == [-1, -42, 6]
    assert [standing.adjusted_p for standing in rivals] == holm(
        [standing.comparison.p_value for standing in rivals]
    )
    target, wrong = np.arange(80) % 4, np.arange(80)
    expected = paired_bootstrap(
        np.where(wrong < 50, (target + 1) % 4, target),
        np.where(wrong < 8, (target + 1) % 4, target),
        accuracy,
        target,
        np.array([str(row // 2) for row in range(80)]),
        seed=0,
    )
    assert standings[2].comparison == expected
    assert standings[2].adjusted_p < 0.01 < 0.1 < standings[0].adjusted_p
    (message,) = messages
    assert "minus that of d3 v2_best_by_cv" in message
    assert "of 4 with the same 80 test rows" in message


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"first": "another"}, "no other of these has the score accuracy on the same test sentences"),
        ({"main_score": "r2"}, "no other of these has the score r2 on the same test sentences"),
        ({"without": ("group",)}, "no paired test: .*column 'group' is missing; run train.py again"),
    ],
)
def test_what_cannot_be_paired_has_no_standing_and_a_message(make_entry, other, message):
    entries = [
        make_entry("v1", 10, 0.9),
        make_entry("v2", 12, 0.8),
        make_entry("v3", 5, 0.95, **other),
    ]
    standings, messages = compare_with_best(entries, lambda: None)
    assert standings[2] is None
    assert standings[0].comparison is None
    assert standings[1].best is entries[0]
    (of_third,) = [text for text in messages if text.startswith("d3 v3")]
    assert re.search(message, of_third)


def test_missing_predictions_are_a_message(make_entry):
    entries = [make_entry("v1", 10, 0.9), make_entry("v2", 12, 0.8)]
    (entries[1].folder / "predictions.csv").unlink()
    standings, messages = compare_with_best(entries, lambda: None)
    assert standings == [None, None]
    assert any(text.startswith("d3 v2: no paired test:") and "no such file" in text for text in messages)


def test_kappa_is_scored_over_every_label_of_the_results():
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(0)
    target, predicted = rng.integers(0, 4, 50), rng.integers(0, 4, 50)
    score = main_score_of({"main_score": "quadratic_weighted_kappa", "labels": LABELS})
    assert score(target, predicted) == pytest.approx(
        cohen_kappa_score(target, predicted, weights="quadratic")
    )


def test_compare_shows_and_writes_differences_and_p_values(make_experiment, tmp_path, capsys):
    """Two experiments on one dataset, and one on other data."""
    dataset = synthetic_dataset(n_sentences=200)
    good = make_experiment("good", dataset, "estimators:\n  - name: logistic\n    params: {C: 0.1}\n")
    bad = make_experiment("bad", dataset, "estimators:\n  - name: logistic\n    params: {C: 1.0e-9}\n")
    other = make_experiment("other", synthetic_dataset(target="activation"), RIDGE)
    names = [str(good), str(bad), str(other)]
    assert train.main(names) == 0
    capsys.readouterr()
    assert compare.main([*names, "--output", str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].rstrip().endswith("best")
    results = json.loads((other / "working" / "results.json").read_text())
    assert lines[3].endswith(f"{results['baselines']['shuffled_labels']['test_r2']:.3f}")  # two empty cells
    assert any("other working: no other of these has the score r2" in line for line in lines)
    with (tmp_path / "out" / "comparison.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    compared = [row for row in rows if row["difference"]]
    (row,) = compared
    assert (row["experiment"], row["score"], row["compared_with"]) == ("bad", "accuracy", "good working")
    bad_test, good_test = (
        json.loads((folder / "working" / "results.json").read_text())["test_accuracy"]
        for folder in (bad, good)
    )
    assert float(row["difference"]) == pytest.approx(bad_test - good_test)
    assert float(row["difference_low"]) <= float(row["difference"]) <= float(row["difference_high"]) < 0
    assert float(row["p_holm"]) == float(row["p_value"]) < 0.05
    assert f"{float(row['p_holm']):.4f}" in lines[2]
