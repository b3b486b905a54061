"""Nothing that a score is measured on may have a part in what is measured.

Each test first holds the protocol to chance, where only a leak could do better, and then plants the leak to
show that it would be seen.
"""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.feature_selection import SelectKBest, f_regression
from sklearn.preprocessing import StandardScaler

from pipeline_common.errors import UserError
from s4_classifier_data_prep.classifier_dataset import read_dataset, write_dataset
from s5_classifier_training.framework import experiment_run
from s5_classifier_training.framework.config import EstimatorConfig, ExperimentConfig
from s5_classifier_training.framework.estimators import build, build_searched
from s5_classifier_training.framework.evaluation import (
    Candidate,
    TrainRows,
    cross_validate,
    fit,
    make_folds,
    settle,
)
from s5_classifier_training.framework.experiment_run import run
from tests.s5.conftest import synthetic_dataset

CHANCE = 0.25
LABELS = np.arange(4)


def _config(name="logistic", **settings):
    return ExperimentConfig(estimators=[EstimatorConfig(name=name, **settings)])


def _results(dataset, config):
    return run(dataset, config, lambda *_: None).results


def _rows(y, groups=None, seed=0):
    groups = np.arange(len(y)) if groups is None else groups
    return TrainRows(y, groups, make_folds(y, groups, 5, seed)[0], LABELS, seed)


def _noise(n_sentences=400, n_inputs=8, seed=0):
    """No input knows anything of the labels, which come in random order."""
    labels = np.random.default_rng(seed).permutation(np.arange(n_sentences) % 4)
    return synthetic_dataset(labels=labels, n_inputs=n_inputs, effect=0.0, seed=seed)


def test_a_signal_that_only_test_rows_carry_is_not_learned():
    dataset = _noise()
    inputs = dataset.X.copy()
    inputs[dataset.held_out, 1] = 10 * dataset.label[dataset.held_out]
    planted = replace(dataset, X=inputs)
    config = _config(params={"C": 1.0})
    assert _results(planted, config)["test_accuracy"] < 0.45  # 80 test rows: 4 standard errors over chance

    # The leak: every test row also stands among the train rows.
    seen = np.flatnonzero(planted.held_out)
    rows = np.concatenate([np.arange(len(planted.y)), seen])
    per_row = {
        name: getattr(planted, name)[rows]
        for name in ("X", "y", "sentence_index", "group", "n_tokens", "label")
    }
    held_out = np.concatenate([planted.held_out, np.zeros(len(seen), dtype=bool)])
    leaky = replace(planted, **per_row, held_out=held_out)
    assert _results(leaky, config)["test_accuracy"] > 0.45


