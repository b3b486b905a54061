"""Rank every SAE feature of a feature store by how well it follows the labels, with evidence."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_common.claims import claim_output
from pipeline_common.command_line import (
    HelpFormatter,
    Stopwatch,
    configure_logging,
    correlation,
    count,
    fraction,
    positive_int,
    settings_line,
    usable_cores,
)
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import check_way, make_way, scratch_folder, write_json
from pipeline_common.provenance import library_versions
from s1_compute_all_features.feature_store import POOLINGS, FeatureStore, StoredSae
from s2_find_top_features.ranked_features import (
    EXPLANATIONS,
    METRICS,
    SUMMARY,
    RankedFeature,
    read_explanations,
    read_results,
    write_all_features,
    write_results,
)
from s2_find_top_features.report import format_report

if TYPE_CHECKING:
    from s2_find_top_features.analysis import Analysis
    from s2_find_top_features.scoring import RankingSettings
    from s2_find_top_features.specificity import Trait

logger = logging.getLogger(__name__)

EXAMPLES_PER_LABEL = 5
STAGE_FOLDER = Path(__file__).resolve().parent


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description="Rank every SAE feature against the labels 0-3. Filters and ranks use the train split\n"
        "alone; every metric is repeated on the held-out split.\n\n"
        "  uv run python analyze_features.py \\\n"
        "      --input ../s1_compute_all_features/dishonesty_features --output ./results/dishonesty_results\n"
        "  uv run python analyze_features.py --output ./results/dishonesty_results --display-only",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--input", type=Path, help="feature store made by extract_sae_features.py")
    parser.add_argument("--output", type=Path, required=True, help="results folder to write (or to display)")
    parser.add_argument("--overwrite", action="store_true", help="replace the results in --output")
    parser.add_argument("--workers", type=positive_int, default=usable_cores(), help="SAEs in work at a time")
    _add_ranking(parser.add_argument_group("ranking, on train"))
    _add_evidence(parser.add_argument_group("evidence"))
    display = parser.add_argument_group("display")
    display.add_argument(
        "--display-only", action="store_true", help="print the results in --output, compute nothing"
    )
    display.add_argument("--display-top", type=positive_int, default=20, help="features to print")
    display.add_argument(
        "--one-per-family", action="store_true", help="print only the best feature of each family"
    )
    return parser


def _add_ranking(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--min-pearson", type=correlation, default=0.4, help="smallest correlation that passes"
    )
    group.add_argument("--min-tpr", type=fraction, default=0.5, help="smallest share of label 3 fired on")
    group.add_argument("--max-fpr", type=fraction, default=0.2, help="largest share of label 0 fired on")
    group.add_argument(
        "--pooling", choices=POOLINGS, default="max", help="one activation per sentence from its tokens"
    )
    group.add_argument(
        "--rank-by", choices=METRICS, default="interpretability_score", help="metric that orders the features"
    )
    group.add_argument("--top-n", type=positive_int, default=100, help="features to keep")
    group.add_argument(
        "--keep-sinks", action="store_true", help="count attention sinks like any other token of a sentence"
    )


def _add_evidence(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--permutations", type=count, default=200, help="label permutations of the null; 0 leaves it out"
    )
    group.add_argument(
        "--stratify-by-length",
        action="store_true",
        help="permute labels only among sentences of similar length",
    )
    group.add_argument("--seed", type=count, default=0, help="of permutations, bootstraps, random directions")
    group.add_argument(
        "--compare-poolings", action="store_true", help="rank under all four poolings, side by side"
    )
    group.add_argument(
        "--contrast",
        type=Path,
        nargs="+",
        metavar="OTHER_STORE",
        default=[],
        help="stores of other traits, to see whether the features fire there too",
    )
    group.add_argument(
        "--explanations", action="store_true", help="fetch what Neuronpedia says of the top features"
    )
    group.add_argument(
        "--explanations-cache",
        type=Path,
        default=STAGE_FOLDER / "results" / ".neuronpedia_cache",
        metavar="FOLDER",
        help="where fetched answers are kept",
    )


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
    results = read_results(arguments.output)
    if not results.features:
        raise UserError(f"{arguments.output}: holds no ranked feature; run without --display-only")
    explanations = read_explanations(arguments.output)
    print(format_report(results, arguments.display_top, arguments.one_per_family, explanations))
    print(f"\nresults: {arguments.output}")
    return 0


def _analyze(arguments: argparse.Namespace) -> None:
    from threadpoolctl import threadpool_limits

    from s2_find_top_features.analysis import label_messages, sink_messages
    from s2_find_top_features.specificity import open_traits

    store = FeatureStore(arguments.input, arguments.keep_sinks)
    if not store.saes:
        raise UserError(
            f"{store.path}: holds no SAE activations to rank; add some by extract_sae_features.py --extend "
            "with a --config that has SAEs, or see what its hidden states say by sweep_layers.py"
        )
    output: Path = arguments.output.resolve()
    check_way(output, arguments.overwrite, "results", SUMMARY)
    claim_output(output, marker=SUMMARY)
    traits = open_traits(store, arguments.contrast)
    shown = frozenset({"display_only", "display_top", "one_per_family", "overwrite"})
    logger.info(settings_line(arguments, shown))
    for message in [*label_messages(store), *sink_messages(store)]:
        logger.warning("note: %s", message)
    # The results take their name when all of them are there.
    with scratch_folder(output) as folder:
        # Many small matrices: BLAS threads would wait for one another; the workers keep the cores busy.
        with threadpool_limits(1):
            _write_analysis(arguments, store, traits, folder)
        make_way(output, arguments.overwrite, "results", SUMMARY)
        folder.replace(output)


def _write_analysis(
    arguments: argparse.Namespace, store: FeatureStore, traits: "Sequence[Trait]", folder: Path
) -> None:
    from tqdm import tqdm

    from s2_find_top_features.analysis import analyze, compare_poolings
    from s2_find_top_features.feature_examples import collect_examples

    watch = Stopwatch()
    settings = _settings(arguments)

    def record(sae: StoredSae, *metrics: Any) -> None:
        write_all_features(folder, sae.name, *metrics)

    with tqdm(total=len(store.saes), unit="SAE", desc="ranking") as bar:
        analysis = analyze(store, settings, bar.update, record)
    extra: dict[str, Any] = {"pooling_comparison": None, "specificity": None}
    if arguments.compare_poolings:
        n_passes = len(store.saes) * (len(POOLINGS) - 1)
        with tqdm(total=n_passes, unit="SAE", desc="other poolings") as bar:
            extra["pooling_comparison"] = compare_poolings(store, settings, analysis.ranking, bar.update)
    if len(traits) > 1:
        extra["specificity"] = _write_specificity(folder, analysis, traits, settings)
    examples = collect_examples(store, analysis.features, EXAMPLES_PER_LABEL)
    if arguments.explanations:
        _write_explanations(arguments.explanations_cache, folder, analysis.features)
    libraries = library_versions(("numpy", "scipy", "scikit-learn"))
    summary = {**analysis.summary, **extra, "libraries": libraries}
    write_results(folder, analysis.features, examples, summary, analysis.falling)
    logger.info(
        "%s features of %d SAEs ranked, %d of them written, in %.1f s",
        f"{analysis.ranking.n_features:,}",
        len(store.saes),
        len(analysis.features),
        watch.seconds,
    )


def _settings(arguments: argparse.Namespace) -> "RankingSettings":
    from s2_find_top_features.scoring import RankingSettings, Thresholds

    return RankingSettings(
        pooling=arguments.pooling,
        rank_by=arguments.rank_by,
        thresholds=Thresholds(arguments.min_pearson, arguments.min_tpr, arguments.max_fpr),
        top_n=arguments.top_n,
        n_permutations=arguments.permutations,
        seed=arguments.seed,
        stratify_by_length=arguments.stratify_by_length,
        n_workers=arguments.workers,
    )


def _write_specificity(
    folder: Path, analysis: "Analysis", traits: "Sequence[Trait]", settings: "RankingSettings"
) -> dict[str, dict[str, float | None]]:
    from tqdm import tqdm

    from s2_find_top_features.specificity import best_features, write_matrix, write_specificity

    with tqdm(total=2 * (len(traits) - 1), unit="trait", desc="other traits") as bar:
        write_specificity(folder, analysis.features, analysis.activations, traits, settings, bar.update)
        best = best_features(analysis.features[0], traits, settings, bar.update)
    return write_matrix(folder, best, settings)


def _write_explanations(cache: Path, folder: Path, features: list[RankedFeature]) -> None:
    from tqdm import tqdm

    from s2_find_top_features.neuronpedia import fetch_explanations

    with tqdm(total=len(features), unit="feature", desc="Neuronpedia") as bar:
        explanations = fetch_explanations(features, cache, bar.update)
    write_json(folder / EXPLANATIONS, explanations)
    logger.info("Neuronpedia explains %d of the %d features", len(explanations), len(features))


if __name__ == "__main__":
    raise SystemExit(main())
