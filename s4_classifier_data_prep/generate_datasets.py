"""Make a classifier dataset from a feature store: the command line of stage 4."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_common.command_line import (
    HelpFormatter,
    Stopwatch,
    configure_logging,
    count,
    index_ranges,
    settings_line,
)
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import make_way

if TYPE_CHECKING:
    from s1_compute_all_features.feature_store import FeatureStore
    from s4_classifier_data_prep.classifier_dataset import ClassifierDataset

log = logging.getLogger(__name__)

STRATEGIES = ("embedding-to-feature", "hidden-to-feature", "hidden-to-concept")
FEATURE_FLAGS = ("target_layer", "target_l0", "target_feature", "unit")
CONCEPT_FLAGS = ("layer", "layers")

DESCRIPTION = """\
Make one dataset for one question, with the feature store's own split.

  embedding-to-feature  can token embeddings predict an SAE feature?
  hidden-to-feature     can a layer's hidden states predict an SAE feature without the SAE?
  hidden-to-concept     do raw hidden states suffice for the concept's label?

Inputs are stored as the model has them. The normalisation asked for is stored with its parameters, fitted
on the train rows; stage 5 applies it inside each fold.

example:
  python generate_datasets.py --strategy hidden-to-concept --layers 0-5 \\
      --input ../s1_compute_all_features/dishonesty_features \\
      --output generated_datasets/dishonesty_h0-5_to_concept.npz
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument("--strategy", choices=STRATEGIES, required=True, help="the question")
    parser.add_argument("--input", type=Path, required=True, metavar="STORE", help="feature store of stage 1")
    parser.add_argument("--output", type=Path, required=True, metavar="NPZ", help="the dataset to write")
    parser.add_argument(
        "--target-layer", type=count, metavar="N", help="feature strategies: layer of the target's SAE"
    )
    parser.add_argument(
        "--target-l0", type=count, metavar="L0", help="which SAE of that layer, where it has several"
    )
    parser.add_argument("--target-feature", type=count, metavar="ID", help="the feature to predict")
    parser.add_argument(
        "--input-layer",
        type=count,
        metavar="N",
        help="hidden-to-feature: layer of the hidden states (default: the target layer)",
    )
    layers = parser.add_mutually_exclusive_group()
    layers.add_argument("--layer", type=count, metavar="N", help="hidden-to-concept: one layer")
    layers.add_argument(
        "--layers",
        type=index_ranges,
        metavar="LIST",
        help="hidden-to-concept: several, as 0-5 or 0,3,7 or 0-2,8; their vectors are put side by side",
    )
    parser.add_argument(
        "--unit",
        choices=("token", "sentence"),
        help="feature strategies: a row per token or per sentence (default: token)",
    )
    parser.add_argument(
        "--pooling",
        choices=("max", "mean", "final", "last-content"),
        help="how a sentence's input vectors become one (default: mean); a target is always pooled by max",
    )
    parser.add_argument(
        "--normalize",
        choices=("standardize", "minmax", "none"),
        default="standardize",
        help="what stage 5 applies inside each fold",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser


def check_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with exit code 2 where a flag is missing for the strategy or does not belong to it."""
    strategy = arguments.strategy
    to_concept = strategy == "hidden-to-concept"
    foreign = [*(FEATURE_FLAGS if to_concept else CONCEPT_FLAGS)]
    if strategy != "hidden-to-feature":
        foreign.append("input_layer")
    for name in foreign:
        if getattr(arguments, name) is not None:
            parser.error(f"{_flag(name)} does not belong to --strategy {strategy}")
    if to_concept and arguments.layer is None and arguments.layers is None:
        parser.error("--strategy hidden-to-concept needs --layer or --layers")
    for name in () if to_concept else ("target_layer", "target_feature"):
        if getattr(arguments, name) is None:
            parser.error(f"--strategy {strategy} needs {_flag(name)}")
    if not to_concept and arguments.unit != "sentence" and arguments.pooling is not None:
        parser.error("--pooling has nothing to pool where a row is a token; add --unit sentence")


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


@exit_codes
def main(argv: Sequence[str] | None = None) -> int:
    """Make the dataset that the command line asks for."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    check_flags(parser, arguments)
    configure_logging("s4_classifier_data_prep")
    log.info(settings_line(arguments))
    watch = Stopwatch()

    from s1_compute_all_features.feature_store import FeatureStore
    from s4_classifier_data_prep.classifier_dataset import write_dataset

    if arguments.output.is_dir():
        raise UserError(f"{arguments.output}: is a folder; --output names the NPZ file to write")
    if not arguments.overwrite:
        make_way(arguments.output, overwrite=False, what="dataset")
    store = FeatureStore(arguments.input)
    dataset = _dataset(store, arguments)
    write_dataset(arguments.output, dataset)
    _report(arguments.output, dataset)
    log.info(f"done in {watch.seconds:.1f} s")
    return 0


def _dataset(store: "FeatureStore", arguments: argparse.Namespace) -> "ClassifierDataset":
    from s4_classifier_data_prep.load_sentence_data import INPUT_POOLING, hidden_to_concept, states_to_feature

    pooling = arguments.pooling or INPUT_POOLING
    if arguments.strategy == "hidden-to-concept":
        layers = [arguments.layer] if arguments.layers is None else arguments.layers
        return hidden_to_concept(store, layers, pooling, arguments.normalize)
    sae = store.find_sae(arguments.target_layer, arguments.target_l0)
    input_layer = None
    if arguments.strategy == "hidden-to-feature":
        input_layer = arguments.target_layer if arguments.input_layer is None else arguments.input_layer
    return states_to_feature(
        store,
        input_layer,
        sae,
        arguments.target_feature,
        arguments.unit or "token",
        pooling,
        arguments.normalize,
    )


def _report(path: Path, dataset: "ClassifierDataset") -> None:
    metadata, target = dataset.metadata, dataset.metadata["target"]
    n_rows, n_inputs = dataset.X.shape
    print(
        f"{path}: {metadata['n_train_rows']:,} train and {metadata['n_test_rows']:,} test "
        f"{metadata['unit']}s x {n_inputs:,} inputs, {path.stat().st_size / 1e6:.1f} MB"
    )
    if dataset.target_is_label:
        counts = ", ".join(
            f"{label}: {int((dataset.label == label).sum())}" for label in sorted(set(dataset.label))
        )
        print(f"target: the label ({counts})")
    else:
        n_active = int((dataset.y > 0).sum())
        print(
            f"target: activation of feature {target['feature_id']} of SAE {target['sae']}, "
            f"above zero in {n_active:,} of {n_rows:,} {metadata['unit']}s"
        )
    for note in metadata["notes"]:
        print(f"note: {note}")
    if metadata["demonstration"]:
        print("note: made with the demonstration model; its numbers say nothing about a real model")


if __name__ == "__main__":
    raise SystemExit(main())
