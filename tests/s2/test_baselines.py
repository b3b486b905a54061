"""What a feature has to beat, and the verdict."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from threadpoolctl import threadpool_limits

from concept_evaluation.baselines import bag_of_words
from concept_evaluation.metrics import auroc
from concept_evaluation.splits import group_folds
from s1_compute_all_features.feature_store import FeatureStore
from s2_find_top_features.baselines import (
    TEXT_PENALTIES,
    best_random_direction,
    evaluate,
    fit_baselines,
    verdict,
)
from s2_find_top_features.scoring import Split
from tests.s2.planted_store import noise, write_planted_store
from tests.s2.test_ranking import SETTINGS

LABELS = np.arange(200) % 4
TEXT = {"bag_of_words", "sentence_length"}
PROBES = {"difference_of_means", "logistic_probe"}


@pytest.fixture(autouse=True)
def _one_thread():
    """As the script runs them: threads of BLAS cost more than matrices of this size do."""
    with threadpool_limits(1):
        yield


def open_store(folder, *, signal_layer=1, labels=LABELS, word_tells=False, layers=(0, 1, 2), **options):
    rng = np.random.default_rng(0)
    states = {layer: rng.normal(size=(len(labels), 12)) for layer in layers}
    if signal_layer in states:
        states[signal_layer][:, 4] += 2.0 * labels
    words = ["honest", "vague", "evasive", "lying"]
    sentences = [
        f"he was {words[label] if word_tells else 'there'} at {s} today" for s, label in enumerate(labels)
    ]
    activations = [noise(rng, len(labels), 30, 0.2) for _ in range(2)]
    folder = write_planted_store(folder, activations, labels, states=states, sentences=sentences, **options)
    return FeatureStore(folder)


def test_probes_choose_the_layer_that_carries_the_label(tmp_path):
    store = open_store(tmp_path / "store")
    split = Split.of(store)
    predictors, messages = fit_baselines(store, split, store.saes[1], SETTINGS)
    assert set(predictors) == TEXT | PROBES | {"random_directions"}
    assert messages == []
    results = evaluate(predictors, store, split, seed=0)
    for name in PROBES:
        assert results[name]["layer"] == 1
        assert results[name]["held_out"] > 0.95 < results[name]["cross_validated"]
        assert results[name]["held_out_low"] <= results[name]["held_out"] <= results[name]["held_out_high"]
    assert results["logistic_probe"]["C"] in (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
    assert abs(results["sentence_length"]["held_out"] - 0.5) < 0.3


def test_baselines_never_see_the_held_out_labels(tmp_path):
    """Other held-out labels leave every score of every sentence as it was."""
    altered = LABELS.copy()
    store = open_store(tmp_path / "a", word_tells=True)
    altered[store.held_out] = 3 - altered[store.held_out]
    other = open_store(tmp_path / "b", word_tells=True)
    other.labels = altered
    for first, second in zip(
        *(fit_baselines(one, Split.of(one), one.saes[0], SETTINGS)[0].items() for one in (store, other)),
        strict=True,
    ):
        assert first[0] == second[0]
        np.testing.assert_allclose(first[1].scores, second[1].scores, rtol=1e-6)


def test_the_penalty_of_the_words_is_chosen_on_train(tmp_path):
    """Equal to a grid search over the same folds; nothing of the held-out sentences takes part."""
    rng = np.random.default_rng(0)
    vocabulary = [f"word{k}" for k in range(300)]
    chance = np.ones((4, 300)) / 300
    chance[3, :20] *= 3
    sentences = [" ".join(rng.choice(vocabulary, 12, p=chance[y] / chance[y].sum())) for y in LABELS]
    store = open_store(tmp_path / "store", layers=())
    store.sentences = sentences
    split = Split.of(store)
    words = fit_baselines(store, split, store.saes[0], SETTINGS)[0]["bag_of_words"]
    fit = np.flatnonzero(split.train & np.isin(LABELS, (0, 3)))
    search = GridSearchCV(
        bag_of_words("classification", sentences).estimator,
        {"logisticregression__C": TEXT_PENALTIES["bag_of_words"]},
        scoring="roc_auc",
        cv=list(group_folds(store.labels[fit], store.groups[fit], 5, 0)),
    ).fit(np.array(sentences, dtype=object)[fit], LABELS[fit] == 3)
    assert len(set(search.cv_results_["mean_test_score"])) > 1
    assert words.details["C"] == search.best_params_["logisticregression__C"]
    assert words.cross_validated == pytest.approx(search.best_score_)
    np.testing.assert_allclose(words.scores, search.decision_function(np.array(sentences, dtype=object)))


def test_random_directions_are_as_dense_as_the_features_and_as_many(tmp_path):
    store = open_store(tmp_path / "store")
    split = Split.of(store)
    best = best_random_direction(store, split, store.saes[1], SETTINGS)
    assert best.details["n_directions"] == 30
    assert best.details["layer"] == 1
    assert best.details["density"] == pytest.approx(0.1, abs=0.02)  # 20% of the words, no full stop
    fired = float((best.scores[split.train] > 0).mean())
    assert 0 < fired < 0.5
    again = best_random_direction(store, split, store.saes[1], replace(SETTINGS, n_workers=3))
    np.testing.assert_array_equal(best.scores, again.scores)
    ends = (store.labels[split.train] == 0) | (store.labels[split.train] == 3)
    on_train = auroc(best.scores[split.train][ends], store.labels[split.train][ends] == 3)
    assert on_train > 0.6  # the states of layer 1 carry the label, and the best of 30 leans towards it


def test_what_the_store_does_not_hold_is_said(tmp_path):
    store = open_store(tmp_path / "none", layers=())
    predictors, messages = fit_baselines(store, Split.of(store), store.saes[0], SETTINGS)
    assert set(predictors) == TEXT
    assert "no hidden states" in messages[0]
    store = open_store(tmp_path / "other", layers=(1,))
    predictors, messages = fit_baselines(store, Split.of(store), store.saes[0], SETTINGS)
    assert set(predictors) == TEXT | PROBES
    assert "hidden layer 0" in messages[0]


def test_a_store_of_another_extent_gives_what_it_can(tmp_path, monkeypatch):
    store = open_store(tmp_path / "none", manifest={"hidden_states": "none", "settings": {"tokens": "final"}})
    predictors, messages = fit_baselines(store, Split.of(store), store.saes[0], SETTINGS)
    assert set(predictors) == {"bag_of_words"}
    assert ["sentence length" in messages[0], "no hidden states" in messages[1]] == [True, True]

    whole = open_store(tmp_path / "all")
    pooled = {layer: whole.pooled_hidden_states(layer, "max") for layer in whole.layers}
    store = open_store(tmp_path / "pooled", manifest={"hidden_states": "pooled"})
    monkeypatch.setattr(store, "pooled_hidden_states", lambda layer, pooling: pooled[layer])
    predictors, messages = fit_baselines(store, Split.of(store), store.saes[1], SETTINGS)
    assert set(predictors) == TEXT | PROBES | {"random_directions"}
    assert messages == []
    density = predictors["random_directions"].details["density"]
    assert density == pytest.approx(0.2, abs=0.03)  # of the sentences


def test_without_label_0_there_are_no_baselines(tmp_path):
    store = open_store(tmp_path / "store", labels=1 + np.arange(60) % 3)
    predictors, messages = fit_baselines(store, Split.of(store), store.saes[0], SETTINGS)
    assert predictors == {}
    assert "label 0" in messages[0]
    assert evaluate(predictors, store, Split.of(store), 0) == {}


def test_held_out_without_label_3_leaves_held_out_values_empty(tmp_path):
    held_out = (np.arange(200) % 5 == 0) & (LABELS != 3)
    store = open_store(tmp_path / "store", held_out=held_out)
    split = Split.of(store)
    results = evaluate(fit_baselines(store, split, store.saes[0], SETTINGS)[0], store, split, 0)
    for values in results.values():
        assert values["train"] is not None
        assert values["held_out"] is values["held_out_low"] is None


def test_the_verdict_has_three_outcomes(tmp_path):
    store = open_store(tmp_path / "store")
    split = Split.of(store)
    rng = np.random.default_rng(0)
    good, bad = store.labels + rng.normal(size=200), rng.normal(size=200)
    assert verdict(good, bad, store, split, 0)["word"] == "beats"
    assert verdict(bad, good, store, split, 0)["word"] == "loses"
    fair, alike = 0.5 * store.labels + rng.normal(size=(2, 200))
    near = verdict(fair, alike, store, split, 0)
    assert near["word"] == "cannot tell"
    assert near["difference_low"] < 0 < near["difference_high"]


def test_below_ten_sentences_of_a_label_nothing_beats_anything(tmp_path):
    """With so few a paired bootstrap claims a difference in most runs of noise."""
    words = []
    for n_of_3 in (9, 10):
        held_out = (LABELS == 0) & (np.arange(200) % 2 == 0)
        held_out[np.flatnonzero(LABELS == 3)[:n_of_3]] = True
        store = open_store(tmp_path / str(n_of_3), held_out=held_out)
        outcome = verdict(LABELS.astype(float), -LABELS.astype(float), store, Split.of(store), 0)
        assert outcome["difference_low"] == 1.0  # it would have been called a win
        words.append(outcome["word"])
    assert words == ["cannot tell", "beats"]


def test_the_verdict_on_too_little_is_that_it_cannot_tell(tmp_path):
    held_out = np.zeros(200, dtype=bool)
    held_out[[1, 2, 5]] = True
    store = open_store(tmp_path / "store", held_out=held_out)
    scores = np.arange(200.0)
    outcome = verdict(scores, -scores, store, Split.of(store), 0)
    assert outcome == {"word": "cannot tell", "difference_low": None, "difference_high": None}
