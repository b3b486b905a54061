"""Rank every SAE feature of a feature store by how well it follows the labels, with held-out evidence."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline_common.command_line import (
    HelpFormatter,
    Stopwatch,
    configure_logging,
    correlation,
    fraction,
    positive_int,
    settings_line,
)
from pipeline_common.errors import exit_codes
from pipeline_common.files import check_way, make_way
from pipeline_common.provenance import library_versions
from s1_compute_all_features.feature_store import POOLINGS, FeatureStore
from s2_find_top_features.neuronpedia import quick_list_url
from s2_find_top_features.ranked_features import METRICS, SUMMARY, RankedResults, read_results, write_results
from s2_find_top_features.report import format_report

logger = logging.getLogger(__name__)

EXAMPLES_PER_LABEL = 5


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description="Rank every SAE feature against the labels 0-3. Filters and ranks use the train "
        "split alone;\n"
        "every metric is repeated on the held-out split.\n\n"
        "  uv run python analyze_features.py \\\n"
        "      --input ../s1_compute_all_features/dishonesty_features --output ./results/dishonesty_results\n"
        "  uv run python analyze_features.py --output ./results/dishonesty_results --display-only",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--input", type=Path, help="feature store made by extract_sae_features.py")
    parser.add_argument("--output", type=Path, required=True, help="results folder to write (or to display)")
    parser.add_argument(
        "--min-pearson", type=correlation, default=0.4, help="smallest correlation that passes"
    )
    parser.add_argument("--min-tpr", type=fraction, default=0.5, help="smallest share of label 3 fired on")
    parser.add_argument("--max-fpr", type=fraction, default=0.2, help="largest share of label 0 fired on")
    parser.add_argument(
        "--pooling", choices=POOLINGS, default="max", help="one activation per sentence from its tokens"
    )
    parser.add_argument(
        "--rank-by", choices=METRICS, default="interpretability_score", help="metric that orders the features"
    )
    parser.add_argument("--top-n", type=positive_int, default=100, help="features to keep")
    parser.add_argument(
        "--display-only", action="store_true", help="print the results in --output, compute nothing"
    )
    parser.add_argument("--display-top", type=positive_int, default=20, help="features to print")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in --output")
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Rank, or display a ranking; exit code 0 done, 1 the data or the run failed, 2 wrong usage."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    configure_logging("s2_find_top_features")
    if not arguments.display_only:
        if arguments.input is None:
            parser.error("--input is needed, unless --display-only shows results that exist")
        _analyze(arguments)
    print(format_report(read_results(arguments.output), arguments.display_top))
    print(f"\nresults: {arguments.output}")
    return 0


def _analyze(arguments: argparse.Namespace) -> None:
    from tqdm import tqdm

    from s2_find_top_features.baselines import text_baselines
    from s2_find_top_features.feature_examples import collect_examples
    from s2_find_top_features.ranking import Thresholds, rank_features

    watch = Stopwatch()
    store = FeatureStore(arguments.input)
    check_way(arguments.output, arguments.overwrite, "results", SUMMARY)
    logger.info(settings_line(arguments, frozenset({"display_only", "display_top", "overwrite"})))
    messages = label_messages(store)
    for message in messages:
        logger.warning("note: %s", message)
    thresholds = Thresholds(arguments.min_pearson, arguments.min_tpr, arguments.max_fpr)
    with tqdm(total=len(store.saes), unit="SAE", desc="ranking") as bar:
        ranking = rank_features(
            store, arguments.pooling, arguments.rank_by, thresholds, arguments.top_n, lambda sae: bar.update()
        )
    results = RankedResults(
        ranking.features,
        {
            "store": {"name": arguments.input.resolve().name, "fingerprint": store.fingerprint},
            "model": store.manifest["model"],
            "settings": {
                "pooling": arguments.pooling,
                "rank_by": arguments.rank_by,
                "top_n": arguments.top_n,
                **vars(thresholds),
            },
            "n_features": ranking.n_features,
            "n_active_on_train": ranking.n_active,
            "n_passing": ranking.n_passing,
            "sentences": _counts(store),
            "messages": messages,
            "baselines": text_baselines(store),
            "quick_list": _quick_list(store, ranking.features[:20]),
            "libraries": library_versions(("numpy", "scipy", "scikit-learn")),
        },
    )
    examples = collect_examples(store, results.features, EXAMPLES_PER_LABEL)
    make_way(arguments.output, arguments.overwrite, "results", SUMMARY)
    write_results(arguments.output, results.features, examples, results.summary)
    logger.info(
        "%s features of %d SAEs ranked in %.1f s", f"{ranking.n_features:,}", len(store.saes), watch.seconds
    )


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
    return messages


def _counts(store: FeatureStore) -> dict[str, dict[str, int]]:
    return {
        name: {str(label): int((store.labels[members] == label).sum()) for label in range(4)}
        for name, members in (("train", ~store.held_out), ("held_out", store.held_out))
    }


def _quick_list(store: FeatureStore, features: Sequence[Any]) -> str:
    pages = {sae.name: sae.neuronpedia_id for sae in store.saes}
    name = Path(store.manifest["input"]["file"]).stem
    return quick_list_url(name, [(pages[feature.sae_name], feature.feature_id) for feature in features])


if __name__ == "__main__":
    raise SystemExit(main())
