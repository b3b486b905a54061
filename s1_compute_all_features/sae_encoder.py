"""SAE encoders: find the weights, load what encoding needs, encode hidden states to sparse activations.

Axes: T tokens, D d_model, F features (d_sae).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import read_npz
from s1_compute_all_features.feature_store import SparseActivations
from s1_compute_all_features.fingerprints import fingerprint_of_file
from s1_compute_all_features.hub import resolve_folder, unavailable
from s1_compute_all_features.sae_configurations import SaeConfigurations, SaeEntry

if TYPE_CHECKING:
    import torch

_TOKENS_AT_ONCE = 1024
_WEIGHT_FILES = {"gemma_scope": ("params.npz",), "sae_lens": ("sae_weights.safetensors", "cfg.json")}


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


class SaeEncoder(ABC):
    """Encodes hidden states to non-negative sparse activations.

    Attributes:
        d_model: width of the input.
        d_sae: number of features.
    """

    d_model: int
    d_sae: int

    @abstractmethod
    def dense_activations(self, states_TD: "torch.Tensor") -> "torch.Tensor":
        """Activations, zeros included: [T, F] in the encoder's dtype, on its device."""

    def encode(self, states: "torch.Tensor", center: bool = False) -> SparseActivations:
        """Activations of hidden states.

        Args:
            states: float [T, D], full precision, on any device.
            center: subtract each token's mean over D first.

        Returns:
            [T, F] sparse; the non-zeros are taken out on the device, strip by strip.
        """
        import torch

        data, indices, lengths = [], [], []
        with torch.inference_mode():
            for strip in states.split(_TOKENS_AT_ONCE):
                strip_TD = strip.float()
                if center:
                    strip_TD = strip_TD - strip_TD.mean(dim=-1, keepdim=True)
                acts_TF = self.dense_activations(strip_TD)
                active_TF = acts_TF > 0
                data.append(acts_TF[active_TF].float().cpu().numpy())
                indices.append(active_TF.nonzero()[:, 1].cpu().numpy())
                lengths.append(active_TF.sum(dim=1).cpu().numpy())
        index_type = np.uint16 if self.d_sae <= np.iinfo(np.uint16).max + 1 else np.uint32
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        return SparseActivations(
            np.concatenate(data),
            np.concatenate(indices).astype(index_type),
            indptr,
            (len(states), self.d_sae),
        )


class ThresholdEncoder(SaeEncoder):
    """JumpReLU and ReLU SAEs: ``p * (p > threshold)`` with ``p = x @ W_enc + b_enc``, p > 0.

    Rajamanoharan et al. 2024, "Jumping Ahead" (JumpReLU); a ReLU SAE has threshold 0.
    """

    def __init__(self, W_enc: "torch.Tensor", b_enc: "torch.Tensor", threshold: "torch.Tensor") -> None:
        """Take the weights.

        Args:
            W_enc: [D, F].
            b_enc: [F].
            threshold: [F]; a negative one acts as 0, since the activation is rectified besides.
        """
        self.W_enc, self.b_enc = W_enc, b_enc
        self.threshold = threshold.clamp(min=0)
        self.d_model, self.d_sae = W_enc.shape

    def dense_activations(self, states_TD: "torch.Tensor") -> "torch.Tensor":
        """Activations, zeros included: [T, F]."""
        import torch

        acts_TF = torch.addmm(self.b_enc, states_TD.to(self.W_enc), self.W_enc)
        return acts_TF.mul_(acts_TF > self.threshold)


class SaeLensEncoder(SaeEncoder):
    """Any other architecture, by sae-lens's own ``SAE.encode``."""

    def __init__(self, sae: Any) -> None:
        """Take a loaded sae-lens SAE."""
        self.sae = sae
        self.d_model, self.d_sae = sae.cfg.d_in, sae.cfg.d_sae

    def dense_activations(self, states_TD: "torch.Tensor") -> "torch.Tensor":
        """Activations, zeros included: [T, F]."""
        acts_TF: torch.Tensor = self.sae.encode(states_TD.to(self.sae.device))
        return acts_TF


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
                f"{configuration_folder / configurations.sae_root}: no such folder; the configuration "
                "reads its "
                "SAEs there (the demonstration's are made by build_demo_model.py)"
            )
    if root is not None:
        found = [path for names in _WEIGHT_FILES.values() if (path := root / entry.path / names[0]).is_file()]
        if not found:
            raise UserError(
                f"{root / entry.path}: neither params.npz nor sae_weights.safetensors there; "
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
    """Number of features of an SAE, from its smallest array: the large ones stay on disk."""
    if located.weights is None:
        return load_encoder(located, configurations, "cpu").d_sae
    if located.weights.name == "params.npz":
        return len(read_npz(located.weights, ("b_enc",), "Gemma Scope params.npz")["b_enc"])
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(located.weights, framework="numpy") as tensors:
            return int(tensors.get_slice("W_enc").get_shape()[1])
    except SafetensorError as error:
        raise UserError(
            f"{located.weights}: damaged or not an SAE's weights ({error}); fetch it again"
        ) from None


def load_encoder(located: LocatedSae, configurations: SaeConfigurations, device: str) -> SaeEncoder:
    """Load an SAE's encoder in float32.

    Raises:
        UserError: damaged weights, or an SAE that was trained on something else than the
            configuration says.
    """
    import torch

    if located.weights is not None and located.weights.name == "params.npz":
        arrays = read_npz(located.weights, ("W_enc", "b_enc", "threshold"), "Gemma Scope params.npz")
        tensors = {name: torch.from_numpy(array).float().to(device) for name, array in arrays.items()}
        return ThresholdEncoder(**tensors)
    from sae_lens import SAE

    if located.weights is not None:
        sae = SAE.load_from_disk(located.weights.parent, device=device)
    else:
        sae = SAE.from_pretrained(configurations.release, located.entry.sae_id, device=device)
    _check_training(sae.cfg, located.entry, configurations)
    return _threshold_encoder(sae) or SaeLensEncoder(sae)


def _check_training(cfg: Any, entry: SaeEntry, configurations: SaeConfigurations) -> None:
    """What the SAE says of itself against what the configuration says of it."""
    metadata = cfg.metadata
    checks = (
        ("hook", metadata.hook_name, entry.hook),
        ("prepend_bos", metadata.prepend_bos, configurations.model.prepend_bos),
    )
    for name, found, configured in checks:
        if found is not None and found != configured:
            raise UserError(
                f"SAE {entry.name} was trained with {name} {found!r}, the configuration says "
                f"{configured!r}; correct it there"
            )
    if cfg.normalize_activations == "expected_average_only_in":
        raise UserError(
            f"SAE {entry.name} expects activations scaled by a factor that its files do not hold "
            "(normalize_activations = expected_average_only_in); fold the factor into its weights first"
        )


def _threshold_encoder(sae: Any) -> ThresholdEncoder | None:
    """The fast path for an SAE that has one; None for the others."""
    import torch

    cfg = sae.cfg
    if cfg.architecture() not in ("jumprelu", "standard") or cfg.normalize_activations != "none":
        return None
    if cfg.reshape_activations != "none":
        return None
    with torch.no_grad():
        # x - b_dec goes into the bias: (x - b_dec) @ W_enc + b_enc.
        b_enc = sae.b_enc - (sae.b_dec @ sae.W_enc if cfg.apply_b_dec_to_input else 0)
        threshold = sae.threshold if cfg.architecture() == "jumprelu" else torch.zeros_like(sae.b_enc)
        return ThresholdEncoder(sae.W_enc.detach(), b_enc.detach(), threshold.detach())
