"""Where a trait can be read: every layer's vectors classified on the same folds, beside baselines."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from threadpoolctl import threadpool_limits

from concept_evaluation.baselines import bag_of_words, sentence_length
from concept_evaluation.bootstrap import bootstrap_intervals
from concept_evaluation.comparisons import FEW_HELD_OUT
from concept_evaluation.metrics import auroc
from s5_classifier_training.framework.layer_models import (
    LayerModel,
    NestedRows,
    PlainModel,
    Validated,
    fold_scores,
    layer_model,
    nested_rows,
)
from s5_classifier_training.framework.metrics import Predictions, scores
from s5_classifier_training.framework.trait_stores import Layer, Trait, refuse_single_label

BAG_OF_WORDS = "bag_of_words"

COLUMNS = (
    "trait",
    "layer",
    "estimator",
    "pooling",
    "n_train",
    "n_test",
    "cv_auroc_mean",
    "cv_auroc_std",
    "test_auroc",
    "test_auroc_low",
    "test_auroc_high",
    "cv_accuracy_mean",
    "test_accuracy",
    "cv_kappa_mean",
    "test_kappa",
    "minus_bag_of_words_low",
    "minus_bag_of_words_high",
    "n_folds",
    "C",
    "n_unconverged",
    "model",
)

Result = TypeVar("Result")
Row = dict[str, Any]
"""One line of the sweep's table: `COLUMNS` to value, None where there is none."""


@dataclass(frozen=True)
class SweepSettings:
    """How the layers are classified.

    Attributes:
        estimators: names of the registry.
        pooling: how a sentence's tokens become one vector.
        penalties: inverse strengths C that the logistic regression chooses from.
        n_folds: of the cross-validation on train.
        seed: of folds, estimators and bootstrap.
        n_workers: layers in work at a time.
    """

    estimators: tuple[str, ...]
    pooling: str
    penalties: tuple[float, ...]
    n_folds: int
    seed: int
    n_workers: int


@dataclass(frozen=True)
class Classified:
    """One model on one source of vectors.

    Attributes:
        layer: that was read; None for a baseline.
        estimator: the model's name.
        validated: its cross-validation on train.
        test: its answers for the held-out sentences; None where there are none.
        n_unconverged: fits that stopped before they converged.
    """

    layer: Layer | None
    estimator: str
    validated: Validated
    test: Predictions | None
    n_unconverged: int


def sweep(
    trait: Trait, layers: Sequence[Layer], settings: SweepSettings, advance: Callable[[], object]
) -> tuple[list[Row], list[str]]:
    """Every layer with every estimator on one trait, then the baselines.

    Args:
        trait: whose store is read.
        layers: to classify, in the order of the rows.
        settings: of the classifiers.
        advance: called after each layer of each estimator.

    Returns:
        Rows by estimator, then layer, the baselines last; and messages about the data.

    Raises:
        UserError: the store lacks a layer or holds NaN, or its train sentences cannot be cross-validated.
    """
    labels, train, test = trait.store.labels, trait.train, trait.test
    nested, message = train_rows(trait, settings, np.unique(labels))
    found: list[Classified] = []
    for name in settings.estimators:
        model = layer_model(name, settings.penalties, settings.seed)

        def classify(layer: Layer, name: str = name, model: LayerModel = model) -> Classified:
            vectors = trait.vectors(layer, settings.pooling)
            return _classified(layer, name, model, vectors[train], vectors[test], nested)

        for classified in over_layers(classify, trait, layers, model, settings.n_workers):
            found.append(classified)
            advance()
    for name, model, inputs in baseline_models(trait):
        found.append(_classified(None, name, model, inputs[train], inputs[test], nested))
    messages = [*([message] if message else []), *_messages(trait)]
    return _rows(trait, nested, found, settings), messages


def train_rows(trait: Trait, settings: SweepSettings, labels: np.ndarray) -> tuple[NestedRows, str | None]:
    """The train sentences with their folds, and a message where these are fewer than asked for.

    Args:
        trait: whose store is read.
        settings: of the folds.
        labels: int64 [n_labels], ascending: every label that an answer may have.

    Raises:
        UserError: the train sentences have one label, or belong to one group.
    """
    refuse_single_label(trait)
    y, groups = trait.store.labels[trait.train], trait.store.groups[trait.train]
    return nested_rows(y, groups, labels, settings.n_folds, settings.seed)


def over_layers(
    work: Callable[[Layer], Result], trait: Trait, layers: Sequence[Layer], model: LayerModel, n_workers: int
) -> Iterator[Result]:
    """Results of ``work`` in the order of the layers, several in work at a time where the model allows it."""
    if not model.in_threads:
        yield from map(work, layers)
        return
    _ = trait.store.content  # read once, before several threads ask for it
    # Many small matrices: BLAS threads would wait for one another.
    with threadpool_limits(1), ThreadPoolExecutor(n_workers) as executor:
        yield from executor.map(work, layers)


