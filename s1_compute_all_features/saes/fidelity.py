"""What a trained SAE keeps of its input, measured on text that it was not trained on.

Axes: T tokens, D d_model, F features (d_sae).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from s1_compute_all_features.attention_sinks import SINK_FACTOR
from s1_compute_all_features.language_model import LanguageModel, PaddedBatch, length_sorted_batches, padded
from s1_compute_all_features.tokenised_sentences import TokenisedSentence

if TYPE_CHECKING:
    import torch

LOSS_TOKENS = 20_000
"""The losses, which take two passes per layer, are measured on so many tokens of the text at most."""

Replacement = Callable[["torch.Tensor"], "torch.Tensor"]


@dataclass(frozen=True)
class Fidelity:
    """The figures of one SAE on one text. Attention sinks and special tokens are left out.

    Attributes:
        n_tokens: tokens measured.
        l0: mean number of active features per token.
        variance_explained: 1 - sum |x - x'|^2 / sum |x - mean|^2 over all tokens and dimensions.
        dead: share of features that fire on none of the tokens.
        n_loss_tokens: tokens that the losses were measured on, from all over the text.
        loss: next-token cross-entropy of the untouched model, in nats.
        loss_with_sae: the same with the layer's output replaced by the reconstruction.
        loss_with_mean: the same with it replaced by its mean.
        loss_recovered: (loss_with_mean - loss_with_sae) / (loss_with_mean - loss): 1 is perfect, 0 no
            better than the mean.
    """

    n_tokens: int
    l0: float
    variance_explained: float
    dead: float
    n_loss_tokens: int
    loss: float
    loss_with_sae: float
    loss_with_mean: float
    loss_recovered: float


@dataclass
class _Sums:
    """Running sums over the tokens of one layer, in float64."""

    n: int
    x: "torch.Tensor"
    x_squared: float
    residual: float
    active: int
    fired: "torch.Tensor"


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, total: float, count: int) -> None:
        self.total += total
        self.count += count

    @property
    def value(self) -> float:
        return self.total / max(self.count, 1)


def measure(
    model: LanguageModel,
    saes: dict[int, Any],
    sentences: Sequence[TokenisedSentence],
    median_norms: dict[int, float],
    batch_tokens: int,
) -> dict[int, Fidelity]:
    """Measure the SAEs of several layers on the same text.

    Args:
        model: the language model, with its head.
        saes: per layer an SAE with sae-lens's ``encode`` and ``decode``.
        sentences: the text.
        median_norms: per layer the median norm; a token of more than `SINK_FACTOR` times it is a sink.
        batch_tokens: positions of one forward pass.
    """
    import torch

    n_tokens = sum(int(sentence.stored.sum()) for sentence in sentences)
    sums = {
        layer: _Sums(0, torch.zeros(model.d_model, dtype=torch.float64), 0.0, 0.0, 0, torch.zeros(()))
        for layer in saes
    }
    for inputs in _batches(model, sentences, batch_tokens):
        with torch.inference_mode(), _watched(model, saes, inputs.keep, median_norms, sums):
            model.model(input_ids=inputs.ids, attention_mask=inputs.mask, use_cache=False)
    every = -(-n_tokens // LOSS_TOKENS)
    chosen = list(_batches(model, sentences[::every], batch_tokens))
    clean = _loss(model, chosen)
    figures = {}
    for layer, sae in saes.items():
        mean = (sums[layer].x / sums[layer].n).float()
        rebuilt, ablated = (
            _loss(model, chosen, partial(_spliced, model, layer, replacement, median_norms))
            for replacement in (_rebuild(sae), _by(mean))
        )
        figures[layer] = _fidelity(sums[layer], clean, rebuilt, ablated)
    return figures


def _batches(
    model: LanguageModel, sentences: Sequence[TokenisedSentence], batch_tokens: int
) -> Iterator[PaddedBatch]:
    for batch in length_sorted_batches([len(sentence.ids) for sentence in sentences], batch_tokens):
        yield padded([sentences[index] for index in batch], model)


def _loss(
    model: LanguageModel,
    batches: Sequence[PaddedBatch],
    change: Callable[["torch.Tensor"], AbstractContextManager[None]] | None = None,
) -> _Mean:
    """Mean next-token loss, each forward pass run inside ``change(keep)``."""
    import torch

    mean = _Mean()
    for inputs in batches:
        with torch.inference_mode(), change(inputs.keep) if change else nullcontext():
            mean.add(*_next_token_loss(model, inputs))
    return mean


def _fidelity(sums: _Sums, clean: _Mean, rebuilt: _Mean, ablated: _Mean) -> Fidelity:
    variance = sums.x_squared - float(sums.x.square().sum()) / sums.n
    return Fidelity(
        n_tokens=sums.n,
        l0=sums.active / sums.n,
        variance_explained=1 - sums.residual / variance,
        dead=float((~sums.fired).float().mean()),
        n_loss_tokens=clean.count,
        loss=clean.value,
        loss_with_sae=rebuilt.value,
        loss_with_mean=ablated.value,
        loss_recovered=(ablated.value - rebuilt.value) / (ablated.value - clean.value),
    )


def _rebuild(sae: Any) -> Replacement:
    return lambda values: sae.decode(sae.encode(values.float())).to(values.dtype)


def _by(mean: "torch.Tensor") -> Replacement:
    return lambda values: mean.to(values).expand_as(values)


def _next_token_loss(model: LanguageModel, inputs: PaddedBatch) -> tuple[float, int]:
    """Sum of the next-token cross-entropy over the stored tokens, and how many there are.

    A stored token's loss is that of predicting it from what stands before it; one that nothing stands
    before has none.
    """
    import torch

    logits = model.with_head(input_ids=inputs.ids, attention_mask=inputs.mask, use_cache=False).logits
    counted = inputs.keep[:, 1:]
    losses = torch.nn.functional.cross_entropy(
        logits[:, :-1][counted].float(), inputs.ids[:, 1:][counted], reduction="sum"
    )
    return float(losses), int(counted.sum())


@contextmanager
def _watched(
    model: LanguageModel,
    saes: dict[int, Any],
    keep: "torch.Tensor",
    median_norms: dict[int, float],
    sums: dict[int, _Sums],
) -> Iterator[None]:
    """Add up what each SAE makes of its layer's output, while a forward pass runs."""

    def hook(layer: int) -> Any:
        def add(module: Any, arguments: Any, output: Any) -> None:
            values = (output[0] if isinstance(output, tuple) else output)[keep].float()
            _add(sums[layer], saes[layer], values[values.norm(dim=1) <= SINK_FACTOR * median_norms[layer]])

        return add

    handles = [model.blocks[layer].register_forward_hook(hook(layer)) for layer in saes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _add(sums: _Sums, sae: Any, x_TD: "torch.Tensor") -> None:
    acts_TF = sae.encode(x_TD)
    sums.n += len(x_TD)
    sums.x += x_TD.double().sum(dim=0).cpu()
    sums.x_squared += float(x_TD.double().square().sum())
    sums.residual += float((x_TD - sae.decode(acts_TF)).double().square().sum())
    sums.active += int((acts_TF > 0).sum())
    fired = (acts_TF > 0).any(dim=0).cpu()
    sums.fired = fired if sums.fired.ndim == 0 else sums.fired | fired


@contextmanager
def _spliced(
    model: LanguageModel,
    layer: int,
    replace: Replacement,
    median_norms: dict[int, float],
    keep: "torch.Tensor",
) -> Iterator[None]:
    """Replace a layer's output at the stored tokens that are no sinks, while a forward pass runs."""

    def hook(module: Any, arguments: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        chosen = keep & (states.float().norm(dim=-1) <= SINK_FACTOR * median_norms[layer])
        changed = states.clone()
        changed[chosen] = replace(states[chosen])
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = model.blocks[layer].register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
