"""How features are scored and ordered on train, and what decides it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from concept_evaluation.splits import group_folds
from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.feature_metrics import LabelledColumns, crossfitted_rates, metrics_of_split
from s2_find_top_features.ranked_features import SMALLER_IS_BETTER

N_FOLDS = 5
FOLD_SEED = 0


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

    @classmethod
    def joined(cls, parts: "Sequence[Scores]") -> "Scores":
        """Those of several runs of features, one after the other."""
        return cls(
            joined_metrics([part.metrics for part in parts]),
            np.concatenate([part.passing for part in parts]),
            np.concatenate([part.order for part in parts]),
        )


def joined_metrics(parts: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Metrics, each [n_features of the part], of several runs of features as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


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
