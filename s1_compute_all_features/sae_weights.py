"""SAE weights: where they are, what was trained on what, and only the tensors that encoding needs.

Axes: D d_model, F features (d_sae).
"""

import json
import logging
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import read_npz
from s1_compute_all_features.encoder_matrix import matrix_from_npz, matrix_from_safetensors
from s1_compute_all_features.fingerprints import fingerprint_of_file
from s1_compute_all_features.hub import resolve_folder, unavailable
from s1_compute_all_features.sae_configurations import SaeConfigurations, SaeEntry

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

PARAMS, WEIGHTS, CFG = "params.npz", "sae_weights.safetensors", "cfg.json"
UNSUPPORTED = {
    "abstopk": "its latents may be negative, and a store holds activations above zero",
    "temporal": "it encodes whole sequences, and each token stands for itself here",
}
_WEIGHT_FILES = {"gemma_scope": (PARAMS,), "sae_lens": (WEIGHTS, CFG)}


@dataclass(frozen=True)
class LocatedSae:
    """An SAE whose weights are on this disk.

    Attributes:
        entry: its configuration.
        weights: the weight file; None where sae-lens's registry alone knows how to load it.
        fingerprint: of the weights.
    """

    entry: SaeEntry
    weights: Path | None
    fingerprint: str

    @property
    def n_bytes(self) -> int:
        """Bytes that encoding reads of it: most of them W_enc, which is about half of the weights."""
        return self.weights.stat().st_size // 2 if self.weights else 0


@dataclass(frozen=True)
class ThresholdWeights:
    """The encoder of a JumpReLU or ReLU SAE, float32.

    Attributes:
        W_FD: W_enc with features as rows, [F, D].
        b_enc: [F], with the subtraction of b_dec folded in where the SAE has one.
        threshold: [F], at least 0; a ReLU SAE has zeros.
    """

    W_FD: "torch.Tensor"
    b_enc: "torch.Tensor"
    threshold: "torch.Tensor"


def locate_sae(
    configurations: SaeConfigurations, entry: SaeEntry, configuration_folder: Path, sae_root: Path | None
) -> LocatedSae:
    """Find an SAE's weights: below ``sae_root``, else below the configuration's own root, else on the hub.

    Raises:
        UserError: they are not there and cannot be fetched.
    """
    import huggingface_hub

    root = sae_root
    if root is None and configurations.sae_root:
        root = resolve_folder(configurations.sae_root, configuration_folder)
        if root is None:
            raise UserError(
                f"{configuration_folder / configurations.sae_root}: no such folder; the configuration reads "
                "its SAEs there; give another by --sae-root"
            )
    if root is not None:
        found = [path for names in _WEIGHT_FILES.values() if (path := root / entry.path / names[0]).is_file()]
        if not found:
            raise UserError(
                f"{root / entry.path}: neither {PARAMS} nor {WEIGHTS} there; "
                f"expected the weights of SAE {entry.name}"
            )
        return LocatedSae(entry, found[0], fingerprint_of_file(found[0]))
    if configurations.weights_format == "registry":
        return LocatedSae(entry, None, f"{configurations.release}/{entry.sae_id}")
    try:
        names = _WEIGHT_FILES[configurations.weights_format]
        paths = [
            Path(huggingface_hub.hf_hub_download(configurations.repo_id, f"{entry.path}/{name}"))
            for name in names
        ]
    except (OSError, ValueError) as error:
        raise unavailable(
            f"SAE {entry.sae_id} of {configurations.repo_id}", configurations.repo_id, error
        ) from error
    return LocatedSae(entry, paths[0], fingerprint_of_file(paths[0]))


def sae_width(located: LocatedSae, configurations: SaeConfigurations) -> int:
    """Number of features of an SAE, from its smallest array: the large ones stay on disk.

    Raises:
        UserError: the file is damaged, or its encoder is no matrix.
    """
    if located.weights is None:
        return int(load_with_sae_lens(located, configurations, "cpu").cfg.d_sae)
    if located.weights.name == PARAMS:
        return read_npz(located.weights, ("b_enc",), "Gemma Scope params.npz")["b_enc"].size
    shape = _safetensors(located.weights, "W_enc", shape_only=True)
    if len(shape) != 2:
        raise UserError(f"{located.weights}: W_enc has the shape {tuple(shape)}, no matrix; fetch it again")
    return int(shape[1])


