"""What the registry's ids and paths say of an SAE beside its site: layer, width, l0, and a name."""

import argparse
import math
import re
from collections.abc import Mapping, Sequence

from pipeline_common.command_line import positive_int
from pipeline_common.errors import UserError
from s1_compute_all_features.saes.registry_entries import L0_WORDS, RegisteredSae
from s1_compute_all_features.saes.sites import (
    ATTN_OUT,
    HOOK_Z,
    MLP_IN,
    MLP_NORMALIZED,
    MLP_OUT,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
    Site,
)

MAX_L0 = 10_000
"""A published l0 above it is a slip: no hidden state has so many dimensions."""

_LAYER_IN_ID = re.compile(r"(?:blocks\.|(?:\w+/)?(?:resid_post_)?layer_?|l)(\d+)", re.ASCII)
_L0_IN_PATH = re.compile(r"average_l0_(\d+)", re.ASCII)
_PAGE = re.compile(r"[^/]+/(\d+|e)-(.+)", re.ASCII)
_PAGE_WORDS = {
    "res": {RESID_PRE, RESID_MID, RESID_POST},
    "resid": {RESID_PRE, RESID_MID, RESID_POST},
    "att": {HOOK_Z, ATTN_OUT},
    "mlp": {MLP_OUT},
    "transcoder": {MLP_IN, MLP_NORMALIZED},
}
"""Word in a Neuronpedia id to the sites whose features have such pages."""


def block_in_id(sae: RegisteredSae) -> int | None:
    """The block that an id names; None where it names none."""
    found = _LAYER_IN_ID.match(sae.sae_id)
    return int(found[1]) if found else None


def layers_of(saes: Sequence[RegisteredSae]) -> dict[str, int]:
    """Id to the layer that its publisher counts the SAE to, for those whose id names a block.

    It is the block, but where a release reads in front of its blocks: there the output of the last
    block is one layer further, as its Neuronpedia id says (``gpt2-small/12-res-jb``).

    Args:
        saes: all of a release.
    """
    in_front = any(sae.hook_in_id.endswith(".hook_resid_pre") for sae in saes)
    layers = {}
    for sae in saes:
        block = block_in_id(sae)
        if block is None:
            continue
        page = _PAGE.fullmatch(sae.page)
        behind = in_front and sae.hook_in_id.endswith(".hook_resid_post")
        one_further = behind and page is not None and page[1] == str(block + 1)
        layers[sae.sae_id] = block + 1 if one_further else block
    return layers


def page_fits(page: str, sae: RegisteredSae, layer: int, site: Site) -> bool:
    """Whether a Neuronpedia id can be an SAE's: it names no other layer, site, width or l0.

    Args:
        page: the id.
        sae: the SAE.
        layer: the layer that it is counted to.
        site: where it reads.
    """
    found = _PAGE.fullmatch(page)
    if found is None:
        return True
    if found[1] != ("e" if found[1] == "e" and site == Site(0, RESID_PRE) else str(layer)):
        return False
    width, l0 = re.search(r"-(\d+[km])(?=__|$)", page), re.search(r"__l0-(\d+)$", page)
    if (width and width_of(sae) not in ("", width[1])) or (l0 and l0_of(sae) not in (None, int(l0[1]))):
        return False
    named = [_PAGE_WORDS[word] for word in re.split(r"[-_]", found[2]) if word in _PAGE_WORDS]
    return not named or any(site.kind in kinds for kinds in named)


def width_of(sae: RegisteredSae) -> str:
    """The width as the id or path writes it, e.g. ``16k``; empty where neither names it."""
    for text in (sae.sae_id, sae.path):
        if found := re.search(r"(?:^|[/_])width_([a-z0-9]+)(?=_|/|$)", text, re.ASCII):
            return found[1]
    found = re.fullmatch(r"_(\d+)", sae.sae_id.removeprefix(sae.hook_in_id), re.ASCII)
    return found[1] if found and sae.hook_in_id else ""


