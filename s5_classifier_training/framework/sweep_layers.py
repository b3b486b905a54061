"""Classify every layer's sentence vectors: the curve that shows where in the model a trait can be read."""

import argparse
import logging
from collections.abc import Sequence
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
    from s5_classifier_training.framework.layer_sweep import Row, SweepSettings
    from s5_classifier_training.framework.trait_stores import Trait

log = logging.getLogger(__name__)

RUNS = Path(__file__).resolve().parent.parent / "runs"
TABLE = "layer_sweep.csv"
DESCRIPTION_FILE = "layer_sweep.json"
FORMAT = "layer_sweep"
FORMAT_VERSION = 1
WHAT = "layer sweep"

DESCRIPTION = """\
Where in the model can a trait be read?

Every layer and the embeddings of each feature store are classified, one vector per sentence, on the same
folds of the train split and once on the held-out sentences, beside bag of words and sentence length.
Writes layer_sweep.csv, layer_sweep.json, a picture per trait and one with all traits.

example:
  python framework/sweep_layers.py --input ../s1_compute_all_features/dishonesty_smollm2_features
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument(
        "--input", type=Path, nargs="+", required=True, metavar="STORE",
        help="feature stores made by extract_sae_features.py, one a trait",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=RUNS / "layer_sweep", help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace the sweep in --output")
    parser.add_argument(
        "--layers", nargs="+", type=layer, metavar="LAYER",
        help="layer numbers, and the word embeddings; all that a store holds where not given",
    )  # fmt: skip
    add_classifier_arguments(parser)
    return parser


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Sweep over the layers of every store."""
    arguments = build_parser().parse_args(argv)
    configure_logging("s5_classifier_training")
    watch = Stopwatch()
    check_way(arguments.output, arguments.overwrite, WHAT, DESCRIPTION_FILE)
    claim_output(arguments.output)

    # Imported after the cheap checks: scikit-learn takes longer than they do.
    from tqdm import tqdm

    from s5_classifier_training.framework.layer_sweep import sweep
    from s5_classifier_training.framework.trait_stores import open_traits, refuse_single_label

    traits = open_traits(arguments.input, arguments.keep_sinks)
    layers_of = [chosen_layers(trait, arguments.layers) for trait in traits]
    for trait in traits:
        refuse_single_label(trait)
    settings = sweep_settings(arguments)
    log.info(settings_line(arguments, frozenset({"overwrite"})))
    rows_of_trait, messages = [], {}
    total = len(settings.estimators) * sum(map(len, layers_of))
    with tqdm(total=total, desc="sweep", unit="layer", disable=None) as bar:
        for trait, layers in zip(traits, layers_of, strict=True):
            rows, messages[trait.name] = sweep(trait, layers, settings, bar.update)
            rows_of_trait.append(rows)
    for name, of_trait in messages.items():
        for message in of_trait:
            log.warning(f"note: {name}: {message}")
    _write(arguments.output, arguments.overwrite, traits, rows_of_trait, settings, messages)
    print(report(rows_of_trait))
    n_rows = sum(map(len, rows_of_trait))
    log.info(f"{n_rows} rows and {len(traits) + 1} pictures in {arguments.output}, {watch.seconds:.1f} s")
    return 0


def _write(
    output: Path,
    overwrite: bool,
    traits: "Sequence[Trait]",
    rows_of_trait: "Sequence[Sequence[Row]]",
    settings: "SweepSettings",
    messages: dict[str, list[str]],
) -> None:
    from dataclasses import asdict

    from s5_classifier_training.framework.layer_sweep import COLUMNS
    from s5_classifier_training.framework.sweep_pictures import draw_all_traits, draw_trait

    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "settings": {
            **{key: value for key, value in asdict(settings).items() if key != "n_workers"},
            "keep_sinks": traits[0].store.keep_sinks,
        },
        "traits": [_described(*pair, messages) for pair in zip(traits, rows_of_trait, strict=True)],
        "library_versions": library_versions(["numpy", "scipy", "scikit-learn", "matplotlib"]),
    }
    pooling = f"{settings.pooling} pooling."
    with resumable_folder(output, sha256_of_json(description), overwrite, WHAT, DESCRIPTION_FILE) as folder:
        cells = ([_cell(row[name]) for name in COLUMNS] for rows in rows_of_trait for row in rows)
        write_csv(folder / TABLE, COLUMNS, cells)
        for trait, rows in zip(traits, rows_of_trait, strict=True):
            draw_trait(folder / f"layer_sweep_{trait.name}.png", rows, f"{_source([trait])} {pooling}")
        draw_all_traits(folder / "layer_sweep_all_traits.png", rows_of_trait, f"{_source(traits)} {pooling}")
        write_json(folder / DESCRIPTION_FILE, description)


