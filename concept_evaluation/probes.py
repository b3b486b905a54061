"""Linear probes of dense vectors for a yes/no target, with the penalty chosen by cross-validation.

Two of them: the difference of the class means, and logistic regression. Arrays in, numbers out.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from concept_evaluation.logistic import fit_logistic_path, principal_coordinates
from concept_evaluation.metrics import auroc

DIFFERENCE_OF_MEANS = "difference_of_means"
LOGISTIC_PROBE = "logistic_probe"


@dataclass(frozen=True)
class FittedProbe:
    """The setting of a probe that did best in cross-validation, and what it gives on all rows.

    Attributes:
        C: the chosen penalty; None for a probe without one.
        cross_validated: mean AUROC over the folds at this choice; the best of several, so a little high.
        scores: float64 [n_rows] of the probe fitted on all fit rows.
    """

    C: float | None
    cross_validated: float
    scores: np.ndarray


def fit_probes(
    states: np.ndarray, fit_rows: np.ndarray, positive: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]
) -> dict[str, FittedProbe]:
    """Both probes of one layer's vectors, each with the penalty that has the best mean AUROC over the folds.

    Args:
        states: float [n_rows, d_model].
        fit_rows: int [n_fit], the rows to fit on. The others are only scored.
        positive: bool [n_fit].
        folds: (fit, judged) places among the fit rows; one without both classes on both sides is left out.

    Returns:
        `DIFFERENCE_OF_MEANS` and `LOGISTIC_PROBE`; the stronger penalty wins a tie. Empty where no fold is
        left.
    """
    fitted = states[fit_rows]
    values: dict[tuple[str, float | None], list[float]] = {}
    for fit, judged in folds:
        if all(0 < positive[side].sum() < len(side) for side in (fit, judged)):
            for setting, scores in _probes(fitted[fit], positive[fit], fitted[judged]):
                values.setdefault(setting, []).append(auroc(scores, positive[judged]) or 0.0)
    if not values:
        return {}
    best: dict[str, tuple[float, float | None]] = {}
    for (name, C), of_folds in values.items():
        if name not in best or float(np.mean(of_folds)) > best[name][0]:
            best[name] = (float(np.mean(of_folds)), C)
    scores_of = dict(_probes(fitted, positive, states))
    return {name: FittedProbe(C, mean, scores_of[name, C]) for name, (mean, C) in best.items()}


def _probes(
    inputs: np.ndarray, is_positive: np.ndarray, outputs: np.ndarray
) -> Iterator[tuple[tuple[str, float | None], np.ndarray]]:
    """(name, C) of every probe fitted on the inputs, with its scores of the outputs, float64 [n_outputs]."""
    inputs, outputs = inputs.astype(np.float64), outputs.astype(np.float64)
    yield (DIFFERENCE_OF_MEANS, None), outputs @ (inputs[is_positive].mean(0) - inputs[~is_positive].mean(0))
    coordinates = principal_coordinates(inputs, outputs)
    if len(coordinates.squares):
        for model in fit_logistic_path(coordinates, is_positive.astype(np.int64)):
            yield (LOGISTIC_PROBE, model.C), model.decision(coordinates.others)[:, 0]
