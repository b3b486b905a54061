import numpy as np
import pytest

from concept_evaluation import baselines


def test_majority_answers_the_commonest_label_with_the_shares_as_probabilities():
    baseline = baselines.majority("classification", 4)
    fitted = baseline.estimator.fit(baseline.inputs, np.array([0, 3, 3, 3]))
    assert fitted.predict(baseline.inputs).tolist() == [3, 3, 3, 3]
    assert fitted.predict_proba(baseline.inputs)[0].tolist() == [0.25, 0.75]


def test_majority_of_a_regression_is_the_mean():
    baseline = baselines.majority("regression", 3)
    assert baseline.name == "mean"
    fitted = baseline.estimator.fit(baseline.inputs, np.array([0.0, 1.0, 5.0]))
    assert fitted.predict(baseline.inputs) == pytest.approx([2.0, 2.0, 2.0])


def test_sentence_length_finds_a_label_that_is_length():
    n_tokens = np.random.default_rng(0).integers(1, 40, 200)
    label = np.where(n_tokens > 20, 3, 0)
    baseline = baselines.sentence_length("classification", n_tokens)
    assert baseline.estimator.fit(baseline.inputs, label).score(baseline.inputs, label) > 0.95


def test_bag_of_words_generalises_on_a_word_and_knows_only_training_words():
    rng = np.random.default_rng(0)
    filler = ["one", "two", "three", "four", "five", "six"]
    label = np.arange(80) % 2 * 3
    sentences = [" ".join([*rng.choice(filler, 4), "lied" if y else "sang"]) for y in label]
    baseline = baselines.bag_of_words("classification", sentences)
    fitted = baseline.estimator.fit(baseline.inputs[:40], label[:40])
    assert fitted.score(baseline.inputs[40:], label[40:]) == 1.0
    assert "unseen" not in fitted[0].vocabulary_
    assert fitted.predict(np.array(["unseen words alone"], dtype=object)).shape == (1,)


def test_bag_of_words_takes_sentences_of_punctuation():
    baseline = baselines.bag_of_words("regression", ["?!", "...", "!"])
    assert baseline.estimator.fit(baseline.inputs, np.arange(3.0)).predict(baseline.inputs).shape == (3,)


def test_token_identity_is_about_the_mean_of_each_token():
    tokens = np.array([" the", " lied"] * 200)
    target = np.where(tokens == " lied", 2.0, 0.0)
    baseline = baselines.token_identity(tokens)
    fitted = baseline.estimator.fit(baseline.inputs, target)
    # Ridge with alpha 1 and 200 rows a token shrinks by about 1 in 200.
    assert fitted.predict(baseline.inputs[:2]) == pytest.approx([0.0, 2.0], abs=0.02)
    unseen = fitted.predict(np.array([[" never"]], dtype=object))
    assert unseen == pytest.approx([1.0], abs=0.02)
