"""The analysis as one piece: ranking, evidence, baselines, and what `summary.json` says of them."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from concept_evaluation.comparisons import FEW_HELD_OUT
from s1_compute_all_features.feature_store import POOLINGS, FeatureStore
from s2_find_top_features.baselines import evaluate, fit_baselines, verdict
from s2_find_top_features.evidence import held_out_intervals, held_out_metrics, ranked_features
from s2_find_top_features.neuronpedia import quick_list_url
from s2_find_top_features.ranked_features import RankedFeature
from s2_find_top_features.ranking import Ranking, Record, rank_features
from s2_find_top_features.scoring import RankingSettings, Split
from s2_find_top_features.significance import (
    MIN_ACTIVE,
    NullStatistics,
    n_discoveries,
    smallest_discovery,
)
from s2_find_top_features.stability import N_BOOTSTRAPS, BootstrapTops

DISCOVERY_LEVEL = 0.05
QUICK_LIST_LENGTH = 20


@dataclass(frozen=True)
class Analysis:
    """What was found in one store.

    Attributes:
        features: the best, best first.
        falling: those that fall most with the label.
        activations: float32 [n_features, n_sentences], pooled, of ``features``.
        ranking: the outcome over all SAEs.
        summary: for ``summary.json``.
    """

    features: list[RankedFeature]
    falling: list[RankedFeature]
    activations: np.ndarray
    ranking: Ranking
    summary: dict[str, Any]


def analyze(
    store: FeatureStore,
    settings: RankingSettings,
    on_sae: Callable[[], object] = lambda: None,
    record: Record | None = None,
) -> Analysis:
    """Rank a store's features and weigh the best of them.

    Args:
        store: the feature store.
        settings: of the ranking.
        on_sae: called after each SAE.
        record: takes the metrics of all features, as in `rank_features`.

    Raises:
        UserError: the labels do not allow the metric to rank by, or nothing is active on train.
    """
    split = Split.of(store)
    tops = BootstrapTops(split, settings)
    ranking = rank_features(store, settings, on_sae, tops, record)
    features, falling = ranked_features(store, ranking, settings, split, tops)
    best_sae = store.saes[int(ranking.top.sae[0])]
    predictors, notes = fit_baselines(store, split, best_sae, settings)
    against_words = None
    if "bag_of_words" in predictors:
        best = ranking.top.activations[0].astype(np.float64)
        against_words = verdict(best, predictors["bag_of_words"].scores, store, split, settings.seed)
    summary = {
        "store": {"name": store.path.resolve().name, "fingerprint": store.fingerprint},
        "model": store.manifest["model"],
        "settings": {**_settings(settings), "keep_sinks": store.keep_sinks},
        "n_features": ranking.n_features,
        "n_active_on_train": ranking.n_active,
        "n_passing": ranking.n_passing,
        "sentences": {
            name: {str(label): int((labels == label).sum()) for label in range(4)}
            for name, labels in (("train", split.labels), ("held_out", split.held_out_labels))
        },
        "messages": [*label_messages(store), *sink_messages(store), *notes],
        "significance": significance(ranking),
        "stability": {"n_bootstraps": N_BOOTSTRAPS},
        "n_families": len({feature.family for feature in features}),
        "baselines": evaluate(predictors, store, split, settings.seed),
        "verdict": against_words,
        "quick_list": _quick_list(store, features[:QUICK_LIST_LENGTH]),
    }
    return Analysis(features, falling, ranking.top.activations, ranking, summary)


def label_messages(store: FeatureStore) -> list[str]:
    """What the labels of each split do not allow, in words."""
    messages = []
    for name, members in (("train", ~store.held_out), ("held-out", store.held_out)):
        absent = [str(label) for label in range(4) if not (store.labels[members] == label).any()]
        if absent:
            messages.append(
                f"no {name} sentence has label {' or '.join(absent)}: {name} metrics that need it are empty, "
                "and a filter on such a metric is not applied"
            )
    few = {label: int((store.labels[store.held_out] == label).sum()) for label in (3, 0)}
    if 0 < min(few.values()) < FEW_HELD_OUT:
        messages.append(
            f"only {few[3]} held-out sentences of label 3 and {few[0]} of label 0: the held-out AUROCs, "
            "their intervals and the verdict rest on so few that they say little, even if they look perfect"
        )
    return messages


def sink_messages(store: FeatureStore) -> list[str]:
    """What becomes of the store's attention sinks, in words; nothing where it has none."""
    found = store.manifest.get("sinks_found") or {}
    if not found:
        return []
    layers = sorted(map(int, found))
    where = f"at {len(layers)} layers, {layers[0]} to {layers[-1]}" if layers[1:] else f"at layer {layers[0]}"
    most = max(counts["n_tokens"] for counts in found.values())
    done = (
        "are left out of every pooling"
        if store.leaves_out_sinks
        else "count like other tokens (--keep-sinks)"
    )
    return [f"attention sinks {done}: up to {most:,} of {int(store.starts[-1]):,} tokens, {where}"]


