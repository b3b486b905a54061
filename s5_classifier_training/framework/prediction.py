"""Predicting on new sentences: what has to be extracted, and the checkpoint's model on it."""

import logging
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import read_csv, read_json, write_json
from s1_compute_all_features.feature_store import FeatureStore, token_labels
from s4_classifier_data_prep.classifier_dataset import (
    EMBEDDING_INPUTS,
    SAE_ACTIVATIONS,
    inputs_of,
    token_rows,
)
from s5_classifier_training.framework.evaluation import predict
from s5_classifier_training.framework.experiment_folder import EXPERIMENTS, PREDICTIONS
from s5_classifier_training.framework.metrics import Predictions, scores_with_intervals

log = logging.getLogger(__name__)

EXTRACTION = EXPERIMENTS.parent / "s1_compute_all_features"
SENTENCE = "sentence"
LABEL = "concept_strength_label"

_NOT_OF_THE_WEIGHTS = ("id", "demonstration", "embeddings")
"""Of the model's description; checkpoints of before have ``demonstration``."""


@dataclass(frozen=True)
class NewSentences:
    """A CSV to predict on.

    Attributes:
        sentences: the texts.
        labels: the label of each, None where its cell is empty; None where the file has no label column.
    """

    sentences: list[str]
    labels: list[int | None] | None


@dataclass(frozen=True)
class Weights:
    """Where stage 1 finds model and SAEs, beyond what the checkpoint says.

    Attributes:
        config: SAE configuration file; None for the one of stage 1 that names the checkpoint's model.
        model: hub id or folder of the model, instead of the configuration's.
        sae_root: folder with the SAE weights, instead of the hub.
        device: as stage 1 takes it.
    """

    config: Path | None
    model: str | None
    sae_root: Path | None
    device: str


@dataclass(frozen=True)
class Answered:
    """The model's answers; a row is a sentence or a token.

    Attributes:
        predictions: [n_rows].
        sentence_index: int64 [n_rows].
        position: int [n_rows]; None where a row is a sentence.
        token: str [n_rows]; None where a row is a sentence.
    """

    predictions: Predictions
    sentence_index: np.ndarray
    position: np.ndarray | None
    token: np.ndarray | None


def read_new_sentences(path: Path) -> NewSentences:
    """The sentences of a CSV, and their labels where it has any.

    Raises:
        UserError: no column ``sentence``, no rows, a blank sentence, or a label that is not one of 0-3.
    """
    header, rows = read_csv(path, "CSV of sentences")
    if SENTENCE not in header:
        raise UserError(
            f"{path}: column {SENTENCE!r} is missing; the header has {', '.join(header)}; name the column "
            f"of the sentences {SENTENCE}"
        )
    if not rows:
        raise UserError(f"{path}: no sentences; expected at least one row below the header")
    place = {name: index for index, name in enumerate(header)}
    for line, cells in rows:
        if not cells[place[SENTENCE]].strip():
            raise UserError(f"{path}: line {line}: the sentence is blank; fill it in or delete the row")
        label = cells[place[LABEL]].strip() if LABEL in place else ""
        if label and not re.fullmatch(r"[0-3]", label, flags=re.ASCII):
            raise UserError(
                f"{path}: line {line}: {LABEL} is {label!r}; expected an integer from 0 to 3, or nothing"
            )
    labels = None
    if LABEL in place:
        labels = [int(cells[place[LABEL]]) if cells[place[LABEL]].strip() else None for _, cells in rows]
    return NewSentences([cells[place[SENTENCE]] for _, cells in rows], labels)


def refuse_without_recipe(metadata: dict[str, Any]) -> None:
    """Stop where a dataset's description does not say how its inputs were made.

    Raises:
        UserError: it was made by an earlier version of stage 4.
    """
    if "extraction" not in metadata or "dtype" not in metadata.get("model_details", {}):
        raise UserError(
            f"the dataset {metadata['file']} of this checkpoint does not say how its inputs were made; make "
            "it again with generate_datasets.py, then train and make a version"
        )


