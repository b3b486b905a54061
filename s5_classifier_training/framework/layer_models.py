"""Classifiers of one vector per sentence, cross-validated on train and refitted for other sentences.

Two kinds with the same methods: a logistic regression that chooses its penalty by inner folds, solved fast,
and any estimator that follows scikit-learn's protocol.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from concept_evaluation.baselines import majority
from concept_evaluation.logistic import fit_logistic_path, principal_coordinates
from concept_evaluation.metrics import log_loss
from concept_evaluation.splits import group_folds
from s5_classifier_training.framework.estimators import build
from s5_classifier_training.framework.evaluation import (
    INNER_FOLDS,
    Fold,
    TrainRows,
    cross_validate,
    fit,
    make_folds,
    predict,
)
from s5_classifier_training.framework.metrics import MAIN_SCORE, Predictions, scores

LOGISTIC = "logistic"


@dataclass(frozen=True)
class NestedRows:
    """The train split with its folds, and folds inside the fitted part of each.

    Attributes:
        rows: the train split.
        inner: per fold of ``rows.folds``, (fitted, judged) rows among the fold's fitted rows; groups stay
            whole. Empty where they form one group.
    """

    rows: TrainRows
    inner: list[list[Fold]]


@dataclass(frozen=True)
class Validated:
    """What cross-validation found.

    Attributes:
        out_of_fold: answers for every train row by a fit that did not see the row's group; NaN where the
            fold's fitted part has a single label.
        C: the penalty for a refit on all train rows; None for a model that chooses none.
        n_unconverged: fits that stopped before they converged.
    """

    out_of_fold: Predictions
    C: float | None
    n_unconverged: int


def nested_rows(
    y: np.ndarray, groups: np.ndarray, labels: np.ndarray, n_folds: int, seed: int
) -> tuple[NestedRows, str | None]:
    """The folds, and a message where they are fewer than asked for.

    Args:
        y: int64 [n_train], the labels.
        groups: int64 [n_train].
        labels: int64 [n_labels], ascending: every label that an answer may have.
        n_folds: outer folds asked for.
        seed: of the shuffles.

    Raises:
        UserError: all rows belong to one group.
    """
    folds, message = make_folds(y, groups, n_folds, seed)
    inner = [
        list(group_folds(y[fitted], groups[fitted], INNER_FOLDS, seed))
        if len(np.unique(groups[fitted])) > 1
        else []
        for fitted, _ in folds
    ]
    within = [
        [(fitted[fit_on], fitted[judged]) for fit_on, judged in of_fold]
        for (fitted, _), of_fold in zip(folds, inner, strict=True)
    ]
    return NestedRows(TrainRows(y, groups, folds, labels, seed), within), message


def fold_scores(nested: NestedRows, out_of_fold: Predictions) -> list[dict[str, float | None]]:
    """Every score on each fold's held-out rows; folds that could not be fitted are left out."""
    y = nested.rows.y
    return [
        scores(y[held_out], out_of_fold.take(held_out))
        for _, held_out in nested.rows.folds
        if np.isfinite(out_of_fold.predicted[held_out]).all()
    ]


class NestedLogistic:
    """L2-penalised logistic regression on standardised inputs, its penalty chosen inside the fitted rows.

    In each fold the penalty with the smallest mean log loss over inner folds is used, so that the answers
    for a fold's held-out rows chose nothing. The outer folds choose the penalty of the refit. The stronger
    penalty wins a tie, and where there is no fold to choose by.
    """

    in_threads = True

    def __init__(self, penalties: Sequence[float]) -> None:
        """Take the inverse strengths C to choose from."""
        self.penalties = sorted(set(penalties))

    def validate(self, inputs: np.ndarray, nested: NestedRows) -> Validated:
        """Cross-validate on the train rows: float [n_train, d_model]."""
        rows = nested.rows
        probabilities = np.full((len(rows.y), len(_labels(rows))), np.nan)
        losses, n_unconverged = [], 0
        for (fitted, held_out), inner in zip(rows.folds, nested.inner, strict=True):
            if not _has_two_labels(rows, fitted):
                continue
            path = self._path(inputs, rows, fitted, held_out)
            losses.append(_losses(path, rows, held_out))
            of_inner = [
                _losses(self._path(inputs, rows, *fold), rows, fold[1])
                for fold in (inner if len(self.penalties) > 1 else [])
                if _has_two_labels(rows, fold[0])
            ]
            probabilities[held_out], converged = path[_least(of_inner)]
            n_unconverged += not converged
        return Validated(_predictions(probabilities, rows), self.penalties[_least(losses)], n_unconverged)

    def answer(
        self, inputs: np.ndarray, nested: NestedRows, validated: Validated, others: np.ndarray
    ) -> tuple[Predictions, bool]:
        """Answers of a fit on all train rows for others, float [n_others, d_model]; whether it converged."""
        assert validated.C is not None
        rows = nested.rows
        ((probabilities, converged),) = _logistic_path(inputs, rows.y, others, _labels(rows), [validated.C])
        return _predictions(probabilities, rows), converged

    def _path(
        self, inputs: np.ndarray, rows: TrainRows, fitted: np.ndarray, others: np.ndarray
    ) -> list[tuple[np.ndarray, bool]]:
        return _logistic_path(inputs[fitted], rows.y[fitted], inputs[others], _labels(rows), self.penalties)


