"""Intervals of AUROCs: against slow and obvious formulas, and how often they hold the true value."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import norm, t

from concept_evaluation.auroc_intervals import auroc_difference, auroc_intervals
from concept_evaluation.metrics import auroc


def one(scores, is_positive, groups=None):
    groups = np.arange(len(scores)) if groups is None else groups
    found = auroc_intervals(np.asarray(scores, dtype=float)[None], np.asarray(is_positive), groups)
    return float(found.auroc[0]), float(found.low[0]), float(found.high[0])


def draw(rng, n_positive, n_negative, shift, n_scores=1):
    is_positive = np.arange(n_positive + n_negative) < n_positive
    return rng.normal(size=(n_scores, len(is_positive))) + shift * is_positive, is_positive


@settings(deadline=None)
@given(st.data())
def test_properties(data):
    n = data.draw(st.integers(4, 30))
    scores = data.draw(arrays(np.int8, n, elements=st.integers(0, 3)))
    is_positive = np.array(data.draw(st.permutations([True, True, False, False] + [True, False] * 13)))[:n]
    if min(is_positive.sum(), (~is_positive).sum()) < 2:
        return
    value, low, high = one(scores, is_positive)
    assert value == pytest.approx(auroc(scores.astype(float), is_positive))
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.01  # a width at 0 and 1 too
    mirrored = one(-scores, is_positive)
    assert mirrored == pytest.approx((1 - value, 1 - high, 1 - low), abs=1e-9)
    assert one(scores * 2.5 + 1, is_positive) == pytest.approx((value, low, high))


def test_the_model_and_the_spread_by_hand():
    """With the placements' variance below the model's, the ends solve |t - a| = z sqrt(model(t))."""
    rng = np.random.default_rng(1)
    scores, is_positive = draw(rng, 30, 20, 1.5)
    value, low, high = one(scores[0], is_positive)
    m, n = 30, 20
    x, y = scores[0][is_positive], scores[0][~is_positive]
    v10 = np.array([np.mean((one > y) + 0.5 * (one == y)) for one in x])
    v01 = np.array([np.mean((one < x) + 0.5 * (one == x)) for one in y])
    a, b = v10.var(ddof=1) / m, v01.var(ddof=1) / n
    df = (a + b) ** 2 / (a**2 / (m - 1) + b**2 / (n - 1))

    def model(t):
        balance = (m + n) / 2 - 1
        return t * (1 - t) * (1 + balance * ((1 - t) / (2 - t) + t / (1 + t))) / (m * n)

    stretch = max(1, (a + b) / model(value))
    for end in (low, high):
        variance = min(stretch * model(end), end * (1 - end) / min(m, n))
        assert abs(end - value) == pytest.approx(t.ppf(0.975, df) * np.sqrt(variance), abs=1e-6)


def test_a_perfect_score_of_few_sentences_has_a_width():
    is_positive = np.arange(42) < 21
    value, low, high = one(is_positive.astype(float), is_positive)
    assert (value, high) == (1.0, 1.0)
    assert 0.8 < low < 0.95


def test_near_duplicates_count_as_about_one():
    rng = np.random.default_rng(2)
    scores, is_positive = draw(rng, 20, 20, 1.0)
    alone = one(scores[0], is_positive)
    doubled = one(np.repeat(scores[0], 2), np.repeat(is_positive, 2), np.repeat(np.arange(40), 2))
    naive = one(np.repeat(scores[0], 2), np.repeat(is_positive, 2))
    assert doubled == pytest.approx(alone, abs=1e-6)
    assert naive[2] - naive[1] < 0.8 * (alone[2] - alone[1])


def test_too_little_to_say():
    for is_positive, groups in (
        ([True, True, True], [0, 1, 2]),
        ([True, False, False], [0, 1, 2]),
        ([True, True, False, False], [0, 0, 1, 2]),
    ):
        value, low, high = one(np.arange(len(groups)), np.array(is_positive), np.array(groups))
        assert np.isnan([low, high]).all()
        assert np.isnan(value) == all(is_positive)
    assert auroc_difference(np.arange(3.0), np.ones(3), np.array([True, False, False]), np.arange(3)) is None


def test_differences():
    rng = np.random.default_rng(3)
    scores, is_positive = draw(rng, 40, 40, 1.0)
    good = scores[0]
    groups = np.arange(80)
    same = auroc_difference(good, good, is_positive, groups)
    # An interval is not symmetric about its AUROC, so a little is left of equal scores.
    assert same.difference == 0
    assert 0 < -same.low < 0.06
    assert 0 < same.high < 0.06
    noise = rng.normal(size=80)
    found = auroc_difference(good, noise, is_positive, groups)
    back = auroc_difference(noise, good, is_positive, groups)
    assert found.low > 0
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))
    assert found.resolution == pytest.approx(found.difference - found.low)
    near = auroc_difference(good, good + rng.normal(size=80) * 0.1, is_positive, groups)
    assert near.high - near.low < 0.5 * (found.high - found.low)  # paired: what both share cancels


def sparse(rng, n_scores, n, rate):
    return (rng.random((n_scores, n)) < rate) * rng.exponential(size=(n_scores, n))


def coverage(kind, true, n_positive, n_negative, n_scores=1000):
    """Share of draws whose interval holds the true AUROC."""
    rng = np.random.default_rng([n_positive, n_negative, round(1000 * true)])
    shape = (n_scores, n_positive), (n_scores, n_negative)
    groups = np.arange(n_positive + n_negative)
    if kind == "normal":
        positive, negative = rng.normal(norm.ppf(true) * 2**0.5, 1, shape[0]), rng.normal(size=shape[1])
    elif kind == "label 3 scatters":
        positive, negative = rng.normal(norm.ppf(true) * 10**0.5, 3, shape[0]), rng.normal(size=shape[1])
    elif kind == "sparse":
        positive, negative = (
            sparse(rng, n_scores, n_positive, 2 * true - 1 + 0.0),
            np.zeros(shape[1]),
        )
    elif kind == "pairs":
        halves = [rng.normal(size=(n_scores, (n + 1) // 2)) for n in (n_positive, n_negative)]
        positive, negative = (
            np.repeat(half, 2, axis=1)[:, :n] + 0.3 * rng.normal(size=(n_scores, n))
            for half, n in zip(halves, (n_positive, n_negative), strict=True)
        )
        positive += norm.ppf(true) * (2 * 1.09) ** 0.5
        groups = np.r_[np.arange(n_positive) // 2, 10_000 + np.arange(n_negative) // 2]
    found = auroc_intervals(
        np.concatenate([positive, negative], axis=1), np.arange(len(groups)) < n_positive, groups
    )
    return float(np.mean((found.low <= true) & (true <= found.high)))


@pytest.mark.parametrize("kind", ["normal", "label 3 scatters", "sparse", "pairs"])
@pytest.mark.parametrize("sizes", [(10, 10), (21, 21), (35, 35), (100, 100), (21, 63)])
@pytest.mark.parametrize("true", [0.5, 0.7, 0.9, 0.98, 0.99])
def test_intervals_hold_the_true_value(kind, sizes, true):
    """At least 93 of 100 times; 1.5 points are allowed for 1,000 draws (two standard errors)."""
    if kind == "sparse" and true == 0.5:
        true = 0.51
    assert coverage(kind, true, *sizes) >= 0.93 - 0.015


def test_a_percentile_bootstrap_would_fail_here():
    """The control: the same draws, the interval that was used before."""
    rng = np.random.default_rng(0)
    scores, is_positive = draw(rng, 21, 21, norm.ppf(0.98) * 2**0.5, 200)
    hits = 0
    for row in scores:
        samples = []
        for _ in range(200):
            rows = rng.integers(0, 42, 42)
            if 0 < is_positive[rows].sum() < 42:
                samples.append(auroc(row[rows], is_positive[rows]))
        low, high = np.quantile(samples, [0.025, 0.975])
        hits += low <= 0.98 <= high
    assert hits / 200 < 0.88
