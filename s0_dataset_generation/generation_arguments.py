"""Flags and steps that the scripts which ask an LLM share."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from pipeline_common.command_line import count, positive_int, settings_line
from pipeline_common.errors import UserError
from s0_dataset_generation.llm_client import LLMRequest, LLMSettings
from s0_dataset_generation.rubric import RUBRIC, Trait, find_trait

AFTER_INTERRUPT = "the replies so far are kept; run the same command again to go on"


def add_trait_arguments(parser: argparse.ArgumentParser) -> None:
    """``--trait``, ``--definition`` and ``--seed``."""
    parser.add_argument("--trait", required=True, help="the trait, any word or phrase, such as Dishonesty")
    parser.add_argument(
        "--definition",
        help="what the trait means, in a phrase (default: built in for the five shipped traits)",
    )
    parser.add_argument(
        "--seed", type=count, default=0, help="of every random choice, such as the order of sentences"
    )


def add_count_arguments(parser: argparse.ArgumentParser) -> None:
    """``--seed-file``, ``--label0-count`` to ``--label3-count``, and ``--accept-shortfall``."""
    parser.add_argument(
        "--seed-file",
        type=Path,
        required=True,
        help="labelled CSV of examples: sentence,concept_strength_label",
    )
    for label in sorted(RUBRIC, reverse=True):
        parser.add_argument(
            f"--label{label}-count", type=count, default=100, help=f"sentences to write for label {label}"
        )
    parser.add_argument(
        "--accept-shortfall",
        action="store_true",
        help="end well with fewer sentences, where the language model writes no more that differ enough",
    )


def add_output_arguments(parser: argparse.ArgumentParser, kept: str, replaced: str) -> None:
    """``--keep-temp`` and ``--overwrite``; what they keep and replace stands in the help."""
    parser.add_argument("--keep-temp", action="store_true", help=f"keep {kept} after success")
    parser.add_argument("--overwrite", action="store_true", help=f"replace an existing {replaced}")


def add_rater_argument(parser: argparse.ArgumentParser) -> None:
    """``--raters``."""
    parser.add_argument(
        "--raters",
        type=positive_int,
        default=1,
        help="rate each sentence this many times; its label is the median, and a tie gives no label",
    )


def label_counts(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> dict[int, int]:
    """Label to sentences wanted; all zero is wrong usage."""
    counts = {label: getattr(arguments, f"label{label}_count") for label in RUBRIC}
    if not any(counts.values()):
        parser.error("all four --labelN-count are 0: nothing to write")
    return counts


def resolve_trait(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> Trait:
    """The trait that the flags name; a blank one is wrong usage."""
    if not arguments.trait.strip():
        parser.error("--trait is blank; expected a word or phrase such as Dishonesty")
    return find_trait(arguments.trait, arguments.definition)


def refuse_existing(
    output: Path, overwrite: bool, flag: str, beside: Sequence[Path] = (), journal: Path | None = None
) -> None:
    """Stop before anything is asked if a result would replace a file.

    Args:
        output: the main file, which is written last.
        overwrite: whether ``--overwrite`` was given.
        flag: which names another output.
        beside: files that are written with it.
        journal: the replies of an unfinished run, if there is one: files beside are then that run's own,
            which was stopped between them and the main file.

    Raises:
        UserError: a file exists and ``--overwrite`` was not given.
    """
    if journal is not None and journal.exists():
        beside = ()
    for path in (output, *beside):
        if path.exists() and not overwrite:
            raise UserError(f"{path}: already exists; choose another {flag}, or add --overwrite")


def resolved_settings_line(arguments: argparse.Namespace, settings: LLMSettings) -> str:
    """The settings of a run, with the model and the server that flags, environment and ``.env`` add up to."""
    flags = settings_line(arguments, frozenset({"model", "base_url", "dry_run"}))
    return f"{flags}, model={settings.model}, endpoint={settings.endpoint}"


def journal_beside(output_file: Path) -> Path:
    """Where a script keeps the replies for an output file until it is complete."""
    return output_file.with_name(f"{output_file.stem}_journal.jsonl")


def print_requests(requests: Sequence[LLMRequest], estimated_completion_tokens: int) -> None:
    """Print what a run would ask, for ``--dry-run``."""
    for number, request in enumerate(requests, start=1):
        n_tokens = request.estimated_prompt_tokens
        print(f"--- request {number} of {len(requests)}, about {n_tokens:,} prompt tokens")
        for message in request.messages:
            print(f"[{message['role']}]\n{message['content']}\n")
    prompt_tokens = sum(request.estimated_prompt_tokens for request in requests)
    print(
        f"{len(requests)} requests, about {prompt_tokens:,} prompt and "
        f"{estimated_completion_tokens:,} completion tokens (estimated at four characters a token)"
    )


def trait_file_name(trait: str) -> str:
    """The trait as a file name: ``Physical bravery`` becomes ``physical_bravery``."""
    return re.sub(r"\W+", "_", trait.strip().lower()).strip("_") or "trait"
