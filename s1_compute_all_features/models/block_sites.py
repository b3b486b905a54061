"""Places inside a transformer block, and how each architecture offers them."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pipeline_common.errors import UserError
from s1_compute_all_features.saes.sites import DESCRIPTIONS, Site

if TYPE_CHECKING:
    import torch


def watch_site(model: Any, site: Site, pick_up: "Callable[[torch.Tensor], None]") -> Any:
    """Register a hook that hands the values of a site, [n_sentences, longest, width], to ``pick_up``.

    Args:
        model: a `LanguageModel`.
        site: no whole hidden layer.
        pick_up: called once per forward pass.

    Returns:
        The handle that removes the hook.

    Raises:
        UserError: the architecture does not offer the site.
    """
    raise UserError(
        f"{site.hook}: the architecture {type(model.model).__name__} does not offer {DESCRIPTIONS[site.kind]}"
    )
