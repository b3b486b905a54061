"""The results of a ranking, written and read: ranked features, their examples, and a summary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError
from pipeline_common.files import read_csv, read_json, write_csv, write_json

FORMAT = "ranked_features"
FORMAT_VERSION = 2
RANKED = "ranked_features.csv"
FALLING = "falling_features.csv"
EXAMPLES = "feature_examples.json"
SUMMARY = "summary.json"
EXPLANATIONS = "explanations.json"

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

    @property
    def direction(self) -> str:
        """``rising`` or ``falling`` with the label on train, by the sign of Spearman; empty for neither."""
        spearman = self.train["spearman"] or 0.0
        return "rising" if spearman > 0 else "falling" if spearman < 0 else ""

    @property
    def key(self) -> str:
        """``layer:l0:feature_id``, as users write it; the l0 is empty where there is none."""
        return f"{self.layer}:{'' if self.average_l0 is None else self.average_l0}:{self.feature_id}"


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


def write_results(
    folder: Path,
    features: Sequence[RankedFeature],
    examples: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    falling: Sequence[RankedFeature] = (),
) -> None:
    """Write the four files; the summary last, since it says that the others are there."""
    write_csv(folder / RANKED, _COLUMNS, (_cells(feature) for feature in features))
    write_csv(folder / FALLING, _COLUMNS, (_cells(feature) for feature in falling))
    write_json(folder / EXAMPLES, list(examples))
    write_json(folder / SUMMARY, {"format": FORMAT, "format_version": FORMAT_VERSION, **summary})


def read_results(folder: Path) -> RankedResults:
    """Read a results folder.

    Raises:
        UserError: no such folder, another format version, or a damaged table.
    """
    if not (folder / SUMMARY).is_file():
        raise UserError(f"{folder}: no {SUMMARY}; expected a results folder made by analyze_features.py")
    summary = read_json(folder / SUMMARY, "summary of ranked features")
    if not isinstance(summary, dict) or summary.get("format") != FORMAT:
        raise UserError(f"{folder / SUMMARY}: not the summary of ranked features")
    if summary.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder}: results format {summary.get('format_version')}, this program reads format "
            f"{FORMAT_VERSION}; run analyze_features.py again"
        )
    features, falling = (read_ranked_features(folder / name) for name in (RANKED, FALLING))
    return RankedResults(features, summary, falling)


def read_examples(folder: Path) -> list[dict[str, Any]]:
    """The content of ``feature_examples.json``: top sentences per label of each ranked feature."""
    examples: list[dict[str, Any]] = read_json(folder / EXAMPLES, "list of feature examples")
    return examples


def read_explanations(folder: Path) -> list[dict[str, Any]]:
    """The content of ``explanations.json``: what Neuronpedia says; nothing where the run did not ask."""
    if not (folder / EXPLANATIONS).is_file():
        return []
    explanations: list[dict[str, Any]] = read_json(folder / EXPLANATIONS, "list of explanations")
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
            features.append(
                RankedFeature(
                    rank=int(row["rank"]),
                    sae_name=row["sae_name"],
                    layer=int(row["layer"]),
                    average_l0=int(row["average_l0"]) if row["average_l0"] else None,
                    feature_id=int(row["feature_id"]),
                    passes_filters=row["passes_filters"] == "True",
                    train={name: _number(row[name]) for name in METRICS},
                    held_out={name: _number(row[HELD_OUT + name]) for name in METRICS},
                    neuronpedia_url=row["neuronpedia_url"],
                    evidence={name: _number(row[name]) for name in EVIDENCE},
                    family=int(row["family"]) if row["family"] else None,
                    is_representative=row["is_representative"] == "True",
                )
            )
        except ValueError as error:
            raise UserError(f"{path}: line {line}: {error}; run analyze_features.py again") from None
    return features


def _cells(feature: RankedFeature) -> list[Any]:
    identity = [getattr(feature, name) for name in _IDENTITY]
    identity += [feature.direction, feature.family, feature.is_representative]
    evidence = [feature.evidence.get(name) for name in EVIDENCE]
    train = [feature.train[name] for name in METRICS]
    held_out = [feature.held_out[name] for name in METRICS]
    return [*identity, *evidence, *train, *held_out, feature.neuronpedia_url]


def _number(text: str) -> float | None:
    return float(text) if text else None
