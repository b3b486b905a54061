"""What a feature has to beat on the same split: words, length, probes of hidden states, random directions."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

import numpy as np

from concept_evaluation.baselines import Baseline, bag_of_words, sentence_length
from concept_evaluation.bootstrap import N_RESAMPLES, bootstrap_intervals
from concept_evaluation.comparisons import FEW_HELD_OUT, paired_bootstrap
from concept_evaluation.metrics import auroc
from concept_evaluation.probes import FittedProbe, fit_probes
from concept_evaluation.splits import group_folds
from s1_compute_all_features.feature_store import FeatureStore, StoredSae, pool_dense
from s2_find_top_features.feature_metrics import LabelledColumns
from s2_find_top_features.scoring import (
    FOLD_SEED,
    N_FOLDS,
    RankingSettings,
    Split,
    score_features,
)
from s2_find_top_features.sparse_columns import SparseColumns
from s2_find_top_features.threads import in_threads

TEXT_PENALTIES = {"bag_of_words": (0.1, 1.0, 10.0, 100.0)}
"""Inverse strengths C of the L2 penalty to choose from."""

RANDOM_DIRECTIONS = "random_directions"
HIDDEN_STATE_POOLING = "mean"

_DIRECTIONS_AT_ONCE = 256
_PROJECTIONS_AT_ONCE = 2**23
"""Rows times directions, of the hidden states' projections that are in memory at a time."""


@dataclass(frozen=True)
class Predictor:
    """Something that scores every sentence.

    Attributes:
        scores: float64 [n_sentences], higher for more of the trait.
        cross_validated: mean AUROC over folds of train; None where it was not cross-validated.
        details: what was chosen on the way (layer, penalty), for the summary.
    """

    scores: np.ndarray
    cross_validated: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


def fit_baselines(
    store: FeatureStore, split: Split, sae: StoredSae, settings: RankingSettings
) -> tuple[dict[str, Predictor], list[str]]:
    """Every baseline that the store allows, fitted on the train sentences with label 0 or 3.

    Args:
        store: the feature store.
        split: its sentences by side.
        sae: the SAE of the best feature: its width, layer and density set the random control.
        settings: of the ranking, which the random control goes through as well.

    Returns:
        Name to predictor, in the order of the report; and messages on what could not be had. Nothing where
        train lacks label 0 or 3.
    """
    fit = np.flatnonzero(split.train & ((store.labels == 3) | (store.labels == 0)))
    is_3 = store.labels[fit] == 3
    if len(np.unique(is_3)) < 2:
        return {}, ["no baselines: they need train sentences of label 0 and of label 3"]
    folds: list[tuple[np.ndarray, np.ndarray]] = []
    if len(np.unique(store.groups[fit])) >= 2:
        folds = list(group_folds(store.labels[fit], store.groups[fit], N_FOLDS, FOLD_SEED))
    messages = []
    texts = [bag_of_words("classification", store.sentences)]
    if store.manifest.get("settings", {}).get("tokens", "all") == "all":
        texts.append(sentence_length("classification", store.n_tokens))
    else:
        messages.append("the store holds one token a sentence: no baseline of sentence length")
    predictors = {baseline.name: _best_text(baseline, fit, is_3, folds) for baseline in texts}
    layers = [] if store.hidden_states_stored == "none" else store.layers
    predictors |= _best_probes(store, layers, fit, is_3, folds, settings.n_workers)
    if not layers:
        messages.append("the store holds no hidden states: no probes and no random directions")
    elif sae.input_layer not in layers:
        where = sae.hook if sae.input_layer is None else f"hidden layer {sae.input_layer}"
        messages.append(f"{where}, which the best feature's SAE reads, is not stored: no random directions")
    else:
        predictors[RANDOM_DIRECTIONS] = best_random_direction(store, split, sae, settings)
    return predictors, messages


