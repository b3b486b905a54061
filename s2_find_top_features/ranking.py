"""The ranking: one pass over all SAEs that scores every feature on train and keeps the best."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from concept_evaluation.splits import group_folds
from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import FeatureStore, SparseActivations
from s2_find_top_features.candidates import Candidates, pool_size
from s2_find_top_features.feature_metrics import LabelledColumns, crossfitted_rates, metrics_of_split
from s2_find_top_features.significance import (
    NullStatistics,
    Permutations,
    length_bands,
    null_statistics,
    permute_labels,
)
from s2_find_top_features.sparse_columns import SparseColumns
from s2_find_top_features.threads import in_threads

N_FOLDS = 5
FOLD_SEED = 0
SMALLER_IS_BETTER = ("fpr",)
N_FALLING = 20
"""How many features that fall with the label are listed."""


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
class RankingSettings:
    """What decides a ranking.

    Attributes:
        pooling: how a sentence's tokens become one activation.
        rank_by: the metric that orders the features, descending (ascending for `SMALLER_IS_BETTER`).
        thresholds: features that pass come before all that do not.
        top_n: how many to keep.
        n_permutations: of the null; 0 leaves it out.
        seed: of permutations and bootstraps.
        stratify_by_length: permute labels among sentences of similar length only.
        n_workers: SAEs in work at a time; changes nothing but time and memory.
    """

    pooling: str
    rank_by: str
    thresholds: Thresholds
    top_n: int
    n_permutations: int
    seed: int
    stratify_by_length: bool
    n_workers: int


@dataclass(frozen=True)
class Split:
    """The store's sentences by side of the split.

    Attributes:
        train: bool [n_sentences].
        labels: int64 [n_train].
        groups: int64 [n_train].
        fold: int64 [n_train], cross-fitting folds, groups kept whole.
        held_out_labels: int64 [n_held_out].
        held_out_groups: int64 [n_held_out].
    """

    train: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    fold: np.ndarray
    held_out_labels: np.ndarray
    held_out_groups: np.ndarray

    @classmethod
    def of(cls, store: FeatureStore) -> "Split":
        """The split of a store.

        Raises:
            UserError: the train sentences are one group, so that no threshold can be cross-fitted.
        """
        train = ~store.held_out
        labels, groups = store.labels[train], store.groups[train]
        fold = np.zeros(len(labels), dtype=np.int64)
        try:
            for k, (_, judged) in enumerate(group_folds(labels, groups, N_FOLDS, FOLD_SEED)):
                fold[judged] = k
        except ValueError as error:
            raise UserError(f"{store.path}: train split: {error}; more unlike sentences are needed") from None
        return cls(train, labels, groups, fold, store.labels[~train], store.groups[~train])


@dataclass(frozen=True)
class Scores:
    """All features of an SAE, or all candidates, on train.

    Attributes:
        metrics: name to float64 [n_features].
        passing: bool [n_features], the thresholds are reached.
        order: float64 [n_features, 2], as in `Candidates`; infinite where a feature cannot be ranked.
    """

    metrics: dict[str, np.ndarray]
    passing: np.ndarray
    order: np.ndarray


@dataclass(frozen=True)
class Ranking:
    """The outcome over all SAEs.

    Attributes:
        pool: the best features on train, more than are listed: stability is judged among them.
        falling: the features whose Spearman correlation is most negative.
        n_features: all features of the store.
        n_active: those that are active on at least one train sentence; only they can be ranked.
        n_passing: those that pass the thresholds on train.
        null: counts under the null; None without permutations.
        n_fixed: train sentences whose labels no permutation could move.
    """

    pool: Candidates
    falling: Candidates
    n_features: int
    n_active: int
    n_passing: int
    null: NullStatistics | None
    n_fixed: int


def rank_features(
    store: FeatureStore,
    settings: RankingSettings,
    on_sae: Callable[[], object] = lambda: None,
) -> Ranking:
    """Rank all features of a store on its train split.

    ``n_workers`` SAEs are in memory at a time; of each only its best go on to the final order.

    Args:
        store: the feature store.
        settings: what decides the ranking.
        on_sae: called after each SAE.

    Raises:
        UserError: the labels of the store do not allow ``rank_by``, or nothing is active on train.
    """
    split = Split.of(store)
    permutations = _permutations(store, split, settings)
    n_kept = pool_size(settings.top_n, len(store.labels))
    _ = store.content  # read once, before several threads ask for it

    def of_sae(position: int) -> Ranking:
        activations = store.pooled_activations(store.saes[position], settings.pooling)
        return _rank_sae(position, activations, split, settings, permutations, n_kept)

    outcomes = in_threads(of_sae, range(len(store.saes)), settings.n_workers)
    total = next(outcomes)
    on_sae()
    for outcome in outcomes:
        total = _merged(total, outcome, n_kept)
        on_sae()
    if not total.n_active:
        raise UserError(
            f"{store.path}: no feature is active on any train sentence; check the SAEs and the model"
        )
    if not len(total.pool):
        present = ", ".join(str(label) for label in np.unique(split.labels))
        raise UserError(
            f"{store.path}: {settings.rank_by} does not exist for the train labels {present}; rank by "
            "another "
            "metric, e.g. --rank-by spearman"
        )
    return total


def score_features(data: LabelledColumns, fold: np.ndarray, rank_by: str, thresholds: Thresholds) -> Scores:
    """Metrics and order of features on train sentences.

    Args:
        data: the train sentences.
        fold: int64 [n], cross-fitting folds.
        rank_by: the metric that orders them.
        thresholds: features that pass come first.
    """
    metrics = metrics_of_split(data, *crossfitted_rates(data, fold))
    passing = passes(metrics, thresholds) & (data.columns.n_active > 0)
    score = metrics[rank_by] if rank_by in SMALLER_IS_BETTER else -metrics[rank_by]
    rankable = (data.columns.n_active > 0) & ~np.isnan(score)
    order = np.stack([~passing, score], axis=1).astype(np.float64)
    order[~rankable] = np.inf
    return Scores(metrics, passing & rankable, order)


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


def _rank_sae(
    position: int,
    activations: SparseActivations,
    split: Split,
    settings: RankingSettings,
    permutations: Permutations | None,
    n_kept: int,
) -> Ranking:
    columns = SparseColumns.from_csr(
        activations.data, activations.indices, activations.indptr, activations.shape, split.train
    )
    scores = score_features(
        LabelledColumns(columns, split.labels), split.fold, settings.rank_by, settings.thresholds
    )
    null, statistic = None, np.full(columns.n_features, np.nan)
    if permutations is not None:
        null, statistic = null_statistics(columns, permutations)

    def candidates(order: np.ndarray, n_best: int) -> Candidates:
        best = np.lexsort((order[:, 1], order[:, 0]))[:n_best]
        best = best[np.isfinite(order[best, 1])]
        return Candidates(
            order=order[best],
            sae=np.full(len(best), position),
            feature_id=best,
            passes=scores.passing[best],
            train={name: values[best] for name, values in scores.metrics.items()},
            statistic=statistic[best],
            activations=activations.columns(best).T,
        )

    spearman = scores.metrics["spearman"]
    falling = np.where(spearman < 0, spearman, np.inf)
    return Ranking(
        pool=candidates(scores.order, n_kept),
        falling=candidates(np.stack([np.zeros_like(falling), falling], axis=1), N_FALLING),
        n_features=columns.n_features,
        n_active=int((columns.n_active > 0).sum()),
        n_passing=int(scores.passing.sum()),
        null=null,
        n_fixed=0 if permutations is None else permutations.n_fixed,
    )


def _merged(first: Ranking, second: Ranking, n_kept: int) -> Ranking:
    return Ranking(
        pool=first.pool.merged(second.pool, n_kept),
        falling=first.falling.merged(second.falling, N_FALLING),
        n_features=first.n_features + second.n_features,
        n_active=first.n_active + second.n_active,
        n_passing=first.n_passing + second.n_passing,
        null=None if first.null is None or second.null is None else first.null + second.null,
        n_fixed=first.n_fixed,
    )


def _permutations(store: FeatureStore, split: Split, settings: RankingSettings) -> Permutations | None:
    if not settings.n_permutations:
        return None
    bands = length_bands(store.n_tokens[split.train], split.groups) if settings.stratify_by_length else None
    return permute_labels(split.labels, split.groups, settings.n_permutations, settings.seed, bands)
