"""Predict new sentences with a checkpoint."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_common.claims import claim_output
from pipeline_common.command_line import HelpFormatter, Stopwatch, configure_logging, settings_line
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import check_way, write_csv
from s5_classifier_training.framework.experiment_folder import (
    Version,
    find_checkpoint,
    read_results,
    refuse_altered,
)

if TYPE_CHECKING:
    from s5_classifier_training.framework.prediction import Answered, NewSentences

log = logging.getLogger(__name__)

DESCRIPTION = """\
Predict the sentences of a CSV with a version made by checkpoint.py.

Runs stage 1 on the CSV for the layers or SAEs that the version's model reads, and writes one line per
sentence: the predicted label and the probability of each label, or the predicted value of a regression. A
model that reads tokens gets one line per token. Labels are not needed; where the CSV has the column
concept_strength_label, the scores are printed too.

example:
  python framework/predict.py --checkpoint d3_hidden_to_concept/v1 --input new.csv --output predictions.csv
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument(
        "--checkpoint",
        required=True,
        metavar="VERSION",
        help="EXPERIMENT/vN, or the path of a version's folder; vN is enough where one experiment has it",
    )
    parser.add_argument(
        "--input", type=Path, required=True, metavar="CSV", help="new sentences, in a column sentence"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="CSV", help="the predictions")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--config",
        type=Path,
        help="SAE configuration that the version's feature store was extracted with (default: the one of "
        "stage 1 that names its model)",
    )
    parser.add_argument("--model", help="hub id or folder of the model, instead of the configuration's")
    parser.add_argument("--sae-root", type=Path, help="folder with the SAE weights, instead of the hub")
    devices = ("auto", "cuda", "mps", "cpu")
    parser.add_argument("--device", choices=devices, default="auto", help="where the model runs")
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Predict what the command line names."""
    arguments = build_parser().parse_args(argv)
    configure_logging("s5_classifier_training")
    check_way(arguments.output, arguments.overwrite, "predictions")
    claim_output(arguments.output)
    version = find_checkpoint(arguments.checkpoint)
    refuse_altered(version)
    results = read_results(version.folder)
    if results is None:
        raise UserError(f"{version.folder}: no results; take another version")

    # Imported after the cheap checks: scikit-learn takes longer than they do.
    from s5_classifier_training.framework import prediction
    from s5_classifier_training.framework.model_file import load_model

    watch = Stopwatch()
    log.info(settings_line(arguments))
    new = prediction.read_new_sentences(arguments.input)
    prediction.refuse_without_recipe(results["dataset"])
    model = load_model(version.folder, results)
    weights = prediction.Weights(arguments.config, arguments.model, arguments.sae_root, arguments.device)
    answered = prediction.answer(arguments.input, arguments.output.parent, model, results, weights)
    write_csv(arguments.output, *prediction.prediction_table(new, answered))
    print(report(arguments.output, version, results, new, answered))
    log.info(f"done in {watch.seconds:.1f} s")
    return 0


def report(
    output: Path, version: Version, results: dict[str, Any], new: "NewSentences", answered: "Answered"
) -> str:
    """What was predicted how often, and the scores where there are labels."""
    import numpy as np

    from s5_classifier_training.framework.metrics import with_interval
    from s5_classifier_training.framework.prediction import n_trained_on, scores_of

    dataset, predictions = results["dataset"], answered.predictions
    lines = [
        f"{output}: {len(predictions.predicted):,} {dataset['unit']}s predicted by "
        f"{version.content['experiment']} {version.folder.name} ({results['best']})"
    ]
    if predictions.labels is not None:
        counts = [f"{label}: {int(np.sum(predictions.predicted == label))}" for label in predictions.labels]
        lines.append(f"predicted labels: {', '.join(counts)}")
    if dataset["target"]["kind"] != "label":
        if new.labels is not None:
            lines.append("note: the version predicts an activation, so the labels have nothing to score")
    else:
        scores = scores_of(new, answered, results["seed"])
        if scores is not None:
            shown = ", ".join(f"{name} {with_interval(entry)}" for name, entry in scores.items())
            lines.append(f"on the labelled sentences: {shown}")
            n_known = n_trained_on(new, version.folder)
            if n_known:
                lines.append(
                    f"note: {n_known:,} of the sentences were trained on, so these scores are no test"
                )
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
