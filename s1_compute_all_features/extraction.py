"""The extraction itself: per unit of work one forward pass, then every SAE over its states."""

import ctypes
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from pipeline_common.command_line import Stopwatch
from pipeline_common.errors import UserError
from s1_compute_all_features.batch_halving import in_parts, is_out_of_memory, out_of_memory
from s1_compute_all_features.block_states import BlockStates, forward_block, lacks_medians, writer_of
from s1_compute_all_features.feature_store import (
    EMBEDDINGS,
    BlockWriter,
    SparseActivations,
    TokenTable,
    hidden_file_name,
    is_content,
    sae_file_name,
)
from s1_compute_all_features.language_model import LanguageModel, TokenisedSentence
from s1_compute_all_features.models.block_sites import width_at
from s1_compute_all_features.pooling import concatenate_rows
from s1_compute_all_features.process_group import shared
from s1_compute_all_features.sae_encoder import SaeEncoder, SaeLensEncoder, ThresholdEncoder, load_encoder
from s1_compute_all_features.sae_weights import LocatedSae, load_with_sae_lens, read_decoder
from s1_compute_all_features.saes.decoder_norms import decoder_norms_of
from s1_compute_all_features.saes.sites import Site
from s1_compute_all_features.work_plan import BlockKey, Extraction, Measurements, plan_units, share_of

if TYPE_CHECKING:
    import torch

LoadedSae = tuple[SaeEncoder, np.ndarray | None]
"""An encoder, and the norms of its decoder where they are to be written."""

RECONSTRUCTION_TOKENS = 2048
_WRITES_IN_FLIGHT = 4


def run_units(run: Extraction, on_progress: Callable[[int], object]) -> Measurements:
    """Compute and write every file that the stores do not have yet and that is this process's share.

    Args:
        run: what to do.
        on_progress: called with the number of tokens that passed the model or an SAE.

    Raises:
        UserError: a hidden state is not finite, a sentence has no token but sinks, an SAE does not fit the
            model, or memory runs out where there is no batch to halve.
    """
    measured = Measurements()
    units = plan_units(run)
    try:
        if run.world > 1:
            _agree_on_medians(run, measured)
        with _Background(measured) as background:
            for number, unit in enumerate(units):
                share = share_of(run, number, len(units))
                if share is not None:
                    _run_unit(run, unit, share, measured, background, on_progress)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise out_of_memory("reading an SAE or keeping a block's hidden states") from error
    measured.n_halved = sum(limit.n_halved for limit in measured.limits.values())
    return measured


def _agree_on_medians(run: Extraction, measured: Measurements) -> None:
    """The medians of every store, before several processes go at its blocks.

    Each store's first block passes the model once more for it, in one of the processes. A single process
    needs no such pass: it comes to the first block before all others.
    """
    mine = {}
    for number, task in enumerate(run.tasks):
        if task.sinks is not None and number % run.world == run.rank and lacks_medians(run, task):
            forward_block(run, (number, 0), measured, lambda n_tokens: None)
            mine[number] = dict(task.sinks.median_norms)
    for theirs in shared(mine, run.world):
        for number, medians in theirs.items():
            sinks = run.tasks[number].sinks
            assert sinks is not None
            sinks.median_norms.update(medians)


def refuse_other_widths(model: LanguageModel, saes: Sequence[LocatedSae]) -> None:
    """Stop before the forward pass where an SAE reads vectors of another width than the model has there.

    Raises:
        UserError: naming the SAE and both widths.
    """
    for located in saes:
        site = located.entry.site
        width = width_at(model, site)
        if located.spec.d_in != width:
            raise UserError(
                f"SAE {located.entry.name} reads vectors of {located.spec.d_in}, those of the model at "
                f"{site.hook} have {width}: it belongs to another model"
            )


class _Background:
    """Two helpers beside the computing thread: one reads the next SAE, one writes what is done."""

    def __init__(self, measured: Measurements) -> None:
        self._measured = measured
        self._reader = ThreadPoolExecutor(1, "read")
        self._writer = ThreadPoolExecutor(1, "write")
        self._room = threading.Semaphore(_WRITES_IN_FLIGHT)
        self._writes: list[Future[None]] = []

    def __enter__(self) -> "_Background":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._reader.shutdown(cancel_futures=True)
        self._writer.shutdown(cancel_futures=kind is not None)
        if kind is None:
            self.finish_writes()

    def read(self, load: Callable[[], LoadedSae]) -> Future[LoadedSae]:
        """Start loading an SAE."""
        return self._reader.submit(load)

    def write(self, task: Callable[[], None]) -> None:
        """Queue a write; waits while several are in flight, so that memory stays bounded."""
        self._room.acquire()
        for write in self._writes:
            if write.done():
                write.result()  # raises what went wrong in it
        self._writes = [write for write in self._writes if not write.done()]
        self._writes.append(self._writer.submit(self._timed, task))

    def finish_writes(self) -> None:
        """Wait for every write, and raise what went wrong in one."""
        for write in self._writes:
            write.result()
        self._writes = []

    def _timed(self, task: Callable[[], None]) -> None:
        watch = Stopwatch()
        try:
            task()
        finally:
            self._room.release()
            self._measured.seconds["write"] += watch.seconds


