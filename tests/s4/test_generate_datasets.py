import numpy as np
import pytest
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from s1_compute_all_features.feature_store import EMBEDDINGS, FeatureStore
from s4_classifier_data_prep.classifier_dataset import read_dataset
from s4_classifier_data_prep.generate_datasets import main
from s4_classifier_data_prep.load_sentence_data import fit_normalization
from tests.s5.layer_store import write_layer_store
from tests.synthetic_store import write_synthetic_store

FEATURE = ["--target-layer", "1", "--target-l0", "24", "--target-feature", "3"]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return FeatureStore(write_synthetic_store(tmp_path_factory.mktemp("s4") / "store", n_sentences=40))


@pytest.fixture
def make(store, tmp_path):
    def run(strategy, *flags):
        output = tmp_path / "out" / "d.npz"
        assert (
            main(["--strategy", strategy, "--input", str(store.path), "--output", str(output), *flags]) == 0
        )
        return read_dataset(output)

    return run


def test_hidden_to_concept_concatenates_pooled_layers(store, make):
    dataset = make("hidden-to-concept", "--layers", "0-1")
    expected = np.hstack([store.pooled_hidden_states(layer, "mean") for layer in (0, 1)])
    assert np.array_equal(dataset.X, expected)
    assert np.array_equal(dataset.y, store.labels)
    assert np.array_equal(dataset.held_out, store.held_out)
    assert np.array_equal(dataset.group, store.groups)
    assert np.array_equal(dataset.n_tokens, store.n_tokens)
    assert dataset.sentence.tolist() == store.sentences
    assert dataset.metadata["input"]["layers"] == [0, 1]
    assert dataset.metadata["store"]["fingerprint"] == store.fingerprint


def test_one_layer_and_another_pooling(store, make):
    dataset = make("hidden-to-concept", "--layer", "1", "--pooling", "last-content")
    assert np.array_equal(dataset.X, store.pooled_hidden_states(1, "last-content"))


def test_embedding_to_feature_has_a_row_per_token(store, make):
    dataset = make("embedding-to-feature", *FEATURE)
    sentence = store.tokens.sentence_index
    assert np.array_equal(dataset.X, store.hidden_states(EMBEDDINGS))
    assert np.array_equal(dataset.y, store.activations(store.find_sae(1, 24)).to_dense()[:, 3])
    assert np.array_equal(dataset.sentence_index, sentence)
    assert np.array_equal(dataset.held_out, store.held_out[sentence])
    assert np.array_equal(dataset.group, store.groups[sentence])
    assert np.array_equal(dataset.token, store.tokens.text)
    assert dataset.metadata["target"] == {
        "kind": "activation",
        "sae": "layer_01_l0_24",
        "layer": 1,
        "average_l0": 24,
        "feature_id": 3,
        "pooling": None,
        "fingerprint": "synthetic",
    }


def test_a_sentence_row_pools_inputs_by_mean_and_the_target_by_max(store, make):
    dataset = make("hidden-to-feature", *FEATURE, "--input-layer", "0", "--unit", "sentence")
    assert np.array_equal(dataset.X, store.pooled_hidden_states(0, "mean"))
    expected = store.pooled_activations(store.find_sae(1, 24), "max").to_dense()[:, 3]
    assert np.array_equal(dataset.y, expected)
    assert dataset.token is None


def test_input_layer_defaults_to_the_target_layer_and_says_what_that_means(store, make, capsys):
    dataset = make("hidden-to-feature", *FEATURE)
    assert np.array_equal(dataset.X, store.hidden_states(1))
    assert "recovers its encoder; take an earlier layer with --input-layer" in capsys.readouterr().out
    make("hidden-to-feature", *FEATURE, "--input-layer", "0", "--overwrite")
    assert "encoder" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("method", "scaler"), [("standardize", StandardScaler()), ("minmax", MinMaxScaler()), ("none", None)]
)
def test_normalisation_is_that_of_scikit_learn_on_the_train_rows(make, method, scaler):
    dataset = make("hidden-to-concept", "--layers", "0,1", "--normalize", method)
    normalised = (dataset.X - dataset.normalization_shift) / dataset.normalization_scale
    if scaler is None:
        assert np.array_equal(normalised, dataset.X)
    else:
        scaler.fit(dataset.X[~dataset.held_out].astype(np.float64))
        # The parameters are summed in strips, so the last digits of float64 may differ.
        assert np.allclose(normalised, scaler.transform(dataset.X.astype(np.float64)), atol=1e-9)


@pytest.mark.parametrize("method", ["standardize", "minmax"])
def test_normalisation_does_not_see_held_out_rows(method):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(50, 3)).astype(np.float32)
    train = np.arange(50) < 40
    before = fit_normalization(inputs, train, method)
    inputs[~train] += 1000
    assert np.array_equal(before, fit_normalization(inputs, train, method))
    leaky = fit_normalization(inputs, np.ones(50, dtype=bool), method)
    assert not np.allclose(before, leaky)  # the test would notice the leak


