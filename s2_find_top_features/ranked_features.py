"""The results of a ranking, written and read: ranked features, their examples, and a summary."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError
from pipeline_common.files import read_csv, read_json, write_csv, write_json

FORMAT = "ranked_features"
FORMAT_VERSION = 1
RANKED = "ranked_features.csv"
EXAMPLES = "feature_examples.json"
SUMMARY = "summary.json"

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

HELD_OUT = "held_out_"
_IDENTITY = ("rank", "sae_name", "layer", "average_l0", "feature_id", "passes_filters")
_COLUMNS = (*_IDENTITY, *METRICS, *(HELD_OUT + name for name in METRICS), "neuronpedia_url")


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
            settings, counts, messages and baselines.
    """

    features: list[RankedFeature]
    summary: dict[str, Any]


def write_results(
    folder: Path,
    features: Sequence[RankedFeature],
    examples: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
) -> None:
    """Write the three files; the summary last, since it says that the others are there."""
    write_csv(folder / RANKED, _COLUMNS, (_cells(feature) for feature in features))
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
    return RankedResults(read_ranked_features(folder / RANKED), summary)


def read_examples(folder: Path) -> list[dict[str, Any]]:
    """The content of ``feature_examples.json``: top sentences per label of each ranked feature."""
    examples: list[dict[str, Any]] = read_json(folder / EXAMPLES, "list of feature examples")
    return examples


def read_ranked_features(path: Path) -> list[RankedFeature]:
    """Read a ``ranked_features.csv``, best feature first.

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
                )
            )
        except ValueError as error:
            raise UserError(f"{path}: line {line}: {error}; run analyze_features.py again") from None
    return features


def _cells(feature: RankedFeature) -> list[Any]:
    identity = [getattr(feature, name) for name in _IDENTITY]
    train = [feature.train[name] for name in METRICS]
    held_out = [feature.held_out[name] for name in METRICS]
    return [*identity, *train, *held_out, feature.neuronpedia_url]


def _number(text: str) -> float | None:
    return float(text) if text else None