def l0_of(sae: RegisteredSae) -> int | None:
    """The published l0, rounded: of the path, else the registry's; None where unknown."""
    if found := _L0_IN_PATH.search(sae.path):
        return int(found[1])
    is_one = math.isfinite(sae.l0) and 0 < sae.l0 <= MAX_L0
    return (round(sae.l0) or None) if is_one else None


def l0_word_of(sae: RegisteredSae) -> str:
    """Gemma Scope 2's word for the sparsity; empty elsewhere."""
    found = re.search(rf"_l0_({'|'.join(L0_WORDS)})(?=_|$)", sae.path)
    return found[1] if found else ""


def l0_or_word(text: str) -> str | int:
    """An argparse type: Gemma Scope 2's word for a sparsity, or a number.

    Raises:
        argparse.ArgumentTypeError: neither.
    """
    if text in L0_WORDS:
        return text
    try:
        return positive_int(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor {', '.join(L0_WORDS)}") from None


def names_of(saes: Sequence[RegisteredSae], width: str | None) -> dict[str, str]:
    """Id to the SAE's name in a configuration, for those whose id names a block.

    ``layer_05``, or ``layer_05_l0_68`` where the path has an l0, if that is enough to tell the SAEs
    apart. Else what the id says beside the layer is added: ``layer_12_width_16k_l0_medium``,
    ``layer_12_trainer_3_step_976``; and where even that is the same, the site: ``layer_00_resid_pre``.
    A name does not depend on which SAEs of the release were chosen, with one exception: paths with an l0
    leave the width out where one width was chosen.

    Args:
        saes: all of a release.
        width: the width that was chosen; None for all.

    Raises:
        UserError: two SAEs would have the same name.
    """
    layers = layers_of(saes)
    named = [sae for sae in saes if sae.sae_id in layers]
    heads = {sae.sae_id: f"layer_{layers[sae.sae_id]:02d}" for sae in named}
    short = {sae.sae_id: heads[sae.sae_id] + _l0_in_path(sae) for sae in named}
    of_width = {
        sae.sae_id for sae in named if width is None or not _l0_in_path(sae) or width_of(sae) == width
    }
    if _all_differ({sae_id: name for sae_id, name in short.items() if sae_id in of_width}):
        return short
    full = {sae.sae_id: _joined(heads[sae.sae_id], _details(sae)) for sae in named}
    if not _all_differ(full):
        full = {sae.sae_id: _joined(heads[sae.sae_id], _site_word(sae), _details(sae)) for sae in named}
    if not _all_differ(full):
        twice = next(name for name in full.values() if list(full.values()).count(name) > 1)
        ids = [sae_id for sae_id, name in full.items() if name == twice]
        raise UserError(f"release {saes[0].release}: {ids[0]} and {ids[1]} would both be named {twice}")
    return full


def _all_differ(names: Mapping[str, str]) -> bool:
    return len(set(names.values())) == len(names)


def _l0_in_path(sae: RegisteredSae) -> str:
    found = _L0_IN_PATH.search(sae.path)
    return f"_l0_{found[1]}" if found else ""


def _details(sae: RegisteredSae) -> str:
    """What tells an SAE from others of its layer and site."""
    text = sae.path if _L0_IN_PATH.search(sae.path) else sae.sae_id.removeprefix(sae.hook_in_id)
    text = re.sub(r"^(?:\w+/)?(?:resid_post_)?layer_?\d+|^l\d+[a-z]+", "", text.replace("average_", ""))
    text = re.sub(r"[^A-Za-z0-9.]+", "_", text).strip("_")
    return f"width_{text}" if text.isdigit() else text


def _site_word(sae: RegisteredSae) -> str:
    return sae.hook_in_id.rpartition("hook_")[2]


def _joined(*parts: str) -> str:
    return "_".join(part for part in parts if part)
