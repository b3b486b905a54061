"""The strategy sae-to-concept, and what every dataset says for the day it meets new text."""

import dataclasses
import json
import re
import tracemalloc

import numpy as np
import pytest

from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import EMBEDDINGS, FeatureStore
from s2_find_top_features.ranked_features import METRICS, RankedFeature, write_results
from s4_classifier_data_prep.classifier_dataset import inputs_of, read_dataset, write_dataset
from s4_classifier_data_prep.generate_datasets import main
from s4_classifier_data_prep.load_sentence_data import hidden_to_concept, states_to_feature
from tests.s4.test_classifier_dataset import rewrite
from tests.synthetic_store import write_synthetic_store

CHOSEN = [("layer_01_l0_24", 1, 24, 3), ("layer_00_l0_8", 0, 8, 9), ("layer_01_l0_24", 1, 24, 1)]
FEATURE = ["--target-layer", "1", "--target-l0", "24", "--target-feature", "3"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeatureStore(write_synthetic_store(tmp_path_factory.mktemp("sae") / "store", n_sentences=40))


def _ranked_csv(folder, chosen):
    nothing = dict.fromkeys(METRICS)
    features = [
        RankedFeature(rank, name, layer, l0, feature, True, nothing, nothing, "")
        for rank, (name, layer, l0, feature) in enumerate(chosen, start=1)
    ]
    write_results(folder, features, [], {})
    return folder / "ranked_features.csv"


@pytest.fixture
def make(store, tmp_path):
    def run(*flags, of=store):
        output = tmp_path / "d.npz"
        argv = ["--strategy", *flags, "--input", str(of.path), "--output", str(output), "--overwrite"]
        assert main(argv) == 0
        return read_dataset(output)

    return run


def test_the_best_of_a_ranking_sae_by_sae(store, make, tmp_path):
    ranked = _ranked_csv(tmp_path / "ranked", CHOSEN)
    dataset = make("sae-to-concept", "--features", str(ranked))
    of_sae = {sae.name: store.pooled_activations(sae, "max").to_dense() for sae in store.saes}
    expected = np.stack(
        [of_sae["layer_00_l0_8"][:, 9], of_sae["layer_01_l0_24"][:, 1], of_sae["layer_01_l0_24"][:, 3]],
        axis=1,
    )
    assert np.array_equal(dataset.X, expected)
    assert np.array_equal(dataset.y, store.labels)
    assert dataset.metadata["pooling"] == "max"
    assert dataset.metadata["input"]["ranking"]["n_ranked"] == 3
    (note,) = dataset.metadata["notes"]
    assert "cv_mean is optimistic" in note


def test_top_k_takes_the_first_of_the_ranking(make, tmp_path):
    ranked = _ranked_csv(tmp_path / "ranked", CHOSEN)
    dataset = make("sae-to-concept", "--features", str(ranked), "--top-k", "2")
    saes = {entry["name"]: entry["feature_ids"] for entry in dataset.metadata["input"]["saes"]}
    assert saes == {"layer_00_l0_8": [9], "layer_01_l0_24": [3]}


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (["--layer", "1", "--target-l0", "8"], ["layer_01_l0_8"]),
        (["--layers", "0-1", "--target-l0", "24"], ["layer_00_l0_24", "layer_01_l0_24"]),
    ],
)
def test_every_feature_of_the_saes_of_layers(store, make, flags, names):
    dataset = make("sae-to-concept", *flags, "--pooling", "mean")
    saes = [sae for sae in store.saes if sae.name in names]
    assert np.array_equal(
        dataset.X, np.hstack([store.pooled_activations(sae, "mean").to_dense() for sae in saes])
    )
    assert [entry["feature_ids"] for entry in dataset.metadata["input"]["saes"]] == [None] * len(names)
    assert dataset.metadata["notes"] == []  # no label chose them


