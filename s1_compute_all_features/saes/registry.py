"""Configurations for the SAEs of sae-lens's registry: any release, or part of one."""

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline_common.errors import UserError
from s1_compute_all_features.sae_configurations import (
    FORMAT_VERSION,
    SaeConfigurations,
    SaeEntry,
    WeightsFormat,
)
from s1_compute_all_features.saes.registry_entries import (
    L0_WORDS,
    Refused,
    RegisteredSae,
    Told,
    registry,
    saes_of,
)
from s1_compute_all_features.saes.registry_files import HubFiles
from s1_compute_all_features.saes.registry_models import model_entry
from s1_compute_all_features.saes.registry_names import (
    block_in_id,
    l0_of,
    l0_word_of,
    layers_of,
    names_of,
    page_fits,
    width_of,
)
from s1_compute_all_features.saes.registry_sites import training_of
from s1_compute_all_features.saes.sites import (
    ATTN_OUT,
    HOOK_Z,
    MLP_IN,
    MLP_NORMALIZED,
    MLP_OUT,
    RESID_MID,
    RESID_POST,
    RESID_PRE,
)

SITE_WORDS = {
    RESID_PRE: "residual-stream",
    RESID_MID: "residual-stream",
    RESID_POST: "residual-stream",
    HOOK_Z: "attention-head",
    ATTN_OUT: "attention-output",
    MLP_NORMALIZED: "MLP-input",
    MLP_IN: "MLP-input",
    MLP_OUT: "MLP-output",
}
"""Kind of site to how a description calls SAEs of it."""

_CHANGES_NOTHING = {"dataset_path", "model_name", "hook_name", "model_from_pretrained_kwargs"}
"""Overrides that do not change how an SAE encodes; those of the site and the model are read apart."""


@dataclass(frozen=True)
class Selection:
    """Which SAEs of a release are wanted.

    Attributes:
        layers: of these layers; None for all.
        width: of this width, as ids write it, e.g. ``16k``.
        l0: of this sparsity by Gemma Scope 2's word, or of each layer, site and width the one whose
            published l0 is nearest to a number, the sparser of two.
        ids: a pattern with ``*`` and ``?`` that the whole id matches.
    """

    layers: Sequence[int] | None = None
    width: str | None = None
    l0: str | int | None = None
    ids: str | None = None


@dataclass(frozen=True)
class Built:
    """A configuration, and what a reader should know of how it came about.

    Attributes:
        configurations: what is written.
        left_out: reason to the ids of the SAEs that were chosen and cannot be configured.
        notes: whole sentences.
    """

    configurations: SaeConfigurations
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    notes: Sequence[str] = ()


def build_from_registry(
    release: str,
    selection: Selection | None = None,
    model_id: str | None = None,
    files: HubFiles | None = None,
) -> Built:
    """The configuration of a release, from sae-lens's registry.

    Args:
        release: e.g. ``gemma-scope-2b-pt-res``.
        selection: which of its SAEs; None for all.
        model_id: Hugging Face id of the model that they belong to; None for the registry's.
        files: the hub's small files.

    Returns:
        SAEs sorted by layer and l0, each at the site that its loader says. A Neuronpedia id is the
        release's own, or that of the SAE's canonical name in the ``-canonical`` release.

    Raises:
        UserError: unknown release, nothing left by the selection or of what can be configured, a file of
            the hub that cannot be had, SAEs that need different models.
    """
    selection, files = selection or Selection(), files or HubFiles()
    saes = saes_of(release)
    names, layers = names_of(saes, selection.width), layers_of(saes)
    chosen = _chosen(saes, layers, selection)
    told: dict[str, Told] = {}
    left_out: dict[str, list[str]] = {}
    for sae in chosen:
        try:
            found = training_of(sae, files)
            if found.site.block != block_in_id(sae):
                raise sae.refused(f"it reads {found.site.hook}, and its id names another layer or none")
            told[sae.sae_id] = found
        except Refused as refusal:
            left_out.setdefault(refusal.reason, []).append(sae.sae_id)
    kept = [sae for sae in chosen if sae.sae_id in told]
    if not kept:
        reason, ids = next(iter(left_out.items()))
        raise UserError(f"release {release}: no SAE is left; SAE {ids[0]}: {reason}")
    model = model_entry(release, model_id, told)
    pages, notes = _pages(release, kept, told, layers)
    entries = [
        SaeEntry(
            name=names[sae.sae_id],
            layer=layers[sae.sae_id],
            average_l0=l0_of(sae),
            hook=told[sae.sae_id].site.hook,
            sae_id=sae.sae_id,
            path=sae.path,
            neuronpedia_id=pages[sae.sae_id],
        )
        for sae in kept
    ]
    words = sorted({SITE_WORDS[found.site.kind] for found in told.values()}, reverse=True)
    configurations = SaeConfigurations(
        format_version=FORMAT_VERSION,
        description=f"{len(entries)} {' and '.join(words)} SAEs of {release} for {model.id}",
        model=model,
        release=release,
        repo_id=kept[0].repo_id,
        weights_format=_weights_format(kept),
        saes=tuple(sorted(entries, key=_order)),
    )
    if not model.prepend_bos and any(found.prepend_bos for found in told.values()):
        notes.append(
            f"{model.id} has no BOS token, so prepend_bos is written as False, although sae-lens's loader "
            "says True of every SAE that it converts"
        )
    return Built(configurations, left_out, [*notes, *_unknown_bos(told, model.prepend_bos, files)])


