"""The ranking: every feature of every SAE scored on train, the best kept with their held-out evidence."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from concept_evaluation.splits import group_folds
from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import FeatureStore, StoredSae
from s2_find_top_features.feature_metrics import (
    THRESHOLD_QUANTILE,
    SparseColumns,
    crossfitted_rates,
    metrics_of_split,
    quantile,
    rates,
)
from s2_find_top_features.neuronpedia import feature_url
from s2_find_top_features.ranked_features import METRICS, RankedFeature

N_FOLDS = 5
FOLD_SEED = 0
SMALLER_IS_BETTER = ("fpr",)


@dataclass(frozen=True)
class Thresholds:
    """What a feature must reach on train to pass.

    Attributes:
        min_pearson: smallest Pearson correlation.
        min_tpr: smallest share of label-3 sentences on which it fires.
        max_fpr: largest share of label-0 sentences on which it fires.
    """

    min_pearson: float
    min_tpr: float
    max_fpr: float


@dataclass(frozen=True)
class Ranking:
    """The outcome over all SAEs.

    Attributes:
        features: the best, best first: those that pass the thresholds, then the others.
        n_features: all features of the store.
        n_active: those that are active on at least one train sentence; only they can be ranked.
        n_passing: those that pass the thresholds on train.
    """

    features: list[RankedFeature]
    n_features: int
    n_active: int
    n_passing: int


@dataclass(frozen=True)
class _Candidate:
    """A feature on its way to the ranking, sortable."""

    order: tuple[bool, float, int, int]
    sae: StoredSae
    feature_id: int
    passes: bool
    train: dict[str, float | None]
    held_out: dict[str, float | None]


def rank_features(
    store: FeatureStore,
    pooling: str,
    rank_by: str,
    thresholds: Thresholds,
    top_n: int,
    on_sae: Callable[[StoredSae], object] = lambda sae: None,
) -> Ranking:
    """Rank all features of a store on its train split.

    One SAE is in memory at a time; of each only its ``top_n`` best go on to the final order.

    Args:
        store: the feature store.
        pooling: how a sentence's tokens become one activation.
        rank_by: the metric that orders them, descending (ascending for ``fpr``), on train. Ties keep
            the store's order.
        thresholds: features that pass come before all that do not.
        top_n: how many to keep.
        on_sae: called after each SAE.

    Raises:
        UserError: the labels of the store do not allow ``rank_by``, or nothing is active on train.
    """
    train = ~store.held_out
    folds = _folds(store, train)
    candidates: list[_Candidate] = []
    n_features = n_active = n_passing = 0
    defined = False
    for position, sae in enumerate(store.saes):
        activations = store.pooled_activations(sae, pooling)
        columns = SparseColumns.from_csr(
            activations.data, activations.indices, activations.indptr, activations.shape
        )
        on_train = columns.subset(train)
        metrics = metrics_of_split(
            on_train, store.labels[train], *crossfitted_rates(on_train, store.labels[train], folds)
        )
        active = on_train.n_active > 0
        passing = passes(metrics, thresholds) & active
        score = metrics[rank_by] if rank_by not in SMALLER_IS_BETTER else -metrics[rank_by]
        rankable = active & ~np.isnan(score)
        defined |= bool(rankable.any())
        n_features += sae.d_sae
        n_active += int(active.sum())
        n_passing += int(passing.sum())
        best = np.lexsort((np.arange(sae.d_sae), -np.where(rankable, score, -np.inf), ~(passing & rankable)))
        best = best[rankable[best]][:top_n]
        held_out = _held_out_metrics(columns, on_train, store, train)
        for feature_id in best.tolist():
            candidates.append(
                _Candidate(
                    order=(not passing[feature_id], -float(score[feature_id]), position, feature_id),
                    sae=sae,
                    feature_id=feature_id,
                    passes=bool(passing[feature_id]),
                    train=_values(metrics, feature_id),
                    held_out=_values(held_out, feature_id),
                )
            )
        candidates = sorted(candidates, key=lambda candidate: candidate.order)[:top_n]
        on_sae(sae)
    if not n_active:
        raise UserError(
            f"{store.path}: no feature is active on any train sentence; check the SAEs and the model"
        )
    if not defined:
        present = ", ".join(str(label) for label in np.unique(store.labels[train]))
        raise UserError(
            f"{store.path}: {rank_by} does not exist for the train labels {present}; rank by another metric, "
            "e.g. --rank-by spearman"
        )
    features = [_ranked(rank, candidate) for rank, candidate in enumerate(candidates, start=1)]
    return Ranking(features, n_features, n_active, n_passing)


def passes(metrics: dict[str, np.ndarray], thresholds: Thresholds) -> np.ndarray:
    """Which features pass: bool [n_features].

    A criterion whose metric does not exist, because its label is absent, is not applied; a feature whose
    correlation does not exist, because it is constant, never passes.
    """
    unknown = {name: np.isnan(metrics[name]) for name in ("tpr", "fpr", "monotonicity")}
    return (
        (metrics["pearson"] >= thresholds.min_pearson)
        & ((metrics["tpr"] >= thresholds.min_tpr) | unknown["tpr"])
        & ((metrics["fpr"] <= thresholds.max_fpr) | unknown["fpr"])
        & ((metrics["monotonicity"] == 1) | unknown["monotonicity"])
    )


def _folds(store: FeatureStore, train: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    try:
        return list(group_folds(store.labels[train], store.groups[train], N_FOLDS, FOLD_SEED))
    except ValueError as error:
        raise UserError(f"{store.path}: train split: {error}; more unlike sentences are needed") from None


def _held_out_metrics(
    columns: SparseColumns, on_train: SparseColumns, store: FeatureStore, train: np.ndarray
) -> dict[str, np.ndarray]:
    """The held-out split's metrics, with the firing threshold of all of train."""
    threshold = quantile(on_train.subset(store.labels[train] == 0), THRESHOLD_QUANTILE)
    held_out = columns.subset(~train)
    labels = store.labels[~train]
    return metrics_of_split(held_out, labels, *rates(held_out, labels, threshold))


def _values(metrics: dict[str, np.ndarray], feature_id: int) -> dict[str, float | None]:
    row = {name: float(metrics[name][feature_id]) for name in METRICS}
    return {name: None if np.isnan(value) else value for name, value in row.items()}


def _ranked(rank: int, candidate: _Candidate) -> RankedFeature:
    return RankedFeature(
        rank=rank,
        sae_name=candidate.sae.name,
        layer=candidate.sae.layer,
        average_l0=candidate.sae.average_l0,
        feature_id=candidate.feature_id,
        passes_filters=candidate.passes,
        train=candidate.train,
        held_out=candidate.held_out,
        neuronpedia_url=feature_url(candidate.sae.neuronpedia_id, candidate.feature_id),
    )
