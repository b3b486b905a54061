"""The language model: load it, and one forward pass that yields every layer's hidden states."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import EMBEDDINGS
from s1_compute_all_features.fingerprints import fingerprint_of_folder
from s1_compute_all_features.hub import resolve_folder, unavailable
from s1_compute_all_features.model_parts import check_embeddings, check_kind, longest_input, text_part
from s1_compute_all_features.model_weights import check_blocks, check_whole, load_with_report
from s1_compute_all_features.models.block_sites import watch_site
from s1_compute_all_features.models.demo_model import hint_if_missing, how_stored
from s1_compute_all_features.sae_configurations import ModelEntry
from s1_compute_all_features.saes.sites import Place, Site
from s1_compute_all_features.tokenisation import opening_of
from s1_compute_all_features.tokenised_sentences import TokenisedSentence

if TYPE_CHECKING:
    import torch

BLOCK_INPUT = -1
"""Key of the residual stream in front of block 0, among the layers of a forward pass."""


@dataclass(frozen=True)
class LanguageModel:
    """A loaded model without its language-model head.

    Attributes:
        model: the transformers base model, in evaluation mode.
        tokenizer: its tokenizer.
        blocks: its transformer blocks, in order.
        d_model: width of the residual stream.
        max_tokens: longest input, special tokens included; None where the model sets no limit.
        description: what the manifest says about it.
        with_head: the same model with its language-model head; None where it was loaded without.
    """

    model: Any
    tokenizer: Any
    blocks: Any
    d_model: int
    max_tokens: int | None
    description: dict[str, Any]
    with_head: Any = None

    @property
    def n_layers(self) -> int:
        """Number of transformer blocks."""
        return len(self.blocks)


def load_language_model(
    entry: ModelEntry, relative_to: Path, device: str, dtype: str, with_head: bool = False
) -> LanguageModel:
    """Load a model from the hub, its cache, or a folder.

    Args:
        entry: the configuration's model.
        relative_to: folder against which a relative model folder is resolved.
        device: a torch device.
        dtype: a torch dtype's name, e.g. ``float32``.
        with_head: load the language-model head too, for what needs next-token predictions.

    Raises:
        UserError: the weights cannot be had or are not whole, the tokenizer has no BOS token that was asked
            for, or the model is none whose blocks read a text.
    """
    import huggingface_hub
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.peft_utils import find_adapter_config_file

    what = f"model {entry.id}"
    hint_if_missing(entry.id, relative_to)
    folder = resolve_folder(entry.id, relative_to)
    source = str(folder or entry.id)
    revision = None if folder else entry.revision
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        adapter = find_adapter_config_file(source, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        check_kind(what, config, adapter)
        opening_of(tokenizer, entry.prepend_bos, what)
        # Eager attention: Gemma-2 caps its attention scores, which fused kernels leave out.
        loaded, report = load_with_report(
            AutoModelForCausalLM if with_head else AutoModel,
            source,
            revision=revision,
            dtype=getattr(torch, dtype),
            attn_implementation="eager",
            use_safetensors=True,  # the older format is a pickle
        )
        # The cache keeps every commit in a folder of its name.
        commit = (
            fingerprint_of_folder(folder)
            if folder
            else Path(huggingface_hub.hf_hub_download(source, "config.json", revision=revision)).parent.name
        )
    except UserError:
        raise
    except Exception as error:  # what stands in a model's files makes transformers fail in any way
        raise unavailable(what, "" if folder else entry.id, error) from error
    base = loaded.base_model if with_head else loaded
    model = text_part(what, base)
    text_config = model.config
    blocks = find_blocks(model, text_config.num_hidden_layers, entry.id)
    heads = [head for head in [loaded.get_output_embeddings()] if with_head and head is not None]
    check_whole(what, loaded, report, [] if model is base else [model, *heads])
    check_blocks(what, report.unexpected, model, blocks)
    check_embeddings(what, model)
    loaded.eval()
    (loaded if with_head else model).to(device)
    return LanguageModel(
        model=model,
        tokenizer=tokenizer,
        blocks=blocks,
        d_model=text_config.hidden_size,
        max_tokens=longest_input(model),
        description={
            "id": entry.id,
            "revision": commit,
            "architecture": type(model).__name__,
            "d_model": text_config.hidden_size,
            "n_layers": text_config.num_hidden_layers,
            "dtype": dtype,
            "prepend_bos": entry.prepend_bos,
            "center_residual": entry.center_residual,
            "weights": how_stored(folder, entry.weights),
            "embeddings": "output of the model's input embedding module, scaled as the module scales it",
        },
        with_head=loaded if with_head else None,
    )


def resolve_device(name: str) -> tuple[str, str]:
    """The kind of device, which the manifest holds, and this process's own one.

    Args:
        name: ``cuda``, ``mps``, ``cpu``, or ``auto`` for the first of these that torch can use.

    Raises:
        UserError: this machine has none of that kind.
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise UserError(f"--device {name}: this machine has none that torch can use; choose cpu")
    return name, f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if name == "cuda" else name


