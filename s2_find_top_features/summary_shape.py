"""What a reader of ``summary.json`` and ``explanations.json`` relies on; part of ranked_features.py.

Shapes for `pipeline_common.json_shape.check_shape`.
"""

from typing import Any

from pipeline_common.json_shape import NATURAL
from s1_compute_all_features.feature_store import POOLINGS

_NUMBER = (None, float)

EXPLANATIONS_SHAPE = [{"rank": NATURAL, "labels": [str]}]


def summary_shape(metrics: tuple[str, ...]) -> dict[str, Any]:
    """The shape of ``summary.json``; ``metrics`` are those that a ranking can be ordered by."""
    return {
        "store": {"fingerprint": str},
        "model": {"id": str},
        "settings": {
            "min_pearson": float,
            "min_tpr": float,
            "max_fpr": float,
            "pooling": frozenset(POOLINGS),
            "rank_by": frozenset(metrics),
            "top_n": NATURAL,
            "n_permutations": NATURAL,
            "seed": NATURAL,
            "stratify_by_length": bool,
            "keep_sinks?": bool,
        },
        **dict.fromkeys(("n_features", "n_active_on_train", "n_passing"), NATURAL),
        "sentences": {"train": {str: NATURAL}, "held_out": {str: NATURAL}},
        "messages": [str],
        "significance": (
            None,
            {
                **dict.fromkeys(
                    ("n_permutations", "n_tested", "n_excluded", "min_active", "n_discoveries"), NATURAL
                ),
                "n_fixed_sentences?": NATURAL,
                "level": float,
                "best_of_noise_mean": _NUMBER,
                "best_of_noise_95": _NUMBER,
            },
        ),
        "stability": (None, {"n_bootstraps": NATURAL}),
        "baselines": {
            str: dict.fromkeys(
                ("train", "cross_validated", "held_out", "held_out_low", "held_out_high"), _NUMBER
            )
        },
        "verdict": (
            None,
            {
                "word": frozenset({"beats", "loses", "cannot tell"}),
                "difference_low": _NUMBER,
                "difference_high": _NUMBER,
            },
        ),
        "quick_list": str,
        "pooling_comparison": (
            None,
            [
                {
                    "pooling": str,
                    "sae_name": str,
                    **dict.fromkeys(("feature_id", "n_passing"), NATURAL),
                    "n_discoveries": (None, NATURAL),
                    **dict.fromkeys(
                        (
                            "score",
                            "auroc_3_vs_0",
                            "held_out_auroc_3_vs_0",
                            "held_out_auroc_3_vs_0_low",
                            "held_out_auroc_3_vs_0_high",
                        ),
                        _NUMBER,
                    ),
                }
            ],
        ),
        "specificity": (None, {str: {str: _NUMBER}}),
        "libraries": {str: str},
        "files?": {str: str},
    }
