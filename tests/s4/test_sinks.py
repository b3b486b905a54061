"""Datasets without attention sinks: a token that is one makes no row, and no pooled input knows it."""

import numpy as np
import pytest

from s1_compute_all_features.feature_store import EMBEDDINGS, FeatureStore
from s4_classifier_data_prep.classifier_dataset import inputs_of, read_dataset, token_rows
from s4_classifier_data_prep.generate_datasets import main
from tests.synthetic_store import SINK_SIZE, planted_sinks, write_synthetic_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sinks at layer 1 alone."""
    return write_synthetic_store(tmp_path_factory.mktemp("s4") / "store", n_sentences=40, sink_layers=(1,))


@pytest.fixture
def make(folder, tmp_path):
    def run(strategy, *flags):
        output = tmp_path / "out" / "d.npz"
        where = ["--input", str(folder), "--output", str(output)]
        assert main(["--strategy", strategy, *where, *flags, "--overwrite"]) == 0
        return read_dataset(output)

    return run


def target(layer):
    return ["--target-layer", str(layer), "--target-l0", "24", "--target-feature", "3"]


@pytest.mark.parametrize(
    ("strategy", "input_layer", "target_layer", "masked"),
    [
        ("embedding-to-feature", None, 1, True),  # the target's layer
        ("embedding-to-feature", None, 0, False),
        ("hidden-to-feature", 1, 0, True),  # the input's layer
        ("hidden-to-feature", 0, 1, True),
        ("hidden-to-feature", 0, 0, False),
    ],
)
def test_a_sink_of_input_or_target_makes_no_row(strategy, input_layer, target_layer, masked, folder, make):
    flags = [] if input_layer is None else ["--input-layer", str(input_layer)]
    dataset = make(strategy, *target(target_layer), *flags)
    store = FeatureStore(folder)
    sinks = planted_sinks(store.n_tokens)
    rows = np.flatnonzero(~sinks) if masked else np.arange(len(sinks))
    every = FeatureStore(folder, keep_sinks=True)
    layer = EMBEDDINGS if input_layer is None else input_layer
    np.testing.assert_array_equal(dataset.X, every.hidden_states(layer)[rows])
    activations = every.feature_activations(every.find_sae(target_layer, 24), [3])[:, 0]
    np.testing.assert_array_equal(dataset.y, activations[rows])
    sentence = store.tokens.sentence_index[rows]
    np.testing.assert_array_equal(dataset.sentence_index, sentence)
    np.testing.assert_array_equal(dataset.held_out, store.held_out[sentence])
    np.testing.assert_array_equal(dataset.group, store.groups[sentence])
    np.testing.assert_array_equal(dataset.label, store.labels[sentence])
    np.testing.assert_array_equal(dataset.token, store.tokens.text[rows])
    np.testing.assert_array_equal(dataset.position, store.tokens.position[rows])
    assert dataset.y.max() < SINK_SIZE / 10
    assert dataset.metadata["n_train_rows"] + dataset.metadata["n_test_rows"] == len(rows)
    np.testing.assert_array_equal(inputs_of(store, dataset.metadata), dataset.X)
    np.testing.assert_array_equal(token_rows(store, dataset.metadata), rows)


def test_sentences_are_pooled_without_sinks(folder, make):
    store = FeatureStore(folder)
    dataset = make("hidden-to-concept", "--layers", "0-1")
    expected = np.hstack([store.pooled_hidden_states(layer, "mean") for layer in (0, 1)])
    np.testing.assert_array_equal(dataset.X, expected)
    assert np.abs(dataset.X).max() < SINK_SIZE / 10
    dataset = make("sae-to-concept", "--layer", "1", "--target-l0", "8")
    np.testing.assert_array_equal(dataset.X, store.pooled_activations(store.find_sae(1, 8)).to_dense())
    assert dataset.X.max() < SINK_SIZE / 10
    dataset = make("hidden-to-feature", "--unit", "sentence", *target(1))
    np.testing.assert_array_equal(
        dataset.y, store.pooled_activations(store.find_sae(1, 24)).columns(np.array([3]))[:, 0]
    )


def test_the_description_says_what_decides_on_sinks(folder, make):
    dataset = make("hidden-to-concept", "--layer", "1")
    assert dataset.metadata["extraction"]["sinks"] == FeatureStore(folder).manifest["sinks"]
    kept = make("hidden-to-concept", "--layer", "1", "--keep-sinks")
    assert kept.metadata["extraction"]["sinks"] is None
    assert np.abs(kept.X).max() > SINK_SIZE / 10
    every = make("hidden-to-feature", "--keep-sinks", *target(1))
    assert len(every.y) == FeatureStore(folder).starts[-1]
    assert every.y.max() > SINK_SIZE
