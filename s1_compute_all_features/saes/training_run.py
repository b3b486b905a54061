"""A whole training: read the text, train, measure, write."""

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from shutil import rmtree
from typing import Any

from pipeline_common.claims import claim_output
from pipeline_common.command_line import Stopwatch, settings_line
from pipeline_common.errors import UserError
from pipeline_common.files import resumable_folder, sha256_of_file, sha256_of_json
from pipeline_common.provenance import library_versions
from s1_compute_all_features.hub import resolve_folder
from s1_compute_all_features.language_model import LanguageModel, load_language_model, resolve_device
from s1_compute_all_features.sae_configurations import ModelEntry, read_sae_configurations
from s1_compute_all_features.saes.fidelity import Fidelity, measure
from s1_compute_all_features.saes.trained_saes import (
    CARD,
    CONFIGURATIONS,
    Provenance,
    configuration_of,
    sae_folder_name,
    save_sae,
    write_records,
)
from s1_compute_all_features.saes.training import PROGRESS, Recipe, read_progress, train_saes
from s1_compute_all_features.saes.training_text import (
    Pieces,
    TrainingText,
    documents_as_ids,
    read_training_text,
)

logger = logging.getLogger(__name__)

HELD_OUT = "held-out documents of the training text"
LIBRARIES = ("torch", "transformers", "sae-lens", "tokenizers", "numpy")


def run(arguments: argparse.Namespace, command: str) -> None:
    """Train, measure and write what the command line asks for.

    Args:
        arguments: of train_saes.py.
        command: the command line, for the model card.

    Raises:
        UserError: bad input, something at the output that may not be replaced, or a failed training.
    """
    import torch

    watch = Stopwatch()
    output: Path = arguments.output
    claim_output(output, marker=CONFIGURATIONS)
    logger.info(settings_line(arguments))
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    texts = [_described(path) for path in arguments.texts]
    for path in arguments.measure:
        _described(path)
    entry, relative_to = _model_entry(arguments)
    logger.info("loading %s", entry.id)
    kind, device = resolve_device(arguments.device)
    model = load_language_model(entry, relative_to, device, arguments.dtype, with_head=True)
    if arguments.layers[-1] >= model.n_layers:
        raise UserError(f"--layers: the model {entry.id} has the layers 0 to {model.n_layers - 1}")
    text = read_training_text(
        model,
        arguments.texts,
        entry.prepend_bos,
        arguments.context,
        arguments.tokens,
        arguments.held_out_tokens,
        arguments.seed,
    )
    further = _pieces(model, arguments.measure, entry.prepend_bos, arguments.context)
    _announce(arguments, text)
    if getattr(model.model.config.get_text_config(), "attn_logit_softcapping", None) is None:
        # Three times as fast on a CPU; only a model that caps its attention scores needs the slow way.
        model.model.set_attn_implementation("sdpa")
    recipe = Recipe(
        layers=tuple(arguments.layers),
        width=arguments.width,
        l0=arguments.l0,
        context=arguments.context,
        step_tokens=arguments.step_tokens,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        autocast=arguments.autocast,
    )
    libraries = library_versions(LIBRARIES)
    decisive = {
        "recipe": asdict(recipe),
        "texts": texts,
        "tokens": [arguments.tokens, arguments.held_out_tokens, arguments.batch_tokens],
        "model": {key: model.description[key] for key in ("id", "revision", "dtype", "prepend_bos")},
        "device": kind,
        "threads": torch.get_num_threads(),
        "libraries": libraries,
    }
    fingerprint = sha256_of_json(decisive)
    with resumable_folder(output, fingerprint, arguments.overwrite, "trained SAEs", CONFIGURATIONS) as work:
        saes = _train(model, text, recipe, arguments.batch_tokens, device, work)
        progress = read_progress(work)
        medians = {int(layer): value for layer, value in progress["median_norms"].items()}
        for layer, sae in saes.items():
            save_sae(sae, work / sae_folder_name(layer), arguments.weights_dtype)
        measured_on = [(HELD_OUT, text.held_out)]
        if further.total:
            measured_on.append((", ".join(path.name for path in arguments.measure), further))
        figures = _measure(model, work, measured_on, medians, arguments.batch_tokens, device)
        held_out = figures[HELD_OUT]
        configurations = configuration_of(
            _entry_seen_from(entry, relative_to, output), ".", {layer: f.l0 for layer, f in held_out.items()}
        )
        how = Provenance(
            command=command,
            model=model.description,
            texts=texts,
            recipe=asdict(recipe),
            n_tokens=progress["tokens"],
            n_documents=text.n_documents,
            seconds=watch.seconds,
            libraries=libraries,
            note=arguments.note,
        )
        write_records(work, configurations, figures, how)
        rmtree(work / "checkpoints")
        (work / PROGRESS).unlink()
    for name, by_layer in figures.items():
        for layer, figure in by_layer.items():
            print(
                f"layer {layer} on {name}: l0 {figure.l0:.1f}, variance explained "
                f"{figure.variance_explained:.3f}, dead {figure.dead:.1%}, loss recovered "
                f"{figure.loss_recovered:.3f}"
            )
    print(f"{output / CARD}: {len(saes)} SAEs in {watch.seconds / 60:.0f} minutes")


