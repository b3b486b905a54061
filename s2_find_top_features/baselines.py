"""What a feature has to beat on the same sentences: classifiers that read nothing but the text."""

import numpy as np

from concept_evaluation.baselines import bag_of_words, sentence_length
from concept_evaluation.metrics import auroc
from s1_compute_all_features.feature_store import FeatureStore


def text_baselines(store: FeatureStore) -> dict[str, dict[str, float | None]]:
    """AUROC of label 3 against label 0 for bag of words and for sentence length, fitted on train.

    Returns:
        Name to ``train`` and ``held_out``; None where one of the labels is absent. The train value is that
        of the fitted sentences, so only the held-out one can be compared with a feature's.
    """
    ends = (store.labels == 3) | (store.labels == 0)
    fit, judge = ends & ~store.held_out, ends & store.held_out
    is_3 = store.labels == 3
    results: dict[str, dict[str, float | None]] = {}
    for baseline in (
        bag_of_words("classification", store.sentences),
        sentence_length("classification", store.n_tokens),
    ):
        if len(np.unique(is_3[fit])) < 2:
            results[baseline.name] = {"train": None, "held_out": None}
            continue
        baseline.estimator.fit(baseline.inputs[fit], is_3[fit])
        results[baseline.name] = {
            split: auroc(baseline.estimator.decision_function(baseline.inputs[rows]), is_3[rows])
            if rows.any()
            else None
            for split, rows in (("train", fit), ("held_out", judge))
        }
    return results