def find_configuration(metadata: dict[str, Any]) -> Path:
    """The SAE configuration of stage 1 that names a dataset's model and SAEs.

    Raises:
        UserError: there is none.
    """
    needed = {sae["name"] for sae in metadata["input"].get("saes", [])}
    for path in sorted(EXTRACTION.glob("**/*_configurations.json")):
        content = read_json(path, "SAE configuration file")
        if content["model"]["id"] == metadata["model"] and needed <= {sae["name"] for sae in content["saes"]}:
            return path
    raise UserError(
        f"no SAE configuration in {EXTRACTION} names the checkpoint's model {metadata['model']}"
        f"{' and its SAEs' if needed else ''}; give the one that its feature store was extracted with by "
        "--config"
    )


def extraction_arguments(metadata: dict[str, Any], weights: Weights, sinks: Path) -> list[str]:
    """Flags of extract_sae_features.py that compute what a dataset's inputs need, and nothing more.

    Args:
        metadata: of the dataset that the checkpoint was trained on.
        weights: where model and SAEs are.
        sinks: the file that holds what decides on the dataset's attention sinks, where they are left out.
    """
    source, extraction = metadata["input"], metadata["extraction"]
    of_sae = source["kind"] == SAE_ACTIVATIONS
    layers = [] if source["kind"] == EMBEDDING_INPUTS else source["layers"]
    names = [sae["name"] for sae in source["saes"]] if of_sae else []
    flags = {
        "--config": weights.config or find_configuration(metadata),
        "--model": weights.model,
        "--sae-root": weights.sae_root,
        "--device": weights.device,
        "--dtype": metadata["model_details"]["dtype"],
        "--sae-dtype": extraction["sae_dtype"],
        "--layers": ",".join(map(str, layers)) or "none",
        "--saes": ",".join(names) or "none",
        "--hidden-states": "none" if of_sae else extraction["hidden_states"],
        "--tokens": extraction["tokens"],
        "--sinks-like": sinks if extraction.get("sinks") else None,
    }
    given = [[flag, str(value)] for flag, value in flags.items() if value is not None]
    switches = ["--unlabelled", *([] if extraction.get("sinks") else ["--keep-sinks"])]
    return [*switches, *(part for pair in given for part in pair)]


def answer(csv: Path, folder: Path, model: Any, results: dict[str, Any], weights: Weights) -> Answered:
    """Extract what the model reads, and let it predict.

    Args:
        csv: the new sentences.
        folder: where the feature store may stand while it is needed.
        model: the fitted pipeline, normalisation included.
        results: content of the checkpoint's ``results.json``.
        weights: where model and SAEs are.

    Raises:
        UserError: the extraction failed, or ran another model or SAE than the checkpoint was trained on.
    """
    metadata = results["dataset"]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".predict.", suffix=".tmp", dir=folder) as temporary:
        path, sinks = Path(temporary) / "features", Path(temporary) / "sinks.json"
        arguments = extraction_arguments(metadata, weights, sinks)
        write_json(sinks, metadata["extraction"].get("sinks"))
        code = run_extraction(["--input", str(csv), "--output", str(path), *arguments])
        if code:
            raise UserError(
                f"{csv}: extract_sae_features.py ended with exit code {code}; its message stands above"
            )
        store = FeatureStore(path)
        refuse_other_weights(store, metadata, chosen_by_hand=weights.model is not None)
        inputs = inputs_of(store, metadata)
        by_token = metadata["unit"] == "token"
        tokens = store.tokens if by_token else None
        rows = token_rows(store, metadata) if by_token else None
        n_sentences = len(store.sentences)
    if inputs.shape[1] != results["n_inputs"]:
        raise UserError(
            f"the model gives {inputs.shape[1]} inputs, the checkpoint was trained on {results['n_inputs']}; "
            "give the model of the checkpoint's feature store"
        )
    labels = None if results["labels"] is None else np.array(results["labels"])
    return Answered(
        predictions=predict(model, inputs, labels),
        sentence_index=np.arange(n_sentences)
        if tokens is None
        else tokens.sentence_index[rows].astype(np.int64),
        position=None if tokens is None else tokens.position[rows],
        token=None if tokens is None else token_labels(tokens.text)[rows],
    )


