"""What a training leaves behind: SAEs in sae-lens's disk format, a configuration for s1, a model card."""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline_common.errors import UserError
from pipeline_common.files import write_json, write_text
from s1_compute_all_features.sae_configurations import (
    FORMAT_VERSION,
    ModelEntry,
    SaeConfigurations,
    SaeEntry,
    configurations_as_json,
)
from s1_compute_all_features.saes.fidelity import Fidelity

CONFIGURATIONS = "configurations.json"
CARD = "README.md"
MEASUREMENTS = "measurements.json"
LARGEST_FLOAT16 = 65504.0


@dataclass(frozen=True)
class Provenance:
    """What a model card says of how the SAEs came about.

    Attributes:
        command: the command line, as it was typed.
        model: what the manifest of a store would say of the language model.
        texts: per file of training text its name, SHA-256 and number of bytes.
        recipe: the numbers of the training.
        n_tokens: tokens trained on, each once.
        n_documents: documents they come from.
        seconds: what the training took.
        libraries: versions.
        note: what else a reader should know of the text, as the user wrote it.
    """

    command: str
    model: Mapping[str, Any]
    texts: Sequence[Mapping[str, Any]]
    recipe: Mapping[str, Any]
    n_tokens: int
    n_documents: int
    seconds: float
    libraries: Mapping[str, str]
    note: str = ""


def sae_folder_name(layer: int) -> str:
    """Folder of a layer's SAE, e.g. ``layer_07``."""
    return f"layer_{layer:02d}"


def save_sae(sae: Any, folder: Path, dtype: str) -> None:
    """Write a trained SAE as ``SAE.load_from_disk`` of sae-lens reads it: cfg.json and the weights.

    Args:
        sae: a ``BatchTopKTrainingSAE``; it is saved as the JumpReLU SAE that it stands for.
        folder: to be made.
        dtype: of the two matrices on disk, ``float16`` or ``float32``; the vectors are float32. sae-lens
            and this project compute in float32 either way.

    Raises:
        UserError: a weight is too large for float16.
    """
    import torch
    from safetensors.torch import save_file

    tensors = sae.state_dict()
    sae.process_state_dict_for_saving_inference(tensors)
    matrix_dtype = getattr(torch, dtype)
    largest = max(float(tensor.abs().max()) for tensor in tensors.values() if tensor.ndim == 2)
    if dtype == "float16" and largest > LARGEST_FLOAT16:
        raise UserError(f"{folder}: a weight of {largest:.0f} is too large for --weights-dtype float16")
    stored = {
        name: tensor.detach().cpu().to(matrix_dtype if tensor.ndim == 2 else torch.float32).contiguous()
        for name, tensor in tensors.items()
    }
    configuration = {**sae.cfg.get_inference_sae_cfg_dict(), "device": "cpu", "dtype": "float32"}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "cfg.json", json.loads(json.dumps(configuration, default=str)))
    save_file(stored, folder / "sae_weights.safetensors")
    # safetensors makes its files unreadable for everybody else; this one shall be as the other is.
    shutil.copymode(folder / "cfg.json", folder / "sae_weights.safetensors")


def configuration_of(model: ModelEntry, root: str, l0_of_layer: Mapping[int, float]) -> SaeConfigurations:
    """The configuration file that has s1 use these SAEs.

    Args:
        model: the language model, its folder as seen from the configuration file.
        root: folder of the SAEs as seen from the configuration file.
        l0_of_layer: measured l0 of each layer's SAE, on text that it was not trained on.
    """
    entries = []
    for layer, l0 in sorted(l0_of_layer.items()):
        path = sae_folder_name(layer)
        entries.append(
            SaeEntry(
                name=f"layer_{layer:02d}_l0_{round(l0)}",
                layer=layer,
                average_l0=round(l0),
                hook=f"blocks.{layer}.hook_resid_post",
                sae_id=path,
                path=path,
                neuronpedia_id="",
            )
        )
    return SaeConfigurations(
        format_version=FORMAT_VERSION,
        description=f"{len(entries)} residual-stream SAEs for {Path(model.id).name}, made by train_saes.py",
        model=model,
        release="",
        repo_id="",
        sae_root=root,
        weights_format="sae_lens",
        saes=tuple(entries),
    )


