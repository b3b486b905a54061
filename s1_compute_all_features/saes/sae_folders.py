"""The layouts in which SAEs lie on a disk, and what each says of an SAE before its matrices are read.

Three layouts are read here, everything else by sae-lens:

    params.npz                          Gemma Scope (Lieberum et al. 2024)
    params.safetensors, config.json     Gemma Scope 2
    sae_weights.safetensors, cfg.json   sae-lens
"""

import json
import logging
import re
import sys
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_common.errors import UserError
from pipeline_common.files import npy_header, read_npz
from s1_compute_all_features.saes.sae_spec import (
    TRAINING_ONLY,
    SaeSpec,
    refuse_other_tensors,
    site_of_metadata,
    spec_of_cfg,
)
from s1_compute_all_features.saes.sites import (
    GEMMA_SCOPE_2_FOLDERS,
    GEMMA_SCOPE_REPOSITORIES,
    MLP_IN,
    MLP_NORMALIZED,
    Site,
)

logger = logging.getLogger(__name__)

PARAMS, PARAMS_2, WEIGHTS, CFG, CONFIG = (
    "params.npz",
    "params.safetensors",
    "sae_weights.safetensors",
    "cfg.json",
    "config.json",
)
FILES = {"gemma_scope": (PARAMS,), "gemma_scope_2": (PARAMS_2, CONFIG), "sae_lens": (WEIGHTS, CFG)}
"""Layout, as a configuration's ``weights_format`` names it, to its files, the weights first."""

NAMES_2 = {
    "W_enc": "w_enc",
    "W_dec": "w_dec",
    "b_enc": "b_enc",
    "b_dec": "b_dec",
    "threshold": "threshold",
    "W_skip": "affine_skip_connection",
}
"""Tensor to its name in a file of Gemma Scope 2."""

_SCALING_FACTOR = "scaling_factor"
_RELU = ("relu", "topk", None)


def spec_of_folder(layout: str, weights: Path, path: str, configured: Site) -> SaeSpec:
    """What an SAE's files say of it, its tensors checked by name, shape and kind.

    Args:
        layout: a key of `FILES`.
        weights: its weight file; the other files lie beside it.
        path: its folder in the repository or below the SAE folder, which names the site in Gemma Scope 2.
        configured: the site that the configuration names; by it, where the files say nothing, a transcoder
            is known.

    Raises:
        UserError: a file is damaged, or says something that is not understood.
    """
    if layout == "gemma_scope":
        shapes, dtypes = _npz_shapes(weights)
        transcodes = configured.kind in (MLP_IN, MLP_NORMALIZED)
        architecture = "jumprelu_transcoder" if transcodes else "jumprelu"
        spec = SaeSpec(architecture, *_matrix_shape(weights, "W_enc", shapes))
    elif layout == "gemma_scope_2":
        shapes, dtypes = _safetensors_shapes(weights)
        spec = _spec_2(weights, path, configured, shapes)
        theirs = {name: ours for ours, name in NAMES_2.items()}
        shapes = {theirs.get(name, name): shape for name, shape in shapes.items()}
        dtypes = {theirs.get(name, name): dtype for name, dtype in dtypes.items()}
        if "W_skip" in shapes:  # stored as [d_in, d_out]
            shapes["W_skip"] = shapes["W_skip"][::-1]
    else:
        spec = spec_of_cfg(str(weights.parent / CFG), read_cfg(weights.parent))
        shapes, dtypes = _safetensors_shapes(weights)
    if _SCALING_FACTOR in shapes:
        _refuse_scaling(weights)
        shapes = {name: shape for name, shape in shapes.items() if name != _SCALING_FACTOR}
    refuse_other_tensors(str(weights), spec, shapes, dtypes)
    return spec


