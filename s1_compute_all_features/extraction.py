"""The extraction itself: blocks of sentences, one forward pass each, then every SAE over its states."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_common.command_line import Stopwatch
from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import (
    EMBEDDINGS,
    BlockWriter,
    TokenTable,
    block_file_names,
    sae_file_name,
)
from s1_compute_all_features.language_model import (
    LanguageModel,
    TokenisedSentence,
    forward_states,
    length_sorted_batches,
)
from s1_compute_all_features.sae_configurations import SaeConfigurations
from s1_compute_all_features.sae_encoder import load_encoder
from s1_compute_all_features.sae_weights import LocatedSae

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)


@dataclass
class Timings:
    """Seconds spent per phase, for run_log.json and the closing table."""

    seconds: dict[str, float] = field(
        default_factory=lambda: {"forward": 0.0, "load_sae": 0.0, "encode": 0.0, "write": 0.0}
    )

    def add(self, phase: str, watch: Stopwatch) -> None:
        """Add what a stopwatch shows to a phase."""
        self.seconds[phase] += watch.seconds


@dataclass(frozen=True)
class Extraction:
    """Everything that a run needs.

    Attributes:
        store: the folder of the feature store.
        model: the language model.
        configurations: model and SAEs as configured.
        saes: the SAEs with their weights.
        sentences: the tokenised sentences, in file order.
        blocks: sentence index ranges, in order.
        batch_tokens: positions per forward pass, padding included.
        device: torch device of model and encoders.
    """

    store: Path
    model: LanguageModel
    configurations: SaeConfigurations
    saes: Sequence[LocatedSae]
    sentences: Sequence[TokenisedSentence]
    blocks: Sequence[range]
    batch_tokens: int
    device: str

    @property
    def layers(self) -> list[int]:
        """The layers whose hidden states are stored: all of them."""
        return list(range(self.model.n_layers))

    @property
    def file_names(self) -> list[str]:
        """Every data file of a block."""
        return block_file_names(self.layers, [located.entry.name for located in self.saes])

    def n_tokens(self, block: range) -> int:
        """Stored tokens of a block."""
        return sum(len(self.sentences[index].texts) for index in block)


def plan_blocks(n_tokens: Sequence[int], block_tokens: int) -> list[range]:
    """Runs of whole sentences with at most ``block_tokens`` stored tokens each.

    A sentence longer than that makes a block of its own.
    """
    blocks, first, total = [], 0, 0
    for index, tokens in enumerate(n_tokens):
        if total and total + tokens > block_tokens:
            blocks.append(range(first, index))
            first, total = index, 0
        total += tokens
    return [*blocks, range(first, len(n_tokens))]


def run_blocks(
    run: Extraction, on_progress: Callable[[int], object]
) -> tuple[list[str], Timings, dict[str, float]]:
    """Compute and write every file that the store does not have yet.

    Args:
        run: what to do.
        on_progress: called with the number of tokens that passed the model or an SAE.

    Returns:
        The digest of each block's checksums, the timings, and per SAE the measured mean l0 over the
        tokens that were encoded in this run.

    Raises:
        UserError: a hidden state is not finite.
    """
    timings = Timings()
    digests = []
    active: dict[str, list[int]] = {located.entry.name: [0, 0] for located in run.saes}
    for number, block in enumerate(run.blocks):
        writer = BlockWriter(run.store, number)
        missing = set(writer.missing(run.file_names))
        n_tokens = run.n_tokens(block)
        if missing:
            states = _forward_block(run, block, timings, on_progress)
            _write_states(run, writer, block, states, missing, timings)
            for located in run.saes:
                if sae_file_name(located.entry.name) in missing:
                    n_active = _encode_sae(run, writer, located, states, timings)
                    active[located.entry.name][0] += n_active
                    active[located.entry.name][1] += n_tokens
                on_progress(n_tokens)
        else:
            on_progress(n_tokens * (1 + len(run.saes)))
        digests.append(writer.close(run.file_names))
    mean_l0 = {name: n_active / n_tokens for name, (n_active, n_tokens) in active.items() if n_tokens}
    return digests, timings, mean_l0


def _forward_block(
    run: Extraction, block: range, timings: Timings, on_progress: Callable[[int], object]
) -> Mapping[int | str, "torch.Tensor"]:
    """Hidden states of a block in full precision, in sentence order: per layer [n_tokens, d_model]."""
    import torch

    watch = Stopwatch()
    sentences = [run.sentences[index] for index in block]
    lengths = [len(sentence.texts) for sentence in sentences]
    starts = np.concatenate([[0], np.cumsum(lengths)])
    wanted = sorted({*run.layers, *(located.entry.input_layer for located in run.saes)})
    states: dict[int | str, torch.Tensor] = {}
    for batch in length_sorted_batches([len(sentence.ids) for sentence in sentences], run.batch_tokens):
        captured = forward_states(run.model, [sentences[index] for index in batch], wanted)
        rows = torch.from_numpy(
            np.concatenate([np.arange(starts[index], starts[index + 1]) for index in batch])
        )
        for layer, values in captured.items():
            if not torch.isfinite(values).all():
                raise _not_finite(
                    layer, values, [lengths[index] for index in batch], [block[i] for i in batch]
                )
            if layer not in states:
                states[layer] = torch.empty((int(starts[-1]), values.shape[1]), dtype=values.dtype)
            states[layer][rows] = values.cpu()
        on_progress(len(rows))
    timings.add("forward", watch)
    return states


def _not_finite(
    layer: int | str, values: "torch.Tensor", lengths: Sequence[int], sentence_indices: Sequence[int]
) -> UserError:
    import torch

    row = int((~torch.isfinite(values).all(dim=1)).nonzero()[0, 0])
    sentence = sentence_indices[int(np.searchsorted(np.cumsum(lengths), row, side="right"))]
    where = "the embeddings" if layer == EMBEDDINGS else f"the hidden states of layer {layer}"
    return UserError(
        f"{where} are not finite for sentence {sentence}: the model's weights are damaged or its dtype "
        "overflows; "
        "try --dtype float32"
    )


def _write_states(
    run: Extraction,
    writer: BlockWriter,
    block: range,
    states: Mapping[int | str, "torch.Tensor"],
    missing: set[str],
    timings: Timings,
) -> None:
    watch = Stopwatch()
    if "tokens.npz" in missing:
        writer.write_tokens(_token_table(run.sentences, block))
    stored: list[int | str] = [EMBEDDINGS, *run.layers]
    for layer in stored:
        writer.write_states(layer, states[layer].float().numpy())
    timings.add("write", watch)


def _token_table(sentences: Sequence[TokenisedSentence], block: range) -> TokenTable:
    lengths = np.array([len(sentences[index].texts) for index in block])
    starts = np.concatenate([[0], np.cumsum(lengths)])
    position = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    return TokenTable(
        token_id=np.concatenate([sentences[i].ids[sentences[i].stored] for i in block]).astype(np.int32),
        sentence_index=np.repeat(np.array(block), lengths).astype(np.int32),
        position=position.astype(np.int32),
        is_final=position == np.repeat(lengths - 1, lengths),
        text=np.array([text for index in block for text in sentences[index].texts]),
    )


def _encode_sae(
    run: Extraction,
    writer: BlockWriter,
    located: LocatedSae,
    states: Mapping[int | str, "torch.Tensor"],
    timings: Timings,
) -> int:
    """Encode one SAE over a block, write it, and return the number of active latents."""
    watch = Stopwatch()
    encoder = load_encoder(located, run.configurations, run.device)
    inputs = states[located.entry.input_layer]
    if encoder.d_model != inputs.shape[1]:
        raise UserError(
            f"SAE {located.entry.name} reads vectors of {encoder.d_model}, the model's hidden states have "
            f"{inputs.shape[1]}: it belongs to another model"
        )
    timings.add("load_sae", watch)
    watch = Stopwatch()
    activations = encoder.encode(inputs.to(run.device), center=run.configurations.model.center_residual)
    timings.add("encode", watch)
    watch = Stopwatch()
    writer.write_activations(located.entry.name, activations)
    timings.add("write", watch)
    return len(activations.data)


def differences(stored: Any, wanted: Any, at: str = "") -> Iterator[str]:
    """Where two manifests differ, e.g. ``settings.block_tokens: the store has 4096, this run 8192``."""
    if isinstance(stored, dict) and isinstance(wanted, dict):
        for key in {**stored, **wanted}:
            yield from differences(stored.get(key), wanted.get(key), f"{at}.{key}" if at else key)
    elif isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        for index, (one, other) in enumerate(zip(stored, wanted, strict=True)):
            yield from differences(one, other, f"{at}[{index}]")
    elif stored != wanted:
        lists = isinstance(stored, list) and isinstance(wanted, list)
        have, want = (len(stored), len(wanted)) if lists else (stored, wanted)
        yield f"{at}: the store has {have}{' entries' if lists else ''}, this run {want}"