def _described(trait: "Trait", rows: "Sequence[Row]", messages: dict[str, list[str]]) -> dict[str, Any]:
    store = trait.store
    return {
        "trait": trait.name,
        "store": {"name": store.path.resolve().name, "fingerprint": store.fingerprint},
        "model": store.model_id,
        "emergence": emergence(rows),
        "notes": messages[trait.name],
    }


def _source(traits: "Sequence[Trait]") -> str:
    models = ", ".join(dict.fromkeys(trait.store.model_name for trait in traits))
    return f"Model: {models};"


def _cell(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value


def emergence(rows: "Sequence[Row]") -> list[dict[str, Any]]:
    """Per estimator of one trait the best layer, and the first that is as good, by cross-validation alone.

    As good is a mean within one standard error of the best layer's (the one-standard-error rule of
    Breiman et al., 1984). Layers without a cross-validated AUROC take no part.
    """
    found = []
    for name in dict.fromkeys(row["estimator"] for row in rows if row["layer"] is not None):
        curve = [
            row
            for row in rows
            if row["estimator"] == name and row["layer"] is not None and row["cv_auroc_mean"] is not None
        ]
        if not curve:
            found.append({"estimator": name, "best_layer": None, "first_layer_as_good": None})
            continue
        best = max(curve, key=lambda row: row["cv_auroc_mean"])
        error = (best["cv_auroc_std"] or 0.0) / best["n_folds"] ** 0.5
        first = next(row for row in curve if row["cv_auroc_mean"] >= best["cv_auroc_mean"] - error)
        found.append({"estimator": name, "best_layer": best["layer"], "first_layer_as_good": first["layer"]})
    return found


def report(rows_of_trait: "Sequence[Sequence[Row]]") -> str:
    """What a sweep prints: per trait and estimator the best layer, then the baselines."""
    from s5_classifier_training.framework.metrics import with_interval
    from s5_classifier_training.framework.tables import as_text, number

    header = [
        "trait", "estimator", "best layer", "first as good", "cv AUROC", "held-out AUROC [95% interval]",
        "against bag of words",
    ]  # fmt: skip
    lines = []
    for rows in rows_of_trait:
        chosen = {entry["estimator"]: entry for entry in emergence(rows)}
        for row in rows:
            entry = chosen.get(row["estimator"])
            if row["layer"] is not None and (entry is None or entry["best_layer"] != row["layer"]):
                continue
            first = "" if entry is None else str(entry["first_layer_as_good"])
            test = {end: row[f"test_auroc{end and '_' + end}"] for end in ("", "low", "high")}
            lines.append(
                [
                    *(
                        row["trait"],
                        row["estimator"],
                        "" if row["layer"] is None else str(row["layer"]),
                        first,
                    ),
                    f"{number(row['cv_auroc_mean'])} +- {number(row['cv_auroc_std'])}",
                    with_interval({"value": test[""], "low": test["low"], "high": test["high"]}),
                    verdict(row),
                ]
            )
    return as_text(header, lines)


def verdict(row: "Row") -> str:
    """Whether a layer tells label 3 from 0 better than the words do, on held-out sentences."""
    low, high = row["minus_bag_of_words_low"], row["minus_bag_of_words_high"]
    if low is None or high is None:
        return ""
    return "beats" if low > 0 else "loses" if high < 0 else "cannot tell"


if __name__ == "__main__":
    raise SystemExit(main())