def _matrix_shape(weights: Path, name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    if len(shapes.get(name, ())) != 2:
        found = f"has the shape {shapes[name]}, no matrix" if name in shapes else "is missing"
        raise UserError(f"{weights}: {name} {found}; fetch it again")
    return shapes[name][0], shapes[name][1]


def _spec_2(weights: Path, path: str, configured: Site, shapes: Mapping[str, tuple[int, ...]]) -> SaeSpec:
    config, site = weights.parent / CONFIG, _site_of_folder_2(path)
    skips = NAMES_2["W_skip"] in shapes
    if config.is_file():
        content = _json_object(config)
        if content.get("architecture") != "jump_relu":
            raise UserError(
                f"{config}: the architecture is {content.get('architecture')!r}, expected jump_relu"
            )
        said = site_of_metadata(str(config), {"hf_hook_name": content.get("hf_hook_point_in")})
        if said is not None and site is not None and said != site:
            raise UserError(
                f"{config}: hf_hook_point_in says {said.hook}, the folder {path} {site.hook}: two places; "
                "fetch the SAE again"
            )
        site = said or site
        if bool(content.get("affine_connection", False)) != skips:
            raise UserError(
                f"{config}: affine_connection is {content.get('affine_connection')!r}, but the weights "
                f"{'have' if skips else 'lack'} {NAMES_2['W_skip']}; fetch the SAE again"
            )
    architecture = "jumprelu"
    if skips or (site or configured).kind == MLP_IN:
        architecture = "jumprelu_skip_transcoder" if skips else "jumprelu_transcoder"
    d_in, d_sae = _matrix_shape(weights, NAMES_2["W_enc"], shapes)
    return SaeSpec(architecture, d_in, d_sae, site=site, prepend_bos=True)


def _site_of_folder_2(path: str) -> Site | None:
    """The site that a folder's name tells, e.g. ``resid_post_all/layer_12_width_16k_l0_small``, or None."""
    match = re.fullmatch(r"(?:.*/)?(\w+)/layer_(\d+)_.*", path)
    kind = GEMMA_SCOPE_2_FOLDERS.get(match[1]) if match else None
    return Site(int(match[2]), kind) if match and kind else None


def read_cfg(folder: Path) -> dict[str, Any]:
    """An SAE's cfg.json in sae-lens's present form, whatever version wrote it.

    Raises:
        UserError: damaged, or an older form with a value that sae-lens would drop.
    """
    path = folder / CFG
    content = _json_object(path)
    metadata = content.get("metadata", {})
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: metadata is {metadata!r}, not an object; fetch the SAE again")
    if _is_present_form(content):
        return content
    activation = content.get("activation_fn_str", content.get("activation_fn"))
    options = content.get("activation_fn_kwargs") or {}
    if activation not in _RELU or (isinstance(options, Mapping) and options.get("signed")):
        raise UserError(
            f"{path}: its activation function is {activation!r} {options or ''}, which cannot be run here; "
            "use an SAE with ReLU, JumpReLU or TopK"
        )
    if content.get("architecture") in TRAINING_ONLY:
        return content  # refused by its reader, by name
    # Importing sae-lens takes up to half a minute, so only an old form is left to it.
    say_that_sae_lens_loads()
    from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting

    try:
        cfg: dict[str, Any] = handle_config_defaulting(content)
    except Exception as error:  # whatever a damaged file makes of it
        raise UserError(
            f"{path}: not the configuration of a sae-lens SAE ({type(error).__name__}: {error}); "
            "fetch it again"
        ) from None
    return cfg


def _is_present_form(content: Mapping[str, Any]) -> bool:
    """Whether sae-lens would take the configuration as it stands: a release from 6 on wrote it."""
    metadata = content.get("metadata")
    version = content.get("sae_lens_version")
    if not version and isinstance(metadata, Mapping):
        version = metadata.get("sae_lens_version")
    release = re.fullmatch(r"(\d+)\.\d+\.\d+", str(version))
    return release is not None and int(release[1]) >= 6


def say_that_sae_lens_loads() -> None:
    """Tell why the next seconds pass; nothing where sae-lens is loaded already."""
    if "sae_lens" not in sys.modules:
        logger.info("loading sae-lens, which these SAEs need ...")


def _json_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not an SAE's configuration ({error}); fetch it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not an SAE's configuration (no object); fetch it again")
    return content


def _npz_shapes(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Every array's shape and dtype, from the headers alone."""
    shapes, dtypes = {}, {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                with archive.open(member) as stream:
                    shape, _, dtype = npy_header(stream, member.file_size)
                name = member.filename.removesuffix(".npy")
                shapes[name], dtypes[name] = shape, str(dtype)
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise damaged(path, error) from None
    return shapes, dtypes


def _safetensors_shapes(path: Path) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    shapes, dtypes = {}, {}
    try:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                part = tensors.get_slice(name)
                shapes[name] = tuple(part.get_shape())
                dtypes[name] = str(part.get_dtype())
    except (OSError, SafetensorError) as error:
        raise damaged(path, error) from None
    return shapes, dtypes


def _refuse_scaling(path: Path) -> None:
    """A factor other than 1 on each feature: sae-lens leaves out a factor of ones, and so do we."""
    if path.suffix == ".npz":
        factor = np.asarray(read_npz(path, (_SCALING_FACTOR,), "Gemma Scope params.npz")[_SCALING_FACTOR])
        is_one = np.allclose(factor, 1)
    else:
        is_one = bool((read_tensor(path, _SCALING_FACTOR).float() - 1).abs().max() <= 1e-5)
    if not is_one:
        raise UserError(f"{path}: {_SCALING_FACTOR} is not 1 everywhere; fold it into the weights first")


def read_tensor(path: Path, name: str) -> Any:
    """One tensor of a safetensors file; the others stay on disk.

    Raises:
        UserError: the file is damaged, or has no such tensor.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            return tensors.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> UserError:
    """The error for a weight file that cannot be read."""
    return UserError(f"{path}: damaged or not an SAE's weights ({error}); fetch it again")


def site_of_repository(repo_id: str, path: str) -> Site | None:
    """Where an SAE of a first-generation Gemma Scope repository reads; None for any other repository.

    Its files say nothing of it; the names of the repository and of the folder do.
    """
    match = re.fullmatch(rf"google/gemma-scope-\d+b-[a-z]+-({'|'.join(GEMMA_SCOPE_REPOSITORIES)})", repo_id)
    layer = re.match(r"layer_(\d+)/", path)
    return Site(int(layer[1]), GEMMA_SCOPE_REPOSITORIES[match[1]]) if match and layer else None
