"""A store of SAEs that layer and l0 do not tell apart, beside one that they do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from s1_compute_all_features.feature_store import StoredSae
from tests.synthetic_store import synthetic_sae, write_synthetic_store


def shared_saes() -> list[StoredSae]:
    """Layer 0: two of l0 72, one of l0 8; layer 1: two without an l0. Only the l0 of 8 makes a key."""
    plain = synthetic_sae(0, 8, 32)
    named = [
        (0, 72, "layer_0_width_32_l0_72", 32),
        (0, 72, "layer_0_width_64_l0_72", 64),
        (1, None, "layer_1-a", 32),
        (1, None, "layer_1-b", 32),
    ]
    return [
        plain,
        *(
            replace(synthetic_sae(layer, 0, width), name=name, average_l0=l0)
            for layer, l0, name, width in named
        ),
    ]


def write_shared_store(folder: Path, **options: Any) -> Path:
    """A synthetic store of those SAEs; every feature 3 grows with the label."""
    return write_synthetic_store(folder, **{"n_sentences": 60, "saes": shared_saes(), **options})
