"""The text that a model writes itself, as one of the training texts."""

import logging
from dataclasses import asdict
from pathlib import Path

from tqdm import tqdm

from s1_compute_all_features.models.text_writing import Sampling
from s1_compute_all_features.models.written_batches import written_batches
from s1_compute_all_features.saes.prose import clean_paragraphs
from s1_compute_all_features.saes.text_collection import TextCollection

logger = logging.getLogger(__name__)

NAME = "written_by_model"


def write_text_of_model(
    collection: TextCollection, model_folder: Path, sampling: Sampling, n_tokens: int, n_processes: int
) -> None:
    """Have the model write, and keep its text in the collection up to date after every batch.

    Args:
        collection: the training texts.
        model_folder: a causal language model as transformers saves it.
        sampling: how it writes.
        n_tokens: how much, openings included.
        n_processes: that write side by side.

    Raises:
        UserError: there is no such model, or the collection holds text of another model or other settings.
    """
    kept: dict[str, None] = {}
    n_seen = n_left_out = 0
    batches = written_batches(collection.folder / f".{NAME}", model_folder, sampling, n_tokens, n_processes)
    with tqdm(total=n_tokens, desc="written text", unit="token") as bar:
        for batch in batches:
            if batch.was_there:
                bar.initial += batch.n_tokens  # so that the estimate counts what this run writes
            bar.update(batch.n_tokens)
            n_seen += batch.n_tokens
            paragraphs = clean_paragraphs(
                (line for text in batch.texts for line in text.splitlines()), whole_sentences=False
            )
            without = collection.without_repeats(paragraphs)
            n_left_out += len(paragraphs) - len(without)
            kept.update(dict.fromkeys(without))
            if batch.was_there and n_seen < n_tokens:
                continue
            record = {
                "title": f"Text written by {model_folder.resolve().name}",
                "packages": {},
                "licence": "the model's own; the text was written by it from this project's openings",
                "attribution": f"the makers of {model_folder.resolve().name}",
                "n_paragraphs_left_out": n_left_out,
                "n_tokens_written": n_seen,
                "model_sha256": batch.model_sha256,
                "sampling": asdict(sampling),
            }
            collection.write(NAME, kept, record)
    logger.info(
        "  %d tokens written; %d paragraphs left out that repeat a labelled sentence", n_seen, n_left_out
    )