class PlainModel:
    """An estimator that follows scikit-learn's protocol, cross-validated and fitted as `train.py` does it.

    Inputs that are the same in every row, such as the embeddings of the final full stops, leave nothing but
    the labels' shares, which are then the answer; some estimators refuse such inputs.
    """

    in_threads = False  # evaluation.fit records warnings, which is one list for all threads

    def __init__(self, estimator: Any) -> None:
        """Take an unfitted estimator."""
        self._estimator = estimator

    def validate(self, inputs: np.ndarray, nested: NestedRows) -> Validated:
        """Cross-validate on the train rows: float [n_train, d_model]."""
        main_score = MAIN_SCORE["classification"]
        found = cross_validate(self._suited(inputs), inputs, nested.rows, main_score, lambda: None)
        return Validated(found.predictions, None, found.n_unconverged)

    def answer(
        self, inputs: np.ndarray, nested: NestedRows, validated: Validated, others: np.ndarray
    ) -> tuple[Predictions, bool]:
        """Answers of a fit on all train rows for others, float [n_others, d_model]; whether it converged."""
        fitted, converged = fit(self._suited(inputs), inputs, nested.rows, np.arange(len(inputs)))
        return predict(fitted, others, nested.rows.labels), converged

    def _suited(self, inputs: np.ndarray) -> Any:
        return majority("classification", 0).estimator if (inputs == inputs[0]).all() else self._estimator


LayerModel = NestedLogistic | PlainModel


def layer_model(name: str, penalties: Sequence[float], seed: int) -> LayerModel:
    """The classifier of a name in the registry, with the registry's defaults, on standardised inputs."""
    if name == LOGISTIC:
        return NestedLogistic(penalties)
    return PlainModel(build(name, {}, "classification", "standardize", seed))


def _logistic_path(
    inputs: np.ndarray, y: np.ndarray, others: np.ndarray, labels: np.ndarray, penalties: Sequence[float]
) -> list[tuple[np.ndarray, bool]]:
    """Per penalty the others' probabilities, float64 [n_others, n_labels], and whether the fit converged.

    A label that the fitted rows lack has probability 0.
    """
    present, classes = np.unique(y, return_inverse=True)
    coordinates = principal_coordinates(inputs, others)
    path = []
    for model in fit_logistic_path(coordinates, classes, penalties):
        probabilities = np.zeros((len(others), len(labels)))
        probabilities[:, np.searchsorted(labels, present)] = model.probabilities(coordinates.others)
        path.append((probabilities, model.converged))
    return path


def _losses(path: list[tuple[np.ndarray, bool]], rows: TrainRows, judged: np.ndarray) -> list[float | None]:
    return [log_loss(rows.y[judged], probabilities, _labels(rows)) for probabilities, _ in path]


def _least(losses: list[list[float | None]]) -> int:
    """Place of the smallest mean over folds; the first of equals, and 0 without folds."""
    return int(np.argmin(np.mean(np.array(losses, dtype=np.float64), axis=0))) if losses else 0


def _predictions(probabilities: np.ndarray, rows: TrainRows) -> Predictions:
    known = np.isfinite(probabilities[:, 0])
    predicted = np.full(len(probabilities), np.nan)
    predicted[known] = _labels(rows)[probabilities[known].argmax(axis=1)]
    return Predictions(predicted, probabilities, rows.labels)


def _labels(rows: TrainRows) -> np.ndarray:
    assert rows.labels is not None  # nested_rows sets them
    return rows.labels


def _has_two_labels(rows: TrainRows, chosen: np.ndarray) -> bool:
    return len(np.unique(rows.y[chosen])) > 1
