import itertools

import numpy as np
import pytest

from concept_evaluation.bootstrap import bootstrap_intervals
from concept_evaluation.comparisons import holm, paired_bootstrap
from concept_evaluation.metrics import accuracy, auroc, r2


def two_predictors(rng, n_rows, first_right, second_right):
    """Predictions of a binary target that are right with the given chances, independently."""
    target = rng.integers(0, 2, n_rows)
    return (
        target,
        *(
            np.where(rng.random(n_rows) < chance, target, 1 - target)
            for chance in (first_right, second_right)
        ),
    )


def test_equals_the_plain_loop():
    rng = np.random.default_rng(0)
    target, first, second = two_predictors(rng, 60, 0.8, 0.6)
    groups = np.arange(60) // 3
    found = paired_bootstrap(first, second, accuracy, target, groups, seed=5, n_resamples=200)
    draws, differences = np.random.default_rng(5), []
    for _ in range(200):
        rows = [row for group in draws.integers(0, 20, size=20) for row in range(3 * group, 3 * group + 3)]
        right = [(first[row] == target[row], second[row] == target[row]) for row in rows]
        differences.append(sum(a for a, _ in right) / len(rows) - sum(b for _, b in right) / len(rows))
    at_most = sum(difference <= 0 for difference in differences)
    at_least = sum(difference >= 0 for difference in differences)
    assert found.difference == pytest.approx(np.mean(first == target) - np.mean(second == target))
    assert found.p_value == min(1, 2 * (1 + min(at_most, at_least)) / 201)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(differences, [0.025, 0.975])))


def test_a_better_predictor_is_found_and_the_order_changes_the_sign_alone():
    target, good, bad = two_predictors(np.random.default_rng(0), 200, 0.9, 0.6)
    one, other = (
        paired_bootstrap(*pair, accuracy, target, np.arange(200), seed=1, n_resamples=500)
        for pair in ((good, bad), (bad, good))
    )
    assert one.p_value == other.p_value == pytest.approx(2 / 501)
    assert 0 < one.low < one.difference < one.high
    assert one.difference == -other.difference


def test_predictors_that_are_alike_are_rarely_called_different():
    """Negative control: 200 pairs of equally good predictors."""
    rng = np.random.default_rng(3)
    p_values = []
    for seed in range(200):
        target, first, second = two_predictors(rng, 80, 0.7, 0.7)
        found = paired_bootstrap(first, second, accuracy, target, np.arange(80), seed, n_resamples=99)
        p_values.append(found.p_value)
    # Expected 10 of 200; the 99.9% point of that binomial is 21.
    assert np.sum(np.array(p_values) <= 0.05) <= 21
    assert np.mean(p_values) > 0.35


def test_copies_of_a_row_in_its_group_add_no_evidence():
    target, first, second = two_predictors(np.random.default_rng(2), 60, 0.75, 0.62)
    single = paired_bootstrap(first, second, accuracy, target, np.arange(60), seed=0, n_resamples=999)
    copied = [np.repeat(values, 10) for values in (first, second)]
    arguments = (accuracy, np.repeat(target, 10))
    grouped = paired_bootstrap(*copied, *arguments, np.repeat(np.arange(60), 10), seed=0, n_resamples=999)
    as_if_independent = paired_bootstrap(*copied, *arguments, np.arange(600), seed=0, n_resamples=999)
    assert grouped == single
    assert as_if_independent.p_value < 0.2 * grouped.p_value


def test_a_paired_interval_is_narrower_than_that_of_one_score():
    """What makes a sample easy or hard for both cancels."""
    rng = np.random.default_rng(0)
    target = np.arange(120) % 2 == 0
    shared = rng.normal(size=120) + target
    better = shared + 0.5 * target

    def score(target: np.ndarray, scores: np.ndarray) -> float | None:
        return auroc(scores, target)

    paired = paired_bootstrap(better, shared, score, target, np.arange(120), seed=0, n_resamples=1000)
    assert 0 < paired.low < paired.high
    single = bootstrap_intervals(lambda rows: {"a": auroc(shared[rows], target[rows])}, np.arange(120), 0)
    assert paired.high - paired.low < single["a"][1] - single["a"][0]


def test_equal_predictions_and_what_has_no_value():
    target = np.arange(20) % 2
    same = paired_bootstrap(target, target, accuracy, target, np.arange(20), seed=0, n_resamples=50)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert paired_bootstrap(target, target, accuracy, target, np.zeros(20), seed=0) is None
    constant = np.ones(20)
    assert paired_bootstrap(constant, constant, r2, constant, np.arange(20), seed=0, n_resamples=50) is None


def test_holm_against_closed_testing():
    """A hypothesis falls where every family that holds it falls by Bonferroni: slow, and by definition."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        p_values = (rng.random(5) ** 3).round(3)
        expected = [
            max(
                min(1.0, size * min(p_values[list(family)]))
                for size in range(1, 6)
                for family in itertools.combinations(range(5), size)
                if index in family
            )
            for index in range(5)
        ]
        assert holm(p_values.tolist()) == pytest.approx(expected)
    assert holm([]) == []
