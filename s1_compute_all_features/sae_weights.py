"""SAE weights: where they are, what was trained on what, and only the tensors that encoding needs.

Axes: D d_model, F features (d_sae).
"""

import hashlib
import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline_common.errors import UserError
from pipeline_common.files import read_npz
from s1_compute_all_features.encoder_matrix import matrix_from_npz, matrix_from_safetensors
from s1_compute_all_features.fingerprints import fingerprint_of_file, fingerprint_of_tensors
from s1_compute_all_features.hub import resolve_folder, unavailable
from s1_compute_all_features.sae_configurations import SaeConfigurations, SaeEntry
from s1_compute_all_features.saes.sae_folders import (
    CFG,
    CONFIG,
    FILES,
    NAMES_2,
    PARAMS,
    PARAMS_2,
    damaged,
    read_tensor,
    say_that_sae_lens_loads,
    site_of_repository,
    spec_of_folder,
)
from s1_compute_all_features.saes.sae_spec import SaeSpec, spec_of_cfg

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LocatedSae:
    """An SAE that was found and looked at: nothing about it is unknown but the values of its matrices.

    Attributes:
        entry: its configuration.
        weights: the weight file; None where sae-lens's registry alone knows how to load it.
        fingerprint: of the weights, and of the file beside them that says how to use them.
        spec: what its own files say.
    """

    entry: SaeEntry
    weights: Path | None
    fingerprint: str
    spec: SaeSpec

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
    """Find an SAE and look at it: below ``sae_root``, else the configuration's own root, else on the hub.

    What its files say is held against the configuration here, before any forward pass.

    Raises:
        UserError: the weights are not there and cannot be fetched, are not those of their architecture, or
            the SAE was trained on something else than the configuration says.
    """
    root = sae_root
    if root is None and configurations.sae_root:
        root = resolve_folder(configurations.sae_root, configuration_folder)
        if root is None:
            raise UserError(
                f"{configuration_folder / configurations.sae_root}: no such folder; the configuration reads "
                "its SAEs there; give another by --sae-root"
            )
    if root is None and configurations.weights_format == "registry":
        sae = _from_registry(configurations, entry, "cpu")
        spec = spec_of_cfg(f"SAE {entry.name}", sae.cfg.to_dict())
        if not _has_own_cfg(configurations.release):
            check_training(entry, configurations, replace(spec, prepend_bos=None))
        else:
            check_training(entry, configurations, spec)
        return LocatedSae(entry, None, fingerprint_of_tensors(sae.state_dict()), spec)
    if root is None:
        layout: str = configurations.weights_format
        weights = _from_hub(configurations, entry)
    else:
        layout, weights = _in_folder(configurations, entry, root)
    site = site_of_repository(configurations.repo_id, entry.path)
    if site is not None and site != entry.site:
        raise UserError(
            f"SAE {entry.name}: {entry.path} of {configurations.repo_id} reads {site.hook}, the "
            f"configuration says {entry.hook}; build it again with sae_configurations.py"
        )
    spec = spec_of_folder(layout, weights, entry.path, entry.site)
    check_training(entry, configurations, spec)
    return LocatedSae(entry, weights, _fingerprint(weights), spec)


def _has_own_cfg(release: str) -> bool:
    """Whether sae-lens reads the SAE's own cfg.json; its other loaders say the same of every SAE."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return get_pretrained_saes_directory()[release].conversion_func is None


def _in_folder(configurations: SaeConfigurations, entry: SaeEntry, root: Path) -> tuple[str, Path]:
    """The layout and weight file of an SAE below a folder."""
    there = {
        layout: path for layout, names in FILES.items() if (path := root / entry.path / names[0]).is_file()
    }
    if not there:
        raise UserError(
            f"{root / entry.path}: none of {', '.join(names[0] for names in FILES.values())} there; "
            f"expected the weights of SAE {entry.name}"
        )
    layout = configurations.weights_format if configurations.weights_format in there else next(iter(there))
    if len(there) > 1 and layout != configurations.weights_format:
        raise UserError(
            f"{root / entry.path}: {' and '.join(path.name for path in there.values())} there, and the "
            f"configuration's weights_format is {configurations.weights_format}; keep one of them"
        )
    return layout, there[layout]


def _from_hub(configurations: SaeConfigurations, entry: SaeEntry) -> Path:
    """The weight file of an SAE in the hub's cache, fetched where it is not there yet."""
    import huggingface_hub
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    weights, *others = FILES[configurations.weights_format]
    try:
        path = Path(huggingface_hub.hf_hub_download(configurations.repo_id, f"{entry.path}/{weights}"))
        for name in others:
            try:
                huggingface_hub.hf_hub_download(configurations.repo_id, f"{entry.path}/{name}")
            except EntryNotFoundError as error:
                # Some SAEs of Gemma Scope 2 have none; their folder's name says where they read. Off line
                # nobody knows whether there is one.
                if name != CONFIG or isinstance(error, LocalEntryNotFoundError):
                    raise
    except Exception as error:  # the hub's library fails in the ways of several others
        raise unavailable(
            f"SAE {entry.sae_id} of {configurations.repo_id}", configurations.repo_id, error
        ) from error
    return path


