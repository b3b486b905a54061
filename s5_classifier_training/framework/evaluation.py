"""Fitting, cross-validating and predicting: the same few steps for every estimator and every baseline."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import ParameterGrid
from sklearn.pipeline import Pipeline

from concept_evaluation.splits import group_folds
from pipeline_common.errors import UserError
from s5_classifier_training.framework.estimators import has_probabilities
from s5_classifier_training.framework.metrics import Predictions, scores

Fold = tuple[np.ndarray, np.ndarray]

INNER_FOLDS = 3
"""Folds inside a training part: of a calibration, and of a search."""


class TooFewRows(UserError):
    """An estimator needs more rows than it was given; another one may do with these."""


@dataclass(frozen=True)
class TrainRows:
    """The train split as every estimator sees it; the inputs come separately, since baselines read others.

    Attributes:
        y: [n_rows], int64 labels in a classification, float activations in a regression.
        groups: int64 [n_rows]; groups stay whole in every fold.
        folds: (fitted rows, held-out rows) of each fold.
        labels: int64 [n_labels], ascending: every label of the dataset; None in a regression.
        seed: of the inner folds.
    """

    y: np.ndarray
    groups: np.ndarray
    folds: list[Fold]
    labels: np.ndarray | None
    seed: int


@dataclass(frozen=True)
class Candidate:
    """An unfitted model, and the settings among which each training part chooses.

    Attributes:
        model: follows scikit-learn's protocol.
        grid: the model's parameter names to the values that are tried; empty where nothing is searched.
    """

    model: Any
    grid: Mapping[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class CrossValidation:
    """Out-of-fold answers of one estimator.

    Attributes:
        fold_scores: the main score on each fold's held-out rows; None where it has no value.
        predictions: of every train row, made by a fit that did not see the row's group. Rows of a fold
            that could not be fitted hold NaN.
        n_unconverged: fits that stopped before they converged.
        n_skipped: folds left out because their training part has a single label.
        chosen: per fitted fold, the settings that its search chose; empty ones without a search.
    """

    fold_scores: list[float | None]
    predictions: Predictions
    n_unconverged: int
    n_skipped: int
    chosen: list[dict[str, Any]]

    @property
    def mean(self) -> float | None:
        """Mean of the fold scores that have a value."""
        defined = [score for score in self.fold_scores if score is not None]
        return float(np.mean(defined)) if defined else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation of the fold scores; None with fewer than two."""
        defined = [score for score in self.fold_scores if score is not None]
        return float(np.std(defined, ddof=1)) if len(defined) > 1 else None


def make_folds(
    stratify: np.ndarray, groups: np.ndarray, n_folds: int, seed: int
) -> tuple[list[Fold], str | None]:
    """The folds of the cross-validation, and a message where they are fewer than asked for.

    No more folds are made than the rarest label has groups, so that each fold can hold every label,
    but never fewer than two.

    Args:
        stratify: int64 [n_rows], the label by which folds are balanced.
        groups: int64 [n_rows].
        n_folds: folds asked for.
        seed: of the shuffle.

    Raises:
        UserError: all rows belong to one group.
    """
    labels, group_counts = np.unique(np.unique(np.stack([stratify, groups]), axis=1)[0], return_counts=True)
    rarest = int(np.argmin(group_counts))
    possible = max(2, min(n_folds, int(group_counts[rarest])))
    try:
        folds = _group_folds(stratify, groups, possible, seed)
    except ValueError as error:
        raise UserError(f"cross-validation is impossible: {error}; add sentences") from None
    if len(folds) == n_folds:
        return folds, None
    return folds, (
        f"{len(folds)} folds instead of {n_folds}: only {group_counts[rarest]} independent train sentences "
        f"have label {labels[rarest]}"
    )