def baseline_models(trait: Trait) -> list[tuple[str, PlainModel, np.ndarray]]:
    """Name, model and inputs [n_sentences, ...] of what reads nothing of the language model."""
    found = [bag_of_words("classification", trait.store.sentences)]
    if trait.every_token_stored:
        found.append(sentence_length("classification", trait.store.n_tokens))
    return [(baseline.name, PlainModel(baseline.estimator), baseline.inputs) for baseline in found]


def cv_mean(validated: Validated, nested: NestedRows, score: str) -> float | None:
    """Mean of a score over the folds that have it; None where none has."""
    return _mean_and_std(fold_scores(nested, validated.out_of_fold), score)[0]


def _mean_and_std(
    of_folds: Sequence[Mapping[str, float | None]], score: str
) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of the values that exist; None with too few."""
    defined = [value for fold in of_folds if (value := fold[score]) is not None]
    mean = float(np.mean(defined)) if defined else None
    return mean, float(np.std(defined, ddof=1)) if len(defined) > 1 else None


def _classified(
    layer: Layer | None,
    name: str,
    model: LayerModel,
    inputs: np.ndarray,
    test_inputs: np.ndarray,
    nested: NestedRows,
) -> Classified:
    validated = model.validate(inputs, nested)
    if not len(test_inputs):
        return Classified(layer, name, validated, None, validated.n_unconverged)
    test, converged = model.answer(inputs, nested, validated, test_inputs)
    return Classified(layer, name, validated, test, validated.n_unconverged + (not converged))


def _messages(trait: Trait) -> list[str]:
    store = trait.store
    messages = []
    if not len(trait.test):
        messages.append("no held-out sentences: the test columns stay empty")
    missing = [str(label) for label in (0, 3) if label not in store.labels[trait.train]]
    if missing:
        messages.append(f"train has no sentence of label {' and '.join(missing)}: AUROC may have no value")
    if not trait.every_token_stored:
        messages.append("the store holds the final token of each sentence alone, whatever --pooling says")
    return messages


def _rows(
    trait: Trait, nested: NestedRows, found: Sequence[Classified], settings: SweepSettings
) -> list[Row]:
    y_test = trait.store.labels[trait.test]
    intervals = _auroc_intervals(trait, found, settings.seed)
    rows = []
    for place, one in enumerate(found):
        of_folds = fold_scores(nested, one.validated.out_of_fold)
        in_test = scores(y_test, one.test) if one.test is not None else {}
        cv_auroc = _mean_and_std(of_folds, "auroc_3_vs_0")
        low, high = intervals.get(str(place)) or (None, None)
        difference = intervals.get(f"{place} minus") if one.layer is not None else None
        rows.append(
            {
                "trait": trait.name,
                "layer": one.layer,
                "estimator": one.estimator,
                "pooling": None if one.layer is None else settings.pooling,
                "n_train": len(trait.train),
                "n_test": len(trait.test),
                "cv_auroc_mean": cv_auroc[0],
                "cv_auroc_std": cv_auroc[1],
                "test_auroc": in_test.get("auroc_3_vs_0"),
                "test_auroc_low": low,
                "test_auroc_high": high,
                "cv_accuracy_mean": _mean_and_std(of_folds, "accuracy")[0],
                "test_accuracy": in_test.get("accuracy"),
                "cv_kappa_mean": _mean_and_std(of_folds, "quadratic_weighted_kappa")[0],
                "test_kappa": in_test.get("quadratic_weighted_kappa"),
                "minus_bag_of_words_low": difference[0] if difference else None,
                "minus_bag_of_words_high": difference[1] if difference else None,
                "n_folds": len(of_folds),
                "C": one.validated.C,
                "n_unconverged": one.n_unconverged,
                "model": trait.store.model_id,
            }
        )
    return rows


def _auroc_intervals(
    trait: Trait, found: Sequence[Classified], seed: int
) -> dict[str, tuple[float, float] | None]:
    """Intervals of every model's held-out AUROC and of its difference to the bag of words, by place.

    All are scored on the same resamples, so that a difference is paired. With fewer than `FEW_HELD_OUT`
    sentences of either label the differences are left out.
    """
    y, groups = trait.store.labels[trait.test], trait.store.groups[trait.test]
    expected = {
        str(place): one.test.probabilities @ one.test.labels
        for place, one in enumerate(found)
        if one.test is not None and one.test.probabilities is not None
    }
    is_few = min((y == 3).sum(), (y == 0).sum()) < FEW_HELD_OUT
    words = next(str(place) for place, one in enumerate(found) if one.estimator == BAG_OF_WORDS)
    if not expected:
        return {}

    def score(rows: np.ndarray) -> dict[str, float | None]:
        rows = rows[(y[rows] == 0) | (y[rows] == 3)]
        of_rows = {place: auroc(values[rows], y[rows] == 3) for place, values in expected.items()}
        of_words = of_rows[words]
        differences = {
            f"{place} minus": None if value is None or of_words is None or is_few else value - of_words
            for place, value in of_rows.items()
        }
        return of_rows | differences

    return bootstrap_intervals(score, groups, seed)
