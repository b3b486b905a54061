"""Places inside a transformer block: which module of each architecture they are, and hooks that read them.

An architecture outside `BLOCKS`, or a module that is not what the table says, is refused: a wrong place would
give numbers that look right. Only sites that are no whole hidden layer are found here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pipeline_common.errors import UserError
from s1_compute_all_features.models.norms import ignores_mean, misread, normalised
from s1_compute_all_features.sae_configurations import SaeConfigurations
from s1_compute_all_features.saes.sites import (
    ATTN_OUT,
    DESCRIPTIONS,
    HOOK_Z,
    MLP_IN,
    MLP_NORMALIZED,
    MLP_OUT,
    RESID_MID,
    Site,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BlockNames:
    """The modules of a block that normalises what attention and MLP read, each named from the block.

    Attributes:
        attention: what it returns, or begins its tuple with, goes to the residual stream.
        projection: of the heads' outputs, its last step.
        mlp: likewise.
        mlp_norm: of what the MLP reads.
        attention_norm_after: of what attention returns; None where that is added as it is.
        mlp_norm_after: of what the MLP returns.
        parallel: attention and MLP both read the block's input; or the configuration's flag that says so.
    """

    attention: str
    projection: str
    mlp: str
    mlp_norm: str
    attention_norm_after: str | None = None
    mlp_norm_after: str | None = None
    parallel: bool | str = False


_LLAMA = BlockNames("self_attn", "self_attn.o_proj", "mlp", "post_attention_layernorm")
_GEMMA_2 = BlockNames(
    "self_attn",
    "self_attn.o_proj",
    "mlp",
    "pre_feedforward_layernorm",
    "post_attention_layernorm",
    "post_feedforward_layernorm",
)

BLOCKS = {
    "gemma": _LLAMA,
    "gemma2": _GEMMA_2,
    "gemma3_text": _GEMMA_2,
    "gpt2": BlockNames("attn", "attn.c_proj", "mlp", "ln_2"),
    "gpt_neo": BlockNames("attn", "attn.attention.out_proj", "mlp", "ln_2"),
    "gpt_neox": BlockNames(
        "attention", "attention.dense", "mlp", "post_attention_layernorm", parallel="use_parallel_residual"
    ),
    "gpt_oss": _LLAMA,
    "gptj": BlockNames("attn", "attn.out_proj", "mlp", "ln_1", parallel=True),
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "mixtral": _LLAMA,
    "olmo": _LLAMA,
    "phi": BlockNames("self_attn", "self_attn.dense", "mlp", "input_layernorm", parallel=True),
    "phi3": _LLAMA,
    "qwen2": _LLAMA,
    "qwen3": _LLAMA,
    "qwen3_moe": _LLAMA,
    "smollm3": _LLAMA,
}
"""Architecture, as the text model's configuration calls its ``model_type``, to the names in its blocks."""

_ATTENTION, _PROJECTION, _NORM = ("Attention",), ("Linear", "Conv1D"), ("Norm",)
_MLP = ("MLP", "SparseMoeBlock")
"""Roles of a module, as the ends that the name of its class may have."""


def refuse_missing_sites(model: Any, configurations: SaeConfigurations) -> None:
    """Stop before the forward pass where the model cannot give what an SAE of a run reads.

    Args:
        model: a `LanguageModel`.
        configurations: its SAEs and ``center_residual`` are read.

    Raises:
        UserError: the model is too short, its architecture does not offer a site, or it shows its blocks
            the mean over d_model that ``center_residual`` takes away.
    """
    for sae in configurations.saes:
        if sae.site.block >= model.n_layers:
            raise UserError(
                f"SAE {sae.name} reads {sae.hook}, the model {model.description['id']} has {model.n_layers} "
                "layers"
            )
        if sae.site.stream_layer is None:
            try:
                _watched(model, sae.site)
            except UserError as error:
                raise UserError(f"SAE {sae.name} reads {error}") from None
    if configurations.saes and configurations.model.center_residual:
        _refuse_centring(model)