def read_threshold_weights(located: LocatedSae, configurations: SaeConfigurations) -> ThresholdWeights | None:
    """The encoder of a JumpReLU or ReLU SAE; the decoder stays on disk.

    Returns:
        None for every other kind of SAE, which sae-lens has to run itself.

    Raises:
        UserError: damaged weights, or an SAE that was trained on something else than the
            configuration says.
    """
    import torch

    if located.weights is None:
        return None
    if located.weights.name == PARAMS:
        arrays = read_npz(located.weights, ("b_enc", "threshold"), "Gemma Scope params.npz")
        _refuse_no_floats(located.weights, arrays)
        b_enc, threshold = (torch.from_numpy(array).float() for array in arrays.values())
        W_FD = matrix_from_npz(located.weights, "W_enc")
        _refuse_other_widths(located.weights, W_FD, b_enc=b_enc, threshold=threshold)
        return ThresholdWeights(W_FD, b_enc, threshold.clamp(min=0))
    cfg = _sae_lens_cfg(located.weights.parent)
    metadata = cfg.get("metadata", {})
    check_training(
        located.entry,
        configurations,
        metadata.get("hook_name"),
        metadata.get("prepend_bos"),
        cfg.get("normalize_activations", "none"),
    )
    _refuse_architecture(located.entry, cfg["architecture"])
    plain = {"normalize_activations": "none", "reshape_activations": "none"}
    if cfg["architecture"] not in ("standard", "jumprelu"):
        return None
    if any(cfg.get(key) not in (value, None) for key, value in plain.items()):
        return None
    names = ["b_enc", *(["threshold"] if cfg["architecture"] == "jumprelu" else [])]
    stored = set(_safetensors_names(located.weights))
    if not {*names, "W_enc", "b_dec"} <= stored or "scaling_factor" in stored:
        return None
    tensors = {name: _safetensors(located.weights, name).float() for name in names}
    W_FD, b_enc = matrix_from_safetensors(located.weights, "W_enc"), tensors["b_enc"]
    _refuse_other_widths(located.weights, W_FD, **tensors)
    if cfg.get("apply_b_dec_to_input", True):
        # x - b_dec goes into the bias: (x - b_dec) @ W_enc + b_enc.
        b_enc = b_enc - W_FD @ _safetensors(located.weights, "b_dec").float()
    threshold = tensors.get("threshold", torch.zeros_like(b_enc))
    return ThresholdWeights(W_FD, b_enc, threshold.clamp(min=0))