def fit(model: Any, inputs: np.ndarray, rows: TrainRows, chosen: np.ndarray) -> tuple[Any, bool]:
    """A fitted copy of a model, and whether it converged.

    A classifier without probabilities is calibrated by a sigmoid on out-of-fold decisions; the inner
    folds keep groups whole too.

    Args:
        model: unfitted, following scikit-learn's protocol.
        inputs: [n_rows, ...] of all train rows.
        rows: the train split.
        chosen: the row indices to fit on.

    Raises:
        UserError: scikit-learn refuses a parameter or the rows.
        TooFewRows: they are too few to calibrate.
    """
    y, groups = rows.y[chosen], rows.groups[chosen]
    fitted = clone(model)
    if rows.labels is not None and not has_probabilities(fitted):
        inner = _calibration_folds(y, groups, rows.seed)
        fitted = CalibratedClassifierCV(fitted, cv=inner, ensemble=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            # Of the spread of single rows, which is told where it shows: in answers that are not finite.
            with np.errstate(invalid="ignore"):
                fitted.fit(inputs[chosen], y)
        except ValueError as error:  # a parameter's value, or too few rows for it, in scikit-learn's words
            raise UserError(f"{_name(model)} cannot be fitted: {error}") from None
    converged = True
    for warning in caught:
        if issubclass(warning.category, ConvergenceWarning):
            converged = False
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
    if isinstance(fitted, CalibratedClassifierCV):
        # The inner folds are row numbers of this training set, and nothing to save with the model.
        fitted.set_params(cv=None)
    return fitted, converged


def predict(fitted: Any, inputs: np.ndarray, labels: np.ndarray | None) -> Predictions:
    """Answers of a fitted model; a label that its training rows lacked has probability 0.

    Args:
        fitted: from `fit`.
        inputs: [n_rows, ...].
        labels: every label of the dataset; None in a regression.

    Raises:
        TooFewRows: the estimator cannot predict, as k_nearest with more neighbours than rows, or
            nearest_centroid with a single row of each label, which shows no spread.
    """
    try:
        answers = fitted.predict(inputs) if labels is None else fitted.predict_proba(inputs)
    except ValueError as error:
        raise TooFewRows(f"{_name(fitted)} cannot predict from so few rows: {error}") from None
    if not np.isfinite(answers).all():
        raise TooFewRows(f"{_name(fitted)} gives answers that are no numbers from so few rows")
    if labels is None:
        return Predictions(np.asarray(answers, dtype=np.float64))
    probabilities = np.zeros((len(inputs), len(labels)))
    probabilities[:, np.searchsorted(labels, fitted.classes_)] = answers
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return Predictions(labels[probabilities.argmax(axis=1)].astype(np.float64), probabilities, labels)


def cross_validate(
    model: Any, inputs: np.ndarray, rows: TrainRows, main_score: str, advance: Callable[[], object]
) -> CrossValidation:
    """Fit on each fold's training part and predict the rest.

    Args:
        model: unfitted; a `Candidate` searches its grid on each training part anew.
        inputs: [n_rows, ...] of all train rows.
        rows: the train split and its folds.
        main_score: the score that is kept per fold.
        advance: called after each fold.
    """
    candidate = model if isinstance(model, Candidate) else Candidate(model)
    n_rows = len(rows.y)
    predicted = np.full(n_rows, np.nan)
    probabilities = None if rows.labels is None else np.full((n_rows, len(rows.labels)), np.nan)
    fold_scores: list[float | None] = []
    chosen: list[dict[str, Any]] = []
    n_unconverged = n_skipped = 0
    for fitted_rows, held_out_rows in rows.folds:
        if rows.labels is not None and len(np.unique(rows.y[fitted_rows])) < 2:
            n_skipped += 1
        else:
            settled, settings = settle(candidate, inputs, rows, fitted_rows, main_score)
            fitted, converged = fit(settled, inputs, rows, fitted_rows)
            answers = predict(fitted, inputs[held_out_rows], rows.labels)
            predicted[held_out_rows] = answers.predicted
            if probabilities is not None:
                probabilities[held_out_rows] = answers.probabilities
            fold_scores.append(scores(rows.y[held_out_rows], answers)[main_score])
            chosen.append(settings)
            n_unconverged += not converged
        advance()
    return CrossValidation(
        fold_scores, Predictions(predicted, probabilities, rows.labels), n_unconverged, n_skipped, chosen
    )


def settle(
    candidate: Candidate, inputs: np.ndarray, rows: TrainRows, chosen: np.ndarray, main_score: str
) -> tuple[Any, dict[str, Any]]:
    """The candidate's model with the settings that do best in a cross-validation inside some rows.

    Args:
        candidate: the model and its grid.
        inputs: [n_rows, ...] of all train rows.
        rows: the train split; groups stay whole in the inner folds too.
        chosen: the rows to choose on. No other row has a part in it.
        main_score: the score whose mean over the inner folds decides; the first of equals wins.

    Returns:
        The unfitted model and the settings; of an empty grid the model as it is and no settings.

    Raises:
        TooFewRows: the rows are too few to search on.
    """
    if not candidate.grid:
        return candidate.model, {}
    y, groups = rows.y[chosen], rows.groups[chosen]
    stratify = np.zeros(len(y), dtype=np.int64) if rows.labels is None else y
    if len(np.unique(groups)) < 2:
        raise TooFewRows("too few sentences to search on; leave search out, or add sentences")
    inner = TrainRows(
        y, groups, _group_folds(stratify, groups, INNER_FOLDS, rows.seed), rows.labels, rows.seed
    )
    best_mean, best = -np.inf, None
    for settings in ParameterGrid(candidate.grid):
        model = clone(candidate.model).set_params(**settings)
        mean = cross_validate(model, inputs[chosen], inner, main_score, lambda: None).mean
        if mean is not None and mean > best_mean:
            best_mean, best = mean, (model, settings)
    if best is None:
        raise TooFewRows("no inner fold of the search could be scored; leave search out, or add sentences")
    return best


def _name(model: Any) -> str:
    return type(model[-1] if isinstance(model, Pipeline) else model).__name__


def _group_folds(stratify: np.ndarray, groups: np.ndarray, n_folds: int, seed: int) -> list[Fold]:
    with warnings.catch_warnings():
        # scikit-learn warns where a label is rarer than there are folds; make_folds tells it in our words.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        return list(group_folds(stratify, groups, n_folds, seed))


def _calibration_folds(y: np.ndarray, groups: np.ndarray, seed: int) -> list[Fold]:
    n_labels = len(np.unique(y))
    folds = _group_folds(y, groups, INNER_FOLDS, seed) if len(np.unique(groups)) > 1 else []
    if not folds or any(len(np.unique(y[train])) < n_labels for train, _ in folds):
        raise TooFewRows(
            "too few sentences to calibrate an estimator without probabilities; take logistic, "
            "random_forest, gradient_boosting, mlp, nearest_centroid or k_nearest, or add sentences"
        )
    return folds
