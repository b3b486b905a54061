"""What an SAE's own files say of it: architecture, site, shapes; and whether all of it is understood.

Nothing here reads a matrix, so that every SAE of a run can be looked at before the forward pass. What is not
understood is refused: sae-lens drops keys that it does not know, and a dropped key can change every
activation.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline_common.errors import UserError
from s1_compute_all_features.saes.sites import AMBIGUOUS, Site, site_of

TENSORS: dict[str, tuple[str, ...]] = {
    "standard": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "jumprelu": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"),
    "topk": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "gated": ("W_enc", "W_dec", "b_dec", "b_gate", "b_mag", "r_mag"),
    "matching_pursuit": ("W_dec", "b_dec"),
    "transcoder": ("W_enc", "W_dec", "b_enc", "b_dec"),
    "skip_transcoder": ("W_enc", "W_dec", "b_enc", "b_dec", "W_skip"),
    "jumprelu_transcoder": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold"),
    "jumprelu_skip_transcoder": ("W_enc", "W_dec", "b_enc", "b_dec", "threshold", "W_skip"),
}
"""Architecture, as sae-lens names it, to the tensors that an SAE of it consists of."""

THRESHOLD_ARCHITECTURES = frozenset(
    {
        "standard",
        "jumprelu",
        "transcoder",
        "skip_transcoder",
        "jumprelu_transcoder",
        "jumprelu_skip_transcoder",
    }
)
"""Those whose encoder is a matrix, a bias and a threshold: they need not be run by sae-lens."""

_AXES = {
    **{"W_enc": "DF", "W_dec": "FO", "W_skip": "OD", "b_dec": "O"},
    **dict.fromkeys(("b_enc", "threshold", "b_gate", "b_mag", "r_mag"), "F"),
}
"""Tensor to its axes: D d_in, F d_sae, O d_out, which is d_in but for transcoders."""

_REFUSED = {
    "abstopk": "its latents may be negative, and a store holds activations above zero",
    "temporal": "it encodes whole sequences, and each token stands for itself here",
}
TRAINING_ONLY = ("batchtopk", "matryoshka_batchtopk")

_KEYS_OF_ARCHITECTURES = {
    "k": ("topk",),
    "rescale_acts_by_decoder_norm": ("topk",),
    "d_out": tuple(name for name in TENSORS if name.endswith("transcoder")),
    "residual_threshold": ("matching_pursuit",),
    "max_iterations": ("matching_pursuit",),
    "jump_relu_threshold": (),
}
"""Keys of cfg.json that decide activations, and the architectures that have them: elsewhere they contradict
the architecture that is named."""

NORMALIZATIONS = ("none", "layer_norm", "constant_norm_rescale")
_LOST_FACTORS = {
    "expected_average_only_in": "scaled by a factor",
    "covariance_whitening": "whitened by a matrix",
}
_WITHOUT_EFFECT = {"fold_ln": False, "fold_value_biases": False, "center_unembed": False}
"""Arguments of the model's loading that leave its activations as they are, with the value that does."""


@dataclass(frozen=True)
class SaeSpec:
    """What an SAE's files say.

    Attributes:
        architecture: a key of `TENSORS`.
        d_in: width of what it reads.
        d_sae: number of features.
        site: where it reads; None where its files do not say.
        normalization: of its input, one of `NORMALIZATIONS`.
        subtracts_b_dec: b_dec is subtracted from the input.
        prepend_bos: whether it was trained with a BOS token in front; None where its files do not say.
        centred: whether the model's writing weights were centred; None where its files do not say.
    """

    architecture: str
    d_in: int
    d_sae: int
    site: Site | None = None
    normalization: str = "none"
    subtracts_b_dec: bool = False
    prepend_bos: bool | None = None
    centred: bool | None = None

    @property
    def is_transcoder(self) -> bool:
        """Whether it predicts something else than what it reads."""
        return self.architecture.endswith("transcoder")

    @property
    def is_threshold_encoder(self) -> bool:
        """Whether its encoder is a matrix, a bias and a threshold on the input as it is."""
        return self.architecture in THRESHOLD_ARCHITECTURES and self.normalization == "none"


def spec_of_cfg(where: str, cfg: Mapping[str, Any]) -> SaeSpec:
    """What a sae-lens configuration in its present form says.

    Args:
        where: the file or id, for messages.
        cfg: its content.

    Raises:
        UserError: a value that is missing, unknown, or contradicts another.
    """
    architecture = cfg.get("architecture")
    _refuse_architecture(where, architecture)
    assert isinstance(architecture, str)
    for key, owners in _KEYS_OF_ARCHITECTURES.items():
        if cfg.get(key) is not None and architecture not in owners:
            raise UserError(
                f"{where}: {key} = {cfg[key]!r} does not go with the architecture {architecture}; correct "
                "the one or the other there"
            )
    metadata: Mapping[str, Any] = cfg.get("metadata", {})
    head = metadata.get("hook_head_index")
    if head is not None:
        raise UserError(
            f"{where}: it reads head {head!r} alone, which is not supported; use SAEs of a whole site"
        )
    subtracts = cfg.get("apply_b_dec_to_input", True)
    spec = SaeSpec(
        architecture=architecture,
        d_in=_size(where, cfg, "d_in"),
        d_sae=_size(where, cfg, "d_sae"),
        site=site_of_metadata(where, metadata),
        normalization=_normalization(where, cfg.get("normalize_activations") or "none"),
        subtracts_b_dec=bool(subtracts),
        prepend_bos=metadata.get("prepend_bos"),
        centred=_centred(where, metadata.get("model_from_pretrained_kwargs") or {}),
    )
    if spec.is_transcoder and subtracts:
        raise UserError(
            f"{where}: a transcoder's b_dec belongs to its output, but apply_b_dec_to_input is "
            f"{cfg.get('apply_b_dec_to_input', 'not given, which means true')}; set it to false there"
        )
    reshape = cfg.get("reshape_activations") or "none"
    if reshape not in ("none", "hook_z"):
        raise UserError(f"{where}: reshape_activations is {reshape!r}; known are none and hook_z")
    return spec


