"""Where each SAE of sae-lens's registry reads, by the loader that converts its weights.

A loader takes the site from its own code, from names (of the repository, of a folder), or from a small
file on the hub. Each rule here gathers every statement that can be had without asking the hub, asks the
hub only where those do not settle the site, and refuses where two statements differ. REGISTRY.md has the
rules in words.
"""

from collections.abc import Callable, Mapping
from typing import Any

from s1_compute_all_features.saes.registry_entries import RegisteredSae, Told, agreed, hook_of, matched
from s1_compute_all_features.saes.registry_files import HubFiles
from s1_compute_all_features.saes.sites import (
    ATTN_OUT,
    GEMMA_SCOPE_2_FOLDERS,
    GEMMA_SCOPE_REPOSITORIES,
    HOOK_Z,
    MLP_IN,
    MLP_OUT,
    RESID_POST,
)

LLAMA_SCOPE_LETTERS = {"R": RESID_POST, "A": ATTN_OUT, "M": MLP_OUT}
"""Position in Llama Scope's names, ``L15R-8x``, to the site. The SAE's own file decides; this must agree."""


def training_of(sae: RegisteredSae, files: HubFiles) -> Told:
    """Where an SAE reads, and on which kind of model it was trained.

    Args:
        sae: the SAE.
        files: the hub's small files.

    Raises:
        Refused: the place is none that can be read, or two sources differ.
        HubFileMissing: it takes a file of the hub that cannot be had.
        UserError: such a file is damaged.
    """
    rule = RULES.get(sae.loader)
    if rule is None:
        raise sae.refused(f"sae-lens's loader {sae.loader!r} is not known here; no rule says where it reads")
    return rule(sae, files)


def _of_the_code(sae: RegisteredSae) -> dict[str, Any]:
    """What the loader's own code says, for loaders that ask the hub for nothing."""
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_CONFIG_GETTERS

    getter = NAMED_PRETRAINED_SAE_CONFIG_GETTERS[sae.loader]
    try:
        return getter(sae.repo_id, sae.path, "cpu", False, dict(sae.overrides))
    except ValueError as error:
        raise sae.refused(f"sae-lens's loader {sae.loader} says: {error}") from None


def _by_code(sae: RegisteredSae, own: str) -> Told:
    """A loader whose code settles the site, beside what the names say."""
    said = _of_the_code(sae)
    statements = {
        "the name": own,
        "the id": sae.hook_in_id,
        "sae-lens's loader": said["hook_name"],
        "hf_hook_name of sae-lens's loader": said.get("hf_hook_name") or "",
    }
    return Told(
        agreed(sae, statements),
        prepend_bos=said.get("prepend_bos", True),
        model_arguments=said.get("model_from_pretrained_kwargs") or {},
        model_name=said["model_name"],
    )


def _gemma_2(sae: RegisteredSae, files: HubFiles) -> Told:
    repository = matched(sae, r"google/gemma-scope-\w+-(?:pt|it)-(res|mlp|att)", sae.repo_id, "repository")
    pattern = r"(?:layer_(\d+)|embedding)/width_\w+/average_l0_\d+"
    block = matched(sae, pattern, sae.path, "path")[1]
    return _by_code(sae, hook_of(block, GEMMA_SCOPE_REPOSITORIES[repository[1]]) if block else "hook_embed")


def _gemma_2_transcoder(sae: RegisteredSae, files: HubFiles) -> Told:
    matched(sae, r"google/gemma-scope-\w+-(?:pt|it)-transcoders", sae.repo_id, "repository")
    matched(sae, r"layer_\d+/width_\w+/average_l0_\d+", sae.path, "path")
    return _by_code(sae, "")


def _gemma_3(sae: RegisteredSae, files: HubFiles) -> Told:
    folder, _, rest = sae.path.partition("/")
    if folder not in GEMMA_SCOPE_2_FOLDERS:
        raise sae.refused(
            f"folder {folder!r} is none of those that are known: {', '.join(GEMMA_SCOPE_2_FOLDERS)}"
        )
    block = matched(sae, r"(?:.*/)?(?:\w+_)?layer_(\d+)(?:_\w+)?", rest, "path")[1]
    config = files.cached(sae.repo_id, f"{sae.path}/config.json") or {}
    statements = {
        "the folder": hook_of(block, GEMMA_SCOPE_2_FOLDERS[folder]),
        "hf_hook_point_in of its config.json": str(config.get("hf_hook_point_in") or ""),
    }
    return Told(agreed(sae, statements))


def _llama_scope(sae: RegisteredSae, files: HubFiles) -> Told:
    name = {"llama_scope": "hyperparams.json", "llama_scope_r1_distill": "config.json"}[sae.loader]
    found = matched(sae, r"(?:.*[/-])?L(\d+)([A-Z]+)(?:-\d+x)?", sae.path, "path")
    config = files.needed(sae.repo_id, f"{sae.path}/{name}")
    kind = LLAMA_SCOPE_LETTERS.get(found[2])
    statements = {
        f"hook_point_in of {name}": str(config.get("hook_point_in") or ""),
        "the letter in its path": hook_of(found[1], kind) if kind else "",
    }
    if not statements[f"hook_point_in of {name}"]:
        raise sae.refused(f"its {name} has no hook_point_in, and nothing else decides where it reads")
    return Told(agreed(sae, statements), file=name, model_name="meta-llama/Llama-3.1-8B")


