"""Make a classifier dataset from a feature store: the command line of stage 4."""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_common.claims import claim_output
from pipeline_common.command_line import (
    HelpFormatter,
    Stopwatch,
    configure_logging,
    count,
    index_ranges,
    positive_int,
    settings_line,
)
from pipeline_common.errors import UserError, exit_codes
from pipeline_common.files import make_way

if TYPE_CHECKING:
    from s1_compute_all_features.feature_store import FeatureStore
    from s4_classifier_data_prep.classifier_dataset import ClassifierDataset

log = logging.getLogger(__name__)

STRATEGIES = ("embedding-to-feature", "hidden-to-feature", "hidden-to-concept", "sae-to-concept")
FLAGS_OF = {
    "embedding-to-feature": ("target_layer", "target_l0", "target_sae", "target_feature", "unit"),
    "hidden-to-feature": ("target_layer", "target_l0", "target_sae", "target_feature", "unit", "input_layer"),
    "hidden-to-concept": ("layer", "layers"),
    "sae-to-concept": ("layer", "layers", "target_l0", "target_sae", "features", "top_k"),
}
"""The flags that belong to some strategies only."""

DESCRIPTION = """\
Make one dataset for one question, with the feature store's own split.

  embedding-to-feature  can token embeddings predict an SAE feature?
  hidden-to-feature     can a layer's hidden states predict an SAE feature without the SAE?
  hidden-to-concept     do raw hidden states suffice for the concept's label?
  sae-to-concept        what do SAE features make of it: the best of a ranking, or all of an SAE?

Inputs are stored as the model has them. The normalisation asked for is stored with its parameters, fitted
on the train rows; stage 5 applies it inside each fold.

example:
  python generate_datasets.py --strategy hidden-to-concept --layers 0-5 \\
      --input ../s1_compute_all_features/dishonesty_features \\
      --output generated_datasets/dishonesty_h0-5_to_concept.npz
  python generate_datasets.py --strategy sae-to-concept --top-k 100 \\
      --features ../s2_find_top_features/results/dishonesty_results/ranked_features.csv \\
      --input ../s1_compute_all_features/dishonesty_features \\
      --output generated_datasets/dishonesty_sae_to_concept.npz
"""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=DESCRIPTION, formatter_class=HelpFormatter)
    parser.add_argument("--strategy", choices=STRATEGIES, required=True, help="the question")
    parser.add_argument("--input", type=Path, required=True, metavar="STORE", help="feature store of stage 1")
    parser.add_argument("--output", type=Path, required=True, metavar="NPZ", help="the dataset to write")
    _add_target(parser.add_argument_group("target of the feature strategies"))
    _add_inputs(parser.add_argument_group("inputs"))
    parser.add_argument(
        "--normalize",
        choices=("standardize", "minmax", "none"),
        default="standardize",
        help="what stage 5 applies inside each fold",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser


def _add_target(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--target-layer", type=count, metavar="N", help="layer of the target's SAE")
    group.add_argument(
        "--target-l0",
        type=count,
        metavar="L0",
        help="which SAE of a layer, where it has several; also of the layers of sae-to-concept",
    )
    group.add_argument(
        "--target-sae",
        type=sae_names,
        metavar="NAME",
        help="the target's SAE by its name in the store, instead of --target-layer and --target-l0; "
        "sae-to-concept: all features of this SAE, or of several as NAME,NAME, instead of layers",
    )
    group.add_argument("--target-feature", type=count, metavar="ID", help="the feature to predict")
    group.add_argument(
        "--unit", choices=("token", "sentence"), help="a row per token or per sentence (default: token)"
    )


def _add_inputs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--input-layer",
        type=count,
        metavar="N",
        help="hidden-to-feature: layer of the hidden states (default: the target layer)",
    )
    what = group.add_mutually_exclusive_group()
    what.add_argument(
        "--layer",
        type=count,
        metavar="N",
        help="hidden-to-concept: one layer; sae-to-concept: all features of its SAE",
    )
    what.add_argument(
        "--layers",
        type=index_ranges,
        metavar="LIST",
        help="several layers, as 0-5 or 0,3,7 or 0-2,8; their vectors are put side by side",
    )
    what.add_argument(
        "--features", type=Path, metavar="CSV", help="sae-to-concept: ranked_features.csv of stage 2"
    )
    group.add_argument(
        "--top-k",
        type=positive_int,
        metavar="K",
        help="sae-to-concept: the K best of --features (default: all of them)",
    )
    group.add_argument(
        "--pooling",
        choices=("max", "mean", "final", "last-content"),
        help="how a sentence's tokens become one (default: mean for embeddings and hidden states, max for "
        "SAE activations); a target is always pooled by max",
    )
    group.add_argument(
        "--keep-sinks", action="store_true", help="count attention sinks like any other token of a sentence"
    )


def check_flags(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """End with exit code 2 where a flag is missing for the strategy or does not belong to it."""
    strategy = arguments.strategy
    own = FLAGS_OF[strategy]
    for name in sorted({name for flags in FLAGS_OF.values() for name in flags} - set(own)):
        if getattr(arguments, name) is not None:
            parser.error(f"{_flag(name)} does not belong to --strategy {strategy}")
    needed: dict[str, tuple[str, ...]] = {
        "hidden-to-concept": ("layer", "layers"),
        "sae-to-concept": ("features", "layer", "layers", "target_sae"),
    }
    if strategy in needed:
        if all(getattr(arguments, name) is None for name in needed[strategy]):
            parser.error(f"--strategy {strategy} needs {' or '.join(map(_flag, needed[strategy]))}")
        if arguments.top_k is not None and arguments.features is None:
            parser.error("--top-k takes the best of --features, which is not given")
        if arguments.target_l0 is not None and arguments.features is not None:
            parser.error("--target-l0 picks the SAE of a layer; the rows of --features name theirs")
        _refuse_beside_sae(parser, arguments, ("features", "layer", "layers", "target_l0"))
        return
    _refuse_beside_sae(parser, arguments, ("target_layer", "target_l0"))
    if len(arguments.target_sae or ()) > 1:
        parser.error("--target-sae names several SAEs; a target is a feature of one")
    if arguments.target_layer is None and arguments.target_sae is None:
        parser.error(f"--strategy {strategy} needs --target-layer or --target-sae")
    if arguments.target_feature is None:
        parser.error(f"--strategy {strategy} needs --target-feature")
    if arguments.unit != "sentence" and arguments.pooling is not None:
        parser.error("--pooling has nothing to pool where a row is a token; add --unit sentence")


def _refuse_beside_sae(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, names: Sequence[str]
) -> None:
    """End with exit code 2 where --target-sae stands beside what would name an SAE otherwise."""
    for name in names:
        if arguments.target_sae is not None and getattr(arguments, name) is not None:
            parser.error(f"--target-sae names the SAE, so {_flag(name)} cannot stand beside it; drop one")


def sae_names(text: str) -> list[str]:
    """Argparse type of ``--target-sae``: one name or several, each once.

    Raises:
        argparse.ArgumentTypeError: a name is empty, or named twice.
    """
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"{text!r} is not a name, nor names with commas between them")
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{text!r} names an SAE twice")
    return names


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
    claim_output(arguments.output)
    store = FeatureStore(arguments.input, arguments.keep_sinks)
    dataset = _dataset(store, arguments)
    write_dataset(arguments.output, dataset)
    _report(arguments.output, dataset)
    log.info(f"done in {watch.seconds:.1f} s")
    return 0


def _dataset(store: "FeatureStore", arguments: argparse.Namespace) -> "ClassifierDataset":
    from s4_classifier_data_prep.load_sentence_data import INPUT_POOLING, hidden_to_concept, states_to_feature
    from s4_classifier_data_prep.sae_inputs import ACTIVATION_POOLING, ranked_to_concept, saes_to_concept

    layers = [arguments.layer] if arguments.layers is None else arguments.layers
    if arguments.strategy == "sae-to-concept":
        pooling = arguments.pooling or ACTIVATION_POOLING
        if arguments.features is not None:
            return ranked_to_concept(store, arguments.features, arguments.top_k, pooling, arguments.normalize)
        if arguments.target_sae is not None:
            saes = [store.find_sae(name=name) for name in arguments.target_sae]
        else:
            saes = [store.find_sae(layer, arguments.target_l0) for layer in layers]
        return saes_to_concept(store, saes, pooling, arguments.normalize)
    pooling = arguments.pooling or INPUT_POOLING
    if arguments.strategy == "hidden-to-concept":
        return hidden_to_concept(store, layers, pooling, arguments.normalize)
    name = arguments.target_sae[0] if arguments.target_sae else None
    sae = store.find_sae(arguments.target_layer, arguments.target_l0, name)
    input_layer = None
    if arguments.strategy == "hidden-to-feature":
        input_layer = sae.layer if arguments.input_layer is None else arguments.input_layer
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


if __name__ == "__main__":
    raise SystemExit(main())