def write_records(
    folder: Path,
    configurations: SaeConfigurations,
    figures: Mapping[str, Mapping[int, Fidelity]],
    how: Provenance,
) -> None:
    """Write configuration, measurements and card.

    Args:
        folder: of the SAEs.
        configurations: from `configuration_of`.
        figures: per text that was measured on, per layer.
        how: for the card.
    """
    write_json(folder / CONFIGURATIONS, configurations_as_json(configurations))
    measured = {
        text: {str(layer): asdict(figure) for layer, figure in by_layer.items()}
        for text, by_layer in figures.items()
    }
    write_json(folder / MEASUREMENTS, {"measured": measured, **asdict(how)})
    write_text(folder / CARD, model_card(configurations, figures, how))


def model_card(
    configurations: SaeConfigurations, figures: Mapping[str, Mapping[int, Fidelity]], how: Provenance
) -> str:
    """The card as Markdown; every figure in it comes from the run that writes it."""
    recipe = how.recipe
    lines = [
        f"# SAEs for {Path(configurations.model.id).name}",
        "",
        f"{len(configurations.saes)} JumpReLU SAEs of {recipe['width']:,} features on the residual stream "
        f"after the layers {', '.join(str(layer) for layer in recipe['layers'])}, trained as BatchTopK SAEs "
        f"(Bussmann et al. 2024) with a mean of {recipe['l0']:g} active features. Made by `train_saes.py`, "
        "which wrote this page too.",
        "",
        "## Figures",
        "",
        "On text that no SAE was trained on, without special tokens and attention sinks. A feature counts "
        "as dead where it fires on none of these tokens. Loss is the next-token cross-entropy in nats, with "
        "the layer's output as it is, replaced by the reconstruction, and replaced by its mean; recovered is "
        "1 where the reconstruction costs nothing, 0 where it is no better than the mean.",
    ]
    for text, by_layer in figures.items():
        first = next(iter(by_layer.values()))
        lines += [
            "",
            f"**{text}**: {first.n_tokens:,} tokens, the losses on {first.n_loss_tokens:,} of them:",
            "",
            "| layer | l0 | variance explained | dead | loss | with the SAE | mean ablated | recovered |",
            "|---|---|---|---|---|---|---|---|",
        ]
        lines += [
            f"| {layer} | {f.l0:.1f} | {f.variance_explained:.3f} | {f.dead:.1%} | {f.loss:.3f} | "
            f"{f.loss_with_sae:.3f} | {f.loss_with_mean:.3f} | {f.loss_recovered:.3f} |"
            for layer, f in by_layer.items()
        ]
    lines += [
        "",
        "A feature counts as dead where it fires on none of the tokens of that text.",
        "",
        "## Training text",
        "",
        f"{how.n_tokens:,} tokens from {how.n_documents:,} documents, each read once, in pieces of at most "
        f"{recipe['context']} tokens:",
        "",
        "| file | bytes | SHA-256 |",
        "|---|---|---|",
        *(f"| `{text['file']}` | {text['bytes']:,} | `{text['sha256']}` |" for text in how.texts),
    ]
    if how.note:
        lines += ["", how.note]
    lines += [
        "",
        "## How to make them again",
        "",
        "```",
        how.command,
        "```",
        "",
        "The same files, settings, library versions and number of CPU threads give the same weights. "
        f"Settings: {', '.join(f'{key} {value}' for key, value in recipe.items())}. "
        f"Libraries: {', '.join(f'{name} {version}' for name, version in how.libraries.items())}. "
        f"Training took {how.seconds / 60:.0f} minutes.",
        "",
    ]
    return "\n".join(lines)
