"""The results of a ranking, written and read: ranked features, all features, examples, and a summary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import (
    is_changed,
    read_csv,
    read_json,
    read_npz,
    sealed,
    sha256_of_file,
    write_csv,
    write_json,
    write_npz,
)
from pipeline_common.json_shape import JsonFormat, check_shape
from s1_compute_all_features.feature_store import feature_key
from s2_find_top_features.specificity_table import read_specificity as read_specificity
from s2_find_top_features.summary_shape import EXPLANATIONS_SHAPE, summary_shape
from s2_find_top_features.table_cells import index_of, number_of

RANKED = "ranked_features.csv"
FALLING = "falling_features.csv"
EXAMPLES = "feature_examples.json"
SUMMARY = "summary.json"
EXPLANATIONS = "explanations.json"
ALL_FEATURES = "all_features"

METRICS = (
    "interpretability_score",
    "pearson",
    "spearman",
    "separation",
    "tpr",
    "fpr",
    "auroc_3_vs_0",
    "auroc_3_vs_rest",
    "mean_0",
    "mean_1",
    "mean_2",
    "mean_3",
    "monotonicity",
    "trend",
    "density",
)
"""Metrics of a feature, in column order; feature_metrics.py defines them. The held-out ones have the
prefix ``held_out_``."""

SMALLER_IS_BETTER = ("fpr",)
FILTER_LETTERS = {"pearson": "r", "tpr": "t", "fpr": "f", "monotonicity": "m"}
"""The metrics that are filtered on, and their letters in tables."""

VERDICTS = {
    "beats": "the best feature beats bag of words",
    "loses": "the best feature loses to bag of words",
    "cannot tell": "cannot tell the best feature from bag of words",
}
"""What the verdict's word means; the best feature is the one ranked first."""

EVIDENCE = (
    "fwer_p",
    "q_value",
    "stability",
    "optimism",
    "held_out_score_low",
    "held_out_score_high",
    "held_out_auroc_3_vs_0_low",
    "held_out_auroc_3_vs_0_high",
)
"""How far a feature's metrics can be trusted, in column order; README.md of this stage defines them."""

HELD_OUT = "held_out_"
_REMEDY = "run analyze_features.py again"
FORMAT = JsonFormat("ranked_features", 2, "results", summary_shape(METRICS), _REMEDY)
_IDENTITY = ("rank", "sae_name", "layer", "average_l0", "feature_id", "passes_filters")
_COLUMNS = (
    *_IDENTITY,
    "direction",
    "family",
    "is_representative",
    *EVIDENCE,
    *METRICS,
    *(HELD_OUT + name for name in METRICS),
    "neuronpedia_url",
)
KEY = "key"
"""The last column. Tables of before lack it: in their stores layer and l0 told every SAE from the others."""


@dataclass(frozen=True)
class RankedFeature:
    """One feature with its evidence.

    Attributes:
        rank: 1 is the best on train.
        sae_name: the SAE's name in the feature store.
        layer: of the SAE.
        average_l0: of the SAE; None where its publisher gives none.
        feature_id: index of the latent in the SAE.
        passes_filters: whether it passed the thresholds of the run, on train.
        train: value of each of `METRICS` on the train split; None where it does not exist.
        held_out: the same on the held-out split, with everything fitted on train.
        neuronpedia_url: its page, or empty.
        evidence: value of each of `EVIDENCE`; None where it does not exist.
        family: near-duplicates share a number, from 1; None where no families were looked for.
        is_representative: it is the best of its family.
        needs_name: its key names the SAE, because layer and l0 take no single SAE of the store.
    """

    rank: int
    sae_name: str
    layer: int
    average_l0: int | None
    feature_id: int
    passes_filters: bool
    train: Mapping[str, float | None]
    held_out: Mapping[str, float | None]
    neuronpedia_url: str
    evidence: Mapping[str, float | None] = field(default_factory=dict)
    family: int | None = None
    is_representative: bool = True
    needs_name: bool = False

    @property
    def direction(self) -> str:
        """``rising`` or ``falling`` with the label on train, by the sign of Spearman; empty for neither."""
        spearman = self.train["spearman"] or 0.0
        return "rising" if spearman > 0 else "falling" if spearman < 0 else ""

    @property
    def key(self) -> str:
        """``layer:l0:feature_id``, or ``SAE_NAME:feature_id``: as users write it; see `FeatureKey`."""
        return repr(feature_key(self.sae_name, self.layer, self.average_l0, self.feature_id, self.needs_name))


