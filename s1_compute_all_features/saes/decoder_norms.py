"""The norms of an SAE's decoder rows: what sae-lens's ``fold_W_dec_norm`` multiplies activations by.

Neuronpedia shows the activations of the SAE after that fold, which scales every decoder row to norm 1 and
the encoder to match. Where a class of sae-lens has the fold, its encoding afterwards is value x norm:

- standard, gated, JumpReLU, transcoders: weights, biases and thresholds are all multiplied by the norm, and
  what these encoders do is homogeneous in it.
- TopK with ``rescale_acts_by_decoder_norm``: it multiplies by the norm before it takes the k largest, so its
  values are scaled already, and the fold leaves them as they are: the factor is 1.
- TopK without it, matching pursuit, temporal: the fold could change which features are active, and sae-lens
  refuses it. There is no such scale, and no factor.

Axes: D d_model, F features (d_sae).
"""

from typing import Any

import numpy as np

from pipeline_common.errors import UserError
from s1_compute_all_features.encoder_matrix import open_matrix
from s1_compute_all_features.sae_weights import LocatedSae

FOLDED = frozenset(
    {
        "standard",
        "gated",
        "jumprelu",
        "transcoder",
        "skip_transcoder",
        "jumprelu_transcoder",
        "jumprelu_skip_transcoder",
    }
)
"""sae-lens's architectures whose activations the fold multiplies by the norm."""

SMALLEST_NORM = 1e-8
"""sae-lens takes no row for shorter, so that it can divide by the norm."""

_ROWS_AT_ONCE = 4096


def decoder_norms_of(located: LocatedSae, d_sae: int) -> np.ndarray:
    """Norms of the decoder rows of a JumpReLU or ReLU SAE, float32 [F], read from its file strip by strip.

    Args:
        located: the SAE, with a file of weights.
        d_sae: number of features, as the encoder has it.

    Raises:
        UserError: the decoder is missing, damaged, of another width, or not finite.
    """
    assert located.weights is not None
    squares = np.zeros(d_sae, dtype=np.float32)
    with open_matrix(located.weights, "W_dec", "w_dec") as matrix:
        if matrix.shape[0] != d_sae:
            raise UserError(
                f"{located.weights}: W_dec has {matrix.shape[0]} rows, W_enc has {d_sae} features; "
                "fetch it again"
            )
        for first, strip in matrix.strips():
            values = strip.numpy()
            if matrix.by_columns:
                squares += np.einsum("df,df->f", values, values)
            else:
                squares[first : first + len(values)] = np.einsum("fd,fd->f", values, values)
    return _checked(located, np.sqrt(squares))


def norms_of_loaded(located: LocatedSae, sae: Any) -> np.ndarray | None:
    """The factors of an SAE that sae-lens has loaded, before its precision is changed: float32 [F].

    Args:
        located: the SAE, for the message.
        sae: a sae-lens SAE.

    Returns:
        None where sae-lens cannot fold the norms without changing which features are active.

    Raises:
        UserError: the decoder is not finite.
    """
    import torch

    architecture = sae.cfg.architecture()
    if architecture == "topk" and sae.cfg.rescale_acts_by_decoder_norm:
        return np.ones(sae.cfg.d_sae, dtype=np.float32)
    if architecture not in FOLDED:
        return None
    with torch.no_grad():
        strips = [rows.float().norm(dim=-1) for rows in sae.W_dec.split(_ROWS_AT_ONCE)]
    return _checked(located, torch.cat(strips).cpu().numpy())


def _checked(located: LocatedSae, norms: np.ndarray) -> np.ndarray:
    if not np.isfinite(norms).all():
        raise UserError(
            f"SAE {located.entry.name}: W_dec is not finite in "
            f"{located.weights or located.entry.sae_id}; fetch it again"
        )
    return np.maximum(norms, np.float32(SMALLEST_NORM))
