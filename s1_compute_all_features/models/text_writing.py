"""Text that a language model writes itself: nucleus sampling from many openings."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_common.errors import UserError
from s1_compute_all_features.hub import unavailable
from s1_compute_all_features.model_weights import check_whole, load_with_report
from s1_compute_all_features.models.openings import draw_opening

if TYPE_CHECKING:
    import torch

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
        UserError: the folder holds no model that transformers reads, or not all of its weights.
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
        model, report = load_with_report(
            AutoModelForCausalLM,
            str(folder),
            dtype=getattr(torch, dtype),
            attn_implementation=ATTENTION,
            use_safetensors=True,
        )
    except Exception as error:  # what stands in a model's files makes transformers fail in any way
        raise unavailable(f"model {folder}", "", error) from error
    check_whole(f"model {folder}", model, report)
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


def next_logits(writer: Writer, ids: "torch.Tensor", cache: Any) -> "torch.Tensor":
    """What the model says after one more token per text.

    Args:
        writer: the model.
        ids: [n_texts, 1], the tokens.
        cache: of everything before; the tokens are added to it.

    Returns:
        [n_texts, vocabulary].
    """
    # transformers 5.24 renames the argument.
    name = "cache" if "cache" in signature(writer.model.forward).parameters else "past_key_values"
    return writer.model(input_ids=ids, use_cache=True, **{name: cache}).logits[:, -1]


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
    with torch.inference_mode(), _threads(sampling.threads):
        for position in range(1, sampling.n_tokens):
            logits = next_logits(writer, ids[:, -1:], cache)
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