@dataclass(frozen=True)
class RankedResults:
    """A results folder as read.

    Attributes:
        features: best first.
        summary: the content of ``summary.json``: format, store name and fingerprint, model,
            settings, counts, messages, significance, stability, baselines and verdict.
        falling: those that fall most with the label, by |Spearman|.
    """

    features: list[RankedFeature]
    summary: dict[str, Any]
    falling: list[RankedFeature] = field(default_factory=list)

    @property
    def keep_sinks(self) -> bool:
        """Whether the ranking counted attention sinks like other tokens, where its store tells of them."""
        return bool(self.summary["settings"].get("keep_sinks", False))

    def failed_filters(self, feature: RankedFeature) -> list[str]:
        """The metrics for which a feature does not pass, in the order of `METRICS`; empty where it passes."""
        settings, values = self.summary["settings"], feature.train
        fails = {
            "pearson": values["pearson"] is None or values["pearson"] < settings["min_pearson"],
            "tpr": values["tpr"] is not None and values["tpr"] < settings["min_tpr"],
            "fpr": values["fpr"] is not None and values["fpr"] > settings["max_fpr"],
            "monotonicity": values["monotonicity"] not in (None, 1),
        }
        return [name for name, failed in fails.items() if failed]

    @property
    def first_by_metric(self) -> RankedFeature:
        """The listed feature with the best train value of the metric that was ranked by, filters aside.

        Another than the first one where that passes the filters and a better one does not.
        """
        metric = self.summary["settings"]["rank_by"]
        sign = 1 if metric in SMALLER_IS_BETTER else -1
        return min(self.features, key=lambda feature: sign * (feature.train[metric] or 0.0))


def write_results(
    folder: Path,
    features: Sequence[RankedFeature],
    examples: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    falling: Sequence[RankedFeature] = (),
) -> None:
    """Write the tables, the examples and the summary; the summary last: it says that the others are there."""
    write_csv(folder / RANKED, (*_COLUMNS, KEY), (_cells(feature) for feature in features))
    write_csv(folder / FALLING, (*_COLUMNS, KEY), (_cells(feature) for feature in falling))
    write_json(folder / EXAMPLES, list(examples))
    files = {
        path.name: sha256_of_file(path)
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != SUMMARY
    }
    described = {**FORMAT.header, **summary, "files": files}
    write_json(folder / SUMMARY, sealed(described))


def write_all_features(
    folder: Path,
    sae_name: str,
    train: Mapping[str, np.ndarray],
    held_out: Mapping[str, np.ndarray],
    passes_filters: np.ndarray,
) -> None:
    """Write one SAE's part of `ALL_FEATURES`: every metric of every feature, on both splits.

    Args:
        folder: the results folder.
        sae_name: of the SAE.
        train: each of `METRICS` to float [d_sae], NaN where a value does not exist.
        held_out: likewise.
        passes_filters: bool [d_sae].
    """
    arrays = {"passes_filters": passes_filters}
    arrays |= {name: train[name].astype(np.float32) for name in METRICS}
    arrays |= {HELD_OUT + name: held_out[name].astype(np.float32) for name in METRICS}
    write_npz(folder / ALL_FEATURES / f"{sae_name}.npz", arrays)


def read_all_features(folder: Path, sae_name: str) -> dict[str, np.ndarray]:
    """Every metric of every feature of an SAE, by column name: float32 [d_sae], NaN where it does not exist.

    ``passes_filters`` is bool [d_sae].

    Raises:
        UserError: no such SAE in the results, or a damaged file.
    """
    names = ("passes_filters", *METRICS, *(HELD_OUT + name for name in METRICS))
    return read_npz(folder / ALL_FEATURES / f"{sae_name}.npz", names, "table of all features of an SAE")


