"""Build one HTML file that shows what was found for a trait, or an index over several such files."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline_common.claims import claim_output
from pipeline_common.command_line import (
    HelpFormatter,
    Stopwatch,
    configure_logging,
    count,
    positive_int,
    settings_line,
)
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import check_way, sha256_of_file, write_text

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Build the report of a trait: one HTML file that opens from disk and loads nothing.

Verdict, baselines, ranked table, where each of the best features fires, provenance.
With --index, a page that lists reports that exist.

examples:
  python build_report.py --s2-results ../s2_find_top_features/results/dishonesty_results \\
      --s1-data ../s1_compute_all_features/dishonesty_features --output reports/dishonesty.html
  python build_report.py --index reports/dishonesty.html reports/caring.html --output reports/index.html
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--s2-results", type=Path, metavar="FOLDER", help="results of analyze_features.py")
    what.add_argument(
        "--index", type=Path, nargs="+", metavar="REPORT", help="list these reports instead of building one"
    )
    add = parser.add_argument
    add("--s1-data", type=Path, metavar="FOLDER", help="the feature store that was analysed")
    add("--output", type=Path, required=True, metavar="FILE", help="the HTML file to write")
    add("--top-n", type=positive_int, default=20, metavar="N", help="show where the N best features fire")
    add(
        "--max-sentences",
        type=count,
        default=1000,
        metavar="N",
        help="sentences to carry: of a larger store a random share, and the top ones of each feature; "
        "0 carries all",
    )
    add("--layer-sweep", type=Path, metavar="FILE", help="the CSV of stage 5's sweep_layers.py")
    add("--audit", type=Path, metavar="FILE", help="the JSON of stage 0's audit_dataset.py on the sentences")
    add("--text", type=Path, metavar="FILE", help="also write the findings as text, for a terminal")
    add("--seed", type=count, default=0, help="of the random choice of sentences")
    add("--overwrite", action="store_true", help="replace the output file")
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Run the script."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.index is None and arguments.s1_data is None:
        parser.error("--s1-data is needed: the feature store that the results were made from")
    of_a_trait = (arguments.s1_data, arguments.layer_sweep, arguments.audit, arguments.text)
    if arguments.index is not None and any(of_a_trait):
        parser.error(
            "--index lists reports that exist; it takes no --s1-data, --layer-sweep, --audit, --text"
        )
    if arguments.output.suffix != ".html":
        parser.error(f"--output {arguments.output}: expected the name of an HTML file, such as report.html")
    configure_logging("s3_feature_activation_graphs")
    logger.info(settings_line(arguments))
    stopwatch = Stopwatch()
    output = arguments.output.resolve()
    if output.is_dir():
        raise UserError(f"{arguments.output}: a folder; name the HTML file to write")
    check_way(output, arguments.overwrite, "report")
    if arguments.text is not None:
        check_way(arguments.text.resolve(), arguments.overwrite, "text")
    claim_output(output)
    if arguments.index:
        write_text(output, index_page(arguments.index, output))
    else:
        page, text = report_page(arguments)
        if arguments.text is not None:
            write_text(arguments.text, text + "\n")
        write_text(output, page)
    size_mb = output.stat().st_size / 1e6
    logger.info("wrote %.1f MB in %.1f s", size_mb, stopwatch.seconds)
    print(f"report: {os.path.relpath(output)}")
    return 0


def report_page(arguments: argparse.Namespace) -> tuple[str, str]:
    """The HTML of one trait's report, and its findings as text.

    Raises:
        UserError: an input cannot be read, or does not belong to the others.
    """
    from s1_compute_all_features.feature_store import FeatureStore
    from s2_find_top_features.ranked_features import read_explanations, read_results, read_specificity
    from s3_feature_activation_graphs import report_rendering
    from s3_feature_activation_graphs.feature_traces import load_traces
    from s3_feature_activation_graphs.report_audit import read_broken_limits
    from s3_feature_activation_graphs.report_content import Evidence, report_content
    from s3_feature_activation_graphs.report_emergence import read_layer_sweep
    from s3_feature_activation_graphs.report_provenance import provenance
    from s3_feature_activation_graphs.report_summary import first_layers_as_good, summary_text

    results = read_results(arguments.s2_results)
    store = FeatureStore(arguments.s1_data, results.keep_sinks)
    traces = load_traces(store, results, arguments.top_n, [])
    trait = store.trait
    names = (trait, store.path.resolve().name)
    sweep = read_layer_sweep(arguments.layer_sweep, names, store.model_id) if arguments.layer_sweep else []
    evidence = Evidence(
        results=results,
        explanations=read_explanations(arguments.s2_results),
        specificity=read_specificity(arguments.s2_results),
        sweep=sweep,
        broken_limits=read_broken_limits(arguments.audit, store) if arguments.audit else None,
    )
    content = report_content(trait, traces, evidence, arguments.max_sentences, arguments.seed)
    content["provenance"] = provenance(
        store, results, evidence.other_traits, _hashes(arguments), _own_command(arguments), arguments.seed
    )
    first_as_good = first_layers_as_good(arguments.layer_sweep, trait) if arguments.layer_sweep else {}
    return report_rendering.render("report.html", content), summary_text(content, sweep, first_as_good)


def index_page(reports: Sequence[Path], output: Path) -> str:
    """The HTML of an index over reports, sorted by trait; links are relative to ``output``.

    Raises:
        UserError: a file is missing, or is not a report of this script; or there is none beside the output.
    """
    from s3_feature_activation_graphs.report_rendering import read_overview, render

    # A pattern such as reports/*.html names an earlier index too.
    paths = [path for path in reports if path.resolve() != output]
    if not paths:
        raise UserError(f"{reports[0]}: the index itself; name the reports that it should list")
    entries: list[dict[str, Any]] = []
    for path in paths:
        link = os.path.relpath(path.resolve(), output.parent).replace(os.sep, "/")
        entries.append({**read_overview(path), "link": link})
    entries.sort(key=lambda entry: (entry["trait"], entry["model"], entry["link"]))
    return render("index.html", {"entries": entries})


def _hashes(arguments: argparse.Namespace) -> dict[str, str]:
    """SHA-256 of the files of stage 2, of the sweep and of the audit that the report shows."""
    files = sorted(arguments.s2_results.glob("*.csv")) + sorted(arguments.s2_results.glob("*.json"))
    files += [path for path in (arguments.layer_sweep, arguments.audit) if path]
    return {path.name: sha256_of_file(path) for path in files}


def _own_command(arguments: argparse.Namespace) -> list[str]:
    """The command of this report, with folder and file names in place of whole paths."""
    command = ["build_report.py", "--s2-results", arguments.s2_results.resolve().name]
    command += ["--s1-data", arguments.s1_data.resolve().name, "--output", arguments.output.name]
    command += ["--top-n", str(arguments.top_n), "--max-sentences", str(arguments.max_sentences)]
    command += ["--seed", str(arguments.seed)]
    if arguments.layer_sweep:
        command += ["--layer-sweep", arguments.layer_sweep.name]
    if arguments.audit:
        command += ["--audit", arguments.audit.name]
    return command


if __name__ == "__main__":
    raise SystemExit(main())