def test_activations_are_stored_sparse_and_read_as_they_were(make, tmp_path):
    dataset = make("sae-to-concept", "--layer", "0", "--target-l0", "8")
    with np.load(tmp_path / "d.npz", allow_pickle=False) as archive:
        assert "X" not in archive.files
        assert archive["X_data"].dtype == np.float32
        assert len(archive["X_data"]) == np.count_nonzero(dataset.X) < dataset.X.size / 2
        assert archive["X_indptr"][-1] == len(archive["X_data"])


def test_sparse_inputs_that_do_not_fit_together(make, tmp_path):
    make("sae-to-concept", "--layer", "0", "--target-l0", "8")
    rewrite(tmp_path / "d.npz", X_indices=np.array([0, 1], dtype=np.int32))
    with pytest.raises(UserError, match="the sparse inputs do not fit together"):
        read_dataset(tmp_path / "d.npz")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--layer", "1"],
            "choose one of layer_01_l0_8 (l0 8), layer_01_l0_24 (l0 24) by --target-sae NAME",
        ),
        (["--layer", "7"], "no SAE of layer 7"),
        (["--layer", "1", "--target-l0", "9"], "layer 1 has no SAE with l0 9; there are l0 8, 24"),
    ],
)
def test_an_sae_that_is_not_there_or_not_the_only_one(store, tmp_path, capsys, flags, message):
    argv = ["--strategy", "sae-to-concept", "--input", str(store.path), "--output", str(tmp_path / "d.npz")]
    assert main([*argv, *flags]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("chosen", "flags", "message"),
    [
        (CHOSEN, ["--top-k", "4"], "ranks 3 features, --top-k asks for 4; lower it, or rank more"),
        ([], [], "ranks 0 features"),
        ([("layer_09_l0_8", 9, 8, 0)], [], "rank 1: .* has no feature 0 of SAE layer_09_l0_8; give the rank"),
        ([("layer_00_l0_8", 0, 8, 64)], [], "has no feature 64 of SAE layer_00_l0_8"),
    ],
)
def test_a_ranking_that_does_not_fit(store, tmp_path, capsys, chosen, flags, message):
    ranked = _ranked_csv(tmp_path / "ranked", chosen)
    argv = ["--strategy", "sae-to-concept", "--input", str(store.path), "--output", str(tmp_path / "d.npz")]
    assert main([*argv, "--features", str(ranked), *flags]) == 1
    error = capsys.readouterr().err
    assert re.search(message, error), error


def test_features_that_never_fire_are_refused(tmp_path, capsys):
    store = write_synthetic_store(tmp_path / "store", n_sentences=20, density=0.0)
    ranked = _ranked_csv(tmp_path / "ranked", [("layer_00_l0_8", 0, 8, 5), ("layer_00_l0_8", 0, 8, 6)])
    argv = ["--strategy", "sae-to-concept", "--input", str(store), "--output", str(tmp_path / "d.npz")]
    assert main([*argv, "--features", str(ranked)]) == 1
    assert "all 2 inputs are 0 on every train row, so there is nothing to learn" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "needs --features or --layer or --layers"),
        (["--layer", "0", "--features", "r.csv"], "not allowed with"),
        (["--layer", "0", "--top-k", "3"], "--top-k takes the best of --features"),
        (["--features", "r.csv", "--target-l0", "8"], "--target-l0 picks the SAE of a layer"),
        (["--layer", "0", "--unit", "token"], "--unit does not belong to --strategy sae-to-concept"),
        (["--features", "r.csv", "--top-k", "0"], "0 is not at least 1"),
    ],
)
def test_wrong_usage(store, tmp_path, capsys, flags, message):
    argv = ["--strategy", "sae-to-concept", "--input", str(store.path), "--output", str(tmp_path / "d.npz")]
    with pytest.raises(SystemExit) as ended:
        main([*argv, *flags])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


STRATEGIES = [
    ["embedding-to-feature", *FEATURE],
    ["embedding-to-feature", *FEATURE, "--unit", "sentence", "--pooling", "final"],
    ["hidden-to-feature", *FEATURE, "--input-layer", "0"],
    ["hidden-to-concept", "--layers", "0-1", "--pooling", "max"],
    ["sae-to-concept", "--layers", "0-1", "--target-l0", "8"],
]


