"""What a report is built from, written without stage 2: a store with awkward words, results with evidence."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline_common.files import read_json, write_json
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.ranked_features import EVIDENCE, METRICS, RankedFeature, write_results
from tests.synthetic_store import WORDS, write_synthetic_store

AWKWARD = np.array(
    [*WORDS, " <script>alert(1)</script>", " </script>", " &amp;", "\n", " \u05e9\u05e7\u05e8", ""]
)
"""The last one is a piece of the character behind it."""
PAGE = "https://www.neuronpedia.org/synthetic/1-res/3"

KEYS = [(1, 24, 3), (0, 8, 3), (0, 24, 3), (0, 8, 60), (1, 8, 7), (0, 24, 11)]
"""The second and third are one family; the last has a page that is none of Neuronpedia's."""


def write_store(folder: Path, **options: Any) -> Path:
    """A synthetic store with awkward words."""
    return write_synthetic_store(folder, words=AWKWARD, input_name="lies.csv", **options)


def mark_as_before(store: Path) -> None:
    """Give a store the key that stores of before have: whether the model is a toy."""
    write_model(store, {"demonstration": True})


def write_model(store: Path, changes: dict[str, Any]) -> None:
    """Change what a store says of its model."""
    manifest = read_json(store / "manifest.json", "manifest")
    manifest["model"].update(changes)
    write_json(store / "manifest.json", manifest)


def ranked(rank: int, key: tuple[int, int, int]) -> RankedFeature:
    """A feature with made-up numbers that differ by rank; some of the last one's do not exist."""
    train = dict.fromkeys(METRICS, 0.5) | {
        "interpretability_score": 1 - rank / 10,
        "auroc_3_vs_0": 0.95 - rank / 50,
        "mean_0": 0.1,
        "mean_1": 0.2,
        "mean_2": 0.9 if rank == 4 else 0.3,
        "mean_3": 0.4,
    }
    held_out = dict.fromkeys(METRICS, 0.25) | {"auroc_3_vs_0": 0.6 + rank / 100}
    evidence = dict.fromkeys(EVIDENCE, 0.0123) | {
        "held_out_auroc_3_vs_0_low": 0.45 + rank / 100,
        "held_out_auroc_3_vs_0_high": 0.75,
        "optimism": 0.65,
    }
    if rank == len(KEYS):
        train["auroc_3_vs_0"] = held_out["auroc_3_vs_0"] = None
        evidence = dict.fromkeys(EVIDENCE)
    layer, l0, feature_id = key
    return RankedFeature(
        rank=rank,
        sae_name=f"layer_{layer:02d}_l0_{l0}",
        layer=layer,
        average_l0=l0,
        feature_id=feature_id,
        passes_filters=rank < 4,
        train=train,
        held_out=held_out,
        neuronpedia_url=PAGE if rank == 1 else "javascript:alert(1)" if rank == len(KEYS) else "",
        evidence=evidence,
        family=2 if rank == 3 else rank,
        is_representative=rank != 3,
    )


def full_summary(store: FeatureStore) -> dict[str, Any]:
    """A summary with everything that stage 2 can write but other traits."""
    return {
        "store": {"name": store.path.name, "fingerprint": store.fingerprint},
        "model": store.manifest["model"],
        "settings": {
            "min_pearson": 0.4,
            "min_tpr": 0.5,
            "max_fpr": 0.2,
            "pooling": "max",
            "rank_by": "interpretability_score",
            "top_n": 100,
            "n_permutations": 200,
            "seed": 7,
            "stratify_by_length": False,
        },
        "n_features": 256,
        "n_active_on_train": 250,
        "n_passing": 3,
        "sentences": {"train": {"0": 16, "3": 16}, "held_out": {"0": 4, "3": 4}},
        "messages": ["no train sentence has label 9 <b>"],
        "significance": {
            "n_permutations": 200,
            "n_tested": 240,
            "n_excluded": 16,
            "min_active": 5,
            "level": 0.05,
            "n_discoveries": 2,
            "best_of_noise_mean": 0.31,
            "best_of_noise_95": 0.42,
        },
        "stability": None,
        "baselines": {
            "bag_of_words": {
                "train": 1.0,
                "cross_validated": 0.6,
                "held_out": 0.72,
                "held_out_low": 0.55,
                "held_out_high": 0.88,
            }
        },
        "verdict": {"word": "cannot tell", "difference_low": -0.3, "difference_high": 0.1},
        "quick_list": "",
        "pooling_comparison": None,
        "specificity": None,
        "libraries": {"numpy": "2"},
    }


def write_report_inputs(
    folder: Path,
    summary: dict[str, Any] | None = None,
    change_model: dict[str, Any] | None = None,
    **options: Any,
) -> list[str]:
    """A store and results; returns the arguments of build_report.py that name them."""
    store = write_store(folder / "lies_features", **options)
    write_model(store, change_model or {})
    features = [ranked(rank, key) for rank, key in enumerate(KEYS, start=1)]
    falling = [ranked(1, (1, 24, 40))]
    content = full_summary(FeatureStore(store)) | (summary or {})
    write_results(folder / "lies_results", features, [], content, falling)
    return ["--s2-results", str(folder / "lies_results"), "--s1-data", str(store)]


def write_sweep(path: Path, traits: tuple[str, ...] = ("lies",)) -> Path:
    """A layer sweep in the columns that stage 5 promises, and one more."""
    columns = "trait,layer,estimator,pooling,n_train,n_test,cv_auroc_mean,cv_auroc_std,test_auroc,"
    lines = [columns + "test_auroc_low,test_auroc_high,cv_accuracy_mean,test_accuracy,further"]
    for trait in traits:
        for place, layer in enumerate(("embeddings", "0", "1")):
            auroc = 0.6 + place / 10
            lines.append(
                f"{trait},{layer},logistic,mean,32,8,{0.8 if layer == '0' else 0.7},0.05,"
                f"{auroc:.2f},{auroc - 0.1:.2f},"
                f"{auroc + 0.1:.2f},0.6,0.5,x"
            )
        lines.append(f"{trait},,bag_of_words,,32,8,0.6,,0.72,,,,0.5,x")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
