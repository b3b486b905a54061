"""What speaks for the best features: held-out metrics, intervals, families.

All of it reads the candidates' pooled activations, which the ranking kept; no SAE is read again.
"""

import numpy as np

from concept_evaluation.bootstrap import N_RESAMPLES, group_resamples, percentile_intervals
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.candidates import Candidates
from s2_find_top_features.feature_metrics import LabelledColumns, firing_threshold, metrics_of_split, rates
from s2_find_top_features.neuronpedia import feature_url
from s2_find_top_features.ranked_features import METRICS, RankedFeature
from s2_find_top_features.ranking import Ranking
from s2_find_top_features.scoring import RankingSettings, Split, joined_metrics
from s2_find_top_features.significance import fwer_p, q_values
from s2_find_top_features.sparse_columns import SparseColumns
from s2_find_top_features.stability import BootstrapTops

_VALUES_AT_ONCE = 2**19
"""Activations of candidates that are scored at a time, however many sentences there are."""

FAMILY_CORRELATION = 0.8
"""A feature whose activations correlate at least so with a better feature's belongs to its family."""


def families(activations: np.ndarray) -> np.ndarray:
    """Group near-duplicates: int64 [n_features], numbered from 1 in the order of their best feature.

    Features are taken best first. One that correlates with the representative of an earlier family (Pearson,
    at least `FAMILY_CORRELATION`) joins the first such family, others found their own. Members resemble
    their representative, never only each other, so families do not chain.

    Args:
        activations: float [n_features, n_train], best first; none constant.
    """
    centred = activations - activations.mean(axis=1, keepdims=True, dtype=np.float64)
    norm = np.sqrt(np.square(centred).sum(axis=1))
    unit = centred / np.where(norm > 0, norm, 1)[:, None]
    correlation = unit @ unit.T
    representatives: list[int] = []
    family = np.zeros(len(activations), dtype=np.int64)
    for feature in range(len(activations)):
        alike = np.flatnonzero(correlation[feature, representatives] >= FAMILY_CORRELATION)
        if not len(alike):
            representatives.append(feature)
        family[feature] = alike[0] + 1 if len(alike) else len(representatives)
    return family


def held_out_metrics(candidates: Candidates, split: Split) -> dict[str, np.ndarray]:
    """Metrics on the held-out sentences, with the firing thresholds of all of train: name to [n]."""
    data, threshold = _held_out(candidates, split)
    parts = []
    for first, end in data.columns.runs(_VALUES_AT_ONCE):
        run = LabelledColumns(data.columns.between(first, end), data.labels)
        parts.append(metrics_of_split(run, *rates(run, threshold[first:end])))
    return joined_metrics(parts)


