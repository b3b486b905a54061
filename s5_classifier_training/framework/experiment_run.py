"""The protocol: candidates compared by cross-validation on train, the best tested once, beside baselines."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from concept_evaluation import baselines
from concept_evaluation.baselines import Baseline
from concept_evaluation.metrics import spearman
from pipeline_common.errors import UserError
from s4_classifier_data_prep.classifier_dataset import ClassifierDataset
from s5_classifier_training.framework.config import EstimatorConfig, ExperimentConfig
from s5_classifier_training.framework.estimators import build
from s5_classifier_training.framework.evaluation import (
    CrossValidation,
    TrainRows,
    cross_validate,
    fit,
    make_folds,
    predict,
)
from s5_classifier_training.framework.metrics import (
    MAIN_SCORE,
    Predictions,
    scores,
    scores_with_intervals,
)

SHUFFLED = "shuffled_labels"
CHANCE_Z = 3.0
"""Standard errors above chance from which shuffled labels raise a warning."""


@dataclass(frozen=True)
class Outcome:
    """What a training found.

    Attributes:
        results: content of ``results.json`` but for what depends on files.
        model: the best estimator, fitted on every train row.
        rows: the train split; its folds are those of the cross-validation.
        out_of_fold: the best estimator's answers for the train rows.
        test: its answers for the test rows.
    """

    results: dict[str, Any]
    model: Any
    rows: TrainRows
    out_of_fold: Predictions
    test: Predictions


def resolve_task(task: str, dataset: ClassifierDataset) -> baselines.Task:
    """The task, with ``auto`` decided by the target.

    Raises:
        UserError: a classification of activations, which are no labels.
    """
    if task == "classification" and not dataset.target_is_label:
        raise UserError(
            "task: classification, but the dataset's target is a feature's activation, a continuous value; "
            "use task: regression or auto"
        )
    if task == "regression" or not dataset.target_is_label:
        return "regression"
    return "classification"


def dataset_baselines(task: baselines.Task, dataset: ClassifierDataset) -> list[Baseline]:
    """The baselines that a dataset allows: words for sentences, the token itself for tokens."""
    found = [baselines.majority(task, len(dataset.y)), baselines.sentence_length(task, dataset.n_tokens)]
    if dataset.token is None:
        return [*found, baselines.bag_of_words(task, dataset.sentence[dataset.sentence_index])]
    return [*found, baselines.token_identity(dataset.token)]


def n_steps(config: ExperimentConfig, dataset: ClassifierDataset) -> int:
    """How often `run` calls ``advance`` at most."""
    n_models = len(config.estimators) + len(dataset_baselines("regression", dataset)) + 1
    return n_models * config.n_folds


def run(dataset: ClassifierDataset, config: ExperimentConfig, advance: Callable[[], object]) -> Outcome:
    """Train and test on a dataset.

    Args:
        dataset: inputs, target and split.
        config: candidates, folds and seed.
        advance: called after each fold of each model.

    Raises:
        UserError: an estimator or the task does not suit the dataset, or there is nothing to learn.
    """
    task = resolve_task(config.task, dataset)
    main_score = MAIN_SCORE[task]
    y = dataset.label if task == "classification" else dataset.y.astype(np.float64)
    train, test = np.flatnonzero(~dataset.held_out), np.flatnonzero(dataset.held_out)
    if len(test) == 0 or len(np.unique(y[train])) < 2:
        raise UserError("the dataset needs test rows, and two different targets among its train rows")
    folds, fewer_folds = make_folds(dataset.label[train], dataset.group[train], config.n_folds, config.seed)
    labels = np.unique(y) if task == "classification" else None
    rows = TrainRows(y[train], dataset.group[train], folds, labels, config.seed)
    normalization = dataset.metadata["normalization"]
    models = [build(c.name, c.params, task, normalization, config.seed) for c in config.estimators]
    train_inputs = dataset.X[train]
    validations = [cross_validate(model, train_inputs, rows, main_score, advance) for model in models]
    best = _best(validations)
    model, converged = fit(models[best], train_inputs, rows, np.arange(len(train)))
    out_of_fold = validations[best].predictions
    test_predictions = predict(model, dataset.X[test], rows.labels)
    in_test = scores_with_intervals(y[test], test_predictions, dataset.group[test], config.seed)
    in_train = scores(rows.y, predict(model, train_inputs, rows.labels))
    compared, warnings = _baseline_results(dataset, rows, models[best], train, test, y[test], advance)

    candidates = [_candidate(*pair) for pair in zip(config.estimators, validations, strict=True)]
    candidates[best]["n_unconverged"] += not converged
    results = {
        "task": task,
        "main_score": main_score,
        "best": candidates[best]["title"],
        "cv_mean": validations[best].mean,
        "cv_std": validations[best].std,
        f"test_{main_score}": in_test[main_score]["value"],
        f"train_{main_score}": in_train[main_score],
        "n_folds": len(folds),
        "n_train": len(train),
        "n_test": len(test),
        "n_test_sentences": len(np.unique(dataset.sentence_index[test])),
        "n_inputs": dataset.X.shape[1],
        "labels": None if rows.labels is None else rows.labels.tolist(),
        "test": in_test,
        "estimators": candidates,
        "baselines": compared,
        "warnings": [
            *([fewer_folds] if fewer_folds else []),
            *_fit_warnings(candidates, validations[best].n_skipped),
            *_judgement(main_score, validations[best], in_test, compared),
            *warnings,
            *_dataset_notes(dataset),
        ],
    }
    return Outcome(results, model, rows, out_of_fold, test_predictions)


def _best(validations: list[CrossValidation]) -> int:
    means = [-np.inf if validation.mean is None else validation.mean for validation in validations]
    best = int(np.argmax(means))
    if not np.isfinite(means[best]):
        raise UserError(
            "no fold could be scored: one target in each training or held-out part; add sentences"
        )
    return best


def _candidate(config: EstimatorConfig, validation: CrossValidation) -> dict[str, Any]:
    return {
        **config.model_dump(),
        "title": config.title,
        "cv_mean": validation.mean,
        "cv_std": validation.std,
        "fold_scores": validation.fold_scores,
        "n_unconverged": validation.n_unconverged,
    }


def _baseline_results(
    dataset: ClassifierDataset,
    rows: TrainRows,
    best_model: Any,
    train: np.ndarray,
    test: np.ndarray,
    y_test: np.ndarray,
    advance: Callable[[], object],
) -> tuple[dict[str, Any], list[str]]:
    """Every baseline and the best estimator on shuffled labels, by the classifier's own protocol."""
    task: baselines.Task = "regression" if rows.labels is None else "classification"
    main_score = MAIN_SCORE[task]
    shuffled = TrainRows(
        y=np.random.default_rng(rows.seed).permutation(rows.y),
        groups=rows.groups,
        folds=rows.folds,
        labels=rows.labels,
        seed=rows.seed,
    )
    entries = [(b.name, b.estimator, b.inputs, rows) for b in dataset_baselines(task, dataset)]
    entries.append((SHUFFLED, best_model, dataset.X, shuffled))
    compared, warnings = {}, []
    for name, estimator, inputs, target in entries:
        train_inputs = inputs[train]
        validation = cross_validate(estimator, train_inputs, target, main_score, advance)
        fitted, converged = fit(estimator, train_inputs, target, np.arange(len(train)))
        in_test = scores_with_intervals(
            y_test, predict(fitted, inputs[test], rows.labels), dataset.group[test], rows.seed
        )
        compared[name] = {
            "cv_mean": validation.mean,
            "cv_std": validation.std,
            f"test_{main_score}": in_test[main_score]["value"],
            "test": in_test,
        }
        if name != SHUFFLED and (validation.n_unconverged or not converged):
            warnings.append(f"baseline {name} did not converge in every fit")
        if name == SHUFFLED and above_chance(target.y, validation.predictions):
            warnings.append(
                f"{SHUFFLED}: cv_mean {validation.mean:.3f} is above chance: the evaluation favours "
                "the model, so no score of this run can be trusted"
            )
    return compared, warnings


def above_chance(shuffled: np.ndarray, predictions: Predictions) -> bool:
    """Whether out-of-fold answers tell shuffled targets better than chance allows, by `CHANCE_Z`.

    In a classification the share of right answers is held against the commonest label's share, in a
    regression Spearman's correlation against 0.

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


def _fit_warnings(candidates: list[dict[str, Any]], n_skipped: int) -> list[str]:
    warnings = [
        f"{candidate['title']}: {candidate['n_unconverged']} fits did not converge; "
        "raise max_iter or regularise more"
        for candidate in candidates
        if candidate["n_unconverged"]
    ]
    if n_skipped:
        warnings.append(f"{n_skipped} folds left out: their training part has a single label")
    return warnings


def _dataset_notes(dataset: ClassifierDataset) -> list[str]:
    notes = list(dataset.metadata["notes"])
    if dataset.metadata["demonstration"]:
        notes.append("made with the demonstration model: these numbers say nothing about a real model")
    return notes


def _judgement(
    main_score: str, validation: CrossValidation, in_test: dict[str, Any], compared: dict[str, Any]
) -> list[str]:
    """What a reader should know before believing the test score."""
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
