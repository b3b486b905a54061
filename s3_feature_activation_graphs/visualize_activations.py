"""Draw where in each sentence the best features fire, and sum it up."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline_common.claims import claim_output
from pipeline_common.command_line import (
    HelpFormatter,
    Stopwatch,
    configure_logging,
    count,
    index_ranges,
    number_type,
    positive_int,
    settings_line,
    usable_cores,
)
from pipeline_common.errors import exit_codes, on_interrupt
from pipeline_common.files import check_way, resumable_folder, write_json, write_text
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.ranked_features import read_results
from s3_feature_activation_graphs import activation_summary
from s3_feature_activation_graphs.feature_traces import (
    MAX_FEATURES,
    MAX_PIXELS,
    SORT_ORDERS,
    FeatureKey,
    check_labels,
    choose_sentences,
    load_traces,
    ranked_features,
)

logger = logging.getLogger(__name__)

DEFAULT_OUTPUT = Path(__file__).resolve().parent / "plots"
SUMMARY_JSON, SUMMARY_TEXT = "summary_statistics.json", "summary_statistics.txt"
PICTURE_SETTINGS = ("max_sentences", "sort_by", "free_y", "figsize", "dpi", "max_token_len")

DESCRIPTION = """\
Draw where in each sentence the best features fire.

One picture per sentence (tokens along the x axis, one line per feature),
overviews of the whole dataset, and a summary of where each feature peaks.
A run that was stopped goes on with the pictures that it has: run the same
command again.

example:
  python visualize_activations.py --s2-results ../s2_find_top_features/results/dishonesty_results \\
      --s1-data ../s1_compute_all_features/dishonesty_features --output ./plots --top-n 10
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    add = parser.add_argument
    add("--s2-results", type=Path, required=True, metavar="FOLDER", help="results of analyze_features.py")
    add("--s1-data", type=Path, required=True, metavar="FOLDER", help="the feature store that was analysed")
    add("--output", type=Path, default=DEFAULT_OUTPUT, metavar="FOLDER", help="folder for the pictures")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--top-n",
        type=positive_int,
        default=10,
        metavar="N",
        help=f"draw the N best features, up to {MAX_FEATURES}",
    )
    which.add_argument(
        "--features",
        type=feature_keys,
        metavar="LAYER:L0:ID,...",
        help="draw these features instead, such as 12:82:1767,5:18:44; the l0 may stay empty (12::1767) "
        "where the layer has one SAE, and SAE_NAME:ID names any SAE of the store",
    )
    add(
        "--labels",
        type=index_ranges,
        nargs="+",
        metavar="LABELS",
        help="only sentences with these labels, such as 0,3 or 2-3; also for the overviews and the summary "
        "(default: all)",
    )
    add(
        "--max-sentences",
        type=count,
        default=40,
        metavar="N",
        help="draw at most N sentences, shared out evenly among the labels; 0 draws all",
    )
    add(
        "--sort-by",
        choices=SORT_ORDERS,
        default="activation",
        help="which sentences of a label come first: those where the first feature fires most, or file order",
    )
    add(
        "--free-y",
        action="store_true",
        help="fit each picture's y axis to its sentence instead of sharing one",
    )
    add(
        "--figsize",
        type=number_type(float, 1, 100),
        nargs=2,
        default=(14.0, 6.0),
        metavar=("WIDTH", "HEIGHT"),
        help="size of a sentence's picture in inches; it grows where something would be cut",
    )
    add("--dpi", type=number_type(int, 30, 600), default=150, metavar="N", help="pixels per inch, 30 to 600")
    add(
        "--max-token-len",
        type=positive_int,
        default=15,
        metavar="N",
        help="cut longer tokens to N characters",
    )
    add(
        "--workers",
        type=positive_int,
        default=usable_cores(),
        metavar="N",
        help="processes that draw at a time; a few pictures are drawn by one",
    )
    add("--overwrite", action="store_true", help="replace the plots that the output folder holds")
    return parser


def feature_keys(text: str) -> list[FeatureKey]:
    """Argparse type of ``--features``.

    Raises:
        argparse.ArgumentTypeError: one is no key, or there are more than `MAX_FEATURES`.
    """
    try:
        keys = list(dict.fromkeys(FeatureKey.parse(part) for part in text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if len(keys) > MAX_FEATURES:
        raise argparse.ArgumentTypeError(
            f"{len(keys)} features; at most {MAX_FEATURES} lines can be told apart"
        )
    return keys


@exit_codes
@on_interrupt("the pictures drawn so far are kept; run the same command again to go on")
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.top_n > MAX_FEATURES:
        parser.error(
            f"--top-n {arguments.top_n}: at most {MAX_FEATURES} lines can be told apart in one picture"
        )
    if max(arguments.figsize) * arguments.dpi > MAX_PIXELS:
        parser.error(
            f"--figsize and --dpi: a side of {max(arguments.figsize) * arguments.dpi:,.0f} pixels; "
            f"at most {MAX_PIXELS:,} can be drawn"
        )
    configure_logging("s3_feature_activation_graphs")
    logger.info(settings_line(arguments))
    stopwatch = Stopwatch()
    output = arguments.output.resolve()
    check_way(output, arguments.overwrite, "plots", SUMMARY_JSON)
    claim_output(output)
    results = read_results(arguments.s2_results)
    store = FeatureStore(arguments.s1_data, results.keep_sinks)
    wanted = [label for part in arguments.labels or [] for label in part]
    labels = check_labels(store, wanted)
    traces = load_traces(store, results, arguments.top_n, arguments.features or [])
    from s3_feature_activation_graphs.picture_run import PictureRun

    pictures = PictureRun(
        traces,
        ranked_features(store, results),
        labels,
        choose_sentences(traces, labels, arguments.max_sentences, arguments.sort_by),
        figsize=tuple(arguments.figsize),
        dpi=arguments.dpi,
        max_token_len=arguments.max_token_len,
        free_y=arguments.free_y,
    )
    with resumable_folder(output, pictures.fingerprint, arguments.overwrite, "plots", SUMMARY_JSON) as folder:
        pictures.draw(folder, arguments.workers)
        settings = {
            "features": [feature.key for feature in traces.features],
            **{name: getattr(arguments, name) for name in PICTURE_SETTINGS},
        }
        document = activation_summary.summary_document(traces, labels, settings, pictures.files)
        write_text(folder / SUMMARY_TEXT, activation_summary.as_text(document))
        write_json(folder / SUMMARY_JSON, document)
    report(output, document)
    logger.info("wrote %d pictures and the summary in %.1f s", len(document["files"]), stopwatch.seconds)
    return 0


def report(output: Path, document: dict[str, Any]) -> None:
    """Print what was found and where it lies."""
    number = activation_summary.number
    width = max(18, *(len(feature["key"]) + 2 for feature in document["features"]))
    print(f"{'feature':<{width}}{'kind':<22}{'fires in':>14}{'median peak at':>16}")
    for feature in document["features"]:
        fires = f"{feature['n_active_sentences']} of {feature['n_sentences']}"
        peak = number(feature["peak_relative_position"]["median"])
        print(f"{feature['key']:<{width}}{feature['kind']:<22}{fires:>14}{peak:>16}")
    n_overviews = len(document["files"]) - document["n_plots"]
    print(
        f"pictures of {document['n_plots']} sentences, {n_overviews} overviews and {SUMMARY_TEXT}: {output}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
