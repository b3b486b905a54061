"""Put the figures that ``make demo-all`` measured into README.md: the table and the picture."""

import argparse
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from concept_evaluation.metrics import auroc
from pipeline_common.command_line import HelpFormatter
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import read_csv, read_json, write_text
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.ranked_features import RankedFeature, read_results

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "emergence_of_five_traits.png"
SWEEP = ROOT / "s5_classifier_training" / "runs" / "all_traits_smollm2" / "layer_sweep"
BETWEEN = re.compile(r"(<!-- begin: make figures -->\n).*?(<!-- end: make figures -->\n)", re.DOTALL)
HEAD = (
    "| trait | features beyond chance | best feature | 3 against 0 | 3 against 1 | bag of words | "
    "hidden states, best layer | where the feature fires most |\n|---|---|---|---|---|---|---|---|\n"
)
N_WORDS = 5


def table(traits: list[str]) -> str:
    """One row a trait, all AUROCs on held-out sentences."""
    return HEAD + "".join(_row(trait) for trait in traits)


def _row(trait: str) -> str:
    name = f"{trait}_smollm2"
    results = read_results(ROOT / "s2_find_top_features" / "results" / f"{name}_results")
    store = FeatureStore(ROOT / "s1_compute_all_features" / f"{name}_features")
    best = results.features[0]
    found, words = results.summary["significance"], results.summary["baselines"]["bag_of_words"]
    against_0 = _with_interval(
        best.held_out["auroc_3_vs_0"],
        best.evidence["held_out_auroc_3_vs_0_low"],
        best.evidence["held_out_auroc_3_vs_0_high"],
    )
    cells = [
        trait,
        f"{found['n_discoveries']:,} of {found['n_tested']:,}",
        best.key,
        against_0,
        f"{_against_hard_negatives(store, best, results.summary['settings']['pooling']):.2f}",
        f"{words['held_out']:.2f}",
        _best_layer(trait),
        _peak_words(name, best),
    ]
    return f"| {' | '.join(cells)} |\n"


def _with_interval(value: float | None, low: float | None, high: float | None) -> str:
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _against_hard_negatives(store: FeatureStore, best: RankedFeature, pooling: str) -> float:
    """Held-out AUROC of label 3 against label 1: the trait's words without the trait."""
    sae = next(sae for sae in store.saes if sae.name == best.sae_name)
    scores = store.pooled_activations(sae, pooling).to_dense()[:, best.feature_id]
    chosen = store.held_out & ((store.labels == 3) | (store.labels == 1))
    value = auroc(scores[chosen], store.labels[chosen] == 3)
    if value is None:
        raise UserError(f"{store.path}: no held-out sentences of labels 1 and 3")
    return value


def _best_layer(trait: str) -> str:
    """The layer that cross-validation on train chooses, with its held-out AUROC."""
    header, rows = read_csv(SWEEP / "layer_sweep.csv", "layer sweep")
    layers = [
        row
        for _, cells in rows
        if (row := dict(zip(header, cells, strict=True)))["trait"] == trait and row["layer"]
    ]
    best = max(layers, key=lambda row: float(row["cv_auroc_mean"]))
    ends = (float(best[name]) for name in ("test_auroc", "test_auroc_low", "test_auroc_high"))
    return f"{_with_interval(*ends)}, layer {best['layer']}"


def _peak_words(name: str, best: RankedFeature) -> str:
    path = ROOT / "s3_feature_activation_graphs" / f"plots_{name}" / "summary_statistics.json"
    features = read_json(path, "summary of stage 3")["features"]
    of_best = next(feature for feature in features if feature["rank"] == best.rank)
    return ", ".join(f"{peak['token'].strip()}" for peak in of_best["peak_tokens"][:N_WORDS])


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    return argparse.ArgumentParser(
        description="Put the figures that make demo-all measured into README.md: the table of the best\n"
        "features and the picture of the emergence curves. Run by make figures.\n\n"
        "  uv run python docs/update_figures.py",
        formatter_class=HelpFormatter,
    )


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the figures; exit code 0, or 1 where ``make demo-all`` has not run."""
    build_parser().parse_args(argv)
    text = README.read_text(encoding="utf-8")
    described = read_json(SWEEP / "layer_sweep.json", "layer sweep of make demo-all")
    traits = [entry["trait"] for entry in described["traits"]]
    replaced, n_places = BETWEEN.subn(lambda match: match[1] + table(traits) + match[2], text)
    if n_places != 1:
        raise UserError(f"{README}: {n_places} places for the figures, expected one between the markers")
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(SWEEP / "layer_sweep_all_traits.png", PICTURE)
    write_text(README, replaced)
    print(f"{README.name}: figures of {len(traits)} traits; {PICTURE.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
