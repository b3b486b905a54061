"""Train on one store, test on others: does what was learnt of a trait hold on sentences from elsewhere?"""

import argparse
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_common.claims import claim_output
from pipeline_common.command_line import HelpFormatter, Stopwatch, configure_logging, settings_line
from pipeline_common.errors import exit_codes
from pipeline_common.files import check_way, resumable_folder, sha256_of_json, write_csv, write_json
from pipeline_common.provenance import library_versions
from s5_classifier_training.framework.sweep_arguments import (
    add_classifier_arguments,
    chosen_layers,
    layer,
    sweep_settings,
)

if TYPE_CHECKING:
    from s5_classifier_training.framework.cross_store import Tested, Unseen
    from s5_classifier_training.framework.layer_sweep import SweepSettings
    from s5_classifier_training.framework.trait_stores import Trait

log = logging.getLogger(__name__)

RUNS = Path(__file__).resolve().parent.parent / "runs"
TABLE = "transfer.csv"
PREDICTIONS = "transfer_predictions.csv"
DESCRIPTION_FILE = "transfer.json"
FORMAT = "transfer"
FORMAT_VERSION = 1
WHAT = "transfer"
SHOWN = ("auroc_3_vs_0", "accuracy", "quadratic_weighted_kappa", "spearman")

DESCRIPTION = """\
Does a classifier of a trait hold on sentences from elsewhere?

Trains on the train split of one feature store, at the layer that cross-validates best there, and tests on
its own held-out sentences and on those of other stores: other sources of the trait, or other traits. Bag of
words and sentence length go the same way. Writes transfer.csv, transfer_predictions.csv and transfer.json.

example:
  python framework/transfer.py --train ../s1_compute_all_features/dishonesty_features \\
      --test ../s1_compute_all_features/justice_features ../s1_compute_all_features/aggression_features
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument(
        "--train", type=Path, required=True, metavar="STORE", help="feature store to learn from"
    )
    parser.add_argument(
        "--test", type=Path, nargs="+", required=True, metavar="STORE",
        help="feature stores to test on, made with the same model",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=RUNS / "transfer", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the transfer in --output")
    parser.add_argument(
        "--layers", nargs="+", type=layer, metavar="LAYER",
        help="layer numbers, and the word embeddings, to choose from on train; all where not given",
    )  # fmt: skip
    parser.add_argument(
        "--held-out-only", action="store_true",
        help="test on the held-out sentences of the --test stores instead of all: the sentences on which "
        "their own classifiers are tested",
    )  # fmt: skip
    add_classifier_arguments(parser)
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Train on one store and test on the others."""
    arguments = build_parser().parse_args(argv)
    configure_logging("s5_classifier_training")
    watch = Stopwatch()
    check_way(arguments.output, arguments.overwrite, WHAT, DESCRIPTION_FILE)
    claim_output(arguments.output)

    # Imported after the cheap checks: scikit-learn takes longer than they do.
    from tqdm import tqdm

    from s5_classifier_training.framework.cross_store import (
        refuse_other_models,
        score_rows,
        transfer,
        unseen_sentences,
    )
    from s5_classifier_training.framework.trait_stores import open_traits

    train, *others = open_traits([arguments.train, *arguments.test], arguments.keep_sinks)
    refuse_other_models(train, others)
    layers = chosen_layers(train, arguments.layers)
    settings = sweep_settings(arguments)
    log.info(settings_line(arguments, frozenset({"overwrite"})))
    sets = unseen_sentences(train, others, arguments.held_out_only)
    with tqdm(
        total=len(settings.estimators) * len(layers), desc="transfer", unit="layer", disable=None
    ) as bar:
        tested, messages = transfer(train, sets, layers, settings, bar.update)
    rows = score_rows(train, sets, tested, settings)
    messages += [
        f"{one.trait.name}: {one.n_left_out} sentences left out: train holds them, or nearly the same ones"
        for one in sets
        if one.n_left_out
    ]
    for message in messages:
        log.warning(f"note: {message}")
    description = _described(train, sets, tested, settings, messages)
    folder_of = (arguments.output, sha256_of_json(description), arguments.overwrite, WHAT, DESCRIPTION_FILE)
    with resumable_folder(*folder_of) as folder:
        _write(folder, sets, tested, rows)
        write_json(folder / DESCRIPTION_FILE, description)
    print(report(rows))
    log.info(f"{len(rows)} rows in {arguments.output / TABLE}, {watch.seconds:.1f} s")
    return 0