def _order(entry: SaeEntry) -> tuple[object, ...]:
    parts = [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", entry.name)]
    return entry.layer, entry.average_l0 or 0, parts


def _chosen(
    saes: Sequence[RegisteredSae], layers: Mapping[str, int], selection: Selection
) -> list[RegisteredSae]:
    kept = list(saes)
    if selection.layers is not None:
        kept = [sae for sae in kept if layers.get(sae.sae_id) in selection.layers]
    if selection.width is not None:
        kept = [sae for sae in kept if width_of(sae) == selection.width]
    if selection.ids is not None:
        kept = [sae for sae in kept if fnmatch.fnmatchcase(sae.sae_id, selection.ids)]
    if isinstance(selection.l0, str):
        kept = [sae for sae in kept if l0_word_of(sae) == selection.l0]
    elif selection.l0 is not None:
        kept = _nearest(kept, layers, selection.l0)
    if not kept:
        raise UserError(
            f"no SAE of {saes[0].release} is left by the selection; {_what_there_is(saes, layers)}"
        )
    return kept


def _nearest(saes: Iterable[RegisteredSae], layers: Mapping[str, int], wanted: int) -> list[RegisteredSae]:
    """Of each layer, site and width the SAE of the nearest l0; a skip transcoder is a kind of its own."""
    groups: dict[tuple[object, ...], list[tuple[int, int, RegisteredSae]]] = {}
    for place, sae in enumerate(saes):
        l0 = l0_of(sae)
        if l0 is not None:
            is_affine = "_affine" in sae.path
            key = (layers.get(sae.sae_id), sae.hook_in_id, width_of(sae), is_affine)
            groups.setdefault(key, []).append((l0, place, sae))
    nearest = [min(group, key=lambda item: (abs(item[0] - wanted), *item[:2])) for group in groups.values()]
    return [sae for _, _, sae in sorted(nearest, key=lambda item: item[1])]


def _what_there_is(saes: Sequence[RegisteredSae], layers: Mapping[str, int]) -> str:
    widths = sorted({width_of(sae) for sae in saes} - {""})
    words = [word for word in L0_WORDS if any(l0_word_of(sae) == word for sae in saes)]
    known = [l0 for sae in saes if (l0 := l0_of(sae)) is not None]
    return (
        f"its {len(saes)} SAEs have the layers {', '.join(map(str, sorted(set(layers.values()))))}, "
        f"{'the widths ' + ', '.join(widths) if widths else 'no width in their ids'}, "
        + (f"l0 from {min(known)} to {max(known)}" if known else "no published l0")
        + (f" ({', '.join(words)})" if words else "")
        + f", and ids such as {saes[0].sae_id}"
    )


def _pages(
    release: str, saes: Sequence[RegisteredSae], told: Mapping[str, Told], layers: Mapping[str, int]
) -> tuple[dict[str, str], list[str]]:
    """Id to Neuronpedia id; a note for each that the registry has and that is another SAE's."""
    canonical = registry().get(f"{release}-canonical")
    of_path = (
        {path: canonical.neuronpedia_id.get(sae_id) or "" for sae_id, path in canonical.saes_map.items()}
        if canonical
        else {}
    )
    pages, notes = {}, []
    for sae in saes:
        listed = [page for page in (sae.page, of_path.get(sae.path, "")) if page]
        fitting = [page for page in listed if page_fits(page, sae, layers[sae.sae_id], told[sae.sae_id].site)]
        pages[sae.sae_id] = fitting[0] if fitting else ""
        if listed and listed[0] not in fitting:
            notes.append(
                f"the registry gives {sae.sae_id} the Neuronpedia page {listed[0]}, which names another "
                "layer, site, width or l0; it is left out"
            )
    return pages, notes


def _unknown_bos(told: Mapping[str, Told], prepend_bos: bool, files: HubFiles) -> list[str]:
    unknown = sum(found.prepend_bos is None for found in told.values())
    if not unknown:
        return []
    return [
        f"cfg.json of {unknown} SAEs cannot be had ({files.unreachable or 'not looked for'}), so whether BOS "
        f"stood in front of their training text is not known; prepend_bos is written as {prepend_bos}, and "
        "the extraction checks it against those files"
    ]


def _weights_format(saes: Sequence[RegisteredSae]) -> WeightsFormat:
    """Who reads the weights: this project where the file holds all that encoding takes, else sae-lens."""
    loader, overrides = saes[0].loader, set(saes[0].overrides)
    if loader in ("gemma_2", "gemma_2_transcoder"):
        return "gemma_scope"
    if loader == "gemma_3" and not any(sae.path.startswith("clt/") for sae in saes):
        return "gemma_scope_2"
    is_whole = overrides <= _CHANGES_NOTHING and not any(sae.is_rescaled for sae in saes)
    return "sae_lens" if loader == "sae_lens" and is_whole else "registry"
