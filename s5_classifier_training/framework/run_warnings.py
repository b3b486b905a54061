"""What a reader of a training's results should know before believing them, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from concept_evaluation.metrics import spearman
from s5_classifier_training.framework.evaluation import CrossValidation
from s5_classifier_training.framework.metrics import Predictions

CHANCE_Z = 3.0
"""Standard errors above chance from which shuffled labels raise a warning."""


def above_chance(shuffled: np.ndarray, predictions: Predictions) -> bool:
    """Whether out-of-fold answers tell shuffled targets better than chance allows, by `CHANCE_Z`.

    Of labels the share of right answers is held against the commonest label's share, in a regression
    Spearman's correlation against 0.

    Args:
        shuffled: [n_rows], the shuffled targets that the model was fitted on.
        predictions: out-of-fold, NaN where a fold was left out.
    """
    known = np.isfinite(predictions.predicted)
    target, predicted = shuffled[known], predictions.predicted[known]
    n_rows = len(target)
    if n_rows < 2:
        return False
    if predictions.labels is None:
        correlation = spearman(target, predicted)
        return correlation is not None and correlation * np.sqrt(n_rows - 1) > CHANCE_Z
    chance = float(np.unique(target, return_counts=True)[1].max() / n_rows)
    error = np.sqrt(max(chance * (1 - chance), 1 / n_rows) / n_rows)
    return bool((np.mean(target == predicted) - chance) / error > CHANCE_Z)


def fit_warnings(candidates: Sequence[Mapping[str, Any]], n_skipped: int) -> list[str]:
    """Candidates left out, fits that stopped early, and folds that could not be fitted."""
    left_out = [(candidate["title"], candidate["left_out"]) for candidate in candidates]
    warnings = [f"{title} left out: {reason}" for title, reason in left_out if reason]
    warnings += [
        f"{candidate['title']}: {candidate['n_unconverged']} fits did not converge; "
        "raise max_iter or regularise more"
        for candidate in candidates
        if candidate["n_unconverged"]
    ]
    if n_skipped:
        warnings.append(f"{n_skipped} folds left out: their training part has a single label")
    return warnings


def judgement(
    main_score: str,
    validation: CrossValidation,
    in_test: Mapping[str, Any],
    compared: Mapping[str, Mapping[str, Any]],
) -> list[str]:
    """What speaks against the test score: its interval, its distance from cv_mean, the baselines.

    Args:
        main_score: the score that is looked at.
        validation: of the best candidate.
        in_test: its test scores with intervals.
        compared: the baselines' test scores.
    """
    warnings = []
    score, cv_mean = in_test[main_score], validation.mean
    if score["value"] is None or cv_mean is None:
        return [f"test_{main_score} has no value: the test rows have a single target"]
    if score["low"] is None:
        warnings.append("no interval: the test rows belong to too few groups")
    elif score["low"] == score["high"]:
        warnings.append("the interval has no width: too few test sentences to say more")
    elif not score["low"] <= cv_mean <= score["high"]:
        warnings.append(
            f"cv_mean {cv_mean:.3f} lies outside the test interval "
            f"[{score['low']:.3f}, {score['high']:.3f}]: believe neither before looking at predictions.csv"
        )
    for name, entry in compared.items():
        rival = entry[f"test_{main_score}"]
        if rival is not None and rival >= score["value"]:
            warnings.append(
                f"baseline {name} is at least as good on test: {rival:.3f} against {score['value']:.3f}"
            )
    return warnings
