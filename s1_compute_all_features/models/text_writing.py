"""Text that a language model writes itself: nucleus sampling from many openings, batch by batch."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from inspect import signature
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import read_json, write_json
from s1_compute_all_features.fingerprints import fingerprint_of_folder
from s1_compute_all_features.hub import unavailable
from s1_compute_all_features.models.openings import draw_opening, sha256_of_openings

if TYPE_CHECKING:
    import torch

SETTINGS = "settings.json"
ATTENTION = "one_token_grouped"


@dataclass(frozen=True)
class Sampling:
    """Everything beside the model that the written text depends on.

    Attributes:
        seed: of the openings and of the sampling; a batch depends on it and on the batch's number alone.
        texts_per_batch: texts that are written side by side.
        n_tokens: longest text, opening and BOS included.
        top_k: candidates that a token is drawn from before the nucleus is cut. Sorting these, not the
            whole vocabulary, is what makes the sampling cheap.
        top_p: the nucleus: the fewest candidates with at least this share of the probability
            (Holtzman et al. 2020).
        dtype: of the forward pass.
        threads: CPU threads of a batch, since other counts round differently; one, because two that wait
            for each other take many times as long beside other work.
    """

    seed: int = 0
    texts_per_batch: int = 64
    n_tokens: int = 176
    top_k: int = 200
    top_p: float = 0.95
    dtype: str = "bfloat16"
    threads: int = 1


@dataclass(frozen=True)
class Writer:
    """A causal language model with its head, ready to write.

    Attributes:
        model: the transformers model, in evaluation mode.
        tokenizer: its tokenizer.
        ends: token ids that end a text.
    """

    model: Any
    tokenizer: Any
    ends: tuple[int, ...]


def load_writer(folder: Path, dtype: str) -> Writer:
    """Load a causal language model from a folder.

    Raises:
        UserError: the folder holds no model that transformers reads.
    """
    import torch
    from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; expected a model as transformers saves it")
    AttentionInterface.register(ATTENTION, _attend_one_token)
    disable_progress_bar()  # several processes load at once
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=getattr(torch, dtype),
            attn_implementation=ATTENTION,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except Exception as error:  # what stands in a model's files makes transformers fail in any way
        raise unavailable(f"model {folder}", "", error) from error
    return Writer(model=model.eval(), tokenizer=tokenizer, ends=tuple(sorted(tokenizer.all_special_ids)))


def _attend_one_token(
    module: Any,
    query: "torch.Tensor",
    key: "torch.Tensor",
    value: "torch.Tensor",
    attention_mask: "torch.Tensor | None",
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple["torch.Tensor", None]:
    """Attention of one new token per text over everything before it, which needs no mask.

    transformers' own kernels take four times as long at one query: they repeat the keys for each head of a
    group. Here the heads of a group are the rows of one product.

    Args:
        module: the attention layer.
        query: [n_texts, n_heads, 1, d_head].
        key: [n_texts, n_groups, n_tokens, d_head]; value likewise.
        value: see key.
        attention_mask: not used.
        scaling: of the scores; by default the inverse root of d_head.
        softcap: where a model (Gemma-2) caps its scores.

    Returns:
        [n_texts, 1, n_heads, d_head], and no attention weights.
    """
    n_texts, n_heads, _one, d_head = query.shape
    grouped = query.reshape(n_texts, key.shape[1], n_heads // key.shape[1], d_head)
    scores = grouped @ key.transpose(-1, -2) * (scaling or d_head**-0.5)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    mixed = scores.float().softmax(-1).to(value.dtype) @ value
    return mixed.reshape(n_texts, 1, n_heads, d_head), None


def _reserved_cache(n_layers: int, n_tokens: int) -> Any:
    """A transformers cache with room for ``n_tokens``, so that a step copies only its own token.

    Keys are stored with the tokens as the last axis, the order in which the score product reads them.
    """
    from transformers.cache_utils import Cache, DynamicLayer

    class ReservedLayer(DynamicLayer):
        def lazy_initialization(self, key_states: "torch.Tensor", value_states: "torch.Tensor") -> None:
            n_texts, n_groups, _one, d_head = key_states.shape
            self.room_for_keys = key_states.new_empty(n_texts, n_groups, d_head, n_tokens)
            self.room_for_values = value_states.new_empty(n_texts, n_groups, n_tokens, value_states.shape[-1])
            self.n_stored = 0
            self.is_initialized = True

        def update(
            self, key_states: "torch.Tensor", value_states: "torch.Tensor", *_: Any, **__: Any
        ) -> tuple["torch.Tensor", "torch.Tensor"]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            end = self.n_stored + key_states.shape[-2]
            self.room_for_keys[..., self.n_stored : end] = key_states.transpose(-1, -2)
            self.room_for_values[..., self.n_stored : end, :] = value_states
            self.n_stored = end
            return self.room_for_keys[..., :end].transpose(-1, -2), self.room_for_values[..., :end, :]

        def get_seq_length(self) -> int:
            return self.n_stored if self.is_initialized else 0

    return Cache(layers=[ReservedLayer() for _ in range(n_layers)])


def draw_tokens(
    logits: "torch.Tensor", top_k: int, top_p: float, generator: "torch.Generator"
) -> "torch.Tensor":
    """One token per row, drawn from the nucleus of its ``top_k`` likeliest.

    Args:
        logits: [n_texts, vocabulary], any floating dtype.
        top_k: candidates per row; all, where the vocabulary is smaller.
        top_p: the nucleus is the fewest likeliest candidates whose probabilities, among the candidates,
            sum to at least this; the likeliest is always in it.
        generator: of the draws.

    Returns:
        int64 [n_texts, 1].
    """
    import torch

    candidates, ids = logits.topk(min(top_k, logits.shape[-1]))
    probabilities = candidates.float().softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    nucleus = probabilities * (before < top_p)
    return ids.gather(1, torch.multinomial(nucleus, 1, generator=generator))


def write_batch(writer: Writer, sampling: Sampling, number: int) -> tuple[list[str], int]:
    """The texts of one batch, and how many tokens they have.

    All texts start at position 0 and advance together: where an opening is not used up, its next token is
    taken instead of a drawn one, so nothing is padded and nothing masked. A text is cut at the first
    special token after its BOS.

    Args:
        writer: the model.
        sampling: the settings.
        number: of the batch; with the seed it fixes the openings and the draws.
    """
    import torch

    rng = np.random.default_rng([sampling.seed, number])
    rows = [
        _bos(writer) + writer.tokenizer(draw_opening(rng), add_special_tokens=False)["input_ids"]
        for _ in range(sampling.texts_per_batch)
    ]
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    forced = torch.full((len(rows), sampling.n_tokens), -1)
    for index, row in enumerate(rows):
        row = row[: sampling.n_tokens]
        forced[index, : len(row)] = torch.tensor(row)
    ids = forced[:, :1]
    ended = torch.zeros(len(rows), dtype=torch.bool)
    ends = torch.tensor(writer.ends)
    cache = _reserved_cache(writer.model.config.get_text_config().num_hidden_layers, sampling.n_tokens)
    # transformers 5.24 renames the argument.
    name = "cache" if "cache" in signature(writer.model.forward).parameters else "past_key_values"
    with torch.inference_mode(), _threads(sampling.threads):
        for position in range(1, sampling.n_tokens):
            logits = writer.model(input_ids=ids[:, -1:], use_cache=True, **{name: cache}).logits[:, -1]
            drawn = draw_tokens(logits, sampling.top_k, sampling.top_p, generator)
            wanted = forced[:, position : position + 1]
            ids = torch.cat([ids, torch.where(wanted < 0, drawn, wanted)], 1)
            ended |= torch.isin(ids[:, -1], ends)
            if ended.all():
                break
    texts = [_until_end(row, set(writer.ends)) for row in ids[:, len(_bos(writer)) :].tolist()]
    return writer.tokenizer.batch_decode(texts), sum(map(len, texts))


@contextmanager
def _threads(n_threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _bos(writer: Writer) -> list[int]:
    bos = writer.tokenizer.bos_token_id
    return [] if bos is None else [bos]


def _until_end(ids: Sequence[int], ends: set[int]) -> list[int]:
    kept = []
    for token in ids:
        if token in ends:
            break
        kept.append(token)
    return kept


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