def best_random_direction(
    store: FeatureStore, split: Split, sae: StoredSae, settings: RankingSettings
) -> Predictor:
    """The best of as many random unit directions as the SAE has features, chosen as the features are.

    Each direction's projection of the tokens' hidden states is cut at the level that leaves it as dense on
    the train tokens as the SAE's features are on average, then pooled like a feature's activations and
    ranked by the same metric and filters on train; attention sinks have no part in it. A store that holds
    hidden states per sentence only gives these, and the density is that of the pooled features.
    """
    per_token = store.hidden_states_stored == "all"
    assert sae.input_layer is not None
    if per_token:
        states, activations = store.hidden_states(sae.input_layer), store.activations(sae)
        sinks = store.sinks(sae.input_layer)
        of_train = np.repeat(split.train, store.n_tokens) & ~sinks
    else:
        sinks = None
        states = store.pooled_hidden_states(sae.input_layer, settings.pooling)
        activations, of_train = store.pooled_activations(sae, settings.pooling), split.train
    density = np.diff(activations.indptr)[of_train].mean() / sae.d_sae
    n_rows = int(of_train.sum())
    place = min(int((1 - density) * n_rows), n_rows - 1)

    def best_of_chunk(first: int) -> tuple[tuple[float, float], np.ndarray]:
        rng = np.random.default_rng([settings.seed, first])
        n_directions = min(_DIRECTIONS_AT_ONCE, sae.d_sae - first)
        directions = rng.normal(size=(states.shape[1], n_directions)).astype(np.float32)
        directions /= np.linalg.norm(directions, axis=0)
        # Few at a time where there are many rows, so that memory does not grow with them.
        n_at_once = max(1, _PROJECTIONS_AT_ONCE // len(states))
        strips = (directions[:, start : start + n_at_once] for start in range(0, n_directions, n_at_once))
        return min(map(best_of_strip, strips), key=itemgetter(0))

    def best_of_strip(directions: np.ndarray) -> tuple[tuple[float, float], np.ndarray]:
        projection = states @ directions
        cut = np.partition(projection[of_train], place, axis=0)[place]
        fired = np.maximum(projection - cut, 0)
        if per_token:
            fired = pool_dense(fired, store.starts, store.content, settings.pooling, sinks)
        pooled = fired.T
        columns = SparseColumns.from_dense(pooled[:, split.train])
        order = score_features(
            LabelledColumns(columns, split.labels), split.fold, settings.rank_by, settings.thresholds
        ).order
        top = int(np.lexsort((order[:, 1], order[:, 0]))[0])
        return (float(order[top, 0]), float(order[top, 1])), pooled[top].astype(np.float64)

    chunks = range(0, sae.d_sae, _DIRECTIONS_AT_ONCE)
    best_order, best = (np.inf, np.inf), np.zeros(len(store.labels))
    for order, activation in in_threads(best_of_chunk, chunks, settings.n_workers):
        if order < best_order:
            best_order, best = order, activation
    details = {"layer": sae.input_layer, "n_directions": sae.d_sae, "density": float(density)}
    return Predictor(best, None, details)


def evaluate(
    predictors: Mapping[str, Predictor], store: FeatureStore, split: Split, seed: int
) -> dict[str, dict[str, Any]]:
    """AUROC of label 3 against label 0 of every predictor, on train and on held-out.

    Returns:
        Name to ``train`` (on the very sentences of the fit, so high for a flexible predictor),
        ``cross_validated``, ``held_out``, ``held_out_low`` and ``held_out_high`` (95% bootstrap interval by
        group), and the predictor's details. None where a value does not exist.
    """
    ends = (store.labels == 3) | (store.labels == 0)
    train, held_out = (np.flatnonzero(ends & side) for side in (split.train, ~split.train))
    is_3 = store.labels == 3

    def on(rows: np.ndarray) -> dict[str, float | None]:
        if not len(rows):
            return dict.fromkeys(predictors)
        return {name: auroc(one.scores[rows], is_3[rows]) for name, one in predictors.items()}

    of_train, of_held_out = on(train), on(held_out)
    intervals = bootstrap_intervals(lambda rows: on(held_out[rows]), store.groups[held_out], seed)
    results = {}
    for name, predictor in predictors.items():
        low, high = intervals[name] or (None, None)
        results[name] = {
            "train": of_train[name],
            "cross_validated": predictor.cross_validated,
            "held_out": of_held_out[name],
            "held_out_low": low,
            "held_out_high": high,
            **predictor.details,
        }
    return results


def verdict(
    first: np.ndarray, second: np.ndarray, store: FeatureStore, split: Split, seed: int
) -> dict[str, Any]:
    """Whether one score of the sentences tells label 3 from label 0 better than another, on held-out.

    Args:
        first: float [n_sentences], e.g. the best feature's activations.
        second: float [n_sentences], e.g. the bag of words' scores.
        store: the feature store.
        split: its sentences by side.
        seed: of the bootstrap.

    Returns:
        ``word``: "beats" where the 95% interval of the AUROC difference (paired bootstrap by group) lies
        above 0, "loses" where it lies below, else "cannot tell", as always with fewer than `FEW_HELD_OUT`
        held-out sentences of either label, where resampling claims too much; ``difference_low`` and
        ``difference_high``, None where there are too few held-out sentences.
    """
    rows = np.flatnonzero(~split.train & ((store.labels == 3) | (store.labels == 0)))
    compared = paired_bootstrap(
        first[rows],
        second[rows],
        lambda is_3, scores: auroc(scores, is_3),
        store.labels[rows] == 3,
        store.groups[rows],
        seed,
        N_RESAMPLES,
    )
    low, high = (None, None) if compared is None else (compared.low, compared.high)
    word = "cannot tell"
    is_few = np.bincount(store.labels[rows] == 3, minlength=2).min() < FEW_HELD_OUT
    if not is_few and low is not None and high is not None and (low > 0 or high < 0):
        word = "beats" if low > 0 else "loses"
    return {"word": word, "difference_low": low, "difference_high": high}


def _best_probes(
    store: FeatureStore,
    layers: list[int],
    fit: np.ndarray,
    is_3: np.ndarray,
    folds: list[tuple[np.ndarray, np.ndarray]],
    n_workers: int,
) -> dict[str, Predictor]:
    """Each probe at the layer that does best in cross-validation; an earlier layer wins a tie."""

    def of_layer(layer: int) -> dict[str, FittedProbe]:
        return fit_probes(store.pooled_hidden_states(layer, HIDDEN_STATE_POOLING), fit, is_3, folds)

    best: dict[str, Predictor] = {}
    for layer, probes in zip(layers, in_threads(of_layer, layers, n_workers), strict=True):
        for name, probe in probes.items():
            standing = best.get(name)
            if standing is None or probe.cross_validated > (standing.cross_validated or 0.0):
                details = {"layer": layer} if probe.C is None else {"layer": layer, "C": probe.C}
                best[name] = Predictor(probe.scores, probe.cross_validated, details)
    return best


def _best_text(
    baseline: Baseline, fit: np.ndarray, is_3: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]
) -> Predictor:
    """A text baseline, its penalty by cross-validation where it has many weights; the stronger wins a tie."""
    penalties = TEXT_PENALTIES.get(baseline.name, (baseline.estimator[-1].C,))
    by_penalty: dict[float, list[float]] = {C: [] for C in penalties}
    for fitting, judged in folds:
        if len(np.unique(is_3[fitting])) == len(np.unique(is_3[judged])) == 2:
            # Words are counted once a fold; only the last step depends on the penalty.
            inputs = baseline.estimator[:-1].fit_transform(baseline.inputs[fit[fitting]])
            outputs = baseline.estimator[:-1].transform(baseline.inputs[fit[judged]])
            for C, values in by_penalty.items():
                model = baseline.estimator[-1].set_params(C=C).fit(inputs, is_3[fitting])
                values.append(auroc(model.decision_function(outputs), is_3[judged]) or 0.0)
    means = {C: float(np.mean(values)) for C, values in by_penalty.items() if values}
    best = max(means, key=lambda C: (means[C], -C)) if means else penalties[0]
    model = baseline.estimator.set_params(**{f"{baseline.estimator.steps[-1][0]}__C": best})
    scores = model.fit(baseline.inputs[fit], is_3).decision_function(baseline.inputs)
    return Predictor(scores, means.get(best), {"C": best} if len(penalties) > 1 else {})