@pytest.mark.parametrize("method", ["standardize", "minmax"])
def test_an_input_that_does_not_vary_is_left_finite(method):
    shift, scale = fit_normalization(np.full((5, 2), 7, dtype=np.float32), np.ones(5, dtype=bool), method)
    assert np.array_equal((7 - shift) / scale, [0, 0])


def test_labels_0_and_3_alone(tmp_path):
    labels = np.array([0, 3] * 10)
    store = write_synthetic_store(tmp_path / "store", n_sentences=20, labels=labels)
    argv = ["--strategy", "hidden-to-concept", "--layer", "0", "--input", str(store)]
    assert main([*argv, "--output", str(tmp_path / "d.npz")]) == 0
    assert set(read_dataset(tmp_path / "d.npz").y) == {0, 3}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--strategy", "hidden-to-concept", "--layers", "0-7"],
            "layer 2 is not stored; there are layers 0, 1",
        ),
        (
            ["--strategy", "hidden-to-feature", "--target-layer", "9", "--target-feature", "0"],
            "no SAE of layer 9",
        ),
        (
            ["--strategy", "hidden-to-feature", "--target-layer", "1", "--target-feature", "0"],
            "choose one of layer_01_l0_8 (l0 8), layer_01_l0_24 (l0 24) by --target-sae NAME",
        ),
        (["--strategy", "hidden-to-feature", *FEATURE[:-1], "64"], "has the features 0 to 63, not 64"),
    ],
)
def test_what_the_store_does_not_hold(store, tmp_path, capsys, flags, message):
    assert main([*flags, "--input", str(store.path), "--output", str(tmp_path / "d.npz")]) == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("unit", ["token", "sentence"])
def test_a_feature_that_never_fires_is_refused(tmp_path, capsys, unit):
    store = write_synthetic_store(tmp_path / "store", n_sentences=20, density=0.0)
    argv = ["--strategy", "embedding-to-feature", "--input", str(store), "--output", str(tmp_path / "d.npz")]
    flags = ["--target-layer", "0", "--target-l0", "8", "--target-feature", "5", "--unit", unit]
    assert main([*argv, *flags]) == 1
    error = capsys.readouterr().err
    assert "feature 5 of SAE layer_00_l0_8 fires on no sentence of the store, so there is nothing" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["hidden-to-concept"], "needs --layer or --layers"),
        (["hidden-to-concept", "--layer", "0", "--target-feature", "1"], "--target-feature does not belong"),
        (["hidden-to-concept", "--layer", "0", "--input-layer", "1"], "--input-layer does not belong"),
        (["hidden-to-concept", "--layer", "0", "--layers", "1-2"], "not allowed with"),
        (["hidden-to-concept", "--layers", "5-0"], "runs backwards"),
        (["embedding-to-feature", *FEATURE, "--input-layer", "1"], "--input-layer does not belong"),
        (["embedding-to-feature", *FEATURE, "--layers", "1"], "--layers does not belong"),
        (["hidden-to-feature", "--target-layer", "1"], "needs --target-feature"),
        (["hidden-to-feature", *FEATURE, "--pooling", "max"], "add --unit sentence"),
    ],
)
def test_flags_that_do_not_fit_the_strategy_are_usage_errors(store, tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as ended:
        main(["--input", str(store.path), "--output", str(tmp_path / "d.npz"), "--strategy", *flags])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_existing_output_is_kept_without_overwrite(store, tmp_path, capsys):
    output = tmp_path / "d.npz"
    output.write_text("precious")
    argv = [
        "--strategy",
        "hidden-to-concept",
        "--layer",
        "0",
        "--input",
        str(store.path),
        "--output",
        str(output),
    ]
    assert main(argv) == 1
    assert "already exists" in capsys.readouterr().err
    assert output.read_text() == "precious"
    assert main([*argv, "--overwrite"]) == 0
    assert len(read_dataset(output).y) == 40


def test_a_folder_as_output_is_never_replaced(store, tmp_path, capsys):
    argv = ["--strategy", "hidden-to-concept", "--layer", "0", "--input", str(store.path), "--overwrite"]
    assert main([*argv, "--output", str(tmp_path)]) == 1
    assert "is a folder; --output names the NPZ file" in capsys.readouterr().err


def test_a_folder_that_is_no_store(tmp_path, capsys):
    argv = ["--strategy", "hidden-to-concept", "--layer", "0", "--output", str(tmp_path / "d.npz")]
    assert main([*argv, "--input", str(tmp_path)]) == 1
    assert "not a feature store" in capsys.readouterr().err


def test_a_store_without_saes_gives_hidden_states_and_no_features(tmp_path, capsys):
    states = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float16)
    bare = FeatureStore(write_layer_store(tmp_path / "store", np.arange(40) % 4, {0: states}))
    files = ["--input", str(bare.path), "--output", str(tmp_path / "d.npz")]
    assert main(["--strategy", "hidden-to-concept", "--layer", "0", *files]) == 0
    assert np.array_equal(read_dataset(tmp_path / "d.npz").X, bare.pooled_hidden_states(0, "mean"))
    for strategy in (["embedding-to-feature", *FEATURE], ["sae-to-concept", "--layer", "0"]):
        assert main(["--strategy", *strategy, *files, "--overwrite"]) == 1
        assert "error: " in capsys.readouterr().err
