"""Classifiers trained on one store's sentences and tested on another's: does what was learnt carry over?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from concept_evaluation.splits import near_duplicate_pairs
from pipeline_common.errors import UserError
from s5_classifier_training.framework.layer_models import LayerModel, NestedRows, Validated, layer_model
from s5_classifier_training.framework.layer_sweep import (
    SweepSettings,
    baseline_models,
    cv_mean,
    over_layers,
    train_rows,
)
from s5_classifier_training.framework.metrics import Predictions, scores_with_intervals
from s5_classifier_training.framework.trait_stores import Layer, Trait

COLUMNS = (
    "train_trait",
    "test_trait",
    "test_sentences",
    "layer",
    "estimator",
    "pooling",
    "n_train",
    "n_test",
    "n_left_out",
    "score",
    "test_value",
    "test_low",
    "test_high",
)
ALL, HELD_OUT = "all", "held-out"


@dataclass(frozen=True)
class Unseen:
    """Sentences that no classifier here was trained on.

    Attributes:
        trait: whose store holds them.
        kind: `ALL` sentences of the store, or the `HELD_OUT` ones.
        sentences: int64 [n_test], their indices in the store.
        n_left_out: sentences left out because one in train is nearly the same.
    """

    trait: Trait
    kind: str
    sentences: np.ndarray
    n_left_out: int


@dataclass(frozen=True)
class Tested:
    """A classifier and its answers.

    Attributes:
        estimator: its name.
        layer: that it reads; None for a baseline.
        C: its penalty; None where it chooses none.
        cv_auroc: mean over the folds of train; None where it has no value.
        converged: whether its fit on all train sentences did.
        answers: one a test set.
    """

    estimator: str
    layer: Layer | None
    C: float | None
    cv_auroc: float | None
    converged: bool
    answers: list[Predictions]


def refuse_other_models(train: Trait, others: Sequence[Trait]) -> None:
    """Stop where vectors of two stores do not mean the same.

    Raises:
        UserError: another model or revision, or another choice of tokens.
    """
    for other in others:
        for key in ("id", "revision", "d_model"):
            own, found = train.store.manifest["model"].get(key), other.store.manifest["model"].get(key)
            if own != found:
                raise UserError(
                    f"{other.store.path}: model {key} {found}, the train store {train.store.path} has {own}; "
                    "a classifier carries over only within one model; extract both with one configuration"
                )
        if other.every_token_stored != train.every_token_stored:
            raise UserError(
                f"{other.store.path}: one of the stores holds all tokens and the other the final ones alone; "
                "extract both with the same --tokens"
            )


def unseen_sentences(train: Trait, others: Sequence[Trait], held_out_only: bool) -> list[Unseen]:
    """The train store's own held-out sentences, where it has any, then each other store's sentences.

    A sentence of another store that nearly repeats a train sentence (`near_duplicate_pairs`) is left out:
    it was learnt, so it shows nothing.

    Raises:
        UserError: nothing is left of a store.
    """
    own = [Unseen(train, HELD_OUT, train.test, 0)] if len(train.test) else []
    learnt = [train.store.sentences[index] for index in train.train]
    found = []
    for other in others:
        chosen = other.test if held_out_only else np.arange(len(other.store.sentences))
        texts = [*learnt, *(other.store.sentences[index] for index in chosen)]
        known = {
            second - len(learnt)
            for first, second, _ in near_duplicate_pairs(texts)
            if first < len(learnt) <= second
        }
        # A text without any 5-gram resembles nothing, so the same text is looked for as well.
        same = set(learnt)
        kept = [
            place
            for place in range(len(chosen))
            if place not in known and texts[len(learnt) + place] not in same
        ]
        if not kept:
            raise UserError(
                f"{other.store.path}: no sentence to test on: the train split of {train.store.path} "
                f"holds all {len(chosen)}, or nearly the same ones; name another store"
            )
        kind = HELD_OUT if held_out_only else ALL
        found.append(Unseen(other, kind, chosen[kept], len(chosen) - len(kept)))
    return [*own, *found]


def transfer(
    train: Trait,
    sets: Sequence[Unseen],
    layers: Sequence[Layer],
    settings: SweepSettings,
    advance: Callable[[], object],
) -> tuple[list[Tested], list[str]]:
    """Train on the train split and answer for every test set.

    Each estimator reads the layer with the best cross-validated AUROC on train (accuracy where AUROC has no
    value; the earlier of equals); no test sentence has a part in that.

    Args:
        train: whose train split is learnt.
        sets: from `unseen_sentences`.
        layers: to choose from.
        settings: of the classifiers.
        advance: called after each layer of each estimator.

    Returns:
        The estimators, then the baselines; and messages about folds and fits.

    Raises:
        UserError: a store lacks a layer or holds NaN, or train cannot be cross-validated.
    """
    stores = [train.store, *(one.trait.store for one in sets)]
    labels = np.unique(np.concatenate([store.labels for store in stores]))
    nested, message = train_rows(train, settings, labels)
    tested = []
    for name in settings.estimators:
        model = layer_model(name, settings.penalties, settings.seed)

        def validate(layer: Layer, model: LayerModel = model) -> Validated:
            return model.validate(train.vectors(layer, settings.pooling)[train.train], nested)

        found = []
        for validated in over_layers(validate, train, layers, model, settings.n_workers):
            found.append(validated)
            advance()
        best = max(range(len(layers)), key=[_standing(one, nested) for one in found].__getitem__)
        layer, vectors = layers[best], train.vectors(layers[best], settings.pooling)[train.train]
        others = [one.trait.vectors(layer, settings.pooling)[one.sentences] for one in sets]
        tested.append(_tested(name, layer, model, found[best], vectors, others, nested))
    texts = [{name: inputs for name, _, inputs in baseline_models(one.trait)} for one in sets]
    for name, model, inputs in baseline_models(train):
        validated = model.validate(inputs[train.train], nested)
        others = [inputs_of[name][one.sentences] for one, inputs_of in zip(sets, texts, strict=True)]
        tested.append(_tested(name, None, model, validated, inputs[train.train], others, nested))
    messages = [message] if message else []
    messages += [f"{one.estimator} did not converge" for one in tested if not one.converged]
    return tested, messages


def score_rows(
    train: Trait, sets: Sequence[Unseen], tested: Sequence[Tested], settings: SweepSettings
) -> list[list[Any]]:
    """A line per test set, classifier and score: the cells of `COLUMNS`, None where there is none."""
    rows = []
    for place, one in enumerate(sets):
        target, groups = one.trait.store.labels[one.sentences], one.trait.store.groups[one.sentences]
        for classifier in tested:
            answers = classifier.answers[place]
            in_test = scores_with_intervals(target, answers, groups, settings.seed)
            for name, entry in in_test.items():
                rows.append(
                    [
                        *(train.name, one.trait.name, one.kind, classifier.layer, classifier.estimator),
                        None if classifier.layer is None else settings.pooling,
                        *(len(train.train), len(target), one.n_left_out, name),
                        *(entry["value"], entry["low"], entry["high"]),
                    ]
                )
    return rows


def _standing(validated: Validated, nested: NestedRows) -> tuple[float, float]:
    """Cross-validated AUROC and accuracy, for the choice of a layer; what has no value comes last."""
    auroc, accuracy = (cv_mean(validated, nested, score) for score in ("auroc_3_vs_0", "accuracy"))
    return -np.inf if auroc is None else auroc, -np.inf if accuracy is None else accuracy


def _tested(
    name: str,
    layer: Layer | None,
    model: LayerModel,
    validated: Validated,
    inputs: np.ndarray,
    others: Sequence[np.ndarray],
    nested: NestedRows,
) -> Tested:
    """A fit on all train rows, which answers for all sets at once."""
    answers, converged = model.answer(inputs, nested, validated, np.concatenate(others))
    ends = np.cumsum([len(rows) for rows in others])[:-1]
    of_sets = [answers.take(rows) for rows in np.split(np.arange(len(answers.predicted)), ends)]
    cv_auroc = cv_mean(validated, nested, "auroc_3_vs_0")
    return Tested(name, layer, validated.C, cv_auroc, converged, of_sets)
