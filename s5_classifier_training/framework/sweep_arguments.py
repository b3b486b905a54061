"""The arguments that the sweep and the transfer share."""

import argparse
import math
from typing import TYPE_CHECKING

from concept_evaluation.logistic import PENALTIES
from pipeline_common.command_line import count, number_type, positive_int, usable_cores
from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import EMBEDDINGS, POOLINGS
from s5_classifier_training.framework.estimators import ESTIMATORS

if TYPE_CHECKING:
    from s5_classifier_training.framework.layer_sweep import SweepSettings
    from s5_classifier_training.framework.trait_stores import Layer, Trait


def add_classifier_arguments(parser: argparse.ArgumentParser) -> None:
    """How sentences become vectors and vectors are classified."""
    parser.add_argument(
        "--estimators", nargs="+", choices=list(ESTIMATORS), default=["logistic"], metavar="NAME",
        help=f"of {', '.join(ESTIMATORS)}; only logistic has a fast solver and chooses its penalty",
    )  # fmt: skip
    parser.add_argument(
        "--pooling", choices=POOLINGS, default="mean", help="how a sentence's tokens become one vector"
    )
    parser.add_argument(
        "--keep-sinks", action="store_true", help="count attention sinks like any other token of a sentence"
    )
    parser.add_argument(
        "--penalties", nargs="+", type=penalty, default=list(PENALTIES), metavar="C",
        help="inverse penalties that logistic chooses from, inside the train rows of each fold",
    )  # fmt: skip
    parser.add_argument(
        "--folds", type=number_type(int, 2), default=5, help="of the cross-validation on train"
    )
    parser.add_argument("--seed", type=count, default=0, help="of folds, estimators and bootstrap")
    parser.add_argument(
        "--workers", type=positive_int, default=usable_cores(), help="layers in work at a time (logistic)"
    )


def sweep_settings(arguments: argparse.Namespace) -> "SweepSettings":
    """The settings that `add_classifier_arguments` asked for."""
    from s5_classifier_training.framework.layer_sweep import SweepSettings

    return SweepSettings(
        estimators=tuple(dict.fromkeys(arguments.estimators)),
        pooling=arguments.pooling,
        penalties=tuple(sorted(set(arguments.penalties))),
        n_folds=arguments.folds,
        seed=arguments.seed,
        n_workers=arguments.workers,
    )


def chosen_layers(trait: "Trait", wanted: "list[Layer] | None") -> "list[Layer]":
    """The layers of a store that were asked for, or all, in the order of the model.

    Raises:
        UserError: one is not stored.
    """
    if wanted is None:
        return trait.layers
    missing = [str(one) for one in wanted if one not in trait.layers]
    if missing:
        existing = ", ".join(map(str, trait.layers))
        raise UserError(f"{trait.store.path}: layer {missing[0]} is not stored; there are {existing}")
    return [one for one in trait.layers if one in wanted]


def penalty(text: str) -> float:
    """A finite number above 0.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def layer(text: str) -> int | str:
    """A layer's number, or ``embeddings``.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    if text == EMBEDDINGS:
        return EMBEDDINGS
    try:
        return count(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a layer's number nor {EMBEDDINGS}") from None