def test_near_duplicates_do_not_straddle_a_fold():
    rng = np.random.default_rng(0)
    y = np.repeat(rng.integers(0, 4, 60), 2)
    inputs = np.repeat(rng.normal(size=(60, 5)), 2, axis=0) + rng.normal(scale=0.01, size=(120, 5))
    model = build("k_nearest", {"n_neighbors": 1}, "classification", "standardize", 0)
    whole = cross_validate(model, inputs, _rows(y, np.arange(120) // 2), "accuracy", lambda: None)
    assert whole.mean < 0.45
    straddling = cross_validate(model, inputs, _rows(y), "accuracy", lambda: None)
    assert straddling.mean > 0.6


def test_near_duplicates_across_the_split_are_refused_before_they_are_scored(tmp_path):
    rng = np.random.default_rng(0)
    dataset = _noise()
    # Every test sentence is a train sentence in slightly other words.
    train, test = np.flatnonzero(~dataset.held_out), np.flatnonzero(dataset.held_out)
    twins = np.array([rng.choice(train[dataset.label[train] == label]) for label in dataset.label[test]])
    inputs, group = dataset.X.copy(), dataset.group.copy()
    inputs[test] = inputs[twins] + rng.normal(scale=0.01, size=inputs[test].shape)
    group[test] = group[twins]
    leaky = replace(dataset, X=inputs, group=group)
    assert _results(leaky, _config("k_nearest", params={"n_neighbors": 1}))["test_accuracy"] > 0.9
    write_dataset(tmp_path / "d.npz", leaky)
    with pytest.raises(UserError, match="has train rows and test rows, so the test would repeat"):
        read_dataset(tmp_path / "d.npz")


def test_the_scaler_has_the_parameters_of_the_rows_that_are_fitted():
    dataset = synthetic_dataset(n_sentences=80)
    inputs = dataset.X.copy()
    inputs[dataset.held_out] += 1000  # what a scaler fitted on everything would carry over
    outcome = run(replace(dataset, X=inputs), _config(), lambda *_: None)
    fitted = outcome.model.named_steps["normalize"]
    assert np.allclose(fitted.mean_, dataset.X[~dataset.held_out].mean(axis=0, dtype=np.float64), atol=1e-5)
    leaky = StandardScaler().fit(inputs)
    assert not np.allclose(fitted.mean_, leaky.mean_, atol=1)


def test_the_parameters_that_travel_with_the_dataset_are_not_used():
    dataset = synthetic_dataset(n_sentences=80)
    spoilt = replace(
        dataset,
        normalization_shift=dataset.normalization_shift + 1e6,
        normalization_scale=dataset.normalization_scale * 1e6,
    )
    assert _results(spoilt, _config()) == _results(dataset, _config())


@pytest.mark.parametrize("search", [{}, {"C": [0.1, 1.0]}], ids=["fixed", "searched"])
def test_inputs_are_chosen_without_the_rows_that_are_scored(search):
    dataset = _noise(n_sentences=160, n_inputs=20_000)
    params = {} if search else {"C": 1.0}
    honest = _results(dataset, _config(params=params, top_k=40, search=search))
    assert honest["cv_mean"] < 0.4  # 128 rows: 4 standard errors over chance
    assert honest["test_accuracy"] < 0.5  # 32 rows: 3 standard errors over chance

    # The leak: the same choice, made on all rows before the split was heeded.
    chosen = SelectKBest(f_regression, k=40).fit_transform(dataset.X, dataset.label)
    leaky = _results(replace(dataset, X=chosen), _config(params=params, search=search))
    assert leaky["cv_mean"] > 0.4
    assert leaky["test_accuracy"] > 0.5


def test_the_choice_of_inputs_is_made_anew_in_each_fold():
    dataset = _noise(n_sentences=120, n_inputs=500)
    rows = _rows(dataset.label)
    model = build("logistic", {}, "classification", "standardize", 0, top_k=5)
    chosen = []
    for fitted_rows, _ in rows.folds:
        fitted, _ = fit(model, dataset.X, rows, fitted_rows)
        expected = SelectKBest(f_regression, k=5).fit(dataset.X[fitted_rows], dataset.label[fitted_rows])
        assert np.array_equal(fitted.named_steps["select"].get_support(), expected.get_support())
        chosen.append(frozenset(np.flatnonzero(expected.get_support())))
    assert len(set(chosen)) > 1


def test_a_search_does_not_see_the_rows_that_it_is_scored_on():
    dataset = _noise(n_sentences=100, n_inputs=300, seed=1)
    model, grid = build_searched(
        "nearest_centroid", {}, "classification", "standardize", 0, None, {"top_k": [1, 300]}
    )
    rows = _rows(dataset.label)
    fitted_rows, held_out_rows = rows.folds[0]
    spoilt = dataset.X.copy()
    spoilt[held_out_rows] = 0
    spoilt[held_out_rows, 0] = 100 * dataset.label[held_out_rows]

    def settings(inputs, chosen):
        return settle(Candidate(model, grid), inputs, rows, chosen, "accuracy")[1]

    assert settings(spoilt, fitted_rows) == settings(dataset.X, fitted_rows)
    # The leak: the rows that are scored take part in the choice.
    everything = np.arange(100)
    assert settings(spoilt, everything) != settings(dataset.X, everything)


def test_a_nested_search_is_not_optimistic_where_the_best_of_many_is():
    """In noise the best of several settings scores above chance; chosen inside the folds it does not."""
    ks = [1, 2, 4, 8, 16, 32]
    best_of_many, nested = [], []
    for seed in range(8):
        dataset = _noise(n_sentences=80, n_inputs=200, seed=seed)
        rows = _rows(dataset.label, seed=seed)
        model, grid = build_searched(
            "nearest_centroid", {}, "classification", "standardize", 0, None, {"top_k": ks}
        )
        apart = [clone(model).set_params(select__k=k) for k in ks]
        means = [cross_validate(m, dataset.X, rows, "accuracy", lambda: None).mean for m in apart]
        best_of_many.append(max(means))
        found = cross_validate(Candidate(model, grid), dataset.X, rows, "accuracy", lambda: None)
        nested.append(found.mean)
    assert (
        abs(np.mean(nested) - CHANCE) < 0.04
    )  # 3 standard errors of the mean of eight, seen to vary by 0.04
    assert np.mean(best_of_many) > CHANCE + 0.04


def test_shuffled_labels_are_at_chance_and_a_leak_raises_the_warning(monkeypatch):
    dataset = synthetic_dataset(n_sentences=200, effect=3.0)
    config = _config("k_nearest", params={"n_neighbors": 1})
    results = _results(dataset, config)
    assert abs(results["baselines"]["shuffled_labels"]["cv_mean"] - CHANCE) < 0.11  # 160 rows, 3 errors
    assert not [warning for warning in results["warnings"] if "above chance" in warning]

    # The leak: each fold is fitted on its own held-out rows too.
    def leaky_folds(stratify, groups, n_folds, seed):
        folds, message = make_folds(stratify, groups, n_folds, seed)
        return [(np.arange(len(stratify)), held_out) for _, held_out in folds], message

    monkeypatch.setattr(experiment_run, "make_folds", leaky_folds)
    (warning,) = [w for w in _results(dataset, config)["warnings"] if "above chance" in w]
    assert "shuffled_labels: cv_mean 1.000 is above chance" in warning
