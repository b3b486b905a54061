import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from s5_classifier_training.framework.ordinal import OrdinalClassifier


def _ordered(n_rows=300, n_inputs=4, seed=0):
    """One direction carries the order; the labels lie along it."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(n_rows, n_inputs))
    y = np.digitize(inputs[:, 0] + 0.3 * rng.normal(size=n_rows), [-0.7, 0, 0.7])
    return inputs, y


def test_probabilities_are_the_differences_of_frank_and_hall():
    inputs, y = _ordered()
    model = OrdinalClassifier(C=0.5).fit(inputs, y)
    above = [
        LogisticRegression(C=0.5).fit(inputs, y > label).predict_proba(inputs)[:, 1] for label in range(3)
    ]
    expected = np.stack([1 - above[0], above[0] - above[1], above[1] - above[2], above[2]], axis=1)
    monotone = (expected >= 0).all(axis=1)
    assert monotone.mean() > 0.9
    assert np.allclose(model.predict_proba(inputs)[monotone], expected[monotone])


def test_probabilities_are_probabilities_even_where_the_thresholds_cross():
    inputs, y = _ordered(40, 30)
    model = OrdinalClassifier(C=100, max_iter=1000).fit(inputs, y)
    far = 5 * np.random.default_rng(1).normal(size=(500, 30))
    answers = [threshold.predict_proba(far)[:, 1] for threshold in model.thresholds_]
    assert (np.diff(answers, axis=0) > 0).any()  # they do cross
    probabilities = model.predict_proba(far)
    assert (probabilities >= 0).all()
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(500))
    assert np.array_equal(model.predict(far), probabilities.argmax(axis=1))


def test_it_learns_the_order():
    inputs, y = _ordered(600)
    model = OrdinalClassifier().fit(inputs[:400], y[:400])
    predicted = model.predict(inputs[400:])
    assert np.mean(predicted == y[400:]) > 0.7
    assert np.mean(np.abs(predicted - y[400:]) > 1) < 0.02


def test_two_labels_are_one_logistic_regression():
    inputs, y = _ordered()
    y = np.where(y > 1, 3, 0)
    model = OrdinalClassifier().fit(inputs, y)
    assert model.classes_.tolist() == [0, 3]
    assert np.allclose(model.predict_proba(inputs), LogisticRegression().fit(inputs, y).predict_proba(inputs))


def test_one_label_is_refused():
    with pytest.raises(ValueError, match="two different labels"):
        OrdinalClassifier().fit(np.zeros((3, 2)), np.ones(3))