@pytest.mark.parametrize("flags", STRATEGIES, ids=lambda flags: " ".join(flags[:1] + flags[-2:]))
def test_the_stored_description_is_enough_to_make_the_inputs_again(store, make, flags):
    dataset = make(*flags)
    again = inputs_of(store, json.loads(json.dumps(dataset.metadata)))
    assert np.array_equal(again, dataset.X)
    needed = {
        "strategy",
        "model",
        "model_revision",
        "model_details",
        "layers",
        "pooling",
        "unit",
        "extraction",
    }
    assert needed <= set(dataset.metadata)
    layers = {"embedding-to-feature": [], "hidden-to-feature": [0]}.get(flags[0], [0, 1])
    assert dataset.metadata["layers"] == layers


def test_a_store_without_the_asked_sae_is_refused(store, make, tmp_path):
    dataset = make("sae-to-concept", "--layer", "1", "--target-l0", "24")
    other = FeatureStore(write_synthetic_store(tmp_path / "other", n_sentences=12, l0s=(8,)))
    with pytest.raises(UserError, match="does not hold all the features of SAE layer_01_l0_24"):
        inputs_of(other, dataset.metadata)


def test_inputs_that_are_not_finite_are_refused(tmp_path, capsys, monkeypatch):
    store = write_synthetic_store(tmp_path / "store", n_sentences=12)
    plain = FeatureStore.pooled_hidden_states

    def spoilt(self, layer, pooling="mean"):
        states = plain(self, layer, pooling)
        states[3, 0] = np.inf
        return states

    monkeypatch.setattr(FeatureStore, "pooled_hidden_states", spoilt)
    argv = ["--strategy", "hidden-to-concept", "--layer", "0", "--input", str(store)]
    assert main([*argv, "--output", str(tmp_path / "d.npz")]) == 1
    assert "the inputs hold NaN or infinity; check the store" in capsys.readouterr().err
    assert not (tmp_path / "d.npz").exists()


@pytest.mark.parametrize("what", ["sentences", "tokens"])
def test_memory_stays_within_twice_the_output(tmp_path, what):
    store = FeatureStore(
        write_synthetic_store(
            tmp_path / "store", n_sentences=400, d_model=1024, layers=(0, 1, 2, 3), n_blocks=8
        )
    )
    _ = store.tokens, store.content
    tracemalloc.start()
    if what == "sentences":
        dataset = hidden_to_concept(store, [0, 1, 2, 3], "mean", "none")
    else:
        dataset = states_to_feature(store, None, store.saes[0], 3, "token", "mean", "none")
    write_dataset(tmp_path / "d.npz", dataset)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * (tmp_path / "d.npz").stat().st_size


def test_a_label_target_that_holds_other_values_is_refused(store, make, tmp_path):
    dataset = make("hidden-to-concept", "--layer", "0")
    write_dataset(tmp_path / "d.npz", dataclasses.replace(dataset, y=dataset.y + 0.5))
    with pytest.raises(UserError, match="said to be the label, but y holds other values"):
        read_dataset(tmp_path / "d.npz")


def test_a_group_on_both_sides_of_the_split_is_refused(store, make, tmp_path):
    dataset = make("hidden-to-concept", "--layer", "0")
    groups = dataset.group.copy()
    groups[np.flatnonzero(dataset.held_out)[0]] = groups[np.flatnonzero(~dataset.held_out)[0]]
    write_dataset(tmp_path / "d.npz", dataclasses.replace(dataset, group=groups))
    with pytest.raises(UserError, match="has train rows and test rows, so the test would repeat"):
        read_dataset(tmp_path / "d.npz")


def test_embeddings_of_sentences_are_pooled_by_mean(store, make):
    dataset = make("embedding-to-feature", *FEATURE, "--unit", "sentence")
    assert np.array_equal(dataset.X, store.pooled_hidden_states(EMBEDDINGS, "mean"))