def _described(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; expected text to train or measure on")
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": sha256_of_file(path)}


def _model_entry(arguments: argparse.Namespace) -> tuple[ModelEntry, Path]:
    """The model, and the folder that a relative model folder is seen from."""
    if arguments.config is not None:
        return read_sae_configurations(arguments.config).model, arguments.config.resolve().parent
    return ModelEntry(id=arguments.model, prepend_bos=not arguments.no_bos), Path.cwd()


def _entry_seen_from(entry: ModelEntry, relative_to: Path, output: Path) -> ModelEntry:
    """The model, a local folder of it being named relative to the output."""
    folder = resolve_folder(entry.id, relative_to)
    if folder is None:
        return entry
    return entry.model_copy(update={"id": os.path.relpath(folder, output.resolve())})


def _pieces(model: LanguageModel, paths: Sequence[Path], prepend_bos: bool, context: int) -> Pieces:
    """All documents of some files, as the SAEs are measured on them."""
    pieces = Pieces(model.tokenizer.bos_token_id if prepend_bos else None)
    for path in paths:
        for ids in documents_as_ids(model, path):
            for start in range(0, len(ids), context - prepend_bos):
                pieces.add(ids[start : start + context - prepend_bos])
    return pieces


def _announce(arguments: argparse.Namespace, text: TrainingText) -> None:
    if text.train.total < arguments.tokens:
        logger.warning(
            "warning: the texts have %d tokens to train on, not the %d asked for; all of them are taken",
            text.train.total,
            arguments.tokens,
        )
    logger.info(
        "%d documents (%d repeated ones left out): %d tokens to train on, %d to measure on; "
        "%d SAEs of %d features",
        text.n_documents,
        text.n_repeated,
        text.train.total,
        text.held_out.total,
        len(arguments.layers),
        arguments.width,
    )


def _train(
    model: LanguageModel, text: TrainingText, recipe: Recipe, batch_tokens: int, device: str, work: Path
) -> dict[int, Any]:
    from tqdm import tqdm

    with tqdm(total=text.train.total, unit="token", unit_scale=True, desc="training") as bar:

        def on_progress(n_tokens: int, state: str) -> None:
            bar.update(n_tokens)
            bar.set_postfix_str(state, refresh=False)

        return train_saes(model, text.train, recipe, batch_tokens, device, work, on_progress)


def _measure(
    model: LanguageModel,
    work: Path,
    texts: Sequence[tuple[str, Pieces]],
    medians: Mapping[int, float],
    batch_tokens: int,
    device: str,
) -> dict[str, dict[int, Fidelity]]:
    """Figures of the SAEs as they were written, read back by sae-lens."""
    from sae_lens import SAE

    saes = {
        layer: SAE.load_from_disk(work / sae_folder_name(layer), device=device) for layer in sorted(medians)
    }
    figures = {}
    for name, pieces in texts:
        logger.info("measuring on %s: %d tokens", name, pieces.total)
        sentences = [pieces[index] for index in range(len(pieces))]
        figures[name] = measure(model, saes, sentences, dict(medians), batch_tokens)
    return figures