def _described(
    train: "Trait",
    sets: "Sequence[Unseen]",
    tested: "Sequence[Tested]",
    settings: "SweepSettings",
    messages: list[str],
) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "settings": {
            **{key: value for key, value in asdict(settings).items() if key != "n_workers"},
            "keep_sinks": train.store.keep_sinks,
        },
        "model": train.store.model_id,
        "train": {"trait": train.name, "fingerprint": train.store.fingerprint},
        "test": [
            {
                "trait": one.trait.name,
                "fingerprint": one.trait.store.fingerprint,
                "sentences": one.kind,
                "n_test": len(one.sentences),
                "n_left_out": one.n_left_out,
            }
            for one in sets
        ],
        "classifiers": [
            {"estimator": one.estimator, "layer": one.layer, "C": one.C, "cv_auroc_mean": one.cv_auroc}
            for one in tested
        ],
        "notes": messages,
        "library_versions": library_versions(["numpy", "scipy", "scikit-learn"]),
    }


def _write(folder: Path, sets: "Sequence[Unseen]", tested: "Sequence[Tested]", rows: list[list[Any]]) -> None:
    from s5_classifier_training.framework.cross_store import COLUMNS

    write_csv(folder / TABLE, COLUMNS, ([_cell(value) for value in row] for row in rows))
    labels = tested[0].answers[0].labels
    columns = [
        *("test_trait", "sentence_index", "sentence", "concept_strength_label", "estimator", "predicted"),
        *([] if labels is None else [f"probability_{label}" for label in labels]),
    ]
    write_csv(folder / PREDICTIONS, columns, _predictions(sets, tested))


def _predictions(sets: "Sequence[Unseen]", tested: "Sequence[Tested]") -> Iterator[list[Any]]:
    for place, one in enumerate(sets):
        store = one.trait.store
        for classifier in tested:
            answers = classifier.answers[place]
            for row, sentence in enumerate(one.sentences):
                probabilities = [] if answers.probabilities is None else answers.probabilities[row]
                yield [
                    *(one.trait.name, sentence, store.sentences[sentence], store.labels[sentence]),
                    *(classifier.estimator, int(answers.predicted[row])),
                    *(f"{value:.6g}" for value in probabilities),
                ]


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def report(rows: Sequence[Sequence[Any]]) -> str:
    """What a transfer prints: a line per test set and classifier, with the main scores."""
    from s5_classifier_training.framework.cross_store import COLUMNS
    from s5_classifier_training.framework.metrics import with_interval
    from s5_classifier_training.framework.tables import as_text

    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for cells in rows:
        row = dict(zip(COLUMNS, cells, strict=True))
        key = (row["test_trait"], row["test_sentences"], row["n_test"], row["estimator"], row["layer"])
        entry = {end: row[f"test_{end}"] for end in ("value", "low", "high")}
        lines.setdefault(key, {})[row["score"]] = with_interval(entry)
    header = ["tested on", "sentences", "n", "estimator", "layer", *SHOWN]
    return f"trained on {rows[0][0]}\n" + as_text(
        header,
        [
            [*("" if cell is None else str(cell) for cell in key), *(scores[name] for name in SHOWN)]
            for key, scores in lines.items()
        ],
    )


if __name__ == "__main__":
    raise SystemExit(main())