def find_blocks(model: Any, n_layers: int, model_id: str) -> Any:
    """The model's transformer blocks: the outermost list of ``n_layers`` modules, whatever its name.

    Raises:
        UserError: there is no such list.
    """
    from torch import nn

    lists = [
        (name.count("."), module)
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    if not lists:
        raise UserError(f"model {model_id}: no list of {n_layers} transformer blocks was found; expected one")
    return min(lists, key=lambda item: item[0])[1]


def length_sorted_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices in batches of similar length, each of at most ``batch_tokens`` positions, padding included.

    A sentence longer than that makes a batch of its own. Depends on the arguments alone.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        # Ascending lengths: the sentence at hand is the longest of its batch.
        if batch and (len(batch) + 1) * lengths[index] > batch_tokens:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@dataclass(frozen=True)
class PaddedBatch:
    """Sentences side by side, padded on the right, on the model's device.

    Attributes:
        ids: int64 [n_sentences, longest], 0 where it is padding.
        mask: int64 [n_sentences, longest], 1 for tokens, 0 for padding.
        keep: bool [n_sentences, longest], True for the tokens that are stored.
    """

    ids: "torch.Tensor"
    mask: "torch.Tensor"
    keep: "torch.Tensor"


def padded(batch: Sequence[TokenisedSentence], model: LanguageModel) -> PaddedBatch:
    """What the model takes of some sentences."""
    import torch

    longest = max(len(sentence.ids) for sentence in batch)
    ids = np.zeros((len(batch), longest), dtype=np.int64)
    mask = np.zeros((len(batch), longest), dtype=np.int64)
    stored = np.zeros((len(batch), longest), dtype=bool)
    for row, sentence in enumerate(batch):
        ids[row, : len(sentence.ids)] = sentence.ids
        mask[row, : len(sentence.ids)] = 1
        stored[row, : len(sentence.ids)] = sentence.stored
    device = next(model.model.parameters()).device
    return PaddedBatch(*(torch.from_numpy(array).to(device) for array in (ids, mask, stored)))


def forward_states(
    model: LanguageModel,
    batch: Sequence[TokenisedSentence],
    layers: Sequence[int],
    sites: Sequence[Site] = (),
) -> dict[Place, "torch.Tensor"]:
    """One forward pass: the residual stream at every asked layer, the embeddings, and further sites.

    The pass ends with the last block that is asked for; those behind it are not run.

    Args:
        model: the model.
        batch: sentences, padded on the right here.
        layers: block indices; `BLOCK_INPUT` is the stream in front of block 0. None asks for the
            embeddings alone.
        sites: further places to read, none of which is a hidden layer.

    Returns:
        Per layer, under `EMBEDDINGS`, and per site: [n_stored_tokens, width there] as they stand there,
        sentence after sentence, special tokens and padding left out. Layer N is the output of block N,
        before any final norm.

    Raises:
        UserError: the model's architecture does not offer one of the sites.
    """
    import torch

    inputs = padded(batch, model)
    with (
        torch.inference_mode(),
        _captured(model, layers, sites, inputs.keep) as states,
        suppress(_AllCaptured),
    ):
        model.model(input_ids=inputs.ids, attention_mask=inputs.mask, **_no_cache(model))
    return states


def _no_cache(model: LanguageModel) -> dict[str, bool]:
    """Decoders are told to keep no key-value cache; encoders do not know the argument."""
    return {"use_cache": False} if getattr(model.model.config, "use_cache", None) is not None else {}


class _AllCaptured(Exception):
    """Raised by a hook to end a forward pass that has nothing more to give."""


@contextmanager
def _captured(
    model: LanguageModel, layers: Sequence[int], sites: Sequence[Site], keep: "torch.Tensor"
) -> Iterator[dict[Place, "torch.Tensor"]]:
    """Hooks that pick up the kept positions of each place; they return None and so change nothing.

    The output of the last block that is asked for raises `_AllCaptured`.
    """
    states: dict[Place, torch.Tensor] = {}
    last = max([*layers, *(site.block for site in sites)], default=None)

    def pick_up(key: Place, output: Any) -> None:
        tensor = output[0] if isinstance(output, tuple) else output
        states[key] = tensor[keep]

    def end(*_: Any) -> None:
        raise _AllCaptured

    def on_output(key: Place) -> Any:
        return lambda module, arguments, output: pick_up(key, output)

    def on_input(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        pick_up(BLOCK_INPUT, arguments[0] if arguments else keywords["hidden_states"])

    handles = [model.model.get_input_embeddings().register_forward_hook(on_output(EMBEDDINGS))]
    for layer in layers:
        if layer == BLOCK_INPUT:
            handles.append(model.blocks[0].register_forward_pre_hook(on_input, with_kwargs=True))
        else:
            handles.append(model.blocks[layer].register_forward_hook(on_output(layer)))
    for site in sites:
        handles.append(watch_site(model, site, partial(pick_up, site)))
    if last is None:
        handles.append(model.model.get_input_embeddings().register_forward_hook(end))
    elif last == BLOCK_INPUT:
        handles.append(model.blocks[0].register_forward_pre_hook(end))
    else:
        handles.append(model.blocks[last].register_forward_hook(end))
    try:
        yield states
    finally:
        for handle in handles:
            handle.remove()
