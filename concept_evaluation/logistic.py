"""L2-penalised logistic regression of few rows with many inputs, for several penalties in one go.

A penalised linear model depends on its inputs through their inner products alone, so rotating them changes
nothing. The rows are therefore written in the coordinates of their principal components, of which there
are fewer than rows, and each penalty is solved there. The predictions are those of scikit-learn's
``make_pipeline(StandardScaler(), LogisticRegression(C=C))``, solved to more digits. Arrays in, numbers out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths C of the L2 penalty, on standardised inputs."""

_RANK_TOLERANCE = 1e-10
_TOLERANCE = 3e-6
_MAX_ITER = 2000
_SMALLEST_CURVATURE = 1e-6


@dataclass(frozen=True)
class Coordinates:
    """Standardised rows in the coordinates of the fitted rows' principal components.

    Attributes:
        fitted: float64 [n_fitted, n_components]; columns are orthogonal and have mean 0.
        others: float64 [n_others, n_components], rows that took no part in the standardisation.
        squares: float64 [n_components], sum of squares of each column of ``fitted``, all positive.
    """

    fitted: np.ndarray
    others: np.ndarray
    squares: np.ndarray


@dataclass(frozen=True)
class LogisticModel:
    """A fitted logistic regression.

    Attributes:
        C: inverse strength of its penalty.
        coefficients: float64 [n_components, n_columns]: one column for two classes (the logit of the
            second), else one a class.
        intercept: float64 [n_columns].
        converged: the gradient fell below the tolerance.
    """

    C: float
    coefficients: np.ndarray
    intercept: np.ndarray
    converged: bool

    def decision(self, coordinates: np.ndarray) -> np.ndarray:
        """Logits, float64 [n_rows, n_columns]."""
        return coordinates @ self.coefficients + self.intercept

    def probabilities(self, coordinates: np.ndarray) -> np.ndarray:
        """Float64 [n_rows, n_classes]; rows sum to 1."""
        return _probabilities(_all_logits(self.decision(coordinates)))[0]


def principal_coordinates(fitted: np.ndarray, others: np.ndarray) -> Coordinates:
    """Standardise by the fitted rows' mean and standard deviation, and rotate to their principal components.

    Args:
        fitted: float [n_fitted, n_inputs], finite.
        others: float [n_others, n_inputs], finite.

    Returns:
        Inner products among the fitted rows, and of fitted with other rows, are those of the standardised
        inputs. An input that does not vary counts as 0; there are no components where none varies.
    """
    fitted, others = fitted.astype(np.float64), others.astype(np.float64)  # copies, changed in place
    mean, std = fitted.mean(axis=0), fitted.std(axis=0)
    # Rounding leaves a constant column of large values a tiny spread; the bound is scikit-learn's.
    varies = std > len(fitted) * np.finfo(np.float64).eps * np.abs(mean)
    factor = np.divide(1, std, out=np.zeros_like(std), where=varies)
    for rows in (fitted, others):
        rows -= mean
        rows *= factor
    n_rows, n_inputs = fitted.shape
    wide = n_inputs > n_rows
    squares, vectors = np.linalg.eigh(fitted @ fitted.T if wide else fitted.T @ fitted)
    kept = squares > max(squares[-1], 1e-300) * _RANK_TOLERANCE
    squares, vectors = squares[kept], vectors[:, kept]
    if wide:
        lengths = np.sqrt(squares)
        return Coordinates(vectors * lengths, (others @ fitted.T) @ (vectors / lengths), squares)
    return Coordinates(fitted @ vectors, others @ vectors, squares)


