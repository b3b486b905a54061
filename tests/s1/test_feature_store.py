"""The store: round trip, pooling against loops, damage."""

import itertools
import json

import numpy as np
import pytest

from pipeline_common.errors import UserError
from s1_compute_all_features.feature_store import EMBEDDINGS, BlockWriter, FeatureStore
from s1_compute_all_features.pooling import POOLINGS, concatenate_rows, pool_dense, pool_sparse
from s1_compute_all_features.token_texts import is_content
from tests.synthetic_store import to_sparse, write_synthetic_store


@pytest.fixture
def folder(tmp_path):
    return write_synthetic_store(tmp_path / "store")


def random_tokens(seed=0, n_sentences=30, width=20):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 7, size=n_sentences)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    dense = (rng.exponential(size=(starts[-1], width)) * (rng.random((starts[-1], width)) < 0.3)).astype(
        np.float32
    )
    content = rng.random(starts[-1]) < 0.7
    content[starts[3] : starts[4]] = False  # a sentence without any content token
    return dense, starts, content


def pooled_by_hand(dense, starts, content, pooling):
    rows = []
    for first, last in itertools.pairwise(starts):
        tokens, of_sentence = dense[first:last], content[first:last]
        last_content = np.flatnonzero(of_sentence)[-1] if of_sentence.any() else -1
        row = {"max": tokens.max(axis=0), "mean": tokens.astype(np.float64).mean(axis=0), "final": tokens[-1]}
        rows.append(row.get(pooling, tokens[last_content]))
    return np.array(rows)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_equals_a_loop(pooling):
    dense, starts, content = random_tokens()
    expected = pooled_by_hand(dense, starts, content, pooling)
    sparse = pool_sparse(to_sparse(dense), starts, content, pooling)
    np.testing.assert_allclose(sparse.to_dense(), expected, rtol=1e-6)
    np.testing.assert_allclose(pool_dense(dense, starts, content, pooling), expected, rtol=1e-6)


def test_pooling_of_nothing_is_nothing():
    nothing = np.zeros((5, 4), dtype=np.float32)
    starts, content = np.array([0, 2, 5]), np.ones(5, dtype=bool)
    for pooling in POOLINGS:
        pooled = pool_sparse(to_sparse(nothing), starts, content, pooling)
        assert pooled.shape == (2, 4)
        assert not len(pooled.data)
        assert pooled.indptr.tolist() == [0, 0, 0]


def test_rows_and_columns_equal_numpy():
    dense, _, _ = random_tokens()
    sparse = to_sparse(dense)
    rows = np.array([5, 0, 5, 17])
    np.testing.assert_array_equal(sparse.take_rows(rows).to_dense(), dense[rows])
    np.testing.assert_array_equal(sparse.columns(np.array([3, 3, 0])), dense[:, [3, 3, 0]])
    halves = concatenate_rows([to_sparse(dense[:10]), to_sparse(dense[10:])])
    np.testing.assert_array_equal(halves.to_dense(), dense)


def test_content_tokens_hold_a_letter_or_digit():
    texts = np.array([" lied", ".", "\u2581", " \u201c", "\u6f22", "42", "'s", "?!"])
    assert is_content(texts).tolist() == [True, False, False, False, True, True, True, False]


def test_blocks_make_no_difference(tmp_path):
    one, many = (
        FeatureStore(write_synthetic_store(tmp_path / str(n_blocks), n_blocks=n_blocks))
        for n_blocks in (1, 7)
    )
    for sae in one.saes:
        np.testing.assert_array_equal(one.activations(sae).to_dense(), many.activations(sae).to_dense())
        for pooling in POOLINGS:
            np.testing.assert_array_equal(
                one.pooled_activations(sae, pooling).to_dense(),
                many.pooled_activations(sae, pooling).to_dense(),
            )
    for layer in (EMBEDDINGS, *one.layers):
        np.testing.assert_array_equal(one.hidden_states(layer), many.hidden_states(layer))
        np.testing.assert_array_equal(
            one.pooled_hidden_states(layer, "last-content"), many.pooled_hidden_states(layer, "last-content")
        )
    np.testing.assert_array_equal(one.tokens.text, many.tokens.text)


def test_a_layer_that_would_overflow_float16_stays_float32(tmp_path):
    writer = BlockWriter(tmp_path, 0)
    writer.write_states(0, np.array([[1.0, 70000.0]], dtype=np.float32))
    writer.write_states(1, np.array([[1.0, 65504.0]], dtype=np.float32))
    kept = [np.load(tmp_path / "block_0000" / f"hidden_layer_0{layer}.npz")["states"] for layer in (0, 1)]
    assert [array.dtype for array in kept] == [np.float32, np.float16]
    assert kept[0][0, 1] == 70000.0


def test_selections_that_do_not_exist_list_what_does(folder):
    store = FeatureStore(folder)
    assert store.find_sae(1, 24).name == "layer_01_l0_24"
    for call, message in (
        (lambda: store.find_sae(9), "no SAE of layer 9; layers with SAEs: 0, 1"),
        (
            lambda: store.find_sae(0),
            r"several SAEs; choose one of layer_00_l0_8 \(l0 8\), layer_00_l0_24 \(l0 24\) "
            r"by --target-sae NAME, in a key as NAME:feature_id; "
            r"or by --target-l0, in a key as layer:l0:feature_id$",
        ),
        (lambda: store.find_sae(0, 100), "no SAE with l0 100; there are l0 8, 24"),
        (lambda: store.hidden_states(5), "layer 5 is not stored; there are layers 0, 1"),
        (lambda: store.feature_activations(store.saes[0], [64]), "features 0 to 63, not 64"),
    ):
        with pytest.raises(UserError, match=message):
            call()


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize("name", ["tokens.npz", "sae_layer_00_l0_8.npz", "hidden_layer_00.npz"])
def test_a_truncated_file_is_named(folder, name):
    truncate(folder / "block_0001" / name)
    store = FeatureStore(folder)
    read = {
        "tokens.npz": lambda: store.tokens,
        "sae_layer_00_l0_8.npz": lambda: store.activations(store.saes[0]),
        "hidden_layer_00.npz": lambda: store.hidden_states(0),
    }
    with pytest.raises(UserError, match=name.replace(".", r"\.") + ": damaged"):
        read[name]()


def test_damaged_manifests_and_tables_are_named(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    for change, message in (
        ({"complete": False}, "did not finish"),
        ({"format_version": 0}, "feature store format 0, this program reads format 1"),
        ({"format": "other"}, "holds no feature store"),
        ({"saes": [{"name": "x"}]}, "damaged"),
    ):
        (folder / "manifest.json").write_text(json.dumps({**manifest, **change}))
        with pytest.raises(UserError, match=message):
            FeatureStore(folder)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    table = (folder / "sentences.csv").read_text()
    (folder / "sentences.csv").write_text("\n".join(table.splitlines()[:-3]) + "\n")
    with pytest.raises(UserError, match="the manifest counts others"):
        FeatureStore(folder)


def test_a_file_of_another_shape_is_refused(folder):
    BlockWriter(folder, 0).write_activations("layer_00_l0_8", to_sparse(np.ones((2, 64), dtype=np.float32)))
    store = FeatureStore(folder)
    with pytest.raises(UserError, match=r"does not hold .* as the manifest says"):
        store.activations(store.saes[0])


def test_nothing_in_a_store_is_pickled(folder):
    for path in folder.glob("block_*/*.npz"):
        with np.load(path, allow_pickle=False) as archive:
            assert all(archive[name].dtype != object for name in archive.files)