def significance(ranking: Ranking) -> dict[str, Any] | None:
    """The permutation null in numbers; None where it was left out."""
    null = ranking.null
    if null is None:
        return None
    return {
        "statistic": "|Spearman| on train",
        "n_permutations": len(null.maxima),
        "n_tested": null.n_tested,
        "n_excluded": null.n_excluded,
        "min_active": MIN_ACTIVE,
        "level": DISCOVERY_LEVEL,
        "n_discoveries": n_discoveries(null, DISCOVERY_LEVEL) if null.n_tested else 0,
        "smallest_discovery": smallest_discovery(null, DISCOVERY_LEVEL),
        **_best_of_noise(null),
        "n_fixed_sentences": ranking.n_fixed,
    }


def compare_poolings(
    store: FeatureStore,
    settings: RankingSettings,
    chosen: Ranking,
    on_sae: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """The best feature and the discoveries under each pooling, all else equal.

    Args:
        store: the feature store.
        settings: of the ranking.
        chosen: its outcome under ``settings.pooling``, which is not computed again.
        on_sae: called after each SAE of the other poolings.
    """
    split = Split.of(store)
    rows = []
    for pooling in POOLINGS:
        of_pooling = replace(settings, pooling=pooling)
        ranking = chosen if pooling == settings.pooling else rank_features(store, of_pooling, on_sae)
        best = ranking.top.take(np.arange(1))
        sae = store.saes[int(best.sae[0])]
        found = significance(ranking)
        low, high = held_out_intervals(best, split, ("auroc_3_vs_0",), settings.seed)["auroc_3_vs_0"]
        rows.append(
            {
                "pooling": pooling,
                "sae_name": sae.name,
                "feature_id": int(best.feature_id[0]),
                "score": _known(best.train[settings.rank_by][0]),
                "auroc_3_vs_0": _known(best.train["auroc_3_vs_0"][0]),
                "held_out_auroc_3_vs_0": _known(held_out_metrics(best, split)["auroc_3_vs_0"][0]),
                "held_out_auroc_3_vs_0_low": _known(low[0]),
                "held_out_auroc_3_vs_0_high": _known(high[0]),
                "n_passing": ranking.n_passing,
                "n_discoveries": None if found is None else found["n_discoveries"],
            }
        )
    return rows


def _best_of_noise(null: NullStatistics) -> dict[str, float | None]:
    """The largest |Spearman| over all features that permuted labels give: its mean and 95th percentile."""
    if not null.n_tested:
        return {"best_of_noise_mean": None, "best_of_noise_95": None}
    return {
        "best_of_noise_mean": float(null.maxima.mean()),
        "best_of_noise_95": float(np.quantile(null.maxima, 1 - DISCOVERY_LEVEL)),
    }


def _settings(settings: RankingSettings) -> dict[str, Any]:
    values = asdict(settings)
    del values["n_workers"]  # changes nothing in the results
    return {**values.pop("thresholds"), **values}


def _quick_list(store: FeatureStore, features: Sequence[RankedFeature]) -> str:
    pages = {sae.name: sae.neuronpedia_id for sae in store.saes}
    name = store.trait
    return quick_list_url(name, [(pages[feature.sae_name], feature.feature_id) for feature in features])


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