def fit_logistic_path(
    coordinates: Coordinates, classes: np.ndarray, penalties: Sequence[float] = PENALTIES
) -> list[LogisticModel]:
    """One model a penalty: minimises C x (sum of the rows' log losses) + half the squared coefficients.

    Two classes have one logit, more have one each (multinomial), as in scikit-learn. The intercept is not
    penalised. Each penalty starts from the next stronger one's solution.

    Args:
        coordinates: of the rows to fit on.
        classes: int [n_fitted], 0 to n_classes - 1, each occurring; at least two.
        penalties: inverse strengths C.

    Returns:
        Models in the order of the penalties.
    """
    truth = np.eye(int(classes.max()) + 1)[classes]
    truth = truth[:, 1:] if truth.shape[1] == 2 else truth
    # Without coefficients the intercept that gives the classes' shares is the solution.
    shares = truth.mean(axis=0)
    intercept = np.log(shares) if len(shares) > 1 else np.log(shares / (1 - shares))
    weights = np.vstack([np.zeros((coordinates.fitted.shape[1], len(shares))), intercept])
    models: dict[float, LogisticModel] = {}
    for C in sorted(set(penalties)):
        weights, converged = _solve(coordinates, truth, C, weights)
        models[C] = LogisticModel(C, weights[:-1], weights[-1], converged)
    return [models[C] for C in penalties]


def _solve(
    coordinates: Coordinates, truth: np.ndarray, C: float, start: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Weights of one penalty by L-BFGS, and whether the gradient fell below the tolerance.

    Components are orthogonal and most rows have similar probabilities, so the Hessian is nearly a component's
    sum of squares times the mean covariance of the classes at the start. In the eigenvectors of that
    covariance, each weight scaled by the root of its curvature, few steps suffice.

    Args:
        coordinates: of the rows to fit on.
        truth: float64 [n_rows, n_columns], 1 in the column of a row's class.
        C: inverse strength of the penalty.
        start: float64 [n_components + 1, n_columns], the intercept last.
    """
    from scipy.optimize import minimize  # here, since scripts read PENALTIES for their --help

    z, n_columns = coordinates.fitted, truth.shape[1]

    def evaluate(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        logits = z @ weights[:-1] + weights[-1]
        probabilities, log_total = _probabilities(_all_logits(logits))
        return logits, probabilities[:, -n_columns:], log_total

    _, expected, _ = evaluate(start)
    covariance = np.diag(expected.mean(axis=0)) - expected.T @ expected / len(z)
    variances, axes = np.linalg.eigh(covariance)
    curvature = C * np.outer([*coordinates.squares, len(z)], variances)
    curvature[:-1] += 1
    scale = 1 / np.sqrt(np.maximum(curvature, _SMALLEST_CURVATURE))

    def objective(scaled: np.ndarray) -> tuple[float, np.ndarray]:
        weights = (scaled.reshape(start.shape) * scale) @ axes.T
        logits, expected, log_total = evaluate(weights)
        error = expected - truth
        gradient = C * np.vstack([z.T @ error, error.sum(axis=0)])
        gradient[:-1] += weights[:-1]
        loss = log_total.sum() - (logits * truth).sum()
        return C * loss + 0.5 * (weights[:-1] ** 2).sum(), ((gradient @ axes) * scale).ravel()

    # Half the squared scaled gradient is about what further steps would gain; held against the objective.
    x0 = ((start @ axes) / scale).ravel()
    options = {"gtol": _TOLERANCE * np.sqrt(objective(x0)[0]), "ftol": 0.0, "maxiter": _MAX_ITER}
    found = minimize(objective, x0, jac=True, method="L-BFGS-B", options=options)
    return (found.x.reshape(start.shape) * scale) @ axes.T, bool(found.success)


def _all_logits(logits: np.ndarray) -> np.ndarray:
    """Logits of every class: a single column is the second class's against 0."""
    return np.hstack([np.zeros_like(logits), logits]) if logits.shape[1] == 1 else logits


def _probabilities(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Softmax [n_rows, n_classes], and the logarithm of the sum of exponentials [n_rows]."""
    top = logits.max(axis=1, keepdims=True)
    powers = np.exp(logits - top)
    total = powers.sum(axis=1, keepdims=True)
    return powers / total, (top + np.log(total))[:, 0]
