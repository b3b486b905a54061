import numpy as np
import pytest
import sklearn.metrics as oracle
from scipy.stats import rankdata, spearmanr

from concept_evaluation import metrics

LABELS = np.array([0, 1, 2, 3])


@pytest.fixture
def answers() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, 60)
    predicted = np.where(rng.random(60) < 0.5, target, rng.integers(0, 4, 60))
    return target, predicted


def test_classification_scores_equal_scikit_learns(answers):
    target, predicted = answers
    confusion = metrics.confusion_matrix(target, predicted, LABELS)
    assert np.array_equal(confusion, oracle.confusion_matrix(target, predicted))
    assert metrics.accuracy(target, predicted) == oracle.accuracy_score(target, predicted)
    assert metrics.macro_f1(confusion) == pytest.approx(oracle.f1_score(target, predicted, average="macro"))
    assert metrics.quadratic_weighted_kappa(confusion, LABELS) == pytest.approx(
        oracle.cohen_kappa_score(target, predicted, weights="quadratic")
    )
    assert metrics.mean_absolute_error(target, predicted) == oracle.mean_absolute_error(target, predicted)


def test_macro_f1_leaves_out_labels_that_do_not_occur():
    target, predicted = np.array([0, 0, 3, 3]), np.array([0, 3, 3, 3])
    confusion = metrics.confusion_matrix(target, predicted, LABELS)
    assert metrics.macro_f1(confusion) == pytest.approx(oracle.f1_score(target, predicted, average="macro"))


def test_kappa_weighs_by_the_labels_values_not_their_places():
    target, predicted = np.array([0, 1, 3, 3, 0]), np.array([1, 1, 3, 0, 0])
    labels = np.array([0, 1, 3])
    confusion = metrics.confusion_matrix(target, predicted, labels)
    expected = oracle.cohen_kappa_score(target, predicted, labels=LABELS, weights="quadratic")
    assert metrics.quadratic_weighted_kappa(confusion, labels) == pytest.approx(expected)


def test_kappa_has_no_value_where_everything_is_one_label():
    confusion = metrics.confusion_matrix(np.zeros(3), np.zeros(3), LABELS)
    assert metrics.quadratic_weighted_kappa(confusion, LABELS) is None


def test_mid_ranks_equal_scipys():
    mostly_zero = np.maximum(np.random.default_rng(0).normal(size=300) - 1, 0)
    for values in (mostly_zero, np.arange(5.0)[::-1], np.zeros(4), np.array([])):
        assert np.array_equal(metrics.mid_ranks(values), rankdata(values))


def test_auroc_counts_ties_half_as_scikit_learn_does():
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 4, 200).astype(float)
    positive = rng.random(200) < 0.3
    assert metrics.auroc(scores, positive) == pytest.approx(oracle.roc_auc_score(positive, scores))
    assert metrics.auroc(np.zeros(4), np.array([True, False, True, False])) == 0.5


@pytest.mark.parametrize("positive", [np.ones(3, dtype=bool), np.zeros(3, dtype=bool)])
def test_auroc_has_no_value_with_one_class(positive):
    assert metrics.auroc(np.arange(3.0), positive) is None


def test_spearman_uses_mid_ranks():
    rng = np.random.default_rng(2)
    mostly_zero = np.maximum(rng.normal(size=100) - 1, 0)
    other = rng.integers(0, 3, 100)
    assert metrics.spearman(mostly_zero, other) == pytest.approx(spearmanr(mostly_zero, other).statistic)


def test_regression_scores_equal_scikit_learns():
    rng = np.random.default_rng(3)
    target = rng.normal(size=50)
    predicted = target + rng.normal(size=50)
    assert metrics.r2(target, predicted) == pytest.approx(oracle.r2_score(target, predicted))


def test_scores_without_variation_or_rows_have_no_value():
    assert metrics.r2(np.ones(4), np.arange(4.0)) is None
    assert metrics.spearman(np.ones(4), np.arange(4.0)) is None
    assert metrics.accuracy(np.array([]), np.array([])) is None
    assert metrics.log_loss(np.array([]), np.empty((0, 4)), LABELS) is None


def test_log_loss_equals_scikit_learns_and_stays_finite():
    rng = np.random.default_rng(4)
    probabilities = rng.dirichlet(np.ones(4), size=40)
    target = rng.integers(0, 4, 40)
    expected = oracle.log_loss(target, probabilities, labels=LABELS)
    assert metrics.log_loss(target, probabilities, LABELS) == pytest.approx(expected)
    certain_and_wrong = np.array([[1.0, 0.0, 0.0, 0.0]])
    assert np.isfinite(metrics.log_loss(np.array([3]), certain_and_wrong, LABELS))


def _probabilities(n_rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 4, n_rows), rng.dirichlet(np.ones(4), n_rows)


def test_brier_score_equals_scikit_learns():
    target, probabilities = _probabilities(50)
    expected = oracle.brier_score_loss(target, probabilities, labels=LABELS, scale_by_half=False)
    assert metrics.brier_score(target, probabilities, LABELS) == pytest.approx(expected)
    assert metrics.brier_score(np.array([3]), np.array([[0, 0, 0, 1.0]]), LABELS) == 0
    assert metrics.brier_score(np.array([0]), np.array([[0, 0, 0, 1.0]]), LABELS) == 2


def test_expected_calibration_error_equals_a_plain_loop():
    target, probabilities = _probabilities(200)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == target
    expected = 0.0
    for low in np.arange(10) / 10:
        inside = (confidence > low) & (confidence <= low + 0.1)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    found = metrics.expected_calibration_error(target, probabilities, LABELS)
    assert found == pytest.approx(expected)


def test_expected_calibration_error_of_the_calibrated_and_of_the_overconfident():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.5, 1, 20_000)
    target = np.where(rng.random(20_000) < p, 3, 0)
    labels = np.array([0, 3])
    calibrated = np.stack([1 - p, p], axis=1)
    assert metrics.expected_calibration_error(target, calibrated, labels) < 0.02  # 4 standard errors of a bin
    certain = np.tile([0.0, 1.0], (20_000, 1))
    wrong = float(np.mean(target == 0))
    assert metrics.expected_calibration_error(target, certain, labels) == pytest.approx(wrong)


def test_calibration_without_rows_has_no_value():
    nothing = np.empty((0, 4))
    assert metrics.brier_score(np.empty(0), nothing, LABELS) is None
    assert metrics.expected_calibration_error(np.empty(0), nothing, LABELS) is None
