"""How a feature is named, and which SAE a name takes (NumPy-free; part of feature_store.py).

A key is ``layer:l0:feature_id``, the l0 left empty where none is published or the layer has one SAE, or
``SAE_NAME:feature_id``. Names hold no colon and are no numbers, so that a key with its end missing is none.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline_common.errors import UserError
from s1_compute_all_features.store_layout import StoredSae

_SHORT = re.compile(r"\s*(\d+):(\d*):(\d+)\s*", flags=re.ASCII)
_BY_NAME = re.compile(r"\s*(?!\d+:)([A-Za-z0-9_.-]+):(\d+)\s*", flags=re.ASCII)
_MOST_LISTED = 12
"""Names that a message lists; a store may hold hundreds of SAEs."""


@dataclass(frozen=True, repr=False)
class FeatureKey:
    """A feature as users write it.

    Attributes:
        layer: of its SAE; None where the SAE is named.
        average_l0: of its SAE; None where the SAE is named, or the key leaves it empty.
        feature_id: index of the latent.
        sae_name: the SAE's name in the store; None where layer and l0 tell which one it is.
    """

    layer: int | None
    average_l0: int | None
    feature_id: int
    sae_name: str | None = None

    def __repr__(self) -> str:
        if self.sae_name is not None:
            return f"{self.sae_name}:{self.feature_id}"
        return f"{self.layer}:{'' if self.average_l0 is None else self.average_l0}:{self.feature_id}"

    @classmethod
    def parse(cls, text: str) -> "FeatureKey":
        """The key in ``text``, in either form.

        >>> FeatureKey.parse("12:82:1767"), FeatureKey.parse("layer_12_width_65k_l0_72:1767")
        (12:82:1767, layer_12_width_65k_l0_72:1767)

        Raises:
            ValueError: it is of neither form.
        """
        if match := _SHORT.fullmatch(text):
            return cls(int(match[1]), int(match[2]) if match[2] else None, int(match[3]))
        if match := _BY_NAME.fullmatch(text):
            return cls(None, None, int(match[2]), match[1])
        raise ValueError(
            f"{text.strip()!r} is not layer:l0:feature_id, such as 12:82:1767 or 12::1767, "
            "nor SAE_NAME:feature_id"
        )


def feature_key(
    sae_name: str, layer: int, average_l0: int | None, feature_id: int, needs_name: bool
) -> FeatureKey:
    """A feature's one key: by layer and l0, or by the SAE's name where `needs_name` says so."""
    if needs_name:
        return FeatureKey(None, None, feature_id, sae_name)
    return FeatureKey(layer, average_l0, feature_id)


def key_form(keys: Iterable[str]) -> str:
    """What stands above some keys: the form that they have, or both.

    >>> key_form(["12:82:1767", "3::5"]), key_form(["layer_12_width_65k_l0_72:1767"])
    ('layer:l0:feature', 'SAE:feature')
    """
    forms = {"SAE:feature" if key.count(":") == 1 else "layer:l0:feature" for key in keys}
    return " or ".join(sorted(forms, reverse=True)) or "layer:l0:feature"


def needs_name(saes: Sequence[StoredSae], sae: StoredSae) -> bool:
    """Whether layer and l0 alone would take several of the SAEs, or another one, for this one."""
    return len(_of_layer_and_l0(saes, sae.layer, sae.average_l0)) > 1


def find_sae(
    store: Path, saes: Sequence[StoredSae], layer: int | None, average_l0: int | None, name: str | None
) -> StoredSae:
    """The SAE of that name; without a name the one of the layer, by its l0 where the layer has several.

    Args:
        store: whose SAEs they are, for the message.
        saes: to choose from.
        layer: of the SAE.
        average_l0: of the SAE; None for whatever the layer has.
        name: of the SAE; layer and l0 are then None.

    Raises:
        UserError: none such, or several; the message lists what there is and how to take one.
    """
    if name is not None:
        for sae in saes:
            if sae.name == name:
                return sae
        names = _listed([sae.name for sae in saes])
        hint = "; a key without a name is layer:l0:feature_id" if name.isdigit() else ""
        raise UserError(f"{store}: no SAE is named {name}; there are {names}{hint}")
    of_layer = _of_layer_and_l0(saes, layer, None)
    if not of_layer:
        layers = sorted({sae.layer for sae in saes})
        raise UserError(f"{store}: no SAE of layer {layer}; layers with SAEs: {_listed(layers)}")
    found = _of_layer_and_l0(saes, layer, average_l0)
    if len(found) == 1:
        return found[0]
    if not found:
        existing = _listed([_l0(sae) for sae in of_layer])
        raise UserError(f"{store}: layer {layer} has no SAE with l0 {average_l0}; there are l0 {existing}")
    with_l0 = "" if average_l0 is None else f" with l0 {average_l0}"
    choices = _listed([f"{sae.name} (l0 {_l0(sae)})" for sae in found])
    raise UserError(
        f"{store}: layer {layer} has several SAEs{with_l0}; choose one of {choices} by --target-sae NAME, in "
        f"a key as NAME:feature_id{_by_l0(found)}"
    )


def _of_layer_and_l0(saes: Sequence[StoredSae], layer: int | None, average_l0: int | None) -> list[StoredSae]:
    return [sae for sae in saes if sae.layer == layer and average_l0 in (None, sae.average_l0)]


def _by_l0(found: Sequence[StoredSae]) -> str:
    """What a message adds where each of the SAEs has an l0 of its own."""
    l0s = [sae.average_l0 for sae in found]
    if None in l0s or len(set(l0s)) < len(l0s):
        return ""
    return "; or by --target-l0, in a key as layer:l0:feature_id"


def _l0(sae: StoredSae) -> str:
    return "not published" if sae.average_l0 is None else str(sae.average_l0)


def _listed(values: Sequence[object]) -> str:
    listed = ", ".join(str(value) for value in values[:_MOST_LISTED]) or "none"
    n_more = len(values) - _MOST_LISTED
    return f"{listed} and {n_more} more (see manifest.json)" if n_more > 0 else listed
