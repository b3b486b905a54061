import numpy as np
import pytest

from concept_evaluation.bootstrap import (
    bootstrap_intervals,
    group_resamples,
    percentile_intervals,
)


def test_a_resample_holds_whole_groups():
    groups = np.array([5, 5, 1, 9, 9, 9])
    sizes = {5: 2, 1: 1, 9: 3}
    for rows in group_resamples(groups, 50, seed=0):
        drawn = groups[rows]
        for group, size in sizes.items():
            copies = np.bincount(rows, minlength=6)[groups == group]
            assert len(set(copies)) == 1
            assert (drawn == group).sum() == copies[0] * size


def test_the_interval_of_a_mean_is_close_to_the_normal_one():
    values = np.random.default_rng(0).normal(size=400)
    found = bootstrap_intervals(lambda rows: {"mean": float(values[rows].mean())}, np.arange(400), seed=1)
    half_width = 1.96 * values.std() / 20
    # The standard error of a quantile from 1,000 resamples is about 4% of the half width; four of them.
    assert found["mean"] == pytest.approx(
        (values.mean() - half_width, values.mean() + half_width), abs=0.16 * half_width
    )


def test_copies_of_a_row_in_its_group_do_not_narrow_the_interval():
    values = np.random.default_rng(0).normal(size=100)
    single = bootstrap_intervals(lambda rows: {"mean": float(values[rows].mean())}, np.arange(100), seed=1)
    copied, groups = np.repeat(values, 10), np.repeat(np.arange(100), 10)
    grouped = bootstrap_intervals(lambda rows: {"mean": float(copied[rows].mean())}, groups, seed=1)
    assert grouped["mean"] == pytest.approx(single["mean"])
    as_if_independent = bootstrap_intervals(
        lambda rows: {"mean": float(copied[rows].mean())}, np.arange(1000), seed=1
    )
    assert np.ptp(as_if_independent["mean"]) < 0.5 * np.ptp(grouped["mean"])


def test_one_group_gives_no_interval():
    assert bootstrap_intervals(lambda rows: {"n": 1.0}, np.zeros(5), seed=0) == {"n": None}


def test_resamples_without_a_value_are_left_out_or_end_the_interval():
    def scores(rows: np.ndarray) -> dict[str, float | None]:
        return {"usual": 1.0 if 0 in rows else None, "rare": 1.0 if np.sum(rows == 0) > 2 else None}

    found = bootstrap_intervals(scores, np.arange(20), seed=0)
    assert found == {"usual": (1.0, 1.0), "rare": None}


def test_a_seed_gives_one_result():
    values = np.random.default_rng(0).normal(size=30)
    first, second = (
        bootstrap_intervals(lambda rows: {"mean": float(values[rows].mean())}, np.arange(30), seed=7)
        for _ in range(2)
    )
    assert first == second


def test_intervals_side_by_side_equal_single_ones():
    rng = np.random.default_rng(0)
    samples = rng.normal(size=(200, 3))
    samples[:120, 1] = np.nan
    samples[:50, 2] = np.nan
    low, high = percentile_intervals(samples)
    assert np.isnan([low[1], high[1]]).all()
    for column, values in ((0, samples[:, 0]), (2, samples[50:, 2])):
        np.testing.assert_allclose([low[column], high[column]], np.quantile(values, [0.025, 0.975]))
    assert np.isnan(percentile_intervals(np.empty((0, 2)))).all()
