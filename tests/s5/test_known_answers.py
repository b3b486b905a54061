"""Data whose right answer is known, and data that is hardly enough for one."""

from dataclasses import replace

import numpy as np
import pytest

from pipeline_common.errors import UserError
from s5_classifier_training.framework.config import EstimatorConfig, ExperimentConfig
from s5_classifier_training.framework.estimators import ESTIMATORS
from s5_classifier_training.framework.experiment_run import resolve_task, run
from tests.s5.conftest import synthetic_dataset

WEAK = {
    "logistic": {"C": 1.0},
    "ordinal": {"C": 1.0},
    "ridge": {"alpha": 1.0},
    "linear_svm": {"C": 0.1},
    "random_forest": {"n_estimators": 30},
    "gradient_boosting": {"n_estimators": 20},
}
"""Weaker regularisation than the defaults, which suit far more inputs, and fewer trees."""


def _run(dataset, name="logistic", task="auto", **settings):
    config = ExperimentConfig(task=task, estimators=[EstimatorConfig(name=name, **settings)])
    return run(dataset, config, lambda *_: None)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_labels_that_lie_far_apart_are_all_found(name):
    dataset = synthetic_dataset(n_sentences=120, n_inputs=1, effect=30.0)
    results = _run(dataset, name, params=WEAK.get(name, {})).results
    if name in ("ridge", "linear_svm"):  # one line against the rest cannot cut out the two middle labels
        assert results["test"]["auroc_3_vs_0"]["value"] == 1
    else:
        assert results["test_accuracy"] == results["cv_mean"] == 1


def test_a_target_that_is_an_input_is_predicted_to_the_last_digit():
    dataset = synthetic_dataset(target="activation", effect=2.0)
    exact = replace(dataset, y=(3 * dataset.X[:, 0] + 2).astype(np.float32))
    results = _run(exact, "ridge", params={"alpha": 1e-8}).results
    assert results["test_r2"] == pytest.approx(1, abs=1e-6)
    assert results["test"]["mae"]["value"] < 1e-3
    assert results["test"]["spearman"]["value"] == pytest.approx(1)


def test_noise_is_at_chance():
    labels = np.random.default_rng(0).permutation(np.arange(400) % 4)
    results = _run(synthetic_dataset(labels=labels, effect=0.0)).results
    assert abs(results["cv_mean"] - 0.25) < 0.07  # 320 rows, 3 standard errors
    assert abs(results["test_accuracy"] - 0.25) < 0.15  # 80 rows, 3 standard errors


def test_a_word_that_gives_the_label_away_is_found_by_the_bag_of_words():
    dataset = synthetic_dataset(n_sentences=120, effect=0.0)
    words = np.array([" zero", " one", " two", " three"])
    telling = np.strings.add(dataset.sentence, words[dataset.label])
    results = _run(replace(dataset, sentence=telling)).results
    assert results["baselines"]["bag_of_words"]["test_accuracy"] == 1
    assert "baseline bag_of_words is at least as good on test" in "\n".join(results["warnings"])


def test_one_input_among_noise_is_the_one_that_is_kept():
    dataset = synthetic_dataset(n_sentences=120, n_inputs=300)
    outcome = _run(dataset, params={"C": 1.0}, top_k=1)
    assert np.flatnonzero(outcome.model.named_steps["select"].get_support()).tolist() == [0]
    assert outcome.results["test_accuracy"] > 0.5


def test_a_search_finds_the_number_of_inputs_that_helps_and_says_so():
    dataset = synthetic_dataset(n_sentences=160, n_inputs=400)
    outcome = _run(dataset, params={"C": 1.0}, search={"top_k": [1, 400]})
    assert outcome.results["best_settings"] == {"top_k": 1}
    (entry,) = outcome.results["estimators"]
    assert entry["chosen"] == [{"top_k": 1}] * 5
    assert outcome.results["best"] == "logistic C=1.0 top_k of [1, 400]"


@pytest.mark.parametrize(
    "name", ["logistic", "ordinal", "ridge", "nearest_centroid", "linear_svm", "k_nearest"]
)
def test_far_more_inputs_than_sentences(name):
    dataset = synthetic_dataset(n_sentences=60, n_inputs=3000)
    dataset.X[:, :300] += 0.5 * dataset.label[:, None]  # a direction, as a concept has in hidden states
    params = {"n_neighbors": 5} if name == "k_nearest" else {}
    results = _run(dataset, name, params=params).results
    assert results["test"]["log_loss"]["value"] is not None
    assert results["test"]["auroc_3_vs_0"]["value"] > 0.9


