import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from concept_evaluation.logistic import PENALTIES, fit_logistic_path, principal_coordinates


@pytest.fixture(autouse=True)
def _one_thread():
    """Threads of BLAS cost more than matrices of this size do."""
    with threadpool_limits(1):
        yield


def case(n_classes: int, d: int, n: int = 120, seed: int = 0):
    """Inputs of very different scales, one of them constant and large, in which some classes are rarer."""
    rng = np.random.default_rng(seed)
    shares = np.arange(1, n_classes + 1) / np.arange(1, n_classes + 1).sum()
    classes = np.concatenate([np.arange(n_classes), rng.choice(n_classes, n - n_classes, p=shares)])
    inputs = rng.normal(size=(n, d))
    inputs[:, :3] += classes[:, None]
    inputs = inputs * 10.0 ** rng.uniform(-2, 2, d) + rng.normal(size=d)
    inputs[:, -1] = 1e6 / 3
    return inputs.astype(np.float32), classes


@pytest.mark.parametrize("n_classes", [2, 3, 4])
@pytest.mark.parametrize("d", [20, 400])  # fewer and far more inputs than rows
def test_every_penalty_gives_the_probabilities_of_scikit_learns_pipeline(n_classes, d):
    inputs, classes = case(n_classes, d)
    fitted, others = inputs[:90], inputs[90:]
    coordinates = principal_coordinates(fitted, others)
    for C, model in zip(PENALTIES, fit_logistic_path(coordinates, classes[:90]), strict=True):
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=100_000, tol=1e-8))
        pipeline.fit(fitted.astype(np.float64), classes[:90])
        assert model.C == C
        assert model.converged
        # At C = 1 rows are separated and a flat optimum lets either solver stop a thousandth away.
        np.testing.assert_allclose(
            model.probabilities(coordinates.others), pipeline.predict_proba(others), atol=2e-3
        )


def test_the_decision_of_two_classes_is_scikit_learns():
    inputs, classes = case(2, 300)
    coordinates = principal_coordinates(inputs[:90], inputs[90:])
    (model,) = fit_logistic_path(coordinates, classes[:90], [0.01])
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=100_000, tol=1e-8))
    pipeline.fit(inputs[:90], classes[:90])
    np.testing.assert_allclose(
        model.decision(coordinates.others)[:, 0], pipeline.decision_function(inputs[90:]), atol=2e-3
    )


@pytest.mark.parametrize("d", [30, 300])
def test_coordinates_keep_inner_products_and_have_orthogonal_columns(d):
    inputs, _ = case(3, d)
    fitted, others = inputs[:90].astype(np.float64), inputs[90:].astype(np.float64)
    scaler = StandardScaler().fit(fitted)
    coordinates = principal_coordinates(fitted, others)
    products = scaler.transform(fitted) @ scaler.transform(fitted).T
    np.testing.assert_allclose(coordinates.fitted @ coordinates.fitted.T, products, atol=1e-8 * d)
    products = scaler.transform(others) @ scaler.transform(fitted).T
    np.testing.assert_allclose(coordinates.others @ coordinates.fitted.T, products, atol=1e-8 * d)
    square = coordinates.fitted.T @ coordinates.fitted
    np.testing.assert_allclose(square, np.diag(coordinates.squares), atol=1e-8 * square.max())
    assert coordinates.fitted.shape[1] == min(89, d - 1)  # centred; one input is constant


def test_neither_the_inputs_nor_the_fit_change_with_the_other_rows():
    inputs, classes = case(3, 50)
    before = inputs.copy()
    first = principal_coordinates(inputs[:90], inputs[90:100])
    second = principal_coordinates(inputs[:90], 1000 + inputs[100:])
    np.testing.assert_array_equal(inputs, before)
    np.testing.assert_array_equal(first.fitted, second.fitted)
    models = [fit_logistic_path(found, classes[:90], [0.1])[0] for found in (first, second)]
    np.testing.assert_array_equal(models[0].coefficients, models[1].coefficients)


def test_the_order_of_the_penalties_does_not_matter():
    inputs, classes = case(4, 50)
    coordinates = principal_coordinates(inputs, inputs)
    up = fit_logistic_path(coordinates, classes, [0.01, 1.0])
    down = fit_logistic_path(coordinates, classes, [1.0, 0.01])
    assert [model.C for model in down] == [1.0, 0.01]
    np.testing.assert_array_equal(up[0].coefficients, down[1].coefficients)


@pytest.mark.parametrize("n_classes", [2, 4])
def test_inputs_that_never_vary_give_the_shares_of_the_classes(n_classes):
    classes = np.arange(60) % 7 % n_classes
    coordinates = principal_coordinates(np.full((60, 5), 3.3), np.full((2, 5), 9.9))
    assert coordinates.fitted.shape == (60, 0)
    (model,) = fit_logistic_path(coordinates, classes, [1.0])
    np.testing.assert_allclose(
        model.probabilities(coordinates.others), [np.bincount(classes) / 60] * 2, atol=1e-6
    )