def site_of_metadata(where: str, metadata: Mapping[str, Any]) -> Site | None:
    """The site that an SAE's files name, in TransformerLens' words, in Hugging Face's, or in both.

    Raises:
        UserError: an unknown name, or two that disagree.
    """
    hook, module = metadata.get("hook_name"), metadata.get("hf_hook_name")
    try:
        by_module = site_of(module) if module else None
        if by_module is not None and hook is not None and str(hook).endswith(f".{AMBIGUOUS}"):
            return by_module  # the weights' own word; the other name has two meanings
        by_hook = site_of(hook) if hook else None
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None
    if by_hook is not None and by_module is not None and by_hook != by_module:
        raise UserError(
            f"{where}: hook_name says {hook!r}, hf_hook_name {module!r}: two places; correct the one that is "
            "wrong there"
        )
    return by_hook or by_module


def _refuse_architecture(where: str, architecture: object) -> None:
    if not isinstance(architecture, str | None):
        raise UserError(f"{where}: the architecture {architecture!r} is no name; fetch the SAE again")
    if architecture in _REFUSED:
        raise UserError(
            f"{where}: the architecture {architecture} cannot be stored: {_REFUSED[architecture]}"
        )
    if architecture in TRAINING_ONLY:
        raise UserError(
            f"{where}: the architecture {architecture} is that of a training checkpoint; save the SAE with "
            "save_inference_model and use what that writes"
        )
    if architecture not in TENSORS:
        said = "is missing" if architecture is None else f"{architecture!r} is unknown here"
        raise UserError(f"{where}: the architecture {said}; known are {', '.join(TENSORS)}")


def _size(where: str, cfg: Mapping[str, Any], key: str) -> int:
    value = cfg.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"{where}: {key} is {value!r}, not a number of at least 1; fetch the SAE again")
    return value


def _normalization(where: str, value: object) -> str:
    if value in _LOST_FACTORS:
        raise UserError(
            f"{where}: it expects activations {_LOST_FACTORS[str(value)]} that its files do not hold "
            f"(normalize_activations = {value}); fold that into its weights first"
        )
    if value not in NORMALIZATIONS:
        raise UserError(f"{where}: normalize_activations is {value!r}; known are {', '.join(NORMALIZATIONS)}")
    return str(value)


def _centred(where: str, arguments: Mapping[str, Any]) -> bool | None:
    """Whether the model was loaded with centred writing weights, from the arguments of its loading."""
    for name, value in arguments.items():
        without_effect = name in _WITHOUT_EFFECT and value == _WITHOUT_EFFECT[name]
        if name != "center_writing_weights" and not without_effect:
            raise UserError(
                f"{where}: it was trained on a model loaded with {name} = {value!r}, which is not understood "
                "here; use an SAE that was trained on the model as it is"
            )
    centred = arguments.get("center_writing_weights")
    return None if centred is None else bool(centred)


def refuse_other_tensors(
    where: str, spec: SaeSpec, shapes: Mapping[str, Sequence[int]], dtypes: Mapping[str, str]
) -> None:
    """Stop where the tensors are not those of the architecture, each in its shape and of floating point.

    Args:
        where: the weight file, for messages.
        spec: of the SAE.
        shapes: tensor to its shape.
        dtypes: tensor to what it holds, as NumPy or safetensors names it.

    Raises:
        UserError: a tensor is missing, is one too many, or is not what it should be.
    """
    wanted = TENSORS[spec.architecture]
    missing = [name for name in wanted if name not in shapes]
    if missing:
        raise UserError(
            f"{where}: {', '.join(missing)} missing, which the architecture {spec.architecture} has; there "
            f"are {', '.join(sorted(shapes)) or 'none'}; fetch it again, or correct the architecture"
        )
    further = sorted(set(shapes) - set(wanted))
    if further:
        raise UserError(
            f"{where}: {', '.join(further)} not known to the architecture {spec.architecture}, so weights "
            "and configuration do not belong together; correct the architecture, or fetch the SAE again"
        )
    d_out = int(shapes["W_dec"][-1]) if spec.is_transcoder and shapes["W_dec"] else spec.d_in
    sizes = {"D": spec.d_in, "F": spec.d_sae, "O": d_out}
    for name in wanted:
        expected = tuple(sizes[axis] for axis in _AXES[name])
        if tuple(shapes[name]) != expected:
            raise UserError(
                f"{where}: {name} has the shape {tuple(shapes[name])}, expected {expected} for d_in "
                f"{spec.d_in} and d_sae {spec.d_sae}; fetch it again"
            )
        if not dtypes[name].lower().startswith(("f", "bf")):
            raise UserError(
                f"{where}: {name} holds {dtypes[name]}, not floating-point numbers; fetch it again"
            )