def watch_site(model: Any, site: Site, pick_up: "Callable[[torch.Tensor], None]") -> Any:
    """Register a hook that hands the values of a site, [n_sentences, longest, width], to ``pick_up``.

    Args:
        model: a `LanguageModel`.
        site: no whole hidden layer.
        pick_up: called once per forward pass, with values in the dtype of the model; those of
            ``mlp_normalized`` are float32, the precision in which norms compute.

    Returns:
        The handle that removes the hook. The hook returns None and so changes nothing.

    Raises:
        UserError: the architecture does not offer the site.
    """
    watched = _watched(model, site)

    def hand_over(value: Any) -> None:
        states = value[0] if isinstance(value, tuple) else value
        if states.ndim != 3 or states.shape[-1] != watched.width:
            raise _refusal(
                model,
                site,
                f"{type(watched.module).__name__} has values of the shape {tuple(states.shape)} there, "
                f"expected [n_sentences, longest, {watched.width}]",
            )
        pick_up(states if watched.norm is None else normalised(watched.norm, states))

    def on_input(module: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        hand_over(arguments[0] if arguments else keywords["hidden_states"])

    if watched.reads_input:
        return watched.module.register_forward_pre_hook(on_input, with_kwargs=True)
    return watched.module.register_forward_hook(lambda module, arguments, output: hand_over(output))


def width_at(model: Any, site: Site) -> int:
    """How many values a token has at a site: d_model, or those of all heads at ``hook_z``.

    Args:
        model: a `LanguageModel`.
        site: any.

    Raises:
        UserError: the architecture does not offer the site.
    """
    return int(model.d_model) if site.stream_layer is not None else _watched(model, site).width


@dataclass(frozen=True)
class _Watched:
    """Where a site stands.

    Attributes:
        module: the one to watch.
        reads_input: its input is the site, not its output.
        width: values of a token there.
        norm: the norm through whose first half the values go; None where they are taken as they are.
    """

    module: Any
    reads_input: bool
    width: int
    norm: Any = None


def _watched(model: Any, site: Site) -> _Watched:
    names, d_model = _names(model, site), int(model.d_model)
    if site.kind == HOOK_Z:
        projection = _module(model, site, names.projection, _PROJECTION)
        # A Conv1D holds its weights as [width in, width out].
        conv = type(projection).__name__.endswith("Conv1D")
        width_in, width_out = projection.weight.shape if conv else projection.weight.shape[::-1]
        if width_out != d_model:
            raise _refusal(model, site, f"its {names.projection} gives {width_out} values, not {d_model}")
        return _Watched(projection, True, int(width_in))
    if site.kind in (ATTN_OUT, MLP_OUT):
        inner, after, role = (
            (names.attention, names.attention_norm_after, _ATTENTION)
            if site.kind == ATTN_OUT
            else (names.mlp, names.mlp_norm_after, _MLP)
        )
        added = _module(model, site, inner, role) if after is None else _module(model, site, after, _NORM)
        return _Watched(added, False, d_model)
    if site.kind == MLP_IN:
        return _Watched(_module(model, site, names.mlp, _MLP), True, d_model)
    norm = _module(model, site, names.mlp_norm, _NORM)
    if site.kind == MLP_NORMALIZED:
        if problem := misread(norm, d_model):
            raise _refusal(model, site, f"its {names.mlp_norm}, a {type(norm).__name__}, {problem}")
        return _Watched(norm, True, d_model, norm)
    assert site.kind == RESID_MID
    if _is_parallel(model, names):
        raise _refusal(model, site, "its attention and its MLP both read the block's input")
    return _Watched(norm, True, d_model)


def _names(model: Any, site: Site) -> BlockNames:
    kind = _model_type(model)
    if kind not in BLOCKS:
        raise _refusal(
            model, site, f"it is a {kind}, and what stands in a block is known of {', '.join(BLOCKS)}"
        )
    return BLOCKS[kind]


def _model_type(model: Any) -> str:
    """The architecture of the text model, which may be part of a model that sees or hears too."""
    return str(model.model.config.get_text_config().model_type)


def _is_parallel(model: Any, names: BlockNames) -> bool:
    if isinstance(names.parallel, str):
        return bool(getattr(model.model.config.get_text_config(), names.parallel))
    return names.parallel


def _module(model: Any, site: Site, name: str, ends: tuple[str, ...]) -> Any:
    """A module of the site's block, refused where the name of its class has none of the expected ends."""
    try:
        module = model.blocks[site.block].get_submodule(name)
    except AttributeError:
        raise _refusal(model, site, f"block {site.block} has no {name}") from None
    kind = type(module).__name__
    if not kind.endswith(ends):
        raise _refusal(model, site, f"its {name} is a {kind}, expected a {' or '.join(ends)}")
    return module


def _refusal(model: Any, site: Site, reason: str) -> UserError:
    return UserError(
        f"{site.hook}, {DESCRIPTIONS[site.kind]}: {type(model.model).__name__} does not offer it ({reason}); "
        "take SAEs of the residual stream, or the model that they were trained on"
    )


def _refuse_centring(model: Any) -> None:
    """Stop where the mean over d_model of what a block reads says something: only a LayerNorm ignores it.

    TransformerLens centres the writing weights of models with LayerNorm alone, and leaves others as they are.
    """
    kind, what = _model_type(model), f"center_residual: the model {model.description['id']}"
    remedy = 'set "center_residual": false, or take the model that the SAEs were trained on'
    if kind not in BLOCKS:
        raise UserError(f"{what} is a {kind}, whose norms are not known to ignore the mean; {remedy}")
    norm = _module(model, Site(0, MLP_NORMALIZED), BLOCKS[kind].mlp_norm, _NORM)
    if not ignores_mean(norm):
        raise UserError(f"{what} has no LayerNorm but {type(norm).__name__}, which heeds the mean; {remedy}")