def _dictionary_learning(sae: RegisteredSae, files: HubFiles) -> Told:
    pattern = r"(?:.*/)?resid_post_layer_(\d+)(?:_checkpoints)?/trainer_\w+"
    block = matched(sae, pattern, sae.path, "path")[1]
    name = f"{sae.path}/config.json"
    config = (files.cached if sae.hook_in_id else files.needed)(sae.repo_id, name)
    try:
        trainer = config["trainer"] if config else {}
        layer = hook_of(trainer["layer"], RESID_POST) if config else ""
    except (KeyError, TypeError, ValueError):
        raise sae.refused(
            "its config.json has no trainer with a layer, which sae-lens's loader reads"
        ) from None
    statements = {
        "the path": hook_of(block, RESID_POST),
        "the id": sae.hook_in_id,
        "trainer.layer of its config.json": layer,
    }
    return Told(
        agreed(sae, statements),
        file="" if sae.hook_in_id else "config.json",
        model_name=str(trainer.get("lm_name") or ""),
    )


def _qwen_scope(sae: RegisteredSae, files: HubFiles) -> Told:
    return _by_code(sae, hook_of(matched(sae, r"layer(\d+)\.sae\.pt", sae.path, "path")[1], RESID_POST))


def _goodfire(sae: RegisteredSae, files: HubFiles) -> Told:
    return _by_code(sae, hook_of(matched(sae, r"layer_(\d+)", sae.sae_id, "id")[1], RESID_POST))


def _deepseek_r1(sae: RegisteredSae, files: HubFiles) -> Told:
    return _by_code(sae, "")


def _sparsify(sae: RegisteredSae, files: HubFiles) -> Told:
    folder = sae.path.rsplit("/", 1)[-1]
    if folder == "embed_tokens":
        raise sae.refused("it reads the token embeddings, which carry no context")
    block = matched(sae, r"layers[._](\d+)", folder, "folder")[1]
    return Told(agreed(sae, {"the folder": hook_of(block, RESID_POST), "the id": sae.hook_in_id}))


def _connor_rob(sae: RegisteredSae, files: HubFiles) -> Told:
    block = matched(sae, r"gpt2-small_L(\d+)_Hcat_z_.*\.pt", sae.path, "path")[1]
    name = f"{sae.path.split('.pt')[0]}_cfg.json"
    config = files.cached(sae.repo_id, name) or {}
    statements = {
        "the path": hook_of(block, HOOK_Z),
        "the id": sae.hook_in_id,
        "act_name of its cfg.json": str(config.get("act_name") or ""),
    }
    return Told(agreed(sae, statements), model_name="gpt2-small")


def _temporal(sae: RegisteredSae, files: HubFiles) -> Told:
    block = matched(sae, r".*layer_(\d+)/temporal", sae.path, "path")[1]
    statements = {"the path": hook_of(block, RESID_POST), "the id": sae.hook_in_id}
    return Told(agreed(sae, statements), model_name=str(sae.overrides.get("model_name") or ""))


def _mwhanna(sae: RegisteredSae, files: HubFiles) -> Told:
    block = matched(sae, r"layer_(\d+)\.safetensors", sae.path, "path")[1]
    return Told(
        agreed(sae, {"sae-lens's loader": hook_of(block, MLP_IN)}), model_arguments={"fold_ln": False}
    )


def _mntss(sae: RegisteredSae, files: HubFiles) -> Told:
    block = matched(sae, r"\d+", sae.path, "path")[0]
    config = files.needed(sae.repo_id, "config.yaml")
    within = config.get("feature_input_hook")
    statements = {"feature_input_hook of config.yaml": f"blocks.{block}.{within}" if within else ""}
    return Told(
        agreed(sae, statements),
        file="config.yaml",
        model_arguments={"fold_ln": False},
        model_name=str(config.get("model_name") or ""),
    )


def _sae_lens(sae: RegisteredSae, files: HubFiles) -> Told:
    ask = files.wanted if sae.hook_in_id else files.needed
    own = ask(sae.repo_id, f"{sae.path}/cfg.json")
    if own is None:
        arguments = sae.overrides.get("model_from_pretrained_kwargs") or {}
        return Told(agreed(sae, {"the id": sae.hook_in_id}), prepend_bos=None, model_arguments=arguments)
    # Since its version 6 sae-lens writes what an SAE was trained on under metadata, before at the top.
    nested = own.get("metadata")
    config = {**own, **(nested if isinstance(nested, dict) else {}), **sae.overrides}
    statements = {
        "the id": sae.hook_in_id,
        "its cfg.json": str(config.get("hook_name") or config.get("hook_point") or ""),
    }
    head = config.get("hook_head_index", config.get("hook_point_head_index"))
    if head is not None:
        raise sae.refused(f"it reads attention head {head} alone, and a site is read whole here")
    bos = config.get("prepend_bos")
    return Told(
        agreed(sae, statements),
        file="" if sae.hook_in_id else "cfg.json",
        prepend_bos=True if bos is None else bool(bos),
        model_arguments=config.get("model_from_pretrained_kwargs") or {},
        model_name=str(config.get("model_name") or ""),
    )


RULES: Mapping[str, Callable[[RegisteredSae, HubFiles], Told]] = {
    "sae_lens": _sae_lens,
    "connor_rob_hook_z": _connor_rob,
    "gemma_2": _gemma_2,
    "gemma_2_transcoder": _gemma_2_transcoder,
    "gemma_3": _gemma_3,
    "llama_scope": _llama_scope,
    "llama_scope_r1_distill": _llama_scope,
    "dictionary_learning_1": _dictionary_learning,
    "deepseek_r1": _deepseek_r1,
    "qwen_scope": _qwen_scope,
    "goodfire": _goodfire,
    "sparsify": _sparsify,
    "temporal": _temporal,
    "mwhanna_transcoder": _mwhanna,
    "mntss_clt_layer_transcoder": _mntss,
}
"""sae-lens's name of a loader to the rule that knows where its SAEs read."""
