"""What the report says of one trait, ready for the templates: all from stage 2's files and the store."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from concept_evaluation.metrics import auroc
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.ranked_features import FILTER_LETTERS, RankedFeature, RankedResults
from s3_feature_activation_graphs.activation_summary import summarise
from s3_feature_activation_graphs.feature_traces import Traces, scale_words
from s3_feature_activation_graphs.report_charts import anchor, interval_bar, shade, strip_chart
from s3_feature_activation_graphs.report_emergence import SweepRow, emergence_chart
from s3_feature_activation_graphs.report_heat_maps import heat_map_data
from s3_feature_activation_graphs.report_verdict import verdict_cards

SITE = "https://www.neuronpedia.org/"
AUROC = "auroc_3_vs_0"
BASELINE_NAMES = {
    "bag_of_words": "bag of words",
    "sentence_length": "sentence length",
    "difference_of_means": "difference of means of hidden states",
    "logistic_probe": "logistic probe on hidden states",
    "random_directions": "best of random directions",
}
N_PEAK_TOKENS = 5


@dataclass(frozen=True)
class Evidence:
    """What the report shows beside the store.

    Attributes:
        results: of stage 2.
        explanations: what Neuronpedia says; empty where stage 2 did not ask.
        specificity: the rows of ``specificity.csv``; empty without a contrast.
        sweep: the rows of stage 5's layer sweep; empty without one.
        broken_limits: what stage 0's audit warns of; None where no audit was given.
    """

    results: RankedResults
    explanations: Sequence[Mapping[str, Any]] = ()
    specificity: Sequence[Mapping[str, Any]] = ()
    sweep: Sequence[SweepRow] = ()
    broken_limits: Sequence[str] | None = None

    @property
    def other_traits(self) -> list[str]:
        """The traits of the contrast, in the order of the file."""
        return list(dict.fromkeys(row["other_trait"] for row in self.specificity))


def report_content(
    trait: str, traces: Traces, evidence: Evidence, max_sentences: int, seed: int
) -> dict[str, Any]:
    """Everything that ``report.html`` shows but the provenance.

    Args:
        trait: its name.
        traces: the features that are shown in full, the best ones of the results.
        evidence: see `Evidence`.
        max_sentences: see `carried_sentences`.
        seed: of the random sentences.
    """
    results, store = evidence.results, traces.store
    summary = results.summary
    pooled = traces.pooled(summary["settings"]["pooling"])
    ids = [anchor(feature.key) for feature in traces.features]
    rows = ranked_rows(results, evidence.explanations, set(ids))
    return {
        "trait": trait,
        "store": {"name": store.path.resolve().name, "model": store.model_name},
        "activation_scale": scale_words(traces.features),
        "as_stored": [feature.key for feature in traces.features if feature.as_stored],
        "one_token": store.manifest.get("settings", {}).get("tokens", "all") == "final",
        "summary": summary,
        "rank_by": summary["settings"]["rank_by"].replace("_", " "),
        "verdict": verdict_cards(results),
        "broken_limits": evidence.broken_limits or [],
        "audited": evidence.broken_limits is not None,
        "baselines": baseline_rows(results),
        "rows": rows,
        "filters": {
            name: sorted({row[name] for row in rows if row[name] is not None})
            for name in ("layer", "average_l0", "strongest_label")
        },
        "falling": ranked_rows(RankedResults(results.falling, summary), (), set(ids)),
        "chart": emergence_chart(evidence.sweep),
        "has_sweep": bool(evidence.sweep),
        "features": feature_sections(traces, pooled, rows, evidence.specificity),
        "matrix": trait_matrix(summary),
        "specificity": specificity_matrix(evidence, [feature.rank for feature in traces.features]),
        "other_traits": evidence.other_traits,
        "heat_maps": heat_map_data(traces, pooled, max_sentences, seed, ids),
        "overview": overview(trait, traces, results),
    }


def ranked_rows(
    results: RankedResults, explanations: Sequence[Mapping[str, Any]], shown: set[str]
) -> list[dict[str, Any]]:
    """A row of the ranked table per feature.

    Args:
        results: of stage 2.
        explanations: what Neuronpedia says.
        shown: ids of the features that have a section of their own.
    """
    metric = results.summary["settings"]["rank_by"]
    told = {entry["rank"]: "; ".join(entry["labels"]) for entry in explanations}
    family_sizes = Counter(feature.family for feature in results.features)
    return [
        {
            "id": anchor(feature.key),
            "has_section": anchor(feature.key) in shown,
            "rank": feature.rank,
            "key": feature.key,
            "needs_name": feature.needs_name,
            "layer": feature.layer,
            "average_l0": feature.average_l0,
            "feature_id": feature.feature_id,
            "passes_filters": feature.passes_filters,
            "failed_filters": ", ".join(results.failed_filters(feature)),
            "failed_letters": "".join(FILTER_LETTERS[name] for name in results.failed_filters(feature)),
            "strongest_label": strongest_label(feature),
            "score": feature.train[metric],
            "held_out_score": feature.held_out[metric],
            "spearman": feature.train["spearman"],
            "auroc": feature.train[AUROC],
            "held_out_auroc": feature.held_out[AUROC],
            "low": feature.evidence.get("held_out_auroc_3_vs_0_low"),
            "high": feature.evidence.get("held_out_auroc_3_vs_0_high"),
            **{name: feature.evidence.get(name) for name in ("q_value", "fwer_p", "stability", "optimism")},
            "family": feature.family,
            "is_representative": feature.is_representative,
            "n_others": family_sizes[feature.family] - 1 if feature.family is not None else 0,
            # A CSV may hold anything; nothing but Neuronpedia's own pages becomes a link.
            "url": feature.neuronpedia_url if feature.neuronpedia_url.startswith(SITE) else "",
            "explanation": told.get(feature.rank, ""),
        }
        for feature in results.features
    ]


def strongest_label(feature: RankedFeature) -> int | None:
    """The label with the largest mean activation on train; None without any mean."""
    means = {label: feature.train[f"mean_{label}"] for label in range(4)}
    known = {label: mean for label, mean in means.items() if mean is not None}
    return max(known, key=lambda label: known[label]) if known else None


def baseline_rows(results: RankedResults) -> list[dict[str, Any]]:
    """The best feature and the baselines, as AUROC of label 3 against label 0."""
    best = results.features[0]
    low, high = (best.evidence.get(f"held_out_{AUROC}_{end}") for end in ("low", "high"))
    name = f"best feature, {best.key}"
    rows = [_baseline_row(name, best.train[AUROC], None, best.held_out[AUROC], low, high)]
    for name, baseline in results.summary["baselines"].items():
        detail = f" (layer {baseline['layer']})" if "layer" in baseline else ""
        keys = ("train", "cross_validated", "held_out", "held_out_low", "held_out_high")
        rows.append(_baseline_row(BASELINE_NAMES.get(name, name) + detail, *map(baseline.get, keys)))
    return rows


def _baseline_row(
    name: str,
    train: float | None,
    cross_validated: float | None,
    held_out: float | None,
    low: float | None,
    high: float | None,
) -> dict[str, Any]:
    return {
        "name": name,
        "train": train,
        "cross_validated": cross_validated,
        "held_out": held_out,
        "low": low,
        "high": high,
        "bar": interval_bar(held_out, low, high),
    }


def feature_sections(
    traces: Traces,
    pooled: np.ndarray,
    rows: Sequence[Mapping[str, Any]],
    specificity: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """A section per shown feature: its row, what it reads, its distribution, and other traits.

    Args:
        traces: of the shown features.
        pooled: float [n_sentences, n_features], their activations.
        rows: of the table of features.
        specificity: rows of ``specificity.csv``, empty without other traits.
    """
    by_id = {row["id"]: row for row in rows}
    store = traces.store
    described = summarise(traces, np.unique(store.labels).tolist())
    sections = []
    for column, feature in enumerate(traces.features):
        about = described[column]
        sections.append(
            {
                **by_id[anchor(feature.key)],
                "sae_name": feature.sae.name,
                "kind": about["kind"],
                "n_active": about["n_active_sentences"],
                "n_sentences": about["n_sentences"],
                "peak_tokens": about["peak_tokens"][:N_PEAK_TOKENS],
                "held_out_auroc_3_vs_1": _against_hard_negatives(pooled[:, column], store),
                "chart": strip_chart(pooled[:, column], store.labels, store.held_out),
                "others": [row for row in specificity if row["rank"] == feature.rank],
            }
        )
    return sections


def _against_hard_negatives(activations: np.ndarray, store: FeatureStore) -> float | None:
    """Held-out AUROC of label 3 against label 1, the trait's words without the trait: [n_sentences] in."""
    chosen = store.held_out & np.isin(store.labels, (1, 3))
    return auroc(activations[chosen], store.labels[chosen] == 3)


