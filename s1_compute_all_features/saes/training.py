"""Train one SAE per layer on hidden states that are computed on the way, by sae-lens's own trainer.

Axes: T tokens, D d_model, F features (d_sae).

The pieces of text are put into a random order once and cut into units of about `UNIT_TOKENS` tokens. A unit
passes through the model once for all layers, its tokens are put into a random order, and every SAE takes its
steps on them. Only one unit's hidden states are in memory, and what a unit does depends on the seed and its
number alone: so a run that was killed goes on from the last finished unit as if nothing had happened.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import read_json, write_json
from s1_compute_all_features.attention_sinks import median_norms, sink_mask
from s1_compute_all_features.language_model import LanguageModel, forward_states, length_sorted_batches
from s1_compute_all_features.saes.training_text import Pieces
from s1_compute_all_features.tokenised_sentences import TokenisedSentence

if TYPE_CHECKING:
    import torch

UNIT_TOKENS = 65_536
PROGRESS = "progress.json"

States = dict[int, "torch.Tensor"]


@dataclass(frozen=True)
class Recipe:
    """The numbers that decide what comes out of a training.

    Attributes:
        layers: one SAE reads the residual stream after each of these blocks.
        width: features of an SAE.
        l0: mean number of active features per token that it is trained to.
        context: the most tokens that the model sees at once, BOS included.
        step_tokens: tokens of a training step.
        learning_rate: its peak; it rises over the first and falls to zero over the last steps.
        seed: of the first weights and of every random order.
        autocast: multiply in bfloat16 while training.
    """

    layers: tuple[int, ...]
    width: int
    l0: float
    context: int = 128
    step_tokens: int = 1024
    learning_rate: float = 2e-3
    seed: int = 0
    autocast: bool = False


def train_saes(
    model: LanguageModel,
    pieces: Pieces,
    recipe: Recipe,
    batch_tokens: int,
    device: str,
    work: Path,
    on_progress: Callable[[int, str], object],
) -> dict[int, Any]:
    """Train the SAEs of all layers side by side.

    BatchTopK (Bussmann et al. 2024, arXiv 2412.06410) keeps ``l0`` features per token on average over a
    step and learns one threshold on the way; saved with it, the SAE is a JumpReLU SAE.

    Args:
        model: the language model.
        pieces: the text to train on.
        recipe: the numbers of the training.
        batch_tokens: positions of one forward pass.
        device: where the SAEs are trained.
        work: folder for the checkpoints; what an earlier, killed run left there is taken up.
        on_progress: called after each unit's forward pass and after each step with the number of tokens
            done and the present state as text.

    Returns:
        Per layer a ``BatchTopKTrainingSAE`` that reads the model's hidden states as they are.

    Raises:
        UserError: hidden states that are not finite.
    """
    import torch

    trainers = {layer: _trainer(layer, model, recipe, pieces.total, device) for layer in recipe.layers}
    units = _units(pieces, recipe.seed)
    progress = _restore(trainers, work)
    for number, unit in enumerate(units):
        if number < progress["units"]:
            on_progress(int(pieces.n_tokens[unit].sum()), "taken up")
            continue
        states = hidden_states(model, [pieces[int(index)] for index in unit], recipe.layers, batch_tokens)
        if not progress["median_norms"]:
            medians = median_norms({layer: values.norm(dim=1).numpy() for layer, values in states.items()})
            progress["median_norms"] = {str(layer): median for layer, median in medians.items()}
        states = without_sinks(states, {int(layer): m for layer, m in progress["median_norms"].items()})
        if number == 0:
            _start_at_the_mean(trainers, states, recipe.step_tokens)
        generator = torch.Generator().manual_seed(recipe.seed + number)
        order = torch.randperm(len(states[recipe.layers[0]]), generator=generator)
        for rows in order.split(recipe.step_tokens):
            if len(rows) < recipe.step_tokens:
                break  # less than a step is left of the unit
            outputs = {layer: trainer.step(states[layer][rows]) for layer, trainer in trainers.items()}
            for trainer in trainers.values():
                trainer.n_training_steps += 1
            on_progress(len(rows), _loss_line(outputs))
        on_progress(int(pieces.n_tokens[unit].sum()) - len(order) + len(order) % recipe.step_tokens, "")
        progress["units"] = number + 1
        progress["tokens"] += len(order) - len(order) % recipe.step_tokens
        _save(trainers, work, progress)
    for trainer in trainers.values():
        trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        trainer.activation_scaler.scaling_factor = None
        trainer.set_final_sae_metadata()
    return {layer: trainer.sae.eval() for layer, trainer in trainers.items()}


def _trainer(layer: int, model: LanguageModel, recipe: Recipe, n_tokens: int, device: str) -> Any:
    import torch
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    from sae_lens.config import LoggingConfig, SAETrainerConfig
    from sae_lens.saes.sae import SAEMetadata
    from sae_lens.training.sae_trainer import SAETrainer

    torch.manual_seed(recipe.seed + layer)
    sae = BatchTopKTrainingSAE(
        BatchTopKTrainingSAEConfig(
            d_in=model.d_model,
            d_sae=recipe.width,
            k=recipe.l0,
            topk_threshold_lr=0.02,
            apply_b_dec_to_input=True,
            normalize_activations="expected_average_only_in",
            device=device,
            metadata=SAEMetadata(
                model_name=model.description["id"],
                hook_name=f"blocks.{layer}.hook_resid_post",
                prepend_bos=model.description["prepend_bos"],
                context_size=recipe.context,
            ),
        )
    )
    n_steps = max(n_tokens // recipe.step_tokens, 1)
    return SAETrainer(
        SAETrainerConfig(
            total_training_samples=n_steps * recipe.step_tokens,
            train_batch_size_samples=recipe.step_tokens,
            lr=recipe.learning_rate,
            lr_end=recipe.learning_rate,
            lr_warm_up_steps=min(50, n_steps // 10),
            lr_decay_steps=n_steps // 4,
            device=device,
            autocast=recipe.autocast,
            dead_feature_window=50,
            feature_sampling_window=n_steps + 1,
            logger=LoggingConfig(log_to_wandb=False),
        ),
        sae,
        iter(()),  # the steps are driven from here, as sae-lens's own trainer of several SAEs does
    )


def _units(pieces: Pieces, seed: int) -> list[np.ndarray]:
    """All pieces in random order, cut into units: int64 [n_pieces of the unit] each."""
    order = np.random.default_rng(seed).permutation(len(pieces))
    number = np.cumsum(pieces.n_tokens[order]) // UNIT_TOKENS
    return np.split(order, np.flatnonzero(np.diff(number)) + 1)


def hidden_states(
    model: LanguageModel,
    sentences: Sequence[TokenisedSentence],
    layers: Sequence[int],
    batch_tokens: int,
) -> States:
    """Residual stream after each layer: float32 [T, D], the sentences in order of their length.

    Raises:
        UserError: values that are not finite.
    """
    import torch

    parts: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for batch in length_sorted_batches([len(sentence.ids) for sentence in sentences], batch_tokens):
        captured = forward_states(model, [sentences[index] for index in batch], layers)
        for layer in layers:
            parts[layer].append(captured[layer].float().cpu())
    states = {layer: torch.cat(parts[layer]) for layer in layers}
    for layer, values in states.items():
        if not torch.isfinite(values).all():
            raise UserError(
                f"the hidden states of layer {layer} are not finite: the model's weights are damaged or its "
                "dtype overflows; try --dtype float32"
            )
    return states


def without_sinks(states: States, medians: dict[int, float]) -> States:
    """The tokens that are an attention sink at none of the layers.

    Args:
        states: per layer [T, D].
        medians: per layer the median norm, of the first unit.
    """
    import torch

    sinks = np.any(
        [sink_mask(values.norm(dim=1).numpy(), medians[layer]) for layer, values in states.items()], axis=0
    )
    kept = torch.from_numpy(~sinks)
    return states if bool(kept.all()) else {layer: values[kept] for layer, values in states.items()}


def _start_at_the_mean(trainers: dict[int, Any], states: States, step_tokens: int) -> None:
    """Scale so that a token's norm is sqrt(D) on average, and let the decoder's bias begin at the mean."""
    import torch

    for layer, trainer in trainers.items():
        values = states[layer]
        scale = math.sqrt(values.shape[1]) / float(values.norm(dim=1).mean())
        trainer.activation_scaler.scaling_factor = scale
        with torch.no_grad():
            trainer.sae.b_dec.copy_(values.mean(dim=0) * scale)


def _loss_line(outputs: dict[int, Any]) -> str:
    """Per layer the share of the step's squared norm that is not rebuilt."""
    return " ".join(
        f"{layer}:{out.losses['mse_loss'].item() / out.sae_in.square().sum(-1).mean().item():.3f}"
        for layer, out in outputs.items()
    )


