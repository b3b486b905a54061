"""The protocol: candidates compared by cross-validation on train, the best tested once, beside baselines."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from threadpoolctl import threadpool_limits

from concept_evaluation import baselines
from concept_evaluation.baselines import Baseline
from pipeline_common.errors import UserError
from s4_classifier_data_prep.classifier_dataset import ClassifierDataset
from s5_classifier_training.framework.config import EstimatorConfig, ExperimentConfig
from s5_classifier_training.framework.estimators import build_searched, setting_name
from s5_classifier_training.framework.evaluation import (
    Candidate,
    CrossValidation,
    TooFewRows,
    TrainRows,
    cross_validate,
    fit,
    make_folds,
    predict,
    settle,
)
from s5_classifier_training.framework.metrics import (
    MAIN_SCORE,
    Predictions,
    scores,
    scores_with_intervals,
)
from s5_classifier_training.framework.run_warnings import (
    above_chance,
    fit_warnings,
    judgement,
)

Task = Literal["classification", "ordinal", "regression"]

SHUFFLED = "shuffled_labels"
SMALL_FIT = 10_000_000
"""Numbers in the inputs below which a second thread costs a fit more than it brings."""


@dataclass(frozen=True)
class Outcome:
    """What a training found.

    Attributes:
        results: content of ``results.json`` but for what depends on files.
        model: the best candidate, fitted on every train row.
        rows: the train split; its folds are those of the cross-validation.
        out_of_fold: the best candidate's answers for the train rows.
        test: its answers for the test rows.
    """

    results: dict[str, Any]
    model: Any
    rows: TrainRows
    out_of_fold: Predictions
    test: Predictions


def resolve_task(task: str, dataset: ClassifierDataset) -> Task:
    """The task, with ``auto`` decided by what the target is, never by the values it happens to have.

    Raises:
        UserError: a classification of activations, which are no labels.
    """
    if task in ("classification", "ordinal") and not dataset.target_is_label:
        raise UserError(
            f"task: {task}, but the dataset's target is a feature's activation, a continuous value; "
            "use task: regression or auto"
        )
    if task == "regression" or not dataset.target_is_label:
        return "regression"
    return "ordinal" if task == "ordinal" else "classification"


def dataset_baselines(task: str, dataset: ClassifierDataset) -> list[Baseline]:
    """The baselines that a dataset allows: words for sentences, the token itself for tokens."""
    kind: baselines.Task = "regression" if task == "regression" else "classification"
    found = [baselines.majority(kind, len(dataset.y)), baselines.sentence_length(kind, dataset.n_tokens)]
    if dataset.token is None:
        return [*found, baselines.bag_of_words(kind, dataset.sentence[dataset.sentence_index])]
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
    candidates = _candidates(config, task, dataset)
    train, test = np.flatnonzero(~dataset.held_out), np.flatnonzero(dataset.held_out)
    y = dataset.y.astype(np.float64) if task == "regression" else dataset.label
    _refuse_nothing_to_learn(dataset, y[train], len(test))
    folds, fewer_folds = make_folds(dataset.label[train], dataset.group[train], config.n_folds, config.seed)
    labels = None if task == "regression" else np.unique(y)
    rows = TrainRows(y[train], dataset.group[train], folds, labels, config.seed)
    with threadpool_limits(1 if dataset.X.size < SMALL_FIT else None):
        outcome = _run(dataset, config, task, candidates, rows, test, advance)
    if fewer_folds:
        outcome.results["warnings"].insert(0, fewer_folds)
    return outcome


def _candidates(config: ExperimentConfig, task: Task, dataset: ClassifierDataset) -> list[Candidate]:
    n_inputs = dataset.X.shape[1]
    for entry in config.estimators:
        if entry.largest_top_k > n_inputs:
            raise UserError(
                f"{entry.title}: top_k asks for {entry.largest_top_k} inputs, the dataset has {n_inputs}; "
                "lower it, or make a dataset with more"
            )
    normalization = dataset.metadata["normalization"]
    return [
        Candidate(
            *build_searched(
                entry.name, entry.params, task, normalization, config.seed, entry.top_k, entry.search
            )
        )
        for entry in config.estimators
    ]


def _refuse_nothing_to_learn(dataset: ClassifierDataset, y_train: np.ndarray, n_test: int) -> None:
    if not dataset.target_is_label and not y_train.any():
        target = dataset.metadata["target"]
        raise UserError(
            f"the target, feature {target.get('feature_id')} of SAE {target.get('sae')}, never fires on a "
            "train row, so there is nothing to learn; make the dataset again with another --target-feature"
        )
    if n_test == 0 or len(np.unique(y_train)) < 2:
        raise UserError("the dataset needs test rows, and two different targets among its train rows")


def _run(
    dataset: ClassifierDataset,
    config: ExperimentConfig,
    task: Task,
    candidates: list[Candidate],
    rows: TrainRows,
    test: np.ndarray,
    advance: Callable[[], object],
) -> Outcome:
    main_score = MAIN_SCORE[task]
    train_inputs = dataset.X[~dataset.held_out]
    y_test = dataset.y[test].astype(np.float64) if rows.labels is None else dataset.label[test]
    validations = [_validated(model, train_inputs, rows, main_score, advance) for model in candidates]
    best, validation = _best(validations)
    settled, settings = settle(candidates[best], train_inputs, rows, np.arange(len(rows.y)), main_score)
    model, converged = fit(settled, train_inputs, rows, np.arange(len(rows.y)))
    test_predictions = predict(model, dataset.X[test], rows.labels)
    in_test = scores_with_intervals(y_test, test_predictions, dataset.group[test], config.seed)
    in_train = scores(rows.y, predict(model, train_inputs, rows.labels))
    compared, warnings = _baseline_results(
        dataset, rows, main_score, candidates[best], train_inputs, test, y_test, advance
    )
    listed = [_listed(*pair) for pair in zip(config.estimators, validations, strict=True)]
    listed[best]["n_unconverged"] += not converged
    both = dict.fromkeys([main_score] if rows.labels is None else [main_score, "accuracy"])
    results = {
        "task": task,
        "main_score": main_score,
        "best": listed[best]["title"],
        "best_settings": _in_users_words(settings),
        "cv_mean": validation.mean,
        "cv_std": validation.std,
        **{f"test_{score}": in_test[score]["value"] for score in both},
        **{f"train_{score}": in_train[score] for score in both},
        "n_folds": len(rows.folds),
        "n_train": len(rows.y),
        "n_test": len(test),
        "n_test_sentences": len(np.unique(dataset.sentence_index[test])),
        "n_inputs": dataset.X.shape[1],
        "labels": None if rows.labels is None else rows.labels.tolist(),
        "test": in_test,
        "estimators": listed,
        "baselines": compared,
        "warnings": [
            *fit_warnings(listed, validation.n_skipped),
            *judgement(main_score, validation, in_test, compared),
            *warnings,
            *dataset.metadata["notes"],
        ],
    }
    return Outcome(results, model, rows, validation.predictions, test_predictions)


def _validated(
    candidate: Candidate,
    inputs: np.ndarray,
    rows: TrainRows,
    main_score: str,
    advance: Callable[[], object],
) -> CrossValidation | TooFewRows:
    """What cross-validation found, or why the candidate cannot be judged on these rows; others may be."""
    try:
        return cross_validate(candidate, inputs, rows, main_score, advance)
    except TooFewRows as reason:
        return reason


def _best(validations: Sequence[CrossValidation | TooFewRows]) -> tuple[int, CrossValidation]:
    """Place and cross-validation of the candidate with the highest cv_mean, the first of equals."""
    judged = [(i, found) for i, found in enumerate(validations) if isinstance(found, CrossValidation)]
    if not judged:
        raise next(reason for reason in validations if isinstance(reason, TooFewRows))
    best, validation = max(judged, key=lambda pair: -np.inf if pair[1].mean is None else pair[1].mean)
    if validation.mean is None:
        raise UserError(
            "no fold could be scored: one target in each training or held-out part; add sentences"
        )
    return best, validation


def _listed(config: EstimatorConfig, validation: CrossValidation | TooFewRows) -> dict[str, Any]:
    if isinstance(validation, TooFewRows):
        nothing = dict.fromkeys(("cv_mean", "cv_std", "chosen"))
        left_out = {"fold_scores": [], "n_unconverged": 0, "left_out": str(validation)}
        return {**config.model_dump(), "title": config.title, **nothing, **left_out}
    return {
        **config.model_dump(),
        "title": config.title,
        "cv_mean": validation.mean,
        "cv_std": validation.std,
        "fold_scores": validation.fold_scores,
        "chosen": [_in_users_words(settings) for settings in validation.chosen] if config.search else None,
        "n_unconverged": validation.n_unconverged,
        "left_out": None,
    }


def _in_users_words(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {setting_name(key): value for key, value in settings.items()}


def _baseline_results(
    dataset: ClassifierDataset,
    rows: TrainRows,
    main_score: str,
    best: Candidate,
    train_inputs: np.ndarray,
    test: np.ndarray,
    y_test: np.ndarray,
    advance: Callable[[], object],
) -> tuple[dict[str, Any], list[str]]:
    """Every baseline and the best candidate on shuffled labels, by the classifier's own protocol."""
    shuffled = replace(rows, y=np.random.default_rng(rows.seed).permutation(rows.y))
    task = "regression" if rows.labels is None else "classification"
    train = ~dataset.held_out
    entries = [
        (b.name, Candidate(b.estimator), b.inputs[train], b.inputs[test], rows)
        for b in dataset_baselines(task, dataset)
    ]
    entries.append((SHUFFLED, best, train_inputs, dataset.X[test], shuffled))
    compared, warnings = {}, []
    for name, candidate, fitted_inputs, test_inputs, target in entries:
        validation = cross_validate(candidate, fitted_inputs, target, main_score, advance)
        settled, _ = settle(candidate, fitted_inputs, target, np.arange(len(target.y)), main_score)
        fitted, converged = fit(settled, fitted_inputs, target, np.arange(len(target.y)))
        answers = predict(fitted, test_inputs, rows.labels)
        in_test = scores_with_intervals(y_test, answers, dataset.group[test], rows.seed)
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