def _refuse_no_floats(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    for name, array in arrays.items():
        if array.dtype.kind != "f":
            raise UserError(f"{path}: {name} holds {array.dtype}, not floating-point numbers; fetch it again")


def _refuse_other_widths(path: Path, W_FD: "torch.Tensor", **vectors: "torch.Tensor") -> None:
    """Stop where a vector has not one value for each feature of the matrix."""
    for name, vector in vectors.items():
        if vector.shape != W_FD.shape[:1]:
            raise UserError(
                f"{path}: {name} has the shape {tuple(vector.shape)}, W_enc has {len(W_FD)} features; "
                "fetch it again"
            )


def read_decoder(located: LocatedSae) -> "tuple[torch.Tensor, torch.Tensor] | None":
    """W_dec [F, D] and b_dec [D] in float32; None where only sae-lens knows how to decode."""
    import torch

    if located.weights is None:
        return None
    if located.weights.name == PARAMS:
        arrays = read_npz(located.weights, ("W_dec", "b_dec"), "Gemma Scope params.npz")
        return torch.from_numpy(arrays["W_dec"]).float(), torch.from_numpy(arrays["b_dec"]).float()
    return _safetensors(located.weights, "W_dec").float(), _safetensors(located.weights, "b_dec").float()


def load_with_sae_lens(located: LocatedSae, configurations: SaeConfigurations, device: str) -> Any:
    """The whole SAE as sae-lens loads it.

    Raises:
        UserError: the weights cannot be had, or the SAE was trained on something else than the
            configuration says.
    """
    _say_that_sae_lens_loads()
    from sae_lens import SAE

    try:
        if located.weights is not None:
            sae = SAE.load_from_disk(located.weights.parent, device=device)
        else:
            sae = SAE.from_pretrained(configurations.release, located.entry.sae_id, device=device)
    except (OSError, ValueError) as error:
        raise unavailable(f"SAE {located.entry.sae_id}", configurations.repo_id, error) from error
    cfg = sae.cfg
    _refuse_architecture(located.entry, cfg.architecture())
    check_training(
        located.entry,
        configurations,
        cfg.metadata.hook_name,
        cfg.metadata.prepend_bos,
        cfg.normalize_activations,
    )
    return sae


def _refuse_architecture(entry: SaeEntry, architecture: str) -> None:
    if architecture in UNSUPPORTED:
        raise UserError(
            f"SAE {entry.name} is of the architecture {architecture}, which cannot be stored: "
            f"{UNSUPPORTED[architecture]}"
        )


def check_training(
    entry: SaeEntry,
    configurations: SaeConfigurations,
    hook: str | None,
    prepend_bos: bool | None,
    normalize_activations: str | None,
) -> None:
    """What an SAE's files say of its training against what the configuration says of it.

    Raises:
        UserError: they differ, or the files lack a factor that the activations are scaled by.
    """
    for name, found, configured in (
        ("hook", hook, entry.hook),
        ("prepend_bos", prepend_bos, configurations.model.prepend_bos),
    ):
        if found is not None and found != configured:
            raise UserError(
                f"SAE {entry.name} was trained with {name} {found!r}, the configuration says {configured!r}; "
                "correct it there"
            )
    if normalize_activations == "expected_average_only_in":
        raise UserError(
            f"SAE {entry.name} expects activations scaled by a factor that its files do not hold "
            "(normalize_activations = expected_average_only_in); fold the factor into its weights first"
        )


def _sae_lens_cfg(folder: Path) -> dict[str, Any]:
    """The SAE's own configuration, in sae-lens's present form whatever version wrote it."""
    try:
        content = json.loads((folder / CFG).read_text(encoding="utf-8"))
        # Importing sae-lens takes up to half a minute, so only an old form is left to it.
        cfg: dict[str, Any] = content if _is_present_form(content) else _brought_up_to_date(content)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{folder / CFG}: not the configuration of a sae-lens SAE ({error}); fetch it again"
        ) from None
    return cfg


def _is_present_form(content: Any) -> bool:
    """Whether sae-lens would take the configuration as it stands: a release from 6 on wrote it."""
    if not isinstance(content, dict):
        raise ValueError("no object")
    metadata = content.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(content.get("architecture"), str):
        return False
    version = content.get("sae_lens_version") or metadata.get("sae_lens_version")
    release = re.fullmatch(r"(\d+)\.\d+\.\d+", str(version))
    return release is not None and int(release[1]) >= 6


def _brought_up_to_date(content: dict[str, Any]) -> dict[str, Any]:
    _say_that_sae_lens_loads()
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    cfg: dict[str, Any] = handle_config_defaulting(content)
    return cfg


def _say_that_sae_lens_loads() -> None:
    if "sae_lens" not in sys.modules:
        logger.info("loading sae-lens, which these SAEs need ...")


def _safetensors_names(path: Path) -> list[str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            return list(tensors.keys())
    except SafetensorError as error:
        raise _damaged(path, error) from None


def _safetensors(path: Path, name: str, shape_only: bool = False) -> Any:
    """One tensor of a file, or its shape; the others stay on disk."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            return tensors.get_slice(name).get_shape() if shape_only else tensors.get_tensor(name)
    except SafetensorError as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: damaged or not an SAE's weights ({error}); fetch it again")
