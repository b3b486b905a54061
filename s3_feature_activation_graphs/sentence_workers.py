"""The pictures of many sentences, by worker processes; those that are there already are left alone."""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from pipeline_common.errors import UserError
from s3_feature_activation_graphs.feature_traces import DrawnFeature
from s3_feature_activation_graphs.picture_style import PictureStyle, SentenceToDraw
from s3_feature_activation_graphs.sentence_plot import SentencePlotter

CHUNK_SIZE = 8
LEAST_PER_WORKER = 40
"""A process takes about as long to start as it takes to draw so many pictures."""


def draw_sentences(
    folder: Path,
    sentences: Sequence[SentenceToDraw],
    features: Sequence[DrawnFeature],
    style: PictureStyle,
    n_workers: int,
) -> None:
    """Draw the sentences whose pictures the folder lacks, with a progress bar.

    Args:
        folder: for ``label_N/sentence_000000.png``; every file in it is whole.
        sentences: all sentences of the run.
        features: the lines, in legend order.
        style: of `fitted_style` for the same sentences.
        n_workers: processes at most; one draws in this process.

    Raises:
        UserError: a worker was killed.
    """
    missing = [one for one in sentences if not (folder / one.file).is_file()]
    # Sentences of one length have figures of one size, so that more of the last picture can stay.
    missing.sort(key=lambda one: len(one.tokens), reverse=True)
    chunks = [missing[first : first + CHUNK_SIZE] for first in range(0, len(missing), CHUNK_SIZE)]
    draw_chunk = functools.partial(_draw_chunk, folder, tuple(features), style)
    n_workers = min(n_workers, -(-len(missing) // LEAST_PER_WORKER))
    with tqdm(
        total=len(sentences), initial=len(sentences) - len(missing), desc="plots", unit="plot"
    ) as progress:
        for n_drawn in (
            map(draw_chunk, chunks) if n_workers <= 1 else _by_workers(draw_chunk, chunks, n_workers)
        ):
            progress.update(n_drawn)


def _by_workers(
    draw_chunk: functools.partial[int], chunks: Sequence[Sequence[SentenceToDraw]], n_workers: int
) -> Iterator[int]:
    # Spawned on every system: a fork would copy locks that another thread holds.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_workers, context, _start_worker) as executor:
        futures = [executor.submit(draw_chunk, chunk) for chunk in chunks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool:
            raise UserError(
                "a worker process was killed, perhaps for want of memory; run the same command again with "
                "fewer --workers: the pictures that are there are kept"
            ) from None
        finally:
            executor.shutdown(wait=False, cancel_futures=True)


def _start_worker() -> None:
    # Ctrl-C reaches every process of the terminal; the parent ends the workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A killed parent would leave its workers waiting for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _draw_chunk(
    folder: Path,
    features: tuple[DrawnFeature, ...],
    style: PictureStyle,
    sentences: Sequence[SentenceToDraw],
) -> int:
    plotter = _plotter(features, style)
    for sentence in sentences:
        plotter.save(sentence, folder)
    return len(sentences)


@functools.lru_cache(maxsize=1)
def _plotter(features: tuple[DrawnFeature, ...], style: PictureStyle) -> SentencePlotter:
    return SentencePlotter(features, style)
