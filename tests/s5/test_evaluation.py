import numpy as np
import pytest
import skops.io
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier, KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline_common.errors import UserError
from s5_classifier_training.framework.estimators import ESTIMATORS, build
from s5_classifier_training.framework.evaluation import TrainRows, cross_validate, fit, make_folds, predict
from s5_classifier_training.framework.run_warnings import above_chance

LABELS = np.array([0, 1, 2, 3])


def _rows(y, groups=None, n_folds=5, labels=LABELS, stratify=None):
    groups = np.arange(len(y)) if groups is None else groups
    folds, _ = make_folds(y if stratify is None else stratify, groups, n_folds, seed=0)
    return TrainRows(y, groups, folds, labels, seed=0)


def _signal(n_rows=80, n_inputs=6, effect=1.5, seed=0):
    y = np.arange(n_rows) % 4
    inputs = np.random.default_rng(seed).normal(size=(n_rows, n_inputs)).astype(np.float32)
    inputs[:, 0] += effect * y
    return inputs, y


def _nothing() -> None:
    pass


def test_folds_keep_groups_whole_and_hold_each_row_out_once():
    y = np.arange(60) % 4
    groups = np.arange(60) // 3
    folds, message = make_folds(y, groups, 5, seed=0)
    assert message is None
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(60))
    for fitted, held_out in folds:
        assert not set(groups[fitted]) & set(groups[held_out])


def test_few_sentences_give_fewer_folds_and_say_so():
    y = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3])
    folds, message = make_folds(y, np.arange(11), 5, seed=0)
    assert len(folds) == 2
    assert message == "2 folds instead of 5: only 2 independent train sentences have label 3"


def test_rows_of_one_group_count_as_one_sentence():
    y = np.repeat([0, 3], 30)
    groups = np.concatenate([np.arange(30), np.repeat([30, 31, 32], 10)])
    folds, message = make_folds(y, groups, 5, seed=0)
    assert len(folds) == 3
    assert "only 3 independent train sentences have label 3" in message


def test_one_group_cannot_be_cross_validated():
    with pytest.raises(UserError, match="cross-validation is impossible: all sentences belong to one group"):
        make_folds(np.array([0, 3, 0, 3]), np.zeros(4, dtype=int), 5, seed=0)


def test_the_normalisation_is_refitted_on_each_training_part():
    inputs, y = _signal()
    inputs[0] = 1000  # an outlier that a scaler fitted on everything would carry into every fold
    rows = _rows(y)
    model = build("logistic", {}, "classification", "standardize", 0)
    found = cross_validate(model, inputs, rows, "accuracy", _nothing).predictions.probabilities
    plain = LogisticRegression(C=0.001, max_iter=2000, random_state=0)
    leaky = StandardScaler().fit_transform(inputs)
    differs = False
    for train, held_out in rows.folds:
        honest = make_pipeline(StandardScaler(), plain).fit(inputs[train], y[train])
        assert np.array_equal(found[held_out], _normalised(honest.predict_proba(inputs[held_out])))
        seen = plain.fit(leaky[train], y[train]).predict_proba(leaky[held_out])
        differs |= not np.allclose(found[held_out], seen, atol=1e-3)
    assert differs  # the test would notice the leak


def _normalised(probabilities: np.ndarray) -> np.ndarray:
    probabilities = probabilities.astype(np.float64)
    return probabilities / probabilities.sum(axis=1, keepdims=True)


def test_cv_mean_and_std_are_those_of_the_fold_scores():
    inputs, y = _signal()
    found = cross_validate(
        build("logistic", {}, "classification", "standardize", 0), inputs, _rows(y), "accuracy", _nothing
    )
    assert found.mean == np.mean(found.fold_scores)
    assert found.std == np.std(found.fold_scores, ddof=1)
    assert len(found.fold_scores) == 5


def test_a_label_missing_from_a_training_part_gets_probability_0():
    inputs, y = _signal(20)
    rows = _rows(y)
    fitted, _ = fit(build("logistic", {}, "classification", "none", 0), inputs, rows, np.flatnonzero(y != 2))
    probabilities = predict(fitted, inputs, LABELS).probabilities
    assert (probabilities[:, 2] == 0).all()
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(20))


