"""The language model of a release: its Hugging Face id, and how the SAEs saw it in training."""

from collections.abc import Mapping

from pipeline_common.errors import UserError
from s1_compute_all_features.sae_configurations import ModelEntry
from s1_compute_all_features.saes.registry_entries import Told, registry
from s1_compute_all_features.saes.sites import ATTN_OUT, MLP_OUT, RESID_MID, RESID_POST, RESID_PRE

MODELS = {
    "gemma-2b": "google/gemma-2b",
    "gemma-2b-it": "google/gemma-2b-it",
    "gemma-2-2b": "google/gemma-2-2b",
    "gemma-2-9b": "google/gemma-2-9b",
    "gemma-2-9b-it": "google/gemma-2-9b-it",
    "gemma-2-27b": "google/gemma-2-27b",
    "gpt2-small": "openai-community/gpt2",
    "mistral-7b": "mistralai/Mistral-7B-v0.1",
    "pythia-70m-deduped": "EleutherAI/pythia-70m-deduped",
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-1.7b": "Qwen/Qwen3-1.7B",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "qwen3-14b": "Qwen/Qwen3-14B",
}
"""The registry's short names of models to their Hugging Face ids; its other names are such ids."""

WITHOUT_BOS = ("Qwen/",)
"""Models by these names have no BOS token. sae-lens's loaders say ``prepend_bos`` of their SAEs all the same,
as they do of every SAE that they convert."""

_CENTRED = {RESID_PRE, RESID_MID, RESID_POST, ATTN_OUT, MLP_OUT}
"""Sites that centred writing weights change by the mean over d_model, and by nothing else."""


def model_entry(release: str, model_id: str | None, told: Mapping[str, Told]) -> ModelEntry:
    """The model, with the settings that all SAEs were trained with.

    Args:
        release: the release.
        model_id: Hugging Face id; None for the registry's.
        told: id to what is known of the SAE's training.

    Raises:
        UserError: SAEs were trained on models that differ, on one that cannot be made here, or on one
            whose Hugging Face id is not known.
    """
    settings: dict[tuple[bool, bool], str] = {}
    known = {found.prepend_bos for found in told.values()} - {None}
    for sae_id, found in told.items():
        centred = _is_centred(release, sae_id, found)
        # Where a file that tells could not be had, the others of the release speak for it; a note says so.
        prepend_bos = found.prepend_bos if found.prepend_bos is not None else known != {False}
        settings.setdefault((prepend_bos, centred), sae_id)
    if len(settings) > 1:
        (first, one), (second, other) = list(settings.items())[:2]
        raise UserError(
            f"the SAEs of {release} need different models: {one} prepend_bos={first[0]}, centred={first[1]}, "
            f"{other} prepend_bos={second[0]}, centred={second[1]}; choose some by --ids or --layers"
        )
    ((prepend_bos, centred),) = settings
    model = model_id or _default_model(release, told)
    has_bos = not model.startswith(WITHOUT_BOS)
    return ModelEntry(id=model, prepend_bos=prepend_bos and has_bos, center_residual=centred)


def _is_centred(release: str, sae_id: str, told: Told) -> bool:
    arguments = dict(told.model_arguments)
    centred = bool(arguments.pop("center_writing_weights", False))
    if arguments.get("fold_ln") is False:
        del arguments["fold_ln"]
    if arguments:
        raise UserError(
            f"SAE {sae_id} of {release} was trained on a model loaded with {arguments}, which is not done "
            "here; of model_from_pretrained_kwargs only center_writing_weights and fold_ln=False are known"
        )
    if centred and told.site.kind not in _CENTRED:
        raise UserError(
            f"SAE {sae_id} of {release} reads {told.site.hook} of a model with centred writing weights; what "
            "that changes there is not known here"
        )
    return centred


def model_of(release: str) -> str:
    """Hugging Face id of a release's model as the registry has it; empty where its name is not known."""
    name: str = registry()[release].model
    return MODELS.get(name) or (name if "/" in name else "")


def _default_model(release: str, told: Mapping[str, Told]) -> str:
    model, listed = model_of(release), registry()[release].model
    if not model:
        raise UserError(f"release {release}: its model {listed!r} has no Hugging Face id here; give --model")
    same = {name.rsplit("/", 1)[-1].lower() for name in (listed, model)}
    for sae_id, found in told.items():
        said = found.model_name
        if said and said.rsplit("/", 1)[-1].lower() not in same:
            raise UserError(
                f"release {release}: the registry says that the model is {listed}, the loader of {sae_id} "
                f"says {said}; say which by --model"
            )
    return model