def _save(trainers: dict[int, Any], work: Path, progress: dict[str, Any]) -> None:
    """A checkpoint counts once `PROGRESS` names it; the one before goes then."""
    folder = work / "checkpoints" / str(progress["units"])
    for layer, trainer in trainers.items():
        trainer.save_checkpoint(f"layer_{layer}", base_path=_made(folder))
    write_json(work / PROGRESS, progress)
    for other in folder.parent.iterdir():
        if other != folder:
            rmtree(other)


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _restore(trainers: dict[int, Any], work: Path) -> dict[str, Any]:
    progress = read_progress(work)
    if not progress["units"]:
        return progress
    for layer, trainer in trainers.items():
        folder = work / "checkpoints" / str(progress["units"]) / f"layer_{layer}"
        trainer.load_trainer_state(folder)
        trainer.sae.load_weights_from_checkpoint(folder)
    return progress


def read_progress(work: Path) -> dict[str, Any]:
    """How far a training in this folder is.

    Returns:
        ``units`` finished, ``tokens`` trained on, and ``median_norms`` per layer.
    """
    if not (work / PROGRESS).is_file():
        return {"units": 0, "tokens": 0, "median_norms": {}}
    progress: dict[str, Any] = read_json(work / PROGRESS, "record of a training")
    return progress