@pytest.mark.parametrize("task", ["classification", "ordinal", "regression"])
def test_labels_0_and_3_only(task):
    dataset = synthetic_dataset(labels=np.arange(60) % 2 * 3)
    results = _run(dataset, "ridge" if task == "regression" else "ordinal", task, params={}).results
    assert results["labels"] == (None if task == "regression" else [0, 3])
    assert results["test"]["spearman"]["value"] > 0.5
    if task != "regression":
        assert results["test"]["auroc_3_vs_0"]["value"] > 0.9


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("logistic", {}),
        ("ordinal", {}),
        ("logistic", {"top_k": 2}),
        ("logistic", {"search": {"C": [0.1, 1.0]}}),
    ],
)
@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 3]])
def test_twelve_sentences_are_scored_with_fewer_folds(name, settings, labels):
    dataset = synthetic_dataset(labels=np.array(labels * (12 // len(labels))))
    results = _run(dataset, name, **settings).results
    assert 2 <= results["n_folds"] < 5
    assert "folds instead of 5" in results["warnings"][0]
    assert results["cv_mean"] is not None


def test_an_estimator_for_which_twelve_sentences_are_too_few_is_left_out_and_told():
    dataset = synthetic_dataset(labels=np.arange(12) % 4)
    with pytest.raises(UserError, match="NearestCentroid cannot predict from so few rows"):
        _run(dataset, "nearest_centroid")
    entries = [EstimatorConfig(name=name) for name in ("nearest_centroid", "linear_svm", "logistic")]
    results = run(dataset, ExperimentConfig(estimators=entries), lambda *_: None).results
    assert results["best"] == "logistic"
    assert [entry["cv_mean"] is None for entry in results["estimators"]] == [True, True, False]
    assert [entry["left_out"] is None for entry in results["estimators"]] == [False, False, True]
    assert "linear_svm left out: too few sentences to calibrate" in "\n".join(results["warnings"])


def test_two_sentences_that_must_be_searched_on_are_too_few():
    labels = np.array([0, 3, 0, 3, 0, 3])
    dataset = synthetic_dataset(labels=labels)
    few = replace(dataset, held_out=np.array([True, True, False, False, False, False]))
    with pytest.raises(UserError, match="search"):
        _run(few, search={"C": [0.1, 1.0]})


@pytest.mark.parametrize("settings", [{}, {"top_k": 3}], ids=["all", "top_k"])
def test_inputs_that_are_all_constant_give_the_majority_and_no_warning_of_scikit_learn(settings, recwarn):
    dataset = synthetic_dataset(labels=np.array([0, 0, 3] * 20))
    results = _run(replace(dataset, X=np.full_like(dataset.X, 7)), **settings).results
    assert results["test_accuracy"] == results["baselines"]["majority"]["test_accuracy"]
    assert not [warning for warning in recwarn if "sklearn" in str(warning.filename)]


def test_more_inputs_asked_for_than_there_are():
    with pytest.raises(UserError, match=r"logistic top_k=9: top_k asks for 9 inputs, the dataset has 8"):
        _run(synthetic_dataset(), top_k=9)
    with pytest.raises(UserError, match="top_k asks for 100 inputs"):
        _run(synthetic_dataset(), search={"top_k": [5, 100]})


def test_an_unknown_parameter_of_a_search_is_told_before_any_fit():
    with pytest.raises(UserError, match=r"params\.c: unknown to logistic"):
        _run(synthetic_dataset(), search={"c": [0.1, 1.0]})


@pytest.mark.parametrize("task", ["classification", "ordinal"])
def test_activations_are_never_taken_for_labels(task):
    """Even where they happen to be 0, 1, 2 and 3."""
    dataset = synthetic_dataset(target="activation")
    dataset = replace(dataset, y=dataset.label.astype(np.float32))
    assert resolve_task("auto", dataset) == "regression"
    with pytest.raises(UserError, match=f"task: {task}, but the dataset's target is a feature's activation"):
        _run(dataset, task=task)


def test_labels_are_never_taken_for_activations():
    """Even where there are only two, or where they are stored as floats."""
    dataset = synthetic_dataset(labels=np.arange(60) % 2 * 3)
    assert dataset.y.dtype == np.float32
    assert resolve_task("auto", dataset) == "classification"
    results = _run(dataset).results
    assert results["labels"] == [0, 3]
    assert "r2" not in results["test"]


def test_labels_may_be_predicted_by_regression_where_it_is_asked_for():
    results = _run(synthetic_dataset(), "ridge", "regression").results
    assert results["main_score"] == "r2"
    assert "test_accuracy" not in results


@pytest.mark.parametrize("unit", ["token", "sentence"])
def test_a_feature_that_never_fires_is_refused_with_the_reason(unit):
    dataset = synthetic_dataset(target="activation", unit=unit)
    dataset.metadata["target"].update(sae="layer_03_l0_24", feature_id=7)
    silent = replace(dataset, y=np.where(dataset.held_out, dataset.y, 0).astype(np.float32))
    with pytest.raises(
        UserError, match="feature 7 of SAE layer_03_l0_24, never fires on a train row, so there"
    ):
        _run(silent, "ridge")


def test_a_single_label_has_nothing_to_learn():
    with pytest.raises(UserError, match="two different targets among its train rows"):
        _run(synthetic_dataset(labels=np.zeros(40, dtype=np.int64)))


def test_an_ordinal_task_is_judged_by_kappa_and_still_gives_the_accuracy():
    results = _run(synthetic_dataset(n_sentences=120), "ordinal", "ordinal").results
    assert (results["task"], results["main_score"]) == ("ordinal", "quadratic_weighted_kappa")
    assert results["test_quadratic_weighted_kappa"] == results["test"]["quadratic_weighted_kappa"]["value"]
    assert results["test_accuracy"] == results["test"]["accuracy"]["value"]
    assert results["train_accuracy"] > 0.4