def run_extraction(arguments: list[str]) -> int:
    """Run extract_sae_features.py in a process of its own, its progress on stderr; returns its exit code."""
    command = [sys.executable, str(EXTRACTION / "extract_sae_features.py"), *arguments]
    return subprocess.run(command, stdout=subprocess.DEVNULL).returncode


def refuse_other_weights(store: FeatureStore, metadata: dict[str, Any], chosen_by_hand: bool) -> None:
    """Stop where a store was made by another model or SAE than a dataset's.

    Args:
        store: the store.
        metadata: of the dataset.
        chosen_by_hand: the user named the model: the same weights from a folder have another revision than
            from the hub, so that this alone is a warning.

    Raises:
        UserError: naming the first difference.
    """
    for key, expected in metadata["model_details"].items():
        found = store.manifest["model"].get(key)
        if key in _NOT_OF_THE_WEIGHTS or found == expected:
            continue
        difference = f"the model's {key} is {found}, the checkpoint was trained on {expected}"
        if key != "revision" or not chosen_by_hand:
            raise UserError(f"{difference}; give the model of its feature store by --config or --model")
        log.warning(f"warning: {difference}; make sure that the weights are the same")
    fingerprints = {sae.name: sae.fingerprint for sae in store.saes}
    for sae in metadata["input"].get("saes", []):
        if fingerprints[sae["name"]] != sae["fingerprint"]:
            raise UserError(
                f"SAE {sae['name']}: the weights are {fingerprints[sae['name']]}, the checkpoint was trained "
                f"on {sae['fingerprint']}; give those by --config or --sae-root"
            )


def prediction_table(new: NewSentences, answered: Answered) -> tuple[list[str], Iterator[list[Any]]]:
    """Columns and rows of the output: one line per sentence, or per token where the model reads tokens."""
    predictions = answered.predictions
    of_token = (
        []
        if answered.position is None or answered.token is None
        else list(zip(answered.position, answered.token, strict=True))
    )
    columns = [
        "sentence_index",
        *(("position", "token") if of_token else ()),
        SENTENCE,
        *((LABEL,) if new.labels is not None else ()),
        "predicted",
        *([] if predictions.labels is None else [f"probability_{label}" for label in predictions.labels]),
    ]

    def rows() -> Iterator[list[Any]]:
        for row, index in enumerate(answered.sentence_index):
            probabilities = [] if predictions.probabilities is None else predictions.probabilities[row]
            yield [
                index,
                *(of_token[row] if of_token else ()),
                new.sentences[index],
                *((new.labels[index],) if new.labels is not None else ()),
                *(f"{value:.6g}" for value in (predictions.predicted[row], *probabilities)),
            ]

    return columns, rows()


def scores_of(new: NewSentences, answered: Answered, seed: int) -> dict[str, dict[str, float | None]] | None:
    """Every score on the sentences that have a label; None where there is no such sentence.

    A label that the model does not know has probability 0. The intervals take every sentence for
    independent of the others.
    """
    if new.labels is None:
        return None
    of_row = [new.labels[index] for index in answered.sentence_index]
    rows = np.array([row for row, label in enumerate(of_row) if label is not None], dtype=np.int64)
    if not len(rows):
        return None
    target = np.array([of_row[row] for row in rows], dtype=np.int64)
    known = answered.predictions.take(rows)
    if known.labels is not None and known.probabilities is not None:
        labels = np.union1d(known.labels, target)
        probabilities = np.zeros((len(rows), len(labels)))
        probabilities[:, np.searchsorted(labels, known.labels)] = known.probabilities
        known = Predictions(known.predicted, probabilities, labels)
    return scores_with_intervals(target, known, answered.sentence_index[rows], seed)


def n_trained_on(new: NewSentences, folder: Path) -> int:
    """How many of the new sentences are among those that a version was trained on.

    Args:
        new: the new sentences.
        folder: the version's, whose predictions list the sentences.
    """
    header, rows = read_csv(folder / PREDICTIONS, "predictions of train.py")
    split, sentence = header.index("split"), header.index(SENTENCE)
    trained = {cells[sentence] for _, cells in rows if cells[split] == "train"}
    return sum(text in trained for text in new.sentences)