def held_out_intervals(
    candidates: Candidates, split: Split, names: tuple[str, ...], seed: int
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """95% bootstrap intervals of held-out metrics, groups drawn whole.

    The features were chosen on train and thresholds were fitted there, so the intervals speak of the held-out
    sentences alone, and nothing in them is conditioned on.

    Args:
        candidates: the features.
        split: the store's.
        names: the metrics.
        seed: of the draws.

    Returns:
        Name to low and high, float64 [n]; NaN where there are fewer than two groups or too few resamples
        have a value.
    """
    data, threshold = _held_out(candidates, split)
    samples = np.full((N_RESAMPLES, len(names), len(candidates)), np.nan)
    if len(np.unique(split.held_out_groups)) >= 2:
        for place, rows in enumerate(group_resamples(split.held_out_groups, N_RESAMPLES, seed)):
            times = np.bincount(rows, minlength=len(data.labels))
            labels = np.repeat(data.labels, times)
            for first, end in data.columns.runs(_VALUES_AT_ONCE):
                drawn = LabelledColumns(data.columns.between(first, end).resample(times), labels)
                metrics = metrics_of_split(drawn, *rates(drawn, threshold[first:end]))
                samples[place, :, first:end] = [metrics[name] for name in names]
    return {name: percentile_intervals(samples[:, column]) for column, name in enumerate(names)}


def ranked_features(
    store: FeatureStore, ranking: Ranking, settings: RankingSettings, split: Split, tops: BootstrapTops
) -> tuple[list[RankedFeature], list[RankedFeature]]:
    """The best features and the falling ones with all their evidence."""
    n_top, n_falling = len(ranking.top), len(ranking.falling)
    both = ranking.top.followed_by(ranking.falling)
    held_out = held_out_metrics(both, split)
    names = tuple({settings.rank_by, "spearman", "auroc_3_vs_0"})
    intervals = held_out_intervals(both, split, names, settings.seed)
    share = np.concatenate([tops.share(ranking.top), np.full(n_falling, np.nan)])

    def features(chosen: slice, score: str) -> list[RankedFeature]:
        nothing = np.full(n_top + n_falling, np.nan)
        evidence = {
            "fwer_p": nothing if ranking.null is None else fwer_p(both.statistic, ranking.null),
            "q_value": nothing if ranking.null is None else q_values(both.statistic, ranking.null),
            "stability": share,
            "optimism": both.train[score] - held_out[score],
            "held_out_score_low": intervals[score][0],
            "held_out_score_high": intervals[score][1],
            "held_out_auroc_3_vs_0_low": intervals["auroc_3_vs_0"][0],
            "held_out_auroc_3_vs_0_high": intervals["auroc_3_vs_0"][1],
        }
        return _described(
            store,
            both.take(np.arange(n_top + n_falling)[chosen]),
            {name: values[chosen] for name, values in held_out.items()},
            {name: values[chosen] for name, values in evidence.items()},
            families(both.activations[chosen][:, split.train]),
        )

    return features(slice(n_top), settings.rank_by), features(slice(n_top, None), "spearman")


def _held_out(candidates: Candidates, split: Split) -> tuple[LabelledColumns, np.ndarray]:
    """The held-out sentences, and the firing thresholds of train."""
    n_at_once = max(1, _VALUES_AT_ONCE // len(split.train))
    strips = [slice(first, first + n_at_once) for first in range(0, len(candidates), n_at_once)]
    on_train = (SparseColumns.from_dense(candidates.activations[strip][:, split.train]) for strip in strips)
    thresholds = [firing_threshold(LabelledColumns(columns, split.labels)) for columns in on_train]
    held_out = SparseColumns.from_dense(candidates.activations[:, ~split.train])
    return LabelledColumns(held_out, split.held_out_labels), np.concatenate(thresholds)


def _described(
    store: FeatureStore,
    chosen: Candidates,
    held_out: dict[str, np.ndarray],
    evidence: dict[str, np.ndarray],
    family: np.ndarray,
) -> list[RankedFeature]:
    features = []
    for place in range(len(chosen)):
        sae = store.saes[int(chosen.sae[place])]
        feature_id = int(chosen.feature_id[place])
        features.append(
            RankedFeature(
                rank=place + 1,
                sae_name=sae.name,
                layer=sae.layer,
                average_l0=sae.average_l0,
                feature_id=feature_id,
                passes_filters=bool(chosen.passes[place]),
                train=_values({name: chosen.train[name] for name in METRICS}, place),
                held_out=_values({name: held_out[name] for name in METRICS}, place),
                neuronpedia_url=feature_url(sae.neuronpedia_id, feature_id),
                evidence=_values(evidence, place),
                family=int(family[place]),
                is_representative=bool(family[place] > family[:place].max(initial=0)),
                needs_name=store.needs_name(sae),
            )
        )
    return features


def _values(columns: dict[str, np.ndarray], place: int) -> dict[str, float | None]:
    row = {name: float(values[place]) for name, values in columns.items()}
    return {name: None if np.isnan(value) else value for name, value in row.items()}