def _run_unit(
    run: Extraction,
    unit: Sequence[BlockKey],
    share: tuple[int, int],
    measured: Measurements,
    background: _Background,
    on_progress: Callable[[int], object],
) -> None:
    place, n_places = share
    missing = {key: set(writer_of(run, key).missing(run.tasks[key[0]].file_names)) for key in unit}
    mine = [located for index, located in enumerate(run.saes) if index % n_places == place]
    todo = [
        (located, [key for key in unit if sae_file_name(located.entry.name) in missing[key]])
        for located in mine
    ]
    needed = {key for _, keys in todo for key in keys} | {
        key for key in unit if place == 0 and any(not name.startswith("sae_") for name in missing[key])
    }
    # Only where somebody has cut them out of the manifest does a complete first block lack its medians.
    needed |= {key for key in unit if key[1] == 0 and lacks_medians(run, run.tasks[key[0]])}
    total = sum(run.tasks[number].n_tokens(block) for number, block in unit)
    skipped = [located for located, keys in todo if not keys]
    states: dict[BlockKey, BlockStates] = {}
    for key in unit:
        if key in needed:
            states[key] = forward_block(run, key, measured, on_progress)
            if place == 0:
                _write_states(run, key, states[key], missing[key], background)
        else:
            on_progress(run.tasks[key[0]].n_tokens(key[1]))
    on_progress(total * len(skipped))
    _release_freed_memory()
    _encode_saes(
        run, [(located, keys) for located, keys in todo if keys], states, measured, background, on_progress
    )
    if n_places == 1:
        for key in unit:
            background.write(_closing(run, key))
    background.finish_writes()


def _release_freed_memory() -> None:
    """Hand what the forward pass freed back to the system before the encoders are loaded.

    glibc keeps it for itself otherwise, some hundred megabytes; other C libraries have no such call.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _closing(run: Extraction, key: BlockKey) -> Callable[[], None]:
    def close() -> None:
        writer_of(run, key).close(run.tasks[key[0]].file_names)

    return close


def _encode_saes(
    run: Extraction,
    todo: Sequence[tuple[LocatedSae, Sequence[BlockKey]]],
    states: Mapping[BlockKey, BlockStates],
    measured: Measurements,
    background: _Background,
    on_progress: Callable[[int], object],
) -> None:
    """Every SAE over the blocks that lack it, the next one being read meanwhile."""

    def load(located: LocatedSae, keys: Sequence[BlockKey]) -> Callable[[], LoadedSae]:
        def read() -> LoadedSae:
            encoder = load_encoder(located, run.configurations, run.device, run.screening, run.sae_dtype)
            is_first = any(block == 0 for _, block in keys)
            return encoder, _decoder_norms(located, encoder) if is_first else None

        return read

    coming = background.read(load(*todo[0])) if todo else None
    for index, (located, keys) in enumerate(todo):
        watch = Stopwatch()
        assert coming is not None
        encoder, norms = coming.result()
        measured.seconds["wait for SAE"] += watch.seconds
        coming = background.read(load(*todo[index + 1])) if index + 1 < len(todo) else None
        for key in keys:
            of_block = norms if key[1] == 0 else None
            _encode_block(run, key, located, encoder, of_block, states[key], measured, background)
            on_progress(run.tasks[key[0]].n_tokens(key[1]))
        wanted = run.check_reconstruction and not located.spec.is_transcoder
        if wanted and located.entry.name not in measured.explained:
            inputs = _judged_inputs(states[keys[0]], located.entry.site)
            measured.explained[located.entry.name] = _squares(run, located, encoder, inputs)


def _decoder_norms(located: LocatedSae, encoder: SaeEncoder) -> np.ndarray | None:
    """What takes the SAE's activations to Neuronpedia's scale, float32 [d_sae]; None where nothing does."""
    if isinstance(encoder, SaeLensEncoder):
        return encoder.decoder_norms
    return decoder_norms_of(located, encoder.d_sae) if isinstance(encoder, ThresholdEncoder) else None


def _judged_inputs(block: BlockStates, site: Site) -> "torch.Tensor":
    """The tokens on which a reconstruction is judged: a block's first ones that are no sinks."""
    inputs, sinks = block.read_at(site)
    if sinks is None or not sinks.any():
        return inputs[:RECONSTRUCTION_TOKENS]
    return inputs[np.flatnonzero(~sinks)[:RECONSTRUCTION_TOKENS]]


