"""The forward pass of one block of sentences: its hidden states, and which of its tokens are sinks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline_common.command_line import Stopwatch
from pipeline_common.errors import UserError
from s1_compute_all_features.attention_sinks import first_lost_sentence, median_norms, sink_mask
from s1_compute_all_features.batch_halving import in_parts
from s1_compute_all_features.block_writer import BlockWriter
from s1_compute_all_features.feature_store import EMBEDDINGS
from s1_compute_all_features.language_model import forward_states, length_sorted_batches
from s1_compute_all_features.saes.sites import Place, Site
from s1_compute_all_features.store_layout import record_medians, sink_files
from s1_compute_all_features.work_plan import BlockKey, Extraction, Measurements, StoreTask

if TYPE_CHECKING:
    import torch


MOST_SHOWN = 60
"""Characters of a sentence in a message."""


@dataclass(frozen=True)
class BlockStates:
    """What a forward pass leaves of a block, in sentence order.

    Attributes:
        states: layer, `EMBEDDINGS`, or a site that is no hidden layer, to [n_tokens, d_model of that place]
            in full precision.
        sinks: layer to bool [n_tokens]; nothing where sinks are kept.
    """

    states: Mapping[Place, "torch.Tensor"]
    sinks: Mapping[Place, np.ndarray]

    def read_at(self, site: Site) -> "tuple[torch.Tensor, np.ndarray | None]":
        """What an SAE reads there, [n_tokens, d_in], and which of the tokens are sinks."""
        return self.states[site.place], self.sinks.get(site.sink_layer)


def writer_of(run: Extraction, key: BlockKey) -> BlockWriter:
    """What writes a block's files."""
    return BlockWriter(run.tasks[key[0]].folder, key[1])


def lacks_medians(run: Extraction, task: StoreTask) -> bool:
    """Whether a store's first block has to be computed before it is known which tokens are sinks."""
    return task.sinks is not None and bool(task.sinks.lacking(_measured_layers(run, task)))


def _measured_layers(run: Extraction, task: StoreTask) -> list[int]:
    saes = [(located.entry.name, located.entry.site.sink_layer) for located in run.saes]
    return [] if task.sinks is None else [*sink_files(task.layers, saes, task.hidden_states)]


def forward_block(
    run: Extraction, key: BlockKey, measured: Measurements, on_progress: Callable[[int], object]
) -> BlockStates:
    """Hidden states of a block, and its sinks; a store's first block fixes the medians that decide on them.

    Args:
        run: the run.
        key: of the block.
        measured: takes the time, and what memory allows.
        on_progress: called with the number of tokens that passed the model.

    Raises:
        UserError: a hidden state is not finite, or every token of a sentence is a sink.
    """
    import torch

    watch = Stopwatch()
    task = run.tasks[key[0]]
    block = task.blocks[key[1]]
    sentences = [task.sentences[index] for index in block]
    lengths = [len(sentence.texts) for sentence in sentences]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    measured_layers = _measured_layers(run, task)
    read = {located.entry.site.place for located in run.saes}
    layers = sorted({*task.layers, *measured_layers, *(place for place in read if isinstance(place, int))})
    sites = [place for place in read if isinstance(place, Site)]
    states: dict[Place, torch.Tensor] = {}
    norms = {layer: np.empty(int(starts[-1]), dtype=np.float32) for layer in measured_layers}

    def compute(part: Sequence[int]) -> tuple[dict[Place, torch.Tensor], dict[int, np.ndarray]]:
        captured = forward_states(run.model, [sentences[index] for index in part], layers, sites)
        for layer, values in captured.items():
            if not torch.isfinite(values).all():
                raise _not_finite(layer, values, [lengths[index] for index in part], [block[i] for i in part])
        # On the model's own device, where they cost next to nothing.
        norms_of_part = {layer: _norms(captured[layer]) for layer in measured_layers}
        return {layer: values.cpu() for layer, values in captured.items()}, norms_of_part

    def positions(part: Sequence[int]) -> int:
        return len(part) * max(len(sentences[index].ids) for index in part)

    for batch in length_sorted_batches([len(sentence.ids) for sentence in sentences], run.batch_tokens):
        parts = in_parts(batch, compute, positions, measured.limits["forward"], "sentence")
        for part, (captured, norms_of_part) in parts:
            if len(part) < len(batch):
                writer_of(run, key).note_halving()
            rows = np.concatenate([np.arange(starts[index], starts[index + 1]) for index in part])
            for layer, values in captured.items():
                if layer not in states:
                    states[layer] = torch.empty((int(starts[-1]), values.shape[1]), dtype=values.dtype)
                states[layer][torch.from_numpy(rows)] = values
            for layer in measured_layers:
                norms[layer][rows] = norms_of_part[layer]
            on_progress(len(rows))
    measured.seconds["forward"] += watch.seconds
    return BlockStates(states, _sinks(task, key[1], norms, starts))


def _norms(values: "torch.Tensor") -> np.ndarray:
    import torch

    norms: np.ndarray = torch.linalg.vector_norm(values, dim=1, dtype=torch.float32).cpu().numpy()
    return norms


def _sinks(
    task: StoreTask, block: int, norms: Mapping[int, np.ndarray], starts: np.ndarray
) -> dict[Place, np.ndarray]:
    if task.sinks is None:
        return {}
    lacking = task.sinks.lacking(norms)
    if lacking and block == 0:
        task.sinks.median_norms.update(median_norms({layer: norms[layer] for layer in lacking}))
        record_medians(task.folder, task.sinks)
    sinks: dict[Place, np.ndarray] = {}
    for layer, of_layer in norms.items():
        median = task.sinks.median_norms[layer]
        sinks[layer] = sink_mask(of_layer, median, task.sinks.factor)
        lost = first_lost_sentence(starts, sinks[layer])
        if lost is not None:
            raise _nothing_left(task, task.blocks[block][lost], layer, median)
    return sinks


def _nothing_left(task: StoreTask, sentence: int, layer: int, median: float) -> UserError:
    assert task.sinks is not None
    text = "".join(task.sentences[sentence].texts).strip()
    shown = repr(text) if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]!r}..."
    return UserError(
        f"sentence {sentence} ({shown}): no token is left at layer {layer}, since every one is an attention "
        f"sink (its norm is above {task.sinks.factor:g} times the median of {median:.1f}); remove the "
        'sentence, set "prepend_bos": true in the configuration, or keep sinks by --keep-sinks'
    )


def _not_finite(
    place: Place, values: "torch.Tensor", lengths: Sequence[int], sentence_indices: Sequence[int]
) -> UserError:
    import torch

    row = int((~torch.isfinite(values).all(dim=1)).nonzero()[0, 0])
    sentence = sentence_indices[int(np.searchsorted(np.cumsum(lengths), row, side="right"))]
    where = "the embeddings" if place == EMBEDDINGS else f"the hidden states of layer {place}"
    if isinstance(place, Site):
        where = f"the values of {place.hook}"
    return UserError(
        f"{where} are not finite for sentence {sentence}: the model's weights are damaged or its dtype "
        "overflows; try --dtype float32"
    )
