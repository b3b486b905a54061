"""What sae-lens's registry lists of an SAE, what is known of its training, and whether sources agree."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline_common.errors import UserError
from s1_compute_all_features.saes.sites import HOOKS, Site, site_of

_HOOK_IN_ID = re.compile(r"(blocks\.\d+\.(?:\w+\.)?hook_[a-z]+(?:_[a-z]+)*)(?=$|_\d|__)", re.ASCII)


L0_WORDS = ("small", "medium", "big")
"""Gemma Scope 2's names of its sparsities."""


class Refused(UserError):
    """An SAE of the registry that cannot be configured.

    Attributes:
        reason: why, without the name of the SAE.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class RegisteredSae:
    """An SAE as the registry lists it.

    Attributes:
        release: its release.
        repo_id: Hugging Face repository of the weights.
        loader: name of sae-lens's loader; ``sae_lens`` for its own format.
        sae_id: id within the release.
        path: folder or file in the repository.
        overrides: what the registry sets in the SAE's configuration.
        l0: the registry's mean number of active latents; 0 where it has none.
        page: the registry's Neuronpedia id; empty where it has none.
        is_rescaled: the registry holds a factor that sae-lens folds into the weights.
    """

    release: str
    repo_id: str
    loader: str
    sae_id: str
    path: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    l0: float = 0.0
    page: str = ""
    is_rescaled: bool = False

    @property
    def hook_in_id(self) -> str:
        """The hook that the id is or begins with; empty where it names none."""
        found = _HOOK_IN_ID.match(self.sae_id)
        return found[1] if found else ""

    def refused(self, reason: str) -> Refused:
        """The refusal of this SAE."""
        return Refused(f"SAE {self.sae_id} of {self.release}: {reason}", reason)


@dataclass(frozen=True)
class Told:
    """What is known of an SAE's training.

    Attributes:
        site: where it reads.
        file: the file of the hub that the site comes from; empty where it is known without.
        prepend_bos: whether BOS stood in front; None where the file that tells could not be had.
        model_arguments: how the model was loaded, in TransformerLens' words.
        model_name: the model, where its loader names one.
    """

    site: Site
    file: str = ""
    prepend_bos: bool | None = True
    model_arguments: Mapping[str, Any] = field(default_factory=dict)
    model_name: str = ""


def agreed(sae: RegisteredSae, statements: Mapping[str, str]) -> Site:
    """The site that all statements name; empty ones say nothing.

    Args:
        sae: the SAE.
        statements: who says it to the hook that is named there.

    Raises:
        Refused: two name different sites, one names a site that cannot be read, or none says anything.
    """
    if override := sae.overrides.get("hook_name"):
        statements = {**statements, "the registry's config_overrides": str(override)}
    sites: dict[str, Site] = {}
    for source, hook in statements.items():
        if hook == "hook_embed":
            raise sae.refused("it reads the token embeddings, which carry no context")
        try:
            if hook:
                sites[source] = site_of(hook)
        except ValueError as error:
            raise sae.refused(f"{source}: {error}") from None
    if not sites:
        raise sae.refused("nothing says where it reads")
    first, *others = sites
    for other in others:
        if sites[other] != sites[first]:
            raise sae.refused(
                f"{first} says that it reads {sites[first].hook}, {other} says {sites[other].hook}"
            )
    return sites[first]


def hook_of(block: str | int, kind: str) -> str:
    """The hook of a kind of site in a block."""
    return f"blocks.{int(block)}.{HOOKS[kind]}"


def matched(sae: RegisteredSae, pattern: str, text: str, what: str) -> re.Match[str]:
    """A name taken apart.

    Args:
        sae: the SAE.
        pattern: of the whole name.
        text: the name.
        what: what it names, for the message.

    Raises:
        Refused: the name is of another form.
    """
    found = re.fullmatch(pattern, text, re.ASCII)
    if found is None:
        raise sae.refused(f"{what} {text!r} is of no form that is known here")
    return found


def registry() -> Mapping[str, Any]:
    """sae-lens's registry: release to its entry. Importing sae-lens takes seconds."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    directory: Mapping[str, Any] = get_pretrained_saes_directory()
    return directory


def saes_of(release: str) -> list[RegisteredSae]:
    """The SAEs of a release, as the registry lists them.

    Raises:
        UserError: there is no such release.
    """
    directory = registry()
    if release not in directory:
        raise UserError(
            f"release {release!r} is not in sae-lens's registry; --list-releases shows those that are"
        )
    entry = directory[release]
    return [
        RegisteredSae(
            release=release,
            repo_id=entry.repo_id,
            loader=entry.conversion_func or "sae_lens",
            sae_id=sae_id,
            path=str(path),
            overrides=entry.config_overrides or {},
            l0=float((entry.expected_l0 or {}).get(sae_id) or 0),
            page=entry.neuronpedia_id.get(sae_id) or "",
            is_rescaled=sae_id in entry.norm_scaling_factor,
        )
        for sae_id, path in entry.saes_map.items()
    ]
