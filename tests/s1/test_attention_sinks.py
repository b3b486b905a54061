"""Which tokens are sinks, poolings that leave them out against a loop, stores that tell them or do not."""

import itertools
import json

import numpy as np
import pytest

from pipeline_common.errors import UserError
from pipeline_common.files import sealed
from s1_compute_all_features.attention_sinks import (
    SinkRule,
    first_lost_sentence,
    median_norms,
    sink_mask,
    starts_without,
)
from s1_compute_all_features.feature_store import EMBEDDINGS, BlockWriter, FeatureStore
from s1_compute_all_features.pooling import POOLINGS, pool_dense, pool_sparse
from s1_compute_all_features.store_sinks import advice, sink_line
from tests.s1.test_feature_store import pooled_by_hand, random_tokens
from tests.synthetic_store import SINK_SIZE, planted_sinks, to_sparse, write_synthetic_store


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sinks at layer 1 alone."""
    return write_synthetic_store(tmp_path_factory.mktemp("sinks") / "store", sink_layers=(1,))


@pytest.fixture
def copy(tmp_path):
    return write_synthetic_store(tmp_path / "store", sink_layers=(1,))


def random_sinks(starts, seed=1):
    """About a third of the tokens, but never a whole sentence; in one sentence all but a middle token."""
    rng = np.random.default_rng(seed)
    sinks = rng.random(starts[-1]) < 0.35
    for first, last in itertools.pairwise(starts):
        if sinks[first:last].all():
            sinks[rng.integers(first, last)] = False
    longest = int(np.argmax(np.diff(starts)))
    sinks[starts[longest] : starts[longest + 1]] = True
    sinks[starts[longest] + 2] = False
    return sinks


def without(dense, starts, content, sinks):
    """The same sentences, written down without their sinks, token by token."""
    kept = [token for token in range(len(dense)) if not sinks[token]]
    lengths = [sum(not sinks[t] for t in range(first, last)) for first, last in itertools.pairwise(starts)]
    return dense[kept], np.concatenate([[0], np.cumsum(lengths)]), content[kept]


def test_a_sink_lies_above_ten_times_the_median():
    norms = np.array([1.0, 2.0, 2.0, 3.0, 20.0, 20.001], dtype=np.float32)
    medians = median_norms({7: norms, -1: norms[:3]})
    assert medians == {7: 2.5, -1: 2.0}
    assert sink_mask(norms, medians[-1]).tolist() == [False] * 5 + [True]
    assert sink_mask(norms, medians[7]).tolist() == [False] * 6
    assert sink_mask(norms, 2.0, factor=1.25).tolist() == [False, False, False, True, True, True]


def test_where_most_of_a_layer_is_silent_nothing_is_a_sink():
    norms = np.array([0.0, 0.0, 5.0])
    assert not sink_mask(norms, median_norms({0: norms})[0]).any()


def test_starts_and_the_first_sentence_that_is_lost():
    starts, sinks = np.array([0, 2, 5, 6]), np.array([True, False, False, True, True, True])
    assert starts_without(starts, sinks).tolist() == [0, 1, 2, 2]
    assert first_lost_sentence(starts, sinks) == 2
    assert first_lost_sentence(starts, np.zeros(6, dtype=bool)) is None


def test_a_rule_comes_back_from_json_with_its_layers_in_order():
    rule = SinkRule(10.0, {14: 158.25, 2: 78.5, -1: 2.0})
    written = json.dumps(rule.as_json())
    assert list(json.loads(written)["median_norms"]) == ["-1", "2", "14"]
    assert SinkRule.from_json(json.loads(written)) == rule
    assert rule.lacking([2, 3, 14]) == [3]
    for damage in ({"factor": float("nan")}, {"median_norms": {"two": 1.0}}, {"median_norms": {"2": 1e999}}):
        with pytest.raises(ValueError, match=r"finite|invalid literal"):
            SinkRule.from_json({**rule.as_json(), **damage})


@pytest.mark.parametrize("n_sentences", [30, 150])  # within one strip of pool_dense, and over several
@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_without_sinks_equals_a_loop_over_the_tokens_that_are_left(pooling, n_sentences):
    dense, starts, content = random_tokens(n_sentences=n_sentences)
    sinks = random_sinks(starts)
    expected = pooled_by_hand(*without(dense, starts, content, sinks), pooling)
    loud = np.where(sinks[:, None], SINK_SIZE, dense).astype(np.float32)
    assert sinks.sum() > n_sentences
    np.testing.assert_allclose(
        pool_sparse(to_sparse(loud), starts, content, pooling, sinks).to_dense(), expected, rtol=1e-6
    )
    np.testing.assert_allclose(pool_dense(loud, starts, content, pooling, sinks), expected, rtol=1e-6)
    # The control: counted, they would be seen.
    assert pool_dense(loud, starts, content, pooling).max() > 10 * expected.max()


@pytest.mark.parametrize("pooling", POOLINGS)
def test_no_sink_changes_no_bit(pooling):
    dense, starts, content = random_tokens()
    none = np.zeros(starts[-1], dtype=bool)
    one, other = (pool_sparse(to_sparse(dense), starts, content, pooling, sinks) for sinks in (None, none))
    np.testing.assert_array_equal(one.data, other.data)
    np.testing.assert_array_equal(one.indptr, other.indptr)
    np.testing.assert_array_equal(
        pool_dense(dense, starts, content, pooling), pool_dense(dense, starts, content, pooling, none)
    )


def test_silenced_rows_hold_nothing_and_the_others_what_they_held():
    dense, _, _ = random_tokens()
    rows = np.arange(len(dense)) % 3 == 0
    silenced = to_sparse(dense).silenced(rows)
    np.testing.assert_array_equal(silenced.to_dense(), np.where(rows[:, None], 0, dense))
    assert len(silenced.data) == silenced.indptr[-1] < len(to_sparse(dense).data)


def test_a_store_leaves_out_the_sinks_of_a_layer_at_that_layer_alone(folder):
    store, kept = FeatureStore(folder), FeatureStore(folder, keep_sinks=True)
    sinks = planted_sinks(store.n_tokens)
    for layer, expected in ((0, np.zeros_like(sinks)), (1, sinks), (EMBEDDINGS, np.zeros_like(sinks))):
        np.testing.assert_array_equal(store.sinks(layer), expected)
        assert not kept.sinks(layer).any()
        every = kept.hidden_states(layer)
        np.testing.assert_array_equal(store.hidden_states(layer), every)  # the states of tokens are of all
        for pooling in POOLINGS:
            by_hand = pooled_by_hand(*without(every, store.starts, store.content, expected), pooling)
            np.testing.assert_allclose(store.pooled_hidden_states(layer, pooling), by_hand, rtol=1e-6)
    for sae in store.saes:
        silent = sinks if sae.layer == 1 else np.zeros_like(sinks)
        every = kept.activations(sae).to_dense()
        assert (every[silent] >= SINK_SIZE).all()
        np.testing.assert_array_equal(store.activations(sae).to_dense(), np.where(silent[:, None], 0, every))
        np.testing.assert_array_equal(
            store.feature_activations(sae, [5, 3]), np.where(silent[:, None], 0, every)[:, [5, 3]]
        )
        for pooling in POOLINGS:
            by_hand = pooled_by_hand(*without(every, store.starts, store.content, silent), pooling)
            got = store.pooled_activations(sae, pooling).to_dense()
            np.testing.assert_allclose(got, by_hand, rtol=1e-6)
            old = pooled_by_hand(every, store.starts, store.content, pooling)
            np.testing.assert_allclose(kept.pooled_activations(sae, pooling).to_dense(), old, rtol=1e-6)
            assert got.max() < SINK_SIZE / 10
            assert (old.max() > SINK_SIZE / 10) == (sae.layer == 1)


def test_a_store_tells_sinks_of_the_layers_that_it_has(folder):
    with pytest.raises(UserError, match="tells no sinks of layer 7; there are 0, 1"):
        FeatureStore(folder).sinks(7)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        (np.array([0.0]), "'sinks' holds float64"),
        (np.array([[0]]), r"shape \(1, 1\), not places of tokens"),
        (np.array([3, 3]), "'sinks' does not rise within 0"),
        (np.array([-1]), "'sinks' does not rise within 0"),
        (np.array([10**6]), "'sinks' does not rise within 0"),
        (np.array([2**64 - 1], dtype=np.uint64), "'sinks' does not rise within 0"),
        (np.arange(8), "'sinks' leaves no token of a sentence"),
        (None, "array 'sinks' is missing"),
    ],
)
def test_sinks_that_cannot_be_are_refused_by_name(copy, places, message):
    for name in ("sae_layer_01_l0_8.npz", "hidden_layer_01.npz"):
        path = copy / "block_0000" / name
        with np.load(path) as archive:
            arrays = {key: archive[key] for key in archive.files if key != "sinks"}
        np.savez(path, **arrays, **({} if places is None else {"sinks": places}))
    store = FeatureStore(copy)
    for read in (
        lambda: store.pooled_activations(store.find_sae(1, 8)),
        lambda: store.activations(store.find_sae(1, 8)),
        lambda: store.pooled_hidden_states(1),
        lambda: store.sinks(1),
    ):
        with pytest.raises(UserError, match=message):
            read()
    kept = FeatureStore(copy, keep_sinks=True)
    assert kept.pooled_hidden_states(1).shape == (80, 16)  # whoever keeps sinks does not read them


def test_a_store_of_format_1_reads_as_before(folder, tmp_path):
    """The old layout: no array of sinks in any file, no entry in the manifest."""
    old = write_synthetic_store(tmp_path / "old")
    for path in old.glob("block_*/*.npz"):
        with np.load(path) as archive:
            assert "sinks" not in archive.files
    manifest = json.loads((old / "manifest.json").read_text())
    assert "sinks" not in manifest
    assert manifest["format_version"] == 3
    (old / "manifest.json").write_text(json.dumps(sealed({**manifest, "format_version": 1})))
    store, asked = FeatureStore(old), FeatureStore(old, keep_sinks=True)
    assert not store.tells_sinks
    assert not store.leaves_out_sinks
    assert not store.sinks(1).any()
    for sae in store.saes:
        every = np.zeros((int(store.starts[-1]), sae.d_sae), dtype=np.float32)
        for block, (_, tokens) in enumerate(store._block_ranges):
            with np.load(old / f"block_000{block}" / f"sae_{sae.name}.npz") as archive:
                rows = np.repeat(np.arange(tokens.start, tokens.stop), np.diff(archive["indptr"]))
                every[rows, archive["indices"]] = archive["data"]
        np.testing.assert_array_equal(store.activations(sae).to_dense(), every)
        for pooling in POOLINGS:
            expected = pooled_by_hand(every, store.starts, store.content, pooling)
            np.testing.assert_allclose(store.pooled_activations(sae, pooling).to_dense(), expected, rtol=1e-6)
            assert (
                asked.pooled_activations(sae, pooling).data == store.pooled_activations(sae, pooling).data
            ).all()
    for version in (0, 4):
        (old / "manifest.json").write_text(json.dumps(sealed({**manifest, "format_version": version})))
        with pytest.raises(
            UserError, match=rf"feature store format {version}, this program reads format 1 or 2 or 3"
        ):
            FeatureStore(old)


def test_pooled_hidden_states_that_leave_sinks_out_cannot_be_read_with_them(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "hidden_states": "pooled"}))
    with pytest.raises(UserError, match="pooled hidden states leave attention sinks out for good"):
        FeatureStore(copy, keep_sinks=True)
    assert FeatureStore(copy).leaves_out_sinks


def test_pooled_states_are_written_without_sinks(tmp_path):
    dense, starts, content = random_tokens()
    sinks = random_sinks(starts)
    loud = np.where(sinks[:, None], SINK_SIZE, dense).astype(np.float32)
    BlockWriter(tmp_path, 0).write_pooled_states(3, loud, starts, content, sinks)
    with np.load(tmp_path / "block_0000" / "hidden_layer_03.npz") as archive:
        for pooling in POOLINGS:
            expected = pooled_by_hand(*without(dense, starts, content, sinks), pooling)
            got = archive[f"pooled_{pooling.replace('-', '_')}"]
            np.testing.assert_allclose(got.astype(float), expected, rtol=1e-3)  # float16 has 11 bits
        assert archive["sinks"].tolist() == np.flatnonzero(sinks).tolist()
        assert archive["sinks"].dtype == np.int32


def manifest_with(found, prepend_bos=False, n_layers=30):
    counts = {
        str(layer): {"n_tokens": n_tokens, "n_first_tokens": n_first}
        for layer, (n_tokens, n_first) in found.items()
    }
    medians = {str(layer): 1.0 for layer in range(n_layers)}
    return {
        "model": {"prepend_bos": prepend_bos},
        "n_sentences": 100,
        "n_tokens": 2400,
        "sinks": {"factor": 10.0, "median_norms": medians},
        "sinks_found": counts,
    }


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ({}, "sinks: none at any of 30 layers"),
        ({7: (100, 100)}, "sinks: layer 7: 100 of 2,400 tokens, all at position 0"),
        (
            {-1: (2, 0), 3: (8, 7), 4: (8, 7), 5: (9, 7), 6: (8, 7)},
            "sinks: input of layer 0: 2 of 2,400 tokens, 0 at position 0; "
            "layers 3 to 4: 8 of 2,400 tokens, 7 at position 0; layer 5: 9 of 2,400 tokens, 7 at position 0; "
            "layer 6: 8 of 2,400 tokens, 7 at position 0",
        ),
        (
            {layer: (90 + layer, 90) for layer in range(2, 9)},
            "sinks: at 7 of 30 layers, layers 2 to 8: 92 to 98 of 2,400 tokens, 630 at position 0",
        ),
    ],
)
def test_the_line_about_sinks_is_short(found, line):
    assert sink_line(manifest_with(found)) == line


def test_a_bos_token_is_advised_where_many_first_words_are_sinks():
    assert "in 60 of 100 sentences" in advice(manifest_with({2: (9, 9), 14: (60, 60)}))
    assert "layer 14" in advice(manifest_with({2: (9, 9), 14: (60, 60)}))
    assert advice(manifest_with({14: (60, 5)})) == ""  # 5 % is not many
    assert advice(manifest_with({14: (60, 60)}, prepend_bos=True)) == ""
    assert advice(manifest_with({})) == ""