def read_results(folder: Path) -> RankedResults:
    """Read a results folder.

    Raises:
        UserError: no such folder, another format version, a key of the summary that is missing or of another
            kind, or a damaged table.
    """
    if not (folder / SUMMARY).is_file():
        raise UserError(f"{folder}: no {SUMMARY}; expected a results folder made by analyze_features.py")
    summary = FORMAT.check(folder / SUMMARY, read_json(folder / SUMMARY, "summary of ranked features"))
    for name, values in (summary["specificity"] or {}).items():
        if values.keys() != next(iter(summary["specificity"].values())).keys():
            raise UserError(f"{folder / SUMMARY}: specificity.{name}: other traits than above; {_REMEDY}")
    if summary["verdict"] is not None and "bag_of_words" not in summary["baselines"]:
        raise UserError(f"{folder / SUMMARY}: baselines.bag_of_words: this key is missing; {_REMEDY}")
    features, falling = (read_ranked_features(folder / name) for name in (RANKED, FALLING))
    _refuse_changed(folder, summary)
    return RankedResults(features, summary, falling)


def read_examples(folder: Path) -> list[dict[str, Any]]:
    """The content of ``feature_examples.json``: top sentences per label of each ranked feature."""
    examples: list[dict[str, Any]] = read_json(folder / EXAMPLES, "list of feature examples")
    return examples


def read_explanations(folder: Path) -> list[dict[str, Any]]:
    """The content of ``explanations.json``: what Neuronpedia says; nothing where the run did not ask."""
    if not (folder / EXPLANATIONS).exists():
        return []
    explanations: list[dict[str, Any]] = read_json(folder / EXPLANATIONS, "list of explanations")
    check_shape(folder / EXPLANATIONS, explanations, EXPLANATIONS_SHAPE, _REMEDY)
    return explanations


def read_ranked_features(path: Path) -> list[RankedFeature]:
    """Read a ``ranked_features.csv`` or ``falling_features.csv``, best feature first.

    Raises:
        UserError: missing, or a column or number is not what it should be.
    """
    header, rows = read_csv(path, "table of ranked features")
    missing = [name for name in _COLUMNS if name not in header]
    if missing:
        raise UserError(f"{path}: column {missing[0]!r} is missing; run analyze_features.py again")
    features = []
    for line, cells in rows:
        row = dict(zip(header, cells, strict=True))
        try:
            features.append(_feature(row))
        except ValueError as error:
            raise UserError(f"{path}: line {line}: {error}; run analyze_features.py again") from None
    return features


def _feature(row: Mapping[str, str]) -> RankedFeature:
    """One line of a table; a ValueError says which cell is not what it should be."""
    feature = RankedFeature(
        rank=index_of("rank", row["rank"]),
        sae_name=row["sae_name"],
        layer=index_of("layer", row["layer"]),
        average_l0=index_of("average_l0", row["average_l0"]) if row["average_l0"] else None,
        feature_id=index_of("feature_id", row["feature_id"]),
        passes_filters=row["passes_filters"] == "True",
        train={name: number_of(row[name]) for name in METRICS},
        held_out={name: number_of(row[HELD_OUT + name]) for name in METRICS},
        neuronpedia_url=row["neuronpedia_url"],
        evidence={name: number_of(row[name]) for name in EVIDENCE},
        family=int(row["family"]) if row["family"] else None,
        is_representative=row["is_representative"] == "True",
    )
    named = replace(feature, needs_name=True)
    keys = {feature.key: feature, named.key: named}
    written = row.get(KEY, feature.key)
    if written not in keys:
        raise ValueError(f"key is {written[:60]!r}, not {' or '.join(keys)}")
    return keys[written]


def _digest(path: Path) -> str | None:
    return sha256_of_file(path) if path.is_file() else None


def _refuse_changed(folder: Path, summary: dict[str, Any]) -> None:
    """Stop where a file is not what the summary says, or the summary not what its seal says."""
    changed = [SUMMARY] if is_changed(summary) else []
    if "sha256" in summary and not changed:
        files = ((folder / name, digest) for name, digest in summary.get("files", {}).items())
        changed = [path.name for path, digest in files if _digest(path) != digest]
    if changed:
        raise UserError(
            f"{folder / changed[0]}: damaged or changed since analyze_features.py wrote it; run it again"
        )


def _cells(feature: RankedFeature) -> list[Any]:
    identity = [getattr(feature, name) for name in _IDENTITY]
    identity += [feature.direction, feature.family, feature.is_representative]
    evidence = [feature.evidence.get(name) for name in EVIDENCE]
    train = [feature.train[name] for name in METRICS]
    held_out = [feature.held_out[name] for name in METRICS]
    return [*identity, *evidence, *train, *held_out, feature.neuronpedia_url, feature.key]