def trait_matrix(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Each trait's best feature on each trait's sentences; None where no other trait was compared."""
    matrix = summary.get("specificity")
    if not matrix:
        return None
    traits = list(next(iter(matrix.values())))
    rows = [(name, [shade(values[trait]) for trait in traits]) for name, values in matrix.items()]
    return {"traits": traits, "rows": rows}


def specificity_matrix(evidence: Evidence, ranks: Sequence[int | None]) -> list[dict[str, Any]]:
    """The shown features on the other traits' sentences: a row per feature, two cells per trait."""
    keys = {feature.rank: feature.key for feature in evidence.results.features}
    by_rank: dict[int, dict[str, Mapping[str, Any]]] = {}
    for row in evidence.specificity:
        by_rank.setdefault(row["rank"], {})[row["other_trait"]] = row
    return [
        {
            "id": anchor(keys[rank]),
            "rank": rank,
            "key": keys[rank],
            "own": shade(next(iter(by_rank[rank].values()))[f"held_out_{AUROC}"]),
            "cells": [
                (
                    shade(by_rank[rank][trait]["held_out_auroc_3_vs_0_of_other"]),
                    shade(by_rank[rank][trait]["held_out_auroc_3_vs_3_of_other"]),
                )
                for trait in evidence.other_traits
            ],
        }
        for rank in ranks
        if rank in by_rank
    ]


def overview(trait: str, traces: Traces, results: RankedResults) -> dict[str, Any]:
    """What an index over several reports shows of this one."""
    summary, best = results.summary, results.features[0]
    found = summary["significance"]
    words = summary["baselines"].get("bag_of_words")
    return {
        "trait": trait,
        "store": traces.store.path.resolve().name,
        "model": traces.store.model_name,
        "n_sentences": len(traces.store.labels),
        "n_features": summary["n_features"],
        "n_passing": summary["n_passing"],
        "n_discoveries": None if found is None else found["n_discoveries"],
        "n_tested": None if found is None else found["n_tested"],
        "best": best.key,
        "anchor": anchor(best.key),
        "optimism": best.evidence.get("optimism"),
        "held_out_auroc": best.held_out[AUROC],
        "low": best.evidence.get(f"held_out_{AUROC}_low"),
        "high": best.evidence.get(f"held_out_{AUROC}_high"),
        "bag_of_words": None if words is None else words["held_out"],
        "verdict": None if summary["verdict"] is None else summary["verdict"]["word"],
    }
