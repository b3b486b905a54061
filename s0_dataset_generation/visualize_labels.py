"""Plot how many sentences a labelled CSV has per label, and how long they are."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pipeline_common.claims import claim_output
from pipeline_common.command_line import HelpFormatter, configure_logging
from pipeline_common.errors import exit_codes

DEFAULT_OUTPUT_DIR = Path(__file__).parent / "audits"


def build_parser() -> argparse.ArgumentParser:
    """The command line of this script."""
    parser = argparse.ArgumentParser(
        description="Plot label counts and sentence length by label of a labelled CSV, as a PNG.\n\n"
        "example:\n  visualize_labels.py expanded_data/dishonesty.csv",
        formatter_class=HelpFormatter,
    )
    parser.add_argument("csv", type=Path, metavar="CSV", help="labelled CSV: sentence,concept_strength_label")
    parser.add_argument(
        "--output", type=Path, help="PNG to write (default: audits/<CSV name>_labels.png of this stage)"
    )
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Read, plot, say where."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.output is not None and arguments.output.suffix.lower() != ".png":
        parser.error(f"--output {arguments.output}: expected a name that ends in .png")
    configure_logging("s0_dataset_generation")

    from s0_dataset_generation.dataset_plots import plot_labels
    from s0_dataset_generation.labelled_sentences import read_labelled_sentences

    data = read_labelled_sentences(arguments.csv, n_distinct_labels=1)
    output = arguments.output or DEFAULT_OUTPUT_DIR / f"{arguments.csv.stem}_labels.png"
    claim_output(output)
    plot_labels(output, f"{arguments.csv.stem}: {len(data.sentences)} sentences", data.sentences, data.labels)
    print(output)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