def _is_centred(run: Extraction, located: LocatedSae) -> bool:
    """Whether the SAE was trained on values without their mean over d_model."""
    return run.configurations.model.center_residual and located.entry.site.is_written


def _encode_block(
    run: Extraction,
    key: BlockKey,
    located: LocatedSae,
    encoder: SaeEncoder,
    decoder_norms: np.ndarray | None,
    block: BlockStates,
    measured: Measurements,
    background: _Background,
) -> None:
    inputs, sinks = block.read_at(located.entry.site)
    watch = Stopwatch()
    center = _is_centred(run, located)
    parts = [
        activations
        for _, activations in in_parts(
            range(len(inputs)),
            lambda part: encoder.encode(inputs[part[0] : part[-1] + 1].to(run.device), center),
            len,
            measured.limits["encode"],
            "token",
        )
    ]
    if len(parts) > 1:
        writer_of(run, key).note_halving()
    activations = concatenate_rows(parts)
    measured.seconds["encode"] += watch.seconds
    heard = activations if sinks is None else activations.silenced(sinks)
    counts = measured.active[located.entry.name]
    counts[0] += len(heard.data)
    counts[1] += len(inputs) - (0 if sinks is None else int(sinks.sum()))
    writer, name = writer_of(run, key), located.entry.name

    def write(activations: SparseActivations = activations) -> None:
        writer.write_activations(name, activations, sinks, decoder_norms)

    background.write(write)


def _squares(
    run: Extraction, located: LocatedSae, encoder: SaeEncoder, inputs: "torch.Tensor"
) -> tuple[float, float]:
    """Residual and total sum of squares of the SAE's reconstruction of some tokens."""
    import torch

    center = _is_centred(run, located)
    states = inputs.float()
    if center:
        states = states - states.mean(dim=-1, keepdim=True)
    decoder = read_decoder(located) if isinstance(encoder, ThresholdEncoder) else None
    if decoder is None:
        sae = load_with_sae_lens(located, run.configurations, "cpu")
        with torch.inference_mode():
            rebuilt = sae.decode(sae.encode(states.to(sae.dtype))).float()
    else:
        W_dec, b_dec = decoder
        dense = torch.from_numpy(encoder.encode(inputs.to(run.device), center).to_dense())
        rebuilt = dense @ W_dec + b_dec
    residual = (states - rebuilt).double().square().sum().item()
    total = (states - states.mean(dim=0)).double().square().sum().item()
    return residual, total


def _write_states(
    run: Extraction, key: BlockKey, block: BlockStates, missing: set[str], background: _Background
) -> None:
    task = run.tasks[key[0]]
    writer = writer_of(run, key)
    tokens = token_table(task.sentences, task.blocks[key[1]])
    if "tokens.npz" in missing:
        background.write(lambda: writer.write_tokens(tokens))
    if task.hidden_states == "none":
        return
    starts = np.flatnonzero(np.r_[True, np.diff(tokens.sentence_index) != 0, True])
    content = is_content(tokens.text)
    pooled = (starts, content) if task.hidden_states == "pooled" else None
    stored: list[int | str] = [EMBEDDINGS, *task.layers]
    for layer in stored:
        if hidden_file_name(layer) in missing:
            values, sinks = block.states[layer], block.sinks.get(layer)
            background.write(_state_write(writer, layer, values, sinks, pooled))


def _state_write(
    writer: BlockWriter,
    layer: int | str,
    states: "torch.Tensor",
    sinks: np.ndarray | None,
    pooled: tuple[np.ndarray, np.ndarray] | None,
) -> Callable[[], None]:
    def write() -> None:
        values = states.float().numpy()
        if pooled is None:
            writer.write_states(layer, values, sinks)
        else:
            writer.write_pooled_states(layer, values, *pooled, sinks)

    return write


def token_table(sentences: Sequence[TokenisedSentence], block: range) -> TokenTable:
    """The stored tokens of a block."""
    lengths = np.array([len(sentences[index].texts) for index in block])
    last = np.cumsum(lengths) - 1
    return TokenTable(
        token_id=np.concatenate([sentences[i].ids[sentences[i].stored] for i in block]).astype(np.int32),
        sentence_index=np.repeat(np.array(block), lengths).astype(np.int32),
        position=np.concatenate([sentences[i].positions for i in block]).astype(np.int32),
        is_final=np.isin(np.arange(lengths.sum()), last),
        text=np.array([text for index in block for text in sentences[index].texts]),
    )
