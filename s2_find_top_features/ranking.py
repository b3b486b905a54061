"""The ranking: one pass over all SAEs that scores every feature on train and keeps the best."""

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import FeatureStore, SparseActivations, StoredSae
from s2_find_top_features.bootstrap_bounds import Outlook
from s2_find_top_features.candidates import Candidates
from s2_find_top_features.feature_metrics import LabelledColumns, firing_threshold, metrics_of_split, rates
from s2_find_top_features.scoring import RankingSettings, Scores, Split, joined_metrics, score_features
from s2_find_top_features.significance import (
    NullStatistics,
    Permutations,
    length_bands,
    null_statistics,
    permute_labels,
)
from s2_find_top_features.sparse_columns import SparseColumns, feature_runs
from s2_find_top_features.stability import BootstrapTops
from s2_find_top_features.threads import in_threads

_VALUES_AT_ONCE = 2**21
"""Stored values of an SAE that are scored at a time, however many sentences there are."""

N_FALLING = 20
"""How many features that fall with the label are listed."""

Record = Callable[[StoredSae, Mapping[str, np.ndarray], Mapping[str, np.ndarray], np.ndarray], object]
"""Takes an SAE with the metrics of all its features on train and on held-out, and which of them pass."""


@dataclass(frozen=True)
class Ranking:
    """The outcome over all SAEs.

    Attributes:
        top: the best features on train, at most ``top_n``.
        falling: the features whose Spearman correlation is most negative.
        n_features: all features of the store.
        n_active: those that are active on at least one train sentence; only they can be ranked.
        n_passing: those that pass the thresholds on train.
        null: counts under the null; None without permutations.
        n_fixed: train sentences whose labels no permutation could move.
    """

    top: Candidates
    falling: Candidates
    n_features: int
    n_active: int
    n_passing: int
    null: NullStatistics | None
    n_fixed: int


@dataclass(frozen=True)
class _OfSae:
    """What the pass takes from one SAE.

    Attributes:
        ranking: of its features.
        contenders: first feature, train columns and outlook in the bootstraps of each run of features.
    """

    ranking: Ranking
    contenders: list[tuple[int, SparseColumns, Outlook]]


def rank_features(
    store: FeatureStore,
    settings: RankingSettings,
    on_sae: Callable[[], object] = lambda: None,
    tops: BootstrapTops | None = None,
    record: Record | None = None,
) -> Ranking:
    """Rank all features of a store on its train split.

    ``n_workers`` SAEs are in memory at a time; of each only its best go on to the final order.

    Args:
        store: the feature store.
        settings: what decides the ranking.
        on_sae: called after each SAE.
        tops: takes part in the pass to find the best features of every bootstrap.
        record: called with the metrics of all features of each SAE, on either split; by several threads.

    Raises:
        UserError: the labels of the store do not allow ``rank_by``, train has one label only, or nothing is
            active on train.
    """
    split = Split.of(store)
    if len(np.unique(split.labels)) < 2:
        raise UserError(
            f"{store.path}: every train sentence has label {split.labels[0]}, and a ranking compares labels; "
            "extract a CSV with more sentences of another label"
        )
    permutations = _permutations(store, split, settings)
    _ = store.content  # read once, before several threads ask for it

    def of_sae(position: int) -> _OfSae:
        sae = store.saes[position]
        activations = store.pooled_activations(sae, settings.pooling)
        lengths = np.bincount(activations.indices, minlength=sae.d_sae)
        scores, held_out_metrics, nulls, contenders = [], [], [], []
        for run in feature_runs(lengths, _VALUES_AT_ONCE):
            columns = _columns(activations, split.train, run)
            data = LabelledColumns(columns, split.labels)
            scores.append(score_features(data, split.fold, settings.rank_by, settings.thresholds))
            if record is not None:
                unseen = LabelledColumns(_columns(activations, ~split.train, run), split.held_out_labels)
                rates_unseen = rates(unseen, firing_threshold(data))
                held_out_metrics.append(metrics_of_split(unseen, *rates_unseen))
            if permutations is not None:
                nulls.append(null_statistics(columns, permutations))
            if tops is not None:
                contenders.append((run[0], columns, tops.outlook(columns)))
        of_all = Scores.joined(scores)
        if record is not None:
            record(sae, of_all.metrics, joined_metrics(held_out_metrics), of_all.passing)
        n_fixed = 0 if permutations is None else permutations.n_fixed
        return _OfSae(_rank_sae(position, activations, of_all, nulls, n_fixed, settings), contenders)

    total: Ranking | None = None
    for position, outcome in enumerate(in_threads(of_sae, range(len(store.saes)), settings.n_workers)):
        if tops is not None:
            for first, columns, outlook in outcome.contenders:
                tops.add(position, first, columns, outlook)
        total = outcome.ranking if total is None else _merged(total, outcome.ranking, settings.top_n)
        on_sae()
    if total is None or not total.n_active:
        raise UserError(
            f"{store.path}: no feature is active on any train sentence; check the SAEs and the model"
        )
    if not len(total.top):
        present = ", ".join(str(label) for label in np.unique(split.labels))
        raise UserError(
            f"{store.path}: {settings.rank_by} does not exist for the train labels {present}; rank by "
            "another metric, e.g. --rank-by spearman"
        )
    return total


def _columns(activations: SparseActivations, keep: np.ndarray, run: tuple[int, int]) -> SparseColumns:
    csr = activations.data, activations.indices, activations.indptr, activations.shape
    return SparseColumns.from_csr(*csr, keep, run)


def _rank_sae(
    position: int,
    activations: SparseActivations,
    scores: Scores,
    nulls: Sequence[tuple[NullStatistics, np.ndarray]],
    n_fixed: int,
    settings: RankingSettings,
) -> Ranking:
    null, statistic = None, np.full(len(scores.passing), np.nan)
    if nulls:
        null = functools.reduce(operator.add, (of_run for of_run, _ in nulls))
        statistic = np.concatenate([values for _, values in nulls])

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
        top=candidates(scores.order, settings.top_n),
        falling=candidates(np.stack([np.zeros_like(falling), falling], axis=1), N_FALLING),
        n_features=len(scores.passing),
        n_active=int((scores.metrics["density"] > 0).sum()),
        n_passing=int(scores.passing.sum()),
        null=null,
        n_fixed=n_fixed,
    )


def _merged(first: Ranking, second: Ranking, top_n: int) -> Ranking:
    return Ranking(
        top=first.top.merged(second.top, top_n),
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
