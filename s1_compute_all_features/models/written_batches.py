"""Batches of text that a model writes: kept when they are finished, so that a stopped run goes on."""

from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError
from pipeline_common.files import read_json, write_json
from s1_compute_all_features.fingerprints import fingerprint_of_folder
from s1_compute_all_features.models.openings import sha256_of_openings
from s1_compute_all_features.models.text_writing import Sampling, Writer, load_writer, write_batch

SETTINGS = "settings.json"


@dataclass(frozen=True)
class WrittenBatch:
    """One batch of written texts.

    Attributes:
        texts: without special tokens.
        n_tokens: of all its texts, openings included.
        was_there: it was read, not written by this run.
        model_sha256: fingerprint of the model's files.
    """

    texts: list[str]
    n_tokens: int
    was_there: bool
    model_sha256: str


def written_batches(
    folder: Path, model_folder: Path, sampling: Sampling, n_tokens: int, n_processes: int = 1
) -> Iterator[WrittenBatch]:
    """Batches of written texts until they have ``n_tokens``, each read where it is finished, else written.

    A finished batch is one JSON file, written whole or not at all, so a run that was stopped goes on where
    it was and gives the texts of one that was not. Their number and content do not depend on the processes.

    Args:
        folder: of the finished batches.
        model_folder: the language model that writes.
        sampling: its settings.
        n_tokens: tokens to write, openings included; the last batch goes over it.
        n_processes: that write side by side; with one, this process writes.

    Yields:
        The batches in their order.

    Raises:
        UserError: there is no such model, or the folder holds batches of another model or other settings.
    """
    if not model_folder.is_dir():
        raise UserError(f"{model_folder}: no such folder; expected a model as transformers saves it")
    model_sha256 = fingerprint_of_folder(model_folder)
    _check_settings(folder, {"model": model_sha256, "openings": sha256_of_openings(), **asdict(sampling)})
    most_tokens = sampling.texts_per_batch * sampling.n_tokens
    n_written = number = 0
    with _workers(n_processes) as pool:
        under_way: dict[int, Future[None]] = {}
        try:
            while n_written < n_tokens:
                # A batch is begun only where those under way cannot be enough, so none is written in vain.
                n_needed = -(-(n_tokens - n_written) // most_tokens)
                for ahead in range(number, number + min(n_needed, n_processes)):
                    if ahead not in under_way and not _path_of(folder, ahead).exists():
                        under_way[ahead] = pool.submit(_write_to, folder, model_folder, sampling, ahead)
                is_new = number in under_way
                if is_new:
                    under_way.pop(number).result()
                batch = read_json(_path_of(folder, number), "batch of written texts")
                n_written += batch["n_tokens"]
                number += 1
                yield WrittenBatch(batch["texts"], batch["n_tokens"], not is_new, model_sha256)
        finally:
            for future in under_way.values():
                future.cancel()


def _path_of(folder: Path, number: int) -> Path:
    return folder / f"batch_{number:05}.json"


@contextmanager
def _workers(n_processes: int) -> Iterator[Executor]:
    """Processes to write in; with one, a thread of this process, which tests can see into."""
    if n_processes == 1:
        with ThreadPoolExecutor(1) as pool:
            yield pool
    else:
        # A fresh interpreter: what torch's threads hold does not survive a fork.
        with ProcessPoolExecutor(n_processes, mp_context=get_context("spawn")) as processes:
            yield processes


@lru_cache(1)
def _writer_of_this_process(folder: Path, dtype: str) -> Writer:
    return load_writer(folder, dtype)


def _write_to(folder: Path, model_folder: Path, sampling: Sampling, number: int) -> None:
    texts, n_tokens = write_batch(_writer_of_this_process(model_folder, sampling.dtype), sampling, number)
    write_json(_path_of(folder, number), {"n_tokens": n_tokens, "texts": texts})


def _check_settings(folder: Path, settings: dict[str, Any]) -> None:
    path = folder / SETTINGS
    if not path.exists():
        write_json(path, settings)
        return
    before = read_json(path, "record of a run that wrote text")
    for name, value in settings.items():
        if before.get(name) != value:
            raise UserError(
                f"{folder}: holds text written with {name} {before.get(name)}, not {value}; delete the "
                "folder or choose another --output"
            )
