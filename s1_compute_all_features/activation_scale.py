"""Neuronpedia's scale of an SAE's activations (NumPy only; part of feature_store.py).

A store holds what ``SAE.encode`` gives. Neuronpedia shows the activations of the SAE whose decoder rows were
scaled to norm 1, which are value x norm of the row. Whatever shows an activation to people does the same.
"""

from pathlib import Path

import numpy as np

from pipeline_common.files import read_npz
from s1_compute_all_features.store_checks import check_decoder_norms
from s1_compute_all_features.store_layout import DECODER_NORMS, block_folder, sae_file_name

NEURONPEDIA_SCALE = "in Neuronpedia's scale"
"""What captions and documents say beside activations that were multiplied by their norm."""

ONE_WITHIN = 1e-3
"""Where every norm of an SAE is so near to 1, the two scales are one."""


def read_decoder_norms(store: Path, sae_name: str, d_sae: int) -> np.ndarray | None:
    """Norms of an SAE's decoder rows, float32 [d_sae]; None where the store does not tell them.

    Raises:
        UserError: the file is damaged, or what it holds are no such norms.
    """
    path = block_folder(store, 0) / sae_file_name(sae_name)
    arrays = read_npz(path, (), "feature store file", optional=(DECODER_NORMS,))
    if DECODER_NORMS not in arrays:
        return None
    check_decoder_norms(path, arrays[DECODER_NORMS], d_sae)
    return arrays[DECODER_NORMS]


def scale_of(norms: np.ndarray | None) -> np.ndarray | None:
    """What to multiply activations by before they are shown: float32 [d_sae], exactly 1 where all are near.

    Args:
        norms: float32 [d_sae], from a store; None where they are not known, as then is the scale.
    """
    if norms is None:
        return None
    return np.ones_like(norms) if (np.abs(norms - 1) <= ONE_WITHIN).all() else norms