def _fingerprint(weights: Path) -> str:
    """Of the weights, and of what the file beside them says.

    Layout and order of that file do not count.
    """
    of_weights = fingerprint_of_file(weights)
    for name in (CFG, CONFIG):
        path = weights.parent / name
        if weights.name != PARAMS and path.is_file():
            content = json.dumps(json.loads(path.read_text(encoding="utf-8")), sort_keys=True)
            return f"{of_weights}+{hashlib.sha256(content.encode()).hexdigest()[:16]}"
    return of_weights


def check_training(entry: SaeEntry, configurations: SaeConfigurations, spec: SaeSpec) -> None:
    """What an SAE's files say of its training against what the configuration says of it.

    Raises:
        UserError: they differ.
    """
    model = configurations.model
    for name, found, configured in (
        ("hook", spec.site and spec.site.hook, entry.hook),
        ("prepend_bos", spec.prepend_bos, model.prepend_bos),
        ("center_residual", spec.centred, model.center_residual),
    ):
        if found is not None and found != configured:
            raise UserError(
                f"SAE {entry.name} was trained with {name} {found!r}, the configuration says {configured!r}; "
                "correct it there"
            )


def read_threshold_weights(located: LocatedSae) -> ThresholdWeights | None:
    """The encoder of a JumpReLU or ReLU SAE; the decoder stays on disk.

    Returns:
        None for every other kind of SAE, which sae-lens has to run itself.

    Raises:
        UserError: damaged weights.
    """
    import torch

    path, spec = located.weights, located.spec
    if path is None or not spec.is_threshold_encoder:
        return None
    has_threshold = "jumprelu" in spec.architecture
    if path.name == PARAMS:
        arrays = read_npz(path, ("b_enc", "threshold"), "Gemma Scope params.npz")
        b_enc, threshold = (torch.from_numpy(array).float() for array in arrays.values())
        return ThresholdWeights(matrix_from_npz(path, "W_enc"), b_enc, threshold.clamp(min=0))
    names = NAMES_2 if path.name == PARAMS_2 else {name: name for name in NAMES_2}
    W_FD = matrix_from_safetensors(path, names["W_enc"])
    b_enc = read_tensor(path, names["b_enc"]).float()
    if spec.subtracts_b_dec:
        # x - b_dec goes into the bias: (x - b_dec) @ W_enc + b_enc.
        b_enc = _without(b_enc, W_FD, read_tensor(path, names["b_dec"]))
    threshold = read_tensor(path, names["threshold"]).float() if has_threshold else torch.zeros_like(b_enc)
    return ThresholdWeights(W_FD, b_enc, threshold.clamp(min=0))


def _without(b_enc: "torch.Tensor", W_FD: "torch.Tensor", b_dec: "torch.Tensor") -> "torch.Tensor":
    """b_enc - W b_dec, summed in float64: float32 would round by the size of b_dec, which may be large."""
    import torch

    shift = torch.cat([part.double() @ b_dec.double() for part in W_FD.split(1024)])
    return (b_enc.double() - shift).float()


def read_decoder(located: LocatedSae) -> "tuple[torch.Tensor, torch.Tensor] | None":
    """W_dec [F, D] and b_dec [D] in float32; None where only sae-lens knows how to decode."""
    import torch

    path = located.weights
    if path is None:
        return None
    if path.name == PARAMS:
        arrays = read_npz(path, ("W_dec", "b_dec"), "Gemma Scope params.npz")
        return torch.from_numpy(arrays["W_dec"]).float(), torch.from_numpy(arrays["b_dec"]).float()
    names = NAMES_2 if path.name == PARAMS_2 else {name: name for name in NAMES_2}
    return read_tensor(path, names["W_dec"]).float(), read_tensor(path, names["b_dec"]).float()


def load_with_sae_lens(located: LocatedSae, configurations: SaeConfigurations, device: str) -> Any:
    """The whole SAE as sae-lens loads it, in float32.

    Raises:
        UserError: it cannot be loaded, or is another one than `locate_sae` looked at.
    """
    if located.weights is None:
        sae = _from_registry(configurations, located.entry, device)
        if spec_of_cfg(f"SAE {located.entry.name}", sae.cfg.to_dict()) != located.spec:
            raise UserError(f"SAE {located.entry.name} changed while this ran; run it again")
    else:
        say_that_sae_lens_loads()
        from sae_lens import SAE

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # on what `spec_of_cfg` has decided on
                sae = SAE.load_from_disk(located.weights.parent, device=device, dtype="float32")
        except Exception as error:  # what stands in an SAE's files makes sae-lens fail in any way
            raise damaged(located.weights, error) from error
    if sae.cfg.reshape_activations == "hook_z":
        # It expects [..., n_heads, d_head]; here the heads stand side by side already.
        sae.turn_off_forward_pass_hook_z_reshaping()
    return sae


def _from_registry(configurations: SaeConfigurations, entry: SaeEntry, device: str) -> Any:
    say_that_sae_lens_loads()
    from sae_lens import SAE

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return SAE.from_pretrained(configurations.release, entry.sae_id, device=device)
    except Exception as error:  # what stands on the hub makes sae-lens fail in any way
        raise unavailable(
            f"SAE {entry.sae_id} of {configurations.release}", configurations.repo_id, error
        ) from error