def test_a_fold_with_a_single_label_is_left_out_and_counted():
    inputs, y = _signal(8)
    y = np.array([0, 0, 0, 0, 3, 3, 3, 3])
    halves = [(np.arange(4), np.arange(4, 8)), (np.array([0, 1, 4, 5]), np.array([2, 3, 6, 7]))]
    rows = TrainRows(y, np.arange(8), halves, np.array([0, 3]), seed=0)
    found = cross_validate(
        build("logistic", {}, "classification", "standardize", 0), inputs, rows, "accuracy", _nothing
    )
    assert found.n_skipped == 1
    assert len(found.fold_scores) == 1
    assert np.isnan(found.predictions.predicted).tolist() == [
        True,
        True,
        False,
        False,
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_classifier_learns_gives_probabilities_and_survives_skops(name):
    inputs, y = _signal()
    rows = _rows(y)
    params = {"n_neighbors": 5} if name == "k_nearest" else {}
    model = build(name, params, "classification", "standardize", 0)
    fitted, _ = fit(model, inputs, rows, np.arange(80))
    answers = predict(fitted, inputs, LABELS)
    assert answers.probabilities.sum(axis=1) == pytest.approx(np.ones(80))
    assert np.mean(answers.predicted == y) > 0.4  # chance is 0.25
    saved = skops.io.dumps(fitted)
    loaded = skops.io.loads(saved, trusted=skops.io.get_untrusted_types(data=saved))
    assert np.array_equal(predict(loaded, inputs, LABELS).probabilities, answers.probabilities)


@pytest.mark.parametrize("name", [name for name, entry in ESTIMATORS.items() if entry.regressor])
def test_every_regressor_has_out_of_fold_answers(name):
    inputs, label = _signal()
    y = np.maximum(inputs[:, 0], 0).astype(np.float64)
    rows = _rows(y, labels=None, stratify=label)
    params = {"linear_svm": {"C": 1.0}, "mlp": {"max_iter": 2000}, "ridge": {"alpha": 1.0}}.get(name, {})
    found = cross_validate(build(name, params, "regression", "standardize", 0), inputs, rows, "r2", _nothing)
    assert found.mean > 0.1
    assert np.isfinite(found.predictions.predicted).all()


@pytest.mark.parametrize("name", ["logistic", "nearest_centroid"])
def test_an_estimator_without_a_regression_counterpart_is_refused(name):
    with pytest.raises(UserError, match=f"{name} only classifies, the task is regression; choose of ridge"):
        build(name, {}, "regression", "standardize", 0)


def test_an_unknown_parameter_names_those_there_are():
    with pytest.raises(
        UserError, match=r"params\.c: unknown to logistic \(LogisticRegression\); it takes C,"
    ):
        build("logistic", {"c": 1}, "classification", "standardize", 0)


def test_a_value_that_scikit_learn_refuses_is_a_user_error():
    inputs, y = _signal(20)
    model = build("logistic", {"C": -1}, "classification", "standardize", 0)
    with pytest.raises(UserError, match="LogisticRegression cannot be fitted: The 'C' parameter"):
        fit(model, inputs, _rows(y), np.arange(20))


def test_more_neighbours_than_rows_is_a_user_error():
    inputs, y = _signal(8)
    model = build("k_nearest", {}, "classification", "standardize", 0)
    fitted, _ = fit(model, inputs, _rows(y), np.arange(8))
    with pytest.raises(UserError, match="KNeighborsClassifier cannot predict from so few rows: Expected"):
        predict(fitted, inputs, LABELS)


def test_fits_that_do_not_converge_are_counted():
    inputs, y = _signal()
    model = build("logistic", {"max_iter": 1}, "classification", "standardize", 0)
    assert cross_validate(model, inputs, _rows(y), "accuracy", _nothing).n_unconverged == 5
    model = build("logistic", {}, "classification", "standardize", 0)
    assert cross_validate(model, inputs, _rows(y), "accuracy", _nothing).n_unconverged == 0


def test_too_few_rows_to_calibrate_are_refused():
    inputs, _ = _signal(6)
    y = np.array([0, 0, 0, 0, 0, 3])
    model = build("linear_svm", {}, "classification", "standardize", 0)
    with pytest.raises(UserError, match="too few sentences to calibrate"):
        fit(model, inputs, _rows(y, labels=np.array([0, 3])), np.arange(6))


def test_calibration_keeps_groups_whole_and_its_folds_are_not_saved():
    inputs, y = _signal(90)
    groups = np.arange(90) // 3
    fitted, _ = fit(
        build("ridge", {}, "classification", "standardize", 0), inputs, _rows(y, groups), np.arange(90)
    )
    assert fitted.cv is None
    assert len(fitted.calibrated_classifiers_) == 1


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_labels_are_at_chance(seed):
    inputs, y = _signal(200, effect=2.0)
    shuffled = np.random.default_rng(seed).permutation(y)
    rows = _rows(shuffled)
    found = cross_validate(
        build("logistic", {"C": 0.1}, "classification", "standardize", 0), inputs, rows, "accuracy", _nothing
    )
    assert abs(found.mean - 0.25) < 0.1  # three standard errors of a share of 200
    assert not above_chance(shuffled, found.predictions)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_fold_that_was_fitted_on_its_own_rows_is_noticed(task):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(100, 5))
    y = rng.permutation(np.arange(100) % 4) if task == "classification" else rng.normal(size=100)
    labels = LABELS if task == "classification" else None
    model = KNeighborsClassifier(1) if task == "classification" else KNeighborsRegressor(1)
    score = "accuracy" if task == "classification" else "r2"
    honest = _rows(y, labels=labels, stratify=np.arange(100) % 4)
    assert not above_chance(y, cross_validate(model, inputs, honest, score, _nothing).predictions)
    everything = np.arange(100)
    leaky = TrainRows(y, everything, [(everything, held_out) for _, held_out in honest.folds], labels, 0)
    assert above_chance(y, cross_validate(model, inputs, leaky, score, _nothing).predictions)


def test_near_duplicates_across_folds_inflate_the_score_and_groups_prevent_it():
    rng = np.random.default_rng(0)
    y = np.repeat(np.random.default_rng(1).integers(0, 4, 60), 2)
    inputs = np.repeat(rng.normal(size=(60, 5)), 2, axis=0) + rng.normal(scale=0.01, size=(120, 5))
    model = KNeighborsClassifier(1)
    grouped = cross_validate(model, inputs, _rows(y, np.arange(120) // 2), "accuracy", _nothing)
    straddling = cross_validate(model, inputs, _rows(y), "accuracy", _nothing)
    assert straddling.mean > 0.6
    assert grouped.mean < 0.45


def test_predictions_of_a_regression_equal_plain_scikit_learn():
    inputs, _ = _signal()
    y = inputs[:, 0].astype(np.float64)
    rows = _rows(y, labels=None, stratify=np.arange(80) % 4)
    fitted, converged = fit(
        build("ridge", {"alpha": 3.0}, "regression", "standardize", 0), inputs, rows, np.arange(80)
    )
    expected = make_pipeline(StandardScaler(), Ridge(alpha=3.0)).fit(inputs, y).predict(inputs)
    assert converged
    assert np.array_equal(predict(fitted, inputs, None).predicted, expected.astype(np.float64))
